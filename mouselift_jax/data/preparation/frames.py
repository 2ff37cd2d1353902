"""Which frames of a recording become samples."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mouselift_jax.errors import ConfigError


def choose_frames(
    n_frames: int,
    *,
    ranges: str = "",
    every: int = 1,
    n_samples: int = 0,
    exclude: Sequence[int] = (),
    margin: int = 0,
) -> np.ndarray:
    """Frame numbers to prepare, ascending.

    Args:
        n_frames: frames of the recording.
        ranges: `a:b`, `a:b:step`, or single numbers, joined by commas, as in Python (b is not
            included, negative numbers count from the end); empty means all.
        every: take every n-th of those.
        n_samples: spread that many evenly over those; 0 takes all.
        exclude: frames left out (cuts in the recording...).
        margin: frames this near an excluded one are left out too.

    Raises:
        ConfigError: a range cannot be read or lies outside, or nothing is left.
    """
    frames = np.arange(n_frames) if not ranges.strip() else _parse(ranges, n_frames)
    if every < 1 or n_samples < 0:
        raise ConfigError(
            "every >= 1 and n_samples >= 0",
            found=f"every {every}, n_samples {n_samples}",
            fix="--config.prepare.every=1 takes every frame",
        )
    frames = frames[::every]
    if len(exclude):
        distance = np.abs(frames[:, None] - np.asarray(exclude)[None]).min(1)
        frames = frames[distance > margin]
    if n_samples and len(frames) > n_samples:
        frames = frames[(np.arange(n_samples) * len(frames)) // n_samples]
    if not len(frames):
        raise ConfigError(
            "no frames are left to prepare",
            where="config.prepare.frames",
            found=f"{ranges!r} of {n_frames} frames",
            fix="give a range inside the recording, e.g. --config.prepare.frames=0:1000",
        )
    return frames


def _parse(ranges: str, n_frames: int) -> np.ndarray:
    chosen: set[int] = set()
    for part in filter(None, (p.strip() for p in ranges.split(","))):
        if not re.fullmatch(r"(-?\d+)?(:(-?\d+)?){0,2}", part):
            raise ConfigError(
                "a frame range cannot be read",
                where="config.prepare.frames",
                expected="a:b, a:b:step or a number, joined by commas",
                found=part,
                fix="--config.prepare.frames=0:1000:5",
            )
        numbers = [int(x) if x else None for x in part.split(":")]
        if len(numbers) == 1:
            inside = -n_frames <= numbers[0] < n_frames
            chosen |= {numbers[0] % n_frames} if inside else set()
        elif len(numbers) == 3 and numbers[2] is not None and numbers[2] < 1:
            raise ConfigError(
                "a frame step must be positive",
                where="config.prepare.frames",
                found=part,
                fix="a:b:step with step 1 or more",
            )
        else:
            found = range(n_frames)[slice(*numbers)]
            start, stop = numbers[0] or 0, numbers[1] or 0
            inside = bool(found) and start >= -n_frames and stop <= n_frames
            chosen |= set(found)
        if not inside:
            raise ConfigError(
                "a frame range leaves the recording, or is empty",
                where="config.prepare.frames",
                expected=f"frames 0 to {n_frames - 1}",
                found=part,
                fix=f"--config.prepare.frames=0:{n_frames}",
            )
    return np.array(sorted(chosen), dtype=int)
