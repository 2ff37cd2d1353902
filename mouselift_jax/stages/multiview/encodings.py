"""The cache of encodings: what the frozen networks say of every training sample, kept on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.data.batches.pictures import (
    Augment,
    augmented,
    background_color,
    composite,
    resized,
)
from mouselift_jax.data.samples.sample_set import MANIFEST, SampleSet
from mouselift_jax.errors import ConfigError
from mouselift_jax.files import write_json_atomic
from mouselift_jax.runs.progress import Progress
from mouselift_jax.stages.multiview.order import orders, poses_of
from mouselift_jax.stages.multiview.rig import stacked_cameras
from mouselift_jax.stages.multiview.settings import MultiviewSettings

log = logging.getLogger("mouselift_jax")


COLORS = {
    "white": ("white",),
    "black": ("black",),
    "gray": ("gray",),
    "three_choices": ("white", "black", "gray"),
}
SALT_CACHE, SALT_JITTER = 0xCAC, 0x117


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way a stored sample was changed before it was encoded."""

    background: str
    draw: int  # number of the stored jitter draw


def variants(config: MultiviewSettings) -> list[Variant]:
    """Every combination of background and stored jitter draw.

    Raises:
        ConfigError: augmentation without limit, of which no finite number of encodings is a part.
    """
    d = config.data
    if d.background not in COLORS:
        raise ConfigError(
            "encodings cannot be cached for backgrounds of any colour",
            where="config.data.background",
            expected=", ".join(COLORS),
            found=d.background,
            fix="--config.data.background=three_choices, or --config.cache.enabled=False",
        )
    jitters = bool(d.brightness or d.contrast)
    if jitters and config.cache.jitter_draws < 1:
        raise ConfigError(
            "encodings cannot be cached under unlimited augmentation",
            where="config.cache.jitter_draws",
            found=f"{config.cache.jitter_draws}, with brightness {d.brightness} and contrast "
            f"{d.contrast}",
            fix="--config.cache.jitter_draws=4, or --config.data.brightness=0 "
            "--config.data.contrast=0, or --config.cache.enabled=False",
        )
    draws = range(config.cache.jitter_draws if jitters else 1)
    return [Variant(color, k) for color in COLORS[d.background] for k in draws]


class Cache:
    """Moments and image embeddings of every training sample in every variant, on disk.

    Means and log-variances are stored, not samples, and embeddings without noise: what is drawn
    anew at each step stays drawn anew. The folder's name is a hash of everything the values depend
    on. A build that was interrupted goes on where it stopped.

    Args:
        config: of the stage.
        samples: the sample set.
        root: folder of caches.
        identity: what identifies the frozen networks.
    """

    def __init__(
        self, config: MultiviewSettings, samples: Path, root: Path, identity: dict[str, Any]
    ) -> None:
        self.config, self.set = config, SampleSet.open(samples)
        self.ids = self.set.ids("train")
        self.variants = variants(config)
        d = config.data
        self.key = {
            "samples": str(self.set.path.resolve()),
            "ids": list(self.ids),
            "manifest": _hash(self.set.path / MANIFEST),
            "pictures": self._pictures_hash(),
            "size": d.size,
            "jitter": [d.brightness, d.contrast, config.seed],
            "variants": [[v.background, v.draw] for v in self.variants],
            "references": self.n_references,
            "networks": identity,
            "frozen_dtype": config.frozen_dtype,
        }
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        self.folder = root / digest[:16]

    def _pictures_hash(self) -> str:
        """Changes with any picture's file: its name, size or time of writing."""
        files = (p for i in self.ids for p in self.set.picture_paths(i))
        found = [(str(p.relative_to(self.set.path)), p.stat()) for p in files]
        rows = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    @property
    def n_references(self) -> int:
        """Views of a sample that may be the reference."""
        return 1 if self.config.reference == "fixed" else self.config.model.n_views

    def bytes(self, latent_side: int, channels: int, width: int) -> int:
        """Size on disk."""
        v = self.config.model.n_views
        one = 2 * v * latent_side**2 * channels + self.n_references * width
        return 4 * len(self.ids) * len(self.variants) * one

    def build(self, encode: Callable[[np.ndarray], tuple], style: str = "auto") -> None:
        """Encode what is not there yet.

        Args:
            encode: pictures [V,H,W,3] -> (mean, logvar [V,h,w,4], embeddings of the reference
                views [R,D]).
            style: of the progress.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        total = len(self.ids) * len(self.variants)
        marker = self.folder / "done.json"
        done = json.loads(marker.read_text())["rows"] if marker.exists() else 0
        if done >= total:
            log.info("cache of encodings: %s is whole", self.folder)
            return
        log.info("cache of encodings: %d of %d in %s", done, total, self.folder)
        arrays: list[np.ndarray] = []
        with Progress(total, done=done, style=style, unit="encoding") as progress:
            for row in range(done, total):
                values = [np.asarray(x, np.float32) for x in encode(self.pictures(row))]
                arrays = arrays or self._open(values, total)
                for array, value in zip(arrays, values, strict=True):
                    array[row] = value
                if (row + 1) % 64 == 0 or row + 1 == total:
                    for array in arrays:
                        array.flush()
                    write_json_atomic(marker, {"rows": row + 1, "key": self.key})
                progress.update()

    def pictures(self, row: int) -> np.ndarray:
        """The pictures [V,H,W,3] behind a row."""
        sample, variant = divmod(row, len(self.variants))
        v, d = self.variants[variant], self.config.data
        loaded = self.set.load(self.ids[sample], range(self.config.model.n_views))
        images, _ = resized(loaded.images_rgba, None, d.size)
        rng = np.random.default_rng((self.config.seed, sample, v.draw, SALT_JITTER))
        images, _ = augmented(images, None, Augment(d.brightness, d.contrast), rng)
        return composite(images, background_color(v.background, rng))[0]

    NAMES = ("mean", "logvar", "embeds")

    def _open(self, like: list[np.ndarray], total: int) -> list[np.ndarray]:
        out = []
        for name, value in zip(self.NAMES, like, strict=True):
            path = self.folder / f"{name}.npy"
            mode = "r+" if path.exists() else "w+"
            shape = (total, *value.shape)
            out.append(np.lib.format.open_memmap(path, mode, np.float32, shape))
        return out

    def batches(self, rows: tuple[int, int], step: int) -> Iterator[dict[str, np.ndarray]]:
        """Batches of encodings from `step` on: a function of seed and step alone."""
        mean, logvar, embeds = (
            np.load(self.folder / f"{n}.npy", mmap_mode="r") for n in self.NAMES
        )
        cameras = self._cameras()
        config, n, b = self.config, len(self.ids), self.config.train.batch_size
        while True:
            part = b // rows[1]  # rows of processes are put next to each other
            places = np.arange(part) + step * b + rows[0] * part
            samples = np.array([_shuffled(config.seed, p // n, n)[p % n] for p in places])
            choice = [
                np.random.default_rng((config.seed, int(p), SALT_CACHE)).integers(
                    len(self.variants)
                )
                for p in places
            ]
            index = samples * len(self.variants) + np.array(choice)
            K, c2w = (None, None) if cameras is None else (x[samples] for x in cameras)
            order = orders(config, c2w, len(places), step, rows)
            take = order[..., None, None, None]
            of = np.zeros(len(places), int) if self.n_references == 1 else order[:, 0]
            found = {
                "mean": np.take_along_axis(mean[index], take, 1),
                "logvar": np.take_along_axis(logvar[index], take, 1),
                "image_embeds": embeds[index, of],
                "order": order.astype(np.int32),
            }
            if config.model.pose_features:
                found["poses"] = poses_of(config, K, c2w, order)
            yield found
            step += 1

    def _cameras(self) -> tuple[np.ndarray, np.ndarray] | None:
        return stacked_cameras(self.set, self.ids, self.config)


_ORDER: dict[tuple[int, int, int], np.ndarray] = {}


def _shuffled(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of the samples in an epoch; the last two are remembered."""
    key = (seed, int(epoch), n)
    if key not in _ORDER:
        while len(_ORDER) > 1:
            _ORDER.pop(next(iter(_ORDER)))
        _ORDER[key] = np.random.default_rng((seed, int(epoch), SALT_CACHE)).permutation(n)
    return _ORDER[key]


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def weights_sum(params: Any) -> float:
    """A number that changes with the weights."""
    leaves = jax.tree.leaves(params)
    return float(sum(jnp.sum(jnp.abs(x.astype(jnp.float32))) for x in leaves))
