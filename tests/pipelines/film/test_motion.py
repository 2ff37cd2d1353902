"""What nodes carry."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.spatial.transform import Rotation

from mouselift_jax.pipelines.film import Motion, at_rest, expected, posed, product, rest_of
from mouselift_jax.pipelines.fit import Fit, Start
from mouselift_jax.splats.gaussians import Gaussians, quat_to_rotation, rotation_to_quat


def two_sheets(gap: float = 0.02) -> Fit:
    """Two sheets of Gaussians close to each other, joined at one edge only; some padding."""
    u, v = (x.ravel() for x in np.meshgrid(np.linspace(0, 1, 24), np.linspace(0, 0.2, 6)))
    high, low = np.stack([u, v, 0 * u], -1), np.stack([u, v, 0 * u - gap * u], -1)
    means = np.concatenate([high, low[u > 0], np.zeros((7, 3))]).astype(np.float32)
    n = len(means)
    quats = np.tile(np.float32([1, 0, 0, 0]), (n, 1))
    opacities = np.full(n, 3.0, np.float32)
    opacities[3] = -5.0  # became transparent
    colours = np.zeros((n, 1, 3), np.float32)
    g = Gaussians(means, quats, np.full((n, 3), -4.0, np.float32), opacities, colours)
    tints = np.ones((2, 3)), np.zeros((2, 3))
    start = Start(g, np.arange(n) < n - 7, np.ones(n), 0.04, *tints)
    return Fit(g, np.zeros(1), np.full(2, 30.0), np.full(2, 0.9), np.ones(n - 8), *tints, start)


def test_weights_are_shares_and_do_not_cross_a_gap_that_only_air_bridges() -> None:
    rest = rest_of(two_sheets(0.3), 12, range(2))
    assert rest.alive.sum() == len(rest.alive) - 8
    np.testing.assert_allclose(rest.weights.sum(-1), rest.alive, atol=1e-5)
    assert (rest.edges != np.arange(12)[:, None]).all()
    means = rest.gaussians.means
    far_low = np.flatnonzero(rest.alive & (means[:, 0] > 0.9) & (means[:, 2] < -0.2))
    of_high = rest.nodes[:, 2] > -0.05
    assert rest.weights[far_low][:, of_high & (rest.nodes[:, 0] > 0.6)].sum(-1).max() < 0.1


def test_a_rigid_motion_of_all_nodes_is_one_of_all_gaussians() -> None:
    rest = rest_of(two_sheets(), 12, range(2))
    R, t = Rotation.from_rotvec([0.3, -0.2, 1.1]).as_matrix(), np.array([0.1, 0.2, -0.3])
    turns = np.tile(rotation_to_quat(R), (12, 1)).astype(np.float32)
    motion = dataclasses.replace(
        at_rest(rest), places=(rest.nodes @ R.T + t).astype(np.float32), turns=turns
    )
    moved, alive, were = posed(rest, motion), rest.alive, rest.gaussians.means
    np.testing.assert_allclose(moved.means[alive], (were @ R.T + t)[alive], atol=1e-6)
    np.testing.assert_allclose(quat_to_rotation(moved.quats[alive]) - R, 0, atol=1e-5)
    still = posed(rest, at_rest(rest))
    np.testing.assert_allclose(still.means[alive], rest.gaussians.means[alive], atol=1e-7)


def test_motion_is_expected_to_go_on() -> None:
    rest = rest_of(two_sheets(), 6, range(2))
    begin = at_rest(rest)
    step = Rotation.from_rotvec([0, 0, 0.1])
    turn = rotation_to_quat(step.as_matrix())

    def after(n: int) -> Motion:
        turns = np.tile(rotation_to_quat((step**n).as_matrix()), (6, 1))
        return dataclasses.replace(begin, places=rest.nodes + np.float32(0.01 * n), turns=turns)

    guess = expected(after(2), after(1), 1.0)
    np.testing.assert_allclose(guess.places, after(3).places, atol=1e-6)
    np.testing.assert_allclose(guess.turns, after(3).turns, atol=1e-6)
    half = expected(after(2), after(1), 0.0)
    np.testing.assert_allclose(half.turns, after(2).turns, atol=1e-6)
    np.testing.assert_allclose(product(turn, turn), after(2).turns[0], atol=1e-9)
