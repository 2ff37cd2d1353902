"""Do silhouettes of a few instants fit the calibration? `prepare` asks, at little cost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mouselift_jax.data.check.explain import OUTLINE_FLOOR, floor_of
from mouselift_jax.data.check.hypotheses import Geometry, pair_costs
from mouselift_jax.data.check.search import explain
from mouselift_jax.data.recordings.recording import Recording


def misfit_px(recording: Recording, outlines: Mapping[int, np.ndarray]) -> float:
    """By how many pixels silhouettes miss each other; 0 where that is what honest ones do.

    Hulls of small animals cover their masks although all cameras are a pixel off: tangents see it.

    Args:
        recording: whose cameras.
        outlines: convex outlines [V,P,2] of undistorted masks, by frame number.
    """
    if len(outlines) < 2:
        return 0.0
    frames = np.array(sorted(outlines))
    xy = np.stack([outlines[f] for f in frames.tolist()], axis=1)
    geometry = Geometry("outlines", xy, recording.cameras, np.arange(len(frames)), frames)
    pairs, floor = pair_costs(geometry), floor_of(geometry, OUTLINE_FLOOR)
    if not np.isfinite(pairs).any():
        return 0.0
    if np.nanmax(pairs) <= floor and explain(geometry, floor=floor).best is None:
        return 0.0
    return float(np.nanmean(pairs))
