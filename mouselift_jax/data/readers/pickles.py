"""`new_cam.pkl` and keypoint pickles, unpickled without ever running code from them."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.readers.calibration import (
    Calibration,
    CameraModel,
    coefficients,
    matrix3,
    numbers,
    shifted_K,
    vector3,
)
from mouselift_jax.data.readers.lenses import fisheye, lens
from mouselift_jax.data.readers.rows import Row, keys_of
from mouselift_jax.data.readers.text import natural_key
from mouselift_jax.errors import LayoutError

_MAX_BYTES = 1 << 30
# What NumPy needs to rebuild an array, by the names of its versions 1 and 2. Nothing else loads.
_CORES = ("numpy.core", "numpy._core")
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    *((f"{core}.multiarray", "_reconstruct") for core in _CORES),
    *((f"{core}.multiarray", "scalar") for core in _CORES),
    *((f"{core}.numeric", "_frombuffer") for core in _CORES),
}
_KEYS = {
    "K": ("K", "intrinsic", "intrinsics", "camera_matrix", "mtx", "matrix"),
    "R": ("R", "rotation", "rvec"),
    "T": ("T", "t", "translation", "tvec"),
    "dist": ("dist", "distortion", "distortions", "D", "dist_coeffs"),
}


def _empty_array(*_: object) -> np.ndarray:
    """What NumPy's `_reconstruct` does for arrays: the state that follows sets shape and values.

    Its own arguments may ask for any shape; a damaged file must not get that memory.
    """
    return np.empty(0)


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"forbidden {module}.{name}")
        if name == "ndarray":
            return "ndarray"  # only ever an argument of _reconstruct
        if name == "_reconstruct":
            return _empty_array
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"forbidden {module}.{name}")


def load_plain(data: bytes) -> Any:
    """A pickle of text, numbers, lists, tuples and dicts; anything else is refused.

    Raises:
        pickle.UnpicklingError, ValueError, EOFError and others that damaged bytes raise.
    """
    _check_memo(data)
    return _Plain(io.BytesIO(data)).load()


def _check_memo(data: bytes) -> None:
    """Refuse memo numbers that no pickler writes: Python's unpickler makes a list of that length.

    Raises:
        ValueError: such a number, or opcodes that cannot be.
    """
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(data):
            raise ValueError(f"memo number {argument} in {len(data)} bytes")


def load_arrays(path: str | Path) -> Any:
    """Unpickle lists, dicts, numbers, text and NumPy arrays; anything else is refused, not run.

    Raises:
        LayoutError: the file is damaged, too large, or wants to build another kind of object.
    """
    path = Path(path)
    if path.stat().st_size > _MAX_BYTES:
        raise LayoutError("pickle larger than 1 GiB", where=path, fix="is it the right file?")
    try:
        data = path.read_bytes()
        _check_memo(data)
        return _ArraysOnly(io.BytesIO(data)).load()
    except pickle.UnpicklingError as error:
        if str(error).startswith("forbidden"):
            raise LayoutError(
                "this pickle is not plain data: it wants to run code, and was not loaded",
                where=path,
                expected="lists, dicts, numbers and NumPy arrays",
                found=str(error).removeprefix("forbidden "),
                fix="export the calibration again as plain NumPy arrays; do not open this file",
            ) from error
        raise _damaged(path, error) from error
    except (EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, ImportError,
            MemoryError, OverflowError, RecursionError, AssertionError) as error:  # fmt: skip
        # All that a stream cut or altered at any byte can make the unpickler raise.
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> LayoutError:
    return LayoutError(
        "cannot read this pickle: it is damaged or not a pickle",
        where=path,
        found=f"{type(error).__name__}: {error}"[:120],
        fix="copy or export the file again",
    )


def read_camera_pickle(path: Path) -> Calibration:
    """A list of {K, R, T}, or a dict of them under integer or text keys."""
    content = load_arrays(path)
    notes: list[str] = []
    cameras, rows, left = [], [], []
    for number, name, content_ in _rows(content, path, notes):
        row = Row(content_, path, name)
        K = matrix3(row.need(*_KEYS["K"]), f"camera {name}: K", path)
        R = matrix3(row.need(*_KEYS["R"]), f"camera {name}: R", path)
        T = vector3(row.need(*_KEYS["T"]), f"camera {name}: T", path)
        values = row.get(*_KEYS["dist"])
        model, flag = row.get("camera_model", "distortion_model"), row.get("fisheye", "is_fisheye")
        model = "fisheye" if isinstance(flag, (bool, np.bool_, int)) and flag else model
        if model is None:
            distortion = coefficients(values, path)
        else:
            distortion = lens_of(model, values, path, name)
        size = _size(row)
        left.append(row.close())
        rows.append(row)
        cameras.append(CameraModel(number, name, shifted_K(K), R, T, size, distortion))
    return Calibration(path, "pickle", cameras, notes=notes, keys=keys_of(rows, left))


def camera_fields(path: Path) -> tuple[Any, list[tuple[dict, dict[str, str]]]]:
    """A calibration pickle's content, and in it each camera's dict and its keys for K, R, T, dist.

    Changing the dicts changes the content. A dict of stacked arrays has no dict a camera: no rows.
    """
    content = load_arrays(path)
    stacked = isinstance(content, dict) and _unstacked(content, path) is not content
    found = []
    for _, name, row in [] if stacked else _rows(content, path, []):
        keys = {field: Row(row, path, name).find(names) for field, names in _KEYS.items()}
        found.append((row, {field: key for field, key in keys.items() if key is not None}))
    return content, found


def lens_of(model: object, values: object, path: Path, name: str) -> Any:
    """The lens of a named model whose coefficients come as one list, in OpenCV's order.

    Raises:
        LayoutError: a model that is not known.
    """
    kind = lens(model, {}, path, name)  # refuses what is not known
    if kind is None:
        return coefficients(values, path)
    return fisheye(
        np.zeros(4) if values is None else numbers(values, "distortion", path), path, name
    )


def _size(row: Row) -> tuple[int, int] | None:
    size = row.get("size", "image_size", "resolution")
    sides = [row.get("image_width", "width", "w"), row.get("image_height", "height", "h")]
    if size is None and None not in sides:
        size = sides
    try:
        array = np.asarray(size, np.float64).reshape(-1)
    except (TypeError, ValueError):
        return None
    if array.size != 2 or not np.isfinite(array).all() or array.min() < 1:
        return None
    return int(array[0]), int(array[1])


def _rows(content: Any, path: Path, notes: list[str]) -> list[tuple[int, str, dict]]:
    if isinstance(content, dict):
        content = _unstacked(content, path)
    if isinstance(content, (list, tuple, np.ndarray)):
        rows = [(i, str(i), row) for i, row in enumerate(content)]
    elif isinstance(content, dict):
        names = sorted(content, key=natural_key)
        found = [re.findall(r"\d+", str(name)) for name in names]
        distinct = len({f[-1] for f in found if f}) == len(names)
        use = distinct and all(found)
        rows = [
            (int(f[-1]) if use else i, str(name), content[name])
            for i, (name, f) in enumerate(zip(names, found, strict=True))
        ]
        notes.append("the pickle is a dict; cameras sorted by the number in their key")
    else:
        rows = []
    if not rows or not all(isinstance(row, dict) for _, _, row in rows):
        raise LayoutError(
            "the calibration pickle has another form",
            where=path,
            expected="a list (or dict) of dicts with K, R and T",
            found=f"{type(content).__name__} {reprlib.repr(content)}"[:80],
            fix="see docs/data_format.md for the layout",
        )
    return rows


def _unstacked(content: dict, path: Path) -> Any:
    """One dict of stacked arrays as one dict a camera; every other dict as it is."""
    row = Row(content, path, "")
    keys = {row.find(_KEYS[field]) for field in ("K", "R", "T")}
    if None in keys:
        return content
    n = _length(row.content[row.find(_KEYS["K"])])
    stacks = {k: v for k, v in row.content.items() if _length(v) == n > 0}
    if not keys <= set(stacks):
        raise LayoutError(
            "the calibration's arrays are not stacked alike",
            where=path,
            expected="K [n,3,3], R [n,3,3], T [n,3] of the same n",
            found={k: _length(row.content[k]) for k in sorted(map(str, keys))},
            fix="export the calibration again",
        )
    rest = {k: v for k, v in row.content.items() if k not in stacks}
    return [{**rest, **{k: v[i] for k, v in stacks.items()}} for i in range(n)]


def _length(value: Any) -> int:
    is_list = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim)
    return len(value) if is_list else 0


def read_keypoints_pickle(path: Path) -> np.ndarray:
    """Keypoints [F,M,3] of one camera: x, y (centres at +0.5, NaN if missing), confidence."""
    try:
        array = np.asarray(load_arrays(path), np.float64)
    except (TypeError, ValueError):  # a dictionary, words, rows of different lengths
        array = np.empty(0)
    if array.ndim != 3 or array.shape[-1] not in (2, 3):
        raise LayoutError(
            "keypoints have another form",
            where=path,
            expected="array [frames, points, 3] of x, y, confidence",
            found=f"shape {list(array.shape)}",
            fix="see docs/data_format.md for the layout",
        )
    if array.shape[-1] == 2:
        array = np.concatenate([array, np.ones_like(array[..., :1])], -1)
    xy = array[..., :2] + 0.5
    # The lab's loader writes (0, 0) for points it dropped.
    missing = (array[..., :2] == 0).all(-1) | ~np.isfinite(array).all(-1)
    xy[missing] = np.nan
    return np.concatenate([xy, np.where(missing, 0.0, array[..., 2])[..., None]], -1)
