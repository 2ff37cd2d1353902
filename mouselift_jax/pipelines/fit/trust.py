"""By how many of the fitted cameras each Gaussian is seen."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mouselift_jax.render.constants import NEAR
from mouselift_jax.render.projection import project
from mouselift_jax.render.types import Spec

LAYERS = 3.0  # Gaussians that overlap at any place of the surface, and share what is seen of it


def cameras_that_see(
    drawn: Callable[[Array, Array, Array], Array], arrays: tuple, w2c: Array, K: Array, side: int
) -> Array:
    """By how many cameras each Gaussian is seen [N]; one that sees it in part counts in part.

    A picture is a sum of colours, each times what its Gaussian covers and nothing before it hides:
    the picture's slope with respect to the colour. Divided by what it would cover alone, that is
    the mean transmittance before it, which is 1 over `LAYERS` on an open surface.

    Args:
        drawn: colours [N,3], w2c [1,4,4], K [1,3,3] -> a picture on black [...,3].
        arrays: means, quats, scales, opacities of the Gaussians.
        w2c: [V,4,4].
        K: [V,3,3].
        side: of the pictures, pixels.
    """
    grey = jnp.full((len(arrays[3]), 3), 0.5)

    def share(total: Array, camera: tuple) -> tuple[Array, None]:
        w2c, K = camera
        arrived = jax.grad(lambda c: drawn(c, w2c[None], K[None])[..., 0].sum())(grey)[:, 0]
        seen, _ = project(Spec(side, side, NEAR, None), *arrays, grey, w2c, K)
        sharpness = seen.conic_xx * seen.conic_yy - jnp.square(seen.conic_xy)
        alone = seen.opacity * 2 * np.pi / jnp.sqrt(jnp.maximum(sharpness, 1e-12))
        return total + jnp.clip(LAYERS * arrived / jnp.maximum(alone, 1e-6), 0, 1), None

    return jax.lax.scan(share, jnp.zeros(len(grey)), (w2c, K))[0]
