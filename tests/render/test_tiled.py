"""The portable rasterizer: the shared suite, and what is its own: lists, slabs, keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.render import binning, tiled
from mouselift_jax.render.projection import project
from mouselift_jax.render.types import Spec
from tests.render.suite import CAMERAS, GAUSSIANS, RasterizerSuite, assert_close, scene

SPEC = Spec(37, 31, 0.2, None)
ORDER = (*GAUSSIANS, *CAMERAS)


class TestTiled(RasterizerSuite):
    implementation = "tiled"

    # Every new shape compiles for seconds; two of them wait for `make test-slow`.
    @pytest.mark.slow
    def test_one_pixel(self):
        super().test_one_pixel()


@functools.lru_cache
def with_capacity(capacity):
    def loss(arrays):
        rgb, light, depth, info = tiled.rasterize_flat(
            SPEC, *(arrays[k] for k in ORDER), capacity=capacity
        )
        return (rgb * rgb).sum() + (light * depth).sum(), (rgb, light, depth, info)

    run = jax.jit(jax.grad(loss, has_aux=True))
    arrays = {k: jnp.asarray(v)[None] for k, v in scene(n=300, seed=2, views=1).items()}
    return run(arrays)


@pytest.mark.slow
def test_buffer_size_changes_the_slabs_and_nothing_else():
    expected, (*truth, info) = with_capacity(1 << 14)
    assert int(info["slabs"]) == 1
    counts = set()
    for capacity in (20, 400):  # 20 tiles: the least there can be
        gradients, (*pictures, found) = with_capacity(capacity)
        counts.add(int(found["slabs"]))
        for a, b in zip(pictures, truth, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        assert_close(gradients, {k: expected[k] for k in (*GAUSSIANS, "w2c")}, 1e-5)
    assert max(counts) > 40 and min(counts) > 2


def test_lists_hold_exactly_the_tiles_where_something_is_drawn():
    """No pair is missing, and few are listed in vain."""
    arrays = scene(n=200, seed=5, views=1)
    grid = binning.plan(200, 37, 31)

    @jax.jit
    def lists(arrays):
        gaussians = (arrays[k] for k in GAUSSIANS)
        splats, visibility = project(SPEC, *gaussians, arrays["w2c"][0], arrays["K"][0])
        order = binning.order_by_depth(grid, splats, visibility)
        return splats, order, binning.list_slab(grid, order, jnp.int32(0))

    splats, order, slab = lists(arrays)
    splats = jax.device_get(splats)
    keys = np.asarray(slab.keys[: slab.starts[-1]])
    listed = set(zip((keys >> grid.rank_bits).tolist(),
                     (keys & ((1 << grid.rank_bits) - 1)).tolist(), strict=True))  # fmt: skip
    x, y = np.meshgrid(np.arange(37) + 0.5, np.arange(31) + 0.5)
    tile = (y // 8 * grid.cols + x // 8).astype(int)
    needed = set()
    for rank, index in enumerate(np.asarray(order.index[: int(order.drawn)])):
        s = [float(a[index]) for a in splats]
        dx, dy = s[0] - x, s[1] - y
        power = -0.5 * (s[2] * dx * dx + s[4] * dy * dy) - s[3] * dx * dy
        drawn = s[5] * np.exp(power) >= 1 / 255
        needed |= {(int(t), rank) for t in np.unique(tile[drawn])}
    assert needed <= listed
    assert len(listed) <= 1.2 * len(needed)


@pytest.mark.parametrize(
    "n, size", [(1, 1), (2**20, 512), (2**24, 64), (2**24, 512), (2**24, 4096), (1_572_866, 1024)]
)
@pytest.mark.parametrize("tile", [None, 16])
def test_keys_fit_32_bits(n, size, tile):
    grid = binning.plan(n, size, size, tile=tile)
    assert grid.tile == (tile or grid.tile), "the CUDA kernels have one thread per pixel of 16 x 16"
    assert grid.slab <= n and grid.capacity >= grid.tiles
    largest = (grid.tiles << grid.rank_bits) | ((1 << grid.rank_bits) - 1)
    assert largest < binning.NO_PAIR
    assert (grid.slab - 1) >> grid.rank_bits == 0
    assert grid.slab * grid.tiles < 2**31, "counts of pairs are summed in 32 bits"


@pytest.mark.parametrize("n", [1, 2, 1000, 70_000])
def test_depth_order_is_stable_and_exact(n):
    rng = np.random.default_rng(n)
    depth = np.exp(rng.uniform(-1.6, 30, n)).astype(np.float32)
    depth[rng.random(n) < 0.3] = 2.5  # ties
    listed = rng.random(n) < 0.8
    found = np.asarray(jax.jit(binning.depth_order)(depth, listed))
    expected = np.argsort(np.where(listed, depth, np.inf), kind="stable")
    np.testing.assert_array_equal(found[: listed.sum()], expected[: listed.sum()])
    assert sorted(found.tolist()) == list(range(n))


def test_both_ways_of_summing_pairs_agree():
    """The CPU adds rows up by index, GPUs by a segmented scan."""
    rng = np.random.default_rng(0)
    counts = np.array([3, 1, 40, 2, 7, 0])
    rows = rng.normal(size=(60, 10)).astype(np.float32)
    rank = np.repeat(np.arange(6), counts)
    rank = np.pad(rank, (0, 60 - len(rank)), constant_values=5)
    inside = jnp.array([True] * 5 + [False])
    found = binning.segment_ends_sum(
        jnp.asarray(rows), jnp.asarray(rank), jnp.cumsum(jnp.asarray(counts)), inside
    )
    expected = np.stack([rows[: counts.sum()][rank[: counts.sum()] == k].sum(0) for k in range(6)])
    np.testing.assert_allclose(found[:5], expected[:5], atol=1e-5)


def test_traces_where_64_bit_types_are_switched_on():
    """With jax_enable_x64 the default types change; loops must not carry them."""
    with jax.enable_x64(True):
        arrays = {k: jnp.asarray(v)[None] for k, v in scene(n=30, views=1).items()}

        def loss(means):
            return tiled.rasterize_flat(SPEC, means, *(arrays[k] for k in ORDER[1:]))[0].sum()

        assert jax.eval_shape(jax.grad(loss), arrays["means"]).dtype == jnp.float32


def test_the_buffer_holds_no_more_than_what_the_keys_let_a_slab_make():
    """512 px in tiles of 8: a key has room for 262,144 ranks, so 1.57 M pairs were never filled."""
    grid = binning.plan(1_572_866, 512, 512, tile=8)
    assert grid.slab == 1 << 18 and grid.capacity == 3 << 18
    assert binning.plan(60_000, 512, 512, tile=8).capacity == 240_000  # one slab: as before
    given = binning.plan(1_572_866, 512, 512, tile=8, capacity=2_000_000)
    assert given.capacity == 2_000_000
