"""The calibration formats that are read, and finding the calibration of a recording."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mouselift_jax.data.readers import yaml_cameras as yaml_
from mouselift_jax.data.readers.calibration import ORIGINS, Calibration
from mouselift_jax.data.readers.colmap import model_files, read_colmap
from mouselift_jax.data.readers.json_cameras import (
    is_transforms,
    read_opencv_cameras,
    read_transforms,
)
from mouselift_jax.data.readers.matlab import cells, is_one_camera, read_dannce, read_dannce_folder
from mouselift_jax.data.readers.pickles import read_camera_pickle
from mouselift_jax.data.readers.registry import YAML, Format, Source, choose
from mouselift_jax.data.readers.toml_cameras import (
    is_anipose,
    is_caliscope,
    read_anipose,
    read_caliscope,
)
from mouselift_jax.errors import LayoutError


def _mat(*wanted: str) -> Callable[[Source], bool]:
    return lambda s: bool(s.suffix) and any(cells(c)[0] in wanted for c in s.mat.values())


def _mat_folder(source: Source) -> list[Path]:
    if source.suffix or not any(source.path.glob("*_params.mat")):
        return []
    return [p for p, content in source.mat.items() if is_one_camera(content)]


def _yaml_format(name: str, is_: Callable, read: Callable, *words: str) -> Format[Calibration]:
    """A format of YAML files: those of a folder that are of it are read together."""

    def reader(source: Source) -> Calibration:
        files: dict[Path, Any] = {p: content for p, content in source.yaml.items() if is_(content)}
        calibration = read(files, next(iter(files)) if len(files) == 1 else source.path)
        calibration.files = tuple(files)
        others = [p.name for p in source.yaml if p not in files]
        others += [Path(str(e.where)).name for e in source.problems]
        if others:
            calibration.notes.append(f"not of the calibration: {', '.join(others)}")
        return calibration

    tool, file_names, note = words
    return Format(
        name, tool, file_names, note, lambda s: any(map(is_, s.yaml.values())), reader
    )  # fmt: skip


CALIBRATIONS: tuple[Format[Calibration], ...] = (
    Format(
        "pickle", "MAMMAL and others",
        "`new_cam.pkl` (`cameras.pkl`, `calibration.pkl`, `cam.pkl`)",
        "list of dicts `K`, `R`, `T` (and `dist`), or a dict with numbers or names as keys; `T` as "
        "(3,), (3,1) or (1,3). Read without executing anything from it: only NumPy arrays, "
        "numbers, text, lists and dicts are accepted",
        lambda s: s.suffix in (".pkl", ".pickle"), lambda s: read_camera_pickle(s.path),
    ),
    Format(
        "opencv_cameras", "FaceLift, our samples", "`opencv_cameras.json`",
        "`frames: [{w, h, fx, fy, cx, cy, w2c}]`",
        lambda s: s.suffix == ".json" and not is_transforms(s.json),
        lambda s: read_opencv_cameras(s.path),
    ),
    Format(
        "transforms", "NeRF, instant-ngp, nerfstudio", "`transforms.json`",
        "OpenGL axes are turned to OpenCV's; `camera_model` and `is_fisheye` are obeyed; without "
        "`w` and `h` the pictures' size counts",
        lambda s: s.suffix == ".json" and is_transforms(s.json), lambda s: read_transforms(s.path),
    ),
    Format(
        "dannce", "DANNCE", "`*_dannce.mat`",
        "`params`: K and r transposed, pixels counted from 1; files saved with -v7.3 need h5py: "
        "`pip install -e '.[keypoints]'`",
        _mat("params"), lambda s: read_dannce(s.path),
    ),
    Format(
        "label3d", "Label3D", "a session `.mat`", "`camParams`: as `params` of DANNCE",
        _mat("camParams", "cam_params"), lambda s: read_dannce(s.path),
    ),
    Format(
        "dannce_folder", "DANNCE", "a folder of `hires_cam1_params.mat`, ...",
        "one file a camera, as `params` of DANNCE",
        lambda s: bool(_mat_folder(s)), lambda s: read_dannce_folder(_mat_folder(s)),
    ),
    Format(
        "anipose", "anipose, aniposelib", "`calibration.toml`",
        "`[cam_0]` ...: rotation vectors; `fisheye = true` is obeyed",
        lambda s: is_anipose(s.toml), lambda s: read_anipose(s.path),
    ),
    Format(
        "caliscope", "Caliscope (pyxy3d)", "`camera_array.toml`, older: `config.toml`",
        "`[cameras.0]` ...; metres; cameras marked `ignore` are left out",
        lambda s: is_caliscope(s.toml), lambda s: read_caliscope(s.path),
    ),
    Format(
        "colmap", "COLMAP", "a folder (`sparse/0`) of `cameras` and `images`, `.bin` or `.txt`",
        "every model with OpenCV's or cv2.fisheye's lens; its unit is unknown, say it",
        lambda s: not s.suffix and model_files(s.path) is not None, lambda s: read_colmap(s.path),
    ),
    _yaml_format(
        "opencv", yaml_.is_opencv, yaml_.read_opencv, "OpenCV `FileStorage`, or plain YAML",
        "`*.yml`, `*.yaml`, `*.xml`, one a camera",
        "`camera_matrix`, `distortion_coefficients`, `R` or `rvec`, `T`",
    ),
    _yaml_format(
        "easymocap", yaml_.is_easymocap, yaml_.read_easymocap, "EasyMocap",
        "`intri.yml` and `extri.yml`", "`K_n`, `dist_n`, `Rot_n`, `T_n`, `H_n`, `W_n`",
    ),
    _yaml_format(
        "jarvis", yaml_.is_jarvis, yaml_.read_jarvis, "JARVIS-MoCap",
        "`Camera_B.yaml`, one a camera",
        "`intrinsicMatrix` and `R` are stored transposed",
    ),
    _yaml_format(
        "ros", yaml_.is_ros, yaml_.read_ros, "ROS `camera_info`", "`*.yaml`, one a camera",
        "poses from `rectification_matrix` and `projection_matrix` of a stereo set; metres; the "
        "file of a single camera has none",
    ),
    _yaml_format(
        "kalibr", yaml_.is_kalibr, yaml_.read_kalibr, "Kalibr", "`camchain.yaml`",
        "pinhole with radtan or equidistant lenses; the world is that of cam0; metres",
    ),
)  # fmt: skip

# Names looked for in a recording's folder, most specific first.
_NAMES = (
    "new_cam.pkl", "cameras.pkl", "calibration.pkl", "cam.pkl", "opencv_cameras.json",
    "transforms.json", "*_dannce.mat", "*.mat", "calibration.toml", "camera_array.toml", "*.toml",
)  # fmt: skip
_FOLDERS = (".", "calibration", "calib", "cameras", "sparse/0", "sparse", "colmap/sparse/0",
            "colmap")  # fmt: skip


def find_calibration(folder: Path) -> Path | None:
    """The calibration of a recording's folder: a file, or the folder of its several files.

    The first that a reader recognises, by names from the most specific on; where none is
    recognised the first that has such a name, so that its reader can say what is wrong with it.
    """
    unknown = []
    for sub in _FOLDERS:
        for pattern in _NAMES:
            for path in sorted((folder / sub).glob(pattern)):
                if path.is_file() and _is_claimed(path):
                    return path
                unknown.append(path)
    for sub in _FOLDERS:
        place = folder / sub
        if place.is_dir():
            if _is_claimed(place):
                return place
            unknown += [p for p in sorted(place.iterdir()) if p.suffix.lower() in YAML]
    return unknown[0] if unknown else None


def _is_claimed(path: Path) -> bool:
    try:
        return choose(CALIBRATIONS, Source(path)) is not None
    except LayoutError:  # damaged, or two formats: reading it says so
        return True


def read_calibration(path: str | Path) -> Calibration:
    """Read any supported calibration.

    Raises:
        LayoutError: unknown format or broken content.
    """
    path = Path(path)
    source = Source(path)
    chosen = choose(CALIBRATIONS, source)
    if chosen is None:
        if source.problems:
            raise source.problems[0]
        raise LayoutError(
            "no calibration in any format that is read",
            where=path,
            expected=", ".join(f.name for f in CALIBRATIONS),
            found=_found(source),
            fix="`python -m mouselift_jax check --list-formats` says what is read; "
            "docs/data_format.md shows where to put it",
        )
    calibration = chosen.read(source)
    calibration.files = calibration.files or (path,)
    calibration.notes.append(ORIGINS[calibration.pixel_shift])
    used, left = calibration.keys
    if used:
        passed = f"; not needed: {', '.join(left)}" if left else ""
        calibration.notes.append(f"keys read: {', '.join(used)}{passed}"[:400])
    return calibration


def _found(source: Source) -> str:
    if not source.path.exists():
        return "no such file"
    content = dict(source.toml)
    for inner in (*source.yaml.values(), *(source.mat.values() if source.suffix else ())):
        content |= inner
    keys = [k for k in map(str, content) if not k.startswith("__")]
    return f"keys {', '.join(keys)}"[:200] if keys else f"a {source.suffix or 'folder'}"
