"""Cameras placed on purpose: look-at poses, rigs given by angles, turntables.

Azimuth is measured in the world's xy plane, counter-clockwise from +x seen from above, in degrees;
elevation upwards from that plane. A camera at azimuth a stands at radius (cos a, sin a) and looks
at the target.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mouselift_jax.errors import CalibrationError
from mouselift_jax.geometry.camera import Camera, intrinsics

WORLD_UP = (0.0, 0.0, 1.0)


def look_at_c2w(
    position: ArrayLike, target: ArrayLike = (0, 0, 0), up: ArrayLike = WORLD_UP
) -> np.ndarray:
    """Camera-to-world [4,4] of a camera at `position` that looks at `target`, OpenCV axes.

    Raises:
        CalibrationError: position and target coincide, or the view is along `up`.
    """
    position, target, up = (np.asarray(v, np.float64) for v in (position, target, up))
    forward = target - position
    right = np.cross(forward, up)
    if np.linalg.norm(forward) < 1e-12 or np.linalg.norm(right) < 1e-9 * np.linalg.norm(forward):
        raise CalibrationError(
            "a look-at camera needs a viewing direction that is not along `up`",
            found=f"position {position.tolist()}, target {target.tolist()}, up {up.tolist()}",
            fix="move the camera, or give another `up`",
        )
    forward /= np.linalg.norm(forward)
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3, 0], c2w[:3, 1], c2w[:3, 2] = right, np.cross(forward, right), forward
    c2w[:3, 3] = position
    return c2w


def rig_from_angles(
    azimuths_deg: ArrayLike,
    elevations_deg: ArrayLike | float,
    radius: float,
    focal: float,
    size: int,
) -> Camera:
    """Cameras [V] round the origin, square pictures, principal point in the middle.

    Args:
        azimuths_deg: azimuth of each camera.
        elevations_deg: elevation of each camera, or one for all.
        radius: distance from the origin, scene units.
        focal: focal length in pixels of a `size` x `size` picture.
        size: picture side in pixels.
    """
    azimuths = np.radians(np.asarray(azimuths_deg, np.float64))
    elevations = np.radians(np.broadcast_to(np.asarray(elevations_deg, np.float64), azimuths.shape))
    directions = np.stack(
        [
            np.cos(elevations) * np.cos(azimuths),
            np.cos(elevations) * np.sin(azimuths),
            np.sin(elevations),
        ],
        axis=-1,
    )
    c2w = np.stack([look_at_c2w(radius * d) for d in directions])
    K = np.broadcast_to(intrinsics(focal, focal, size / 2, size / 2), (len(c2w), 3, 3)).copy()
    return Camera(K, c2w, size, size)


def turntable(
    n: int,
    *,
    radius: float = 2.7,
    elevation_deg: float = 20.0,
    start_azimuth_deg: float = 270.0,
    focal: float | None = None,
    size: int = 512,
) -> Camera:
    """Cameras [n] once round the origin, clockwise seen from above like the canonical rig.

    Args:
        n: number of cameras; the last is one step before the first, so that the film loops.
        radius: distance from the origin, scene units (2.7 is the pretrained rig's).
        elevation_deg: elevation of all cameras.
        start_azimuth_deg: azimuth of the first camera; 270 is the front.
        focal: focal length in pixels; None keeps the pretrained field of view (50 degrees).
        size: picture side in pixels.
    """
    azimuths = start_azimuth_deg - 360.0 * np.arange(n) / n
    focal = size * 0.5 / np.tan(np.radians(25.0)) if focal is None else focal
    return rig_from_angles(azimuths, elevation_deg, radius, focal, size)


def looked_at(centres: ArrayLike, axes: ArrayLike) -> np.ndarray:
    """The point [3] nearest all optical axes, least squares; `axes` [V,3] are of length 1."""
    centres, axes = np.asarray(centres, np.float64), np.asarray(axes, np.float64)
    A = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    b = (A @ centres[..., None]).sum(0)
    return np.linalg.lstsq(A.sum(0), b[:, 0], rcond=None)[0]


def azimuth_elevation(c2w: ArrayLike, target: ArrayLike = (0, 0, 0)) -> tuple[np.ndarray, ...]:
    """Azimuth in [0, 360) and elevation, degrees, of camera centres [*B] seen from `target`."""
    offset = np.asarray(c2w, np.float64)[..., :3, 3] - np.asarray(target, np.float64)
    azimuth = np.degrees(np.arctan2(offset[..., 1], offset[..., 0])) % 360.0
    elevation = np.degrees(np.arctan2(offset[..., 2], np.hypot(offset[..., 0], offset[..., 1])))
    return azimuth, elevation


def axes_meeting_point(centers: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The point [3] nearest all lines through centers [V,3] along unit axes [V,3]."""
    away = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    return np.linalg.solve(away.sum(0), (away @ centers[..., None]).sum(0)[:, 0])


def clockwise(centers: np.ndarray, about: np.ndarray, front_deg: float) -> tuple[int, ...]:
    """Indices of centers [V,3] by decreasing azimuth about a point.

    Args:
        centers: camera centres.
        about: the point they stand around.
        front_deg: the order starts with the camera nearest this azimuth.
    """
    offset = centers - about
    azimuth = np.degrees(np.arctan2(offset[:, 1], offset[:, 0]))
    first = int(np.argmin(np.abs((azimuth - front_deg + 180.0) % 360.0 - 180.0)))
    behind = (azimuth[first] - azimuth + 1e-9) % 360.0
    return tuple(int(i) for i in np.argsort(behind, kind="stable"))
