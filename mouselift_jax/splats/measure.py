"""What a set of Gaussians measures: place, heading, length, volume, and their motion in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.splats.gaussians import Gaussians

SLICES = 16  # cross-sections that the volume is added up from
TRUNK = 0.7  # of the thickest one's spread: thinner ones are tail or snout


COLUMNS = (
    "frame", "time_s", "x_mm", "y_mm", "z_mm", "length_mm", "width_mm", "height_mm",
    "heading_deg", "volume_mm3", "opacity_mass", "gaussians", "speed_mm_s",
)  # fmt: skip


def to_millimetres(
    scene_scale: float | None, scene_from_recording: dict[str, Any] | None
) -> Similarity | None:
    """Scene -> mm. None when the unit is unknown: no figure in mm can be given then.

    Args:
        scene_scale: scene units per mm.
        scene_from_recording: {scale, R, t} of x_scene = scale R x + t, as `prepare` writes it.
    """
    if not scene_scale:
        return None
    if not scene_from_recording:
        return Similarity(1.0 / scene_scale, np.eye(3), np.zeros(3))
    R = np.array(scene_from_recording["R"], float)
    t = np.array(scene_from_recording["t"], float)
    # x = R^T (s - t) / scale in the recording's units, each of scale / scene_scale mm.
    return Similarity(1.0 / scene_scale, R.T, -R.T @ t / scene_scale)


def measure(gaussians: Gaussians, to_mm: Similarity) -> dict[str, float]:
    """Centre, extents, axis, enclosed volume and mass of one frame, mm.

    Length runs along the body's main horizontal axis, width across it, height along z; each spans
    the middle 96 % of the opacity. `heading_deg` is that axis' azimuth, still ambiguous by 180.
    """
    means, weights, opacities = _seen(gaussians)
    if len(means) == 0 or opacities.sum() <= 0:
        return {k: float("nan") for k in COLUMNS[2:10]} | {"opacity_mass": 0.0, "gaussians": 0}
    points = np.asarray(to_mm.apply(means))
    centre = np.average(points, axis=0, weights=weights)
    offset = points - centre
    axis = _long_axis(offset, weights)
    across = np.array([-axis[1], axis[0]])
    x, y, z = centre
    return {
        "x_mm": x, "y_mm": y, "z_mm": z,
        "length_mm": _span(offset[:, :2] @ axis, weights),
        "width_mm": _span(offset[:, :2] @ across, weights),
        "height_mm": _span(offset[:, 2], weights),
        "heading_deg": float(np.degrees(np.arctan2(axis[1], axis[0]))),
        "volume_mm3": _volume(offset, opacities, axis),
        "opacity_mass": float(opacities.sum()),
        "gaussians": len(means),
    }  # fmt: skip


def _seen(gaussians: Gaussians) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres [N,3], weights [N], opacities [N].

    A weight is what is seen of a Gaussian, opacity times cross-section: dust and haze count little.
    """
    means, _, scales, opacities, _ = (np.asarray(x, np.float64) for x in gaussians.activate())
    return means, opacities * np.sort(scales, axis=-1)[:, 1:].prod(-1), opacities


def _long_axis(offset: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The main horizontal axis [2] of offsets [N,3] from the centre; which end is first is open."""
    spread = (offset[:, :2] * weights[:, None]).T @ offset[:, :2] / weights.sum()
    return np.linalg.eigh(spread)[1][:, -1]


def centre_of(gaussians: Gaussians) -> np.ndarray:
    """The centre [3] of what is seen of a set of Gaussians, scene units."""
    means, weights, opacities = _seen(gaussians)
    if not len(means) or opacities.sum() <= 0:
        return np.zeros(3)
    return np.average(means, axis=0, weights=weights)


def facing(gaussians: Gaussians) -> tuple[float, float]:
    """Which way a rodent faces, from its shape alone: the thin long end is the tail.

    The azimuth is that of the trunk: a tail that swings to the side does not turn it.

    Returns:
        Azimuth in degrees, and how lopsided the body is along its axis (0 = no end is the tail).
    """
    means, weights, opacities = _seen(gaussians)
    if not len(means) or opacities.sum() <= 0:
        return 0.0, 0.0
    offset = means - centre_of(gaussians)
    axis = _long_axis(offset, weights)
    along = offset[:, :2] @ axis
    spread2 = max(float(np.average(along**2, weights=weights)), 1e-12)
    skew = float(np.average(along**3, weights=weights)) / spread2**1.5
    if skew > 0:
        axis = -axis
    trunk = _is_trunk(offset, weights, axis)
    offset = offset[trunk] - np.average(offset[trunk], axis=0, weights=weights[trunk])
    ahead = _long_axis(offset, weights[trunk])
    ahead = ahead if ahead @ axis > 0 else -ahead
    return float(np.degrees(np.arctan2(ahead[1], ahead[0])) % 360.0), abs(skew)


def _is_trunk(offset: np.ndarray, weights: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Which Gaussians lie in slices across an axis that are nearly as thick as the thickest."""
    along = offset[:, :2] @ axis
    across = np.stack([offset[:, :2] @ np.array([-axis[1], axis[0]]), offset[:, 2]], -1)
    low, high = np.quantile(along, (0.005, 0.995))
    index = np.clip((along - low) / max(high - low, 1e-12) * SLICES, 0, SLICES - 1).astype(int)
    thick = np.zeros(SLICES)
    for i in range(SLICES):
        own, w = across[index == i], weights[index == i]
        if w.sum() > 0:
            middle = np.average(own, axis=0, weights=w)
            thick[i] = np.sqrt(np.average(((own - middle) ** 2).sum(-1), weights=w))
    return (thick >= TRUNK * thick.max())[index]


def _span(values: np.ndarray, weights: np.ndarray) -> float:
    """Distance between the weighted 2 % and 98 % quantiles."""
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    low, high = (
        values[order][min(np.searchsorted(share, q), len(values) - 1)] for q in (0.02, 0.98)
    )
    return float(high - low)


def _volume(offset: np.ndarray, opacities: np.ndarray, axis: np.ndarray) -> float:
    """Volume within the visible Gaussians, mm^3: convex cross-sections along the body's axis.

    Needs no closed surface, so it hardly depends on how many Gaussians there are.
    """
    from scipy.spatial import ConvexHull, QhullError

    points = offset[opacities > 0.3]
    if len(points) < 4 * SLICES:
        return float("nan")
    along = points[:, :2] @ axis
    section = np.stack([points[:, :2] @ np.array([-axis[1], axis[0]]), points[:, 2]], -1)
    low, high = np.quantile(along, (0.005, 0.995))  # strays do not stretch the body
    index = np.floor((along - low) / (high - low) * SLICES).astype(int)
    areas = []
    for i in range(SLICES):
        own = section[index == i]
        try:
            areas.append(ConvexHull(own).volume if len(own) > 3 else 0.0)  # of 2D: the area
        except QhullError:  # points on one line
            areas.append(0.0)
    return float(np.sum(areas) * (high - low) / SLICES)


def motion(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Speed from neighbouring frames; heading made continuous and turned the way the animal goes.

    The axis of a body has no front. Within a film the one of the two directions is taken that
    agrees with the walking direction, weighted by speed, over the whole film. Without a clock
    (`time_s` NaN) speeds are NaN; the direction is known all the same.
    """
    if not rows:
        raise ShapeError("a film without frames", expected="at least one", found=0)
    rows = [dict(r) for r in rows]
    times = np.array([r["time_s"] for r in rows])
    places = np.array([[r["x_mm"], r["y_mm"], r["z_mm"]] for r in rows])
    velocity = np.zeros_like(places)
    if len(rows) > 1:
        known = np.isfinite(times).all()
        velocity = np.gradient(places, times if known else np.arange(len(rows)), axis=0)
    angles = np.radians([r["heading_deg"] for r in rows])
    angles = np.unwrap(2 * angles) / 2  # an axis: equal after half a turn
    ahead = np.stack([np.cos(angles), np.sin(angles)], -1)
    if np.nansum((ahead * velocity[:, :2]).sum(-1)) < 0:
        angles = angles + np.pi
    for row, v, angle in zip(rows, velocity, angles, strict=True):
        timed = len(rows) > 1 and known
        row["speed_mm_s"] = float(np.linalg.norm(v)) if timed else float("nan")
        row["heading_deg"] = float(np.degrees(angle) % 360)
    return rows


def steadiness(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """How much what should stay the same wobbles: robust relative spread of volume and length."""
    figures = {}
    for name in ("volume_mm3", "length_mm"):
        values = np.array([r[name] for r in rows], float)
        values = values[np.isfinite(values)]
        if len(values) > 2 and np.median(values) > 0:
            spread = 1.4826 * np.median(np.abs(values - np.median(values)))
            figures[f"sequence/{name.split('_')[0]}_wobble"] = float(spread / np.median(values))
    speeds = np.array([r["speed_mm_s"] for r in rows], float)
    if np.isfinite(speeds).any():
        figures["sequence/median_speed_mm_s"] = float(np.nanmedian(speeds))
    return figures
