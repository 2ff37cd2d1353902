"""Similarity transforms of points, cameras and Gaussians: scale, rotation, translation."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mouselift_jax.geometry.precise import matmul, transform

if TYPE_CHECKING:
    pass


Array = jax.Array | np.ndarray


def array_namespace(*arrays: Any) -> ModuleType:
    """jax.numpy when any is a jax array or a tracer, numpy for everything else."""
    return jnp if any(isinstance(x, jax.Array) for x in arrays) else np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Similarity:
    """The map x' = scale * R x + t of a whole world.

    Attributes:
        scale: new units per old unit, > 0 [*B].
        R: rotation [*B,3,3].
        t: translation [*B,3], new units.
    """

    scale: Any
    R: Any
    t: Any

    @classmethod
    def identity(cls) -> Similarity:
        """The transform that changes nothing."""
        return cls(np.float64(1.0), np.eye(3), np.zeros(3))

    def apply(self, points: Float[Array, "*P 3"]) -> Float[Array, "*P 3"]:
        """Transform points [..., 3]."""
        xp = array_namespace(points)
        return (xp.asarray(self.scale)[..., None] * transform(self.R, points) + self.t).astype(
            points.dtype
        )

    def inverse(self) -> Similarity:
        """The transform that undoes this one."""
        xp = array_namespace(self.R)
        R = xp.swapaxes(self.R, -1, -2)
        scale = 1.0 / self.scale
        t = -xp.asarray(scale)[..., None] * transform(R, self.t)
        return Similarity(scale, R, t)

    def compose(self, first: Similarity) -> Similarity:
        """The transform that applies `first`, then this one."""
        xp = array_namespace(self.R)
        t = xp.asarray(self.scale)[..., None] * transform(self.R, first.t) + self.t
        return Similarity(self.scale * first.scale, matmul(self.R, first.R), t)
