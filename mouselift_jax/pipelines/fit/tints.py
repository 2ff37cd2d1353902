"""What the colours of one camera differ from the others': three gains and three offsets. NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROUNDS = 25
CALM = 1e-2  # variance of colours that says as much of a gain as the wish that it be 1
STRAY = 0.05  # difference of colour from which a point counts ever less: parallax, highlights
FEWEST = 50  # points that two cameras share, below which they are taken as they are


def tints(colours: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gains and offsets [V,3] that make cameras agree on the points that several of them see.

    A camera shows a point of colour c as gain * c + offset. Over the cameras the mean gain is 1 and
    the mean offset 0. Alternating least squares, with little regard for points on which cameras
    differ for other reasons.

    Args:
        colours: of the points in each picture [V,M,3].
        seen: bool [V,M], which camera sees which point.
    """
    gain, offset = np.ones((len(colours), 3)), np.zeros((len(colours), 3))
    shared = seen.sum(0) > 1
    colours, seen = colours[:, shared].astype(np.float64), seen[:, shared]
    weight = seen[..., None].astype(np.float64)
    counts = seen.sum(1)
    if (counts < FEWEST).any():
        return gain.astype(np.float32), offset.astype(np.float32)
    for _ in range(ROUNDS):
        even = (colours - offset[:, None]) / gain[:, None]
        agreed = (even * weight).sum(0) / np.maximum(weight.sum(0), 1e-9)
        off = np.square(even - agreed).sum(-1, keepdims=True)
        weight = seen[..., None] / (1 + off / STRAY**2)
        total = weight.sum(1)
        mean, ours = ((x * weight).sum(1) / total for x in (agreed[None], colours))
        a, b = agreed - mean[:, None], colours - ours[:, None]
        spread, common = ((a * x * weight).sum(1) / total for x in (a, b))
        gain = (common + CALM) / (spread + CALM)
        gain /= gain.mean(0)
        offset = ours - gain * mean
        offset -= offset.mean(0)
    return gain.astype(np.float32), offset.astype(np.float32)


def untinted(rgb: np.ndarray, mask: np.ndarray, gain: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Pictures [V,S,S,3] (times mask [V,S,S]) as cameras without gain and offset take them."""
    return (rgb - mask[..., None] * offset[:, None, None]) / gain[:, None, None]


def tints_of(
    gains: np.ndarray, offsets: np.ndarray, known: Sequence[int], asked: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Gains and offsets [len(asked),3] of cameras by their numbers.

    Args:
        gains: of the cameras `known` [V,3].
        offsets: [V,3].
        known: numbers of cameras.
        asked: numbers of cameras; one that is not known shows colours as they are: 1 and 0.
    """
    at = {int(c): i for i, c in enumerate(known)}
    rows = [at.get(int(c), len(known)) for c in asked]
    ones, zeros = np.ones((1, 3), np.float32), np.zeros((1, 3), np.float32)
    return np.concatenate([gains, ones])[rows], np.concatenate([offsets, zeros])[rows]
