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


def _finite(*arrays: Array) -> Array:
    ok = True
    for a in arrays:
        ok = ok & jnp.isfinite(a).reshape(a.shape[0], -1).all(-1)
    return ok


def view_colors(spec: Spec, means: Array, colors: Array, w2c: Array) -> Array:
    """Colours [N,3] as the view `w2c` sees them; NaN where what they are made of is not finite."""
    if spec.sh_degree is None:
        return colors
    w2c = jnp.where(jnp.isfinite(w2c), w2c, 0)  # such a camera draws nothing: see `project`
    if spec.sh_degree == 0:
        # The basis is constant. Nothing is summed over the zeros: XLA would do it while compiling.
        finite, direction = _finite(colors)[:, None], jnp.zeros_like(means)
    else:
        offset = means + w2c[:3, :3].T @ w2c[:3, 3]  # from the camera's centre
        finite = _finite(offset, colors)[:, None]
        offset = jnp.where(finite, offset, 0)
        square = (offset * offset).sum(-1, keepdims=True)
        apart = square > 0
        direction = jnp.where(apart, offset / jnp.sqrt(jnp.where(apart, square, 1)), 0)
    rgb = eval_sh(spec.sh_degree, jnp.where(finite[..., None], colors, 0), direction)
    return jnp.where(finite, rgb, jnp.nan)


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
    camera = jnp.concatenate([w2c[:3].ravel(), K[:2].ravel()])
    rgb = view_colors(spec, means, colors, w2c)
    finite = _finite(means, quats, scales, opacities, rgb) & jnp.isfinite(camera).all()
    means, quats, scales, rgb = (
        jnp.where(finite[:, None], a, 0) for a in (means, quats, scales, rgb)
    )
    opacities = jnp.where(finite, opacities, 0)
    w2c, K = (jnp.where(jnp.isfinite(a), a, 1) for a in (w2c, K))

    t = [w2c[i, 0] * means[:, 0] + w2c[i, 1] * means[:, 1] + w2c[i, 2] * means[:, 2] + w2c[i, 3]
         for i in range(3)]  # fmt: skip
    on_earth = jnp.isfinite(t[0]) & jnp.isfinite(t[1]) & jnp.isfinite(t[2])
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    bound = c.SLOPE_MAX * t[2]
    inside = on_earth & (t[2] > spec.near) & (jnp.abs(t[0]) < bound) & (jnp.abs(t[1]) < bound)
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
    keep = finite & inside & sized
    ux, uy = ([jnp.where(keep, a, 0) for a in row] for row in (ux, uy))

    xx = ux[0] * ux[0] + ux[1] * ux[1] + ux[2] * ux[2] + c.DILATION
    xy = ux[0] * uy[0] + ux[1] * uy[1] + ux[2] * uy[2]
    yy = uy[0] * uy[0] + uy[1] * uy[1] + uy[2] * uy[2] + c.DILATION
    # xx yy - xy^2 as a sum of squares: subtracting would round the width of a long needle away.
    turns = [ux[i] * uy[k] - ux[k] * uy[i] for i, k in ((1, 2), (2, 0), (0, 1))]
    det = sum(a * a for a in turns) + c.DILATION * (xx + yy - c.DILATION)
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
