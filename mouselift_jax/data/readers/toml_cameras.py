"""Calibrations in TOML: calibration.toml of anipose, camera_array.toml of Caliscope."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mouselift_jax.data.distortion import Lens
from mouselift_jax.data.readers.calibration import (
    Calibration,
    CameraModel,
    coefficients,
    matrix3,
    numbers,
    shifted_K,
    vector3,
)
from mouselift_jax.data.readers.lenses import fisheye
from mouselift_jax.data.readers.matlab import distinct_numbers
from mouselift_jax.data.readers.rows import Row, keys_of
from mouselift_jax.data.readers.text import last_number, load_toml, natural_key
from mouselift_jax.errors import LayoutError

# Caliscope turns pictures for display only; the rest is how well, and with what, it was calibrated.
_HARMLESS = ("rotation_count", "error", "exposure", "grid_count", "ignore", "verified_resolutions")
_CALISCOPE = {"rotation_count", "grid_count", "cam_id", "port"}


def camera_tables(content: dict[str, Any]) -> dict[str, dict]:
    """Camera tables: [cam_0] ... at the top, or [cameras.0] ... of Caliscope."""
    inner = content.get("cameras")
    rows = inner if isinstance(inner, dict) else content
    return {str(k): v for k, v in rows.items() if isinstance(v, dict) and "matrix" in v}


def is_caliscope(content: dict[str, Any]) -> bool:
    """Whether a TOML file's content is Caliscope's."""
    return any(_CALISCOPE & set(row) for row in camera_tables(content).values())


def is_anipose(content: dict[str, Any]) -> bool:
    """Whether a TOML file's content is anipose's."""
    return bool(camera_tables(content)) and not is_caliscope(content)


def read_anipose(path: Path) -> Calibration:
    """Anipose / aniposelib: [cam_N] name, size, matrix, distortions, rotation, translation."""
    return _read(path, "anipose", camera_tables(load_toml(path)), "mm")


def read_caliscope(path: Path) -> Calibration:
    """Caliscope: [cameras.N] (config.toml of older versions: [cam_N]); metres."""
    tables = camera_tables(load_toml(path))
    used = {k: v for k, v in tables.items() if v.get("ignore") is not True}
    calibration = _read(path, "caliscope", used, "m")
    if len(used) < len(tables):
        ignored = sorted(set(tables) - set(used), key=natural_key)
        calibration.notes.append(f"left out as the file says (ignore): {', '.join(ignored)}")
    return calibration


def _read(path: Path, kind: str, tables: dict[str, dict], unit: str) -> Calibration:
    if not tables:
        raise LayoutError(
            "no cameras in this TOML file",
            where=path,
            expected="tables [cam_0], [cam_1], ... with matrix, rotation, translation",
            fix="give the calibration.toml that anipose wrote",
        )
    cameras, rows, left = [], [], []
    for key in sorted(tables, key=natural_key):
        name = str(tables[key].get("name", key))
        row = Row(tables[key], path, name)
        row.get("name")
        K = matrix3(row.need("matrix"), f"camera {name}: K", path)
        R = matrix3(row.need("rotation"), f"camera {name}: rotation", path)
        T = vector3(row.need("translation"), f"camera {name}: translation", path)
        size = _size(row)
        lens = _lens(row)
        left.append(row.close(_HARMLESS))
        rows.append(row)
        number = last_number(name, len(cameras))
        cameras.append(CameraModel(number, name, shifted_K(K), R, T, size, lens))
    return Calibration(
        path, kind, distinct_numbers(cameras), unit=unit, keys=keys_of(rows, left)
    )  # fmt: skip


def _size(row: Row) -> tuple[int, int] | None:
    size = row.get("size")
    if size is None:
        return None
    sides = numbers(size, f"camera {row.camera}: size", row.where).reshape(-1)
    if sides.size != 2 or sides.min() < 1 or sides.max() > 1 << 20:
        raise LayoutError(
            f"camera {row.camera}: size is not (width, height)",
            where=row.where,
            found=re.sub(r"\s+", " ", str(size))[:60],
            fix="export the calibration again",
        )
    return int(sides[0]), int(sides[1])


def _lens(row: Row) -> Lens | None:
    values = row.get("distortions", "distortion", "dist")
    if row.get("fisheye", default=False) in (False, 0, None):
        return coefficients(values, row.where)
    values = [0.0] * 4 if values is None else values
    return fisheye(numbers(values, "distortions", row.where), row.where, row.camera)
