"""The quality of a sample set, A to D, with reasons.

The grade is the worst of its parts, and the first part is geometry: pictures that do not agree with
their cameras cannot be lifted, however evenly sized and centred they are. (A score made of
evenness alone gives its best mark to sets whose views were each scaled on their own, which no
camera explains.)
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from mouselift_jax.data.samples.sample_set import Sample, SampleSet
from mouselift_jax.errors import MouseLiftError
from mouselift_jax.geometry.hull import hull_cover, outline, tangent_residuals

GRADES = "ABCD"
# Limits for A, B and C; beyond the last it is D. Lengths are shares of the picture's side.
_LIMITS = {
    "hull_cover": (0.99, 0.97, 0.90),  # at least; true 0.999, one focal length 5 % off 0.983
    "tangent": (0.003, 0.008, 0.02),  # at most; true samples measured below 0.001
    "clipped_views": (0.0, 0.03, 0.10),  # share of views in which the animal is cut by the border
    "size_cv": (0.25, 0.40, 0.60),  # of one camera over time: poses differ, cameras must not jump
    "centre_offset": (0.12, 0.20, 0.30),  # median distance of the mask's centroid from the middle
    "brightness_spread": (0.25, 0.5, 1.0),  # brightest over darkest camera, minus one
    "size": (0.12, 0.08, 0.04),  # at least: square root of the animal's share of the picture
}
_AT_LEAST = ("hull_cover", "size")
_WORDS = {
    "hull_cover": "visual hull covers {:.3f} of the masks",
    "tangent": "silhouettes miss each other by {:.4f} of the picture's side",
    "clipped_views": "the animal is cut by the border in {:.1%} of the views",
    "size_cv": "its size varies by {:.0%} within a camera",
    "centre_offset": "it sits {:.0%} of the side off the middle",
    "brightness_spread": "cameras differ in brightness by {:.0%}",
    "size": "it fills only {:.0%} of the side",
}


def grade_samples(samples: SampleSet, *, max_samples: int = 24) -> dict[str, Any]:
    """Measure and grade a sample set.

    Args:
        samples: the set.
        max_samples: samples to look at, evenly chosen.

    Returns:
        {grade, reasons[], parts{name: letter}, measures{...}, samples, unreadable[], rows[]}; parts
        that cannot be measured (no cameras, no alpha) are absent and named in the reasons.
    """
    ids = samples.ids("all")
    chosen = [ids[i] for i in np.unique(np.linspace(0, len(ids) - 1, max_samples).astype(int))]
    rows, unreadable = [], []
    for name in chosen:
        try:
            rows.append(measure_sample(samples.load(name)))
        except MouseLiftError as error:
            unreadable.append(f"{name}: {error.what}")
    measures = _summarise(rows)
    parts = {k: letter(k, v) for k, v in measures.items() if k in _LIMITS and v is not None}
    worst = max(parts.values(), default="D", key=GRADES.index)
    reasons = [
        f"{p}: {_WORDS[k].format(measures[k])}"
        for k, p in sorted(parts.items(), key=lambda item: -GRADES.index(item[1]))
        if p != "A"
    ]
    consistent = [parts[k] for k in ("hull_cover", "tangent") if k in parts]
    if not consistent:
        reasons.insert(0, "geometry unknown: the set has no alpha or fewer than two cameras")
        worst = max(worst, "C", key=GRADES.index)
    elif "D" in consistent:
        reasons.insert(0, "geometrically inconsistent: pictures and cameras disagree")
    if unreadable:
        reasons.insert(0, f"{len(unreadable)} of {len(chosen)} samples cannot be read")
        worst = "D"
    return {
        "grade": worst,
        "reasons": reasons,
        "parts": parts,
        "measures": measures,
        "samples": len(rows),
        "unreadable": unreadable,
        "rows": rows,
    }


def letter(part: str, value: float) -> str:
    """The grade of one part."""
    limits = _LIMITS[part]
    for grade, limit in zip(GRADES, limits, strict=False):
        if value >= limit if part in _AT_LEAST else value <= limit:
            return grade
    return "D"


def measure_sample(sample: Sample) -> dict[str, Any]:
    """Numbers of one sample; lists run over its views."""
    alpha = sample.images_rgba[..., 3] > 127
    side = float(np.sqrt(alpha.shape[1] * alpha.shape[2]))
    row: dict[str, Any] = {"id": sample.id, "camera_ids": sample.camera_ids.tolist()}
    if not sample.has_alpha or alpha.all():
        return row
    border = np.zeros(alpha.shape[1:], bool)
    border[[0, -1]], border[:, [0, -1]] = True, True
    row["clipped"] = [bool((m & border).any()) for m in alpha]
    row["empty"] = [not m.any() for m in alpha]
    row["size"] = [float(np.sqrt(m.mean())) for m in alpha]
    row["centre_offset"] = [_centre_offset(m) / side for m in alpha]
    grey = sample.images_rgba[..., :3].astype(np.float32).mean(-1)
    row["brightness"] = [float(g[m].mean()) if m.any() else None for g, m in zip(grey, alpha, strict=True)]  # fmt: skip  # noqa: E501
    row["histogram"] = [
        np.histogram(g[m], bins=16, range=(0, 256))[0].tolist()
        for g, m in zip(grey, alpha, strict=True)
    ]
    if sample.cameras is None or len(alpha) < 2:
        return row
    cameras = [sample.cameras[v] for v in range(len(alpha))]
    row["hull_cover"] = hull_cover(list(alpha), cameras, rays=200).tolist()
    row["tangent"] = _tangent(alpha, cameras) / side
    return row


def _centre_offset(mask: np.ndarray) -> float:
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return float("nan")
    height, width = mask.shape
    return float(np.hypot(columns.mean() + 0.5 - width / 2, rows.mean() + 0.5 - height / 2))


def _tangent(alpha: np.ndarray, cameras: list) -> float:
    """Median misfit of the silhouettes' tangents over the pairs of views, pixels."""
    outlines = [outline(m)[None] for m in alpha]
    pairs = list(itertools.combinations(range(len(alpha)), 2))
    pairs = pairs[:: max(1, len(pairs) // 60)]
    found = [
        tangent_residuals(outlines[i], outlines[j], cameras[i], cameras[j]).ravel()
        for i, j in pairs
    ]
    known = np.concatenate(found)
    known = known[np.isfinite(known)]
    return float(np.median(known)) if len(known) else float("nan")


def _summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def table(key: str) -> np.ndarray:
        values = [np.ravel(np.asarray(r[key], np.float64)) for r in rows if key in r]
        longest = max((len(v) for v in values), default=0)
        return np.array([np.pad(v, (0, longest - len(v)), constant_values=np.nan) for v in values])

    out: dict[str, Any] = {}
    with np.errstate(all="ignore"):
        for key, how in (
            ("hull_cover", np.nanmean), ("tangent", np.nanmean), ("size", np.nanmean),
            ("centre_offset", np.nanmedian),
        ):  # fmt: skip
            values = table(key)
            out[key] = float(how(values)) if np.isfinite(values).any() else None
        clipped, size, brightness = table("clipped"), table("size"), table("brightness")
        out["clipped_views"] = float(clipped.mean()) if clipped.size else None
        out["empty_views"] = float(table("empty").mean()) if clipped.size else None
        if size.size:
            per_view = np.nanstd(size, 0) / np.nanmean(size, 0)
            out["size_cv"] = float(np.nanmean(per_view))
            out["size_cv_all_views"] = float(np.nanstd(size) / np.nanmean(size))
            out["hull_cover_per_view"] = np.nanmean(table("hull_cover"), 0).tolist() if any(
                "hull_cover" in r for r in rows) else None  # fmt: skip
            means = np.nanmean(brightness, 0)
            out["brightness_per_view"] = means.tolist()
            out["brightness_spread"] = float(np.nanmax(means) / max(np.nanmin(means), 1e-3) - 1)
            histograms = [np.array(r["histogram"]) for r in rows if "histogram" in r]
            same = [h for h in histograms if h.shape == histograms[0].shape]
            out["histogram_per_view"] = np.sum(same, 0).tolist()
        else:
            out["size_cv"] = out["brightness_spread"] = None
    return out


def grade_table(graded: list[tuple[str, dict[str, Any]]]) -> str:
    """Several sets side by side, as text.

    Args:
        graded: (name, what `grade_samples` returned) of each set.
    """
    columns = ("hull_cover", "tangent", "clipped_views", "size", "size_cv", "centre_offset",
               "brightness_spread")  # fmt: skip
    head = ["set", "grade", "samples", *columns]
    body = []
    for name, result in graded:
        cells = []
        for key in columns:
            value = result["measures"].get(key)
            known = value is not None
            cells.append(f"{value:.4f} {result['parts'][key]}" if known else "-")
        body.append([name, result["grade"], str(result["samples"]), *cells])
    widths = [max(len(r[i]) for r in [head, *body]) for i in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in [head, *body]]
    for name, result in graded:
        lines += [f"{name}: {reason}" for reason in result["reasons"]]
    return "\n".join(line.rstrip() for line in lines)
