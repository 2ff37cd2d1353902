"""Keypoint files that are read: one file a camera, x, y and a confidence of each point and frame.

All of them put pixel centres at integers (the first is 0): 0.5 is added.
"""

from __future__ import annotations

import csv
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.readers.hdf5 import h5py, is_hdf5
from mouselift_jax.data.readers.pickles import load_plain, read_keypoints_pickle
from mouselift_jax.data.readers.registry import Format, Source, choose
from mouselift_jax.data.readers.text import read_text
from mouselift_jax.errors import LayoutError

_LIMIT = 1 << 30
_WANTED = "reading keypoints from .h5"
_COORDS = ("x", "y", "likelihood")
_BROKEN = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError,
           IndexError)  # fmt: skip
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
    wanted = [k for k in range(1, width) if head["coords"][k] in _COORDS]
    try:
        table = np.array(
            [[float(row[k]) if row[k].strip() else np.nan for k in wanted] for row in rows if row]
        ).reshape(-1, len(wanted))
    except ValueError as error:
        raise _other(path, str(error)) from error
    words = [head.get("individuals", [""] * width), head["bodyparts"], head["coords"]]
    return _of_table([tuple(w[k] for w in words) for k in wanted], table, path)


def _of_table(labels: list[tuple[str, str, str]], table: np.ndarray, path: Path) -> np.ndarray:
    """[F,M,3] of a table [F,C] whose columns are of (individual, body part, coordinate)."""
    individuals = {w for w, _, _ in labels if w and w != "single"}
    if len(individuals) > 1:
        raise LayoutError(
            "these keypoints are of several animals",
            where=path,
            expected="one animal",
            found=", ".join(sorted(individuals))[:120],
            fix="export the table of one of them",
        )
    columns: dict[str, dict[str, int]] = {}
    for k, (_, part, coord) in enumerate(labels):
        columns.setdefault(part, {}).setdefault(coord, k)
    if not columns or not all({"x", "y"} <= set(c) for c in columns.values()):
        raise _other(path, f"coordinates {sorted({c for _, _, c in labels})}")
    one = np.ones(len(table))
    points = [
        np.stack(
            [table[:, c["x"]], table[:, c["y"]],
             table[:, c["likelihood"]] if "likelihood" in c else one], -1
        )
        for c in columns.values()
    ]  # fmt: skip
    return _shifted(np.stack(points, 1))


def _pandas_table(file: Any) -> Any:
    """The group of a table that pandas wrote (to_hdf, format="table"), as DeepLabCut does."""
    for group in file.values():
        table = group.get("table") if hasattr(group, "get") else None
        names = getattr(getattr(table, "dtype", None), "names", None) or ()
        if "non_index_axes" in group.attrs and {"index", "values_block_0"} <= set(names):
            return group
    return None


def _is_deeplabcut_h5(path: Path) -> bool:
    if not is_hdf5(path):
        return False
    try:
        with h5py(_WANTED).File(path, "r") as file:
            return _pandas_table(file) is not None
    except _BROKEN:
        return False  # damaged: nobody's


def read_deeplabcut_h5(path: Path) -> np.ndarray:
    """DeepLabCut's table in HDF5 [F,M,3]: pandas keeps the names of the columns as a pickle.

    Raises:
        LayoutError: damaged, another form, or several animals.
    """
    try:
        with h5py(_WANTED).File(path, "r") as file:
            group = _pandas_table(file)
            if group["table"].size * group["table"].dtype.itemsize > _LIMIT:
                raise _other(path, "a table larger than 1 GiB")
            index, values = group["table"]["index"], group["table"]["values_block_0"]
            data = group.attrs["non_index_axes"]
        axes = load_plain(data.encode("latin1") if isinstance(data, str) else bytes(data))
        labels = [tuple(str(w).strip() for w in label) for label in axes[0][1]]
    except (*_BROKEN, pickle.UnpicklingError, EOFError) as error:
        raise _other(path, f"{type(error).__name__}: {error}") from error
    if {len(label) for label in labels} - {3, 4} or values.shape[1:] != (len(labels),):
        raise _other(path, f"{len(labels)} names for columns {list(values.shape[1:])}")
    if index.dtype.kind not in "iu" or not len(index) or not 0 <= index.min() <= index.max() < 1e7:
        raise _other(path, "rows that are no frame numbers, as of hand-labelled pictures")
    table = np.full((int(index.max()) + 1, values.shape[1]), np.nan)
    table[index] = values
    rows = [("" if len(w) == 3 else w[1], *w[-2:]) for w in labels]
    wanted = [k for k, row in enumerate(rows) if row[2] in _COORDS]
    return _of_table([rows[k] for k in wanted], table[:, wanted], path)


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
    h5 = h5py(_WANTED)
    try:
        with h5.File(path, "r") as file:
            return {"tracks", "node_names"} <= set(file)
    except (OSError, RuntimeError, KeyError, ValueError):
        return False  # damaged: nobody's


def read_sleap(path: Path) -> np.ndarray:
    """SLEAP's analysis file [F,M,3]: tracks [tracks,2,nodes,frames], point_scores.

    Raises:
        LayoutError: damaged, another form, or several animals.
    """
    h5 = h5py(_WANTED)
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
        "deeplabcut_h5", "DeepLabCut", "`*DLC*.h5`",
        "the same; needs h5py: `pip install -e '.[keypoints]'`",
        lambda s: s.suffix in (".h5", ".hdf5") and _is_deeplabcut_h5(s.path),
        lambda s: read_deeplabcut_h5(s.path),
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
