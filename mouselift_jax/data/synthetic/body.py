"""The procedural mouse: a skeleton that walks, rears, turns or grooms, clothed in ellipsoids.

Lengths are millimetres, the floor is z = 0. P is the number of ellipsoids. Each ellipsoid knows
where it sits in the animal at rest, so that a texture painted there stays on the skin.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mouselift_jax.data.synthetic.rig import ARENA_CENTRE

BEHAVIOURS = ("walk", "rear", "turn", "groom")
COAT, SKIN, EYE = 0, 1, 2
# Trunk from nose to tail root: distance behind the nose, height, radius.
_TRUNK = np.array(
    [
        [0.0, 15.0, 2.2],
        [5.0, 16.0, 4.2],
        [12.0, 18.5, 7.2],
        [20.0, 20.5, 9.0],
        [30.0, 20.5, 9.6],
        [42.0, 20.0, 12.2],
        [55.0, 20.5, 14.2],
        [68.0, 21.0, 15.0],
        [80.0, 19.5, 14.0],
        [89.0, 16.5, 10.0],
        [95.0, 13.0, 5.0],
    ]
)
_TRUNK_LENGTH, _TAIL_LENGTH, _PIVOT = 95.0, 74.0, 52.0
KEYPOINT_NAMES = (
    "left ear tip, right ear tip, nose, neck, mid body, tail root, tail middle, tail end, "
    "left paw, left paw end, left elbow, left shoulder, right paw, right paw end, right elbow, "
    "right shoulder, left foot, left knee, left hip, right foot, right knee, right hip"
).split(", ")


@dataclasses.dataclass(frozen=True)
class Body:
    """One posed animal.

    Attributes:
        centre: centres of the ellipsoids [P,3].
        frame: their axes as columns [P,3,3].
        radii: their half-axes [P,3].
        rest_centre: where each sits in the animal at rest [P,3].
        part: COAT, SKIN or EYE of each [P].
        keypoints: the 22 named points [22,3].
        position: middle of the trunk [3].
        heading: direction of walking, radians.
    """

    centre: np.ndarray
    frame: np.ndarray
    radii: np.ndarray
    rest_centre: np.ndarray
    part: np.ndarray
    keypoints: np.ndarray
    position: np.ndarray
    heading: float


@dataclasses.dataclass(frozen=True)
class Walk:
    """Where the animal is at any time: a wandering loop inside the arena, or one place of it.

    Attributes:
        phase: where on the loop it starts, radians.
        speed: loop angle per second, radians.
        wobble: phases of the wandering [3].
        behaviour: walk | rear (stand up and come down again) | turn (in place) | groom (sit and
            wash the face); all but walk stay where the loop starts.
    """

    phase: float
    speed: float
    wobble: np.ndarray
    behaviour: str = "walk"

    @classmethod
    def random(cls, rng: np.random.Generator, behaviour: str = "walk") -> Walk:
        """A loop of either sense that starts anywhere."""
        sense = 1.0 if rng.random() < 0.5 else -1.0
        phase, wobble = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi, 3)
        return cls(phase, sense * 1.7, wobble, behaviour)

    def position(self, t: np.ndarray) -> np.ndarray:
        """Points on the floor [...,2] at times t, seconds."""
        return self._loop(t if self.behaviour == "walk" else np.zeros_like(t))

    def _loop(self, t: np.ndarray) -> np.ndarray:
        a = self.phase + self.speed * np.asarray(t)
        r = 31.0 + 8.0 * np.sin(2 * a + self.wobble[0]) + 4.0 * np.sin(3 * a + self.wobble[1])
        return np.stack([r * np.cos(a), r * np.sin(a)], -1) + ARENA_CENTRE[:2]

    def heading(self, t: np.ndarray) -> np.ndarray:
        """Direction of motion, or of the look of an animal that stays, radians."""
        t = np.asarray(t)
        along = t if self.behaviour == "walk" else np.zeros_like(t)
        step = self._loop(along + 5e-3) - self._loop(along - 5e-3)
        angle = np.arctan2(step[..., 1], step[..., 0])
        if self.behaviour == "turn":
            return angle + 1.3 * self.speed * t
        if self.behaviour == "walk":
            return angle
        return angle + 0.12 * np.sin(0.9 * t + self.wobble[0])

    def pitch(self, s: np.ndarray, t: float) -> np.ndarray:
        """How steeply the trunk rises towards the nose at distances s behind it, radians."""
        if self.behaviour == "rear":
            up = 0.5 - 0.5 * np.cos(2 * np.pi * 0.5 * t + self.wobble[1])
            return (0.1 + 0.95 * up) * np.clip((82.0 - s) / 30.0, 0, 1)
        if self.behaviour == "groom":
            nod = 0.18 * np.sin(2 * np.pi * 1.6 * t + self.wobble[1])
            return 0.75 * np.clip((82.0 - s) / 30.0, 0, 1) - (1.35 + nod) * np.clip(
                (42.0 - s) / 24.0, 0, 1
            )
        return np.zeros_like(s)

    def stride(self, t: float) -> tuple[float, float]:
        """Phase of the gait, radians, and its size beside walking's."""
        size = {"walk": 1.0, "turn": 0.5}.get(self.behaviour, 0.0)
        return 2 * np.pi * 2.2 * t + self.wobble[2], size

    def washing(self, t: float) -> np.ndarray | None:
        """Where a grooming animal's paws are: before the nose [3], mm in the head's axes."""
        if self.behaviour != "groom":
            return None
        beat = 2 * np.pi * 4.0 * t + self.wobble[0]
        return np.array([1.0 + 3.0 * np.sin(beat), 4.0, -1.0 + 3.0 * np.cos(beat)])


def posed_body(walk: Walk, t: float) -> Body:
    """The animal at time t (seconds) of its walk; the number of its ellipsoids never changes."""
    spine, heading = _spine(walk, t)
    builder = _Builder()
    trunk = _trunk(builder, spine)
    keypoints = np.full((22, 3), np.nan)
    keypoints[2:6] = spine.at(np.array([0.0, 30.0, 55.0, _TRUNK_LENGTH]), lift=trunk)
    _tail(builder, spine, keypoints, t)
    _head(builder, spine, keypoints)
    _limbs(builder, spine, keypoints, walk, t)
    return builder.body(keypoints, np.array([*spine.at(_PIVOT)[:2], 20.0]), heading)


@dataclasses.dataclass(frozen=True)
class _Spine:
    """A curve above the floor, indexed by the distance behind the nose, with heights."""

    s: np.ndarray
    xy: np.ndarray  # [S,2]
    forward: np.ndarray  # [S,2], the horizontal part of a unit vector
    z: np.ndarray
    pitch: np.ndarray  # [S]
    lift: np.ndarray  # [S], what the pitch adds to the height

    def at(self, s: np.ndarray | float, lift: np.ndarray | None = None) -> np.ndarray:
        columns = [np.interp(s, self.s, c) for c in (*self.xy.T, self.z)]
        return np.stack(columns, -1)

    def frame(self, s: float) -> np.ndarray:
        """Forward, left and up as columns [3,3], forward along the curve's rise too."""
        f2 = np.array([np.interp(s, self.s, c) for c in self.forward.T])
        rise = (np.interp(s - 2, self.s, self.z) - np.interp(s + 2, self.s, self.z)) / 4.0
        forward = np.array([*f2, rise])
        forward /= np.linalg.norm(forward)
        left = np.cross([0.0, 0.0, 1.0], forward)
        left /= np.linalg.norm(left)
        return np.stack([forward, left, np.cross(forward, left)], -1)


def _spine(walk: Walk, t: float) -> tuple[_Spine, float]:
    s = np.arange(0.0, _TRUNK_LENGTH + _TAIL_LENGTH + 1.0, 1.0)
    # Parts behind point where the animal was heading earlier: the body bends with the turn.
    delay = (s - _PIVOT) / 190.0
    angle = np.unwrap(walk.heading(t - delay))
    sway = np.where(s > _TRUNK_LENGTH, (s - _TRUNK_LENGTH) / _TAIL_LENGTH, 0.0)
    angle = angle + 0.55 * sway * np.sin(2.3 * t + walk.wobble[1] + 1.6 * sway)
    angle = angle + 0.22 * np.clip(1 - s / 30.0, 0, 1) * np.sin(3.1 * t + walk.wobble[0])
    pitch = walk.pitch(s, t)
    forward = np.stack([np.cos(angle), np.sin(angle)], -1) * np.cos(pitch)[:, None]
    lift = np.cumsum(np.sin(pitch)[::-1])[::-1]
    xy = -np.cumsum(forward, 0)
    pivot = int(_PIVOT)
    xy = xy - xy[pivot] + walk.position(np.float64(t))
    z = np.interp(s, _TRUNK[:, 0], _TRUNK[:, 1])
    behind = np.clip((s - _TRUNK_LENGTH) / _TAIL_LENGTH, 0, 1)
    z = np.where(s > _TRUNK_LENGTH, 2.0 + 11.0 * (1 - behind) ** 3 + 3.0 * behind**2, z)
    bob = 2.5 * np.sin(2.7 * t + walk.wobble[2]) * np.clip(1 - s / 34.0, 0, 1)
    return _Spine(s, xy, forward, z + bob + lift, pitch, lift), float(angle[pivot])


class _Builder:
    """Collects ellipsoids."""

    def __init__(self) -> None:
        self.rows: list[tuple] = []

    def add(
        self, centre: np.ndarray, frame: np.ndarray, radii: tuple, rest: np.ndarray, part: int
    ) -> None:
        self.rows.append((centre, frame, radii, rest, part))

    def limb(
        self, points: list, rest: list, radii: list[float], parts: list[int], left: np.ndarray
    ) -> None:
        """Overlapping spheres along the segments between the points, rolled with the body."""
        for i in range(len(points) - 1):
            a, b = np.asarray(points[i]), np.asarray(points[i + 1])
            # As many as at rest, so that an ellipsoid's number is its identity.
            at_rest = np.linalg.norm(np.asarray(rest[i + 1]) - np.asarray(rest[i]))
            n = max(2, int(np.ceil(at_rest / (0.4 * max(radii[i], radii[i + 1])))))
            axis = (b - a) / max(np.linalg.norm(b - a), 1e-9)
            side = left - axis * (left @ axis)
            side /= np.linalg.norm(side)
            frame = np.stack([axis, side, np.cross(axis, side)], -1)
            for w in np.linspace(0, 1, n, endpoint=i == len(points) - 2):
                r = radii[i] * (1 - w) + radii[i + 1] * w
                place = np.asarray(rest[i]) * (1 - w) + np.asarray(rest[i + 1]) * w
                self.add(a * (1 - w) + b * w, frame, (r, r, r), place, parts[i])

    def body(self, keypoints: np.ndarray, position: np.ndarray, heading: float) -> Body:
        columns = [np.array(c, np.float64) for c in zip(*self.rows, strict=True)]
        centre, frame, radii, rest, part = columns
        return Body(centre, frame, radii, rest, part.astype(int), keypoints, position, heading)


def _trunk(builder: _Builder, spine: _Spine) -> None:
    for s in np.arange(0.0, _TRUNK_LENGTH + 0.1, 3.2):
        r = np.interp(s, _TRUNK[:, 0], _TRUNK[:, 2])
        centre = spine.at(s)
        centre[2] = max(centre[2], r * 0.95 + 2.0)
        rest = np.array([-s, 0.0, 20.0])
        builder.add(centre, spine.frame(s), (r, r * 1.06, r * 0.95), rest, COAT)
    builder.add(spine.at(-0.0), spine.frame(0.0), (2.4, 2.2, 2.0), np.array([2.0, 0, 20.0]), SKIN)


def _tail(builder: _Builder, spine: _Spine, keypoints: np.ndarray, t: float) -> None:
    s = _TRUNK_LENGTH - 2.0
    while s < _TRUNK_LENGTH + _TAIL_LENGTH:
        along = (s - _TRUNK_LENGTH) / _TAIL_LENGTH
        r = 3.0 * (1 - along) ** 0.7 + 1.0
        centre = spine.at(s)
        centre[2] = max(centre[2], r + 0.5)
        builder.add(centre, spine.frame(s), (r * 1.5, r, r), np.array([-s, 0, 20.0]), SKIN)
        s += 0.9 * r
    keypoints[6] = spine.at(_TRUNK_LENGTH + 0.5 * _TAIL_LENGTH)
    keypoints[7] = spine.at(_TRUNK_LENGTH + _TAIL_LENGTH)


def _head(builder: _Builder, spine: _Spine, keypoints: np.ndarray) -> None:
    F = spine.frame(19.0)
    head = spine.at(19.0)
    for k, side in enumerate((1.0, -1.0)):
        ear = head + F @ np.array([-4.0, side * 8.5, 9.5])
        axes = _rotation_z(side * 0.7)
        rest = np.array([-23.0, side * 8.5, 29.5])
        builder.add(ear, F @ axes, (2.0, 6.0, 6.8), rest, SKIN)
        keypoints[k] = ear + F @ np.array([0.0, side * 2.0, 6.0])
        eye = spine.at(12.5) + F @ np.array([0.0, side * 5.6, 3.6])
        builder.add(eye, F, (1.5, 1.5, 1.5), np.array([-12.5, side * 5.6, 23.6]), EYE)


def _rotation_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _limbs(builder: _Builder, spine: _Spine, keypoints: np.ndarray, walk: Walk, t: float) -> None:
    gait, size = walk.stride(t)
    for side, keys in ((1.0, (8, 9, 10, 11, 16, 17, 18)), (-1.0, (12, 13, 14, 15, 19, 20, 21))):
        phase = gait + (0.0 if side > 0 else np.pi)
        for at, joints, shift, radii, names in (
            (40.0, _fore, 0.0, [5.0, 3.4, 2.4, 2.0], keys[:4]),
            (78.0, _hind, np.pi, [8.5, 6.0, 3.2, 2.2], keys[4:]),  # half a cycle later
        ):
            swing = 9.0 * size * np.sin(phase + shift)
            raised = 4.0 * size * max(0.0, np.cos(phase + shift))
            rest = joints(side, 0.0, 0.0) - np.array([at, 0, 0])
            level = _level(spine.frame(at))
            points = _hung(spine, at, level, joints(side, swing, raised))
            paws = walk.washing(t)
            if paws is not None and at == 40.0:
                mirror = np.array([1.0, side, 1.0])
                points[3] = spine.at(3.0) + spine.frame(8.0) @ (paws * mirror)
                points[2] = 0.45 * points[1] + 0.55 * points[3]
            builder.limb(list(points), list(rest), radii, [COAT, COAT, SKIN], level[:, 1])
            if at == 40.0:
                keypoints[list(names)] = points[[2, 3, 1, 0]]
            else:
                keypoints[list(names)] = points[[2, 1, 0]]


def _fore(side: float, swing: float, lift: float) -> np.ndarray:
    """Shoulder, elbow, wrist and paw [4,3]: forward of the limb's place, left, above the floor."""
    return np.array(
        [
            [0.0, side * 8.0, 15.0],
            [-3.0 + 0.3 * swing, side * 11.5, 9.5],
            [4.0 + swing, side * 10.5, 3.0 + lift],
            [9.0 + swing, side * 10.5, 2.2 + lift],
        ]
    )


def _hind(side: float, swing: float, lift: float) -> np.ndarray:
    """Hip, knee, ankle and foot [4,3]: forward of the limb's place, left, above the floor."""
    return np.array(
        [
            [0.0, side * 9.0, 17.0],
            [7.0 + 0.4 * swing, side * 14.0, 11.0],
            [-3.0 + swing, side * 13.5, 3.5 + lift],
            [8.0 + swing, side * 13.5, 2.4 + lift],
        ]
    )


def _hung(spine: _Spine, at: float, level: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Joints [J,3] on a trunk that may be raised: turned with it about its axis there."""
    pitch, lift = np.interp(at, spine.s, spine.pitch), np.interp(at, spine.s, spine.lift)
    if at > 70.0:
        pitch = lift = 0.0  # the hind feet stay on the floor
    c, s = np.cos(pitch), np.sin(pitch)
    turn = np.array([[c, 0.0, -s], [0.0, 1.0, 0.0], [s, 0.0, c]])
    axis = np.array([0.0, 0.0, 20.0])
    base = spine.at(at) * np.array([1, 1, 0]) + np.array([0.0, 0.0, lift])
    return base + ((local - axis) @ turn.T + axis) @ level.T


def _level(frame: np.ndarray) -> np.ndarray:
    """The frame turned upright: forward without its rise."""
    forward = frame[:, 0] * np.array([1.0, 1.0, 0.0])
    forward /= np.linalg.norm(forward)
    return np.stack([forward, np.cross([0, 0, 1.0], forward), [0, 0, 1.0]], -1)
