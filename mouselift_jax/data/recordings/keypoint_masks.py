"""Masks out of keypoints: the region round them that looks like what they lie on (GrabCut).

For recordings with keypoints but no masks, of an animal that need not move, on any background whose
colours are not the animal's.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from mouselift_jax.data.distortion import distort_pixels
from mouselift_jax.data.masks import soft_threshold
from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.errors import LayoutError

_SURE = 0.25  # confidence that counts
_LEAST = 3  # points that can say where an animal is
_SIDE = 320  # pixels of the region that is cut, at most: it is scaled down to that
_MARGIN = 0.4  # of the points' box, on each side
_SEED, _NEAR = 0.015, 0.07  # of the box's diagonal: surely animal, and probably
_SPECK = 0.03  # of the largest part
_ROUNDS = 4


def keypoint_masker(recording: Recording) -> Callable:
    """A `MaskMaker` (see mask_sources) that cuts the animal out round its keypoints.

    Raises:
        LayoutError: the recording has no keypoints.
    """
    if recording.keypoints is None:
        unread = [f for f in recording.findings if f.code == "keypoints_unreadable"]
        raise LayoutError(
            "masks=keypoints, but the recording has none" + (" that could be read" * bool(unread)),
            where=recording.path,
            expected="keypoints of every camera (`python -m mouselift_jax check --list-formats`)",
            found=unread[0].message if unread else None,
            fix=(f"{unread[0].fix}; or " if unread else "")
            + "--config.prepare.masks=background_model, threshold or rembg, or bring masks",
        )
    points = recording.keypoints.copy()
    for v, lens in enumerate(recording.distortion):
        if lens is not None:  # the pictures still have the lens that keypoints were freed of
            points[v, ..., :2] = distort_pixels(points[v, ..., :2], recording.cameras[v].K, lens)

    def make(view: int, picture: np.ndarray, stored: np.ndarray | None, frame: int) -> np.ndarray:
        rows = points[view, frame]
        sure = np.isfinite(rows[:, :2]).all(1) & (rows[:, 2] > _SURE)
        return cut_round(picture, rows[sure, :2])

    return make


def cut_round(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Alpha [H,W] uint8 of the animal that points [n,2] lie on; empty of fewer than three.

    Args:
        picture: BGR [H,W,3] uint8.
        points: pixel centres at +0.5.
    """
    height, width = picture.shape[:2]
    alpha = np.zeros((height, width), np.uint8)
    inside = ((points >= 0) & (points < (width, height))).all(1)
    points = points[inside]
    if len(points) < _LEAST:
        return alpha
    low, high = points.min(0), points.max(0)
    margin = _MARGIN * max(*(high - low), 40.0)
    x0, y0 = np.maximum(low - margin, 0).astype(int)
    x1, y1 = np.minimum(high + margin + 1, (width, height)).astype(int)
    scale = min(1.0, _SIDE / max(x1 - x0, y1 - y0))
    size = (max(8, round((x1 - x0) * scale)), max(8, round((y1 - y0) * scale)))
    region = cv2.resize(picture[y0:y1, x0:x1, :3], size, interpolation=cv2.INTER_AREA)
    seeds = _labels(size, (points - (x0, y0)) * scale)
    cut = _grab_cut(region, seeds)
    whole = cv2.resize(cut, (int(x1 - x0), int(y1 - y0)), interpolation=cv2.INTER_LINEAR)
    alpha[y0:y1, x0:x1] = soft_threshold(cv2.GaussianBlur(whole, (0, 0), 1.0))
    return alpha


def _labels(size: tuple[int, int], points: np.ndarray) -> np.ndarray:
    """GrabCut's first guess [h,w]: surely animal at the points, surely not at the border."""
    labels = np.full(size[::-1], cv2.GC_PR_BGD, np.uint8)
    diagonal = float(np.linalg.norm(np.ptp(points, axis=0)))
    for share, label in ((_NEAR, cv2.GC_PR_FGD), (_SEED, cv2.GC_FGD)):
        radius = max(1, round(share * diagonal))
        for x, y in np.round(points - 0.5).astype(int).tolist():
            cv2.circle(labels, (x, y), radius, int(label), -1)
    ring = np.ones(size[::-1], bool)
    ring[2:-2, 2:-2] = False
    labels[ring & (labels != cv2.GC_FGD)] = cv2.GC_BGD
    return labels


def _grab_cut(region: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """0 or 255 [h,w]: the parts that hold a point, but specks round a lost one."""
    seeds = labels == cv2.GC_FGD
    cv2.setRNGSeed(0)  # its clusters start at random: the same picture gives the same mask
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(region, labels, None, *models, _ROUNDS, cv2.GC_INIT_WITH_MASK)
    animal = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    n, parts, stats, _ = cv2.connectedComponentsWithStats(animal, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    held = np.isin(np.arange(n), parts[seeds]) & (np.arange(n) > 0)
    held &= areas >= _SPECK * areas[held].max(initial=0)
    return np.where(held[parts], 255, 0).astype(np.uint8)
