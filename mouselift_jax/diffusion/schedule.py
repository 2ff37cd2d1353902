"""Noise schedules and what follows from them: noising, velocity targets, loss weights.

Letters: `alpha_bar[t]` is the share of signal power left at step t (torch: `alphas_cumprod`).
All tables are made in float64 from betas rounded to float32, as the reference makes them, and kept
in float32: half-precision tables would double the noise of the first steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from mouselift_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """A schedule; the defaults are Stable Diffusion 2.1's."""

    n_steps: int = 1000
    kind: str = "scaled_linear"  # scaled_linear | squaredcos_cap_v2
    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps_offset: int = 1  # added to every sampling timestep


LATENT_NOISE = ScheduleConfig()
IMAGE_NOISE = ScheduleConfig(kind="squaredcos_cap_v2", steps_offset=0)


def alpha_bars(config: ScheduleConfig) -> Float[np.ndarray, " S"]:
    """The signal power left at each training step, float32.

    Raises:
        ConfigError: an unknown kind of schedule.
    """
    n = config.n_steps
    if config.kind == "scaled_linear":
        betas = _linspace(math.sqrt(config.beta_start), math.sqrt(config.beta_end), n) ** 2
    elif config.kind == "squaredcos_cap_v2":

        def power(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        values = [min(1 - power((i + 1) / n) / power(i / n), 0.999) for i in range(n)]
        betas = np.array(values, np.float32)
    else:
        raise ConfigError(
            "Unknown noise schedule",
            expected="scaled_linear or squaredcos_cap_v2",
            found=config.kind,
            fix="use the scheduler_config.json of Stable Diffusion 2.1 unCLIP",
        )
    return np.cumprod((1 - betas).astype(np.float64)).astype(np.float32)


def _linspace(start: float, stop: float, n: int) -> np.ndarray:
    """torch.linspace in float32, to the bit: from both ends, one rounding a value.

    One unit in the last place matters: 1 - alpha_bar is small at the first steps.
    """
    a, b = np.float32(start), np.float32(stop)
    step = np.float64(np.float32((b - a) / np.float32(n - 1)))
    i = np.arange(n)
    values = np.where(i < n // 2, np.float64(a) + step * i, np.float64(b) - step * (n - 1 - i))
    return values.astype(np.float32)


def config_from_source(source: Mapping[str, Any], where: str) -> ScheduleConfig:
    """A schedule from diffusers' `scheduler_config.json`.

    Raises:
        ConfigError: the file asks for something this sampler does not do; or does not say that
            samples are not clipped, for diffusers would then clip them.
    """
    problem = {
        "clip_sample must be there and false": source.get("clip_sample") is not False,
        "thresholding must be false": bool(source.get("thresholding", False)),
        "rescale_betas_zero_snr must be false": bool(source.get("rescale_betas_zero_snr", False)),
        "set_alpha_to_one must be false": bool(source.get("set_alpha_to_one", False)),
        "prediction_type must be v_prediction": source.get("prediction_type") != "v_prediction",
        "timestep_spacing must be leading": source.get("timestep_spacing", "leading") != "leading",
        "trained_betas must be null": source.get("trained_betas") is not None,
    }
    bad = [text for text, is_bad in problem.items() if is_bad]
    if bad:
        raise ConfigError(
            "The scheduler's settings do not fit this sampler",
            where=where,
            expected="; ".join(bad),
            fix="take scheduler/scheduler_config.json from the released pipeline",
        )
    return noise_config(source)


def noise_config(source: Mapping[str, Any]) -> ScheduleConfig:
    """The betas of a `scheduler_config.json`; nothing about sampling is checked."""
    default = ScheduleConfig()
    return ScheduleConfig(
        n_steps=int(source.get("num_train_timesteps", 1000)),
        kind=source.get("beta_schedule", "linear"),
        beta_start=float(source.get("beta_start", default.beta_start)),
        beta_end=float(source.get("beta_end", default.beta_end)),
        steps_offset=int(source.get("steps_offset", 0)),
    )


def leading_timesteps(steps: int, config: ScheduleConfig = LATENT_NOISE) -> np.ndarray:
    """Sampling timesteps with leading spacing, falling: 50 steps -> 981, 961, ..., 1.

    Raises:
        ConfigError: more steps than the schedule has, or fewer than one.
    """
    most = config.n_steps - config.steps_offset
    if not 1 <= steps <= most:
        raise ConfigError(
            "The number of sampling steps is out of range",
            where="steps",
            expected=f"1 to {most}",
            found=steps,
            fix="fewer sampling steps; 20 to 50 are usual",
        )
    stride = config.n_steps // steps
    times = np.arange(steps, dtype=np.int32)[::-1] * stride + config.steps_offset
    return times.astype(np.int32)


def _like(table: Any, t: Any, x: Any) -> Array:
    """table[t] with axes appended until it broadcasts against `x`."""
    values = jnp.asarray(table, jnp.float32)[t]
    return values.reshape(values.shape + (1,) * (jnp.ndim(x) - values.ndim))


def add_noise(
    x0: Float[Array, "*B"],
    noise: Float[Array, "*B"],
    t: Int[Array, "..."],
    alpha_bar: Shaped[Any, "..."],
) -> Float[Array, "*B"]:
    """Clean latents and unit noise mixed as step t has them; `t` indexes the leading axes."""
    a = _like(alpha_bar, t, x0)
    return jnp.sqrt(a) * x0 + jnp.sqrt(1 - a) * noise


def velocity(
    x0: Float[Array, "*B"],
    noise: Float[Array, "*B"],
    t: Int[Array, "..."],
    alpha_bar: Shaped[Any, "..."],
) -> Float[Array, "*B"]:
    """What the network is trained to predict."""
    a = _like(alpha_bar, t, x0)
    return jnp.sqrt(a) * noise - jnp.sqrt(1 - a) * x0


def snr(alpha_bar: Shaped[Any, "*B"]) -> Float[Array, "*B"]:
    """Signal power over noise power."""
    a = jnp.asarray(alpha_bar, jnp.float32)
    return a / (1 - a)


def min_snr_weights(
    alpha_bar: Shaped[Any, "*B"], gamma: float | None, form: str = "epsilon"
) -> Float[Array, "*B"]:
    """Weights of the loss at steps with the given signal power.

    Args:
        alpha_bar: signal power.
        gamma: cap of the signal-to-noise ratio; None or inf = all ones.
        form: "epsilon" divides the capped ratio by the ratio, as the released model was trained
            although it predicts v; "v" divides by the ratio plus one, as the paper has it for v.

    Raises:
        ConfigError: an unknown form.
    """
    if form not in ("epsilon", "v"):
        raise ConfigError(
            "Unknown min-SNR form",
            expected="epsilon or v",
            found=form,
            fix="--config.loss.snr_form=epsilon, as the released network was trained",
        )
    ratio = snr(alpha_bar)
    if gamma is None or gamma == math.inf:
        return jnp.ones_like(ratio)
    return jnp.minimum(ratio, gamma) / (ratio + (1 if form == "v" else 0))


def noise_embedding(
    embeds: Float[Array, "*B"], noise: Float[Array, "*B"], level: int, alpha_bar: Shaped[Any, "..."]
) -> Float[Array, "*B"]:
    """A standardised image embedding with noise of a level; level 0 is small, not nothing."""
    a = jnp.asarray(alpha_bar, jnp.float32)[level]
    return jnp.sqrt(a) * embeds + jnp.sqrt(1 - a) * noise
