"""What needs no learning: the figures that a network has to beat.

Both get exactly what the network gets - the input pictures with masks and cameras - and draw the
held-out view. Pure functions of NumPy arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.pipelines import voxels

FINE = 128  # cells along the hull's longest side


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
    low, high = voxels.bounds(masks, cameras)
    cell = float((high - low).max()) / FINE
    counts = np.ceil((high - low) / cell).astype(int)
    solid = voxels.carve(low, counts, cell, masks, cameras)
    surface = voxels.centres(low, cell, voxels.surface_of(solid))
    if len(surface) == 0:  # the masks have nothing in common
        return Prediction(rgb, alpha)
    colours = _paint(surface, cell, images, masks, cameras, heldout)
    first = voxels.first_cells(*voxels.project(heldout, surface), cell, heldout)[1]
    hit = first >= 0
    rgb[hit], alpha[hit] = colours[first[hit]], 1.0
    return Prediction(rgb, alpha)


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
        xy, depth = voxels.project(cameras[v], points)
        front = voxels.first_cells(xy, depth, cell, cameras[v])[0]
        seen = (
            left
            & (depth <= voxels.look_up(front, xy) + 3 * cell)
            & (voxels.look_up(masks[v], xy) > 0.98)
        )
        colours[seen] = voxels.look_up(np.asarray(images[v]), xy[seen])
        left &= ~seen
    colours[left] = colours[~left].mean(0) if (~left).any() else 0.5
    return colours


def _forward(cameras: Camera) -> np.ndarray:
    return np.asarray(cameras.c2w, np.float64)[..., :3, 2]
