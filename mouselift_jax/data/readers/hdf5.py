"""HDF5 as MATLAB (save -v7.3) writes it, read into what scipy's loadmat gives of older files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.errors import LayoutError, MissingExtraError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_BROKEN = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError,
           OverflowError, MemoryError, RecursionError, UnicodeError)  # fmt: skip
_LARGE = 1 << 28  # bytes of one variable: no calibration is as large, and pictures are passed over
_MOST, _DEEPEST = 20_000, 12  # values, and structures inside one another


class Struct:
    """A MATLAB structure: its fields as attributes, as scipy gives them."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fieldnames = list(fields)
        self.__dict__.update(fields)


def h5py(what: str) -> Any:
    """The library, an extra of this project; `what` it is wanted for."""
    try:
        import h5py as library
    except ImportError as error:
        raise MissingExtraError("h5py", "keypoints", what) from error
    return library


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, with or without MATLAB's 512 bytes before it."""
    with open(path, "rb") as file:
        if file.read(8) == _SIGNATURE:
            return True
        file.seek(512)
        return file.read(8) == _SIGNATURE


def load_matlab(path: Path) -> dict[str, Any]:
    """The variables of a file saved with -v7.3; larger ones than a calibration are left out.

    Raises:
        LayoutError: damaged. MissingExtraError: h5py is needed.
    """
    library = h5py("reading MATLAB files saved with -v7.3")
    try:
        with library.File(path, "r") as file:
            budget = [_MOST]
            names = [k for k in file if not _text(k).startswith("#")]  # #refs#, #subsystem#
            return {_text(k): _value(library, file, file[k], budget, 0) for k in names}
    except _BROKEN as error:
        raise LayoutError(
            "cannot read this MATLAB file",
            where=path,
            expected="a whole file of MATLAB (save, save -v7.3)",
            found=" ".join(f"{type(error).__name__}: {error}".split())[:120],
            fix="copy it again if it was cut short; else save it in MATLAB with: "
            "save('label3d_dannce.mat', ..., '-v7')",
        ) from error


def _text(name: str | bytes) -> str:
    """A name; h5py gives bytes where it is no UTF-8."""
    return name if isinstance(name, str) else name.decode("utf-8", "replace")


def _value(library: Any, file: Any, item: Any, budget: list[int], depth: int) -> Any:
    budget[0] -= 1
    if budget[0] < 0 or depth > _DEEPEST:
        raise ValueError("more, or deeper, than a calibration")
    if isinstance(item, library.Group):
        return _structure(library, file, item, budget, depth)
    if "MATLAB_empty" in item.attrs:
        return np.zeros(0)
    if item.dtype.kind == "O":  # a cell array: references
        return _cells(library, file, item, budget, depth)
    if item.size * item.dtype.itemsize > _LARGE:
        return None
    array = np.asarray(item).T  # MATLAB stores columns first
    if item.attrs.get("MATLAB_class") == b"char":
        return "".join(chr(int(c)) for c in array.reshape(-1, order="C")[:4096])
    return array.squeeze()


def _cells(library: Any, file: Any, item: Any, budget: list[int], depth: int) -> np.ndarray:
    if item.size > budget[0]:
        raise ValueError(f"{item.size} cells")
    refs = np.asarray(item).T.reshape(-1)
    out = np.empty(len(refs), object)
    for i, ref in enumerate(refs):
        out[i] = _value(library, file, file[ref], budget, depth + 1) if ref else None
    return out


def _structure(library: Any, file: Any, group: Any, budget: list[int], depth: int) -> Any:
    """A structure; where every field is a list of references, an array of structures."""
    many = [isinstance(v, library.Dataset) and v.dtype.kind == "O" and
            "MATLAB_class" not in v.attrs for v in group.values()]  # fmt: skip
    items = group.items()
    fields = {_text(k): _value(library, file, v, budget, depth + 1) for k, v in items}
    if not many or not all(many):
        return Struct(fields)
    lengths = {len(v) for v in fields.values()}
    if len(lengths) != 1:
        raise ValueError("fields of an array of structures differ in length")
    out = np.empty(lengths.pop(), object)
    for i in range(len(out)):
        out[i] = Struct({k: v[i] for k, v in fields.items()})
    return out
