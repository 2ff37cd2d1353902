"""Where the animal is: masks from files, alpha, a threshold, a background model or rembg.

Every source gives alpha [H,W] uint8 at the picture's resolution. Mask *videos* are lossy: a hard
edge comes back as ringing around both its levels. Cutting at the threshold would make edges
jagged, taking the grey values as they are would make the ringing visible; so grey values within
`SOFTNESS` of the threshold become a ramp and everything else becomes 0 or 255. Resampling then
averages that.
"""

from __future__ import annotations

import cv2
import numpy as np

THRESHOLD = 127
SOFTNESS = 48


def ramp_table(threshold: int = THRESHOLD, softness: int = SOFTNESS) -> np.ndarray:
    """Lookup table [256] uint8: 0 below threshold - softness, 255 above threshold + softness."""
    levels = np.arange(256, dtype=np.float64)
    ramp = (levels - (threshold - softness)) / (2 * softness)
    return (np.clip(ramp, 0, 1) * 255 + 0.5).astype(np.uint8)


def soft_threshold(
    grey: np.ndarray, threshold: int = THRESHOLD, softness: int = SOFTNESS
) -> np.ndarray:
    """`ramp_table` applied to a picture [H,W] uint8 (saturating, faster than a lookup)."""
    return stretch(grey, threshold - softness, threshold + softness)


def stretch(grey: np.ndarray, black: int, white: int) -> np.ndarray:
    """Levels black .. white of a picture [H,W] uint8 as 0 .. 255; what lies beyond saturates."""
    out = cv2.subtract(grey, black)
    rows = np.flatnonzero(out.max(axis=1))  # most of a mask is empty: nothing to multiply there
    if len(rows):
        filled = out[rows[0] : rows[-1] + 1]
        cv2.convertScaleAbs(filled, dst=filled, alpha=255.0 / (white - black))
    return out


def clean_mask(alpha: np.ndarray, min_blob: float = 0.2) -> np.ndarray:
    """Remove blobs smaller than `min_blob` of the largest, and fill holes."""
    x0, y0, x1, y1 = mask_box(alpha)
    if (x1 - x0, y1 - y0) != alpha.shape[::-1] and x1 > x0:
        out = np.zeros_like(alpha)  # the rest is empty: work on the animal's box
        out[y0:y1, x0:x1] = clean_mask(np.ascontiguousarray(alpha[y0:y1, x0:x1]), min_blob)
        return out
    inside = (alpha > THRESHOLD).astype(np.uint8)
    n, labels, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    if n <= 1:
        return alpha
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.float64)
    keep = areas >= min_blob * areas[1:].max()
    keep[0] = False
    kept = keep[labels].astype(np.uint8)
    # One pixel more, so that the soft edge of the kept blobs stays.
    near = cv2.dilate(kept, np.ones((3, 3), np.uint8))
    contours, _ = cv2.findContours(kept, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(kept), contours, -1, 1, cv2.FILLED)
    out = np.where(near > 0, alpha, 0).astype(np.uint8)
    out[(filled > 0) & (kept == 0)] = 255
    return out


def mask_box(alpha: np.ndarray) -> tuple[int, int, int, int]:
    """Box x0, y0, x1, y1 (end exclusive) of alpha > 0; all 0 where there is none."""
    rows = np.flatnonzero(alpha.max(axis=1))  # twice as fast as cv2.boundingRect
    if not len(rows):
        return (0, 0, 0, 0)
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(alpha[y0:y1].max(axis=0))
    return (int(columns[0]), y0, int(columns[-1]) + 1, y1)


def mask_centroid(alpha: np.ndarray, box: tuple[int, int, int, int]) -> tuple[np.ndarray, float]:
    """Centroid [2] (x, y; pixel centres at +0.5) and area in pixels of a mask."""
    x0, y0, x1, y1 = box
    m = cv2.moments(np.ascontiguousarray(alpha[y0:y1, x0:x1])) if x1 > x0 else {"m00": 0.0}
    if m["m00"] <= 0:
        return np.full(2, np.nan), 0.0
    xy = np.array([m["m10"] / m["m00"] + x0 + 0.5, m["m01"] / m["m00"] + y0 + 0.5])
    return xy, m["m00"] / 255.0


def sharpness(picture: np.ndarray, alpha: np.ndarray, box: tuple[int, int, int, int]) -> float:
    """Variance of the Laplacian on the animal."""
    x0, y0, x1, y1 = box
    grey = cv2.cvtColor(picture[y0:y1, x0:x1, :3], cv2.COLOR_BGR2GRAY)
    inside = cv2.erode(alpha[y0:y1, x0:x1], np.ones((5, 5), np.uint8)) > 127
    if not inside.any():
        return 0.0
    return float(cv2.Laplacian(grey, cv2.CV_32F)[inside].var())
