"""The layout of a recording folder: where its videos, masks, keypoints and calibration lie."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from mouselift_jax.data.readers import find_calibration, natural_key
from mouselift_jax.data.readers.keypoints import KEYPOINTS, SUFFIXES
from mouselift_jax.data.readers.registry import Source, choose
from mouselift_jax.data.readers.space import are_points
from mouselift_jax.data.recordings.pairing import CAMERA_WORD
from mouselift_jax.data.recordings.probe import PICTURE_SUFFIXES, VIDEO_SUFFIXES, list_files
from mouselift_jax.errors import LayoutError, MouseLiftError, nearest

VIDEO_FOLDERS = ("videos_undist", "videos", "video", "images", "rgb")


MASK_FOLDERS = ("simpleclick_undist", "masks", "mask", "masks_undist", "silhouettes")


KEYPOINT_FOLDERS = ("keypoints2d_undist", "keypoints2d", "keypoints")


POINT_FOLDERS = (*KEYPOINT_FOLDERS, "pose-3d-filtered", "pose-3d", ".")


_OTHERS = (*MASK_FOLDERS, *KEYPOINT_FOLDERS, *POINT_FOLDERS, "calibration", "calib", "cameras")


Pictures = Path | tuple[Path, ...]


@dataclasses.dataclass
class Layout:
    """Where the parts of a recording are.

    Attributes:
        path: the folder.
        calibration: calibration file, or the folder of its files; None if absent.
        videos: picture source by camera name: a video file, the files of one video in order, or a
            folder of pictures.
        masks: mask source by camera name; empty if the recording has none.
        keypoints: keypoint file by camera name.
        points: files of points in space.
    """

    path: Path
    calibration: Path | None
    videos: dict[str, Pictures]
    masks: dict[str, Pictures]
    keypoints: dict[str, Path]
    points: list[Path] = dataclasses.field(default_factory=list)

    def join_chunks(self, n_cameras: int) -> None:
        """Take more video files than cameras for the pieces of one video a camera, if they are."""
        for part in ("videos", "masks"):
            setattr(self, part, _joined(getattr(self, part), n_cameras))


def find_recording(path: str | Path) -> Layout:
    """Find the parts of a recording by their usual names; parts may be missing.

    Raises:
        LayoutError: there is no such folder.
    """
    path = Path(path)
    if not path.is_dir():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise LayoutError(
            "no such recording",
            where=path,
            expected="a folder with videos and a calibration",
            found="a file" if path.exists() else f"nothing; {nearest(path.name, beside)}",
            fix="give the folder that holds videos_undist/ and new_cam.pkl",
        )
    videos = _sources(path, VIDEO_FOLDERS)
    if not videos:  # videos right in the folder
        videos = {p.stem: p for p in list_files(path, VIDEO_SUFFIXES)}
    if not videos:  # a folder for each camera right in the folder, with its video
        videos = {n: p for n, p in _sources(path, (".",)).items() if n not in _OTHERS}
    keypoints = {}
    for name in KEYPOINT_FOLDERS:
        files = list_files(path / name, SUFFIXES)
        keypoints = keypoints or {re.sub(r"^result_view_", "", p.stem): p for p in files}
    keypoints = keypoints or _beside(path, videos)
    points = [
        file
        for name in POINT_FOLDERS
        for file in list_files(path / name, (".csv", ".h5", ".hdf5"))
        if are_points(file)
    ]
    keypoints = {name: file for name, file in keypoints.items() if file not in points}
    masks = _sources(path, MASK_FOLDERS)
    return Layout(path, find_calibration(path), videos, masks, keypoints, points)


def _sources(path: Path, names: tuple[str, ...]) -> dict[str, Pictures]:
    """Videos, or folders with one video or many pictures, of the first folder that has any."""
    for name in names:
        folder = path / name
        found = {p.stem: p for p in list_files(folder, VIDEO_SUFFIXES)}
        subfolders = [p for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
        for sub in sorted(subfolders, key=lambda p: natural_key(p.name)):
            inner = list_files(sub, VIDEO_SUFFIXES)
            if len(inner) == 1:
                found.setdefault(sub.name, inner[0])
            elif inner and _is_series([p.stem for p in inner]):
                found.setdefault(sub.name, sub)
            elif list_files(sub, PICTURE_SUFFIXES):
                found.setdefault(sub.name, sub)
        if found:
            return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))
    return {}


def _beside(path: Path, videos: dict[str, Pictures]) -> dict[str, Path]:
    """Keypoint files in the cameras' own folders; not their clocks and remarks (csv, npy, json)."""
    found = {}
    for name, source in videos.items():
        folder = source if source.is_dir() else source.parent
        files = list_files(folder, SUFFIXES) if folder.parent == path else []
        files = [f for f in files if _are_keypoints(f)]
        if len(files) == 1:
            found[name] = files[0]
    return found


def _are_keypoints(file: Path) -> bool:
    try:
        return choose(KEYPOINTS, Source(file)) is not None
    except MouseLiftError:  # damaged, or h5py is needed: reading it says so
        return True


def _is_series(stems: Sequence[str]) -> bool:
    """Whether names are of the pieces of one video: 0, 3500 (DANNCE); rec_01, rec_02; dates.

    They differ in numbers alone, and in none that is called a camera's.
    """
    parts = [re.split(r"(\d+)", stem) for stem in stems]
    if all(stem.isdigit() for stem in stems) or len({len(p) for p in parts}) > 1:
        return all(stem.isdigit() for stem in stems)
    differ = [k for k in range(len(parts[0])) if len({p[k] for p in parts}) > 1]
    heads = ["".join(parts[0][:k]).lower() for k in differ]
    return all(k % 2 for k in differ) and not any(map(CAMERA_WORD.search, heads))


def _joined(files: dict[str, Pictures], n_cameras: int) -> dict[str, Pictures]:
    """cam0_000, cam0_001, cam1_000 ... as one source a camera; the same where they are no pieces.

    The pieces' number is one by which every camera has the same numbers, and no camera's; the one
    that leaves as many cameras as there are, else the last one.
    """
    paths = {name: file for name, file in files.items() if isinstance(file, Path)}
    if len(files) <= n_cameras or len(paths) < len(files):
        return files
    if not all(p.suffix.lower() in VIDEO_SUFFIXES and not p.is_dir() for p in paths.values()):
        return files
    found: list[dict[str, Pictures]] = []
    groups = {name: list(re.finditer(r"\d+", name)) for name in files}
    for place in range(min(map(len, groups.values())) - 1, -1, -1):
        pieces: dict[str, dict[int, Path]] = {}
        for name, numbers in groups.items():
            number = numbers[place]
            head = name[: number.start()]
            if CAMERA_WORD.search(head.lower()):
                break
            rest = (head.rstrip(" _-.") + name[number.end() :]).strip(" _-.")
            pieces.setdefault(rest, {})[int(number.group())] = paths[name]
        else:
            series = {tuple(sorted(p)) for p in pieces.values()}
            whole = sum(map(len, pieces.values())) == len(files)
            if whole and len(series) == 1 and 2 <= len(pieces) <= n_cameras:
                found.append({n: tuple(p[k] for k in sorted(p)) for n, p in pieces.items()})
    return next((f for f in found if len(f) == n_cameras), found[0] if found else files)


def recordings_near(path: Path) -> list[Path]:
    """Folders one level up or down that look like a recording: videos and a calibration."""
    near = [path.resolve().parent, *sorted(p for p in path.iterdir() if p.is_dir())]
    return [p for p in near if find_calibration(p) and find_recording(p).videos]
