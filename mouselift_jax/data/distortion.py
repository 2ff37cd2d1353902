"""Lens distortion, applied once: between pinhole pixels and the pixels of a raw picture.

A lens is OpenCV's coefficients (k1, k2, p1, p2, k3, ...) as an array, or a `Fisheye`. A `Recording`
with `distortion[v]` set has raw pictures; whoever resamples them looks up raw pixel
`distort_pixels(xy, ...)` for pinhole pixel xy. Keypoints were freed of distortion when read.
"""

from __future__ import annotations

import dataclasses

import numpy as np

_ITERATIONS = 40  # each shrinks the error at least by half for usable lenses


@dataclasses.dataclass(frozen=True)
class Fisheye:
    """OpenCV's fisheye model (cv2.fisheye; Kannala-Brandt, "equidistant").

    A ray at angle t from the axis lands at t (1 + k1 t^2 + k2 t^4 + k3 t^6 + k4 t^8) focal lengths
    from the principal point. Without coefficients it is still no pinhole camera.

    Attributes:
        coefficients: k1, k2, k3, k4 [4].
    """

    coefficients: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficients", np.asarray(self.coefficients, np.float64))

    def bend(self, theta: np.ndarray) -> np.ndarray:
        """Distances from the principal point, in focal lengths, of rays at angles theta [...]."""
        k, t2 = self.coefficients, theta**2
        return theta * (1 + t2 * (k[0] + t2 * (k[1] + t2 * (k[2] + t2 * k[3]))))

    def unbend(self, radius: np.ndarray) -> np.ndarray:
        """Angles [...] in [0, pi/2) of distances [...]; NaN where no ray before the lens lands."""
        low, high = np.zeros_like(radius), np.full_like(radius, self._reach())
        beyond = radius >= self.bend(high)
        for _ in range(60):  # bisection: sure, and exact to the last bit
            middle = (low + high) / 2
            less = self.bend(middle) < radius
            low, high = np.where(less, middle, low), np.where(less, high, middle)
        return np.where(beyond, np.nan, (low + high) / 2)

    def _reach(self) -> float:
        """The largest angle below a right angle up to which the distances grow."""
        theta = np.linspace(0, np.pi / 2, 2049)[:-1]
        falls = np.flatnonzero(np.diff(self.bend(theta)) <= 0)
        return float(theta[falls[0]] if len(falls) else theta[-1])


Lens = np.ndarray | Fisheye


def distort_pixels(xy: np.ndarray, K: np.ndarray, lens: Lens) -> np.ndarray:
    """Raw pixels [...,2] that show what a pinhole camera K sees at pixels xy [...,2]."""
    points = _normalised(xy, K)
    if isinstance(lens, Fisheye):
        radius = np.linalg.norm(points, axis=-1, keepdims=True)
        near = radius < 1e-12
        factor = lens.bend(np.arctan(radius)) / np.where(near, 1.0, radius)
        return _to_pixels(points * np.where(near, 1.0, factor), K).reshape(np.shape(xy))
    import cv2

    # OpenCV ignores K's skew, so it is given normalised coordinates and K is applied here.
    points = np.concatenate([points, np.ones((len(points), 1))], -1)
    eye = np.eye(3)
    out, _ = cv2.projectPoints(points[:, None], np.zeros(3), np.zeros(3), eye, lens)
    return _to_pixels(out.reshape(-1, 2), K).reshape(np.shape(xy))


def undistort_pixels(xy: np.ndarray, K: np.ndarray, lens: Lens) -> np.ndarray:
    """Pinhole pixels [...,2] of raw pixels xy [...,2]; NaN stays NaN.

    A fisheye's pixels that no pinhole camera sees (at 90 degrees and beyond) become NaN.
    """
    raw = np.asarray(xy, np.float64)
    if isinstance(lens, Fisheye):
        points = _normalised(raw, K)
        radius = np.linalg.norm(points, axis=-1, keepdims=True)
        near = radius < 1e-12
        factor = np.tan(lens.unbend(radius)) / np.where(near, 1.0, radius)
        return _to_pixels(points * np.where(near, 1.0, factor), K).reshape(raw.shape)
    out = raw.copy()
    for _ in range(_ITERATIONS):  # a fixed point: distortion moves a pixel little
        out = out - (distort_pixels(np.where(np.isfinite(out), out, 0.0), K, lens) - raw)
    return out


def _normalised(xy: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Pixels [...,2] as camera x/z, y/z [n,2]."""
    K = np.asarray(K, np.float64)
    flat = np.asarray(xy, np.float64).reshape(-1, 2)
    return (flat - K[:2, 2]) @ np.linalg.inv(K[:2, :2]).T


def _to_pixels(normalised: np.ndarray, K: np.ndarray) -> np.ndarray:
    K = np.asarray(K, np.float64)
    return normalised @ K[:2, :2].T + K[:2, 2]
