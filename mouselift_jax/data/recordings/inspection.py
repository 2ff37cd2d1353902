"""What a recording folder looks like, and everything that is wrong with one.

    recording/
      videos_undist/N.mp4            pictures: videos, or folders N/ of pictures, one per camera
      simpleclick_undist/N.mp4       masks, the same way; or RGBA pictures, which bring their own
      new_cam.pkl                    calibration (any format of `readers`)
      keypoints2d_undist/result_view_N.pkl     optional

Cameras are matched by number or name, else by order. `inspect_recording` never stops at the first
problem: it returns what could be read and a finding for each thing that is wrong.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mouselift_jax.data.distortion import undistort_pixels
from mouselift_jax.data.findings import Finding, raise_errors
from mouselift_jax.data.readers import Calibration, examine, read_calibration
from mouselift_jax.data.readers.calibration import AT_HALF, AT_ONE, AT_ZERO
from mouselift_jax.data.recordings.agreement import frame_counts, picture_sizes
from mouselift_jax.data.recordings.keypoints import from_space, keypoints_of
from mouselift_jax.data.recordings.layout import (
    VIDEO_FOLDERS,
    Layout,
    Pictures,
    find_recording,
    recordings_near,
)
from mouselift_jax.data.recordings.mask_levels import MaskLevels, levels_findings
from mouselift_jax.data.recordings.pairing import pair_names
from mouselift_jax.data.recordings.probe import probe, probe_masks
from mouselift_jax.data.recordings.recording import Frames, Recording
from mouselift_jax.data.recordings.world import levelled, parse_up, same_places
from mouselift_jax.errors import ConfigError, MouseLiftError, one_of
from mouselift_jax.geometry.camera import Camera

TRIMS, UNITS = ("error", "shortest"), ("mm", "m")
PIXEL_ORIGINS = {"": None, "0": AT_ZERO, "0.5": AT_HALF, "1": AT_ONE}


def inspect_recording(
    path: str | Path,
    *,
    trim: str = "error",
    unit: str | None = None,
    calibration: Path | None = None,
    cameras: Sequence[str | int] = (),
    up: str = "",
    pixel_origin: str = "",
) -> tuple[Recording | None, list[Finding]]:
    """Read a recording as far as possible.

    Args:
        path: the recording's folder.
        trim: what cameras with different frame counts are: an `error`, or usable up to the
            `shortest`.
        unit: `mm` or `m` says what the calibration is in; None keeps the format's usual unit.
        calibration: a file to use instead of the recording's own.
        cameras: numbers or names of the cameras to use; none takes all.
        up: which direction of the calibration's world is up (see `world.parse_up`); empty takes z,
            or where that is plainly not up what the cameras say.
        pixel_origin: where the calibration puts the first pixel's centre: `0` (OpenCV), `0.5`
            (COLMAP, NeRF) or `1` (MATLAB); empty takes what its format's programs write.

    Returns:
        The recording, or None where not even its cameras and videos can be paired; and findings.

    Raises:
        LayoutError: there is no such folder.
        ConfigError: no such `trim`, `unit`, `up`, `pixel_origin` or camera.
    """
    parse_up(up)
    for key, value, known in (
        ("trim", trim, TRIMS),
        ("unit", unit or UNITS[0], UNITS),
        ("pixel_origin", pixel_origin, tuple(PIXEL_ORIGINS)),
    ):
        one_of(value, known, f"no such {key}", where=f"config.prepare.{key}")
    layout = find_recording(path)
    layout.calibration = calibration or layout.calibration
    findings: list[Finding] = []
    calibrated = _calibration(layout, unit, findings)
    if calibrated is not None and PIXEL_ORIGINS[pixel_origin] is not None:
        calibrated = calibrated.counted_from(PIXEL_ORIGINS[pixel_origin])
    chosen = _chosen(calibrated, cameras)
    if calibrated is not None:
        kept = [calibrated.cameras[i] for i in chosen]
        findings += examine(dataclasses.replace(calibrated, cameras=kept))
        findings += same_places(
            [c.name for c in kept], [c.number for c in kept], [(c.R, c.center) for c in kept],
            str(calibrated.path),
        )  # fmt: skip
    if not layout.videos:
        fix = f"put one video per camera into one of {', '.join(VIDEO_FOLDERS)}"
        near = recordings_near(layout.path)
        if near:
            fix = f"a folder near this one is a recording: {', '.join(map(str, near))}"
        if not near or layout.calibration is not None:  # else the same remedy was told above
            findings.append(
                Finding(
                    "camera_missing", "error", "no videos found", fix=fix, where=str(layout.path)
                )
            )
    if calibrated is None or not layout.videos:
        return None, findings
    layout.join_chunks(len(calibrated.cameras))
    pairs = _pair(calibrated, layout, chosen, findings)
    videos = {n: _probed(layout.videos[n], n, findings) for n, _ in pairs}
    deepest = max((f.white for f in videos.values() if f is not None), default=0)
    for name, frames in videos.items():  # one camera's first pictures may all be dark
        if frames is not None and frames.white:
            videos[name] = dataclasses.replace(frames, white=deepest)
    masks = _masks(layout, [n for n, _ in pairs], videos, findings)
    good = [
        (n, i) for n, i in pairs if videos[n] is not None and (masks is None or masks.get(n))
    ]  # fmt: skip
    if len(good) < 2:
        return None, findings
    shown = [videos[n] for n, _ in good]
    kept = None if masks is None else tuple(masks[n] for n, _ in good)
    numbers = [calibrated.cameras[i].number for _, i in good]
    n_frames = frame_counts(good, shown, kept, numbers, trim, findings)
    picture_sizes(calibrated, good, shown, kept, findings)
    recording = _assemble(layout, calibrated, good, shown, kept, n_frames, findings)
    return levelled(recording, up, findings), findings


def _calibration(layout: Layout, unit: str | None, findings: list[Finding]) -> Calibration | None:
    if layout.calibration is None:
        present = sorted(p.name for p in layout.path.iterdir())
        near = recordings_near(layout.path)
        findings.append(
            Finding(
                "calibration_missing",
                "error",
                "no calibration found",
                fix=(
                    f"a folder near this one is a recording: {', '.join(map(str, near))}"
                    if near
                    else "put new_cam.pkl (or another calibration, see docs/data_format.md) there"
                ),
                evidence={"expected": "new_cam.pkl", "found": f"only {present}"},
                where=str(layout.path),
            )
        )
        return None
    try:
        calibration = read_calibration(layout.calibration)
    except MouseLiftError as error:
        findings.append(Finding.of("calibration_unreadable", error))
        return None
    calibration.unit = unit or calibration.unit
    if len(calibration.cameras) < 2:
        findings += examine(calibration)
        return None
    return calibration


def _chosen(calibration: Calibration | None, wanted: Sequence[str | int]) -> list[int]:
    """Indices of the calibrated cameras to use.

    Raises:
        ConfigError: no such camera, or fewer than two.
    """
    if calibration is None:
        return []
    by_name = {c.name: i for i, c in enumerate(calibration.cameras)}
    by_number = {str(c.number): i for i, c in enumerate(calibration.cameras)}
    words = [str(w).strip() for w in wanted if str(w).strip()]
    known = {**by_number, **by_name}
    unknown = [w for w in words if w not in known]
    found = sorted({known[w] for w in words if w in known})
    if unknown or (words and len(found) < 2):
        raise ConfigError(
            "no such camera" if unknown else "a recording needs at least two cameras",
            where="config.prepare.cameras",
            expected=", ".join(f"{c.number} ({c.name})" for c in calibration.cameras),
            found=", ".join(unknown or words),
            fix="--config.prepare.cameras=0,2,4 takes three; leave it out to take all",
        )
    return found or list(range(len(calibration.cameras)))


def _pair(
    calibration: Calibration, layout: Layout, chosen: Sequence[int], findings: list[Finding]
) -> list[tuple[str, int]]:
    """(video name, index of its calibrated camera), ascending by camera number.

    Masks and keypoints whose names are not those of the videos are put to the videos of the camera
    that their own names tell.
    """
    cameras, names = calibration.cameras, list(layout.videos)
    where = str(calibration.path)
    known = [(c.name, c.number) for c in cameras]
    pairs, how = pair_names(names, known)
    if len(names) == len(chosen) < len(cameras) and how == "order":
        pairs = {n: chosen[k] for k, n in enumerate(names)}
    if how == "order":
        told = ", ".join(f"{n} -> {cameras[i].name}" for n, i in sorted(pairs.items()))
        message = f"file names do not tell the cameras; matched by order: {told}"
        calibration.notes.append(message)
        evidence = {"found": told, "expected": "each camera's name in one file name"}
        fix = "name each video after its camera, if the order is not right"
        findings.append(Finding("pairing_by_order", "info", message, (), fix, evidence, [], where))
    for part in (layout.masks, layout.keypoints):
        if part and not set(part) >= set(pairs):
            own, _ = pair_names(list(part), known)
            files = {index: part[name] for name, index in own.items()}
            part.update({n: files[i] for n, i in pairs.items() if n not in part and i in files})
    for name in names:
        if name not in pairs:
            findings.append(
                Finding(
                    "calibration_missing",
                    "error",
                    f"video {name} has no calibrated camera",
                    fix="add its K, R, T to the calibration, or remove the video",
                    evidence={"found": f"calibration of cameras {[c.name for c in cameras]}"},
                    where=where,
                )
            )
    lost = tuple(cameras[i].number for i in chosen if i not in pairs.values())
    if lost:
        one = len(lost) == 1
        rest = ",".join(str(cameras[k].number) for k in chosen if k in pairs.values())
        findings.append(
            Finding(
                "camera_missing",
                "error",
                f"{'camera' if one else 'cameras'} {', '.join(map(str, lost))} "
                f"{'is' if one else 'are'} calibrated but {'has' if one else 'have'} no video",
                lost,
                f"add {'its video' if one else 'their videos'}, or leave {'it' if one else 'them'} "
                f"out: --config.prepare.cameras={rest}",
                {"found": f"videos {names}"},
                where=where,
            )
        )
    kept = [(n, i) for n, i in pairs.items() if i in chosen]
    return sorted(kept, key=lambda item: (cameras[item[1]].number, item[1]))


def _masks(
    layout: Layout, names: list[str], videos: dict[str, Frames | None], findings: list[Finding]
) -> dict[str, Frames | None] | None:
    """The mask source of each camera; None where the recording has no mask files."""
    if not layout.masks:
        return None
    masks: dict[str, Frames | None] = {}
    levels: dict[str, tuple[MaskLevels, Path]] = {}
    for name in names:
        source = layout.masks.get(name)
        if source is None:
            findings.append(
                Finding(
                    "mask_missing",
                    "error",
                    f"camera {name} has no mask",
                    fix="export its masks, or remove the mask folder to have masks made",
                    evidence={"found": f"masks {list(layout.masks)}"},
                    where=str(layout.path),
                )
            )
            masks[name] = None
        else:
            masks[name] = _probed_masks(source, name, findings, levels)
    rows = [(found, name, _numbers(name), path) for name, (found, path) in levels.items()]
    findings += levels_findings(rows)
    return masks


def _numbers(name: str) -> tuple[int, ...]:
    """The camera's number, if its name has one."""
    return tuple(map(int, re.findall(r"\d+", name)[-1:]))


def _probed(path: Pictures, name: str, findings: list[Finding]) -> Frames | None:
    try:
        return probe(path)
    except MouseLiftError as error:
        findings.append(Finding.of("video_unreadable", error, _numbers(name)))
        return None


def _probed_masks(
    path: Pictures, name: str, findings: list[Finding], levels: dict[str, tuple[MaskLevels, Path]]
) -> Frames | None:
    try:
        frames, found = probe_masks(path)
    except MouseLiftError as error:
        findings.append(Finding.of("mask_unreadable", error, _numbers(name)))
        return None
    levels[name] = (found, frames.path)
    return frames


def _assemble(
    layout: Layout,
    calibration: Calibration,
    good: list[tuple[str, int]],
    videos: list[Frames],
    masks: tuple[Frames, ...] | None,
    n_frames: int,
    findings: list[Finding],
) -> Recording:
    models = [calibration.cameras[i] for _, i in good]
    models = [m.sized(f.width, f.height) for m, f in zip(models, videos, strict=True)]
    cameras = []
    for model, frames in zip(models, videos, strict=True):
        c2w = np.eye(4)
        c2w[:3, :3], c2w[:3, 3] = model.R.T, model.center
        cameras.append(Camera(model.K, c2w, frames.width, frames.height))
    distortion = [m.distortion for m in models]
    notes = list(calibration.notes)
    if videos[0].white:
        bits = videos[0].white.bit_length()
        notes.append(f"pictures of {bits} bits in 16: {videos[0].white} is white")
    joined = [f"{len(f.files)} of {f.path.name}" for f in videos if f.kind == "video" and f.files]
    if joined:
        notes.append(f"video files joined in the order of their numbers: {', '.join(joined)}")
    undistorted = "undist" in videos[0].path.as_posix().removeprefix(layout.path.as_posix())
    if undistorted and any(d is not None for d in distortion):
        distortion = [None] * len(models)
        notes.append("pictures are undistorted already (their folder says so): coefficients unused")
    mask_kind = "files" if masks else "alpha" if all(f.has_alpha for f in videos) else "none"
    kept = {i for _, i in good}
    left_out = [c.name for i, c in enumerate(calibration.cameras) if i not in kept]
    keypoints = keypoints_of(layout, [n for n, _ in good], left_out, n_frames, findings)
    if keypoints is not None:
        for v, coeffs in enumerate(distortion):
            if coeffs is not None:
                xy = keypoints[v, ..., :2]
                keypoints[v, ..., :2] = undistort_pixels(xy, models[v].K, coeffs)
        notes += [f"not used beside keypoints: {p.name}" for p in layout.points]
    projected = keypoints is None and bool(layout.points)
    if projected:
        keypoints = from_space(layout.points, cameras, n_frames, findings)
    rates = [f.fps for f in videos if f.fps > 0]
    return Recording(
        path=layout.path,
        camera_ids=tuple(m.number for m in models),
        camera_names=tuple(m.name for m in models),
        cameras=tuple(cameras),
        videos=tuple(videos),
        masks=masks,
        mask_kind=mask_kind,
        distortion=tuple(distortion),
        keypoints=keypoints,
        n_frames=n_frames,
        fps=float(np.median(rates)) if rates else 0.0,
        unit=calibration.unit,
        unit_mm=1000.0 if calibration.unit == "m" else 1.0,
        calibration_path=calibration.path,
        calibration_files=calibration.files,
        pixel_shift=calibration.pixel_shift,
        notes=tuple(notes),
        projected=projected,
    )


def open_recording(
    path: str | Path,
    *,
    trim: str = "error",
    unit: str | None = None,
    calibration: Path | None = None,
    cameras: Sequence[str | int] = (),
    up: str = "",
    pixel_origin: str = "",
) -> Recording:
    """Read a recording's layout, calibration and keypoints.

    Args:
        path: the recording's folder (see `docs/data_format.md` for the layouts).
        trim: cameras with different frame counts are an `error`, or usable up to the `shortest`.
        unit: `mm` or `m` says what the calibration is in; None keeps the format's usual unit.
        calibration: a file to use instead of the recording's own.
        cameras: numbers or names of the cameras to use; none takes all.
        up: which direction of the calibration's world is up (see `inspect_recording`).
        pixel_origin: where the first pixel's centre is (see `inspect_recording`).

    Raises:
        LayoutError, CalibrationError, ProblemList: everything wrong at once.
        ConfigError: no such `trim` or `unit`.
    """
    recording, findings = inspect_recording(
        path, trim=trim, unit=unit, calibration=calibration, cameras=cameras, up=up,
        pixel_origin=pixel_origin,
    )  # fmt: skip
    raise_errors(f"not a usable recording: {path}", findings)
    if recording is None:  # only possible if inspect_recording forgot to say why
        raise RuntimeError(f"no recording and no reason: {path}")
    return dataclasses.replace(recording, findings=tuple(findings))
