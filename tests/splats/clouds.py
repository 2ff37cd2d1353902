"""Gaussians of any kind, for readers and writers."""

from __future__ import annotations

import numpy as np

from mouselift_jax.splats.gaussians import Gaussians


def random_gaussians(n: int = 50, degree: int = 0, seed: int = 0) -> Gaussians:
    """Gaussians [n] that show nothing."""
    rng, f = np.random.default_rng(seed), np.float32
    return Gaussians(
        rng.normal(size=(n, 3)).astype(f),
        rng.normal(size=(n, 4)).astype(f),
        rng.normal(-3, 0.5, size=(n, 3)).astype(f),
        rng.normal(size=n).astype(f),
        rng.normal(size=(n, (degree + 1) ** 2, 3)).astype(f),
    )
