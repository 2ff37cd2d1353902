"""Small choices: which frames, which side of the split, which views."""

import numpy as np
import pytest

from mouselift_jax.data.batches.views import choose_views
from mouselift_jax.data.preparation.frames import choose_frames
from mouselift_jax.data.samples.split import split_blocks, split_by_recording
from mouselift_jax.errors import ConfigError


def test_frames():
    assert choose_frames(10).tolist() == list(range(10))
    assert choose_frames(10, ranges="2:5, 7, -1").tolist() == [2, 3, 4, 7, 9]
    assert choose_frames(10, ranges="0:10:3").tolist() == [0, 3, 6, 9]
    assert choose_frames(100, every=25).tolist() == [0, 25, 50, 75]
    spread = choose_frames(18000, n_samples=2000)
    assert len(spread) == 2000 and spread[0] == 0 and set(np.diff(spread)) == {9}
    assert choose_frames(20, exclude=(5, 6), margin=2).tolist() == [0, 1, 2, *range(9, 20)]


@pytest.mark.parametrize(
    "bad",
    ["1:200", "a:b", "0:10:0", "300", "5:2", "-", "5:-", "-:3", "0:5,200:", "0:5,9:7", "-300:5"],
)
def test_bad_frames(bad):
    with pytest.raises(ConfigError):
        choose_frames(100, ranges=bad)


def test_split_is_one_block_at_the_end_of_a_short_recording():
    labels = split_blocks(np.arange(90) / 30, val_fraction=0.1, gap=0.5)
    assert labels == ["train"] * 67 + ["gap"] * 14 + ["val"] * 9


def test_split_of_a_long_recording_has_gaps_everywhere():
    times = np.arange(2000) * 0.081
    labels = np.array(split_blocks(times, val_fraction=0.1, gap=0.5))
    val, train = times[labels == "val"], times[labels == "train"]
    assert (labels == "val").sum() == 200
    assert np.abs(val[:, None] - train[None]).min() >= 0.5
    assert (np.diff(np.flatnonzero(labels == "val")) > 1).sum() == 4  # five blocks


def test_split_of_few_samples():
    assert split_blocks([0.0]) == ["train"]
    assert split_blocks([0.0, 10.0]) == ["train", "val"]
    assert split_blocks([0.0, 1.0], val_fraction=0.0) == ["train", "train"]
    with pytest.raises(ConfigError, match="nothing to train on"):
        split_blocks([0.0, 0.1, 0.2], gap=5.0)


def test_split_by_recording():
    assert split_by_recording(["a", "a", "b"], ["b"]) == ["train", "train", "val"]
    for wrong in (["c"], ["a", "b"], []):
        with pytest.raises(ConfigError):
            split_by_recording(["a", "b"], wrong)


def ring(n, radius=2.7):
    a = np.radians(360.0 * np.arange(n) / n)
    return radius * np.stack([np.cos(a), np.sin(a), 0 * a], -1)


def angles(a, b):
    cos = (a @ b.T) / np.linalg.norm(a, axis=-1)[:, None] / np.linalg.norm(b, axis=-1)
    return np.degrees(np.arccos(np.clip(cos, -1, 1)))


def test_overlap_rule_is_sixty_degrees_and_the_originals_is_not():
    centers, widest = ring(32), {"overlap": 0.0, "overlap_original": 0.0}
    for policy in widest:
        for seed in range(200):
            chosen = choose_views(policy, centers, 8, 4, np.random.default_rng(seed))
            assert len(set(chosen.tolist())) == 8
            assert (np.diff(chosen[:4]) > 0).all() and (np.diff(chosen[4:]) > 0).all()
            nearest = angles(centers[chosen[4:]], centers[chosen[:4]]).min(1).max()
            widest[policy] = max(widest[policy], nearest)
    assert widest["overlap"] <= 60.001
    assert 60 < widest["overlap_original"] <= 86.07


def test_view_policies():
    rng = np.random.default_rng(0)
    assert choose_views("all", ring(6), None, None, rng).tolist() == [0, 1, 2, 3, 4, 5]
    assert choose_views("first", ring(6), 4, 2, rng).tolist() == [0, 1, 2, 3]
    assert len(choose_views("random", ring(6), 5, 5, rng)) == 5
    with pytest.raises(ConfigError, match="did you mean 'overlap'"):
        choose_views("overlapp", ring(6), 4, 2, rng)
    with pytest.raises(ConfigError, match="fewer views"):
        choose_views("random", ring(6), 8, 2, rng)
    with pytest.raises(ConfigError, match="overlap rule"):
        choose_views("overlap", ring(4), 4, 2, rng)
