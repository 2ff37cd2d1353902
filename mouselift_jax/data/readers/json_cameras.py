"""`opencv_cameras.json` (FaceLift) and `transforms.json` (NeRF, instant-ngp, nerfstudio)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.readers.calibration import (
    Calibration,
    CameraModel,
    coefficients,
    numbers,
)
from mouselift_jax.errors import LayoutError

_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


def load_json(path: Path) -> Any:
    """A JSON file, or a LayoutError that says where it is broken."""
    try:
        return json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LayoutError(
            "not a readable JSON file", where=path, found=str(error), fix="export it again"
        ) from error


def _matrix4(value: Any, what: str, path: Path) -> np.ndarray:
    array = numbers(value, what, path)
    if array.shape == (3, 4):
        array = np.vstack([array, [0, 0, 0, 1]])
    if array.shape != (4, 4):
        raise LayoutError(
            f"{what} is not a 4x4 matrix",
            where=path,
            found=list(array.shape),
            fix="four rows of four numbers",
        )
    return array


def _need(row: dict, key: str, path: Path) -> float:
    try:
        return float(row[key])
    except (KeyError, TypeError, ValueError) as error:
        raise LayoutError(
            f"a camera has no usable {key!r}",
            where=path,
            expected=f"a number under {key!r}",
            found=f"keys {sorted(row)}",
            fix="export the camera file again",
        ) from error


def read_opencv_cameras(path: Path) -> Calibration:
    """FaceLift's layout: {"frames": [{w, h, fx, fy, cx, cy, w2c, file_path}]}, centres at +0.5."""
    content = load_json(path)
    rows = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise LayoutError(
            "no cameras in this file",
            where=path,
            expected='{"frames": [...]}',
            fix="export it again",
        )
    cameras = []
    for i, row in enumerate(rows):
        K = np.eye(3)
        K[0, 0], K[1, 1] = _need(row, "fx", path), _need(row, "fy", path)
        K[0, 2], K[1, 2] = _need(row, "cx", path), _need(row, "cy", path)
        w2c = _matrix4(row.get("w2c"), f"camera {i}: w2c", path)
        number = int(row.get("camera", row.get("view_id", i)))
        size = (int(_need(row, "w", path)), int(_need(row, "h", path)))
        picture = row.get("file_path")
        cameras.append(
            CameraModel(number, str(number), K, w2c[:3, :3], w2c[:3, 3], size, picture=picture)
        )
    return Calibration(path, "opencv_cameras.json", cameras, unit="unknown")


def read_transforms(path: Path) -> Calibration:
    """NeRF's layout: camera-to-world matrices with OpenGL axes; every distinct pose is a camera."""
    content = load_json(path)
    rows = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise LayoutError(
            "no cameras in this file",
            where=path,
            expected='{"frames": [...]}',
            fix="one entry a camera; docs/data_format.md",
        )
    cameras: list[CameraModel] = []
    seen: set[bytes] = set()
    for row in rows:
        both = {**{k: v for k, v in content.items() if k != "frames"}, **row}
        c2w = _matrix4(both.get("transform_matrix"), "transform_matrix", path) @ _OPENGL_TO_OPENCV
        K, size = _transforms_K(both, path)
        key = np.concatenate([c2w.ravel(), K.ravel()]).round(9).tobytes()
        if key in seen:
            continue
        seen.add(key)
        picture = str(both.get("file_path", ""))
        coeffs = [float(both.get(k, 0.0)) for k in ("k1", "k2", "p1", "p2", "k3")]
        R = c2w[:3, :3].T
        cameras.append(
            CameraModel(
                len(cameras),
                picture,
                K,
                R,
                -R @ c2w[:3, 3],
                size,
                coefficients(coeffs, path),
                picture or None,
            )
        )
    _number_by_path(cameras)
    notes = ["OpenGL axes turned to OpenCV's", "pixel centres at +0.5 in the file"]
    return Calibration(path, "transforms.json", cameras, unit="unknown", notes=notes)


def _transforms_K(row: dict, path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    width, height = int(_need(row, "w", path)), int(_need(row, "h", path))
    if "fl_x" in row:
        fx = _need(row, "fl_x", path)
        fy = float(row.get("fl_y", fx))
    else:
        fx = 0.5 * width / np.tan(0.5 * _need(row, "camera_angle_x", path))
        fy = fx
    K = np.array([[fx, 0, row.get("cx", width / 2)], [0, fy, row.get("cy", height / 2)], [0, 0, 1]])
    return K.astype(np.float64), (width, height)


def _number_by_path(cameras: list[CameraModel]) -> None:
    """Number cameras by the number in their folder or file name where these are distinct."""
    for part in (-2, -1):
        names = [Path(c.name).with_suffix("").parts for c in cameras]
        found = [re.findall(r"\d+", n[part]) if len(n) >= -part else [] for n in names]
        if all(found) and len({f[-1] for f in found}) == len(cameras):
            for camera, name, f in zip(cameras, names, found, strict=True):
                camera.number, camera.name = int(f[-1]), name[part]
            return
