"""`new_cam.pkl` and keypoint pickles, unpickled without ever running code from them."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.readers.calibration import (
    Calibration,
    CameraModel,
    coefficients,
    matrix3,
    opencv_K,
    vector3,
)
from mouselift_jax.errors import LayoutError, nearest

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


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"forbidden {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load_arrays(path: str | Path) -> Any:
    """Unpickle lists, dicts, numbers, text and NumPy arrays; anything else is refused, not run.

    Raises:
        LayoutError: the file is damaged, too large, or wants to build another kind of object.
    """
    path = Path(path)
    if path.stat().st_size > _MAX_BYTES:
        raise LayoutError("pickle larger than 1 GiB", where=path, fix="is it the right file?")
    try:
        return _ArraysOnly(io.BytesIO(path.read_bytes())).load()
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
            MemoryError, OverflowError) as error:  # fmt: skip
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
    notes = ["pixel centres at integers in the file: 0.5 added to cx, cy"]
    rows = _rows(content, path, notes)
    cameras = []
    for number, name, row in rows:
        K = matrix3(_field(row, "K", name, path), f"camera {name}: K", path)
        R = matrix3(_field(row, "R", name, path), f"camera {name}: R", path)
        T = vector3(_field(row, "T", name, path), f"camera {name}: T", path)
        distortion = coefficients(_field(row, "dist", name, path, optional=True), path)
        cameras.append(CameraModel(number, name, opencv_K(K), R, T, distortion=distortion))
    return Calibration(path, "pickle", cameras, notes=notes)


def _rows(content: Any, path: Path, notes: list[str]) -> list[tuple[int, str, dict]]:
    if isinstance(content, dict) and _find_key(content, "K") and _find_key(content, "R"):
        keys = {k: _find_key(content, k) for k in ("K", "R", "T")}
        if all(keys.values()):  # one dict of stacked arrays
            stacks = {k: list(content[name]) for k, name in keys.items()}
            content = [dict(zip(stacks, row, strict=True)) for row in zip(*stacks.values())]  # noqa: B905
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
            found=f"{type(content).__name__} {repr(content)[:60]}",
            fix="see docs/data_format.md for the layout",
        )
    return rows


def natural_key(name: object) -> tuple:
    """Sort key that puts 2 before 10."""
    parts = re.split(r"(\d+)", str(name))
    return tuple((1, int(p)) if p.isdigit() else (0, p.lower()) for p in parts if p)


def _find_key(row: dict, field: str) -> Any:
    for name in _KEYS[field]:
        for key in row:
            if str(key) == name or (len(name) > 1 and str(key).lower() == name.lower()):
                return key
    return None


def _field(row: dict, field: str, name: str, path: Path, *, optional: bool = False) -> Any:
    key = _find_key(row, field)
    if key is None and not optional:
        raise LayoutError(
            f"camera {name} has no {field}",
            where=path,
            expected=f"a key {field}",
            found=f"keys {sorted(map(str, row))}; {nearest(field, map(str, row))}",
            fix="export K, R and T of every camera",
        )
    return None if key is None else row[key]


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
