"""The search for the one fault whose correction makes a recording's geometry fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from mouselift_jax.data.check.hypotheses import (
    CLIP,
    Geometry,
    Hypothesis,
    common_focal_hypothesis,
    continuous_hypotheses,
    discrete_hypotheses,
    pair_costs,
)
from mouselift_jax.data.check.sizes import principal_points_hypothesis, size_hypotheses
from mouselift_jax.data.check.time import time_hypotheses, timeline, worst_while

_CONVINCING = 0.67  # a correction leaves at most this share of the misfit of its cameras' pairs
_FIT_INSTANTS = 24  # for the fits of focal length and crop
_FRACTION = 0.4  # of the floor: enough to try whether all principal points are off alike
_SOMETIMES = 2.0  # times the floor: misfit for a while, though not on the whole


@dataclasses.dataclass
class Verdict:
    """What a search found.

    Attributes:
        before: cost of the geometry as given, pixels.
        after: cost with the best correction.
        best: the best hypothesis, None if none helps enough.
        others: (hypothesis, cost) of the runners-up.
        pairs: pair costs as given [V,V].
        corrected: the geometry with the best correction applied.
    """

    before: float
    after: float
    best: Hypothesis | None
    others: list[tuple[Hypothesis, float]]
    pairs: np.ndarray
    corrected: Geometry

    def correct(self, geometry: Geometry) -> Geometry:
        """The best correction applied to other measurements of the same cameras."""
        return geometry if self.best is None else self.best.apply(geometry)


def suspects_of(pairs: np.ndarray) -> list[int]:
    """Cameras in order of suspicion: how much better the rest fits without each."""
    n = len(pairs)
    gain = [
        np.nanmean(pairs[i]) - (np.nanmean(np.delete(np.delete(pairs, i, 0), i, 1)) if n > 2 else 0)
        for i in range(n)
    ]
    return [int(i) for i in np.argsort(-np.nan_to_num(np.array(gain), nan=-1e9))]


def _with_lost(pairs: np.ndarray) -> np.ndarray:
    """Pairs of a camera that can be compared with hardly any other count as wholly wrong.

    A misplaced camera can see all others inside its silhouettes, where there is no tangent.
    """
    n = len(pairs)
    known = np.isfinite(pairs)
    lost = known.sum(1) * 2 < n - 1
    if n < 4 or lost.sum() > n // 2:
        return pairs
    filled = np.where(~known & (lost[:, None] | lost[None]), CLIP, pairs)
    np.fill_diagonal(filled, np.nan)
    return filled


def _own_share(h: Hypothesis, geometry: Geometry, pairs: np.ndarray) -> float:
    """What a correction leaves of the misfit of the pairs it touches."""
    rows = list(h.cameras)
    new = _costs_after(h, geometry, pairs)
    return float(np.nanmean(new[rows]) / max(np.nanmean(pairs[rows]), 1e-9))


def _least(tried: list[tuple[Hypothesis, float]]) -> float:
    return min((c for _, c in tried), default=np.inf)


def _costs_after(h: Hypothesis, geometry: Geometry, pairs: np.ndarray) -> np.ndarray:
    """Pair costs with a correction applied; pairs it does not touch are taken from `pairs`."""
    corrected = h.apply(geometry)
    if len(h.cameras) > 1:
        return pair_costs(corrected)
    v = h.cameras[0]
    new = pairs.copy()
    row = pair_costs(corrected, only=v)
    new[v], new[:, v] = row[v], row[v]
    return new


def explain(
    geometry: Geometry, *, floor: float, families: tuple[str, ...] = ("pixels", "calibration")
) -> Verdict:
    """Find the one fault whose correction makes the geometry fit.

    Args:
        geometry: measurements and cameras.
        floor: misfit in pixels that honest measurements have; below, nothing is looked for.
        families: which kinds of fault to consider (`either` is always considered).
    """
    pairs = _with_lost(pair_costs(geometry))
    before = float(np.nanmean(pairs)) if np.isfinite(pairs).any() else float("nan")
    none = Verdict(before, before, None, [], pairs, geometry)
    if not np.isfinite(before):
        return none
    suspects = suspects_of(pairs)[: max(3, geometry.n_views // 2)]
    if np.nanmax(pairs) <= floor:  # fits on the whole; but always, and to the pixel?
        return _explain_little(geometry, none, floor, families)
    tried: list[tuple[Hypothesis, float]] = []

    def attempt(hypotheses: Iterator[Hypothesis]) -> None:
        tried.extend(_attempted(hypotheses, geometry, pairs, families))

    enough = max(0.5 * floor, 0.15 * before)
    attempt(discrete_hypotheses(geometry, suspects))
    if _least(tried) > enough:
        attempt(size_hypotheses(geometry, suspects))
    thin = geometry.thinned(_FIT_INSTANTS)
    if _least(tried) > enough:  # keypoints that agree to a few pixels do not speak against it
        attempt(iter([principal_points_hypothesis(thin)]))
    if "calibration" in families and _least(tried) > enough:
        attempt(iter([common_focal_hypothesis(thin)]))
    for v in suspects[:2]:
        if "pixels" in families and _least(tried) > enough:
            attempt(time_hypotheses(geometry, v, floor))
        if _least(tried) > enough:
            attempt(continuous_hypotheses(thin, v, families))
    return _chosen(tried, geometry, none, floor)


def _explain_little(
    geometry: Geometry, none: Verdict, floor: float, families: tuple[str, ...]
) -> Verdict:
    """Faults that leave little on the whole: of a part of the time, or of a pixel everywhere."""
    tried: list[tuple[Hypothesis, float]] = []
    if "pixels" in families:
        whiles = [worst_while(timeline(geometry, v)) for v in range(geometry.n_views)]
        v = int(np.argmax(whiles))
        if whiles[v] > _SOMETIMES * floor:
            tried += _attempted(time_hypotheses(geometry, v, floor), geometry, none.pairs, families)
    if not tried and none.before > _FRACTION * floor:
        thin = geometry.thinned(_FIT_INSTANTS)
        found = iter([principal_points_hypothesis(thin)])
        tried += _attempted(found, geometry, none.pairs, families)
    return _chosen(tried, geometry, none, floor)


def _attempted(
    hypotheses: Iterator[Hypothesis],
    geometry: Geometry,
    pairs: np.ndarray,
    families: tuple[str, ...],
) -> list[tuple[Hypothesis, float]]:
    """Hypotheses of the wanted families, each with the cost that its correction leaves."""
    known, tried = np.isfinite(pairs).sum(), []
    for h in hypotheses:
        if h.family != "either" and h.family not in families:
            continue
        new = _costs_after(h, geometry, pairs)
        if np.isfinite(new).sum() >= 0.7 * known:
            tried.append((h, float(np.nanmean(new))))
    return tried


def _chosen(
    tried: list[tuple[Hypothesis, float]], geometry: Geometry, none: Verdict, floor: float
) -> Verdict:
    """The simplest of the hypotheses that explain about as much as the best, if it is enough."""
    if not tried:
        return none
    before, pairs = none.before, none.pairs
    tried.sort(key=lambda item: item[1])
    least = tried[0][1]
    limit = min(1.2 * least + 0.1 * floor, before - 0.85 * (before - least))
    close = [t for t in tried if t[1] <= limit] or tried[:1]
    best, after = min(close, key=lambda item: (item[0].complexity, item[1]))
    others = [t for t in tried if t[0] is not best and t[1] < 0.8 * before][:4]
    if _own_share(best, geometry, pairs) > _CONVINCING or before - after < 0.1 * floor:
        none.others = tried[:4]
        return none
    return Verdict(before, after, best, others, pairs, best.apply(geometry))
