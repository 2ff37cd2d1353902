"""The definition, as plainly as it can be written: the truth that the other implementations meet.

One Gaussian after the other over the whole picture, gradients by JAX, float64 if the inputs are.
Time and memory are proportional to Gaussians times pixels: for tests and tiny scenes.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from mouselift_jax.render import constants as c
from mouselift_jax.render.projection import project
from mouselift_jax.render.types import Spec, Splats


def _blend_one(px: Array, py: Array, state: tuple, splat: Splats) -> tuple:
    light, rgb, depth, done = state
    dx, dy = splat.x - px, splat.y - py
    power = -0.5 * (splat.conic_xx * dx * dx + splat.conic_yy * dy * dy) - splat.conic_xy * dx * dy
    alpha = jnp.minimum(c.ALPHA_MAX, splat.opacity * jnp.exp(power))
    seen = (power <= 0) & (alpha >= c.ALPHA_MIN) & ~done
    alpha = jnp.where(seen, alpha, 0)
    left = light * (1 - alpha)
    stop = seen & (left < c.TRANSMITTANCE_MIN)
    weight = jnp.where(stop, 0, alpha * light)
    color = jnp.stack([splat.red, splat.green, splat.blue])
    rgb = rgb + weight[..., None] * color
    depth = depth + weight * splat.depth
    return jnp.where(stop, light, left), rgb, depth, done | stop


def _view(spec: Spec, means, quats, scales, opacities, colors, w2c, K) -> tuple:  # noqa: ANN001
    splats, visibility = project(spec, means, quats, scales, opacities, colors, w2c, K)
    n = means.shape[0]
    order = jnp.argsort(jnp.where(visibility.drawn, splats.depth, jnp.inf), stable=True)
    # Two nested scans, the inner one recomputed: memory grows with the root of N, not with N.
    chunk = max(1, math.isqrt(n))
    pad = -n % chunk
    drawn = jnp.pad(visibility.drawn[order], (0, pad)).reshape(-1, chunk)
    rows = jax.tree.map(lambda a: jnp.pad(a[order], (0, pad)).reshape(-1, chunk), splats)
    rows = rows._replace(opacity=jnp.where(drawn, rows.opacity, 0))

    dtype = means.dtype
    px = jnp.arange(spec.width, dtype=dtype)[None, :] + 0.5
    py = jnp.arange(spec.height, dtype=dtype)[:, None] + 0.5
    shape = (spec.height, spec.width)
    zero = means.sum() * 0 + w2c.sum() * 0 if n == 0 else (rows.x.sum() + w2c.sum()) * 0
    zero = lax.stop_gradient(jnp.where(jnp.isfinite(zero), zero, 0))  # carries the mesh axes along
    state = (
        jnp.ones(shape, dtype) + zero,
        jnp.zeros((*shape, 3), dtype) + zero,
        jnp.zeros(shape, dtype) + zero,
        jnp.zeros(shape, bool) | (zero > 0),
    )

    @jax.checkpoint
    def blend_chunk(state: tuple, rows: Splats) -> tuple:
        return lax.scan(lambda s, r: (_blend_one(px, py, s, r), None), state, rows)

    (light, rgb, depth, _), _ = lax.scan(blend_chunk, state, rows)
    return rgb, light, depth, visibility.broken


def rasterize_flat(
    spec: Spec,
    means: Array,
    quats: Array,
    scales: Array,
    opacities: Array,
    colors: Array,
    w2c: Array,
    K: Array,
) -> tuple[Array, Array, Array, dict[str, Array]]:
    """Blend L scenes of N Gaussians in V views each; see `rasterize` for the arguments.

    Returns:
        Colour [L,V,H,W,3] over black, transmittance [L,V,H,W], depth sum [L,V,H,W], info.
    """

    def scene(args: tuple) -> tuple:
        *gaussians, w2c, K = args
        view = jax.checkpoint(lambda wk: _view(spec, *gaussians, *wk))
        *pictures, broken = lax.map(view, (w2c, K))
        return *pictures, broken.any(0).sum(dtype=jnp.int32)

    rgb, light, depth, broken = lax.map(
        scene, (means, quats, scales, opacities, colors, w2c, K)
    )  # fmt: skip
    info = {
        "slabs": jnp.ones((), jnp.int32),
        "intersections": -jnp.ones((), jnp.int32),
        "culled": broken.sum(dtype=jnp.int32),
    }
    return rgb, light, depth, info
