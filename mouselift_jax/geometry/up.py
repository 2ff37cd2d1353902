"""The floor from where an animal walks: its normal is up, whatever way the cameras are mounted."""

from __future__ import annotations

import numpy as np

_ROUNDS = 20
_FLAT = 3.0  # the path's second spread over its third, at least: it must say where the floor is
_LEAST_POINTS = 20


def floor_height(points: np.ndarray, up: np.ndarray) -> float:
    """Height of the floor along up: where the lowest point of the animal usually is.

    Args:
        points: of the animal [T,M,3] over time, NaN where unknown; any unit. Without one at the
            paws the floor is told too high by as much as the lowest is above it.
        up: unit vector [3].

    Returns:
        Median over instants of the least height; NaN where no point is known.
    """
    heights = np.asarray(points, np.float64) @ up
    lowest = np.fmin.reduce(heights, axis=1)
    lowest = lowest[np.isfinite(lowest)]
    return float(np.median(lowest)) if len(lowest) else float("nan")


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
