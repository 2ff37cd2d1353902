"""The `warp` implementation: NVIDIA Warp through the JAX FFI, its own body on each device."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import Array, lax

from mouselift_jax.render import batching
from mouselift_jax.render.projection import view_colors
from mouselift_jax.render.types import Spec

MIN_VERSION = (1, 18)  # CPU blocks and the FFI on CPU
NO_DRIVER = b"Could not find or load the NVIDIA CUDA driver"


@functools.cache
def problem(platform: str) -> str | None:
    """Why Warp cannot draw on `platform`, or None."""
    import warp as wp

    version = tuple(int(part) for part in wp.__version__.split(".")[:2])
    if version < MIN_VERSION:
        return f"warp-lang {wp.__version__} is older than {MIN_VERSION[0]}.{MIN_VERSION[1]}"
    if platform not in ("cpu", "gpu"):
        return f"there is no Warp for {platform}"
    wp.config.log_level = max(wp.config.log_level, wp.LOG_WARNING)  # no banner in every process
    with _without_driver_warning() if platform == "cpu" else contextlib.nullcontext():
        wp.init()
    if platform == "gpu" and not wp.is_cuda_available():
        return "warp-lang finds no CUDA device (its wheels need driver R580 or newer)"
    if not wp.is_cpu_available():
        return "this build of warp-lang has no CPU compiler"
    return None


@contextlib.contextmanager
def _without_driver_warning() -> Iterator[None]:
    """Leave out that there is no NVIDIA driver, which matters to nobody who draws on a CPU.

    Native code writes that line to the process's error stream whatever the log level is. So the
    stream goes to a file meanwhile, and every other line of it is written after all.
    """
    sys.stderr.flush()
    stream = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stream, 2)
            os.close(stream)
            file.seek(0)
            for line in file:
                if NO_DRIVER not in line:
                    os.write(2, line)


@functools.lru_cache(maxsize=64)
def _cpu(spec: Spec) -> Callable:
    """The batched function of raw arrays with its gradient; colours are rgb."""
    from mouselift_jax.render import warp_cpu

    size = (spec.height, spec.width)

    def forward(*arrays: Array, keep: bool) -> tuple:
        @batching.fold_vmap
        def scenes(*arrays: Array) -> tuple:
            rgb, light, depth, last, broken, pairs, tickets = warp_cpu.forward(
                arrays, spec.near, size, keep=keep
            )
            return (rgb, light, depth, (broken != 0), pairs), (light, last, tickets)

        return scenes(*arrays)

    def backward(arrays: tuple, saved: tuple, cotangents: tuple, of_K: bool) -> tuple:
        @batching.fold_vmap
        def scenes(*args: tuple) -> tuple:
            return tuple(warp_cpu.backward(*args, spec.near, of_K))

        return scenes(arrays, saved, cotangents)

    return batching.with_gradient(forward, backward)


def _rasterize_cpu(spec: Spec, *arrays: Array) -> tuple[Array, Array, Array, dict[str, Array]]:
    """Blend L scenes of N Gaussians in V views each; see `reference.rasterize_flat`."""
    draw = _cpu(spec)
    *gaussians, colors, w2c, K = arrays
    if spec.sh_degree in (None, 0):
        colors = jax.vmap(functools.partial(view_colors, spec))(arrays[0], colors, w2c[:, 0])
        rgb, light, depth, broken, pairs = draw(*gaussians, colors, w2c, K)
    else:
        # The colour depends on the view: one view at a time keeps memory that of one view.
        @jax.checkpoint
        def view(broken: Array, cameras: tuple) -> tuple:
            seen = jax.vmap(functools.partial(view_colors, spec))(arrays[0], colors, cameras[0])
            rgb, light, depth, here, pairs = draw(*gaussians, seen, *(a[:, None] for a in cameras))
            return broken | here, (rgb[:, 0], light[:, 0], depth[:, 0], pairs[:, 0])

        none = arrays[3] != arrays[3]
        cameras = (w2c.swapaxes(0, 1), K.swapaxes(0, 1))
        broken, out = lax.scan(view, none, cameras)
        rgb, light, depth, pairs = (a.swapaxes(0, 1) for a in out)
    slabs = jnp.ones_like(pairs)  # the lists are as long as the scene needs
    return rgb, light, depth, batching.call_info(slabs, pairs, broken)


def rasterize_flat(spec: Spec, *arrays: Array) -> tuple[Array, Array, Array, dict[str, Array]]:
    """Blend L scenes of N Gaussians in V views each; see `reference.rasterize_flat`."""
    if jax.default_backend() == "cpu":
        return _rasterize_cpu(spec, *arrays)
    from mouselift_jax.render import warp_cuda

    # Which device a call will run on is known when it is lowered, not here.
    return lax.platform_dependent(
        *arrays,
        cpu=functools.partial(_rasterize_cpu, spec),
        cuda=functools.partial(warp_cuda.rasterize_flat, spec),
    )
