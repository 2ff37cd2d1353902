"""Pictures of a batch: composed on a background, resized with their cameras, augmented."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from mouselift_jax.data.crop import resize
from mouselift_jax.errors import ConfigError, one_of
from mouselift_jax.geometry.camera import Camera

BACKGROUNDS = ("white", "black", "gray", "random", "three_choices")


_FIXED = {"white": 1.0, "black": 0.0, "gray": 0.5}


@dataclasses.dataclass(frozen=True)
class Augment:
    """Changes of training samples that keep cameras true; all views of a sample change alike.

    Attributes:
        brightness: the animal's colours are multiplied by a factor in 1 +- this.
        contrast: their distance to their mean likewise.
        hflip: probability of mirroring pictures, cameras and with them the world (x -> -x).
    """

    brightness: float = 0.0
    contrast: float = 0.0
    hflip: float = 0.0


def composite(
    rgba: np.ndarray,
    background: np.ndarray,
    images: np.ndarray | None = None,
    masks: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Straight-alpha pictures on a colour.

    Args:
        rgba: [*B,H,W,4] uint8.
        background: [3] in [0,1].
        images: [*B,H,W,3] float32 to write into; None makes a new array.
        masks: [*B,H,W,1] float32, likewise.

    Returns:
        Images and masks, float32 in [0,1].
    """
    images = np.empty(rgba.shape[:-1] + (3,), np.float32) if images is None else images
    masks = np.empty(rgba.shape[:-1] + (1,), np.float32) if masks is None else masks
    height, width = rgba.shape[-3:-1]
    row = np.tile(np.asarray(background, np.float32), (width, 1))
    scale = np.float32(1 / 255)
    for index in np.ndindex(rgba.shape[:-3]):
        picture, image = rgba[index], images[index]
        alpha = cv2.extractChannel(picture, 3)
        np.multiply(alpha, scale, out=masks[index][..., 0], dtype=np.float32)
        image[:] = row  # whole rows at once: filling pixel by pixel is several times slower
        # Most of a cut-out is empty: only the box around the animal is blended.
        x, y, w, h = cv2.boundingRect(alpha)
        if w and h:
            box = (slice(y, y + h), slice(x, x + w))
            m = masks[index][box]
            color = cv2.cvtColor(picture[box], cv2.COLOR_RGBA2RGB).astype(np.float32)
            weight = cv2.merge((m, m, m))
            image[box] += weight * (color * scale - image[box])
    return images, masks


def background_color(background: str | float, rng: np.random.Generator) -> np.ndarray:
    """The colour [3] float32 a background setting means for one sample."""
    if background == "random":
        return rng.random(3, np.float32)
    if background == "three_choices":
        return np.full(3, rng.choice([1.0, 0.0, 0.5]), np.float32)
    value = _FIXED.get(background, background) if isinstance(background, str) else background
    return np.full(3, value, np.float32)


def _check_background(background: str | float) -> None:
    if isinstance(background, str):
        one_of(background, BACKGROUNDS, "no such background")
    elif not 0.0 <= background <= 1.0:
        raise ConfigError(
            "a grey background lies in [0,1]", found=background, fix="0 is black, 1 is white"
        )


def resized(
    images: np.ndarray, cameras: Camera | None, size: int | None
) -> tuple[np.ndarray, Camera | None]:
    """Square pictures [V,H,W,C] and their cameras at `size` pixels; None keeps them."""
    if size is None or images.shape[1:3] == (size, size):
        return images, cameras
    if images.shape[1] != images.shape[2]:
        raise ConfigError(
            "pictures that are not square cannot be resized to a square",
            found=f"{images.shape[2]} x {images.shape[1]}",
            fix="prepare square pictures, or leave size unset",
        )
    # Pictures know nothing of their cameras here: one stand-in per picture keeps `crop` the only
    # place that resamples, and the true cameras are resized beside it.
    stand_in = Camera(np.eye(3), np.eye(4), images.shape[2], images.shape[1])
    small = np.stack([resize(im, stand_in, size, size)[0] for im in images])
    return small, None if cameras is None else cameras.resized(size, size)[0]


def augmented(
    images: np.ndarray, cameras: Camera | None, augment: Augment, rng: np.random.Generator
) -> tuple[np.ndarray, Camera | None]:
    """All views [V,H,W,4] of a sample changed alike, with their cameras."""
    b, c, f = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.random()  # drawn always: one stream
    if augment.brightness or augment.contrast:
        images = _recolored(images, 1 + b * augment.brightness, 1 + c * augment.contrast)
    if f < augment.hflip:
        images = np.ascontiguousarray(images[:, :, ::-1])
        cameras = None if cameras is None else cameras.flipped()[0]
    return images, cameras


def _recolored(images: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Brightness, then contrast about the animal's mean level, by one table for all its pixels."""
    inside = images[..., 3] > 127
    mean = float(images[..., :3][inside].mean()) * brightness if inside.any() else 0.0
    levels = np.arange(256) * brightness
    table = np.clip((levels - mean) * contrast + mean + 0.5, 0, 255).astype(np.uint8)
    out = images.copy()
    out[..., :3] = np.where(images[..., 3:] > 0, table[images[..., :3]], 0)
    return out
