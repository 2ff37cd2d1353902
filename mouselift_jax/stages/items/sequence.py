"""What `infer` adds when its items are frames of one recording: videos, motion.csv, a section."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.files import write_json_atomic
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.report import sequence as film
from mouselift_jax.report.html import Picture, Section, Table, Text, Video
from mouselift_jax.report.viewer import export_html
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.splats import measure as measures
from mouselift_jax.splats.ply import load_ply
from mouselift_jax.stages.harness.selection import frame_times

log = logging.getLogger("mouselift_jax")

CSV, PAGE, VIDEOS = "motion.csv", "sequence.html", "videos"
MAX_PAGE_FRAMES = 100
UNKNOWN_FPS = 10.0  # of videos whose samples do not say when they were taken
SHOWN_VIDEOS = 3


def is_film(sample_set: SampleSet, ids: Sequence[str]) -> bool:
    """Whether the samples are two or more different frames of one recording."""
    if len(ids) < 2:
        return False
    rows = {row["id"]: row for row in sample_set.manifest.get("samples", ())}
    frames = [rows.get(i, {}).get("frame", -1) for i in ids]
    recordings = {rows.get(i, {}).get("recording") for i in ids}
    return min(frames) >= 0 and len(set(frames)) == len(frames) and len(recordings) == 1


def write(
    workdir: Workdir, sample_set: SampleSet, places: Mapping[str, Path], size: int
) -> tuple[dict[str, float], dict[str, str], list[Section]]:
    """Measure every frame, write the videos, the page and the CSV.

    Args:
        workdir: of the run.
        sample_set: the frames' samples.
        places: where each sample's splats.ply lies.
        size: side of the turntable video, pixels.

    Returns:
        Metrics, artefacts and report sections.
    """
    times = frame_times(sample_set)
    ids = sorted(places, key=lambda i: times[i][0])
    frames = [_frame(sample_set, i, places[i], times[i]) for i in ids]
    if any(f is None for f in frames):
        workdir.warn("the samples do not say their scale: no motion.csv in millimetres was written")
        return {}, {}, []
    rows = measures.motion([_measured(f, places[i]) for f, i in zip(frames, ids, strict=True)])
    film.write_csv(workdir / CSV, rows)
    steps = np.diff([f.time_s for f in frames])
    known = len(steps) > 0 and np.isfinite(steps).all() and (steps > 0).all()
    fps = float(np.clip(1.0 / np.median(steps), 1, 60)) if known else UNKNOWN_FPS
    log.info("writing videos of %d frames at %.3g frames a second", len(frames), fps)
    videos = film.write_videos(workdir.path / VIDEOS, frames, fps=fps, size=size)
    every = -(-len(frames) // MAX_PAGE_FRAMES)
    export_html(
        workdir / PAGE,
        [places[i] / "splats.ply" for i in ids[::every]],
        title=f"{workdir.path.resolve().name}: frames {frames[0].number} to {frames[-1].number}",
        labels=[f.label for f in frames[::every]],
        fps=fps,
    )
    metrics = measures.steadiness(rows)
    hazy = sum(not math.isfinite(r["volume_mm3"]) for r in rows)
    if hazy:
        workdir.warn(
            f"{hazy} of {len(rows)} frames have too few opaque Gaussians to enclose a volume: they "
            "are haze, and the other figures of motion.csv mean little; train longer"
        )
    if metrics.get("sequence/volume_wobble", 0) > 0.15:
        workdir.warn(
            f"the enclosed volume varies by {metrics['sequence/volume_wobble']:.0%} between frames "
            "though an animal's does not: some frames are reconstructed badly; look at motion.csv"
        )
    artefacts = {"motion": CSV, "sequence": PAGE, "videos": VIDEOS}
    return metrics, artefacts, [_section(workdir.path, rows, videos, metrics)]


def _measured(frame: film.Frame, place: Path) -> dict[str, float]:
    """The figures of a frame, kept beside its splats: a resumed run measures only new ones."""
    kept, ply = place / "motion.json", place / "splats.ply"
    if kept.is_file() and kept.stat().st_mtime >= ply.stat().st_mtime:
        row = json.loads(kept.read_text())
        return {k: math.nan if v is None else v for k, v in row.items()}
    row = {"frame": frame.number, "time_s": frame.time_s}
    row |= measures.measure(frame.load(), frame.to_mm)
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
    }
    write_json_atomic(kept, finite)
    return row


def _frame(
    sample_set: SampleSet, sample_id: str, place: Path, time: tuple[int, float]
) -> film.Frame | None:
    record = sample_set.camera_file(sample_id) or {}
    scale = record.get("scene_scale") or sample_set.scene_scale
    to_mm = measures.to_millimetres(scale, record.get("scene_from_recording"))
    if to_mm is None:
        return None
    return film.Frame(
        time[0],
        time[1],
        functools.partial(load_ply, place / "splats.ply"),
        to_mm,
        functools.partial(_views, sample_set, sample_id),
    )


def _views(sample_set: SampleSet, sample_id: str) -> tuple[list[np.ndarray], Camera, list[str]]:
    sample = sample_set.load(sample_id)
    return list(sample.images_rgba), sample.cameras, [f"camera {c}" for c in sample.camera_ids]


def _section(
    workdir: Path, rows: list[dict], videos: list[Path], metrics: dict[str, float]
) -> Section:
    names = {"length_mm": "length, mm", "width_mm": "width, mm", "height_mm": "height, mm",
             "volume_mm3": "enclosed volume, mm\u00b3", "speed_mm_s": "speed, mm/s"}  # fmt: skip
    table = []
    for name in names:
        values = np.array([r[name] for r in rows], float)
        values = values[np.isfinite(values)]
        if len(values):
            table.append([names[name], values.min(), np.median(values), values.max()])
    blocks: list[Any] = [
        Picture(film.motion_plot(rows), "From the Gaussians alone; every row is in motion.csv."),
        Table(["figure", "smallest", "median", "largest"], table),
    ]
    for path in videos[:SHOWN_VIDEOS]:
        blocks.append(Video(path.relative_to(workdir).as_posix(), path.stem.replace("_", " ")))
    wobble = metrics.get("sequence/volume_wobble")
    if wobble is not None:
        blocks.append(
            Text(
                f"Volume wobbles by {wobble:.1%} (robust spread over median). An animal keeps its "
                "volume, so this is error of the reconstruction, not motion."
            )
        )
    blocks.append(Text("All frames in the browser: sequence.html. All videos: videos/."))
    return Section("The film", blocks)
