"""Where a set of Gaussians is and which way a rodent of them faces, in its own scene: quick looks.

Figures that are published come from `mouselift_jax/pipelines/measure.py`.
"""

from __future__ import annotations

import numpy as np

from mouselift_jax.splats.gaussians import Gaussians

SLICES = 16  # across the body's axis
TRUNK = 0.7  # of the thickest one's spread: thinner ones are tail or snout


def _seen(gaussians: Gaussians) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres [N,3], weights [N], opacities [N].

    A weight is what is seen of a Gaussian, opacity times cross-section: dust and haze count little.
    """
    means, _, scales, opacities, _ = (np.asarray(x, np.float64) for x in gaussians.activate())
    return means, opacities * np.sort(scales, axis=-1)[:, 1:].prod(-1), opacities


def _long_axis(offset: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The main horizontal axis [2] of offsets [N,3] from the centre; which end is first is open."""
    spread = (offset[:, :2] * weights[:, None]).T @ offset[:, :2] / weights.sum()
    return np.linalg.eigh(spread)[1][:, -1]


def centre_of(gaussians: Gaussians) -> np.ndarray:
    """The centre [3] of what is seen of a set of Gaussians, scene units."""
    means, weights, opacities = _seen(gaussians)
    if not len(means) or opacities.sum() <= 0:
        return np.zeros(3)
    return np.average(means, axis=0, weights=weights)


def facing(gaussians: Gaussians) -> tuple[float, float]:
    """Which way a rodent faces, from its shape alone: the thin long end is the tail.

    The azimuth is that of the trunk: a tail that swings to the side does not turn it.

    Returns:
        Azimuth in degrees, and how lopsided the body is along its axis (0 = no end is the tail).
    """
    means, weights, opacities = _seen(gaussians)
    if not len(means) or opacities.sum() <= 0:
        return 0.0, 0.0
    offset = means - centre_of(gaussians)
    axis = _long_axis(offset, weights)
    along = offset[:, :2] @ axis
    spread2 = max(float(np.average(along**2, weights=weights)), 1e-12)
    skew = float(np.average(along**3, weights=weights)) / spread2**1.5
    if skew > 0:
        axis = -axis
    trunk = _is_trunk(offset, weights, axis)
    offset = offset[trunk] - np.average(offset[trunk], axis=0, weights=weights[trunk])
    ahead = _long_axis(offset, weights[trunk])
    ahead = ahead if ahead @ axis > 0 else -ahead
    return float(np.degrees(np.arctan2(ahead[1], ahead[0])) % 360.0), abs(skew)


def _is_trunk(offset: np.ndarray, weights: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Which Gaussians lie in slices across an axis that are nearly as thick as the thickest."""
    along = offset[:, :2] @ axis
    across = np.stack([offset[:, :2] @ np.array([-axis[1], axis[0]]), offset[:, 2]], -1)
    low, high = np.quantile(along, (0.005, 0.995))
    index = np.clip((along - low) / max(high - low, 1e-12) * SLICES, 0, SLICES - 1).astype(int)
    thick = np.zeros(SLICES)
    for i in range(SLICES):
        own, w = across[index == i], weights[index == i]
        if w.sum() > 0:
            middle = np.average(own, axis=0, weights=w)
            thick[i] = np.sqrt(np.average(((own - middle) ** 2).sum(-1), weights=w))
    return (thick >= TRUNK * thick.max())[index]
