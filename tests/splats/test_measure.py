"""Which way a body faces."""

from __future__ import annotations

import numpy as np
import pytest

from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.measure import centre_of, facing


def rodent(swing: float = 0.0) -> Gaussians:
    """A trunk along x, its head at +x, and a tail at -x that swings to the side."""
    rng = np.random.default_rng(0)
    trunk = rng.normal(size=(900, 3))
    trunk = trunk / np.linalg.norm(trunk, axis=-1, keepdims=True) * [0.35, 0.15, 0.14]
    s = np.linspace(0, 1, 120)[:, None]
    tail = np.concatenate([-0.35 - 0.5 * s, swing * s**2, 0 * s], -1)
    means = np.concatenate([trunk, tail]) + [0.1, 0.2, 0.3]
    scales = np.where(np.arange(len(means)) < 900, 0.03, 0.015)
    n = len(means)
    return Gaussians(
        means.astype(np.float32),
        np.tile(np.float32([1, 0, 0, 0]), (n, 1)),
        np.log(np.repeat(scales[:, None], 3, 1)).astype(np.float32),
        np.full(n, 4.0, np.float32),
        np.zeros((n, 1, 3), np.float32),
    )


@pytest.mark.parametrize("turn", [0.0, 100.0, 275.0])
@pytest.mark.parametrize("swing", [0.0, 0.4])
def test_the_tail_is_behind_and_its_swing_does_not_turn_the_trunk(turn, swing):
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    R = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    body = rodent(swing).transformed(Similarity(np.float64(1), R, np.zeros(3)))
    azimuth, sure = facing(body)
    assert abs((azimuth - turn + 180) % 360 - 180) < 4
    assert sure > 0.3


def test_a_body_without_a_tail_is_not_sure_and_nothing_is_no_error():
    trunk = rodent()[np.arange(900)]
    assert facing(trunk)[1] < 0.5 * facing(rodent())[1]
    np.testing.assert_allclose(centre_of(trunk), [0.1, 0.2, 0.3], atol=0.02)
    assert facing(trunk[np.arange(0)]) == (0.0, 0.0)
