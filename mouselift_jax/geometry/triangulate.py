"""Triangulation and what it leaves unexplained.

Functions compute in the array library they are given (numpy in the data pipeline, jax in models).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.similarity import Array, array_namespace

if TYPE_CHECKING:
    from mouselift_jax.geometry.camera import Camera


def triangulate(
    xy: Float[Array, "V M 2"], cameras: Camera, weights: Array | None = None
) -> Float[np.ndarray, "M 3"]:
    """Triangulate points seen by several cameras: linear start, then Gauss-Newton in pixels.

    Args:
        xy: pixel coordinates [V,M,2], one row a camera; entries of weight 0 may be anything finite.
        cameras: cameras [V].
        weights: confidence [V,M] >= 0; None counts every finite observation once.

    Returns:
        World points [M,3] in scene units; NaN where fewer than two cameras see the point.
    """
    if xy.ndim != 3 or xy.shape[0] != cameras.K.shape[0] or xy.shape[-1] != 2:
        raise ShapeError(
            "triangulate needs one row of pixel coordinates per camera",
            expected=f"xy [{cameras.K.shape[0]},M,2]",
            found=f"xy {list(xy.shape)}",
        )
    xy = np.asarray(xy, np.float64)
    seen = np.isfinite(xy).all(-1)
    weights = seen.astype(np.float64) if weights is None else np.asarray(weights, np.float64) * seen
    xy = np.where(seen[..., None], xy, 0.0)
    w2c, K = np.asarray(cameras.w2c, np.float64), np.asarray(cameras.K, np.float64)
    rays = (
        np.linalg.inv(K)[:, None] @ np.concatenate([xy, np.ones_like(xy[..., :1])], -1)[..., None]
    )
    x, y = rays[..., 0, 0] / rays[..., 2, 0], rays[..., 1, 0] / rays[..., 2, 0]
    # Rows of the homogeneous system in normalised coordinates: x r3 - r1, y r3 - r2. [M,2V,4]
    rows = np.stack(
        [
            x[..., None] * w2c[:, None, 2] - w2c[:, None, 0],
            y[..., None] * w2c[:, None, 2] - w2c[:, None, 1],
        ],
        axis=1,
    )
    rows = (rows * weights[:, None, :, None]).reshape(-1, xy.shape[1], 4).transpose(1, 0, 2)
    enough = (weights > 0).sum(0) >= 2
    points = np.full((xy.shape[1], 3), np.nan)
    if not enough.any():
        return points
    A, b = rows[enough, :, :3], -rows[enough, :, 3]
    # Least squares with the homogeneous scale fixed to 1: points at infinity do not occur in a rig.
    solved = (np.linalg.pinv(A) @ b[..., None])[..., 0]
    points[enough] = _refine(solved, xy[:, enough], weights[:, enough], w2c, K)
    return points


def _refine(
    points: np.ndarray, xy: np.ndarray, weights: np.ndarray, w2c: np.ndarray, K: np.ndarray
) -> np.ndarray:
    """A few Gauss-Newton steps on the pixel residuals; points [M,3], xy [V,M,2], weights [V,M]."""
    P = K @ w2c[:, :3]  # [V,3,4]
    for _ in range(4):
        homogeneous = np.concatenate([points, np.ones_like(points[:, :1])], -1)
        pix = np.einsum("vij,mj->vmi", P, homogeneous)
        uv = pix[..., :2] / pix[..., 2:]
        J = (P[:, None, :2, :3] - uv[..., None] * P[:, None, 2:, :3]) / pix[..., 2:, None]
        r = xy - uv
        H = np.einsum("vm,vmki,vmkj->mij", weights, J, J)
        g = np.einsum("vm,vmki,vmk->mi", weights, J, r)
        points = points + np.linalg.solve(H, g[..., None])[..., 0]
    return points


def reprojection_error(
    points: Float[Array, "M 3"], xy: Float[Array, "V M 2"], cameras: Camera
) -> Float[Array, "V M"]:
    """Pixel distance [V,M] between observations xy [V,M,2] and projected points [M,3]."""
    projected, _ = cameras.project(points)
    xp = array_namespace(projected)
    return xp.linalg.norm(projected - xy, axis=-1)


def epipolar_distance(
    xy_a: np.ndarray, xy_b: np.ndarray, camera_a: Camera, camera_b: Camera
) -> np.ndarray:
    """Distance [T,M] of matched points [T,M,2] from each other's epipolar lines, pixels."""
    b_from_a = np.asarray(camera_b.w2c) @ np.asarray(camera_a.c2w)
    t, R = b_from_a[:3, 3], b_from_a[:3, :3]
    cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    F = np.linalg.inv(camera_b.K).T @ cross @ R @ np.linalg.inv(camera_a.K)
    a = np.concatenate([xy_a, np.ones_like(xy_a[..., :1])], -1)
    b = np.concatenate([xy_b, np.ones_like(xy_b[..., :1])], -1)
    line_b, line_a = a @ F.T, b @ F
    product = np.abs((b * line_b).sum(-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        in_b = product / np.linalg.norm(line_b[..., :2], axis=-1)
        in_a = product / np.linalg.norm(line_a[..., :2], axis=-1)
    return 0.5 * (in_a + in_b)
