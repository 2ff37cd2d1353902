"""The procedural mouse as exact cells, and as Gaussians on its skin."""

import numpy as np

from mouselift_jax.data.synthetic.body import Body
from mouselift_jax.data.synthetic.recording import Scene
from mouselift_jax.geometry.solid import Solid
from mouselift_jax.splats.gaussians import Gaussians


def body_of(seed: int, frame: int, fps: float = 30.0) -> Body:
    return Scene(seed, fps).body(frame)


def solid_of_body(body: Body, cell: float = 1.0) -> Solid:
    """Cells whose middle lies in one of the body's ellipsoids."""
    reach = body.radii.max(1, keepdims=True)
    low = (body.centre - reach).min(0) - cell
    counts = np.ceil(((body.centre + reach).max(0) + cell - low) / cell).astype(int)
    cells = np.zeros(counts, bool)
    for centre, frame, radii in zip(body.centre, body.frame, body.radii, strict=True):
        first = np.maximum(((centre - radii.max() - low) / cell).astype(int), 0)
        last = np.minimum(((centre + radii.max() - low) / cell).astype(int) + 2, counts)
        index = [np.arange(a, b) for a, b in zip(first, last, strict=True)]
        points = low + cell * (np.stack(np.meshgrid(*index, indexing="ij"), -1) + 0.5)
        inside = ((((points - centre) @ frame) / radii) ** 2).sum(-1) <= 1
        cells[np.ix_(*index)] |= inside
    return Solid(cells, low, cell).largest()


def skin_of(body: Body, to_scene=None, apart: float = 0.9) -> Gaussians:
    """Opaque Gaussians under the skin of the ellipsoids, whose silhouettes are the body's."""
    sigma, points = 0.5 * apart, []
    for k, (centre, frame, radii) in enumerate(
        zip(body.centre, body.frame, body.radii, strict=True)
    ):
        n = max(12, int(4 * np.pi * np.mean(radii) ** 2 / apart**2))
        i = np.arange(n) + 0.5
        ring, angle = np.sqrt(1 - (1 - 2 * i / n) ** 2), np.pi * (1 + 5**0.5) * i
        ball = np.stack([ring * np.cos(angle), ring * np.sin(angle), 1 - 2 * i / n], -1)
        own = centre + ball * np.maximum(radii - 2.2 * sigma, 0.3 * radii) @ frame.T
        near = np.flatnonzero(
            np.linalg.norm(body.centre - centre, axis=1) < body.radii.max(1) + radii.max()
        )
        buried = np.zeros(n, bool)
        for j in near[near != k]:
            r = np.maximum(body.radii[j] - 3.2 * sigma, 1e-3)
            buried |= ((((own - body.centre[j]) @ body.frame[j]) / r) ** 2).sum(-1) < 1
        points.append(own[~buried])
    points, scale = np.concatenate(points), 1.0
    if to_scene is not None:
        points, scale = np.asarray(to_scene.apply(points)), float(to_scene.scale)
    n = len(points)
    return Gaussians(
        points.astype(np.float32),
        np.tile(np.float32([1, 0, 0, 0]), (n, 1)),
        np.full((n, 3), np.log(sigma * scale), np.float32),
        np.full(n, 4, np.float32),
        np.random.default_rng(0).normal(0, 0.3, (n, 1, 3)).astype(np.float32),
    )
