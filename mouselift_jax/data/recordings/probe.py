"""A look at one video or one folder of pictures: openable, whole, how many, how large."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import cv2
import numpy as np

from mouselift_jax.data.readers import natural_key
from mouselift_jax.data.recordings.counts import shown_frames
from mouselift_jax.data.recordings.mask_levels import MaskLevels, find_levels
from mouselift_jax.data.recordings.recording import Frames
from mouselift_jax.errors import LayoutError

VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm", ".ts", ".mts", ".m2ts", ".wmv", ".mpg",
    ".mpeg", ".flv", ".ogv", ".3gp", ".h264", ".h265", ".hevc",
)  # fmt: skip
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
DEEP_GREY = (0x10003159, 0x59310010)  # gray16le, gray16be: FFmpeg's tags of raw video
_LOSSLESS = ("FFV1", "HFYU", "FFVH", "LAGS", "ULRG", "ULY0", "MPNG", "PNG ", "RAW ", "Y800")
_MASK_PICTURES, _MASK_FRAMES, _SEEN = 4, 60, 2
_DEPTHS, _DEPTH_PICTURES = (8, 10, 12, 14), 5


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of a folder with these endings, 2 before 10; none if there is no folder."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.name[0] != "."]
    return sorted(found, key=lambda p: natural_key(p.name))


def probe(path: Path | tuple[Path, ...]) -> Frames:
    """Size, frame count, rate and depth of a video or a folder of pictures, from headers and a few.

    Args:
        path: a video, the files of one video in order, or a folder of pictures or of such files.

    Raises:
        LayoutError: it cannot be opened, is cut short, or holds no frame.
    """
    chunks = _of_chunks(path)
    if chunks:
        frames, images = _joined(chunks)
    elif path.is_dir():
        frames, images = _probe_folder(path, 1)
        if images[0].dtype == np.uint16:
            images = _spread(frames, _DEPTH_PICTURES)
    else:
        frames, images = _probe_video(path)
    return dataclasses.replace(frames, white=partial_white(images))


def probe_masks(path: Path | tuple[Path, ...]) -> tuple[Frames, MaskLevels]:
    """The same of masks, and how they write the animal.

    Raises:
        LayoutError: it cannot be opened, is cut short, or holds no frame.
    """
    chunks = _of_chunks(path)
    if chunks:
        frames, images = _joined(chunks, masks=True)
        lossless = frames.deep or _codec(chunks[0]) in _LOSSLESS
    elif path.is_dir():
        frames, _ = _probe_folder(path, 1)
        images = _spread(frames, _MASK_PICTURES)
        if not any(i.max() for i in images):  # the animal may come later
            images = _spread(frames, 8 * _MASK_PICTURES)
        lossless = frames.files[0].suffix.lower() not in (".jpg", ".jpeg", ".webp")
    else:
        frames, images = _probe_video(path, masks=True)
        lossless = frames.deep or _codec(path) in _LOSSLESS
    levels = find_levels(images, lossless=lossless)
    return dataclasses.replace(frames, white=levels.white, channel=levels.channel), levels


def _of_chunks(path: Path | tuple[Path, ...]) -> list[Path]:
    """The files of one video; of a folder without pictures, in the order of their numbers."""
    if isinstance(path, tuple):
        return list(path)
    if not path.is_dir():
        return []
    return [] if list_files(path, PICTURE_SUFFIXES) else list_files(path, VIDEO_SUFFIXES)


def _joined(chunks: list[Path], masks: bool = False) -> tuple[Frames, list[np.ndarray]]:
    """One camera's video in several files, as one."""
    first, images = _probe_video(chunks[0], masks)
    each = [first, *(_probe_video(c)[0] for c in chunks[1:])]
    n = sum(f.n_frames for f in each)
    declared = sum(f.declared or f.n_frames for f in each)
    declared = declared if declared != n else 0
    return dataclasses.replace(first, n_frames=n, files=tuple(chunks), declared=declared), images


def _probe_folder(path: Path, n: int) -> tuple[Frames, list[np.ndarray]]:
    files = tuple(list_files(path, PICTURE_SUFFIXES))
    image = cv2.imread(str(files[0]), cv2.IMREAD_UNCHANGED) if files else None
    if image is None:
        raise LayoutError("cannot read the pictures", where=path, fix="export them again")
    height, width = image.shape[:2]
    alpha = image.ndim == 3 and image.shape[2] == 4
    return Frames("folder", path, len(files), 0.0, width, height, files, alpha), [image]


def _spread(frames: Frames, n: int) -> list[np.ndarray]:
    """Some pictures of a folder, evenly chosen; unreadable ones are told when they are read."""
    rows = np.unique(np.linspace(0, len(frames.files) - 1, n).astype(int))
    images = [cv2.imread(str(frames.files[i]), cv2.IMREAD_UNCHANGED) for i in rows]
    images = [i for i in images if i is not None]
    return [i for i in images if i.dtype == images[0].dtype and i.ndim == images[0].ndim]


def _probe_video(path: Path, masks: bool = False) -> tuple[Frames, list[np.ndarray]]:
    fix = "copy or export the video again"
    missing = _bytes_missing(path)
    if missing:
        raise LayoutError(
            "the video is cut short", where=path, found=f"{missing} bytes missing", fix=fix
        )
    # Absolute: FFmpeg takes what stands before a colon in a relative path for a protocol.
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    try:
        opened = capture.isOpened()
        deep = opened and int(capture.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT)) in DEEP_GREY
        if deep:
            capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        n_frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if opened else 0
        ok, frame = capture.read() if opened else (False, None)
        if not ok:
            raise LayoutError(
                "the video cannot be decoded",
                where=path,
                found=f"{path.stat().st_size} bytes, {max(n_frames, 0)} frames declared",
                fix=fix,
            )
        images = [frame]
        while masks and images[-1].max() < _SEEN and len(images) < _MASK_FRAMES:
            ok, frame = capture.read()  # the animal may come later
            if not ok:
                break
            images = [*images[:1], frame]
        height, width = frame.shape[:2] if ok else images[-1].shape[:2]
        fps = float(capture.get(cv2.CAP_PROP_FPS) or 0.0)
    finally:
        capture.release()
    shown = shown_frames(path, n_frames)
    declared = n_frames if shown != n_frames else 0
    frames = Frames("video", path, shown, fps, width, height, deep=deep, declared=declared)
    return frames, images


def _codec(path: Path) -> str:
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    try:
        return int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("latin1").upper()
    finally:
        capture.release()


def partial_white(images: list[np.ndarray]) -> int:
    """The level of white of samples that fill only part of 16 bits; 0 where they fill their type.

    Left-aligned samples (the low bits always 0) fill it.
    """
    if images[0].dtype != np.uint16:
        return 0
    if not any((i % 257).any() for i in images):
        return 0  # 8 bits spread over 16
    top = max(int(i.max()) for i in images)
    bits = next((b for b in _DEPTHS if top < 1 << b), 16)
    return (1 << bits) - 1 if bits < 16 and top else 0


def _bytes_missing(path: Path) -> int:
    """Bytes an mp4/mov file lacks by its own box sizes; 0 for other containers or whole files."""
    if path.suffix.lower() not in (".mp4", ".mov", ".m4v"):
        return 0
    size, at, kinds = path.stat().st_size, 0, set()
    with path.open("rb") as f:
        while at + 8 <= size:
            f.seek(at)
            header = f.read(16)
            length, kind = struct.unpack(">I4s", header[:8])
            if length == 1 and len(header) == 16:
                (length,) = struct.unpack(">Q", header[8:])
            if length == 0:  # up to the end of the file
                length = size - at
            if length < 8 or not kind.isascii():
                return 0  # not boxes: let the decoder judge
            kinds.add(kind)
            at += length
    if b"ftyp" not in kinds:
        return 0
    return at - size if at > size else 0
