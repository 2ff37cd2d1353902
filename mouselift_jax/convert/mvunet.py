"""Names and configs of the UNet: diffusers' `UNet2DConditionModel` <-> `models.mvunet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mouselift_jax.convert.rules import Rule
from mouselift_jax.convert.settings import require

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
    "cd_attention_mid": False,
    "cd_attention_last": False,
    "addition_downsample": False,
}


def config_from_source(source: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `MVUNetConfig` from a diffusers `config.json`.

    The stock class and the multi-view one are both read: they differ in names of blocks only.

    Raises:
        ConfigError: a key is missing, or has a value this network does not implement.
    """
    require(source, FIXED, "unet/config.json")
    needed = ("block_out_channels", "attention_head_dim", "cross_attention_dim", "down_block_types")
    require(source, {}, "unet/config.json", needed=needed)
    channels = _list(source["block_out_channels"])
    sparse = source.get("sparse_mv_attention", True)
    shares = source.get("multiview_attention", True)
    return {
        "sample_size": int(source.get("sample_size", 64)),
        "in_channels": int(source.get("in_channels", 4)),
        "out_channels": int(source.get("out_channels", 4)),
        "block_channels": channels,
        "block_attends": [name.startswith("CrossAttn") for name in source["down_block_types"]],
        # diffusers' "attention_head_dim" of this family is the number of heads
        "heads": _list(source["attention_head_dim"], len(channels)),
        "layers_per_block": int(source.get("layers_per_block", 2)),
        "context_dim": int(source["cross_attention_dim"]),
        "class_dim": int(source.get("projection_class_embeddings_input_dim", 2048)),
        "norm_groups": int(source.get("norm_num_groups", 32)),
        "norm_eps": float(source.get("norm_eps", 1e-5)),
        "n_views": int(source.get("num_views", 6)),
        "attention": ("sparse" if sparse else "dense") if shares else "none",
    }


def _list(value: int | Sequence[int], length: int = 1) -> list[int]:
    return [int(x) for x in value] if isinstance(value, Sequence) else [int(value)] * length
