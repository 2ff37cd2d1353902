"""What a set of 3D Gaussians is: the pytree, activations, spherical harmonics, filters, PLY."""

from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.ply import load_ply, save_ply

__all__ = ["Gaussians", "load_ply", "save_ply"]
