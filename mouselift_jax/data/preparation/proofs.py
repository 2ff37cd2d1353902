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
from mouselift_jax.data.findings import Finding
from mouselift_jax.data.recordings.mask_levels import MaskFacts, judge_masks
from mouselift_jax.geometry.camera import Camera, stack_cameras
from mouselift_jax.geometry.hull import carve, outline
from mouselift_jax.geometry.pretrained_frame import EXPORT_BOX, MAX_RAY_OFFSET
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.geometry.triangulate import reprojection_error, triangulate

MAX_WARP_ERROR_PX = 0.05
MIN_CONFIDENCE = 0.25  # below it the lab's own tools treat a keypoint as missing
N_RANDOM_POINTS = 32
HULL_EVERY = 20  # samples: one hull costs half the time of a whole sample
LEAST_TESTS = 6  # of a run, however short
LEAST_COVER = 0.98  # 0.999 is true, 0.983 is one focal length 5 % off
NO_COVER = 0.5  # below it pictures and cameras do not belong together, whatever the reason
_MASKS_SEEN = 3  # instants after which masks that cannot be an animal's are told
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
    true = stack_cameras(cameras, any_size=True)
    # A pixel of the sample counts as many original pixels as the map shrinks at the keypoint.
    carried = np.stack([map_points(M, p) for M, p in zip(maps, xy, strict=True)])
    factor = np.stack([shrink_factor(M, p) for M, p in zip(maps, xy, strict=True)])
    raw = reprojection_error(triangulate(xy, true, weights), xy, true)
    new = reprojection_error(triangulate(carried, written, weights), carried, written) * factor
    total = weights.sum()
    return float((raw * weights).sum() / total), float((new * weights).sum() / total)


class Witness:
    """What the tested samples of one run say together: of the masks, and of hull against masks.

    Tested samples are spread over the whole run, so that a fault that begins half-way is met.

    Args:
        frames: the run's frames, ascending.
        camera_ids: numbers of the cameras.
        chosen: one animal of several is taken: that there are several is no news.
    """

    def __init__(
        self, frames: Sequence[int], camera_ids: Sequence[int], *, chosen: bool = False
    ) -> None:
        n = max(min(LEAST_TESTS, len(frames)), -(-len(frames) // HULL_EVERY))
        rows = np.unique(np.linspace(0, len(frames) - 1, n).astype(int))
        self.tested = frozenset(int(frames[i]) for i in rows)
        self.camera_ids = tuple(camera_ids)
        self.facts = [MaskFacts() for _ in camera_ids]
        self.covers: dict[int, float] = {}
        self.outlines: dict[int, np.ndarray] = {}  # [V,P,2] of tested frames
        self._told: set[str] = {"several_animals"} if chosen else set()
        self._seen = 0

    @property
    def patience(self) -> int:
        """Instants to hold back: the first ones wait until it is known what the masks are."""
        return 1 if self._seen >= _MASKS_SEEN else _MASKS_SEEN

    def see(self, frame: int, alphas: Sequence[np.ndarray]) -> None:
        """Note the masks [H,W] uint8 of an instant, if it is one of the first or a tested one."""
        self._seen += 1
        if frame in self.tested or self._seen <= _MASKS_SEEN:
            for facts, alpha in zip(self.facts, alphas, strict=True):
                facts.add(alpha)

    def hold(self, frame: int, alphas: Sequence[np.ndarray]) -> None:
        """Keep the outlines of an instant's one animal, if it is a tested one."""
        if frame in self.tested:
            self.outlines[frame] = np.stack([outline(a > 127) for a in alphas])

    def news(self, *, final: bool = False) -> list[Finding]:
        """Findings about the masks that were not told before."""
        if not final and max((len(f.share) for f in self.facts), default=0) < _MASKS_SEEN:
            return []
        found = [f for f in judge_masks(self.facts, self.camera_ids) if f.code not in self._told]
        self._told |= {f.code for f in found}
        return found

    def worst_cover(self) -> float:
        """The smallest hull cover of a tested sample so far; 1 where there is none."""
        return min(self.covers.values(), default=1.0)

    def no_cover(self) -> Finding | None:
        """The error that the hull hardly covers the masks, if it does not."""
        if not self.covers or np.median(list(self.covers.values())) > NO_COVER:
            return None
        cover = float(np.median(list(self.covers.values())))
        return Finding(
            "hull_cover", "error",
            f"the visual hull covers only {cover:.3f} of the masks: pictures, masks and "
            "calibration do not belong together",
            self.camera_ids,
            "python -m mouselift_jax check RECORDING tries the likely causes (sizes, order, time, "
            "units)",
            {"expected": f"{LEAST_COVER} or more", "found": f"{cover:.3f}"},
        )  # fmt: skip


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
