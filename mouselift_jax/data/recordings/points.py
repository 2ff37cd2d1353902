"""Keypoints of a recording in space.

M keypoints, V cameras, F frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.geometry.camera import Camera, stack_cameras
from mouselift_jax.geometry.triangulate import reprojection_error, triangulate

WRONG_PX = 8.0  # and four times the median: a view this far off is left out of a point
# What is read without names: the 22 points of the lab's layout (docs/data_format.md).
NAMES = (
    "left_ear_tip", "right_ear_tip", "nose", "neck", "mid_body", "tail_root", "tail_middle",
    "tail_end", "left_paw", "left_paw_end", "left_elbow", "left_shoulder", "right_paw",
    "right_paw_end", "right_elbow", "right_shoulder", "left_foot", "left_knee", "left_hip",
    "right_foot", "right_knee", "right_hip",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Points:
    """Triangulated keypoints.

    Attributes:
        names: of the points [M]; point_0, point_1, ... where the files name none.
        frames: numbers of the recording [F].
        xyz: positions [F,M,3], mm of the recording's world (its unit where that is unknown); NaN
            where fewer than two cameras see the point.
        error_px: root mean square distance of its projections from the keypoints [F,M], NaN so too.
        cameras: how many cameras each comes from [F,M].
        confidence: mean of theirs [F,M].
    """

    names: tuple[str, ...]
    frames: tuple[int, ...]
    xyz: np.ndarray
    error_px: np.ndarray
    cameras: np.ndarray
    confidence: np.ndarray


def triangulated(recording: Recording, frames: Sequence[int]) -> Points | None:
    """The keypoints of some frames in space; None where the recording has none."""
    if recording.keypoints is None or not len(frames):
        return None
    numbers = np.asarray(frames, int)
    there = (numbers >= 0) & (numbers < recording.keypoints.shape[1])
    seen = recording.keypoints[:, np.where(there, numbers, 0)]  # [V,F,M,3]
    V, F, M, _ = seen.shape
    xy = seen[..., :2].reshape(V, F * M, 2)
    weights = np.nan_to_num(seen[..., 2]).reshape(V, F * M) * np.isfinite(xy).all(-1)
    weights = weights * np.repeat(there, M)
    cameras = stack_cameras(recording.cameras, any_size=True)
    xyz, distance = _space(xy, cameras, weights)
    used = weights > 0
    middle = np.nanmedian(np.where(used, distance, np.nan)) if used.any() else 0.0
    wrong = used & (distance > max(WRONG_PX, 4 * middle))
    weights = np.where(wrong, 0.0, weights)
    if wrong.any():
        xyz, distance = _space(xy, cameras, weights)
    used = weights > 0
    n = used.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(np.where(used, distance**2, 0).sum(0) / n)
        confidence = (weights.sum(0) / n).reshape(F, M)
    error[n < 2] = np.nan
    names = NAMES if len(NAMES) == M else tuple(f"point_{m}" for m in range(M))
    return Points(
        names,
        tuple(int(f) for f in numbers),
        xyz.reshape(F, M, 3) * recording.unit_mm,
        error.reshape(F, M),
        n.reshape(F, M),
        np.where(n.reshape(F, M) > 0, confidence, np.nan),
    )


def _space(xy: np.ndarray, cameras: Camera, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [N,3] and their distances [V,N] from the observations, pixels."""
    clean = np.nan_to_num(xy)
    xyz = triangulate(clean, cameras, weights)
    return xyz, np.asarray(reprojection_error(np.nan_to_num(xyz), clean, cameras))


def nose_and_tail(points: Points, pair: tuple[int, int] | None = None) -> np.ndarray | None:
    """Nose and tail root of every frame [F,2,3].

    Args:
        points: of `triangulated`.
        pair: numbers of the two points; None = by their names.

    Returns:
        None where nothing says which points they are.
    """
    if pair is None:
        if not {"nose", "tail_root"} <= set(points.names):
            return None
        pair = (points.names.index("nose"), points.names.index("tail_root"))
    return points.xyz[:, list(pair)] if max(pair) < len(points.names) else None
