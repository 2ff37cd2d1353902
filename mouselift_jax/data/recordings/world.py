"""Which way is up, and cameras that cannot both be where they are.

Calibrations of anipose, JARVIS or COLMAP put the world into their first camera. The samples' views
are levelled on z, so z must be up: the cameras say where up is, and the world is turned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mouselift_jax.data.findings import Finding
from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.errors import ConfigError
from mouselift_jax.geometry.camera import stack_cameras
from mouselift_jax.geometry.triangulate import triangulate
from mouselift_jax.geometry.up import floor_height, floor_normal, rotation_to_z

# World z along the cameras' mean up: 0.88 to 0.98 on real rigs that are z up, -0.35 to 0.20 on
# others. Cameras that all hang above look along -z instead.
_UP_ENOUGH, _DOWN_ENOUGH = 0.6, 0.75
_SNAP_DEG = 5.0  # an axis this near is meant
_LEVEL = 0.3  # how flat the cameras' right-hand axes lie, for up to be taken from them
_AGREE = 0.6  # length of the cameras' mean up: below it they do not agree on one
_PATH_FRAMES = 200
_SAME = 1e-6  # of the rig's size: two cameras in one place


def camera_up(rotations: np.ndarray) -> np.ndarray:
    """Up [3] as cameras held upright see it, from world-to-camera rotations [V,3,3].

    The right-hand axes of levelled cameras all lie in the floor's plane, whatever way they look
    down; up is across them, on the side of the cameras' own up.
    """
    _, first = np.unique(np.round(rotations, 6), axis=0, return_index=True)
    R = rotations[np.sort(first)]
    mean, back = -R[:, 1].mean(0), -R[:, 2].mean(0)
    if np.linalg.norm(mean) < min(_AGREE, np.linalg.norm(back)):  # rolled, or all look down
        mean = back
    mean = mean / max(np.linalg.norm(mean), 1e-12)
    values, vectors = np.linalg.eigh(R[:, 0].T @ R[:, 0])
    across = vectors[:, 0] * np.sign(vectors[:, 0] @ mean)
    if len(R) > 2 and values[0] < _LEVEL * values[1] and across @ mean > 0.7:
        mean = across
    for axis in (*np.eye(3), *-np.eye(3)):
        if mean @ axis > np.cos(np.radians(_SNAP_DEG)):
            return axis
    return mean


def z_is_up(rotations: np.ndarray) -> bool:
    """Whether the cameras, as they are usually mounted, agree with a world whose z is up."""
    up, forward = -rotations[:, 1].mean(0), rotations[:, 2].mean(0)
    return bool(up[2] > _UP_ENOUGH or (forward[2] < -_DOWN_ENOUGH and up[2] > -0.2))


def parse_up(up: str) -> np.ndarray | None:
    """The direction [3] that `prepare.up` names; None where the cameras are to say.

    Raises:
        ConfigError: it names none.
    """
    axes = {s + n: (-1.0 if s == "-" else 1.0) * np.eye(3)[i] for i, n in enumerate("xyz")
            for s in ("", "+", "-")}  # fmt: skip
    if up in ("", "auto", "cameras", "floor"):
        return None
    if up in axes:
        return axes[up]
    try:
        direction = np.array([float(v) for v in up.split(",")])
    except ValueError:
        direction = np.zeros(0)
    if direction.shape != (3,) or not np.isfinite(direction).all() or not direction.any():
        raise ConfigError(
            "no such direction",
            where="config.prepare.up",
            expected="x, -x, y, -y, z, -z, cameras, floor, or three numbers joined by commas",
            found=up,
            fix="--config.prepare.up=z keeps the calibration's world",
        )
    return direction / np.linalg.norm(direction)


def levelled(recording: Recording, up: str, findings: list[Finding]) -> Recording:
    """The recording in a world whose z is up; the same where it is up already.

    Args:
        recording: as its files say.
        up: see `parse_up`; empty turns the world only where z is plainly not up.
        findings: told here when the world was not z up.
    """
    rotations = np.stack([np.asarray(c.w2c)[:3, :3] for c in recording.cameras])
    wanted, floor = parse_up(up), 0.0
    if wanted is None:
        if up not in ("cameras", "floor") and z_is_up(rotations):
            return recording
        wanted = camera_up(rotations)
        if up == "floor":
            wanted, floor = _floor(recording, wanted)
        elif up != "cameras":
            findings.append(_told(recording, rotations, wanted))
    turn = rotation_to_z(wanted)
    if np.allclose(turn, np.eye(3), atol=1e-12) and not floor:
        return recording
    rigid = np.eye(4)
    rigid[:3, :3], rigid[2, 3] = turn, -floor
    cameras = tuple(
        dataclasses.replace(c, c2w=rigid @ np.asarray(c.c2w)) for c in recording.cameras
    )
    note = f"world turned so that z is up; up in the calibration: {np.round(wanted, 3).tolist()}"
    if floor:
        note += f"; z = 0 is where the animal's lowest keypoints usually are, {floor:.4g} along it"
    return dataclasses.replace(
        recording, cameras=cameras, level=turn, floor=floor, notes=(*recording.notes, note)
    )


def _floor(recording: Recording, up: np.ndarray) -> tuple[np.ndarray, float]:
    """Up [3] as the animal's path says it: it walks on the floor; and the floor's height along it.

    Raises:
        ConfigError: there are no keypoints, or they tell no plane.
    """
    found = None
    if recording.keypoints is not None:
        xy = recording.keypoints[:, :: max(1, recording.n_frames // _PATH_FRAMES)]
        V, F, M = xy.shape[:3]
        flat = xy.reshape(V, F * M, 3)
        cameras = stack_cameras(recording.cameras, any_size=True)
        weights = (np.isfinite(flat[..., :2]).all(-1) & (flat[..., 2] > 0.25)).astype(float)
        points = triangulate(np.nan_to_num(flat[..., :2]), cameras, weights)
        points = np.where(weights.sum(0)[:, None] >= 2, points, np.nan).reshape(F, M, 3)
        known = np.isfinite(points).all(-1).any(1)
        path = np.full((F, 3), np.nan)
        path[known] = np.nanmedian(points[known], axis=1)
        found = floor_normal(path, up)
    if found is None:
        raise ConfigError(
            "the floor cannot be told from the animal's path",
            where="config.prepare.up=floor",
            expected="keypoints of an animal that walks to and fro over the floor",
            found="no keypoints"
            if recording.keypoints is None
            else "a path that keeps to a place or a line",
            fix="--config.prepare.up=cameras, or say it: --config.prepare.up=x,y,z",
        )
    return found[0], floor_height(points, found[0])[0]


def _told(recording: Recording, rotations: np.ndarray, up: np.ndarray) -> Finding:
    mean = -rotations[:, 1].mean(0)
    angle = np.degrees(np.arccos(np.clip(up[2], -1, 1)))
    direction = "(" + ", ".join(f"{v:.2f}" for v in up) + ")"
    return Finding(
        "world_not_z_up", "warning",
        f"the world of the calibration is not z up: the cameras' up is {direction}, {angle:.0f} "
        "degrees from z; the samples are levelled on it",
        (),
        f"if that is not up, say it: --config.prepare.up={','.join(f'{v:.3f}' for v in up)} (or z "
        "to keep the calibration's world, -y, floor: from the path of keypoints, ...)",
        {"expected": f"z along the cameras' mean up, {_UP_ENOUGH} or more",
         "found": f"{mean[2]:.2f}", "up": up.tolist()},
        where=str(recording.calibration_path),
    )  # fmt: skip


def same_places(
    names: Sequence[str],
    numbers: Sequence[int],
    poses: Sequence[tuple[np.ndarray, np.ndarray]],
    where: str,
) -> list[Finding]:
    """Cameras with one and the same pose, by mistake: one of them is not where it is said to be.

    Args:
        names: of the cameras.
        numbers: theirs.
        poses: (R, centre) of each.
        where: the calibration file.
    """
    centres = np.stack([c for _, c in poses])
    size = max(float(np.linalg.norm(centres - centres.mean(0), axis=1).max()), 1e-12)
    found = []
    for i in range(len(poses)):
        for j in range(i + 1, len(poses)):
            near = np.linalg.norm(centres[i] - centres[j]) < _SAME * size
            if near and np.abs(poses[i][0] - poses[j][0]).max() < 1e-6:
                choices = [",".join(str(n) for n in numbers if n != numbers[k]) for k in (j, i)]
                found.append(
                    Finding(
                        "calibration_duplicate",
                        "error",
                        f"cameras {numbers[i]} ({names[i]}) and {numbers[j]} ({names[j]}) have one "
                        "and the same pose: one of the two was written over the other",
                        (numbers[i], numbers[j]),
                        "calibrate again, or leave the wrong one out: --config.prepare.cameras="
                        f"{choices[0]} if {numbers[i]} is right, {choices[1]} if {numbers[j]} is "
                        "(check --cameras tells which)",
                        {
                            "expected": "every camera in a place of its own",
                            "found": f"centre {np.round(centres[i], 3).tolist()} twice",
                        },
                        where=where,
                    )  # fmt: skip
                )
    return found
