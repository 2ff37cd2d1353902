"""Keypoints in space: one file for all cameras, in the calibration's world and unit.

They are made from the pictures by the calibration, so they cannot speak for or against it.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np

from mouselift_jax.data.readers.hdf5 import h5py, is_hdf5
from mouselift_jax.data.readers.registry import Format, Source, choose
from mouselift_jax.data.readers.text import read_text
from mouselift_jax.errors import LayoutError, MissingExtraError

_LIMIT = 1 << 30
_WANTED = "reading points from .h5"
_AXES = ("x", "y", "z")
_BROKEN = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError)
_MOST_FRAMES = 10_000_000


def _is_anipose(path: Path) -> bool:
    if path.suffix.lower() != ".csv":
        return False
    with open(path, "rb") as file:
        head = file.readline(1 << 20).decode("utf-8-sig", "replace").strip().split(",")
    return "fnum" in head and any(f"{h[:-2]}_z" in head for h in head if h.endswith("_x"))


def read_anipose(path: Path) -> np.ndarray:
    """Table pose-3d of anipose [F,M,4]: x, y, z, score. Its axes are turned back to the world's.

    anipose writes X M^T - center where its config names reference points (`M_ij`, `center_i`).

    Raises:
        LayoutError: damaged, or another form.
    """
    rows = [row for row in csv.reader(io.StringIO(read_text(path, _LIMIT))) if row]
    names = [word.strip() for word in rows[0]] if rows else []
    at = {name: k for k, name in enumerate(names)}
    parts = [
        n[:-2] for n in names if n.endswith("_x") and all(f"{n[:-2]}_{a}" in at for a in _AXES)
    ]
    if not parts or "fnum" not in at or len(rows) < 2 or {len(r) for r in rows} != {len(names)}:
        raise _other(path, f"columns {', '.join(names)[:100]}, {len(rows)} lines")
    try:
        table = np.array([[float(w) if w.strip() else np.nan for w in row] for row in rows[1:]])
    except ValueError as error:
        raise _other(path, str(error)) from error
    frames = table[:, at["fnum"]]
    if not (np.isfinite(frames).all() and (frames == np.round(frames)).all()
            and 0 <= frames.min() <= frames.max() < _MOST_FRAMES):  # fmt: skip
        raise _other(path, "frame numbers (fnum) that are none")
    xyz = np.stack([table[:, [at[f"{p}_{a}"] for a in _AXES]] for p in parts], 1)
    score = [table[:, at[f"{p}_score"]] if f"{p}_score" in at else np.ones(len(table))
             for p in parts]  # fmt: skip
    moved = [n for n in names if re.fullmatch(r"M_\d\d|center_\d", n)]
    if moved:
        try:
            M = np.array([[table[0, at[f"M_{i}{j}"]] for j in range(3)] for i in range(3)])
            centre = np.array([table[0, at[f"center_{i}"]] for i in range(3)])
            xyz = (xyz + centre) @ np.linalg.inv(M).T
        except (KeyError, np.linalg.LinAlgError) as error:
            raise _other(path, f"axes {', '.join(moved)} that turn nothing back") from error
    out = np.full((int(frames.max()) + 1, len(parts), 4), np.nan)
    out[frames.astype(int)] = np.concatenate([xyz, np.stack(score, 1)[..., None]], -1)
    return _known(out)


def _is_sleap_anipose(path: Path) -> bool:
    if path.suffix.lower() not in (".h5", ".hdf5") or not is_hdf5(path):
        return False
    try:
        with h5py(_WANTED).File(path, "r") as file:
            shape = getattr(file.get("tracks"), "shape", ())
            return "node_names" not in file and len(shape) == 4 and shape[3] == 3
    except _BROKEN:
        return False  # damaged: nobody's


def read_sleap_anipose(path: Path) -> np.ndarray:
    """The points3d.h5 of sleap-anipose [F,M,4]: `tracks` [frames, animals, nodes, 3]; score 1.

    Raises:
        LayoutError: damaged, or several animals.
    """
    try:
        with h5py(_WANTED).File(path, "r") as file:
            if file["tracks"].size * 8 > _LIMIT:
                raise _other(path, "points larger than 1 GiB")
            tracks = np.asarray(file["tracks"], np.float64)
    except _BROKEN as error:
        raise _other(path, f"{type(error).__name__}: {error}") from error
    if tracks.shape[1] != 1:
        raise LayoutError(
            "these points are of several animals",
            where=path,
            expected="one animal",
            found=f"{tracks.shape[1]} animals",
            fix="export the file of one of them",
        )
    xyz = tracks[:, 0]
    return _known(np.concatenate([xyz, np.ones_like(xyz[..., :1])], -1))


def _known(points: np.ndarray) -> np.ndarray:
    points[~np.isfinite(points[..., :3]).all(-1)] = (np.nan, np.nan, np.nan, 0.0)
    points[..., 3] = np.nan_to_num(points[..., 3], nan=0.0)
    return points


def _other(path: Path, found: str) -> LayoutError:
    return LayoutError(
        "points in space have another form",
        where=path,
        expected="`python -m mouselift_jax check --list-formats` says which are read",
        found=found[:160],
        fix="export them again, or remove the file",
    )


POINTS: tuple[Format[np.ndarray], ...] = (
    Format(
        "anipose_3d", "anipose", "`pose-3d/*.csv`",
        "in the calibration's world and unit; `M` and `center` are turned back",
        lambda s: _is_anipose(s.path), lambda s: read_anipose(s.path),
    ),
    Format(
        "sleap_anipose_3d", "sleap-anipose", "`points3d.h5`",
        "one animal; needs h5py: `pip install -e '.[keypoints]'`",
        lambda s: _is_sleap_anipose(s.path), lambda s: read_sleap_anipose(s.path),
    ),
)  # fmt: skip


def are_points(path: Path) -> bool:
    """Whether a file holds points in space; without h5py, whether its name says so."""
    try:
        return choose(POINTS, Source(path)) is not None
    except MissingExtraError:
        return path.stem == "points3d"  # reading it tells what is missing


def read_points(path: Path) -> np.ndarray:
    """Points [F,M,4] in the calibration's world and unit, NaN if missing, and their confidence.

    Raises:
        LayoutError: no format that is read, or damaged.
        MissingExtraError: h5py is needed.
    """
    chosen = choose(POINTS, Source(path))
    if chosen is None:
        raise _other(path, f"a {path.suffix} file of another program")
    return chosen.read(Source(path))
