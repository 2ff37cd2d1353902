"""What a set of one rig says of itself: figures of the fits, spread of the cameras, complaints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.samples.rig_file import rig_words
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.files import write_bytes_atomic
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.median_rig import Rig, median_rig
from mouselift_jax.report.html import Picture, Section, Table, Text, write_report
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.stages.multiview import from_fits
from mouselift_jax.stages.multiview.fits import FitRun, Fitted

UNSURE = 0.15  # lopsidedness of a body below which its head and tail may be taken for each other
LEAST_COVER = 0.995  # of the rig's views by their visual hull: below, the fit is haze at its edge


def unjudged(fitted: list[Fitted]) -> list[str]:
    """Ids of the frames from whose fit no camera was hidden."""
    return [f.id for f in fitted if f.hidden is None and not f.spoilt]


def spread_table(rig: Rig) -> Table:
    """How far samples stray from the median camera of each slot."""
    rows = [
        [str(i), float(d), float(p)]
        for i, (d, p) in enumerate(zip(rig.spread_deg, rig.spread_px, strict=True))
    ]
    return Table(["slot", "camera spread, degrees", "camera spread, px"], rows)


def finish_rig_set(
    workdir: Workdir,
    make: from_fits.Maker,
    todo: list[Fitted],
    written: dict[str, Any],
    shown: dict[str, Path],
) -> None:
    """Summary and report of a set made from fits."""
    s, run = make.settings, make.run
    rows = [r for r in written["samples"] if r["status"] == "ok"]
    rig = rig_of(SampleSet.open(workdir / "samples"), make.n_rig)
    metrics = {
        "samples": float(len(rows)),
        "left_out": float(len(written["samples"]) - len(rows)),
        "rig/spread_px": float(np.max(rig.spread_px)),
        "synth/hull_cover": float(np.mean([r["hull_cover"] for r in rows])),
        "synth/hull_cover_min": float(np.min([r["hull_cover"] for r in rows])),
    }
    judged = [r["heldout_iou"] for r in rows if "heldout_iou" in r]
    if judged:
        metrics |= {"heldout/iou": float(np.mean(judged)), "heldout/iou_min": float(min(judged))}
    for text in _complaints(s, run, todo, written["samples"]):
        workdir.warn(text)
    hidden = (
        f"hidden cameras met {len(judged)} of their fits with a mean silhouette IoU of "
        f"{metrics['heldout/iou']:.3f}, the worst {metrics['heldout/iou_min']:.3f}"
        if judged
        else "no hidden camera says how good they are"
    )
    first = {
        "rendered": "All views are drawn from the fits.",
        "real": "Slot 0 is the real picture from nearest there, with its own camera.",
    }[s.reference]
    text = (
        f"{len(rows)} samples of {run.path}, each seen by {make.cameras.batch_shape[0]} cameras: "
        f"{rig_words(rig)}, then {s.further} further ones. {first} Cameras are exact; the animal "
        f"is as good as the fits are: {hidden}. What no camera of the recording saw is invented."
    )
    table = Table(
        ["sample", "of", "hidden cameras' IoU", "their interior, dB", "hull cover", "cut off, %"],
        [[r["id"], r["source"], r.get("heldout_iou", math.nan),
          r.get("heldout_interior_psnr", math.nan), r["hull_cover"], 100 * r["outside"]]
         for r in rows[:200]],
    )  # fmt: skip
    blocks = [Text(text), *[Picture(p, c) for c, p in shown.items()], table, spread_table(rig)]
    artefacts = {"samples": "samples", "report": "report.html"}
    if shown:
        write_bytes_atomic(workdir / "views.png", next(iter(shown.values())).read_bytes())
        artefacts["views"] = "views.png"
    inputs = {"fits": str(run.path), "samples": str(run.samples.path), "rig": s.rig}
    record = dict(steps=len(todo), metrics=metrics, artefacts=artefacts, inputs=inputs)
    workdir.summary(finished=False, **record)  # the report reads it
    sections = [Section("Views drawn from fits", blocks)]
    write_report(workdir.path, title="Samples of one rig", sections=sections)
    workdir.summary(finished=True, **record)


def rig_of(samples: SampleSet, n: int) -> Rig:
    """The median of the first n cameras over the samples of a set, and their spread."""
    cameras = [samples.cameras(i)[np.arange(n)] for i in samples.ids("all")]
    both = (
        np.stack([np.asarray(getattr(c, k), np.float64) for c in cameras]) for k in ("K", "c2w")
    )
    return median_rig(Camera(*both, cameras[0].width, cameras[0].height))


def _complaints(
    settings: from_fits.RigSettings,
    run: FitRun,
    todo: list[Fitted],
    rows: list[dict[str, Any]],
) -> list[str]:
    """What lowers the quality of a set made from fits, each with its count."""
    found = []
    whole = [r for r in rows if r["status"] == "ok"]
    bad = [r for r in rows if r["status"] != "ok"]
    if bad:
        worst = min(bad, key=lambda r: r["heldout_iou"])
        found.append(
            f"{len(bad)} of {len(rows)} fitted frames were left out: their hidden cameras' IoU is "
            f"below {settings.least_iou:g} (worst: {worst['source']}, {worst['heldout_iou']:.3f})"
        )
    if run.skipped:
        found.append(f"{len(run.skipped)} frames are not there: fit itself left them out")
    spoilt = [f.id for f in todo if f.spoilt]
    if spoilt:
        found.append(
            f"{len(spoilt)} of {len(todo)} fits, {spoilt[0]} first, had cameras hidden whose IoU "
            "is missing or no number (no animal in their masks?), so bad ones cannot be told; hide "
            "others: --config.heldout_cameras=N"
        )
    blind = unjudged(todo)
    if blind:
        found.append(
            f"{len(blind)} of {len(todo)} fits were not judged, {blind[0]} first: no camera "
            "was hidden from them, so bad ones cannot be told; fit once more with "
            "--config.heldout_cameras=N, to know"
        )
    for key, limit, words in (
        ("outside", from_fits.CUT, "show the animal cut off by a picture's edge: lower zoom"),
        ("hull_cover", LEAST_COVER, f"have rig views that agree to less than {LEAST_COVER:.1%} "
         "(hull cover): their fits have haze for an outline"),
        ("heading_sure", UNSURE, "show bodies whose head and tail look alike: they may face "
         "backwards"),
    ):  # fmt: skip
        if key == "heading_sure" and settings.heading != "front":
            continue
        over = [r for r in whole if (r[key] > limit if key == "outside" else r[key] < limit)]
        if over:
            found.append(f"{len(over)} of {len(whole)} samples, {over[0]['id']} first, {words}")
    return found
