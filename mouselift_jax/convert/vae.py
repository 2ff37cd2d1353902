"""Names and configs of the autoencoder: diffusers' `AutoencoderKL` <-> `models.vae`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mouselift_jax.convert.rules import Alias, Rule, Transform
from mouselift_jax.convert.settings import require


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
    }
    require(source, fixed, where, needed=("block_out_channels",))
    return {
        "block_channels": [int(c) for c in source["block_out_channels"]],
        "layers_per_block": int(source.get("layers_per_block", 2)),
        "latent_channels": int(source.get("latent_channels", 4)),
        "picture_channels": int(source.get("in_channels", 3)),
        "norm_groups": int(source.get("norm_num_groups", 32)),
        "scaling_factor": float(source.get("scaling_factor", 0.18215)),
    }
