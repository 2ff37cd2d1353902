"""Calibrations written back: only what changed, in the file's own conventions."""

from __future__ import annotations

import dataclasses
import json
import pickle
import struct

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mouselift_jax.data.readers import read_calibration
from mouselift_jax.data.readers.write_back import write_back
from mouselift_jax.geometry.bundle import rotations

R = rotations(np.array([[0.3, -0.2, 0.1], [0.0, 0.5, 0.0]]))
T = np.array([[1.0, 2.0, 300.0], [-4.0, 5.0, 310.0]])
K = np.array([[900.0, 0, 320.5], [0, 910.0, 240.25], [0, 0, 1]])
SIZES = [(640, 480)] * 2


def _pickle(path):
    rows = {f"cam{i + 1}": {"K": K, "R": R[i], "T": T[i][:, None], "by": "me"} for i in range(2)}
    path.write_bytes(pickle.dumps(rows))


def _opencv(path):
    rows = []
    for i in range(2):
        w2c = np.eye(4)
        w2c[:3, :3], w2c[:3, 3] = R[i], T[i]
        rows.append({"w": 640, "h": 480, "fx": 900, "fy": 910, "cx": 320.5, "cy": 240.25,
                     "w2c": w2c.tolist(), "file_path": f"images/cam_{i:03d}.png"})  # fmt: skip
    path.write_text(json.dumps({"id": "rig", "frames": rows}))


def _anipose(path):
    text = ""
    for i in range(2):
        text += f'[cam_{i}]\nname = "side{i}"\nsize = [ 640, 480,]\n'
        text += f"matrix = [ {', '.join(str(row.tolist()) for row in K)},]\n"
        text += "distortions = [ -0.1, 0.02, 0.0, 0.0, 0.0,]\nrotation = [ 0.1, 0.2, 0.3,]\n"
        text += f"translation = {T[i].tolist()}\n\n"
    path.write_text(text + "[metadata]\nadjusted = false\nerror = 0.4\n")


def _dannce(path):
    from scipy.io import savemat

    params = np.empty((2, 1), object)
    for i in range(2):
        params[i, 0] = {"K": K.T, "r": R[i].T, "t": T[i][None], "RDistort": np.array([[-0.1, 0.0]]),
                        "TDistort": np.zeros((1, 2))}  # fmt: skip
    savemat(path, {"params": params, "camnames": np.array(["Camera1", "Camera2"], object)})


def _caliscope(path):
    _anipose(path)
    text = path.read_text().replace("[cam_", "[cameras.").replace("name =", "cam_id =")
    path.write_text(text.replace('"side', '"').replace("[metadata]", "[cameras.9]\nignore = true"))


def _label3d(path):
    from scipy.io import loadmat, savemat

    _dannce(path)
    content = {k: v for k, v in loadmat(path).items() if k[0] != "_"}
    content["camParams"] = content.pop("params")
    savemat(path, content | {"imageSize": np.tile([480, 640], (2, 1)), "status": np.eye(2)})


def _hires(folder):
    from scipy.io import savemat

    for i in range(2):
        savemat(folder / f"hires_cam{i + 1}_params.mat",
                {"K": K.T, "r": R[i].T, "t": T[i][None], "RDistort": np.array([[-0.1, 0.02, 0.0]]),
                 "TDistort": np.zeros((1, 2))})  # fmt: skip


def _storage(folder, suffix="yml", turned=False):
    import cv2

    for i in range(2):
        values = {"camera_matrix": K, "distortion_coefficients": np.array([[-0.1, 1e-5, 0, 0, 0]]),
                  "R": R[i], "T": T[i][:, None]}  # fmt: skip
        if turned:
            values = {"intrinsicMatrix": K.T, "R": R[i].T, "T": T[i][:, None],
                      "distortionCoefficients": np.array([[-0.1, 0.02, 0, 0, 0]])}  # fmt: skip
        out = cv2.FileStorage(str(folder / f"Camera_{i}.{suffix}"), cv2.FILE_STORAGE_WRITE)
        out.write("image_width", 640)
        out.write("image_height", 480)
        for key, value in values.items():
            out.write(key, value)
        out.release()


def _colmap(folder, binary=False):
    quats = [np.roll(Rotation.from_matrix(r).as_quat(), 1).tolist() for r in R]
    values = [900.0, 910.0, 320.5, 240.25, -0.1, 0.02, 0.0, 0.0]
    if binary:
        cameras = images = struct.pack("<Q", 2)
        for i in range(2):
            cameras += struct.pack("<iiQQ8d", i + 1, 4, 640, 480, *values)
            images += struct.pack("<i7di", i + 1, *quats[i], *T[i], i + 1)
            images += f"cam{i}.png".encode() + b"\0" + struct.pack("<Qddq", 1, 1.0, 2.0, -1)
        (folder / "cameras.bin").write_bytes(cameras)
        (folder / "images.bin").write_bytes(images)
        return
    lines = [f"{i + 1} OPENCV 640 480 {' '.join(map(str, values))}" for i in range(2)]
    (folder / "cameras.txt").write_text("# cameras\n" + "\n".join(lines) + "\n")
    lines = [f"{i + 1} {' '.join(map(str, [*quats[i], *T[i]]))} {i + 1} cam{i}.png\n1.0 2.0 -1"
             for i in range(2)]  # fmt: skip
    (folder / "images.txt").write_text("# images\n" + "\n".join(lines) + "\n")


FOLDERS = {
    "hires": _hires,
    "yml": _storage,
    "xml": lambda f: _storage(f, "xml"),
    "jarvis": lambda f: _storage(f, "yaml", turned=True),
    "colmap txt": _colmap,
    "colmap bin": lambda f: _colmap(f, binary=True),
}


@pytest.mark.parametrize(
    ("name", "make"),
    [("new_cam.pkl", _pickle), ("opencv_cameras.json", _opencv), ("calibration.toml", _anipose),
     ("lab_dannce.mat", _dannce), ("camera_array.toml", _caliscope), ("label3d.mat", _label3d),
     *FOLDERS.items()],
)  # fmt: skip
def test_what_is_written_is_read_again(tmp_path, name, make):
    if name in FOLDERS:
        (tmp_path / name).mkdir()
    make(tmp_path / name)
    calibration = read_calibration(tmp_path / name)
    turn = rotations(np.array([[0.01, 0.02, -0.01]]))[0]
    new = []
    for camera in calibration.cameras:
        moved = camera.K + [[9.0, 0, 1.5], [0, 9.1, -0.5], [0, 0, 0]]
        lens = camera.distortion
        lens = None if lens is None else lens + np.pad([0.05, -0.01], (0, len(lens) - 2))
        new.append(
            dataclasses.replace(camera, K=moved, R=turn @ camera.R, T=camera.T + 2, distortion=lens)
        )
    out = tmp_path / "out"
    out.mkdir()
    path, same = write_back(calibration, new, out, SIZES)
    assert same and path == out / ("calibration" if name in FOLDERS else name)
    again = read_calibration(path)
    assert again.kind == calibration.kind
    for want, got in zip(new, again.cameras, strict=True):
        assert (want.name, want.number, want.size) == (got.name, got.number, got.size)
        for key in ("K", "R", "T"):
            np.testing.assert_allclose(getattr(got, key), getattr(want, key), atol=1e-9)
        if want.distortion is not None:
            np.testing.assert_allclose(got.distortion, want.distortion, atol=1e-12)


def test_keys_that_are_not_ours_stay(tmp_path):
    _pickle(tmp_path / "new_cam.pkl")
    calibration = read_calibration(tmp_path / "new_cam.pkl")
    out = tmp_path / "out"
    out.mkdir()
    write_back(calibration, calibration.cameras, out, SIZES)
    rows = pickle.loads((out / "new_cam.pkl").read_bytes())
    assert rows["cam2"]["by"] == "me" and rows["cam1"]["T"].shape == (3, 1)
    np.testing.assert_array_equal(rows["cam1"]["K"], K)  # not even the last bit moves
    _anipose(tmp_path / "calibration.toml")
    calibration = read_calibration(tmp_path / "calibration.toml")
    write_back(calibration, calibration.cameras, out, SIZES)
    assert "[metadata]\nadjusted = false\nerror = 0.4" in (out / "calibration.toml").read_text()


def test_what_a_format_has_no_room_for_becomes_ours(tmp_path):
    """Two focal lengths in one number; a lens where there is none."""
    (tmp_path / "sparse").mkdir()
    _colmap(tmp_path / "sparse")
    file = tmp_path / "sparse/cameras.txt"
    lines = [f"{i + 1} SIMPLE_PINHOLE 640 480 900 320.5 240.25" for i in range(2)]
    file.write_text("\n".join(lines) + "\n")
    calibration = read_calibration(tmp_path / "sparse")
    out = tmp_path / "out"
    new = [dataclasses.replace(c, K=c.K + np.diag([1.0, 2.0, 0])) for c in calibration.cameras]
    path, same = write_back(calibration, new, out, SIZES)
    assert not same and path.name == "opencv_cameras.json" and list(out.iterdir()) == [path]
    new = [dataclasses.replace(c, K=c.K + np.diag([1.0, 1.0, 0])) for c in calibration.cameras]
    assert write_back(calibration, new, out, SIZES) == (out / "calibration", True)
    assert (out / "calibration/images.txt").read_text().count("1.0 2.0 -1") == 2


def test_a_format_that_cannot_be_written_becomes_ours(tmp_path):
    _opencv(tmp_path / "opencv_cameras.json")
    calibration = read_calibration(tmp_path / "opencv_cameras.json")
    calibration.kind = "another"
    out = tmp_path / "out"
    out.mkdir()
    path, same = write_back(calibration, calibration.cameras, out, SIZES)
    assert not same
    for a, b in zip(calibration.cameras, read_calibration(path).cameras, strict=True):
        np.testing.assert_allclose(a.K, b.K)
        np.testing.assert_allclose(a.R, b.R)
