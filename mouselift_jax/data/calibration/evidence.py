"""What cameras saw of an animal, as points: keypoints, and outlines where they touch.

V cameras, F frames, M keypoints, N points.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mouselift_jax.data.distortion import undistort_pixels
from mouselift_jax.geometry.bundle import Rig, Sightings
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.hull import tangent_contacts

_REST = 0.005  # rad: an animal that moves and stretches by less than this is at rest


@dataclasses.dataclass(frozen=True)
class Outlines:
    """Convex outlines of silhouettes.

    Attributes:
        xy: raw pixels [V,T,Q,2], NaN where there is none.
        frame: frame numbers [T].
        sizes: picture sizes (width, height) [V,2]; an outline cut by the border does not count.
    """

    xy: np.ndarray
    frame: np.ndarray
    sizes: np.ndarray

    def of(self, frames: np.ndarray) -> Outlines:
        """Those of some frames."""
        keep = np.isin(self.frame, frames)
        return Outlines(self.xy[:, keep], self.frame[keep], self.sizes)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What the cameras saw: points, outlines or both (at least one)."""

    points: Sightings | None = None
    outlines: Outlines | None = None

    def of(self, frames: np.ndarray) -> Evidence:
        """That of some frames."""
        points, outlines = self.points, self.outlines
        return Evidence(
            None if points is None else points.chosen(np.isin(points.frame, frames)),
            None if outlines is None else outlines.of(frames),
        )

    def sightings(self, rig: Rig) -> Sightings:
        """All as points, the outlines' as they touch for these cameras."""
        parts = [] if self.points is None else [self.points]
        if self.outlines is not None:
            parts.append(touching(self.outlines, rig))
        return Sightings.joined(parts)


def keypoint_sightings(keypoints: np.ndarray, frames: np.ndarray, *, least: float) -> Sightings:
    """Sightings of keypoints [V,F,M,3] (x, y, confidence; raw pixels) in some frames.

    Args:
        keypoints: of all frames, for the velocities; NaN where missing.
        frames: frame numbers to take.
        least: keypoints of less confidence do not count.
    """
    seen = np.isfinite(keypoints[..., :2]).all(-1) & (keypoints[..., 2] >= least)
    xy = np.where(seen[..., None], keypoints[..., :2], np.nan)
    speed = velocities(xy)
    V, _, M = seen.shape
    pick = np.asarray(frames)
    return Sightings(
        np.nan_to_num(xy[:, pick]).reshape(V, -1, 2),
        seen[:, pick].astype(np.float64).reshape(V, -1),
        np.nan_to_num(speed[:, pick]).reshape(V, -1, 2),
        np.zeros(len(pick) * M, int),
        np.repeat(pick, M),
    )


def velocities(xy: np.ndarray) -> np.ndarray:
    """Pixels a frame [V,F,M,2] of tracks, a line through up to five frames; NaN where unknown."""
    total, weight = np.zeros_like(xy), np.zeros(xy.shape[:-1])
    for k in (1, 2):
        ahead, back = np.full_like(xy, np.nan), np.full_like(xy, np.nan)
        ahead[:, :-k], back[:, k:] = xy[:, k:], xy[:, :-k]
        step = ahead - back
        known = np.isfinite(step).all(-1)
        total += k * np.where(known[..., None], step, 0.0)
        weight += 2 * k * k * known
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight[..., None] > 0, total / weight[..., None], np.nan)


def touching(outlines: Outlines, rig: Rig) -> Sightings:
    """The points where planes through two cameras' centres touch the animal, as sightings."""
    V, T = outlines.xy.shape[:2]
    flat = outlines.xy.copy()
    for v in range(V):
        if np.any(rig.coefficients[v]):
            flat[v] = undistort_pixels(flat[v], rig.K[v], rig.coefficients[v])
    cameras = cameras_of(rig, outlines.sizes)
    pairs = [(i, j) for i in range(V) for j in range(i + 1, V)]
    xy = np.zeros((V, len(pairs) * 2 * T, 2))
    seen = np.zeros(xy.shape[:2])
    for k, (i, j) in enumerate(pairs):
        rows = slice(2 * T * k, 2 * T * (k + 1))
        picks = tangent_contacts(flat[i], flat[j], cameras[i], cameras[j])
        valid = (picks >= 0).all(0)  # [T,2]
        for v, pick in ((i, picks[0]), (j, picks[1])):
            raw = np.take_along_axis(outlines.xy[v], np.maximum(pick, 0)[..., None], 1)
            xy[v, rows] = np.where(valid[..., None], raw, 0.0).reshape(-1, 2)
            seen[v, rows] = valid.ravel()
    frame = np.tile(np.repeat(outlines.frame, 2), len(pairs))
    return Sightings(xy, seen, np.zeros_like(xy), np.ones(len(frame), int), frame)


def cameras_of(rig: Rig, sizes: np.ndarray) -> list[Camera]:
    """The rig as pinhole cameras of pictures of these sizes (width, height) [V,2]."""
    out = []
    for K, R, centre, (width, height) in zip(rig.K, rig.R, rig.centres, sizes, strict=True):
        c2w = np.eye(4)
        c2w[:3, :3], c2w[:3, 3] = R.T, centre
        out.append(Camera(K, c2w, int(width), int(height)))
    return out


def spread_frames(places: np.ndarray, n: int) -> np.ndarray:
    """Rows [<= n] of places [F,3] (NaN = unusable) spread as far apart as can be, ascending."""
    usable = np.flatnonzero(np.isfinite(places).all(-1))
    if len(usable) <= n:
        return usable
    X = places[usable]
    far = np.linalg.norm(X - np.median(X, 0), axis=-1)
    chosen = [int(np.argmin(far))]
    distance = np.linalg.norm(X - X[chosen[0]], axis=-1)
    distance[chosen[0]] = -np.inf
    # Ties (an animal at rest) are broken by time, so that noise is not what chooses.
    apart = np.ptp(usable) or 1
    alone = np.full(len(usable), np.inf)
    for _ in range(n - 1):
        alone = np.minimum(alone, np.abs(usable - usable[chosen[-1]]) / apart)
        chosen.append(int(np.argmax(distance + 1e-3 * far.mean() * alone)))
        distance = np.minimum(distance, np.linalg.norm(X - X[chosen[-1]], axis=-1))
        distance[chosen[-1]] = -np.inf
    return np.sort(usable[chosen])


def moments_of(sightings: Sightings, rig: Rig) -> dict[int, int]:
    """To which moment each frame belongs: frames of an animal that rests are one.

    A detector errs alike while nothing moves, so such frames say as much as one of them, and
    frames kept to judge by judge nothing when the fit has seen the same.
    """
    frames, row = np.unique(sightings.frame, return_inverse=True)
    seen = sightings.seen > 0
    count, total, square = (np.zeros((len(seen), len(frames), k)) for k in (1, 2, 2))
    for v in range(len(seen)):
        xy = np.where(seen[v, :, None], sightings.xy[v], 0.0)
        np.add.at(count[v], row, seen[v, :, None])
        np.add.at(total[v], row, xy)
        np.add.at(square[v], row, xy**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
        spread = np.sqrt(np.maximum(square / count - mean**2, 0.0))
    marks = np.concatenate([mean, spread], -1)  # [V,F,4], where it is and how long and wide
    near = _REST * rig.K[:, 0, 0]
    first: list[int] = []
    out = {}
    for k, frame in enumerate(frames):
        for place, leader in enumerate(first):
            apart = np.linalg.norm(marks[:, k] - marks[:, leader], axis=-1) / near
            if np.isfinite(apart).any() and np.nanmax(apart) <= 1.0:
                out[int(frame)] = place
                break
        else:
            out[int(frame)] = len(first)
            first.append(k)
    return out
