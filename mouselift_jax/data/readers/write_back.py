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
from mouselift_jax.data.readers.colmap import rewritten
from mouselift_jax.data.readers.hdf5 import is_hdf5
from mouselift_jax.data.readers.pickles import camera_fields
from mouselift_jax.data.readers.rows import Row
from mouselift_jax.data.readers.text import (
    load_storage_xml,
    load_toml,
    load_yaml,
    natural_key,
    read_text,
    storage_matrix,
)
from mouselift_jax.data.readers.toml_cameras import camera_tables
from mouselift_jax.data.readers.yaml_cameras import K_KEYS, LENS_KEYS, R_KEYS, T_KEYS
from mouselift_jax.errors import LayoutError
from mouselift_jax.files import write_bytes_atomic, write_text_atomic

Pair = tuple[CameraModel, CameraModel]  # as it was read, as it is now


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


def _pickle(path: Path, pairs: Sequence[Pair]) -> bytes | None:
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


def _opencv_cameras(path: Path, pairs: Sequence[Pair]) -> bytes:
    content = json.loads(path.read_text())
    for row, (old, new) in zip(content["frames"], pairs, strict=True):
        K = _moved_K([[row["fx"], 0, row["cx"]], [0, row["fy"], row["cy"]], [0, 0, 1]], old, new)
        row.update(fx=K[0, 0], fy=K[1, 1], cx=K[0, 2], cy=K[1, 2])
        row["w2c"] = [[*R, t] for R, t in zip(new.R.tolist(), new.T.tolist(), strict=True)]
        row["w2c"] += [[0.0, 0.0, 0.0, 1.0]]
    return (json.dumps(content, indent=2) + "\n").encode()


def _toml(path: Path, pairs: Sequence[Pair]) -> bytes | None:
    """Anipose's [cam_0], Caliscope's [cameras.0]: lines of the tables that are used."""
    text = read_text(path)
    tables = camera_tables(load_toml(path))
    tables = {k: v for k, v in tables.items() if v.get("ignore") is not True}
    for key, (old, new) in zip(sorted(tables, key=natural_key), pairs, strict=True):
        row = tables[key]
        changed = {
            "matrix": _moved_K(row["matrix"], old, new),
            "rotation": _rotation_like(row["rotation"], new.R),
            "translation": new.T.reshape(np.shape(row["translation"])),
        }
        if _bent(old, new):
            changed["distortions"] = _lens_like(row.get("distortions", np.zeros(5)), new)
        head = re.search(rf"^\[\s*(?:cameras\s*\.\s*)?\"?{re.escape(key)}\"?\s*\]\s*$", text, re.M)
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


def _matlab_row(row: Any, names: Sequence[str], old: CameraModel, new: CameraModel) -> bool:
    """One camera's K, r, t, RDistort replaced; False where its lens has no room."""
    row["K"] = _moved_K(row["K"].T, old, new).T
    for key in {"r", "R"} & set(names):
        row[key] = new.R.T if np.size(row[key]) == 9 else _rotation_like(row[key], new.R)
    row["t"] = new.T.reshape(row["t"].shape)
    if not _bent(old, new):
        return True
    if "RDistort" not in names or np.size(row["RDistort"]) < 2:
        return False
    radial = np.array(row["RDistort"], np.float64)
    radial.reshape(-1)[:2] = np.pad(new.distortion, (0, 5))[:2]
    row["RDistort"] = radial
    return True


def _matlab(path: Path, pairs: Sequence[Pair]) -> bytes | None:
    """DANNCE's `params`, Label3D's `camParams`; every other variable stays."""
    content = _variables(path)
    key = next((k for k in ("params", "camParams", "cam_params") if k in content), None)
    if key is None:
        return None
    for cell, (old, new) in zip(content[key].ravel(), pairs, strict=True):
        row = cell[0, 0] if cell.dtype == object or cell.dtype.names else cell
        if not _matlab_row(row, row.dtype.names, old, new):
            return None
    return _saved(content)


def _matlab_folder(files: Sequence[Path], pairs: Sequence[Pair]) -> dict[str, bytes] | None:
    """DANNCE's folder of one file a camera."""
    out = {}
    ordered = sorted(files, key=lambda p: natural_key(p.stem))
    for file, (old, new) in zip(ordered, pairs, strict=True):
        content = _variables(file)
        if not content or not _matlab_row(content, tuple(content), old, new):
            return None
        out[file.name] = _saved(content)
    return out


def _variables(path: Path) -> dict[str, Any]:
    """Of a MATLAB file of version 5 to 7; empty for -v7.3, which SciPy does not write."""
    from scipy.io import loadmat

    if is_hdf5(path):
        return {}
    return {k: v for k, v in loadmat(path).items() if not k.startswith("__")}


def _saved(content: dict[str, Any]) -> bytes:
    from scipy.io import savemat

    out = io.BytesIO()
    savemat(out, content)
    return out.getvalue()


def _storage(files: Sequence[Path], pairs: Sequence[Pair]) -> dict[str, bytes] | None:
    """OpenCV's FileStorage (YAML or XML), plain YAML with {rows, cols, data}; JARVIS's rows."""
    out = {}
    ordered = sorted(files, key=lambda p: natural_key(p.stem))
    for file, (old, new) in zip(ordered, pairs, strict=True):
        text, xml = read_text(file), file.suffix.lower() == ".xml"
        row = Row(load_storage_xml(file) if xml else load_yaml(file), file, file.stem)
        turned = "intrinsicMatrix" in row.content  # JARVIS
        held = {name: row.find(keys) for name, keys in
                (("K", K_KEYS), ("R", R_KEYS), ("T", T_KEYS), ("D", LENS_KEYS))}  # fmt: skip
        before = {k: _array(row.content[key]) for k, key in held.items() if key is not None}
        K = _moved_K(before["K"].T if turned else before["K"], old, new)
        values = {"K": K.T if turned else K, "T": new.T}
        values["R"] = new.R.T if turned else _rotation_like(before["R"], new.R)
        if _bent(old, new):
            lens = _lens_like(before.get("D"), new)
            if held["D"] is None or lens.size != before["D"].size:
                return None
            values["D"] = lens
        for name, value in values.items():
            text = _with_numbers(text, held[name], np.ravel(value), xml)
            if not text:
                return None
        out[file.name] = text.encode()
    return out


def _array(value: Any) -> np.ndarray:
    return np.asarray(storage_matrix(value, "") if isinstance(value, dict) else value, np.float64)


def _with_numbers(text: str, key: str, numbers: np.ndarray, xml: bool) -> str:
    """The text with other numbers in the `data` of one matrix; empty where it has none."""
    name = re.escape(key)
    if xml:
        pattern = rf"(<{name}\b[^>]*>(?:(?!</{name}>).)*?<data>)[^<]*(</data>)"
    else:
        pattern = rf"(^{name}\s*:[^\n]*\n(?:[ \t]+(?!data)[^\n]*\n)*[ \t]+data\s*:\s*\[)[^\]]*(\])"
    # A point and a signed exponent: YAML takes 1e-05 for a word.
    line = (" " if xml else ", ").join(f"{x:.17e}" for x in numbers)
    flags = re.M | re.S if xml else re.M
    text, count = re.subn(pattern, lambda m: f"{m[1]} {line} {m[2]}", text, count=1, flags=flags)
    return text if count else ""


# By the kind that a reader gives: of one file, and of several.
WRITERS: dict[str, Callable[..., bytes | None]] = {
    "pickle": _pickle,
    "opencv_cameras.json": _opencv_cameras,
    "anipose": _toml,
    "caliscope": _toml,
    "dannce": _matlab,
    "label3d": _matlab,
}
FOLDER_WRITERS: dict[str, Callable[..., dict[str, bytes] | None]] = {
    "dannce_folder": _matlab_folder,
    "opencv_yaml": _storage,
    "jarvis": _storage,
    "colmap": rewritten,
}
FOLDER = "calibration"  # where several files go


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


def target(calibration: Calibration) -> str:
    """Name of the file or folder that a corrected calibration is meant to become."""
    if calibration.kind not in WRITERS | FOLDER_WRITERS:
        return "opencv_cameras.json"
    return calibration.path.name if calibration.path.is_file() else FOLDER


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
        The file (or folder), and whether it has the format that was read. What was written is read
        again; where that does not give the new cameras, or the format has no writer or no room for
        them, they become `opencv_cameras.json`.

    Raises:
        LayoutError: the file would replace the calibration that was read; nothing is written.
    """
    for name in (calibration.path.name, FOLDER, "opencv_cameras.json"):
        if (folder / name).exists() and calibration.path.exists():
            if os.path.samefile(folder / name, calibration.path):
                raise LayoutError(
                    "a corrected calibration never replaces the one it was made from",
                    where=calibration.path,
                    fix="give another folder, then copy it over yourself if you want to",
                )
    pairs = list(zip(calibration.cameras, copy.deepcopy(list(new)), strict=True))
    path = folder / (calibration.path.name if calibration.path.is_file() else FOLDER)
    data = _data(calibration, pairs, path.name)
    if data:
        for name, content in data.items():
            write_bytes_atomic(folder / name, content)
        if _says(path, calibration, new):
            return path, True
        for name in data:
            (folder / name).unlink()
    path = folder / "opencv_cameras.json"
    write_text_atomic(path, json.dumps(opencv_frames(new, sizes), indent=2) + "\n")
    return path, False


def _data(calibration: Calibration, pairs: Sequence[Pair], name: str) -> dict[str, bytes] | None:
    """What to write, by its path in the folder; None where this format cannot hold it."""
    if calibration.kind in WRITERS and calibration.path.is_file():
        data = WRITERS[calibration.kind](calibration.path, pairs)
        return None if data is None else {name: data}
    if calibration.kind not in FOLDER_WRITERS:
        return None
    files = calibration.files or (calibration.path,)
    found = FOLDER_WRITERS[calibration.kind](files, pairs)
    if not found or calibration.path.is_file():
        return found
    return {f"{name}/{file}": content for file, content in found.items()}


def _says(path: Path, calibration: Calibration, new: Sequence[CameraModel]) -> bool:
    """Whether a calibration that was written reads as it should."""
    from mouselift_jax.data.readers.calibrations import read_calibration

    again = read_calibration(path).counted_from(calibration.pixel_shift)
    if again.kind != calibration.kind or len(again.cameras) != len(new):
        return False
    for got, want in zip(again.cameras, new, strict=True):
        same = [np.allclose(getattr(got, k), getattr(want, k), rtol=1e-6, atol=1e-9) for k in "KRT"]
        lens = [c.distortion for c in (got, want)]
        if all(isinstance(c, np.ndarray) for c in lens):
            a, b = (np.pad(c, (0, 14 - len(c))) for c in lens)
            same.append(np.allclose(a, b, rtol=1e-6, atol=1e-12))
        elif any(isinstance(c, np.ndarray) and np.any(c) for c in lens):
            same.append(False)
        if not all(same):
            return False
    return True
