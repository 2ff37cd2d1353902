"""Points of a film in space as anipose writes them: the CSV that movement and keypoint-MoSeq load.

For every point name_x, name_y, name_z, name_error, name_ncams, name_score; then M_00 to M_22 and
center_0 to center_2 (anipose's rotation into the body: none here) and fnum.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from mouselift_jax.errors import LayoutError
from mouselift_jax.exports.source import SPINE, FilmSource
from mouselift_jax.files import write_text_atomic

PARTS = ("x", "y", "z", "error", "ncams", "score")


def save_pose_csv(path: str | Path, film: FilmSource) -> tuple[int, int, float | None]:
    """Write keypoints and spine of a film.

    Readers take row after row as frame after frame, whatever fnum says; so frames that are missing
    between others are written as empty rows.

    Returns:
        Numbers of points and rows, and rows per second (None without a clock): what to tell readers
        as the frame rate.

    Raises:
        LayoutError: nothing was measured, so there are no points.
    """
    spine, points = film.spine(), film.keypoints()
    if spine is None and points is None:
        raise LayoutError(
            "there are no points to write",
            where=film.run,
            expected="keypoints of the recording, or motion.json beside the splats",
            fix="run the fit or infer again with --config.sequence=True: it only measures",
        )
    columns: dict[str, np.ndarray] = {}
    cameras = film.recording.n_views if film.recording is not None else 0
    if spine is not None:
        for m, name in enumerate(SPINE):
            there = np.isfinite(spine[:, m]).all(-1)
            blank = np.full(len(spine), np.nan)
            parts = (*spine[:, m].T, blank, np.where(there, cameras, 0), there.astype(float))
            columns |= {f"spine.{name}_{p}": v for p, v in zip(PARTS, parts, strict=True)}
    if points is not None:
        for m, name in enumerate(points.names):
            parts = (*points.xyz[:, m].T, points.error_px[:, m], points.cameras[:, m],
                     np.nan_to_num(points.confidence[:, m]))  # fmt: skip
            columns |= {f"{name}_{p}": v for p, v in zip(PARTS, parts, strict=True)}
    numbers = np.array([f.number for f in film.frames])
    step = int(np.gcd.reduce(np.diff(numbers))) if len(numbers) > 1 else 1
    rows = {int(n): i for i, n in enumerate(numbers)}
    fixed = [float(i == j) for i in range(3) for j in range(3)] + [0.0] * 3
    head = [*columns, *(f"M_{i}{j}" for i in range(3) for j in range(3)),
            *(f"center_{i}" for i in range(3)), "fnum"]  # fmt: skip
    lines = [",".join(head)]
    for number in range(int(numbers[0]), int(numbers[-1]) + 1, step):
        i = rows.get(number)
        found = [math.nan if i is None else float(v[i]) for v in columns.values()]
        lines.append(",".join([*map(_text, [*found, *fixed]), str(number)]))
    write_text_atomic(path, "\n".join(lines) + "\n")
    steps = np.diff([f.time_s for f in film.frames]) / np.maximum(np.diff(numbers), 1)
    known = len(steps) > 0 and np.isfinite(steps).all() and steps.min() > 0
    rate = 1 / (float(np.median(steps)) * step) if known else None
    return len(columns) // len(PARTS), len(lines) - 1, rate


def _text(value: float) -> str:
    return "" if not math.isfinite(value) else f"{value:.6g}"
