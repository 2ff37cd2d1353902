"""The Gaussians pytree: what a network writes, what a PLY holds, and what a renderer sees.

Fields are kept in the space that is optimised and stored, and their names say so: `log_scales`,
`opacity_logits`. `activate` goes to the space that is rendered.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.precise import transform
from mouselift_jax.geometry.similarity import Similarity, array_namespace
from mouselift_jax.splats.sh import sh_transform

Array = Any
SOLID_LOGIT = 20.0  # an opacity of 1 in float32
SH_COUNTS = {1: 0, 4: 1, 9: 2, 16: 3}  # number of coefficients -> degree


class Activated(NamedTuple):
    """Gaussians as a renderer sees them."""

    means: Array  # [*B,N,3] scene units
    quats: Array  # [*B,N,4] wxyz, unit
    scales: Array  # [*B,N,3] scene units, > 0
    opacities: Array  # [*B,N] in (0,1)
    sh: Array  # [*B,N,S,3]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussians:
    """A batch of sets of N Gaussians.

    Attributes:
        means: centres [*B,N,3], scene units.
        quats: rotations [*B,N,4], wxyz, any norm.
        log_scales: logarithm of the standard deviations [*B,N,3], log scene units.
        opacity_logits: opacity before the sigmoid [*B,N].
        sh: spherical-harmonics coefficients [*B,N,S,3], S in 1, 4, 9, 16 (degree 0 to 3).
    """

    means: Array
    quats: Array
    log_scales: Array
    opacity_logits: Array
    sh: Array

    def __post_init__(self) -> None:
        shapes = [getattr(f, "shape", None) for f in (self.means, self.quats, self.log_scales)]
        shapes += [getattr(self.opacity_logits, "shape", None), getattr(self.sh, "shape", None)]
        if any(s is None for s in shapes):
            return  # a pytree of specs, axes or sentinels, not of arrays
        lead = tuple(shapes[3])
        expected = [(*lead, 3), (*lead, 4), (*lead, 3), lead]
        found = [tuple(s) for s in shapes]
        if found[:4] != expected or found[4][:-2] != lead or found[4][-1] != 3:
            raise ShapeError(
                "the arrays of Gaussians do not belong together",
                expected="means [*B,N,3], quats [*B,N,4], log_scales [*B,N,3], "
                "opacity_logits [*B,N], sh [*B,N,S,3]",
                found=[list(s) for s in found],
                fix="the same leading dimensions in all five",
            )
        if found[4][-2] not in SH_COUNTS:
            raise ShapeError(
                "the number of spherical-harmonics coefficients fits no degree",
                expected="1, 4, 9 or 16",
                found=found[4][-2],
                fix="(degree + 1)^2 coefficients",
            )

    @property
    def n_gaussians(self) -> int:
        """N."""
        return self.means.shape[-2]

    @property
    def sh_degree(self) -> int:
        """Spherical-harmonics degree, 0 to 3."""
        return SH_COUNTS[self.sh.shape[-2]]

    def activate(self) -> Activated:
        """Go to the space that is rendered: unit quats, scales, opacities in (0,1)."""
        xp = array_namespace(self.means)
        square = (self.quats**2).sum(-1, keepdims=True)
        # A zero quaternion stands for no rotation, as the rasterizer reads it. The inner `where`
        # keeps the square root away from 0, where its gradient is not finite.
        norm = xp.sqrt(xp.where(square > 0, square, 1.0))
        identity = xp.asarray([1.0, 0.0, 0.0, 0.0], dtype=self.quats.dtype)
        quats = xp.where(square > 0, self.quats / norm, identity)
        if xp is jnp:
            opacities = jax.nn.sigmoid(self.opacity_logits)
        else:
            opacities = 0.5 * (1.0 + np.tanh(0.5 * self.opacity_logits))  # no overflow
        return Activated(self.means, quats, xp.exp(self.log_scales), opacities, self.sh)

    def __getitem__(self, index: Any) -> Gaussians:
        """Index the leading dimensions, as an array would be; a mask or indices select."""
        return jax.tree.map(lambda x: x[index], self)

    def transformed(self, similarity: Similarity) -> Gaussians:
        """The same Gaussians in a world moved by x' = scale R x + t; colours turn along."""
        xp = array_namespace(self.means)
        turned = self.turned(np.asarray(similarity.R))
        return dataclasses.replace(
            turned,
            means=similarity.apply(self.means),
            log_scales=self.log_scales + xp.log(xp.asarray(similarity.scale, self.means.dtype)),
        )

    def turned(self, orthogonal: np.ndarray) -> Gaussians:
        """The same Gaussians in a turned or mirrored world, x' = A x with A orthogonal [3,3]."""
        A = np.asarray(orthogonal, np.float64)
        if np.array_equal(A, np.eye(3)):
            return self
        xp = array_namespace(self.means)
        rotation = quat_to_rotation(np.asarray(self.activate().quats, np.float64))
        # A mirrored ellipsoid is the same ellipsoid with its third axis reversed: det stays +1.
        rotation = A @ rotation @ np.diag([1.0, 1.0, np.sign(np.linalg.det(A))])
        sh = np.einsum("st,...tc->...sc", sh_transform(self.sh_degree, A), np.asarray(self.sh))
        return dataclasses.replace(
            self,
            means=transform(xp.asarray(A), self.means).astype(self.means.dtype),
            quats=xp.asarray(rotation_to_quat(rotation), dtype=self.quats.dtype),
            sh=xp.asarray(sh, dtype=self.sh.dtype),
        )


def concatenate(parts: list[Gaussians]) -> Gaussians:
    """Join sets of Gaussians along N; all must have the same SH degree and leading dimensions."""
    xp = array_namespace(parts[0].means)
    lead = parts[0].opacity_logits.ndim - 1
    return jax.tree.map(lambda *leaves: xp.concatenate(leaves, axis=lead), *parts)


def padded(gaussians: Gaussians, multiple: int = 2048) -> Gaussians:
    """The same picture with N rounded up: invisible Gaussians are added at the end.

    Filtered sets differ in N from frame to frame, and a renderer compiles for every N.
    """
    n = int(np.shape(gaussians.opacity_logits)[0])
    extra = -n % multiple if n else multiple
    fill = {"quats": 1.0, "log_scales": -10.0, "opacity_logits": -30.0}

    def grown(name: str) -> np.ndarray:
        values = np.asarray(getattr(gaussians, name), np.float32)
        shape = (extra, *values.shape[1:])
        return np.concatenate([values, np.full(shape, fill.get(name, 0.0), np.float32)])

    names = ("means", "quats", "log_scales", "opacity_logits", "sh")
    return Gaussians(*(grown(name) for name in names))


def quat_to_rotation(quats: Array) -> Array:
    """Rotation matrices [...,3,3] of wxyz quaternions [...,4] of any norm above 0."""
    xp = array_namespace(quats)
    w, x, y, z = (quats[..., i] for i in range(4))
    s = 2.0 / (quats * quats).sum(-1)
    rows = [
        [1 - s * (y * y + z * z), s * (x * y - w * z), s * (x * z + w * y)],
        [s * (x * y + w * z), 1 - s * (x * x + z * z), s * (y * z - w * x)],
        [s * (x * z - w * y), s * (y * z + w * x), 1 - s * (x * x + y * y)],
    ]
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)


def rotation_to_quat(rotation: np.ndarray) -> np.ndarray:
    """Unit wxyz quaternions [...,4], w >= 0, of rotation matrices [...,3,3]."""
    from scipy.spatial.transform import Rotation

    rotation = np.asarray(rotation, np.float64)
    xyzw = Rotation.from_matrix(rotation.reshape(-1, 3, 3)).as_quat(canonical=True)
    return np.roll(xyzw, 1, axis=-1).reshape(*rotation.shape[:-2], 4)
