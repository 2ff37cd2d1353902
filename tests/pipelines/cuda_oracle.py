"""The CUDA rasterizer of 3D Gaussian splatting as it is: its support and its gradients.

For comparison with pictures it drew. Dense over pixels x Gaussians, in the dtype of its inputs
(float64 in tests). Two things set it apart from `mouselift_jax.render`: a Gaussian is seen only in
the 16-pixel tiles that a 3-sigma square touches, and its backward pass deviates from the derivative
of its forward pass in three places, each marked below. One view, one picture, SH degree 0.
"""

import jax
import jax.numpy as jnp

SH_C0 = 0.28209479177387814
TILE = 16


def rasterize_cuda(means, quats, scales, opacities, sh, w2c, K, width, height, background):
    """Picture [H,W,3] of Gaussians with activated parameters; `quats` are used as given."""
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
    # Deviation: the slope of the inverse is that of 1 / (det^2 + 1e-7).
    shrink = jax.lax.stop_gradient(det**2 / (det**2 + 1e-7))
    a, b, c = (jax.lax.stop_gradient(v * (1 - shrink)) + v * shrink for v in (a, b, c))
    det = a * c - b * b
    conic = c / det, -b / det, a / det
    seen = visible[None] & _in_tiles(x, y, a, c, det, width, height)

    order = jnp.argsort(jnp.asarray(z, jnp.float32), stable=True)
    color = sh[:, 0] * SH_C0 + 0.5
    color = jnp.where(color < 0, 0.0, color)  # slope 1 at exactly 0
    v, u = jnp.mgrid[:height, :width]
    dx = (x[None] - u.reshape(-1, 1))[:, order]
    dy = (y[None] - v.reshape(-1, 1))[:, order]
    A, B, C = (k[order] for k in conic)
    power = -0.5 * (A * dx * dx + C * dy * dy) - B * dx * dy
    alpha = opacities[order] * jnp.exp(jnp.minimum(power, 0.0))
    # Deviation: the bound 0.99 is straight-through.
    alpha = alpha + jax.lax.stop_gradient(jnp.minimum(alpha, 0.99) - alpha)
    alpha = jnp.where(seen[:, order] & (power <= 0) & (alpha >= 1 / 255), alpha, 0.0)
    # The blend that would go below 1e-4 is not done; prefixes as sums of logarithms.
    dark = jnp.cumsum(jnp.log1p(-jax.lax.stop_gradient(alpha)), axis=1) < jnp.log(1e-4)
    alpha = jnp.where(dark, 0.0, alpha)
    log_light = jnp.log1p(-alpha)
    after = jnp.cumsum(log_light, axis=1)
    picture = (alpha * jnp.exp(after - log_light)) @ color[order]
    picture = picture + jnp.exp(after[:, -1:]) * background
    return picture.reshape(height, width, 3)


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


def _in_tiles(x, y, a, c, det, width, height):
    """[pixels, Gaussians]: whether the pixel's tile is touched by the 3-sigma square."""
    mid = 0.5 * (a + c)
    radius = jnp.ceil(3 * jnp.sqrt(mid + jnp.sqrt(jnp.maximum(0.1, mid * mid - det))))
    v, u = jnp.mgrid[:height, :width] // TILE

    def touched(centre, tile, size):
        grid = -(-size // TILE)
        low = jnp.clip(jnp.trunc((centre - radius) / TILE), 0, grid)
        high = jnp.clip(jnp.trunc((centre + radius + TILE - 1) / TILE), 0, grid)
        return (tile.reshape(-1, 1) >= low) & (tile.reshape(-1, 1) < high)

    return touched(x, u, width) & touched(y, v, height)
