"""Faults of a picture as a whole: another size than its calibration, turned, counted from 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from mouselift_jax.data.check.hypotheses import Geometry, Hypothesis, cost
from mouselift_jax.geometry.camera import Camera

FACTORS = (0.5, 2.0, 0.25, 4.0, 1 / 3, 3.0, 2 / 3, 1.5, 0.75, 4 / 3, 0.8, 1.25, 0.625, 1.6)
_NEAR = 0.03  # principal points lie this near the middle where sizes are to be told from them


def resized_K(camera: Camera, fx: float, fy: float) -> Camera:
    """The camera of pictures that were resized by (fx, fy) after the calibration."""
    K = np.array(camera.K, np.float64)
    K[0] *= fx
    K[1] *= fy
    return dataclasses.replace(camera, K=K)


def size_hypotheses(geometry: Geometry, suspects: list[int]) -> Iterator[Hypothesis]:
    """Pictures resized or turned, of one suspected camera or of all."""
    everyone = tuple(range(geometry.n_views))
    for cameras in [(v,) for v in suspects] + [everyone]:
        for fx, fy in _factors(geometry, cameras):

            def change(c: Camera, fx: float = fx, fy: float = fy) -> Camera:
                return resized_K(c, fx, fy)

            parameters = {"factor_x": fx, "factor_y": fy}
            yield Hypothesis("picture_resized", cameras, "either", parameters, 0.9,
                             _of(cameras, change))  # fmt: skip
        for degrees in (180, 90, 270):
            yield Hypothesis("video_turned", cameras, "pixels", {"degrees": float(degrees)}, 1,
                             lambda g, c=cameras, d=degrees: _turned(g, c, d))  # fmt: skip


def _factors(geometry: Geometry, cameras: tuple[int, ...]) -> list[tuple[float, float]]:
    """Round factors, and those that bring the principal points to the middle."""
    pairs = [(f, f) for f in FACTORS]
    sizes = [(geometry.cameras[v].width, geometry.cameras[v].height) for v in cameras]
    points = [np.asarray(geometry.cameras[v].K)[:2, 2] for v in cameras]
    fx, fy = np.median([np.array(s) / 2 / np.maximum(p, 1e-6) for s, p in
                        zip(sizes, points, strict=True)], axis=0)  # fmt: skip
    if max(abs(np.log(fx)), abs(np.log(fy))) > _NEAR:
        pairs += [(_round(fx), _round(fy)), (float(fx), float(fy))]
    return pairs


def _round(factor: float) -> float:
    """The round factor that is near, or the factor itself."""
    nearest = min((1.0, *FACTORS), key=lambda f: abs(np.log(f / factor)))
    return nearest if abs(np.log(nearest / factor)) < _NEAR else float(factor)


def _of(cameras: tuple[int, ...], change: Callable[[Camera], Camera]) -> Callable:
    def apply(g: Geometry) -> Geometry:
        new = list(g.cameras)
        for v in cameras:
            new[v] = change(new[v])
        return dataclasses.replace(g, cameras=tuple(new))

    return apply


def _turned(geometry: Geometry, cameras: tuple[int, ...], degrees: int) -> Geometry:
    """Pixels of pictures turned clockwise by `degrees`, turned back."""
    for v in cameras:
        camera = geometry.cameras[v]
        w, h = camera.width, camera.height
        x, y = geometry.xy[v][..., 0], geometry.xy[v][..., 1]
        if degrees == 180:
            xy = np.stack([w - x, h - y], -1)
        elif degrees == 90:  # clockwise: old (x, y) went to (h_old - y, x), and h_old is w
            xy = np.stack([y, w - x], -1)
        else:
            xy = np.stack([h - y, x], -1)
        if degrees != 180:
            camera = dataclasses.replace(camera, width=h, height=w)
        geometry = geometry.replaced(v, xy=xy, camera=camera)
    return geometry


def principal_points_hypothesis(geometry: Geometry) -> Hypothesis:
    """All principal points off by the same pixels, as when they are counted from another origin."""
    from scipy.optimize import minimize

    def moved(g: Geometry, x: float, y: float) -> Geometry:
        def change(c: Camera) -> Camera:
            K = np.array(c.K, np.float64)
            K[:2, 2] -= (x, y)
            return dataclasses.replace(c, K=K)

        return _of(tuple(range(g.n_views)), change)(g)

    simplex = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    options = {"initial_simplex": simplex, "maxfev": 60, "xatol": 0.02, "fatol": 1e-3}
    best = minimize(lambda p: cost(moved(geometry, *p)), np.zeros(2), method="Nelder-Mead",
                    options=options).x  # fmt: skip
    parameters = {"x": float(best[0]), "y": float(best[1])}
    return Hypothesis("principal_points", tuple(range(geometry.n_views)), "either", parameters,
                      1.8, lambda g, p=best: moved(g, *p))  # fmt: skip
