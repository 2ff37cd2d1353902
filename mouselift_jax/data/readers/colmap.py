"""COLMAP's cameras and images, as text or binary: every distinct pose is a camera.

COLMAP puts pixel centres at +0.5, as we do; its poses are world to camera with OpenCV's axes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mouselift_jax.data.readers.calibration import AT_HALF, Calibration, CameraModel
from mouselift_jax.data.readers.json_cameras import number_by_path
from mouselift_jax.data.readers.lenses import lens
from mouselift_jax.data.readers.text import natural_key, read_text
from mouselift_jax.errors import LayoutError

# name -> its parameters, in the order of COLMAP's numbers of models
MODELS = {
    "SIMPLE_PINHOLE": "f cx cy",
    "PINHOLE": "fx fy cx cy",
    "SIMPLE_RADIAL": "f cx cy k1",
    "RADIAL": "f cx cy k1 k2",
    "OPENCV": "fx fy cx cy k1 k2 p1 p2",
    "OPENCV_FISHEYE": "fx fy cx cy k1 k2 k3 k4",
    "FULL_OPENCV": "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6",
    "FOV": "fx fy cx cy omega",
    "SIMPLE_RADIAL_FISHEYE": "f cx cy k1",
    "RADIAL_FISHEYE": "f cx cy k1 k2",
    "THIN_PRISM_FISHEYE": "fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1",
    "RAD_TAN_THIN_PRISM_FISHEYE": "fx fy cx cy k0 k1 k2 k3 k4 k5 p0 p1 s0 s1 s2 s3",
    "SIMPLE_DIVISION": "f cx cy k",
    "DIVISION": "fx fy cx cy k",
    "SIMPLE_FISHEYE": "f cx cy",
    "FISHEYE": "fx fy cx cy",
    "EUCM": "fx fy cx cy alpha beta",
    "EQUIRECTANGULAR": "w h",
}
_LENS = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")  # OpenCV's order
# model, width, height, parameters of a camera; camera's number, wxyz, T, name of a picture
_Cameras = dict[int, tuple[str, int, int, tuple[float, ...]]]
_Images = list[tuple[int, np.ndarray, np.ndarray, str]]


def model_files(folder: Path) -> tuple[Path, Path] | None:
    """(cameras, images) of a COLMAP model in this folder, binary before text."""
    for suffix in (".bin", ".txt"):
        files = (folder / f"cameras{suffix}", folder / f"images{suffix}")
        if all(f.is_file() for f in files):
            return files
    return None


def read_colmap(folder: Path) -> Calibration:
    """A COLMAP model: cameras.txt and images.txt, or their .bin.

    Raises:
        LayoutError: damaged, or a camera model that is not supported.
    """
    files = model_files(folder)
    if files is None:
        raise LayoutError(
            "no COLMAP model here",
            where=folder,
            expected="cameras.txt and images.txt, or cameras.bin and images.bin",
            fix="give the folder sparse/0 of the reconstruction",
        )
    is_text = files[0].suffix == ".txt"
    readers = (_cameras_text, _images_text) if is_text else (_cameras_binary, _images_binary)
    cameras, images = (read(f) for read, f in zip(readers, files, strict=True))
    models: list[CameraModel] = []
    seen: set[bytes] = set()
    for number, quat, T, name in sorted(images, key=lambda row: natural_key(row[3])):
        if number not in cameras:
            raise _broken(files[1], f"picture {name} is of camera {number}, which is not there")
        model, width, height, values = cameras[number]
        R = _rotation(quat, files[1], name)
        key = np.concatenate([R.ravel(), T, [number]]).round(9).tobytes()
        if key in seen:
            continue
        seen.add(key)
        given = dict(zip(MODELS[model].split(), values, strict=True))
        rest = {k: v for k, v in given.items() if k not in ("f", "fx", "fy", "cx", "cy")}
        distortion = lens(model, rest, files[0], str(number))
        fx = given.get("fx", given.get("f"))
        K = np.array([[fx, 0, given["cx"]], [0, given.get("fy", fx), given["cy"]], [0, 0, 1.0]])
        size = (width, height)
        models.append(CameraModel(len(models), name, K, R, T, size, distortion, name))
    if not models:
        raise _broken(files[1], "no pictures")
    number_by_path(models)
    notes = [f"camera models: {', '.join(sorted({c[0] for c in cameras.values()}))}"]
    return Calibration(
        folder, "colmap", models, unit="unknown", notes=notes, pixel_shift=AT_HALF, files=files
    )


def rewritten(
    files: Sequence[Path], pairs: Sequence[tuple[CameraModel, CameraModel]]
) -> dict[str, bytes] | None:
    """A model's two files with other poses and intrinsics; None where its cameras cannot hold them.

    Args:
        files: cameras and images, as `model_files` gives them.
        pairs: cameras as they were read, and as they are now.
    """
    is_text = files[0].suffix == ".txt"
    held = (_cameras_text if is_text else _cameras_binary)(files[0])
    new = {old.picture: model for old, model in pairs}
    images = (_images_text if is_text else _images_binary)(files[1])
    now, first, of_camera = {}, {}, {}
    for number, quat, T, name in sorted(images, key=lambda row: natural_key(row[3])):
        key = (quat.tobytes(), T.tobytes(), number)  # pictures of one pose are one camera
        now[name] = model = first.setdefault(key, new.get(name))
        if model is None or number not in held:
            return None
        values = _values(held[number][0], model)
        if values is None or not np.allclose(of_camera.setdefault(number, values), values):
            return None  # several cameras share these intrinsics, or the model has no such number
    write = (_text_with, _text_posed) if is_text else (_binary_with, _binary_posed)
    return {files[0].name: write[0](files[0], held, of_camera),
            files[1].name: write[1](files[1], now)}  # fmt: skip


def _values(model: str, camera: CameraModel) -> tuple[float, ...] | None:
    """Parameters of a COLMAP model; None where it has no room for them."""
    K, names = camera.K, MODELS[model].split()
    if not {n for n in names if n not in ("f", "fx", "fy", "cx", "cy")} <= set(_LENS):
        return None
    given = {"f": K[0, 0], "fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
    d = camera.distortion
    if isinstance(d, np.ndarray):
        given |= dict(zip(_LENS, np.pad(d, (0, max(0, 8 - len(d)))), strict=False))
    elif d is not None:
        given |= {f"k{i + 1}": x for i, x in enumerate(d.coefficients)}
    lost = [k for k in given if k not in names and k[0] in "kp" and given[k]]
    if lost or ("f" in names and abs(K[0, 0] - K[1, 1]) > 1e-9 * K[0, 0]):
        return None
    return tuple(float(given.get(k, 0.0)) for k in names)


def _pose(model: CameraModel) -> tuple[float, ...]:
    from scipy.spatial.transform import Rotation

    quat = np.roll(Rotation.from_matrix(model.R).as_quat(), 1)
    return (*map(float, quat), *map(float, model.T))


def _text_with(path: Path, held: _Cameras, values: dict[int, tuple[float, ...]]) -> bytes:
    lines = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"]
    for number, (model, width, height, before) in held.items():
        numbers = " ".join(map(repr, values.get(number, before)))
        lines.append(f"{number} {model} {width} {height} {numbers}")
    return ("\n".join(lines) + "\n").encode()


def _text_posed(path: Path, now: dict[str, CameraModel]) -> bytes:
    out, is_points = [], False
    for line in read_text(path, 1 << 30).splitlines():
        words = line.split()
        if line.lstrip().startswith("#") or is_points or not words:
            out.append(line)
            is_points = is_points and line.lstrip().startswith("#")
            continue
        pose = _pose(now[" ".join(words[9:])])
        out.append(" ".join([words[0], *map(repr, pose), *words[8:]]))
        is_points = True
    return ("\n".join(out) + "\n").encode()


def _binary_with(path: Path, held: _Cameras, values: dict[int, tuple[float, ...]]) -> bytes:
    out = struct.pack("<Q", len(held))
    for number, (model, width, height, before) in held.items():
        numbers = values.get(number, before)
        out += struct.pack("<iiQQ", number, list(MODELS).index(model), width, height)
        out += struct.pack(f"<{len(numbers)}d", *numbers)
    return out


def _binary_posed(path: Path, now: dict[str, CameraModel]) -> bytes:
    data = _Bytes(path)
    out = bytearray(data.data)
    for _ in range(data.take("Q")[0]):
        data.take("i")
        at = data.at
        data.take("7di")
        struct.pack_into("<7d", out, at, *_pose(now[data.text()]))
        (points,) = data.take("Q")
        data.at += 24 * points
    return bytes(out)


def _rotation(quat: np.ndarray, path: Path, name: str) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    if not 1e-6 < np.linalg.norm(quat) < 1e6:
        raise _broken(path, f"picture {name} has no rotation: {quat.tolist()}")
    return Rotation.from_quat(np.roll(quat, -1)).as_matrix()


def _broken(path: Path, found: str) -> LayoutError:
    return LayoutError(
        "not a readable COLMAP model",
        where=path,
        found=found[:160],
        fix="export the model again: colmap model_converter --output_type TXT",
    )


def _camera(path: Path, model: str, width: int, height: int, values: list[float]) -> tuple:
    if model not in MODELS:
        raise LayoutError(
            f"COLMAP's camera model {model[:40]} is not supported",
            where=path,
            expected=", ".join(MODELS),
            fix="undistort the pictures: colmap image_undistorter",
        )
    if len(values) != len(MODELS[model].split()) or not np.isfinite(values).all():
        raise _broken(path, f"{model} with parameters {values}")
    if not (0 < width <= 1 << 20 and 0 < height <= 1 << 20):
        raise _broken(path, f"pictures of {width}x{height}")
    return model, width, height, tuple(values)


def _words(path: Path) -> Iterator[list[str]]:
    for line in read_text(path, 1 << 30).splitlines():
        if not line.lstrip().startswith("#"):
            yield line.split()


def _cameras_text(path: Path) -> _Cameras:
    out: _Cameras = {}
    for words in filter(None, _words(path)):
        try:
            number, width, height = int(words[0]), int(words[2]), int(words[3])
            values = [float(w) for w in words[4:]]
        except (ValueError, IndexError) as error:
            raise _broken(path, " ".join(words)) from error
        out[number] = _camera(path, words[1], width, height, values)
    return out


def _images_text(path: Path) -> _Images:
    """Two lines a picture; the second, its points, may be empty."""
    out: _Images = []
    lines = list(_words(path))
    while lines and not lines[0]:
        lines.pop(0)
    for words in filter(None, lines[::2]):
        try:
            pose = np.array([float(w) for w in words[1:8]])
            number, name = int(words[8]), " ".join(words[9:])
        except (ValueError, IndexError) as error:
            raise _broken(path, " ".join(words)) from error
        if not np.isfinite(pose).all() or not name:
            raise _broken(path, " ".join(words))
        out.append((number, pose[:4], pose[4:], name))
    return out


class _Bytes:
    """A file's bytes, taken from the front."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    def take(self, form: str) -> tuple:
        form = "<" + form
        try:
            values = struct.unpack_from(form, self.data, self.at)
        except struct.error as error:
            raise _broken(self.path, f"it ends after {len(self.data)} bytes") from error
        self.at += struct.calcsize(form)
        return values

    def text(self) -> str:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise _broken(self.path, "a name without an end")
        text, self.at = self.data[self.at : end].decode("utf-8", "replace"), end + 1
        return text


def _cameras_binary(path: Path) -> _Cameras:
    data, out = _Bytes(path), {}
    names = list(MODELS)
    for _ in range(data.take("Q")[0]):
        number, model, width, height = data.take("iiQQ")
        name = names[model] if 0 <= model < len(names) else f"number {model}"
        n = len(MODELS[name].split()) if name in MODELS else 0
        out[number] = _camera(path, name, width, height, list(data.take(f"{n}d")))
    return out


def _images_binary(path: Path) -> _Images:
    data, out = _Bytes(path), []
    for _ in range(data.take("Q")[0]):
        data.take("i")
        pose = np.array(data.take("7d"))
        (number,), name = data.take("i"), data.text()
        (points,) = data.take("Q")
        if data.at + 24 * points > len(data.data):
            raise _broken(path, f"{points} points after byte {data.at} of {len(data.data)}")
        data.at += 24 * points
        if not np.isfinite(pose).all():
            raise _broken(path, f"picture {name!r} has no pose")
        out.append((number, pose[:4], pose[4:], name))
    return out
