"""What a finished film says of itself: its segments, some tracks, their error where truth is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from mouselift_jax.data.inputs import must_exist
from mouselift_jax.errors import LayoutError
from mouselift_jax.files import atomic_path, write_json_atomic
from mouselift_jax.pipelines.film import tracks
from mouselift_jax.report.html import Picture, Section, Table, Text
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.splats.film import Film

TRACKS, ERRORS, FIGURE = "film/tracks.npz", "film/tracks.json", "film/tracks.png"
SHOWN = 200  # Gaussians whose paths are drawn and written


def section(workdir: Workdir, truth: str | None) -> Section:
    """The report's section; writes some paths, a picture of them, and their error."""
    film = Film.open(workdir.path)
    frames, identity = _frames(film)
    world = film.recording_from_film
    unit = "mm" if world is not None and film.about.get("scene_scale") else "units"
    paths = _paths(film, frames, identity)
    if world is not None:
        paths = world.apply(paths) * _mm(film)
    with atomic_path(workdir / TRACKS) as part, part.open("wb") as stream:
        np.savez(stream, frames=frames, segment=identity, paths=paths.astype(np.float32))
    _draw(workdir / FIGURE, paths, unit)
    segments = film.about["segments"]
    rows = [[s["number"], s["begins_at"], int((identity == s["number"]).sum()), s["gaussians"]]
            for s in segments]  # fmt: skip
    words = (
        "One set of Gaussians moves through all frames; each keeps its number."
        if len(segments) == 1
        else f"Identity ended {len(segments) - 1} time(s): nothing may be joined across segments."
    )
    blocks: list[Any] = [
        Text(words), Table(["segment", "begins at", "frames", "Gaussians"], rows),
        Picture(FIGURE, f"{paths.shape[1]} paths from above, {unit}; dark to bright: time"),
    ]  # fmt: skip
    if truth:
        figures = judged(film, must_exist(truth, "film.truth"))
        write_json_atomic(workdir / ERRORS, figures)
        workdir.summary(finished=False, metrics={f"tracks/{k}": v for k, v in figures.items()})
        blocks.append(Text(
            f"Against the recording's truth: material points are off by {figures['median_mm']:.2f} "
            f"mm (median), 95 % by at most {figures['p95_mm']:.2f} mm; {figures['lost']:.1%} lost."
        ))  # fmt: skip
    return Section("Identity", blocks)


def judged(film: Film, truth: Path) -> dict[str, float]:
    """Tracking error of a film against the material points of `truth.npz`.

    Raises:
        LayoutError: the film does not know the recording's world, or the truth has no such frames.
    """
    world = film.recording_from_film
    frames, identity = _frames(film)
    with np.load(truth, allow_pickle=False) as arrays:
        missing = [k for k in ("skin", "skin_seen") if k not in arrays.files]
        if missing or world is None or frames.max() >= len(arrays["skin"]):
            raise LayoutError(
                "this truth is not of this film", where=truth,
                expected="skin and skin_seen of every frame, and a film that knows its recording's "
                "world", found=f"missing: {missing}; film's frames {frames.min()}-{frames.max()}",
                fix="truth.npz of the procedural recording the samples were prepared from",
            )  # fmt: skip
        skin, seen = arrays["skin"][frames].astype(np.float64), arrays["skin_seen"][frames]
    points, starts = world.inverse().apply(skin), tracks.first_seen(seen)

    def walk() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for part in film.parts():
            for i, frame in enumerate(part.frames):
                yield int(np.searchsorted(frames, frame)), part.means[i], part.quats[i]

    found = world.apply(tracks.paths(points, starts, walk, identity))
    return tracks.figures(found * _mm(film), skin * _mm(film), starts)


def _mm(film: Film) -> float:
    """Millimetres in a unit of the recording's world; 1 where nothing says what its unit is."""
    scale, world = film.about.get("scene_scale"), film.recording_from_film
    return 1.0 / (scale * float(world.scale)) if scale and world is not None else 1.0


def _frames(film: Film) -> tuple[np.ndarray, np.ndarray]:
    """Frame numbers and segments of all frames, in the order of time."""
    pairs = [p for part in film.parts() for p in zip(part.frames, part.segment, strict=True)]
    return tuple(np.array(sorted(pairs)).T)


def _paths(film: Film, frames: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """Paths [T,P,3] of some Gaussians of the longest segment; NaN in the frames of others."""
    longest = np.bincount(identity).argmax()
    out = None
    for part in film.parts():
        if part.segment[0] != longest:
            continue
        some = np.linspace(0, part.means.shape[1] - 1, min(SHOWN, part.means.shape[1])).astype(int)
        out = np.full((len(frames), len(some), 3), np.nan) if out is None else out
        out[np.searchsorted(frames, part.frames)] = part.means[:, some]
    return out


def _draw(path: Path, paths: np.ndarray, unit: str) -> None:
    figure = Figure((6, 6), dpi=110, layout="constrained")
    axes = figure.add_subplot(xlabel=f"x, {unit}", ylabel=f"y, {unit}", aspect="equal")
    flat = paths[..., :2]
    steps = np.stack([flat[:-1], flat[1:]], 2)  # [T-1,P,2,2]
    time = np.broadcast_to(np.arange(len(steps))[:, None], steps.shape[:2])
    lines = LineCollection(steps.reshape(-1, 2, 2), array=time.reshape(-1), linewidths=0.7)
    axes.add_collection(lines)
    axes.autoscale_view()
    with atomic_path(path) as part:
        figure.savefig(part)
