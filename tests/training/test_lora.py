"""LoRA on parameter trees: starts as the network was, trains only its own leaves, folds exactly."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.errors import ConfigError
from mouselift_jax.training import lora


def tree():
    rng = np.random.default_rng(0)

    def w(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "transformer_layers": {
            "attn": {"to_qkv": {"kernel": w(3, 8, 24)}, "fc": {"kernel": w(3, 8, 8)}},
            "mlp": {"fc1": {"kernel": w(3, 8, 32)}},
            "norm1": {"scale": w(3, 8)},
        },
        "down_blocks_0": {
            "attentions_0": {"attn1": {"to_out_0": {"kernel": w(4, 4), "bias": w(4)}}},
            "conv1": {"kernel": w(3, 3, 4, 6), "bias": w(6)},
        },
    }


def paths(params):
    return {p for p, _ in lora._walk(params)}


def test_the_default_targets_are_all_attention_projections():
    assert lora.targets(tree()) == [
        "transformer_layers/attn/to_qkv/kernel",
        "transformer_layers/attn/fc/kernel",
        "down_blocks_0/attentions_0/attn1/to_out_0/kernel",
    ]


def test_it_starts_as_the_network_was_and_folds_to_the_sum():
    params = tree()
    patterns = ("attn/.*kernel$", "conv1/kernel$")
    wide = lora.add(params, jax.random.key(0), rank=2, alpha=8.0, patterns=patterns)
    folded = lora.fold(wide)
    assert paths(folded) == paths(params)
    jax.tree.map(np.testing.assert_array_equal, folded, params)
    own = wide["transformer_layers"]["attn"]["to_qkv"]
    own["lora_b"] = jnp.ones_like(own["lora_b"])
    conv = wide["down_blocks_0"]["conv1"]
    conv["lora_b"] = jnp.ones_like(conv["lora_b"])
    folded = lora.fold(wide)
    for layer in range(3):
        want = own["kernel"][layer] + 4.0 * own["lora_a"][layer] @ np.ones((2, 24))
        got = folded["transformer_layers"]["attn"]["to_qkv"]["kernel"][layer]
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert conv["lora_a"].shape == (36, 2)
    assert folded["down_blocks_0"]["conv1"]["kernel"].shape == (3, 3, 4, 6)


def test_gradients_reach_the_low_rank_leaves_only_where_they_are_asked_for():
    wide = lora.add(tree(), jax.random.key(0), rank=2)
    grads = jax.grad(lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(lora.fold(p))))(wide)
    qkv = grads["transformer_layers"]["attn"]["to_qkv"]
    assert float(jnp.abs(qkv["lora_b"]).max()) > 0
    assert float(jnp.abs(qkv["lora_a"]).max()) == 0  # because lora_b is still 0
    trained = [p for p, _ in lora._walk(wide) if lora.is_trained(p.split("/"))]
    assert len(trained) == 6 and all(p.rsplit("/", 1)[1][:5] == "lora_" for p in trained)


def test_logical_axes_are_inherited():
    box = nn.LogicallyPartitioned(jnp.zeros((3, 8, 24)), ("layers", "embed", "qkv"))
    params = {"attn": {"to_qkv": {"kernel": box}}}
    made = jax.eval_shape(lambda k: lora.add(params, k, rank=4), jax.random.key(0))
    made = made["attn"]["to_qkv"]
    assert made["lora_a"].names == ("layers", "embed", None)
    assert made["lora_b"].names == ("layers", None, "qkv")
    assert made["lora_b"].value.shape == (3, 4, 24)


def test_bad_targets_and_ranks_are_errors():
    with pytest.raises(ConfigError, match="no kernel matches"):
        lora.targets(tree(), ("atn/kernel",))
    with pytest.raises(ConfigError, match="regular expression"):
        lora.targets(tree(), ("attn(",))
    with pytest.raises(ConfigError, match="rank >= 1"):
        lora.add(tree(), jax.random.key(0), rank=0)


def test_trained_weights_are_counted_without_making_any():
    low = types.SimpleNamespace(rank=0, alpha=16.0, targets=(), whole=())
    total, trained = lora.count(tree, low)
    assert total == trained == sum(x.size for x in jax.tree.leaves(tree()))
    low.rank = 2
    whole, trained = lora.count(tree, low)
    assert trained == 3 * 2 * (8 + 24) + 3 * 2 * (8 + 8) + 2 * (4 + 4)
    assert whole > total + trained - 1
    low.whole = ("conv1/",)
    assert lora.count(tree, low) == (whole, trained + 3 * 3 * 4 * 6 + 6)


def test_the_weights_that_are_held_twice_are_counted():
    low = types.SimpleNamespace(rank=2, targets=())
    assert lora.folded(tree, low) == 3 * 8 * 24 + 3 * 8 * 8 + 4 * 4
    assert lora.folded(tree, types.SimpleNamespace(rank=0, targets=())) == 0
