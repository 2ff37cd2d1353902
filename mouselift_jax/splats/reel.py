"""A film as it is played: frames in the order of time, each read when it is asked for.

reel = Film.open("runs/fit").reel()          # splats/film.py, a run's folder
reel = load_film_file("mouse.film")          # splats/film_file.py, one file
reel.gaussians(3), tracks(reel)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.splats.gaussians import Gaussians

TRACKS = 50  # points that are followed in pictures and files
SOLID = 0.5  # opacity of Gaussians that are worth following


@dataclasses.dataclass(frozen=True)
class Reel:
    """Frames with identity: N and the order of the Gaussians stay the same within a segment.

    Attributes:
        frames: numbers in the recording [T], rising.
        segment: number of the set that each shows [T]; nothing is joined across segments.
        times: seconds since the recording's start [T], NaN where unknown.
        gaussians: i -> the Gaussians [N] of the i-th frame, in the film's world.
        seen: segment -> by how many cameras each Gaussian is seen [N], None where unknown.
        scene_scale: film units per millimetre, None where unknown.
        recording_from_film: to the recording's world, None where unknown.
    """

    frames: np.ndarray
    segment: np.ndarray
    times: np.ndarray
    gaussians: Callable[[int], Gaussians]
    seen: Callable[[int], np.ndarray | None] = lambda segment: None
    scene_scale: float | None = None
    recording_from_film: Similarity | None = None

    def __len__(self) -> int:
        return len(self.frames)

    def label(self, i: int) -> str:
        """What to call the i-th frame."""
        time = f", {self.times[i]:.2f} s" if np.isfinite(self.times[i]) else ""
        return f"frame {self.frames[i]}{time}"

    @property
    def mm(self) -> Similarity | None:
        """From the film's world to the recording's in mm, whatever its unit; None where unknown."""
        world = self.recording_from_film
        if world is None or not self.scene_scale:
            return None
        unit = 1.0 / (self.scene_scale * float(world.scale))  # mm in a unit of the recording
        return Similarity(unit, np.eye(3), np.zeros(3)).compose(world)

    def every(self, step: int) -> Reel:
        """Every step-th frame."""
        return self.only(np.arange(len(self)) % step == 0)

    def only(self, chosen: np.ndarray) -> Reel:
        """The frames that a mask [T] chooses."""
        kept = np.flatnonzero(chosen)
        return dataclasses.replace(
            self, frames=self.frames[kept], segment=self.segment[kept], times=self.times[kept],
            gaussians=lambda i: self.gaussians(int(kept[i])),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tracks:
    """Paths of some Gaussians of one segment.

    Attributes:
        segment: whose.
        at: which frames of the reel [K], rising.
        index: numbers of the Gaussians [P].
        paths: where they are [K,P,3], in the film's world.
    """

    segment: int
    at: np.ndarray
    index: np.ndarray
    paths: np.ndarray


def tracks(reel: Reel, count: int = TRACKS) -> list[Tracks]:
    """Paths of up to `count` Gaussians of every segment, spread evenly over the skin."""
    out = []
    for segment in np.unique(reel.segment):
        at, index, paths = np.flatnonzero(reel.segment == segment), None, []
        for i in at:
            gaussians = reel.gaussians(int(i))
            if index is None:
                index = spread(gaussians, count)
            paths.append(np.asarray(gaussians.means)[index])
        out.append(Tracks(int(segment), at, index, np.stack(paths)))
    return out


def spread(gaussians: Gaussians, count: int) -> np.ndarray:
    """Numbers of up to `count` Gaussians, each the farthest from those before it; opaque ones."""
    solid = np.flatnonzero(np.asarray(gaussians.activate().opacities) >= SOLID)
    if not len(solid):
        solid = np.arange(gaussians.n_gaussians)
    means = np.asarray(gaussians.means, np.float64)[solid]
    chosen = [int(np.argmin(((means - means.mean(0)) ** 2).sum(-1)))]
    away = np.full(len(means), np.inf)
    while len(chosen) < min(count, len(means)):
        away = np.minimum(away, ((means - means[chosen[-1]]) ** 2).sum(-1))
        chosen.append(int(away.argmax()))
    return np.sort(solid[chosen])
