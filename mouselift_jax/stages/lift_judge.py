"""Evaluation of a GS-LRM while it trains: figures and pictures of views it was not given."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from mouselift_jax.data.batches.loader import Batch, Views, make_loader
from mouselift_jax.data.batches.pictures import composite, resized
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.models.silhouettes import check_room
from mouselift_jax.pipelines import lift as pipeline
from mouselift_jax.pipelines.baselines import visual_hull
from mouselift_jax.report.pictures import comparison_rows
from mouselift_jax.report.verdict import Verdict, verdict
from mouselift_jax.stages.harness.selection import time_block
from mouselift_jax.stages.items.hidden import BLOCK_S, HULLS
from mouselift_jax.training import sharding
from mouselift_jax.training.metrics import mask_iou
from mouselift_jax.training.state import eval_params
from mouselift_jax.training.trainer import Trainer

SHOWN = 3  # samples in the report and beside the curves
FIGURES = ("psnr", "ssim", "iou", "interior_psnr", "mean_color_psnr")


def roomy(config: Any, batch: Batch) -> Batch:
    """The batch, whose input views fit the network."""
    if config.model.animal_share is None:
        return batch
    inputs = batch.images[:, : config.data.n_inputs]
    if batch.masks is None:  # bytes; `animal_share` takes white for background
        inputs, _ = composite(inputs, np.ones(3, np.float32))
    check_room(inputs, config.model.patch_size, config.model.animal_share)
    return batch


class LiftJudge:
    """Evaluation on samples of the validation split, on views the network did not get.

    Every process evaluates its rows; the figures of all samples are gathered and each counts once,
    so the result does not depend on the mesh.
    """

    def __init__(self, config: Any, samples: Path, trainer: Trainer, model: nn.Module) -> None:
        d = config.data
        self.config, self.trainer, self.set = config, trainer, SampleSet.open(samples)
        split = "train" if config.overfit else "val"
        self.count = min(len(self.set.ids(split)), config.overfit or config.eval_samples)
        heldout = tuple(int(c) for c in d.heldout_cameras)
        self.parts = sharding.batch_parts(trainer.mesh)
        policy = "first" if config.overfit else "random"
        self.views = Views("all") if heldout else Views(policy, d.n_views, d.n_inputs)
        self.heldout, self.split = heldout, split
        self._eval = jax.jit(
            functools.partial(
                pipeline.gslrm_eval,
                model=model,
                n_input_views=d.n_inputs,
                implementation=config.render,
            ),
            out_shardings=sharding.replicated(trainer.mesh),
        )
        # Of training; white where that is drawn anew for every sample.
        drawn = d.background in ("random", "three_choices")
        self.background = "white" if drawn else d.background
        self.pictures: list[np.ndarray] = []
        self.captions: list[str] = []  # of the pictures
        self.done = -1  # the step of the last evaluation
        self.rows: dict[str, dict[str, float]] = {}  # of it: each sample's means in hidden views
        self._views_of: dict[str, tuple[list[int], list[int]]] = {}  # cameras given, and hidden

    def batches(self) -> Iterator[Batch]:
        """Validation batches in a fixed order, one sample for each part of the mesh."""
        if not self.count:
            return iter(())
        loader = make_loader(
            self.set,
            self.split,
            batch_size=self.parts,
            seed=self.config.seed + 1,
            views=self.views,
            background=self.background,
            size=self.config.data.size,
            shard=self.trainer.rows,
            shuffle=False,
            limit=self.count,
        )
        steps = -(-self.count // self.parts)
        return (batch for _, batch in zip(range(steps), loader, strict=False))

    def named_pictures(self) -> dict[str, np.ndarray]:
        """The pictures of the newest evaluation by name."""
        return {f"heldout/{i}": image for i, image in enumerate(self.pictures)}

    def draw(self, state: Any, step: int) -> dict[str, np.ndarray]:
        """Pictures alone: only the samples that are shown are lifted."""
        del step
        for _ in self._judged(state):
            if len(self.pictures) == SHOWN:
                break
        return self.named_pictures()

    def __call__(self, state: Any, step: int) -> dict[str, float]:
        """Means over samples and held-out views ("heldout/...") and input views ("val/...").

        Held-out views: with `heldout_cameras` those cameras', which were never trained on; else the
        views of these samples that the network was not given.
        """
        rows: dict[int, tuple[dict[str, np.ndarray], np.ndarray]] = {}
        for figures, index, cameras in self._judged(state):
            for i, sample in enumerate(index):
                rows[int(sample)] = ({k: v[i] for k, v in figures.items()}, cameras[i])
        self.done = step
        values: dict[str, list[np.ndarray]] = {}
        self.rows, ids = {}, self.set.ids(self.split)
        for index, (figures, cameras) in sorted(rows.items()):
            given = np.arange(len(cameras)) < self.config.data.n_inputs
            hidden = np.isin(cameras, self.heldout) if self.heldout else ~given
            if hidden.any():
                self.rows[ids[index]] = {
                    name: float(np.mean(figures[name][hidden])) for name in FIGURES
                }
                self._views_of[ids[index]] = (cameras[given].tolist(), cameras[hidden].tolist())
            for name in FIGURES:
                values.setdefault(f"heldout/{name}", []).append(figures[name][hidden])
                values.setdefault(f"val/{name}", []).append(figures[name][given])
        joined = {key: np.concatenate(parts) for key, parts in values.items()}
        return {k: float(np.nanmean(v)) for k, v in joined.items() if np.isfinite(v).any()}

    def verdict(self) -> Verdict | None:
        """What the last evaluation says beside the hull of the same views, as they are stored."""
        if not self.rows:
            return None
        ids = list(self.rows)
        for i in np.unique(np.linspace(0, len(ids) - 1, min(HULLS, len(ids))).astype(int)):
            self.rows[ids[i]]["hull_iou"] = self._hull_iou(ids[i])
        block, _ = time_block(self.set, ids, BLOCK_S)
        cameras = sorted({c for _, hidden in self._views_of.values() for c in hidden})
        named = "cameras " + ", ".join(map(str, cameras))
        kind = "training" if self.split == "train" else "validation"
        return verdict(
            list(self.rows.values()),
            who="the network",
            where=f"{kind} samples, {named}, {self.config.data.size} px",
            block=block,
            instead="do not use it: train longer (the same command goes on with more steps), or "
            "take `fit`, which needs no training",
        )

    def _hull_iou(self, sample_id: str) -> float:
        """Mean silhouette IoU of the hull of a sample's given views in its hidden ones."""
        sample, size = self.set.load(sample_id), self.config.data.size
        place = {int(c): v for v, c in enumerate(sample.camera_ids)}
        images, masks = composite(sample.images_rgba, np.ones(3, np.float32))
        given, hidden = ([place[c] for c in cameras] for cameras in self._views_of[sample_id])
        small, cameras = resized(sample.images_rgba[hidden], sample.cameras[np.array(hidden)], size)
        given, ious = np.array(given), []
        for v, picture in enumerate(small):
            drawn = visual_hull(images[given], masks[given], sample.cameras[given], cameras[v])
            ious.append(mask_iou(drawn.alpha, picture[..., 3:] / np.float32(255)))
        return float(np.mean(ious))

    def _judged(self, state: Any) -> Iterator[tuple[dict[str, np.ndarray], Any, Any]]:
        """Of each batch: figures [B,V], the samples' numbers [B], the views' cameras [B,V]."""
        params, self.pictures, self.captions = eval_params(state), [], []
        ids = self.set.ids(self.split)
        for batch in self.batches():
            batch = roomy(self.config, inputs_first(batch, self.heldout))
            with sharding.use(self.trainer.mesh):
                placed = self.trainer.put(batch)
                out = self._eval(params, placed)
                # Which they are travels the same way: a padded batch holds duplicates.
                index, cameras = jax.jit(
                    lambda *x: x, out_shardings=sharding.replicated(self.trainer.mesh)
                )(placed.sample_index, placed.camera_ids)
            if len(self.pictures) < SHOWN and jax.process_count() == 1:
                self.pictures.append(self._compare(batch, jax.device_get(out.rendered)))
                self.captions.append(self.set.caption(ids[int(batch.sample_index[0])]))
            yield jax.device_get(out.metrics), np.asarray(index), np.asarray(cameras)

    def _compare(self, batch: Batch, rendered: Any) -> np.ndarray:
        n_inputs = self.config.data.n_inputs
        unseen = "not given" if self.heldout else "held out"
        kinds = [
            "input" if i < n_inputs else "held out" if camera in self.heldout else unseen
            for i, camera in enumerate(batch.camera_ids[0].tolist())
        ]
        return comparison_rows(
            batch.images[0],
            np.clip(rendered.rgb[0], 0, 1),
            batch.masks[0],
            rendered.alpha[0],
            labels=[f"camera {c}, {k}" for c, k in zip(batch.camera_ids[0], kinds, strict=True)],
            size=max(128, min(256, batch.images.shape[2])),
        )


def inputs_first(batch: Batch, heldout: tuple[int, ...]) -> Batch:
    """Move the held-out cameras' views behind the others, in each sample by its own cameras."""
    if not heldout:
        return batch
    order = np.argsort(np.isin(batch.camera_ids, heldout), axis=1, kind="stable")

    def moved(views: np.ndarray) -> np.ndarray:
        return np.take_along_axis(views, order.reshape(*order.shape, *[1] * (views.ndim - 2)), 1)

    views = ("images", "masks", "K", "c2w", "camera_ids")
    return batch._replace(**{k: moved(getattr(batch, k)) for k in views})
