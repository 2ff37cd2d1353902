"""What undoes each way a camera's calibration is commonly given wrong."""

from __future__ import annotations

import dataclasses

import numpy as np

from mouselift_jax.geometry.camera import Camera


def with_extrinsics(camera: Camera, R: np.ndarray, T: np.ndarray) -> Camera:
    """The camera with another world-to-camera rotation and translation."""
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = R.T, -R.T @ T
    return dataclasses.replace(camera, c2w=c2w)


def _extrinsics(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    w2c = np.asarray(camera.w2c, np.float64)
    return w2c[:3, :3], w2c[:3, 3]


def transpose_rotation(camera: Camera) -> Camera:
    """R given transposed, T right."""
    R, T = _extrinsics(camera)
    return with_extrinsics(camera, R.T, T)


def invert_extrinsics(camera: Camera) -> Camera:
    """Camera-to-world given where world-to-camera is meant."""
    R, T = _extrinsics(camera)
    return with_extrinsics(camera, R.T, -R.T @ T)


def centre_as_translation(camera: Camera) -> Camera:
    """The camera's centre given in place of T."""
    R, T = _extrinsics(camera)
    return with_extrinsics(camera, R, -R @ T)


def opengl_axes(camera: Camera) -> Camera:
    """OpenGL camera axes given in place of OpenCV's."""
    R, T = _extrinsics(camera)
    flip = np.diag([1.0, -1.0, -1.0])
    return with_extrinsics(camera, flip @ R, flip @ T)


def scale_translation(camera: Camera, factor: float) -> Camera:
    """T divided by `factor`."""
    R, T = _extrinsics(camera)
    return with_extrinsics(camera, R, T / factor)


def scale_focal(camera: Camera, factor: float, *, whole: bool = False) -> Camera:
    """Focal lengths (with `whole` also cx, cy) divided by `factor`."""
    K = np.array(camera.K, np.float64)
    K[0, :2] /= factor
    K[1, 1] /= factor
    if whole:
        K[:2, 2] = (K[:2, 2] - 0.5) / factor + 0.5
    return dataclasses.replace(camera, K=K)
