"""MATLAB files of DANNCE and Label3D: one file of all cameras, or a folder of one file a camera.

MATLAB writes row vectors (K and r transposed) and counts pixels from 1, so that the first pixel's
centre is 1 (DANNCE takes 1 off its 2D data; newsdannce adds 1 to the principal points that it
writes): half a pixel is taken off to put it at 0.5.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.readers.calibration import (
    AT_ONE,
    Calibration,
    CameraModel,
    coefficients,
    matrix3,
    numbers,
    shifted_K,
    vector3,
)
from mouselift_jax.data.readers.hdf5 import is_hdf5, load_matlab
from mouselift_jax.data.readers.rows import Row, keys_of
from mouselift_jax.data.readers.text import last_number, natural_key
from mouselift_jax.errors import LayoutError

_MAX_BYTES = 4 << 30


def load_mat(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file, of version 5 to 7.3 (which needs h5py).

    Raises:
        LayoutError: damaged, or of another version.
    """
    if is_hdf5(path):
        return load_matlab(path)
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    data = path.read_bytes()  # a file that may not be opened says so itself
    fix = (
        "copy it again if it was cut short; else save it in MATLAB with: "
        "save('label3d_dannce.mat', ..., '-v7')"
    )
    try:
        return loadmat(io.BytesIO(data), struct_as_record=False, squeeze_me=True)
    except (MatReadError, NotImplementedError, ValueError, TypeError, OSError, KeyError, IndexError,
            AttributeError, AssertionError, OverflowError, MemoryError, RecursionError, EOFError,
            struct.error, zlib.error) as error:  # fmt: skip
        # All that a file cut or altered at any byte can make scipy raise.
        raise LayoutError(
            "cannot read this MATLAB file",
            where=path,
            expected="a whole file of MATLAB (save, save -v7.3)",
            found=" ".join(f"{type(error).__name__}: {error}".split())[:120],
            fix=fix,
        ) from error


def cells(content: dict[str, Any]) -> tuple[str, np.ndarray]:
    """The variable that holds the cameras, `params` or `camParams`, and its cells; or ("", [])."""
    for key in ("params", "camParams", "cam_params"):
        found = np.atleast_1d(content.get(key, np.array([])))
        if found.size and all(hasattr(p, "_fieldnames") for p in found.reshape(-1)):
            return key, found.reshape(-1)
    return "", np.array([])


def is_one_camera(content: dict[str, Any]) -> bool:
    """Whether a file is one camera of a folder of `hires_cam*_params.mat`."""
    return {"K", "r", "t"} <= set(content) or {"K", "R", "t"} <= set(content)


def read_dannce(path: Path) -> Calibration:
    """`*_dannce.mat` (params) or a session of Label3D (camParams): all cameras in one file."""
    content = load_mat(path)
    key, params = cells(content)
    if not key:
        raise LayoutError(
            "no `params` in this MATLAB file",
            where=path,
            expected="params or camParams, one structure a camera",
            found=f"variables {sorted(k for k in content if k[0] != '_')}"[:200],
            fix="use the file that Label3D writes for DANNCE",
        )
    names = [str(n) for n in np.atleast_1d(content.get("camnames", [])).reshape(-1)]
    if len(names) != len(params) or len(set(names)) != len(names):
        names = [str(i) for i in range(len(params))]
    sizes = _sizes(content.get("imageSize"), len(params))
    rows = [Row(_fields(p), path, name) for p, name in zip(params, names, strict=True)]
    kind = "dannce" if key == "params" else "label3d"
    calibration = _calibration(path, kind, rows, sizes)
    com = getattr(content.get("com"), "com3d", content.get("com3d"))
    if isinstance(com, np.ndarray) and com.ndim == 2 and 3 in com.shape and com.dtype.kind in "fiu":
        com = com.astype(np.float64)
        calibration.tracks["com3d"] = com if com.shape[1] == 3 else com.T
    return calibration


def _fields(params: Any) -> dict[str, Any]:
    return {f: getattr(params, f, None) for f in params._fieldnames}


def read_dannce_folder(paths: list[Path]) -> Calibration:
    """`hires_cam1_params.mat`, `hires_cam2_params.mat`, ...: one file a camera."""
    rows = []
    for path in sorted(paths, key=lambda p: natural_key(p.stem)):
        content = {k: v for k, v in load_mat(path).items() if not k.startswith("__")}
        rows.append(Row(content, path, path.stem))
    calibration = _calibration(paths[0].parent, "dannce_folder", rows, [None] * len(rows))
    calibration.files = tuple(sorted(paths))
    return calibration


def _sizes(value: Any, n: int) -> list[tuple[int, int] | None]:
    """Label3D's imageSize [n,2] or [2]: rows, columns."""
    try:
        array = np.asarray(value, np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        return [None] * n
    if len(array) not in (1, n) or not np.isfinite(array).all() or array.min() < 1:
        return [None] * n
    array = np.broadcast_to(array, (n, 2))
    return [(int(w), int(h)) for h, w in array]


def _calibration(path: Path, kind: str, rows: list[Row], sizes: list) -> Calibration:
    cameras, left = [], []
    for i, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        name, where = row.camera, row.where
        K = matrix3(row.need("K"), f"camera {name}: K", where).T
        if row.find(("R",)) and row.find(("r",)):
            row.used.append("R")  # DANNCE's own copy of r
        R = matrix3(row.need("r", "R"), f"camera {name}: r", where)
        R = R.T if np.size(row.content[row.find(("r", "R"))]) == 9 else R
        T = vector3(row.need("t"), f"camera {name}: t", where)
        radial = _coefficients(row, "RDistort", 3)
        tangential = _coefficients(row, "TDistort", 2)
        lens = coefficients(np.concatenate([radial[:2], tangential, radial[2:]]), where)
        left.append(row.close())
        K = shifted_K(K, AT_ONE)
        cameras.append(CameraModel(last_number(name, i), name, K, R, T, size, lens))
    notes = ["MATLAB's K and r transposed"]
    return Calibration(
        path, kind, distinct_numbers(cameras), notes=notes, pixel_shift=AT_ONE,
        keys=keys_of(rows, left),
    )  # fmt: skip


def _coefficients(row: Row, key: str, n: int) -> np.ndarray:
    value = row.get(key)
    if value is None or np.size(value) == 0:
        return np.zeros(n)
    array = numbers(value, key, row.where).reshape(-1)
    if np.any(array[n:]):
        raise LayoutError(
            f"camera {row.camera}: {key} has more numbers than MATLAB's lens",
            where=row.where,
            expected=f"at most {n}",
            found=array.tolist(),
            fix="export the calibration with MATLAB's model: 3 radial, 2 tangential",
        )
    return np.pad(array[:n], (0, max(0, n - array.size)))


def distinct_numbers(cameras: list[CameraModel]) -> list[CameraModel]:
    """The cameras, numbered by their place where their names do not tell them apart."""
    if len({c.number for c in cameras}) != len(cameras):
        for i, camera in enumerate(cameras):
            camera.number = i
    return cameras
