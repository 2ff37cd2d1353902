"""The settings of a training run; the keys are explained in `configs/common.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mouselift_jax.runs.settings import Settings


@dataclasses.dataclass(frozen=True)
class OptimSettings(Settings):
    """The section `train.optim`."""

    lr: float
    warmup_steps: int
    end_lr_fraction: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    decay_all: bool
    clip_norm: float
    skip_factor: float
    second_moment: str
    lr_scale: Sequence[tuple[str, float]]
    freeze: Sequence[str]


@dataclasses.dataclass(frozen=True)
class MeshSettings(Settings):
    """The section `train.mesh`: devices along each axis."""

    data: int
    fsdp: int
    tensor: int
    sequence: int


@dataclasses.dataclass(frozen=True)
class TrainSettings(Settings):
    """The section `train`."""

    steps: int
    batch_size: int
    accum_steps: int
    dtype: str
    remat: str
    ema_decay: float
    ema_warmup: bool
    log_every: int
    picture_every: int
    eval_every: int
    save_every: int
    log_minutes: float
    eval_minutes: float
    save_minutes: float
    keep: int
    keep_best: str
    wandb: bool
    on_bad_sample: str
    optim: OptimSettings
    mesh: MeshSettings


@dataclasses.dataclass(frozen=True)
class LoraSettings(Settings):
    """The section `lora`."""

    rank: int
    alpha: float
    targets: Sequence[str]
    whole: Sequence[str]
