"""Weight files as they lie on disk, opened lazily and without torch.

A source is a mapping from torch names to `LazyTensor`s: shapes and types are known at once, values
are read when asked for. Safetensors (whole or sharded) are read here; files that need torch (.pt,
.pth, .bin) go through a `TorchReader` that the caller brings: this package never imports it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.errors import CheckpointError

# What `torch.load` would return, with every tensor replaced by a LazyTensor.
TorchReader = Callable[[Path], Any]

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")

_NUMPY_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_INT_DTYPES = {"I64": "int64", "I32": "int32", "I16": "int16", "U8": "uint8", "BOOL": "bool"}


class LazyTensor:
    """A tensor whose values are read when NumPy asks for them."""

    def __init__(self, shape: tuple[int, ...], dtype: str, read: Callable[[], np.ndarray]) -> None:
        self.shape, self.dtype, self._read = tuple(shape), dtype, read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self._read()
        return values if dtype is None else values.astype(dtype, copy=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the values as stored."""
        width = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "uint8": 1, "bool": 1}
        return int(np.prod(self.shape)) * width.get(self.dtype, 2)


@dataclasses.dataclass(frozen=True)
class Weights:
    """An opened source: its tensors and the files they come from."""

    tensors: Mapping[str, Any]
    files: tuple[Path, ...]


def check_file(path: Path) -> None:
    """Refuse files that are something else than weights, saying what they are.

    Raises:
        CheckpointError: absent, empty, a Git LFS pointer, a web page, or cut off.
    """
    if not path.is_file():
        raise CheckpointError(
            "There is no such file", where=path, fix="check the path; see docs/checkpoints.md"
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    again = "download it again and compare its size with the one on the download page"
    if size == 0:
        raise CheckpointError("The file is empty", where=path, fix=again)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            "The file is a Git LFS pointer, not the weights",
            where=path,
            found=f"{size} bytes of text",
            fix="run `git lfs install && git lfs pull` in that clone, "
            "or use `python -m mouselift_jax download`",
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            "The file is a web page saved under the name of the weights", where=path, fix=again
        )
    if head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        raise CheckpointError("The file is cut off", where=path, found=f"{size} bytes", fix=again)


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its values begin, checked against its length."""
    size = path.stat().st_size
    problem = CheckpointError(
        "The file is cut off or is not a safetensors file",
        where=path,
        found=f"{size} bytes",
        fix="download it again and compare its size with the one on the download page",
    )
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, 100_000_000):
            raise problem
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise problem from error
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if 8 + length + end != size:
        raise CheckpointError(
            "The file is cut off" if size < 8 + length + end else "The file has bytes left over",
            where=path,
            expected=f"{8 + length + end} bytes",
            found=f"{size} bytes",
            fix=problem.fix,
        )
    return header, 8 + length


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Open one safetensors file; values stay on disk and are mapped, not copied, when read.

    Raises:
        CheckpointError: not a whole safetensors file, or a tensor type that weights do not have.
    """
    check_file(path)
    header, begin = _safetensors_header(path)
    values = np.memmap(path, np.uint8, "r")
    out = {}
    for key, entry in header.items():
        dtype = _NUMPY_DTYPES.get(entry["dtype"]) or _INT_DTYPES.get(entry["dtype"])
        if dtype is None:
            raise CheckpointError(
                "A tensor has a type that this project does not read",
                where=f"{path}: {key}",
                expected=", ".join(_NUMPY_DTYPES),
                found=entry["dtype"],
                fix="save it in one of these types",
            )
        first, last = entry["data_offsets"]
        shape = tuple(entry["shape"])
        tensor = LazyTensor(shape, dtype, lambda: np.empty(0))
        if tensor.nbytes != last - first:
            raise CheckpointError(
                "The header contradicts itself",
                where=f"{path}: {key}",
                expected=f"{tensor.nbytes} bytes",
                found=f"{last - first} bytes",
                fix="copy the file again from its source",
            )
        part = values[begin + first : begin + last]
        out[key] = LazyTensor(shape, dtype, functools.partial(_mapped, part, dtype, shape))
    return out


def _mapped(part: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    import ml_dtypes  # NumPy has no bfloat16 of its own

    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return np.frombuffer(part, kind).reshape(shape)


def _torch_tensors(path: Path, read_torch: TorchReader | None) -> Any:
    check_file(path)
    if read_torch is None:
        raise CheckpointError(
            "Reading this file needs torch",
            where=path,
            fix="pip install torch, or use the safetensors version of the file",
        )
    return read_torch(path)


def open_file(path: Path, read_torch: TorchReader | None) -> Any:
    """Open one weight file of any kind; .pt files may hold nested dictionaries."""
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _torch_tensors(path, read_torch)
    check_file(path)
    raise CheckpointError(
        "This is not a weight file that can be read here",
        where=path,
        expected=".safetensors, " + ", ".join(TORCH_SUFFIXES),
        fix="give the file or folder that docs/checkpoints.md names for this KIND",
    )


def _open_shards(index: Path, read_torch: TorchReader | None) -> Weights:
    where = read_json(index).get("weight_map")
    names = sorted(set(map(str, where.values()))) if isinstance(where, dict) else []
    # A shard lies beside its index: a path could name any file of this machine.
    if not names or any(Path(name).name != name for name in names):
        raise CheckpointError(
            "The index of the shards is not one",
            where=index,
            expected='{"weight_map": {tensor: name of a file beside the index}}',
            found=", ".join(names[:3]) or "no weight_map",
            fix="download index and shards from the same revision",
        )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(names)} shards are missing",
            where=index,
            expected=", ".join(names),
            found="without " + ", ".join(missing),
            fix="download the missing files into the same folder",
        )
    shards = {name: open_file(index.parent / name, read_torch) for name in names}
    lost = [key for key, name in where.items() if key not in shards[name]]
    if lost:
        raise CheckpointError(
            "The index promises tensors that the shards do not hold",
            where=index,
            found=", ".join(lost[:5]),
            fix="download index and shards from the same revision",
        )
    tensors = {key: value for shard in shards.values() for key, value in shard.items()}
    return Weights(tensors, tuple(index.parent / name for name in names))


def open_component(folder: Path, read_torch: TorchReader | None) -> Weights:
    """Open the weights of one component folder of a diffusers pipeline.

    Safetensors are preferred to .bin, full precision to `.fp16`, a whole file to shards.

    Raises:
        CheckpointError: no weights, or damaged ones.
    """
    names = []
    for variant in ("", ".fp16"):
        for ending in ("safetensors", "bin"):
            for stem in STEMS:
                names += [f"{stem}{variant}.{ending}", f"{stem}.{ending}.index{variant}.json"]
    for name in names:
        path = folder / name
        if path.is_file() and name.endswith(".json"):
            return _open_shards(path, read_torch)
        if path.is_file():
            return Weights(open_file(path, read_torch), (path,))
    raise CheckpointError(
        "There are no weights in this folder",
        where=folder,
        expected="diffusion_pytorch_model.safetensors, model.safetensors, their .bin forms, "
        "or an .index.json with shards",
        found=", ".join(sorted(p.name for p in folder.iterdir())) or "an empty folder",
        fix="see docs/checkpoints.md for what to download where",
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a checkpoint's json, with one clear error when it is not one."""
    check_file(path)
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(
            "The file is not valid json",
            where=path,
            found=str(error),
            fix="copy the file again from its source",
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            "The json does not hold a dictionary",
            where=path,
            fix="copy the file again from its source",
        )
    return value
