"""Cameras, rays, frames and similarity transforms: pure functions on numpy or jax arrays."""
