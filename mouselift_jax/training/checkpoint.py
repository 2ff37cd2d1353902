"""Checkpoints that are whole or absent, kept sparingly, and checked when they are read.

A checkpoint is a folder named by its step, written in the background and renamed when complete.
It holds a checksum of every array's bits, computed on the devices when saving and again when
restoring, so damage that the file format does not notice is found. The sum is of integers: the
same on any mesh.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.errors import CheckpointError, TrainingError
from mouselift_jax.training import distributed

log = logging.getLogger("mouselift_jax")

# What a damaged checkpoint raises, depending on which byte is hit.
DAMAGED = (ValueError, OSError, KeyError, TypeError, RuntimeError, EOFError, AssertionError)
LAYOUT = "_layout"  # beside each item's checksum, that of its names and shapes
# Some of these are in every checkpoint of ours, damaged or not.
OF_A_CHECKPOINT = ("_CHECKPOINT_METADATA", "commit_success.txt", "check", "params")
ROOM = "free some space and run the same command again: the previous checkpoint is intact"


@jax.jit
def checksum(tree: Any) -> jax.Array:
    """One uint32 over the bits of all arrays; position counts, the mesh does not."""
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        leaf = jnp.asarray(leaf)
        if leaf.dtype == jnp.bool_:
            leaf = leaf.astype(jnp.uint8)
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        bits = bits.astype(jnp.uint32)
        place, stride = jnp.zeros((), jnp.uint32), 1
        for axis in reversed(range(bits.ndim)):
            along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
            place = place + along * jnp.uint32(stride % 2**32)
            stride *= bits.shape[axis]
        total = total * jnp.uint32(1000003) + jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
    return total


@jax.jit
def _beside(total: jax.Array, value: jax.Array) -> jax.Array:
    """`value` on the devices that hold `total`: with several processes, on all of theirs."""
    return total * 0 + value


def _refuse_strange(directory: Path) -> None:
    """Stop before orbax: it takes every folder named by a number for its own, and removes it.

    Raises:
        CheckpointError: there are such folders, and no checkpoint is in them.
    """
    strange = [
        p.name
        for p in sorted(directory.iterdir())
        if p.name.isdigit() and p.is_dir() and any(p.iterdir())
        if not any((p / name).exists() for name in OF_A_CHECKPOINT)
    ]
    if strange:
        raise CheckpointError(
            "these folders hold no checkpoints, and their names are those of checkpoints",
            where=directory,
            found=", ".join(strange[:6]),
            fix="move them away yourself: old checkpoints are removed here",
        )


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: folder that holds them, one sub-folder a step.
        keep: newest ones kept.
        best: metric whose best checkpoint is kept besides ("" = none); its value is given to
            `save`. Whether low is good follows from its name, see `low_is_good`.
        read_only: another run's: nothing is made, tidied or moved.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 3,
        best: str = "",
        read_only: bool = False,
    ) -> None:
        from orbax.checkpoint import v1 as ocp

        self._ocp = ocp
        self.directory = Path(directory).absolute()
        self.best = best
        self._set_aside_allowed = jax.process_index() == 0
        policies = ocp.training.preservation_policies
        preserve = [policies.LatestN(max(1, keep))]
        if best:
            preserve.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[best],
                    reverse=low_is_good(best),
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._open = lambda: ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(preserve),
            cleanup_tmp_directories=not read_only,
        )
        if read_only and not self.directory.is_dir():
            raise CheckpointError(
                "no such folder of checkpoints",
                where=self.directory,
                fix="give the --workdir of a run that saved one",
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        if not read_only:
            _refuse_strange(self.directory)
        self._checkpointer = self._open()
        self._pending: Any = None
        self._failed_once = False

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type | None, *exc_info: object) -> None:
        try:
            self.wait()
        except TrainingError:
            if kind is None:  # else the first error is the one to tell
                raise
        finally:
            self._close()

    def _close(self) -> None:
        try:
            self._checkpointer.close()
        except DAMAGED:
            if not self._failed_once:  # a failed save is told again here
                raise

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(int(c.step) for c in self._checkpointer.checkpoints)

    def ranked(self) -> list[tuple[int, str, float]]:
        """(step, metric, value) of the checkpoints that were saved with one, the best first."""
        found = [
            (int(c.step), *next(iter(c.metrics.items())))
            for c in self._checkpointer.checkpoints
            if c.metrics
        ]
        return sorted(found, key=lambda row: row[2] if low_is_good(row[1]) else -row[2])

    def is_best(self, metrics: Mapping[str, float] | None) -> bool:
        """Whether these values of `best` are better than those of every checkpoint."""
        value, before = self._value(metrics), self.ranked()
        if value is None:
            return False
        return not before or (value < before[0][2]) == low_is_good(self.best)

    def _value(self, metrics: Mapping[str, float] | None) -> float | None:
        value = (metrics or {}).get(self.best) if self.best else None
        return float(value) if value is not None and np.isfinite(value) else None

    def save(
        self, step: int, items: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Start writing a checkpoint; waits only for the one before.

        Args:
            step: its number; saving a step twice does nothing.
            items: named trees of arrays.
            metrics: values of this step, for `best`.

        Raises:
            TrainingError: this or the previous one could not be written (disk full, no permission).
        """
        self.wait()
        if step in self.steps():
            return
        items = {k: v for k, v in items.items() if jax.tree.leaves(v)}
        self._check_space(items)
        check = {k: checksum(v) for k, v in items.items()}
        check |= {
            k + LAYOUT: _beside(check[k], np.uint32(_layout(_shapes(v)))) for k, v in items.items()
        }
        items = {**items, "check": check}
        value = self._value(metrics)
        rank = None if value is None else {self.best: value}
        try:
            self._pending = self._checkpointer.save_checkpointables_async(
                step, items, force=True, metrics=rank
            )
        except DAMAGED as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Until the checkpoint being written is complete."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except DAMAGED as error:
            raise self._failed(error) from error

    def restore(
        self, abstract: Mapping[str, Any], step: int | None = None
    ) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint that is sound, or the one asked for.

        Args:
            abstract: what to read: named trees of ShapeDtypeStruct with shardings.
            step: this one and no other.

        Returns:
            (step, items), or None when there is no checkpoint at all. Damaged ones are named in
            the log and moved aside, and the one before is tried.

        Raises:
            CheckpointError: checkpoints exist but none is sound, or they hold other shapes.
        """
        wanted = {k: v for k, v in abstract.items() if jax.tree.leaves(v)}
        candidates = [step] if step is not None else self.steps()[::-1]
        for candidate in candidates:
            items = self.sound(candidate, wanted)
            if items is not None:
                return candidate, items
            if step is None:
                self._set_aside(candidate)
        if not candidates:
            return None
        raise CheckpointError(
            "no sound checkpoint",
            where=self.directory,
            found=f"damaged: {', '.join(map(str, candidates))}",
            fix="give another --workdir to start anew",
        )

    def sound(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
        """The items of a checkpoint, None (and what is wrong in the log) when it is damaged.

        Raises:
            CheckpointError: it holds other shapes.
        """
        items, fault = self._load(step, wanted)
        # What one process cannot read, none uses.
        if not distributed.agree(bool(fault)):
            sums = items.pop("check")
            bad = [k for k in wanted if int(checksum(items[k])) != int(sums[k])]
            if not bad:
                return items
            fault = f"checksum of {', '.join(bad)} differs"
        fault = fault or "another process cannot read it"
        log.warning("checkpoint %d in %s is damaged: %s", step, self.directory, fault)
        return None

    def _load(self, step: int, wanted: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """(items with their checksums, "") or ({}, what is wrong)."""
        try:
            stored = self._checkpointer.checkpointables_metadata(step).metadata
            one = _everywhere(wanted)
            check = {"check": {k: one for k in stored["check"]}}
            self._check_shapes(step, wanted, stored, check)
            return dict(self._checkpointer.load_checkpointables(step, {**wanted, **check})), ""
        except CheckpointError:
            raise
        except DAMAGED as error:
            text = str(error).strip()
            return {}, text.splitlines()[0][:160] if text else repr(error)

    def abstract(self, step: int, names: Sequence[str]) -> dict[str, Any] | None:
        """Shapes of the named items as they are stored, for this machine; None when unreadable."""
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        try:
            stored = self._checkpointer.checkpointables_metadata(step).metadata
            lost = [name for name in names if name in stored["check"] and name not in stored]
            if lost:
                raise ValueError(f"{', '.join(lost)} is missing")
            return {
                name: jax.tree.map(
                    lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=one), stored[name]
                )
                for name in names
                if name in stored
            }
        except DAMAGED as error:
            log.warning("checkpoint %d in %s is damaged: %s", step, self.directory, error)
            return None

    def _set_aside(self, step: int) -> None:
        """Move a damaged checkpoint out of the way, so that its step can be written again."""
        self._checkpointer.close()
        if self._set_aside_allowed:
            place = self.directory.parent / "damaged_checkpoints" / str(step)
            place.parent.mkdir(exist_ok=True)
            earlier = 0
            while place.exists():  # damaged before, at the same step: kept too
                earlier += 1
                place = place.with_name(f"{step}.{earlier}")
            shutil.move(self.directory / str(step), place)
            log.warning("it was moved to %s; trying the one before", place)
        distributed.barrier(f"damaged_{step}")
        self._checkpointer = self._open()

    def _check_shapes(
        self,
        step: int,
        wanted: Mapping[str, Any],
        stored: Mapping[str, Any],
        check: Mapping[str, Any],
    ) -> None:
        for name, tree in wanted.items():
            if name not in stored and name in stored["check"]:
                raise ValueError(f"{name} is missing")
            if name not in stored:
                raise CheckpointError(
                    f"the checkpoint has no {name}",
                    where=self.directory / str(step),
                    found=sorted(stored),
                    fix="give the --workdir of a training run",
                )
            have, need = _shapes(stored[name]), _shapes(tree)
            if have == need:
                continue
            sums = self._checkpointer.load_checkpointables(step, check)["check"]
            if int(sums.get(name + LAYOUT, _layout(have))) != _layout(have):
                raise ValueError(f"the list of arrays of {name} is not what was written")
            different = [
                f"{key}: {have.get(key, 'absent')} in the file, {need.get(key, 'absent')} expected"
                for key in sorted(have.keys() | need.keys())
                if have.get(key) != need.get(key)
            ]
            raise CheckpointError(
                "the checkpoint is of another network or optimiser",
                where=self.directory / str(step),
                found="; ".join(different[:3])
                + (f" and {len(different) - 3} more" if len(different) > 3 else ""),
                fix="another --workdir, or the configuration this run was started with",
            )

    def _check_space(self, items: Mapping[str, Any]) -> None:
        need = sum(x.nbytes for x in jax.tree.leaves(dict(items)))
        free = shutil.disk_usage(self.directory).free
        if free < need:
            raise TrainingError(
                "no room for a checkpoint",
                where=self.directory,
                expected=f"{need / 2**20:.0f} MiB free",
                found=f"{free / 2**20:.0f} MiB",
                fix=ROOM,
            )

    def _failed(self, error: BaseException) -> TrainingError:
        self._failed_once = True
        text = str(error)
        full = getattr(error, "errno", None) == errno.ENOSPC or any(
            words in text
            for words in ("No space left", "RESOURCE_EXHAUSTED", "File too large", "quota")
        )
        return TrainingError(
            "the disk is full: the checkpoint was not written"
            if full
            else "the checkpoint could not be written",
            where=self.directory,
            found=text.strip().splitlines()[0][:200] if text.strip() else repr(error),
            fix=ROOM if full else "see the message above; the previous checkpoint is intact",
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {_text(k): tuple(v.shape) for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def _layout(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """A sum over names and shapes: tells a damaged list of arrays from another network's."""
    return zlib.crc32(json.dumps(sorted(shapes.items())).encode())


def _everywhere(tree: Any) -> jax.ShapeDtypeStruct:
    """A checksum on the devices that hold the tree."""
    place = jax.tree.leaves(tree)[0].sharding
    if isinstance(place, jax.sharding.NamedSharding):
        place = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())
    return jax.ShapeDtypeStruct((), jnp.uint32, sharding=place)


def _text(path: Any) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def abstract_like(tree: Any, shardings: Any = None) -> Any:
    """ShapeDtypeStructs of a tree of arrays, with shardings when they are given."""
    if shardings is None:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def state_items(state: Any) -> dict[str, Any]:
    """A TrainState (real or abstract) as the named items of a checkpoint."""
    return {
        "params": state.params,
        "frozen": state.frozen,
        "ema": {} if state.ema is None else state.ema,
        "optimiser": {"opt_state": state.opt_state, "step": state.step, "skipped": state.skipped},
    }


def state_from_items(template: Any, items: Mapping[str, Any]) -> Any:
    """The TrainState of restored items; what is empty comes from the template."""
    rest = items["optimiser"]
    return template.replace(
        params=items["params"],
        frozen=items.get("frozen", {}),
        ema=items.get("ema") if template.ema is not None else None,
        opt_state=rest["opt_state"],
        step=rest["step"],
        skipped=rest["skipped"],
        halted=jnp.zeros((), jnp.bool_),
    )


def low_is_good(metric: str) -> bool:
    """Whether a lower value of this metric is better: errors and distances, not scores."""
    return metric.rsplit("/", 1)[-1].split("_g")[0] in ("loss", "lpips", "mse", "l1", "l2")
