"""Trainings that would never end on this machine are told before their first step."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp

from mouselift_jax.errors import ConfigError
from mouselift_jax.runs.progress import duration

LONGEST_STEP_S, LONGEST_RUN_S = 600.0, 7 * 86400.0
SMALL = 1e12  # operations of a step that no processor needs long for


@functools.cache
def speed() -> float:
    """Operations a second of this processor, by its best product of float32 matrices.

    XLA multiplies bfloat16 on a processor in float32 too.
    """
    n = 1024
    product = jax.jit(jnp.matmul)
    a = jnp.ones((n, n), jnp.float32)
    product(a, a).block_until_ready()
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2.0 * n**3 / best


def too_slow(stage: str, flops: float, steps: int) -> ConfigError | None:
    """Why a training is hopeless here, None where it is not; only processors are judged.

    The estimate takes all of a step for one large product of matrices, the fastest there is.

    Args:
        stage: its name.
        flops: operations of a step.
        steps: how many.
    """
    if flops < SMALL or jax.devices()[0].platform != "cpu" or jax.process_count() > 1:
        return None
    step_s = flops / speed()
    if step_s <= LONGEST_STEP_S and steps * step_s <= LONGEST_RUN_S:
        return None
    return ConfigError(
        "this training is too large for a processor without GPU or TPU",
        where=f"--config=configs/{stage}.py",
        expected=f"at most {duration(LONGEST_STEP_S)} a step and {duration(LONGEST_RUN_S)} in all",
        found=f"{flops:.1e} operations a step: some {duration(step_s)} each on this machine, "
        f"{duration(steps * step_s)} for {steps}",
        fix=f"--config=configs/{stage}.py:tiny takes minutes here, and configs/fit.py needs "
        "no training at all; or take a machine with a GPU; --anyway goes on nevertheless",
    )
