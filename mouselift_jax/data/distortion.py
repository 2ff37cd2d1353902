"""Lens distortion, applied once: between pinhole pixels and the pixels of a raw picture.

Coefficients are OpenCV's (k1, k2, p1, p2, k3, ...). A `Recording` with `distortion[v]` set has raw
pictures; whoever resamples them looks up raw pixel `distort_pixels(xy, ...)` for pinhole pixel xy.
Keypoints were freed of distortion when they were read.
"""

from __future__ import annotations

import numpy as np

_ITERATIONS = 40  # each shrinks the error at least by half for usable lenses


def distort_pixels(xy: np.ndarray, K: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Raw pixels [...,2] that show what a pinhole camera K sees at pixels xy [...,2]."""
    import cv2

    # OpenCV ignores K's skew, so it is given normalised coordinates and K is applied here.
    points = np.concatenate([_normalised(xy, K), np.ones((np.size(xy) // 2, 1))], -1)
    eye = np.eye(3)
    out, _ = cv2.projectPoints(points[:, None], np.zeros(3), np.zeros(3), eye, coefficients)
    return _to_pixels(out.reshape(-1, 2), K).reshape(np.shape(xy))


def undistort_pixels(xy: np.ndarray, K: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Pinhole pixels [...,2] of raw pixels xy [...,2]; NaN stays NaN."""
    raw = np.asarray(xy, np.float64)
    out = raw.copy()
    for _ in range(_ITERATIONS):  # a fixed point: distortion moves a pixel little
        out = out - (distort_pixels(np.where(np.isfinite(out), out, 0.0), K, coefficients) - raw)
    return out


def _normalised(xy: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Pixels [...,2] as camera x/z, y/z [n,2]."""
    K = np.asarray(K, np.float64)
    flat = np.asarray(xy, np.float64).reshape(-1, 2)
    return (flat - K[:2, 2]) @ np.linalg.inv(K[:2, :2]).T


def _to_pixels(normalised: np.ndarray, K: np.ndarray) -> np.ndarray:
    K = np.asarray(K, np.float64)
    return normalised @ K[:2, :2].T + K[:2, 2]
