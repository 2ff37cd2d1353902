"""Calibrations of neighbouring tools: DANNCE .mat, anipose TOML, OpenCV YAML."""

from __future__ import annotations

import io
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.readers.calibration import (
    Calibration,
    CameraModel,
    coefficients,
    matrix3,
    numbers,
    opencv_K,
    vector3,
)
from mouselift_jax.data.readers.pickles import natural_key
from mouselift_jax.errors import LayoutError

_INTEGER_CENTRES = "pixel centres at integers in the file: 0.5 added to cx, cy"


def _number(name: str, fallback: int) -> int:
    found = re.findall(r"\d+", name)
    return int(found[-1]) if found else fallback


def _distinct_numbers(cameras: list[CameraModel]) -> list[CameraModel]:
    if len({c.number for c in cameras}) != len(cameras):
        for i, camera in enumerate(cameras):
            camera.number = i
    return cameras


def read_dannce(path: Path) -> Calibration:
    """`label3d_dannce.mat`: params{k}.K, r (both transposed), t, RDistort, TDistort; com.com3d."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    data = io.BytesIO(path.read_bytes())  # a file that may not be opened says so itself
    try:
        content = loadmat(data, struct_as_record=False, squeeze_me=True)
    except (MatReadError, NotImplementedError, ValueError, TypeError, OSError) as error:
        raise LayoutError(
            "cannot read this MATLAB file",
            where=path,
            expected="a whole MATLAB 5-7 file (save without -v7.3)",
            found=f"{type(error).__name__}: {error}"[:120],
            fix="copy it again if it was cut short; else save it in MATLAB with: "
            "save('label3d_dannce.mat', ..., '-v7')",
        ) from error
    params = np.atleast_1d(content.get("params", np.array([])))
    if params.size == 0 or not hasattr(params[0], "_fieldnames"):
        raise LayoutError(
            "no `params` in this MATLAB file",
            where=path,
            found=f"variables {sorted(k for k in content if k[0] != '_')}",
            fix="use the file that Label3D writes for DANNCE",
        )
    names = [str(n) for n in np.atleast_1d(content.get("camnames", []))]
    cameras = []
    for i, p in enumerate(params):
        name = names[i] if len(names) == len(params) else str(i)
        K = matrix3(p.K, f"camera {name}: K", path).T
        R = matrix3(p.r, f"camera {name}: r", path).T
        radial = numbers(getattr(p, "RDistort", [0.0, 0.0]), "RDistort", path).reshape(-1)
        tangential = numbers(getattr(p, "TDistort", [0.0, 0.0]), "TDistort", path).reshape(-1)
        coeffs = np.concatenate([radial[:2], tangential[:2], radial[2:3]])
        coeffs = coefficients(np.pad(coeffs, (0, 5 - coeffs.size)), path)
        T = vector3(p.t, f"camera {name}: t", path)
        cameras.append(CameraModel(_number(name, i), name, opencv_K(K), R, T, distortion=coeffs))
    notes = [_INTEGER_CENTRES, "MATLAB's K and r transposed"]
    calibration = Calibration(path, "dannce", _distinct_numbers(cameras), notes=notes)
    com = getattr(content.get("com"), "com3d", content.get("com3d"))
    if com is not None and np.ndim(com) == 2:
        com = np.asarray(com, np.float64)
        calibration.tracks["com3d"] = com if com.shape[1] == 3 else com.T
    return calibration


def read_anipose(path: Path) -> Calibration:
    """Anipose / aniposelib TOML: [cam_N] name, size, matrix, distortions, rotation, translation."""
    try:
        content = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LayoutError(
            "not a readable TOML file",
            where=path,
            found=str(error),
            fix="give the calibration.toml that anipose wrote",
        ) from error
    cameras = []
    for key in sorted(content, key=natural_key):
        row = content[key]
        if not isinstance(row, dict) or "matrix" not in row:
            continue
        if row.get("fisheye"):
            raise LayoutError(
                f"camera {key} is a fisheye camera, which is not supported",
                where=path,
                fix="undistort its videos first and give the pinhole calibration",
            )
        name = str(row.get("name", key))
        K = matrix3(row["matrix"], f"camera {name}: K", path)
        R = matrix3(row.get("rotation"), f"camera {name}: rotation", path)
        T = vector3(row.get("translation"), f"camera {name}: translation", path)
        size = tuple(int(s) for s in row["size"]) if len(row.get("size", ())) == 2 else None
        cameras.append(
            CameraModel(
                _number(name, len(cameras)), name, opencv_K(K), R, T, size,
                coefficients(row.get("distortions"), path),
            )
        )  # fmt: skip
    if not cameras:
        raise LayoutError(
            "no cameras in this TOML file",
            where=path,
            expected="tables [cam_0], [cam_1], ... with matrix, rotation, translation",
            found=f"tables {sorted(content)}",
            fix="give the calibration.toml that anipose wrote",
        )
    return Calibration(path, "anipose", _distinct_numbers(cameras), notes=[_INTEGER_CENTRES])


def read_opencv_yaml(paths: list[Path]) -> Calibration:
    """OpenCV FileStorage (.yml, .xml): one file per camera, or files with K_<name>, R_<name>.

    Args:
        paths: the files, together one calibration.
    """
    nodes: dict[str, dict[str, Any]] = {}
    for path in sorted(paths, key=lambda p: natural_key(p.stem)):
        nodes[path.stem] = _file_storage(path)
    joined = {k: v for content in nodes.values() for k, v in content.items()}
    named = [k[2:] for k in joined if k.startswith("K_")]
    if named:
        rows = {n: {k[: -len(n) - 1]: v for k, v in joined.items() if k.endswith("_" + n)}
                for n in named}  # fmt: skip
    else:
        rows = nodes
    first = paths[0] if len(paths) == 1 else paths[0].parent
    cameras = []
    for name in sorted(rows, key=natural_key):
        row = rows[name]
        K = _pick(row, ("K", "camera_matrix", "cameraMatrix", "M", "intrinsics"), name, first)
        R = _pick(row, ("Rot", "R", "rotation", "rvec", "rotation_matrix"), name, first)
        T = _pick(row, ("T", "t", "tvec", "translation", "translation_vector"), name, first)
        dist = _pick(row, ("dist", "D", "distortion_coefficients", "dist_coeffs"), name, None)
        sides = [row.get("image_width"), row.get("image_height")]
        size = None if None in sides else (int(sides[0]), int(sides[1]))
        cameras.append(
            CameraModel(
                _number(name, len(cameras)),
                name,
                opencv_K(matrix3(K, f"camera {name}: K", first)),
                matrix3(R, f"camera {name}: R", first),
                vector3(T, f"camera {name}: T", first),
                size,
                coefficients(dist, first),
            )
        )
    return Calibration(first, "opencv_yaml", _distinct_numbers(cameras), notes=[_INTEGER_CENTRES])


def _pick(row: dict, names: tuple[str, ...], camera: str, path: Path | None) -> Any:
    for name in names:
        if name in row:
            return row[name]
    if path is None:
        return None
    raise LayoutError(
        f"camera {camera} has no {names[0]}",
        where=path,
        expected=f"one of {', '.join(names)}",
        found=f"keys {sorted(row)}",
        fix="export intrinsics and extrinsics (world to camera) of every camera",
    )


def _file_storage(path: Path) -> dict[str, Any]:
    """All matrices and numbers at the top level of an OpenCV FileStorage."""
    import cv2

    try:
        storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
        opened = storage.isOpened()
    except (cv2.error, SystemError) as error:
        raise LayoutError(
            "not a readable OpenCV file",
            where=path,
            expected="a file that starts with %YAML:1.0 and is written by cv::FileStorage",
            found=str(error).strip()[:120],
            fix="write it with cv2.FileStorage",
        ) from error
    if not opened:
        raise LayoutError(
            "not a readable OpenCV file", where=path, fix="write it with cv2.FileStorage"
        )
    root, content = storage.root(), {}
    for key in root.keys():
        node = root.getNode(key)
        if node.isMap():
            matrix = node.mat()
            if matrix is not None:
                content[key] = matrix
        elif node.isSeq():
            items = [node.at(i) for i in range(node.size())]
            if all(i.isReal() or i.isInt() for i in items):
                content[key] = np.array([i.real() for i in items])
        elif node.isReal() or node.isInt():
            content[key] = node.real()
    storage.release()
    return content
