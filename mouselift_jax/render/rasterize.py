"""The one public call: checks, casts, chooses an implementation, puts the background behind."""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from mouselift_jax import target
from mouselift_jax.errors import (
    BackendError,
    MissingExtraError,
    MouseLiftError,
    ShapeError,
    nearest,
)
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.render import constants as c
from mouselift_jax.render.types import ArrayLike, Render, Spec
from mouselift_jax.splats.gaussians import SH_COUNTS, Gaussians

IMPLEMENTATIONS = ("reference", "tiled", "warp")
_log = logging.getLogger(__name__)


@functools.cache
def default_implementation(platform: str) -> str:
    """The best implementation that can run on `platform`; says once in the log which and why."""
    if platform == "tpu":
        choice, why = "tiled", "the pure JAX one is what TPUs run"
    elif importlib.util.find_spec("warp") is None:
        choice, why = "tiled", "warp-lang is not installed (pip install warp-lang)"
    else:
        choice, why = "warp", "the fastest here"
    if choice == "warp":
        from mouselift_jax.render import warp_backend

        problem = warp_backend.problem(platform)
        if problem is not None:
            choice, why = "tiled", problem
    slow = choice == "tiled" and platform != "tpu"
    level, cost = (logging.WARNING, ": 3 to 10 times slower") if slow else (logging.INFO, "")
    _log.log(level, "rasterizer on %s: %s, %s%s", platform, choice, why, cost)
    return choice


def _backend(implementation: str | None) -> tuple[str, Callable]:
    platform = target.platform()
    if target.is_absent() and platform == "gpu" and implementation in (None, "warp"):
        implementation = "tiled"
        if importlib.util.find_spec("warp") is not None:
            from mouselift_jax.render import warp_backend

            warp_backend.problem("cpu")  # begins quietly; nothing can be asked of the card
            implementation = "warp_blocks"  # whose body is the one that GPUs run
    name = implementation or default_implementation(platform)
    if name == "reference":
        from mouselift_jax.render.reference import rasterize_flat
    elif name == "tiled":
        from mouselift_jax.render.tiled import rasterize_flat
    elif name == "warp":
        if importlib.util.find_spec("warp") is None:
            raise MissingExtraError("warp-lang", "warp", "rasterize(implementation='warp')")
        from mouselift_jax.render import warp_backend

        problem = warp_backend.problem(platform)
        if problem is not None:
            raise BackendError(
                f"the warp rasterizer cannot run here: {problem}", fix="use implementation='tiled'"
            )
        rasterize_flat = warp_backend.rasterize_flat
    elif name == "warp_blocks":  # the CUDA kernels on any device: on a CPU for tests, slow
        from mouselift_jax.render.warp_cuda import rasterize_flat
    else:
        raise BackendError(
            "unknown rasterizer", found=name, fix=nearest(name, IMPLEMENTATIONS), where="rasterize"
        )
    return name, rasterize_flat


def _check_shapes(arrays: dict[str, ArrayLike], sh_degree: int | None, size: Sequence[int]) -> None:
    shapes = {k: tuple(np.shape(v)) for k, v in arrays.items()}
    lead, n = shapes["means"][:-2], shapes["means"][-2] if len(shapes["means"]) > 1 else -1
    views = shapes["w2c"][-3] if len(shapes["w2c"]) > 2 else -1
    expected = {
        "means": (*lead, n, 3),
        "quats": (*lead, n, 4),
        "scales": (*lead, n, 3),
        "opacities": (*lead, n),
        "w2c": (*lead, views, 4, 4),
        "K": (*lead, views, 3, 3),
    }
    if sh_degree is None:
        expected["colors"] = (*lead, n, 3)
    else:
        held = shapes["colors"][-2] if len(shapes["colors"]) > 1 else -1
        expected["colors"] = (*lead, n, held, 3)
        if sh_degree not in (0, 1, 2, 3) or held not in SH_COUNTS or held < (sh_degree + 1) ** 2:
            raise ShapeError(
                "colors do not hold the coefficients of this degree",
                where=f"rasterize(sh_degree={sh_degree})",
                expected="S = 1, 4, 9 or 16 coefficients, at least (sh_degree + 1)^2",
                found=f"colors {list(shapes['colors'])}",
                fix="a lower sh_degree, or sh_degree=None for rgb colours",
            )
    wrong = [k for k, shape in expected.items() if shapes[k] != shape]
    if wrong:
        raise ShapeError(
            "arguments of rasterize do not belong together",
            expected="; ".join(f"{k} {list(expected[k])}" for k in wrong),
            found="; ".join(f"{k} {list(shapes[k])}" for k in wrong),
            fix="means [*B,N,3], quats [*B,N,4], scales [*B,N,3], opacities [*B,N], colors "
            "[*B,N,3] (or [*B,N,S,3] with sh_degree), w2c [*B,V,4,4], K [*B,V,3,3]",
        )
    if min(size) < 1 or views < 1:
        raise ShapeError(
            "nothing to draw",
            expected="a pixel and a view",
            found=f"{size} px, {views} views",
            fix="give at least one camera, and a width and height of 1 or more",
        )


def _raise_if_broken(culled: Array) -> None:
    """Raise if any Gaussian was left out; at run time if the values are not known yet."""

    def report(count: ArrayLike) -> None:
        if np.any(count):
            raise MouseLiftError(
                "Gaussians with values that are not finite",
                where="rasterize(check=True)",
                expected="finite means, quats, scales, opacities, colors and cameras",
                found=f"{int(np.sum(count))} of them",
                fix="find the step that made them; check=False leaves them out and counts them",
            )

    if isinstance(culled, jax.core.Tracer):
        jax.debug.callback(report, culled)
    else:
        report(np.asarray(culled))


def _mesh_axes(array: Array) -> frozenset[str]:
    """Axes of a surrounding shard_map over which the array varies (jax renamed the attribute)."""
    kind = jax.typeof(array)
    if hasattr(kind, "vma"):
        return frozenset(kind.vma)
    return frozenset(getattr(getattr(kind, "manual_axis_type", None), "varying", ()))


def _vary_together(arrays: list[Array]) -> list[Array]:
    """Inside shard_map: mark all arrays as varying over the axes that any of them varies over.

    Replicated Gaussians seen by sharded views then get their gradients summed over the devices.
    """
    axes = frozenset().union(*(_mesh_axes(a) for a in arrays))
    missing = [tuple(sorted(axes - _mesh_axes(a))) for a in arrays]
    return [
        jax.lax.pcast(a, names, to="varying") if names else a
        for a, names in zip(arrays, missing, strict=True)
    ]


def rasterize(  # noqa: PLR0913 - the public signature, fixed by the project's contract
    means: Float[ArrayLike, "*B N 3"],
    quats: Float[ArrayLike, "*B N 4"],
    scales: Float[ArrayLike, "*B N 3"],
    opacities: Float[ArrayLike, "*B N"],
    colors: Float[ArrayLike, "*B N 3"] | Float[ArrayLike, "*B N S 3"],
    w2c: Float[ArrayLike, "*B V 4 4"],
    K: Float[ArrayLike, "*B V 3 3"],
    width: int,
    height: int,
    *,
    sh_degree: int | None = None,
    background: Float[ArrayLike, "..."] | Sequence[float] | None = None,
    near: float = c.NEAR,
    implementation: str | None = None,
    check: bool = False,
) -> Render:
    """Draw Gaussians into pictures; differentiable in all arrays, the cameras' included.

    Args:
        means: centres, scene units.
        quats: rotations wxyz, any norm.
        scales: standard deviations along the rotated axes, scene units; 0 draws a dot.
        opacities: in [0,1].
        colors: rgb, or spherical-harmonics coefficients with `sh_degree`.
        w2c: world-to-camera, OpenCV axes.
        K: intrinsics, px, pixel centres at +0.5; no skew. fx, fy, cx and cy have gradients, which
            are computed only where something asks for them.
        width: of the pictures, px.
        height: of the pictures, px.
        sh_degree: None if `colors` are rgb, else how many degrees to use.
        background: colour [3] or [*B,V,3]; None is black.
        near: Gaussians at this camera z or nearer are not drawn, scene units.
        implementation: "reference", "tiled" or "warp"; None takes the best for the device.
        check: raise if a Gaussian holds a value that is not finite, instead of leaving it out.

    Returns:
        The pictures in float32 (float64 from "reference" with float64 inputs), and counts.

    Raises:
        ShapeError: arguments that do not belong together.
        BackendError: `implementation` cannot run here.
        MouseLiftError: with `check`, values that are not finite.
    """
    width, height = int(width), int(height)
    if not near > 0:
        raise ShapeError(
            "near must be positive: perspective divides by depth", found=near, fix="near=0.2"
        )
    arrays = {"means": means, "quats": quats, "scales": scales, "opacities": opacities,
              "colors": colors, "w2c": w2c, "K": K}  # fmt: skip
    _check_shapes(arrays, sh_degree, (width, height))
    name, rasterize_flat = _backend(implementation)
    wide = name == "reference" and jnp.result_type(means) == jnp.float64
    dtype = jnp.float64 if wide else jnp.float32
    lead = tuple(np.shape(means)[:-2])
    flat = [jnp.asarray(a, dtype) for a in arrays.values()]
    flat = [a.reshape(math.prod(lead), *a.shape[len(lead) :]) for a in flat]  # [L,...]
    if flat[0].shape[1] == 0:  # one transparent Gaussian stands for an empty scene
        pads = [[(0, 0), (0, 1), *[(0, 0)] * (a.ndim - 2)] for a in flat[:5]]
        flat[:5] = [jnp.pad(a, pad) for a, pad in zip(flat[:5], pads, strict=True)]
    views = flat[-1].shape[:2]
    background = jnp.asarray((0, 0, 0) if background is None else background, dtype)
    if background.shape not in ((3,), (*lead, views[1], 3)):
        raise ShapeError(
            "background is one colour or one per view",
            expected=f"[3] or {[*lead, views[1], 3]}",
            found=list(background.shape),
            fix="background=(1, 1, 1)",
        )
    background = jnp.broadcast_to(background, (*lead, views[1], 3)).reshape(*views, 1, 1, 3)
    *flat, background = _vary_together([*flat, background])
    spec = Spec(width, height, float(near), sh_degree)
    with jax.named_scope(f"rasterize_{name}"):
        rgb, light, depth, info = rasterize_flat(spec, *flat)
        # Channel by channel: XLA's CPU backend is slow at sums over an axis of three.
        rgb = rgb + jnp.stack([light * background[..., k] for k in range(3)], -1)
    if check:
        _raise_if_broken(info["culled"])
    shape = (*lead, views[1], height, width)
    return Render(
        rgb.reshape(*shape, 3), 1 - light.reshape(*shape, 1), depth.reshape(*shape, 1), info
    )


def render(
    gaussians: Gaussians,
    cameras: Camera,
    background: Float[ArrayLike, "..."] | Sequence[float] | None = (1, 1, 1),
    *,
    implementation: str | None = None,
) -> Render:
    """Draw a set of Gaussians from cameras: `rasterize` for the pytrees of this package.

    Args:
        gaussians: arrays [*B,N,...].
        cameras: K and c2w [*B,V,...].
        background: colour [3] or [*B,V,3]; None is black.
        implementation: see `rasterize`.
    """
    means, quats, scales, opacities, sh = gaussians.activate()
    return rasterize(
        means, quats, scales, opacities, sh, cameras.w2c, cameras.K, cameras.width, cameras.height,
        sh_degree=SH_COUNTS[sh.shape[-2]], background=background, implementation=implementation,
    )  # fmt: skip
