"""A rig of six cameras and an animal that walks among them, for tests of calibration."""

from __future__ import annotations

import numpy as np
from scipy.optimize import least_squares

from mouselift_jax.data.calibration.calibrate import similarity_between
from mouselift_jax.geometry.bundle import (
    PARAMETERS,
    Rig,
    Sightings,
    located,
    project,
    rotations,
)
from mouselift_jax.geometry.similarity import Similarity


def rig(n: int = 6, focal: float = 1500.0, distance: float = 320.0) -> Rig:
    """n cameras round an arena, 1152 x 1024 pixels, millimetres."""
    R, t = [], []
    for i in range(n):
        a = 2 * np.pi * i / n
        centre = np.array([distance * np.cos(a), distance * np.sin(a), 180.0 + 20 * (i % 2)])
        z = -centre / np.linalg.norm(centre)
        x = np.cross(z, [0.0, 0.0, 1.0])
        x /= np.linalg.norm(x)
        R.append(np.stack([x, np.cross(z, x), z]))
        t.append(-R[-1] @ centre)
    K = np.tile([[focal, 0, 576.0], [0, focal, 512.0], [0, 0, 1.0]], (n, 1, 1))
    return Rig(K, np.array(R), np.array(t), np.zeros((n, 8)), np.zeros(n))


def walk(rng: np.random.Generator, frames: int = 60, points: int = 20, arena: float = 120.0):
    """Points [F,M,3] of a body that visits places all over the arena (+-arena mm)."""
    place = rng.uniform(-arena, arena, (frames, 2))
    body = rng.normal(size=(frames, points, 3)) * [25.0, 12.0, 8.0] + [0.0, 0.0, 20.0]
    return body + np.concatenate([place, np.zeros((frames, 1))], -1)[:, None]


def pixels(cameras: Rig, X: np.ndarray) -> np.ndarray:
    """Pixels [V,N,2] of points [N,3]."""
    return project(cameras, X, np.zeros((len(cameras.R), len(X), 2)))[0]


def seen(cameras: Rig, X: np.ndarray, rng: np.random.Generator, noise: float = 1.5) -> Sightings:
    """Noisy sightings of points [F,M,3] by all cameras."""
    xy = pixels(cameras, X.reshape(-1, 3))
    xy = xy + noise * rng.normal(size=xy.shape)
    frame = np.repeat(np.arange(len(X)), X.shape[1])
    return Sightings(xy, np.ones(xy.shape[:2]), np.zeros_like(xy), 0 * frame, frame)


def perturbed(
    cameras: Rig, rng: np.random.Generator, degrees: float = 1.0, mm: float = 3.0,
    focal: float = 0.01,
) -> Rig:  # fmt: skip
    """Every camera turned, moved and zoomed by so much, in directions of its own."""
    n = len(cameras.R)
    delta = np.zeros((n, len(PARAMETERS)))
    for columns, size in ((slice(0, 3), np.deg2rad(degrees)), (slice(3, 6), mm)):
        way = rng.normal(size=(n, 3))
        delta[:, columns] = size * way / np.linalg.norm(way, axis=-1, keepdims=True)
    delta[:, 6] = focal * rng.choice([-1.0, 1.0], n)
    return cameras.changed(delta)


def between(cameras: Rig, true: Rig, X: np.ndarray) -> Similarity:
    """From the true cameras' world to that of others, by the pictures of true points X [N,3].

    First by where the others see the points, then by least squares on the pixels.
    """
    goal = pixels(true, X)
    ones = np.ones(goal.shape[:2])
    where = 0 * np.arange(len(X))
    there = located(cameras, Sightings(goal, ones, np.zeros_like(goal), where, where))
    first = Similarity(*similarity_between(X, there))

    def at(p: np.ndarray) -> Similarity:
        turn = rotations(p[None, :3])[0]
        return Similarity(first.scale * np.exp(p[6]), first.R @ turn, first.t + 10 * p[3:6])

    def gap(p: np.ndarray) -> np.ndarray:
        return (pixels(cameras, at(p).apply(X)) - goal).ravel()

    return at(least_squares(gap, np.zeros(7)).x)


def missed(cameras: Rig, true: Rig, X: np.ndarray) -> np.ndarray:
    """Pixels [V,N] by which cameras miss true points [N,3], once their worlds are laid together."""
    there = between(cameras, true, X).apply(X)
    return np.linalg.norm(pixels(cameras, there) - pixels(true, X), axis=-1)
