"""Bundle adjustment: derivatives against JAX's, truth found again, noise and errors honest."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.geometry.bundle import (
    PARAMETERS,
    Sightings,
    adjust,
    gauge_generators,
    located,
    project,
    rotations,
)
from tests import toy_rig

FREE = np.arange(len(PARAMETERS)) < 7  # pose and focal length


def _bent(rng):
    rig = toy_rig.rig(3)
    K = rig.K.copy()
    K[:, 0, 1], K[:, 1, 1] = 2.0, 1480.0
    coefficients = 0.02 * rng.normal(size=(3, 8))
    return dataclasses.replace(rig, K=K, coefficients=coefficients, offset=np.array([0, 0.5, -1.0]))


def _slow(rig, delta, X, velocity):
    """The same projection, written plainly for JAX: one camera, one point."""
    K, R, t, k, offset = rig
    angle = jnp.sqrt((delta[:3] ** 2).sum() + 1e-30)
    S = jnp.array([[0, -delta[2], delta[1]], [delta[2], 0, -delta[0]], [-delta[1], delta[0], 0]])
    turn = jnp.eye(3) + jnp.sin(angle) / angle * S + (1 - jnp.cos(angle)) / angle**2 * S @ S
    cam = turn @ (R @ X + t) + delta[3:6]
    x, y = cam[0] / cam[2], cam[1] / cam[2]
    r2 = x * x + y * y
    k1, k2 = k[0] + delta[10], k[1] + delta[11]
    radial = (1 + k1 * r2 + k2 * r2**2 + k[4] * r2**3) / (
        1 + k[5] * r2 + k[6] * r2**2 + k[7] * r2**3
    )
    xd = x * radial + 2 * k[2] * x * y + k[3] * (r2 + 2 * x * x)
    yd = y * radial + k[2] * (r2 + 2 * y * y) + 2 * k[3] * x * y
    zoom = jnp.exp(delta[6])
    u = zoom * (K[0, 0] * xd + K[0, 1] * yd) + K[0, 2] + delta[8]
    v = zoom * jnp.exp(delta[7]) * K[1, 1] * yd + K[1, 2] + delta[9]
    return jnp.stack([u, v]) + (offset + delta[12]) * velocity


def test_pixels_and_derivatives_are_those_of_the_plain_function():
    rng = np.random.default_rng(0)
    rig = _bent(rng)
    X, velocity = 40 * rng.normal(size=(4, 3)), rng.normal(size=(3, 4, 2))
    pixels, depth, Jc, Jp = project(rig, X, velocity)
    assert (depth > 0).all()
    with jax.enable_x64(True):
        slow = jax.jit(_slow)
        slopes = jax.jit(jax.jacfwd(_slow, (1, 2)))
        for v in range(3):
            one = tuple(
                jnp.asarray(a[v]) for a in (rig.K, rig.R, rig.t, rig.coefficients, rig.offset)
            )
            for n in range(4):
                args = (jnp.zeros(len(PARAMETERS)), jnp.asarray(X[n]), jnp.asarray(velocity[v, n]))
                np.testing.assert_allclose(slow(one, *args), pixels[v, n], rtol=1e-10)
                by_camera, by_point = slopes(one, *args)
                np.testing.assert_allclose(by_camera, Jc[v, n], rtol=1e-7, atol=1e-6)
                np.testing.assert_allclose(by_point, Jp[v, n], rtol=1e-7, atol=1e-8)


def test_distortion_is_opencvs():
    import cv2

    rng = np.random.default_rng(1)
    rig = dataclasses.replace(_bent(rng), offset=np.zeros(3))
    K = rig.K.copy()
    K[:, 0, 1] = 0  # OpenCV ignores skew
    rig = dataclasses.replace(rig, K=K)
    X = 40 * rng.normal(size=(5, 3))
    ours = project(rig, X, np.zeros((3, 5, 2)))[0]
    for v in range(3):
        theirs, _ = cv2.projectPoints(
            X, cv2.Rodrigues(rig.R[v])[0], rig.t[v], K[v], rig.coefficients[v]
        )
        np.testing.assert_allclose(ours[v], theirs[:, 0], atol=1e-6)


def test_a_change_of_the_world_changes_no_picture():
    rng = np.random.default_rng(2)
    rig = toy_rig.rig()
    X = 40 * rng.normal(size=(5, 3))
    R = rotations(rng.normal(size=(1, 3)))[0]
    scale, shift = 1.3, rng.normal(size=3) * 50
    moved = toy_rig.pixels(rig.moved(scale, R, shift), scale * X @ R.T + shift)
    np.testing.assert_allclose(moved, toy_rig.pixels(rig, X), atol=1e-8)
    # The generators are the derivative of that, by 3 shifts, 3 turns and the scale.
    G = gauge_generators(rig).reshape(6, len(PARAMETERS), 7)
    for k in range(7):
        p = np.zeros(7)
        p[k] = 1e-5
        turn = rotations(p[None, 3:6])[0]
        there = rig.changed(G[..., k] * 1e-5)
        Y = (1 + p[6]) * X @ turn.T + p[:3]
        np.testing.assert_allclose(toy_rig.pixels(there, Y), toy_rig.pixels(rig, X), atol=1e-6)


def test_points_are_located_although_a_tenth_of_the_sightings_is_wrong():
    rng = np.random.default_rng(3)
    rig, X = toy_rig.rig(), toy_rig.walk(rng, 10)
    s = toy_rig.seen(rig, X, rng, 0.5)
    wrong = rng.random(s.seen.shape) < 0.1
    s.xy[wrong] += rng.choice([-1, 1], (wrong.sum(), 2)) * rng.uniform(30, 90, (wrong.sum(), 2))
    gap = np.linalg.norm(located(rig, s) - X.reshape(-1, 3), axis=-1)
    assert np.median(gap) < 0.15 and np.quantile(gap, 0.95) < 0.5
    few = dataclasses.replace(s, seen=s.seen * (np.arange(6) == 2)[:, None])
    assert np.isnan(located(rig, few)).all()


@pytest.mark.parametrize("wrong", [0.0, 0.1])
def test_a_perturbed_rig_is_mended(wrong):
    rng = np.random.default_rng(4)
    true, X = toy_rig.rig(), toy_rig.walk(rng, 30)
    s = toy_rig.seen(true, X, rng)
    bad = rng.random(s.seen.shape) < wrong
    s.xy[bad] += rng.uniform(-80, 80, (bad.sum(), 2))
    start = toy_rig.perturbed(true, rng)
    flat = X.reshape(-1, 3)
    assert np.median(toy_rig.missed(start, true, flat)) > 8
    solution = adjust(start, located(start, s), s, np.tile(FREE, (6, 1)))
    assert np.median(toy_rig.missed(solution.rig, true, flat)) < 0.3
    np.testing.assert_allclose(solution.noise, 1.5, rtol=0.25)
    assert np.isfinite(solution.error).all() and (solution.error[:, 7:] == 0).all()


def test_standard_errors_are_those_of_repeated_trials():
    rng = np.random.default_rng(5)
    true, X = toy_rig.rig(4), toy_rig.walk(rng, 12, 8)
    found, said = [], []
    for _ in range(16):
        s = toy_rig.seen(true, X, rng)
        solution = adjust(true, located(true, s), s, np.tile(FREE, (4, 1)))
        zoom = np.log(solution.rig.K[:, 0, 0] / true.K[:, 0, 0])
        found.append(np.column_stack([solution.rig.t - true.t, zoom]))
        said.append(solution.error[:, 3:7])
    ratio = np.std(found, 0) / np.median(said, 0)
    assert 0.75 < np.median(ratio) < 1.15


def test_what_no_picture_tells_has_an_infinite_error():
    rng = np.random.default_rng(6)
    true, X = toy_rig.rig(3), toy_rig.walk(rng, 10)
    s = toy_rig.seen(true, X, rng)
    free = np.tile(FREE, (3, 1))
    free[:, 12] = True  # an offset in time of points that stand still
    error = adjust(true, located(true, s), s, free).error
    assert np.isinf(error[:, 12]).all() and np.isfinite(error[:, :7]).all()


def test_a_camera_that_sees_nothing_common_stays():
    rng = np.random.default_rng(7)
    true, X = toy_rig.rig(4), toy_rig.walk(rng, 10)
    s = toy_rig.seen(true, X, rng)
    s = dataclasses.replace(s, seen=s.seen * (np.arange(4) != 3)[:, None])
    solution = adjust(true, located(true, s), s, np.tile(FREE, (4, 1)))
    np.testing.assert_array_equal(solution.rig.R[3], true.R[3])
    assert np.isnan(solution.residual[3]).all()


def test_joined_sightings_keep_their_kinds():
    rng = np.random.default_rng(8)
    s = toy_rig.seen(toy_rig.rig(2), toy_rig.walk(rng, 3, 4), rng)
    both = Sightings.joined([s, dataclasses.replace(s, group=s.group + 1)])
    assert both.xy.shape == (2, 24, 2) and both.group.tolist() == [0] * 12 + [1] * 12
