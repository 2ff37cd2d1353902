"""Cameras that a lift must not see: they judge it, beside the visual hull of what it saw."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mouselift_jax.pipelines.baselines import visual_hull
from mouselift_jax.report.html import Section, Table, Text
from mouselift_jax.report.verdict import Verdict, verdict
from mouselift_jax.stages.harness.selection import time_block
from mouselift_jax.stages.items.from_samples import FromSamples
from mouselift_jax.stages.items.item import Item
from mouselift_jax.training import metrics as metric

log = logging.getLogger("mouselift_jax")

HULLS = 8  # frames whose hidden views are drawn from the hull too: it is slow
BLOCK_S = 1.0  # neighbouring frames of so many seconds count as one in the bootstrap


class HiddenJudge:
    """Figures of an item's hidden views.

    Args:
        items: where they come from; of HULLS of them the hull is drawn too, at the resolution of
            the stored pictures, whatever the lift was given: a weak yardstick flatters.
    """

    def __init__(self, items: FromSamples) -> None:
        self._items, self._figures = items, jax.jit(metric.figures)
        chosen = np.linspace(0, len(items.ids) - 1, min(HULLS, len(items.ids))).astype(int)
        self._hulls = {items.ids[i] for i in chosen} if items.hidden else set()

    def __call__(self, item: Item, rgb: np.ndarray, alpha: np.ndarray) -> dict[str, float]:
        """Means over the hidden views.

        Args:
            item: with its hidden views.
            rgb: what is drawn for all its views [V,H,W,3].
            alpha: opacity [V,H,W,1].
        """
        hidden = np.array(item.hidden)
        image, mask = item.images[hidden], item.masks[hidden]
        values = dict(self._figures(rgb[hidden], alpha[hidden], image, mask))
        if item.id in self._hulls:
            seen, given = self._items.load_stored(item.id), item.given
            drawn = [
                visual_hull(seen.images[given], seen.masks[given], seen.cameras[given],
                            item.cameras[int(v)]) for v in hidden
            ]  # fmt: skip
            hull = self._figures(
                np.stack([d.rgb for d in drawn]), np.stack([d.alpha for d in drawn]), image, mask
            )
            values |= {"hull_iou": hull["iou"], "hull_interior_psnr": hull["interior_psnr"]}
        return {k: float(np.mean(v)) for k, v in values.items()}


def judged(
    items: FromSamples, records: Mapping[str, dict], *, who: str, instead: str
) -> tuple[Verdict, Section, dict[str, float]]:
    """What hidden cameras say of a run.

    Args:
        items: with hidden cameras.
        records: item.json of every item that is whole.
        who: made it, in words.
        instead: advice when it is worse than hull or mean colour.

    Returns:
        The verdict, the report's part, and the means of all figures.
    """
    rows = {i: r["heldout"] for i, r in records.items() if "heldout" in r}
    mean = {k: float(np.nanmean(v)) for k in sorted({k for r in rows.values() for k in r})
            if np.isfinite(v := [r[k] for r in rows.values() if k in r]).any()}  # fmt: skip
    side = max(items.sides, default=0)
    cameras = ", ".join(map(str, items.hidden))
    where = f"camera{'s' if len(items.hidden) > 1 else ''} {cameras}, {side} px"
    block, is_short = time_block(items.sample_set, list(rows), BLOCK_S)
    said = verdict(list(rows.values()), who=who, where=where, block=block, instead=instead)
    worst = min(rows, key=lambda i: rows[i]["iou"])
    blocks: list[Any] = [Text(said.text)]
    if is_short and len(rows) > 1:
        blocks.append(
            Text(
                f"{len(rows)} frames are few, and neighbours resemble one another: the intervals "
                "are too narrow."
            )  # fmt: skip
        )
    blocks += [Text(f"Worst frame: {worst}, silhouette IoU {rows[worst]['iou']:.3f}."),
               _table(rows)]  # fmt: skip
    return said, Section("How good is it?", blocks), mean


def _table(rows: Mapping[str, dict[str, float]]) -> Table:
    shown: Sequence[tuple[str, dict[str, float]]] = list(rows.items())[:200]
    return Table(
        ["frame", "silhouette IoU", "hull's IoU", "interior PSNR (dB)", "over mean colour (dB)",
         "specks (%)"],
        [[i, r["iou"], r.get("hull_iou"), r["interior_psnr"],
          r["interior_psnr"] - r["mean_color_psnr"], 100 * r["specks"]] for i, r in shown],
        "of hidden views; the hull is drawn in some frames only",
    )  # fmt: skip
