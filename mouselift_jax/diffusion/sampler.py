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


class Steps(NamedTuple):
    """What each sampling step needs, falling in time; leaves [S]."""

    t: Int[Any, " S"]
    alpha_bar: Float[Any, " S"]
    alpha_bar_next: Float[Any, " S"]  # of the step after; the last one's is alpha_bar[0], not 1


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
