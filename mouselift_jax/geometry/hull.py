"""Silhouettes of several cameras against each other: visual hull and epipolar tangents.

Both need masks and cameras only, no correspondences. They are exact statements about a rigid
instant: every ray through one silhouette must meet the animal somewhere, hence pass through all
other silhouettes (hull cover), and the planes that touch the animal through a pair of cameras touch
its outline in both pictures (tangents). Mask centroids, in contrast, are not one point in space.

V cameras, P outline points, T instants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mouselift_jax.geometry.camera import Camera

_RAYS = 400  # per mask: the mean over many masks is what counts
_SAMPLES = 160  # along each ray, within the boxes of the other masks
_SLACK = 1  # pixels of dilation: sampling along the ray must not read as a fault


def hull_cover(
    masks: Sequence[np.ndarray],
    cameras: Sequence[Camera],
    *,
    rays: int = _RAYS,
    slack: int = _SLACK,
    seed: int = 0,
) -> np.ndarray:
    """Share of each mask that the visual hull of the other masks covers, 1 if all is consistent.

    Args:
        masks: one instant: per camera [H,W], bool or 0..1 or 0..255 (above half is animal).
        cameras: the cameras of these pictures, pixel centres at +0.5.
        rays: at most so many pixels of each mask are tried.
        slack: dilation of the other masks in pixels.
        seed: which pixels are tried.

    Returns:
        Cover [V]; NaN where the mask itself, or every other mask, is empty. What lies outside a
        picture is not held against the cover: an animal that is cut off there may go on.
    """
    return carve(masks, cameras, rays=rays, slack=slack, seed=seed)[0]


def hull_points(
    masks: Sequence[np.ndarray],
    cameras: Sequence[Camera],
    *,
    rays: int = _RAYS,
    seed: int = 0,
) -> np.ndarray:
    """Points [N,3] inside the visual hull of all masks, in the cameras' unit; may be empty."""
    return carve(masks, cameras, rays=rays, slack=0, seed=seed)[1]


def carve(
    masks: Sequence[np.ndarray],
    cameras: Sequence[Camera],
    *,
    rays: int = _RAYS,
    slack: int = _SLACK,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """`hull_cover`, and points [N,3] inside the hull of all masks widened by `slack` pixels."""
    import cv2

    binary = [_binary(m) for m in masks]
    full = [m.any() for m in binary]
    kernel = np.ones((2 * slack + 1, 2 * slack + 1), np.uint8)
    wide = [cv2.dilate(m.astype(np.uint8), kernel) > 0 if slack else m for m in binary]
    boxes = [_open_box(m) for m in wide]
    rng = np.random.default_rng(seed)
    cover, kept = np.full(len(binary), np.nan), []
    for v, (mask, camera) in enumerate(zip(binary, cameras, strict=True)):
        others = [j for j in range(len(binary)) if j != v and full[j]]
        if not full[v] or not others:
            continue
        rows, columns = np.nonzero(mask)
        chosen = rng.choice(len(rows), min(rays, len(rows)), replace=False)
        xy = np.stack([columns[chosen], rows[chosen]], -1) + 0.5
        origin, direction = pixel_rays(camera, xy)
        near, far = _depth_range(origin, direction, [cameras[j] for j in others],
                                 [boxes[j] for j in others])  # fmt: skip
        possible = far > near
        cover[v] = 0.0
        if not possible.any():
            continue
        w = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
        depth = near[possible, None] * (1 - w) + far[possible, None] * w
        points = origin + direction[possible, None] * depth[..., None]  # [R,S,3]
        inside = np.ones(depth.shape, bool)
        for j in others:
            inside &= _look_up(wide[j], cameras[j], points)
        cover[v] = inside.any(1).sum() / len(chosen)
        kept.append(points[inside])
    return cover, np.concatenate(kept) if kept else np.zeros((0, 3))


def _binary(mask: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype == bool:
        return mask
    return mask > (127 if mask.dtype == np.uint8 else 0.5)


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return (0.0, 0.0, 0.0, 0.0)
    x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return (float(x0), float(y0), float(x1), float(y1))


def _open_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The mask's box, or where the picture cuts the animal off one that reaches well beyond."""
    height, width = mask.shape
    x0, y0, x1, y1 = _box(mask)
    if x0 > 0 and y0 > 0 and x1 < width and y1 < height:
        return (x0, y0, x1, y1)
    reach = 1.5 * max(x1 - x0, y1 - y0)
    return (x0 - reach, y0 - reach, x1 + reach, y1 + reach)


def pixel_rays(camera: Camera, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Camera centre [3] and world directions [...,3] (unit camera depth) of pixels xy [...,2]."""
    K, c2w = np.asarray(camera.K, np.float64), np.asarray(camera.c2w, np.float64)
    flat = np.concatenate([xy, np.ones_like(xy[..., :1])], -1) @ np.linalg.inv(K).T
    return c2w[:3, 3], (flat / flat[..., 2:]) @ c2w[:3, :3].T


def _depth_range(
    origin: np.ndarray,
    direction: np.ndarray,
    cameras: list[Camera],
    boxes: list[tuple[float, float, float, float]],
) -> tuple[np.ndarray, np.ndarray]:
    """Depths [R] between which the rays project into the boxes of all cameras; far < near if none.

    In homogeneous coordinates x = (a + t b) / (c + t d), so each side of a box is linear in t.
    """
    near, far = np.full(len(direction), 1e-9), np.full(len(direction), 1e12)
    for camera, (x0, y0, x1, y1) in zip(cameras, boxes, strict=True):
        P = np.asarray(camera.K) @ np.asarray(camera.w2c)[:3]
        a, b = P[:, :3] @ origin + P[:, 3], direction @ P[:, :3].T  # [3], [R,3]
        for constant, slope in (
            (a[0] - x0 * a[2], b[:, 0] - x0 * b[:, 2]),
            (x1 * a[2] - a[0], x1 * b[:, 2] - b[:, 0]),
            (a[1] - y0 * a[2], b[:, 1] - y0 * b[:, 2]),
            (y1 * a[2] - a[1], y1 * b[:, 2] - b[:, 1]),
            (a[2] - 1e-9, b[:, 2]),
        ):  # each: constant + t * slope >= 0
            with np.errstate(divide="ignore", invalid="ignore"):
                t = -constant / slope
            near = np.where(slope > 0, np.maximum(near, t), near)
            far = np.where(slope < 0, np.minimum(far, t), far)
            if constant < 0:
                far = np.where(slope == 0, -1.0, far)
    return near, far


def _look_up(mask: np.ndarray, camera: Camera, points: np.ndarray) -> np.ndarray:
    """Whether points [...,3] fall on the mask. Outside the picture nothing speaks against them."""
    P = np.asarray(camera.K) @ np.asarray(camera.w2c)[:3]
    h = points @ P[:, :3].T + P[:, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = h[..., 0] / h[..., 2], h[..., 1] / h[..., 2]
    front = h[..., 2] > 0
    seen = front & (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
    column, row = np.where(seen, x, 0).astype(int), np.where(seen, y, 0).astype(int)
    return front & (~seen | mask[row, column])


def outline(mask: np.ndarray, n_points: int = 96) -> np.ndarray:
    """Convex hull of a mask [H,W] as pixel coordinates [n_points,2], the last point repeated.

    Tangents from outside touch the convex hull only, so it is all that `tangent_residuals` needs.
    NaN where the mask is empty.
    """
    import cv2

    binary = _binary(mask)
    x0, y0, x1, y1 = (int(e) for e in _box(binary))
    if x1 <= x0:
        return np.full((n_points, 2), np.nan)
    window = np.ascontiguousarray(binary[y0:y1, x0:x1]).astype(np.uint8)
    contours, _ = cv2.findContours(window, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    points = np.concatenate(contours)
    hull = cv2.convexHull(points)[:, 0].astype(np.float64) + [x0 + 0.5, y0 + 0.5]
    if len(hull) > n_points:
        hull = hull[np.linspace(0, len(hull) - 1, n_points).astype(int)]
    return np.concatenate([hull, np.repeat(hull[-1:], n_points - len(hull), 0)])


def tangent_residuals(
    outline_a: np.ndarray, outline_b: np.ndarray, camera_a: Camera, camera_b: Camera
) -> np.ndarray:
    """How far the epipolar tangents of two silhouettes miss each other, in pixels.

    Args:
        outline_a: outlines [T,P,2] of the first camera (see `outline`).
        outline_b: outlines [T,P,2] of the second camera at the same instants.
        camera_a: first camera.
        camera_b: second camera.

    Returns:
        Residuals [T,2] of the two tangents (mean of both pictures' pixels); NaN where a mask is
        empty, where an outline touches the picture's border at the tangent, or where the other
        camera's centre is seen inside or close to the silhouette, so that there is no tangent.
    """
    first, second, valid = _tangents(outline_a, outline_b, camera_a, camera_b)
    out = np.full((len(valid), 2), np.nan)
    for k in range(2):
        gap = first.angle[k] - second.angle[k]
        pixels = 0.5 * np.abs(gap) * (first.reach[k] + second.reach[k])
        out[:, k] = np.where(valid & first.clear[k] & second.clear[k], pixels, np.nan)
    return out


def tangent_contacts(
    outline_a: np.ndarray, outline_b: np.ndarray, camera_a: Camera, camera_b: Camera
) -> np.ndarray:
    """Which points of the outlines the two epipolar tangents touch.

    Returns:
        Indices [2,T,2] of points in both outlines [T,P,2], by outline, instant and tangent; -1
        where `tangent_residuals` is NaN. A right pair of cameras sees one point of space there.
    """
    first, second, valid = _tangents(outline_a, outline_b, camera_a, camera_b)
    clear = (valid & first.clear & second.clear).T
    return np.stack([np.where(clear, side.at.T, -1) for side in (first, second)])


class _Side(NamedTuple):
    """Where the two tangents [2,T] (least and greatest angle) touch one outline.

    Attributes:
        at: index of the point.
        angle: of its half-plane about the baseline, from a direction common to both outlines.
        reach: pixels that a radian of it moves the point.
        clear: it is not where the picture ends.
    """

    at: np.ndarray
    angle: np.ndarray
    reach: np.ndarray
    clear: np.ndarray


def _tangents(
    outline_a: np.ndarray, outline_b: np.ndarray, camera_a: Camera, camera_b: Camera
) -> tuple[_Side, _Side, np.ndarray]:
    """Both outlines' tangents, and the instants [T] at which they can be compared.

    Angles are compared by the tangent of their half, which grows with them and costs a division.
    """
    sides = ((outline_a, camera_a, camera_b, 1.0), (outline_b, camera_b, camera_a, -1.0))
    across = [_across(points, c, np.asarray(o.center), sign) for points, c, o, sign in sides]
    with np.errstate(invalid="ignore", divide="ignore"):
        far = [np.sqrt(u * u + w * w) for u, w, _ in across]
        # One common reference direction per instant, so that no interval is cut at +-pi.
        c, s = (sum((a[i] / r).mean(1) for a, r in zip(across, far, strict=True)) for i in range(2))
        length = np.hypot(c, s)
        c, s = np.where(length > 0, c / length, 1.0), np.where(length > 0, s / length, 0.0)
        found, valid = [], np.isfinite(length)
        for (points, camera, _, _), (u, w, plane), r in zip(sides, across, far, strict=True):
            turned = w * c[:, None] - u * s[:, None]
            half = turned / (r + u * c[:, None] + w * s[:, None])
            half = np.where(np.isfinite(half), half, np.copysign(np.inf, turned))
            at = np.stack([half.argmin(1), half.argmax(1)])
            rows = np.arange(len(half))
            angle = 2.0 * np.arctan(half[rows, at])
            # A silhouette that spans more contains (or nearly contains) the epipole.
            valid &= angle[1] - angle[0] < 2.0
            reach = _reach(u[rows, at], w[rows, at], plane, camera)
            found.append(_Side(at, angle, reach, _clear(points[rows, at], camera)))
    return found[0], found[1], valid


def _clear(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Points that are not at the border, where the picture and not the animal ends."""
    limit = np.array([camera.width, camera.height])
    return ((points > 1.5) & (points < limit - 1.5)).all(-1)


def _across(
    points: np.ndarray, camera: Camera, other: np.ndarray, sign: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rays of pixels [T,P,2] (unit depth) across the baseline: along two axes [T,P], the axes.

    Linear in the pixel, so that no ray need be made.
    """
    K, c2w = np.asarray(camera.K, np.float64), np.asarray(camera.c2w, np.float64)
    axis = sign * (other - c2w[:3, 3])
    axis = axis / np.linalg.norm(axis)
    first = np.zeros(3)  # across the axis and one of the world's
    k = int(np.argmin(np.abs(axis)))
    first[k - 2], first[k - 1] = axis[k - 1], -axis[k - 2]
    first /= np.linalg.norm(first)
    plane = np.stack([first, np.cross(axis, first)])
    M = plane @ c2w[:3, :3] @ np.linalg.inv(K)
    x, y = points[..., 0], points[..., 1]
    u, w = (x * m[0] + (y * m[1] + m[2]) for m in M)
    return u, w, plane


def _reach(u: np.ndarray, w: np.ndarray, plane: np.ndarray, camera: Camera) -> np.ndarray:
    """Pixels per radian about the baseline of rays u, w (see `_across`).

    A step in the picture moves the ray's end by step / f at unit depth, of which the part along the
    half-plane's normal turns it by that over the ray's length across.
    """
    far = np.sqrt(u * u + w * w)
    focal = 0.5 * (camera.K[0, 0] + camera.K[1, 1])
    along = plane @ np.asarray(camera.c2w)[:3, 2]
    forward = (u * along[1] - w * along[0]) / np.maximum(far, 1e-12)
    return focal * far / np.sqrt(np.maximum(1.0 - forward**2, 1e-6))
