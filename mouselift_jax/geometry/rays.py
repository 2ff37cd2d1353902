"""Rays of pixels: origins and unit directions in the world, pixel centres at +0.5."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float

from mouselift_jax.geometry.precise import matmul
from mouselift_jax.geometry.similarity import array_namespace

Array = jax.Array | np.ndarray


def pixel_centers(
    height: int, width: int, *, like: Float[Array, "..."]
) -> Float[Array, "{height} {width} 2"]:
    """Pixel centres [H,W,2] as (x, y), in the array library and dtype of `like`."""
    xp = array_namespace(like)
    x = xp.arange(width, dtype=like.dtype) + 0.5
    y = xp.arange(height, dtype=like.dtype) + 0.5
    return xp.stack(xp.meshgrid(x, y, indexing="xy"), axis=-1)


def camera_rays(
    K: Float[Array, "*B 3 3"], c2w: Float[Array, "*B 4 4"], height: int, width: int
) -> tuple[Float[Array, "*B {height} {width} 3"], Float[Array, "*B {height} {width} 3"]]:
    """One ray a pixel.

    Args:
        K: intrinsics [*B,3,3] in pixels; its inverse is taken in closed form, skew included.
        c2w: camera-to-world [*B,4,4].
        height: picture height in pixels.
        width: picture width in pixels.

    Returns:
        ray_o [*B,H,W,3]: the camera centre, world; ray_d [*B,H,W,3]: unit directions, world.
    """
    xp = array_namespace(K)
    xy = pixel_centers(height, width, like=K)
    fx, fy = K[..., 0, 0, None, None], K[..., 1, 1, None, None]
    skew = K[..., 0, 1, None, None]
    cx, cy = K[..., 0, 2, None, None], K[..., 1, 2, None, None]
    y = (xy[..., 1] - cy) / fy
    x = (xy[..., 0] - cx - skew * y) / fx
    d_cam = xp.stack([x, y, xp.ones_like(x)], axis=-1)  # [*B,H,W,3]
    turn = xp.swapaxes(c2w[..., None, :3, :3], -1, -2)  # on the right, once a row of pixels
    ray_d = matmul(d_cam, turn)
    ray_d = ray_d / xp.linalg.norm(ray_d, axis=-1, keepdims=True)
    ray_o = xp.broadcast_to(c2w[..., None, None, :3, 3], ray_d.shape)
    return ray_o, ray_d


def nearest_to_origin(
    ray_o: Float[Array, "*B 3"], ray_d: Float[Array, "*B 3"]
) -> Float[Array, "*B 3"]:
    """The point of each ray's line that is nearest the world origin [...,3]; `ray_d` is unit."""
    return ray_o - (ray_o * ray_d).sum(-1, keepdims=True) * ray_d


def plucker(ray_o: Float[Array, "*B 3"], ray_d: Float[Array, "*B 3"]) -> Float[Array, "*B 6"]:
    """Pluecker coordinates (ray_o x ray_d, ray_d) [...,6], in this order."""
    xp = array_namespace(ray_d)
    return xp.concatenate([xp.cross(ray_o, ray_d), ray_d], axis=-1)


def angle_between(
    a: Float[np.ndarray, "*#B 3"], b: Float[np.ndarray, "*#B 3"]
) -> Float[np.ndarray, "..."]:
    """Angle in degrees between vectors [...,3]."""
    a = np.asarray(a) / np.linalg.norm(a, axis=-1, keepdims=True)
    b = np.asarray(b) / np.linalg.norm(b, axis=-1, keepdims=True)
    return np.degrees(np.arccos(np.clip((a * b).sum(-1), -1.0, 1.0)))
