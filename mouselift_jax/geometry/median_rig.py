"""One rig for many samples: the median camera of each slot, and how far the samples stray from it.

The multi-view network sees no pose, so it can only learn one rig. How far the training cameras
spread around that rig, in pixels at the animal's half-length, bounds how well its pictures can
agree with any cameras written beside them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.rays import angle_between
from mouselift_jax.geometry.rig import look_at_c2w

HALF_LENGTH = 0.4  # scene units: half a mouse in samples at the pretrained scale


@dataclasses.dataclass(frozen=True)
class Rig:
    """The median camera of each slot.

    Attributes:
        cameras: cameras [V], subject at the origin.
        spread_deg: [V], root mean square angle between a sample's and the median viewing direction.
        spread_px: [V], root mean square displacement of points at the half-length between the
            picture of a sample's camera and the median camera's, pixels.
        n_samples: samples the median was taken over.
    """

    cameras: Camera
    spread_deg: np.ndarray
    spread_px: np.ndarray
    n_samples: int


def median_rig(cameras: Camera, half_length: float = HALF_LENGTH) -> Rig:
    """The median rig of samples.

    Args:
        cameras: cameras [N,V] of N samples, slots in one order, subject at the origin.
        half_length: distance from the origin at which `spread_px` is measured, scene units.
    """
    if len(cameras.batch_shape) != 2:
        raise ShapeError("median_rig takes cameras [N,V]", found=list(cameras.batch_shape))
    K, c2w = np.asarray(cameras.K, np.float64), np.asarray(cameras.c2w, np.float64)
    n, v = cameras.batch_shape
    middle = np.tile(np.eye(4), (v, 1, 1))
    middle[:, :3, 3] = np.median(c2w[..., :3, 3], axis=0)
    # The rotation nearest the mean of the rotations (chordal mean).
    U, _, Vt = np.linalg.svd(c2w[..., :3, :3].mean(0))
    U[..., 2] *= np.linalg.det(U @ Vt)[:, None]
    middle[:, :3, :3] = U @ Vt
    rig = Camera(np.median(K, axis=0), middle, cameras.width, cameras.height)
    angles = angle_between(c2w[..., :3, 3], middle[None, :, :3, 3])
    shift = shifts(cameras, rig, half_length)
    return Rig(
        rig,
        np.sqrt((angles**2).mean(0)),
        np.sqrt((shift**2).mean((0, 2))),
        n,
    )


def shifts(cameras: Camera, others: Camera, half_length: float = HALF_LENGTH) -> np.ndarray:
    """Pixels [*B,6] between the pictures of six points about the origin in two sets of cameras.

    Args:
        cameras: [*B].
        others: cameras that broadcast with them, of pictures of the same size.
        half_length: of the points from the origin, scene units.
    """
    points = half_length * np.concatenate([np.eye(3), -np.eye(3)])
    return np.linalg.norm(cameras.project(points)[0] - others.project(points)[0], axis=-1)


def aimed_at_origin(cameras: Camera) -> Camera:
    """Each camera turned about its own centre until it looks straight at the origin."""
    centres = np.asarray(cameras.c2w, np.float64)[..., :3, 3]
    c2w = np.stack([look_at_c2w(c) for c in centres.reshape(-1, 3)])
    K = np.array(cameras.K, np.float64)
    K[..., 0, 2], K[..., 1, 2] = cameras.width / 2, cameras.height / 2
    c2w = c2w.reshape(*centres.shape[:-1], 4, 4)
    return Camera(K, c2w, cameras.width, cameras.height)


def slot_order(azimuths_deg: np.ndarray, front_deg: float = 270.0) -> np.ndarray:
    """Indices that put views into slot order: clockwise from the one nearest `front_deg`."""
    azimuths = np.asarray(azimuths_deg, np.float64) % 360.0
    front = np.abs((azimuths - front_deg + 180.0) % 360.0 - 180.0).argmin()
    turns = (azimuths[front] - azimuths) % 360.0
    turns[front] = 0.0  # not 359.99...
    return np.argsort(turns, kind="stable")
