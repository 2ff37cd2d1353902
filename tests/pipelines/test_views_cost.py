"""The analytic count of operations against the compiler's, and what the cache saves."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from mouselift_jax.models import clip, mvunet, vae
from mouselift_jax.pipelines import views, views_cost, views_training
from tests.models.oracle import TINY_UNET, shapes


def networks(unet, coder=None, encoder=None):
    width = unet.class_dim // 2
    return views.Networks(
        mvunet.MVUNet(unet),
        vae.VAE(coder or vae.VAEConfig()),
        clip.ImageEncoder(encoder or clip.VisionConfig()),
        clip.ImageNormalizer(embedding_dim=width),
        views.ClipPixels(size=(encoder or clip.VisionConfig()).image_size),
    )


SMALL = networks(
    dataclasses.replace(
        TINY_UNET, block_channels=(64, 96), context_dim=48, class_dim=64, norm_groups=8, n_views=3
    ),
    vae.VAEConfig(block_channels=(32, 64), layers_per_block=1, norm_groups=8),
    clip.VisionConfig(128, 512, 2, 4, 32, 8, 32),
)


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def unet_inputs(c, batch=1, tokens=7):
    return (
        f32(batch, c.n_views, c.sample_size, c.sample_size, c.in_channels),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
        f32(batch, c.n_views, tokens, c.context_dim),
        f32(batch, c.n_views, c.class_dim),
    )


def compiled_flops(f, *args):
    return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("mode", ["sparse", pytest.param("dense", marks=pytest.mark.slow)])
def test_unet_count_against_the_compiler(mode):
    module = SMALL.unet
    args = unet_inputs(module.config)
    tree = shapes(module, *args)
    found = compiled_flops(
        lambda p, a: module.apply(
            {"params": p},
            *a,
            attention=mode,
        ),
        tree,
        args,
    )
    counted = 3 * views_cost.unet_flops(module.config, 7, mode)
    assert counted == pytest.approx(found, rel=0.08)


def test_frozen_counts_against_the_compiler():
    coder, encoder = SMALL.vae, SMALL.image_encoder
    x = f32(1, 16, 16, 3)
    encode = functools.partial(coder.apply, method="encode")
    found = compiled_flops(lambda p, x: encode({"params": p}, x), shapes(coder, x), x)
    assert views_cost.vae_encode_flops(coder.config, 16) == pytest.approx(found, rel=0.1)
    x = f32(1, 32, 32, 3)
    found = compiled_flops(lambda p, x: encoder.apply({"params": p}, x), shapes(encoder, x), x)
    assert views_cost.image_encoder_flops(encoder.config) == pytest.approx(found, rel=0.15)


def training_step(cached, remat=False):
    n = dataclasses.replace(SMALL, unet=SMALL.unet.clone(remat=remat))
    c = n.unet.config
    side, size = n.latent_side, n.picture_side
    trees = {
        "vae": shapes(n.vae, f32(1, 16, 16, 3)),
        "image_encoder": shapes(n.image_encoder, f32(1, 32, 32, 3)),
        "image_normalizer": {"mean": f32(1, 32), "std": f32(1, 32)},
    }
    latents = f32(1, 3, side, side, 4)
    encoded = views_training.Encoded(f32(1, 32), f32(1, side, side, 4), latents, latents)
    data = encoded if cached else f32(1, 3, size, size, 3)

    def step(unet, frozen, prompts, data, key):
        known = data if cached else views_training.encode(n, frozen, data)
        draws = views_training.draw_training(key, n, known.mean.shape, 1000)
        return jax.grad(
            lambda p: views_training.diffusion_loss(
                p, known, prompts, draws, networks=n, normalizer=frozen["image_normalizer"]
            )[0]
        )(unet)

    key = jax.eval_shape(lambda: jax.random.key(0))
    unet = shapes(n.unet, *unet_inputs(c))
    return compiled_flops(step, unet, trees, f32(3, 7, c.context_dim), data, key)


@pytest.mark.slow
def test_a_step_on_cached_encodings_runs_no_frozen_network():
    """What the compiled steps differ by is what the frozen networks cost."""
    uncached, cached = training_step(False), training_step(True)
    parts = views_cost.training_flops(SMALL, 1, n_tokens=7, remat=False)
    frozen = parts["vae"] + parts["image_encoder"]
    assert uncached - cached == pytest.approx(frozen, rel=0.1)
    assert cached == pytest.approx(parts["unet"], rel=0.1)


@pytest.mark.slow
def test_a_step_that_recomputes_its_blocks():
    found = training_step(True, remat=True)
    parts = views_cost.training_flops(SMALL, 1, n_tokens=7, remat=True)
    assert found == pytest.approx(parts["unet"], rel=0.1)


def test_full_size_saving():
    full = networks(mvunet.MVUNetConfig())
    with_frozen = views_cost.training_flops(full, 16)
    cached = views_cost.training_flops(full, 16, cached=True)
    assert 1 - cached["total"] / with_frozen["total"] >= 0.25
