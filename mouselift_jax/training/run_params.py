"""The weights of a run: from its best checkpoint, its newest, or that of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mouselift_jax.errors import CheckpointError, ConfigError
from mouselift_jax.training.checkpoint import Checkpoints
from mouselift_jax.training.state import merge

BEST, NEWEST = "best", "newest"  # which checkpoint of a run; else the number of a step


class RunParams(NamedTuple):
    """Weights of a run.

    Attributes:
        params: NumPy arrays in nested dicts; trained and frozen weights together, the moving
            average of the trained ones if the run keeps one.
        step: of the checkpoint.
        averaged: whether they are the moving average.
        why: which of the run's checkpoints this is, in words.
    """

    params: dict[str, Any]
    step: int
    averaged: bool
    why: str


def load_run_params(directory: str | Path, which: str | int = BEST) -> RunParams:
    """The weights of a run.

    Args:
        directory: its folder of checkpoints.
        which: "best": by the metric that the run kept its best checkpoint by; the newest sound one
            where it kept none. "newest": the newest sound one. A number: the checkpoint of that
            step and no other.

    Raises:
        ConfigError: `which` is none of them.
        CheckpointError: there is none, or none is sound.
    """
    with Checkpoints(directory, keep=2**30, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        for candidate, why in _candidates(directory, which, steps, checkpoints.ranked()):
            abstract = checkpoints.abstract(candidate, ("params", "frozen", "ema"))
            if abstract is None:
                continue
            if "ema" in abstract:
                del abstract["params"]
            found = checkpoints.sound(candidate, abstract)
            if found is None:
                continue
            items = jax.tree.map(np.asarray, found)
            weights = items.get("ema", items.get("params"))
            params = merge(weights, items.get("frozen", {}))
            return RunParams(params, candidate, "ema" in items, why)
    raise CheckpointError(
        "no sound checkpoint",
        where=directory,
        found=f"steps {steps}" if steps else "none at all",
        fix="repeat the command of that run: it resumes",
    )


def _candidates(
    directory: str | Path,
    which: str | int,
    steps: list[int],
    ranked: list[tuple[int, str, float]],
) -> list[tuple[int, str]]:
    """(step, why) of the checkpoints to try, in this order."""
    newest = [(step, "the newest") for step in steps[::-1]]
    if which == NEWEST:
        return newest
    if which == BEST:
        best = [
            (step, f"the best by {name}, {value:.4g}; the newest is {steps[-1]}")
            for step, name, value in ranked[:1]
        ]
        return best + [row for row in newest if row[0] not in [step for step, _ in best]]
    if not str(which).isdigit():
        raise ConfigError(
            "no such checkpoint",
            expected="best | newest | the number of a step",
            found=which,
            fix=f"one of the steps {steps}, or best",
        )
    if int(which) not in steps:
        raise CheckpointError(
            f"there is no checkpoint of step {which}",
            where=directory,
            expected=f"one of the steps {steps}",
            fix="--config.train.keep says how many a run keeps; best and newest are always there",
        )
    return [(int(which), "as asked for")]
