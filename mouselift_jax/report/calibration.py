"""The report of `calibrate`: every camera's change with its error, and residuals as arrows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mouselift_jax.data.calibration.calibrate import UNCHANGED, Outcome
from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.geometry.bundle import Rig, located, project
from mouselift_jax.report.html import Picture, Section, Table, Text, write_report


def write(
    folder: Path,
    recording: Recording,
    outcome: Outcome,
    record: dict[str, Any],
    free: tuple[str, ...],
) -> None:
    """Write report.html into a folder.

    Args:
        folder: of the run.
        recording: the cameras' pictures, numbers and sizes.
        outcome: what was found.
        record: the content of calibration.json.
        free: what was allowed to change.
    """
    rows = []
    for number, c in record["cameras"].items():
        e = c["standard_error"]
        focal = c["focal_px"]
        rows.append(
            [number, f"{c['turned_deg']:.3f} ± {np.linalg.norm(e['turn_deg']):.3f}",
             f"{c['moved_mm']:.2f} ± {np.linalg.norm(e['move_mm']):.2f}",
             f"{focal[1] - focal[0]:+.2f} ± {e['focal_px']:.2f}",
             f"{c['late_frames']:+.2f} ± {e['time']:.2f}",
             _number(c["unused_before_px"]), _number(c["unused_after_px"]),
             ", ".join(c["as_given"]) or "-"]
        )  # fmt: skip
    head = ["camera", "turned, deg", "moved, mm", "focal length, px", "late, frames",
            "before, px", "after, px", "as given"]  # fmt: skip
    told = record["unused_frames"]
    verdict = (
        f"{outcome.verdict}: on {len(told['frames'])} frames that were not used, sightings are "
        f"{_number(told['before_px'])} px from where the other cameras expect them before, and "
        f"{_number(told['after_px'])} px after"
    )
    if outcome.verdict in UNCHANGED:
        verdict += ": the calibration is returned unchanged"
    if record["scale_from_length"] is not None:
        scale, error = record["scale_from_length"]
        verdict += f"; the known length makes the rig {scale:.4f} ± {error:.4f} times as large"
    if record["floor"] is not None:
        error = record["floor"]["height_error_mm"]
        verdict += f"; the world stands on the floor, z = 0 ± {error:.2f} mm, z up"
    pictures = []
    for title, rig in (("before", outcome.given), ("after", outcome.rig)):
        for v, number in enumerate(recording.camera_ids):
            picture = arrows(recording, outcome, rig, v)
            pictures.append(Picture(picture, f"camera {number}, {title}; arrows 10 times as long"))
    write_report(
        folder,
        title="Calibration",
        intro=verdict + ".",
        sections=[
            Section("Cameras", [
                Table(head, rows, caption="Changes with standard errors; distances from what the "
                      "other cameras expect, median on unused frames."),
                Text("Free: " + ", ".join(free)),
            ]),
            Section("Residuals", pictures),
        ],
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def arrows(recording: Recording, outcome: Outcome, rig: Rig, v: int) -> np.ndarray:
    """Where sightings of camera v are, and ten times the way to where all cameras expect them."""
    camera, s = recording.cameras[v], outcome.sightings
    points = located(rig, s)
    pixels = project(rig, points, s.velocity)[0][v]
    canvas = np.full((camera.height, camera.width, 3), 255, np.uint8)
    good = (s.seen[v] > 0) & np.isfinite(pixels).all(-1)
    for start, end in zip(s.xy[v, good], pixels[good], strict=True):
        tip = np.clip(start + 10 * (end - start), -4000, 8000)
        a, b = (tuple(int(x) for x in np.round(p)) for p in (start, tip))
        cv2.arrowedLine(canvas, a, b, (0, 114, 178), 2, cv2.LINE_AA, tipLength=0.2)
        cv2.circle(canvas, a, 3, (213, 94, 0), -1, cv2.LINE_AA)
    return cv2.resize(canvas, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
