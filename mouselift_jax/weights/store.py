"""Parameters on disk: an orbax checkpoint written a few leaves at a time, with checksums.

A conversion never holds more than two batches: the one that is written and the next. The result is
an ordinary orbax PyTree checkpoint. Paths may be local or gs:// (etils.epath).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mouselift_jax.errors import CheckpointError
from mouselift_jax.weights.rules import flatten, unflatten

# Leaves written together. A write is flushed to disk before the next begins, at about 50 ms each:
# hundreds of small leaves, one after the other, would cost more than their bytes do.
BATCH_BYTES = 64 << 20


class LazyLeaf:
    """One parameter that is computed when its turn to be written comes."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, make: Callable[[], np.ndarray]) -> None:
        self.shape, self.dtype, self.make = tuple(shape), np.dtype(dtype), make

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.size * self.dtype.itemsize


def raw_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array of any type, bfloat16 included."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def checksum(array: np.ndarray) -> int:
    """CRC-32 of the sums of an array's 4 KiB blocks: finds damage on disk at the speed of memory.

    Every changed bit changes a block's sum, and every moved block the CRC; it is no protection
    against intent.
    """
    data = np.frombuffer(raw_bytes(array), np.uint8)
    whole = len(data) // 4096 * 4096
    sums = data[:whole].view(np.uint64).reshape(-1, 512).sum(axis=1, dtype=np.uint64)
    return zlib.crc32(data[whole:].tobytes(), zlib.crc32(sums.tobytes()))


def _batches(sizes: Sequence[int], limit: int) -> list[slice]:
    """Runs of leaves of at most `limit` bytes together; a larger leaf is a batch of its own."""
    starts, total = [0], 0
    for i, size in enumerate(sizes):
        total += size
        if total > limit and i > starts[-1]:
            starts.append(i)
            total = size
    return [slice(a, b) for a, b in itertools.pairwise([*starts, len(sizes)])]


def _handler_registry() -> Any:
    import jax
    import orbax.checkpoint as ocp

    class Streaming(ocp.type_handlers.NumpyHandler):
        """Writes LazyLeaf values as NumPy arrays; while one batch is written, the next is made."""

        async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
            args = args or [ocp.type_handlers.SaveArgs()] * len(values)
            batches = _batches([value.nbytes for value in values], BATCH_BYTES)

            def make(batch: slice) -> list[np.ndarray]:
                return [value.make() for value in values[batch]]

            coming = asyncio.to_thread(make, batches[0])
            for batch, following in itertools.zip_longest(batches, batches[1:]):
                arrays = await coming
                if following is not None:
                    coming = asyncio.create_task(asyncio.to_thread(make, following))
                await self._background_serialize(arrays, infos[batch], args[batch])
                del arrays
            return []

    return ocp.type_handlers.create_type_handler_registry(
        (LazyLeaf, Streaming(deepcopy_host_arrays=False)),
        (
            jax.Array,
            ocp.type_handlers.ArrayHandler(),
        ),  # none is written; orbax warns where it is absent
    )


def _whole(path: Any) -> Any:
    """A path that orbax takes: local ones absolute, gs:// and the like as they are."""
    from etils import epath

    text = os.fspath(path)
    return epath.Path(text if "://" in text else os.path.abspath(text))


def write_params(path: Any, leaves: Mapping[str, LazyLeaf]) -> None:
    """Write leaves ("a/b/kernel" -> LazyLeaf) as an orbax checkpoint at `path`.

    Uncompressed: random-looking float weights shrink by a tenth and cost twice the time.
    """
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler(
        use_compression=False, type_handler_registry=_handler_registry()
    )
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(_whole(path), args=ocp.args.PyTreeSave(unflatten(leaves)))


def read_params(path: Any) -> dict[str, np.ndarray]:
    """Read back what `write_params` wrote, as {"a/b/kernel": array}."""
    import jax
    import orbax.checkpoint as ocp

    path = _whole(path)
    if not path.exists():
        raise CheckpointError(
            "There are no parameters here", where=path, fix="convert again, into a new folder"
        )
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.metadata(path).item_metadata
        if found is None:
            raise CheckpointError(
                "The list of these parameters is missing or damaged",
                where=path,
                fix="convert again, into a new folder",
            )
        tree = found.tree
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return flatten(checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=args)))
