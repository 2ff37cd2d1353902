"""The CUDA rasterizer of 3D Gaussian splatting as it is: its support and its gradients.

For comparison with pictures it drew. Dense over pixels x Gaussians, in the dtype of its inputs
(float64 in tests). Two things set it apart from `mouselift_jax.render`: a Gaussian is seen only in
the 16-pixel tiles that a 3-sigma square touches, and its backward pass deviates from the derivative
of its forward pass in three places, each marked below. One view, one picture, SH degree 0.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

SH_C0 = 0.28209479177387814
TILE = 16
MIN_ALPHA, MIN_LIGHT = 1 / 255, 1e-4


class Splats(NamedTuple):
    """What the CUDA code knows of each Gaussian in one view."""

    x: Any  # of the centre; that of pixel (i, j) is at (i, j)
    y: Any
    z: Any  # depth
    conic: Any  # (A, B, C)
    radius: Any  # half the side of the 3-sigma square, before it is rounded up
    visible: Any
    opacities: Any


def rasterize_cuda(means, quats, scales, opacities, sh, w2c, K, width, height, background):
    """Picture [H,W,3] of Gaussians with activated parameters; `quats` are used as given."""
    splats = _project(means, quats, scales, opacities, w2c, K, width, height)
    order = jnp.argsort(jnp.asarray(splats.z, jnp.float32), stable=True)
    color = sh[:, 0] * SH_C0 + 0.5
    color = jnp.where(color < 0, 0.0, color)  # slope 1 at exactly 0
    seen = splats.visible & _in_tiles(splats, width, height)
    alpha, power = (a[:, order] for a in _alpha(splats, width, height))
    alpha = jnp.where(seen[:, order] & (power <= 0) & (alpha >= MIN_ALPHA), alpha, 0.0)
    # The blend that would go below 1e-4 is not done; prefixes as sums of logarithms.
    dark = jnp.cumsum(jnp.log1p(-jax.lax.stop_gradient(alpha)), axis=1) < jnp.log(MIN_LIGHT)
    alpha = jnp.where(dark, 0.0, alpha)
    log_light = jnp.log1p(-alpha)
    after = jnp.cumsum(log_light, axis=1)
    picture = (alpha * jnp.exp(after - log_light)) @ color[order]
    picture = picture + jnp.exp(after[:, -1:]) * background
    return picture.reshape(height, width, 3)


def ambiguous_pixels(means, quats, scales, opacities, w2c, K, width, height):
    """Pixels [H,W] where a float32 program may decide otherwise than this one in float64.

    Those with a Gaussian that would count but for one decision (in the tile, alpha >= 1/255,
    power <= 0, T >= 1e-4, in front of another) which hangs on rounding: the variable is nearer to
    its threshold than 4 times the most that the float32 values of this very formula stray from the
    float64 ones. [H,W] in float64 mode.
    """
    args = (means, quats, scales, opacities, w2c, K)
    exact, rounded = (
        _project(*[jnp.asarray(a, t) for a in args], width, height)
        for t in (jnp.float64, jnp.float32)
    )

    def slack(a, b):
        return 4 * jnp.max(jnp.abs(jnp.where(exact.visible, a - b, 0.0)))

    order = jnp.argsort(exact.z, stable=True)
    seen = exact.visible & _in_tiles(exact, width, height)
    move = jnp.maximum(slack(exact.x, rounded.x), slack(exact.y, rounded.y))
    grow = slack(exact.radius, rounded.radius)
    tile = exact.visible & (
        _in_tiles(exact, width, height, move, grow) != _in_tiles(exact, width, height, -move, -grow)
    )
    (alpha, power), (alpha32, _) = (_alpha(s, width, height) for s in (exact, rounded))
    near = (alpha > 0.5 * MIN_ALPHA) & (alpha < 2 * MIN_ALPHA)
    stray = 4 * jnp.max(jnp.where(near, jnp.abs(alpha32 / alpha - 1), 0.0))
    faint = seen & (jnp.abs(alpha / MIN_ALPHA - 1) < stray)
    # A quadratic form is positive only where its terms cancel.
    A, B, C = exact.conic
    u, v = _offsets(exact, width, height)
    cancels = seen & (-power < 1e-6 * (0.5 * (A * u * u + C * v * v) + jnp.abs(B * u * v)))
    cancels &= (u != 0) | (v != 0)

    drawn = jnp.where(seen & (power <= 0) & (alpha >= MIN_ALPHA), alpha, 0.0)[:, order]
    light, light32 = (jnp.cumprod(1 - drawn.astype(t), axis=1) for t in (jnp.float64, jnp.float32))
    near = (light > 0.5 * MIN_LIGHT) & (light < 2 * MIN_LIGHT)
    stray = 4 * jnp.max(jnp.where(near, jnp.abs(light32 / light - 1), 0.0)) + stray
    dark = (drawn > 0) & (jnp.abs(light / MIN_LIGHT - 1) < stray)
    lit = jnp.concatenate([jnp.ones_like(light[:, :1]), light[:, :-1]], 1) >= MIN_LIGHT * (
        1 - stray
    )
    # Depth: of those that are drawn, the next one behind.
    z = jnp.where((drawn > 0) & lit, exact.z[order], jnp.inf)
    behind = jax.lax.cummin(z[:, ::-1], axis=1)[:, ::-1]
    behind = jnp.concatenate([behind[:, 1:], jnp.full_like(z[:, :1], jnp.inf)], 1)
    tied = jnp.isfinite(z) & (behind - z < slack(exact.z, rounded.z))
    tile &= (alpha >= MIN_ALPHA * (1 - stray)) & (power <= 0)
    doubtful = dark | tied | (tile | faint | cancels)[:, order]
    return jnp.any(doubtful & lit, axis=1).reshape(height, width)


def _project(means, quats, scales, opacities, w2c, K, width, height):
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    t = means @ w2c[:3, :3].T + w2c[:3, 3]
    z = t[:, 2]
    visible = z > 0.2
    z = jnp.where(visible, z, 1.0)
    # The homogeneous divide adds 1e-7; pixel (i, j) has its centre at (i, j).
    w = z / (z + 1e-7)
    x = ((2 * fx * t[:, 0] / z / width + (2 * cx / width - 1)) * w + 1) * width / 2 - 0.5
    y = ((2 * fy * t[:, 1] / z / height + (2 * cy / height - 1)) * w + 1) * height / 2 - 0.5

    cov = _covariance_2d(t, z, quats, scales, w2c, fx, fy, width, height)
    a, b, c = cov
    det = a * c - b * b
    visible &= det != 0
    det = jnp.where(det != 0, det, 1.0)
    mid = 0.5 * (a + c)
    radius = 3 * jnp.sqrt(mid + jnp.sqrt(jnp.maximum(0.1, mid * mid - det)))
    # Deviation: the slope of the inverse is that of 1 / (det^2 + 1e-7).
    shrink = jax.lax.stop_gradient(det**2 / (det**2 + 1e-7))
    a, b, c = (jax.lax.stop_gradient(v * (1 - shrink)) + v * shrink for v in (a, b, c))
    det = a * c - b * b
    conic = c / det, -b / det, a / det
    return Splats(x, y, z, conic, jax.lax.stop_gradient(radius), visible, opacities)


def _offsets(splats, width, height):
    """(dx, dy) [pixels, Gaussians] from each pixel to each centre."""
    v, u = jnp.mgrid[:height, :width]
    return splats.x[None] - u.reshape(-1, 1), splats.y[None] - v.reshape(-1, 1)


def _alpha(splats, width, height):
    """alpha and power [pixels, Gaussians], before any decision."""
    dx, dy = _offsets(splats, width, height)
    A, B, C = splats.conic
    power = -0.5 * (A * dx * dx + C * dy * dy) - B * dx * dy
    alpha = splats.opacities * jnp.exp(jnp.minimum(power, 0.0))
    # Deviation: the bound 0.99 is straight-through.
    return alpha + jax.lax.stop_gradient(jnp.minimum(alpha, 0.99) - alpha), power


def _covariance_2d(t, z, quats, scales, w2c, fx, fy, width, height):
    q = quats
    r, i, j, k = q[:, 0], q[:, 1], q[:, 2], q[:, 3]
    rot = jnp.stack(
        [
            jnp.stack([1 - 2 * (j * j + k * k), 2 * (i * j - r * k), 2 * (i * k + r * j)], -1),
            jnp.stack([2 * (i * j + r * k), 1 - 2 * (i * i + k * k), 2 * (j * k - r * i)], -1),
            jnp.stack([2 * (i * k - r * j), 2 * (j * k + r * i), 1 - 2 * (i * i + j * j)], -1),
        ],
        axis=-2,
    )
    half = rot * scales[:, None, :]
    sigma = half @ jnp.swapaxes(half, 1, 2)

    def bounded(value, size, focal):
        limit = 1.3 * size / (2 * focal)
        ratio = value / z
        # Deviation: a bounded coordinate is a constant.
        fixed = jax.lax.stop_gradient(jnp.clip(ratio, -limit, limit) * z)
        return jnp.where(jnp.abs(ratio) > limit, fixed, value)

    tx, ty = bounded(t[:, 0], width, fx), bounded(t[:, 1], height, fy)
    zero = jnp.zeros_like(z)
    J = jnp.stack(
        [
            jnp.stack([fx / z, zero, -fx * tx / z**2], -1),
            jnp.stack([zero, fy / z, -fy * ty / z**2], -1),
        ],
        axis=-2,
    )
    M = J @ w2c[:3, :3]
    cov = M @ sigma @ jnp.swapaxes(M, 1, 2)
    return cov[:, 0, 0] + 0.3, cov[:, 0, 1], cov[:, 1, 1] + 0.3


def _in_tiles(splats, width, height, move=0.0, grow=0.0):
    """[pixels, Gaussians]: whether the pixel's tile is touched by the 3-sigma square.

    `move` and `grow` enlarge the square, in pixels: its reach on either side, and its radius before
    that is rounded up.
    """
    radius = jnp.ceil(splats.radius + grow)
    v, u = jnp.mgrid[:height, :width] // TILE

    def touched(centre, tile, size):
        grid = -(-size // TILE)
        low = jnp.clip(jnp.trunc((centre - move - radius) / TILE), 0, grid)
        high = jnp.clip(jnp.trunc((centre + move + radius + TILE - 1) / TILE), 0, grid)
        return (tile.reshape(-1, 1) >= low) & (tile.reshape(-1, 1) < high)

    return touched(splats.x, u, width) & touched(splats.y, v, height)
