"""One animal of several: whose bodies in the pictures are one animal's, and which animal is taken.

Every mask falls into bodies. A body in one view and one in another are the same animal's where the
point that their middles triangulate to lies on a body in most other views, too. Where two animals
are one body in a view (they touch, or one stands before the other) that view cannot be cut out:
the sample is left out.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np

from mouselift_jax.data.masks import THRESHOLD
from mouselift_jax.errors import ConfigError, one_of
from mouselift_jax.geometry.camera import Camera, stack_cameras
from mouselift_jax.geometry.triangulate import triangulate

ANIMALS = ("", "largest", "followed")
_LEAST_VIEWS = 3  # two views fit the bodies of different animals as well as those of one
_BODY = 0.15  # of a view's largest body; what is smaller is a piece of one, as a thin tail's end
_REACH = 1.3  # radii of a body from its middle within which an animal's middle is seen
_OWN = 2  # views in which an animal has a body that no animal found before it has
_SURE = 0.35  # of the way to the next animal: one that came farther may be that other one
_GROWN = 1.1  # times its last size: with one animal less in sight, it is two that touch


@dataclasses.dataclass(frozen=True)
class Bodies:
    """The bodies in one view's mask.

    Attributes:
        labels: number of the body at each pixel [H,W], from 1 on; 0 = none.
        middles: centroids [n,2], pixel centres at +0.5.
        areas: pixels [n].
    """

    labels: np.ndarray
    middles: np.ndarray
    areas: np.ndarray

    def only(self, alpha: np.ndarray, body: int) -> np.ndarray:
        """The mask [H,W] uint8 of one body (index; -1 = none), its soft edge kept."""
        if body < 0:
            return np.zeros_like(alpha)
        own = cv2.dilate((self.labels == body + 1).astype(np.uint8), np.ones((3, 3), np.uint8))
        return np.where(own > 0, alpha, 0).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Animal:
    """One animal at one instant.

    Attributes:
        bodies: index of its body in each view [V], -1 where it has none.
        centre: its middle [3], the recording's frame and unit.
        size: side of a square that is as large as its silhouettes, the recording's unit.
    """

    bodies: np.ndarray
    centre: np.ndarray
    size: float


def find_bodies(alpha: np.ndarray) -> Bodies:
    """The bodies of a mask [H,W] uint8; small pieces count to the body that is nearest."""
    inside = (alpha > THRESHOLD).astype(np.uint8)
    n, parts, stats, middles = cv2.connectedComponentsWithStats(inside, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.float64)
    areas[0] = 0.0
    whole = np.flatnonzero(areas >= max(_BODY * areas.max(), 1.0))
    pieces = np.setdiff1d(np.arange(1, n), whole)
    number = np.zeros(n, np.int32)
    number[whole] = np.arange(1, len(whole) + 1)
    if len(pieces):
        low = stats[whole, :2].astype(np.float64)
        high = low + stats[whole, 2:4]
        at = middles[pieces, None]
        apart = np.maximum(np.maximum(low - at, at - high), 0.0)
        number[pieces] = number[whole[np.linalg.norm(apart, axis=2).argmin(1)]]
    return Bodies(number[parts], middles[whole] + 0.5, areas[whole])


def find_animals(bodies: Sequence[Bodies], cameras: Sequence[Camera]) -> list[Animal]:
    """The animals of one instant, the best seen first.

    Args:
        bodies: of each view.
        cameras: of these views.
    """
    stacked = stack_cameras([dataclasses.replace(c, width=1, height=1) for c in cameras])
    pairs = [
        (a, i, b, j)
        for a, b in itertools.combinations(range(len(bodies)), 2)
        for i in range(len(bodies[a].areas))
        for j in range(len(bodies[b].areas))
    ]
    rows = np.full((len(pairs), len(bodies)), -1)
    for m, (a, i, b, j) in enumerate(pairs):
        rows[m, [a, b]] = i, j
    for _ in range(2):  # where two views put it, then where all views that see it there do
        if not len(rows):
            return []
        rows = np.unique(_seen_at(_middles(rows, bodies, stacked), bodies, stacked), axis=0)
        rows = rows[(rows >= 0).sum(1) >= max(_LEAST_VIEWS, len(bodies) // 2 + 1)]
    if not len(rows):
        return []
    centres = _middles(rows, bodies, stacked)
    views = (rows >= 0).sum(1)
    miss = _distances(centres, rows, bodies, stacked)
    found: list[Animal] = []
    for m in np.lexsort((miss, -views)):
        taken = np.zeros(len(bodies), bool)
        for animal in found:
            taken |= rows[m] == animal.bodies
        if ((rows[m] >= 0) & ~taken).sum() >= _OWN:
            found.append(Animal(rows[m], centres[m], _size(rows[m], centres[m], bodies, cameras)))
    return found


def _middles(rows: np.ndarray, bodies: Sequence[Bodies], cameras: Camera) -> np.ndarray:
    """Points [M,3] that the bodies of each row [M,V] triangulate to."""
    xy = np.zeros((len(bodies), len(rows), 2))
    for v, seen in enumerate(bodies):
        there = rows[:, v] >= 0
        xy[v, there] = seen.middles[rows[there, v]]
    return triangulate(xy, cameras, (rows >= 0).T.astype(float))


def _seen_at(points: np.ndarray, bodies: Sequence[Bodies], cameras: Camera) -> np.ndarray:
    """The body [M,V] on which each point [M,3] lies in each view, -1 where on none."""
    uv, depth = cameras.project(points)
    rows = np.full((len(points), len(bodies)), -1)
    for v, seen in enumerate(bodies):
        if not len(seen.areas):
            continue
        radius = np.sqrt(seen.areas / np.pi)
        apart = np.linalg.norm(uv[v][:, None] - seen.middles, axis=2) / radius
        nearest = apart.argmin(1)
        near = apart[np.arange(len(points)), nearest] < _REACH
        rows[:, v] = np.where(near & (depth[v] > 0), nearest, -1)
    return rows


def _distances(
    points: np.ndarray, rows: np.ndarray, bodies: Sequence[Bodies], cameras: Camera
) -> np.ndarray:
    """Mean distance [M], pixels, of points from the middles of their bodies."""
    uv, _ = cameras.project(points)
    apart = np.full(rows.shape, np.nan)
    for v, seen in enumerate(bodies):
        there = rows[:, v] >= 0
        apart[there, v] = np.linalg.norm(uv[v][there] - seen.middles[rows[there, v]], axis=1)
    return np.nanmean(apart, 1)


def _size(
    row: np.ndarray, centre: np.ndarray, bodies: Sequence[Bodies], cameras: Sequence[Camera]
) -> float:
    sides = [
        np.sqrt(bodies[v].areas[b]) * float(c.project(centre)[1]) / c.K[0, 0]
        for v, (b, c) in enumerate(zip(row, cameras, strict=True))
        if b >= 0
    ]
    return float(np.median(sides))


class Chooser:
    """Takes one animal of several, instant after instant.

    Args:
        how: `largest`, or `followed`: the largest at first, then the one nearest to where it was.
        cameras: of the views.
        rows: rows of the samples that an interrupted run wrote, in order.

    Raises:
        ConfigError: no such choice, or too few cameras for it.
    """

    def __init__(
        self, how: str, cameras: Sequence[Camera], rows: Iterable[dict[str, Any]] = ()
    ) -> None:
        one_of(how, ANIMALS, "no such choice of an animal", where="config.prepare.animal")
        if how and len(cameras) < _LEAST_VIEWS:
            raise ConfigError(
                "which bodies are one animal's takes three cameras or more",
                where="config.prepare.animal",
                found=f"{len(cameras)} cameras",
                fix="bring masks of one animal alone",
            )
        self.how, self.cameras = how, tuple(cameras)
        before = [r["animal"] for r in rows if "animal" in r]
        self._most = max((r["of"] for r in before), default=0)
        self._size = float(before[-1]["size"]) if before else np.inf

    def choose(
        self, bodies: Sequence[Bodies], last: np.ndarray | None
    ) -> tuple[Animal | None, str, dict[str, Any]]:
        """The animal, why it cannot be used (empty if it can), and a row for the manifest.

        Args:
            bodies: of each view.
            last: where the animal was before [3]; None at first.
        """
        animals = find_animals(bodies, self.cameras)
        if not animals:
            return None, "no common centre", {}
        largest = max(animals, key=lambda a: a.size)
        if self.how == "largest" or last is None:
            chosen, reason = largest, ""
        else:
            chosen = min(animals, key=lambda a: np.linalg.norm(a.centre - last))
            others = [a for a in animals if a is not chosen]
            away = min((np.linalg.norm(a.centre - chosen.centre) for a in others), default=np.inf)
            unclear = np.linalg.norm(chosen.centre - last) > _SURE * away
            reason = "unclear which animal" if unclear else ""
        touched = np.zeros(len(bodies), bool)
        for other in animals:
            if other is not chosen:
                touched |= (other.bodies == chosen.bodies) & (chosen.bodies >= 0)
        fewer = len(animals) < self._most and chosen.size > _GROWN * self._size
        if touched.any() or fewer:
            reason = reason or "animals touch"
        self._most = max(self._most, len(animals))
        if reason:
            return chosen, reason, {}
        self._size = chosen.size
        row = {"animal": {"of": len(animals), "size": round(chosen.size, 4)}}
        return chosen, "", row
