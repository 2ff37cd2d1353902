"""One photo, or a six-camera recording, to 3D Gaussians: JAX/Flax on CPU, CUDA and TPU.

Public names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Camera": "mouselift_jax.geometry.camera",
    "Gaussians": "mouselift_jax.splats.gaussians",
    "load_pretrained": "mouselift_jax.weights.pretrained",
}
_SUBPACKAGES = (
    "data",
    "diffusion",
    "geometry",
    "models",
    "pipelines",
    "render",
    "splats",
    "weights",
)

__all__ = ["__version__", *_PUBLIC, *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"mouselift_jax.{name}")
    raise AttributeError(f"module 'mouselift_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
