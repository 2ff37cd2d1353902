"""What a camera must be to be believed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mouselift_jax.errors import CalibrationError, MouseLiftError, raise_all
from mouselift_jax.geometry.camera import Camera


def camera_problems(
    cameras: Camera,
    *,
    names: Sequence[object] | None = None,
    subject: np.ndarray | None = None,
    tolerance: float = 1e-3,
) -> list[MouseLiftError]:
    """Everything that is impossible about cameras [V]: not finite, not a rotation, mirrored...

    Args:
        cameras: cameras [V].
        names: what to call each camera in a message; None numbers them.
        subject: a world point [3] that every camera must have in front of it; None skips this.
        tolerance: allowed deviation of R R^T from the identity, and of det R from 1.

    Returns:
        One error a camera and fault; empty when all is well.
    """
    K, c2w = np.asarray(cameras.K, np.float64), np.asarray(cameras.c2w, np.float64)
    names = list(range(len(K))) if names is None else list(names)
    problems: list[MouseLiftError] = []
    for i, name in enumerate(names):
        problems += _one(K[i], c2w[i], f"camera {name}", subject, tolerance)
    return problems


def validate_cameras(cameras: Camera, **kwargs: object) -> Camera:
    """Return the cameras, or raise all of `camera_problems` at once.

    Raises:
        CalibrationError: one camera is impossible in one way; ProblemList: several are.
    """
    raise_all("the calibration is impossible", camera_problems(cameras, **kwargs))
    return cameras


def _one(
    K: np.ndarray, c2w: np.ndarray, name: str, subject: np.ndarray | None, tolerance: float
) -> list[MouseLiftError]:
    if not (np.isfinite(K).all() and np.isfinite(c2w).all()):
        return [
            CalibrationError(
                "a camera has values that are not finite",
                where=name,
                fix="look for a failed calibration or an empty field in the calibration file",
            )
        ]
    problems: list[MouseLiftError] = []
    if not np.allclose(K[2], [0, 0, 1], atol=1e-6) or K[0, 0] <= 0 or K[1, 1] <= 0 or K[1, 0] != 0:
        problems.append(
            CalibrationError(
                "K is not a pinhole matrix",
                where=name,
                expected="[[fx, s, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0",
                found=np.round(K, 3).tolist(),
                fix="a transposed K (as MATLAB writes it) must be transposed when read",
            )
        )
    R = c2w[:3, :3]
    deviation = np.abs(R @ R.T - np.eye(3)).max()
    if deviation > tolerance or not np.allclose(c2w[3], [0, 0, 0, 1], atol=1e-6):
        problems.append(
            CalibrationError(
                "the rotation is not orthonormal",
                where=name,
                expected=f"max |R R^T - 1| <= {tolerance:g}",
                found=f"{deviation:.3g}",
                fix="give the rotation matrix itself, not a scaled or a Rodrigues form",
            )
        )
    elif np.linalg.det(R) < 0:
        problems.append(
            CalibrationError(
                "the camera is mirrored",
                where=name,
                expected="det R = +1",
                found=f"det R = {np.linalg.det(R):.3f}",
                fix="one axis has the wrong sign: camera axes are x right, y down, z forward",
            )
        )
    if subject is not None:
        depth = float((np.asarray(subject) - c2w[:3, 3]) @ R[:, 2])
        if depth <= 0:
            problems.append(
                CalibrationError(
                    "the subject is behind the camera",
                    where=name,
                    expected="a positive depth",
                    found=f"{depth:.3g} scene units",
                    fix="is w2c written where c2w is meant, or R transposed?",
                )
            )
    return problems
