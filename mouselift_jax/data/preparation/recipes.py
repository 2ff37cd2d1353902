"""The original project's ways to prepare, reproduced to be measured, not to be used.

Each changes pictures without changing cameras to match (or the other way round), so pictures and
cameras contradict each other by tens of pixels. Quality reports grade them as inconsistent. What is
reproduced is the geometry; the colours under alpha 0 are cleared as everywhere here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mouselift_jax.geometry.camera import Camera, intrinsics

RECIPES = {
    "original": "centre square; f = 549 px and c = centre, whatever the calibration says",
    "original_boxes": "one scale from the largest box, every view centred on its own box",
    "original_centered": "`original`, then one scale and every view centred on its own box",
    "original_uniform": "`original`, one safe scale about each view's centre of mass, K updated",
    "original_pixels": "`original`, every view scaled to one pixel count about its centre of mass",
}
_FOCAL_AT_512 = 548.9937744140625
_RADIUS = 2.7


def recipe_views(
    mode: str,
    cameras: Sequence[Camera],
    boxes: np.ndarray,
    centroids: np.ndarray,
    areas: np.ndarray,
    size: int,
) -> tuple[list[np.ndarray], Camera]:
    """Pixel maps M per view and the cameras [V] the recipe writes beside the pictures.

    Args:
        mode: a key of `RECIPES`.
        cameras: the true cameras.
        boxes: mask boxes [V,4] x0, y0, x1, y1, pixels.
        centroids: mask centroids [V,2].
        areas: mask areas [V], pixels.
        size: side of the pictures.
    """
    if mode == "original_boxes":
        scale = 0.6 * size / (boxes[:, 2:] - boxes[:, :2]).max()
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        maps = [_about(scale, m, size) for m in middle]
        return maps, _squeezed_cameras(cameras, size)
    squares, sides = zip(*(_centre_square(c, size) for c in cameras), strict=True)
    written = _ring_cameras(cameras, size)
    if mode == "original":
        return list(squares), written
    a = np.array([size / side for side in sides])
    corners = [_mapped(M, box.reshape(2, 2)) for M, box in zip(squares, boxes, strict=True)]
    mass = np.stack([_mapped(M, c[None])[0] for M, c in zip(squares, centroids, strict=True)])
    share = np.sqrt(areas * a**2) / size
    if mode == "original_centered":
        scale = 0.7 * size / max((c[1] - c[0]).max() for c in corners)
        maps = [_about(scale, c.mean(0), size) for c in corners]
    elif mode == "original_uniform":
        pairs = zip(mass, corners, strict=True)
        reach = [max((m - c[0]).max(), (c[1] - m).max()) for m, c in pairs]
        safe = np.minimum(0.6 / share, size / 2 * 0.95 / np.array(reach))
        scale = safe.min()
        maps = [_about(scale, m, size) for m in mass]
        K = np.stack([M @ k for M, k in zip(maps, written.K, strict=True)])
        written = Camera(K, written.c2w, size, size)
    else:
        maps = [_about(0.3 / s, m, size) for s, m in zip(share, mass, strict=True)]
    return [M @ first for M, first in zip(maps, squares, strict=True)], written


def _centre_square(camera: Camera, size: int) -> tuple[np.ndarray, float]:
    side = min(camera.width, camera.height)
    a = size / side
    x0, y0 = (camera.width - side) / 2, (camera.height - side) / 2
    return np.array([[a, 0, -a * x0], [0, a, -a * y0], [0, 0, 1.0]]), side


def _ring_cameras(cameras: Sequence[Camera], size: int) -> Camera:
    """Rotations kept, positions scaled about the calibration's origin, intrinsics invented."""
    c2w = np.stack([np.asarray(c.c2w, float) for c in cameras])
    c2w[:, :3, 3] *= _RADIUS / np.linalg.norm(c2w[:, :3, 3], axis=1).mean()
    f = _FOCAL_AT_512 * size / 512
    K = np.broadcast_to(intrinsics(f, f, size / 2, size / 2), (len(c2w), 3, 3)).copy()
    return Camera(K, c2w, size, size)


def _squeezed_cameras(cameras: Sequence[Camera], size: int) -> Camera:
    """Intrinsics squeezed by two different factors, positions left in millimetres."""
    K = np.stack(
        [np.diag([size / c.width, size / c.height, 1.0]) @ np.asarray(c.K) for c in cameras]
    )
    return Camera(K, np.stack([np.asarray(c.c2w, float) for c in cameras]), size, size)


def _about(scale: float, point: np.ndarray, size: int) -> np.ndarray:
    """Scale a square picture so that `point` lands in its middle."""
    shift = size / 2 - scale * np.asarray(point)
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1.0]])


def _mapped(M: np.ndarray, xy: np.ndarray) -> np.ndarray:
    p = xy @ M[:, :2].T + M[:, 2]
    return p[:, :2] / p[:, 2:]
