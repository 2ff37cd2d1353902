"""Figures of hidden views by several methods as a table with intervals, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mouselift_jax.report.html import Table
from mouselift_jax.report.statistics import Interval, mean_interval
from mouselift_jax.report.verdict import Verdict, difference, standing, told, verdict

FIGURES = ("psnr", "ssim", "iou", "interior_psnr", "specks")
HEADERS = ("PSNR (dB)", "SSIM", "silhouette IoU", "interior PSNR (dB)", "specks (%)")
NAMES = {"gslrm": "the network", "fit": "fit", "hull": "the visual hull",
         "nearest": "the nearest view"}  # fmt: skip


def per_sample(rows: Sequence[dict], method: str, figure: str) -> dict[str, float]:
    """Mean of a figure over the held-out views of each sample."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["method"] == method:
            values.setdefault(row["sample"], []).append(row[figure])
    return {k: float(np.nanmean(v)) if np.isfinite(v).any() else np.nan for k, v in values.items()}


def shown_figures(rows: Sequence[dict], block: int = 1) -> list[Interval]:
    """Mean and interval of each of FIGURES over rows, specks in percent."""
    scale = {"specks": 100.0}
    return [
        mean_interval(scale.get(f, 1.0) * np.array([r[f] for r in rows], float), block=block)
        for f in FIGURES
    ]


def _means(rows: Sequence[dict], method: str) -> dict[str, dict[str, float]]:
    """Of each sample that the method could draw the figures' means."""
    columns = {f: per_sample(rows, method, f) for f in FIGURES}
    return {i: {f: columns[f][i] for f in FIGURES} for i in columns[FIGURES[0]]}


def summarise(
    rows: Sequence[dict], methods: Sequence[str], block: int
) -> tuple[Table, dict[str, float]]:
    """The table methods x figures, and the scalars of the summary.

    `heldout/` are the figures of the first method, the one that the run is about.
    """
    metrics: dict[str, float] = {}
    lines: list[list[Any]] = []

    def keep(prefix: str, intervals: Sequence[Interval]) -> None:
        for figure, interval in zip(FIGURES, intervals, strict=True):
            metrics[f"{prefix}/{figure}"] = interval.mean
            metrics[f"{prefix}/{figure}_low"] = interval.low
            metrics[f"{prefix}/{figure}_high"] = interval.high

    means = {method: _means(rows, method) for method in methods}
    first = methods[0]
    for method in methods:
        intervals = shown_figures(list(means[method].values()), block)
        lines.append([method, *map(str, intervals)])
        keep(method, intervals)
    keep("heldout", shown_figures(list(means[first].values()), block))
    flat = mean_interval(
        np.array(list(per_sample(rows, first, "mean_color_psnr").values())), block=block
    )
    lines.append(["true mean colour", *["\u2013"] * 3, str(flat), "\u2013"])
    metrics["heldout/mean_color_psnr"] = flat.mean
    for other in methods[1:]:
        both = [i for i in means[first] if i in means[other]]
        gains = [{f: means[first][i][f] - means[other][i][f] for f in FIGURES} for i in both]
        intervals = shown_figures(gains, block)
        lines.append([f"{first} minus {other}", *map(str, intervals)])
        keep(f"{first}_minus_{other}", intervals)
    caption = "Mean over samples [95 % interval] of views that no method was given."
    finite = {k: v for k, v in metrics.items() if np.isfinite(v)}
    return Table(["method", *HEADERS], lines, caption), finite


def verdicts(
    rows: Sequence[dict], methods: Sequence[str], *, where: str, block: int
) -> list[Verdict]:
    """Sentences that a biologist can act on: of each method that makes Gaussians, then of both.

    Args:
        rows: a method's figures of one hidden view each.
        methods: that were asked for, in order.
        where: cameras and resolution, in words.
        block: neighbouring samples that are drawn together in the bootstrap.
    """
    made = [m for m in methods if m in ("gslrm", "fit")]
    keys = ("iou", "interior_psnr", "mean_color_psnr")
    said = []
    for method in made or methods[:1]:
        own = {k: per_sample(rows, method, k) for k in keys}
        hull = per_sample(rows, "hull", "iou") if method != "hull" else {}
        by_sample = [
            {k: own[k][i] for k in keys} | ({"hull_iou": hull[i]} if i in hull else {})
            for i in own["iou"]
        ]
        instead = {"gslrm": "do not use its shapes; `fit` needs no training",
                   "fit": "do not use it, and let `check` look at cameras and masks"}  # fmt: skip
        said.append(verdict(by_sample, who=NAMES[method], where=where, block=block,
                            instead=instead.get(method, "do not use it")))  # fmt: skip
    if {"gslrm", "fit"} <= set(methods):
        said.append(_network_and_fit(rows, block))
    return said


def _network_and_fit(rows: Sequence[dict], block: int) -> Verdict:
    """Which of the two, from the same views."""
    ours, theirs = ({f: per_sample(rows, m, f) for f in ("iou", "interior_psnr")}
                    for m in ("gslrm", "fit"))  # fmt: skip
    pairs = [
        {"a": ours["iou"][i], "b": theirs["iou"][i],
         "c": ours["interior_psnr"][i], "d": theirs["interior_psnr"][i]}
        for i in ours["iou"] if i in theirs["iou"]
    ]  # fmt: skip
    shape, colour = difference(pairs, "a", "b", block), difference(pairs, "c", "d", block)
    outcome = {standing(shape), standing(colour)}
    if "better" in outcome and "worse" in outcome:
        word, then = "wins one and loses one against", "use the one whose figure matters to you"
    elif "worse" in outcome:
        word, then = "loses to", "use `fit`; the network only where its speed is needed"
    elif "better" in outcome:
        word, then = "beats", "use the network"
    else:
        word, then = "is not surely different from", "use whichever is faster for you"
    said = (
        f"The network {word} `fit`: silhouette IoU {told(shape, '{:+.3f}')}, interior PSNR "
        f"{told(colour, '{:+.1f}')} dB: {then}."
    )
    return Verdict(said, "worse" if word == "loses to" else "unknown")
