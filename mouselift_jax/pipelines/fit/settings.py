"""What a fit can be told; every number was chosen by cameras that the fit did not see."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """How Gaussians are fitted to the views of one instant.

    Lengths are in cells, the grid of the visual hull: `cells` of them along the animal.

    Attributes:
        cells: along the longest side of the animal's box; sets size and number of the Gaussians.
        coarse_steps: first steps, in pictures of half the size: the shape.
        fine_steps: then so many in full size: the fur.
        next_coarse_steps: the same for a frame that starts from its neighbour.
        next_fine_steps: the same.
        nodes: control points of the smooth deformation that carves the hull's false bulges.
        node_rate: first step of a control point, cells.
        mean_rate: first step of a single Gaussian, cells.
        colour_rate: step of a colour.
        decay: the last step over the first.
        smooth: weight of the surface's smoothness.
        alpha: weight of the silhouettes beside the colours.
        skin: weight of the likeness of neighbours' colours.
        opaque: weight of the wish to be opaque.
        eps: of Adam: slopes far below it move nothing.
        widest: largest standard deviation in the surface, cells.
        narrowest: smallest one, cells.
        thickness: largest one across it, cells.
        colours_of_cameras: learn three gains and three offsets of each camera.
        bucket: numbers of Gaussians are rounded up to a multiple of it, so that one compiled
            program serves all frames.
        side_bucket: the same for the side of the pictures, pixels.
        margin: pixels round the animal that are compared too.
        seed: of the order in which the views are drawn.
        implementation: of the rasterizer; None = the best for the device.
    """

    cells: int = 112
    coarse_steps: int = 120
    fine_steps: int = 100
    next_coarse_steps: int = 30
    next_fine_steps: int = 60
    nodes: int = 256
    node_rate: float = 0.5
    mean_rate: float = 0.2
    colour_rate: float = 1e-2
    decay: float = 0.05
    smooth: float = 0.6
    alpha: float = 1.0
    skin: float = 1.0
    opaque: float = 0.3
    eps: float = 1e-6
    widest: float = 1.5
    narrowest: float = 0.3
    thickness: float = 0.4
    colours_of_cameras: bool = True
    bucket: int = 4096
    side_bucket: int = 64
    margin: int = 12
    seed: int = 0
    implementation: str | None = None
