"""How sure a mean is: bootstrap intervals over frames."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mouselift_jax.errors import ShapeError


class Interval(NamedTuple):
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n == 0:
            return "\u2013"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean_interval(
    values: np.ndarray, *, level: float = 0.95, block: int = 1, n_draws: int = 2000, seed: int = 0
) -> Interval:
    """Mean of one value a frame and its bootstrap percentile interval; NaNs are left out.

    Args:
        values: one value a frame, in the order of time.
        level: of confidence.
        block: frames drawn together. Neighbouring frames resemble one another, so that drawing
            them one by one would call a short film many observations.
        n_draws: resamples.
        seed: of the resampling.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise ShapeError("one value a frame is wanted", expected="[n]", found=values.shape)
    values = values[np.isfinite(values)]
    n = len(values)
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    block = max(1, min(block, n))
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, n, (n_draws, -(-n // block)))  # blocks wrap round the end
    index = (starts[..., None] + np.arange(block)) % n
    means = values[index.reshape(n_draws, -1)[:, :n]].mean(-1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), n)
