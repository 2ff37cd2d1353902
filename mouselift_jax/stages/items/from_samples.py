"""Items of `infer` that begin as the views of prepared samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from mouselift_jax.data.batches.pictures import composite, resized
from mouselift_jax.data.inputs import resolve_samples
from mouselift_jax.data.samples.sample_set import Sample, SampleSet
from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.stages.harness.selection import select, stored_sides
from mouselift_jax.stages.items import sequence
from mouselift_jax.stages.items.item import Item, trained_size


class FromSamples:
    """Items that are samples of a set; cameras that are hidden stay among an item's views."""

    least = 1  # views that must be left to lift

    words = ""

    def __init__(self, config: Any) -> None:
        path = resolve_samples(config.samples)
        self._set, self._config = SampleSet.open(path), config
        self.reads = [str(path)]
        self.ids = select(self._set, config.split, config.frames)[: config.limit or None]
        self._size = config.size or trained_size(config.get("gslrm"))
        self.sides = (self._size,) if self._size else stored_sides(self._set, self.ids[0])
        self.hidden = [int(c) for c in config.heldout_cameras]

    @property
    def sample_set(self) -> SampleSet:
        """Where the items come from."""
        return self._set

    def is_film(self) -> bool:
        """Whether the items are frames of one recording."""
        return sequence.is_film(self._set, self.ids)

    def load(self, item_id: str) -> Item:
        """Read one sample; its pictures are resized with their cameras."""
        return self._load(item_id, self._size)

    def load_stored(self, item_id: str) -> Item:
        """The same views as they are stored."""
        return self._load(item_id, 0)

    def _load(self, item_id: str, size: int) -> Item:
        slots = self._slots(item_id)
        sample = self._set.load(item_id, slots)
        if sample.cameras is None:
            raise _without_cameras(item_id)
        rgba, cameras = resized(sample.images_rgba, sample.cameras, size or None)
        images, masks = composite(rgba, np.ones(3, np.float32))
        return Item(
            item_id,
            images,
            masks if sample.has_alpha else None,
            cameras,
            [f"camera {c}{' (hidden)' * (c in self.hidden)}" for c in sample.camera_ids],
            sample.info.get("scene_scale") or self._set.scene_scale,  # recordings may differ
            {"frame": sample.frame, "cameras": [int(c) for c in sample.camera_ids]},
            hidden=self._hidden_of(item_id, sample),
        )

    def _hidden_of(self, item_id: str, sample: Sample) -> tuple[int, ...]:
        if not self.hidden:
            return ()
        numbers = [int(c) for c in sample.camera_ids]
        missing = sorted(set(self.hidden) - set(numbers))
        few = len(numbers) - len(self.hidden) < self.least
        if missing or few or not sample.has_alpha:
            what = "the sample has no such camera" if missing else "too few cameras are left"
            raise ConfigError(
                what if missing or few else "hidden views are judged by masks (alpha)",
                where=f"config.heldout_cameras, {item_id}",
                expected=f"some of {numbers}, and {self.least} or more besides, with masks",
                found=missing or self.hidden,
                fix=f"--config.heldout_cameras={numbers[-1]},",
            )
        return tuple(numbers.index(c) for c in self.hidden)

    def _slots(self, item_id: str) -> list[int] | None:
        wanted = [int(v) for v in self._config.views]
        if not wanted:
            return None
        record = self._set.camera_file(item_id)
        if record is None:
            raise _without_cameras(item_id)
        numbers = [f.get("camera", i) for i, f in enumerate(record["frames"])]
        missing = [v for v in wanted if v not in numbers]
        if missing:
            raise ConfigError(
                "the sample has no such camera",
                where="config.views",
                expected=f"some of {numbers}",
                found=missing,
                fix=f"--config.views={tuple(v for v in wanted if v in numbers) or tuple(numbers)}",
            )
        return [numbers.index(v) for v in wanted]


def _without_cameras(item_id: str) -> LayoutError:
    return LayoutError(
        "a sample without cameras cannot be lifted",
        where=item_id,
        expected="opencv_cameras.json",
        fix="make the samples with configs/prepare.py",
    )
