"""Scenes for benchmarks and pictures: what GS-LRM writes when trained, and when not."""

from __future__ import annotations

import numpy as np


def ring_cameras(views: int, size: int, *, radius: float = 2.7, fov: float = 50.0, start=0.0):
    """Cameras that look at the origin from a ring: w2c [V,4,4], K [V,3,3]."""
    focal = size / 2 / np.tan(np.radians(fov) / 2)
    K = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    w2c = np.tile(np.eye(4), (views, 1, 1))
    for i in range(views):
        a, e = 2 * np.pi * i / views + start, np.radians(15)
        center = radius * np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
        forward = -center / radius
        right = np.cross(forward, [0, 0, 1.0])
        right /= np.linalg.norm(right)
        w2c[i, :3, :3] = np.stack([right, np.cross(forward, right), forward])
        w2c[i, :3, 3] = -w2c[i, :3, :3] @ center
    return w2c.astype(np.float32), np.tile(K, (views, 1, 1)).astype(np.float32)


def gslrm_like(n: int, size: int, *, views: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Pixel-aligned splats on a bumpy surface seen from six views.

    Standard deviations are 0.5 to 2 px of the rendered picture, a third of the opacities is above
    0.7, the splats of a view come in patch-major order as GS-LRM writes them.
    """
    rng = np.random.default_rng(seed)
    per_view = -(-n // 6)
    side = int(np.ceil(np.sqrt(per_view * 1.7)))  # the blob fills about 60 % of its square
    side = -(-side // 8) * 8
    w2c, _ = ring_cameras(6, size, start=0.35)
    means = []
    for i in range(6):
        row, col = np.mgrid[:side, :side]
        blocks = [a.reshape(side // 8, 8, side // 8, 8).swapaxes(1, 2).ravel() for a in (row, col)]
        y, x = ((b + 0.5) / side * 2 - 1 for b in blocks)
        inside = np.flatnonzero(x * x + y * y < 0.76)
        z = np.sqrt(np.maximum(0, 0.8 - x * x - y * y)) * (1 + 0.1 * np.sin(7 * x) * np.cos(6 * y))
        points = 0.85 * np.stack([x, y, -z], -1)[inside] @ w2c[i, :3, :3]
        means.append(points[np.linspace(0, len(points) - 1, per_view).astype(int)])
    means = np.concatenate(means)[:n] + rng.normal(size=(n, 3)) * 0.003
    pixel = 2.7 / (size / 2 / np.tan(np.radians(25)))  # scene units per px at the object
    sigma = np.exp(rng.uniform(np.log(0.5), np.log(2.0), (n, 3))) * pixel
    w2c, K = ring_cameras(views, size)
    bright = rng.random(n) < 0.3
    arrays = dict(
        means=means,
        quats=rng.normal(size=(n, 4)),
        scales=sigma,
        opacities=np.where(bright, rng.uniform(0.7, 0.99, n), rng.uniform(0.02, 0.7, n)),
        colors=np.clip(0.5 + 0.4 * np.sin(9 * means) + rng.normal(size=(n, 3)) * 0.05, 0, 1),
        w2c=w2c,
        K=K,
    )
    return {k: v.astype(np.float32) for k, v in arrays.items()}


def untrained(n: int, size: int, *, views: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """The same places with the sizes and opacities of a network that has learnt nothing."""
    arrays = gslrm_like(n, size, views=views, seed=seed)
    arrays["scales"] = np.full_like(arrays["scales"], np.exp(-2.3))
    arrays["opacities"] = np.full_like(arrays["opacities"], 0.12)
    return arrays


def shell(n: int, size: int, *, views: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Splats on a bumpy sphere, as large as their spacing."""
    arrays = gslrm_like(n, size, views=views, seed=seed)
    rng = np.random.default_rng(seed + 1)
    p = rng.normal(size=(n, 3))
    p *= (0.7 + 0.07 * np.sin(5 * p[:, :1])) / np.linalg.norm(p, axis=1, keepdims=True)
    spacing = 0.7 * np.sqrt(4 * np.pi / n)
    arrays["means"] = p.astype(np.float32)
    arrays["scales"] = (spacing * np.exp(rng.normal(size=(n, 3)) * 0.3) * 0.6).astype(np.float32)
    return arrays
