"""Faults a recording may have, each tried: does the correction make the geometry fit?

A `Geometry` is what the pictures say (outlines or keypoints per camera and instant) beside the
cameras that should explain it; its cost is the mean misfit of all camera pairs in pixels. A
`Hypothesis` corrects one suspected fault and so changes the cost. Nothing here knows files.

V cameras, T instants, P outline points or M keypoints.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mouselift_jax.data.check.corrections import (
    centre_as_translation,
    invert_extrinsics,
    opengl_axes,
    scale_focal,
    scale_translation,
    transpose_rotation,
)
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.hull import tangent_residuals
from mouselift_jax.geometry.triangulate import epipolar_distance

CLIP = 60.0  # pixels; beyond, a misfit is just "wrong"
MAX_OFFSET = 15  # frames
_CONVINCING = 0.67  # a correction leaves at most this share of the misfit of its cameras' pairs
_FIT_INSTANTS = 24  # for the fits of focal length and crop
_GOLDEN = 0.5 * (np.sqrt(5.0) - 1.0)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Measurements and cameras that should agree.

    Attributes:
        kind: `outlines` (convex outlines [V,T,P,2]) or `keypoints` (points [V,T,M,2]).
        xy: the measurements, NaN where missing; pixel centres at +0.5.
        cameras: one each.
        window: number of the run of consecutive frames each instant belongs to [T].
        frames: frame number of each instant [T]; None counts from 0.
    """

    kind: str
    xy: np.ndarray
    cameras: tuple[Camera, ...]
    window: np.ndarray
    frames: np.ndarray | None = None

    @property
    def instants(self) -> np.ndarray:
        """Frame numbers [T]."""
        return np.arange(self.xy.shape[1]) if self.frames is None else self.frames

    @property
    def n_views(self) -> int:
        """Number of cameras."""
        return len(self.cameras)

    def thinned(self, n: int) -> Geometry:
        """At most about n instants, evenly chosen; for fits, not for offsets in time."""
        step = max(1, -(-self.xy.shape[1] // n))
        frames = self.instants[::step]
        return dataclasses.replace(
            self, xy=self.xy[:, ::step], window=self.window[::step], frames=frames
        )

    def pair(self, i: int, j: int) -> np.ndarray:
        """Misfits of two cameras [T,n] in pixels, NaN where nothing can be compared."""
        if self.kind == "outlines":
            return tangent_residuals(self.xy[i], self.xy[j], self.cameras[i], self.cameras[j])
        return epipolar_distance(self.xy[i], self.xy[j], self.cameras[i], self.cameras[j])

    def replaced(self, v: int, *, xy: np.ndarray | None = None, camera: Camera | None = None):  # noqa: ANN201
        """The same with one camera's measurements or calibration exchanged."""
        new_xy, cameras = self.xy, list(self.cameras)
        if xy is not None:
            new_xy = self.xy.copy()
            new_xy[v] = xy
        if camera is not None:
            cameras[v] = camera
        return dataclasses.replace(self, xy=new_xy, cameras=tuple(cameras))


def pair_costs(geometry: Geometry, only: int | None = None) -> np.ndarray:
    """Mean clipped misfit [V,V] of each pair in pixels; NaN where too little can be compared.

    Args:
        geometry: measurements and cameras.
        only: evaluate pairs with this camera alone.
    """
    n = geometry.n_views
    costs = np.full((n, n), np.nan)
    for i, j in itertools.combinations(range(n), 2):
        if only is not None and only not in (i, j):
            continue
        misfit = geometry.pair(i, j)
        known = np.isfinite(misfit)
        if known.sum() >= 4:
            costs[i, j] = costs[j, i] = np.minimum(misfit[known], CLIP).mean()
    return costs


def cost(geometry: Geometry) -> float:
    """Mean misfit of all pairs in pixels."""
    costs = pair_costs(geometry)
    return float(np.nanmean(costs)) if np.isfinite(costs).any() else float("nan")


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One suspected fault and its correction.

    Attributes:
        code: the finding's code.
        cameras: indices of the cameras at fault.
        family: `pixels` (of the pictures or masks), `calibration`, or `either`.
        parameters: numbers that describe it, e.g. {"frames": 3}.
        complexity: how many free numbers the correction has; simple explanations come first.
        apply: corrects a geometry.
    """

    code: str
    cameras: tuple[int, ...]
    family: str
    parameters: dict[str, float]
    complexity: float
    apply: Callable[[Geometry], Geometry]

    def same_fault(self, other: Hypothesis | None) -> bool:
        """Whether both say the same of the same cameras (numbers may differ a little)."""
        return (
            other is not None
            and self.code == other.code
            and set(self.cameras) == set(other.cameras)
            and all(abs(v - other.parameters.get(k, v)) < 0.5 for k, v in self.parameters.items())
        )


# --- corrections of the measurements ------------------------------------------------------------


def shifted(geometry: Geometry, v: int, frames: int) -> np.ndarray:
    """Measurements of camera v as they are `frames` later, NaN where that leaves the window."""
    xy = np.full_like(geometry.xy[v], np.nan)
    n = xy.shape[0]
    rows = np.arange(n)
    source = rows + frames
    ok = (source >= 0) & (source < n)
    ok[ok] = geometry.window[rows[ok]] == geometry.window[source[ok]]
    xy[rows[ok]] = geometry.xy[v][source[ok]]
    return xy


def _swap(geometry: Geometry, i: int, j: int) -> Geometry:
    order = list(range(geometry.n_views))
    order[i], order[j] = order[j], order[i]
    return dataclasses.replace(geometry, xy=geometry.xy[order])


def _mirror(geometry: Geometry, v: int, axis: int) -> Geometry:
    side = (geometry.cameras[v].width, geometry.cameras[v].height)[axis]
    xy = geometry.xy[v].copy()
    xy[..., axis] = side - xy[..., axis]
    return geometry.replaced(v, xy=xy)


def _mirror_all(geometry: Geometry) -> Geometry:
    for v in range(geometry.n_views):
        geometry = _mirror(geometry, v, 0)
    return geometry


def _affine(geometry: Geometry, v: int, scale: np.ndarray, shift: np.ndarray) -> Geometry:
    return geometry.replaced(v, xy=geometry.xy[v] * scale + shift)


# --- the list of suspects -----------------------------------------------------------------------


def discrete_hypotheses(geometry: Geometry, suspects: list[int]) -> Iterator[Hypothesis]:
    """Every fault without a continuous parameter, for the suspected cameras."""
    n = geometry.n_views
    for i, j in itertools.combinations(range(n), 2):
        if i in suspects or j in suspects:
            yield Hypothesis("cameras_swapped", (i, j), "either", {}, 1,
                             lambda g, i=i, j=j: _swap(g, i, j))  # fmt: skip
    for v in suspects:
        for factor in (1000.0, 0.001, 10.0, 0.1):
            yield _of_camera("translation_units", v, {"factor": factor},
                             lambda c, f=factor: scale_translation(c, f))  # fmt: skip
        yield _of_camera("rotation_transposed", v, {}, transpose_rotation)
        for name, change in (("camera_to_world", invert_extrinsics),
                             ("centre_as_translation", centre_as_translation),
                             ("opengl_axes", opengl_axes)):  # fmt: skip
            yield _of_camera("extrinsics_convention", v, {name: 1.0}, change)
        for axis, name in ((0, "horizontal"), (1, "vertical")):
            yield Hypothesis("video_mirrored", (v,), "pixels", {name: 1.0}, 1,
                             lambda g, v=v, a=axis: _mirror(g, v, a))  # fmt: skip
        for d in [*range(-MAX_OFFSET, 0), *range(1, MAX_OFFSET + 1)]:
            yield Hypothesis(
                "video_offset", (v,), "pixels", {"frames": float(d)}, 1 + 0.01 * abs(d),
                lambda g, v=v, d=d: g.replaced(v, xy=shifted(g, v, -d)),
            )  # fmt: skip
    everyone = tuple(range(n))
    for step in range(1, n) if n > 2 else ():
        turned = np.roll(np.arange(n), step)
        yield _ordered(turned, {"rolled": float(step)})
    if n > 3:
        yield _ordered(everyone[::-1], {"reversed": 1.0})
    yield Hypothesis("video_mirrored", everyone, "pixels", {"horizontal": 1.0}, 1,
                     lambda g: _mirror_all(g))  # fmt: skip
    for code, name, change in (
        ("rotation_transposed", None, transpose_rotation),
        ("extrinsics_convention", "camera_to_world", invert_extrinsics),
        ("extrinsics_convention", "centre_as_translation", centre_as_translation),
        ("extrinsics_convention", "opengl_axes", opengl_axes),
    ):
        yield Hypothesis(code, everyone, "calibration", {name: 1.0} if name else {}, 1,
                         lambda g, c=change: _all_cameras(g, c))  # fmt: skip


def _ordered(order: Sequence[int], parameters: dict[str, float]) -> Hypothesis:
    """Videos numbered from another camera on, or backwards."""
    order = [int(i) for i in order]
    return Hypothesis(
        "cameras_swapped", tuple(range(len(order))), "either", parameters, 2,
        lambda g: dataclasses.replace(g, xy=g.xy[order]),
    )  # fmt: skip


def _of_camera(
    code: str, v: int, parameters: dict[str, float], change: Callable[[Camera], Camera]
) -> Hypothesis:
    return Hypothesis(
        code, (v,), "calibration", parameters, 1,
        lambda g: g.replaced(v, camera=change(g.cameras[v])),
    )  # fmt: skip


def _all_cameras(geometry: Geometry, change: Callable[[Camera], Camera]) -> Geometry:
    return dataclasses.replace(geometry, cameras=tuple(change(c) for c in geometry.cameras))


def continuous_hypotheses(
    geometry: Geometry, v: int, families: tuple[str, ...]
) -> Iterator[Hypothesis]:
    """Wrong focal length and cropped or resized pictures of camera v, fitted to the misfit."""

    def misfit(g: Geometry) -> float:
        costs = pair_costs(g, only=v)
        known = np.isfinite(costs)
        return float(costs[known].mean()) if known.any() else CLIP

    for whole, name in ((False, "focal"), (True, "whole_K")) * ("calibration" in families):

        def scaled(g: Geometry, f: float, whole: bool = whole) -> Geometry:
            return g.replaced(v, camera=scale_focal(g.cameras[v], f, whole=whole))

        factor = _line_search(lambda f, s=scaled: misfit(s(geometry, f)))
        yield Hypothesis("intrinsics_wrong", (v,), "calibration", {"factor": factor, name: 1.0},
                         2, lambda g, s=scaled, f=factor: s(g, f))  # fmt: skip
    for free in (2, 4) * ("pixels" in families):
        fit = _fit_affine(geometry, v, free, misfit)
        if fit is not None:
            scale, shift = fit
            parameters = {"scale_x": scale[0], "scale_y": scale[1],
                          "shift_x": shift[0], "shift_y": shift[1]}  # fmt: skip
            yield Hypothesis(
                "video_cropped", (v,), "pixels", {k: float(p) for k, p in parameters.items()},
                1 + free, lambda g, a=scale, b=shift: _affine(g, v, a, b),
            )  # fmt: skip


def common_focal_hypothesis(geometry: Geometry) -> Hypothesis:
    """All focal lengths off by one factor, as when K belongs to another undistortion."""

    def scaled(g: Geometry, f: float) -> Geometry:
        return _all_cameras(g, lambda c: scale_focal(c, f))

    factor = _line_search(lambda f: cost(scaled(geometry, f)))
    everyone = tuple(range(geometry.n_views))
    return Hypothesis("intrinsics_wrong", everyone, "calibration", {"factor": factor}, 2,
                      lambda g: scaled(g, factor))  # fmt: skip


def _line_search(value: Callable[[float], float]) -> float:
    """Factor in 0.6 .. 1.7 with the smallest value: a coarse scan, then golden section."""
    logs = np.linspace(np.log(0.6), np.log(1.7), 23)
    best = int(np.argmin([value(float(np.exp(x))) for x in logs]))
    low, high = logs[max(best - 1, 0)], logs[min(best + 1, len(logs) - 1)]
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    fa, fb = value(float(np.exp(a))), value(float(np.exp(b)))
    for _ in range(14):
        if fa < fb:
            high, b, fb = b, a, fa
            a = high - _GOLDEN * (high - low)
            fa = value(float(np.exp(a)))
        else:
            low, a, fa = a, b, fb
            b = low + _GOLDEN * (high - low)
            fb = value(float(np.exp(b)))
    return float(np.exp(0.5 * (low + high)))


def _fit_affine(
    geometry: Geometry, v: int, free: int, misfit: Callable[[Geometry], float]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and shift [2] each of camera v's pixels that fit it to the others, or None."""
    from scipy.optimize import minimize

    start = _predicted_shift(geometry, v)
    if start is None:
        return None
    size = np.array([geometry.cameras[v].width, geometry.cameras[v].height], np.float64)
    half = size / 2

    def unpack(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale = np.exp(p[2:4]) if free == 4 else np.ones(2)
        # Scaling acts about the picture's middle, which keeps the parameters independent.
        return scale, p[:2] * 100.0 + half - scale * half

    def objective(p: np.ndarray) -> float:
        if np.abs(p[2:]).max(initial=0.0) > 1.2:
            return CLIP
        return misfit(_affine(geometry, v, *unpack(p)))

    best = None
    for log_scale in (0.0,) if free == 2 else (0.0, -0.25, 0.25):
        p0 = np.concatenate([start / 100.0, np.full(free - 2, log_scale)])
        simplex = np.vstack([p0, p0 + np.diag([0.15, 0.15, 0.05, 0.05][:free])])
        options = {"initial_simplex": simplex, "maxfev": 70 * free, "xatol": 1e-4, "fatol": 1e-3}
        result = minimize(objective, p0, method="Nelder-Mead", options=options)
        if best is None or result.fun < best.fun:
            best = result
    return unpack(best.x)


def _predicted_shift(geometry: Geometry, v: int) -> np.ndarray | None:
    """Where the other cameras expect camera v's measurements, minus where they are [2]."""
    from mouselift_jax.geometry.camera import stack_cameras
    from mouselift_jax.geometry.triangulate import triangulate

    others = [i for i in range(geometry.n_views) if i != v]
    if geometry.kind == "outlines":
        centre = 0.5 * (np.fmin.reduce(geometry.xy, 2) + np.fmax.reduce(geometry.xy, 2))
    else:
        centre = geometry.xy.reshape(geometry.n_views, -1, 2)
    pick = slice(None, None, max(1, centre.shape[1] // 64))
    centre = centre[:, pick]
    cameras = stack_cameras([geometry.cameras[i] for i in others], any_size=True)
    points = triangulate(centre[others], cameras)
    if not np.isfinite(points).all(-1).any():
        return None
    expected, depth = geometry.cameras[v].project(points)
    gap = np.where(depth[:, None] > 0, expected - centre[v], np.nan)
    return np.nanmedian(gap, 0) if np.isfinite(gap).all(-1).any() else None
