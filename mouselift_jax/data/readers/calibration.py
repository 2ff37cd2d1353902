"""What every calibration reader returns, and the checks that need no pictures.

A reader turns a file into a `Calibration` in the project's conventions (OpenCV axes, world to
camera, pixel centres at +0.5) and says in `notes` what it changed; `examine` looks for what cannot
be right.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mouselift_jax.data.distortion import Lens
from mouselift_jax.data.findings import Finding
from mouselift_jax.errors import LayoutError
from mouselift_jax.geometry.rig import looked_at

# What is added to a principal point, by where the file's program puts the first pixel's centre.
AT_ZERO, AT_HALF, AT_ONE = 0.5, 0.0, -0.5  # OpenCV; COLMAP, NeRF and we; MATLAB
ORIGINS = {
    AT_ZERO: "pixel centres at integers from 0 in the file: 0.5 added to cx, cy",
    AT_HALF: "pixel centres at +0.5 in the file, as here",
    AT_ONE: "pixel centres at integers from 1 in the file (MATLAB): 0.5 taken off cx, cy",
}
# A rig for mice: distance of a camera from what it looks at. Outside, the unit is not what it says.
RIG_MM = (30.0, 20_000.0)


@dataclasses.dataclass
class CameraModel:
    """One camera of a calibration file.

    Attributes:
        number: the file's number of the camera, or its place in the file.
        name: the file's name of it.
        K: intrinsics [3,3], pixels, pixel centres at +0.5.
        R: world-to-camera rotation [3,3], OpenCV axes.
        T: world-to-camera translation [3], the file's unit.
        size: (width, height) the calibration was made for, or None.
        distortion: OpenCV coefficients (k1, k2, p1, p2, k3, ...), a `Fisheye`, or None.
        picture: picture file the file names for this camera, or None.
        K_for: K of pictures of (width, height), where the file leaves their size open; K is then
            that of a picture 1000 pixels wide and high.
    """

    number: int
    name: str
    K: np.ndarray
    R: np.ndarray
    T: np.ndarray
    size: tuple[int, int] | None = None
    distortion: Lens | None = None
    picture: str | None = None
    K_for: Callable[[int, int], np.ndarray] | None = None

    def sized(self, width: int, height: int) -> CameraModel:
        """The camera of pictures of this size, where the file left the size open; else itself."""
        if self.K_for is None:
            return self
        K = self.K_for(width, height)
        return dataclasses.replace(self, K=K, size=(width, height), K_for=None)

    @property
    def center(self) -> np.ndarray:
        """Camera centre in the world [3]."""
        return -self.R.T @ self.T


@dataclasses.dataclass
class Calibration:
    """All cameras of one calibration file.

    Attributes:
        path: the file (or folder of files).
        kind: which format it is in.
        cameras: in the file's order.
        unit: `mm` where the format's users write millimetres, else `unknown`.
        notes: what the reader changed or assumed.
        tracks: named 3D tracks found beside the cameras, [F,3] or [F,M,3].
        pixel_shift: what was added to every cx and cy, a key of `ORIGINS`.
        files: the files that were read; `path` alone unless it is a folder.
        keys: the keys that were read, and those that were passed over because they do not change
            the geometry.
    """

    path: Path
    kind: str
    cameras: list[CameraModel]
    unit: str = "mm"
    notes: list[str] = dataclasses.field(default_factory=list)
    tracks: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    pixel_shift: float = AT_ZERO
    files: tuple[Path, ...] = ()
    keys: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def counted_from(self, shift: float) -> Calibration:
        """The same with principal points that the file counts from another origin (`ORIGINS`)."""
        by = shift - self.pixel_shift
        cameras = []
        for c in self.cameras:
            K_for = c.K_for
            moved = None if K_for is None else lambda w, h, K=K_for: shifted_K(K(w, h), by)
            cameras.append(dataclasses.replace(c, K=shifted_K(c.K, by), K_for=moved))
        notes = [n for n in self.notes if n != ORIGINS[self.pixel_shift]] + [ORIGINS[shift]]
        return dataclasses.replace(self, cameras=cameras, notes=notes, pixel_shift=shift)


def matrix3(value: object, what: str, path: Path) -> np.ndarray:
    """A 3x3 matrix; a rotation vector of three numbers becomes its matrix."""
    array = numbers(value, what, path)
    if array.size == 9:
        return array.reshape(3, 3)
    if array.size == 3 and what.lower().split()[-1] in ("r", "rotation", "rvec"):
        import cv2

        return cv2.Rodrigues(array.reshape(3))[0]
    raise LayoutError(
        f"{what} is not a 3x3 matrix",
        where=path,
        expected="9 numbers" + (" (or a rotation vector of 3)" if "K" not in what else ""),
        found=f"shape {list(array.shape)}",
        fix="export the calibration again",
    )


def vector3(value: object, what: str, path: Path) -> np.ndarray:
    """Three numbers, however they are nested: (3,), (3,1) and (1,3) all occur."""
    array = numbers(value, what, path)
    if array.size != 3:
        raise LayoutError(
            f"{what} is not a vector of three numbers",
            where=path,
            expected="3 numbers; shapes (3,), (3,1) and (1,3) are all fine",
            found=f"shape {list(array.shape)}",
            fix="export the calibration again",
        )
    return array.reshape(3)


def numbers(value: object, what: str, path: Path) -> np.ndarray:
    """Finite numbers as float64."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError, MemoryError):
        array = np.full((), np.nan)
    if array.size == 0 or not np.isfinite(array).all():
        raise LayoutError(
            f"{what} is not made of finite numbers",
            where=path,
            expected="real numbers",
            found=reprlib.repr(value),
            fix="export the calibration again",
        )
    return array


def coefficients(value: object, path: Path) -> np.ndarray | None:
    """Distortion coefficients, None where there are none or all are zero."""
    if value is None:
        return None
    array = numbers(value, "distortion", path).reshape(-1)
    if array.size not in (2, 4, 5, 8, 12, 14):
        raise LayoutError(
            "unknown number of distortion coefficients",
            where=path,
            expected="OpenCV's 4, 5, 8, 12 or 14 (k1, k2, p1, p2, k3, ...)",
            found=array.size,
            fix="export the coefficients in OpenCV's order",
        )
    if array.size == 2:
        array = np.concatenate([array, [0.0, 0.0]])
    return array if np.abs(array).max() > 0 else None


def shifted_K(K: np.ndarray, shift: float = AT_ZERO) -> np.ndarray:
    """K with the principal point moved from the file's convention (`ORIGINS`) to ours."""
    K = np.array(K, np.float64)
    K[:2, 2] += shift
    return K


def examine(calibration: Calibration) -> list[Finding]:
    """Everything that cannot be right about the cameras themselves, without any picture."""
    where = str(calibration.path)
    if len(calibration.cameras) < 2:
        found = f"{len(calibration.cameras)} camera(s)"
        message = f"a recording needs at least two calibrated cameras, found {found}"
        return [Finding("calibration_missing", "error", message, where=where)]
    findings = _merged([f for c in calibration.cameras for f in _examine_one(c, where)])
    if not findings:
        findings = _units(calibration) or _aim(calibration)
    return findings


def _merged(findings: list[Finding]) -> list[Finding]:
    """One finding for several cameras with the same fault."""
    merged: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        text = finding.message.split(": ", 1)[1].split(" (")[0]
        first = merged.setdefault((finding.code, text), finding)
        if first is not finding:
            first.cameras += finding.cameras
            first.message = f"cameras {', '.join(map(str, first.cameras))}: {text}"
    return list(merged.values())


def _examine_one(camera: CameraModel, where: str) -> list[Finding]:
    found = []

    def add(code: str, message: str, fix: str, **evidence: object) -> None:
        message = f"camera {camera.number}: {message}"
        found.append(Finding(code, "error", message, (camera.number,), fix, evidence, where=where))

    K, R = camera.K, camera.R
    scale = np.abs(K).max()
    if np.abs(K[2, :2]).max() > 1e-6 * scale and np.abs(K[:2, 2]).max() < 1.6:
        add("intrinsics", "K is transposed", "store K with the principal point in the last column")
    elif abs(K[2, 2] - 1) > 1e-6 or np.abs(K[2, :2]).max() > 1e-6:
        add("intrinsics", "K's last row is not (0, 0, 1)", "export K in pixels", found=K.tolist())
    elif K[0, 0] <= 0 or K[1, 1] <= 0:
        add("intrinsics", "a focal length is not positive", "export K in pixels", found=K.tolist())
    error = np.abs(R @ R.T - np.eye(3)).max()
    if error > 5e-3:
        add(
            "rotation_invalid",
            f"R is not a rotation (R R^T is off the identity by {error:.3g})",
            "export R as a 3x3 world-to-camera rotation",
            found=R.tolist(),
        )
    elif np.linalg.det(R) < 0:
        add(
            "handedness",
            "R mirrors the world (its determinant is -1)",
            "export the calibration with OpenCV axes (x right, y down, z forward); if the world's"
            " axes were exchanged, negate one column of every R instead",
            det=float(np.linalg.det(R)),
        )
    return found


def look_point(calibration: Calibration) -> np.ndarray:
    """The point nearest all optical axes, least squares, [3]."""
    axes = np.stack([c.R[2] for c in calibration.cameras])
    return looked_at([c.center for c in calibration.cameras], axes)


def _units(calibration: Calibration) -> list[Finding]:
    """Translations a thousand times too large or small, for one camera or for all."""
    centres = np.stack([c.center for c in calibration.cameras])
    apart = np.nanmedian(
        np.where(
            np.eye(len(centres)) > 0,
            np.nan,
            np.linalg.norm(centres[:, None] - centres[None], axis=-1),
        ),
        axis=1,
    )
    lengths = np.linalg.norm([c.T for c in calibration.cameras], axis=-1)
    typical, length = np.median(apart), np.median(lengths)
    where = str(calibration.path)
    for camera, far, T in zip(calibration.cameras, apart, lengths, strict=True):
        for factor in (1000.0, 0.001):
            off = T / max(length, 1e-12) / factor
            wrong = far > 50 * typical if factor > 1 else _better_scaled(calibration, camera)
            if 0.1 < off < 10 and wrong:
                message = (
                    f"camera {camera.number}: its translation is about {factor:g} times the others'"
                )
                return [
                    Finding(
                        "translation_units",
                        "error",
                        message,
                        (camera.number,),
                        f"divide T of camera {camera.number} by {factor:g} (mm and m are mixed)",
                        {"factor": factor, "length": float(T), "median_length": float(length)},
                        where=where,
                    )
                ]
    if calibration.unit != "mm":
        return []
    distance = np.median(np.linalg.norm(centres - look_point(calibration), axis=-1))
    if RIG_MM[0] <= distance <= RIG_MM[1]:
        return []
    factor = 0.001 if distance < RIG_MM[0] else 1000.0
    unit = "metres" if factor < 1 else "micrometres, or were scaled twice"
    message = (
        f"the cameras stand {distance:.4g} mm from what they look at: the translations look like "
        f"{unit}"
    )
    numbers_ = tuple(c.number for c in calibration.cameras)
    fix = f"divide T of every camera by {factor:g}, or name the unit (--config.prepare.unit=m)"
    evidence = {"factor": factor, "distance": float(distance), "expected": f"{RIG_MM} mm"}
    return [Finding("translation_units", "error", message, numbers_, fix, evidence, where=where)]


def _better_scaled(calibration: Calibration, camera: CameraModel) -> bool:
    """Whether a camera near the world's origin would stand as the others do with T times 1000.

    Most rigs have their origin in a camera or near one, so a short T alone is no fault: the camera
    must also look past what the others look at, or stand in it, and no longer do so when moved.
    """
    others = [c for c in calibration.cameras if c is not camera]
    if len(others) < 2:
        return False
    point = look_point(dataclasses.replace(calibration, cameras=others))
    usual = float(np.median([np.linalg.norm(c.center - point) for c in others]))

    def fits(centre: np.ndarray) -> bool:
        to_point = point - centre
        distance = float(np.linalg.norm(to_point))
        angle = float(np.arccos(np.clip(camera.R[2] @ to_point / max(distance, 1e-12), -1, 1)))
        return 0.2 * usual < distance < 5 * usual and angle < np.radians(25)

    return fits(1000 * camera.center) and not fits(camera.center)


def _aim(calibration: Calibration) -> list[Finding]:
    """Cameras that look away from the point the others look at."""
    if len(calibration.cameras) < 3:
        return []
    found = []
    for camera in calibration.cameras:
        others = [c for c in calibration.cameras if c is not camera]
        point = look_point(dataclasses.replace(calibration, cameras=others))
        depth = camera.R[2] @ point + camera.T[2]
        if depth <= 0:
            found.append(
                Finding(
                    "looks_away",
                    "error",
                    f"camera {camera.number} looks away from the point that the others look at",
                    (camera.number,),
                    "R may be transposed, T may be the camera's centre: `python -m mouselift_jax "
                    "check RECORDING` tries the corrections",
                    {"depth": float(depth), "point": point.tolist()},
                    where=str(calibration.path),
                )
            )
    # When most of them look away the convention as a whole is wrong, which is one finding.
    if len(found) > len(calibration.cameras) // 2:
        found[0].cameras = tuple(f.cameras[0] for f in found)
        found[0].message = (
            f"{len(found)} of {len(calibration.cameras)} cameras look away from each other's view: "
            "R and T are probably camera-to-world, or R is transposed"
        )
        found = found[:1]
    return found
