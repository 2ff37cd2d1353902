"""Forward and backward of a few views -> a differentiable function of whole batches.

The batch is walked a group of views at a time, in both directions, so memory is that of one group.
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
from jax.custom_derivatives import SymbolicZero

Tree = Any


_MOST = 2**31 - 1  # counts of pairs stop here instead of wrapping


def add_pairs(a: Array, b: Array) -> Array:
    """Sum of two counts."""
    return a + jnp.minimum(b, _MOST - a)


def call_info(slabs: Array, pairs: Array, culled: Array) -> dict[str, Array]:
    """`Render.info` of a whole call, from what each view or scene of it counted."""
    wraps = pairs.astype(jnp.float32).sum() > 0.999 * _MOST
    return {
        "slabs": slabs.max(initial=0),
        "intersections": jnp.where(wraps, _MOST, pairs.sum(dtype=jnp.int32)),
        "culled": culled.sum(dtype=jnp.int32),
    }


def spent_in_all(pictures: tuple, cotangents: tuple) -> Array:
    """Sum over a pixel's Gaussians of weight times cotangent: R of tiled.py [...,H,W].

    Written out: XLA's CPU backend is slow at sums over an axis of three.
    """
    (rgb, light, depth), (g_rgb, g_light, g_depth) = pictures, cotangents
    colors = (rgb[..., k] * g_rgb[..., k] for k in range(3))
    return sum(colors, start=depth * g_depth - (1 - light) * g_light)


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


def _split(views: int, most: int) -> int:
    """The largest number of views up to `most` that divides `views`."""
    return next(size for size in range(max(1, min(views, most)), 0, -1) if views % size == 0)


def _grouped(tree: Tree, size: int) -> Tree:
    return jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), tree)


def _flat(tree: Tree) -> Tree:
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)


def forward_in_groups(group: Callable, most: Callable[[int], int]) -> Callable:
    """Walk the views of a scene a group at a time.

    Args:
        group: (gaussians, cameras [G,...]) -> (broken [N], (rgb [G,...], light, depth, slabs [G],
            pairs [G])).
        most: number of Gaussians -> most views of a group.

    Returns:
        The `forward_scene` of `differentiable`.
    """

    def scene(gaussians: tuple, cameras: tuple) -> tuple:
        size = _split(cameras[0].shape[0], most(gaussians[0].shape[0]))

        def step(seen: Array, cameras: tuple) -> tuple:
            broken, out = group(gaussians, cameras)
            return seen | broken, out

        none = jnp.zeros(gaussians[3].shape, bool) & (gaussians[3] > 0)
        broken, out = lax.scan(step, none, _grouped(cameras, size))
        rgb, light, depth, slabs, pairs = _flat(out)
        return rgb, light, depth, broken.sum(dtype=jnp.int32), slabs, pairs

    return scene


def backward_in_groups(group: Callable, most: Callable[[int], int]) -> Callable:
    """The same for gradients.

    Args:
        group: (gaussians, (cameras, pictures, cotangents) [G,...], of_K) -> (their gradients summed
            over the group, those of w2c [G,4,4] and, with `of_K`, of K [G,3,3]).
        most: number of Gaussians -> most views of a group.

    Returns:
        The `backward_scene` of `differentiable`.
    """

    def scene(gaussians: tuple, xs: tuple, of_K: bool) -> tuple:
        size = _split(xs[0][0].shape[0], most(gaussians[0].shape[0]))

        def step(total: list, xs: tuple) -> tuple:
            grads, of_cameras = group(gaussians, xs, of_K)
            return [a + b for a, b in zip(total, grads, strict=True)], of_cameras

        zeros = [jnp.where(jnp.isfinite(a), a, 0) * 0 for a in gaussians]
        total, of_cameras = lax.scan(step, zeros, _grouped(xs, size))
        return (*total, *_flat(of_cameras))

    return scene


def one_by_one(forward_view: Callable, backward_view: Callable) -> tuple[Callable, Callable]:
    """Scene functions from those of one view, whose arguments carry no view dimension."""

    def forward(gaussians: tuple, cameras: tuple) -> tuple:
        *pictures, broken, slabs, pairs = forward_view(*gaussians, *_first(cameras))
        return broken, jax.tree.map(lambda a: a[None], (*pictures, slabs, pairs))

    def backward(gaussians: tuple, xs: tuple, of_K: bool) -> tuple:
        cameras, pictures, cotangents = _first(xs)
        grads = backward_view((*gaussians, *cameras), pictures, cotangents, of_K)
        return grads[:5], [a[None] for a in grads[5:]]

    def _first(tree: Tree) -> Tree:
        return jax.tree.map(lambda a: a[0], tree)

    return forward_in_groups(forward, lambda n: 1), backward_in_groups(backward, lambda n: 1)


def with_gradient(forward: Callable, backward: Callable) -> Callable[..., tuple]:
    """Give a function of Gaussians, w2c and K [L,...] its gradient.

    Args:
        forward: (those arrays, keep) -> (what is returned, whose first three are the pictures;
            what the backward pass needs besides; `keep` says whether there will be one).
        backward: (the arrays, that, cotangents of the pictures, of_K) -> gradients of the arrays,
            with that of K if `of_K`. Where nothing asks for that one, it is not computed.
    """

    @jax.custom_vjp
    def function(*args: Array) -> tuple:
        return forward(*args, keep=False)[0]

    def function_fwd(*primals: Any) -> tuple:
        args = tuple(a.value for a in primals)
        out, saved = forward(*args, keep=True)
        # Of residuals only the structure is known when the backward pass is traced.
        of_K = () if primals[-1].perturbed else None
        return out, (args, saved, of_K)

    def function_bwd(residuals: tuple, cotangents: tuple) -> tuple:
        args, saved, of_K = residuals
        cotangents = tuple(
            jnp.zeros(a.shape, a.dtype) if isinstance(a, SymbolicZero) else a
            for a in cotangents[:3]
        )
        grads = backward(args, saved, cotangents, of_K is not None)
        return (*grads, None) if of_K is None else tuple(grads)

    function.defvjp(function_fwd, function_bwd, symbolic_zeros=True)
    return function


def differentiable(forward_scene: Callable, backward_scene: Callable) -> Callable[..., tuple]:
    """Build the batched function with its custom gradient.

    Args:
        forward_scene: ((means [N,3], quats, scales, opacities, colors), (w2c [V,4,4], K)) -> (rgb
            [V,H,W,3], light, depth, broken [], slabs [V], pairs [V]).
        backward_scene: (those Gaussians, (cameras, (rgb, light, depth), their cotangents), of_K) ->
            gradients of the Gaussians, of w2c and, with `of_K`, of K.

    Returns:
        A function of arrays [L,N,...] and cameras [L,V,...] -> what `forward_scene` gives, [L,...].
    """

    @fold_vmap
    def forward(*args: Array) -> tuple:
        return lax.map(lambda a: forward_scene(a[:5], a[5:]), args)

    def backward(args: tuple, pictures: tuple, cotangents: tuple, of_K: bool) -> tuple:
        @fold_vmap
        def scenes(*xs: Tree) -> tuple:
            def scene(xs: tuple) -> tuple:
                args, pictures, cotangents = xs
                return backward_scene(args[:5], (args[5:], pictures, cotangents), of_K)

            return lax.map(scene, xs)

        return scenes(args, pictures, cotangents)

    def forward_and_saved(*args: Array, keep: bool) -> tuple:  # noqa: ARG001
        out = forward(*args)
        return out, out[:3]

    return with_gradient(forward_and_saved, backward)
