"""What a finished film says of itself: its segments, some tracks, their error where truth is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mouselift_jax.data.inputs import must_exist
from mouselift_jax.errors import LayoutError
from mouselift_jax.files import atomic_path, write_json_atomic
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.pipelines.film import tracks
from mouselift_jax.report.html import Picture, Section, Table, Text
from mouselift_jax.report.reels import rainbow
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.splats import reel as reels
from mouselift_jax.splats.film import Film
from mouselift_jax.splats.reel import Reel, Tracks
from mouselift_jax.splats.sh import C0

TRACKS, ERRORS, FIGURE = "film/tracks.npz", "film/tracks.json", "film/tracks.png"


def section(workdir: Workdir, truth: str | None) -> Section:
    """The report's section; writes some paths, a picture of them, and their error."""
    film = Film.open(workdir.path)
    reel = film.reel()
    found = reels.tracks(reel)
    paths = np.full((len(reel), sum(len(t.index) for t in found), 3), np.nan)
    of = np.repeat([t.segment for t in found], [len(t.index) for t in found])
    for t in found:
        paths[np.ix_(t.at, of == t.segment)] = t.paths
    paths = (reel.mm or film.recording_from_film or Similarity.identity()).apply(paths)
    with atomic_path(workdir / TRACKS) as part, part.open("wb") as stream:
        np.savez(
            stream, frames=reel.frames, segment=reel.segment, paths=paths.astype(np.float32),
            index=np.concatenate([t.index for t in found]), of=of,
        )  # fmt: skip
    unit = _draw(workdir / FIGURE, reel, found)
    segments = film.about["segments"]
    rows = [[s["number"], s["begins_at"], int((reel.segment == s["number"]).sum()), s["gaussians"]]
            for s in segments]  # fmt: skip
    words = (
        "One set of Gaussians moves through all frames; each keeps its number."
        if len(segments) == 1
        else f"Identity ended {len(segments) - 1} time(s): nothing may be joined across segments."
    )
    blocks: list[Any] = [
        Text(words), Table(["segment", "begins at", "frames", "Gaussians"], rows),
        Picture(FIGURE, f"tracks of {paths.shape[1]} Gaussians, {unit}; the dots are their ends"),
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
    world, reel = film.recording_from_film, film.reel()
    frames, identity = reel.frames, reel.segment
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


def _draw(path: Path, reel: Reel, found: Sequence[Tracks]) -> str:
    """Tracks from above and from the side, over the last frame; returns the unit of the axes."""
    unit, world = "mm" if reel.mm else "units", reel.mm or reel.recording_from_film
    world = world or Similarity.identity()
    last = reel.gaussians(len(reel) - 1)
    body = world.apply(np.asarray(last.means, np.float64))
    rgb = np.clip(0.5 + C0 * np.asarray(last.sh)[:, 0], 0, 1)
    rgb = 0.4 * rgb + 0.6  # paler than the tracks
    everything = np.concatenate([body, *(world.apply(t.paths.reshape(-1, 3)) for t in found)])
    flat = everything[:, :2] - everything[:, :2].mean(0)
    along = np.linalg.svd(flat, full_matrices=False)[2][0]  # what is widest from above
    views = {
        "from above": (np.array([along, [-along[1], along[0]]]) @ np.eye(2, 3), "across"),
        "from the side": (np.array([[*along, 0.0], [0, 0, 1.0]]), "height"),
    }
    wide, deep, high = np.ptp(everything @ np.array([*views["from above"][0], [0, 0, 1.0]]).T, 0)
    rows = [max(deep, 0.2 * wide), max(high, 0.2 * wide)]  # in one scale, so that they line up
    figure = Figure((8, 1.6 + 7.2 * sum(rows) / max(wide, 1e-6)), dpi=80, layout="constrained")
    panels = figure.subplots(2, 1, sharex=True, height_ratios=rows)
    for panel, (title, (axes, name)) in zip(panels, views.items(), strict=True):
        panel.set(title=title, ylabel=f"{name}, {unit}", aspect="equal")
        order = (body @ np.cross(axes[0], axes[1])).argsort()
        panel.scatter(*(body[order] @ axes.T).T, c=rgb[order], s=6, linewidths=0)
        for track in found:
            paths = world.apply(track.paths.astype(np.float64)) @ axes.T  # [K,P,2]
            for p, colour in enumerate(rainbow(track)):
                panel.plot(*paths[:, p].T, color=colour, linewidth=1.0)
                panel.plot(*paths[-1, p], ".", color=colour, markersize=4)
        panel.grid(alpha=0.25)
    panels[1].set_xlabel(f"along the way, {unit}")
    with atomic_path(path) as part:
        figure.savefig(part)
    return unit
