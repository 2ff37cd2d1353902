"""How good a render is: PSNR, SSIM, silhouette IoU. Figures of each picture, for evaluation.

Pictures are [*B,H,W,C] in [0,1]; masks and opacities [*B,H,W,1], subject above 0.5.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mouselift_jax.training.losses import SSIM_WINDOW, ssim_map

PSNR_CAP = 100.0  # dB, of identical pictures
SPECK = 0.25  # error of a pixel that is seen at once
_PICTURE = (-3, -2, -1)


def psnr(a: Float[Array, "*B H W C"], b: Float[Array, "*B H W C"]) -> Float[Array, "*B"]:
    """Peak signal-to-noise ratio in dB of pictures clipped to [0,1]."""
    return _decibel(jnp.mean(jnp.square(jnp.clip(a, 0, 1) - jnp.clip(b, 0, 1)), _PICTURE))


def masked_psnr(
    a: Float[Array, "*B H W C"], b: Float[Array, "*B H W C"], mask: Float[Array, "*B H W 1"]
) -> Float[Array, "*B"]:
    """PSNR over the pixels of a mask; NaN where the mask is empty."""
    inside = (mask > 0.5).astype(a.dtype)
    square = jnp.square(jnp.clip(a, 0, 1) - jnp.clip(b, 0, 1)) * inside
    n = inside.sum(_PICTURE)
    mse = square.sum(_PICTURE) / (a.shape[-1] * jnp.maximum(n, 1.0))
    return jnp.where(n > 0, _decibel(mse), jnp.nan)


class Interior(NamedTuple):
    """Fidelity inside the subject, away from its outline; each [*B].

    Attributes:
        psnr: dB of the render; NaN where no pixel is left.
        mean_color_psnr: dB of painting all those pixels in their true mean colour: the figure a
            model must beat to have learned any texture.
        n_pixels: pixels counted.
    """

    psnr: Array
    mean_color_psnr: Array
    n_pixels: Array


def interior_psnr(
    image: Float[Array, "*B H W C"],
    alpha: Float[Array, "*B H W 1"],
    target: Float[Array, "*B H W C"],
    mask: Float[Array, "*B H W 1"],
    margin: int = 2,
) -> Interior:
    """PSNR over the pixels that are subject in both pictures, `margin` px from either outline.

    Silhouettes have their own figure (`mask_iou`); this one speaks of colour alone.

    Args:
        image: render.
        alpha: rendered opacity.
        target: true picture.
        mask: true mask.
        margin: a pixel counts when all pixels within this many rows and columns are subject too.
    """
    inside = interior(alpha, margin) * interior(mask, margin)
    n = inside.sum(_PICTURE, keepdims=True)
    mean = (jnp.clip(target, 0, 1) * inside).sum((-3, -2), keepdims=True) / jnp.maximum(n, 1.0)
    flat = jnp.broadcast_to(mean, target.shape)
    return Interior(
        masked_psnr(image, target, inside), masked_psnr(flat, target, inside), n[..., 0, 0, 0]
    )


def interior(mask: Float[Array, "*B H W 1"], margin: int) -> Float[Array, "*B H W 1"]:
    """The mask without a rim of `margin` pixels, as 0 or 1; the picture's edge is no outline."""
    inside = (mask > 0.5).astype(jnp.float32)
    size = 2 * margin + 1
    window = (1,) * (inside.ndim - 3) + (size, size, 1)
    return jax.lax.reduce_window(inside, jnp.inf, jax.lax.min, window, (1,) * inside.ndim, "SAME")


def figures(
    rgb: Float[Array, "*B H W 3"],
    alpha: Float[Array, "*B H W 1"],
    image: Float[Array, "*B H W 3"],
    mask: Float[Array, "*B H W 1"],
) -> dict[str, Array]:
    """Every figure of a render, each [*B]: the names are those of the functions and of Interior."""
    inside = interior_psnr(rgb, alpha, image, mask)
    return {
        "psnr": psnr(rgb, image),
        "ssim": ssim(rgb, image),
        "iou": mask_iou(alpha, mask),
        "interior_psnr": inside.psnr,
        "mean_color_psnr": inside.mean_color_psnr,
        "specks": specks(rgb, alpha, image, mask),
    }


def specks(
    image: Float[Array, "*B H W C"],
    alpha: Float[Array, "*B H W 1"],
    target: Float[Array, "*B H W C"],
    mask: Float[Array, "*B H W 1"],
    margin: int = 2,
) -> Float[Array, "*B"]:
    """Share of the interior's pixels that are off by more than SPECK in any channel; NaN of none.

    Arguments as those of `interior_psnr`.
    """
    inside = interior(alpha, margin) * interior(mask, margin)
    off = jnp.abs(jnp.clip(image, 0, 1) - target).max(-1, keepdims=True) > SPECK
    n = inside.sum(_PICTURE)
    return jnp.where(n > 0, (off * inside).sum(_PICTURE) / jnp.maximum(n, 1.0), jnp.nan)


def mask_iou(a: Float[Array, "*B H W 1"], b: Float[Array, "*B H W 1"]) -> Float[Array, "*B"]:
    """Intersection over union of two silhouettes; 1 where both are empty."""
    a, b = a > 0.5, b > 0.5
    union = (a | b).sum(_PICTURE)
    return jnp.where(union > 0, (a & b).sum(_PICTURE) / jnp.maximum(union, 1), 1.0)


def ssim(a: Float[Array, "*B H W C"], b: Float[Array, "*B H W C"]) -> Float[Array, "*B"]:
    """Structural similarity as scikit-image reports it: sample covariance, 5 px border left out."""
    n = SSIM_WINDOW**2
    return ssim_map(a, b, covariance_scale=n / (n - 1)).mean(_PICTURE)


def _decibel(mse: Array) -> Array:
    return -10 * jnp.log10(jnp.maximum(mse, 10 ** (-PSNR_CAP / 10)))
