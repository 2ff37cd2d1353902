"""Names and configs of CLIP and of the image normaliser: transformers <-> `models.clip`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mouselift_jax.weights.rules import Alias, Ignore, Rule
from mouselift_jax.weights.settings import check_divides, integer, number, require

_NORMS = "layer_norm1|layer_norm2|pre_layrnorm|post_layernorm|final_layer_norm"
_LINEAR = "q_proj|k_proj|v_proj|out_proj|fc1|fc2"

_LAYERS = (
    Rule("{m*}.{n:" + _LINEAR + "}.weight", "{m}/{n}/kernel", "linear"),
    Rule("{m*}.{n:" + _LINEAR + "|" + _NORMS + "}.bias", "{m}/{n}/bias"),
    Rule("{m*}.{n:" + _NORMS + "}.weight", "{m}/{n}/scale"),
    Rule("{m*}.{n:token_embedding|position_embedding}.weight", "{m}/{n}/embedding"),
    Ignore("{m*}.position_ids", "a constant"),
)

IMAGE_ENCODER_RULES = (
    *_LAYERS,
    Rule("{m*}.patch_embedding.weight", "{m}/patch_embedding/kernel", "conv"),
    Rule("{m*}.class_embedding", "{m}/class_embedding"),
    Rule("visual_projection.weight", "visual_projection/kernel", "linear"),
)

TEXT_ENCODER_RULES = (
    # newer exports leave the outer name out
    Alias("{m:encoder|embeddings|final_layer_norm}.{r*}", "text_model.{m}.{r}"),
    *_LAYERS,
)

IMAGE_NORMALIZER_RULES = (Rule("{n:mean|std}", "{n}"),)


def _layers(source: Mapping[str, Any], where: str) -> dict[str, Any]:
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    require(source, {"attention_dropout": 0.0}, where, needed=needed)
    width, inner, layers, heads = (integer(source, key, where) for key in needed)
    check_divides([heads], [width], f"{where}: num_attention_heads")
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "n_layers": layers,
        "n_heads": heads,
        "activation": source.get("hidden_act", "quick_gelu"),
        "norm_eps": number(source, "layer_norm_eps", where, 1e-5),
    }


def image_encoder_config(source: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `VisionConfig` from a transformers `config.json`.

    Raises:
        ConfigError: a key is missing, or has a value this network does not implement.
    """
    where = "image_encoder/config.json"
    source = source.get("vision_config", source)
    return {
        **_layers(source, where),
        "image_size": integer(source, "image_size", where, 224),
        "patch_size": integer(source, "patch_size", where, 32),
        "projection_dim": integer(source, "projection_dim", where, 512),
    }


def text_encoder_config(source: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `TextConfig` from a transformers `config.json`.

    Raises:
        ConfigError: a key is missing, or has a value this network does not implement.
    """
    where = "text_encoder/config.json"
    source = source.get("text_config", source)
    return {
        **_layers(source, where),
        "vocab_size": integer(source, "vocab_size", where, 49408),
        "max_tokens": integer(source, "max_position_embeddings", where, 77),
    }


def image_normalizer_config(source: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `ImageNormalizer` from diffusers' `config.json`.

    Raises:
        ConfigError: the size is no whole number.
    """
    return {"embedding_dim": integer(source, "embedding_dim", "image_normalizer/config.json", 768)}
