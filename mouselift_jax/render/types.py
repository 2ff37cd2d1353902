"""What the rasterizers take and give.

Letters beyond the table: L = *B flattened into one leading dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Float

ArrayLike = Array | np.ndarray


def no_type_check(function: Callable) -> Callable:
    """Keep run-time type checkers off a function that Warp reads; they go by this name.

    Unlike `typing.no_type_check` it leaves the annotations where Warp looks for them.
    """
    return function


class Render(NamedTuple):
    """A rendered batch of views.

    Attributes:
        rgb: colours over the background [*B,V,H,W,3]; not clamped above.
        alpha: coverage, 1 - transmittance [*B,V,H,W,1].
        depth: sum of blending weight times camera z [*B,V,H,W,1], scene units; divide by `alpha`
            for the expected depth.
        info: scalars over the whole call. `slabs`: most passes over the scene that a view needed,
            `intersections`: (Gaussian, tile) pairs listed (2^31 - 1 if more), `culled`: Gaussians
            left out because something in them, or in a camera that sees them, was not finite. -1
            where an implementation does not have the number. Under `vmap` and `shard_map` each
            element and each device counts its own.
    """

    rgb: Float[Array, "*B V H W 3"]
    alpha: Float[Array, "*B V H W 1"]
    depth: Float[Array, "*B V H W 1"]
    info: dict[str, Array]


class Spec(NamedTuple):
    """The static part of a call; hashable."""

    width: int
    height: int
    near: float
    sh_degree: int | None


class Splats(NamedTuple):
    """Gaussians as one view sees them; every field [N].

    Attributes:
        x: mean, px, pixel centres at +0.5.
        y: mean, px.
        conic_xx: inverse 2D covariance, px^-2.
        conic_xy: off-diagonal entry of it.
        conic_yy: the last entry of it.
        opacity: in [0,1].
        red: colour.
        green: colour.
        blue: colour.
        depth: camera z, scene units.
    """

    x: Any
    y: Any
    conic_xx: Any
    conic_xy: Any
    conic_yy: Any
    opacity: Any
    red: Any
    green: Any
    blue: Any
    depth: Any


class Visibility(NamedTuple):
    """What decides whether and where a Gaussian is listed; no gradients.

    Attributes:
        drawn: in front of the camera, finite, and above the opacity threshold somewhere [N].
        broken: something in it is not finite [N].
        half_width: half extents in px of the region where alpha can reach the threshold [N].
        half_height: the same along y [N].
    """

    drawn: Any
    broken: Any
    half_width: Any
    half_height: Any
