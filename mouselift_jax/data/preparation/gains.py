"""One brightness and colour of the animal in all cameras."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from mouselift_jax.errors import LayoutError

GAIN_FRAMES = 4
GAIN_LIMITS = (0.5, 2.0)


def measure_gains(
    seen: Iterable[tuple[Sequence[np.ndarray], Sequence[np.ndarray]]], where: Path
) -> np.ndarray:
    """Factor per camera and RGB channel [V,3] that brings the animal's colour to the median.

    Args:
        seen: pictures BGR [H,W,3] and masks [H,W] of all cameras, of some instants.
        where: the recording, for messages.

    Raises:
        LayoutError: there is no instant.
    """
    means = [
        [cv2.mean(p, (a > 200).astype(np.uint8))[:3] for p, a in zip(*both, strict=True)]
        for both in seen
    ]
    if not means:
        raise LayoutError(
            "no frame to measure the cameras' gains on",
            where=where,
            fix="--config.prepare.match_gain=False, or begin where the animal is in all views",
        )
    level = np.mean(means, axis=0)
    gains = np.clip(np.median(level, axis=0) / np.maximum(level, 1.0), *GAIN_LIMITS)
    return gains[:, ::-1]  # OpenCV measured BGR


def matched(rgba: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """A cut-out [H,W,4] uint8 with its colours times a gain [3]."""
    levels = np.arange(256)[:, None] * gain
    table = np.clip(levels + 0.5, 0, 255).astype(np.uint8)  # 0 stays 0: cleared colours too
    table = np.concatenate([table, np.arange(256, dtype=np.uint8)[:, None]], axis=1)
    return cv2.LUT(rgba, table[:, None, :])
