"""The portable rasterizer: pure JAX, static shapes, every device; also the one that TPUs run.

Binning (binning.py) gives each tile its Gaussians front to back, slab by slab. Blending walks 64
tiles of similar list length at a time in chunks of 32 Gaussians and leaves a tile when all of its
pixels are opaque. The backward pass lists the same slabs again and walks them in the same order:
with s = <colour, cotangent> and R = sum of weight times s over the whole pixel,

    d loss / d alpha_k = T_k s_k - (R - sum of weight times s up to k) / (1 - alpha_k)

so no per-pixel list has to be kept, and memory is that of one view and one slab.

Letters: P = pixels of a tile, G = tiles walked together, C = Gaussians of a chunk. In the order
[C,G,P] what one Gaussian of every list needs is one piece of memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from mouselift_jax.render import batching, binning
from mouselift_jax.render import constants as c
from mouselift_jax.render.binning import Grid, Order, Slab
from mouselift_jax.render.projection import project
from mouselift_jax.render.types import Spec, Splats, Visibility

GROUP = 64  # tiles walked together; with 8-px tiles the fastest on XLA's CPU backend
CHUNK = 32  # Gaussians blended before the early exit is looked at
_HIGHEST = lax.Precision.HIGHEST


class Chunk(NamedTuple):
    """The pairs of C Gaussians with the P pixels of G tiles."""

    rows: Array  # [C,G,10], the fields of Splats
    rank: Array  # [C,G] within the slab
    listed: Array  # [C,G] whether there is a Gaussian at all
    falloff: Array  # [C,G,P], opacity * exp(power), before the clamp; 0 where none is listed


def _pixel_centers(grid: Grid, tile: Array) -> tuple[Array, Array]:
    """Pixel centres of tiles [G], relative to the tile's corner [P] and the corners [G]."""
    inner = jnp.arange(grid.tile * grid.tile, dtype=jnp.int32)
    local = jnp.stack([inner % grid.tile, inner // grid.tile]).astype(jnp.float32) + 0.5
    corner = jnp.stack([tile % grid.cols, tile // grid.cols]).astype(jnp.float32) * grid.tile
    return local, corner


def _alpha(falloff: Array) -> Array:
    """Opacity at the pixels, 0 where skipped."""
    alpha = jnp.minimum(falloff, c.ALPHA_MAX)
    return jnp.where(alpha >= c.ALPHA_MIN, alpha, 0)


def _pass(light: Array, alpha: Array) -> tuple[Array, Array]:
    """What one Gaussian leaves of the light, and its weight: 0 from the one that ends the pixel."""
    after = light * (1 - alpha)
    return after, jnp.where(after >= c.TRANSMITTANCE_MIN, alpha * light, 0)


def _chunk(grid: Grid, table: Array, slab: Slab, tile: Array, at: Array) -> Chunk:
    """Evaluate the Gaussians `at`.. of the lists of tiles [G], all pixels.

    Args:
        grid: the plan.
        table: rows of Splats in depth order [N+R,10].
        slab: the lists.
        tile: tile numbers [G]; past the last one for padding.
        at: position in each tile's list.
    """
    real = jnp.minimum(tile, grid.tiles - 1)
    position = slab.starts[real] + at + jnp.arange(CHUNK, dtype=jnp.int32)[:, None]
    listed = (position < slab.starts[real + 1]) & (tile < grid.tiles)
    key = slab.keys[jnp.minimum(position, grid.capacity - 1)]
    rank = jnp.where(listed, key & ((1 << grid.rank_bits) - 1), 0).astype(jnp.int32)
    rows = table[slab.first + rank]  # [C,G,10]
    local, corner = _pixel_centers(grid, real)
    splat = Splats(*(rows[..., i, None] for i in range(10)))
    dx = (splat.x - corner[0][:, None]) - local[0]
    dy = (splat.y - corner[1][:, None]) - local[1]
    power = -0.5 * (splat.conic_xx * dx * dx + splat.conic_yy * dy * dy) - splat.conic_xy * dx * dy
    falloff = splat.opacity * jnp.exp(jnp.minimum(power, 0))
    return Chunk(rows, rank, listed, jnp.where(listed[..., None], falloff, 0))


def _walk(
    grid: Grid, slab: Slab, moving: tuple, fixed: Array | None, extra: Any, body: Callable
) -> tuple[tuple, Any]:
    """Run `body` over all lists of a slab.

    Args:
        grid: the plan.
        slab: the lists.
        moving: (light [tiles,P], ...), by tile; tiles opaque everywhere are left out.
        fixed: read only, by tile.
        extra: anything else that `body` changes.
        body: (tile [G], at, moving, fixed, extra) of G tiles -> (moving, extra).
    """
    length = slab.starts[1:] - slab.starts[:-1]
    # Lists of similar length are walked together, the longest first.
    tiles = jnp.argsort(-length)
    groups = -(-grid.tiles // GROUP)
    tiles = jnp.pad(tiles, (0, groups * GROUP - grid.tiles), constant_values=grid.tiles)

    def one_group(state: tuple, tile: Array) -> tuple[tuple, None]:
        moving, extra = state
        real = jnp.minimum(tile, grid.tiles - 1)
        most = jnp.max(jnp.where(tile < grid.tiles, length[real], 0))
        here, constant = jax.tree.map(lambda a: a[real], (moving, fixed))

        def more(inner: tuple) -> Array:
            at, (light, *_), _ = inner
            return (at < most) & (light.max() >= c.TRANSMITTANCE_MIN)

        def step(inner: tuple) -> tuple:
            at, here, extra = inner
            return (at + CHUNK, *body(tile, at, here, constant, extra))

        _, here, extra = lax.while_loop(more, step, (most * 0, here, extra))
        moving = jax.tree.map(lambda a, new: a.at[tile].set(new, mode="drop"), moving, here)
        return (moving, extra), None

    (moving, extra), _ = lax.scan(one_group, (moving, extra), tiles.reshape(groups, GROUP))
    return moving, extra


def _over_slabs(grid: Grid, order: Order, state: tuple, body: Callable) -> tuple:
    """Run `body(slab, state)` over the slabs until the scene or the light ends; also count them.

    The first item of `state` is (light [tiles,P], ...).
    """

    def more(carry: tuple) -> Array:
        first, _, state = carry
        return (first < order.drawn) & (state[0][0].max() >= c.TRANSMITTANCE_MIN)

    def step(carry: tuple) -> tuple:
        first, (slabs, pairs), state = carry
        slab = binning.list_slab(grid, order, first)
        counts = (slabs + 1, batching.add_pairs(pairs, slab.starts[-1]))
        return slab.end, counts, body(slab, state)

    zero = order.drawn * 0
    _, counts, state = lax.while_loop(more, step, (zero, (zero, zero), state))
    return counts, state


def _table(grid: Grid, splats: Splats, order: Order) -> Array:
    return jnp.pad(jnp.stack(splats, -1)[order.index], ((0, grid.slab), (0, 0)))


def _start(grid: Grid, order: Order) -> tuple[Array, Array]:
    """Full light [tiles,P], and a zero."""
    zero = order.drawn.astype(jnp.float32) * 0  # carries the mesh axes of shard_map along
    return binning.full_light(grid) + zero, zero


def _channels(rows: Array) -> Array:
    """What a weight is summed over: colour, depth, one [...,5]."""
    return jnp.concatenate([rows[..., 6:10], jnp.ones_like(rows[..., :1])], -1)


def blend(grid: Grid, splats: Splats, order: Order) -> tuple[Array, tuple[Array, Array]]:
    """Blend one view.

    Returns:
        Sums over each pixel of weight times (rgb, depth, 1) [tiles,P,5]; (slabs, pairs).
    """
    table = _table(grid, splats, order)

    def step(slab: Slab, tile: Array, at: Array, moving: tuple, fixed: None, extra: None) -> tuple:
        light, *sums = moving
        chunk = _chunk(grid, table, slab, tile, at)
        alpha, channels = _alpha(chunk.falloff), _channels(chunk.rows)
        # Written out, XLA makes one loop over the pixels of it that keeps all sums in registers.
        for i in range(CHUNK):
            light, weight = _pass(light, alpha[i])
            sums = [s + weight * channels[i, :, k, None] for k, s in enumerate(sums)]
        return (light, *sums), extra

    def body(slab: Slab, state: tuple) -> tuple:
        moving, nothing = state
        return _walk(grid, slab, moving, None, nothing, functools.partial(step, slab))

    light, _ = _start(grid, order)
    moving = (light, *(light * 0 for _ in range(5)))
    counts, ((_, *sums), _) = _over_slabs(grid, order, (moving, None), body)
    return jnp.stack(sums, -1), counts


def _pair_gradients(
    grid: Grid, chunk: Chunk, tile: Array, moving: tuple[Array, Array], upstream: Array
) -> tuple[tuple[Array, Array], Array]:
    """Gradients of the 10 fields for each pair of a chunk, summed over the tile's pixels.

    Args:
        grid: the plan.
        chunk: the pairs.
        tile: tile numbers [G].
        moving: the light that reaches the chunk; the sum of weight times s over what is still to
            come, this chunk included; [G,P].
        upstream: cotangents of the five sums [G,5,P].

    Returns:
        `moving` after the chunk; rows [C,G,10].
    """

    def step(moving: tuple, gaussian: tuple) -> tuple[tuple, tuple]:
        light, left = moving
        falloff, channels = gaussian
        alpha = _alpha(falloff)
        after, weight = _pass(light, alpha)
        s = sum(channels[:, k, None] * upstream[:, k] for k in range(5))
        behind = left - weight * s
        slope = light * s - behind / (1 - alpha)
        moved = (weight > 0) & (falloff <= c.ALPHA_MAX)
        # The second is d loss / d power.
        return (after, behind), (weight, jnp.where(moved, slope * falloff, 0))

    def walk(unroll: int, *args: Any) -> tuple:
        return lax.scan(step, *args, unroll=unroll)

    moving, (weight, v) = lax.platform_dependent(
        moving,
        (chunk.falloff, _channels(chunk.rows)),
        cpu=functools.partial(walk, 1),  # more would be put together by copying
        default=functools.partial(walk, 4),
    )

    (px, py), corner = _pixel_centers(grid, jnp.minimum(tile, grid.tiles - 1))
    px, py = px - grid.tile / 2, py - grid.tile / 2
    basis = jnp.stack([jnp.ones_like(px), px, py, px * px, px * py, py * py], -1)
    m = jnp.einsum("cgp,pk->cgk", v, basis, precision=_HIGHEST)
    color = jnp.einsum("cgp,gdp->cgd", weight, upstream[:, :4], precision=_HIGHEST)
    # Moments about the tile's centre -> sums of v (dx, dy, dx^2, dx dy, dy^2), d = mean - pixel.
    x = chunk.rows[..., 0] - corner[0] - grid.tile / 2
    y = chunk.rows[..., 1] - corner[1] - grid.tile / 2
    xx, xy, yy, opacity = (chunk.rows[..., i] for i in range(2, 6))
    v0 = m[..., 0]
    vx, vy = x * v0 - m[..., 1], y * v0 - m[..., 2]
    vxx = x * (2 * vx - x * v0) + m[..., 3]
    vxy = x * vy + y * vx - x * y * v0 + m[..., 4]
    vyy = y * (2 * vy - y * v0) + m[..., 5]
    rows = [
        -(xx * vx + xy * vy),
        -(xy * vx + yy * vy),
        -0.5 * vxx,
        -vxy,
        -0.5 * vyy,
        v0 / jnp.where(opacity > 0, opacity, 1),
    ]
    return moving, jnp.concatenate([jnp.stack(rows, -1), color], -1)


def _sum_by_rank(rows: Array, slab: Slab) -> Array:
    """Sum the rows of pairs [M,10], grouped by rank, to one row per Gaussian [R,10]."""
    n = slab.ends.shape[0]
    inside = slab.first + jnp.arange(n, dtype=jnp.int32) < slab.end
    marks = jnp.zeros(rows.shape[0], jnp.int32)
    rank = jnp.cumsum(
        marks.at[jnp.where(inside, slab.ends, rows.shape[0])].set(1, mode="drop")
    )  # fmt: skip

    def by_scatter(rows: Array) -> Array:
        return jax.ops.segment_sum(rows, rank, n, indices_are_sorted=True)

    def by_scan(rows: Array) -> Array:
        return binning.segment_ends_sum(rows, rank, slab.ends, inside)

    return lax.platform_dependent(rows, cpu=by_scatter, default=by_scan)


def blend_backward(
    grid: Grid, splats: Splats, order: Order, upstream: Array, total: Array
) -> Splats:
    """Gradients of the fields of `splats` [N] each.

    Args:
        grid: the plan.
        splats: what was blended.
        order: its depth order.
        upstream: cotangents of the five sums [tiles,P,5].
        total: R of the module's docstring [tiles,P].
    """
    table = _table(grid, splats, order)
    n = order.index.shape[0]
    upstream = jnp.moveaxis(upstream, -1, 1)

    def step(
        slab: Slab, tile: Array, at: Array, moving: tuple, upstream: Array, rows: Array
    ) -> tuple:
        chunk = _chunk(grid, table, slab, tile, at)
        moving, pairs = _pair_gradients(grid, chunk, tile, moving, upstream)
        slot = binning.pair_slots(grid, slab, jnp.minimum(tile, grid.tiles - 1), chunk.rank)
        slot = jnp.where(chunk.listed, slot, grid.capacity)
        return moving, rows.at[slot.reshape(-1)].set(pairs.reshape(-1, 10), mode="drop")

    def body(slab: Slab, state: tuple) -> tuple:
        moving, gradients = state
        rows = jnp.zeros((grid.capacity, 10), jnp.float32) + zero
        moving, rows = _walk(grid, slab, moving, upstream, rows, functools.partial(step, slab))
        summed = _sum_by_rank(rows, slab)
        # The slab's tail beyond `end` is zero and is overwritten by the next slab.
        return moving, lax.dynamic_update_slice_in_dim(gradients, summed, slab.first, 0)

    light, zero = _start(grid, order)
    gradients = jnp.zeros((n + grid.slab, 10), jnp.float32) + zero
    _, (_, gradients) = _over_slabs(grid, order, ((light, total), gradients), body)
    rank = jnp.zeros(n, jnp.int32).at[order.index].set(
        jnp.arange(n, dtype=jnp.int32), unique_indices=True
    )  # fmt: skip
    gradients = gradients[rank]
    return Splats(*(gradients[:, i] for i in range(10)))


# --- one view, both ways ------------------------------------------------------------------------
def _project(spec: Spec, *args: Array) -> tuple[Splats, Visibility]:
    """`project`, its result kept in memory: XLA would repeat it in every gather from it.

    A branch is the one thing that its CPU backend does not fuse. The other is for cameras that are
    not finite, which draw nothing and count every Gaussian as broken.
    """

    def nothing(*args: Array) -> tuple[Splats, Visibility]:
        outputs = jax.eval_shape(functools.partial(project, spec), *args)
        zero = sum(jnp.isnan(a).any() for a in args) * 0  # carries the mesh axes of shard_map along
        splats, hidden = jax.tree.map(
            lambda a: jnp.broadcast_to(zero, a.shape).astype(a.dtype), outputs
        )
        return splats, hidden._replace(broken=~hidden.broken)

    *_, w2c, K = args
    finite = jnp.isfinite(w2c).all() & jnp.isfinite(K).all()
    return lax.cond(finite, functools.partial(project, spec), nothing, *args)


def _forward_view(spec: Spec, capacity: int | None, *args: Array) -> tuple[Array, ...]:
    grid = binning.plan(args[0].shape[0], spec.width, spec.height, capacity=capacity)
    splats, visibility = _project(spec, *args)
    order = binning.order_by_depth(grid, splats, visibility)
    sums, (slabs, pairs) = blend(grid, splats, order)
    sums = binning.from_tiles(grid, sums)
    return sums[..., :3], 1 - sums[..., 4], sums[..., 3], visibility.broken, slabs, pairs


def _backward_view(spec: Spec, capacity: int | None, args: tuple, pictures: tuple,
                   cotangents: tuple, of_K: bool) -> tuple[Array, ...]:  # fmt: skip
    grid = binning.plan(args[0].shape[0], spec.width, spec.height, capacity=capacity)
    moving, still = (args, ()) if of_K else (args[:-1], args[-1:])
    splats, pull, visibility = jax.vjp(lambda *a: project(spec, *a, *still), *moving, has_aux=True)
    order = binning.order_by_depth(grid, splats, visibility)
    g_rgb, g_light, g_depth = cotangents
    upstream = jnp.concatenate([g_rgb, g_depth[..., None], -g_light[..., None]], -1)
    total = batching.spent_in_all(pictures, cotangents)
    total = binning.to_tiles(grid, total[..., None])[..., 0]
    upstream = binning.to_tiles(grid, upstream)
    return pull(blend_backward(grid, splats, order, upstream, total))


@functools.lru_cache(maxsize=64)
def _differentiable(spec: Spec, capacity: int | None) -> Callable:
    forward = functools.partial(_forward_view, spec, capacity)
    backward = functools.partial(_backward_view, spec, capacity)
    return batching.differentiable(*batching.one_by_one(forward, backward))


def rasterize_flat(
    spec: Spec, *arrays: Array, capacity: int | None = None
) -> tuple[Array, Array, Array, dict[str, Array]]:
    """Blend L scenes of N Gaussians in V views each; see `reference.rasterize_flat`."""
    rgb, light, depth, broken, slabs, pairs = _differentiable(spec, capacity)(*arrays)
    return rgb, light, depth, batching.call_info(slabs, pairs, broken)
