"""Which checkpoint of a run others get."""

import jax
import numpy as np
import pytest

from mouselift_jax.errors import CheckpointError, ConfigError
from mouselift_jax.training.checkpoint import Checkpoints, low_is_good
from mouselift_jax.training.run_params import load_run_params


def noise(k):
    return {"params": {"a": jax.random.normal(jax.random.key(k), (8, 8))}}


def write(folder, values, metric="heldout/psnr", keep=1):
    """A checkpoint for each step, with its value of the metric; None = saved without one."""
    with Checkpoints(folder, keep=keep, best=metric) as c:
        for step, value in values.items():
            c.save(step, noise(step), None if value is None else {metric: value})
    return folder


def test_what_keep_best_keeps_is_what_others_get(tmp_path):
    folder = write(tmp_path / "c", {1: 20.0, 2: 25.0, 3: 22.0, 4: None})
    found = load_run_params(folder)
    assert found.step == 2
    np.testing.assert_array_equal(found.params["a"], noise(2)["params"]["a"])
    assert "heldout/psnr" in found.why and "newest is 4" in found.why
    assert load_run_params(folder, "newest").step == 4
    assert load_run_params(folder, "2").step == 2


def test_low_is_good_for_distances(tmp_path):
    assert low_is_good("val/lpips_g3") and low_is_good("train/loss")
    assert not low_is_good("heldout/psnr") and not low_is_good("val/ssim")
    assert load_run_params(write(tmp_path / "c", {1: 0.3, 2: 0.1, 3: 0.2}, "val/lpips")).step == 2


def test_without_a_best_it_is_the_newest(tmp_path):
    found = load_run_params(write(tmp_path / "c", {1: None, 2: None}, metric="", keep=2))
    assert found.step == 2 and found.why == "the newest"


def test_a_step_that_is_not_there_and_words_without_sense_are_told(tmp_path):
    folder = write(tmp_path / "c", {1: None, 2: None}, keep=2)
    with pytest.raises(CheckpointError, match="no checkpoint of step 7"):
        load_run_params(folder, 7)
    with pytest.raises(ConfigError, match="best | newest"):
        load_run_params(folder, "newset")
