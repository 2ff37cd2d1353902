"""Pictures as CLIP's image encoder wants them, in the two ways of the original.

At inference pictures pass through PIL in 8 bits; in training they are resized as floats. The two
differ by up to 2/255, and each network input is made as the original made it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.errors import ConfigError, ShapeError


@dataclasses.dataclass(frozen=True)
class ClipPixels:
    """Size and statistics of the image encoder's input."""

    size: int = 224
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def from_source(cls, source: Mapping[str, Any]) -> ClipPixels:
        """From transformers' `preprocessor_config.json`.

        Raises:
            ConfigError: resized and cropped sizes differ.
        """
        size, crop = _side(source.get("size", 224)), _side(source.get("crop_size", 224))
        if size != crop:
            raise ConfigError(
                "Resizing and cropping to different sizes is not implemented",
                where="feature_extractor/preprocessor_config.json",
                expected=size,
                found=crop,
                fix="give a pipeline whose size and crop_size are equal",
            )
        default = cls()
        mean = tuple(source.get("image_mean", default.mean))
        return cls(size, mean, tuple(source.get("image_std", default.std)))

    def to_source(self) -> dict[str, Any]:
        """The same in transformers' words."""
        return {
            "do_resize": True,
            "size": {"shortest_edge": self.size},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": self.size, "width": self.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
        }


def _side(value: int | Mapping[str, int]) -> int:
    if isinstance(value, Mapping):
        return int(value.get("shortest_edge", value.get("height", 224)))
    return int(value)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """8-bit picture of a uint8 or [0,1] one; floats are truncated, as the original does.

    Raises:
        ShapeError: not a picture, or values outside [0,1].
    """
    image = np.asarray(image)
    if image.ndim < 3 or image.shape[-1] != 3:
        raise ShapeError(
            "Not a picture",
            expected="[...,H,W,3]",
            found=list(image.shape),
            fix="RGB, channels last, composited on white",
        )
    if image.dtype == np.uint8:
        return image
    image = image.astype(np.float32)
    if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
        raise ShapeError(
            "A float picture has values outside [0,1]",
            found=f"{image.min():.3g} to {image.max():.3g}",
            fix="divide by 255, or pass uint8",
        )
    # A float that came from 8 bits must come back to them: v / 255 * 255 may fall below v.
    return (image * 255 + 1e-4).astype(np.uint8)


def clip_pixels(image: np.ndarray, config: ClipPixels) -> np.ndarray:
    """One 8-bit picture [H,W,3] as the image encoder's input [s,s,3], through PIL."""
    from PIL import Image

    height, width = image.shape[:2]
    scale = config.size / min(height, width)
    # transformers truncates the longer side
    size = (
        (config.size, int(height * scale)) if width <= height else (int(width * scale), config.size)
    )
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - config.size) // 2, (size[1] - config.size) // 2
    picture = picture.crop((left, top, left + config.size, top + config.size))
    return normalize(np.asarray(picture, np.float32) / 255, config)


def clip_pixels_float(images: jax.Array, config: ClipPixels) -> jax.Array:
    """Pictures [N,H,W,3] in [0,1] as the image encoder's input in training: float, no crop."""
    shape = (images.shape[0], config.size, config.size, 3)
    return normalize(jax.image.resize(images, shape, "bicubic", antialias=True), config)


def normalize(images: Any, config: ClipPixels) -> Any:
    """Subtract the mean, divide by the deviation, channel by channel."""
    mean, std = (_constants(v, images) for v in (config.mean, config.std))
    return (images - mean) / std


def _constants(values: Sequence[float], like: Any) -> Any:
    return (np if isinstance(like, np.ndarray) else jnp).asarray(values, np.float32)
