"""What `infer` lifts: one item, and what a source of items must offer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mouselift_jax.geometry.camera import Camera
from mouselift_jax.runs.record import read_json


@dataclasses.dataclass
class Item:
    """Posed views to lift.

    Attributes:
        id: name, unique in the run.
        images: [V,H,W,3] in [0,1] on white.
        masks: [V,H,W,1], None where unknown.
        cameras: [V].
        labels: one for each view.
        scene_scale: scene units per millimetre, None where unknown.
        about: what goes into item.json besides.
        photo: [H,W,3] uint8, what the views were generated from; None when they are real.
        hidden: places among the views that whatever lifts must not see.
        of_splats: what is said of each Gaussian that was made of it [N], for the PLY.
    """

    id: str
    images: np.ndarray
    masks: np.ndarray | None
    cameras: Camera
    labels: list[str]
    scene_scale: float | None = None
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    photo: np.ndarray | None = None
    hidden: tuple[int, ...] = ()
    of_splats: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def given(self) -> np.ndarray:
        """Places of the views that may be seen."""
        return np.setdiff1d(np.arange(len(self.images)), self.hidden)


class Source(Protocol):
    """Where items come from.

    Attributes:
        ids: all items of the run, in order.
        reads: paths it reads, for the plan.
        sides: of the pictures that it loads, pixels.
        words: what the report says of where the views come from, "" = nothing.
    """

    ids: list[str]
    reads: list[str]
    sides: tuple[int, ...]

    @property
    def words(self) -> str:
        """See above."""
        ...

    def load(self, item_id: str) -> Item:
        """Read or make one item."""
        ...


def trained_size(gslrm: str | None) -> int:
    """The picture size a run was trained on, 0 for converted weights (they take any)."""
    record = read_json(Path(gslrm) / "config.json") if gslrm else None
    return int(((record or {}).get("data") or {}).get("size") or 0)
