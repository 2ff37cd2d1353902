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
from mouselift_jax.data.hull import carve
from mouselift_jax.data.scene import EXPORT_BOX, MAX_RAY_OFFSET
from mouselift_jax.geometry.align import Similarity, reprojection_error, triangulate
from mouselift_jax.geometry.camera import Camera

MAX_WARP_ERROR_PX = 0.05
MIN_CONFIDENCE = 0.25  # below it the lab's own tools treat a keypoint as missing
N_RANDOM_POINTS = 32
HULL_EVERY = 20  # samples: one hull costs half the time of a whole sample
HULL_RAYS = 40  # per view


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


def hull_check(masks: Sequence[np.ndarray], cameras: Camera) -> dict[str, object]:
    """Visual hull of a sample: how much of each mask it covers, and how far it reaches.

    Args:
        masks: alpha [H,W] uint8 per view.
        cameras: cameras [V] of these masks.

    Returns:
        `cover`: mean share of a mask that the hull of the others covers (1 = consistent); and where
        there is a hull `max_abs`: largest |x|, |y|, |z|, scene units, `outside_box`: share of it
        outside the export box, `beyond_rays`: share farther from the origin than a Gaussian can
        lie.
    """
    views = [cameras[i] for i in range(len(masks))]
    cover, points = carve(masks, views, rays=HULL_RAYS)
    out: dict[str, object] = {"cover": round(float(np.nan_to_num(cover).mean()), 4)}
    if len(points):
        out["max_abs"] = [round(float(v), 3) for v in np.abs(points).max(0)]
        out["outside_box"] = round(float((np.abs(points) > EXPORT_BOX).any(1).mean()), 4)
        far = np.linalg.norm(points, axis=1) > MAX_RAY_OFFSET
        out["beyond_rays"] = round(float(far.mean()), 4)
    return out


def border_contact(alpha: np.ndarray) -> int:
    """Pixels of a picture's outermost ring that show the animal: more than 0 means it is cut."""
    a = alpha
    ring = (a[0], a[-1], a[1:-1, 0], a[1:-1, -1])
    return int(sum(np.count_nonzero(edge > 127) for edge in ring))
