"""What there is to look at behind a path: Gaussians, cameras with pictures, moments in time.

A scene is lazy: nothing but names is read until a moment is loaded.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.data.samples.sample_set import SampleSet, is_sample_set
from mouselift_jax.errors import LayoutError
from mouselift_jax.geometry.camera import Camera, stack_cameras
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.report.pictures import to_uint8
from mouselift_jax.report.reels import film_rows, is_film_run, run_reel
from mouselift_jax.report.viewer import load_splats
from mouselift_jax.runs.record import read_summary
from mouselift_jax.splats.film_file import SUFFIX, load_film_file
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.ply import read_header
from mouselift_jax.splats.reel import Reel
from mouselift_jax.splats.trust import MODES, painted

Views = Callable[[], tuple[Camera, list[np.ndarray], list[str]]]


@dataclasses.dataclass(frozen=True)
class Moment:
    """One point in time.

    Attributes:
        label: what to call it.
        splats: file of its Gaussians.
        views: reads its cameras [V] and pictures (uint8 RGB, one a camera).
        read: reads its Gaussians where that is not the whole file `splats`.
    """

    label: str
    splats: Path | None = None
    views: Views | None = None
    read: Callable[[], Gaussians] | None = None

    def gaussians(self) -> Gaussians | None:
        """Its Gaussians, read now."""
        if self.read is not None:
            return self.read()
        return None if self.splats is None else load_splats(self.splats)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Moments in order, with the unit of the world.

    Attributes:
        title: what to call it.
        moments: in order.
        scene_scale: scene units per millimetre, None where unknown.
        reel: the film with identity whose frames the moments are; None = they have none.
    """

    title: str
    moments: Sequence[Moment]
    scene_scale: float | None
    reel: Reel | None = None

    def coloured_by(self, mode: str) -> Scene:
        """The same, coloured by one of `splats.trust.MODES`, which their files must hold."""
        if all(m.splats is None for m in self.moments):
            raise LayoutError(
                f"no file here says {MODES[mode].missing}", where=self.title,
                fix="give the folder of a run of fit",
            )  # fmt: skip
        moments = [dataclasses.replace(m, read=partial(painted, m.splats, mode)) if m.splats else m
                   for m in self.moments]  # fmt: skip
        title = f"{self.title}: {MODES[mode].legend}"
        return dataclasses.replace(self, title=title, moments=moments)


def open_scene(path: str | Path, *, samples: str | Path | None = None) -> Scene:
    """What `path` shows: a .ply or .splat, a run, a sample set, a recording, a folder of .ply.

    Args:
        path: file or folder.
        samples: sample set whose cameras and pictures belong to the Gaussians of `path`.

    Raises:
        LayoutError: there is nothing to look at.
    """
    path = Path(path)
    if not path.exists():
        raise LayoutError("no such file or folder", where=path, fix="check the path")
    if path.suffix == SUFFIX and path.is_file():
        return _reel_scene(path.name, load_film_file(path), lambda number: None)
    if path.is_file():
        return _splat_scene(path.name, [path], samples)
    summary = read_summary(path)
    artefacts = summary.get("artefacts", {})
    items = sorted(path.glob("items/*/splats.ply"), key=lambda p: _natural(p.parent.name))
    if items:
        return _splat_scene(path.name, items, samples or samples_of(path, summary))
    ply = _inside(path, artefacts.get("ply", "splats.ply"))
    if ply.is_file():
        return _splat_scene(path.name, [ply], samples or samples_of(path, summary))
    if "samples" in artefacts:
        return _sample_scene(_inside(path, artefacts["samples"]))
    if is_sample_set(path):
        return _sample_scene(path)
    if (path / "samples" / "manifest.json").is_file():
        return _sample_scene(path / "samples")
    files = [p for p in path.iterdir() if p.suffix.lower() in (".ply", ".splat")]
    if files:
        return _splat_scene(path.name, sorted(files, key=lambda p: _natural(p.name)), samples)
    if any(path.glob("*.pkl")) or any(path.glob("videos*")) or any(path.glob("*.mp4")):
        return _recording_scene(path)
    raise LayoutError(
        "nothing to look at here",
        where=path,
        expected="a .ply, a run that wrote splats or samples, a sample set, or a recording",
        found=", ".join(sorted(p.name for p in path.iterdir())[:8]) or "an empty folder",
        fix="give the --workdir of an infer or prepare run",
    )


def open_film_scene(path: str | Path, *, samples: str | Path | None = None) -> Scene:
    """As `open_scene`, but a run with identity plays as one film, in the film's own world.

    There the animal walks and the cameras stand; the moments of `open_scene` are centred each.
    """
    run = Path(path)
    if not is_film_run(run):
        return open_scene(path, samples=samples)
    place = samples or samples_of(run, read_summary(run))
    source = None if place is None else SampleSet.open(place)
    reel = run_reel(run, source)
    if source is None:
        return _reel_scene(run.name, reel, lambda number: None)
    rows = film_rows(run, source)

    def views_of(number: int) -> Views | None:
        if number not in rows:
            return None
        moved = (source.camera_file(rows[number]["id"]) or {}).get("scene_from_recording")
        world = Similarity.identity()  # the film takes samples that do not say it to share one
        if moved is not None and reel.recording_from_film is not None:
            scene = Similarity(moved["scale"], np.array(moved["R"]), np.array(moved["t"]))
            world = scene.compose(reel.recording_from_film).inverse()
        read = _sample_views(source, rows[number]["id"])

        def placed() -> tuple[Camera, list[np.ndarray], list[str]]:
            cameras, pictures, names = read()
            return cameras.transformed(world), pictures, names

        return placed

    return _reel_scene(run.name, reel, views_of)


def _reel_scene(title: str, reel: Reel, views_of: Callable[[int], Views | None]) -> Scene:
    moments = [
        Moment(reel.label(i), None, views_of(int(reel.frames[i])), partial(reel.gaussians, i))
        for i in range(len(reel))
    ]
    return Scene(title, moments, reel.scene_scale, reel)


def _inside(folder: Path, name: Any) -> Path:
    """A path that a file of the run names; it may not leave the run."""
    path = folder / str(name)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise LayoutError(
            "summary.json names a file outside its run",
            where=folder,
            found=name,
            fix="repeat the command that wrote the run",
        )
    return path


def _splat_scene(title: str, files: list[Path], samples: str | Path | None) -> Scene:
    from mouselift_jax.data.samples.sample_set import SampleSet

    known: dict[str, Any] = {}
    scale = None
    if samples is not None:
        source = SampleSet.open(samples)
        scale = source.scene_scale
        known = {Path(i).name: (source, i) for i in source.ids()}
    moments = []
    for file in files:
        name = file.parent.name if file.name == "splats.ply" and len(files) > 1 else file.stem
        owner = known.get(name) or known.get(file.parent.name)
        if owner is None and len(files) == len(known) == 1:
            owner = next(iter(known.values()))
        moments.append(Moment(name, file, _sample_views(*owner) if owner else None))
    if scale is None and files[0].suffix == ".ply":
        text = read_header(files[0]).get("scene_scale", "unknown")
        scale = None if text == "unknown" else float(text)
    return Scene(title, moments, scale)


def _sample_scene(path: Path) -> Scene:
    from mouselift_jax.data.samples.sample_set import SampleSet

    source = SampleSet.open(path)
    moments = [Moment(Path(i).name, None, _sample_views(source, i)) for i in source.ids()]
    return Scene(path.name, moments, source.scene_scale)


def _sample_views(source: Any, sample_id: str) -> Callable:
    def read() -> tuple[Camera, list[np.ndarray], list[str]]:
        sample = source.load(sample_id)
        if sample.cameras is None:
            raise LayoutError(
                "this sample has pictures but no cameras",
                where=sample_id,
                fix="make the samples with configs/prepare.py",
            )
        names = [f"camera {c}" for c in sample.camera_ids]
        return sample.cameras, [to_uint8(p) for p in sample.images_rgba], names

    return read


def _recording_scene(path: Path) -> Scene:
    from mouselift_jax.data.recordings.inspection import open_recording

    recording = open_recording(path)

    def read() -> tuple[Camera, list[np.ndarray], list[str]]:
        from mouselift_jax.data.recordings.video import FrameStream

        pictures = []
        for video in recording.videos:
            stream = FrameStream(video)
            pictures.append(to_uint8(np.ascontiguousarray(stream.read()[..., 2::-1])))  # of BGR(A)
            stream.close()
        sizes = {(c.width, c.height) for c in recording.cameras}
        if len(sizes) != 1:
            raise LayoutError(
                "the cameras of this recording differ in picture size",
                where=path,
                found=sizes,
                fix="`prepare` it and view the samples",
            )
        names = [f"camera {c}" for c in recording.camera_names]
        return stack_cameras(recording.cameras), pictures, names

    return Scene(path.name, [Moment("frame 0", None, read)], 1.0 / recording.unit_mm)


def samples_of(run: Path, summary: dict[str, Any]) -> Path | None:
    """The sample set that a run says it was made from, when it is still there."""
    named = summary.get("inputs", {}).get("samples")
    named = named.get("path") if isinstance(named, dict) else named
    for candidate in [Path(named), run / named] if isinstance(named, str) else []:
        if (candidate / "manifest.json").is_file():
            return candidate
        if (candidate / "samples" / "manifest.json").is_file():
            return candidate / "samples"
    own = run / "prepare" / "samples"  # a fit of a recording prepares it in its own folder
    return own if not named and (own / "manifest.json").is_file() else None


def recording_of(sample_set: SampleSet) -> Recording | None:
    """The recording that the samples say they are of; None where it is several or gone."""
    sources = sample_set.manifest.get("source") or {}
    paths = [s.get("path") for s in sources.values() if isinstance(s, dict)]
    if len(paths) != 1 or not paths[0] or not Path(paths[0]).is_dir():
        return None
    read: dict[str, Any] = sample_set.manifest.get("parameters") or {}  # as `prepare` read it
    cameras = read.get("cameras") or ()
    from mouselift_jax.data.inputs import calibration_of
    from mouselift_jax.data.recordings.inspection import open_recording

    return open_recording(
        paths[0],
        trim=read.get("trim") or "error",
        unit=read.get("unit") or None,
        calibration=calibration_of(read["calibration"]) if read.get("calibration") else None,
        cameras=cameras.split(",") if isinstance(cameras, str) else cameras,
        up=read.get("up") or "",
        pixel_origin=str(read.get("pixel_origin") or ""),
    )


def _natural(name: str) -> list[Any]:
    """Sort key under which 10 follows 9."""
    return [(0, int(t), "") if t.isdigit() else (1, 0, t) for t in re.split(r"(\d+)", name)]
