"""A corrected calibration in the file format it came in, under its own conventions.

Only what changed is replaced: a principal point moves by as much as ours did, so the file's pixel
origin stays whatever it is, and every key that is not about K, R, T and distortion stays as it was.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.readers.calibration import Calibration, CameraModel
from mouselift_jax.data.readers.pickles import camera_fields
from mouselift_jax.data.readers.text import natural_key
from mouselift_jax.errors import LayoutError
from mouselift_jax.files import write_bytes_atomic, write_text_atomic


def _moved_K(K: Any, old: CameraModel, new: CameraModel) -> np.ndarray:
    """The file's K [3,3] with focal lengths replaced and its principal point moved."""
    K = np.array(K, np.float64)
    K[:2, :2] = new.K[:2, :2]
    K[:2, 2] += new.K[:2, 2] - old.K[:2, 2]
    return K


def _rotation_like(value: Any, R: np.ndarray) -> np.ndarray:
    """R in the form the file has it: a matrix, or a rotation vector; in the shape it has."""
    import cv2

    shape = np.shape(value)
    vector = int(np.prod(shape)) == 3
    return (cv2.Rodrigues(R)[0] if vector else R).reshape(shape)


def _lens_like(value: Any, new: CameraModel) -> np.ndarray:
    """Distortion in the shape the file has it, or flat where it has none or less room."""
    lens = np.trim_zeros(np.asarray(new.distortion, np.float64).reshape(-1), "b")
    shape = np.shape(value) if value is not None else (5,)
    length = int(np.prod(shape))
    if length < len(lens):
        return np.pad(lens, (0, max(0, 5 - len(lens))))
    return np.pad(lens, (0, length - len(lens))).reshape(shape)


def _bent(old: CameraModel, new: CameraModel) -> bool:
    """Whether the correction touched the distortion."""
    return isinstance(new.distortion, np.ndarray) and not (
        isinstance(old.distortion, np.ndarray) and np.array_equal(old.distortion, new.distortion)
    )


def _pickle(path: Path, pairs: Sequence[tuple[CameraModel, CameraModel]]) -> bytes | None:
    content, rows = camera_fields(path)
    if not rows:
        return None
    for (row, keys), (old, new) in zip(rows, pairs, strict=True):
        row[keys["K"]] = _moved_K(row[keys["K"]], old, new).reshape(np.shape(row[keys["K"]]))
        row[keys["R"]] = _rotation_like(row[keys["R"]], new.R)
        row[keys["T"]] = new.T.reshape(np.shape(row[keys["T"]]))
        if _bent(old, new):
            key = keys.get("dist", "dist")
            row[key] = _lens_like(row.get(key), new)
    return pickle.dumps(content, protocol=4)


def _opencv_cameras(path: Path, pairs: Sequence[tuple[CameraModel, CameraModel]]) -> bytes:
    content = json.loads(path.read_text())
    for row, (old, new) in zip(content["frames"], pairs, strict=True):
        K = _moved_K([[row["fx"], 0, row["cx"]], [0, row["fy"], row["cy"]], [0, 0, 1]], old, new)
        row.update(fx=K[0, 0], fy=K[1, 1], cx=K[0, 2], cy=K[1, 2])
        row["w2c"] = [[*R, t] for R, t in zip(new.R.tolist(), new.T.tolist(), strict=True)]
        row["w2c"] += [[0.0, 0.0, 0.0, 1.0]]
    return (json.dumps(content, indent=2) + "\n").encode()


def _anipose(path: Path, pairs: Sequence[tuple[CameraModel, CameraModel]]) -> bytes | None:
    import tomllib

    text = path.read_text()
    tables = [k for k, v in tomllib.loads(text).items() if isinstance(v, dict) and "matrix" in v]
    for key, (old, new) in zip(sorted(tables, key=natural_key), pairs, strict=True):
        row = tomllib.loads(text)[key]
        changed = {
            "matrix": _moved_K(row["matrix"], old, new),
            "rotation": _rotation_like(row["rotation"], new.R),
            "translation": new.T.reshape(np.shape(row["translation"])),
        }
        if _bent(old, new):
            changed["distortions"] = _lens_like(row.get("distortions", np.zeros(5)), new)
        head = re.search(rf"^\[\s*\"?{re.escape(key)}\"?\s*\]\s*$", text, re.M)
        if head is None:
            return None  # tables written inline
        end = re.search(r"^\[\s*[\"\w]", text[head.end() :], re.M)
        stop = head.end() + end.start() if end else len(text)
        body = text[head.end() : stop]
        for name, value in changed.items():
            line = f"{name} = {json.dumps(np.asarray(value).tolist())}\n"
            pattern = rf"^{name}\s*=\s*\[.*?\]\s*\n(?=\s*(?:[\w\"]+\s*=|\[[\"\w]|#|$))"
            body, count = re.subn(
                pattern, lambda _, s=line: s, body + "\n", count=1, flags=re.M | re.S
            )
            body = body if count else line + body
        text = text[: head.end()] + body + text[stop:]
    return text.encode()


def _dannce(path: Path, pairs: Sequence[tuple[CameraModel, CameraModel]]) -> bytes:
    from scipy.io import loadmat, savemat

    content = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
    for cell, (old, new) in zip(content["params"].ravel(), pairs, strict=True):
        row = cell[0, 0]
        row["K"] = _moved_K(row["K"].T, old, new).T
        row["r"] = new.R.T
        row["t"] = new.T.reshape(row["t"].shape)
        if _bent(old, new):
            lens = np.pad(new.distortion, (0, 5))
            radial = row["RDistort"]
            radial.reshape(-1)[:2] = lens[:2]
            row["RDistort"] = radial
    out = io.BytesIO()
    savemat(out, content)
    return out.getvalue()


WRITERS: dict[str, Callable[..., bytes | None]] = {
    "pickle": _pickle,
    "opencv_cameras.json": _opencv_cameras,
    "anipose": _anipose,
    "dannce": _dannce,
}


def opencv_frames(cameras: Sequence[CameraModel], sizes: Sequence[tuple[int, int]]) -> dict:
    """Cameras in our own form, that of `opencv_cameras.json`."""
    rows = []
    for camera, (width, height) in zip(cameras, sizes, strict=True):
        w2c = np.eye(4)
        w2c[:3, :3], w2c[:3, 3] = camera.R, camera.T
        K = camera.K
        rows.append(
            {
                "w": int(width), "h": int(height), "fx": K[0, 0], "fy": K[1, 1],
                "cx": K[0, 2], "cy": K[1, 2], "w2c": w2c.tolist(), "camera": camera.number,
            }
        )  # fmt: skip
    return {"frames": rows}


def write_back(
    calibration: Calibration,
    new: Sequence[CameraModel],
    folder: Path,
    sizes: Sequence[tuple[int, int]],
) -> tuple[Path, bool]:
    """Write corrected cameras into a folder.

    Args:
        calibration: as it was read.
        new: the cameras in its order; unchanged ones are passed as they were.
        folder: where to, of our making; the file keeps its name.
        sizes: picture sizes, for our own form.

    Returns:
        The file, and whether it has the format that was read; formats that cannot be written yet
        become `opencv_cameras.json`.

    Raises:
        LayoutError: the file would replace the calibration that was read; nothing is written.
    """
    for name in (calibration.path.name, "opencv_cameras.json"):
        if (folder / name).exists() and calibration.path.exists():
            if os.path.samefile(folder / name, calibration.path):
                raise LayoutError(
                    "a corrected calibration never replaces the one it was made from",
                    where=calibration.path,
                    fix="give another folder, then copy it over yourself if you want to",
                )
    pairs = list(zip(calibration.cameras, copy.deepcopy(list(new)), strict=True))
    writer = WRITERS.get(calibration.kind)
    data = writer(calibration.path, pairs) if writer and calibration.path.is_file() else None
    if data is not None:
        path = folder / calibration.path.name
        write_bytes_atomic(path, data)
        return path, True
    path = folder / "opencv_cameras.json"
    write_text_atomic(path, json.dumps(opencv_frames(new, sizes), indent=2) + "\n")
    return path, False
