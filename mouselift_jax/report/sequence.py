"""A film of Gaussians written out: motion.csv (measured by `pipelines/measure.py`), videos, plot.

Every frame is measured from its Gaussians alone. Positions are in the recording's own world (its
calibration's axes, in mm) when the samples say how their world was moved; otherwise relative to
the frame's own centre, and only shape and size are meaningful.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.mp4 import mp4_writer
from mouselift_jax.files import write_text_atomic
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.rig import turntable
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.pipelines.measure import COLUMNS, TEXT
from mouselift_jax.render.types import Render
from mouselift_jax.report.pictures import film_frame, to_uint8
from mouselift_jax.splats.gaussians import Gaussians, padded

Watch = Callable[[Gaussians, Camera, Render, list[np.ndarray]], None]
TURN_S = 6.0  # the camera of the combined turntable goes once round in so many seconds


@dataclasses.dataclass
class Frame:
    """One frame of the film.

    Attributes:
        number: of the recording.
        time_s: since the recording's start; NaN where the recording has no clock.
        load: reads its Gaussians.
        to_mm: scene -> recording's world in mm.
        views: reads true pictures (uint8 RGB), cameras [V] and their names; None without.
    """

    number: int
    time_s: float
    load: Callable[[], Gaussians]
    to_mm: Similarity
    views: Callable[[], tuple[list[np.ndarray], Camera, list[str]]] | None = None

    @property
    def label(self) -> str:
        """What to call it."""
        time = f", {self.time_s:.2f} s" if np.isfinite(self.time_s) else ""
        return f"frame {self.number}{time}"


def write_csv(path: str | Path, rows: Sequence[dict[str, float]]) -> None:
    """The rows of `motion` as CSV; millimetres, degrees, seconds."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: _rounded(row.get(k, float("nan"))) for k in COLUMNS})
    write_text_atomic(path, text.getvalue())


def _rounded(value: float | str) -> float | int | str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    return "" if not np.isfinite(value) else round(float(value), 4)


def write_videos(
    folder: Path, frames: Sequence[Frame], *, fps: float, size: int = 384, radius: float = 1.8,
    watch: Watch | None = None,
) -> list[Path]:  # fmt: skip
    """One video a camera (truth beside render) and one that goes round while time runs.

    Args:
        folder: where the .mp4 go.
        frames: in order.
        fps: of the videos; the recording's over the step plays in real time.
        size: side of the turntable's pictures.
        radius: of its camera, scene units.
        watch: called with each frame's Gaussians, cameras, render and true pictures.
    """
    from mouselift_jax.render import render

    period = max(8, round(TURN_S * fps))
    round_path = turntable(period, radius=radius, size=size)
    paths: dict[str, Path] = {}
    with ExitStack() as stack:
        writers: dict[str, Callable[[Any], None]] = {}

        def write(name: str, picture: np.ndarray) -> None:
            if name not in writers:
                paths[name] = folder / f"{name}.mp4"
                writers[name] = stack.enter_context(mp4_writer(paths[name], fps))
            writers[name](picture)

        for i, frame in enumerate(frames):
            loaded = frame.load()
            gaussians = padded(loaded)
            camera = round_path[np.array([i % period])]
            around = to_uint8(np.asarray(render(gaussians, camera).rgb[0]))
            write("turntable", film_frame(around, [frame.label]))
            if frame.views is None:
                continue
            pictures, cameras, names = frame.views()
            drawn = render(gaussians, cameras)
            if watch is not None:
                watch(loaded, cameras, drawn, pictures)
            for truth, image, name in zip(pictures, np.asarray(drawn.rgb), names, strict=True):
                pair = np.concatenate([to_uint8(truth), to_uint8(image)], axis=1)
                lines = [f"{name}: truth | render", frame.label]
                write(name.replace(" ", "_"), film_frame(pair, lines))
    return list(paths.values())


def motion_plot(rows: Sequence[dict[str, float]]) -> np.ndarray:
    """The path from above, and speed, size and volume against time (frames without a clock)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values = {
        k: np.array([float(r.get(k, np.nan)) for r in rows]) for k in COLUMNS if k not in TEXT
    }
    has_clock = bool(np.isfinite(values["time_s"]).any())
    clock, unit = ("time_s", "s") if has_clock else ("frame", "frame")
    figure = Figure(figsize=(10, 6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    path = axes[0, 0]
    path.plot(values["x_mm"], values["y_mm"], "-", color="#5f6b7a", lw=1)
    dots = path.scatter(values["x_mm"], values["y_mm"], c=values[clock], s=14, cmap="viridis")
    figure.colorbar(dots, ax=path, label=unit)
    path.set(aspect="equal", xlabel="x (mm)", ylabel="y (mm)", title="centre, seen from above")
    path.set_adjustable("datalim")
    plots = (
        (axes[0, 1], ("speed_mm_s",), "speed (mm/s)"),
        (axes[1, 0], ("length_mm", "width_mm", "height_mm"), "size (mm)"),
        (axes[1, 1], ("volume_mm3",), "enclosed volume (mm\u00b3)"),
    )
    for ax, names, title in plots:
        for name in names:
            ax.plot(values[clock], values[name], ".-", lw=1, ms=3, label=name.split("_")[0])
        ax.set(xlabel="time (s)" if has_clock else "frame", title=title)
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.25)
        if len(names) > 1:
            ax.legend(frameon=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
