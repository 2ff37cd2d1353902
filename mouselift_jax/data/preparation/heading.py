"""Which way the animal faces, from keypoints or from the long axis of its silhouettes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.errors import ConfigError, one_of
from mouselift_jax.geometry.camera import Camera, stack_cameras
from mouselift_jax.geometry.triangulate import triangulate

HEADINGS = ("none", "keypoints", "pca")


def check_heading(recording: Recording, heading: str, pair: tuple[int, int]) -> None:
    """Raise a ConfigError where a recording cannot give the heading that is wanted."""
    one_of(heading, HEADINGS, "no such heading", where="config.prepare.heading")
    if heading == "keypoints":
        points = recording.keypoints
        if len(pair) != 2 or min(pair) < 0:
            raise ConfigError(
                "a heading goes from one keypoint to another",
                where="config.prepare.heading_keypoints",
                expected="two numbers from 0 on: of the front and of the back keypoint",
                found=pair,
                fix="--config.prepare.heading_keypoints=(2,5)",
            )
        if points is None or max(pair) >= points.shape[2]:
            raise ConfigError(
                "heading=keypoints, but the recording has no such keypoints",
                where=recording.path,
                expected=f"keypoints {pair}",
                found="none" if points is None else f"{points.shape[2]} keypoints",
                fix="--config.prepare.heading=pca or none",
            )


def keypoint_heading(recording: Recording, frame: int, pair: tuple[int, int]) -> float | None:
    """Azimuth in degrees from the back to the front keypoint, None where one is not seen."""
    points = recording.keypoints[:, frame, list(pair)]
    weights = np.nan_to_num(points[..., 2]) * np.isfinite(points[..., :2]).all(-1)
    cameras = stack_cameras(recording.cameras, any_size=True)
    front, back = triangulate(np.nan_to_num(points[..., :2]), cameras, weights)
    return _azimuth(front - back) if np.isfinite([front, back]).all() else None


def mask_heading(
    cameras: Sequence[Camera],
    alphas: Sequence[np.ndarray],
    boxes: Sequence[tuple[int, int, int, int]],
    centroids: np.ndarray,
) -> float:
    """Azimuth in degrees of the animal's long axis; which end is the front remains open."""
    ends = []
    for alpha, (x0, y0, x1, y1) in zip(alphas, boxes, strict=True):
        m = cv2.moments(np.ascontiguousarray(alpha[y0:y1, x0:x1]), True)
        angle = 0.5 * np.arctan2(2 * m["mu11"], m["mu20"] - m["mu02"])
        ends.append(np.array([np.cos(angle), np.sin(angle)]))
    # Each view says: the axis lies in the plane of its silhouette's axis and the camera centre. The
    # direction that lies best in all these planes is the animal's.
    normals = []
    for camera, xy, end in zip(cameras, centroids, ends, strict=True):
        rays = np.linalg.inv(camera.K) @ np.stack([[*xy, 1.0], [*(xy + 50 * end), 1.0]], 1)
        normal = camera.c2w[:3, :3] @ np.cross(rays[:, 0], rays[:, 1])
        normals.append(normal / np.linalg.norm(normal))
    direction = np.linalg.svd(np.stack(normals))[2][-1]
    return _azimuth(direction)


def _azimuth(direction: np.ndarray) -> float:
    return float(np.degrees(np.arctan2(direction[1], direction[0])) % 360.0)
