"""What following an animal through time can be told."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class FilmSettings:
    """How one set of Gaussians follows an animal.

    Attributes:
        finer: cells along the animal of the frame that the set is made from, over those of `fit`:
            it has to serve all frames.
        nodes: control nodes on the skin, each with a place and a rotation of its own.
        coarse_steps: steps of a frame in pictures of half the size.
        fine_steps: then so many in full size.
        place_rate: first step of a node's place, cells.
        turn_rate: first step of a node's rotation, radians.
        own_rate: first step of a single Gaussian, cells.
        shade_rate: first step of the brightness about a node.
        tint_rate: first step of a Gaussian's colour.
        decay: the last step over the first.
        rigid: weight of local rigidity: neighbouring nodes keep their distance as they turn.
        calm: weight that holds a Gaussian where its nodes carry it.
        keep: weight that holds the colours to those of rest.
        light: weight of the likeness of neighbouring nodes' brightness.
        alpha: weight of the silhouettes beside the colours.
        paint_sweeps: how often the colours of what is shown are mended.
        paint_calm: pixels' worth of belief in the colour that a Gaussian had.
        trust: share of the last frame's motion that the next one is expected to repeat.
        loss: IoU of the given views below that of the segment's first frame, from which a frame
            counts as lost.
        loss_db: the same for their PSNR without paint, dB.
        seed: of the order in which the views are drawn.
        implementation: of the rasterizer; None = the best for the device.
    """

    finer: float = 1.0
    nodes: int = 256
    coarse_steps: int = 30
    fine_steps: int = 60
    place_rate: float = 0.6
    turn_rate: float = 0.06
    own_rate: float = 0.05
    shade_rate: float = 0.01
    tint_rate: float = 0.01
    decay: float = 0.1
    rigid: float = 1.0
    calm: float = 3.0
    keep: float = 3.0
    light: float = 0.1
    alpha: float = 1.0
    paint_sweeps: int = 2
    paint_calm: float = 2.0
    trust: float = 0.9
    loss: float = 0.03
    loss_db: float = 6.0
    seed: int = 0
    implementation: str | None = None
