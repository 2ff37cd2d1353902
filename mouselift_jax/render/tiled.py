"""The portable rasterizer: pure JAX, static shapes, every device; also the one that TPUs run.

Binning (binning.py) gives each tile its Gaussians front to back, slab by slab. Blending walks 64
tiles of similar list length at a time in chunks of 32 Gaussians and leaves a tile when all of its
pixels are opaque. The backward pass lists the same slabs again and walks them in the same order:
with s = <colour, cotangent> and R = sum of weight times s over the whole pixel,

    d loss / d alpha_k = T_k s_k - (R - sum of weight times s up to k) / (1 - alpha_k)

so no per-pixel list has to be kept, and memory is that of one view and one slab.

Letters: P = pixels of a tile, G = tiles walked together, C = Gaussians of a chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from mouselift_jax.render import batching, binning
from mouselift_jax.render import constants as c
from mouselift_jax.render.binning import Grid, Order, Slab
from mouselift_jax.render.projection import project
from mouselift_jax.render.types import Spec, Splats

GROUP = 64  # tiles walked together; with 8-px tiles the fastest on XLA's CPU backend
CHUNK = 32  # Gaussians blended before the early exit is looked at
_HIGHEST = lax.Precision.HIGHEST


class Chunk(NamedTuple):
    """The pairs of C Gaussians with the P pixels of G tiles."""

    rows: Array  # [G,C,10], the fields of Splats
    rank: Array  # [G,C] within the slab
    listed: Array  # [G,C] whether there is a Gaussian at all
    alpha: Array  # [G,C,P], 0 where skipped
    falloff: Array  # [G,C,P], opacity * exp(power), before the clamp
    light_before: Array  # [G,C,P]
    light_after: Array  # [G,C,P]

    @property
    def weight(self) -> Array:
        """Blending weights [G,C,P]; 0 from the Gaussian on that would end the pixel."""
        blended = self.light_after >= c.TRANSMITTANCE_MIN
        return jnp.where(blended, self.alpha * self.light_before, 0)


def _pixel_centers(grid: Grid, tile: Array) -> tuple[Array, Array]:
    """Pixel centres of tiles [G], relative to the tile's corner [P] and the corners [G]."""
    inner = jnp.arange(grid.tile * grid.tile, dtype=jnp.int32)
    local = jnp.stack([inner % grid.tile, inner // grid.tile]).astype(jnp.float32) + 0.5
    corner = jnp.stack([tile % grid.cols, tile // grid.cols]).astype(jnp.float32) * grid.tile
    return local, corner


def _running(combine: Callable, start: Array, values: Array) -> Array:
    """`combine` carried over C values [G,C,P] from what came in [G,P], after each of them.

    A scan, because XLA's own cumsum is a window reduction, several times slower on its CPU backend.
    """

    def step(total: Array, value: Array) -> tuple[Array, Array]:
        total = combine(total, value)
        return total, total

    _, after = lax.scan(step, start, jnp.moveaxis(values, 1, 0), unroll=4)
    return jnp.moveaxis(after, 0, 1)


def _chunk(grid: Grid, table: Array, slab: Slab, tile: Array, at: Array, light: Array) -> Chunk:
    """Evaluate the Gaussians `at`.. of the lists of tiles [G], all pixels.

    Args:
        grid: the plan.
        table: rows of Splats in depth order [N+R,10].
        slab: the lists.
        tile: tile numbers [G]; past the last one for padding.
        at: position in each tile's list.
        light: transmittance that reaches these Gaussians [G,P].
    """
    real = jnp.minimum(tile, grid.tiles - 1)
    position = slab.starts[real][:, None] + at + jnp.arange(CHUNK, dtype=jnp.int32)
    listed = (position < slab.starts[real + 1][:, None]) & (tile < grid.tiles)[:, None]
    key = slab.keys[jnp.minimum(position, grid.capacity - 1)]
    rank = jnp.where(listed, key & ((1 << grid.rank_bits) - 1), 0).astype(jnp.int32)
    rows = table[slab.first + rank]  # [G,C,10]
    local, corner = _pixel_centers(grid, real)
    splat = Splats(*(rows[..., i, None] for i in range(10)))
    dx = (splat.x - corner[0][:, None, None]) - local[0]
    dy = (splat.y - corner[1][:, None, None]) - local[1]
    power = -0.5 * (splat.conic_xx * dx * dx + splat.conic_yy * dy * dy) - splat.conic_xy * dx * dy
    falloff = splat.opacity * jnp.exp(jnp.minimum(power, 0))
    alpha = jnp.minimum(falloff, c.ALPHA_MAX)
    alpha = jnp.where(listed[..., None] & (alpha >= c.ALPHA_MIN), alpha, 0)
    after = _running(jnp.multiply, light, 1 - alpha)
    before = jnp.concatenate([light[:, None], after[:, :-1]], 1)
    return Chunk(rows, rank, listed, alpha, falloff, before, after)


def _walk(grid: Grid, slab: Slab, state: tuple, body: Callable) -> tuple:
    """Run `body` over all lists of a slab.

    Args:
        grid: the plan.
        slab: the lists.
        state: (light [tiles,P], sums [tiles,P,D], extra); tiles opaque everywhere are left out.
        body: (tile [G], at, light [G,P], sums [G,P,D], extra) -> (light, sums, extra).
    """
    length = slab.starts[1:] - slab.starts[:-1]
    # Lists of similar length are walked together, the longest first.
    tiles = jnp.argsort(-length)
    groups = -(-grid.tiles // GROUP)
    tiles = jnp.pad(tiles, (0, groups * GROUP - grid.tiles), constant_values=grid.tiles)

    def one_group(state: tuple, tile: Array) -> tuple[tuple, None]:
        light, sums, extra = state
        real = jnp.minimum(tile, grid.tiles - 1)
        most = jnp.max(jnp.where(tile < grid.tiles, length[real], 0))

        def more(inner: tuple) -> Array:
            at, left = inner[0], inner[1]
            return (at < most) & (left.max() >= c.TRANSMITTANCE_MIN)

        def step(inner: tuple) -> tuple:
            at, left, total, extra = inner
            return (at + CHUNK, *body(tile, at, left, total, extra))

        inner = (most * 0, light[real], sums[real], extra)
        _, left, total, extra = lax.while_loop(more, step, inner)
        light = light.at[tile].set(left, mode="drop")
        return (light, sums.at[tile].set(total, mode="drop"), extra), None

    state, _ = lax.scan(one_group, state, tiles.reshape(groups, GROUP))
    return state


def _over_slabs(grid: Grid, order: Order, state: tuple, body: Callable) -> tuple:
    """Run `body(slab, state)` over the slabs until the scene or the light ends; also count them."""

    def more(carry: tuple) -> Array:
        first, _, state = carry
        return (first < order.drawn) & (state[0].max() >= c.TRANSMITTANCE_MIN)

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


def _start(grid: Grid, order: Order, channels: int) -> tuple[Array, Array]:
    """Full light and empty sums."""
    zero = order.drawn.astype(jnp.float32) * 0  # carries the mesh axes of shard_map along
    light = binning.full_light(grid) + zero
    return light, jnp.zeros((*light.shape, channels), jnp.float32) + zero


def _channels(rows: Array) -> Array:
    """What a weight is summed over: colour, depth, one [...,5]."""
    return jnp.concatenate([rows[..., 6:10], jnp.ones_like(rows[..., :1])], -1)


def blend(grid: Grid, splats: Splats, order: Order) -> tuple[Array, tuple[Array, Array]]:
    """Blend one view.

    Returns:
        Sums over each pixel of weight times (rgb, depth, 1) [tiles,P,5]; (slabs, pairs).
    """
    table = _table(grid, splats, order)

    def body(slab: Slab, state: tuple) -> tuple:
        def step(tile: Array, at: Array, light: Array, sums: Array, extra: tuple) -> tuple:
            chunk = _chunk(grid, table, slab, tile, at, light)
            sums = sums + jnp.einsum(
                "gcp,gcd->gpd", chunk.weight, _channels(chunk.rows), precision=_HIGHEST
            )
            return chunk.light_after[:, -1], sums, extra

        return _walk(grid, slab, state, step)

    counts, (_, sums, _) = _over_slabs(grid, order, (*_start(grid, order, 5), ()), body)
    return sums, counts


def _pair_gradients(grid: Grid, chunk: Chunk, tile: Array, upstream: Array, left: Array) -> tuple:
    """Gradients of the 10 fields for each pair of a chunk, summed over the tile's pixels.

    Args:
        grid: the plan.
        chunk: the pairs.
        tile: tile numbers [G].
        upstream: cotangents of the five sums [G,P,5].
        left: sum of weight times s over what is still to come, this chunk included [G,P].

    Returns:
        Rows [G,C,10]; `left` after the chunk.
    """
    weight = chunk.weight
    s = jnp.einsum("gcd,gpd->gcp", _channels(chunk.rows), upstream, precision=_HIGHEST)
    behind = _running(jnp.subtract, left, weight * s)
    slope = chunk.light_before * s - behind / (1 - chunk.alpha)
    moved = (weight > 0) & (chunk.falloff <= c.ALPHA_MAX)
    v = jnp.where(moved, slope * chunk.falloff, 0)  # d loss / d power

    (px, py), corner = _pixel_centers(grid, jnp.minimum(tile, grid.tiles - 1))
    px, py = px - grid.tile / 2, py - grid.tile / 2
    basis = jnp.stack([jnp.ones_like(px), px, py, px * px, px * py, py * py], -1)
    m = jnp.einsum("gcp,pk->gck", v, basis, precision=_HIGHEST)
    color = jnp.einsum("gcp,gpd->gcd", weight, upstream[..., :4], precision=_HIGHEST)
    # Moments about the tile's centre -> sums of v (dx, dy, dx^2, dx dy, dy^2), d = mean - pixel.
    x = chunk.rows[..., 0] - corner[0][:, None] - grid.tile / 2
    y = chunk.rows[..., 1] - corner[1][:, None] - grid.tile / 2
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
    return jnp.concatenate([jnp.stack(rows, -1), color], -1), behind[:, -1]


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

    def body(slab: Slab, state: tuple) -> tuple:
        light, left, gradients = state
        rows = jnp.zeros((grid.capacity, 10), jnp.float32) + light[0, 0] * 0

        def step(tile: Array, at: Array, light: Array, left: Array, rows: Array) -> tuple:
            chunk = _chunk(grid, table, slab, tile, at, light)
            real = jnp.minimum(tile, grid.tiles - 1)
            pairs, left = _pair_gradients(grid, chunk, tile, upstream[real], left[..., 0])
            slot = binning.pair_slots(grid, slab, real[:, None], chunk.rank)
            slot = jnp.where(chunk.listed, slot, grid.capacity)
            rows = rows.at[slot.reshape(-1)].set(pairs.reshape(-1, 10), mode="drop")
            return chunk.light_after[:, -1], left[..., None], rows

        light, left, rows = _walk(grid, slab, (light, left, rows), step)
        summed = _sum_by_rank(rows, slab)
        # The slab's tail beyond `end` is zero and is overwritten by the next slab.
        gradients = lax.dynamic_update_slice_in_dim(gradients, summed, slab.first, 0)
        return light, left, gradients

    light, zero = _start(grid, order, 1)
    gradients = jnp.zeros((n + grid.slab, 10), jnp.float32) + zero[0, 0]
    _, (_, _, gradients) = _over_slabs(
        grid, order, (light, zero + total[..., None], gradients), body
    )
    rank = jnp.zeros(n, jnp.int32).at[order.index].set(
        jnp.arange(n, dtype=jnp.int32), unique_indices=True
    )  # fmt: skip
    gradients = gradients[rank]
    return Splats(*(gradients[:, i] for i in range(10)))


# --- one view, both ways ------------------------------------------------------------------------
def _forward_view(spec: Spec, capacity: int | None, *args: Array) -> tuple[Array, ...]:
    grid = binning.plan(args[0].shape[0], spec.width, spec.height, capacity=capacity)
    splats, visibility = project(spec, *args)
    order = binning.order_by_depth(grid, splats, visibility)
    sums, (slabs, pairs) = blend(grid, splats, order)
    sums = binning.from_tiles(grid, sums)
    return sums[..., :3], 1 - sums[..., 4], sums[..., 3], visibility.broken, slabs, pairs


def _backward_view(spec: Spec, capacity: int | None, args: tuple, pictures: tuple,
                   cotangents: tuple) -> tuple[Array, ...]:  # fmt: skip
    grid = binning.plan(args[0].shape[0], spec.width, spec.height, capacity=capacity)
    K = args[-1]
    splats, pull, visibility = jax.vjp(lambda *a: project(spec, *a, K), *args[:-1], has_aux=True)
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
