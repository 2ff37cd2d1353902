"""The animal's track through a recording, and the moments where the recording was cut.

A cut shows in all cameras at once as a leap of the animal. The track comes from the calibration
file (DANNCE's com3d), from keypoints, or from the outlines seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.check.hypotheses import Geometry
from mouselift_jax.data.check.jumps import content_jumps
from mouselift_jax.data.check.observe import Observations
from mouselift_jax.data.check.search import Verdict
from mouselift_jax.data.check.words import describe
from mouselift_jax.data.findings import Finding
from mouselift_jax.data.readers import find_calibration, read_calibration
from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.errors import MouseLiftError
from mouselift_jax.geometry.camera import stack_cameras
from mouselift_jax.geometry.triangulate import triangulate

SURE = 0.5  # keypoint confidence that counts


def stored_track(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The animal's track that the calibration file brings (DANNCE's com3d), if any."""
    file = find_calibration(path)
    try:
        tracks = read_calibration(file).tracks if file is not None else {}
    except MouseLiftError:
        return None  # told by inspect_recording
    if "com3d" not in tracks:
        return None
    frames = np.arange(len(tracks["com3d"]))
    return frames, tracks["com3d"], np.zeros_like(frames)


def jump_findings(
    cameras: tuple[int, ...],
    frames: np.ndarray,
    track: np.ndarray,
    window: np.ndarray,
    measures: dict[str, Any],
    unit_mm: float = 1.0,
) -> list[Finding]:
    """Cuts in the animal's track; they are seen by all cameras at once."""
    jumps: list[int] = []
    for number in np.unique(window):
        rows = np.flatnonzero(window == number)
        jumps += [int(frames[rows[j]]) for j in content_jumps(track[rows], unit_mm)]
    measures["content_jumps"] = jumps
    return [describe("content_jump", cameras, {"frames": jumps})] if jumps else []


def animal_track(
    recording: Recording,
    seen: Observations,
    outlines: Geometry | None,
    masks_say: list[Verdict],
    keypoints_say: Verdict | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A point on the animal over time: frame numbers, positions [F,3], run of frames of each.

    The faults found are corrected first: a point triangulated by exchanged cameras jumps about.
    """
    frames, window = seen.frames, seen.window
    if recording.keypoints is not None and (outlines is None or len(frames) < recording.n_frames):
        # Keypoints cover all frames; the pictures of long recordings were only sampled.
        sure = np.nanmean(recording.keypoints[..., 2], axis=(0, 1))
        point = recording.keypoints[:, :, int(np.argmax(sure)), None]
        xy = np.where(point[..., 2:] > SURE, point[..., :2], np.nan)
        frames, window = np.arange(recording.n_frames), np.zeros(recording.n_frames, int)
        geometry = Geometry("keypoints", xy, recording.cameras, window)
        geometry = geometry if keypoints_say is None else keypoints_say.correct(geometry)
    elif outlines is None:
        return frames, np.full((len(frames), 3), np.nan), window
    else:
        geometry = masks_say[-1].corrected
    centre = 0.5 * (np.fmin.reduce(geometry.xy, 2) + np.fmax.reduce(geometry.xy, 2))
    # An outline's middle is not one point in space: it would leap where a camera comes or goes.
    always = np.isfinite(centre).all((1, 2))
    if geometry.kind == "outlines" and always.sum() >= 2:
        centre[~always] = np.nan
    return frames, triangulate(centre, stack_cameras(geometry.cameras, any_size=True)), window
