"""What needs no learning: the figures that a network has to beat.

Both get exactly what the network gets - the input pictures with masks and cameras - and draw the
held-out view. Pure functions of NumPy arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.sh import C0

EXTENT = 1.2  # half side of the cube that is carved, scene units
COARSE, FINE = 48, 88  # cells along the longest side: to find the animal, then to carve it
OPACITY_LOGIT = 4.0
PAD = 4096  # numbers of Gaussians are rounded up to this, so that few shapes are compiled


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
    from mouselift_jax.render import render

    gaussians = hull_gaussians(images, masks, cameras, heldout)
    one = Camera(
        np.asarray(heldout.K, np.float32)[None],
        np.asarray(heldout.c2w, np.float32)[None],
        heldout.width,
        heldout.height,
    )
    drawn = render(gaussians, one)
    return Prediction(np.clip(np.asarray(drawn.rgb[0]), 0, 1), np.asarray(drawn.alpha[0]))


def hull_gaussians(
    images: np.ndarray, masks: np.ndarray, cameras: Camera, heldout: Camera
) -> Gaussians:
    """The surface cells of the hull as round Gaussians, coloured for the view of `heldout`."""
    masks = np.asarray(masks)[..., 0]
    if len(images) != len(masks) or cameras.batch_shape != (len(images),):
        raise ShapeError(
            "pictures, masks and cameras of the inputs differ in number",
            expected=f"V = {len(images)}",
            found=f"{len(masks)} masks, cameras {cameras.batch_shape}",
        )
    cell = 2 * EXTENT / COARSE
    centres = _carve(np.full(3, -EXTENT), np.full(3, COARSE), cell, masks, cameras)[0]
    if len(centres) == 0:  # the masks have nothing in common
        return _padded(np.zeros((0, 3)), np.zeros((0, 3)), 1.0)
    low, high = centres.min(0) - cell, centres.max(0) + cell
    cell = float((high - low).max()) / FINE
    counts = np.ceil((high - low) / cell).astype(int)
    centres, surface = _carve(low, counts, cell, masks, cameras)
    colours = _paint(centres[surface], centres, cell, images, cameras, heldout)
    return _padded(centres[surface], colours, cell)


def _carve(
    low: np.ndarray, counts: np.ndarray, cell: float, masks: np.ndarray, cameras: Camera
) -> tuple[np.ndarray, np.ndarray]:
    """Centres [M,3] of the cells that no mask excludes; which of them touch the outside [M]."""
    axes = [low[i] + cell * (np.arange(counts[i]) + 0.5) for i in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)  # [X,Y,Z,3]
    full = np.ones(points.shape[:3], bool)
    for v in range(len(masks)):
        left = np.flatnonzero(full.reshape(-1))
        xy, depth = _project(cameras, v, points.reshape(-1, 3)[left])
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
    body: np.ndarray,
    cell: float,
    images: np.ndarray,
    cameras: Camera,
    heldout: Camera,
) -> np.ndarray:
    """Colours [M,3]: of the input whose direction is nearest, among those that see the point."""
    order = np.argsort(-(_forward(cameras) @ _forward(heldout)))
    colours = np.zeros((len(points), 3))
    left = np.ones(len(points), bool)
    for v in order:
        xy, depth = _project(cameras, v, points)
        front = _depth_map(*_project(cameras, v, body), cell, cameras, v)
        seen = left & (depth <= _look_up(front, xy) + 3 * cell)
        colours[seen] = _look_up(np.asarray(images[v]), xy[seen])
        left &= ~seen
    first = order[0]
    xy, _ = _project(cameras, first, points[left])
    colours[left] = _look_up(np.asarray(images[first]), xy)
    return colours


def _depth_map(
    xy: np.ndarray, depth: np.ndarray, cell: float, cameras: Camera, v: int
) -> np.ndarray:
    """Depth of the nearest cell at each pixel [H,W]; cells are drawn as squares of their size."""
    front = np.full((cameras.height, cameras.width), np.inf)
    reach = int(np.ceil(cell * float(cameras.K[v, 0, 0]) / max(depth.min(), 1e-6) / 2))
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            x, y = np.floor(xy[:, 0]).astype(int) + dx, np.floor(xy[:, 1]).astype(int) + dy
            good = (x >= 0) & (x < cameras.width) & (y >= 0) & (y < cameras.height)
            np.minimum.at(front, (y[good], x[good]), depth[good])
    return front


def _padded(means: np.ndarray, colours: np.ndarray, cell: float) -> Gaussians:
    """Round Gaussians, with invisible ones up to a multiple of `PAD`."""
    n = len(means)
    total = max(1, -(-n // PAD)) * PAD
    place = np.zeros((total, 3), np.float32)
    place[:n] = means
    sh = np.zeros((total, 1, 3), np.float32)
    sh[:n, 0] = (colours - 0.5) / C0
    logits = np.full(total, -20.0, np.float32)
    logits[:n] = OPACITY_LOGIT
    quats = np.tile(np.array([1, 0, 0, 0], np.float32), (total, 1))
    # Half a cell as standard deviation: neighbours close the gaps, the outline grows little.
    scales = np.full((total, 3), np.log(0.5 * cell), np.float32)
    return Gaussians(place, quats, scales, logits, sh)


def _project(cameras: Camera, v: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    xy, depth = Camera(
        np.asarray(cameras.K[v], np.float64),
        np.asarray(cameras.c2w[v], np.float64),
        cameras.width,
        cameras.height,
    ).project(np.asarray(points, np.float64))
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
