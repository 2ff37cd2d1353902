"""The camera models of the tools that are read, by their names: which lens each is, or a refusal.

A model that is not known is never read as a pinhole camera: its pictures would be used with rays
that miss them.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.distortion import Fisheye, Lens
from mouselift_jax.errors import LayoutError

PERSPECTIVE = {"", "PERSPECTIVE", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL",
               "OPENCV", "FULL_OPENCV", "PLUMB_BOB", "RADTAN", "RATIONAL_POLYNOMIAL",
               "NONE", "BROWN"}  # fmt: skip
FISHEYE = {"OPENCV_FISHEYE", "FISHEYE", "EQUIDISTANT", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE",
           "KANNALA_BRANDT", "KANNALA_BRANDT4", "KB4", "EQUI", "SIMPLE_FISHEYE"}  # fmt: skip
# Readable where what sets them apart is zero. The second counts its k from 0, and has two more.
FROM_ZERO = "RAD_TAN_THIN_PRISM_FISHEYE"
THIN_PRISM = {"THIN_PRISM_FISHEYE", FROM_ZERO}
_ORDER = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6", "s1", "s2", "s3", "s4", "tx", "ty")
_FIX = "undistort the pictures first, and give the pinhole calibration that belongs to them"
_COEFFICIENT = re.compile(r"[kps]\d+|s[xy]\d+|t[xy]")


def lens(model: Any, values: Mapping[str, Any], where: Path, camera: str = "") -> Lens | None:
    """The lens of a camera by its model's name and its coefficients by theirs; None = pinhole.

    Args:
        model: the name (COLMAP's, nerfstudio's, ROS's, Kalibr's; any case), None = OpenCV's.
        values: coefficients: k1 ... k6, p1, p2, s1 ... s4 (sx1, sy1), tx, ty.
        where: the file, for messages.
        camera: its name, for messages.

    Raises:
        LayoutError: another model, or a coefficient that this model does not have or that two tools
            understand differently.
    """
    who = f"camera {camera}: " if camera else ""
    name = re.sub(r"[^A-Z0-9]+", "_", str(model or "").upper()).strip("_")
    given = {str(k): _number(v, f"{who}{k}", where) for k, v in values.items()}
    given = {{"sx1": "s1", "sy1": "s3"}.get(k, k): v for k, v in given.items() if v != 0.0}
    if name == FROM_ZERO:
        given = {f"k{int(k[1:]) + 1}" if k[0] == "k" else k: v for k, v in given.items()}
    if name in FISHEYE | THIN_PRISM:
        strange = sorted(set(given) - {"k1", "k2", "k3", "k4"})
        if strange:
            raise _refused(f"{who}a fisheye lens with {', '.join(strange)}", where, name)
        return Fisheye(np.array([given.get(f"k{i}", 0.0) for i in range(1, 5)]))
    if name not in PERSPECTIVE:
        raise _refused(f"{who}its camera model is {model!r}", where, name)
    strange = sorted(set(given) - set(_ORDER))
    if strange:
        raise _refused(f"{who}an ordinary lens with {', '.join(strange)}", where, name)
    rational = name in ("FULL_OPENCV", "RATIONAL_POLYNOMIAL") or {"k5", "k6"} & set(given)
    if "k4" in given and not rational:
        raise LayoutError(
            f"{who}k4 of an ordinary lens is not the same to every tool",
            where=where,
            expected="k1, k2, p1, p2, k3; OpenCV's k4 comes with k5 and k6; or the name of a model "
            "(OPENCV_FISHEYE, FULL_OPENCV)",
            found=f"k4 = {given['k4']:g} and the model {name or 'unnamed'}",
            fix="say camera_model in the file; " + _FIX,
        )
    if not given:
        return None
    values_ = [given.get(k, 0.0) for k in _ORDER]
    last = max(i for i, v in enumerate(values_) if v)
    return np.array(values_[: next(n for n in (5, 8, 12, 14) if n > last)])


def is_coefficient(key: str) -> bool:
    """Whether a key of a file names a coefficient of a lens: k1, p2, s3, sx1, tx."""
    return _COEFFICIENT.fullmatch(key) is not None


def fisheye(values: np.ndarray, where: Path, camera: str) -> Fisheye:
    """A fisheye lens of up to four coefficients in OpenCV's order; more must be zero."""
    values = np.asarray(values, np.float64).reshape(-1)
    if np.any(values[4:]):
        raise _refused(f"camera {camera}: a fisheye lens of {values.size} coefficients", where, "")
    return Fisheye(np.pad(values[:4], (0, max(0, 4 - values.size))))


def _number(value: Any, what: str, where: Path) -> float:
    try:
        number = float(value if value is not None else 0.0)
    except (TypeError, ValueError, OverflowError):
        number = np.nan
    if not np.isfinite(number):
        raise LayoutError(
            f"{what} is not a finite number",
            where=where,
            expected="a number",
            found=reprlib.repr(value),
            fix="export the calibration again",
        )
    return number


def _refused(what: str, where: Path, name: str) -> LayoutError:
    return LayoutError(
        f"{what}, which is not supported",
        where=where,
        expected="a pinhole camera with OpenCV's coefficients, or cv2.fisheye (k1 ... k4)",
        found=name or None,
        fix=_FIX,
    )
