import numpy as np
import pytest

from mouselift_jax.errors import ShapeError
from mouselift_jax.report.statistics import mean_interval


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        interval = mean_interval(rng.normal(5, 2, 40), n_draws=400, seed=i)
        hits += interval.low <= 5 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_blocks_widen_the_interval_of_frames_that_resemble_each_other():
    walk = np.repeat(np.random.default_rng(0).normal(size=10), 10)
    alone, blocks = mean_interval(walk), mean_interval(walk, block=10)
    assert blocks.high - blocks.low > 2 * (alone.high - alone.low)


def test_nans_are_left_out_and_nothing_is_nothing():
    interval = mean_interval(np.array([1.0, np.nan, 3.0]))
    assert interval.mean == 2 and interval.n == 2 and str(interval).startswith("2 [")
    assert mean_interval(np.array([np.nan])).n == 0
    with pytest.raises(ShapeError):
        mean_interval(np.zeros((2, 2)))
