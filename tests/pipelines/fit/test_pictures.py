"""What a step compares, against the plain formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.pipelines.fit import pictures
from mouselift_jax.pipelines.fit.pictures import Pictures


def outline(x: jax.Array, true: np.ndarray, weight: np.ndarray) -> jax.Array:
    square, bend = (x - true) ** 2, pictures.ROBUST
    return (weight * (1 + bend) * square / (square + bend)).sum()


def colour(x: jax.Array, true: np.ndarray, weight: np.ndarray) -> jax.Array:
    return (weight * jnp.abs(x - true)).sum()


@pytest.mark.parametrize(
    ("ours", "plain"), [(pictures.unlike, colour), (pictures.unlike_outline, outline)]
)
def test_slopes_written_by_hand_are_those_of_the_plain_formulas(
    ours: object, plain: object
) -> None:
    x, true, weight = np.random.default_rng(0).uniform(size=(3, 9, 12)).astype(np.float32)
    value, slope = jax.value_and_grad(lambda x: 3.0 * ours(x, true, weight))(x)
    expected, expected_slope = jax.value_and_grad(lambda x: 3.0 * plain(x, true, weight))(x)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ours", [pictures.unlike, pictures.unlike_outline])
def test_what_is_right_is_not_pushed(ours: object) -> None:
    # Black on black is most of a picture. (Autodiff of `abs` gives 1 at 0.)
    true, weight = np.random.default_rng(0).uniform(size=(2, 9, 12)).astype(np.float32)
    true[:5] = 0
    assert not np.any(jax.grad(lambda x: ours(x, true, weight))(true))


def test_what_is_not_a_number_does_not_get_a_slope_that_is_one() -> None:
    x, true, weight = np.ones((3, 2, 3), np.float32)
    x[0, 1] = np.nan
    slope = jax.grad(lambda x: pictures.unlike(x, true, weight))(x)
    assert np.isnan(slope[0, 1])
    assert np.isfinite(slope).sum() == slope.size - 1


@pytest.mark.parametrize("is_one_number", [False, True], ids=["each pixel", "all pixels"])
def test_half_the_size_weighs_the_same_and_compares_the_same(is_one_number: bool) -> None:
    rng = np.random.default_rng(1)
    rgb = np.repeat(np.repeat(rng.uniform(size=(2, 4, 4, 3)), 2, 1), 2, 2).astype(np.float32)
    mask = np.ones((2, 8, 8), np.float32)
    weight = np.full((2, 1, 1), 1 / 64, np.float32) if is_one_number else mask / 64
    each = weight / 3 if is_one_number else np.repeat(weight / 3, 3, -1)
    whole = Pictures(rgb.reshape(2, 8, 24), mask, weight, each,
                     np.eye(3, dtype=np.float32)[None].repeat(2, 0), np.eye(4)[None])  # fmt: skip
    half = whole.halved()
    np.testing.assert_allclose(half.rgb.reshape(2, 4, 4, 3), rgb[:, ::2, ::2], rtol=1e-6)
    for name in ("weight", "rgb_weight"):
        of_rgb = name == "rgb_weight"
        small, large = (
            np.broadcast_to(getattr(p, name), (p.rgb if of_rgb else p.mask).shape)
            for p in (half, whole)
        )
        np.testing.assert_allclose(small.sum(), large.sum(), rtol=1e-6)
    np.testing.assert_allclose(half.K[0], np.diag([0.5, 0.5, 1.0]))
    psnr, iou = half.likeness(half.rgb.reshape(2, 4, 4, 3) + 0.1, np.ones((2, 4, 4, 1)))
    np.testing.assert_allclose(psnr, 20.0, atol=1e-3)
    np.testing.assert_allclose(iou, 1.0)
