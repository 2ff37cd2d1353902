"""Items of `infer` that begin as one photo: background off, subject centred, views generated."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.inputs import must_exist
from mouselift_jax.data.photos.cutout import cut_out, off_white
from mouselift_jax.data.photos.face import face_box, face_square
from mouselift_jax.data.photos.photo import BACKGROUNDS, centred, foreground, photos, read_photo
from mouselift_jax.data.samples.rig_file import load_rig, rig_words
from mouselift_jax.errors import MissingExtraError, one_of
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.stages.items.item import Item, trained_size
from mouselift_jax.stages.multiview.generator import check_generate, make_generator, picture_side

log = logging.getLogger("mouselift_jax")

PLACES = ("animal", "face")  # how the subject is placed in the picture
FILL = 0.5  # of the side, where the training pictures' share is not known


class FromImages:
    """Photos whose other views are generated.

    The photo's own camera is unknown. Its subject is centred as the training samples' was, scaled
    to fill the same share of the picture, and slot 0's camera of the rig is taken for it.
    """

    def __init__(self, config: Any, generator: Any = None, warn: Any = log.warning) -> None:
        path = must_exist(config.image, "image")
        check_generate(config.generate)
        for key, known in (("place", PLACES), ("background", BACKGROUNDS)):
            one_of(config.generate[key], known, f"no such {key}", where=f"config.generate.{key}")
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

    @property
    def words(self) -> str:
        """Which rig the generated views show, for the report."""
        config = self._config
        rig, _ = load_rig(config.cameras or Path(config.mvdiff) / "cameras.json")
        return f"Views were generated as {rig_words(rig)} sees the animal. "

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


def _flat(image: np.ndarray) -> np.ndarray:
    """A photo [H,W,3 or 4] uint8 on white."""
    if image.shape[-1] == 3:
        return image
    return (_on_white(image[None])[0][0] * 255 + 0.5).astype(np.uint8)


def _on_white(rgba: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from mouselift_jax.data.batches.pictures import composite

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
