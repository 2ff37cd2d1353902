"""Batches of the multi-view training: views turned to the reference, and the cache of encodings.

The reference view is always slot 0. With `reference=random` another view is made the reference for
every sample and step, and the others follow it clockwise by azimuth; each keeps its own prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mouselift_jax.data.batches.loader import Batch, Views, make_loader
from mouselift_jax.data.batches.pictures import Augment
from mouselift_jax.stages.multiview.order import orders, poses_of
from mouselift_jax.stages.multiview.settings import MultiviewSettings

log = logging.getLogger("mouselift_jax")


# --- batches of pictures -------------------------------------------------------------------------


def picture_batches(
    config: MultiviewSettings, samples: Path, rows: tuple[int, int], step: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of pictures from `step` on, as they are stored: the device turns and composites them.

    images [b,V,H,W,4] uint8, background [b,3], order [b,V], poses [b,V,4] in that order.
    """
    d, t = config.data, config.train
    loader = make_loader(
        samples,
        "train",
        batch_size=t.batch_size,
        seed=config.seed,
        start_step=step,
        views=Views("first", config.model.n_views),
        size=d.size,
        background=d.background,
        augment=Augment(d.brightness, d.contrast),
        shard=rows,
        workers=d.workers,
        on_bad_sample=t.on_bad_sample,
        composited=False,
    )
    for batch in loader:
        found = ordered(config, batch, step, rows)
        yield found | {"images": batch.images, "background": batch.background}
        step += 1


def turned(
    config: MultiviewSettings, batch: Batch, step: int, rows: tuple[int, int] = (0, 1)
) -> dict[str, np.ndarray]:
    """A batch of floats with its views in the order from the reference on."""
    found = ordered(config, batch, step, rows)
    order = found["order"][..., None, None, None]
    return {"images": np.take_along_axis(batch.images, order, 1), **found}


def ordered(
    config: MultiviewSettings, batch: Batch, step: int, rows: tuple[int, int] = (0, 1)
) -> dict[str, np.ndarray]:
    """The order of a batch's views from the reference on, and their poses in it."""
    order = orders(config, batch.c2w, len(batch.images), step, rows)
    found = {"order": order.astype(np.int32)}
    if config.model.pose_features:
        found["poses"] = poses_of(config, batch.K, batch.c2w, order)
    return found


# --- the cache -----------------------------------------------------------------------------------
