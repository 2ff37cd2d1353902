"""A film as an NWB file: rig, videos, keypoints in the pictures and in space, measures.

    general/devices          each camera as ndx-pose's CalibratedCamera
    acquisition              its video, external
    processing/behavior      Skeletons; Keypoints, Spine and Tracks (MultiCameraPoseEstimation),
                             Position, Measures (BehavioralTimeSeries)
    intervals                untrusted_frames, with the reasons

Numbers are stored as they are, in mm and degrees; `conversion` leads to metres, as NWB asks for.
Pixel centres are at integers, as OpenCV has them: K and keypoints are shifted by half a pixel.
"""

from __future__ import annotations

import datetime
import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mouselift_jax.data.recordings.probe import probe
from mouselift_jax.data.recordings.recording import Frames
from mouselift_jax.errors import ConfigError, LayoutError, MissingExtraError
from mouselift_jax.exports.source import SPINE, FilmSource, rate_of
from mouselift_jax.files import atomic_path
from mouselift_jax.pipelines.measure import COLUMNS, TEXT
from mouselift_jax.splats.reel import tracks

if TYPE_CHECKING:
    from pynwb import NWBFile

    from mouselift_jax.splats.reel import Reel

# Suffix of a column -> unit in NWB and the factor that leads to it.
UNITS = {
    "_mm_s": ("m/s", 1e-3), "_mm3": ("m^3", 1e-9), "_mm2": ("m^2", 1e-6), "_mm": ("meters", 1e-3),
    "_deg": ("degrees", 1.0),
}  # fmt: skip
WORLD = "world of the recording's calibration, right-handed; x, y, z in mm"
LIMIT = 4096  # characters of the configuration that are kept


def save_nwb(
    path: str | Path, film: FilmSource, *, start: str = "", subject: str = "", age: str = ""
) -> dict[str, int]:
    """Write the file, whole or not at all.

    Args:
        path: *.nwb.
        film: what to write.
        start: when the recording began, ISO 8601; "" = when its first video was written.
        subject: the animal's name; "" writes no subject.
        age: its age, an ISO 8601 duration such as P70D; NWB wants one of every subject.

    Returns:
        How many frames, cameras, keypoints, measures and tracks it holds.

    Raises:
        MissingExtraError: pynwb or ndx-pose is not installed.
        LayoutError: the film has no clock, or its recording is gone.
    """
    try:
        import ndx_pose  # noqa: F401 - registers its types
        from pynwb import NWBHDF5IO
    except ImportError as error:
        raise MissingExtraError("pynwb and ndx-pose", "nwb", "NWB files") from error
    if film.recording is None:
        raise LayoutError(
            "the recording of this film is not there",
            where=film.samples.path,
            expected="the folder that manifest.json names as the source",
            fix="put it back: cameras, videos and keypoints of an NWB file come from it",
        )
    times = np.array([f.time_s for f in film.frames])
    if not np.isfinite(times).all():
        raise LayoutError(
            "the film has no clock, and NWB needs times", where=film.run,
            expected="time_s of every sample", fix="a recording that knows its frames per second",
        )  # fmt: skip
    path = Path(path)
    file = _file(film, start, subject, age)
    cameras = _rig(file, film, path)
    behavior = file.create_processing_module("behavior", "what the animal does")
    clock, reel = _clock(times), film.reel()
    followed = _tracks(reel) if reel is not None else []
    keypoints = _poses(file, behavior, film, cameras, clock, followed)
    measures = _measures(file, behavior, film, clock, times)
    with atomic_path(path) as part, NWBHDF5IO(str(part), "w") as io:
        io.write(file)
    return {"frames": len(times), "cameras": len(cameras), "keypoints": keypoints,
            "measures": measures, "tracks": sum(p.shape[1] for *_, p in followed)}  # fmt: skip


def _clock(times: np.ndarray) -> dict[str, Any]:
    """When the rows of a series were: a rate where they are evenly apart."""
    rate = rate_of(times)
    if rate is None:
        return {"timestamps": times}
    return {"starting_time": float(times[0]), "rate": rate}


def _tracks(reel: Reel) -> list[tuple[int, dict[str, Any], np.ndarray]]:
    """(segment, clock, paths [K,P,3] in mm) of every set of Gaussians; [] without a unit."""
    mm = reel.mm
    reel = reel.only(np.isfinite(reel.times))  # frames whose splats were lost have no row
    return [] if mm is None else [
        (t.segment, _clock(reel.times[t.at]), mm.apply(t.paths.astype(np.float64)))
        for t in tracks(reel)
    ]  # fmt: skip


def _file(film: FilmSource, start: str, subject: str, age: str) -> NWBFile:
    from pynwb import NWBFile
    from pynwb.file import Subject

    if bool(subject) != bool(age):
        raise ConfigError(
            "an animal in an NWB file has a name and an age", where="--subject, --age",
            expected="both or none", found=f"subject {subject!r}, age {age!r}",
            fix="--subject=mouse_7 --age=P70D (70 days)",
        )  # fmt: skip
    try:
        began = datetime.datetime.fromisoformat(start) if start else None
    except ValueError as error:
        raise ConfigError(
            "not a time", where="--session-start", expected="ISO 8601", found=start,
            fix="--session-start=2026-05-04T10:30:00+02:00",
        ) from error  # fmt: skip
    note = ""
    if began is None:
        first = film.recording.videos[0]
        seconds = (first.files[0] if first.files else first.path).stat().st_mtime
        began = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        note = " The start is when the first video file was written: --session-start was not given."
    if began.tzinfo is None:
        began = began.astimezone()
    animal = None
    if subject:
        animal = Subject(subject_id=subject, age=age, species="Mus musculus", sex="U")
    config = film.run / "config.json"
    about = {
        "software": "mouselift_jax", "run": film.run.name,
        "config": json.loads(config.read_text()) if config.is_file() else None,
        "source": film.samples.manifest.get("source"),
    }  # fmt: skip
    return NWBFile(
        session_description=f"{len(film.frames)} frames of {film.recording.path.name}, seen by "
        f"{film.recording.n_views} cameras and reconstructed as 3D Gaussians.{note}",
        identifier=str(uuid.uuid4()),
        session_start_time=began,
        subject=animal,
        notes=json.dumps(about, default=str)[: 16 * LIMIT],
        keywords=["behavior", "3D", "multi-camera"],
    )


def _rig(file: NWBFile, film: FilmSource, path: Path) -> list[Any]:
    """A device a camera, and its video."""
    from ndx_pose import CalibratedCamera
    from pynwb.image import ImageSeries

    recording, devices = film.recording, []
    for name, camera, video, lens in zip(
        recording.camera_names, recording.cameras, recording.videos, recording.distortion,
        strict=True,
    ):  # fmt: skip
        K = np.array(camera.K, np.float64)
        K[:2, 2] -= 0.5
        w2c = np.asarray(camera.w2c, np.float64)
        known = {}
        if lens is not None and isinstance(lens, np.ndarray | tuple | list):
            known["distortion_coefficients"] = np.asarray(lens, np.float32)
        device = CalibratedCamera(
            name=f"camera_{name}",
            description=f"{camera.width} x {camera.height} px; K and keypoints of undistorted "
            "pictures with pixel centres at integers (OpenCV); translation in mm"
            + ("" if lens is None else f"; its lens is {type(lens).__name__}"),
            intrinsic_matrix=K.astype(np.float32),
            rotation_matrix=w2c[:3, :3].astype(np.float32),
            translation_vector=(w2c[:3, 3] * recording.unit_mm).astype(np.float32),
            **known,
        )
        file.add_device(device)
        devices.append(device)
        files = [os.path.relpath(p, path.resolve().parent) for p in (video.files or (video.path,))]
        fps = recording.fps or video.fps
        file.add_acquisition(ImageSeries(
            name=f"video_{name}", description=f"video of camera {name}", external_file=files,
            format="external", starting_frame=_starts(video), rate=float(fps),
            starting_time=0.0, num_samples=video.n_frames, device=device, unit="n.a.",
            dimension=[video.width, video.height],
        ))  # fmt: skip
    return devices


def _starts(video: Frames) -> list[int]:
    """Number of the first frame of each file: of pictures one each, of pieces what they hold."""
    if video.kind != "video" or len(video.files) < 2:
        return list(range(max(1, len(video.files))))
    counts = [probe(piece).n_frames for piece in video.files[:-1]]
    return [0, *np.cumsum(counts).tolist()]


def _poses(
    file: NWBFile, behavior: Any, film: FilmSource, cameras: list[Any], clock: dict[str, Any],
    followed: list[tuple[int, dict[str, Any], np.ndarray]],
) -> int:  # fmt: skip
    """Skeletons, the triangulated keypoints with those of each picture, the spine, the tracks."""
    from ndx_pose import (
        MultiCameraPoseEstimation,
        PoseEstimation,
        PoseEstimationSeries,
        Skeleton,
        Skeletons,
    )

    def series(
        name: str, data: np.ndarray, confidence: np.ndarray, space: bool, clock: dict = clock,
        means: str = "the detector's",
    ) -> Any:  # fmt: skip
        unit = {"unit": "meters", "conversion": 1e-3} if space else {"unit": "pixels"}
        frame = WORLD if space else "left upper pixel's centre, x right, y down"
        return PoseEstimationSeries(
            name=name, description=name.replace("_", " "), data=data.astype(np.float32),
            confidence=np.nan_to_num(confidence).astype(np.float32), reference_frame=frame,
            confidence_definition=means, **unit, **clock,
        )  # fmt: skip

    points, spine, skeletons, poses = film.keypoints(), film.spine(), [], []
    if points is not None:
        skeleton = Skeleton(name="keypoints", nodes=list(points.names))
        seen = film.recording.keypoints[:, [f.number for f in film.frames]]
        views = [
            PoseEstimation(
                name=f"in_{device.name}", description="keypoints in the pictures of one camera",
                device=device, skeleton=skeleton, scorer="the recording's keypoints",
                source_video=file.acquisition[device.name.replace("camera_", "video_", 1)],
                pose_estimation_series=[
                    series(n, own[:, m, :2] - 0.5, own[:, m, 2], space=False)
                    for m, n in enumerate(points.names)
                ],
            ) for device, own in zip(cameras, seen, strict=True)
        ]  # fmt: skip
        poses.append(MultiCameraPoseEstimation(
            name="Keypoints", description="triangulated keypoints of the recording",
            pose_estimation_series=[
                series(n, points.xyz[:, m], points.confidence[:, m], space=True,
                       means="mean of the detector's")
                for m, n in enumerate(points.names)
            ],
            pose_estimations=views, skeleton=skeleton, scorer="the recording's keypoints",
            source_software="mouselift_jax",
        ))  # fmt: skip
        skeletons.append(skeleton)
    if spine is not None:
        edges = np.stack([np.arange(len(SPINE) - 1), np.arange(1, len(SPINE))], 1)
        skeleton = Skeleton(name="spine", nodes=list(SPINE), edges=edges.astype(np.uint8))
        there = np.isfinite(spine).all((1, 2)).astype(float)
        poses.append(MultiCameraPoseEstimation(
            name="Spine", description="five points evenly along the spine of the reconstructed "
            "body, without keypoints (docs/measures.md); confidence 1 where there is one",
            pose_estimation_series=[
                series(n, spine[:, m], there, space=True, means="1 where there is a body")
                for m, n in enumerate(SPINE)
            ],
            skeleton=skeleton, source_software="mouselift_jax",
        ))  # fmt: skip
        skeletons.append(skeleton)
    for segment, when, paths in followed:
        names = [f"track_{m:03d}" for m in range(paths.shape[1])]
        name = "tracks" if len(followed) == 1 else f"tracks_{segment:03d}"
        skeleton = Skeleton(name=name, nodes=names)
        poses.append(MultiCameraPoseEstimation(
            name=name.capitalize(), description="points of the skin, spread evenly: Gaussians of "
            f"set {segment} of the film, each the same one in all these frames",
            pose_estimation_series=[
                series(n, paths[:, m], np.ones(len(paths)), space=True, clock=when,
                       means="1: the set was followed") for m, n in enumerate(names)
            ],
            skeleton=skeleton, source_software="mouselift_jax",
        ))  # fmt: skip
        skeletons.append(skeleton)
    if skeletons:
        behavior.add(Skeletons(skeletons=skeletons))
        for pose in poses:
            behavior.add(pose)
    return 0 if points is None else len(points.names)


def _measures(
    file: NWBFile, behavior: Any, film: FilmSource, clock: dict[str, Any], times: np.ndarray
) -> int:
    """Position and every column of motion.csv; frames that cannot be trusted as intervals."""
    from pynwb import TimeSeries
    from pynwb.behavior import BehavioralTimeSeries, Position, SpatialSeries
    from pynwb.epoch import TimeIntervals

    rows = film.rows()
    if not rows:
        return 0
    centre = np.array([[r[f"{c}_mm"] for c in "xyz"] for r in rows])
    behavior.add(Position(spatial_series=SpatialSeries(
        name="centre", description="centroid of the trunk", data=centre, unit="meters",
        conversion=1e-3, reference_frame=WORLD, **clock,
    )))  # fmt: skip
    series, left_out = [], {"frame", "time_s", "x_mm", "y_mm", "z_mm", "trusted", *TEXT}
    for column in COLUMNS:
        if column in left_out or column not in rows[0]:
            continue
        data = np.array([r[column] for r in rows], float)
        if not np.isfinite(data).any():
            continue
        suffix = next((s for s in UNITS if column.endswith(s)), "")
        unit, factor = UNITS.get(suffix, ("n.a.", 1.0))
        series.append(TimeSeries(
            name=column.removesuffix(suffix) or column, data=data, unit=unit, conversion=factor,
            description=f"column {column} of motion.csv (docs/measures.md)", **clock,
        ))  # fmt: skip
    kept = film.run / "descriptor.npz"
    if kept.is_file():
        with np.load(kept) as arrays:
            values, wanted = arrays["descriptor"], [f.number for f in film.frames]
            if list(arrays["frame"]) == wanted:
                series.append(TimeSeries(
                    name="descriptor", data=values, unit="n.a.", **clock,
                    description="shape and brightness, the same wherever the animal is and "
                    "however it is turned: " + ", ".join(arrays["names"])[:LIMIT],
                ))  # fmt: skip
    behavior.add(BehavioralTimeSeries(name="Measures", time_series=series))
    step = 1 / film.rate if film.rate else float(np.median(np.diff(times))) if len(times) > 1 else 0
    bad = [i for i, r in enumerate(rows) if not r["trusted"]]
    if bad:
        table = TimeIntervals(
            name="untrusted_frames", description="frames not to be trusted, and why"
        )
        table.add_column("why", "the reason")
        for i in bad:
            table.add_interval(float(times[i]), float(times[i] + step), why=rows[i]["why"])
        file.add_time_intervals(table)
    return len(series)
