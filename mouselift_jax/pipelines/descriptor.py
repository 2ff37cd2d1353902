"""A descriptor of a frame that does not change when the animal turns or moves.

Density and brightness about the centre are taken apart into shells and spherical harmonics; the
power of each degree in each shell is kept. A rotation mixes the harmonics of a degree among
themselves and leaves their power alone, so nothing has to know where the head is.
"""

from __future__ import annotations

import numpy as np
from scipy.special import sph_harm_y

from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.sh import C0

SHELLS = np.array([0.2, 0.5, 0.8, 1.1, 1.5, 2.0, 2.6, 3.2])  # radii, in root mean square radii
WIDTH = 0.25  # of a shell, likewise
DEGREES = 8  # 0 to 7
CHANNELS = ("density", "brightness")


def names() -> list[str]:
    """What each number of a descriptor is."""
    return [f"{c} shell {s:g} degree {d}" for c in CHANNELS for s in SHELLS for d in range(DEGREES)]


def descriptor(gaussians: Gaussians) -> np.ndarray:
    """Square roots of the powers [D] float32 of one set of Gaussians; NaN where nothing is seen.

    Gaussians count by opacity times cross-section. Lengths are relative to the root mean square
    distance from the centre, so the unit plays no part.
    """
    means, _, scales, opacities, sh = (np.asarray(x, np.float64) for x in gaussians.activate())
    size = len(CHANNELS) * len(SHELLS) * DEGREES
    weights = opacities * np.sort(scales, axis=-1)[:, 1:].prod(-1)
    if not len(means) or not weights.sum() > 0:
        return np.full(size, np.nan, np.float32)
    weights = weights / weights.sum()
    offset = means - weights @ means
    radius = np.linalg.norm(offset, axis=1)
    rms = float(np.sqrt(weights @ radius**2))
    if not rms > 0:
        return np.full(size, np.nan, np.float32)
    polar = np.arccos(np.clip(offset[:, 2] / np.maximum(radius, 1e-12), -1, 1))
    azimuth = np.arctan2(offset[:, 1], offset[:, 0])
    grey = sh[:, 0].mean(-1) * C0
    values = np.stack([weights, weights * (grey - weights @ grey)])  # [2,N]
    shells = np.exp(-0.5 * ((radius / rms - SHELLS[:, None]) / WIDTH) ** 2)  # [R,N]
    power = np.zeros((len(CHANNELS), len(SHELLS), DEGREES))
    for degree in range(DEGREES):
        for m in range(degree + 1):
            basis = sph_harm_y(degree, m, polar, azimuth)
            found = np.abs(np.einsum("cn,rn,n->cr", values, shells, basis)) ** 2
            power[:, :, degree] += found * (1 if m == 0 else 2)  # m and -m are alike
    return np.sqrt(power).reshape(-1).astype(np.float32)
