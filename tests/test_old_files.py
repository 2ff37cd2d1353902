"""What was written before the house was redrawn is read: a run, a sample set.

The files in tests/golden/before_the_move were written by the commit before the move, with
configs/prepare.py:tiny on two frames of a procedural recording, and `save_component`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs import prepare
from mouselift_jax.data.samples import SampleSet
from mouselift_jax.errors import ConfigError
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.record import read_summary

OLD = Path(__file__).parent / "golden" / "before_the_move"


def test_a_sample_set_is_read():
    samples = SampleSet.open(OLD / "prepare")
    assert samples.ids("train") == ("sample_000000", "sample_000001")
    cameras = samples.cameras("sample_000000")
    assert np.shape(cameras.K) == (6, 3, 3) and cameras.width == 64


def test_a_run_is_read_and_goes_on(tmp_path, caplog):
    """Keys that came since are told, not refused: nothing in the folder contradicts them."""
    shutil.copytree(OLD / "prepare", tmp_path / "run")
    assert read_summary(tmp_path / "run")["finished"]
    stored = json.loads((tmp_path / "run/config.json").read_text())
    config = prepare.get_config("tiny")
    with config.unlocked():
        config.update(stored)
    with Workdir(tmp_path / "run", config) as folder:
        assert folder.path == tmp_path / "run"
    new = {key for key in config.prepare if key not in stored["prepare"]}
    assert new and all(f"prepare.{key}" in caplog.text for key in new)
    config.prepare.size = 65
    with pytest.raises(ConfigError, match="prepare.size: 64 -> 65"):
        Workdir(tmp_path / "run", config).__enter__()
