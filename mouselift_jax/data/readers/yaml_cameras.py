"""Calibrations in YAML: OpenCV, EasyMocap, JARVIS, ROS camera_info, Kalibr camchain.

Each is one file or a folder of several (one a camera, or intrinsics beside extrinsics). A reader is
given the content of all files that its `is_...` recognised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.distortion import Lens
from mouselift_jax.data.readers.calibration import (
    Calibration,
    CameraModel,
    coefficients,
    matrix3,
    numbers,
    shifted_K,
    vector3,
)
from mouselift_jax.data.readers.matlab import distinct_numbers
from mouselift_jax.data.readers.pickles import lens_of
from mouselift_jax.data.readers.rows import Row, keys_of
from mouselift_jax.data.readers.text import last_number, natural_key, storage_matrix
from mouselift_jax.errors import LayoutError

Files = Mapping[Path, Mapping[str, Any]]  # file -> its top level

K_KEYS = (
    "K",
    "camera_matrix",
    "cameraMatrix",
    "M",
    "intrinsics",
    "intrinsic_matrix",
    "mtx",
    "intrinsicMatrix",
)
R_KEYS = ("Rot", "R", "rotation", "rvec", "rotation_matrix")
T_KEYS = ("T", "t", "tvec", "translation", "translation_vector")
LENS_KEYS = ("dist", "D", "distortion_coefficients", "dist_coeffs", "distCoeffs", "distortion",
      "distortionCoefficients")  # fmt: skip


def is_easymocap(content: Mapping[str, Any]) -> bool:
    """EasyMocap's intri.yml and extri.yml: K_<name>, Rot_<name>, T_<name>."""
    return any(re.match(r"(K|Rot|T)_.", key) for key in content)


def is_jarvis(content: Mapping[str, Any]) -> bool:
    """JARVIS: intrinsicMatrix with R and T."""
    return "intrinsicMatrix" in content


def is_kalibr(content: Mapping[str, Any]) -> bool:
    """Kalibr's camchain: cam0, cam1, ... with intrinsics as a list."""
    return any(re.fullmatch(r"cam\d+", k) and isinstance(v, dict) and "intrinsics" in v
               for k, v in content.items())  # fmt: skip


def is_ros(content: Mapping[str, Any]) -> bool:
    """ROS camera_info: camera_matrix {rows, cols, data} and no pose of its own."""
    plain = isinstance(content.get("camera_matrix"), dict)
    return plain and not any(k in content for k in (*R_KEYS, *T_KEYS))


def is_opencv(content: Mapping[str, Any]) -> bool:
    """OpenCV's FileStorage, or plain YAML of the same keys: a K at the top level."""
    if any(is_(content) for is_ in (is_easymocap, is_jarvis, is_kalibr, is_ros)):
        return False
    return any(isinstance(content.get(key), (np.ndarray, list, dict)) for key in K_KEYS)


def read_opencv(files: Files, path: Path) -> Calibration:
    """One file a camera: camera_matrix, distortion_coefficients, R (or rvec), T, image_width."""
    rows = [Row(files[p], p, p.stem) for p in sorted(files, key=lambda p: natural_key(p.stem))]
    return _stored(rows, path, "opencv_yaml")


def read_easymocap(files: Files, path: Path) -> Calibration:
    """K_<name>, dist_<name>, Rot_<name> (R_<name> is its rotation vector), T_, H_, W_."""
    joined: dict[str, Any] = {}
    for content in files.values():
        joined |= content
    rows = []
    for name in sorted((k[2:] for k in joined if k.startswith("K_")), key=natural_key):
        ends = "_" + name
        row = {k[: -len(ends)]: v for k, v in joined.items() if k.endswith(ends)}
        rows.append(Row(row, path, name))
    if not rows:
        raise LayoutError(
            "there are poses but no intrinsics",
            where=path,
            expected="K_<name> of every camera (EasyMocap's intri.yml beside extri.yml)",
            found=f"keys {sorted(joined)}"[:200],
            fix="put both files into the same folder",
        )
    return _stored(rows, path, "easymocap")


def read_jarvis(files: Files, path: Path) -> Calibration:
    """intrinsicMatrix, distortionCoefficients, R, T, one file a camera; K and R are transposed."""
    rows = [Row(files[p], p, p.stem) for p in sorted(files, key=lambda p: natural_key(p.stem))]
    calibration = _stored(rows, path, "jarvis", transposed=True)
    calibration.notes.append("K and R are stored for row vectors: transposed")
    return calibration


def _plain(value: Any, what: str, where: Path) -> Any:
    """A plain mapping {rows, cols, data} as a matrix; anything else as it is."""
    if not isinstance(value, dict):
        return value
    try:
        return storage_matrix(value, what)
    except (ValueError, TypeError, OverflowError) as error:
        raise LayoutError(
            f"{what} is not a matrix",
            where=where,
            expected="rows, cols and data, or a list of lists",
            found=str(error)[:120],
            fix="export the calibration again",
        ) from error


def _stored(rows: list[Row], path: Path, kind: str, *, transposed: bool = False) -> Calibration:
    cameras, left = [], []
    for row in rows:
        name, where = row.camera, row.where

        def value(*keys: str, row: Row = row) -> Any:
            return _plain(row.need(*keys), f"camera {row.camera}: {keys[0]}", row.where)

        K = matrix3(value(*K_KEYS), f"camera {name}: K", where)
        R = matrix3(value(*R_KEYS), f"camera {name}: R", where)
        T = vector3(value(*T_KEYS), f"camera {name}: T", where)
        if transposed:
            K, R = K.T, R.T
        _same_rotation(row, R)
        size, lens = _size(row), _lens(row)
        left.append(row.close())
        number = last_number(name, len(cameras))
        cameras.append(CameraModel(number, name, shifted_K(K), R, T, size, lens))
    return _whole(path, kind, cameras, rows, left)


def _whole(path: Path, kind: str, cameras: list, rows: list[Row], left: list) -> Calibration:
    return Calibration(path, kind, distinct_numbers(cameras), keys=keys_of(rows, left))


def _same_rotation(row: Row, R: np.ndarray) -> None:
    """EasyMocap stores the rotation twice: both must say the same."""
    if not (row.find(("Rot",)) and row.find(("R",))):
        return
    name = f"camera {row.camera}: R"
    other = matrix3(_plain(row.get("R"), name, row.where), name, row.where)
    if np.abs(other - R).max() > 1e-3:
        raise LayoutError(
            f"camera {row.camera}: Rot and R (its rotation vector) are different rotations",
            where=row.where,
            expected=np.round(R, 4).tolist(),
            found=np.round(other, 4).tolist(),
            fix="export the calibration again",
        )


def _size(row: Row) -> tuple[int, int] | None:
    sides = [row.get("image_width", "W", "width"), row.get("image_height", "H", "height")]
    if None in sides:
        pair = row.get("image_size", "resolution", "size")
        sides = list(pair) if isinstance(pair, (list, np.ndarray)) and len(pair) == 2 else []
    if not sides:
        return None
    array = numbers(sides, f"camera {row.camera}: size", row.where).reshape(-1)
    if array.size != 2 or array.min() < 1 or array.max() > 1 << 20:
        raise LayoutError(
            f"camera {row.camera}: the pictures' size is impossible",
            where=row.where,
            found=array.tolist()[:4],
            fix="export the calibration again",
        )
    return int(array[0]), int(array[1])


def _lens(row: Row) -> Lens | None:
    values = _plain(row.get(*LENS_KEYS), f"camera {row.camera}: distortion", row.where)
    model = row.get("distortion_model", "camera_model")
    if row.get("fisheye", "is_fisheye", default=False) not in (False, 0, None, 0.0):
        model = "fisheye"
    if model is None:
        return coefficients(values, row.where)
    return lens_of(model, values, row.where, row.camera)


# --- ROS ------------------------------------------------------------------------------------------


def read_ros(files: Files, path: Path) -> Calibration:
    """camera_info of a rectified set: the pose is in rectification_matrix and projection_matrix.

    ROS says: projection_matrix = K' [I | t] in the rectified frame all cameras share, and
    rectification_matrix turns a camera's axes to it. So X_cam = rect^T (X + K'^-1 P[:,3]); metres.
    """
    cameras, rows, left, moved = [], [], [], []
    for p in sorted(files, key=lambda p: natural_key(p.stem)):
        row = Row(files[p], p, str(files[p].get("camera_name", p.stem)))
        row.get("camera_name")
        K = matrix3(_ros_matrix(row, "camera_matrix", 9), f"camera {row.camera}: K", p)
        if row.find(("projection_matrix",)) is None or row.find(("rectification_matrix",)) is None:
            raise _no_pose(p)
        P = _ros_matrix(row, "projection_matrix", 12).reshape(3, 4)
        rect = _ros_matrix(row, "rectification_matrix", 9).reshape(3, 3)
        if abs(np.linalg.det(P[:, :3])) < 1e-12:
            raise _no_pose(p)
        shift = np.linalg.solve(P[:, :3], P[:, 3])
        moved.append(bool(np.abs(shift).max() > 0))
        size, lens = _size(row), _lens(row)
        left.append(row.close())
        rows.append(row)
        number = last_number(p.stem, len(cameras))
        cameras.append(
            CameraModel(number, row.camera, shifted_K(K), rect.T, rect.T @ shift, size, lens)
        )
    if not any(moved):
        raise _no_pose(path)
    calibration = _whole(path, "ros", cameras, rows, left)
    calibration.unit = "m"
    calibration.notes.append("poses from rectification_matrix and projection_matrix (metres)")
    return calibration


def _ros_matrix(row: Row, key: str, n: int) -> np.ndarray:
    what = f"camera {row.camera}: {key}"
    array = numbers(_plain(row.need(key), what, row.where), what, row.where).reshape(-1)
    if array.size != n:
        raise LayoutError(
            f"{what} has {array.size} numbers",
            where=row.where,
            expected=f"{n} numbers",
            found=array.size,
            fix="give the camera_info that ROS wrote",
        )
    return array


def _no_pose(path: Path) -> LayoutError:
    return LayoutError(
        "this camera_info of ROS has intrinsics but no pose",
        where=path,
        expected="the camera_info of a calibrated stereo pair or set (rectification_matrix, and a "
        "projection_matrix whose last column is not zero), or R and T added to the file",
        found="every camera at the origin",
        fix="add R (3x3, world to camera) and T (3) to each file, or calibrate the set "
        "(Kalibr, anipose, Caliscope)",
    )


# --- Kalibr ---------------------------------------------------------------------------------------


def read_kalibr(files: Files, path: Path) -> Calibration:
    """camchain.yaml: cam0 is the world; T_cn_cnm1 leads from each camera to the next; metres."""
    joined = {k: v for content in files.values() for k, v in content.items()}
    names = [k for k in sorted(joined, key=natural_key) if re.fullmatch(r"cam\d+", k)]
    cameras, rows, left = [], [], []
    pose = np.eye(4)
    for i, name in enumerate(names):
        row = Row(joined[name] if isinstance(joined[name], dict) else {}, path, name)
        model = str(row.get("camera_model", default="pinhole"))
        f = numbers(row.need("intrinsics"), f"camera {name}: intrinsics", path).reshape(-1)
        if model != "pinhole" or f.size != 4:
            raise LayoutError(
                f"camera {name}: its camera model is {model!r} with {f.size} intrinsics, which is "
                "not supported",
                where=path,
                expected="pinhole with fu, fv, pu, pv",
                fix="calibrate with pinhole-radtan or pinhole-equi",
            )
        if i:
            step = numbers(row.need("T_cn_cnm1"), f"camera {name}: T_cn_cnm1", path)
            if step.size != 16:
                raise LayoutError(
                    f"camera {name}: T_cn_cnm1 is not a 4x4 matrix",
                    where=path,
                    found=list(step.shape),
                    fix="give the camchain.yaml that Kalibr wrote",
                )
            pose = step.reshape(4, 4) @ pose
        K = np.array([[f[0], 0, f[2]], [0, f[1], f[3]], [0, 0, 1.0]])
        values = row.get("distortion_coeffs")
        lens = lens_of(row.get("distortion_model", default="none"), values, path, name)
        size = _size(row)
        left.append(row.close())
        rows.append(row)
        R, T = pose[:3, :3], pose[:3, 3]
        cameras.append(CameraModel(last_number(name, i), name, shifted_K(K), R, T, size, lens))
    calibration = _whole(path, "kalibr", cameras, rows, left)
    calibration.unit = "m"
    calibration.notes.append(f"the world is that of {names[0]} (metres)")
    return calibration
