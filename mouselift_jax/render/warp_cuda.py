"""The CUDA body of the `warp` implementation: one block of 256 threads per 16-px tile and view.

Projection, depth order and lists are those of `tiled` (binning.py): 32-bit sorts, buffers of fixed
size that XLA owns, depth slabs where a scene does not fit, nothing read back to the host. Only the
blending is a Warp kernel: the block stages 256 Gaussians in shared memory, every thread blends them
into its pixel, and the block leaves together when all of its pixels are opaque. The backward walks
the same lists in the same order (see tiled.py for the formula), sums each gradient over a warp by
shuffles and adds it with one atomic per warp and value.

The kernels also run on the CPU, each block's threads as fibers: that is how they are tested where
there is no GPU (`implementation="warp_blocks"`).
"""

# No `from __future__ import annotations`: Warp reads the annotations of kernels as objects.
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import warp as wp
from jax import Array, lax

from mouselift_jax.render import batching, binning
from mouselift_jax.render import constants as c
from mouselift_jax.render.projection import project
from mouselift_jax.render.types import Spec, Splats, no_type_check

SIDE = 16  # px of a tile; a block has one thread per pixel
BLOCK = SIDE * SIDE
# Views drawn in one launch are limited so that their tables stay below this many Gaussians.
_TABLE_ROWS = 1 << 22

_Row = wp.types.vector(10, wp.float32)  # the fields of Splats
_ALPHA_MIN = wp.constant(wp.float32(c.ALPHA_MIN))
_ALPHA_MAX = wp.constant(wp.float32(c.ALPHA_MAX))
_LIGHT_MIN = wp.constant(wp.float32(c.TRANSMITTANCE_MIN))
_SIDE = wp.constant(SIDE)
_BLOCK = wp.constant(BLOCK)


@no_type_check
def _define_warp_any() -> Callable:
    # Warp reads the return type only where its decorator is the only one.
    @wp.func_native("""
    #if defined(__CUDA_ARCH__)
    return __any_sync(0xffffffffu, flag) != 0;
    #else
    return flag;
    #endif
    """)
    def warp_any(flag: bool) -> bool: ...

    return warp_any


_warp_any = _define_warp_any()


@wp.func_native("""
#if defined(__CUDA_ARCH__)
for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(0xffffffffu, value, step);
if ((threadIdx.x & 31) == 0 && value != 0.0f) atomicAdd(out.data + at, value);
#else
out.data[at] += value;
#endif
""")
@no_type_check
def _add_over_warp(out: wp.array(dtype=wp.float32), at: int, value: float): ...


@wp.func
@no_type_check
def _falloff(row: _Row, px: float, py: float) -> float:
    dx = row[0] - px
    dy = row[1] - py
    power = -0.5 * (row[2] * dx * dx + row[4] * dy * dy) - row[3] * dx * dy
    return row[5] * wp.exp(wp.min(power, 0.0))


@wp.kernel(enable_backward=False)
@no_type_check
def _blend(
    keys: wp.array(dtype=wp.uint32, ndim=2),  # [V,M]
    starts: wp.array(dtype=wp.int32, ndim=2),  # [V,tiles+1]
    first: wp.array(dtype=wp.int32, ndim=1),  # [V] rank of the slab's first Gaussian
    table: wp.array(dtype=_Row, ndim=2),  # [V,N+R] in depth order
    plan: wp.array(dtype=wp.int32, ndim=1),  # [tiles, columns, bits of the rank]
    light: wp.array(dtype=wp.float32, ndim=3),  # [V,tiles,256] in and out
    sums: wp.array(dtype=wp.float32, ndim=4),  # [V,tiles,256,5] in and out
):
    block, lane = wp.tid()
    tiles = plan[0]
    view = block // tiles
    tile = block - view * tiles
    px = float((tile % plan[1]) * _SIDE + lane % _SIDE) + 0.5
    py = float((tile // plan[1]) * _SIDE + lane // _SIDE) + 0.5
    mask = (wp.uint32(1) << wp.uint32(plan[2])) - wp.uint32(1)
    begin = starts[view, tile]
    end = starts[view, tile + 1]
    left = light[view, tile, lane]
    red = sums[view, tile, lane, 0]
    green = sums[view, tile, lane, 1]
    blue = sums[view, tile, lane, 2]
    deep = sums[view, tile, lane, 3]
    total = sums[view, tile, lane, 4]
    staged = wp.tile_zeros(shape=_BLOCK, dtype=_Row, storage="shared")
    for at in range(begin, end, _BLOCK):
        votes = wp.tile_zeros(shape=1, dtype=int, storage="shared")
        wp.tile_scatter_add(votes, 0, 1, left >= _LIGHT_MIN)
        if votes[0] == 0:
            break
        mine = at + lane
        row = _Row()
        if mine < end:
            row = table[view, first[view] + int(keys[view, mine] & mask)]
        wp.tile_scatter_masked(staged, lane, row, mine < end)
        for k in range(wp.min(_BLOCK, end - at)):
            if left >= _LIGHT_MIN:
                row = staged[k]
                alpha = wp.min(_falloff(row, px, py), _ALPHA_MAX)
                if alpha >= _ALPHA_MIN:
                    after = left * (1.0 - alpha)
                    if after >= _LIGHT_MIN:
                        weight = alpha * left
                        red += weight * row[6]
                        green += weight * row[7]
                        blue += weight * row[8]
                        deep += weight * row[9]
                        total += weight
                    left = after
    light[view, tile, lane] = left
    sums[view, tile, lane, 0] = red
    sums[view, tile, lane, 1] = green
    sums[view, tile, lane, 2] = blue
    sums[view, tile, lane, 3] = deep
    sums[view, tile, lane, 4] = total


@wp.kernel(enable_backward=False)
@no_type_check
def _blend_backward(
    keys: wp.array(dtype=wp.uint32, ndim=2),
    starts: wp.array(dtype=wp.int32, ndim=2),
    first: wp.array(dtype=wp.int32, ndim=1),
    table: wp.array(dtype=_Row, ndim=2),
    plan: wp.array(dtype=wp.int32, ndim=1),
    upstream: wp.array(dtype=wp.float32, ndim=4),  # [V,tiles,256,5]
    light: wp.array(dtype=wp.float32, ndim=3),  # in and out
    behind: wp.array(dtype=wp.float32, ndim=3),  # [V,tiles,256] in and out: R minus what is spent
    gradients: wp.array(dtype=wp.float32, ndim=1),  # [V*(N+R)*10] in and out
):
    block, lane = wp.tid()
    tiles = plan[0]
    view = block // tiles
    tile = block - view * tiles
    px = float((tile % plan[1]) * _SIDE + lane % _SIDE) + 0.5
    py = float((tile // plan[1]) * _SIDE + lane // _SIDE) + 0.5
    mask = (wp.uint32(1) << wp.uint32(plan[2])) - wp.uint32(1)
    begin = starts[view, tile]
    end = starts[view, tile + 1]
    left = light[view, tile, lane]
    rest = behind[view, tile, lane]
    g_red = upstream[view, tile, lane, 0]
    g_green = upstream[view, tile, lane, 1]
    g_blue = upstream[view, tile, lane, 2]
    g_deep = upstream[view, tile, lane, 3]
    g_total = upstream[view, tile, lane, 4]
    staged = wp.tile_zeros(shape=_BLOCK, dtype=_Row, storage="shared")
    ranks = wp.tile_zeros(shape=_BLOCK, dtype=int, storage="shared")
    for at in range(begin, end, _BLOCK):
        votes = wp.tile_zeros(shape=1, dtype=int, storage="shared")
        wp.tile_scatter_add(votes, 0, 1, left >= _LIGHT_MIN)
        if votes[0] == 0:
            break
        mine = at + lane
        row = _Row()
        rank = 0
        if mine < end:
            rank = first[view] + int(keys[view, mine] & mask)
            row = table[view, rank]
        wp.tile_scatter_masked(staged, lane, row, mine < end)
        wp.tile_scatter_masked(ranks, lane, rank, mine < end)
        for k in range(wp.min(_BLOCK, end - at)):
            row = staged[k]
            falloff = _falloff(row, px, py)
            alpha = wp.min(falloff, _ALPHA_MAX)
            seen = left >= _LIGHT_MIN and alpha >= _ALPHA_MIN
            if _warp_any(seen):
                v = 0.0
                weight = 0.0
                if seen:
                    after = left * (1.0 - alpha)
                    if after >= _LIGHT_MIN:
                        weight = alpha * left
                        s = row[6] * g_red + row[7] * g_green + row[8] * g_blue
                        s += row[9] * g_deep + g_total
                        rest -= weight * s
                        if falloff <= _ALPHA_MAX:
                            v = alpha * (left * s - rest / (1.0 - alpha))
                    left = after
                dx = row[0] - px
                dy = row[1] - py
                out = (view * table.shape[1] + ranks[k]) * 10
                _add_over_warp(gradients, out, -v * (row[2] * dx + row[3] * dy))
                _add_over_warp(gradients, out + 1, -v * (row[3] * dx + row[4] * dy))
                _add_over_warp(gradients, out + 2, -0.5 * v * dx * dx)
                _add_over_warp(gradients, out + 3, -v * dx * dy)
                _add_over_warp(gradients, out + 4, -0.5 * v * dy * dy)
                _add_over_warp(gradients, out + 5, v / row[5])
                _add_over_warp(gradients, out + 6, weight * g_red)
                _add_over_warp(gradients, out + 7, weight * g_green)
                _add_over_warp(gradients, out + 8, weight * g_blue)
                _add_over_warp(gradients, out + 9, weight * g_deep)
    light[view, tile, lane] = left
    behind[view, tile, lane] = rest


@no_type_check
def _launch_blend(
    keys: wp.array(dtype=wp.uint32, ndim=2),
    starts: wp.array(dtype=wp.int32, ndim=2),
    first: wp.array(dtype=wp.int32, ndim=1),
    table: wp.array(dtype=_Row, ndim=2),
    plan: wp.array(dtype=wp.int32, ndim=1),
    light: wp.array(dtype=wp.float32, ndim=3),
    sums: wp.array(dtype=wp.float32, ndim=4),
) -> None:
    blocks = light.shape[0] * light.shape[1]
    arguments = [keys, starts, first, table, plan, light, sums]
    wp.launch_tiled(_blend, dim=[blocks], inputs=arguments, block_dim=BLOCK, device=keys.device)


@no_type_check
def _launch_backward(
    keys: wp.array(dtype=wp.uint32, ndim=2),
    starts: wp.array(dtype=wp.int32, ndim=2),
    first: wp.array(dtype=wp.int32, ndim=1),
    table: wp.array(dtype=_Row, ndim=2),
    plan: wp.array(dtype=wp.int32, ndim=1),
    upstream: wp.array(dtype=wp.float32, ndim=4),
    light: wp.array(dtype=wp.float32, ndim=3),
    behind: wp.array(dtype=wp.float32, ndim=3),
    gradients: wp.array(dtype=wp.float32, ndim=1),
) -> None:
    blocks = light.shape[0] * light.shape[1]
    arguments = [keys, starts, first, table, plan, upstream, light, behind, gradients]
    wp.launch_tiled(
        _blend_backward, dim=[blocks], inputs=arguments, block_dim=BLOCK, device=keys.device
    )


@functools.cache
def _callables() -> tuple:
    return (
        wp.jax_callable(
            _launch_blend, num_outputs=2, in_out_argnames=["light", "sums"], vmap_method=None
        ),
        wp.jax_callable(
            _launch_backward, num_outputs=3, in_out_argnames=["light", "behind", "gradients"],
            vmap_method=None,
        ),
    )  # fmt: skip


def _call(which: int, *arguments: Array) -> list[Array]:
    function = _callables()[which]
    function.call_id = 0  # see warp_cpu._call
    return function(*arguments)


# --- all views of a group at once ---------------------------------------------------------------
def _over_slabs(grid: binning.Grid, order: binning.Order, state: tuple, body: Callable) -> tuple:
    """Run `body(slabs, state)` until every view is done; count slabs and pairs [V]."""

    def more(carry: tuple) -> Array:
        first, _, state = carry
        bright = (state[0] >= c.TRANSMITTANCE_MIN).any((1, 2))
        return ((first < order.drawn) & bright).any()

    def step(carry: tuple) -> tuple:
        first, (slabs, pairs), state = carry
        # A view that is done lists nothing: its slab begins and ends behind its last Gaussian.
        slab = jax.vmap(functools.partial(binning.list_slab, grid))(order, first)
        counts = (slabs + (slab.end > first), batching.add_pairs(pairs, slab.starts[:, -1]))
        return slab.end, counts, body(slab, state)

    zero = order.drawn * 0
    _, counts, state = lax.while_loop(more, step, (zero, (zero, zero), state))
    return counts, state


def _prepare(spec: Spec, capacity: int | None, gaussians: tuple, cameras: tuple) -> tuple:
    """Project and order every view of a group: grid, splats [V,N], order, table [V,N+R,10]."""
    n = gaussians[0].shape[0]
    grid = binning.plan(n, spec.width, spec.height, tile=SIDE, capacity=capacity)
    splats, visibility = jax.vmap(lambda w2c, K: project(spec, *gaussians, w2c, K))(*cameras)
    order = jax.vmap(functools.partial(binning.order_by_depth, grid))(splats, visibility)
    table = jnp.stack(splats, -1)
    table = jax.vmap(lambda rows, index: rows[index])(table, order.index)
    table = jnp.pad(table, ((0, 0), (0, grid.slab), (0, 0)))
    plan = jnp.array([grid.tiles, grid.cols, grid.rank_bits], jnp.int32)
    return grid, visibility, order, table, plan


def _forward_group(spec: Spec, capacity: int | None, gaussians: tuple, cameras: tuple) -> tuple:
    grid, visibility, order, table, plan = _prepare(spec, capacity, gaussians, cameras)
    views = order.drawn.shape[0]
    light = binning.full_light(grid) + order.drawn.astype(jnp.float32)[:, None, None] * 0
    sums = jnp.zeros((views, grid.tiles, BLOCK, 5), jnp.float32) + light[..., None] * 0

    def body(slab: binning.Slab, state: tuple) -> tuple:
        return tuple(_call(0, slab.keys, slab.starts, slab.first, table, plan, *state))

    (slabs, pairs), (_, sums) = _over_slabs(grid, order, (light, sums), body)
    sums = jax.vmap(functools.partial(binning.from_tiles, grid))(sums)
    pictures = (sums[..., :3], 1 - sums[..., 4], sums[..., 3])
    return visibility.broken.any(0), (*pictures, slabs, pairs)


def _backward_group(
    spec: Spec, capacity: int | None, gaussians: tuple, xs: tuple, of_K: bool
) -> tuple:
    cameras, pictures, (g_rgb, g_light, g_depth) = xs
    grid, _, order, table, plan = _prepare(spec, capacity, gaussians, cameras)
    views, n = order.index.shape
    upstream = jnp.concatenate([g_rgb, g_depth[..., None], -g_light[..., None]], -1)
    to_tiles = jax.vmap(functools.partial(binning.to_tiles, grid))
    behind = to_tiles(batching.spent_in_all(pictures, xs[2])[..., None])[..., 0]
    upstream = to_tiles(upstream)

    def body(slab: binning.Slab, state: tuple) -> tuple:
        lists = (slab.keys, slab.starts, slab.first)
        return tuple(_call(1, *lists, table, plan, upstream, *state))

    light = binning.full_light(grid) + jnp.zeros_like(behind)
    state = (light, behind, table.reshape(-1) * 0)
    _, (_, _, gradients) = _over_slabs(grid, order, state, body)
    gradients = gradients.reshape(views, -1, 10)

    def pull(total: list, view: tuple) -> tuple:
        index, gradients, *camera = view
        rank = jnp.zeros(n, jnp.int32).at[index].set(
            jnp.arange(n, dtype=jnp.int32), unique_indices=True
        )  # fmt: skip
        gradients = gradients[rank]
        moving, still = (camera, []) if of_K else (camera[:1], camera[1:])
        _, pull_back = jax.vjp(lambda *a: project(spec, *a, *still)[0], *gaussians, *moving)
        grads = pull_back(Splats(*(gradients[:, i] for i in range(10))))
        return [a + b for a, b in zip(total, grads[:5], strict=True)], grads[5:]

    zeros = [jnp.where(jnp.isfinite(a), a, 0) * 0 for a in gaussians]
    return lax.scan(pull, zeros, (order.index, gradients, *cameras))


@functools.lru_cache(maxsize=64)
def _differentiable(spec: Spec, capacity: int | None) -> Callable:
    def limit(n: int) -> int:
        return max(1, _TABLE_ROWS // n)

    return batching.differentiable(
        batching.forward_in_groups(functools.partial(_forward_group, spec, capacity), limit),
        batching.backward_in_groups(functools.partial(_backward_group, spec, capacity), limit),
    )


def rasterize_flat(
    spec: Spec, *arrays: Array, capacity: int | None = None
) -> tuple[Array, Array, Array, dict[str, Array]]:
    """Blend L scenes of N Gaussians in V views each; see `reference.rasterize_flat`."""
    rgb, light, depth, broken, slabs, pairs = _differentiable(spec, capacity)(*arrays)
    return rgb, light, depth, batching.call_info(slabs, pairs, broken)
