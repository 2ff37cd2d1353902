"""A run of `fit` for tests, without fitting: Gaussians on the ellipsoids of `sample_sets`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.ply import save_ply
from mouselift_jax.splats.sh import C0


def ellipsoid(axes: np.ndarray, n: int = 4000) -> Gaussians:
    """Flat opaque Gaussians on an ellipsoid about the origin, coloured as its pictures are."""
    i = np.arange(n) + 0.5
    z, turn = 1 - 2 * i / n, np.pi * (1 + 5**0.5) * i
    sphere = np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], -1)
    rgb = np.clip(0.5 + 0.4 * sphere, 0, 1)
    size = 1.6 * np.sqrt(4 * np.pi / n) / 2 * float(np.max(axes))
    return Gaussians(
        ((1 - 0.04) * sphere * axes).astype(np.float32),
        np.tile(np.float32([1, 0, 0, 0]), (n, 1)),
        np.full((n, 3), np.log(0.3 * size), np.float32),
        np.full(n, 4.0, np.float32),
        ((rgb - 0.5) / C0)[:, None].astype(np.float32),
    )


def write_fit(
    path: Path, of: Path, hidden: dict[int, float | None] | None = None, **config: object
) -> Path:
    """A finished run of `fit` of a set of `sample_sets.write_samples`.

    Args:
        path: its folder.
        of: the set.
        hidden: IoU of hidden cameras by the sample's place; None = not judged; default 0.95.
        config: entries of config.json to change.
    """
    source, rng = SampleSet.open(of), np.random.default_rng(0)
    for k, name in enumerate(source.ids("all")):
        place = path / "items" / name
        save_ply(place / "splats.ply", ellipsoid(rng.uniform(0.4, 0.9, 3)))
        record = {"id": name, "frame": k, "cameras": list(range(6)), "input_psnr": 30.0}
        iou = (hidden or {}).get(k, 0.95)
        if iou is not None:
            record["heldout"] = {"iou": iou, "interior_psnr": 25.0, "mean_color_psnr": 20.0}
        (place / "item.json").write_text(json.dumps(record))
    about = {"stage": "fit", "samples": str(of), "fit": {"cells": 20}, **config}
    (path / "config.json").write_text(json.dumps(about))
    (path / "summary.json").write_text(json.dumps({"finished": True, "stage": "fit"}))
    return path
