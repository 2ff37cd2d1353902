"""Which view is the reference: the order of the slots of a sample, and the poses in that order."""

from __future__ import annotations

from typing import Any

import numpy as np

from mouselift_jax.errors import LayoutError
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.rig import azimuth_elevation
from mouselift_jax.pipelines.views import camera_poses
from mouselift_jax.stages.multiview.settings import MultiviewSettings

SALT_REFERENCE = 0xAE5


def order_from(reference: int, azimuths_deg: np.ndarray | None, n_views: int) -> np.ndarray:
    """Slots [V] in the order clockwise from a reference, by azimuth where it is known."""
    if azimuths_deg is None:
        return (reference + np.arange(n_views)) % n_views
    turns = (azimuths_deg[reference] - azimuths_deg) % 360.0
    turns[reference] = 0.0
    return np.argsort(turns, kind="stable")


def azimuths_of(c2w: np.ndarray | None) -> np.ndarray | None:
    """Azimuths [V] in degrees of cameras [V,4,4]."""
    return None if c2w is None else np.array(azimuth_elevation(c2w)[0], np.float64)


def orders(
    config: MultiviewSettings, c2w: np.ndarray | None, n: int, step: int, rows: tuple[int, int]
) -> np.ndarray:
    """The slot order [n,V] of each sample of this process's part of a batch."""
    v = config.model.n_views
    if config.reference == "fixed":
        return np.tile(np.arange(v), (n, 1))
    rng = np.random.default_rng((config.seed, step, SALT_REFERENCE))
    chosen = rng.integers(0, v, n * rows[1])[rows[0] * n : (rows[0] + 1) * n]
    return np.stack(
        [
            order_from(int(r), azimuths_of(None if c2w is None else c2w[i]), v)
            for i, r in enumerate(chosen)
        ]
    )


def poses_of(config: MultiviewSettings, K: Any, c2w: Any, order: np.ndarray) -> np.ndarray:
    """Poses [n,V,4] of the views in their order."""
    if K is None:
        raise LayoutError(
            "a posed network needs samples with cameras",
            where=f"config.samples={config.samples}",
            fix="make the samples with configs/prepare.py, or leave the variant posed out",
        )
    take = order[..., None, None]
    camera = Camera(
        np.take_along_axis(K, take, 1),
        np.take_along_axis(c2w, take, 1),
        config.data.size,
        config.data.size,
    )
    return camera_poses(camera)
