"""What pictures and masks say on their own, without any geometry."""

from __future__ import annotations

import numpy as np

from mouselift_jax.data.check.observe import Observations
from mouselift_jax.data.check.time import repeated
from mouselift_jax.data.check.words import describe
from mouselift_jax.data.findings import Finding
from mouselift_jax.data.recordings.mask_levels import judge_masks
from mouselift_jax.data.recordings.recording import Recording

_BLACK = 10  # grey level of a margin; undistortion leaves curved ones narrower than _MARGIN
_MARGIN = 0.04  # share of the side
_SURE, _ON_MASKS = 0.25, 0.5  # confidence that counts; share of points that lie on the masks
_FLICKER = 0.15  # change of a mask's area from one frame to the next and back


def picture_findings(
    recording: Recording, seen: Observations, found: list[Finding]
) -> list[Finding]:
    """Cut margins, repeated pictures, masks that are no silhouettes, empty or flickering; points.

    Args:
        recording: what was looked at.
        seen: what was seen.
        found: findings so far: a margin that a crop explains is not told again.
    """
    out = _margin_findings(recording, seen, found)
    out += _repeat_findings(recording, seen)
    out += judge_masks(seen.facts, recording.camera_ids)
    out += _point_findings(recording, seen)
    return out + _mask_findings(recording, seen)


def _margin_findings(
    recording: Recording, seen: Observations, found: list[Finding]
) -> list[Finding]:
    """Straight black margins that only few cameras have: cut out and filled up again."""
    margins = []
    for picture in seen.brightest:
        lit = picture > _BLACK
        rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
        height, width = lit.shape
        whole = len(rows) and len(columns)
        sides = (columns[0], width - 1 - columns[-1], rows[0], height - 1 - rows[-1])
        margins.append(np.array(sides) / [width, width, height, height] if whole else np.zeros(4))
    wide = [v for v, m in enumerate(margins) if m.max() > _MARGIN]
    known = {c for f in found if f.code == "video_cropped" for c in f.cameras}
    out = []
    if len(wide) <= len(margins) // 2:  # all alike: that is how the rig's pictures are
        for v in wide:
            number = recording.camera_ids[v]
            if number not in known:
                sides = dict(zip(("left", "right", "top", "bottom"), margins[v], strict=True))
                out.append(describe("video_cropped", (number,), {"black_margin": sides}))
    return out


def _repeat_findings(recording: Recording, seen: Observations) -> list[Finding]:
    """Pictures that repeat the one before them, as recorders write for frames they have lost."""
    found = []
    for r in repeated(seen.changes):
        frames = seen.frames[r.rows]
        evidence = {"repeats": len(r.rows), "share": r.share, "at": int(frames[0]),
                    "frames": frames[:50]}  # fmt: skip
        found.append(describe("frames_doubled", (recording.camera_ids[r.view],), evidence))
    return found


def _point_findings(recording: Recording, seen: Observations) -> list[Finding]:
    """Points in space that fall beside the masks: of another calibration, or of another time."""
    if not recording.projected or recording.keypoints is None or not seen.has_masks:
        return []
    share = []
    for v, masks in enumerate(seen.masks):
        points = recording.keypoints[v, seen.frames[seen.mask_rows]]
        height, width = masks.shape[1:]
        inside = (points[..., :2] >= 0) & (points[..., :2] < (width, height))
        row, point = np.nonzero(inside.all(-1) & (points[..., 2] > _SURE))
        if len(row) and len(masks) == len(points):
            x, y = points[row, point, :2].astype(int).T
            share.append(float(masks[row, y, x].mean()))
    if not share or np.median(share) >= _ON_MASKS:
        return []
    evidence = {"on_masks": float(np.median(share)), "expected": _ON_MASKS}
    return [describe("keypoints_inconsistent", recording.camera_ids, evidence)]


def _mask_findings(recording: Recording, seen: Observations) -> list[Finding]:
    if not seen.has_masks:
        return [describe("masks_absent", recording.camera_ids, {})]
    found = []
    for v, number in enumerate(recording.camera_ids):
        areas = seen.areas[v]
        empty = seen.frames[areas < 16]
        if len(empty):
            share = len(empty) / len(areas)
            evidence = {"frames": empty[:50], "count": len(empty), "share": share}
            found.append(describe("mask_empty", (number,), evidence))
            if share > 0.5:
                found[-1].severity = "error"
        # A flicker is a mask whose area differs from the frames on both sides.
        middle = 0.5 * (areas[:-2] + areas[2:])
        with np.errstate(invalid="ignore", divide="ignore"):
            wobble = np.abs(areas[1:-1] - middle) / middle - np.abs(areas[2:] - areas[:-2]) / middle
        flickers = seen.frames[1:-1][(wobble > _FLICKER) & (middle > 16) & (areas[1:-1] >= 16)]
        if len(flickers):
            evidence = {"frames": flickers[:50], "count": len(flickers)}
            found.append(describe("mask_flicker", (number,), evidence))
    return found
