"""Gaussians and cameras to pictures, with exact gradients, on CPU, CUDA and TPU.

`reference` is the slow definition; `tiled`, `warp_cpu` and `warp_cuda` must equal it.
"""

from mouselift_jax.render.rasterize import rasterize, render
from mouselift_jax.render.types import Render

__all__ = ["Render", "rasterize", "render"]
