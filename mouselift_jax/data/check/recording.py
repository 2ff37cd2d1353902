"""Is a recording what it claims to be? Findings with their likely causes, each cause tried.

Four things must agree: the calibration, the masks, the pictures and (where present) the keypoints.
Masks and keypoints are each held against the calibration (`search`), pictures against the
masks (`colour`); which of them disagree, and which correction makes them agree, tells what is
wrong. Only data here: the command line prints and draws.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.check.colour import ColourTest, Fit
from mouselift_jax.data.check.duplicates import tell_which
from mouselift_jax.data.check.explain import explain_keypoints, explain_masks
from mouselift_jax.data.check.hypotheses import Geometry, Hypothesis
from mouselift_jax.data.check.motion import SURE, animal_track, jump_findings, stored_track
from mouselift_jax.data.check.observe import MAX_FRAMES, Observations, observe
from mouselift_jax.data.check.pictures import picture_findings
from mouselift_jax.data.check.search import Verdict
from mouselift_jax.data.check.words import (
    BLAMES_OTHERS,
    CAUSED_BY,
    IMPOSSIBLE,
    NO_SILHOUETTES,
    SYMPTOMS,
    describe,
)
from mouselift_jax.data.findings import SEVERITIES, Finding
from mouselift_jax.data.recordings.inspection import PIXEL_ORIGINS, inspect_recording
from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.geometry.camera import Camera, stack_cameras
from mouselift_jax.geometry.hull import hull_cover
from mouselift_jax.geometry.rig import azimuth_elevation, looked_at
from mouselift_jax.geometry.triangulate import reprojection_error, triangulate

UNEXPLAINED = 6.0  # silhouette misfit without a cause, from which on it is reported
COVER_LIMIT = 0.97  # hull cover below which the same holds
_NEAR_ORIGIN = 0.35  # pixels


@dataclasses.dataclass
class CheckResult:
    """What a check found.

    Attributes:
        path: what was checked.
        kind: `recording` or `samples`.
        findings: root causes, most severe and most likely first.
        measures: the numbers behind them, JSON-able.
        seen: pictures for the contact sheet, None where none could be read.
        camera_ids: camera numbers, in the order of the measures.
    """

    path: Path
    kind: str
    findings: list[Finding]
    measures: dict[str, Any]
    seen: Observations | None = None
    camera_ids: tuple[int, ...] = ()

    @property
    def clean(self) -> bool:
        """No error and no warning."""
        return all(f.severity == "info" for f in self.findings)

    @property
    def usable(self) -> bool:
        """No error."""
        return all(f.severity != "error" for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, NaN as null."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "clean": self.clean,
            "usable": self.usable,
            "findings": [plain(f.to_json()) for f in self.findings],
            "cameras": list(self.camera_ids),
            "measures": plain(self.measures),
        }


def plain(value: Any) -> Any:
    """Numbers and arrays as JSON types, rounded; non-finite numbers as None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), 6) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def check_recording(
    path: str | Path, *, max_frames: int = MAX_FRAMES, **options: Any
) -> CheckResult:
    """Check layout, calibration, synchrony, masks and keypoints of a recording.

    Args:
        path: the recording's folder; it is only read.
        max_frames: frames to look at; longer recordings are sampled in runs.
        options: of `inspect_recording`: trim, unit, cameras, up, pixel_origin.

    Raises:
        LayoutError: there is no such folder.
    """
    recording, findings = inspect_recording(path, **options)
    tracks = stored_track(Path(path))
    # Of two cameras in one place nothing can be derived: they are told, and that is all.
    if recording is None or any(f.code == "calibration_duplicate" for f in findings):
        measures: dict[str, Any] = {}
        if recording is not None:
            tell_which(recording, findings)
        findings += jump_findings((), *tracks, measures) if tracks else []
        return CheckResult(Path(path), "recording", ordered(findings), measures)
    seen = observe(recording, findings, max_frames=max_frames)
    measures = {"rig": _rig(recording), "frames": recording.n_frames}
    outlines, keypoints = _geometries(recording, seen)
    masks_say, mended = explain_masks(outlines, keypoints)
    keypoints_say = None
    if keypoints is not None:
        keypoints_say, mended = explain_keypoints(keypoints, mended, alone=outlines is None)
    colour = ColourTest(seen) if seen.has_masks else None
    fits = colour.fits() if colour else []
    measures |= _measures(recording, seen, outlines, masks_say, keypoints_say, fits)
    found = _conclude(recording, masks_say, keypoints_say, colour, fits)
    if mended is not None:
        found.insert(0, mended.finding(recording, _unexplained(recording)))
    cover = measures.get("hull_cover_mean")
    if masks_say and not found and cover is not None and np.fmin.reduce(cover) < COVER_LIMIT:
        worst = int(np.nanargmin(cover))
        evidence = {"cover": cover, "least": float(cover[worst]), "expected": COVER_LIMIT}
        found.append(describe("hull_cover", (recording.camera_ids[worst],), evidence))
    found += picture_findings(recording, seen, found)
    track = tracks or animal_track(recording, seen, outlines, masks_say, keypoints_say)
    found += jump_findings(recording.camera_ids, *track, measures, recording.unit_mm)
    return CheckResult(
        Path(path), "recording", ordered(link(found, findings)), measures, seen,
        recording.camera_ids,
    )  # fmt: skip


def ordered(findings: list[Finding]) -> list[Finding]:
    """Most severe first; within a severity the order given (likelihood)."""
    return sorted(findings, key=lambda f: SEVERITIES.index(f.severity))


def link(seen: list[Finding], told: list[Finding]) -> list[Finding]:
    """Put findings that follow from another beneath it instead of beside it.

    Args:
        seen: what the pictures say, likeliest first.
        told: what files and calibration say on their own.
    """
    # A cause stands before what follows from it: an impossible calibration first, then what the
    # pictures showed, then the symptoms that either may have.
    late = [f for f in seen if f.code in SYMPTOMS]
    early = [f for f in told if f.code in IMPOSSIBLE and f.severity == "error"]
    early += [f for f in seen if f.code in NO_SILHOUETTES]
    middle = [f for f in [*seen, *told] if f not in late and f not in early]
    line = early + middle + late
    left = []
    for rank, finding in enumerate(line):
        for cause in line[:rank]:
            if _follows(finding, cause):
                cause.consequences.append(finding)
                if SEVERITIES.index(finding.severity) < SEVERITIES.index(cause.severity):
                    cause.severity = finding.severity
                break
        else:
            left.append(finding)
    return left


def _follows(finding: Finding, cause: Finding) -> bool:
    if cause.severity == "info" or finding.code not in CAUSED_BY.get(cause.code, ()):
        return False
    if cause.code in BLAMES_OTHERS:
        # But pictures that repeat, or have black margins, were seen without masks or calibration.
        return not {"repeats", "black_margin"} & set(finding.evidence)
    if finding.cameras and not set(finding.cameras) & set(cause.cameras):
        return False
    if (finding.code, cause.code) != ("mask_empty", "video_offset"):
        return True
    # Only as many masks as a video that starts late leaves empty.
    return finding.evidence["count"] <= abs(cause.evidence["frames"])


def _rig(recording: Recording) -> list[dict[str, Any]]:
    centres = np.stack([c.center for c in recording.cameras])
    axes = np.stack([np.asarray(c.c2w)[:3, 2] for c in recording.cameras])
    point = looked_at(centres, axes)
    c2w = np.stack([c.c2w for c in recording.cameras])
    azimuth, elevation = azimuth_elevation(c2w, point)
    rows = []
    for v, camera in enumerate(recording.cameras):
        K = np.asarray(camera.K)
        rows.append(
            {
                "camera": recording.camera_ids[v],
                "distance": np.linalg.norm(centres[v] - point),
                "azimuth_deg": azimuth[v], "elevation_deg": elevation[v],
                "fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2],
                "width": camera.width, "height": camera.height,
                "frames": recording.videos[v].n_frames, "fps": recording.videos[v].fps,
            }
        )  # fmt: skip
    return rows


def _geometries(
    recording: Recording, seen: Observations
) -> tuple[Geometry | None, Geometry | None]:
    outlines = keypoints = None
    if seen.has_masks and np.isfinite(seen.outlines).any():
        cameras = list(recording.cameras)
        for v, frames in enumerate(recording.masks or ()):
            # Where pictures and masks differ in size, outlines live in the mask's pixels.
            cameras[v] = dataclasses.replace(cameras[v], width=frames.width, height=frames.height)
        outlines = Geometry("outlines", seen.outlines, tuple(cameras), seen.window, seen.frames)
    if recording.evidence is not None:
        rows = recording.evidence[:, seen.frames]
        xy = np.where(rows[..., 2:] > SURE, rows[..., :2], np.nan)
        if np.isfinite(xy).any():
            keypoints = Geometry("keypoints", xy, recording.cameras, seen.window, seen.frames)
    return outlines, keypoints


def _unexplained(recording: Recording) -> float:
    """Misfit of silhouettes in pixels from which on a recording is unusable as it is."""
    return max(UNEXPLAINED * float(np.median([c.width for c in recording.cameras])) / 1152.0, 2.0)


def _conclude(
    recording: Recording,
    masks_say: list[Verdict],
    keypoints_say: Verdict | None,
    colour: ColourTest | None,
    fits: list[Fit],
) -> list[Finding]:
    """From who disagrees with whom to what is wrong."""
    found, explained = [], set()
    for verdict in masks_say:
        if verdict.best is not None:
            found.append(_fault(recording, verdict, keypoints_say, colour, fits))
            explained |= set(verdict.best.cameras)
    found += _colour_findings(recording, colour, fits, explained)
    if masks_say and masks_say[-1].best is None:
        left = masks_say[-1]
        if np.isfinite(left.before) and left.before > _unexplained(recording):
            worst = int(np.nanargmax(np.nanmean(left.pairs, 0)))
            evidence = {"tangent_px": left.before, "tried": _tried(left)}
            found.append(describe("masks_inconsistent", (recording.camera_ids[worst],), evidence))
    if keypoints_say is not None and keypoints_say.best is not None:
        if not any(v.best for v in masks_say):
            code = "keypoints_inconsistent" if masks_say else keypoints_say.best.code
            found.append(_from_keypoints(recording, keypoints_say, code))
    return found


def _fault(
    recording: Recording,
    verdict: Verdict,
    keypoints_say: Verdict | None,
    colour: ColourTest | None,
    fits: list[Fit],
) -> Finding:
    best = verdict.best
    numbers = tuple(recording.camera_ids[v] for v in best.cameras)
    code, altered = best.code, "pictures and masks"
    if code == "cameras_swapped":
        pairs = itertools.pairwise(best.cameras)
        if colour is not None and any(colour.exchanged(i, j) for i, j in pairs):
            code, altered = "masks_swapped", "masks"
    elif best.family == "pixels" and len(best.cameras) == 1 and fits:
        if fits[best.cameras[0]].code == code:
            altered = "masks"
    parameters = dict(best.parameters)
    if "row" in parameters:
        parameters["at"] = int(verdict.corrected.instants[round(parameters.pop("row"))])
    cropped = code == "video_cropped" and altered != "masks"
    if cropped and _calibration_is_odd(recording, best, keypoints_say):
        code, altered = "intrinsics_wrong", "calibration"
        parameters = _as_intrinsics(recording.cameras[best.cameras[0]], parameters)
    if code == "principal_points":
        parameters["pixel_origin"] = _origin(recording.pixel_shift, parameters)
    evidence = {
        **parameters,
        "tangent_px_before": verdict.before,
        "tangent_px_after": verdict.after,
        "altered": altered if best.family != "calibration" else "calibration",
        "alternatives": _tried(verdict),
    }
    if keypoints_say is not None:
        agree = best.same_fault(keypoints_say.best)
        evidence["keypoints_say_the_same"] = agree
        evidence["keypoint_px_before"] = keypoints_say.before
        evidence["keypoint_px_after"] = keypoints_say.after if agree else None
    return describe(code, numbers, evidence)


def _origin(shift: float, parameters: dict[str, float]) -> str:
    """The pixel origin whose principal points would fit, of those that programs use; or none."""
    wanted = shift - np.array([parameters["x"], parameters["y"]])
    near = {o: float(np.abs(wanted - s).mean()) for o, s in PIXEL_ORIGINS.items() if s is not None}
    best = min(near, key=lambda o: near[o])
    return best if near[best] < _NEAR_ORIGIN else ""


def _calibration_is_odd(
    recording: Recording, best: Hypothesis, keypoints_say: Verdict | None
) -> bool:
    """Whether K and not a crop explains pixels that are scaled and shifted against the calibration.

    The two are one geometry. If keypoints need the same correction, pictures, masks and keypoints
    agree and K is alone. Without keypoints, a mere shift in pictures of the usual size is more
    likely a wrong principal point: a crop would have made them smaller.
    """
    (v,) = best.cameras
    if keypoints_say is not None:
        told = keypoints_say.best
        crops = ("video_cropped", "intrinsics_wrong")
        return told is not None and told.cameras == (v,) and told.code in crops
    sizes = [(c.width, c.height) for c in recording.cameras]
    moved = best.parameters["scale_x"] == best.parameters["scale_y"] == 1.0
    return moved and sizes.count(sizes[v]) > 1


def _as_intrinsics(camera: Camera, p: dict[str, float]) -> dict[str, float]:
    """What K must be for pixels to fit that, multiplied by scale and shifted, fit the K given."""
    K = np.asarray(camera.K)
    factor = {k: p[f"scale_{k}"] for k in "xy"}
    off = {k: K[i, 2] - (K[i, 2] - p[f"shift_{k}"]) / factor[k] for i, k in enumerate("xy")}
    return {
        "factor": float(np.sqrt(factor["x"] * factor["y"])),
        **{f"factor_{k}": factor[k] for k in "xy"},
        **{f"principal_point_off_{k}": float(off[k]) for k in "xy"},
    }


def _tried(verdict: Verdict) -> list[dict[str, Any]]:
    return [
        {"code": h.code, "cameras": list(h.cameras), **h.parameters, "tangent_px_after": c}
        for h, c in verdict.others
    ]


def _colour_findings(
    recording: Recording, colour: ColourTest | None, fits: list[Fit], explained: set[int]
) -> list[Finding]:
    found, done = [], set(explained)
    frames = colour.seen.frames if colour else ()
    for v, fit in enumerate(fits):
        if not fit.code or v in done:
            continue
        done.add(v)
        numbers = [recording.camera_ids[v]]
        if fit.partner >= 0:
            numbers.append(recording.camera_ids[fit.partner])
            done.add(fit.partner)
        parameters = _from_picture(fit.parameters)
        if "row" in parameters:
            parameters["at"] = int(frames[round(parameters.pop("row"))])
        evidence = {
            **parameters,
            "altered": "pictures",
            "edge_strength_before": fit.before,
            "edge_strength_after": fit.after,
        }
        found.append(describe(fit.code, tuple(sorted(numbers)), evidence))
    return found


def _from_picture(parameters: dict[str, float]) -> dict[str, float]:
    """A crop's numbers from picture to mask, as elsewhere, where they were fitted the other way."""
    if "scale_x" not in parameters:
        return parameters
    scale = {k: 1.0 / parameters[f"scale_{k}"] for k in "xy"}
    return {
        **{f"scale_{k}": scale[k] for k in "xy"},
        **{f"shift_{k}": -parameters[f"shift_{k}"] * scale[k] for k in "xy"},
    }


def _from_keypoints(recording: Recording, verdict: Verdict, code: str) -> Finding:
    best: Hypothesis = verdict.best
    numbers = tuple(recording.camera_ids[v] for v in best.cameras)
    evidence = {
        **best.parameters,
        "likely": best.code,
        "keypoint_px_before": verdict.before,
        "keypoint_px_after": verdict.after,
        "altered": "keypoints" if code == "keypoints_inconsistent" else "pictures or calibration",
    }
    return describe(code, numbers, evidence)


def _measures(
    recording: Recording,
    seen: Observations,
    outlines: Geometry | None,
    masks_say: list[Verdict],
    keypoints_say: Verdict | None,
    fits: list[Fit],
) -> dict[str, Any]:
    out: dict[str, Any] = {"looked_at_frames": len(seen.frames)}
    if outlines is not None:
        cover = covers(seen.masks, outlines.cameras)
        out["hull_cover_mean"] = _mean(cover, 0)
        out["hull_cover_min"] = np.fmin.reduce(cover, 0)
        out["tangent_px"] = masks_say[0].pairs
        sizes = [c.width * c.height for c in outlines.cameras]
        out["mask_share"] = _mean(seen.areas, 1) / sizes
        out["picture_mask_edge_strength"] = [f.before for f in fits]
        out["brightness_of_animal"] = _mean(seen.colours, 1)
        best = masks_say[0].best
        if best is not None and best.family == "calibration":
            after = covers(seen.masks, masks_say[0].corrected.cameras)
            out["hull_cover_mean_if_corrected"] = _mean(after, 0)
    if keypoints_say is not None:
        out["keypoint_epipolar_px"] = keypoints_say.pairs
        out["keypoint_reprojection_px"] = _reprojection(recording, seen)
    return out


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is known along an axis; NaN (null in check.json) where nothing is."""
    known = np.isfinite(values)
    n = known.sum(axis)
    return np.where(n > 0, np.where(known, values, 0).sum(axis) / np.maximum(n, 1), np.nan)


def covers(masks: list[np.ndarray], cameras: tuple[Camera, ...]) -> np.ndarray:
    """Hull cover [k,V] of k instants; masks per camera [k,H,W]."""
    n = min((len(m) for m in masks), default=0)
    if not n:
        return np.full((1, len(cameras)), np.nan)
    return np.stack([hull_cover([m[k] for m in masks], cameras) for k in range(n)])


def _reprojection(recording: Recording, seen: Observations) -> list[float]:
    """Median reprojection error of the keypoints per camera, pixels."""
    rows = recording.keypoints[:, seen.frames[:: max(1, len(seen.frames) // 20)]]
    flat = rows.reshape(recording.n_views, -1, 3)
    cameras = stack_cameras(recording.cameras, any_size=True)
    weights = np.where(flat[..., 2] > SURE, 1.0, 0.0)
    points = triangulate(flat[..., :2], cameras, weights)
    with np.errstate(invalid="ignore"):
        error = np.asarray(reprojection_error(points, flat[..., :2], cameras))
    error = np.where(weights > 0, error, np.nan)
    return [float(np.nanmedian(e)) if np.isfinite(e).any() else float("nan") for e in error]
