"""What `infer` adds when its items are frames of one recording: videos, motion.csv, a section."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.recordings.points import nose_and_tail, triangulated
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.errors import MouseLiftError
from mouselift_jax.files import atomic_path, write_json_atomic
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.pipelines import descriptor as descriptors
from mouselift_jax.pipelines import measure as measures
from mouselift_jax.report import colours
from mouselift_jax.report import sequence as film
from mouselift_jax.report.html import Picture, Section, Table, Text, Video
from mouselift_jax.report.reels import is_film_run, run_reel
from mouselift_jax.report.scene import recording_of
from mouselift_jax.report.viewer import export_film_html, export_html
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.progress import Progress
from mouselift_jax.splats.ply import load_ply
from mouselift_jax.splats.trust import FIELD, SHIFT, mean_of
from mouselift_jax.stages.harness.selection import frame_times

log = logging.getLogger("mouselift_jax")

MEASURED = "motion.json"  # the row of a frame, beside its splats
DESCRIPTOR = "descriptor.npz"
CSV, PAGE, VIDEOS = "motion.csv", "sequence.html", "videos"
MAX_PAGE_FRAMES = 100
UNKNOWN_FPS = 10.0  # of videos whose samples do not say when they were taken
SHOWN_VIDEOS = 3
MEASURERS = 4  # frames at once; each holds a grid and 64 silhouettes, 0.2 GB


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
    ends = _keypoint_ends(workdir, sample_set, [f.number for f in frames])
    found = _all_measured(workdir, frames, [places[i] for i in ids], ends)
    rows = measures.motion(found, [r["front"] for r in found])
    film.write_csv(workdir / CSV, rows)
    _write_descriptor(workdir / DESCRIPTOR, found)
    _tell_distrust(workdir, rows)
    steps = np.diff([f.time_s for f in frames])
    known = len(steps) > 0 and np.isfinite(steps).all() and (steps > 0).all()
    fps = float(np.clip(1.0 / np.median(steps), 1, 60)) if known else UNKNOWN_FPS
    log.info("writing videos of %d frames at %.3g frames a second", len(frames), fps)
    errors: list[np.ndarray] = []
    videos = film.write_videos(
        workdir.path / VIDEOS, frames, fps=fps, size=size,
        watch=lambda *seen: errors.append(colours.errors(*seen)),
    )  # fmt: skip
    every = -(-len(frames) // MAX_PAGE_FRAMES)
    title = f"{workdir.path.resolve().name}: frames {frames[0].number} to {frames[-1].number}"
    if is_film_run(workdir.path):
        reel = run_reel(workdir.path, sample_set)
        known = dict(zip([f.number for f in frames], errors, strict=True))
        shown = [known.get(int(n)) for n in reel.frames[::every]]
        export_film_html(workdir / PAGE, reel.every(every), shown, title=title, fps=fps)
    else:
        export_html(
            workdir / PAGE,
            [places[i] / "splats.ply" for i in ids[::every]],
            title=title,
            labels=[f.label for f in frames[::every]],
            fps=fps,
        )
    metrics = measures.steadiness(rows)
    if metrics.get("sequence/volume_wobble", 0) > 0.15:
        workdir.warn(
            f"the enclosed volume varies by {metrics['sequence/volume_wobble']:.0%} between frames "
            "though an animal's does not: some frames are reconstructed badly; look at motion.csv"
        )
    artefacts = {"motion": CSV, "descriptor": DESCRIPTOR, "sequence": PAGE, "videos": VIDEOS}
    return metrics, artefacts, [_section(workdir.path, rows, videos, metrics)]


def _write_descriptor(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """What does not change when the animal turns or moves [T,D], for clustering."""
    values = [np.array(r["descriptor"], np.float32) for r in rows]  # None becomes NaN
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez(
            file,
            descriptor=np.stack(values),
            frame=np.array([r["frame"] for r in rows]),
            time_s=np.array([r["time_s"] for r in rows], float),
            names=np.array(descriptors.names()),
        )


def _tell_distrust(workdir: Workdir, rows: Sequence[Mapping[str, Any]]) -> None:
    """One warning for each reason that frames cannot be trusted for."""
    frames: dict[str, list[int]] = {}
    for row in rows:
        for reason in filter(None, str(row["why"]).split("; ")):
            frames.setdefault(re.sub(r"[+-]\d+%", "far", reason), []).append(row["frame"])
    for reason, of in frames.items():
        shown = ", ".join(map(str, of[:6])) + (", ..." if len(of) > 6 else "")
        workdir.warn(f"{len(of)} of {len(rows)} frames are marked in {CSV} ({shown}): {reason}")


def _keypoint_ends(
    workdir: Workdir, sample_set: SampleSet, frames: Sequence[int]
) -> dict[int, np.ndarray]:
    """Nose and tail root [2,3] in mm of the frames whose recording has such keypoints."""
    try:
        recording = recording_of(sample_set)
    except MouseLiftError as error:  # it has changed since; the film does not need it
        workdir.warn(f"the recording's keypoints are not used, it cannot be opened: {error}")
        return {}
    if recording is None or recording.unit == "unknown":
        return {}
    points = triangulated(recording, frames)
    if points is None:
        return {}
    given = sample_set.manifest.get("parameters") or {}
    chosen = given.get("heading") == "keypoints" and given.get("heading_keypoints")
    ends = nose_and_tail(points, tuple(chosen) if chosen else None)
    if ends is None:
        workdir.warn(
            "head and tail are told by shape: nothing says which keypoints are nose and tail "
            "root; --config.prepare.heading=keypoints with heading_keypoints=(NOSE,TAIL) does"
        )
        return {}
    known = np.isfinite(ends).all((1, 2))
    return {f: e for f, e, k in zip(points.frames, ends, known, strict=True) if k}


def _all_measured(
    workdir: Workdir, frames: list[film.Frame], places: list[Path], ends: dict[int, np.ndarray]
) -> list[dict[str, Any]]:
    """The rows of all frames in their order, several measured at once: NumPy's loops use a core."""
    style = workdir.options.progress
    found = []
    with (
        Progress(len(frames), unit="measured frame", style=style) as progress,
        ThreadPoolExecutor(min(MEASURERS, os.cpu_count() or 1)) as pool,
    ):
        for row in pool.map(_measured, frames, places, [ends.get(f.number) for f in frames]):
            found.append(row)
            progress.update()
    return found


def _measured(frame: film.Frame, place: Path, ends: np.ndarray | None) -> dict[str, Any]:
    """The figures of a frame, kept beside its splats: a resumed run measures only new ones."""
    kept, ply = place / MEASURED, place / "splats.ply"
    if kept.is_file() and kept.stat().st_mtime >= ply.stat().st_mtime:
        row = json.loads(kept.read_text())
        if row.get("schema") == measures.SCHEMA:
            return {k: math.nan if v is None else v for k, v in row.items()}
    row = {"frame": frame.number, "time_s": frame.time_s}
    gaussians = frame.load()
    found, shape = measures.measure(gaussians, frame.to_mm, ends)
    row = found | row | {"schema": measures.SCHEMA, "front": math.nan, "spine_mm": []}
    powers = descriptors.descriptor(gaussians)
    row["descriptor"] = [float(f"{v:.7g}") if np.isfinite(v) else None for v in powers]
    if shape is not None:
        row |= {"front": shape.front, "spine_mm": np.round(shape.spine, 4).tolist()}
        if frame.views is not None:
            masks, cameras = _masks(frame)
            if masks is not None:
                used = ends if row["head"] == "keypoints" else None
                row |= measures.standard_errors(shape.box, masks, cameras, used)
    row |= {field: mean_of(field, ply, gaussians) for field in (FIELD, SHIFT)}
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
    }
    write_json_atomic(kept, finite)
    return row


def _masks(frame: film.Frame) -> tuple[np.ndarray | None, Camera]:
    """Masks [V,H,W] of a frame and their cameras in mm; None where the pictures have none."""
    pictures, cameras, _ = frame.views()
    alphas = np.stack([p[..., 3] for p in pictures]) if pictures[0].shape[-1] == 4 else None
    exact = Camera(
        np.asarray(cameras.K, np.float64), np.asarray(cameras.c2w, np.float64),
        cameras.width, cameras.height,
    )  # fmt: skip
    if alphas is None or (alphas == 255).all():
        return None, exact
    return alphas / np.float32(255), exact.transformed(frame.to_mm)


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
