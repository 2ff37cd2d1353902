"""What every sample proves about itself before it is written.

Camera against warp: random 3D points projected by the written camera must lie where the warp
carried their true projection. Keypoints, where there are any: carried by the warp, they must
triangulate in the written cameras as well as the raw ones did. Volume: the visual hull must lie
inside what the network can represent and the exporter keeps. Border: the animal must not be cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mouselift_jax.data.crop import map_points, shrink_factor
from mouselift_jax.data.scene import EXPORT_BOX, MAX_RAY_OFFSET
from mouselift_jax.geometry.align import Similarity, reprojection_error, triangulate
from mouselift_jax.geometry.camera import Camera

MAX_WARP_ERROR_PX = 0.05
MIN_CONFIDENCE = 0.25  # below it the lab's own tools treat a keypoint as missing
N_RANDOM_POINTS = 32
_GRID = 18  # voxels a side for the volume check
_GRID_HALF = 1.5  # scene units; beyond it nothing can be represented anyway


def warp_error(
    cameras: Sequence[Camera],
    maps: Sequence[np.ndarray],
    written: Camera,
    similarity: Similarity,
    centre: np.ndarray,
    reach: float,
    rng: np.random.Generator,
) -> float:
    """Largest distance in pixels between written camera and warp, over random points and views.

    Args:
        cameras: true cameras in slot order.
        maps: pixel map M [3,3] of each.
        written: cameras [V] of the sample.
        similarity: from the recording's frame to the sample's.
        centre: the points lie about it, recording's frame.
        reach: within this distance, recording's unit.
        rng: source of the points.
    """
    points = centre + rng.uniform(-reach, reach, (N_RANDOM_POINTS, 3))
    seen, depth = written.project(similarity.apply(points))  # [V,M,2]
    worst = 0.0
    for i, (camera, M) in enumerate(zip(cameras, maps, strict=True)):
        xy, z = camera.project(points)
        valid = (z > 0) & (depth[i] > 0)
        error = np.linalg.norm(map_points(M, xy) - seen[i], axis=-1)[valid]
        worst = max(worst, float(error.max(initial=0.0)))
    return worst


def keypoint_residuals(
    keypoints: np.ndarray,
    cameras: Sequence[Camera],
    maps: Sequence[np.ndarray],
    written: Camera,
) -> tuple[float, float] | None:
    """Mean triangulation residual of one frame's keypoints, raw and in the sample, original pixels.

    Args:
        keypoints: [V,M,3] x, y, confidence, in slot order; NaN where missing.
        cameras: true cameras in slot order.
        maps: pixel map M of each.
        written: cameras [V] of the sample.

    Returns:
        (raw, written), or None where no keypoint is seen by two cameras.
    """
    xy = keypoints[..., :2]
    weights = ((keypoints[..., 2] >= MIN_CONFIDENCE) & np.isfinite(xy).all(-1)).astype(float)
    enough = weights.sum(0) >= 2
    if not enough.any():
        return None
    xy, weights = np.where(weights[..., None] > 0, xy, 0.0)[:, enough], weights[:, enough]
    true = Camera(
        np.stack([c.K for c in cameras]),
        np.stack([c.c2w for c in cameras]),
        cameras[0].width,
        cameras[0].height,
    )
    # A pixel of the sample counts as many original pixels as the map shrinks at the keypoint.
    carried = np.stack([map_points(M, p) for M, p in zip(maps, xy, strict=True)])
    factor = np.stack([shrink_factor(M, p) for M, p in zip(maps, xy, strict=True)])
    raw = reprojection_error(triangulate(xy, true, weights), xy, true)
    new = reprojection_error(triangulate(carried, written, weights), carried, written) * factor
    total = weights.sum()
    return float((raw * weights).sum() / total), float((new * weights).sum() / total)


def hull_extent(masks: Sequence[np.ndarray], cameras: Camera) -> dict[str, float] | None:
    """Extent of a coarse visual hull in the sample's frame, against what can be represented.

    Args:
        masks: alpha [H,W] uint8 per view.
        cameras: cameras [V] of these masks.

    Returns:
        `max_abs` |x|, |y|, |z| (with half a voxel), `outside_box`: share of the hull outside the
        export box, `max_radius`: largest distance from the origin; None where the hull is empty. A
        point that a view does not contain in its frame is judged by the other views.
    """
    ticks = (np.arange(_GRID) + 0.5) / _GRID * 2 * _GRID_HALF - _GRID_HALF
    points = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), -1).reshape(-1, 3)
    points = np.concatenate([points, np.ones_like(points[:, :1])], 1).astype(np.float32)
    P = np.asarray(cameras.K @ cameras.w2c[..., :3, :], np.float32)  # [V,3,4]
    index = np.arange(len(points))  # of the points still inside
    views = np.zeros(len(points), np.uint8)
    for mask, M in zip(masks, P, strict=True):
        x, y, z = M @ points[index].T
        column, row = (x / z).astype(np.int32), (y / z).astype(np.int32)
        visible = (z > 0) & (x >= 0) & (y >= 0)
        visible &= (column < cameras.width) & (row < cameras.height)
        hit = np.zeros(len(index), bool)
        hit[visible] = mask[row[visible], column[visible]] > 127
        views[index[hit]] += 1
        index = index[hit | ~visible]
    inside = np.zeros(len(points), bool)
    inside[index] = True
    inside &= views >= 2
    if not inside.any():
        return None
    kept = points[inside, :3]
    step = _GRID_HALF / _GRID
    return {
        "max_abs": [round(float(v), 3) for v in np.abs(kept).max(0) + step],
        "max_radius": round(float(np.linalg.norm(kept, axis=1).max() + step), 3),
        "outside_box": round(float((np.abs(kept) > EXPORT_BOX + step).any(1).mean()), 4),
        "beyond_rays": round(float((np.linalg.norm(kept, axis=1) > MAX_RAY_OFFSET).mean()), 4),
    }


def border_contact(image_rgba: np.ndarray) -> int:
    """Pixels of the picture's outermost ring that show the animal: more than 0 means it is cut."""
    a = image_rgba[..., 3]
    ring = (a[0], a[-1], a[1:-1, 0], a[1:-1, -1])
    return int(sum(np.count_nonzero(edge > 127) for edge in ring))
