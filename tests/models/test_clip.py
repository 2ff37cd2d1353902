"""CLIP's towers against transformers' classes and the full-size key lists."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.errors import ShapeError
from mouselift_jax.models import clip
from mouselift_jax.weights.rules import match
from mouselift_jax.weights.tables import clip as table
from tests.models.oracle import l2, load, manifest, shapes


def test_full_size_trees_without_allocation(shared):
    spec = shared / "spec"
    tree = shapes(clip.ImageEncoder(), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    pairs = match(table.IMAGE_ENCODER_RULES, manifest(spec / "clip_vision_keys.tsv"), tree)
    assert len(pairs.moves) == 520
    assert sum(x.size for x in jax.tree.leaves(tree)) == 632_076_800

    tree = shapes(clip.TextEncoder(), jax.ShapeDtypeStruct((1, 77), jnp.int32))
    pairs = match(table.TEXT_ENCODER_RULES, manifest(spec / "clip_text_keys.tsv"), tree)
    assert len(pairs.moves) == 372
    assert sum(x.size for x in jax.tree.leaves(tree)) == 340_387_840


SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def shaken(model):
    """Biases and scales away from 0 and 1, so that a mapping mistake shows."""
    import torch

    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_image_encoder_against_transformers(activation):
    torch = pytest.importorskip("torch")
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    settings = CLIPVisionConfig(
        **SMALL, image_size=28, patch_size=14, projection_dim=12, hidden_act=activation
    )
    stock = shaken(CLIPVisionModelWithProjection(settings))
    config = clip.VisionConfig(**table.image_encoder_config(settings.to_dict()))
    module = clip.ImageEncoder(config)
    x = np.random.default_rng(0).normal(size=(3, 28, 28, 3)).astype(np.float32)
    params = load(table.IMAGE_ENCODER_RULES, stock.state_dict(), module, jnp.asarray(x))
    with torch.no_grad():
        expected = stock(torch.from_numpy(x).movedim(-1, 1)).image_embeds
    found = jax.jit(module.apply)({"params": params}, jnp.asarray(x))
    assert l2(found, expected.numpy()) < 1e-5


def test_text_encoder_against_transformers():
    torch = pytest.importorskip("torch")
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    settings = CLIPTextConfig(
        **SMALL, vocab_size=50, max_position_embeddings=9, hidden_act="gelu", eos_token_id=49
    )
    stock = shaken(CLIPTextModel(settings))
    module = clip.TextEncoder(clip.TextConfig(**table.text_encoder_config(settings.to_dict())))
    tokens = np.random.default_rng(0).integers(0, 50, (3, 9))
    args = jnp.asarray(tokens, jnp.int32)
    params = load(table.TEXT_ENCODER_RULES, stock.state_dict(), module, args)
    with torch.no_grad():
        expected = stock(torch.from_numpy(tokens)).last_hidden_state
    found = jax.jit(module.apply)({"params": params}, args)
    assert l2(found, expected.numpy()) < 1e-5


def test_normalizer_round_trip():
    module = clip.ImageNormalizer(embedding_dim=4)
    params = {"mean": jnp.full((1, 4), 2.0), "std": jnp.full((1, 4), 3.0)}
    x = jnp.arange(8.0).reshape(2, 4)
    y = module.apply({"params": params}, x, method="scale")
    np.testing.assert_allclose(y, (x - 2) / 3)
    np.testing.assert_allclose(module.apply({"params": params}, y, method="unscale"), x, rtol=1e-6)


def test_wrong_picture_size_is_named():
    with pytest.raises(ShapeError, match="takes pictures of one size"):
        shapes(clip.ImageEncoder(), jnp.zeros((1, 32, 32, 3)))
