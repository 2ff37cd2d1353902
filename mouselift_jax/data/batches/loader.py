"""Batches of samples: shuffled, augmented, prefetched, and a function of (seed, step) alone.

The order, the choice of views, the background and the augmentation of batch `step` depend on the
seed and the step and on nothing else: not on the number of threads, worker processes or hosts, nor
on how often a run was stopped. To resume, build the loader again with `start_step`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mouselift_jax.data.batches.pictures import (
    Augment,
    _check_background,
    augmented,
    background_color,
    composite,
    resized,
)
from mouselift_jax.data.batches.views import choose_views
from mouselift_jax.data.samples.sample_set import Sample, SampleSet
from mouselift_jax.errors import ConfigError, LayoutError, MouseLiftError

log = logging.getLogger("mouselift_jax")


class Batch(NamedTuple):
    """What a training or evaluation step gets; NumPy, or None where a set has no cameras.

    Attributes:
        images: [B,V,H,W,3] float32 in [0,1], composited on the background; of a loader that is told
            not to, [B,V,H,W,4] uint8, straight alpha: a quarter of the bytes, for the device to
            composite.
        masks: [B,V,H,W,1] float32, 1 = animal; None beside uint8 pictures, whose alpha it is.
        K: [B,V,3,3] float32, pixels of these images.
        c2w: [B,V,4,4] float32, scene units.
        sample_index: [B] int32, position in the loader's `ids`.
        camera_ids: [B,V] int32, the recording's camera numbers.
        background: [B,3] float32, the colour behind each sample.
    """

    images: np.ndarray
    masks: np.ndarray | None
    K: np.ndarray | None
    c2w: np.ndarray | None
    sample_index: np.ndarray
    camera_ids: np.ndarray
    background: np.ndarray


@dataclasses.dataclass(frozen=True)
class Views:
    """Which views of a sample become a batch element; see `data/batches/views.py` for the policies.

    Attributes:
        policy: all | first | random | overlap | overlap_original.
        n_views: how many; None takes all.
        n_inputs: how many of them are inputs (first in the batch).
        exclude: camera numbers never taken (held out for evaluation).
        only: camera numbers to choose from; () = all.
    """

    policy: str = "all"
    n_views: int | None = None
    n_inputs: int | None = None
    exclude: tuple[int, ...] = ()
    only: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Loader:
    """An iterable of `Batch`; every `iter()` starts at `start_step` again.

    Attributes:
        ids: (set's folder, sample id) of every sample, indexed by `Batch.sample_index`.
        steps_per_epoch: batches in one pass over the samples.
    """

    ids: tuple[tuple[str, str], ...]
    steps_per_epoch: int
    _make: object

    def __iter__(self) -> Iterator[Batch]:
        return self._make(self.start_step)

    start_step: int = 0

    def __len__(self) -> int:
        return self.steps_per_epoch

    def starting_at(self, step: int) -> Iterator[Batch]:
        """The batches from `step` on, exactly as an uninterrupted run would have seen them."""
        return self._make(step)


def make_loader(
    samples: str | Path | SampleSet | Sequence[str | Path | SampleSet],
    split: str = "train",
    *,
    batch_size: int = 1,
    seed: int = 0,
    start_step: int = 0,
    views: Views | None = None,
    size: int | None = None,
    background: str | float = "white",
    augment: Augment | None = None,
    shard: tuple[int, int] = (0, 1),
    shuffle: bool = True,
    repeat: bool = True,
    limit: int | None = None,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 8,
    on_bad_sample: str = "stop",
    composited: bool = True,
) -> Loader:
    """Make a loader over one sample set or several.

    Args:
        samples: folder(s) of sample sets, or opened sets; several are read as one.
        split: `train`, `val` or `all`.
        batch_size: samples per step over all hosts; each host gets its share.
        seed: of order, views, background and augmentation.
        start_step: the first batch to yield.
        views: which views to take; None takes all in order.
        size: picture side in pixels; None keeps the stored size. Cameras follow.
        background: white | black | gray | random | three_choices, or a grey value in [0,1].
        augment: None for none.
        shard: (index of this host, number of hosts).
        shuffle: shuffle anew in every epoch; False keeps the set's order.
        repeat: go on for ever; False ends after one pass and yields its last, smaller batch too.
        limit: use only the first samples of the split (for overfitting checks).
        workers: extra processes; 0 reads in this one.
        threads: reading threads per process.
        prefetch: samples read ahead, as bytes.
        on_bad_sample: `stop` raises; `skip` checks every sample first, leaves bad ones out and says
            which.
        composited: pictures as floats on the background; False leaves them as bytes with alpha.

    Raises:
        ConfigError: sizes, shards or names that do not fit.
        LayoutError: an empty split, or a sample that cannot be read.
    """
    import grain  # takes 0.5 s to import

    source = _Source(samples, split, limit, on_bad_sample)
    n_hosts = shard[1]
    if batch_size % n_hosts or not 0 <= shard[0] < n_hosts:
        raise ConfigError(
            "the batch cannot be divided among the hosts",
            expected=f"a multiple of {n_hosts}",
            found=f"batch_size {batch_size}, shard {shard}",
            fix=f"a batch_size that is a multiple of {n_hosts}",
        )
    _check_background(background)
    read = _Read(source, views or Views(), size, background, augment or Augment(), seed, shuffle)
    ds = grain.MapDataset.range(len(source)).seed(seed)
    ds = ds.shuffle() if shuffle else ds
    ds = ds.repeat(None) if repeat else ds
    mine = _Share(ds, shard[0], batch_size // n_hosts, batch_size)
    count = len(source) if repeat else mine.count(len(source))
    ds = grain.MapDataset.range(count)
    ds = (ds.repeat(None) if repeat else ds).map_with_index(mine).map(read)

    def iterate(step: int) -> Iterator[Batch]:
        part = ds[step * mine.size :] if step else ds
        # What waits is samples, whose pictures are bytes; floats exist of one batch at a time.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        it = part.to_iter_dataset(options)
        if workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # grain reads absl flags even outside of absl programs
                flags.FLAGS.mark_as_parsed()
            it = it.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        return _assembled(iter(it), mine.size, composited=composited, whole=repeat)

    steps = len(source) // batch_size if repeat else -(-len(source) // batch_size)
    return Loader(source.ids, max(steps, 1), iterate, start_step)


# --- inside --------------------------------------------------------------------------------------


class _Source:
    """Several sample sets as one list."""

    def __init__(self, samples: object, split: str, limit: int | None, on_bad_sample: str) -> None:
        many = samples if isinstance(samples, (list, tuple)) else [samples]
        self.sets = [s if isinstance(s, SampleSet) else SampleSet.open(s) for s in many]
        self.entries = [(k, name) for k, s in enumerate(self.sets) for name in s.ids(split)][:limit]
        if on_bad_sample not in ("stop", "skip"):
            raise ConfigError(
                "on_bad_sample is stop or skip",
                found=on_bad_sample,
                fix="--config.train.on_bad_sample=stop",
            )
        if on_bad_sample == "skip":
            self._drop_bad()
        if not self.entries:
            raise LayoutError(
                f"the split {split!r} is empty",
                where=", ".join(str(s.path) for s in self.sets),
                fix="prepare more frames, or lower split.gap_s / raise split.val_fraction",
            )

    @property
    def ids(self) -> tuple[tuple[str, str], ...]:
        return tuple((str(self.sets[k].path), name) for k, name in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def load(self, index: int, slots: np.ndarray | None) -> Sample:
        k, name = self.entries[index]
        return self.sets[k].load(name, slots)

    def centers_and_ids(self, index: int) -> tuple[np.ndarray | None, np.ndarray]:
        """Camera centres [V,3] (None without cameras) and camera numbers [V], pictures unread."""
        k, name = self.entries[index]
        record = self.sets[k].camera_file(name)
        if record is None:
            return None, np.arange(len(self.sets[k].picture_paths(name)))
        cameras = self.sets[k].cameras(name)
        ids = [f.get("camera", i) for i, f in enumerate(record["frames"])]
        return np.asarray(cameras.center), np.asarray(ids)

    def _drop_bad(self) -> None:
        good, bad = [], []
        for k, name in self.entries:
            try:
                self.sets[k].load(name)
                good.append((k, name))
            except MouseLiftError as error:
                bad.append(error)
        if len(bad) > max(0.01 * len(self.entries), 1):
            raise LayoutError(
                f"{len(bad)} of {len(self.entries)} samples cannot be read",
                expected="at most 1 %",
                found=bad[0],
                fix="run the command that made them again",
            )
        for error in bad:
            log.warning("left out: %s", error)
        self.entries = good


@dataclasses.dataclass
class _Share:
    """A host's rows of every batch, one run of them: hosts' rows are put next to each other.

    A sample comes with its place in the order of all hosts, which seeds its randomness: grain's own
    random_map would seed by the place in the host's order.

    Attributes:
        order: the samples' numbers in the order of all hosts.
        index: of the host.
        size: rows of a batch that are this host's.
        batch: rows of a batch.
    """

    order: Sequence[int]
    index: int
    size: int
    batch: int

    def __call__(self, k: int, _: int) -> tuple[int, int]:
        """Place and sample of this host's k-th row."""
        step, row = divmod(int(k), self.size)
        place = step * self.batch + self.index * self.size + row
        return place, int(self.order[place])

    def count(self, n: int) -> int:
        """How many of `n` samples are this host's."""
        whole, rest = divmod(n, self.batch)
        return whole * self.size + min(max(rest - self.index * self.size, 0), self.size)


@dataclasses.dataclass
class _Read:
    """Reads one sample and makes a batch element of it. Picklable: worker processes get a copy."""

    source: _Source
    views: Views
    size: int | None
    background: str | float
    augment: Augment
    seed: int
    randomise: bool

    def __call__(self, ticket: tuple[int, int]) -> Batch:
        place, index = ticket
        rng = np.random.default_rng((self.seed, place, 0x5EED))
        slots = self._slots(index, rng)
        sample = self.source.load(index, slots)
        images, cameras = resized(sample.images_rgba, sample.cameras, self.size)
        images, cameras = augmented(images, cameras, self.augment, rng)
        # Pictures stay bytes until the batch is put together: floats are copied once, not twice.
        return Batch(
            images,
            None,
            None if cameras is None else np.asarray(cameras.K, np.float32),
            None if cameras is None else np.asarray(cameras.c2w, np.float32),
            np.int32(index),
            np.asarray(sample.camera_ids, np.int32),
            background_color(self.background, rng),
        )

    def _slots(self, index: int, rng: np.random.Generator) -> np.ndarray | None:
        v = self.views
        if v.policy == "all" and not v.exclude and not v.only:
            return None
        centers, ids = self.source.centers_and_ids(index)
        if centers is None and v.policy.startswith("overlap"):
            raise ConfigError(
                "overlap policies need cameras", found=self.source.ids[index], fix="policy=random"
            )
        keep = ~np.isin(ids, v.exclude) & (np.isin(ids, v.only) if v.only else True)
        allowed = np.flatnonzero(keep)
        missing = set(v.only) - set(ids.tolist())
        if not len(allowed) or missing:
            raise ConfigError(
                "the sample has none of the wanted cameras",
                where=self.source.ids[index][1],
                expected=f"only {v.only or 'all'}, without {v.exclude}",
                found=f"cameras {ids.tolist()}",
                fix="fewer heldout_cameras",
            )
        centers = np.zeros((len(ids), 3)) if centers is None else centers
        return allowed[choose_views(v.policy, centers[allowed], v.n_views, v.n_inputs, rng)]


def _assembled(
    elements: Iterator[Batch], size: int, *, composited: bool, whole: bool
) -> Iterator[Batch]:
    """Batches of `_Read`'s elements. Each is put into its place and let go before the next is read.

    Args:
        elements: samples, their pictures as bytes.
        size: rows of a batch.
        composited: see `make_loader`.
        whole: leave a last, smaller batch out.
    """
    while True:
        images: np.ndarray | None = None
        masks: np.ndarray | None = None
        rest: list[tuple] = []
        for e in elements:
            if images is None:
                shape = e.images.shape
                kind, channels = (np.float32, 3) if composited else (np.uint8, 4)
                images = np.empty((size, *shape[:-1], channels), kind)
                masks = np.empty((size, *shape[:-1], 1), np.float32) if composited else None
            if e.images.shape != shape:
                raise ConfigError(
                    "samples of one batch differ in their number or size of views",
                    found=sorted({shape, e.images.shape}),
                    fix="give views.n_views and size",
                )
            row = len(rest)
            if composited:
                composite(e.images, e.background, images[row], masks[row])
            else:
                images[row] = e.images
            rest.append(e[2:])
            if len(rest) == size:
                break
        if not rest or (whole and len(rest) < size):
            return
        n = len(rest)
        columns = (None if c[0] is None else np.stack(c) for c in zip(*rest, strict=True))
        yield Batch(images[:n], None if masks is None else masks[:n], *columns)
