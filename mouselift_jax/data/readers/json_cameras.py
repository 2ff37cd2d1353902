"""`opencv_cameras.json` (FaceLift) and `transforms.json` (NeRF, instant-ngp, nerfstudio)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.readers.calibration import AT_HALF, Calibration, CameraModel, numbers
from mouselift_jax.data.readers.lenses import is_coefficient, lens
from mouselift_jax.data.readers.rows import Row, keys_of
from mouselift_jax.data.readers.text import load_json
from mouselift_jax.errors import LayoutError

_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


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


def _float(row: Row, *names: str) -> float:
    key = row.find(names)
    value = row.get(*names)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = np.nan
    if not np.isfinite(number):
        raise LayoutError(
            f"a camera has no usable {names[0]!r}",
            where=row.where,
            expected=f"a number under {' or '.join(map(repr, names))}",
            found=f"keys {sorted(row.content)}"[:200] if key is None else f"{key} = {value!r}"[:80],
            fix="export the camera file again",
        )
    return number


def _side(row: Row, *names: str) -> int:
    number = _float(row, *names)
    if not 1 <= number <= 1 << 20:
        raise LayoutError(
            "a picture's size is impossible",
            where=row.where,
            found=f"{names[0]} = {number:g}",
            fix="export the camera file again",
        )
    return int(number)


def _frames(path: Path) -> tuple[dict, list[dict]]:
    """The file's top level and its frames."""
    content = load_json(path)
    rows = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows):
        raise LayoutError(
            "no cameras in this file",
            where=path,
            expected='{"frames": [{...}, ...]}',
            fix="one entry a camera; docs/data_format.md",
        )
    return content, rows


def is_transforms(content: Any) -> bool:
    """Whether a JSON file's content is NeRF's: poses under transform_matrix."""
    frames = content.get("frames") if isinstance(content, dict) else None
    first = frames[0] if isinstance(frames, list) and frames else None
    return isinstance(first, dict) and any(str(k).startswith("transform_matrix") for k in first)


def read_opencv_cameras(path: Path) -> Calibration:
    """FaceLift's layout: {"frames": [{w, h, fx, fy, cx, cy, w2c, file_path}]}, centres at +0.5."""
    content, frames = _frames(path)
    top = {k: v for k, v in content.items() if k not in ("frames", *_OUR_KEYS)}
    cameras, rows, left = [], [], []
    for i, frame in enumerate(frames):
        row = Row({**top, **frame}, path, str(i))
        K = np.eye(3)
        K[0, 0], K[1, 1] = _float(row, "fx"), _float(row, "fy")
        K[0, 2], K[1, 2] = _float(row, "cx"), _float(row, "cy")
        w2c = _matrix4(row.get("w2c"), f"camera {i}: w2c", path)
        number = i if row.find(("camera", "view_id")) is None else _float(row, "camera", "view_id")
        size = (_side(row, "w"), _side(row, "h"))
        picture = row.get("file_path")
        camera = CameraModel(int(number), str(int(number)), K, w2c[:3, :3], w2c[:3, 3], size)
        camera.picture = None if picture is None else str(picture)
        cameras.append(camera)
        left.append(row.close())
        rows.append(row)
    return Calibration(
        path, "opencv_cameras.json", cameras, unit="unknown", pixel_shift=AT_HALF,
        keys=keys_of(rows, left),
    )  # fmt: skip


_OUR_KEYS = ("id", "frame", "scene_scale", "scene_from_recording")
# What other programs do with the scene afterwards, or with the pictures' edge.
_HARMLESS = ("aabb_scale", "orientation_override", "auto_scale_poses_override",
             "fisheye_crop_radius", "rotation", "camera_angle_y", "crop_box")  # fmt: skip


def read_transforms(path: Path) -> Calibration:
    """NeRF's layout: camera-to-world matrices with OpenGL axes; every distinct pose is a camera."""
    content, frames = _frames(path)
    cameras: list[CameraModel] = []
    rows, left = [], []
    seen: set[bytes] = set()
    top = {k: v for k, v in content.items() if k != "frames"}
    for frame in frames:
        row = Row({**top, **frame}, path, str(frame.get("file_path", len(rows))))
        c2w = _matrix4(row.get("transform_matrix"), "transform_matrix", path) @ _OPENGL_TO_OPENCV
        picture = row.get("file_path")
        picture = None if picture is None else str(picture)
        K_for, size = _transforms_K(row, path, picture)
        K = K_for(*(size or (1000, 1000)))
        distortion = _transforms_lens(row)
        left.append(row.close(_HARMLESS))
        rows.append(row)
        key = np.concatenate([c2w.ravel(), K.ravel()]).round(9).tobytes()
        if key in seen:
            continue
        seen.add(key)
        R = c2w[:3, :3].T
        camera = CameraModel(
            len(cameras), picture or "", K, R, -R @ c2w[:3, 3], size, distortion, picture
        )
        camera.K_for = None if size else K_for
        cameras.append(camera)
    number_by_path(cameras)
    notes = ["OpenGL axes turned to OpenCV's"]
    if any(c.K_for for c in cameras):
        notes.append("no picture size (w, h) in the file: that of the recording is taken")
    return Calibration(
        path, "transforms.json", cameras, unit="unknown", notes=notes, pixel_shift=AT_HALF,
        keys=keys_of(rows, left),
    )  # fmt: skip


def _transforms_lens(row: Row) -> Any:
    model = row.get("camera_model")
    fisheye = row.get("is_fisheye", "fisheye")
    if fisheye not in (None, False, 0):
        if model is None or str(model).upper() in ("OPENCV", "PERSPECTIVE"):
            model = "OPENCV_FISHEYE"  # instant-ngp's way to say it
        elif "FISHEYE" not in str(model).upper():
            model = f"{model} and is_fisheye"
    values = {k: row.get(k) for k in list(row.content) if is_coefficient(k)}
    return lens(model, values, row.where, row.camera)


def _transforms_K(
    row: Row, path: Path, picture: str | None
) -> tuple[Callable[[int, int], np.ndarray], tuple[int, int] | None]:
    """K as a function of the pictures' size, and that size: the file's, or that of its picture."""
    size = None
    if row.find(("w",)) or row.find(("h",)):
        size = (_side(row, "w"), _side(row, "h"))
    elif picture is not None:
        size = picture_size(path.parent, picture)
    focal, angle, centre = [], [], []
    for k, (fl, camera_angle, fov, c) in enumerate(
        (("fl_x", "camera_angle_x", "x_fov", "cx"), ("fl_y", "camera_angle_y", "y_fov", "cy"))
    ):
        focal.append(_float(row, fl) if row.find((fl,)) else None)
        wide = _float(row, camera_angle) if row.find((camera_angle,)) else None
        if wide is None and row.find((fov,)):
            wide = np.deg2rad(_float(row, fov))
        angle.append(wide if k == 0 or wide is not None else None)
        centre.append(_float(row, c) if row.find((c,)) else None)
    if focal[0] is None and (angle[0] is None or not 0 < angle[0] < np.pi):
        _float(row, "fl_x", "camera_angle_x")
        raise LayoutError(
            "camera_angle_x is no field of view",
            where=path,
            expected="radians, above 0 and below pi",
            found=angle[0],
            fix="give fl_x in pixels",
        )

    def K_for(width: int, height: int) -> np.ndarray:
        fx = focal[0] if focal[0] is not None else 0.5 * width / np.tan(0.5 * angle[0])
        fy = focal[1]
        if fy is None:
            y = angle[1] if focal[0] is None else None
            fy = fx if y is None or not 0 < y < np.pi else 0.5 * height / np.tan(0.5 * y)
        cx = width / 2 if centre[0] is None else centre[0]
        cy = height / 2 if centre[1] is None else centre[1]
        return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])

    return K_for, size


def picture_size(folder: Path, name: str) -> tuple[int, int] | None:
    """(width, height) of a picture that a calibration names, where it is there and opens."""
    from PIL import Image, UnidentifiedImageError

    for suffix in ("", ".png", ".jpg"):
        file = folder / f"{name}{suffix}"
        try:
            if file.is_file():
                with Image.open(file) as picture:
                    return picture.size
        except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
            continue  # a video, or damaged: whoever decodes it will say so
    return None


def number_by_path(cameras: list[CameraModel]) -> None:
    """Number cameras by the number in their folder or file name where these are distinct."""
    for part in (-2, -1):
        names = [(*Path(c.name).parts[:-1], Path(c.name).stem) for c in cameras]
        found = [re.findall(r"\d+", n[part]) if len(n) >= -part else [] for n in names]
        if all(found) and len({f[-1] for f in found}) == len(cameras):
            for camera, name, f in zip(cameras, names, found, strict=True):
                camera.number, camera.name = int(f[-1]), name[part]
            return
