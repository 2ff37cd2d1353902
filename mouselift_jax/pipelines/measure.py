"""What an animal of Gaussians measures: place, heading, length, volume, errors; their motion.

The Gaussians are drawn from all around; what no drawn silhouette excludes is solid, and the solid
is measured (`geometry/solid.py`). So hollow, dense or coarse Gaussians of one look measure the
same. `COLUMNS` are motion.csv's; docs/measures.md defines each.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.camera import Camera, intrinsics
from mouselift_jax.geometry.rig import look_at_c2w
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.geometry.solid import BodyShape, Solid, body_shape
from mouselift_jax.pipelines import voxels
from mouselift_jax.splats.gaussians import Gaussians, padded

VIEWS, SIDE = 64, 512  # silhouettes that the solid is cut out with, pixels
CHUNK = 8  # of them drawn at once
CELLS = 170  # along the animal, tail included: about 1 mm
HULL_CELLS = 90  # of the hulls that tell the errors
FINE = 0.03  # half-sizes of the animal: Gaussians of a fit are half as large
DISTANCE = 12.0  # of the cameras, half-sizes of the animal: all but parallel rays
OPAQUE = 0.3
OFF_BODY = 0.25  # of the length: keypoints this far from the spine's ends are of something else
SCHEMA = 4  # of what is kept of a frame: an older row is measured anew

# Measures of one frame with a standard error each, and the unit's suffix.
MEASURES = {
    "length": "mm", "tail": "mm", "width": "mm", "height": "mm", "volume": "mm3", "area": "mm2",
    "heading": "deg", "pitch": "deg", "roll": "deg", "bend": "deg",
}  # fmt: skip
COLUMNS = (
    "frame", "time_s", "x_mm", "y_mm", "z_mm", "centre_se_mm", "speed_mm_s", "speed_se_mm_s",
    *(f"{name}{se}_{unit}" for name, unit in MEASURES.items() for se in ("", "_se")),
    "head", "keypoint_length_mm", "gaussians", "cameras", "shift_mm", "trusted", "why",
)  # fmt: skip
TEXT = ("head", "why")
ANGLES = ("heading", "pitch", "roll", "bend")


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


def solid_of(gaussians: Gaussians, to_mm: Similarity, *, views: int | None = None) -> Solid | None:
    """The body that Gaussians show, in mm: cells that no silhouette of theirs excludes.

    Args:
        gaussians: one set.
        to_mm: scene -> mm.
        views: directions all around that it is drawn from; None = VIEWS.

    Returns:
        Its largest part; None where nothing is opaque.
    """
    opacities = np.asarray(gaussians.activate().opacities)
    shown = opacities > OPAQUE
    if shown.sum() < 8:
        return None
    points = np.asarray(to_mm.apply(np.asarray(gaussians.means, np.float64)[shown]))
    low, high = np.quantile(points, (0.001, 0.999), axis=0)
    centre = (low + high) / 2
    half = 1.05 * float(np.quantile(np.linalg.norm(points - centre, axis=1), 0.999))
    if not half > 0:
        return None
    unit = Similarity(1.0 / half, np.eye(3), -centre / half).compose(to_mm)
    grey = dataclasses.replace(gaussians, sh=np.zeros((*opacities.shape, 1, 3), np.float32))
    placed = padded(grey.transformed(unit))
    sizes = np.exp(np.asarray(gaussians.log_scales)[shown].max(-1)) * float(to_mm.scale) / half
    cameras = _around(views or VIEWS, _side(float(np.median(sizes))))
    alphas = [
        np.asarray(_silhouettes()(placed, _float32(cameras[slice(i, i + CHUNK)])))
        for i in range(0, len(cameras.K), CHUNK)
    ]
    cell = 2.0 / CELLS
    cut, corner = _cut(np.concatenate(alphas), cameras, cell, (low - centre) / half - 0.06,
                       (high - centre) / half + 0.06)  # fmt: skip
    if not cut.any():
        return None
    return Solid(cut, corner * half + centre, cell * half).largest()


@functools.cache
def _silhouettes() -> Callable[[Gaussians, Camera], jax.Array]:
    """One program for all frames; op by op the drawing costs twice its kernels."""
    from mouselift_jax.render import render

    return jax.jit(lambda gaussians, cameras: render(gaussians, cameras).alpha[..., 0])


def _cut(
    alphas: np.ndarray, cameras: Camera, cell: float, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    counts = np.ceil((high - low) / cell).astype(int)
    return voxels.carve(low, counts, cell, alphas, cameras), low


def _side(size: float) -> int:
    """Pixels of a silhouette: fewer where the Gaussians are haze (untrained), which has no edge."""
    side = SIDE
    while side > 64 and size > FINE * SIDE / side:
        side //= 2
    return side


def _around(views: int, side: int) -> Camera:
    """Cameras [views] spread evenly over a sphere, looking at its middle."""
    i = np.arange(views) + 0.5
    z, angle = 1 - 2 * i / views, np.pi * (1 + 5**0.5) * i
    ring = np.sqrt(1 - z * z)
    directions = np.stack([ring * np.cos(angle), ring * np.sin(angle), z], -1)
    c2w = np.stack([look_at_c2w(DISTANCE * d) for d in directions])
    focal = side / 2 * DISTANCE / 1.05  # of a ball of radius 1
    K = intrinsics(focal, focal, side / 2, side / 2)
    return Camera(np.broadcast_to(K, (views, 3, 3)).copy(), c2w, side, side)


def _float32(camera: Camera) -> Camera:
    K, c2w = jnp.asarray(camera.K, jnp.float32), jnp.asarray(camera.c2w, jnp.float32)
    return Camera(K, c2w, camera.width, camera.height)


def measure(
    gaussians: Gaussians, to_mm: Similarity, ends: np.ndarray | None = None
) -> tuple[dict[str, Any], BodyShape | None]:
    """One frame: its row of `COLUMNS` (without motion and errors), and the shape it is of.

    Args:
        gaussians: one set.
        to_mm: scene -> mm, z up.
        ends: nose and tail root [2,3] in mm, of keypoints; None = told by shape.
    """
    row: dict[str, Any] = {k: float("nan") for k in COLUMNS if k not in TEXT}
    row |= {"head": "", "why": "", "trusted": 1, "gaussians": int(gaussians.n_gaussians)}
    if ends is not None:
        row["keypoint_length_mm"] = float(np.linalg.norm(ends[0] - ends[1]))
    solid = solid_of(gaussians, to_mm)
    shape = None if solid is None else body_shape(solid, ends)
    if solid is not None and ends is not None and _are_elsewhere(shape, ends):
        row |= {"trusted": 0, "why": "the keypoints are not on this body"}
        ends, shape = None, body_shape(solid)
    if shape is None:
        return row | {"trusted": 0, "why": "the Gaussians enclose no body"}, None
    row |= dict(zip(("x_mm", "y_mm", "z_mm"), map(float, shape.centre), strict=True))
    row |= {f"{name}_{unit}": getattr(shape, name) for name, unit in MEASURES.items()}
    row["head"] = "shape" if ends is None else "keypoints"
    return row, shape


def _are_elsewhere(shape: BodyShape | None, ends: np.ndarray) -> bool:
    """Whether nose and tail root [2,3] are of another animal: far from the spine's ends."""
    if shape is None:
        return True
    off = np.linalg.norm(ends - shape.spine[[0, -1]], axis=1)
    return bool((off > OFF_BODY * shape.length).any())


def standard_errors(
    solid_box: tuple[np.ndarray, np.ndarray],
    masks: np.ndarray,
    cameras: Camera,
    ends: np.ndarray | None = None,
) -> dict[str, float]:
    """Standard errors of a frame's measures: the visual hull's jackknife over its cameras.

    What the pictures leave open shows in how much the hull of the masks changes when a camera is
    left out. A fit is better than a hull, and `SHARES` of the hull's errors were found to be its
    (docs/measures.md: how, and how often the truth then lies within).

    Args:
        solid_box: low and high corner [3] of the body, mm.
        masks: [V,H,W] in [0,1].
        cameras: [V], in mm.
        ends: as `measure` takes them.

    Returns:
        {column: standard error}; {} with fewer than four cameras, or where one of the hulls has
        no trunk.
    """
    n = len(masks)
    if n < 4:
        return {}
    low, high = solid_box
    reach = 0.08 * float((high - low).max())
    low, high = low - reach, high + reach
    cell = float((high - low).max()) / HULL_CELLS
    shapes = []
    for left_out in range(n):
        rest = np.arange(n) != left_out
        cells, corner = _cut(masks[rest], cameras[rest], cell, low, high)
        if not cells.any():
            return {}
        shapes.append(body_shape(Solid(cells, corner, cell).largest(), ends))
    if any(s is None for s in shapes):
        return {}
    errors = {}
    rounding = cell * HULL_CELLS / CELLS / 6**0.5  # of a distance between two counted cells
    for name, unit in MEASURES.items():
        values = np.array([getattr(s, name) for s in shapes])
        if name in ANGLES:
            values = np.degrees(np.angle(np.exp(1j * np.radians(values - values[0]))))
        error = SHARES[name] * _jackknife(values[:, None])
        errors[f"{name}_se_{unit}"] = float(np.hypot(error, rounding if name in COUNTED else 0))
    errors["centre_se_mm"] = SHARES["centre"] * _jackknife(np.stack([s.centre for s in shapes]))
    return errors


def _jackknife(values: np.ndarray) -> float:
    """Standard error of a vector [V,D] from its values with each part left out: its length."""
    n = len(values)
    return float(np.sqrt((n - 1) / n * ((values - values.mean(0)) ** 2).sum()))


# Error of a fit's measure over the jackknife of the hull's, such that 68 % of errors lie inside:
# found by bench_measure on procedural recordings that walk, rear, turn and groom.
SHARES = {
    "centre": 0.72, "length": 0.40, "tail": 0.76, "width": 0.16, "height": 0.82, "volume": 0.29,
    "area": 0.31, "heading": 0.48, "pitch": 1.13, "roll": 0.16, "bend": 0.58,
}  # fmt: skip
COUNTED = ("width", "height")  # from the first full cell to the last: no finer than these


# --- motion --------------------------------------------------------------------------------------

GAP = 2.5  # median steps: a longer one is a hole, over which nothing is differentiated
WALKING = 25.0  # mm/s: from here on an animal goes where its head points
OFF = 0.12  # of the film's median of length or volume: a frame further off is not trusted


def motion(
    rows: Sequence[Mapping[str, Any]], votes: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """Speed from neighbouring frames; one heading through the film; what cannot be trusted.

    Head and tail are told apart by keypoints where a row says so, else over the whole film by the
    shape of every frame, the way it walks, and that no animal turns round between two frames.
    Without a clock (`time_s` NaN) speeds are NaN; the direction is known all the same.

    Args:
        rows: of `measure`, in order of time.
        votes: `BodyShape.front` of each; None = no shape says anything.
    """
    if not rows:
        raise ShapeError("a film without frames", expected="at least one", found=0)
    rows = [dict(r) for r in rows]
    times = np.array([r["time_s"] for r in rows], float)
    timed = len(rows) > 1 and bool(np.isfinite(times).all())
    clock = times if timed else np.arange(len(rows), dtype=float)
    places = np.array([[r["x_mm"], r["y_mm"], r["z_mm"]] for r in rows], float)
    velocity = _velocity(places, clock)
    votes = np.zeros(len(rows)) if votes is None else np.nan_to_num(np.array(votes, float))
    flipped, sure = _which_way(rows, votes, velocity if timed else velocity * 1e3)
    steps = np.gradient(clock) if len(rows) > 1 else np.full(1, np.nan)
    for i, row in enumerate(rows):
        row["speed_mm_s"] = float(np.linalg.norm(velocity[i])) if timed else float("nan")
        error = row.get("centre_se_mm", float("nan"))
        row["speed_se_mm_s"] = float(error / (2**0.5 * steps[i])) if timed else float("nan")
        if flipped[i]:
            row["heading_deg"] = (row["heading_deg"] + 180) % 360
            for name in ("pitch_deg", "roll_deg", "bend_deg"):
                row[name] = -row[name] if name in row else float("nan")
            row["head"] = "motion"
            _distrust(row, "its shape says the other end is the head: its length is not known")
        elif not sure[i] and row.get("head") != "keypoints":
            _distrust(row, "head and tail could not be told apart")
        row["heading_deg"] = float(row["heading_deg"] % 360)
    for name, what in (("length_mm", "length"), ("volume_mm3", "volume")):
        values = np.array([r.get(name, np.nan) for r in rows], float)
        if np.isfinite(values).sum() > 4:
            middle = np.nanmedian(values)
            for row, value in zip(rows, values, strict=True):
                if abs(value - middle) > OFF * middle:
                    _distrust(row, f"its {what} is {value / middle - 1:+.0%} off the film's median")
    return rows


def _distrust(row: dict[str, Any], why: str) -> None:
    row["trusted"] = 0
    row["why"] = f"{row['why']}; {why}" if row.get("why") else why


def _velocity(places: np.ndarray, clock: np.ndarray) -> np.ndarray:
    """Velocities [T,3], each over an unbroken stretch; NaN for a frame that stands alone."""
    velocity = np.full_like(places, np.nan)
    steps = np.diff(clock)
    holes = np.flatnonzero(steps > GAP * np.median(steps)) + 1 if len(steps) else []
    for part in np.split(np.arange(len(clock)), holes):
        if len(part) > 1:
            velocity[part] = np.gradient(places[part], clock[part], axis=0)
    return velocity


def _which_way(
    rows: Sequence[Mapping[str, Any]], votes: np.ndarray, velocity: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which frames are to be turned round [T], and of which that is sure [T] (Viterbi).

    A frame's cost of being turned is what its shape and its walk say; the cost of a step is how far
    the heading turns in it.
    """
    angles = np.radians([r["heading_deg"] for r in rows])
    ahead = np.stack([np.cos(angles), np.sin(angles)], -1)
    speed = np.linalg.norm(velocity, axis=1)
    along = (ahead * velocity[:, :2]).sum(1) / np.maximum(speed, 1e-9)
    says = 2 * votes + np.where(speed > WALKING, np.nan_to_num(along), 0.0)
    says = np.where([r.get("head") == "keypoints" for r in rows], 1e3, np.nan_to_num(says))
    turn = np.nan_to_num(np.cos(np.diff(angles)))  # 1: the next frame points the same way
    cost = np.stack([-says, says], -1)  # as it is, turned
    forward, backward = cost.copy(), cost.copy()
    for i in range(1, len(rows)):
        step = 1.5 * np.array([[-turn[i - 1], turn[i - 1]], [turn[i - 1], -turn[i - 1]]])
        forward[i] += (forward[i - 1][:, None] + step).min(0)
    for i in range(len(rows) - 2, -1, -1):
        step = 1.5 * np.array([[-turn[i], turn[i]], [turn[i], -turn[i]]])
        backward[i] += (backward[i + 1][None] + step).min(1)
    total = forward + backward - cost
    return total[:, 1] < total[:, 0], np.abs(total[:, 1] - total[:, 0]) > 0.5


def steadiness(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
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
