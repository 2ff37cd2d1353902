"""The reference: the shared suite, and finite differences in float64."""

import jax
import numpy as np
import pytest

from mouselift_jax.render import rasterize
from tests.render.suite import CAMERAS, GAUSSIANS, RasterizerSuite, scene


class TestReference(RasterizerSuite):
    implementation = "reference"
    # It keeps what every view needs for the backward pass: simple, and for small scenes only.
    test_memory_of_the_backward_does_not_grow_with_the_views = None


@pytest.mark.parametrize("degree", [None, 3])
def test_finite_differences_in_float64(degree):
    with jax.enable_x64(True):
        arrays = scene(n=12, seed=3, degree=degree, dtype=np.float64)
        rng = np.random.default_rng(0)

        @jax.jit
        def loss(moving):
            out = rasterize(
                **moving, width=17, height=13, sh_degree=degree, implementation="reference"
            )
            assert out.rgb.dtype == np.float64
            weights = np.random.default_rng(1)
            return sum((a * weights.normal(size=a.shape)).sum() for a in out[:3])

        gradients = jax.jit(jax.grad(loss))(arrays)
        for name in (*GAUSSIANS, *CAMERAS):
            direction = rng.normal(size=arrays[name].shape)
            if name == "w2c":
                direction[:, 3] = 0
            if name == "K":
                direction *= [[1, 0, 1], [0, 1, 1], [0, 0, 0]]
            step = 1e-6
            there, back = (
                loss({**arrays, name: arrays[name] + s * step * direction}) for s in (1, -1)
            )
            numeric, exact = (there - back) / (2 * step), (gradients[name] * direction).sum()
            np.testing.assert_allclose(numeric, exact, rtol=2e-5, atol=1e-6, err_msg=name)
