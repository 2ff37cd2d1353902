"""Gaussians of any origin as a start of the same optimisation: a feed-forward guess made sharp."""

from __future__ import annotations

import dataclasses

import numpy as np

from mouselift_jax.pipelines import voxels
from mouselift_jax.pipelines.fit.optimise import Fit, fit
from mouselift_jax.pipelines.fit.settings import FitSettings
from mouselift_jax.pipelines.fit.start import EmptyHullError, Start, Views
from mouselift_jax.splats.gaussians import Gaussians, quat_to_rotation, rotation_to_quat

VISIBLE = -3.0  # opacity logit below which a Gaussian is left out
COLOUR_RATE = 2e-2  # a guess is further off than what cameras tell of a hull
SMOOTH, OPAQUE = (
    0.2,
    0.1,
)  # weights that refining was judged with; a fit from a hull has larger ones
COARSE_SHARE = 1 / 3  # of the steps, in pictures of half the size


def refined(gaussians: Gaussians, views: Views, settings: FitSettings, steps: int) -> Fit:
    """Gaussians moved, turned, sized and coloured until they look like the views.

    Args:
        gaussians: [N] in the cameras' world, of any SH degree; what depends on the direction is
            lost, and so are invisible ones.
        views: see `cut_out`.
        settings: as of `fit`; steps, `colour_rate`, `smooth` and `opaque` are not read.
        steps: of the optimisation.

    Raises:
        EmptyHullError: no Gaussian is visible.
    """
    coarse = round(steps * COARSE_SHARE)
    settings = dataclasses.replace(
        settings, next_coarse_steps=coarse, next_fine_steps=steps - coarse,
        colour_rate=COLOUR_RATE, smooth=SMOOTH, opaque=OPAQUE,
    )  # fmt: skip
    return fit(views, start_from(gaussians, views, settings), settings, is_next=True)


def start_from(gaussians: Gaussians, views: Views, settings: FitSettings) -> Start:
    """Visible Gaussians, thin axis last, padded to a round number.

    A cell is, as in `start`, the animal's longest side over `settings.cells`.
    """
    kept = np.asarray(gaussians.opacity_logits) > VISIBLE
    if not kept.any():
        raise EmptyHullError(
            "no Gaussian is visible", expected="some to refine",
            fix="weights that fit these pictures, or --config.refine.steps=0",
        )  # fmt: skip
    g = gaussians[kept]
    order = np.argsort(-np.asarray(g.log_scales), axis=-1)
    turn = np.take_along_axis(np.asarray(quat_to_rotation(g.activate().quats)), order[:, None], -1)
    turn[np.linalg.det(turn) < 0, :, 0] *= -1  # an ellipsoid looks the same mirrored
    low, high = voxels.bounds(views.mask, views.cameras, views.unknown)
    n = int(kept.sum())
    room = -(-n // settings.bucket) * settings.bucket

    def padded(values: np.ndarray, fill: object = 0.0) -> np.ndarray:
        out = np.empty((room, *np.shape(values)[1:]), np.float32)
        out[:n], out[n:] = values, fill
        return out

    scales = np.take_along_axis(np.asarray(g.log_scales), order, -1)
    start = Gaussians(
        means=padded(g.means),
        quats=padded(rotation_to_quat(turn), (1, 0, 0, 0)),
        log_scales=padded(scales, float(scales.mean())),
        opacity_logits=padded(g.opacity_logits, -30.0),
        sh=padded(np.asarray(g.sh)[:, :1]),
    )
    cell = float((high - low).max()) / settings.cells
    # No tints: the places of a guess are too wrong to compare the colours that cameras see there.
    tints = np.ones((len(views.mask), 3), np.float32), np.zeros((len(views.mask), 3), np.float32)
    return Start(start, np.arange(room) < n, np.full(room, np.nan, np.float32), cell, *tints)
