"""From Gaussians in the world to ellipses on one picture.

Written entry by entry on purpose: batched 3x3 matrix products cost XLA several times more than the
same arithmetic fused into one loop. Works in the dtype it is given and is differentiated by JAX.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from mouselift_jax.render import constants as c
from mouselift_jax.render.types import Spec, Splats, Visibility
from mouselift_jax.splats.sh import eval_sh


def _rotation(quats: Float[Array, "N 4"]) -> list[list[Array]]:
    """Entries of the rotation matrices; scale-free, identity for quaternions that are all zero."""
    size = lax.stop_gradient(jnp.abs(quats).max(-1))
    usable = size > c.QUAT_MIN
    w, x, y, z = (jnp.where(usable, quats[:, i], 0) for i in range(4))
    w = jnp.where(usable, w, 1)
    size = jnp.where(usable, size, 1)
    # Dividing by the largest entry first changes nothing: only the direction of quats matters.
    w, x, y, z = w / size, x / size, y / size, z / size
    s = 2 / (w * w + x * x + y * y + z * z)
    return [
        [1 - s * (y * y + z * z), s * (x * y - w * z), s * (x * z + w * y)],
        [s * (x * y + w * z), 1 - s * (x * x + z * z), s * (y * z - w * x)],
        [s * (x * z - w * y), s * (y * z + w * x), 1 - s * (x * x + y * y)],
    ]


def view_colors(spec: Spec, means: Array, colors: Array, w2c: Array) -> Array:
    """Colours [N,3] as the view `w2c` sees them."""
    if spec.sh_degree is None:
        return colors
    if spec.sh_degree == 0:
        return eval_sh(0, colors, jnp.zeros_like(means))  # the basis is constant
    center = -w2c[:3, :3].T @ w2c[:3, 3]
    offset = means - center
    square = (offset * offset).sum(-1, keepdims=True)
    apart = square > 0
    direction = jnp.where(apart, offset / jnp.sqrt(jnp.where(apart, square, 1)), 0)
    return eval_sh(spec.sh_degree, colors, direction)


def _finite(*arrays: Array) -> Array:
    ok = True
    for a in arrays:
        ok = ok & jnp.isfinite(a).reshape(a.shape[0], -1).all(-1)
    return ok


def project(
    spec: Spec,
    means: Float[Array, "N 3"],
    quats: Float[Array, "N 4"],
    scales: Float[Array, "N 3"],
    opacities: Float[Array, "N"],
    colors: Float[Array, "N ..."],
    w2c: Float[Array, "4 4"],
    K: Float[Array, "3 3"],
) -> tuple[Splats, Visibility]:
    """Project Gaussians into one view.

    A Gaussian that is not drawn comes out as a harmless unit ellipse with opacity 0, so that no
    value and no gradient of it can spoil a sum.
    """
    finite = _finite(means, quats, scales, opacities, colors)
    means = jnp.where(finite[:, None], means, 0)
    quats = jnp.where(finite[:, None], quats, 0)
    scales = jnp.where(finite[:, None], scales, 0)
    colors = jnp.where(finite.reshape(-1, *[1] * (colors.ndim - 1)), colors, 0)
    opacities = jnp.where(finite, opacities, 0)

    t = [w2c[i, 0] * means[:, 0] + w2c[i, 1] * means[:, 1] + w2c[i, 2] * means[:, 2] + w2c[i, 3]
         for i in range(3)]  # fmt: skip
    on_earth = jnp.isfinite(t[0]) & jnp.isfinite(t[1]) & jnp.isfinite(t[2])
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    front = on_earth & (t[2] > spec.near) & jnp.isfinite(fx + fy + cx + cy)
    bound = c.SLOPE_MAX * t[2]
    inside = front & (jnp.abs(t[0]) < bound) & (jnp.abs(t[1]) < bound)
    tx, ty, z = (jnp.where(inside, a, float(i == 2)) for i, a in enumerate(t))

    inv_z = 1 / z
    u, v = tx * inv_z, ty * inv_z
    limit_x, limit_y = c.FOV_CLAMP * spec.width / 2 / fx, c.FOV_CLAMP * spec.height / 2 / fy
    ju = jnp.clip(u, -limit_x, limit_x)
    jv = jnp.clip(v, -limit_y, limit_y)
    # Rows of (Jacobian of the projection) @ (rotation of w2c).
    jx = [fx * inv_z * (w2c[0, k] - ju * w2c[2, k]) for k in range(3)]
    jy = [fy * inv_z * (w2c[1, k] - jv * w2c[2, k]) for k in range(3)]
    rot = _rotation(quats)
    ux = [(jx[0] * rot[0][k] + jx[1] * rot[1][k] + jx[2] * rot[2][k]) * scales[:, k]
          for k in range(3)]  # fmt: skip
    uy = [(jy[0] * rot[0][k] + jy[1] * rot[1][k] + jy[2] * rot[2][k]) * scales[:, k]
          for k in range(3)]  # fmt: skip
    largest = jnp.max(jnp.stack([jnp.abs(a) for a in ux + uy]), axis=0)
    sized = largest < c.SIGMA_MAX  # False for NaN
    keep = inside & sized
    ux, uy = ([jnp.where(keep, a, 0) for a in row] for row in (ux, uy))

    xx = ux[0] * ux[0] + ux[1] * ux[1] + ux[2] * ux[2] + c.DILATION
    xy = ux[0] * uy[0] + ux[1] * uy[1] + ux[2] * uy[2]
    yy = uy[0] * uy[0] + uy[1] * uy[1] + uy[2] * uy[2] + c.DILATION
    det = xx * yy - xy * xy
    keep = keep & (det > 0)
    det = jnp.where(keep, det, 1)
    rgb = view_colors(spec, means, colors, w2c)
    opacity = jnp.where(keep, opacities, 0)
    splats = Splats(
        jnp.where(keep, fx * u + cx, 0),
        jnp.where(keep, fy * v + cy, 0),
        jnp.where(keep, yy / det, 1),
        jnp.where(keep, -xy / det, 0),
        jnp.where(keep, xx / det, 1),
        opacity,
        *(jnp.where(keep, rgb[:, k], 0) for k in range(3)),
        z,
    )
    # alpha >= 1/255  <=>  the Mahalanobis distance squared is <= 2 ln(255 opacity).
    reach = 2 * (jnp.log(jnp.maximum(opacity, c.ALPHA_MIN)) + math.log(1 / c.ALPHA_MIN))
    broken = ~finite | ~on_earth | (inside & ~sized)
    visibility = Visibility(
        keep & (opacity >= c.ALPHA_MIN), broken, jnp.sqrt(reach * xx), jnp.sqrt(reach * yy)
    )
    return splats, Visibility(*(lax.stop_gradient(a) for a in visibility))
