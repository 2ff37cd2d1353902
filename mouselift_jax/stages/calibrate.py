"""Stage `calibrate`: a recording's cameras, mended by what they saw of the animal."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.check.observe import observe
from mouselift_jax.data.distortion import distort_pixels
from mouselift_jax.data.findings import raise_errors
from mouselift_jax.data.inputs import CALIBRATION, must_exist
from mouselift_jax.data.readers import CameraModel, read_calibration
from mouselift_jax.data.readers.write_back import opencv_frames, write_back
from mouselift_jax.data.recordings.inspection import open_recording
from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.data.samples.split import split_blocks
from mouselift_jax.errors import ConfigError, LayoutError, one_of
from mouselift_jax.files import write_json_atomic
from mouselift_jax.geometry.bundle import PARAMETERS, Rig, Sightings, located, project
from mouselift_jax.pipelines.calibrate import (
    Evidence,
    Outcome,
    Outlines,
    Settings,
    calibrate,
    changes,
    keypoint_sightings,
    scale_from_length,
    spread_frames,
)
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.stages.harness.plan import Plan

log = logging.getLogger("mouselift_jax")
NEXT = (
    "python launch.py --config=configs/prepare.py --config.recording={config.recording} "
    "--config.prepare.calibration={workdir} --workdir={beside}/prepare",
)
EVIDENCE = ("auto", "keypoints", "silhouettes", "both")
_JUDGES = 0.25  # share of the recording that is kept to judge by
_LENS = 8  # coefficients of OpenCV's lens that the fit knows


def plan(config: Any, workdir: Path) -> Plan:
    """What would be read and written."""
    recording, kinds = _recording(config)
    return Plan(
        "calibrate",
        reads=[f"{recording.path} ({', '.join(kinds)})", str(recording.calibration_path)],
        writes=[f"{workdir}/{recording.calibration_path.name}", f"{workdir}/{CALIBRATION}"],
        steps=f"{recording.n_views} cameras, free: {', '.join(config.calibrate.free)}; up to "
        f"{config.calibrate.n_frames} frames to fit and a third as many to judge",
        memory="below 1 GB",
        notes=list(recording.notes),
    )


def run(config: Any, workdir: Workdir) -> None:
    """Fit, judge on unused frames, write."""
    recording, kinds = _recording(config)
    for finding in recording.findings:
        if finding.severity == "warning":
            workdir.warn(finding.text())
    settings = Settings(free=tuple(config.calibrate.free))
    given = rig_of(recording, settings)
    evidence, train, unused = _evidence(config, recording, given, kinds)
    outcome = calibrate(given, evidence.of(train), evidence.of(unused), settings)
    scale = _known_length(config, recording, outcome, evidence)
    if scale is not None:
        outcome = dataclasses.replace(
            outcome,
            verdict="improved" if outcome.verdict == "improved" else "scaled",
            rig=outcome.rig.moved(scale[0], np.eye(3), np.zeros(3)),
        )
    for v, parts in outcome.undetermined:
        workdir.warn(
            f"camera {recording.camera_ids[v]}: {', '.join(parts)} stayed as given: these frames "
            "do not tell them (more places in the arena, or more cameras that see the same, would)"
        )
    path, same = _write(recording, outcome, workdir)
    if not same:
        workdir.warn(
            f"{recording.calibration_path.name} is of a format that cannot be written yet: the "
            f"result is {path.name}, which every command here reads"
        )
    record = _record(recording, outcome, path, train, unused)
    record["scale_from_length"] = scale
    write_json_atomic(workdir / CALIBRATION, record)
    before, after = record["unused_frames"]["before_px"], record["unused_frames"]["after_px"]
    log.info(
        "%s: %.2f px before, %.2f px after, on frames not used", outcome.verdict, before, after
    )
    workdir.summary(
        finished=True,
        steps=outcome.fitted.iterations,
        metrics={
            "unused/before_px": before,
            "unused/after_px": after,
            "improved": float(outcome.verdict == "improved"),
            "turn_deg/max": float(changes(outcome.given, outcome.rig)[0].max()),
        },
        artefacts={"calibration": path.name, "report": "report.html"},
        inputs={"recording": str(recording.path)},
    )
    _report(workdir, recording, outcome, record)


# --- inputs -----------------------------------------------------------------------------------


def _recording(config: Any) -> tuple[Recording, list[str]]:
    c = config.calibrate
    Settings(free=tuple(c.free)).columns()
    one_of(c.evidence, EVIDENCE, "no such evidence", where="config.calibrate.evidence")
    if c.n_frames < 2:
        raise ConfigError(
            "too few frames",
            where="config.calibrate.n_frames",
            expected="2 or more",
            found=c.n_frames,
            fix="--config.calibrate.n_frames=60",
        )
    folder = must_exist(config.recording, "recording")
    # In the world of the file, level or not: the result is written back into it.
    names = c.cameras if isinstance(c.cameras, str) else ",".join(map(str, c.cameras))
    recording = open_recording(
        folder, trim=c.trim, unit=c.unit or None, cameras=names.split(","), up="z"
    )
    have = {"keypoints": recording.evidence is not None,
            "silhouettes": recording.mask_kind != "none"}  # fmt: skip
    wanted = [k for k in have if c.evidence in (k, "both")]
    if c.evidence == "auto":
        wanted = [k for k in have if have[k]][:1] or list(have)
    missing = [k for k in wanted if not have[k]]
    if missing:
        raise LayoutError(
            f"the recording has no {' and no '.join(missing)}",
            where=recording.path,
            expected="2D keypoints of all cameras, or masks",
            fix="export them (docs/data_format.md says where they are looked for), or choose "
            "--config.calibrate.evidence=" + " | ".join(EVIDENCE),
        )
    return recording, wanted


def rig_of(recording: Recording, settings: Settings) -> Rig:
    """The recording's cameras for bundle adjustment.

    Raises:
        ConfigError: a lens model that the fit does not know, with intrinsics to change.
    """
    coefficients = np.zeros((recording.n_views, 8))
    for v, lens in enumerate(recording.distortion):
        if lens is None:
            continue
        if isinstance(lens, np.ndarray) and not np.any(lens[_LENS:]):
            coefficients[v, : min(len(lens), _LENS)] = lens[:_LENS]
        elif set(settings.free) - {"pose", "time"}:
            raise ConfigError(
                f"camera {recording.camera_ids[v]} has a lens whose intrinsics cannot be fitted",
                where="config.calibrate.free",
                expected="pose and time, for fisheye lenses and those of 12 or 14 coefficients",
                found=list(settings.free),
                fix="--config.calibrate.free=\"('pose',)\"",
            )
    K = np.stack([np.asarray(c.K, np.float64) for c in recording.cameras])
    w2c = np.stack([np.asarray(c.w2c, np.float64) for c in recording.cameras])
    return Rig(K, w2c[:, :3, :3], w2c[:, :3, 3], coefficients, np.zeros(len(K)))


def _raw(xy: np.ndarray, rig: Rig) -> np.ndarray:
    """Raw pixels [V,...,2] of pinhole pixels, with the lenses the fit knows."""
    xy = xy.copy()
    for v in np.flatnonzero(rig.coefficients.any(1)):
        bent = distort_pixels(np.nan_to_num(xy[v]), rig.K[v], rig.coefficients[v])
        xy[v] = np.where(np.isfinite(xy[v]), bent, np.nan)
    return xy


def _evidence(
    config: Any, recording: Recording, given: Rig, kinds: list[str]
) -> tuple[Evidence, np.ndarray, np.ndarray]:
    """What was seen, and the frames to fit and to judge by."""
    c = config.calibrate
    outlines, keypoints, frames = None, None, np.arange(recording.n_frames)
    if "silhouettes" in kinds:
        problems: list = []
        seen = observe(recording, problems)
        raise_errors(f"masks cannot be read: {recording.path}", problems)
        sizes = np.array([(cam.width, cam.height) for cam in recording.cameras])
        outlines = Outlines(_raw(seen.outlines, given), seen.frames, sizes)
        frames = seen.frames
    if "keypoints" in kinds:
        keypoints = recording.keypoints.copy()
        keypoints[..., :2] = _raw(keypoints[..., :2], given)
    marks = outlines.xy if keypoints is None else _sure(keypoints, c.least_confidence)[:, frames]
    places = _places(marks, given)
    usable = np.flatnonzero(np.isfinite(places).all(-1))
    if len(usable) < 4:
        raise LayoutError(
            "hardly any frame shows the animal to two cameras at once",
            where=recording.path,
            expected="4 frames or more",
            found=len(usable),
            fix="lower --config.calibrate.least_confidence, or give other evidence "
            "(--config.calibrate.evidence)",
        )
    fps = recording.fps or 30.0
    labels = np.array(
        split_blocks(frames[usable] / fps, val_fraction=_JUDGES, gap=c.gap_s, n_blocks=None)
    )
    chosen = []
    for label, n in (("train", c.n_frames), ("val", max(2, c.n_frames // 3))):
        rows = usable[labels == label]
        chosen.append(frames[rows[spread_frames(places[rows], n)]])
    both = np.sort(np.concatenate(chosen))
    points = None
    if keypoints is not None:
        points = keypoint_sightings(keypoints, both, least=c.least_confidence)
    return Evidence(points, None if outlines is None else outlines.of(both)), *chosen


def _sure(keypoints: np.ndarray, least: float) -> np.ndarray:
    sure = keypoints[..., 2] >= least
    return np.where(sure[..., None], keypoints[..., :2], np.nan)


def _places(marks: np.ndarray, rig: Rig) -> np.ndarray:
    """Where the animal was [F,3], from the middle of its marks [V,F,M,2] in every camera."""
    known = np.isfinite(marks).all(-1)
    total = np.where(known[..., None], marks, 0.0).sum(2)
    middle = total / np.maximum(known.sum(2), 1)[..., None]
    seen = known.any(2).astype(np.float64)
    frame = np.arange(marks.shape[1])
    return located(rig, Sightings(middle, seen, np.zeros_like(middle), 0 * frame, frame), rounds=3)


def _known_length(
    config: Any, recording: Recording, outcome: Outcome, evidence: Evidence
) -> tuple[float, float] | None:
    """The factor that a known length asks for, and its standard error; None = none was given."""
    c = config.calibrate
    if not c.length_between and not c.length_mm:
        return None
    if len(c.length_between) != 2 or c.length_mm <= 0 or evidence.points is None:
        raise ConfigError(
            "a known length is a pair of keypoints and their distance",
            where="config.calibrate.length_between, config.calibrate.length_mm",
            expected="two numbers of keypoints and a length above 0, with keypoints as evidence",
            found=f"{c.length_between}, {c.length_mm:g} mm",
            fix='--config.calibrate.length_between="(0, 5)" --config.calibrate.length_mm=80',
        )
    length = c.length_mm / recording.unit_mm
    scale, error = scale_from_length(outcome.rig, evidence.points, tuple(c.length_between), length)
    log.info("scale: the known length asks for a factor of %.4f ± %.4f", scale, error)
    return scale, error


# --- results ----------------------------------------------------------------------------------


def _models(recording: Recording, rig: Rig) -> list[CameraModel]:
    """The file's cameras with the rig's numbers, in the file's order."""
    models = []
    calibration = read_calibration(recording.calibration_path)
    place = {n: v for v, n in enumerate(recording.camera_ids)}
    for model in calibration.cameras:
        v = place.get(model.number)
        if v is None:
            models.append(model)
            continue
        lens = model.distortion
        if isinstance(lens, np.ndarray) or lens is None:
            wanted = rig.coefficients[v]
            had = np.zeros(8) if recording.distortion[v] is None else wanted
            if not np.array_equal(wanted, had) or recording.distortion[v] is not None:
                lens = wanted if np.any(wanted) else lens
        models.append(
            dataclasses.replace(model, K=rig.K[v], R=rig.R[v], T=rig.t[v], distortion=lens)
        )
    return models


def _write(recording: Recording, outcome: Outcome, workdir: Workdir) -> tuple[Path, bool]:
    calibration = read_calibration(recording.calibration_path)
    sizes = _sizes(recording, calibration.cameras)
    calibration.cameras = [
        m.sized(*size) for m, size in zip(calibration.cameras, sizes, strict=True)
    ]
    new = calibration.cameras
    if outcome.verdict != "already right":
        new = _models(recording, outcome.rig)
    return write_back(calibration, new, workdir.path, sizes)


def _sizes(recording: Recording, models: list[CameraModel]) -> list[tuple[int, int]]:
    known = {
        n: (c.width, c.height) for n, c in zip(recording.camera_ids, recording.cameras, strict=True)
    }
    first = next(iter(known.values()))
    return [known.get(m.number, m.size or first) for m in models]


def _record(
    recording: Recording, outcome: Outcome, path: Path, train: np.ndarray, unused: np.ndarray
) -> dict[str, Any]:
    """What calibration.json holds."""
    turn, move = changes(outcome.given, outcome.rig)
    mm = recording.unit_mm
    left = dict(outcome.undetermined)
    cameras = {}
    for v, number in enumerate(recording.camera_ids):
        error = outcome.fitted.error[v]
        cameras[str(number)] = {
            "turned_deg": turn[v],
            "moved_mm": move[v] * mm,
            "focal_px": [outcome.given.K[v, 0, 0], outcome.rig.K[v, 0, 0]],
            "centre_px": [outcome.given.K[v, :2, 2].tolist(), outcome.rig.K[v, :2, 2].tolist()],
            "distortion_k1_k2": outcome.rig.coefficients[v, :2].tolist(),
            "late_frames": outcome.rig.offset[v],
            "standard_error": {
                "turn_deg": np.degrees(error[:3]).tolist(),
                "move_mm": (error[3:6] * mm).tolist(),
                "focal_px": error[6] * outcome.rig.K[v, 0, 0],
                **dict(zip(PARAMETERS[7:], error[7:].tolist(), strict=True)),
            },
            "as_given": list(left.get(v, ())),
            "unused_before_px": _median(outcome.before[v]),
            "unused_after_px": _median(outcome.after[v]),
        }
    models = read_calibration(recording.calibration_path).cameras
    sizes = _sizes(recording, models)
    old = [m.sized(*size) for m, size in zip(models, sizes, strict=True)]
    new = old if outcome.verdict == "already right" else _models(recording, outcome.rig)
    return {
        "verdict": outcome.verdict,
        "file": path.name,
        "unused_frames": {
            "before_px": _median(outcome.before),
            "after_px": _median(outcome.after),
            "gain_px": outcome.gain[0],
            "gain_error_px": outcome.gain[1] if np.isfinite(outcome.gain[1]) else None,
            "frames": unused.tolist(),
        },
        "fitted_frames": train.tolist(),
        "cameras": cameras,
        "old": opencv_frames(old, sizes),
        "new": opencv_frames(new, sizes),
    }


def _median(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _report(
    workdir: Workdir, recording: Recording, outcome: Outcome, record: dict[str, Any]
) -> None:
    from mouselift_jax.report.html import Picture, Section, Table, Text, write_report

    rows = []
    for number, c in record["cameras"].items():
        e = c["standard_error"]
        focal = c["focal_px"]
        rows.append(
            [number, f"{c['turned_deg']:.3f} ± {np.linalg.norm(e['turn_deg']):.3f}",
             f"{c['moved_mm']:.2f} ± {np.linalg.norm(e['move_mm']):.2f}",
             f"{focal[1] - focal[0]:+.2f} ± {e['focal_px']:.2f}",
             f"{c['late_frames']:+.2f} ± {e['time']:.2f}",
             _number(c["unused_before_px"]), _number(c["unused_after_px"]),
             ", ".join(c["as_given"]) or "-"]
        )  # fmt: skip
    head = ["camera", "turned, deg", "moved, mm", "focal length, px", "late, frames",
            "before, px", "after, px", "as given"]  # fmt: skip
    told = record["unused_frames"]
    verdict = (
        f"{outcome.verdict}: on {len(told['frames'])} frames that were not used, sightings are "
        f"{_number(told['before_px'])} px from where the other cameras expect them before, and "
        f"{_number(told['after_px'])} px after"
    )
    if outcome.verdict == "already right":
        verdict += ": the calibration is returned unchanged"
    if record["scale_from_length"] is not None:
        scale, error = record["scale_from_length"]
        verdict += f"; the known length makes the rig {scale:.4f} ± {error:.4f} times as large"
    pictures = []
    for title, rig in (("before", outcome.given), ("after", outcome.rig)):
        for v, number in enumerate(recording.camera_ids):
            picture = arrows(recording, outcome, rig, v)
            pictures.append(Picture(picture, f"camera {number}, {title}; arrows 10 times as long"))
    write_report(
        workdir.path,
        title="Calibration",
        intro=verdict + ".",
        sections=[
            Section("Cameras", [
                Table(head, rows, caption="Changes with standard errors; distances from what the "
                      "other cameras expect, median on unused frames."),
                Text("Free: " + ", ".join(workdir.config["calibrate"]["free"])),
            ]),
            Section("Residuals", pictures),
        ],
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def arrows(recording: Recording, outcome: Outcome, rig: Rig, v: int) -> np.ndarray:
    """Where sightings of camera v are, and ten times the way to where all cameras expect them."""
    import cv2

    camera, s = recording.cameras[v], outcome.sightings
    points = located(rig, s)
    pixels = project(rig, points, s.velocity)[0][v]
    canvas = np.full((camera.height, camera.width, 3), 255, np.uint8)
    good = (s.seen[v] > 0) & np.isfinite(pixels).all(-1)
    for start, end in zip(s.xy[v, good], pixels[good], strict=True):
        tip = np.clip(start + 10 * (end - start), -4000, 8000)
        a, b = (tuple(int(x) for x in np.round(p)) for p in (start, tip))
        cv2.arrowedLine(canvas, a, b, (0, 114, 178), 2, cv2.LINE_AA, tipLength=0.2)
        cv2.circle(canvas, a, 3, (213, 94, 0), -1, cv2.LINE_AA)
    return cv2.resize(canvas, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
