"""Items of `infer` that begin as one photo: background off, subject centred, views generated."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mouselift_jax.data.crop import apply_map
from mouselift_jax.data.head import face_box, face_square
from mouselift_jax.data.masks import clean_mask, mask_box, mask_centroid
from mouselift_jax.data.png import decode_png
from mouselift_jax.errors import (
    ConfigError,
    LayoutError,
    MissingExtraError,
    nearest,
    raise_all,
)
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.stages.generating import (
    check_generate,
    cut_out,
    make_generator,
    off_white,
    picture_side,
)
from mouselift_jax.stages.infer import Item, trained_size
from mouselift_jax.stages.workdir import contents, must_exist

log = logging.getLogger("mouselift_jax")

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
PLACES = ("animal", "face")  # how the subject is placed in the picture
BACKGROUNDS = ("auto", "alpha", "plain", "rembg")  # how the subject is found in it
FILL = 0.5  # of the side, where the training pictures' share is not known
PLAIN = 6.0  # levels: a border that varies less than this is a plain background


class FromImages:
    """Photos whose other views are generated.

    The photo's own camera is unknown. Its subject is centred as the training samples' was, scaled
    to fill the same share of the picture, and slot 0's camera of the rig is taken for it.
    """

    def __init__(self, config: Any, generator: Any = None, warn: Any = log.warning) -> None:
        path = must_exist(config.image, "image")
        check_generate(config.generate)
        for key, known in (("place", PLACES), ("background", BACKGROUNDS)):
            if config.generate[key] not in known:
                raise ConfigError(
                    f"no such {key}",
                    where=f"config.generate.{key}",
                    expected=" | ".join(known),
                    found=config.generate[key],
                    fix=nearest(config.generate[key], known),
                )
        files = photos(path)[: config.limit or None]
        if config.generate.place == "face":  # one that is missing costs no computing
            for photo in files:
                face_box(config.face_box, photo.name)
        if config.generate.background == "rembg" and find_spec("rembg") is None:
            raise MissingExtraError("rembg", "matte", "generate.background=rembg")
        self._files = {p.stem: p for p in files}
        self.ids = list(self._files)
        self.reads = [str(path), str(config.mvdiff)]
        self._config, self.generator, self._warn = config, generator, warn
        mvdiff = must_exist(config.mvdiff, "mvdiff")
        self._size = config.size or trained_size(config.gslrm) or picture_side(mvdiff)
        self.sides = (self._size,)

    def load(self, item_id: str) -> Item:
        """Generate the views of one photo."""
        config = self._config
        if self.generator is None:
            self.generator = make_generator(config, self._warn)
        made, photo = self.generator, self._files[item_id]
        seen = read_photo(photo)
        rgba, how = foreground(seen, config.generate.background, where=photo)
        if config.generate.place == "face":
            square, M = face_square(rgba, face_box(config.face_box, photo.name))
            square, M = _to_side(square, M, made.side)
            picture = square[..., :3]  # on white already, as the published recipe has it
            square = off_white(picture.astype(np.float32) / 255, square[..., 3])
        else:
            fill = config.generate.fill or self._share()
            square, M = centred(rgba, made.side, fill, by=made.subject_centre, where=photo)
            alpha = square[..., 3:].astype(np.float32) / 255
            picture = (square[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)
        views = made.views(picture, (_number(item_id),))
        out = cut_out(views, config.generate.white)
        if config.generate.keep_reference:
            out[0] = square
        images, masks = _on_white(out)
        images, masks, cameras = _sized(images, masks, made.rig.cameras, self._size)
        labels = [f"made {i}" for i in range(len(images))]  # with figures behind, and narrow
        if config.generate.keep_reference:
            labels[0] = "photo"
        about = {
            "photo": photo.name,
            "background": how,
            "picture_from_photo": M.tolist(),
            "cameras": made.note,
        }
        return Item(item_id, images, masks, cameras, labels, None, about, _flat(seen))

    def _share(self) -> float:
        """The subject's share of the side, as in the pictures the network was trained on."""
        known = self.generator.subject_share
        if known is None:
            self._warn(
                "the camera file does not say how large the animal was in the training pictures: "
                f"it is made to fill {FILL:g} of the side; say it with --config.generate.fill"
            )
        return known or FILL


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


def _to_side(square: np.ndarray, M: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of another size than the network's, resized with its pixel map.

    Its colours are on white: they are resized without regard to its alpha.
    """
    if square.shape[0] == side:
        return square, M
    scale = side / square.shape[0]
    return _resized(square, side), np.diag([scale, scale, 1.0]) @ M


def _number(name: str) -> int:
    """A seed that depends on the photo's name alone."""
    return int.from_bytes(name.encode()[-4:].rjust(4, b"\0"), "big") & 0x7FFFFFFF


def read_photo(path: Path) -> np.ndarray:
    """A photo [H,W,3 or 4] uint8, RGB, upright; grey, CMYK and 16-bit ones become that.

    Raises:
        LayoutError: not a picture, or a damaged or far too large one.
    """
    data = np.frombuffer(path.read_bytes(), np.uint8)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
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


def _flat(image: np.ndarray) -> np.ndarray:
    """A photo [H,W,3 or 4] uint8 on white."""
    if image.shape[-1] == 3:
        return image
    return (_on_white(image[None])[0][0] * 255 + 0.5).astype(np.uint8)


def _on_white(rgba: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from mouselift_jax.data.loader import composite

    return composite(rgba, np.ones(3, np.float32))


def _sized(
    images: np.ndarray, masks: np.ndarray, cameras: Camera, size: int
) -> tuple[np.ndarray, np.ndarray, Camera]:
    """Views, masks and cameras at the lifting network's size."""
    if images.shape[1] == size:
        return images, masks, cameras
    both = np.concatenate([images, masks], axis=-1)
    small = np.stack([_resized(x, size) for x in both])
    return small[..., :3], small[..., 3:], cameras.resized(size, size)[0]


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    """Four channels resized, the last by itself: colours are not weighed by it."""
    from mouselift_jax.data.crop import resize

    stand_in = Camera(np.eye(3), np.eye(4), image.shape[1], image.shape[0])
    rgb, _ = resize(np.ascontiguousarray(image[..., :3]), stand_in, size, size)
    mask, _ = resize(np.ascontiguousarray(image[..., 3]), stand_in, size, size)
    return np.dstack([rgb, mask])
