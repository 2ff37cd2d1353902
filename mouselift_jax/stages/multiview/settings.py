"""The settings of a multi-view training run; the keys are explained in `configs/mvdiff.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mouselift_jax.models.mvunet import MVUNetConfig
from mouselift_jax.models.vae import VAEConfig
from mouselift_jax.pipelines.views_training import DiffusionLossConfig
from mouselift_jax.runs.settings import Settings
from mouselift_jax.training.settings import LoraSettings, TrainSettings


@dataclasses.dataclass(frozen=True)
class PictureSettings(Settings):
    """The section `data`."""

    size: int
    background: str
    brightness: float
    contrast: float
    workers: int


@dataclasses.dataclass(frozen=True)
class CacheSettings(Settings):
    """The section `cache`."""

    enabled: bool
    dir: str | None
    jitter_draws: int


@dataclasses.dataclass(frozen=True)
class ToySettings(Settings):
    """The section `toy`."""

    vae_steps: int
    vae_lr: float
    vae_kl: float
    vae: VAEConfig


@dataclasses.dataclass(frozen=True)
class EvalSettings(Settings):
    """The section `eval`."""

    samples: int
    guidances: Sequence[float]
    steps: int
    eta: float


@dataclasses.dataclass(frozen=True)
class MultiviewSettings(Settings):
    """The whole config of the stage mvdiff."""

    stage: str
    variant: str
    seed: int
    samples: str | None
    init_from: str | None
    init_checkpoint: str | int
    prompt_embeds: str | None
    perceptual_from: str | None
    reference: str
    frozen_dtype: str
    model: MVUNetConfig  # its sample_size follows from data.size, see `mvdiff.unet_config`
    data: PictureSettings
    loss: DiffusionLossConfig
    lora: LoraSettings
    cache: CacheSettings
    toy: ToySettings
    eval: EvalSettings
    train: TrainSettings
