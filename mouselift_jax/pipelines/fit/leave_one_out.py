"""How far the surface moves when one camera is taken away: what it owes to that camera alone."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from mouselift_jax.errors import ShapeError
from mouselift_jax.pipelines.fit.optimise import fit
from mouselift_jax.pipelines.fit.settings import FitSettings
from mouselift_jax.pipelines.fit.start import UnfittableError, Views, start
from mouselift_jax.splats.gaussians import Gaussians, quat_to_rotation


def shifts(
    gaussians: Gaussians, views: Views, settings: FitSettings, *, room: int = 0
) -> tuple[np.ndarray, dict[int, str], int]:
    """Distance of each Gaussian from the surface that the others of the views give.

    The views are fitted again, each from the hull of what is left, without one after the other.

    Args:
        gaussians: of a fit of all views [N].
        views: three or more.
        settings: of that fit.
        room: least number of places for Gaussians, see `start`.

    Returns:
        The largest distance over the views that were taken away [N], scene units; the places of
        views without which nothing could be fitted, and why; the room that was needed.

    Raises:
        ShapeError: fewer than three views.
        UnfittableError: no view can be taken away.
    """
    n = len(views.mask)
    if n < 3:
        raise ShapeError("to leave a camera out takes three or more", found=n)
    found, failed = [], {}
    for v in range(n):
        try:
            less = views.without(v)
            begun = start(less, settings, room=room)
            room = len(begun.alive)
            found.append(_distance(gaussians, fit(less, begun, settings).gaussians))
        except UnfittableError as error:
            failed[v] = str(error)
    if not found:
        raise UnfittableError(
            "no camera can be left out", found=failed[0], fix="--config.leave_one_out=False"
        )
    return np.max(found, 0).astype(np.float32), failed, room


def _distance(gaussians: Gaussians, surface: Gaussians) -> np.ndarray:
    """From each Gaussian to the plane of the nearest one of a surface [N], never too much."""
    nearest = cKDTree(surface.means).query(np.asarray(gaussians.means))[1]
    normals = np.asarray(quat_to_rotation(surface.quats))[:, :, 2]
    way = np.asarray(gaussians.means) - np.asarray(surface.means)[nearest]
    return np.abs((way * normals[nearest]).sum(-1))
