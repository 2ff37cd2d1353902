"""Which views of a sample a network sees, and in which order.

Inputs come first, then the views that only serve as targets.
"""

from __future__ import annotations

import numpy as np

from mouselift_jax.errors import ConfigError, one_of

POLICIES = ("all", "first", "random", "overlap", "overlap_original")
MAX_OVERLAP_ANGLE_DEG = 60.0


def choose_views(
    policy: str,
    centers: np.ndarray,
    n_views: int | None,
    n_inputs: int | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """Indices of the views to take, inputs first.

    Args:
        policy: `all` (every view, in order), `first` (the first n_views), `random` (n_views
            distinct ones), `overlap` (inputs at random, targets within 60 degrees of an input as
            seen from the origin), `overlap_original` (the original's rule: it compares dot
            products of positions that are not unit vectors, so at radius 2.7 "60 degrees" lets 86
            pass).
        centers: camera centres [V,3] in the sample's frame, the subject at the origin.
        n_views: how many to take; None takes all.
        n_inputs: how many of them are inputs; for the overlap rules. None makes all inputs.
        rng: source of the choice.

    Raises:
        ConfigError: unknown policy, or fewer views than wanted.
    """
    n = len(centers)
    one_of(policy, POLICIES, "no such view policy")
    n_views = n if n_views is None or policy == "all" else n_views
    if n_views > n:
        raise ConfigError(
            "a sample has fewer views than the loader is to take",
            expected=f"at least {n_views}",
            found=n,
            fix="lower n_views, or leave fewer cameras out",
        )
    if policy in ("all", "first"):
        return np.arange(n_views)
    n_inputs = n_views if n_inputs is None else min(n_inputs, n_views)
    if policy == "random":
        chosen = rng.permutation(n)[:n_views]
    else:
        chosen = _overlapping(policy, centers, n_views, n_inputs, rng)
    # The published recipe sorts inputs and targets each among themselves.
    return np.concatenate([np.sort(chosen[:n_inputs]), np.sort(chosen[n_inputs:])])


def _overlapping(
    policy: str, centers: np.ndarray, n_views: int, n_inputs: int, rng: np.random.Generator
) -> np.ndarray:
    original = policy == "overlap_original"
    p = centers if original else centers / np.linalg.norm(centers, axis=-1, keepdims=True)
    near = p @ p.T >= np.cos(np.radians(MAX_OVERLAP_ANGLE_DEG)) - 1e-9
    # A draw without enough neighbours is drawn again; where no draw has them, the rig is too wide.
    for _ in range(100):
        order = rng.permutation(len(centers))
        inputs = order[:n_inputs]
        candidates = [i for i in order[n_inputs:] if near[i, inputs].any()]
        if len(candidates) >= n_views - n_inputs:
            return np.concatenate([inputs, candidates[: n_views - n_inputs]]).astype(int)
    raise ConfigError(
        "no choice of views satisfies the overlap rule",
        expected=f"{n_views - n_inputs} targets near an input ({MAX_OVERLAP_ANGLE_DEG:g} degrees)",
        fix="policy=random, or fewer targets",
    )
