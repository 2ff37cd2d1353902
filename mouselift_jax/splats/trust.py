"""How far to trust each Gaussian: properties of the PLY that other programs pass over."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from mouselift_jax.errors import LayoutError
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.ply import load_extras, load_ply
from mouselift_jax.splats.sh import C0

FIELD = "cameras"  # by how many cameras it is seen
SHIFT = "shift_mm"  # how far the surface is from there when a camera is taken away
# Okabe and Ito's colours of 0, 1, 2, 3 and 4 or more cameras: red is guessed, blue is certain.
SCALE = np.array(
    [[0.84, 0.37, 0.0], [0.90, 0.62, 0.0], [0.94, 0.89, 0.26], [0.0, 0.62, 0.45], [0.0, 0.45, 0.70]]
)
LEGEND = "cameras that see a place: red 0, orange 1, yellow 2, green 3, blue 4 or more"


@dataclasses.dataclass(frozen=True)
class Mode:
    """A way to colour Gaussians.

    Attributes:
        field: property of the PLY.
        values: of the field, where the colours of `SCALE` are taken, rising.
        colours: of them [len(values),3].
        legend: what the colours mean.
        missing: what a file without the property does not say.
        fix: what writes it.
    """

    field: str
    values: tuple[float, ...]
    colours: np.ndarray
    legend: str
    missing: str
    fix: str


MODES = {
    "cameras": Mode(
        FIELD, (0, 1, 2, 3, 4), SCALE,
        LEGEND,
        "how many cameras see each Gaussian", "fit the recording",
    ),
    "shift": Mode(
        SHIFT, (0, 1, 2, 3, 4), SCALE[::-1],
        "mm from a place to the surface that is found without one of the cameras: blue 0, green 1, "
        "yellow 2, orange 3, red 4 or more",
        "how far each place moves without a camera", "fit with --config.leave_one_out=True",
    ),
}  # fmt: skip


def painted(path: str | Path, mode: str = "cameras") -> Gaussians:
    """The Gaussians of a PLY in the colours of one of `MODES`.

    Raises:
        LayoutError: the file does not say it.
    """
    m = MODES[mode]
    found = load_extras(path).get(m.field) if Path(path).suffix.lower() == ".ply" else None
    if found is None:
        raise LayoutError(
            f"the file does not say {m.missing}",
            where=path,
            expected=f"the property {m.field!r}, which `fit` writes",
            fix=f"look at it in its own colours, or {m.fix}",
        )
    rgb = np.stack([np.interp(found, m.values, column) for column in m.colours.T], -1)
    sh = ((rgb - 0.5) / C0)[:, None].astype(np.float32)
    return dataclasses.replace(load_ply(path), sh=sh)


def mean_of(field: str, path: str | Path, gaussians: Gaussians) -> float:
    """`FIELD` or `SHIFT` of the average Gaussian of a PLY, by opacity; NaN where unsaid."""
    seen = load_extras(path).get(field)
    opacities = np.asarray(gaussians.activate().opacities)
    if seen is None or not opacities.sum() > 0:
        return float("nan")
    return float(np.average(seen, weights=opacities))
