"""A look at one video or one folder of pictures: openable, whole, how many, how large."""

from __future__ import annotations

import struct
from pathlib import Path

from mouselift_jax.data.readers import natural_key
from mouselift_jax.data.recording import Frames
from mouselift_jax.errors import LayoutError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of a folder with these endings, 2 before 10; none if there is no folder."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.name[0] != "."]
    return sorted(found, key=lambda p: natural_key(p.name))


def probe(path: Path) -> Frames:
    """Size, frame count and rate of a video or a folder of pictures, from headers and one frame.

    Raises:
        LayoutError: it cannot be opened, is cut short, or holds no frame.
    """
    import cv2

    if path.is_dir():
        files = tuple(list_files(path, PICTURE_SUFFIXES))
        image = cv2.imread(str(files[0]), cv2.IMREAD_UNCHANGED) if files else None
        if image is None:
            raise LayoutError("cannot read the pictures", where=path, fix="export them again")
        height, width = image.shape[:2]
        alpha = image.ndim == 3 and image.shape[2] == 4
        return Frames("folder", path, len(files), 0.0, width, height, files, alpha)
    fix = "copy or export the video again"
    missing = _bytes_missing(path)
    if missing:
        raise LayoutError(
            "the video is cut short", where=path, found=f"{missing} bytes missing", fix=fix
        )
    capture = cv2.VideoCapture(str(path))
    try:
        n_frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        ok, frame = capture.read() if n_frames > 0 else (False, None)
        if not ok:
            raise LayoutError(
                "the video cannot be decoded",
                where=path,
                found=f"{path.stat().st_size} bytes, {max(n_frames, 0)} frames declared",
                fix=fix,
            )
        height, width = frame.shape[:2]
        fps = float(capture.get(cv2.CAP_PROP_FPS) or 0.0)
    finally:
        capture.release()
    return Frames("video", path, n_frames, fps, width, height)


def dim_masks(frames: Frames, look_at: int = 4) -> tuple[int, int] | None:
    """(brightest level, white) of mask pictures that would all count as empty; None if they do not.

    Tools that save masks as 0 and 1 are common, and so are 16-bit files that hold 0 and 255.

    Args:
        frames: the mask pictures; videos are not looked at.
        look_at: pictures to read, evenly spread.
    """
    import cv2
    import numpy as np

    brightest, white = 0, 255
    for i in np.unique(np.linspace(0, len(frames.files) - 1, look_at).astype(int)):
        image = cv2.imread(str(frames.files[i]), cv2.IMREAD_UNCHANGED) if frames.files else None
        if image is not None:
            brightest = max(brightest, int(image.max()))
            white = 65535 if image.dtype == np.uint16 else 255
    return (brightest, white) if 0 < brightest < white // 4 else None


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
