"""Silhouettes of several cameras against each other: visual hull and epipolar tangents.

Both need masks and cameras only, no correspondences. They are exact statements about a rigid
instant: every ray through one silhouette must meet the animal somewhere, hence pass through all
other silhouettes (hull cover), and the planes that touch the animal through a pair of cameras touch
its outline in both pictures (tangents). Mask centroids, in contrast, are not one point in space.

V cameras, P outline points, T instants.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    angle_a, reach_a, angle_b, reach_b, valid = _tangent_angles(
        outline_a, outline_b, camera_a, camera_b
    )
    out = np.full((len(angle_a), 2), np.nan)
    rows = np.flatnonzero(valid)
    for k, pick in enumerate((np.argmin, np.argmax)):
        ia, ib = pick(angle_a[rows], 1), pick(angle_b[rows], 1)
        gap = angle_a[rows, ia] - angle_b[rows, ib]
        pixels = 0.5 * np.abs(gap) * (reach_a[rows, ia] + reach_b[rows, ib])
        clear = _clear(outline_a[rows, ia], camera_a) & _clear(outline_b[rows, ib], camera_b)
        out[rows, k] = np.where(clear, pixels, np.nan)
    return out


def tangent_contacts(
    outline_a: np.ndarray, outline_b: np.ndarray, camera_a: Camera, camera_b: Camera
) -> np.ndarray:
    """Which points of the outlines the two epipolar tangents touch.

    Returns:
        Indices [2,T,2] of points in both outlines [T,P,2], by outline, instant and tangent; -1
        where `tangent_residuals` is NaN. A right pair of cameras sees one point of space there.
    """
    angle_a, _, angle_b, _, valid = _tangent_angles(outline_a, outline_b, camera_a, camera_b)
    out = np.full((2, len(angle_a), 2), -1)
    rows = np.flatnonzero(valid)
    for k, pick in enumerate((np.argmin, np.argmax)):
        ia, ib = pick(angle_a[rows], 1), pick(angle_b[rows], 1)
        clear = _clear(outline_a[rows, ia], camera_a) & _clear(outline_b[rows, ib], camera_b)
        out[0, rows, k], out[1, rows, k] = np.where(clear, ia, -1), np.where(clear, ib, -1)
    return out


def _tangent_angles(
    outline_a: np.ndarray, outline_b: np.ndarray, camera_a: Camera, camera_b: Camera
) -> tuple[np.ndarray, ...]:
    """`_axis_angles` of both outlines about their baseline, and where they can be compared."""
    angle_a, reach_a = _axis_angles(outline_a, camera_a, camera_b.center, flip=False)
    angle_b, reach_b = _axis_angles(outline_b, camera_b, camera_a.center, flip=True)
    # One common reference direction per instant, so that no interval is cut at +-pi.
    with np.errstate(invalid="ignore"):
        middle = np.angle(np.exp(1j * angle_a).mean(1) + np.exp(1j * angle_b).mean(1))
    angle_a = np.angle(np.exp(1j * (angle_a - middle[:, None])))
    angle_b = np.angle(np.exp(1j * (angle_b - middle[:, None])))
    valid = np.isfinite(angle_a).all(1) & np.isfinite(angle_b).all(1)
    # A silhouette that spans more than this contains (or nearly contains) the epipole.
    valid &= (np.ptp(np.nan_to_num(angle_a), 1) < 2.0) & (np.ptp(np.nan_to_num(angle_b), 1) < 2.0)
    return angle_a, reach_a, angle_b, reach_b, valid


def _clear(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Points that are not at the border, where the picture and not the animal ends."""
    limit = np.array([camera.width, camera.height])
    return ((points > 1.5) & (points < limit - 1.5)).all(-1)


def _axis_angles(
    points: np.ndarray, camera: Camera, other: np.ndarray, *, flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Angle of the half-plane (baseline, ray) about the baseline, and pixels per radian of it."""
    origin, d = pixel_rays(camera, points)
    axis = other - origin
    axis = axis / np.linalg.norm(axis) * (-1.0 if flip else 1.0)
    helper = np.eye(3)[np.argmin(np.abs(axis))]
    e1 = np.cross(axis, helper)
    e1 /= np.linalg.norm(e1)
    u, w = d @ e1, d @ np.cross(axis, e1)
    # A step in the picture moves the ray's end d by step / f at unit depth ...
    across2 = u * u + w * w
    focal = 0.5 * (camera.K[0, 0] + camera.K[1, 1])
    forward = np.asarray(camera.c2w)[:3, 2]
    normal = np.stack([-w, u], -1) / np.maximum(np.sqrt(across2), 1e-12)[..., None]
    tangent = normal[..., :1] * e1 + normal[..., 1:] * np.cross(axis, e1)
    # ... of which the part along the plane's normal turns the plane by that over |d across|.
    in_picture = np.sqrt(np.maximum(1.0 - (tangent @ forward) ** 2, 1e-6))
    return np.arctan2(w, u), focal * np.sqrt(across2) / in_picture
