"""The grades of several sample sets as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_SHOWN = (
    ("hull_cover", "visual hull cover"),
    ("tangent", "silhouette misfit / side"),
    ("clipped_views", "views cut by the border"),
    ("size", "size / side"),
    ("size_cv", "size variation"),
    ("centre_offset", "offset from the middle"),
)
_COLOURS = {"A": "#009e73", "B": "#56b4e9", "C": "#e69f00", "D": "#d55e00"}


def grade_plot(graded: Sequence[tuple[str, dict[str, Any]]]) -> np.ndarray:
    """Bars of each measure per set, coloured by its grade, as uint8 RGB [H,W,3].

    Args:
        graded: (name, result of `data.grade.grade_samples`) of each set.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.6 + 0.9 * len(graded)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    names = [f"{name[-28:]} ({result['grade']})" for name, result in graded]
    for axis, (key, title) in zip(axes.ravel(), _SHOWN, strict=True):
        values = [result["measures"].get(key) for _, result in graded]
        letters = [result["parts"].get(key, "D") for _, result in graded]
        heights = [np.nan if v is None else v for v in values]
        axis.barh(names, heights, color=[_COLOURS[p] for p in letters])
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.invert_yaxis()
        if axis not in axes[:, 0]:
            axis.set_yticklabels([])
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
