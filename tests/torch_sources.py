"""Torch checkpoints of every KIND in their real layouts, with random weights, for tests.

Also used at full size by the benchmark of conversion, which takes names and shapes from manifests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mouselift_jax.weights.networks import network, param_shapes
from mouselift_jax.weights.rules import expected_keys, flatten

GSLRM = {
    "width": 128,
    "head_dim": 64,
    "n_layers": 2,
    "mlp_ratio": 4,
    "patch_size": 8,
    "n_gaussian_tokens": 2,
    "sh_degree": 0,
    "ray_embed": "dir_nearest",
    "mark_source": False,
}

SETTINGS = {
    "unet": {
        "_class_name": "UNetMV2DConditionModel",
        "sample_size": 8,
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": [8, 16],
        "down_block_types": ["CrossAttnDownBlockMV2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlockMV2D"],
        "layers_per_block": 1,
        "attention_head_dim": [2, 2],
        "cross_attention_dim": 16,
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 64,
        "norm_num_groups": 4,
        "num_views": 6,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "latent_channels": 4,
        "in_channels": 3,
        "norm_num_groups": 4,
        "scaling_factor": 0.18215,
    },
    "image_encoder": {
        "architectures": ["CLIPVisionModelWithProjection"],
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "projection_dim": 32,
        "hidden_act": "gelu",
    },
    "image_normalizer": {"_class_name": "StableUnCLIPImageNormalizer", "embedding_dim": 32},
    "text_encoder": {
        "architectures": ["CLIPTextModel"],
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 50,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
    },
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "skip_prk_steps": True,
    "trained_betas": None,
}
NOISING = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
}
PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 28, "width": 28},
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": {"shortest_edge": 28},
}
FILES = {"image_encoder": "model", "text_encoder": "model"}


def torch_shapes(component: str, config: Mapping) -> dict[str, tuple[int, ...]]:
    """Torch names and shapes of a component of ours."""
    target = param_shapes(component, config)
    flat = flatten(target)
    out = {}
    for key, (rule, path, index) in expected_keys(network(component).rules, target).items():
        shape = flat[path].shape if index is None else flat[path].shape[1:]
        out[key] = rule.layout.inverse(np.broadcast_to(np.float32(0), shape)).shape
    return out


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of a sane size: norms near one, matrices scaled by their inputs."""
    rng = np.random.default_rng(seed)
    out = {}
    for key, shape in shapes.items():
        z = rng.standard_normal(shape, dtype=np.float32)
        if "norm" in key and key.endswith("weight") or key == "std":
            out[key] = 1 + 0.1 * np.abs(z)
        elif len(shape) > 1:
            out[key] = z * np.float32(np.prod(shape[1:]) ** -0.5)
        else:
            out[key] = 0.1 * z
    return {key: value.astype(np.float32) for key, value in out.items()}


def component_state(component: str, settings: Mapping | None = None) -> dict[str, np.ndarray]:
    """Random weights of a component of the tiny pipeline."""
    from mouselift_jax.weights.kinds import PIPELINE_CONFIGS

    config = PIPELINE_CONFIGS[component](settings or SETTINGS[component])
    return random_state(torch_shapes(component, config), seed=len(component))


def write_component(
    folder: Path,
    component: str,
    settings: Mapping | None = None,
    state: Mapping[str, np.ndarray] | None = None,
    file: str | None = None,
) -> dict[str, np.ndarray]:
    """A component folder with config.json and one safetensors file."""
    from safetensors.numpy import save_file

    settings = settings or SETTINGS[component]
    state = component_state(component, settings) if state is None else dict(state)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    name = file or FILES.get(component, "diffusion_pytorch_model") + ".safetensors"
    save_file(dict(state), folder / name)
    return state


def write_pipeline(root: Path) -> dict[str, dict[str, np.ndarray]]:
    """A diffusers pipeline folder; the weights of its components."""
    states = {name: write_component(root / name, name) for name in SETTINGS}
    write_settings(root)
    return states


def write_settings(root: Path) -> None:
    """What a pipeline folder holds beside its networks."""
    for place, value in {
        "scheduler/scheduler_config.json": SCHEDULER,
        "image_noising_scheduler/scheduler_config.json": NOISING,
        "feature_extractor/preprocessor_config.json": PREPROCESSOR,
        "tokenizer/vocab.json": {"a": 0},
        "model_index.json": {"_class_name": "StableUnCLIPImg2ImgPipeline"},
    }.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(json.dumps(value))
    (root / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")


def gslrm_state(config: Mapping | None = None) -> dict[str, np.ndarray]:
    """Random weights of a tiny GS-LRM, without the networks of its loss."""
    return random_state(torch_shapes("gslrm", config or GSLRM))


def vgg19_state() -> dict[str, np.ndarray]:
    """All 32 tensors of VGG-19 as the GS-LRM checkpoint carries them; all zero, to be quick."""
    return {key: np.zeros(shape, np.float32) for key, shape in torch_shapes("vgg19", {}).items()}


def save_torch(path: Path, value: object) -> None:
    """torch.save with arrays turned into tensors."""
    import torch

    def tensors(x: object) -> object:
        if isinstance(x, np.ndarray):
            return torch.from_numpy(x)
        return {k: tensors(v) for k, v in x.items()} if isinstance(x, dict) else x

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors(value), path)
