"""A recording: synchronised pictures of some cameras, their masks, calibration and keypoints.

`open_recording(path)` is the one way in. Everything a `Recording` holds follows the project's
conventions whatever the files said: OpenCV axes, pixel centres at +0.5, millimetres where the
unit is known. Pictures are not decoded here (see `video.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.distortion import Lens
from mouselift_jax.data.findings import Finding
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.similarity import Similarity


@dataclasses.dataclass(frozen=True)
class Frames:
    """The pictures (or masks) of one camera: a video file, or a folder of picture files.

    Attributes:
        kind: `video` (path is a file) or `folder` (of picture files).
        path: file or folder.
        n_frames: number of frames; of videos, those that players show.
        fps: frames per second; 0 where unknown.
        width: pixels.
        height: pixels.
        files: the picture files of a `folder`, in frame order.
        has_alpha: the pictures carry an alpha channel.
        white: level that means full; 0 where samples use the whole range of their type. Cameras
            write 10, 12 or 14 bits into 16, segmentation tools write labels.
        channel: of masks: `grey`, `brightest` colour channel, or `alpha` (see `mask_levels`).
        deep: a video of 16-bit grey samples.
        declared: frames that a video's header counts; 0 where it says what is shown.
    """

    kind: str
    path: Path
    n_frames: int
    fps: float
    width: int
    height: int
    files: tuple[Path, ...] = ()
    has_alpha: bool = False
    white: int = 0
    channel: str = "grey"
    deep: bool = False
    declared: int = 0


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recording that can be prepared. All tuples run over the cameras in the same order.

    Attributes:
        path: the recording's folder.
        camera_ids: the numbers the recording gives its cameras, ascending.
        camera_names: their names in the calibration file (the numbers as text where it has none).
        cameras: one `Camera` each (NumPy float64 K [3,3] and c2w [4,4]), pixel centres at +0.5,
            in the recording's unit. They describe *undistorted* pictures.
        videos: the pictures.
        masks: the silhouettes, or None where the recording has none.
        mask_kind: `files` (own videos or pictures), `alpha` (of the pictures) or `none`.
        distortion: per camera None (the pictures are pinhole pictures already) or OpenCV's
            coefficients (k1, k2, p1, p2, k3, ...), or a `Fisheye`; still to be removed, once:
            sample picture pixel `distort_pixels(xy, K, coefficients)` for pinhole pixel xy
            (`data/distortion.py`). Masks and colour share them; keypoints here are already free.
        keypoints: [V, F, M, 3] float64 (x, y, confidence), pixel centres at +0.5, NaN where
            missing; or None.
        projected: the keypoints are points in space projected by these cameras: they say nothing
            of the cameras.
        n_frames: frames usable in all cameras.
        fps: frames per second, 0 where unknown.
        unit: `mm`, `m` or `unknown`.
        unit_mm: millimetres per unit of the cameras' translations; 1 where unknown.
        calibration_path: the file the cameras came from, or the folder of its several files.
        notes: remarks for the manifest and the report.
        findings: warnings and remarks of the look at the folder (errors are raised).
        level: rotation [3,3] from the calibration file's world to this one, whose z is up; None
            where they are the same.
        floor: height that became z = 0 of this world, along its z, where `up` is the floor's.
        calibration_files: the files the cameras came from; empty = `calibration_path` alone.
        pixel_shift: what was added to the file's principal points (see `readers.calibration`).
    """

    path: Path
    camera_ids: tuple[int, ...]
    camera_names: tuple[str, ...]
    cameras: tuple[Camera, ...]
    videos: tuple[Frames, ...]
    masks: tuple[Frames, ...] | None
    mask_kind: str
    distortion: tuple[Lens | None, ...]
    keypoints: np.ndarray | None
    n_frames: int
    fps: float
    unit: str
    unit_mm: float
    calibration_path: Path
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    calibration_files: tuple[Path, ...] = ()
    pixel_shift: float = 0.5
    level: np.ndarray | None = None
    floor: float = 0.0
    projected: bool = False

    @property
    def evidence(self) -> np.ndarray | None:
        """The keypoints, if they were found in the pictures without the calibration."""
        return None if self.projected else self.keypoints

    @property
    def n_views(self) -> int:
        """Number of cameras."""
        return len(self.cameras)

    def from_file(self, move: Similarity) -> dict[str, Any]:
        """A similarity out of this world as one out of the calibration file's, for JSON."""
        R = np.asarray(move.R)
        t = np.asarray(move.t) - move.scale * self.floor * R[:, 2]
        if self.level is not None:
            R = R @ self.level
        return {"scale": float(move.scale), "R": R.tolist(), "t": t.tolist()}

    def files(self) -> list[Path]:
        """Every file the recording was read from (folders of pictures: their files)."""
        frames = [*self.videos, *(self.masks or ())]
        found = [p for f in frames for p in (f.files or (f.path,))]
        return sorted({*(self.calibration_files or (self.calibration_path,)), *found})

    def hashes(self, *, limit_bytes: int = 1 << 20) -> dict[str, str]:
        """SHA-256 of every source file, as {relative path: hex}.

        Args:
            limit_bytes: of larger files only size, first and last `limit_bytes` enter the hash
                (a whole night of video is not read twice); such digests are prefixed `ends:`.
        """
        return {_relative(p, self.path): file_hash(p, limit_bytes) for p in self.files()}


def file_hash(path: Path, limit_bytes: int = 1 << 20) -> str:
    """SHA-256 of a file, of its size and two ends where it is larger than 2 * `limit_bytes`."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as f:
        if size <= 2 * limit_bytes:
            digest.update(f.read())
            return digest.hexdigest()
        digest.update(str(size).encode() + f.read(limit_bytes))
        f.seek(-limit_bytes, 2)
        digest.update(f.read())
    return "ends:" + digest.hexdigest()


def _relative(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.as_posix()
