"""The optimiser: AdamW with decay on matrices only, warm-up and cosine, clipping, skipping.

The learning rate is a function of the run's step, not of the optimiser's own count: a skipped
update still advances the schedule, as in the published recipe.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mouselift_jax.errors import ConfigError, nearest
from mouselift_jax.training.settings import OptimSettings


@dataclasses.dataclass(frozen=True)
class Guard:
    """What happens to a gradient before the optimiser sees it.

    Attributes:
        lr: learning rate of a step.
        clip_norm: largest norm over all weights; 0 = no limit.
        skip_factor: updates whose norm exceeds clip_norm times this are left out; 0 = never.
    """

    lr: Callable[[jax.Array], jax.Array]
    clip_norm: float = 0.0
    skip_factor: float = 0.0

    def too_large(self, norm: jax.Array) -> jax.Array:
        """Whether the update is to be skipped."""
        if not self.clip_norm or not self.skip_factor:
            return jnp.zeros((), jnp.bool_)
        return norm > self.clip_norm * self.skip_factor

    def clip(self, grads: Any, norm: jax.Array) -> Any:
        """Gradients scaled to the largest norm allowed."""
        if not self.clip_norm:
            return grads
        scale = self.clip_norm / jnp.maximum(norm, self.clip_norm)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)


def warmup_cosine(
    peak: Any, warmup_steps: Any, total_steps: Any, end_fraction: Any = 0.0
) -> Callable[[jax.Array], jax.Array]:
    """From 0 up to `peak` in the warm-up, then half a cosine to `peak * end_fraction`.

    The figures may be arrays of a traced program, see `schedule`.
    """

    def lr(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        up = step / jnp.maximum(1, warmup_steps)
        through = (step - warmup_steps) / jnp.maximum(1, total_steps - warmup_steps)
        down = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(through, 0.0, 1.0)))
        down = end_fraction + (1.0 - end_fraction) * down
        return jnp.asarray(peak * jnp.where(step < warmup_steps, up, down), jnp.float32)

    return lr


def schedule(config: OptimSettings, total_steps: int) -> dict[str, np.ndarray]:
    """The arguments of `warmup_cosine` as arrays.

    A compiled step takes them as arguments: a run that is made longer, or goes on with another
    learning rate, keeps the program it has.
    """
    return {
        "peak": np.asarray(config.lr, np.float32),
        "warmup_steps": np.asarray(config.warmup_steps, np.int32),
        "total_steps": np.asarray(total_steps, np.int32),
        "end_fraction": np.asarray(config.end_lr_fraction, np.float32),
    }


def path_of(keys: Any) -> str:
    """A weight's path as text, "transformer_layers/attn/fc/kernel"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


def decays(path: str, ndim: int) -> bool:
    """Whether weight decay applies: matrices and kernels, never gains and biases.

    Gains of scanned blocks have a leading axis of layers and so two dimensions; their name says
    what they are.
    """
    return ndim >= 2 and path.rsplit("/", 1)[-1] not in ("scale", "bias")


def match_all(patterns: Sequence[str], paths: Sequence[str], key: str) -> None:
    """Each pattern must match some weight; a pattern that matches none is a mistake."""
    for pattern in patterns:
        try:
            found = any(re.search(pattern, path) for path in paths)
        except re.error as error:
            raise ConfigError(
                "not a regular expression",
                where=f"config.{key}",
                found=f"{pattern!r}: {error}",
                fix="escape brackets and dots, or give a plain part of the path",
            ) from error
        if not found:
            raise ConfigError(
                "no weight has such a path",
                where=f"config.{key}",
                found=pattern,
                fix=nearest(pattern, paths),
            )


def make(
    config: OptimSettings, total_steps: int, params: Any
) -> tuple[optax.GradientTransformation, Guard]:
    """The optimiser of a run.

    Args:
        config: the section `train.optim`.
        total_steps: updates of the whole run.
        params: the trained weights, real or abstract (only paths and shapes are looked at).

    Returns:
        A transformation whose updates are to be multiplied by the learning rate and subtracted, and
        the guard that clips, skips and knows the learning rate.
    """
    leaves = [(path_of(k), v) for k, v in jax.tree_util.tree_leaves_with_path(params)]
    paths = [p for p, _ in leaves]
    scales = [(str(p), float(s)) for p, s in config.lr_scale]
    match_all([p for p, _ in scales], paths, "train.optim.lr_scale")

    def mask(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda k, v: config.decay_all or decays(path_of(k), v.ndim), tree
        )

    if config.second_moment == "full":
        scale = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    elif config.second_moment == "factored":
        # Adafactor: rows and columns of the second moment; the first is kept in half precision.
        scale = optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.ema(config.b1, debias=False, accumulator_dtype=jnp.bfloat16),
        )
    else:
        raise ConfigError(
            "no such second moment",
            where="config.train.optim.second_moment",
            expected="full | factored",
            found=config.second_moment,
            fix="--config.train.optim.second_moment=full",
        )
    chain = [scale, optax.add_decayed_weights(config.weight_decay, mask=mask)]
    if scales:
        chain.append(_scale_by_path(scales))
    lr = warmup_cosine(**schedule(config, total_steps))
    return optax.chain(*chain), Guard(lr, config.clip_norm, config.skip_factor)


def _scale_by_path(scales: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiply updates by the factor of the first pattern their path matches."""

    def factor(path: str) -> float:
        return next((s for p, s in scales if re.search(p, path)), 1.0)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        scaled = jax.tree_util.tree_map_with_path(lambda k, u: u * factor(path_of(k)), updates)
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
