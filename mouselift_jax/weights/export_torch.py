"""Trained and converted networks back to torch's layouts, so that labs can go on in PyTorch.

* GS-LRM: `ckpt_<step>.pt` with {"model": state dict}, which FaceLift's code resumes from.
* UNet: a diffusers folder `unet/{config.json, diffusion_pytorch_model.safetensors}`.
* VAE, CLIP, normaliser: their diffusers and transformers folders.

Written without torch, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.errors import CheckpointError
from mouselift_jax.files import atomic_path, write_json_atomic
from mouselift_jax.weights.networks import network
from mouselift_jax.weights.pretrained import Stored, find_component, read_component
from mouselift_jax.weights.rules import expected_keys, pack, unflatten
from mouselift_jax.weights.torch_writer import write_torch_file

EXPORTED = ("gslrm", "unet", "vae", "image_encoder", "text_encoder", "image_normalizer")
ONLY_HOW = ("dtype", "remat", "attention", "token_multiple")  # no matter of the results
PERCEPTUAL = "loss_calculator.perceptual_loss_module.net."


def torch_state(
    component: str, flat: dict[str, np.ndarray]
) -> dict[str, tuple[tuple[int, ...], Any, Any]]:
    """Torch name -> (shape, dtype, function that makes the contiguous values)."""
    tree = unflatten({path: leaf for path, leaf in flat.items()})
    out = {}
    for key, (rule, path, index) in expected_keys(network(component).rules, tree).items():
        leaf = flat[path] if index is None else flat[path][index]
        view = rule.layout.inverse(leaf)
        out[key] = (view.shape, view.dtype, lambda view=view: pack(view))
    return out


def unet_settings(config: Mapping[str, Any], *, multiview: bool = False) -> dict[str, Any]:
    """A diffusers config.json for our UNet.

    Args:
        config: `MVUNetConfig` as a dictionary.
        multiview: name FaceLift's own classes; else diffusers' stock ones, which open everywhere.
    """
    mv = "MV" if multiview else ""
    attends = config["block_attends"]
    out = {
        "_class_name": f"UNet{mv}2DConditionModel",
        "sample_size": config["sample_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "block_out_channels": list(config["block_channels"]),
        "down_block_types": [f"CrossAttnDownBlock{mv}2D" if a else "DownBlock2D" for a in attends],
        "mid_block_type": f"UNetMidBlock{mv}2DCrossAttn",
        "up_block_types": [f"CrossAttnUpBlock{mv}2D" if a else "UpBlock2D" for a in attends[::-1]],
        "attention_head_dim": list(config["heads"]),
        "layers_per_block": config["layers_per_block"],
        "cross_attention_dim": config["context_dim"],
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": config["class_dim"],
        "norm_num_groups": config["norm_groups"],
        "norm_eps": config["norm_eps"],
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
    }
    if multiview:
        out |= {
            "num_views": config["n_views"],
            "multiview_attention": config["attention"] != "none",
            "sparse_mv_attention": config["attention"] == "sparse",
            "selfattn_block": "custom",
            "cd_attention_mid": False,
            "cd_attention_last": False,
            "addition_downsample": False,
        }
    return out


def _vae_settings(c: Mapping[str, Any]) -> dict[str, Any]:
    n = len(c["block_channels"])
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": list(c["block_channels"]),
        "down_block_types": ["DownEncoderBlock2D"] * n,
        "up_block_types": ["UpDecoderBlock2D"] * n,
        "layers_per_block": c["layers_per_block"],
        "latent_channels": c["latent_channels"],
        "in_channels": c["picture_channels"],
        "out_channels": c["picture_channels"],
        "norm_num_groups": c["norm_groups"],
        "scaling_factor": c["scaling_factor"],
        "act_fn": "silu",
    }


def clip_sizes(c: Mapping[str, Any]) -> dict[str, Any]:
    """A CLIP tower's sizes by the names that transformers gives them."""
    return {
        "hidden_size": c["hidden_size"],
        "intermediate_size": c["intermediate_size"],
        "num_hidden_layers": c["n_layers"],
        "num_attention_heads": c["n_heads"],
        "hidden_act": c["activation"],
        "layer_norm_eps": c["norm_eps"],
    }


def _clip_settings(c: Mapping[str, Any]) -> dict[str, Any]:
    out = clip_sizes(c)
    if "patch_size" in c:
        names = ("image_size", "patch_size", "projection_dim")
        out |= {"architectures": ["CLIPVisionModelWithProjection"], **{n: c[n] for n in names}}
        return out | {"model_type": "clip_vision_model"}
    out |= {"vocab_size": c["vocab_size"], "max_position_embeddings": c["max_tokens"]}
    return out | {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}


def export_torch(
    source: Any,
    out: Path,
    *,
    components: tuple[str, ...] | None = None,
    multiview: bool = False,
    perceptual_from: Any = None,
    checkpoint: str | int = "best",
) -> list[str]:
    """Write the networks of a run or of converted weights in torch's layouts.

    Args:
        source: folder of a run, or converted weights.
        out: folder that is made; GS-LRM may be given a path that ends in .pt.
        components: which; None = what `source` itself holds.
        multiview: name FaceLift's classes in the UNet's config.json.
        perceptual_from: weights of VGG-19 to put beside GS-LRM, as FaceLift's inference expects
            them; None = those that lie beside `source` or beside what it started from, if any.
        checkpoint: of a run: best | newest | STEP.

    Returns:
        Lines that say what was written.

    Raises:
        CheckpointError: nothing to export, or `out` exists.
    """
    own = components or _own_components(source)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise CheckpointError("The destination exists", where=out, fix="give a new place")
    lines = []
    for component in own:
        stored = read_component(source, component, checkpoint)
        if component == "gslrm":
            lines += _write_gslrm(source, out, stored, perceptual_from)
        else:
            folder = out / component
            lines += _write_folder(component, folder, stored.config, stored.flat, multiview)
        lines.append(f"  {stored.note}")
    return lines


def _own_components(source: Any) -> tuple[str, ...]:
    """What the folder itself holds, without what a run merely started from."""
    found = []
    for component in EXPORTED:
        try:
            find_component(source, component, follow=False)
        except CheckpointError:
            continue
        found.append(component)
    if not found:
        raise CheckpointError(
            "There is nothing to export here",
            where=source,
            expected="the folder of an mvdiff or gslrm run with a checkpoint, or converted weights",
            fix="give the --workdir of a training run, or a converted folder",
        )
    return tuple(found)


def _write_gslrm(source: Any, out: Path, stored: Stored, perceptual_from: Any) -> list[str]:
    if stored.config.get("pixel_skip"):
        raise CheckpointError(
            "The network has a part that FaceLift's GS-LRM lacks",
            where=source,
            found="pixel_skip",
            fix="train with --config.model.pixel_skip=False what is to go on in torch",
        )
    path = out if out.suffix == ".pt" else out / f"ckpt_{stored.step:016d}.pt"
    tensors = torch_state("gslrm", stored.flat)
    note = (
        "without VGG-19: FaceLift's inference.py wants its tensors in the file (strict loading); "
        "give --vgg19=DIR to add them"
    )
    vgg19 = _perceptual(source, perceptual_from)
    if vgg19 is not None:
        tensors |= {f"{PERCEPTUAL}{k}": v for k, v in torch_state("vgg19", vgg19).items()}
        note = "with VGG-19, as FaceLift's inference.py wants it"
    steps = dict.fromkeys(("fwdbwd_pass_step", "param_update_step"), stored.step)
    with atomic_path(path) as part:
        write_torch_file(part, tensors, steps)
    lines = [f"{path}: {len(tensors)} tensors", f"  {note}"]
    other = _unlike_the_released(stored.config)
    if other:
        lines.append(f"  unlike the released network, set it in its config or code: {other}")
    return lines


def _unlike_the_released(config: Mapping[str, Any]) -> str:
    """What the tensors do not tell, and would be decoded wrongly without."""
    from mouselift_jax.models.gslrm import GSLRMConfig

    released = dataclasses.asdict(GSLRMConfig())
    own = {k: v for k, v in config.items() if k in released and k not in ONLY_HOW}
    return ", ".join(f"{k} = {v}" for k, v in own.items() if v != released[k])


def _perceptual(source: Any, given: Any) -> dict[str, np.ndarray] | None:
    """VGG-19's weights from where they are given, or from beside the network if they lie there."""
    if given is None:
        try:
            find_component(source, "vgg19")
        except CheckpointError:  # absent; damaged ones are an error below
            return None
    return read_component(given or source, "vgg19").flat


def _write_folder(
    component: str, folder: Path, config: Mapping[str, Any], flat: dict, multiview: bool
) -> list[str]:
    from safetensors.numpy import save_file

    settings = {
        "unet": lambda c: unet_settings(c, multiview=multiview),
        "vae": _vae_settings,
        "image_normalizer": lambda c: {
            "_class_name": "StableUnCLIPImageNormalizer",
            "embedding_dim": c["embedding_dim"],
        },
    }.get(component, _clip_settings)(config)
    stem = "model" if component.endswith("encoder") else "diffusion_pytorch_model"
    state = torch_state(component, flat)
    with atomic_path(folder / f"{stem}.safetensors") as part:
        save_file({key: make() for key, (_, _, make) in state.items()}, part, {"format": "pt"})
    write_json_atomic(folder / "config.json", settings)
    lines = [f"{folder}: {len(state)} tensors"]
    if config.get("pose_features"):
        lines.append("  with the pose encoder, which torch's UNet does not know")
    return lines
