"""Keypoint files that are read: one file a camera, x, y and a confidence of each point and frame.

All of them put pixel centres at integers (the first is 0): 0.5 is added.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from mouselift_jax.data.readers.pickles import read_keypoints_pickle
from mouselift_jax.data.readers.registry import Format, Source, choose
from mouselift_jax.data.readers.text import read_text
from mouselift_jax.errors import LayoutError, MissingExtraError

_LIMIT = 1 << 30
_HEADS = ("scorer", "individuals", "bodyparts", "coords")


def _is_csv(path: Path) -> bool:
    """DeepLabCut's head: a line of scorers, (individuals,) body parts and coordinates."""
    if path.suffix.lower() != ".csv":
        return False
    with open(path, "rb") as file:
        return file.read(16).lstrip(b"\xef\xbb\xbf").startswith(b"scorer")


def read_deeplabcut_csv(path: Path) -> np.ndarray:
    """DeepLabCut's or Lightning Pose's table [F,M,3]; other coordinates than x, y are passed over.

    Raises:
        LayoutError: another form, or several animals.
    """
    rows = list(csv.reader(io.StringIO(read_text(path, _LIMIT))))
    head: dict[str, list[str]] = {}
    while rows and rows[0] and rows[0][0].strip() in _HEADS:
        name = rows[0][0].strip()
        head[name] = [word.strip() for word in rows.pop(0)]
    if not {"bodyparts", "coords"} <= set(head) or not rows:
        raise _other(path, f"head of {', '.join(head) or 'nothing'}, {len(rows)} frames")
    width = len(head["coords"])
    if {len(row) for row in (*head.values(), *rows) if row} != {width}:
        raise _other(path, "lines of different lengths")
    individuals = {w for w in head.get("individuals", [])[1:] if w and w != "single"}
    if len(individuals) > 1:
        raise LayoutError(
            "these keypoints are of several animals",
            where=path,
            expected="one animal",
            found=", ".join(sorted(individuals))[:120],
            fix="export the table of one of them",
        )
    columns: dict[str, dict[str, int]] = {}
    for k, (part, coord) in enumerate(zip(head["bodyparts"], head["coords"], strict=True)):
        if coord in ("x", "y", "likelihood"):
            columns.setdefault(part, {}).setdefault(coord, k)
    if not columns or not all({"x", "y"} <= set(c) for c in columns.values()):
        raise _other(path, f"coordinates {sorted(set(head['coords'][1:]))}")
    wanted = sorted({k for c in columns.values() for k in c.values()})
    try:
        table = {
            k: np.array([float(row[k]) if row[k].strip() else np.nan for row in rows if row])
            for k in wanted
        }
    except ValueError as error:
        raise _other(path, str(error)) from error
    one = np.ones(sum(1 for row in rows if row))
    points = [
        np.stack([table[c["x"]], table[c["y"]], table.get(c.get("likelihood", -1), one)], -1)
        for c in columns.values()
    ]
    return _shifted(np.stack(points, 1))


def _shifted(array: np.ndarray) -> np.ndarray:
    """[F,M,3] with pixel centres at +0.5; a point that is not finite is missing."""
    missing = ~np.isfinite(array).all(-1)
    out = array.astype(np.float64)
    out[..., :2] += 0.5
    out[missing] = (np.nan, np.nan, 0.0)
    return out


def _other(path: Path, found: str) -> LayoutError:
    return LayoutError(
        "keypoints have another form",
        where=path,
        expected="`python -m mouselift_jax check --list-formats` says which are read",
        found=found[:160],
        fix="export them again, or convert them to result_view_N.pkl (docs/data_format.md)",
    )


def _is_sleap(path: Path) -> bool:
    with open(path, "rb") as file:
        if file.read(8) != b"\x89HDF\r\n\x1a\n":
            return False
    h5 = _h5py()
    try:
        with h5.File(path, "r") as file:
            return {"tracks", "node_names"} <= set(file)
    except (OSError, RuntimeError, KeyError, ValueError):
        return False  # damaged: nobody's


def _h5py():  # noqa: ANN202
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("h5py", "keypoints", "reading keypoints from .h5") from error
    return h5py


def read_sleap(path: Path) -> np.ndarray:
    """SLEAP's analysis file [F,M,3]: tracks [tracks,2,nodes,frames], point_scores.

    Raises:
        LayoutError: damaged, another form, or several animals.
    """
    h5 = _h5py()
    try:
        with h5.File(path, "r") as file:
            shape, kind = file["tracks"].shape, file["tracks"].dtype.kind
            if len(shape) != 4 or shape[1] != 2 or kind != "f":
                raise _other(path, f"tracks {list(shape)}")
            if int(np.prod(shape, dtype=np.float64)) * 8 > _LIMIT:
                raise _other(path, f"tracks {list(shape)}: larger than 1 GiB")
            tracks = np.asarray(file["tracks"], np.float64)
            scores = None
            if "point_scores" in file and file["point_scores"].shape == (shape[0], *shape[2:]):
                scores = np.asarray(file["point_scores"], np.float64)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError,
            MemoryError) as error:  # fmt: skip
        raise _other(path, f"{type(error).__name__}: {error}") from error
    there = [t for t in range(len(tracks)) if np.isfinite(tracks[t]).any()]
    if len(there) > 1 and np.isfinite(tracks).any((1, 2)).sum(0).max() > 1:
        raise LayoutError(
            "these keypoints are of several animals",
            where=path,
            expected="one animal",
            found=f"{len(there)} tracks in the same frames",
            fix="export the file of one of them",
        )
    xy = np.full(tracks.shape[1:], np.nan)
    confidence = np.ones(tracks.shape[2:])
    for t in there:  # pieces of one animal's track: each frame is of one of them
        seen = np.isfinite(tracks[t]).all(0)
        xy = np.where(seen, tracks[t], xy)
        confidence = confidence if scores is None else np.where(seen, scores[t], confidence)
    return _shifted(np.concatenate([xy, confidence[None]]).transpose(2, 1, 0))


KEYPOINTS: tuple[Format[np.ndarray], ...] = (
    Format(
        "result_view", "MAMMAL and others", "`result_view_N.pkl`",
        "array [frames, points, 3] of x, y, confidence",
        lambda s: s.suffix in (".pkl", ".pickle"), lambda s: read_keypoints_pickle(s.path),
    ),
    Format(
        "deeplabcut_csv", "DeepLabCut, Lightning Pose", "`*DLC*.csv`, `predictions.csv`",
        "one animal; x, y, likelihood",
        lambda s: _is_csv(s.path), lambda s: read_deeplabcut_csv(s.path),
    ),
    Format(
        "sleap", "SLEAP (export as analysis HDF5)", "`*.analysis.h5`",
        "one animal; needs h5py: `pip install -e '.[keypoints]'`",
        lambda s: s.suffix in (".h5", ".hdf5") and _is_sleap(s.path), lambda s: read_sleap(s.path),
    ),
)  # fmt: skip
# Of programs whose files are not read: named where they are met.
SUFFIXES = (".pkl", ".pickle", ".csv", ".h5", ".hdf5", ".slp", ".json", ".npy", ".npz", ".mat",
            ".parquet")  # fmt: skip


def read_keypoints(path: Path) -> np.ndarray:
    """Keypoints [F,M,3] of one camera: x, y (centres at +0.5, NaN if missing), confidence.

    Raises:
        LayoutError: no format that is read, or damaged.
        MissingExtraError: h5py is needed.
    """
    chosen = choose(KEYPOINTS, Source(path))
    if chosen is None:
        raise _other(path, f"a {path.suffix} file of another program")
    return chosen.read(Source(path))
