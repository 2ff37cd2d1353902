"""The floor from where an animal walks: its normal is up, and what is lowest lies on it."""

from __future__ import annotations

import numpy as np

from mouselift_jax.geometry.similarity import Similarity

_ROUNDS = 20
_FLAT = 3.0  # the path's second spread over its third, at least: it must say where the floor is
_LEAST_POINTS = 20
_LOWEST = 5.0  # percentile of an instant's points: the lowest, without single wrong ones


def floor_normal(path: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Unit normal [3] of the plane that a path keeps to, and the path's spreads [3] along it.

    Least squares with weights that fall with the distance: rearing and jumps count little.

    Args:
        path: positions [T,3] of one point of the animal over time, NaN where unknown; any unit.
        up: roughly up [3]; the normal is on its side.

    Returns:
        Normal and standard deviations, largest first; None where the path is too short, or keeps
        to a line or a place, so that it tells no plane.
    """
    points = np.asarray(path, np.float64)
    points = points[np.isfinite(points).all(1)]
    if len(points) < _LEAST_POINTS:
        return None
    weights = np.ones(len(points))
    for _ in range(_ROUNDS):
        centre = np.average(points, axis=0, weights=weights)
        apart = points - centre
        values, vectors = np.linalg.eigh((weights[:, None] * apart).T @ apart / weights.sum())
        normal = vectors[:, 0]
        height = np.abs(apart @ normal)
        scale = 1.5 * np.median(height) + 1e-12
        weights = 1.0 / np.maximum(1.0, height / scale) ** 2
    spreads = np.sqrt(np.maximum(values[::-1], 0.0))
    rounding = 1e-5 * (np.linalg.norm(centre) + spreads[0])
    if spreads[1] < _FLAT * spreads[2] or spreads[1] <= rounding:
        return None
    side = 1.0 if normal @ up >= 0 else -1.0
    return side * normal, spreads


def rotation_to_z(up: np.ndarray) -> np.ndarray:
    """The shortest rotation [3,3] that takes a direction to z."""
    up = up / np.linalg.norm(up)
    z = np.array([0.0, 0.0, 1.0])
    axis, c = np.cross(up, z), float(up @ z)
    if c < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + k + k @ k / (1.0 + c)


def floor_height(points: np.ndarray, up: np.ndarray) -> tuple[float, float]:
    """Height of the floor along up, where the lowest of the animal usually is, and its error.

    Args:
        points: of the animal [T,M,3] over time, NaN where unknown; any unit. Without one at the
            paws the floor is told too high by as much as the lowest is above it.
        up: unit vector [3].

    Returns:
        Median over instants of the least height, single wrong points left out, and the standard
        error of that; NaN where no point is known.
    """
    heights = np.asarray(points, np.float64) @ up
    heights = heights[np.isfinite(heights).any(1)]
    if not len(heights):
        return float("nan"), float("nan")
    lowest = np.nanpercentile(heights, _LOWEST, axis=1, method="lower")
    middle = np.median(lowest)
    # of a median of normal values; 1.4826 medians of the absolute deviation are one deviation
    error = 1.2533 * 1.4826 * np.median(np.abs(lowest - middle)) / np.sqrt(len(lowest))
    return float(middle), float(error)


def levelled_on_floor(
    points: np.ndarray, frame: np.ndarray, up: np.ndarray
) -> tuple[Similarity, float] | None:
    """The move to a world whose z is up and whose floor is z = 0, and the error of the height.

    Args:
        points: on the animal [N,3], NaN where unknown; any unit.
        frame: instant of each [N].
        up: roughly up [3].

    Returns:
        None where the animal's path tells no plane (`floor_normal`).
    """
    known = np.isfinite(points).all(-1)
    frames = [points[known & (frame == f)] for f in np.unique(frame[known])]
    if not frames:
        return None
    together = np.full((len(frames), max(map(len, frames)), 3), np.nan)
    for row, own in zip(together, frames, strict=True):
        row[: len(own)] = own
    found = floor_normal(np.nanmedian(together, 1), up)
    if found is None:
        return None
    height, error = floor_height(together, found[0])
    R = rotation_to_z(found[0])
    return Similarity(np.float64(1.0), R, np.array([0.0, 0.0, -height])), error
