"""Training curves from metrics.jsonl as inline SVG."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np

from mouselift_jax.runs.rows import read_rows

Series = dict[str, tuple[np.ndarray, np.ndarray]]  # "train/loss" -> (steps, values)

# One colour a split, the same in every plot.
COLOURS = {"train": "#5f6b7a", "val": "#0072b2", "heldout": "#d55e00"}
_OTHERS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Metrics that say how good a run is come first; the others follow in the order they were logged.
_FIRST = ("loss", "psnr", "ssim", "iou")


def read_metrics(path: str | Path) -> Series:
    """Columns of metrics.jsonl against their steps; empty when there is no file."""
    columns: dict[str, list[tuple[float, float]]] = {}
    for row in read_rows(path):
        step = float(row["step"])
        for key, value in row.items():
            if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                columns.setdefault(key, []).append((step, float(value)))
    return {key: _sorted(points) for key, points in columns.items()}


def _sorted(points: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """By step; of a step logged twice (after a resume) the later row counts."""
    last = dict(points)
    steps = np.array(sorted(last))
    return steps, np.array([last[s] for s in steps])


def curves_svg(metrics: Series, *, max_plots: int = 16) -> list[tuple[str, str]]:
    """One (name, svg) for each metric name, its splits in one plot."""
    groups: dict[str, list[str]] = {}
    for key in metrics:
        groups.setdefault(key.rpartition("/")[2], []).append(key)
    groups = {g: keys for g, keys in groups.items() if any(len(metrics[k][0]) > 1 for k in keys)}
    order = sorted(groups, key=lambda g: _FIRST.index(g) if g in _FIRST else len(_FIRST))
    return [(g, _plot(g, {k: metrics[k] for k in groups[g]})) for g in order[:max_plots]]


def _plot(name: str, series: Series) -> str:
    # The object interface, not pyplot: no global state and no display.
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 9}
    ):
        figure = Figure(figsize=(4.6, 2.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        spare = iter(_OTHERS * 4)
        low, high = np.inf, -np.inf
        for key, (steps, values) in series.items():
            split = key.rpartition("/")[0] or "value"
            colour = COLOURS.get(split) or next(spare)
            steps, values = _thinned(steps, values)
            axes.plot(steps, values, color=colour, lw=1.4, label=split, gid=f"{name}-{split}")
            if len(steps) < 30:
                axes.plot(steps, values, ".", color=colour, ms=4)
            finite = values[np.isfinite(values)]
            if len(finite):
                low, high = min(low, finite.min()), max(high, finite.max())
        if low > 0 and high / low > 20 and name not in ("psnr", "ssim", "iou"):
            axes.set_yscale("log")
        axes.set_title(name, loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(series) > 1 or set(series) & {name}:
            axes.legend(frameon=False, fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # The picture scales with its column instead of keeping its size in points.
    svg = re.sub(r'<svg ([^>]*?)width="[^"]+" height="[^"]+"|<svg height="[^"]+" ', r"<svg \1", svg)
    return re.sub(r'\b(?:clip-path|id)="([^"]*)"', lambda m: _unique(m, name), svg)


def _unique(match: re.Match[str], name: str) -> str:
    """Ids are global in a page: two plots must not share a clip path."""
    return (
        match.group(0).replace("#", f"#{name}-")
        if "#" in match.group(0)
        else (match.group(0).replace('id="', f'id="{name}-', 1))
    )


def _thinned(steps: np.ndarray, values: np.ndarray, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """At most `n` points: means of equal groups."""
    if len(steps) <= n:
        return steps, values
    groups = np.array_split(np.arange(len(steps)), n)
    return (
        np.array([steps[g].mean() for g in groups]),
        np.array([values[g].mean() for g in groups]),
    )
