"""Faults of time that come and go: frames lost or doubled on the way, a clock that drifts.

For one camera, the misfit with all others is measured for every instant and every offset; the
cheapest path through that table, a change of offset having its price, says when the camera is how
many frames ahead. No step is a constant offset, one is a loss, many of one sign are a drift.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from mouselift_jax.data.check.hypotheses import CLIP, MAX_OFFSET, Geometry, Hypothesis, shifted

_STEP_PRICE = 4.0  # times the floor, pixels x frames: what one change of offset must save
_RUN = 9  # instants of a running mean
_RATES = (0.5, 2.0, 0.4, 2.5, 0.8, 1.25, 5.0 / 6.0, 1.2, 0.25, 4.0)  # of cameras set differently
_DRIFT_STEPS = 3  # steps of one sign from which on it is a drift
_LEAST_PIECE = 5  # instants of an exchanged piece


def timeline(geometry: Geometry, v: int) -> np.ndarray:
    """Mean clipped misfit [T] of camera v with all others, NaN where nothing can be compared."""
    rows = []
    for j in range(geometry.n_views):
        if j != v:
            misfit = geometry.pair(v, j)
            rows.append(np.minimum(misfit.reshape(len(misfit), -1), CLIP))
    stacked = np.concatenate(rows, 1)
    known = np.isfinite(stacked)
    n = known.sum(1)
    total = np.where(known, stacked, 0.0).sum(1)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def worst_while(values: np.ndarray) -> float:
    """The largest running mean of a timeline; 0 where too little is known."""
    values = values[np.isfinite(values)]
    if len(values) < _RUN:
        return 0.0
    return float(np.convolve(values, np.full(_RUN, 1.0 / _RUN), "valid").max())


def cheapest_path(costs: np.ndarray, price: float, unknown: float) -> np.ndarray:
    """Index [T] of the column to take in each row of costs [T,D].

    Args:
        costs: NaN where a column cannot be judged in that row.
        price: of a change of column.
        unknown: what an unknown cost counts as, at least; or the row's least, if that is more.
    """
    known = np.isfinite(costs)
    least = np.where(known, costs, np.inf).min(1, keepdims=True)
    fill = np.maximum(np.where(np.isfinite(least), least, 0.0), unknown)
    costs = np.where(known, costs, fill)
    n, d = costs.shape
    total, came = costs[0].copy(), np.zeros((n, d), int)
    for t in range(1, n):
        best = int(total.argmin())
        change = total[best] + price
        stay = total <= change
        came[t] = np.where(stay, np.arange(d), best)
        total = np.where(stay, total, change) + costs[t]
    path = np.zeros(n, int)
    path[-1] = int(total.argmin())
    for t in range(n - 1, 0, -1):
        path[t - 1] = came[t, path[t]]
    return path


def segments(path: np.ndarray) -> list[tuple[int, int]]:
    """(first row, offset) of every stretch of one offset."""
    starts = np.flatnonzero(np.concatenate([[True], path[1:] != path[:-1]]))
    return [(int(s), int(path[s])) for s in starts]


def time_hypotheses(geometry: Geometry, v: int, floor: float) -> Iterator[Hypothesis]:
    """Losses, doublings, drifts and exchanged pieces of camera v."""
    offsets = np.arange(-MAX_OFFSET, MAX_OFFSET + 1)
    table = np.stack(
        [timeline(geometry.replaced(v, xy=shifted(geometry, v, -int(d))), v) for d in offsets], 1
    )
    path = offsets[cheapest_path(table, _STEP_PRICE * floor, floor)]
    parts = segments(path)
    if len(parts) > 1:
        yield steps_hypothesis(v, path)
    yield from _drifts(geometry, v, parts, path)
    if len(np.unique(geometry.window)) == 1:
        yield from _exchanged(geometry, v)


def steps_hypothesis(v: int, path: np.ndarray) -> Hypothesis:
    """A camera that is `path` [T] frames ahead: frames lost or doubled where that changes."""
    parts = segments(path)
    steps: list[tuple[int, int]] = []  # (row, change), neighbouring ones joined
    for (_, d), (row, e) in itertools.pairwise(parts):
        if steps and row - steps[-1][0] < _RUN:
            steps[-1] = (steps[-1][0], steps[-1][1] + e - d)
        else:
            steps.append((min(max(row - e, 0), len(path) - 1), e - d))  # the video's own frame
    row, change = max(steps, key=lambda step: abs(step[1]))
    parameters = {
        "frames": float(abs(change)),
        "row": float(row),
        "steps": float(len(steps)),
        "before": float(parts[0][1]),
        "after": float(parts[-1][1]),
    }
    code = "frames_lost" if change > 0 else "frames_doubled"
    source = np.arange(len(path)) - path
    return _reordered(code, v, parameters, 1.5 + 0.5 * len(steps), source)


def _drifts(
    geometry: Geometry, v: int, parts: Sequence[tuple[int, int]], path: np.ndarray
) -> Iterator[Hypothesis]:
    """A clock that runs at another rate: t - source grows with t."""
    t = geometry.instants
    span = float(t[-1] - t[0])
    rates = [1.0 - 1.0 / q for q in _RATES]
    rates += [d / span for d in range(-MAX_OFFSET, MAX_OFFSET + 1) if d and span > 0]
    pairs = [(rate, 0.0) for rate in rates]
    steps = np.sign(np.diff([d for _, d in parts]))
    if len(steps) >= _DRIFT_STEPS and abs(steps.sum()) == len(steps):
        rate, start = np.polyfit(t - t[0], path, 1)
        pairs.append((float(rate), float(start)))

    def judged(rate: float, start: float) -> tuple[float, Hypothesis]:
        ahead = np.round(start + rate * (t - t[0])).astype(int)
        parameters = {"rate": rate, "frames": rate * span}
        h = _reordered("clock_drift", v, parameters, 2.2, np.arange(len(t)) - ahead)
        values = timeline(h.apply(geometry), v)
        known = np.isfinite(values)
        enough = known.sum() >= 0.2 * len(t)
        return (float(values[known].mean()) if enough else np.inf), h

    tried = [(*judged(*pair), pair) for pair in pairs]
    rate, start = min(tried, key=lambda row: row[0])[2]
    near = [(rate * f, start + s) for f in np.linspace(0.94, 1.06, 7) for s in (-0.4, 0.0, 0.4)]
    tried += [(*judged(*pair), pair) for pair in near]
    least, best, _ = min(tried, key=lambda row: row[0])
    if np.isfinite(least):
        yield best


def _exchanged(geometry: Geometry, v: int) -> Iterator[Hypothesis]:
    """Two pieces of the video in the wrong order."""
    n = geometry.xy.shape[1]
    best, least = None, np.inf
    for k in range(_LEAST_PIECE, n - _LEAST_PIECE + 1):
        h = _reordered("pieces_exchanged", v, {"row": float(n - k)}, 1.4, np.roll(np.arange(n), k))
        values = timeline(h.apply(geometry), v)
        known = np.isfinite(values)
        if known.any() and values[known].mean() < least:
            best, least = h, float(values[known].mean())
    if best is not None:
        yield best


def _reordered(
    code: str, v: int, parameters: dict[str, float], complexity: float, source: np.ndarray
) -> Hypothesis:
    """Row t of camera v's measurements taken from row source[t] of the same run of frames."""

    def apply(g: Geometry) -> Geometry:
        n = g.xy.shape[1]
        if n != len(source):
            return g  # of other instants: nothing is known about them
        inside = (source >= 0) & (source < n)
        inside[inside] = g.window[source[inside]] == g.window[np.flatnonzero(inside)]
        xy = np.full_like(g.xy[v], np.nan)
        xy[inside] = g.xy[v][source[inside]]
        return g.replaced(v, xy=xy)

    return Hypothesis(code, (v,), "pixels", parameters, complexity, apply)


# --- repeated pictures ----------------------------------------------------------------------------

_STILL, _MOVES = 0.25, 0.6  # of what a camera's pictures change by around that time
_AROUND = 5  # pictures on each side
_LEAST_CHANGE = 0.1  # grey levels: below it nothing moves, or a codec lets nothing move
_LEAST_SHARE = 0.02


@dataclasses.dataclass(frozen=True)
class Repeats:
    """Pictures of one camera that repeat the one before them, while other cameras go on."""

    view: int
    rows: np.ndarray
    share: float


def repeated(changes: np.ndarray) -> list[Repeats]:
    """Cameras with repeated pictures.

    Args:
        changes: mean change [V,T] of each picture against the one before it, grey levels; NaN
            where there is none before it.
    """
    n = changes.shape[1]
    reach = np.clip(np.arange(n)[:, None] + np.arange(-_AROUND, _AROUND + 1), 0, n - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # runs without a picture before them
        usual = np.nanquantile(changes[:, reach], 0.75, axis=2)
        relative = changes / np.maximum(usual, _LEAST_CHANGE)
    found = []
    for v in range(len(changes)):
        others = np.delete(relative, v, 0)
        known = np.isfinite(relative[v]) & np.isfinite(others).all(0) & (usual[v] > _LEAST_CHANGE)
        if not known.any() or not len(others):
            continue
        moving = known & (np.median(np.where(known, others, 0.0), axis=0) > _MOVES)
        rows = np.flatnonzero(moving & (relative[v] < _STILL))
        share = len(rows) / max(int(moving.sum()), 1)
        if len(rows) and share >= _LEAST_SHARE:
            found.append(Repeats(v, rows, share))
    return found
