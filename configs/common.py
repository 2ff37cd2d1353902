"""Fields that stages share, and the way variants are applied.

A config file builds on `stage(...)`, adds its own fields inside `with config.unlocked():`, and
ends with `return variant(config, name, VARIANTS)`. Variants are applied while the config is
locked, so a misspelt key in one is an error and not a new field.
"""

from __future__ import annotations

import difflib

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def stage(name: str) -> ConfigDict:
    """The fields of every stage, locked."""
    config = ConfigDict()
    config.stage = name
    config.variant = "base"
    config.seed = 0  # every random choice of a run derives from it
    return config.lock()


def path() -> str | None:
    """A path that must be given or may stay empty; the stage says which."""
    return placeholder(str)


def training() -> ConfigDict:
    """The section `train` of a stage that trains a network."""
    c = ConfigDict()
    c.steps = 10_000  # updates of the weights
    c.batch_size = 8  # samples per update, over all devices and accumulation steps
    c.accum_steps = 1  # micro-batches one update is split into, inside the compiled step
    c.dtype = "bfloat16"  # bfloat16 | float32: of the matrix products; weights stay float32
    c.remat = "block"  # none | block | dots | offload: what the backward pass recomputes
    c.ema_decay = 0.0  # 0 = no moving average of the weights
    c.ema_warmup = False  # its decay grows with the updates, k / (k + 9), up to ema_decay
    c.log_every = 20  # steps between rows of metrics.jsonl
    c.picture_every = 250  # steps between pictures of training samples; 0 = never
    c.eval_every = 1000  # steps between evaluations on held-out views; 0 = only at the end
    c.save_every = 500  # steps between checkpoints; one is always written at the end
    c.log_minutes = 2.0  # and a row after so many minutes without one; 0 = by steps alone
    c.eval_minutes = 0.0  # likewise of evaluations
    c.save_minutes = 15.0  # likewise of checkpoints: what a power cut can cost
    c.keep = 3  # newest checkpoints kept
    # Metric whose best checkpoint is kept besides ("" = none), e.g. "heldout/psnr"; it is what
    # infer, eval, synth, export and init_from then take.
    c.keep_best = ""
    c.wandb = False  # mirror the scalars to Weights & Biases; needs `pip install wandb`
    c.on_bad_sample = "stop"  # stop | skip: a sample that cannot be read
    c.optim = optimiser()
    c.mesh = mesh()
    return c.lock()


def optimiser() -> ConfigDict:
    """AdamW after a warm-up, with the guards of the published recipe."""
    c = ConfigDict()
    c.lr = 1e-4  # peak learning rate
    c.warmup_steps = 500  # updates from 0 to the peak
    c.end_lr_fraction = 0.0  # of the peak, reached by a half cosine at the last step
    c.b1 = 0.9  # decay of the mean of gradients
    c.b2 = 0.95  # decay of the mean of their squares
    c.eps = 1e-8  # what is added to the root of that
    c.weight_decay = 0.05  # on tensors of two or more dimensions only
    c.decay_all = False  # on gains and biases too
    c.clip_norm = 1.0  # of the gradient over all weights; 0 = no clipping
    c.skip_factor = 20.0  # an update whose norm is above clip_norm times this is skipped; 0 = never
    c.second_moment = "full"  # full | factored (Adafactor's rows and columns: far less memory)
    c.lr_scale = ()  # pairs (regular expression on the weight's path, factor)
    c.freeze = ()  # regular expressions on the weight's path: these keep their value
    return c.lock()


def mesh() -> ConfigDict:
    """Devices along each axis; -1 takes what the others leave."""
    c = ConfigDict()
    c.data = -1  # copies of the model, each with its share of the batch
    c.fsdp = 1  # the batch and also the weights are split over it
    c.tensor = 1  # heads and hidden units are split over it
    c.sequence = 1  # tokens of one sample are split over it
    return c.lock()


def lora() -> ConfigDict:
    """Low-rank fine-tuning; rank 0 trains the weights themselves."""
    c = ConfigDict()
    c.rank = 0  # of the added product; 0 = none is added
    c.alpha = 16.0  # the added product is scaled by alpha / rank
    c.targets = ()  # regular expressions on the weight's path; () = all attention projections
    c.whole = ()  # regular expressions: these weights are trained themselves, beside the additions
    return c.lock()


def variant(config: ConfigDict, name: str | None, variants: dict[str, dict]) -> ConfigDict:
    """Apply the named overrides to the locked config; several names are joined by `,`."""
    for one in (name or "base").split(","):
        if one not in variants:
            near = difflib.get_close_matches(one, variants, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown variant {one!r}: {hint}known: {', '.join(variants)}")
        config.update_from_flattened_dict(variants[one])
    config.variant = name or "base"
    return config
