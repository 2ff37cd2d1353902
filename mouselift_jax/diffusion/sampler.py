"""DDIM with v-prediction, eta and classifier-free guidance, over any `predict(x, t)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from mouselift_jax.diffusion.schedule import (
    LATENT_NOISE,
    ScheduleConfig,
    alpha_bars,
    leading_timesteps,
)
from mouselift_jax.errors import ConfigError, raise_all


class Steps(NamedTuple):
    """What each sampling step needs, falling in time; leaves [S]."""

    t: Int[Any, " S"]
    alpha_bar: Float[Any, " S"]
    alpha_bar_next: Float[Any, " S"]  # of the step after; the last one's is alpha_bar[0], not 1


MAX_GUIDANCE = (
    100.0  # usual are 1 to 10; far beyond, rounding of the prediction is all that is left
)


def check_sampling(
    steps: int,
    guidance: float,
    eta: float,
    config: ScheduleConfig = LATENT_NOISE,
    *,
    section: str = "",
) -> None:
    """Whether the numbers of a sampling run make sense.

    Args:
        steps: of the sampler.
        guidance: scale of classifier-free guidance.
        eta: see `ddim_step`.
        config: the schedule.
        section: config section that holds them, to name the keys ("config.generate.").

    Raises:
        ConfigError: all of them that do not, at once.
    """
    key = "--" + section if section else ""
    most = config.n_steps - config.steps_offset
    asked = (
        ("steps", steps, 1, most, "20 to 50 are usual", "20"),
        ("guidance", guidance, 0, MAX_GUIDANCE, "1 = none, 3 is usual", "3.0"),
        ("eta", eta, 0, 1, "0 = no fresh noise, 1 = as ancestral sampling", "1.0"),
    )
    problems = [
        ConfigError(
            f"the sampler's {name} is out of range",
            where=f"{section}{name}",
            expected=f"{low} to {high:g} ({usual})",
            found=value,
            fix=f"{key}{name}={good}",
        )
        for name, value, low, high, usual, good in asked
        if not low <= value <= high  # what is not a number is outside too
    ]
    raise_all("the sampler cannot run with these numbers", problems)


def sampling_steps(steps: int, config: ScheduleConfig = LATENT_NOISE) -> Steps:
    """The timesteps of a sampling run with their signal powers."""
    table = alpha_bars(config)
    t = leading_timesteps(steps, config)
    after = t - config.n_steps // steps
    return Steps(t, table[t], np.where(after >= 0, table[np.maximum(after, 0)], table[0]))


def ddim_step(
    x: Float[Array, "*B"],
    v: Float[Array, "*B"],
    z: Float[Array, "*B"],
    alpha_bar: Shaped[Any, ""],
    alpha_bar_next: Shaped[Any, ""],
    eta: Any,
) -> Float[Array, "*B"]:
    """One step: with eta 0 deterministic, with eta 1 as noisy as ancestral sampling.

    Args:
        x: latents now.
        v: the prediction.
        z: unit noise; used at every step, the last one included, when eta > 0.
        alpha_bar: signal power now.
        alpha_bar_next: signal power after the step.
        eta: share of the noise that is renewed.
    """
    a, b = jnp.float32(alpha_bar), jnp.float32(alpha_bar_next)
    x0 = jnp.sqrt(a) * x - jnp.sqrt(1 - a) * v
    noise = jnp.sqrt(a) * v + jnp.sqrt(1 - a) * x
    variance = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
    return jnp.sqrt(b) * x0 + jnp.sqrt(1 - b - variance) * noise + jnp.sqrt(variance) * z


def guide(
    unconditional: Float[Array, "*B"], conditional: Float[Array, "*B"], scale: Any
) -> Float[Array, "*B"]:
    """Classifier-free guidance: scale 1 is the conditional prediction."""
    return unconditional + scale * (conditional - unconditional)


def ddim(
    predict: Callable[[Array, Array], Array],
    x_T: Float[Array, "*B"],
    z: Float[Array, "S *B"],
    steps: Steps,
    eta: Any = 1.0,
    *,
    trace: bool = False,
) -> Any:
    """Sample latents; one compiled step whatever the number of steps.

    Args:
        predict: (latents, timestep) -> v.
        x_T: unit noise to start from.
        z: unit noise of each step.
        steps: of `sampling_steps`.
        eta: see `ddim_step`.
        trace: return the latents after every step instead, [S, *B].
    """

    def body(x: Array, inputs: tuple) -> tuple[Array, Any]:
        step, noise = inputs
        v = predict(x, step.t)
        x = ddim_step(x, v, noise, step.alpha_bar, step.alpha_bar_next, eta)
        return x, (x if trace else None)

    steps = jax.tree.map(jnp.asarray, steps)
    x, path = jax.lax.scan(body, x_T.astype(jnp.float32), (steps, z))
    return path if trace else x
