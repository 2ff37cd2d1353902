"""Content jumps on the published track with its known cuts, and on walks with planted ones."""

import numpy as np
import pytest
from scipy.io import loadmat

from mouselift_jax.data.check.jumps import content_jumps
from mouselift_jax.data.synthetic.recording import Scene


def test_published_track_has_exactly_its_three_cuts(shared):
    content = loadmat(
        shared / "data/dannce/label3d_dannce.mat", struct_as_record=False, squeeze_me=True
    )
    assert content_jumps(content["com"].com3d).tolist() == [5900, 11800, 17700]


@pytest.mark.parametrize("seed", range(2))
def test_planted_jump(seed):
    walk = Scene(seed, 30.0, (37,))
    track = np.stack([walk.body(f).position for f in range(80)])
    noise = np.random.default_rng(seed).normal(0, 0.3, track.shape)
    assert content_jumps(track + noise).tolist() == [37]


@pytest.mark.parametrize("seed", range(3))
def test_no_alarm_on_a_walk_or_a_resting_animal(seed):
    rng = np.random.default_rng(seed)
    track = np.stack([Scene(seed, 30.0).body(f).position for f in range(80)])
    assert content_jumps(track + rng.normal(0, 0.3, track.shape)).size == 0
    assert content_jumps(np.zeros((50, 3))).size == 0
    assert content_jumps(track[:5]).size == 0


def test_missing_positions_are_no_jump():
    track = np.stack([Scene(1, 30.0).body(f).position for f in range(60)])
    track[20:24] = np.nan
    assert content_jumps(track).size == 0


def test_a_resting_animal_whose_mask_changes_is_no_cut():
    rng = np.random.default_rng(0)
    for step in (0.5, 2.0, 8.0, 16.0):
        track = rng.normal(0, 0.05, (120, 3))
        track[60:, 0] += step
        assert not len(content_jumps(track)) and not len(content_jumps(track / 1000, 1000.0))
    track[60:, 0] += 40
    assert content_jumps(track).tolist() == [60]
