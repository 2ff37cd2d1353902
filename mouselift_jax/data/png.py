"""PNG files of cut-out animals, written fast and read back exactly.

Most of such a picture is empty. The general encoder filters and compresses every row; this one
compresses only the rows that hold anything and splices in the compressed form of empty rows. Any
reader opens the result; `decode_png` reads every PNG, JPEG, ... OpenCV reads.
"""

from __future__ import annotations

import functools
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

from mouselift_jax.errors import LayoutError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LEVEL = 1  # zlib level: higher ones cost far more time than they save bytes on such pictures


def encode_png(image: np.ndarray) -> bytes:
    """A picture [H,W,3] or [H,W,4], uint8 RGB(A), as PNG."""
    height, width, channels = image.shape
    rows = np.flatnonzero(image.reshape(height, -1).max(axis=1))
    top, bottom = (rows[0], rows[-1] + 1) if len(rows) else (0, 0)
    middle = _filtered(np.ascontiguousarray(image[top:bottom]))
    raw_row = width * channels + 1
    # After the filter the only long matches are runs of zeros: run-length matching alone is the
    # fastest strategy and, on cut-outs, gives the smallest files as well.
    deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
    body = deflate.compress(middle) + deflate.flush(zlib.Z_FULL_FLUSH)
    above, below = _empty_rows(raw_row, int(top)), _empty_rows(raw_row, int(height - bottom))
    check = zlib.adler32(middle, _adler_of_zeros(raw_row * int(top), 1))
    check = _adler_of_zeros(raw_row * int(height - bottom), check)
    end = b"\x03\x00"  # an empty final block
    data = b"\x78\x01" + above + body + below + end + struct.pack(">I", check)
    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def decode_png(data: bytes | np.ndarray, where: object = None) -> np.ndarray:
    """A picture file's content as uint8 [H,W,3] RGB or [H,W,4] RGBA (grey becomes RGB)."""
    data = _without_exif(bytes(data))
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if image is None:
        raise LayoutError(
            "a picture cannot be read",
            where=where,
            expected="a whole PNG file",
            found=f"{len(data)} bytes that do not decode",
            fix="delete the sample's folder and run the command that made it again",
        )
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    code = cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(image, code)


def read_picture(path: str | Path) -> np.ndarray:
    """Read a picture file as uint8 RGB or RGBA; a missing or damaged one is a `LayoutError`."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise LayoutError(
            "a picture is missing", where=path, fix="run the command that writes the set again"
        ) from None
    return decode_png(data, path)


def _filtered(image: np.ndarray) -> bytes:
    """Rows with PNG's filter 1 (difference to the pixel on the left), each with its filter byte."""
    height, width, channels = image.shape
    out = np.empty((height, width * channels + 1), np.uint8)
    out[:, 0] = 1
    flat = image.reshape(height, width * channels)
    out[:, 1 : channels + 1] = flat[:, :channels]
    np.subtract(flat[:, channels:], flat[:, :-channels], out=out[:, channels + 1 :])
    return out.tobytes()


@functools.lru_cache(maxsize=4096)
def _empty_rows(raw_row: int, n: int) -> bytes:
    """Compressed form of n empty rows, ended so that another block can follow."""
    if n == 0:
        return b""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(bytes(raw_row * n)) + deflate.flush(zlib.Z_FULL_FLUSH)


def _adler_of_zeros(n: int, start: int) -> int:
    """Adler-32 of n zero bytes appended to data whose checksum is `start`."""
    a, b = start & 0xFFFF, start >> 16
    return ((b + n * a) % 65521) << 16 | a


def _without_exif(data: bytes) -> bytes:
    """The file without eXIf chunks: some exporters write two, and libpng complains about each."""
    if not data.startswith(SIGNATURE) or b"eXIf" not in data:
        return data
    parts, at = [SIGNATURE], len(SIGNATURE)
    while at + 8 <= len(data):
        size = struct.unpack_from(">I", data, at)[0] + 12
        if data[at + 4 : at + 8] != b"eXIf":
            parts.append(data[at : at + size])
        at += size
    return b"".join(parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
    )
