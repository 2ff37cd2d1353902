"""Projection in float32 against the same formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.render.projection import project
from mouselift_jax.render.types import Spec
from tests.render.suite import CAMERAS, GAUSSIANS, scene


def conics(arrays, dtype):
    gaussians = (jnp.asarray(arrays[k], dtype) for k in GAUSSIANS)
    cameras = (jnp.asarray(arrays[k][0], dtype) for k in CAMERAS)
    splats, _ = project(Spec(37, 31, 0.2, None), *gaussians, *cameras)
    return np.stack(splats[2:5])


def test_needles_keep_their_width():
    """Standard deviations of 1000 and 0.5 px: the determinant must not be lost to rounding."""
    arrays = scene(n=500)
    arrays["scales"] = np.float32([60, 0.02, 0.02]) * np.ones((500, 1), np.float32)
    with jax.enable_x64(True):
        expected = conics(arrays, np.float64)
    found = conics(arrays, np.float32)
    assert expected.dtype == np.float64 and found.dtype == np.float32
    error = np.linalg.norm(found - expected, axis=0) / np.linalg.norm(expected, axis=0)
    assert error.max() < 1e-4, error.max()
