"""Which samples of a set a stage takes: a split, a range of recording frames."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.errors import ConfigError, LayoutError, one_of
from mouselift_jax.weights.pretrained import read_config


def select(sample_set: SampleSet, split: str, frames: str) -> list[str]:
    """Ids of the samples of `split` whose frame is in the range `frames` ("" = all)."""
    one_of(split, ("all", "train", "val"), "no such split")
    ids = list(sample_set.ids(split))
    if not ids:
        raise LayoutError(
            f"the split {split!r} is empty",
            where=sample_set.path,
            expected="at least one sample",
            found=f"{len(sample_set)} samples in all",
            fix="--config.split=all takes every sample, those the network was trained on too",
        )
    if frames:
        numbers = dict(zip(ids, sample_set.frames(split), strict=True))
        wanted = frame_range(frames, max(numbers.values(), default=0) + 1)
        ids = [i for i in ids if numbers[i] in wanted]
        if not ids:
            have = sorted(n for n in numbers.values() if n >= 0)
            raise ConfigError(
                "no sample is of these frames",
                where=f"config.frames={frames}",
                expected="frame numbers of the recording, as the samples' manifest.json has them",
                found=f"{len(have)} samples of frames {have[0]} to {have[-1]}"
                if have
                else "a set that does not say which frames its samples are",
                fix="another range, or --config.limit=N",
            )
    return ids


def stored_sides(sample_set: SampleSet, sample_id: str) -> tuple[int, ...]:
    """Width and height of a sample's pictures, () where nothing says them."""
    frames = (sample_set.camera_file(sample_id) or {}).get("frames") or [{}]
    return tuple(int(frames[0][k]) for k in ("w", "h") if k in frames[0])


def check_sides(gslrm: str, *sides: int) -> None:
    """Stop before any weights are read when the network cannot take pictures of these sides.

    Raises:
        ConfigError: the network's patches do not tile them.
    """
    patch = int(read_config(gslrm, "gslrm")["patch_size"])
    if all(side > 0 and side % patch == 0 for side in sides):
        return
    raise ConfigError(
        "the network cannot take pictures of this size",
        where=f"config.size, for {gslrm}",
        expected=f"a multiple of {patch} pixels, the side of its patches",
        found=" x ".join(map(str, sides)),
        fix=f"--config.size={max(1, round(max(sides) / patch)) * patch}",
    )


def frame_range(text: str, end: int) -> range:
    """The frames of "a:b:step"; a part left out means from 0, to the end, every frame."""
    parts = str(text).split(":")
    if len(parts) > 3 or any(p and not p.isdigit() for p in parts) or not any(parts):
        raise ConfigError(
            "not a range of frames",
            where=f"config.frames={text}",
            expected="a, a:b or a:b:step",
            fix="--config.frames=0:100:10 takes every tenth of the first hundred",
        )
    if len(parts) == 1:
        return range(int(parts[0]), int(parts[0]) + 1)
    a, b, step = (*(int(p) if p else None for p in parts), None)[:3]
    if step == 0:
        raise ConfigError(
            "the step of a range is 0", where=f"config.frames={text}", fix="give 1 or more"
        )
    return range(a or 0, end if b is None else b, step or 1)


def frame_times(sample_set: SampleSet) -> dict[str, tuple[int, float]]:
    """(frame number, seconds since the recording's start) of each sample; NaN where unknown."""
    rows = {row["id"]: row for row in sample_set.manifest.get("samples", ())}
    return {
        name: (int(rows.get(name, {}).get("frame", -1)), rows.get(name, {}).get("time_s", math.nan))
        for name in sample_set.ids("all")
    }


MIN_BLOCKS = 5  # fewer blocks make no interval


def time_block(sample_set: SampleSet, ids: Sequence[str], seconds: float) -> tuple[int, bool]:
    """How many consecutive samples make `seconds`, at least 1; 1 where times are unknown.

    Neighbouring frames resemble one another, so a bootstrap draws them together.

    Returns:
        The number, and whether it had to be made smaller: fewer than MIN_BLOCKS would be left.
    """
    known = frame_times(sample_set)
    times = np.sort([known[i][1] for i in ids])
    steps = np.diff(times[np.isfinite(times)])
    steps = steps[steps > 0]
    block = max(1, round(seconds / float(np.median(steps)))) if len(steps) else 1
    if len(ids) < MIN_BLOCKS * block:
        return max(1, len(ids) // MIN_BLOCKS), True
    return block, False
