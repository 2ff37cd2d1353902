"""Writing a `.pt` file that `torch.load(weights_only=True, mmap=True)` opens, without torch.

Such a file is a zip archive, stored and not compressed: a pickle of the containers in which every
tensor names a record, and one record of raw values a tensor, aligned to 64 bytes.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.errors import ShapeError

_STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
}
_ALIGNMENT = 64


class _Global:
    """A name that torch resolves when it reads the file."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self) -> None:  # the pickler asks for something callable
        """Never called."""


class _Storage:
    """The values of one tensor: a record of the archive."""

    def __init__(self, record: int, dtype: str, size: int) -> None:
        self.record, self.dtype, self.size = record, dtype, size


class _Tensor:
    """Stands for a tensor in the containers that are pickled."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...]) -> None:
        self.storage, self.shape = storage, shape

    def __reduce__(self) -> tuple:
        strides = [1]
        for n in self.shape[:0:-1]:
            strides.insert(0, strides[0] * n)
        stride = tuple(strides) if self.shape else ()
        rebuild = _Global("torch._utils", "_rebuild_tensor_v2")
        return rebuild, (self.storage, 0, self.shape, stride, False, OrderedDict())


class _Pickler(pickle._Pickler):  # the pure Python one: its `dispatch` can be extended
    """Writes `_Global` as the name itself and `_Storage` as torch's persistent reference."""

    dispatch = dict(pickle._Pickler.dispatch)

    def persistent_id(self, obj: Any) -> Any:
        """Torch's description of a storage."""
        if not isinstance(obj, _Storage):
            return None
        kind = _Global("torch", _STORAGES[obj.dtype])
        return "storage", kind, str(obj.record), "cpu", obj.size

    def _save_global_name(self, obj: _Global) -> None:
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    dispatch[_Global] = _save_global_name


Lazy = tuple[tuple[int, ...], Any, Callable[[], np.ndarray]]  # shape, dtype, values


def write_torch_file(path: Path, tensors: Mapping[str, Lazy], extra: Mapping[str, Any]) -> None:
    """Write {"model": tensors, **extra}; one tensor's values are in memory at a time.

    Args:
        path: the file; whole or absent is the caller's care (`files.atomic_path`).
        tensors: name -> (shape, dtype, function that makes the values).
        extra: plain numbers and strings beside them.
    """
    model, records = {}, []
    for name, (shape, dtype, make) in tensors.items():
        dtype = np.dtype(dtype)
        if dtype.name not in _STORAGES:
            raise ShapeError("A tensor has a type that cannot be written", where=name, found=dtype)
        storage = _Storage(len(records), dtype.name, int(np.prod(shape)))
        model[name] = _Tensor(storage, tuple(int(n) for n in shape))
        records.append((dtype, shape, make))
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump({"model": model, **extra})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", [pickled.getvalue()], len(pickled.getvalue()))
        _add(archive, "byteorder", [b"little"], 6)
        for i, (dtype, shape, make) in enumerate(records):
            size = int(np.prod(shape)) * dtype.itemsize
            _add(archive, f"data/{i}", _values(make, dtype, shape), size)
        _add(archive, "version", [b"3\n"], 2)


def _values(make: Callable[[], np.ndarray], dtype: np.dtype, shape: tuple) -> Iterator[bytes]:
    values = np.asarray(make(), dtype, order="C")
    if values.shape != tuple(shape):
        raise ShapeError("A tensor changed its shape", expected=shape, found=values.shape)
    yield memoryview(values.reshape(-1).view(np.uint8))


def _add(archive: zipfile.ZipFile, name: str, chunks: Iterable[bytes], size: int) -> None:
    """Append a record whose values begin at a multiple of 64 bytes."""
    info = zipfile.ZipInfo(f"archive/{name}")
    info.file_size = size
    # Extra fields are (id, length, data); zipfile puts its own of 20 bytes before for 4 GiB and up.
    large = 20 if size * 1.05 > zipfile.ZIP64_LIMIT else 0
    begin = archive.fp.tell() + 30 + len(info.filename) + large + 4
    padding = -begin % _ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + bytes(padding)
    with archive.open(info, "w") as record:
        for chunk in chunks:
            record.write(chunk)
