"""Every key of every config is read by code, and every variant builds its plan."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from mouselift_jax.stages.stage import STAGES
from mouselift_jax.stages.workdir import flatten, plain

ROOT = Path(__file__).resolve().parents[1]
CODE = "\n".join(p.read_text() for p in (ROOT / "mouselift_jax").rglob("*.py"))
VARIANTS = [
    (stage, variant)
    for stage in STAGES
    for variant in importlib.import_module(f"configs.{stage}").VARIANTS
]


def get_config(stage, variant):
    return importlib.import_module(f"configs.{stage}").get_config(variant)


def is_read(key: str) -> bool:
    """Whether some code names the key: as attribute, string, argument or dataclass field."""
    return bool(re.search(rf"\.{key}\b|[\"']{key}[\"']|^\s+{key}: |\b{key}=", CODE, re.M))


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_is_read(stage):
    keys = {part for key in flatten(plain(get_config(stage, "base"))) for part in key.split(".")}
    assert not [key for key in sorted(keys) if not is_read(key)]


@pytest.mark.parametrize("stage", STAGES)
def test_every_config_says_its_command_and_cost(stage):
    head = importlib.import_module(f"configs.{stage}").__doc__
    assert f"--config=configs/{stage}.py" in head
    assert re.search(r"minute|hour|second|not measured", head, re.I), "no word on how long it takes"
    assert re.search(r"\bGi?B\b|\bMi?B\b|memory|not measured", head), "no word on memory"


@pytest.mark.parametrize("stage", STAGES)
def test_unknown_variant_lists_the_known(stage):
    with pytest.raises(ValueError, match="known: base"):
        get_config(stage, "no_such_variant")
