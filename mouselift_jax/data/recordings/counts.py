"""How many frames a video really shows, where its header does not say so.

A header counts what is stored. A video cut without re-encoding keeps the frames from the last key
frame on and hides them behind an edit list; other containers (mkv, ts, avi of a recorder that was
stopped) store a duration, of the sound if that is longer, or nothing.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_BOXES = (".mp4", ".mov", ".m4v")
_INSIDE = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")
_MOST = 64 << 20  # bytes of a moov box: tables of some ten million frames
_WAIT_S = 600


def shown_frames(path: Path, declared: int) -> int:
    """Frames of a video as players and decoders show them; `declared` where nothing else is known.

    mp4 and mov are read from their tables, other containers are counted without decoding.
    """
    if path.suffix.lower() in _BOXES:
        found = _of_tables(path) if declared > 0 else None
        if found is not None or declared > 0:
            return declared if found is None else found
    return _packets(path) or declared


def _of_tables(path: Path) -> int | None:
    """Samples of the picture track that its edit list shows; None without an edit that hides any.

    Unusual files (several edits, other rates, damaged tables) are left to their header.
    """
    try:
        moov = _moov(path)
        movie = next((_scale(b) for k, b in _boxes(moov) if k == b"mvhd"), 0)
        for kind, trak in _boxes(moov):
            parts = dict(_leaves(trak)) if kind == b"trak" else {}
            if b"vmhd" in parts:  # the picture track
                return _shown(parts, movie) if b"elst" in parts else None
    except (struct.error, ValueError, KeyError, IndexError, OverflowError, MemoryError):
        return None
    return None


def _shown(parts: dict[bytes, bytes], movie: int) -> int | None:
    start, length = _edit(parts[b"elst"])
    scale = _scale(parts[b"mdhd"])
    if start <= 0 and not length:
        return None
    ends = np.cumsum(np.repeat(*_pairs(parts[b"stts"])[:, ::-1].T))
    steps = np.diff(np.concatenate([[0], ends]))
    shown = ends - steps
    if b"ctts" in parts:  # pictures are stored in another order than they are shown
        offsets = _pairs(parts[b"ctts"], signed=True)
        shown = shown + np.repeat(offsets[:, 1], offsets[:, 0])[: len(shown)]
    half = 0.5 * float(np.median(steps)) if len(steps) else 0.0
    inside = shown >= start - 1
    if length and movie:  # rounded to the movie's clock
        inside &= shown < start + length * scale / movie + half - 1
    return int(inside.sum())


def _edit(elst: bytes) -> tuple[int, int]:
    """Start in the media's clock and length in the movie's of the one edit."""
    (version, n), at = (elst[0], struct.unpack_from(">I", elst, 4)[0]), 8
    form = ">Qqi" if version else ">Iii"
    edits = [struct.unpack_from(form, elst, at + i * struct.calcsize(form)) for i in range(n)]
    edits = [(start, length) for length, start, _ in edits if start >= 0]  # -1: an empty one
    if len(edits) != 1:
        raise ValueError("several edits")
    return edits[0]


def _scale(box: bytes) -> int:
    """Ticks a second of an mvhd or mdhd."""
    return struct.unpack_from(">I", box, 20 if box[0] else 12)[0]


def _pairs(box: bytes, *, signed: bool = False) -> np.ndarray:
    """The (count, value) rows of stts or ctts [n,2]."""
    n = struct.unpack_from(">I", box, 4)[0]
    rows = np.frombuffer(box, ">i4" if signed else ">u4", 2 * n, 8).reshape(-1, 2)
    if rows[:, 0].astype(np.int64).sum() > _MOST:
        raise ValueError("more frames than a file can have")
    return rows.astype(np.int64)


def _moov(path: Path) -> bytes:
    with path.open("rb") as file:
        end = file.seek(0, 2)
        at = 0
        while at + 8 <= end:
            file.seek(at)
            size, kind = struct.unpack(">I4s", file.read(8))
            head = 8
            if size == 1:
                (size,), head = struct.unpack(">Q", file.read(8)), 16
            size = size or end - at
            if size < head:
                break
            if kind == b"moov" and size < _MOST:
                return file.read(size - head)
            at += size
    raise ValueError("no moov")


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8 or at + size > len(data):
            return
        yield kind, data[at + 8 : at + size]
        at += size


def _leaves(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    for kind, box in _boxes(data):
        if kind in _INSIDE:
            yield from _leaves(box)
        else:
            yield kind, box


def _packets(path: Path) -> int:
    """Packets of the first picture track, read without decoding; 0 where ffmpeg cannot."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner"]
    command += ["-i", f"file:{path.absolute()}"]  # a colon in the name is no protocol
    command += ["-map", "0:v:0", "-c", "copy", "-f", "null", "-"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_WAIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.findall(rb"frame=\s*(\d+)", done.stderr)
    return int(found[-1]) if found else 0
