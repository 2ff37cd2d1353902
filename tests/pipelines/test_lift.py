"""Lifting, rendering and judging batches: shapes, equalities, memory, and a mesh."""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.data.batches.loader import Batch as Loaded
from mouselift_jax.data.batches.pictures import composite
from mouselift_jax.errors import ConfigError
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.rig import turntable
from mouselift_jax.models.gslrm import GSLRM, GSLRMConfig
from mouselift_jax.pipelines.lift import gslrm_eval, gslrm_loss, lift, render_views
from mouselift_jax.pipelines.pictures import laid
from mouselift_jax.render import rasterize
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.training.losses import LossConfig
from mouselift_jax.training.sharding import RULES, make_mesh

SIZE = 16
MODEL = GSLRM(
    GSLRMConfig(width=32, head_dim=16, n_layers=1, patch_size=4, remat="none", log_scale_bias=-3.0)
)


class Batch(NamedTuple):
    images: jax.Array
    masks: jax.Array
    K: jax.Array
    c2w: jax.Array


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    cameras = turntable(3, elevation_deg=15.0, size=SIZE)
    wide = lambda x: jnp.asarray(np.broadcast_to(x, (2, *x.shape)), jnp.float32)  # noqa: E731
    images = jnp.asarray(rng.random((2, 3, SIZE, SIZE, 3)), jnp.float32)
    masks = jnp.asarray(rng.random((2, 3, SIZE, SIZE, 1)) > 0.5, jnp.float32)
    return Batch(images, masks, wide(cameras.K), wide(cameras.c2w))


@pytest.fixture(scope="module")
def params(batch):
    return nn.meta.unbox(jax.jit(MODEL.init)(jax.random.key(0), batch.images, batch.K, batch.c2w))[
        "params"
    ]


def test_lift_takes_any_leading_dimensions(batch, params):
    cameras = Camera(batch.K, batch.c2w, SIZE, SIZE)
    run = jax.jit(functools.partial(lift, MODEL))
    g = run(params, batch.images, cameras)
    assert g.means.shape == (2, 2 + 3 * SIZE * SIZE, 3)
    one = run(params, batch.images[0], cameras[0])
    assert one.means.shape == (2 + 3 * SIZE * SIZE, 3)
    np.testing.assert_allclose(one.means, g.means[0], atol=1e-5)


def test_render_views_equals_rasterize(batch, params):
    g = jax.jit(MODEL.apply)({"params": params}, batch.images, batch.K, batch.c2w)
    out = render_views(g, batch.K, batch.c2w, SIZE, SIZE, implementation="tiled")
    a = g.activate()
    w2c = Camera(batch.K, batch.c2w, SIZE, SIZE).w2c
    want = rasterize(
        *a[:4], a.sh, w2c, batch.K, SIZE, SIZE, sh_degree=0, background=jnp.ones(3),
        implementation="tiled",
    )  # fmt: skip
    for got, expected in zip(out, (want.rgb, want.alpha, want.depth), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_all_views_of_a_sample_are_one_launch(monkeypatch):
    """Two samples of eight views: a launch a sample and direction, where each view once had a chain
    of three, its forward pass twice (48)."""
    wp = pytest.importorskip("warp")
    monkeypatch.setattr(wp.config, "enable_cpu_blocks", True)
    launched, launch = [], wp.launch_tiled
    monkeypatch.setattr(
        wp,
        "launch_tiled",
        lambda kernel, **kwargs: launched.append(kernel.key) or launch(kernel, **kwargs),
    )
    g = Gaussians(
        jnp.zeros((2, 4, 3)), jnp.ones((2, 4, 4)), jnp.full((2, 4, 3), -2.0), jnp.zeros((2, 4)),
        jnp.zeros((2, 4, 1, 3)),
    )  # fmt: skip
    K = jnp.tile(jnp.array([[16.0, 0, 8], [0, 16, 8], [0, 0, 1]]), (2, 8, 1, 1))
    c2w = jnp.tile(jnp.eye(4).at[2, 3].set(-2), (2, 8, 1, 1))

    def loss(g):
        out = render_views(g, K, c2w, 16, 16, implementation="warp_blocks")
        return jnp.square(out.rgb).sum() + out.alpha.sum()

    assert np.any(jax.block_until_ready(jax.jit(jax.grad(loss))(g)).opacity_logits)
    assert len(launched) == 4, launched


def test_the_loss_reaches_every_parameter(batch, params):
    config = LossConfig(l2=1.0, ssim=0.2, alpha=0.5, pixelalign=0.1, pointsdist=0.1)
    loss = functools.partial(
        gslrm_loss, model=MODEL, loss_config=config, n_input_views=2, implementation="tiled"
    )
    (value, terms), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)
    assert np.isfinite(value) and set(terms) >= {"l2", "ssim", "alpha", "psnr", "opaque_share"}
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, path
    # Gaussians of pixels are on their rays, so this term is rounding.
    assert float(terms["pixelalign"]) < 1e-5


def test_views_beyond_the_targets_do_not_enter_the_loss(batch, params):
    loss = jax.jit(
        functools.partial(
            gslrm_loss, model=MODEL, loss_config=LossConfig(), n_input_views=2, n_target_views=2,
            implementation="tiled",
        )
    )  # fmt: skip
    changed = batch._replace(images=batch.images.at[:, 2].set(0.0))
    assert float(loss(params, batch)[0]) == float(loss(params, changed)[0])
    with pytest.raises(ConfigError, match="fewer views"):
        gslrm_loss(params, batch, model=MODEL, loss_config=LossConfig(), n_input_views=4)


def test_evaluation_tells_held_out_views_apart(batch, params):
    judge = jax.jit(
        functools.partial(gslrm_eval, model=MODEL, n_input_views=2, implementation="tiled")
    )
    e = judge(params, batch)
    np.testing.assert_array_equal(e.is_heldout, [False, False, True])
    assert {v.shape for v in e.metrics.values()} == {(2, 3)}
    changed = batch._replace(images=batch.images.at[:, 2].set(0.0))
    again = judge(params, changed)
    np.testing.assert_array_equal(e.rendered.rgb, again.rendered.rgb)


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 1, "sequence": 2},
        pytest.param({"data": 1, "tensor": 2}, marks=pytest.mark.slow),
        pytest.param({"data": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_mesh_changes_nothing(two_devices, batch, params, sizes):
    model = GSLRM(dataclasses.replace(MODEL.config, attention="blocked", token_multiple=2))
    loss = functools.partial(
        gslrm_loss, model=model, loss_config=LossConfig(alpha=0.5), n_input_views=2,
        n_target_views=2, implementation="tiled",
    )  # fmt: skip
    with jax.default_matmul_precision("highest"):
        want, grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)
        mesh = make_mesh(sizes, jax.devices()[:2])
        with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
            got, sharded = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)
    assert float(got[0]) == pytest.approx(float(want[0]), rel=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(sharded), strict=True):
        assert np.linalg.norm(a - np.asarray(b)) <= 1e-4 * np.linalg.norm(a)


class Fixed:
    """A model whose Gaussians are its parameters, whatever it is shown."""

    @staticmethod
    def apply(variables, *inputs):
        return variables["params"]


def one_gaussian(size, opacity, colour):
    """One Gaussian at the origin in each of two samples."""
    return Gaussians(
        jnp.zeros((2, 1, 3)),
        jnp.tile(jnp.float32([1, 0, 0, 0]), (2, 1, 1)),
        jnp.full((2, 1, 3), np.log(size), jnp.float32),
        jnp.full((2, 1), opacity, jnp.float32),
        jnp.full((2, 1, 1, 3), (colour - 0.5) / 0.28209479, jnp.float32),
    )


def loss_of(gaussians, batch, **config):
    how = LossConfig(**config)
    rng = jax.random.key(3)
    return gslrm_loss(
        gaussians, batch, model=Fixed, loss_config=how, n_input_views=2, rng=rng,
        implementation="tiled",
    )[0]  # fmt: skip


def test_bytes_with_alpha_are_laid_on_the_background_as_the_loader_lays_them():
    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (2, 3, SIZE, SIZE, 4), np.uint8)
    colours = rng.random((2, 3), np.float32)
    found = laid(Loaded(rgba, None, None, None, np.arange(2), np.zeros((2, 3)), colours))
    for row in range(2):
        images, masks = composite(rgba[row], colours[row])
        np.testing.assert_allclose(found.images[row], images, atol=1e-6)
        np.testing.assert_allclose(found.masks[row], masks, atol=1e-7)
    assert laid(found) is found


def test_white_haze_is_no_free_answer_on_a_random_background(batch):
    empty = batch._replace(images=jnp.ones_like(batch.images), masks=0 * batch.masks)
    haze, nothing = one_gaussian(1.0, 2.0, 1.0), one_gaussian(1.0, -20.0, 1.0)
    assert loss_of(haze, empty, l2=1.0) < 1e-6  # white on white
    assert loss_of(haze, empty, l2=1.0, random_background=True) > 0.01
    assert loss_of(nothing, empty, l2=1.0, random_background=True) < 1e-6
    with pytest.raises(ConfigError, match=r"loss\.random_background"):
        loss_of(haze, empty, l2=1.0, random_background=True, masked=True)


def test_renders_lie_on_the_colour_that_the_pictures_lie_on(batch):
    class Coloured(NamedTuple):
        images: jax.Array
        masks: jax.Array
        K: jax.Array
        c2w: jax.Array
        background: jax.Array

    colours = jnp.float32([[0, 0, 0], [0.5, 0.2, 0.7]])
    images = jnp.broadcast_to(colours[:, None, None, None], batch.images.shape)
    coloured = Coloured(images, 0 * batch.masks, batch.K, batch.c2w, colours)
    assert loss_of(one_gaussian(1.0, -20.0, 1.0), coloured, l2=1.0) < 1e-6
    out = gslrm_eval(
        one_gaussian(1.0, -20.0, 1.0), coloured, model=Fixed, n_input_views=2,
        implementation="tiled",
    )  # fmt: skip
    np.testing.assert_allclose(out.rendered.rgb, images, atol=1e-6)
