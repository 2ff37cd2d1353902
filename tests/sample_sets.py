"""Small sample sets for tests: coloured ellipsoids, ray-cast exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mouselift_jax.data.samples.writer import SampleWriter
from mouselift_jax.geometry.rays import camera_rays
from mouselift_jax.geometry.rig import rig_from_angles


def ellipsoid_picture(camera, axes, size: int) -> np.ndarray:
    """RGBA uint8 [V,H,W,4] of an ellipsoid at the origin, coloured by where a ray meets it."""
    ray_o, ray_d = (np.asarray(x) for x in camera_rays(camera.K, camera.c2w, size, size))
    o, d = ray_o / axes, ray_d / axes
    a, b, c = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 1
    inside = b * b - a * c
    t = (-b - np.sqrt(np.maximum(inside, 0))) / a
    point = (ray_o + t[..., None] * ray_d) / axes
    rgb = np.clip(0.5 + 0.4 * point, 0, 1) * (inside > 0)[..., None]
    rgba = np.concatenate([rgb, (inside > 0)[..., None]], -1)
    return np.round(rgba * 255).astype(np.uint8)


def write_samples(
    path: Path,
    n: int = 6,
    size: int = 32,
    n_val: int = 2,
    views: int = 6,
    first: float = 270.0,
) -> Path:
    """A set of `n` samples seen by `views` cameras; the last `n_val` are for validation.

    Slot 0 stands at azimuth `first`, the others follow clockwise in equal steps.
    """
    azimuths = first - 360.0 / views * np.arange(views)
    rig = rig_from_angles(azimuths, 15.0, 2.7, 1.1 * size, size)
    writer = SampleWriter(path, {"source": {"kind": "test"}, "parameters": {"size": size}})
    rng = np.random.default_rng(0)
    for i in range(n):
        axes = rng.uniform(0.4, 0.9, 3)
        pictures = ellipsoid_picture(rig, axes, size)
        writer.write(i, list(pictures), rig, range(views), frame=i)
    writer.finish(lambda rows: ["train"] * (n - n_val) + ["val"] * n_val)
    return path
