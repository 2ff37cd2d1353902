"""The visual hull as cells, and what each camera sees of them: NumPy, no learning.

M points, V views.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import label

from mouselift_jax.geometry.camera import Camera

EXTENT = 1.2  # half side of the cube that is carved, scene units
COARSE = 48  # cells along it, to find the animal


def bounds(
    masks: np.ndarray, cameras: Camera, unknown: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Low and high corner [3] of a box that holds the hull; one cell when there is none."""
    cell = 2 * EXTENT / COARSE
    low, counts = np.full(3, -EXTENT), np.full(3, COARSE)
    index = np.argwhere(carve(low, counts, cell, masks, cameras, unknown))
    if len(index) == 0:
        return np.zeros(3), np.full(3, cell)
    return cell * (index.min(0) - 0.5) - EXTENT, cell * (index.max(0) + 1.5) - EXTENT


def carve(
    low: np.ndarray,
    counts: np.ndarray,
    cell: float,
    masks: np.ndarray,
    cameras: Camera,
    unknown: np.ndarray | None = None,
) -> np.ndarray:
    """Which cells of a grid no mask excludes [X,Y,Z].

    Args:
        low: corner of the grid [3].
        counts: cells along each axis [3].
        cell: their side.
        masks: [V,H,W], subject above 0.5.
        cameras: [V].
        unknown: [V,H,W], pixels that exclude nothing; None = none. A view that has some excludes
            nothing outside its picture either.
    """
    axes = [low[i] + cell * (np.arange(counts[i]) + 0.5) for i in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    full = np.ones(points.shape[:3], bool)
    for v in range(len(masks)):
        left = np.flatnonzero(full.reshape(-1))
        xy, depth = project(cameras[v], points.reshape(-1, 3)[left])
        inside = look_up(masks[v], xy) > 0.5
        if unknown is not None and unknown[v].any():
            inside |= look_up(1.0 - unknown[v], xy) < 0.5  # 0 outside the picture
        full.reshape(-1)[left[~((depth > 0) & inside)]] = False
    return full


def without_ghosts(solid: np.ndarray, share: float = 0.02) -> np.ndarray:
    """The hull without its small loose parts: crossings of rays where no animal is.

    Args:
        solid: cells [X,Y,Z].
        share: of the largest part; smaller ones go.
    """
    parts, sizes = _parts(solid)
    return (sizes >= max(1.0, share * sizes.max()))[parts]


def second_part(solid: np.ndarray) -> float:
    """Size of the second largest loose part over the largest; 0 when there is one at most."""
    sizes = np.sort(_parts(solid)[1])[::-1]
    return float(sizes[1] / sizes[0]) if len(sizes) > 1 and sizes[0] else 0.0


def _parts(solid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of each cell's part [X,Y,Z], and the cells of each; part 0 is what is empty."""
    parts, _ = label(solid, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.reshape(-1))
    sizes[0] = 0
    return parts, sizes


def centres(low: np.ndarray, cell: float, cells: np.ndarray) -> np.ndarray:
    """Centres [M,3] of the cells [X,Y,Z] that are true."""
    return low + cell * (np.argwhere(cells) + 0.5)


def surface_of(solid: np.ndarray) -> np.ndarray:
    """Which full cells [X,Y,Z] touch the outside."""
    padded = np.pad(solid, 1)
    buried = solid.copy()
    for axis in range(3):
        for step in (0, 2):
            window = [slice(1, -1)] * 3
            window[axis] = slice(step, step + solid.shape[axis])
            buried &= padded[tuple(window)]
    return solid & ~buried


def first_cells(
    xy: np.ndarray, depth: np.ndarray, cell: float, camera: Camera
) -> tuple[np.ndarray, np.ndarray]:
    """At each pixel [H,W] the depth of the nearest cell and its index (-1 = none).

    A cell is drawn as a square of its projected size, at least one pixel.
    """
    height, width = camera.height, camera.width
    front, first = np.full(height * width, np.inf), np.full(height * width, -1)
    side = cell * float(camera.K[0, 0]) / max(float(np.median(depth)), 1e-6)
    reach = max(0, int(np.ceil((side - 1) / 2)))
    order = np.argsort(-depth, kind="stable")  # near ones are written last
    x0, y0 = np.floor(xy[order, 0]).astype(int), np.floor(xy[order, 1]).astype(int)
    pixels, owners = [], []
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            x, y = x0 + dx, y0 + dy
            good = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (depth[order] > 0)
            pixels.append(y[good] * width + x[good])
            owners.append(order[good])
    pixel, owner = np.concatenate(pixels), np.concatenate(owners)
    last = np.argsort(-depth[owner], kind="stable")
    front[pixel[last]], first[pixel[last]] = depth[owner[last]], owner[last]
    return front.reshape(height, width), first.reshape(height, width)


def project(camera: Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [M,2] and depths [M] of points, in float64."""
    exact = Camera(
        np.asarray(camera.K, np.float64),
        np.asarray(camera.c2w, np.float64),
        camera.width,
        camera.height,
    )
    xy, depth = exact.project(np.asarray(points, np.float64))
    return np.asarray(xy), np.asarray(depth)


def look_up(picture: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """The pixel at each position; 0 outside the picture."""
    height, width = picture.shape[:2]
    # Far outside (or behind) a camera positions may be huge: clip before they become integers.
    x = np.floor(np.clip(np.nan_to_num(xy[:, 0], nan=-1), -1, width)).astype(int)
    y = np.floor(np.clip(np.nan_to_num(xy[:, 1], nan=-1), -1, height)).astype(int)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    values = picture[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    return np.where(inside.reshape(-1, *[1] * (values.ndim - 1)), values, 0)
