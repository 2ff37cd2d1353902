"""The film behind a path: frames with their Gaussians, where they were in the world, measures."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.recordings.points import Points, triangulated
from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.errors import LayoutError
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.pipelines.measure import to_millimetres
from mouselift_jax.report.reels import is_film_run, run_reel
from mouselift_jax.report.scene import recording_of, samples_of
from mouselift_jax.runs.record import read_json
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.ply import load_ply
from mouselift_jax.splats.reel import Reel

SPINE = ("nose", "spine_front", "spine_middle", "spine_back", "tail_root")
_AT = (0, 5, 10, 15, 20)  # of the spine's points (geometry/solid.py)


@dataclasses.dataclass(frozen=True)
class FilmFrame:
    """One frame of a run.

    Attributes:
        label: the sample's name.
        number: of the recording.
        time_s: since the recording's start, NaN where unknown.
        splats: file of its Gaussians.
        to_mm: scene -> the recording's world in mm, None where the unit is unknown.
    """

    label: str
    number: int
    time_s: float
    splats: Path
    to_mm: Similarity | None

    def gaussians(self, *, world: str = "scene") -> Gaussians:
        """Its Gaussians, in the sample's scene or in the recording's world in mm."""
        found = load_ply(self.splats)
        if world == "scene":
            return found
        if self.to_mm is None:
            raise LayoutError(
                "nothing says where these Gaussians were in the recording's world",
                where=self.splats,
                expected="samples that know their unit (scene_scale)",
                fix="--world scene, or --config.prepare.unit=mm and prepare again",
            )
        return found.transformed(self.to_mm)


@dataclasses.dataclass(frozen=True)
class FilmSource:
    """A run of `fit` or `infer` on samples."""

    run: Path
    samples: SampleSet
    frames: tuple[FilmFrame, ...]
    recording: Recording | None

    @property
    def rate(self) -> float | None:
        """Frames per second of the film where it is even, else None."""
        return rate_of(np.array([f.time_s for f in self.frames]))

    def reel(self) -> Reel | None:
        """The film with identity, where the run has one."""
        if not is_film_run(self.run):
            return None
        times = {f.number: f.time_s for f in self.frames}
        reel = run_reel(self.run, self.samples)
        clock = np.array([times.get(int(n), math.nan) for n in reel.frames])
        return dataclasses.replace(reel, times=clock)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of motion.csv, numbers as floats (NaN where empty); [] without the file."""
        path = self.run / "motion.csv"
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            rows = [{k: _value(k, v) for k, v in row.items()} for row in csv.DictReader(file)]
        numbers = [int(r.get("frame", -1)) for r in rows]
        wanted = [f.number for f in self.frames]
        if numbers != wanted:
            raise LayoutError(
                "motion.csv is not of these frames",
                where=path,
                expected=f"{len(wanted)} frames from {wanted[0]}",
                found=f"{len(numbers)} rows",
                fix="repeat the command that wrote the run",
            )
        return rows

    def spine(self) -> np.ndarray | None:
        """Five points of the spine [T,5,3] in mm, `SPINE`; NaN where a frame has no body."""
        out = np.full((len(self.frames), len(SPINE), 3), np.nan)
        for row, frame in zip(out, self.frames, strict=True):
            kept = frame.splats.parent / "motion.json"
            if not kept.is_file():
                continue
            points = np.array(json.loads(kept.read_text()).get("spine_mm") or [], float)
            if len(points):
                row[:] = points[list(_AT)]
        return out if np.isfinite(out).any() else None

    def keypoints(self) -> Points | None:
        """The recording's keypoints in space, of these frames."""
        if self.recording is None:
            return None
        return triangulated(self.recording, [f.number for f in self.frames])


def rate_of(times: np.ndarray) -> float | None:
    """Rows a second where they are evenly apart, else None."""
    steps = np.diff(times)
    if len(steps) == 0 or not np.isfinite(steps).all() or steps.min() <= 0:
        return None
    return float(1 / np.median(steps)) if np.ptp(steps) < 0.02 * np.median(steps) else None


def _value(name: str, text: str) -> Any:
    if name in ("head", "why"):
        return text
    return float(text) if text else math.nan


def open_film(source: str | Path) -> FilmSource:
    """The film of a run's folder.

    Raises:
        LayoutError: it is no run on samples of a recording, or they are gone.
    """
    run = Path(source)
    summary = run / "summary.json"
    if not summary.is_file():
        raise LayoutError(
            "this is not the folder of a run",
            where=run,
            expected="summary.json, as fit and infer write it",
            fix="give the --workdir of a fit or infer run",
        )
    path = samples_of(run, json.loads(summary.read_text()))
    if path is None:
        raise LayoutError(
            "the samples that this run was made of are not there",
            where=run,
            expected="inputs.samples of summary.json",
            fix="put the sample set back where it was",
        )
    samples = SampleSet.open(path)
    frames = sorted(_frames(run, samples), key=lambda f: (f.number, f.label))
    if not frames:
        raise LayoutError(
            "the run has no Gaussians", where=run, fix="repeat the command: it goes on"
        )
    return FilmSource(run, samples, tuple(frames), recording_of(samples))


def _frames(run: Path, samples: SampleSet) -> Iterator[FilmFrame]:
    rows = {row["id"]: row for row in samples.manifest.get("samples", ())}
    alone = (read_json(run / "item.json") or {}).get("id")
    for sample_id in samples.ids():
        place = run / "items" / sample_id.replace("/", "_") / "splats.ply"
        if alone == sample_id:  # a run of one frame keeps it in its own folder
            place = run / "splats.ply"
        if not place.is_file():
            continue
        record = samples.camera_file(sample_id) or {}
        scale = record.get("scene_scale") or samples.scene_scale
        row = rows.get(sample_id, {})
        yield FilmFrame(
            Path(sample_id).name,
            int(row.get("frame", -1)),
            float(row.get("time_s", math.nan)),
            place,
            to_millimetres(scale, record.get("scene_from_recording")),
        )
