"""Content jumps: moments where a recording was cut and the animal is suddenly elsewhere."""

from __future__ import annotations

import numpy as np

_FIT = 5  # frames on each side that the motion is extrapolated from
_NEAR = 3  # steps on each side that a jump must stand out from
# Chosen on the published track of the rig's recording (18,000 frames, cut at 5900, 11800, 17700):
# its cuts score at least (3.6, 4.9), every other frame less than 3 in the one or 4 in the other.
_ISOLATION, _SURPRISE = 3.0, 4.0
_RESTING_MM, _HOP_MM = 0.6, 20.0  # steps of an animal that rests; what its masks may change by
_STEP_FLOOR = 0.3  # of the median step: how still an animal must be for a small hop to count


def content_jumps(track: np.ndarray, unit_mm: float = 1.0) -> np.ndarray:
    """Frames at which a track jumps: the step into them is no continuation of the motion.

    Two things must come together: the step is several times larger than all steps around it
    (a fast animal accelerates and brakes over several frames), and the position extrapolated from
    before and from after disagree by much more than they do nearby.

    Args:
        track: positions [F,D]; NaN where unknown.
        unit_mm: millimetres per unit. An animal that rests hops by millimetres when its tail joins
            its mask; that is no cut.

    Returns:
        Frame numbers, ascending; frame f means the cut lies between f - 1 and f.
    """
    track = np.asarray(track, np.float64)
    if len(track) < 2 * _FIT + 1:
        return np.zeros(0, int)
    step = np.linalg.norm(np.diff(track, axis=0), axis=1)  # step[i] leads into frame i + 1
    typical = np.nanmedian(step) if np.isfinite(step).any() else 0.0
    around = np.pad(step, _NEAR, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(around, 2 * _NEAR + 1)
    others = np.delete(windows, _NEAR, axis=1)
    with np.errstate(all="ignore"):
        neighbour = np.where(np.isfinite(others), others, 0.0).max(1)
        isolation = step / (neighbour + _STEP_FLOOR * typical + 1e-9)
    gap = _extrapolation_gap(track)
    surprise = gap / (_running_median(gap) + _STEP_FLOOR * np.nanmedian(gap) + 1e-9)
    jump = (isolation > _ISOLATION) & (surprise[1:] > _SURPRISE)
    jump &= (neighbour * unit_mm > _RESTING_MM) | (step * unit_mm > _HOP_MM)
    return np.flatnonzero(jump) + 1


def _extrapolation_gap(track: np.ndarray) -> np.ndarray:
    """Disagreement [F] of the line through the frames before f and that through f and after."""
    n, k = len(track), _FIT
    fit = np.stack([np.ones(k), np.arange(k) - (k - 1.0)], 1)
    weights = np.linalg.pinv(fit).T @ np.array([1.0, 0.5])  # half a frame beyond the last
    windows = np.lib.stride_tricks.sliding_window_view(track, k, axis=0)  # [F-k+1,D,k]
    before = windows @ weights
    after = windows @ weights[::-1]
    gap = np.full(n, np.nan)
    gap[k : n - k + 1] = np.linalg.norm(before[: n - 2 * k + 1] - after[k:], axis=1)
    return np.where(np.isfinite(gap), gap, 0.0)


def _running_median(values: np.ndarray, width: int = 61) -> np.ndarray:
    from scipy.ndimage import median_filter

    return median_filter(values, size=min(width, len(values)), mode="nearest")
