"""Gaussians of one instant from the views of it: no weights, no training. Pure functions of arrays.

    views = cut_out(images, masks, cameras, settings)      any sizes, two or more
    first = fit(views, start(views, settings), settings)
    later = fit(next_views, carried(first.start, next_views), settings, is_next=True)
    first.gaussians                                        in the cameras' world
    refined(gaussians, views, settings, steps)             a network's guess made sharp
    shifts(first.gaussians, views, settings)               how far it moves without a camera

One compiled program serves all frames whose padded sizes agree: `settings.bucket` and
`settings.side_bucket` see to it that they do.
"""

from mouselift_jax.pipelines.fit.leave_one_out import shifts
from mouselift_jax.pipelines.fit.optimise import Fit, fit
from mouselift_jax.pipelines.fit.refine import refined
from mouselift_jax.pipelines.fit.settings import FitSettings
from mouselift_jax.pipelines.fit.start import (
    EmptyHullError,
    Start,
    UnfittableError,
    Views,
    carried,
    cut_out,
    for_cameras,
    start,
)

__all__ = [
    "EmptyHullError", "Fit", "FitSettings", "Start", "UnfittableError", "Views", "carried",
    "cut_out", "fit", "for_cameras", "refined", "shifts", "start",
]  # fmt: skip
