"""Calibration files of labs and tools, read into one form.

A new format is one more reader that returns a `Calibration`; nothing else changes.
"""

from __future__ import annotations

from pathlib import Path

from mouselift_jax.data.readers.calibration import Calibration, CameraModel, examine
from mouselift_jax.data.readers.json_cameras import load_json, read_opencv_cameras, read_transforms
from mouselift_jax.data.readers.lab_files import read_anipose, read_dannce, read_opencv_yaml
from mouselift_jax.data.readers.pickles import (
    load_arrays,
    natural_key,
    read_camera_pickle,
    read_keypoints_pickle,
)
from mouselift_jax.errors import LayoutError

__all__ = [
    "Calibration",
    "CameraModel",
    "examine",
    "find_calibration",
    "load_arrays",
    "natural_key",
    "read_calibration",
    "read_keypoints_pickle",
]

_YAML = (".yml", ".yaml", ".xml")
# Names looked for in a recording's folder, most specific first.
_NAMES = (
    "new_cam.pkl", "cameras.pkl", "calibration.pkl", "cam.pkl", "opencv_cameras.json",
    "transforms.json", "*_dannce.mat", "*.mat", "calibration.toml", "*.toml",
)  # fmt: skip
_FOLDERS = (".", "calibration", "calib", "cameras")


def find_calibration(folder: Path) -> Path | None:
    """The calibration file of a recording's folder, or the folder of its OpenCV YAML files."""
    for sub in _FOLDERS:
        for pattern in _NAMES:
            found = sorted((folder / sub).glob(pattern))
            if found:
                return found[0]
    for sub in _FOLDERS:
        place = folder / sub
        if place.is_dir() and any(p.suffix in _YAML for p in place.iterdir()):
            return place
    return None


def read_calibration(path: Path) -> Calibration:
    """Read any supported calibration.

    Raises:
        LayoutError: unknown format or broken content.
    """
    if path.is_dir():
        return read_opencv_yaml([p for p in path.iterdir() if p.suffix in _YAML])
    suffix = path.suffix.lower()
    if suffix in (".pkl", ".pickle"):
        return read_camera_pickle(path)
    if suffix == ".mat":
        return read_dannce(path)
    if suffix == ".toml":
        return read_anipose(path)
    if suffix in _YAML:
        return read_opencv_yaml([path])
    if suffix == ".json":
        rows = load_json(path)
        frames = rows.get("frames") if isinstance(rows, dict) else None
        nerf = isinstance(frames, list) and frames and "transform_matrix" in frames[0]
        return read_transforms(path) if nerf else read_opencv_cameras(path)
    raise LayoutError(
        "unknown calibration format",
        where=path,
        expected="new_cam.pkl, opencv_cameras.json, transforms.json, *_dannce.mat, *.toml, *.yml",
        fix="see docs/data_format.md",
    )
