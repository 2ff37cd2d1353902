"""Gaussians seen by a rig that nobody built: cut-out pictures with exact cameras.

Any camera may be asked for, so all samples can share one rig, and views that no camera took can
be had in plenty. What no camera saw is as good as the Gaussians are there, and no better.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.rig import rig_from_angles
from mouselift_jax.render import render
from mouselift_jax.splats.gaussians import Gaussians

GOLDEN_DEG = 180.0 * (3.0 - 5.0**0.5)  # turns by it never meet again
GROUP = 8  # views drawn by one call: bounds memory, and one program serves any number of views
BUCKET = 4096  # numbers of Gaussians are rounded up to a multiple of it: few programs
_NOTHING = -30.0  # opacity logit of Gaussians that only fill up


def further_cameras(
    n: int, elevations_deg: tuple[float, float], radius: float, focal: float, size: int
) -> Camera:
    """N cameras spread evenly over a belt of a sphere, all looking at the origin.

    Args:
        n: how many.
        elevations_deg: lowest and highest of the belt.
        radius: of the sphere, scene units.
        focal: pixels of a `size` x `size` picture.
        size: pixels.
    """
    low, high = np.sin(np.radians(elevations_deg))
    at = (np.arange(n) + 0.5) / max(n, 1)
    elevations = np.degrees(np.arcsin(low + (high - low) * at))
    return rig_from_angles(270.0 - GOLDEN_DEG * np.arange(n), elevations, radius, focal, size)


def cut_outs(
    gaussians: Gaussians, cameras: Camera, *, implementation: str | None = None
) -> np.ndarray:
    """Pictures [V,H,W,4] uint8 of one set of Gaussians: straight alpha, colour 0 where alpha is 0.

    Args:
        gaussians: arrays [N,...].
        cameras: [V].
        implementation: of the rasterizer; None = the best here.
    """
    n, v = gaussians.n_gaussians, cameras.batch_shape[0]
    full = jax.tree.map(lambda x: _filled(np.asarray(x, np.float32), -n % BUCKET), gaussians)
    full.opacity_logits[n:] = _NOTHING
    # An invisible Gaussian still needs a size: in front of a camera it would be listed by tile.
    full.log_scales[n:] = _NOTHING
    index = np.minimum(np.arange(-(-v // GROUP) * GROUP), v - 1)
    K, c2w = (np.asarray(x, np.float32)[index] for x in (cameras.K, cameras.c2w))
    parts = [
        _draw(full, Camera(K[i : i + GROUP], c2w[i : i + GROUP], cameras.width, cameras.height),
              implementation)
        for i in range(0, len(index), GROUP)
    ]  # fmt: skip
    return np.concatenate([np.asarray(p) for p in parts])[:v]


@functools.partial(jax.jit, static_argnums=2)
def _draw(gaussians: Gaussians, cameras: Camera, implementation: str | None) -> jax.Array:
    out = render(gaussians, cameras, background=None, implementation=implementation)
    alpha = jnp.round(255 * jnp.clip(out.alpha, 0, 1))
    straight = jnp.clip(out.rgb / jnp.maximum(out.alpha, 1e-6), 0, 1)
    rgb = jnp.where(alpha > 0, jnp.round(255 * straight), 0)
    return jnp.concatenate([rgb, alpha], -1).astype(jnp.uint8)


def _filled(values: np.ndarray, more: int) -> np.ndarray:
    """The rows and `more` copies of the last."""
    last = values[-1:] if len(values) else np.ones((1, *values.shape[1:]), values.dtype)
    return np.concatenate([values, np.repeat(last, more, axis=0)])


def share_outside(gaussians: Gaussians, cameras: Camera) -> np.ndarray:
    """Share [V] of a set of Gaussians, weighed by what is seen of them, outside each picture."""
    means, _, scales, opacities, _ = (np.asarray(x, np.float64) for x in gaussians.activate())
    weights = opacities * np.sort(scales, axis=-1)[:, 1:].prod(-1)
    xy, depth = cameras.project(means)
    size = np.array([cameras.width, cameras.height])
    inside = ((xy >= 0) & (xy <= size)).all(-1) & (depth > 0)
    total = weights.sum()
    return 1.0 - (inside * weights).sum(-1) / total if total > 0 else np.ones(len(inside))
