"""Cameras made right by what they saw: which frames, which unknowns, and is it better?

`calibrate` fits the cameras (`geometry.bundle`) to sightings of the frames that train, leaves as
given what these do not tell, and judges on sightings it did not use: the point is found by the
other cameras, and the distance in the camera left out is what counts. Outlines of silhouettes take
part as points that two cameras see: where a plane through both centres touches the animal.

V cameras, F frames, M keypoints, N points, P parameters (`bundle.PARAMETERS`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import stdtrit  # scipy.stats, which has it too, takes 0.6 s to import

from mouselift_jax.data.calibration.evidence import Evidence, moments_of
from mouselift_jax.errors import CalibrationError, ConfigError, one_of
from mouselift_jax.geometry.bundle import (
    PARAMETERS,
    POSE,
    Rig,
    Sightings,
    Solution,
    adjust,
    located,
    project,
)
from mouselift_jax.geometry.similarity import Similarity

UNCHANGED = ("already right", "untold")  # verdicts after which the calibration is as it was
FREE = {
    "pose": tuple(range(6)),
    "focal": (6,),
    "aspect": (7,),
    "centre": (8, 9),
    "distortion": (10, 11),
    "time": (12,),
}
# A standard error above this is no knowledge: the number stays as given. Moves in shares of the
# distance to the animal, principal points in pixels, the rest in the parameters' units.
_KNOWN = np.array([*(0.035,) * 3, *(0.05,) * 3, 0.02, 0.02, 20.0, 20.0, 0.05, 0.2, 0.5])
_MOST_TURN_DEG, _MOST_MOVE = 20.0, 0.3  # beyond (share of the distance) it is no correction
_MOST_PX = 15.0  # sightings that still disagree so much belong to no cameras like these
_LEAST_POINTS = 20


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to calibrate.

    Attributes:
        free: what may change, of FREE: pose, focal, aspect, centre, distortion, time.
        sigmas: a gain on unused frames counts from so many of its standard errors.
        least_gain: and from this share of the misfit.
        iterations: steps of a fit at most.
        rounds: fits to outlines, which touch elsewhere once the cameras have moved.
    """

    free: tuple[str, ...] = ("pose", "focal")
    sigmas: float = 2.0
    least_gain: float = 0.01
    iterations: int = 80
    rounds: int = 6

    def columns(self) -> np.ndarray:
        """Which parameters of a camera are free [P].

        Raises:
            ConfigError: an unknown word, or nothing to do.
        """
        for word in self.free:
            one_of(word, FREE, "no such part of a camera", where="config.calibrate.free")
        if not self.free:
            raise ConfigError(
                "nothing may change",
                where="config.calibrate.free",
                expected=" | ".join(FREE),
                fix="--config.calibrate.free=\"('pose','focal')\"",
            )
        free = np.zeros(len(PARAMETERS), bool)
        for word in self.free:
            free[list(FREE[word])] = True
        return free


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        verdict: `improved`, `already right` (no gain on unused frames) and `untold` (what was seen
            tells no number of any camera), where `rig` is the given one; `scaled` (by a known
            length, otherwise the given one) or `levelled` (on the floor).
        rig: the cameras to use.
        fitted: what the fit found, used or not.
        undetermined: (camera's place, parts of it) that stayed as given.
        before, after: misfit of every unused sighting [V,n], px; NaN where there is none.
        sightings: the unused sightings, for pictures.
        gain: mean gain per unused frame, px, and its standard error.
        world: from the world of the given cameras, in which all figures are, to that of `rig`.
    """

    verdict: str
    rig: Rig
    given: Rig
    fitted: Solution
    undetermined: tuple[tuple[int, tuple[str, ...]], ...]
    before: np.ndarray
    after: np.ndarray
    sightings: Sightings
    gain: tuple[float, float]
    world: Similarity = dataclasses.field(default_factory=Similarity.identity)

    def changes(self) -> tuple[np.ndarray, np.ndarray]:
        """Turn in degrees [V] and distance moved in world units [V], in the given world."""
        back = self.world.inverse()
        return changes(self.given, self.rig.moved(float(back.scale), back.R, back.t))


def misfits(rig: Rig, sightings: Sightings) -> np.ndarray:
    """How far each sighting is from where the other cameras expect it [V,N], px.

    Points that only two cameras see have one number to miss by: the distance from the other
    camera's epipolar line.
    """
    seen = sightings.seen > 0
    out = np.full(seen.shape, np.nan)
    for v in range(len(seen)):
        others = sightings.seen.copy()
        others[v] = 0
        rows = seen[v] & ((others > 0).sum(0) >= 2)
        if rows.any():
            s = dataclasses.replace(sightings, seen=others).chosen(rows)
            out[v, rows] = _distances(rig, located(rig, s), s, [v])[0]
    pairs = seen.sum(0) == 2
    if pairs.any():
        s = sightings.chosen(pairs)
        distance = _distances(rig, located(rig, s), s, range(len(seen)))
        # Fitted to both, the point halves the gap.
        out[:, pairs] = np.where(s.seen > 0, 2 * distance, np.nan)
    return out


def _distances(rig: Rig, points: np.ndarray, s: Sightings, views: object) -> np.ndarray:
    pixels, depth, _, _ = project(rig, points, s.velocity)
    distance = np.linalg.norm(s.xy - pixels, axis=-1)
    return np.where(depth > 0, distance, _MOST_PX * 10)[list(views)]


def calibrate(given: Rig, train: Evidence, unused: Evidence, settings: Settings) -> Outcome:
    """Fit the cameras and judge them on what the fit did not use.

    Raises:
        CalibrationError: too little was seen by two cameras at once, or the sightings fit no
            cameras near the given ones.
        ConfigError: unknown parts in `settings.free`.
    """
    enough(given, train, unused)
    fitted, left = determined(given, train, settings)
    first, sightings = unused.sightings(given), unused.sightings(fitted.rig)
    start, end = misfits(given, first), misfits(fitted.rig, sightings)
    plausible(given, fitted, end)
    moments = moments_of(first, given)
    gain, error = gain_of(start, first.frame, end, sightings.frame, moments)
    better = gain > settings.sigmas * error and gain > settings.least_gain * np.nanmedian(start)
    if not better:
        # Nothing was free in the end: what was seen says nothing, be the cameras right or not.
        verdict = "already right" if (fitted.error > 0).any() else "untold"
        return Outcome(verdict, given, given, fitted, left, start, start, first,
                       (gain, error))  # fmt: skip
    return Outcome("improved", fitted.rig, given, fitted, left, start, end, sightings,
                   (gain, error))  # fmt: skip


def gain_of(
    before: np.ndarray,
    frames_before: np.ndarray,
    after: np.ndarray,
    frames_after: np.ndarray,
    moments: dict[int, int],
) -> tuple[float, float]:
    """Mean gain of the moments' median misfits, px, and its standard error."""
    rows = [np.array([moments[f] for f in frames]) for frames in (frames_before, frames_after)]
    gains = []
    for m in np.unique(rows[0]):
        pair = before[:, rows[0] == m], after[:, rows[1] == m]
        if all(np.isfinite(p).any() for p in pair):
            gains.append(np.nanmedian(pair[0]) - np.nanmedian(pair[1]))
    if not gains:
        return 0.0, np.inf
    n = len(gains)
    error = np.std(gains, ddof=1) / np.sqrt(n) * _few(n) if n > 1 else np.inf
    return float(np.mean(gains)), float(error)


def _few(n: int) -> float:
    """By how much two standard errors of n values fall short of 95 %."""
    return float(stdtrit(n - 1, 0.975) / 1.96)


def determined(
    given: Rig, train: Evidence, settings: Settings
) -> tuple[Solution, tuple[tuple[int, tuple[str, ...]], ...]]:
    """Fit, and fit again without what turned out not to be told, least basic parts first."""
    free = np.tile(settings.columns(), (len(given.R), 1))
    wanted = free.copy()
    seen = train.sightings(given).seen > 0
    free[~(seen & (seen.sum(0) >= 2)).any(1)] = False
    while True:
        fitted = _fit(given, train, free, settings)
        distance = _distance(fitted)
        limit = np.where(np.arange(len(PARAMETERS)) // 3 == 1, distance, 1.0) * _KNOWN
        unknown = free & ~(fitted.error <= limit)
        if not unknown.any():
            break
        column = int(np.flatnonzero(unknown.any(0)).max())
        if column >= POSE.stop:
            free[unknown[:, column], column] = False
            continue
        share = np.where(unknown, fitted.error / limit, 0.0)[:, POSE].max(1)
        free[int(np.argmax(share)), POSE] = False
    left = []
    for v in np.flatnonzero((wanted & ~free).any(1)):
        parts = [w for w, columns in FREE.items() if (wanted & ~free)[v, list(columns)].any()]
        left.append((int(v), tuple(parts)))
    return fitted, tuple(left)


def _fit(given: Rig, train: Evidence, free: np.ndarray, settings: Settings) -> Solution:
    sightings, most = train.sightings(given), settings.iterations
    moments = moments_of(sightings, given)
    count = len(set(moments.values()))
    sightings = _at(sightings, moments)
    fitted = adjust(given, located(given, sightings), sightings, free, iterations=most)
    for _ in range(settings.rounds - 1 if train.outlines is not None else 0):
        old, rig = sightings, fitted.rig
        sightings = _at(train.sightings(rig), moments)
        fitted = adjust(rig, located(rig, sightings), sightings, free, iterations=most)
        if np.array_equal(old.xy, sightings.xy):
            break
    told = fitted.error > 0
    error = np.where(told, fitted.error, 1.0) * (_few(count) if count > 1 else np.inf)
    fitted = dataclasses.replace(fitted, error=np.where(told, error, 0.0))
    # Small steps each kept the gauge only to first order: the size of what remains is set right.
    return dataclasses.replace(fitted, rig=_regauged(fitted.rig, given, free, _distance(fitted)))


def _at(sightings: Sightings, moments: dict[int, int]) -> Sightings:
    """Sightings whose errors belong together by moments."""
    return dataclasses.replace(sightings, frame=np.array([moments[f] for f in sightings.frame]))


def _distance(fitted: Solution) -> float:
    """Median distance of cameras and points, world units."""
    points = fitted.points[np.isfinite(fitted.points).all(-1)]
    if not len(points):
        return 1.0
    return float(np.median(np.linalg.norm(fitted.rig.centres[:, None] - points, axis=-1)))


def _regauged(rig: Rig, given: Rig, free: np.ndarray, distance: float) -> Rig:
    """The rig moved as a whole, which no picture shows, until it is nearest the given one."""
    rows = free[:, POSE].all(1)
    if not rows.any() or not free[:, POSE].any(1).all():
        return rig  # a camera that stayed as given holds the world
    here, there = (_anchors(r, distance) for r in (rig, given))
    scale, R, shift = similarity_between(here[rows].reshape(-1, 3), there[rows].reshape(-1, 3))
    return rig.moved(scale, R, shift)


def _anchors(rig: Rig, distance: float) -> np.ndarray:
    """Each camera's centre, and points at `distance` along its axes (the rows of R) [V,4,3]."""
    centre = rig.centres[:, None]
    return np.concatenate([centre, centre + distance * rig.R], 1)


def similarity_between(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """scale, R [3,3] and shift [3] with y = scale R x + shift, least squares (Umeyama)."""
    mx, my = x.mean(0), y.mean(0)
    U, S, Vt = np.linalg.svd((y - my).T @ (x - mx))
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(U @ Vt))])
    R = (U * sign) @ Vt
    scale = float((S * sign).sum() / ((x - mx) ** 2).sum())
    return scale, R, my - scale * R @ mx


def scale_from_length(
    rig: Rig, points: Sightings, pair: tuple[int, int], length: float
) -> tuple[float, float]:
    """What makes two keypoints as far apart as they truly are, and its standard error.

    Args:
        rig: the cameras.
        points: every keypoint of each frame (`keypoint_sightings`).
        pair: numbers of the two keypoints.
        length: their distance, world units; the median over the frames is compared with it.

    Raises:
        ConfigError: no such keypoints, or hardly a frame shows both to two cameras.
    """
    n_frames = len(np.unique(points.frame))
    n_keypoints = points.xy.shape[1] // n_frames
    if len(set(pair)) != 2 or not all(0 <= k < n_keypoints for k in pair):
        raise ConfigError(
            "no such pair of keypoints",
            where="config.calibrate.length_between",
            expected=f"two numbers of 0 to {n_keypoints - 1}",
            found=pair,
            fix='--config.calibrate.length_between="(0, 1)"',
        )
    at = located(rig, points).reshape(n_frames, n_keypoints, 3)
    found = np.linalg.norm(at[:, pair[0]] - at[:, pair[1]], axis=-1)
    found = found[np.isfinite(found) & (found > 0)]
    if len(found) < 5:
        raise ConfigError(
            "hardly any frame shows both ends of the known length to two cameras",
            where="config.calibrate.length_between",
            expected="5 frames or more",
            found=len(found),
            fix="name two keypoints that are seen more often",
        )
    scale = length / np.median(found)
    # of a median of normal values; 1.4826 medians of the absolute deviation are one deviation
    spread = 1.4826 * np.median(np.abs(found - np.median(found)))
    return float(scale), float(scale * 1.2533 * spread / np.median(found) / np.sqrt(len(found)))


def changes(old: Rig, new: Rig) -> tuple[np.ndarray, np.ndarray]:
    """Turn in degrees [V] and distance moved in world units [V] of each camera."""
    cosine = (np.einsum("vij,vij->v", old.R, new.R) - 1) / 2
    turn = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    return turn, np.linalg.norm(new.centres - old.centres, axis=-1)


def enough(given: Rig, train: Evidence, unused: Evidence) -> None:
    """Is anything seen by two cameras at once, to fit and to judge by?

    Raises:
        CalibrationError: no.
    """
    for what, evidence in (("to fit", train), ("to judge by", unused)):
        count = int(((evidence.sightings(given).seen > 0).sum(0) >= 2).sum())
        if count < _LEAST_POINTS:
            raise CalibrationError(
                f"too little was seen by two cameras at once {what}",
                expected=f"{_LEAST_POINTS} points or more that two cameras see in one frame",
                found=count,
                fix="give more frames, keypoints of all cameras, or a lower "
                "config.calibrate.least_confidence",
            )


def plausible(given: Rig, fitted: Solution, misfit: np.ndarray) -> None:
    """Is the result still a correction of the given cameras?

    Raises:
        CalibrationError: cameras turned or moved too far, or the sightings still disagree: the
            data are of other cameras, or the calibration has a fault of another kind.
    """
    turn, move = changes(given, fitted.rig)
    share = move / _distance(fitted)
    worst = int(np.argmax(np.maximum(turn / _MOST_TURN_DEG, share / _MOST_MOVE)))
    left = float(np.nanmedian(misfit))
    far = turn[worst] > _MOST_TURN_DEG or share[worst] > _MOST_MOVE
    if far or left > _MOST_PX:
        found = f"cameras would turn by up to {turn[worst]:.0f} degrees and move by up to "
        found += f"{100 * share[worst]:.0f} % of their distance, and {left:.1f} px remain"
        raise CalibrationError(
            "the sightings fit no cameras near the given ones",
            expected=f"turns below {_MOST_TURN_DEG:.0f} degrees, moves below "
            f"{100 * _MOST_MOVE:.0f} %, less than {_MOST_PX:.0f} px left on unused frames",
            found=found,
            fix="python -m mouselift_jax check RECORDING finds faults of another kind: cameras "
            "exchanged, other units, an offset in time",
        )
