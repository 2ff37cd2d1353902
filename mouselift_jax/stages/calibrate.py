"""Stage `calibrate`: a recording's cameras, mended by what they saw of the animal."""

from __future__ import annotations

import dataclasses
import logging
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.calibration.calibrate import (
    UNCHANGED,
    Outcome,
    Settings,
    calibrate,
    scale_from_length,
)
from mouselift_jax.data.calibration.evidence import (
    Evidence,
    Outlines,
    keypoint_sightings,
    moments_of,
    spread_frames,
)
from mouselift_jax.data.check.observe import observe
from mouselift_jax.data.distortion import distort_pixels
from mouselift_jax.data.findings import raise_errors
from mouselift_jax.data.inputs import CALIBRATION, must_exist
from mouselift_jax.data.readers import Calibration, CameraModel, read_calibration
from mouselift_jax.data.readers.write_back import opencv_frames, target, write_back
from mouselift_jax.data.recordings.inspection import open_recording
from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.data.recordings.world import camera_up
from mouselift_jax.data.samples.split import split_blocks
from mouselift_jax.errors import ConfigError, LayoutError, one_of
from mouselift_jax.files import write_json_atomic
from mouselift_jax.geometry.bundle import PARAMETERS, Rig, Sightings, located
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.geometry.up import levelled_on_floor
from mouselift_jax.report.calibration import write
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.stages.harness.plan import Plan

log = logging.getLogger("mouselift_jax")
NEXT = (
    "python launch.py --config=configs/prepare.py --config.recording={config.recording} "
    "--config.prepare.calibration={workdir} --workdir={beside}/prepare",
)
_PASSED_ON = ("cameras", "unit", "trim", "pixel_origin")  # to prepare, where they were needed here
EVIDENCE = ("auto", "keypoints", "silhouettes", "both")
_JUDGES = 0.25  # share of the recording that is kept to judge by
_FEW_MOMENTS = 10  # from which on nothing is said of an animal that rests
_LENS = 8  # coefficients of OpenCV's lens that the fit knows


def next_after(config: Any, summary: dict[str, Any]) -> tuple[str, ...]:
    """Samples by the new cameras, with the options that this recording needs."""
    given = {k: config.calibrate[k] for k in _PASSED_ON}
    if given["trim"] == "error":
        given["trim"] = ""
    if not summary.get("metrics", {}).get("same_format", 1.0):
        given["pixel_origin"] = ""  # our own file counts as we do
    texts = {k: v if isinstance(v, str) else ",".join(map(str, np.atleast_1d(v)))
             for k, v in given.items()}  # fmt: skip
    more = "".join(f" --config.prepare.{k}={shlex.quote(v)}" for k, v in texts.items() if v)
    return (NEXT[0] + more.replace("{", "{{").replace("}", "}}"),)


def plan(config: Any, workdir: Path) -> Plan:
    """What would be read and written."""
    recording, kinds = _recording(config)
    return Plan(
        "calibrate",
        reads=[f"{recording.path} ({', '.join(kinds)})", str(recording.calibration_path)],
        writes=[f"{workdir}/{target(_calibration(recording))}", f"{workdir}/{CALIBRATION}"],
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
    evidence, train, unused = evidence_of(config, recording, given, kinds)
    moments = len(set(moments_of(evidence.of(train).sightings(given), given).values()))
    if moments < min(_FEW_MOMENTS, len(train)):
        workdir.warn(
            f"the animal moves so little that {len(train)} frames say as much as {moments}: errors "
            "of a detector that looks at the same again are no new errors; more of the recording, "
            "or a walk, would tell more"
        )
    outcome = calibrate(given, evidence.of(train), evidence.of(unused), settings)
    scale = _known_length(config, recording, outcome, evidence)
    if scale is not None:
        outcome = _moved(outcome, "scaled", Similarity(scale[0], np.eye(3), np.zeros(3)))
    floor = _floor(config, recording, outcome, evidence)
    if floor is not None:
        outcome = _moved(outcome, "levelled", floor[0])
    for v, parts in outcome.undetermined:
        workdir.warn(
            f"camera {recording.camera_ids[v]}: {', '.join(parts)} stayed as given: these frames "
            "do not tell them (more places in the arena, or more cameras that see the same, would)"
        )
    path, same = _write(recording, outcome, workdir)
    if not same:
        workdir.warn(
            f"{recording.calibration_path.name} is of a format that is not written, or has no room "
            f"for the result: it is {path.name}, which every command here reads"
        )
    record = _record(recording, outcome, path, train, unused)
    record["scale_from_length"] = scale
    record["floor"] = None
    if floor is not None:
        R, t = (np.asarray(x).tolist() for x in (floor[0].R, floor[0].t))
        height = {"R": R, "t": t, "height_error_mm": floor[1] * recording.unit_mm}
        record["floor"] = height
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
            "same_format": float(same),
            "turn_deg/max": float(outcome.changes()[0].max()),
        },
        artefacts={"calibration": path.name, "report": "report.html"},
        inputs={"recording": str(recording.path)},
    )
    write(workdir.path, recording, outcome, record, tuple(config.calibrate.free))


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
        folder, trim=c.trim, unit=c.unit or None, cameras=names.split(","), up="z",
        pixel_origin=str(c.pixel_origin),
    )  # fmt: skip
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


def evidence_of(
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


def _floor(
    config: Any, recording: Recording, outcome: Outcome, evidence: Evidence
) -> tuple[Similarity, float] | None:
    """The move to a world that stands on the floor, and the height's error; None = not wanted.

    Raises:
        ConfigError: the animal's path tells no floor.
    """
    if not config.calibrate.floor:
        return None
    sightings = evidence.sightings(outcome.rig)
    points = located(outcome.rig, sightings)
    found = levelled_on_floor(points, sightings.frame, camera_up(outcome.rig.R))
    if found is None:
        raise ConfigError(
            "the floor cannot be told from the animal's path",
            where="config.calibrate.floor=True",
            expected="an animal that walks to and fro over the floor",
            found="a path that keeps to a place or a line",
            fix="--config.calibrate.floor=False, or more frames: --config.calibrate.n_frames=200",
        )
    mm = recording.unit_mm
    tilt = np.degrees(np.arccos(np.clip(found[0].R[2, 2], -1, 1)))
    log.info("floor: turned by %.2f degrees and moved by %.2f ± %.2f mm to z = 0", tilt,
             found[0].t[2] * mm, found[1] * mm)  # fmt: skip
    return found


def _moved(outcome: Outcome, verdict: str, move: Similarity) -> Outcome:
    """The outcome in another world; right cameras in another world are no longer as given."""
    return dataclasses.replace(
        outcome,
        verdict="improved" if outcome.verdict == "improved" else verdict,
        rig=outcome.rig.moved(float(move.scale), move.R, move.t),
        world=move.compose(outcome.world),
    )


# --- results ----------------------------------------------------------------------------------


def _calibration(recording: Recording) -> Calibration:
    """The file's cameras, principal points counted as the recording's are."""
    calibration = read_calibration(recording.calibration_path)
    return calibration.counted_from(recording.pixel_shift)


def _models(recording: Recording, outcome: Outcome) -> list[CameraModel]:
    """The file's cameras with the result's numbers, in its order and in the result's world."""
    models, rig, world = [], outcome.rig, outcome.world
    calibration = _calibration(recording)
    place = {n: v for v, n in enumerate(recording.camera_ids)}
    for model in calibration.cameras:
        v = place.get(model.number)
        if v is None:  # not chosen: as it was, in the world of the others
            R = model.R @ world.R.T
            T = float(world.scale) * model.T - R @ world.t
            models.append(dataclasses.replace(model, R=R, T=T))
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
    calibration = _calibration(recording)
    sizes = _sizes(recording, calibration.cameras)
    calibration.cameras = [
        m.sized(*size) for m, size in zip(calibration.cameras, sizes, strict=True)
    ]
    new = calibration.cameras
    if outcome.verdict not in UNCHANGED:
        new = _models(recording, outcome)
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
    turn, move = outcome.changes()
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
    models = _calibration(recording).cameras
    sizes = _sizes(recording, models)
    old = [m.sized(*size) for m, size in zip(models, sizes, strict=True)]
    new = old if outcome.verdict in UNCHANGED else _models(recording, outcome)
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
