"""By how many cameras each Gaussian is seen: a property of the PLY that others pass over."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from mouselift_jax.errors import LayoutError
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.ply import load_extras, load_ply
from mouselift_jax.splats.sh import C0

FIELD = "cameras"
# Okabe and Ito's colours of 0, 1, 2, 3 and 4 or more cameras: red is guessed, blue is certain.
SCALE = np.array(
    [[0.84, 0.37, 0.0], [0.90, 0.62, 0.0], [0.94, 0.89, 0.26], [0.0, 0.62, 0.45], [0.0, 0.45, 0.70]]
)
LEGEND = "cameras that see a place: red 0, orange 1, yellow 2, green 3, blue 4 or more"


def painted(path: str | Path) -> Gaussians:
    """The Gaussians of a PLY in the colours of how many cameras see them.

    Raises:
        LayoutError: the file does not say it.
    """
    seen = load_extras(path).get(FIELD) if Path(path).suffix.lower() == ".ply" else None
    if seen is None:
        raise LayoutError(
            "the file does not say how many cameras see each Gaussian",
            where=path,
            expected=f"the property {FIELD!r}, which `fit` writes",
            fix="look at it in its own colours, or fit the recording",
        )
    rgb = np.stack([np.interp(seen, np.arange(len(SCALE)), column) for column in SCALE.T], -1)
    sh = ((rgb - 0.5) / C0)[:, None].astype(np.float32)
    return dataclasses.replace(load_ply(path), sh=sh)


def mean_cameras(path: str | Path, gaussians: Gaussians) -> float:
    """By how many cameras the average Gaussian of a PLY is seen, by opacity; NaN where unsaid."""
    seen = load_extras(path).get(FIELD)
    opacities = np.asarray(gaussians.activate().opacities)
    if seen is None or not opacities.sum() > 0:
        return float("nan")
    return float(np.average(seen, weights=opacities))
