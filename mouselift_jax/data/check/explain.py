"""What is wrong with masks, and with keypoints: single faults, a chain of them, or all cameras."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mouselift_jax.data.check.hypotheses import Geometry, pair_costs
from mouselift_jax.data.check.mend import Mend, mend
from mouselift_jax.data.check.search import Verdict, explain

# Misfit that honest data have, in pixels of a picture 1152 wide: silhouettes of this rig measured
# 0.3, keypoints with 1.5 px of noise 1.4. Narrower pictures still have the pixel grid's own error.
OUTLINE_FLOOR, KEYPOINT_FLOOR = (1.0, 0.8), (4.0, 1.5)
_MAX_FAULTS = 3


def floor_of(geometry: Geometry, floor: tuple[float, float]) -> float:
    """The honest misfit in pixels of these pictures."""
    width = np.median([c.width for c in geometry.cameras])
    return float(max(floor[0] * width / 1152.0, floor[1]))


def _explain(geometry: Geometry, floor: tuple[float, float], **more: Any) -> Verdict:
    return explain(geometry, floor=floor_of(geometry, floor), **more)


def explain_masks(
    outlines: Geometry | None, keypoints: Geometry | None
) -> tuple[list[Verdict], Mend | None]:
    """One verdict per fault of the masks' geometry, the last without a fault found.

    Where one fault does not explain it and mending all cameras does, no chain of faults is named.
    """
    if outlines is None:
        return [], None
    families: tuple[str, ...] = ("pixels", "calibration")
    if keypoints is not None:
        pairs = pair_costs(keypoints)
        if np.isfinite(pairs).any() and np.nanmax(pairs) <= floor_of(keypoints, KEYPOINT_FLOOR):
            families = ("pixels",)  # keypoints agree with the calibration: it is not at fault
    verdicts = [_explain(outlines, OUTLINE_FLOOR, families=families)]
    mended = mend(outlines, verdicts[0], floor_of(outlines, OUTLINE_FLOOR), keypoints)
    if mended is not None:
        return [_without_cause(verdicts[0], outlines)], mended
    while verdicts[-1].best is not None and len(verdicts) <= _MAX_FAULTS:
        verdicts.append(_explain(verdicts[-1].corrected, OUTLINE_FLOOR, families=families))
    return verdicts, None


def explain_keypoints(
    keypoints: Geometry, mended: Mend | None, *, alone: bool
) -> tuple[Verdict, Mend | None]:
    """What is wrong with keypoints, once the cameras are mended; alone they mend them as well."""
    if mended is not None:
        verdict = _explain(mended.of(keypoints), KEYPOINT_FLOOR)
        return dataclasses.replace(verdict, pairs=pair_costs(keypoints)), mended
    verdict = _explain(keypoints, KEYPOINT_FLOOR)
    if alone:
        mended = mend(keypoints, verdict, floor_of(keypoints, KEYPOINT_FLOOR))
    if mended is not None:
        verdict = _without_cause(verdict, keypoints)
    return verdict, mended


def _without_cause(verdict: Verdict, geometry: Geometry) -> Verdict:
    return dataclasses.replace(verdict, after=verdict.before, best=None, corrected=geometry)
