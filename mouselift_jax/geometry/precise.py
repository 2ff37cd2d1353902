"""Products of small matrices in full precision, whatever the device.

A float32 product has the precision the device likes best: one pass in bfloat16 on a TPU, TF32 on a
GPU since Ampere. Networks live with that; a camera does not, for its rays then miss their pixels
(0.6 px on average with bfloat16, 512 px pictures). Everything between a camera and a point of the
scene is therefore multiplied here.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HIGHEST = jax.lax.Precision.HIGHEST


def matmul(a: Any, b: Any) -> Any:
    """A @ b; numpy of numpy arrays, else jax in full precision."""
    if isinstance(a, jax.Array) or isinstance(b, jax.Array):
        return jnp.matmul(a, b, precision=HIGHEST)
    return np.matmul(a, b)


def transform(matrix: Any, vectors: Any) -> Any:
    """Each vector [...,n] multiplied by its matrix [...,m,n]; leading dimensions broadcast."""
    return matmul(matrix, vectors[..., None])[..., 0]
