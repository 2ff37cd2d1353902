"""Which Gaussians of a finished set are kept.

Filters return boolean masks [N], so that they compose and can be counted; `apply` selects. They run
on concrete numpy arrays, after the network, never inside jit.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from mouselift_jax.errors import ConfigError
from mouselift_jax.splats.gaussians import SOLID_LOGIT, Gaussians

log = logging.getLogger("mouselift_jax")


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Thresholds; None switches a filter off.

    Attributes:
        min_opacity: keep opacity above this, in [0,1].
        max_scale: drop splats whose largest standard deviation is at least this, scene units.
        max_scale_keeps_above_floor: QUIRK of the head recipe: `max_scale` spares all z > 0.
        floater_corner: drop |x| > f, |y| > f and z < -f, scene units: the lower corners in which
            the head model leaves floaters.
        crop_xy: drop |x| or |y| strictly outside, scene units.
        crop_z: drop |z| strictly outside, scene units.
    """

    min_opacity: float | None = 0.04
    max_scale: float | None = None
    max_scale_keeps_above_floor: bool = False
    floater_corner: float | None = None
    crop_xy: float | None = None
    crop_z: float | None = None


# The recipe that the released head checkpoints are exported with.
HEAD = FilterConfig(0.04, 0.1, True, 0.6, 0.91, 1.0)
# A mouse stands on the floor at z < 0 and may leave the head's crop box: only what is invisible or
# larger than the animal goes.
MOUSE = FilterConfig(min_opacity=0.04, max_scale=0.5)
NONE = FilterConfig(min_opacity=None)
RECIPES = {"head": HEAD, "mouse": MOUSE, "none": NONE}


def drawable(gaussians: Gaussians) -> np.ndarray:
    """Which Gaussians [N] hold numbers throughout.

    An opacity logit of +infinity counts as one: such a splat is solid. One of -infinity is
    invisible, and left out like those with NaN.
    """
    solid = np.isposinf(np.asarray(gaussians.opacity_logits))
    fields = (gaussians.means, gaussians.quats, gaussians.log_scales, gaussians.sh)
    arrays = [np.asarray(x).reshape(len(solid), np.prod(x.shape[1:])) for x in fields]
    finite = np.isfinite(np.asarray(gaussians.opacity_logits)) | solid
    return np.logical_and.reduce([finite, *(np.isfinite(a).all(1) for a in arrays)])


def only_drawable(gaussians: Gaussians, where: object) -> tuple[Gaussians, int]:
    """What a file or viewer can hold: the `drawable` ones, solid ones with a finite logit.

    Args:
        gaussians: one set.
        where: what is written, for the warning.

    Returns:
        The Gaussians, as numpy arrays, and how many were left out.
    """
    keep = drawable(gaussians)
    n = int((~keep).sum())
    if n:
        log.warning("%s: %d of %d Gaussians hold no numbers: left out", where, n, len(keep))
    arrays = [np.asarray(getattr(gaussians, f.name))[keep] for f in dataclasses.fields(gaussians)]
    kept = Gaussians(*arrays)
    infinite = np.isposinf(kept.opacity_logits)
    logits = np.where(infinite, SOLID_LOGIT, kept.opacity_logits).astype(kept.opacity_logits.dtype)
    return dataclasses.replace(kept, opacity_logits=logits), n


def keep_mask(gaussians: Gaussians, config: FilterConfig) -> np.ndarray:
    """Which Gaussians [N] survive all the filters of `config`; non-finite ones never do."""
    if np.ndim(gaussians.opacity_logits) != 1:
        raise ConfigError(
            "filters take one set of Gaussians",
            found=f"batch {gaussians.opacity_logits.shape}",
            fix="index the batch first: gaussians[0]",
        )
    means, _, scales, opacities, _ = (np.asarray(x) for x in gaussians.activate())
    keep = drawable(gaussians)
    if config.min_opacity is not None:
        keep &= opacities > config.min_opacity
    if config.max_scale is not None:
        small = scales.max(-1) < config.max_scale
        keep &= small | (means[:, 2] > 0) if config.max_scale_keeps_above_floor else small
    if config.floater_corner is not None:
        f = config.floater_corner
        keep &= ~((np.abs(means[:, 0]) > f) & (np.abs(means[:, 1]) > f) & (means[:, 2] < -f))
    if config.crop_xy is not None:
        keep &= (np.abs(means[:, :2]) <= config.crop_xy).all(-1)
    if config.crop_z is not None:
        keep &= np.abs(means[:, 2]) <= config.crop_z
    return keep


def apply_filters(gaussians: Gaussians, config: FilterConfig) -> Gaussians:
    """The Gaussians that survive `config`, in their order, as numpy arrays."""
    keep = keep_mask(gaussians, config)
    arrays = (np.asarray(getattr(gaussians, f.name))[keep] for f in dataclasses.fields(gaussians))
    return Gaussians(*arrays)
