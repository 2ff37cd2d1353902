"""What needs no learning: the figures that a network has to beat.

Both get exactly what the network gets - the input pictures with masks and cameras - and draw the
held-out view. Pure functions of NumPy arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.camera import Camera

EXTENT = 1.2  # half side of the cube that is carved, scene units
COARSE, FINE = 48, 128  # cells along the longest side: to find the animal, then to carve it


class Prediction(NamedTuple):
    """A held-out view as a method draws it."""

    rgb: np.ndarray  # [H,W,3] on white
    alpha: np.ndarray  # [H,W,1]


def nearest_view(
    images: np.ndarray, masks: np.ndarray, cameras: Camera, heldout: Camera
) -> Prediction:
    """The input picture whose camera looks most nearly the same way, as it is.

    Args:
        images: inputs [V,H,W,3] on white.
        masks: their masks [V,H,W,1].
        cameras: their cameras [V].
        heldout: the camera to predict, unbatched.
    """
    v = int(np.argmax(_forward(cameras) @ _forward(heldout)))
    return Prediction(np.asarray(images[v]), np.asarray(masks[v]))


def visual_hull(
    images: np.ndarray, masks: np.ndarray, cameras: Camera, heldout: Camera
) -> Prediction:
    """The largest body that fits all masks, painted by the nearest camera that sees each spot.

    Arguments as those of `nearest_view`.
    """
    masks = np.asarray(masks)[..., 0]
    if len(images) != len(masks) or cameras.batch_shape != (len(images),):
        raise ShapeError(
            "pictures, masks and cameras of the inputs differ in number",
            expected=f"V = {len(images)}",
            found=f"{len(masks)} masks, cameras {cameras.batch_shape}",
        )
    size = (heldout.height, heldout.width)
    rgb, alpha = np.ones((*size, 3), np.float32), np.zeros((*size, 1), np.float32)
    cell = 2 * EXTENT / COARSE
    body = _carve(np.full(3, -EXTENT), np.full(3, COARSE), cell, masks, cameras)[0]
    if len(body) == 0:  # the masks have nothing in common
        return Prediction(rgb, alpha)
    low, high = body.min(0) - cell, body.max(0) + cell
    cell = float((high - low).max()) / FINE
    body, is_surface = _carve(low, np.ceil((high - low) / cell).astype(int), cell, masks, cameras)
    surface = body[is_surface]
    if len(surface) == 0:
        return Prediction(rgb, alpha)
    colours = _paint(surface, cell, images, masks, cameras, heldout)
    first = _front(*_project(heldout, surface), cell, heldout)[1]
    hit = first >= 0
    rgb[hit], alpha[hit] = colours[first[hit]], 1.0
    return Prediction(rgb, alpha)


def _carve(
    low: np.ndarray, counts: np.ndarray, cell: float, masks: np.ndarray, cameras: Camera
) -> tuple[np.ndarray, np.ndarray]:
    """Centres [M,3] of the cells that no mask excludes; which of them touch the outside [M]."""
    axes = [low[i] + cell * (np.arange(counts[i]) + 0.5) for i in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)  # [X,Y,Z,3]
    full = np.ones(points.shape[:3], bool)
    for v in range(len(masks)):
        left = np.flatnonzero(full.reshape(-1))
        xy, depth = _project(cameras[v], points.reshape(-1, 3)[left])
        inside = (depth > 0) & (_look_up(masks[v], xy) > 0.5)
        full.reshape(-1)[left[~inside]] = False
    solid = np.pad(full, 1)
    buried = np.ones_like(full)
    for axis in range(3):
        for step in (0, 2):
            window = [slice(1, -1)] * 3
            window[axis] = slice(step, step + full.shape[axis])
            buried &= solid[tuple(window)]
    return points[full], ~buried[full]


def _paint(
    points: np.ndarray,
    cell: float,
    images: np.ndarray,
    masks: np.ndarray,
    cameras: Camera,
    heldout: Camera,
) -> np.ndarray:
    """Colours [M,3]: of the input whose direction is nearest, among those that see the point.

    A pixel that is partly background tells the wrong colour, so it counts as not seeing.
    """
    colours = np.zeros((len(points), 3), np.float32)
    left = np.ones(len(points), bool)
    for v in np.argsort(-(_forward(cameras) @ _forward(heldout))):
        xy, depth = _project(cameras[v], points)
        front = _front(xy, depth, cell, cameras[v])[0]
        seen = left & (depth <= _look_up(front, xy) + 3 * cell) & (_look_up(masks[v], xy) > 0.98)
        colours[seen] = _look_up(np.asarray(images[v]), xy[seen])
        left &= ~seen
    colours[left] = colours[~left].mean(0) if (~left).any() else 0.5
    return colours


def _front(
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


def _project(camera: Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    exact = Camera(
        np.asarray(camera.K, np.float64),
        np.asarray(camera.c2w, np.float64),
        camera.width,
        camera.height,
    )
    xy, depth = exact.project(np.asarray(points, np.float64))
    return np.asarray(xy), np.asarray(depth)


def _look_up(picture: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """The pixel at each position; 0 outside the picture."""
    height, width = picture.shape[:2]
    # Far outside (or behind) a camera positions may be huge: clip before they become integers.
    x = np.floor(np.clip(np.nan_to_num(xy[:, 0], nan=-1), -1, width)).astype(int)
    y = np.floor(np.clip(np.nan_to_num(xy[:, 1], nan=-1), -1, height)).astype(int)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    values = picture[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    return np.where(inside.reshape(-1, *[1] * (values.ndim - 1)), values, 0)


def _forward(cameras: Camera) -> np.ndarray:
    return np.asarray(cameras.c2w, np.float64)[..., :3, 2]


BASELINES = {"visual hull": visual_hull, "nearest view": nearest_view}
