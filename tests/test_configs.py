"""Every key of every config is read by code, and every variant builds its plan."""

from __future__ import annotations

import dataclasses
import importlib
import re
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from mouselift_jax.data.calibration.calibrate import Settings as Calibrate
from mouselift_jax.data.preparation.placement import SceneSettings
from mouselift_jax.data.preparation.preparer import PrepareSettings
from mouselift_jax.data.samples.rig_file import load_rig
from mouselift_jax.pipelines.film.settings import FilmSettings
from mouselift_jax.pipelines.fit.settings import FitSettings
from mouselift_jax.runs.record import flatten, plain
from mouselift_jax.stages.harness import keys
from mouselift_jax.stages.harness.plan import STAGES

ROOT = Path(__file__).resolve().parents[1]
UNEXPLAINED = ("stage", "variant")  # what the command line itself says
CODE = "\n".join(p.read_text() for p in (ROOT / "mouselift_jax").rglob("*.py"))
VARIANTS = [
    (stage, variant)
    for stage in STAGES
    for variant in importlib.import_module(f"configs.{stage}").VARIANTS
]


def get_config(stage, variant):
    return importlib.import_module(f"configs.{stage}").get_config(variant)


# What some code names: as attribute, string, argument or dataclass field.
NAMED = {
    word
    for form in (r"\.(\w+)\b", r"[\"'](\w+)[\"']", r"^\s+(\w+): ", r"\b(\w+)=")
    for word in re.findall(form, CODE, re.MULTILINE)
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_is_read(stage):
    keys = {part for key in flatten(plain(get_config(stage, "base"))) for part in key.split(".")}
    assert not keys - NAMED


@pytest.mark.parametrize("stage", STAGES)
def test_every_config_says_its_command_and_cost(stage):
    head = importlib.import_module(f"configs.{stage}").__doc__
    assert f"--config=configs/{stage}.py" in head
    assert re.search(r"minute|hour|second|not measured", head, re.I), "no word on how long it takes"
    assert re.search(r"\bGi?B\b|\bMi?B\b|memory|not measured", head), "no word on memory"


@pytest.mark.parametrize("stage", STAGES)
def test_help_explains_every_key(stage):
    """--help of a config is made from the comments beside its values."""
    make = importlib.import_module(f"configs.{stage}").get_config
    said = keys.explained(make)
    of_all = {key for key in flatten(make().to_dict()) if key.split(".")[-1] not in UNEXPLAINED}
    assert not [key for key in sorted(of_all) if not said.get(key)]
    text = keys.describe(ROOT / "configs" / f"{stage}.py")
    assert all(f"--config.{key}=" in text for key in of_all)
    assert text.startswith(importlib.import_module(f"configs.{stage}").__doc__.strip())


def test_help_takes_comments_from_beside_above_and_within():
    def section():
        c = ConfigDict()
        c.depth = 3  # how deep
        return c

    def config():
        c = ConfigDict()
        c.inner = section()
        c.a, c.b = 1, 2  # two at once
        # --- a heading is none ---
        c.bare = 0
        # longer than
        # one line
        c.long = s = ConfigDict()
        s.word = (
            "x"  # within
        )  # fmt: skip
        return c

    config.__globals__["section"] = section
    try:
        said = keys.explained(config)
    finally:
        del config.__globals__["section"]
    assert said == {
        "inner.depth": "how deep", "a": "two at once", "b": "two at once",
        "long": "longer than one line", "long.word": "within",
    }  # fmt: skip


SAID_TWICE = [
    ("fit", "fit", FitSettings), ("fit", "film", FilmSettings),
    ("calibrate", "calibrate", Calibrate),
    ("prepare", "prepare", PrepareSettings), ("prepare", "prepare", SceneSettings),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "section", "settings"), SAID_TWICE)
def test_a_config_and_its_dataclass_say_the_same(stage, section, settings):
    """What a script gets without a config is what the command line gets."""
    given = get_config(stage, "base")[section]
    fields = {
        f.name: f.default
        for f in dataclasses.fields(settings)
        if f.name in given and not dataclasses.is_dataclass(f.default)
    }
    assert fields
    assert {k: given[k] for k in fields} == fields


@pytest.mark.parametrize("stage", STAGES)
def test_unknown_variant_lists_the_known(stage):
    with pytest.raises(ValueError, match="known: base"):
        get_config(stage, "no_such_variant")


def test_files_that_a_config_names_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = runpy.run_path(str(ROOT / "configs/infer.py"))["get_config"]("head").cameras
    assert load_rig(named)[0].cameras.batch_shape == (6,)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> dict[str, Path]:
    """One tiny input of each kind that a stage reads."""
    from mouselift_jax.data.synthetic.recording import write_recording
    from tests.sample_sets import write_samples

    root = tmp_path_factory.mktemp("inputs")
    write_recording(root / "recording", frames=3, size=(72, 64), n_heldout=0)
    write_samples(root / "samples", n=4)
    settings = {"gslrm": '{"patch_size": 8}', "unet": "{}", "vae": "{}", "text_encoder": "{}"}
    for name, text in settings.items():  # a plan reads no weights
        (root / "weights" / name / "params").mkdir(parents=True)
        (root / "weights" / name / "config.json").write_text(text)
    (root / "weights" / "conversion.json").write_text("{}")
    return {
        "recording": root / "recording",
        "samples": root / "samples",
        "init_from": root / "weights",
        "gslrm": root / "weights",
        "mvdiff": root / "weights",
    }


@pytest.mark.parametrize(("stage", "variant"), VARIANTS)
def test_every_variant_builds_its_plan(stage, variant, inputs, tmp_path):
    config = get_config(stage, variant)
    for key, path in inputs.items():
        if key in config and not isinstance(config[key], ConfigDict):
            config[key] = str(path)
    if stage == "fit":
        config.recording = None  # one of the two
    if stage == "prepare":
        config.prepare.min_mask_px = 5
        config.split.gap_s = 0.0  # three frames leave no room for one
    plan = importlib.import_module(f"mouselift_jax.stages.{stage}").plan(config, tmp_path / "run")
    assert plan.writes and plan.describe().startswith(f"plan of stage {stage}")
    assert not (tmp_path / "run").exists(), "a plan touches nothing"
