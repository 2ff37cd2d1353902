"""Truth of the procedural mouse's skin: material points through time, who sees them, volume."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mouselift_jax.data.synthetic.body import Body
from mouselift_jax.geometry.camera import Camera

SKIN_POINTS = 500
DEEP = 0.3  # mm that a point may dip into a neighbouring ellipsoid where the body bends
HIDDEN = 0.6  # mm of body before a point, along the ray, that hide it


@dataclasses.dataclass(frozen=True)
class Skin:
    """Material points: each stays at one place of one ellipsoid.

    Attributes:
        ellipsoid: number of the ellipsoid of each point [S].
        unit: place on the unit sphere, in the ellipsoid's axes [S,3].
    """

    ellipsoid: np.ndarray
    unit: np.ndarray

    @classmethod
    def spread(cls, bodies: Sequence[Body], rng: np.random.Generator, n: int = SKIN_POINTS) -> Skin:
        """`n` points even over what is outside in all of `bodies` (one animal, several poses)."""
        radii = bodies[0].radii
        area = (radii[:, [0, 0, 1]] * radii[:, [1, 2, 2]]).sum(-1)
        ellipsoid, unit = np.zeros(0, int), np.zeros((0, 3))
        while len(ellipsoid) < n:
            drawn = rng.choice(len(radii), 2 * n, p=area / area.sum())
            ways = rng.normal(size=(2 * n, 3))
            some = cls(drawn, ways / np.linalg.norm(ways, axis=-1, keepdims=True))
            for body in bodies:
                good = some._is_outside(body)
                some = cls(some.ellipsoid[good], some.unit[good])
            ellipsoid = np.concatenate([ellipsoid, some.ellipsoid])
            unit = np.concatenate([unit, some.unit])
        return cls(ellipsoid[:n], unit[:n])

    def at(self, body: Body) -> np.ndarray:
        """Where the points are [S,3], mm."""
        local = body.radii[self.ellipsoid] * self.unit
        return body.centre[self.ellipsoid] + np.einsum(
            "sij,sj->si", body.frame[self.ellipsoid], local
        )

    def seen(self, body: Body, cameras: Sequence[Camera]) -> np.ndarray:
        """Whether each camera sees each point [S,V]: in its picture, no body before it."""
        points = self.at(body)
        return np.stack([_sees(body, camera, points) for camera in cameras], -1)

    def _is_outside(self, body: Body) -> np.ndarray:
        A = np.swapaxes(body.frame, 1, 2) / body.radii[:, :, None]  # world to unit sphere
        local = np.einsum("pij,pj->pi", A, body.centre)
        unit = np.tensordot(self.at(body), A, ([1], [2])) - local
        depth = (1 - np.linalg.norm(unit, axis=-1)) * body.radii.min(-1)
        depth[np.arange(len(self.unit)), self.ellipsoid] = 0
        return depth.max(-1) < DEEP


def _sees(body: Body, camera: Camera, points: np.ndarray) -> np.ndarray:
    xy, depth = camera.project(points)
    inside = (depth > 0) & ((xy > 0) & (xy < [camera.width, camera.height])).all(-1)
    d = points - camera.center
    distance = np.linalg.norm(d, axis=-1)
    A = np.swapaxes(body.frame, 1, 2) / body.radii[:, :, None]  # world to unit sphere
    o = np.einsum("pij,pj->pi", A, camera.center - body.centre)
    q = np.tensordot(d / distance[:, None], A, ([1], [2]))
    a, b, c = (q * q).sum(-1), (q * o).sum(-1), (o * o).sum(-1) - 1
    disc = b * b - a * c
    hit = np.where(disc > 0, (-b - np.sqrt(np.maximum(disc, 0))) / a, np.inf)
    return inside & (hit.min(-1) > distance - HIDDEN)


def solid(body: Body, step: float = 1.0) -> tuple[float, np.ndarray]:
    """Volume, mm3, and centre of mass [3], mm, of the union of the ellipsoids.

    Args:
        body: the animal.
        step: of the grid that is counted, mm.
    """
    reach = body.radii.max(-1)[:, None]
    low = np.floor((body.centre - reach).min(0) / step) * step
    size = np.ceil(((body.centre + reach).max(0) - low) / step).astype(int) + 1
    full = np.zeros(size, bool)
    for centre, frame, radii in zip(body.centre, body.frame, body.radii, strict=True):
        first = np.maximum(np.floor((centre - radii.max() - low) / step).astype(int), 0)
        last = np.minimum(np.ceil((centre + radii.max() - low) / step).astype(int) + 1, size)
        axes = [low[i] + step * (np.arange(first[i], last[i]) + 0.5) - centre[i] for i in range(3)]
        local = np.stack(np.meshgrid(*axes, indexing="ij"), -1) @ frame / radii
        box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        full[box] |= (local * local).sum(-1) < 1
    middle = low + step * (np.argwhere(full).mean(0) + 0.5)
    return float(full.sum() * step**3), middle
