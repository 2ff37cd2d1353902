"""One sentence on whether to use a reconstruction: hidden views against what needs no learning.

Two yardsticks: the visual hull for the shape (silhouette IoU), and painting the animal in its true
mean colour for the texture (PSNR inside it). Both are compared frame by frame.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mouselift_jax.report.statistics import Interval, mean_interval

FEWEST = 3  # frames of which an interval is given
WORDS = {"better": "better than", "unsure": "not surely better than", "worse": "worse than"}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a run says of itself.

    Attributes:
        text: for people, whole sentences.
        outcome: better | unsure | worse than the yardsticks; unknown where nothing was hidden.
    """

    text: str
    outcome: str

    def record(self) -> dict[str, str]:
        """As summary.json keeps it."""
        return dataclasses.asdict(self)


def verdict(  # noqa: PLR0913 - each is a word or number of one sentence
    rows: Sequence[Mapping[str, float]],
    *,
    who: str,
    where: str,
    block: int = 1,
    use: str = "use it where these cameras look",
    instead: str = "do not use it",
) -> Verdict:
    """The verdict on one method.

    Args:
        rows: of each frame the means over its hidden views: `iou`, `interior_psnr`,
            `mean_color_psnr`, and `hull_iou` where the hull was drawn too.
        who: the method, "the fit".
        where: on what it was judged, "camera 3, 512 px".
        block: neighbouring frames that are drawn together in the bootstrap.
        use: advice when it is better than both yardsticks.
        instead: advice when it is worse than one.
    """
    shape = difference(rows, "iou", "hull_iou", block)
    colour = difference(rows, "interior_psnr", "mean_color_psnr", block)
    if not rows or (shape.n == 0 and colour.n == 0):
        return Verdict(f"Nothing can be said of {who}: no hidden view shows the animal.", "unknown")
    iou = np.mean([r["iou"] for r in rows])
    parts = []
    if shape.n:
        of = "" if shape.n == len(rows) else f"; the hull was drawn in {shape.n} frames"
        parts.append((standing(shape), "the visual hull in shape",
                      f"silhouette IoU {iou:.3f}, {told(shape, '{:+.3f}')}{of}"))  # fmt: skip
    if colour.n:
        psnr = np.nanmean([r["interior_psnr"] for r in rows])
        parts.append((standing(colour), "painting the animal in its mean colour",
                      f"{psnr:.1f} dB inside it, {told(colour, '{:+.1f}')} dB"))  # fmt: skip
    outcomes = [p[0] for p in parts]
    worst = next(o for o in ("worse", "unsure", "better") if o in outcomes)
    said = ", and ".join(f"{WORDS[o]} {what} ({figure})" for o, what, figure in parts)
    frames = f"{len(rows)} frame{'s' if len(rows) > 1 else ''}"
    few = f"; {FEWEST} frames or more make an interval" if len(rows) < FEWEST else ""
    advice = {"better": use, "worse": instead,
              "unsure": "look at it before you use it: the interval reaches 0"}[worst]  # fmt: skip
    if worst == "unsure" and len(rows) < FEWEST:
        advice = "look at it before you use it"
    text = f"In hidden views ({where}; {frames}{few}) {who} is {said}: {advice}."
    return Verdict(text, worst)


def difference(rows: Sequence[Mapping[str, float]], a: str, b: str, block: int) -> Interval:
    """Mean and interval of a - b over the rows that have both."""
    values = [r.get(a, math.nan) - r.get(b, math.nan) for r in rows]
    return mean_interval(np.array(values, float), block=block)


def standing(difference: Interval) -> str:
    """Whether an interval lies above 0 ("better"), across it ("unsure") or below ("worse")."""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "unsure"


def told(value: Interval, form: str) -> str:
    """The mean with its 95 % interval; of too few frames the mean alone."""
    mean, low, high = (form.format(x) for x in value[:3])
    return mean if value.n < FEWEST else f"{mean} [{low}, {high}]"


def outcome_of(summary: Mapping[str, Any]) -> str:
    """The outcome that a run's summary holds; unknown where it says none."""
    return (summary.get("verdict") or {}).get("outcome", "unknown")
