"""Which Gaussian is drawn where and in what order, with shapes that do not depend on the scene.

A view's drawn Gaussians are put in depth order once. Then the scene is taken in depth slabs: the
longest run of Gaussians whose (Gaussian, tile) pairs fit a buffer of fixed size. One slab lists its
pairs, sorts one 32-bit key per pair (tile in the high bits, rank within the slab in the low bits),
and is blended onto what the slabs before it left. So the buffer's size costs time and memory only;
it cannot change the picture. Any one Gaussian covers at most all tiles: that is the least size.

Letters: P = pixels of a tile, R = most Gaussians of a slab, M = capacity, the pairs of a slab.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int32, UInt32

from mouselift_jax.render import constants as c
from mouselift_jax.render.types import Splats, Visibility

_PAIRS = 3  # of a splat of GS-LRM: 2 to 3
NO_PAIR = 0xFFFFFFFF  # sorts behind every key
_FAR = 0x7FFFFFFF  # above the bits of every positive float
# Rounding of the extents must not lose a pixel at alpha = 1/255; a superset draws the same picture.
_SLACK_PX, _SLACK_RELATIVE = 1e-3, 1e-4


class Grid(NamedTuple):
    """The static plan of a call.

    Attributes:
        width: of the picture, px.
        height: of the picture, px.
        tile: side of a work tile, px.
        cols: tiles across the picture.
        rows: tiles down the picture.
        capacity: pairs of one slab.
        rank_bits: bits of a key that hold the rank within the slab.
        slab: most Gaussians of one slab.
    """

    width: int
    height: int
    tile: int
    cols: int
    rows: int
    capacity: int
    rank_bits: int
    slab: int

    @property
    def tiles(self) -> int:
        """Number of tiles of the picture."""
        return self.cols * self.rows


def plan(
    n: int, width: int, height: int, *, tile: int | None = None, capacity: int | None = None
) -> Grid:
    """Choose tile side, buffer size and key layout for N Gaussians in a picture.

    The default capacity holds what GS-LRM's splats need (2-3 pairs each) in one slab up to 65 k
    Gaussians and in a few slabs above, where the buffers would dominate memory. The default tile
    leaves at least 15 bits of a key for ranks; one that is given is kept, and slabs are shorter.
    """
    side = tile or c.TILE
    # The number of tiles is a key too, the end of the last.
    while tile is None and (-(-width // side) * -(-height // side)).bit_length() > 16:
        side *= 2
    cols, rows = -(-width // side), -(-height // side)
    is_free = capacity is None
    if capacity is None:
        capacity = min(4 * n, max(1 << 18, n))
    capacity = max(capacity, cols * rows, 1)
    # Splats make two pairs each or more; room for others would only pad what slabs are cut from.
    most = 1 << (31 - (cols * rows).bit_length())  # ranks that fit a key
    slab = max(1, min(n, capacity // 2, most))
    if is_free and slab == most:
        # The key cuts the slabs, not the buffer: room for more pairs than they make would only be
        # cleared, scanned and sorted, once a slab.
        capacity = max(min(capacity, _PAIRS * most), cols * rows)
    rank_bits = (slab - 1).bit_length()
    return Grid(width, height, side, cols, rows, capacity, rank_bits, slab)


class Rects(NamedTuple):
    """Tiles that the bounding box of each Gaussian touches; every field int32 [N]."""

    col: Array
    row: Array
    cols: Array
    rows: Array

    @property
    def count(self) -> Array:
        """Number of tiles; 0 where the Gaussian is not drawn."""
        return self.cols * self.rows


def tile_rects(grid: Grid, splats: Splats, visibility: Visibility) -> Rects:
    """Tiles that hold a pixel centre where alpha may reach the threshold."""

    def span(center: Array, half: Array, tiles: int) -> tuple[Array, Array]:
        half = half * (1 + _SLACK_RELATIVE) + _SLACK_PX
        first = jnp.clip(jnp.floor((center - half - 0.5) / grid.tile), 0, tiles)
        last = jnp.clip(jnp.floor((center + half - 0.5) / grid.tile) + 1, 0, tiles)
        return first.astype(jnp.int32), jnp.maximum(last - first, 0).astype(jnp.int32)

    col, cols = span(splats.x, visibility.half_width, grid.cols)
    row, rows = span(splats.y, visibility.half_height, grid.rows)
    cols = jnp.where(visibility.drawn, cols, 0)
    return Rects(col, row, cols, rows)


def depth_order(depth: Float[Array, "N"], listed: Array) -> Int32[Array, "N"]:
    """Indices by depth, ties by index, those not listed last.

    XLA sorts one array of 32-bit integers much faster than pairs or floats (and on GPUs hands only
    those to CUB), so this is a radix sort made of such sorts: each pass orders by one digit of the
    depth's bits, with the position so far in the low bits. Passes above the range are not run.
    """
    n = depth.shape[0]
    bits = lax.bitcast_convert_type(depth.astype(jnp.float32), jnp.uint32)
    least = jnp.min(jnp.where(listed, bits, _FAR), initial=_FAR)
    most = jnp.max(jnp.where(listed, bits, 0), initial=0)
    above = jnp.where(most >= least, most - least, 0) + 1
    value = jnp.where(listed, bits - least, above)
    position_bits = max(1, (n - 1).bit_length())
    digit_bits = 32 - position_bits
    positions = jnp.arange(n, dtype=jnp.uint32)

    def one_pass(state: tuple) -> tuple:
        shift, order = state
        digit = (value[order] >> shift) & ((1 << digit_bits) - 1)
        keys = lax.sort((digit << position_bits) | positions, is_stable=False)
        return shift + digit_bits, order[keys & ((1 << position_bits) - 1)]

    def more(state: tuple) -> Array:
        return (state[0] < 32) & ((above >> jnp.minimum(state[0], 31)) > 0)

    zero = above * 0
    _, order = lax.while_loop(more, one_pass, (zero, positions + zero))
    return order.astype(jnp.int32)


class Order(NamedTuple):
    """A view's Gaussians in depth order, padded by one slab so that every slice fits.

    Attributes:
        index: where each came from [N].
        rects: their tiles [N + R].
        shape: mean, conic and reach for the exact tile test, as rows [N + R, 6].
        drawn: how many are listed at all.
    """

    index: Array
    rects: Rects
    shape: Array
    drawn: Array


class Slab(NamedTuple):
    """One run of Gaussians in depth order, listed by tile.

    Attributes:
        keys: tile << rank_bits | rank within the slab, sorted [M].
        starts: where each tile's pairs begin in `keys` [tiles + 1].
        first: rank of the slab's first Gaussian.
        end: rank after its last.
        rects: column, row, columns, first slot of each Gaussian, as rows [R, 4].
        ends: slot after the last of each Gaussian [R].
    """

    keys: UInt32[Array, "M"]
    starts: Int32[Array, "tiles+1"]
    first: Int32[Array, ""]
    end: Int32[Array, ""]
    rects: Int32[Array, "R 4"]
    ends: Int32[Array, "R"]


def order_by_depth(grid: Grid, splats: Splats, visibility: Visibility) -> Order:
    """Sort a view's Gaussians and count their pairs."""
    rects = tile_rects(grid, splats, visibility)
    listed = rects.count > 0
    index = depth_order(splats.depth, listed)
    reach = 2 * jnp.log(jnp.maximum(splats.opacity, c.ALPHA_MIN) / c.ALPHA_MIN)
    shape = jnp.stack([*splats[:5], reach * (1 + _SLACK_RELATIVE) + 1e-3], -1)
    pad = ((0, grid.slab), (0, 0))
    rects = jnp.pad(jnp.stack(rects, -1)[index], pad)
    shape = jnp.pad(shape[index], pad)
    return Order(index, Rects(*(rects[:, i] for i in range(4))), shape, listed.sum(dtype=jnp.int32))


def _touches(grid: Grid, shape: Array, col: Array, row: Array) -> Array:
    """Whether the ellipse alpha >= 1/255 reaches a pixel centre's square of the tile."""
    x, y, xx, xy, yy, reach = (shape[:, i] for i in range(6))
    left = col.astype(jnp.float32) * grid.tile + 0.5 - x
    top = row.astype(jnp.float32) * grid.tile + 0.5 - y
    right, bottom = left + (grid.tile - 1), top + (grid.tile - 1)
    edge_x, edge_y = jnp.clip(0.0, left, right), jnp.clip(0.0, top, bottom)
    at_x = jnp.clip(-xy / yy * edge_x, top, bottom)  # nearest point on the facing vertical edge
    at_y = jnp.clip(-xy / xx * edge_y, left, right)
    on_x = xx * edge_x * edge_x + 2 * xy * edge_x * at_x + yy * at_x * at_x
    on_y = xx * at_y * at_y + 2 * xy * at_y * edge_y + yy * edge_y * edge_y
    nearest = jnp.minimum(
        jnp.where(edge_x != 0, on_x, jnp.inf), jnp.where(edge_y != 0, on_y, jnp.inf)
    )
    return (nearest <= reach) | ((edge_x == 0) & (edge_y == 0))


def list_slab(grid: Grid, order: Order, first: Int32[Array, ""]) -> Slab:
    """List and sort the pairs of the slab that begins at rank `first`."""
    rects = Rects(*(lax.dynamic_slice(a, (first,), (grid.slab,)) for a in order.rects))
    # The plan keeps slab * tiles below 2^31, so this sum cannot wrap whatever the Gaussians cover.
    ends = jnp.cumsum(rects.count)
    fits = (ends <= grid.capacity).sum(dtype=jnp.int32)
    end = jnp.minimum(order.drawn, first + fits)
    inside = first + jnp.arange(grid.slab, dtype=jnp.int32) < end

    # Slot -> rank: mark where each Gaussian's pairs end, then count the marks up to each slot.
    marks = jnp.zeros(grid.capacity, jnp.int32)
    marks = marks.at[jnp.where(inside, ends, grid.capacity)].set(1, mode="drop")
    rank = jnp.cumsum(marks)
    slot = jnp.arange(grid.capacity, dtype=jnp.int32)
    used = slot < jnp.max(jnp.where(inside, ends, 0))
    rank = jnp.where(used, rank, 0)

    table = jnp.stack([rects.col, rects.row, rects.cols, ends - rects.count], -1)
    col, row, cols, start = jnp.moveaxis(table[rank], -1, 0)
    offset = slot - start
    down = offset // jnp.maximum(cols, 1)
    col, row = col + offset - down * cols, row + down
    used = used & _touches(grid, order.shape[first + rank], col, row)
    key = ((row * grid.cols + col).astype(jnp.uint32) << grid.rank_bits) | rank.astype(jnp.uint32)
    keys = lax.sort(jnp.where(used, key, jnp.uint32(NO_PAIR)), is_stable=False)
    # The count of tiles as a key is the end of the last tile: bits were reserved for it.
    bounds = jnp.arange(grid.tiles + 1, dtype=jnp.uint32) << grid.rank_bits
    starts = jnp.searchsorted(keys, bounds, method="scan").astype(jnp.int32)
    return Slab(keys, starts, first, end, table, ends)


def pair_slots(grid: Grid, slab: Slab, tile: Array, rank: Array) -> Array:
    """Where each (tile, rank within the slab) stood before sorting: unique, grouped by rank."""
    col, row, cols, start = jnp.moveaxis(slab.rects[rank], -1, 0)
    return start + (tile // grid.cols - row) * cols + (tile % grid.cols - col)


def full_light(grid: Grid) -> Float[Array, "tiles P"]:
    """Transmittance before anything is drawn; none beyond the picture's edge."""
    return to_tiles(grid, jnp.ones((grid.height, grid.width, 1), jnp.float32))[..., 0]


def to_tiles(grid: Grid, picture: Float[Array, "H W C"]) -> Float[Array, "tiles P C"]:
    """Cut a picture into tiles, zeros beyond its edge."""
    t, channels = grid.tile, picture.shape[-1]
    beyond = (grid.rows * t - grid.height, grid.cols * t - grid.width)
    picture = jnp.pad(picture, ((0, beyond[0]), (0, beyond[1]), (0, 0)))
    picture = picture.reshape(grid.rows, t, grid.cols, t, channels)
    return picture.transpose(0, 2, 1, 3, 4).reshape(grid.tiles, t * t, channels)


def from_tiles(grid: Grid, tiles: Float[Array, "tiles P C"]) -> Float[Array, "H W C"]:
    """Undo `to_tiles`."""
    t, channels = grid.tile, tiles.shape[-1]
    picture = tiles.reshape(grid.rows, grid.cols, t, t, channels).transpose(0, 2, 1, 3, 4)
    return picture.reshape(grid.rows * t, grid.cols * t, channels)[: grid.height, : grid.width]


def segment_ends_sum(
    rows: Float[Array, "M C"], rank: Int32[Array, "M"], ends: Int32[Array, "R"], inside: Array
) -> Float[Array, "R C"]:
    """Sum of contiguous rows of equal rank, in a fixed order, without scatters.

    A segmented scan: for GPUs, where adding rows up by index would be neither fast nor repeatable.
    """

    def combine(a: tuple, b: tuple) -> tuple:
        same = a[0] == b[0]
        return b[0], jnp.where(same[:, None], a[1], 0) + b[1]

    _, sums = lax.associative_scan(combine, (rank, rows))
    last = jnp.clip(ends - 1, 0, rows.shape[0] - 1)
    return jnp.where(inside[:, None], sums[last], 0)
