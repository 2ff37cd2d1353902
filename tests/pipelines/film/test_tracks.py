"""Tracking error against points whose paths are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mouselift_jax.pipelines.film import tracks
from mouselift_jax.splats.gaussians import rotation_to_quat


def turning(frames: int = 5) -> tuple:
    """Gaussians on a ball that turns about z and moves, and points between them."""
    rng = np.random.default_rng(0)
    ball = rng.normal(size=(400, 3))
    ball *= 30 / np.linalg.norm(ball, axis=-1, keepdims=True)
    points = ball[:40] + rng.normal(size=(40, 3))
    R = Rotation.from_rotvec(np.array([0, 0, 0.2]) * np.arange(frames)[:, None]).as_matrix()
    shift = np.arange(frames)[:, None] * np.array([3.0, 0, 0])
    quats = [np.tile(rotation_to_quat(r), (400, 1)) for r in R]
    at = [x @ R[t].T + shift[t] for x in (ball, points) for t in range(frames)]
    return np.stack(at[frames:]), at[:frames], quats


def test_points_go_with_the_gaussians_that_carry_them() -> None:
    truth, means, quats = turning()
    starts = np.zeros(40, int)
    starts[:10], starts[5] = 2, -1
    same = np.zeros(5, int)
    found = tracks.paths(truth, starts, lambda: enumerate_frames(means, quats), same)
    assert np.isnan(found[:, 5]).all()
    figures = tracks.figures(found, truth, starts)
    assert figures["p95_mm"] < 1e-9 and figures["lost"] == 0


def enumerate_frames(means: list, quats: list) -> object:
    return zip(range(len(means)), means, quats, strict=True)


def test_what_has_no_identity_any_more_is_lost_and_so_is_what_went_elsewhere() -> None:
    truth, means, quats = turning()
    starts = np.zeros(40, int)
    cut = np.array([0, 0, 0, 1, 1])
    found = tracks.paths(truth, starts, lambda: enumerate_frames(means, quats), cut)
    assert tracks.figures(found, truth, starts)["lost"] == 0.5
    found = truth.copy()
    found[1:, :4] += 2 * tracks.LOST
    figures = tracks.figures(found, truth, starts)
    assert (
        figures["lost"] == pytest.approx(0.1)
        and figures["median_mm"] == 0
        and figures["p95_mm"] > 10
    )


def test_clouds_that_know_nothing_of_each_other_are_matched_worse() -> None:
    truth, means, _ = turning()
    rng = np.random.default_rng(1)
    starts = np.zeros(40, int)
    same = tracks.matched(truth, starts, [m[rng.permutation(400)] for m in means])
    assert np.abs(same[0] - truth[0]).max() < 6
    error = tracks.figures(same, truth, starts)
    assert 1 < error["median_mm"] < 20  # the turn is not followed, the walk is


def test_a_point_is_known_from_the_frame_in_which_two_cameras_see_it() -> None:
    seen = np.zeros((3, 3, 4), bool)
    seen[1, 0, :2] = seen[2, 1, 1:3] = seen[:, 2, 0] = True
    assert list(tracks.first_seen(seen)) == [1, 2, -1]
