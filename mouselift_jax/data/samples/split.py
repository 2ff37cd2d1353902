"""Training and validation apart in time.

Neighbouring video frames show nearly the same animal, so a random split measures memory. Validation
is whole blocks of time, and the samples within a gap of a block belong to neither side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mouselift_jax.errors import ConfigError


def split_blocks(
    times: Sequence[float],
    *,
    val_fraction: float = 0.1,
    gap: float = 0.5,
    n_blocks: int | None = None,
) -> list[str]:
    """Divide samples by blocks of time.

    Args:
        times: when each sample was taken, ascending, seconds (or frames, if `gap` is in frames).
        val_fraction: share of the samples that validation gets, 0 <= f < 1.
        gap: samples nearer than this to a validation block are used by neither side.
        n_blocks: validation blocks; None chooses 1 for short recordings, up to 5 for long ones.
            One block lies at the end; several are spread evenly.

    Returns:
        `train`, `val` or `gap` for each sample.

    Raises:
        ConfigError: nothing would be left to train on.
    """
    if not 0.0 <= val_fraction < 1.0 or gap < 0:
        raise ConfigError(
            "the split needs 0 <= val_fraction < 1 and gap >= 0",
            found=f"val_fraction {val_fraction}, gap {gap}",
            fix="--config.split.val_fraction=0.1 --config.split.gap_s=0.5",
        )
    t = np.asarray(times, np.float64)
    n = len(t)
    if (np.diff(t) < 0).any():
        raise ConfigError("the split needs samples in order of time", fix="sort them by time first")
    n_val = int(round(val_fraction * n)) if n > 1 else 0
    if val_fraction > 0 and n > 1:
        n_val = min(max(n_val, 1), n - 1)
    if n_val == 0:
        return ["train"] * n
    if n_blocks is None:
        duration = t[-1] - t[0]
        n_blocks = int(np.clip(duration / max(60.0 * gap, 1e-9), 1, 5)) if gap > 0 else 1
    n_blocks = max(1, min(n_blocks, n_val))
    labels = np.full(n, "train", dtype="<U5")
    for start, stop in _blocks(n, n_val, n_blocks):
        labels[start:stop] = "val"
    in_val = labels == "val"
    for start, stop in _blocks(n, n_val, n_blocks):
        near = (t > t[start] - gap) & (t < t[stop - 1] + gap) & ~in_val
        labels[near] = "gap"
    if not (labels == "train").any():
        raise ConfigError(
            "the gap around the validation blocks leaves nothing to train on",
            expected=f"a recording much longer than the gap of {gap:g}",
            found=f"{n} samples over {t[-1] - t[0]:g}",
            fix="lower the gap (--config.split.gap_s) or val_fraction, or take more frames",
        )
    return labels.tolist()


def split_by_recording(recordings: Sequence[str], val_recordings: Sequence[str]) -> list[str]:
    """Divide samples by the recording they come from.

    Args:
        recordings: name of each sample's recording.
        val_recordings: the recordings that validation gets.

    Raises:
        ConfigError: no validation recording, one that no sample comes from, or none is left for
            training.
    """
    known, wanted = set(recordings), set(val_recordings)
    if not wanted or wanted - known or known == wanted:
        raise ConfigError(
            "the split by recording does not fit the recordings",
            expected=f"some, not all, of {sorted(known)}",
            found=sorted(wanted),
            fix="--config.split.val_recordings names folders of --config.recording",
        )
    return ["val" if name in wanted else "train" for name in recordings]


def _blocks(n: int, n_val: int, n_blocks: int) -> list[tuple[int, int]]:
    """Index ranges of the validation blocks: one at the end, several spread evenly."""
    if n_blocks == 1:
        return [(n - n_val, n)]
    sizes = [n_val // n_blocks + (i < n_val % n_blocks) for i in range(n_blocks)]
    centres = [(i + 0.5) * n / n_blocks for i in range(n_blocks)]
    starts = [int(round(c - s / 2)) for c, s in zip(centres, sizes, strict=True)]
    return [(a, a + s) for a, s in zip(starts, sizes, strict=True)]
