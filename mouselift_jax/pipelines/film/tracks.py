"""Points of the skin followed through a film, and how far from the truth they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy.spatial import cKDTree

from mouselift_jax.splats.gaussians import quat_to_rotation

NEAREST = 4  # Gaussians that carry a point
LOST = 10.0  # mm: farther from the truth, a point is on another part of the body


@dataclasses.dataclass(frozen=True)
class Anchors:
    """Points, each tied to the Gaussians nearest to it in one frame.

    Attributes:
        index: numbers of the Gaussians [S,NEAREST].
        offsets: of the point, in each Gaussian's axes [S,NEAREST,3].
    """

    index: np.ndarray
    offsets: np.ndarray

    @classmethod
    def tied(cls, points: np.ndarray, means: np.ndarray, quats: np.ndarray) -> Anchors:
        """Tie points [S,3] to Gaussians with means [N,3] and quats [N,4] wxyz of one frame."""
        index = cKDTree(means).query(points, min(NEAREST, len(means)))[1].reshape(len(points), -1)
        away = points[:, None] - means[index]
        return cls(index, np.einsum("skji,skj->ski", quat_to_rotation(quats[index]), away))

    def at(self, means: np.ndarray, quats: np.ndarray) -> np.ndarray:
        """Where the points are [S,3] in a frame whose Gaussians are these, in the same order."""
        turned = np.einsum("skij,skj->ski", quat_to_rotation(quats[self.index]), self.offsets)
        return (means[self.index] + turned).mean(1)


Walk = Callable[[], Iterable[tuple[int, np.ndarray, np.ndarray]]]


def paths(
    points: np.ndarray, starts: np.ndarray, walk: Walk, identity: np.ndarray
) -> np.ndarray:  # fmt: skip
    """Follow every point from the frame where it is first known; NaN where identity ended.

    Args:
        points: where they are [T,S,3]; only frame `starts[s]` of point s is looked at.
        starts: [S], -1 = never known.
        walk: goes through the frames, in any order, twice: number among T, means [N,3] and quats
            [N,4] of its Gaussians. N and their order are the same while the identity is.
        identity: number of the set each frame's Gaussians belong to [T].
    """
    out = np.full(points.shape, np.nan)
    tied = {}
    for t, means, quats in walk():
        mine = np.flatnonzero(starts == t)
        if len(mine):
            tied[t] = mine, Anchors.tied(points[t, mine], means, quats)
    for t, means, quats in walk():
        for first, (mine, anchors) in tied.items():
            if identity[first] == identity[t]:
                out[t, mine] = anchors.at(means, quats)
    return out


def matched(truth: np.ndarray, starts: np.ndarray, clouds: Sequence[np.ndarray]) -> np.ndarray:
    """Follow points through clouds [N_t,3] that know nothing of each other, nearest to nearest.

    The clouds' centres are laid upon each other before a point looks for its nearest.
    """
    out = np.full(truth.shape, np.nan)
    trees = [cKDTree(c) for c in clouds]
    for first in np.unique(starts[starts >= 0]):
        mine = np.flatnonzero(starts == first)
        begin = trees[first].query(truth[first, mine])[1]
        for way in (range(first, len(clouds)), range(first, -1, -1)):
            at = begin
            last = first
            for t in way:
                shift = clouds[t].mean(0) - clouds[last].mean(0)
                at = trees[t].query(clouds[last][at] + shift)[1] if t != last else at
                out[t, mine], last = clouds[t][at], t
    return out


def figures(found: np.ndarray, truth: np.ndarray, starts: np.ndarray) -> dict[str, float]:
    """Tracking error over all points and frames but those where a point was tied.

    Args:
        found: [T,S,3], NaN where a point has no identity; the unit of `truth`, mm.
        truth: [T,S,3].
        starts: [S], see `paths`.

    Returns:
        median_mm and p95_mm of all that have an identity, lost: share without one or farther
        off than `LOST`.
    """
    asked = (starts >= 0)[None] & (np.arange(len(truth))[:, None] != starts[None])
    error = np.linalg.norm(found - truth, axis=-1)[asked]
    known = error[np.isfinite(error)]
    if not len(known):
        return {"median_mm": float("nan"), "p95_mm": float("nan"), "lost": 1.0}
    lost = 1 - (known <= LOST).sum() / len(error)
    median, p95 = np.quantile(known, [0.5, 0.95])
    return {"median_mm": float(median), "p95_mm": float(p95), "lost": float(lost)}


def first_seen(seen: np.ndarray, cameras: int = 2) -> np.ndarray:
    """The first frame [S] in which so many cameras see a point; -1 = none. seen: [T,S,V]."""
    enough = seen.sum(-1) >= cameras
    return np.where(enough.any(0), enough.argmax(0), -1)
