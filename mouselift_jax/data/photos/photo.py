"""One photo: found, read, its subject cut out and centred."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np

from mouselift_jax.data.crop import apply_map
from mouselift_jax.data.inputs import contents
from mouselift_jax.data.masks import clean_mask, mask_box, mask_centroid
from mouselift_jax.data.png import decode_png
from mouselift_jax.data.recordings.mask_levels import to_bytes
from mouselift_jax.data.recordings.probe import partial_white
from mouselift_jax.errors import LayoutError, raise_all

log = logging.getLogger("mouselift_jax")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


BACKGROUNDS = ("auto", "alpha", "plain", "rembg")  # how the subject is found in it


PLAIN = 6.0  # levels: a border that varies less than this is a plain background


def photos(path: Path) -> list[Path]:
    """The photo, or the photos of a folder in order.

    Raises:
        LayoutError: there are none, some are no pictures, or two could not be told apart.
    """
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES)
    if not files:
        raise LayoutError(
            "no photos here",
            where=path,
            expected=f"files {', '.join(SUFFIXES)}",
            found=contents(path),
            fix="--config.image=FILE, or a folder of such files",
        )
    problems = [
        LayoutError(
            "not a picture", where=p, expected=", ".join(SUFFIXES), fix="convert it to PNG or JPEG"
        )
        for p in files
        if not cv2.haveImageReader(str(p))
    ]
    by_name: dict[str, Path] = {}
    for p in files:
        other = by_name.setdefault(p.stem, p)
        if other is not p:
            problems.append(
                LayoutError(
                    "two photos have the same name",
                    where=path,
                    found=f"{other.name} and {p.name}",
                    fix="rename one: each photo's results go to items/<name>/",
                )
            )
    raise_all("the photos cannot be used", problems)
    return files


def read_photo(path: Path) -> np.ndarray:
    """A photo [H,W,3 or 4] uint8, RGB, upright; grey, CMYK and 10- to 16-bit ones become that.

    Raises:
        LayoutError: not a picture, or a damaged or far too large one.
    """
    data = np.frombuffer(path.read_bytes(), np.uint8)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
        white = 0 if image is None else partial_white([image])
        if white:
            log.info("%s: %d bits in 16, %d is white", path, white.bit_length(), white)
            return _rgb(to_bytes(image, white))
        if image is not None and image.ndim == 3 and image.shape[2] == 4:
            return decode_png(data, path)  # whatever the format: alpha is kept
        if image is not None:  # turned as EXIF says, 8 bit, three channels
            image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:  # more pixels than OpenCV reads
        raise LayoutError(
            "the picture cannot be read", where=path, found=error.err, fix="make it smaller"
        ) from error
    if image is None:
        raise LayoutError(
            "not a picture",
            where=path,
            expected=f"a whole file of {', '.join(SUFFIXES)}",
            found=f"{data.size} bytes that do not decode",
            fix="convert it to PNG or JPEG",
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _rgb(image: np.ndarray) -> np.ndarray:
    """OpenCV's grey, BGR or BGRA picture as RGB or RGBA."""
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    alpha = image.shape[2] == 4
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if alpha else cv2.COLOR_BGR2RGB)


def foreground(
    image: np.ndarray, how: str = "auto", *, where: Path | None = None
) -> tuple[np.ndarray, str]:
    """The subject as RGBA, and the way it was found.

    Args:
        image: [H,W,3 or 4] uint8.
        how: auto | alpha | plain | rembg. auto: the alpha channel where it says something, else a
            plain background's colour; anything else needs rembg, which must be asked for.
        where: file of the photo, for errors.

    Raises:
        LayoutError: there is no alpha and the background is not plain.
    """
    has_alpha = image.shape[-1] == 4 and image[..., 3].min() < 255
    if how == "alpha" or (how == "auto" and has_alpha):
        if not has_alpha:
            raise LayoutError(
                "the photo has no alpha channel",
                where=where,
                fix="--config.generate.background=auto",
            )
        return image, "alpha"
    rgb = np.ascontiguousarray(image[..., :3])
    if how == "rembg":
        return np.dstack([rgb, _rembg(rgb)]), "rembg"
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]]).astype(np.float64)
    color = np.median(border, axis=0)
    off = np.abs(border - color).max(-1)
    if np.mean(off > 4 * PLAIN) > 0.05:
        raise LayoutError(
            "the photo's background is not plain, and it has no alpha channel",
            where=where,
            found=f"{np.mean(off > 4 * PLAIN):.0%} of the border differs from its median colour",
            fix="cut the animal out (a PNG with alpha), or --config.generate.background=rembg "
            "(pip install -e '.[matte]')",
        )
    apart = np.abs(rgb - color).max(-1)
    alpha = np.clip((apart - PLAIN) / (2 * PLAIN), 0, 1)
    return np.dstack([rgb, clean_mask((alpha * 255 + 0.5).astype(np.uint8), 0.05)]), "plain"


def _rembg(rgb: np.ndarray) -> np.ndarray:
    import rembg

    return np.asarray(rembg.remove(rgb, only_mask=True), np.uint8)


def centred(
    rgba: np.ndarray, side: int, fill: float, *, by: str = "box", where: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The subject in the middle of a square, its longer side `fill` of it; and the pixel map.

    Args:
        rgba: [H,W,4] uint8.
        side: pixels along a side of the square.
        fill: share of it.
        by: box | centroid: what of the silhouette comes to the middle.
        where: file of the photo, for errors.

    Raises:
        LayoutError: there is no subject.
    """
    alpha = np.ascontiguousarray(rgba[..., 3])
    x0, y0, x1, y1 = box = mask_box(alpha)
    if x1 <= x0:
        raise LayoutError(
            "no subject was found in the photo",
            where=where,
            fix="cut it out: a PNG with an alpha channel",
        )
    scale = fill * side / max(x1 - x0, y1 - y0)
    middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    if by == "centroid":
        middle = mask_centroid(alpha, box)[0]
    M = np.eye(3)
    M[0, 0] = M[1, 1] = scale
    M[:2, 2] = side / 2 - scale * middle
    return apply_map(rgba, M, side, side), M
