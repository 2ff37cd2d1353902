"""Is a sample set consistent? The grade's measurements as findings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mouselift_jax.data.check.observe import Observations
from mouselift_jax.data.check.recording import CheckResult, ordered
from mouselift_jax.data.findings import Finding
from mouselift_jax.data.samples.grade import grade_samples
from mouselift_jax.data.samples.sample_set import MANIFEST, Sample, SampleSet
from mouselift_jax.errors import MouseLiftError
from mouselift_jax.geometry.validate import validate_cameras

_SHEET_SAMPLES = 4


def check_samples(path: str | Path, *, max_samples: int = 24) -> CheckResult:
    """Check that the pictures and cameras of a sample set agree, and grade it.

    Args:
        path: a sample set, a prepare run's workdir, a list file or one sample.
        max_samples: samples to look at, evenly chosen.

    Raises:
        LayoutError: there are no samples.
    """
    path = Path(path)
    inner = path / "samples"
    samples = SampleSet.open(inner if (inner / MANIFEST).exists() else path)
    grade = grade_samples(samples, max_samples=max_samples)
    findings = _camera_findings(samples, max_samples)
    findings += _geometry_findings(grade)
    findings += _picture_findings(grade)
    for text in grade["unreadable"]:
        findings.append(Finding("sample_unreadable", "error", text, fix="prepare it again"))
    measures = {"grade": {k: v for k, v in grade.items() if k != "rows"}, "samples": len(samples)}
    per_view = grade["measures"].get("hull_cover_per_view")
    if per_view is not None:
        measures["hull_cover_mean"] = per_view
    seen, numbers = _pictures(samples)
    return CheckResult(path, "samples", ordered(findings), measures, seen, numbers)


def _camera_findings(samples: SampleSet, max_samples: int) -> list[Finding]:
    ids = samples.ids("all")
    for i in np.unique(np.linspace(0, len(ids) - 1, max_samples).astype(int)):
        try:
            cameras = samples.cameras(ids[i])
            if cameras is not None:
                validate_cameras(cameras)
        except MouseLiftError as error:
            where = "" if error.where is None else str(error.where)
            message = f"{ids[i]}: {error.what}"
            return [Finding("camera_invalid", "error", message, fix=error.fix or "", where=where)]
    return []


def _geometry_findings(grade: dict) -> list[Finding]:
    parts, measures = grade["parts"], grade["measures"]
    worst = max((parts.get("hull_cover", "A"), parts.get("tangent", "A")))
    if worst in "AB":
        return []
    evidence = {k: measures[k] for k in ("hull_cover", "tangent", "centre_offset", "size_cv")}
    message = (
        f"pictures and cameras disagree: the visual hull covers {measures['hull_cover']:.3f} of "
        f"the masks, silhouettes miss each other by {measures['tangent']:.2%} of the picture's side"
    )
    if measures["centre_offset"] is not None and measures["centre_offset"] < 0.02:
        message += "; every view is centred on its own, which no camera explains"
    fix = "prepare the set with mode look_at or crop, which carry the cameras along"
    severity = "error" if worst == "D" else "warning"
    return [Finding("samples_inconsistent", severity, message, (), fix, evidence)]


def _picture_findings(grade: dict) -> list[Finding]:
    measures, found = grade["measures"], []
    if measures.get("empty_views"):
        message = f"the mask is empty in {measures['empty_views']:.1%} of the views looked at"
        found.append(Finding("mask_empty", "warning", message, fix="prepare with min_mask_px"))
    if grade["parts"].get("clipped_views", "A") in "CD":
        message = f"the animal is cut by the border in {measures['clipped_views']:.1%} of the views"
        fix = "prepare again with a lower prepare.fill, or a higher prepare.subject_mm"
        found.append(Finding("animal_clipped", "warning", message, fix=fix))
    if measures.get("hull_cover") is None:
        message = "no alpha or no cameras: pictures cannot be held against cameras"
        found.append(Finding("masks_absent", "info", message))
    return found


def _pictures(samples: SampleSet) -> tuple[Observations | None, tuple[int, ...]]:
    ids = samples.ids("all")
    loaded: list[Sample] = []
    for i in np.unique(np.linspace(0, len(ids) - 1, _SHEET_SAMPLES).astype(int)):
        try:
            loaded.append(samples.load(ids[i]))
        except MouseLiftError:
            continue  # named among the unreadable ones
    shape = loaded[0].images_rgba.shape if loaded else None
    loaded = [s for s in loaded if s.images_rgba.shape == shape]
    if not loaded:
        return None, ()
    n = min(shape[0], 8)
    rows = np.arange(len(loaded))
    thumbnails = [np.stack([_on_white(s.images_rgba[v]) for s in loaded]) for v in range(n)]
    frames = np.array([s.frame for s in loaded])
    none = np.zeros((n, len(loaded)))
    seen = Observations(
        frames, np.zeros_like(frames), np.zeros((n, len(loaded), 1, 2)), none, [], [], [], none, [],
        rows, thumbnails, True,
    )  # fmt: skip
    return seen, tuple(int(c) for c in loaded[0].camera_ids[:n])


def _on_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return (rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
