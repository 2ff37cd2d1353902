"""Names of GS-LRM's tensors in FaceLift's checkpoints (`ckpt_*.pt`, key "model")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mouselift_jax.errors import CheckpointError, ConfigError
from mouselift_jax.weights.rules import Alias, Ignore, Rule
from mouselift_jax.weights.settings import integer

LAYER = "transformer_layers"

RULES = (
    Alias("module.{rest*}", "{rest}"),
    Rule("gaussian_position_embeddings", "gaussian_position_embeddings"),
    Rule("view_type_embeddings", "view_type_embeddings"),
    Rule("patch_embedder.1.weight", "patch_embedder/kernel", "linear"),
    Rule("input_layer_norm.weight", "input_layer_norm/scale"),
    Rule(f"{LAYER}.{{i}}.{{n:norm1|norm2}}.weight", f"{LAYER}/{{n}}/scale", stack="i"),
    Rule(f"{LAYER}.{{i}}.attn.{{n:to_qkv|fc}}.weight", f"{LAYER}/attn/{{n}}/kernel", "linear", "i"),
    Rule(f"{LAYER}.{{i}}.mlp.mlp.0.weight", f"{LAYER}/mlp/fc1/kernel", "linear", "i"),
    Rule(f"{LAYER}.{{i}}.mlp.mlp.2.weight", f"{LAYER}/mlp/fc2/kernel", "linear", "i"),
    Rule("gaussian_upsampler.layernorm.weight", "gaussian_upsampler/layernorm/scale"),
    Rule("gaussian_upsampler.linear.weight", "gaussian_upsampler/linear/kernel", "linear"),
    Rule("pixel_gaussian_decoder.0.weight", "pixel_gaussian_decoder/layernorm/scale"),
    Rule("pixel_gaussian_decoder.1.weight", "pixel_gaussian_decoder/linear/kernel", "linear"),
    Ignore("loss_calculator.perceptual_loss_module.net.{r*}", "becomes the component vgg19"),
    Ignore("loss_calculator.lpips_loss_module.{r*}", "becomes the component lpips"),
    Ignore("loss_calculator.{r*}", "another part of the loss; this project does not use it"),
)


def config_from_source(
    shapes: Mapping[str, tuple[int, ...]], upstream: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Read the network's size from a checkpoint's shapes, the rest from upstream's yaml.

    Args:
        shapes: torch name -> shape; a `module.` prefix and loss networks may be there.
        upstream: the parsed yaml or json of upstream's training config, when there is one. Without
            it the head size is 64 and every option that leaves no trace in the shapes is that of
            the released network.

    Returns:
        Keyword arguments of `GSLRMConfig`.

    Raises:
        CheckpointError: the shapes are not a GS-LRM's.
        ConfigError: upstream's config contradicts the shapes or asks for something else.
    """
    shapes = {k.removeprefix("module."): tuple(int(n) for n in s) for k, s in shapes.items()}
    need = {
        "patch_embedder.1.weight": 2,
        "gaussian_position_embeddings": 2,
        "gaussian_upsampler.linear.weight": 2,
        "pixel_gaussian_decoder.1.weight": 2,
        f"{LAYER}.0.mlp.mlp.0.weight": 2,
    }
    bad = [k for k, rank in need.items() if len(shapes.get(k, ())) != rank]
    if bad:
        raise CheckpointError(
            "This is not a GS-LRM state dict",
            expected=f"matrices named {', '.join(bad)}",
            found=f"{len(shapes)} tensors, e.g. {', '.join(list(shapes)[:3])}",
            fix="give the file ckpt_*.pt of stage 2 (GS-LRM), or name the right KIND",
        )
    width, patch_inputs = shapes["patch_embedder.1.weight"]
    channels = shapes["gaussian_upsampler.linear.weight"][0]
    pixels = shapes["pixel_gaussian_decoder.1.weight"][0] / channels
    patch = round(pixels**0.5)
    degree = round(((channels - 11) / 3) ** 0.5) - 1 if channels >= 14 else -1
    in_channels = patch_inputs / patch**2 if patch else 0
    if patch**2 != pixels or 11 + 3 * (degree + 1) ** 2 != channels or in_channels not in (9, 12):
        raise CheckpointError(
            "The shapes of this GS-LRM fit no patch size and SH degree",
            expected="decoder rows patch^2 (11 + 3 (degree+1)^2), patch inputs patch^2 x 9 or 12",
            found=f"decoder {shapes['pixel_gaussian_decoder.1.weight']}, upsampler {channels}, "
            f"patch_embedder {shapes['patch_embedder.1.weight']}",
            fix="give a GS-LRM checkpoint of FaceLift or of its mouse fork",
        )
    layer = re.compile(rf"{LAYER}\.(\d+)\.")
    config = {
        "width": width,
        "head_dim": 64,
        "n_layers": 1 + max(int(m[1]) for m in map(layer.match, shapes) if m),
        "mlp_ratio": shapes[f"{LAYER}.0.mlp.mlp.0.weight"][0] // width,
        "patch_size": patch,
        "n_gaussian_tokens": shapes["gaussian_position_embeddings"][0],
        "sh_degree": degree,
        "ray_embed": "dir_nearest" if in_channels == 9 else "plucker_nearest",
        "mark_source": "view_type_embeddings" in shapes,
    }
    if upstream is not None:
        config = _with_upstream(config, upstream)
    if width % config["head_dim"]:
        raise ConfigError(
            "The head size does not divide the width",
            found=f"width {width}, head size {config['head_dim']}",
            fix="give the training config with --config=FILE",
        )
    return config


def _with_upstream(config: dict[str, Any], upstream: Mapping[str, Any]) -> dict[str, Any]:
    """The options of upstream's yaml laid over what the shapes say."""
    model = _section(upstream, "model") if "model" in upstream else upstream
    transformer, tokenizer = _section(model, "transformer"), _section(model, "image_tokenizer")
    gaussians = _section(model, "gaussians")
    stated = {
        "width": transformer.get("d"),
        "n_layers": transformer.get("n_layer"),
        "patch_size": tokenizer.get("patch_size"),
        "n_gaussian_tokens": gaussians.get("n_gaussians"),
        "sh_degree": gaussians.get("sh_degree"),
        "mark_source": model.get("add_refsrc_marker"),
    }
    for key, value in stated.items():
        if value is not None and value != config[key]:
            raise ConfigError(
                "The training config contradicts the checkpoint",
                where=key,
                expected=config[key],
                found=value,
                fix="give the yaml this checkpoint was trained with",
            )
    fixed = {
        "hard_pixelalign": (model.get("hard_pixelalign", True), True),
        "gaussians.upsampler.upsample_factor": (
            _section(gaussians, "upsampler").get("upsample_factor", 1),
            1,
        ),
        "gaussians.scaling_modifier": (gaussians.get("scaling_modifier") or 1.0, 1.0),
    }
    for key, (value, supported) in fixed.items():
        if value != supported:
            raise ConfigError(
                "This network option is not supported",
                where=key,
                expected=supported,
                found=value,
                fix="give the config that the checkpoint was trained with",
            )
    head_dim = integer(transformer, "d_head", "model.transformer", config["head_dim"])
    out = dict(config, head_dim=head_dim, depth_bias=_number(model, "depth_preact_bias", 0.0))
    clip = model.get("clip_xyz") and not upstream.get("inference", True)
    return out | {"clip_means": bool(clip)} | _rays(config, model)


def _section(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of the yaml; absent or empty = {}."""
    value = parent.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(
            "This is no section of settings",
            where=name,
            found=repr(value),
            fix="give the yaml this checkpoint was trained with",
        )
    return value or {}


def _number(model: Mapping[str, Any], key: str, default: float) -> float:
    value = model.get(key) or default
    if not isinstance(value, (int, float)):
        raise ConfigError(
            "A setting is not a number",
            where=f"model.{key}",
            found=repr(value),
            fix="give the yaml this checkpoint was trained with",
        )
    return float(value)


def _rays(config: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Ray embedding and depth range of upstream's model section."""
    if model.get("use_custom_plucker"):
        kind = "dir_nearest"
    elif model.get("use_aug_plucker"):
        kind = "plucker_nearest"
    elif {"use_custom_plucker", "use_aug_plucker", "image_tokenizer"} & set(model):
        kind = "plucker"
    else:  # a fragment that says nothing of rays
        kind = config["ray_embed"]
    if (kind == "plucker_nearest") != (config["ray_embed"] == "plucker_nearest"):
        raise ConfigError(
            "The training config contradicts the checkpoint",
            where="use_aug_plucker",
            expected=config["ray_embed"],
            found=kind,
            fix="give the yaml this checkpoint was trained with",
        )
    if kind != "plucker":
        return {"ray_embed": kind, "depth": "around_nearest"}
    near, far = _number(model, "depth_min", -1.0), _number(model, "depth_max", -1.0)
    if near > 0 and far > 0:
        depth = {"depth": "range", "depth_near": near, "depth_far": far}
    elif model.get("depth_reference_origin"):
        depth = {"depth": "around_origin"}
    else:
        depth = {"depth": "range"}  # upstream's default, 2.7 +- 1.5, is ours
    return {"ray_embed": kind} | depth
