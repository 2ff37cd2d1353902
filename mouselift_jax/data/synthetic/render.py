"""Pictures of the procedural mouse, ray-cast in NumPy.

On purpose not drawn with the project's own rasterizer: a pipeline that is fed by its own renderer
would not notice its own mistakes. Every pixel meets the first ellipsoid on its ray; the animal is
drawn at `SUPERSAMPLE` times the resolution and averaged, which gives exact soft outlines.
"""

from __future__ import annotations

import numpy as np

from mouselift_jax.data.synthetic.body import COAT, EYE, SKIN, Body
from mouselift_jax.data.synthetic.rig import ARENA_CENTRE, ARENA_RADIUS
from mouselift_jax.geometry.camera import Camera

SUPERSAMPLE = 2
_SKIN_RGB = np.array([0.74, 0.52, 0.49], np.float32)
_BACK_RGB = np.array([0.30, 0.20, 0.13], np.float32)
_BELLY_RGB = np.array([0.80, 0.74, 0.64], np.float32)
_PATCH_RGB = np.array([0.66, 0.46, 0.26], np.float32)
_LIGHT = np.array([0.25, -0.15, 0.96], np.float32)


class Painter:
    """Draws one animal with one coat; the coat depends on `seed` alone."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 77])
        # Plane waves in rest coordinates: large patches, then hair.
        self._patch_waves = rng.normal(size=(7, 3)) * np.array([0.075, 0.11, 0.09])
        self._patch_phase = rng.uniform(0, 2 * np.pi, 7)
        self._hair_waves = rng.normal(size=(8, 3)) * np.array([0.35, 0.9, 0.9])
        self._hair_phase = rng.uniform(0, 2 * np.pi, 8)

    def mouse(self, body: Body, camera: Camera) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """The animal alone.

        Returns:
            rgb float32 [h,w,3] (straight, 0 where alpha is 0), alpha [h,w], and (x0, y0): where
            this window of the picture starts.
        """
        window = _window(body, camera)
        if window is None:
            return np.zeros((0, 0, 3), np.float32), np.zeros((0, 0), np.float32), (0, 0)
        x0, y0, x1, y1 = window
        n = SUPERSAMPLE
        local, _ = camera.cropped(float(x0), float(y0), x1 - x0, y1 - y0)
        local, _ = local.resized((x1 - x0) * n, (y1 - y0) * n)
        cast = _cast(body, local)
        rgb = np.zeros((*cast["hit"].shape, 3), np.float32)
        rgb[cast["hit"]] = self._shade(cast)
        alpha = cast["hit"].astype(np.float32)
        h, w = y1 - y0, x1 - x0
        mean_alpha = alpha.reshape(h, n, w, n).mean((1, 3))
        mean_rgb = (rgb * alpha[..., None]).reshape(h, n, w, n, 3).mean((1, 3))
        return mean_rgb / np.maximum(mean_alpha, 1e-6)[..., None], mean_alpha, (x0, y0)

    def _shade(self, cast: dict[str, np.ndarray]) -> np.ndarray:
        rest, normal, skin, eye = cast["rest"], cast["normal"], cast["skin"], cast["eye"]
        patch = _waves(rest, self._patch_waves, self._patch_phase)
        hair = _waves(rest, self._hair_waves, self._hair_phase)
        belly = _smooth((16.0 - rest[:, 2]) / 9.0)
        coat = _BACK_RGB + (_PATCH_RGB - _BACK_RGB) * _smooth(0.5 + 0.6 * patch)[:, None]
        coat = coat + (_BELLY_RGB - coat) * belly[:, None]
        coat = coat * (1 + 0.045 * hair)[:, None]
        colour = coat + (_SKIN_RGB * (1 + 0.012 * hair)[:, None] - coat) * skin[:, None]
        colour = colour * (1 - 0.93 * eye)[:, None]
        light = 0.52 + 0.48 * np.clip(normal @ _LIGHT, 0, 1) + 0.06 * normal[:, 2]
        rim = 0.05 * (1 - np.abs((normal * cast["ray_d"]).sum(-1))) ** 3
        return np.clip(colour * light[:, None] + rim[:, None], 0, 1).astype(np.float32)


def _waves(at: np.ndarray, waves: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """The sum [N] of plane waves at points [N,3]."""
    angle = waves.astype(np.float32) @ at.T + phase.astype(np.float32)[:, None]
    return np.sin(angle).sum(0)


def _smooth(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _extents(body: Body, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Centres [P,2] and generous radii [P] of the ellipsoids' pictures, pixels."""
    xy, depth = camera.project(body.centre)
    radius = body.radii.max(-1)
    focal = max(camera.K[0, 0], camera.K[1, 1])
    return xy, 1.06 * focal * radius / np.maximum(depth - radius, 1e-3) + 1.5


def _window(body: Body, camera: Camera) -> tuple[int, int, int, int] | None:
    xy, r = _extents(body, camera)
    size = np.array([camera.width, camera.height])
    low = np.clip(np.floor((xy - r[:, None]).min(0)), 0, size).astype(int)
    high = np.clip(np.ceil((xy + r[:, None]).max(0)), 0, size).astype(int)
    return None if (high <= low).any() else (*low.tolist(), *high.tolist())


def _rays(camera: Camera) -> np.ndarray:
    """Ray directions [3,h,w] with unit camera z, world axes.

    Planes, because NumPy's loops over a last axis of three numbers take several times longer.
    """
    x = (np.arange(camera.width) + 0.5 - camera.K[0, 2]) / camera.K[0, 0]
    y = (np.arange(camera.height) + 0.5 - camera.K[1, 2]) / camera.K[1, 1]
    x, y = np.meshgrid(x, y)
    R = camera.c2w[:3, :3]
    return np.stack([r[0] * x + r[1] * y + r[2] for r in R]).astype(np.float32)


def _cast(body: Body, camera: Camera) -> dict[str, np.ndarray]:
    """First hits: depth per pixel, then per hit normal, rest position and material shares."""
    h, w = camera.height, camera.width
    d = _rays(camera)
    origin = camera.center
    xy, r = _extents(body, camera)
    low = np.clip(np.floor(xy - r[:, None]), 0, [w, h]).astype(int)
    high = np.clip(np.ceil(xy + r[:, None]), 0, [w, h]).astype(int)
    windows = [
        (p, (slice(y0, y1), slice(x0, x1)))
        for p, ((x0, y0), (x1, y1)) in enumerate(zip(low, high, strict=True))
        if x1 > x0 and y1 > y0
    ]
    # World to unit sphere, per ellipsoid.
    A = (np.swapaxes(body.frame, 1, 2) / body.radii[:, :, None]).astype(np.float32)
    o = np.einsum("pij,pj->pi", A, origin - body.centre).astype(np.float32)
    depth = np.full((h, w), np.inf, np.float32)
    for p, window in windows:
        view = depth[window]
        q = A[p] @ d[(slice(None), *window)].reshape(3, -1)
        a = q[0] * q[0] + q[1] * q[1] + q[2] * q[2]
        b = o[p] @ q
        disc = b * b - a * (o[p] @ o[p] - np.float32(1.0))
        t = np.where(disc > 0, (-b - np.sqrt(np.maximum(disc, 0))) / a, np.inf)
        np.minimum(view, t.reshape(view.shape), out=view)
    hit = np.isfinite(depth)
    return {"hit": hit, **_surface(body, origin, d, depth, hit, windows)}


def _surface(
    body: Body,
    origin: np.ndarray,
    d: np.ndarray,
    depth: np.ndarray,
    hit: np.ndarray,
    windows: list[tuple[int, tuple[slice, slice]]],
) -> dict[str, np.ndarray]:
    """Blend normal, rest position and material of the ellipsoids near each hit point."""
    number = np.full(hit.shape, -1)
    n = int(hit.sum())
    number[hit] = np.arange(n)  # of the hits, as they are stored
    ray = d[:, hit]
    point = (origin.astype(np.float32)[:, None] + ray * depth[hit]).T
    sums = np.zeros((n, 9), np.float32)  # weight, normal, rest, skin, eye
    for p, window in windows:
        inside = number[window]
        inside = inside[inside >= 0]
        frame, radii = body.frame[p].astype(np.float32), body.radii[p].astype(np.float32)
        local = frame.T @ (point[inside] - body.centre[p].astype(np.float32)).T
        unit = local / radii[:, None]
        norm = np.sqrt(unit[0] * unit[0] + unit[1] * unit[1] + unit[2] * unit[2])
        blend = 0.35 if body.part[p] == COAT else 0.2  # mm of softness between parts
        gap = (norm - 1) * radii.min() / np.float32(max(blend, 0.06 * radii.min()))
        near = np.flatnonzero(gap < 16)  # beyond it a weight is lost beside the surface's, float32
        local, unit, norm = local[:, near], unit[:, near], norm[near]
        row = np.zeros((9, len(near)), np.float32)
        row[0] = weight = np.exp(-np.maximum(gap[near], 0))
        row[1:4] = (weight / np.maximum(norm, 1e-6)) * (frame @ (unit / radii[:, None]))
        row[4:7] = weight * (local + body.rest_centre[p].astype(np.float32)[:, None])
        if body.part[p] in (SKIN, EYE):
            row[7 if body.part[p] == SKIN else 8] = weight
        sums[inside[near]] += row.T
    sums = np.ascontiguousarray(sums.T)
    weight = np.maximum(sums[0], 1e-8)
    length = np.sqrt((sums[1:4] ** 2).sum(0))
    return {
        "normal": (sums[1:4] / np.maximum(length, 1e-8)).T,
        "rest": (sums[4:7] / weight).T,
        "skin": sums[7] / weight,
        "eye": sums[8] / weight,
        "ray_d": (ray / np.sqrt((ray**2).sum(0))).T,
    }


class Arena:
    """What one camera sees behind the animal; drawn once, shadows added per frame."""

    def __init__(self, camera: Camera, seed: int = 0, number: int = 0) -> None:
        rng = np.random.default_rng([seed, 5, number])
        d = np.moveaxis(_rays(camera), 0, -1)
        o = camera.center
        with np.errstate(divide="ignore", invalid="ignore"):
            t = -o[2] / d[..., 2]
        floor = o[:2] + d[..., :2] * np.where((d[..., 2] < 0) & np.isfinite(t), t, 1e6)[..., None]
        self.floor = floor.astype(np.float32)
        radius = np.linalg.norm(floor - ARENA_CENTRE[:2], axis=-1)
        pixel = 325.0 / camera.K[0, 0]  # mm per pixel near the arena
        on_disc = np.clip((ARENA_RADIUS - radius) / (2.0 * pixel) + 0.5, 0, 1)
        waves = np.random.default_rng([seed, 6]).normal(size=(9, 2)) * 0.12
        phases = np.arange(9) * 1.7
        near = np.where((radius < 400)[..., None], floor, 0.0)
        speckle = np.sin(near @ waves.T + phases).sum(-1)
        disc = (0.83 + 0.012 * speckle)[..., None] * np.array([1.0, 0.995, 0.98])
        disc = disc * (1 - 0.12 * (radius / ARENA_RADIUS)[..., None] ** 2)
        elevation = d[..., 2] / np.linalg.norm(d, axis=-1)
        azimuth = np.arctan2(d[..., 1], d[..., 0])
        wall = 0.17 + 0.06 * np.sin(9 * azimuth + rng.uniform(0, 6)) * np.cos(14 * elevation)
        wall = wall + 0.10 * np.exp(-(((elevation - rng.uniform(0.02, 0.08)) / 0.012) ** 2))
        dark = wall[..., None] * np.array([0.95, 1.0, 1.08])
        self.on_disc = on_disc.astype(np.float32)
        self.rgb = np.clip(dark + (disc - dark) * on_disc[..., None], 0, 1).astype(np.float32)
        self.gain = rng.uniform(0.96, 1.04, 3).astype(np.float32)

    def with_shadow(self, body: Body) -> np.ndarray:
        """The background [H,W,3] with the animal's soft shadow on the disc."""
        rgb = self.rgb.copy()
        reach = 75.0
        offset = self.floor - body.position[:2].astype(np.float32)
        near = (np.abs(offset[..., 0]) < reach) & (np.abs(offset[..., 1]) < reach)
        if not near.any():
            return rgb
        rows, cols = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
        box = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
        x, y = np.moveaxis(self.floor[box], -1, 0)
        light = np.ones(x.shape, np.float32)
        for p in np.flatnonzero(body.radii.min(-1) > 3.5)[::3]:
            spread = np.float32(2 * (0.75 * body.radii[p].max() + 2.5) ** 2)
            cx, cy = body.centre[p, :2].astype(np.float32)
            gap = (x - cx) ** 2 + (y - cy) ** 2
            light *= 1 - np.float32(0.16) * np.exp(-np.minimum(gap / spread, np.float32(30)))
        light = 1 - (1 - np.maximum(light, 0.35)) * self.on_disc[box]
        rgb[box] *= light[..., None]
        return rgb


def compose(
    background: np.ndarray, rgb: np.ndarray, alpha: np.ndarray, start: tuple[int, int]
) -> np.ndarray:
    """Lay the animal's window over the background [H,W,3] (a changed copy is returned)."""
    out = background.copy()
    x0, y0 = start
    h, w = alpha.shape
    view = out[y0 : y0 + h, x0 : x0 + w]
    view += (rgb - view) * alpha[..., None]
    return out


def full_mask(alpha: np.ndarray, start: tuple[int, int], camera: Camera) -> np.ndarray:
    """The animal's alpha in the whole picture [H,W]."""
    mask = np.zeros((camera.height, camera.width), np.float32)
    x0, y0 = start
    mask[y0 : y0 + alpha.shape[0], x0 : x0 + alpha.shape[1]] = alpha
    return mask
