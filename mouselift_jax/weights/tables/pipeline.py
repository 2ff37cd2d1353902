"""What a diffusers pipeline folder carries beside its networks, and its UNet's extra channels."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.errors import CheckpointError, ConfigError
from mouselift_jax.weights.settings import require
from mouselift_jax.weights.torch_sources import LazyTensor, Weights, read_json

# Not needed to make views, only to make new prompt embeddings.
OPTIONAL = ("text_encoder", "tokenizer")
SETTINGS = {
    "scheduler": "scheduler_config.json",
    "image_noising_scheduler": "scheduler_config.json",
    "feature_extractor": "preprocessor_config.json",
}


TOKENIZER_FILES = ("vocab.json", "merges.txt")


def tokenizer_faults(folder: Path, vocabulary: int | None) -> list[str]:
    """What is wrong with the files of a CLIP tokenizer, in words; nothing where they are whole.

    A release may carry none of them, a stub of a few words, or the pointer of Git LFS in a file's
    place: every prompt would then become the same row of unknown words.

    Args:
        folder: with vocab.json and merges.txt (or tokenizer.json).
        vocabulary: words that the text encoder knows, where that is known.
    """
    if (folder / "tokenizer.json").is_file():
        return []
    faults = [f"{name} is missing" for name in TOKENIZER_FILES if not (folder / name).is_file()]
    for name in TOKENIZER_FILES:
        with contextlib.suppress(OSError):
            if (folder / name).read_bytes()[:40].startswith(b"version https://git-lfs"):
                faults.append(f"{name} is the pointer of Git LFS, not the file")
    if faults:
        return faults
    words = read_json(folder / "vocab.json")
    if not isinstance(words, dict) or (vocabulary and len(words) < vocabulary):
        n = len(words) if isinstance(words, dict) else "no"
        faults.append(f"vocab.json is a stub: {n} words, the text encoder knows {vocabulary}")
    return faults


def check_schedulers(folder: Path) -> None:
    """Assert the settings of both noise schedules and of the picture processor.

    Raises:
        ConfigError: a value that is not implemented; `clip_sample` absent (diffusers' default would
            be true) or true.
    """
    where = "scheduler/scheduler_config.json"
    require(
        read_json(folder / where),
        {
            "num_train_timesteps": 1000,
            "beta_schedule": "scaled_linear",
            "prediction_type": "v_prediction",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "thresholding": False,
            "rescale_betas_zero_snr": False,
            "steps_offset": 1,
            "timestep_spacing": "leading",
            "trained_betas": None,
        },
        where,
        needed=("clip_sample", "prediction_type", "beta_start", "beta_end", "beta_schedule"),
    )
    where = "image_noising_scheduler/scheduler_config.json"
    require(
        read_json(folder / where),
        {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "trained_betas": None},
        where,
        needed=("beta_schedule",),
    )
    where = "feature_extractor/preprocessor_config.json"
    require(
        read_json(folder / where),
        {
            "do_center_crop": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "resample": 3,
        },
        where,
    )


def eight_channels(
    config: dict[str, Any], weights: Weights, notes: list[str]
) -> tuple[dict[str, Any], Weights, list[str]]:
    """Extend the stock network's 4 input channels to 8; a tuned network's 8 are kept as they are.

    The 4 new channels take the reference picture's latents. They start at zero, so the extended
    network first behaves as the stock one does.

    Raises:
        CheckpointError: config and weights disagree.
        ConfigError: neither 4 nor 8.
    """
    name, want = "conv_in.weight", config["in_channels"]
    tensor = weights.tensors.get(name)
    found = None if tensor is None or len(tensor.shape) != 4 else tensor.shape[1]
    if found is not None and found != want:
        raise CheckpointError(
            "The UNet's input channels are not those of its config",
            where=f"{weights.files[0]}: {name}",
            expected=f"{want} (in_channels of config.json)",
            found=found,
            fix="take config.json and weights from the same checkpoint; a stock 4-channel UNet "
            "with its own config.json is extended to 8",
        )
    if want not in (4, 8):
        raise ConfigError(
            "A setting is not implemented",
            where="unet/config.json: in_channels",
            expected="8 (multi-view), or 4 (stock, extended to 8)",
            found=want,
            fix="give a UNet of FaceLift, or of Stable Diffusion 2.1 unCLIP",
        )
    if want == 8 or tensor is None:
        return config, weights, notes
    shape = (tensor.shape[0], 8, *tensor.shape[2:])

    def read() -> np.ndarray:
        old = np.asarray(tensor)
        return np.concatenate([old, np.zeros_like(old)], axis=1)

    tensors = {**weights.tensors, name: LazyTensor(shape, str(tensor.dtype), read)}
    note = "stock UNet: conv_in extended from 4 to 8 input channels, the new ones zero"
    return {**config, "in_channels": 8}, Weights(tensors, weights.files), [*notes, note]
