"""Cutting a subject out of a nearly white picture."""

from __future__ import annotations

import numpy as np

from mouselift_jax.data.masks import clean_mask


def matte(views: np.ndarray, white: float) -> np.ndarray:
    """Alpha [V,H,W] uint8 of views on white: what is not nearly white, without specks and holes.

    A ramp of 1/16 below the threshold keeps edges soft.
    """
    darkest = np.asarray(views, np.float32).min(axis=-1)
    alpha = np.clip((white + 1 / 32 - darkest) * 16, 0, 1)
    return np.stack([clean_mask((a * 255 + 0.5).astype(np.uint8), 0.05) for a in alpha])


def cut_out(views: np.ndarray, white: float) -> np.ndarray:
    """Views on white [V,H,W,3] in [0,1] -> RGBA uint8, colour cleared where alpha is 0."""
    return off_white(views, matte(views, white))


def off_white(pictures: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Pictures on white [*B,H,W,3] in [0,1] and their alpha [*B,H,W] uint8 -> RGBA uint8.

    Straight alpha: the white that shows through a soft edge is undone; colour 0 where alpha is 0.
    """
    a = alpha[..., None].astype(np.float32) / 255
    rgb = np.where(a > 0, (np.asarray(pictures, np.float32) - (1 - a)) / np.maximum(a, 1 / 255), 0)
    rgb = (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.concatenate([np.where(alpha[..., None] > 0, rgb, 0), alpha[..., None]], axis=-1)
