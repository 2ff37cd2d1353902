"""Every calibration format, written by the test, read into the same cameras."""

import json
import os
import pickle

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from mouselift_jax.data.distortion import distort_pixels, undistort_pixels
from mouselift_jax.data.readers import (
    find_calibration,
    load_arrays,
    natural_key,
    read_calibration,
    read_keypoints_pickle,
)
from mouselift_jax.data.synthetic.rig import lab_rig
from mouselift_jax.errors import LayoutError

RIG = lab_rig(1152, 1024)


def raw_K(camera):
    K = camera.K.copy()
    K[:2, 2] -= 0.5
    return K


def w2c(camera):
    return np.asarray(camera.w2c)


def assert_same(calibration, cameras=RIG, atol=1e-6):
    assert [c.number for c in calibration.cameras] == list(range(len(cameras)))
    for model, camera in zip(calibration.cameras, cameras, strict=True):
        np.testing.assert_allclose(model.K, camera.K, atol=atol)
        np.testing.assert_allclose(model.R, w2c(camera)[:3, :3], atol=atol)
        np.testing.assert_allclose(model.T, w2c(camera)[:3, 3], atol=atol)


def rows(T_shape=(3,)):
    return [{"K": raw_K(c), "R": w2c(c)[:3, :3], "T": w2c(c)[:3, 3].reshape(T_shape)} for c in RIG]


@pytest.mark.parametrize("form", ["list", "int keys", "text keys", "cam keys", "T (3,1)", "rvec"])
def test_pickle_forms(tmp_path, form):
    content = rows((3, 1) if form == "T (3,1)" else (3,))
    if form == "int keys":
        content = dict(enumerate(content))
    elif form == "text keys":
        content = {str(i): r for i, r in reversed(list(enumerate(content)))}
    elif form == "cam keys":
        content = {f"cam{i}": r for i, r in enumerate(content)}
    elif form == "rvec":
        content = [{**r, "R": cv2.Rodrigues(r["R"])[0]} for r in content]
    path = tmp_path / "new_cam.pkl"
    path.write_bytes(pickle.dumps(content))
    assert_same(read_calibration(path))


def test_pickle_protocols_and_ten_cameras_in_numeric_order(tmp_path):
    rig = lab_rig(1152, 1024, 12)
    content = {
        str(i): {"K": raw_K(c), "R": w2c(c)[:3, :3], "T": w2c(c)[:3, 3]} for i, c in enumerate(rig)
    }
    for protocol in (2, 4, 5):
        path = tmp_path / f"cam{protocol}.pkl"
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        assert_same(read_calibration(path), rig)


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_pickle_never_runs_code(tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "new_cam.pkl"
    path.write_bytes(pickle.dumps([_Evil(marker)]))
    with pytest.raises(LayoutError, match="not plain data"):
        read_calibration(path)
    assert not marker.exists()


@pytest.mark.parametrize("cut", [0, 1, 5, 100, 500])
def test_damaged_pickle(tmp_path, cut):
    path = tmp_path / "new_cam.pkl"
    path.write_bytes(pickle.dumps(rows())[:cut])
    with pytest.raises(LayoutError, match="damaged"):
        load_arrays(path)


def test_pickle_without_T_names_the_key(tmp_path):
    path = tmp_path / "new_cam.pkl"
    path.write_bytes(pickle.dumps([{"K": np.eye(3), "R": np.eye(3), "Tr": 1}] * 2))
    with pytest.raises(LayoutError, match="no T"):
        read_calibration(path)


def test_opencv_cameras_json(tmp_path):
    frames = [
        {"w": c.width, "h": c.height, "fx": c.K[0, 0], "fy": c.K[1, 1], "cx": c.K[0, 2],
         "cy": c.K[1, 2], "w2c": w2c(c).tolist(), "file_path": f"images/cam_{i:03d}.png"}
        for i, c in enumerate(RIG)
    ]  # fmt: skip
    path = tmp_path / "opencv_cameras.json"
    path.write_text(json.dumps({"id": "x", "frames": frames}))
    calibration = read_calibration(path)
    assert_same(calibration)
    assert calibration.cameras[0].size == (1152, 1024)


@pytest.mark.parametrize("times", [1, 3])
def test_transforms_json(tmp_path, times):
    frames = []
    for t in range(times):
        for i, c in enumerate(RIG):
            c2w = c.c2w @ np.diag([1.0, -1.0, -1.0, 1.0])
            frames.append(
                {"file_path": f"images/cam{i}/{t:04d}.png", "transform_matrix": c2w.tolist(),
                 "w": 1152, "h": 1024, "fl_x": c.K[0, 0], "fl_y": c.K[1, 1], "cx": c.K[0, 2],
                 "cy": c.K[1, 2]}
            )  # fmt: skip
    path = tmp_path / "transforms.json"
    path.write_text(json.dumps({"frames": frames}))
    assert_same(read_calibration(path))


def test_transforms_json_with_field_of_view(tmp_path):
    frames = [
        {"file_path": f"{i}.png", "transform_matrix": c.c2w.tolist()} for i, c in enumerate(RIG)
    ]
    path = tmp_path / "transforms.json"
    content = {"camera_angle_x": 2 * np.arctan(0.5), "w": 800, "h": 600, "frames": frames}
    path.write_text(json.dumps(content))
    camera = read_calibration(path).cameras[0]
    np.testing.assert_allclose(camera.K, [[800, 0, 400], [0, 800, 300], [0, 0, 1]])


def test_dannce_mat(tmp_path):
    params = np.empty((6, 1), object)
    for i, c in enumerate(RIG):
        params[i, 0] = {
            "K": (raw_K(c) + [[0, 0, 1], [0, 0, 1], [0, 0, 0]]).T,  # MATLAB counts from 1
            "r": w2c(c)[:3, :3].T, "t": w2c(c)[:3, 3][None],
            "RDistort": np.array([[0.1, -0.2, 0.3]]), "TDistort": np.array([[1e-3, 2e-3]]),
        }  # fmt: skip
    path = tmp_path / "label3d_dannce.mat"
    names = np.array([f"Camera{i}" for i in range(6)], dtype=object)
    savemat(path, {"params": params, "camnames": names, "com": {"com3d": np.ones((7, 3))}})
    calibration = read_calibration(path)
    assert_same(calibration)
    np.testing.assert_allclose(calibration.cameras[2].distortion, [0.1, -0.2, 1e-3, 2e-3, 0.3])
    assert calibration.tracks["com3d"].shape == (7, 3)


def test_a_matlab_file_cut_short_is_told(tmp_path):
    path = tmp_path / "label3d_dannce.mat"
    savemat(path, {"params": np.zeros((50, 50))})
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(LayoutError, match="cannot read this MATLAB file") as told:
        read_calibration(path)
    assert "copy it again if it was cut short" in str(told.value)


def test_published_dannce_file(shared):
    calibration = read_calibration(shared / "data/dannce/label3d_dannce.mat")
    assert len(calibration.cameras) == 6 and calibration.tracks["com3d"].shape == (18000, 3)
    for model, camera in zip(calibration.cameras, RIG, strict=True):
        np.testing.assert_allclose(model.center, camera.center, atol=1e-3)


def test_anipose_toml(tmp_path):
    text = ""
    for i, c in enumerate(RIG):
        rvec = cv2.Rodrigues(w2c(c)[:3, :3])[0].ravel().tolist()
        text += (
            f'[cam_{i}]\nname = "{i}"\nsize = [1152, 1024]\nmatrix = {raw_K(c).tolist()}\n'
            f"distortions = [0.1, 0.0, 0.0, 0.0, 0.0]\nrotation = {rvec}\n"
            f"translation = {w2c(c)[:3, 3].tolist()}\n"
        )
    path = tmp_path / "calibration.toml"
    path.write_text(text + "[metadata]\nadjusted = true\n")
    calibration = read_calibration(path)
    assert_same(calibration)
    assert calibration.cameras[0].distortion[0] == 0.1


@pytest.mark.parametrize("form", ["one per camera", "easymocap"])
def test_opencv_yaml(tmp_path, form):
    if form == "one per camera":
        for i, c in enumerate(RIG):
            storage = cv2.FileStorage(str(tmp_path / f"cam{i}.yml"), cv2.FILE_STORAGE_WRITE)
            storage.write("camera_matrix", raw_K(c))
            storage.write("distortion_coefficients", np.zeros((5, 1)))
            storage.write("R", w2c(c)[:3, :3])
            storage.write("T", w2c(c)[:3, 3:])
            storage.write("image_width", 1152)
            storage.write("image_height", 1024)
            storage.release()
    else:
        intri = cv2.FileStorage(str(tmp_path / "intri.yml"), cv2.FILE_STORAGE_WRITE)
        extri = cv2.FileStorage(str(tmp_path / "extri.yml"), cv2.FILE_STORAGE_WRITE)
        for i, c in enumerate(RIG):
            intri.write(f"K_{i}", raw_K(c))
            extri.write(f"R_{i}", cv2.Rodrigues(w2c(c)[:3, :3])[0])
            extri.write(f"Rot_{i}", w2c(c)[:3, :3])
            extri.write(f"T_{i}", w2c(c)[:3, 3:])
        intri.release()
        extri.release()
    assert_same(read_calibration(find_calibration(tmp_path)))


def test_distortion_round_trip_and_opencv():
    K = RIG[0].K.copy()
    K[0, 1] = -5.8
    coefficients = np.array([-0.159, 0.94, -0.00109, -0.00379, -2.71])
    xy = np.random.default_rng(0).uniform([100, 100], [1050, 900], (50, 2))
    raw = distort_pixels(xy, K, coefficients)
    np.testing.assert_allclose(undistort_pixels(raw, K, coefficients), xy, atol=1e-4)
    K[0, 1] = 0.0
    rays = np.linalg.inv(K) @ np.concatenate([xy, np.ones((50, 1))], 1).T
    expected = cv2.projectPoints(rays.T[:, None], np.zeros(3), np.zeros(3), K, coefficients)[0]
    np.testing.assert_allclose(distort_pixels(xy, K, coefficients), expected[:, 0], atol=1e-9)


def test_natural_key():
    assert sorted(["cam10", "cam2", "cam1"], key=natural_key) == ["cam1", "cam2", "cam10"]


@pytest.mark.parametrize("content", [{"a": 1}, [[1], [1, 2]], np.array(["a"]), None])
def test_keypoints_of_another_form_are_one_error(tmp_path, content):
    (tmp_path / "k.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(LayoutError):
        read_keypoints_pickle(tmp_path / "k.pkl")
