"""Faults that come and go are found where they happen; true and resting animals raise nothing."""

import numpy as np
import pytest

from mouselift_jax.data.check.hypotheses import Geometry
from mouselift_jax.data.check.search import explain
from mouselift_jax.data.check.time import cheapest_path, repeated, segments
from mouselift_jax.data.synthetic.rig import lab_rig

N = 60


@pytest.fixture(scope="module")
def walk():
    """Outlines of a ball on a walk, all cameras true."""
    t = np.arange(N)[:, None]
    centre = np.concatenate([60 * np.cos(0.11 * t), 50 * np.sin(0.17 * t), 20 + 0 * t], 1)
    rng = np.random.default_rng(0)
    sphere = rng.normal(size=(80, 3))
    sphere *= 18 / np.linalg.norm(sphere, axis=1, keepdims=True)
    cameras = tuple(lab_rig(640, 560))
    middle = np.mean([c.center for c in cameras], 0) * [1, 1, 0]
    points = middle + centre[:, None] + sphere
    xy = np.stack([c.project(points.reshape(-1, 3))[0].reshape(N, -1, 2) for c in cameras])
    return Geometry("keypoints", xy, cameras, np.zeros(N, int))


def with_order(walk, v, order):
    return walk.replaced(v, xy=walk.xy[v][np.clip(order, 0, N - 1)])


t = np.arange(N)
ORDERS = {
    "frames_lost": np.where(t < 25, t, t + 3),
    "frames_doubled": np.where(t < 40, t, t - 2),
    "clock_drift": np.round(t * 1.15).astype(int),
    "pieces_exchanged": np.roll(t, 22),
}


@pytest.mark.parametrize("code", ORDERS)
@pytest.mark.parametrize("v", [1, 4])
def test_order_is_told(walk, code, v):
    verdict = explain(with_order(walk, v, ORDERS[code]), floor=1.0)
    assert verdict.best is not None and verdict.best.code == code
    assert verdict.best.cameras == (v,) and verdict.after < 0.3 * verdict.before
    p = verdict.best.parameters
    if code == "frames_lost":
        assert p["frames"] == 3 and abs(p["row"] - 25) <= 1
    if code == "frames_doubled":
        assert p["frames"] == 2 and abs(p["row"] - 40) <= 1
    if code == "clock_drift":
        assert abs(1 / (1 - p["rate"]) - 1.15) < 0.01
    if code == "pieces_exchanged":
        assert p["row"] == 22


def test_a_constant_offset_stays_one(walk):
    verdict = explain(with_order(walk, 2, t + 4), floor=1.0)
    assert verdict.best.code == "video_offset" and verdict.best.parameters["frames"] == 4


def test_true_geometry_has_no_fault(walk):
    noisy = walk.xy + np.random.default_rng(1).normal(0, 0.4, walk.xy.shape)
    assert explain(Geometry("keypoints", noisy, walk.cameras, walk.window), floor=1.0).best is None


def test_path_changes_only_when_it_pays():
    costs = np.ones((30, 3))
    costs[:12, 0] = costs[12:, 2] = 0.0
    assert segments(cheapest_path(costs, 4.0, 1.0)) == [(0, 0), (12, 2)]
    assert len(segments(cheapest_path(costs, 20.0, 1.0))) == 1
    costs[:3] = np.nan
    assert segments(cheapest_path(costs, 4.0, 1.0)) == [(0, 0), (12, 2)]


def test_repeats_of_one_camera_are_told_and_a_rest_of_all_is_not():
    rng = np.random.default_rng(0)
    changes = 1.0 + 0.2 * rng.random((6, 90))
    changes[:, 0] = np.nan
    changes[:, 30:40] = 0.05  # the animal rests, in all
    assert repeated(changes) == []
    changes[3, [50, 51, 70]] = 0.2
    (found,) = repeated(changes)
    assert found.view == 3 and found.rows.tolist() == [50, 51, 70]
    changes[3, 1::2] = 0.2
    assert repeated(changes)[0].share > 0.4


def test_the_noise_of_a_resting_animal_is_no_repeat():
    """Changes of a real clip at rest: 0.03 to 0.3 grey levels."""
    rng = np.random.default_rng(0)
    levels, often = [0.04, 0.055, 0.07, 0.086, 0.107, 0.124, 0.27], [4, 12, 24, 28, 22, 8, 2]
    assert repeated(rng.choice(levels, (3, 120), p=np.array(often) / 100)) == []
