"""Names and configs of the autoencoder: diffusers' `AutoencoderKL` <-> `models.vae`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mouselift_jax.weights.rules import Alias, Rule, Transform
from mouselift_jax.weights.settings import check_divides, integer, integers, number, require


def _project(x: np.ndarray) -> np.ndarray:
    """[out, in] or, in old files, a 1x1 convolution [out, in, 1, 1] -> [in, out]."""
    return x.reshape(x.shape[:2]).transpose(1, 0)


# The mid block's attention was four 1x1 convolutions before it was four linear layers.
PROJECT = Transform(_project, lambda x: x.transpose(1, 0), "linear or 1x1 conv")

RULES = (
    Alias("{m*}.query.{p:weight|bias}", "{m}.to_q.{p}"),
    Alias("{m*}.key.{p:weight|bias}", "{m}.to_k.{p}"),
    Alias("{m*}.value.{p:weight|bias}", "{m}.to_v.{p}"),
    Alias("{m*}.proj_attn.{p:weight|bias}", "{m}.to_out.0.{p}"),
    Rule("{n:quant_conv|post_quant_conv}.weight", "{n}/kernel", "conv"),
    Rule("{n:quant_conv|post_quant_conv}.bias", "{n}/bias"),
    Rule(
        "{m*}.{n:conv_in|conv_out|conv1|conv2|conv_shortcut|conv}.weight", "{m}/{n}/kernel", "conv"
    ),
    Rule("{m*}.{n:conv_norm_out|norm1|norm2|group_norm}.weight", "{m}/{n}/scale"),
    Rule("{m*}.{n:to_q|to_k|to_v}.weight", "{m}/{n}/kernel", PROJECT),
    Rule("{m*}.to_out.0.weight", "{m}/to_out_0/kernel", PROJECT),
    Rule("{m*}.to_out.0.bias", "{m}/to_out_0/bias"),
    Rule(
        "{m*}.{n:conv_in|conv_out|conv1|conv2|conv_shortcut|conv|conv_norm_out|norm1|norm2"
        "|group_norm|to_q|to_k|to_v}.bias",
        "{m}/{n}/bias",
    ),
)


def config_from_source(source: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `VAEConfig` from a diffusers `config.json`.

    Raises:
        ConfigError: a key is missing, or has a value this network does not implement.
    """
    where = "vae/config.json"
    fixed = {
        "act_fn": "silu",
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
    }
    # The names of the blocks have one form only; force_upcast is about half precision.
    known = ("block_out_channels", "layers_per_block", "latent_channels", "in_channels")
    known += ("norm_num_groups", "scaling_factor", "out_channels", "sample_size", "force_upcast")
    known += ("down_block_types", "up_block_types")
    require(source, fixed, where, ("block_out_channels",), known)
    channels = integers(source, "block_out_channels", where)
    groups = integer(source, "norm_num_groups", where, 32)
    check_divides([groups] * len(channels), channels, f"{where}: norm_num_groups")
    return {
        "block_channels": channels,
        "layers_per_block": integer(source, "layers_per_block", where, 2),
        "latent_channels": integer(source, "latent_channels", where, 4),
        "picture_channels": integer(source, "in_channels", where, 3),
        "norm_groups": groups,
        "scaling_factor": number(source, "scaling_factor", where, 0.18215),
    }
