"""Batches of the multi-view training: views turned to the reference, and the cache of encodings.

The reference view is always slot 0. With `reference=random` another view is made the reference for
every sample and step, and the others follow it clockwise by azimuth; each keeps its own prompt.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.loader import (
    Augment,
    Batch,
    Views,
    augmented,
    background_color,
    composite,
    make_loader,
    resized,
)
from mouselift_jax.data.masks import mask_box, mask_centroid
from mouselift_jax.data.rig_file import WARN_SPREAD_PX
from mouselift_jax.data.samples import MANIFEST, SampleSet
from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.files import write_json_atomic
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.rig import azimuth_elevation
from mouselift_jax.geometry.rig_spread import Rig, aimed_at_origin, median_rig
from mouselift_jax.pipelines.views import camera_poses
from mouselift_jax.stages import program
from mouselift_jax.stages.workdir import read_json
from mouselift_jax.training.progress import Progress

log = logging.getLogger("mouselift_jax")

COLORS = {"white": ("white",), "black": ("black",), "gray": ("gray",)}
COLORS["three_choices"] = ("white", "black", "gray")
# A tail reaches farther from the 3D centre than from the middle of a silhouette's box.
ROOM_CENTRED = 1.45  # times `subject_mm`, with aim=centre, for the tail to stay in the picture
SALT_REFERENCE, SALT_CACHE, SALT_JITTER = 0xAE5, 0xCAC, 0x117


# --- which view is the reference -----------------------------------------------------------------


def order_from(reference: int, azimuths_deg: np.ndarray | None, n_views: int) -> np.ndarray:
    """Slots [V] in the order clockwise from a reference, by azimuth where it is known."""
    if azimuths_deg is None:
        return (reference + np.arange(n_views)) % n_views
    turns = (azimuths_deg[reference] - azimuths_deg) % 360.0
    turns[reference] = 0.0
    return np.argsort(turns, kind="stable")


def azimuths_of(c2w: np.ndarray | None) -> np.ndarray | None:
    """Azimuths [V] in degrees of cameras [V,4,4]."""
    return None if c2w is None else np.array(azimuth_elevation(c2w)[0], np.float64)


def orders(
    config: Any, c2w: np.ndarray | None, n: int, step: int, rows: tuple[int, int]
) -> np.ndarray:
    """The slot order [n,V] of each sample of this process's part of a batch."""
    v = config.model.n_views
    if config.reference == "fixed":
        return np.tile(np.arange(v), (n, 1))
    rng = np.random.default_rng((config.seed, step, SALT_REFERENCE))
    chosen = rng.integers(0, v, n * rows[1])[rows[0] :: rows[1]]
    return np.stack(
        [
            order_from(int(r), azimuths_of(None if c2w is None else c2w[i]), v)
            for i, r in enumerate(chosen)
        ]
    )


def poses_of(config: Any, K: Any, c2w: Any, order: np.ndarray) -> np.ndarray:
    """Poses [n,V,4] of the views in their order."""
    if K is None:
        raise LayoutError(
            "a posed network needs samples with cameras",
            where=f"config.samples={config.samples}",
            fix="make the samples with configs/prepare.py, or leave the variant posed out",
        )
    take = order[..., None, None]
    camera = Camera(
        np.take_along_axis(K, take, 1),
        np.take_along_axis(c2w, take, 1),
        config.data.size,
        config.data.size,
    )
    return camera_poses(camera)


# --- batches of pictures -------------------------------------------------------------------------


def picture_batches(
    config: Any, samples: Path, rows: tuple[int, int], step: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of pictures from `step` on: images [b,V,H,W,3], order [b,V], poses."""
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
    )
    for batch in loader:
        yield turned(config, batch, step, rows)
        step += 1


def turned(
    config: Any, batch: Batch, step: int, rows: tuple[int, int] = (0, 1)
) -> dict[str, np.ndarray]:
    """A batch with its views in the order from the reference on."""
    order = orders(config, batch.c2w, len(batch.images), step, rows)
    images = np.take_along_axis(batch.images, order[..., None, None, None], 1)
    found = {"images": images, "order": order.astype(np.int32)}
    if config.model.pose_features:
        found["poses"] = poses_of(config, batch.K, batch.c2w, order)
    return found


# --- the cache -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way a stored sample was changed before it was encoded."""

    background: str
    draw: int  # number of the stored jitter draw


def variants(config: Any) -> list[Variant]:
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

    def __init__(self, config: Any, samples: Path, root: Path, identity: dict[str, Any]) -> None:
        self.config, self.set = config, SampleSet.open(samples)
        self.ids = self.set.ids("train")
        self.variants = variants(config)
        d = config.data
        self.key = {
            "samples": str(self.set.path.resolve()),
            "ids": list(self.ids),
            "manifest": _hash(self.set.path / MANIFEST),
            "size": d.size,
            "jitter": [d.brightness, d.contrast, config.seed],
            "variants": [[v.background, v.draw] for v in self.variants],
            "references": self.n_references,
            "networks": identity,
            "frozen_dtype": config.frozen_dtype,
        }
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        self.folder = root / digest[:16]

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
            places = np.arange(step * b, (step + 1) * b)[rows[0] :: rows[1]]
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


def stacked_cameras(
    sample_set: SampleSet, ids: tuple[str, ...], config: Any
) -> tuple[np.ndarray, np.ndarray] | None:
    """K [N,V,3,3] at the network's picture size, c2w [N,V,4,4]; None in a set without cameras."""
    found = [sample_set.cameras(i) for i in ids]
    if any(c is None for c in found):
        return None
    v, size = config.model.n_views, config.data.size
    found = [c[np.arange(v)].resized(size, size)[0] for c in found]
    return (
        np.stack([np.asarray(c.K, np.float32) for c in found]),
        np.stack([np.asarray(c.c2w, np.float32) for c in found]),
    )


def measure_rig(config: Any, sample_set: SampleSet, *, aimed: bool = False) -> Rig | None:
    """The cameras that the slots will have learned, and how far the samples stray from them.

    Args:
        config: of the stage.
        sample_set: whose training split.
        aimed: the same if every camera looked straight at the animal's 3D centre.
    """
    found = stacked_cameras(sample_set, sample_set.ids("train"), config)
    if found is None:
        return None
    K, c2w = found
    if config.reference == "random":
        # every view in turn is the reference: the rig of a slot is the median over them all
        turned = []
        for r in range(config.model.n_views):
            order = np.stack([order_from(r, azimuths_of(c), len(c)) for c in c2w])[..., None, None]
            turned.append([np.take_along_axis(x, order, 1) for x in (K, _facing(c2w, order))])
        K, c2w = (np.concatenate(x) for x in zip(*turned, strict=True))
    size = config.data.size
    cameras = Camera(K.astype(np.float64), c2w.astype(np.float64), size, size)
    return median_rig(aimed_at_origin(cameras) if aimed else cameras)


def spread_advice(config: Any, sample_set: SampleSet, rig: Rig, workdir: Path) -> str | None:
    """What a spread too wide for one rig means, and the commands against it; None = narrow."""
    worst = float(np.max(rig.spread_px))
    if worst <= WARN_SPREAD_PX or config.model.pose_features:
        return None
    posed = f"--config.model.pose_features=256 --workdir={workdir}_posed"
    told = (
        f"the training cameras spread by up to {worst:.1f} px around one rig, which is all that a "
        "network without poses can learn: generated views will disagree with their cameras by "
        f"about as much. Tell the network the cameras: {program.command_line()} "
        f"{program.in_own_keys(posed, workdir)}"
    )
    how = sample_set.manifest.get("parameters") or {}
    if how.get("aim") != "box":
        return told
    straight = float(np.max(measure_rig(config, sample_set, aimed=True).spread_px))
    sources = sample_set.manifest.get("source") or {}
    paths = ",".join(str(s["path"]) for s in sources.values() if isinstance(s, dict))
    folder = sample_set.path.parent
    variant = (read_json(folder / "config.json") or {}).get("variant", "fill")
    command = [f"--config=configs/prepare.py:{variant}", f"--config.recording={paths}"]
    command += ["--config.prepare.aim=centre"]
    if how.get("fov") == "fill":
        room = round(how["subject_mm"] * ROOM_CENTRED, -1)
        command.append(f"--config.prepare.subject_mm={room:g}")
    command.append(f"--workdir={folder}_centre")
    return (
        f"{told}. Or prepare the samples with the animal's 3D centre in the middle instead of each "
        f"silhouette's (aim=box): the spread is then {straight:.1f} px at the present focal "
        f"length: python launch.py {shlex.join(command)}"
    )


def _facing(c2w: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Cameras turned about the vertical so that each sample's reference faces the front (270)."""
    out = np.array(c2w, np.float64)
    first = np.take_along_axis(c2w, order, 1)[:, 0]
    turn = np.deg2rad(270.0 - np.asarray(azimuth_elevation(first)[0]))
    cos, sin = np.cos(turn), np.sin(turn)
    R = np.zeros((len(c2w), 1, 3, 3))
    R[:, 0, 0, 0], R[:, 0, 0, 1], R[:, 0, 1, 0], R[:, 0, 1, 1] = cos, -sin, sin, cos
    R[:, 0, 2, 2] = 1
    out[..., :3, :] = R @ out[..., :3, :]
    return out


def subject_place(sample_set: SampleSet, most: int = 64) -> dict[str, Any]:
    """How the subject lies in slot 0's pictures, so that a photo can be laid likewise.

    `subject_share`: of the side, that its longer side takes, the median. `subject_centre`: what
    lies in the middle, the silhouette's box or its centroid, whichever strays less from it.

    Empty for a set without masks. At most `most` training samples are read, evenly spread.
    """
    ids = sample_set.ids("train")
    shares, off = [], {"box": [], "centroid": []}
    for place in np.unique(np.linspace(0, len(ids) - 1, min(most, len(ids))).astype(int)):
        sample = sample_set.load(ids[place], [0])
        if not sample.has_alpha:
            return {}
        alpha = np.ascontiguousarray(sample.images_rgba[0, ..., 3])
        x0, y0, x1, y1 = box = mask_box(alpha)
        if x1 <= x0:
            continue
        side = alpha.shape[0]
        shares.append(max(x1 - x0, y1 - y0) / side)
        off["box"].append(np.array([x0 + x1, y0 + y1]) / (2 * side) - 0.5)
        off["centroid"].append(mask_centroid(alpha, box)[0] / side - 0.5)
    if not shares:
        return {}
    centre = min(off, key=lambda name: float(np.mean(np.square(off[name]))))
    return {"subject_share": round(float(np.median(shares)), 4), "subject_centre": centre}


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
