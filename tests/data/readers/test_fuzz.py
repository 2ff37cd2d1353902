"""Damaged files: a result or one clear error, whatever bytes were changed."""

import os
import pickle

import numpy as np
import pytest
from scipy.io import savemat

from mouselift_jax.data.readers import read_calibration
from mouselift_jax.data.readers.keypoints import read_keypoints
from mouselift_jax.data.readers.space import read_points
from mouselift_jax.errors import MouseLiftError
from mouselift_jax.splats import load_ply, save_ply
from mouselift_jax.splats.splat_file import load_splat, save_splat
from tests.data.readers import test_calibrations as good
from tests.data.readers.test_keypoints import dlc, dlc_h5
from tests.data.readers.test_space import anipose
from tests.splats.clouds import random_gaussians

N = int(os.environ.get("MOUSELIFT_FUZZ", "40"))  # mutated inputs of each format


def _pickle(p):
    rows = [{"K": k, "R": r, "T": t} for k, r, t in zip(good.K, good.R, good.T, strict=True)]
    (p / "new_cam.pkl").write_bytes(pickle.dumps(rows))
    return p / "new_cam.pkl", read_calibration


def _mat(p):
    cells = np.empty((6, 1), object)
    cells[:, 0] = [good.matlab(i) for i in range(6)]
    savemat(p / "a_dannce.mat", {"params": cells}, do_compression=True)
    return p / "a_dannce.mat", read_calibration


def _text(name, text):
    def make(p):
        (p / name).write_text(text())
        return p / name, read_calibration

    return make


def _transforms():
    import json

    return json.dumps(good.transforms({"camera_model": "OPENCV_FISHEYE", **good.KANNALA}))


def _storage(suffix):
    def make(p):
        path = p / f"cam0.{suffix}"
        good.storage(path, camera_matrix=good.K[0], R=good.R[0], T=good.T[0])
        return path, read_calibration

    return make


def _colmap(binary):
    def make(p):
        good.colmap(p, binary, "OPENCV", *good.COLMAP["OPENCV"])
        name = "images.bin" if binary else "images.txt"
        return p / name, lambda path: read_calibration(path.parent)

    return make


def _keypoint_pickle(p):
    (p / "result_view_0.pkl").write_bytes(pickle.dumps(np.zeros((5, 3, 3))))
    return p / "result_view_0.pkl", read_keypoints


def _ply(p):
    save_ply(p / "a.ply", random_gaussians(20), scene_scale=0.1)
    return p / "a.ply", load_ply


def _splat(p):
    save_splat(p / "a.splat", random_gaussians(20))
    return p / "a.splat", load_splat


def _sleap(p):
    h5py = pytest.importorskip("h5py")
    with h5py.File(p / "a.h5", "w") as f:
        f["tracks"], f["node_names"] = np.zeros((1, 2, 3, 7)), np.array([b"a", b"b", b"c"])
    return p / "a.h5", read_keypoints


def _jarvis(p):
    good.storage(p / "Camera_0.yaml", intrinsicMatrix=good.K[0].T, R=good.R[0].T,
                 T=good.T[0][:, None], distortionCoefficients=np.zeros((1, 5)))  # fmt: skip
    return p / "Camera_0.yaml", lambda path: read_calibration(path.parent)


def _easymocap(p):
    good.storage(p / "intri.yml", **{f"K_{i}": good.K[i] for i in range(2)})
    good.storage(p / "extri.yml", **{f"{k}_{i}": v for i in range(2) for k, v in
                                     (("Rot", good.R[i]), ("T", good.T[i][:, None]))})  # fmt: skip
    return p / "extri.yml", lambda path: read_calibration(path.parent)


def _kalibr(p):
    one = "  camera_model: pinhole\n  intrinsics: [500.0, 500.0, 320.0, 240.0]\n"
    one += "  distortion_model: radtan\n  distortion_coeffs: [0.1, 0.0, 0.0, 0.0]\n"
    one += "  resolution: [640, 480]\n"
    pose = "  T_cn_cnm1:\n" + "".join(f"  - {r}\n" for r in np.eye(4).tolist())
    (p / "camchain.yaml").write_text(f"cam0:\n{one}cam1:\n{one}{pose}")
    return p / "camchain.yaml", read_calibration


def _v73(p):
    pytest.importorskip("h5py")
    from tests.data.readers.test_hdf5 import cameras, v73

    v73(p / "a_dannce.mat", cameras(), ["a", "b", "c"])
    return p / "a_dannce.mat", read_calibration


def _dlc_h5(p):
    labels = [("net", m, c) for m in ("a", "b", "c") for c in ("x", "y", "likelihood")]
    return dlc_h5(p / "aDLC.h5", labels), read_keypoints


def _points_h5(p):
    h5py = pytest.importorskip("h5py")
    with h5py.File(p / "points3d.h5", "w") as f:
        f["tracks"] = np.zeros((4, 1, 5, 3))
    return p / "points3d.h5", read_points


CASES = {
    "jarvis": _jarvis, "easymocap": _easymocap, "kalibr": _kalibr, "mat_v73": _v73,
    "dlc_h5": _dlc_h5, "points_h5": _points_h5,
    "anipose_3d": lambda p: (anipose(p / "a.csv"), read_points),
    "pickle": _pickle, "mat": _mat, "toml": _text("calibration.toml", good.toml),
    "caliscope": _text("camera_array.toml", lambda: good.toml(caliscope=True)),
    "transforms": _text("transforms.json", _transforms),
    "ros": _text("cam0.yaml", lambda: good.ros(0, 0.1, np.eye(3))[0]),
    "yml": _storage("yml"), "xml": _storage("xml"), "colmap": _colmap(False),
    "colmap_bin": _colmap(True), "keypoint_pickle": _keypoint_pickle,
    "dlc": lambda p: (dlc(p / "a.csv"), read_keypoints), "sleap": _sleap, "ply": _ply,
    "splat": _splat,
}  # fmt: skip


def mutated(data, rng):
    data = bytearray(data)
    kind = rng.integers(5)
    if kind == 0:
        return bytes(data[: rng.integers(len(data) + 1)])
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(len(data)))
        if kind == 1:
            data[at] = int(rng.integers(256))
        elif kind == 2:
            data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"nan ", b"\0\0\0\0", b"1e99"])
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 30))]
            data += b" "
        else:
            data[at:at] = data[: int(rng.integers(1, 60))]
    return bytes(data)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_a_result_or_one_error(tmp_path, name):
    path, read = CASES[name](tmp_path)
    data, rng = path.read_bytes(), np.random.default_rng(sum(map(ord, name)))
    read(path)
    counts = {"read": 0, "refused": 0}
    for i in range(N):
        path.write_bytes(mutated(data, rng))
        try:
            read(path)
            counts["read"] += 1
        except MouseLiftError as error:
            counts["refused"] += 1
            assert error.fix, str(error)
        except BaseException as error:
            raise AssertionError(f"{name}, input {i}: {type(error).__name__}: {error}") from error
    print(name, counts)
    assert counts["refused"] and sum(counts.values()) == N
