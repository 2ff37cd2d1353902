"""Real spherical harmonics up to degree 3, in the sign and order that 3DGS files use.

Letters: S = (degree + 1)^2 coefficients. Colour = 0.5 + sum of coefficient times basis, >= 0.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float

from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.similarity import array_namespace

Array = jax.Array | np.ndarray

# Normalisation of the real spherical harmonics, e.g. C0 = 1 / (2 sqrt(pi)).
C0 = 0.28209479177387814
C1 = 0.4886025119029199
C2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
C3 = (
    0.5900435899266435,
    2.890611442640554,
    0.4570457994644658,
    0.3731763325901154,
    1.445305721320277,
)


def sh_basis(degree: int, directions: Float[Array, "*N 3"]) -> Float[Array, "*N S"]:
    """Basis values [...,S] at unit directions [...,3] (from the camera to the Gaussian, world)."""
    if degree not in (0, 1, 2, 3):
        raise ShapeError("spherical harmonics go up to degree 3", expected="0..3", found=degree)
    xp = array_namespace(directions)
    x, y, z = (directions[..., i] for i in range(3))
    basis = [C0 * xp.ones_like(x)]
    if degree >= 1:
        basis += [-C1 * y, C1 * z, -C1 * x]
    if degree >= 2:
        basis += [
            C2[0] * x * y,
            -C2[0] * y * z,
            C2[1] * (2 * z * z - x * x - y * y),
            -C2[0] * x * z,
            C2[2] * (x * x - y * y),
        ]
    if degree >= 3:
        basis += [
            -C3[0] * y * (3 * x * x - y * y),
            C3[1] * x * y * z,
            -C3[2] * y * (4 * z * z - x * x - y * y),
            C3[3] * z * (2 * z * z - 3 * x * x - 3 * y * y),
            -C3[2] * x * (4 * z * z - x * x - y * y),
            C3[4] * z * (x * x - y * y),
            -C3[0] * x * (x * x - 3 * y * y),
        ]
    return xp.stack(basis, axis=-1)


def eval_sh(
    degree: int, sh: Float[Array, "*#N S 3"], directions: Float[Array, "*#N 3"]
) -> Float[Array, "*N 3"]:
    """Colours [...,3], clamped below at 0.

    Args:
        degree: how many degrees to use; at most what `sh` holds.
        sh: coefficients [...,S,3].
        directions: unit directions [...,3] from the camera to the Gaussian, world.
    """
    xp = array_namespace(sh)
    n = (degree + 1) ** 2
    if sh.shape[-2] < n:
        raise ShapeError(
            "too few spherical-harmonics coefficients", expected=f">= {n}", found=sh.shape[-2]
        )
    basis = sh_basis(degree, directions)
    colors = (basis[..., None] * sh[..., :n, :]).sum(-2) + 0.5
    return xp.where(colors < 0, 0.0, colors)  # full slope at exactly 0: black can be left again


def rgb_to_sh(rgb: Float[Array, "*N 3"]) -> Float[Array, "*N 3"]:
    """Degree-0 coefficients of colours in [0,1]."""
    return (rgb - 0.5) / C0


def sh_to_rgb(sh_dc: Float[Array, "*N 3"]) -> Float[Array, "*N 3"]:
    """Colours of degree-0 coefficients, not clamped."""
    return sh_dc * C0 + 0.5


def sh_transform(degree: int, orthogonal: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "S S"]:
    """The matrix [S,S] that carries coefficients along when the world is turned or mirrored.

    With `new = sh_transform(degree, A) @ sh`, the colour of `new` seen along `A d` is the colour of
    `sh` seen along `d`. Each degree is a closed space under rotation, so the matrix follows exactly
    from the basis at a few well-spread directions.

    Args:
        degree: 0 to 3.
        orthogonal: rotation or reflection [3,3].
    """
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(64, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    before = sh_basis(degree, directions)
    after = sh_basis(degree, directions @ np.asarray(orthogonal, np.float64).T)
    M = np.linalg.lstsq(after, before, rcond=None)[0]  # before = after @ M
    return np.where(np.abs(M) < 1e-12, 0.0, M)
