"""Keypoints of a recording: each camera's own, or points in space as its cameras see them."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mouselift_jax.data.findings import Finding
from mouselift_jax.data.readers.keypoints import read_keypoints
from mouselift_jax.data.readers.space import read_points
from mouselift_jax.data.recordings.layout import Layout
from mouselift_jax.errors import MouseLiftError
from mouselift_jax.geometry.camera import Camera


def _of_camera(name: str, files: dict[str, Path]) -> Path | None:
    """The file of this name, or the only one in whose name it occurs as a word."""
    if name in files:
        return files[name]
    word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])|{re.escape(name)}(?=DLC)")
    found = [p for key, p in files.items() if word.search(key)]
    return found[0] if len(found) == 1 else None


def keypoints_of(
    layout: Layout,
    names: list[str],
    left_out: list[str],
    n_frames: int,
    findings: list[Finding],
) -> np.ndarray | None:
    """Keypoints [V,F,M,3] (x, y, confidence) of cameras by name, NaN where missing.

    Args:
        layout: with the files of each camera.
        names: of the cameras' videos, in order.
        left_out: of calibrated cameras that are not used: their files are no surprise.
        n_frames: of the recording.
        findings: what is wrong with the files is added.

    Returns:
        Pixels of the pictures as they are; None without files.
    """
    arrays: dict[str, np.ndarray] = {}
    files = {name: _of_camera(name, layout.keypoints) for name in names}
    for name, path in files.items():
        if path is None:
            continue
        try:
            arrays[name] = read_keypoints(path)
        except MouseLiftError as error:
            unsafe = "run code" in error.what
            code = "calibration_unreadable" if unsafe else "keypoints_unreadable"
            finding = Finding.of(code, error)
            if path.suffix.lower() not in (".pkl", ".pickle"):  # of a program that may be unknown
                finding.severity = "warning"
            if finding not in findings:  # a package that is missing is missing for all cameras
                findings.append(finding)
    known = {*files.values(), *(_of_camera(name, layout.keypoints) for name in left_out)}
    unused = sorted(p.name for p in layout.keypoints.values() if p not in known)
    if unused:
        findings.append(
            Finding(
                "keypoints_unread",
                "warning",
                f"{len(unused)} keypoint file(s) belong to no camera and are not used: "
                f"{', '.join(unused[:6])}",
                fix=f"name them after the cameras, {', '.join(names)}; which programs' files are "
                "read: `python -m mouselift_jax check --list-formats`",
                where=str(next(iter(layout.keypoints.values())).parent),
            )
        )
    if not arrays:
        return None
    counts = {a.shape[0] for a in arrays.values()}
    points = {a.shape[1] for a in arrays.values()}
    if len(points) > 1 or len(counts) > 1 or len(arrays) < len(names) or min(counts) < n_frames:
        findings.append(
            Finding(
                "keypoints_incomplete",
                "warning",
                f"keypoints of {len(arrays)} of {len(names)} cameras, frames {sorted(counts)}, "
                f"points {sorted(points)}",
                fix="export the keypoints of all cameras and frames, or remove their folder",
                where=str(next(iter(layout.keypoints.values())).parent),
            )
        )
    out = np.full((len(names), n_frames, max(points), 3), np.nan)
    out[..., 2] = 0.0
    for v, name in enumerate(names):
        if name in arrays:
            array = arrays[name][:n_frames]
            out[v, : array.shape[0], : array.shape[1]] = array
    return out


def from_space(
    files: list[Path], cameras: Sequence[Camera], n_frames: int, findings: list[Finding]
) -> np.ndarray | None:
    """Points in space as the cameras see them [V,F,M,3], NaN where missing.

    Args:
        files: of points; of several none is used.
        cameras: of the calibration's world.
        n_frames: of the recording.
        findings: what is wrong with the files is added.
    """
    warn = functools.partial(Finding, severity="warning", where=str(files[0].parent))
    if len(files) > 1:
        names = ", ".join(f.name for f in files[:6])
        findings.append(
            warn(
                "keypoints_unread",
                message=f"{len(files)} files of points in space, none of them used: {names}",
                fix="leave the one that is this recording's",
            )
        )
        return None
    try:
        points = read_points(files[0])
    except MouseLiftError as error:
        finding = Finding.of("keypoints_unreadable", error)
        finding.severity = "warning"
        if finding not in findings:
            findings.append(finding)
        return None
    if len(points) < n_frames:
        findings.append(
            warn(
                "keypoints_incomplete",
                message=f"points in space of {len(points)} of {n_frames} frames",
                fix="export the points of all frames, or remove their file",
            )
        )
    points = points[:n_frames]
    out = np.full((len(cameras), n_frames, points.shape[1], 3), np.nan)
    out[..., 2] = 0.0
    for v, camera in enumerate(cameras):
        xy, depth = camera.project(points[..., :3])
        seen = (depth > 0) & np.isfinite(xy).all(-1)
        out[v, : len(points)] = np.where(
            seen[..., None], np.concatenate([xy, points[..., 3:]], -1), (np.nan, np.nan, 0.0)
        )
    return out
