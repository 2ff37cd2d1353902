"""Names and configs of the UNet: diffusers' `UNet2DConditionModel` <-> `models.mvunet`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mouselift_jax.errors import ConfigError
from mouselift_jax.weights.rules import Rule
from mouselift_jax.weights.settings import (
    OTHER_MODEL,
    check_divides,
    integer,
    integers,
    number,
    require,
)

RULES = (
    Rule("{n:conv_in|conv_out}.weight", "{n}/kernel", "conv"),
    Rule("{m*}.{n:conv1|conv2|conv_shortcut|conv}.weight", "{m}/{n}/kernel", "conv"),
    Rule("{n:conv_norm_out}.weight", "{n}/scale"),
    Rule("{m*}.{n:norm|norm1|norm2|norm3}.weight", "{m}/{n}/scale"),
    Rule("{m*}.{n:linear_1|linear_2}.weight", "{m}/{n}/kernel", "linear"),
    Rule("{m*}.{n:time_emb_proj|proj_in|proj_out}.weight", "{m}/{n}/kernel", "linear"),
    Rule("{m*}.{n:to_q|to_k|to_v}.weight", "{m}/{n}/kernel", "linear"),
    Rule("{m*}.to_out.0.weight", "{m}/to_out_0/kernel", "linear"),
    Rule("{m*}.to_out.0.bias", "{m}/to_out_0/bias"),
    Rule("{m*}.net.0.proj.weight", "{m}/net_0/proj/kernel", "linear"),
    Rule("{m*}.net.0.proj.bias", "{m}/net_0/proj/bias"),
    Rule("{m*}.net.2.weight", "{m}/net_2/kernel", "linear"),
    Rule("{m*}.net.2.bias", "{m}/net_2/bias"),
    Rule("{n:conv_in|conv_out|conv_norm_out}.bias", "{n}/bias"),
    Rule(
        "{m*}.{n:conv1|conv2|conv_shortcut|conv|norm|norm1|norm2|norm3|linear_1|linear_2"
        "|linear_3|time_emb_proj|proj_in|proj_out}.bias",
        "{m}/{n}/bias",
    ),
    # only of the variant `posed`, which torch does not know
    Rule("pose_encoder.linear_3.weight", "pose_encoder/linear_3/kernel", "linear"),
)

# What the code computes without asking: another value would be another network.
FIXED = {
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "act_fn": "silu",
    "use_linear_projection": True,
    "class_embed_type": "projection",
    "class_embeddings_concat": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "resnet_time_scale_shift": "default",
    "resnet_out_scale_factor": 1.0,
    "only_cross_attention": False,
    "dual_cross_attention": False,
    "center_input_sample": False,
    "transformer_layers_per_block": 1,
    "resnet_skip_time_act": False,
    "time_embedding_type": "positional",
    "attention_type": "default",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "selfattn_block": "custom",
    "cd_attention_mid": False,
    "cd_attention_last": False,
    "addition_downsample": False,
}
# Absent or null, these mean to diffusers: no class embedding, convolutions around attention. Both
# are Stable Diffusion 1 and 2 as published; the networks of this family embed the picture (unCLIP).
SAID = ("class_embed_type", "use_linear_projection")
CLASSES = ("UNet2DConditionModel", "UNetMV2DConditionModel")
# Read below; or without influence on what is computed; or of a training's moving average.
KNOWN = (
    *("sample_size", "in_channels", "out_channels", "layers_per_block", "up_block_types"),
    *("mid_block_type", "projection_class_embeddings_input_dim", "norm_num_groups", "norm_eps"),
    *("num_views", "multiview_attention", "sparse_mv_attention"),
    *("upcast_attention", "dropout", "addition_channels", "addition_embed_type_num_heads"),
    *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup"),
    *("inv_gamma", "power"),
)
BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}  # -> whether it attends


def config_from_source(source: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `MVUNetConfig` from a diffusers `config.json`.

    The stock class and the multi-view one are both read: they differ in names of blocks only.

    Raises:
        ConfigError: a key is missing, or has a value this network does not implement.
    """
    where = "unet/config.json"
    needed = ("block_out_channels", "attention_head_dim", "cross_attention_dim", "down_block_types")
    require(source, FIXED, where, needed, KNOWN, SAID)
    if str(source.get("_class_name", CLASSES[0])) not in CLASSES:
        raise ConfigError(
            "This is the config of another class",
            where=f"{where}: _class_name",
            expected=" or ".join(CLASSES),
            found=source["_class_name"],
            fix=OTHER_MODEL,
        )
    channels = integers(source, "block_out_channels", where)
    attends = _block_attends(source, len(channels), where)
    heads = integers(source, "attention_head_dim", where, len(channels))
    groups = integer(source, "norm_num_groups", where, 32)
    check_divides(heads, channels, f"{where}: attention_head_dim")
    check_divides([groups] * len(channels), channels, f"{where}: norm_num_groups")
    sparse = source.get("sparse_mv_attention", True)
    shares = source.get("multiview_attention", True)
    return {
        "sample_size": integer(source, "sample_size", where, 64),
        "in_channels": integer(source, "in_channels", where, 4),
        "out_channels": integer(source, "out_channels", where, 4),
        "block_channels": channels,
        "block_attends": attends,
        # diffusers' "attention_head_dim" of this family is the number of heads
        "heads": heads,
        "layers_per_block": integer(source, "layers_per_block", where, 2),
        "context_dim": integer(source, "cross_attention_dim", where),
        "class_dim": integer(source, "projection_class_embeddings_input_dim", where, 2048),
        "norm_groups": groups,
        "norm_eps": number(source, "norm_eps", where, 1e-5),
        "n_views": integer(source, "num_views", where, 6),
        "attention": ("sparse" if sparse else "dense") if shares else "none",
    }


def _block_attends(source: Mapping[str, Any], n_levels: int, where: str) -> list[bool]:
    """Which levels attend, from the names of the blocks: stock or multi-view ("MV")."""
    down = _block_names(source["down_block_types"])
    attends = [BLOCKS.get(name) for name in down]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    middle = ["UNetMidBlock2DCrossAttn"]
    good = {
        "down_block_types": len(down) == n_levels and None not in attends,
        "up_block_types": _block_names(source.get("up_block_types", up)) == up,
        "mid_block_type": _block_names(source.get("mid_block_type", middle)) == middle,
    }
    for key, is_good in good.items():
        if not is_good:
            raise ConfigError(
                "These blocks are not implemented",
                where=f"{where}: {key}",
                found=repr(source[key]),
                fix=OTHER_MODEL,
            )
    return attends


def _block_names(value: Any) -> list[str]:
    names = value if isinstance(value, list) else [value]
    return [str(name).replace("MV2D", "2D") for name in names]
