"""One view's forward and backward -> a differentiable function of whole batches.

The batch is walked one view after the other, in both directions, so memory is that of one view.
`jax.vmap` folds its axis into the batch instead of vectorising loops whose lengths differ.

Letters: L = *B flattened into one leading dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

Tree = Any


def fold_vmap(function: Callable[..., Tree]) -> Callable[..., Tree]:
    """Make `vmap` of a function of arrays [L,...] enlarge L."""
    wrapped = custom_vmap(function)

    @wrapped.def_vmap
    def rule(size: int, batched: list[Tree], *args: Tree) -> tuple[Tree, Tree]:
        def spread(a: Array, is_batched: bool) -> Array:
            a = a if is_batched else jnp.broadcast_to(a, (size, *a.shape))
            return a.reshape(size * a.shape[1], *a.shape[2:])

        out = wrapped(*jax.tree.map(spread, list(args), list(batched)))
        out = jax.tree.map(lambda a: a.reshape(size, -1, *a.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return wrapped


def differentiable(
    forward_view: Callable[..., tuple], backward_view: Callable[..., tuple]
) -> Callable[..., tuple]:
    """Build the batched function with its custom gradient.

    Args:
        forward_view: (means [N,3], quats, scales, opacities, colors, w2c [4,4], K [3,3]) -> (rgb,
            light, depth, broken [N], slabs, pairs).
        backward_view: (those arguments, (rgb, light, depth), their cotangents) -> gradients of the
            first six arguments.

    Returns:
        A function of arrays [L,N,...] and cameras [L,V,...] -> (rgb [L,V,H,W,3], light, depth,
        broken [L], slabs [L,V], pairs [L,V]).
    """

    @fold_vmap
    def forward(*args: Array) -> tuple:
        def scene(scene_args: tuple) -> tuple:
            *gaussians, w2c, K = scene_args

            def view(seen: Array, cameras: tuple) -> tuple:
                *pictures, broken, slabs, pairs = forward_view(*gaussians, *cameras)
                return seen | broken, (*pictures, slabs, pairs)

            none = jnp.zeros(gaussians[3].shape, bool) & (gaussians[3] > 0)
            broken, (rgb, light, depth, slabs, pairs) = lax.scan(view, none, (w2c, K))
            return rgb, light, depth, broken.sum(dtype=jnp.int32), slabs, pairs

        return lax.map(scene, args)

    @fold_vmap
    def backward(args: tuple, pictures: tuple, cotangents: tuple) -> tuple:
        def scene(scene_args: tuple) -> tuple:
            (*gaussians, w2c, K), pictures, cotangents = scene_args

            def view(total: list, xs: tuple) -> tuple:
                cameras, pictures, cotangents = xs
                *grads, g_w2c = backward_view((*gaussians, *cameras), pictures, cotangents)
                return [a + b for a, b in zip(total, grads, strict=True)], g_w2c

            zeros = [jnp.where(jnp.isfinite(a), a, 0) * 0 for a in gaussians]
            total, g_w2c = lax.scan(view, zeros, ((w2c, K), pictures, cotangents))
            return (*total, g_w2c)

        return lax.map(scene, (args, pictures, cotangents))

    @jax.custom_vjp
    def function(*args: Array) -> tuple:
        return forward(*args)

    def function_fwd(*args: Array) -> tuple:
        out = forward(*args)
        return out, (args, out[:3])

    def function_bwd(residuals: tuple, cotangents: tuple) -> tuple:
        args, pictures = residuals
        return (*backward(args, pictures, tuple(cotangents[:3])), jnp.zeros_like(args[-1]))

    function.defvjp(function_fwd, function_bwd)
    return function
