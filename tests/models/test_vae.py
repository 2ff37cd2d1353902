"""The autoencoder against diffusers' class and the full-size key list."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.errors import ConfigError
from mouselift_jax.models.vae import VAE, VAEConfig, kl_divergence, sample_latents
from mouselift_jax.weights.rules import invert_rules, match
from mouselift_jax.weights.tables import vae as table
from tests.models.oracle import l2, load, manifest, nhwc, shapes


def test_full_size_tree_without_allocation(shared):
    torch_shapes = manifest(shared / "spec" / "vae_keys.tsv")
    tree = shapes(VAE(), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    assert len(match(table.RULES, torch_shapes, tree).moves) == 248
    assert sum(x.size for x in jax.tree.leaves(tree)) == 83_653_863


@pytest.fixture(scope="module")
def pair():
    torch = pytest.importorskip("torch")
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    stock = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()
    with torch.no_grad():
        for p in stock.parameters():  # biases and scales away from 0 and 1
            p.add_(0.1 * torch.randn_like(p))
    module = VAE(VAEConfig(**table.config_from_source(json.loads(stock.to_json_string()))))
    return stock, module, load(table.RULES, stock.state_dict(), module, jnp.zeros((1, 16, 16, 3)))


def test_against_diffusers(pair):
    import torch

    stock, module, params = pair
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)

    @jax.jit
    def run(p, x):
        mean, logvar = module.apply({"params": p}, x, method="encode")
        return mean, logvar, module.apply({"params": p}, mean, method="decode")

    mean, logvar, decoded = run(params, jnp.asarray(images))
    with torch.no_grad():
        moments = stock.encode(torch.from_numpy(images).movedim(-1, 1)).latent_dist
        picture = stock.decode(moments.mean).sample
    assert mean.shape == (2, 8, 12, 4)
    assert l2(mean, nhwc(moments.mean)) < 2e-5
    assert l2(logvar, nhwc(moments.logvar)) < 2e-5
    assert l2(decoded, nhwc(picture)) < 5e-5


def test_old_attention_names_load(pair):
    stock, module, params = pair
    old = {}
    for key, value in stock.state_dict().items():
        for new, name in (
            ("to_q", "query"),
            ("to_k", "key"),
            ("to_v", "value"),
            ("to_out.0", "proj_attn"),
        ):
            if f".{new}." in key:
                key = key.replace(f".{new}.", f".{name}.")
                value = value[:, :, None, None] if value.ndim == 2 else value
        old[key] = value
    again = load(table.RULES, old, module, jnp.zeros((1, 16, 16, 3)))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))
    assert set(invert_rules(table.RULES, params)) == set(stock.state_dict())


def test_moments():
    mean, logvar = jnp.array([1.0, 2.0]), jnp.log(jnp.array([4.0, 9.0]))
    np.testing.assert_allclose(sample_latents(mean, logvar, jnp.array([1.0, -1.0])), [3, -1], 1e-6)
    assert float(kl_divergence(jnp.zeros(3), jnp.zeros(3))) == 0.0
    assert float(kl_divergence(mean, logvar)) > 0


def test_unknown_setting_is_named():
    with pytest.raises(ConfigError, match="use_quant_conv"):
        table.config_from_source({"block_out_channels": [8], "use_quant_conv": False})
