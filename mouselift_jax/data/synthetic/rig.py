"""The cameras of the procedural recording: the real rig's published calibration, at any size.

The numbers are those of the public DANNCE calibration of `markerless_mouse_1` (MIT licence), with
the intrinsics of its undistorted videos.
"""

from __future__ import annotations

import numpy as np

from mouselift_jax.geometry.camera import Camera, intrinsics
from mouselift_jax.geometry.rig import look_at_c2w

FULL_SIZE = (1152, 1024)  # width, height the calibration was made for
ARENA_CENTRE = np.array([51.5, 52.6, 0.0])  # mm, on the floor
ARENA_RADIUS = 105.0  # mm

# fx, fy, cx, cy of the undistorted videos; pixel centres at integers, as OpenCV calibrates.
_INTRINSICS = np.array(
    [
        [1632.3, 1639.5, 600.6, 491.7],
        [1556.8, 1580.6, 622.7, 418.0],
        [1630.3, 1633.1, 611.2, 478.1],
        [1606.2, 1617.7, 583.0, 552.4],
        [1618.3, 1629.0, 640.7, 453.7],
        [1636.9, 1642.7, 613.6, 524.8],
    ]
)
_ROTATIONS = np.array(
    [
        [0.576922, -0.816681, -0.013916],
        [0.002681, 0.018931, -0.999817],
        [0.816795, 0.576779, 0.013111],
        [-0.497060, 0.867231, 0.029006],
        [0.190703, 0.141792, -0.971354],
        [-0.846501, -0.477290, -0.235862],
        [-0.998116, -0.057544, -0.021273],
        [0.020385, 0.015971, -0.999665],
        [0.057864, -0.998215, -0.014768],
        [0.396495, 0.917997, 0.008616],
        [0.016854, 0.002105, -0.999856],
        [-0.917882, 0.396583, -0.014637],
        [-0.410332, -0.911913, 0.006514],
        [-0.253174, 0.107052, -0.961479],
        [0.876088, -0.396175, -0.274799],
        [0.981472, 0.190933, -0.016063],
        [0.056990, -0.370936, -0.926908],
        [-0.182935, 0.908819, -0.374944],
    ]
).reshape(6, 3, 3)  # world to camera
_TRANSLATIONS = np.array(
    [
        [10.3386, 66.4148, 236.6992],
        [-32.4055, 49.6651, 410.1897],
        [45.9890, 64.9954, 354.8355],
        [-70.5058, 57.8716, 327.5532],
        [57.1592, 60.4971, 307.2287],
        [-64.8202, 50.9248, 294.3874],
    ]
)


def lab_rig(width: int, height: int, n_cameras: int = 6) -> list[Camera]:
    """The first `n_cameras` cameras of the rig, in millimetres, pixel centres at +0.5.

    Cameras beyond the six real ones stand between them on a ring.

    Args:
        width: picture width in pixels; the intrinsics are scaled to it.
        height: picture height in pixels.
        n_cameras: number of cameras, 2 or more.
    """
    sx, sy = width / FULL_SIZE[0], height / FULL_SIZE[1]
    cameras = []
    for (fx, fy, cx, cy), R, T in zip(_INTRINSICS, _ROTATIONS, _TRANSLATIONS, strict=True):
        u, _, vt = np.linalg.svd(R)  # six printed digits are not quite a rotation
        R = u @ vt
        c2w = np.eye(4)
        c2w[:3, :3], c2w[:3, 3] = R.T, -R.T @ T
        K = intrinsics(fx * sx, fy * sy, (cx + 0.5) * sx, (cy + 0.5) * sy)
        cameras.append(Camera(K, c2w, width, height))
    extra = heldout_rig(max(0, n_cameras - len(cameras)), width, height, start_deg=10.0)
    return (cameras + extra)[:n_cameras]


def heldout_rig(n: int, width: int, height: int, start_deg: float = 63.0) -> list[Camera]:
    """`n` further cameras on a ring about the arena, where the real rig has none."""
    cameras = []
    for i in range(n):
        azimuth = np.radians(start_deg + 360.0 * i / n)
        elevation = np.radians(16.0 + 10.0 * (i % 2))
        direction = np.array(
            [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth)]
            + [np.sin(elevation)]
        )
        target = ARENA_CENTRE + np.array([0.0, 0.0, 18.0])
        c2w = look_at_c2w(target + 325.0 * direction, target)
        focal = 1620.0 * width / FULL_SIZE[0]
        cameras.append(Camera(intrinsics(focal, focal, width / 2, height / 2), c2w, width, height))
    return cameras
