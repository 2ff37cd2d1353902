"""Every format of labs, written by the test, gives the pixels of that tool's own arithmetic."""

import json
import struct

import cv2
import numpy as np
import pytest
from scipy.io import savemat
from scipy.spatial.transform import Rotation

from mouselift_jax.data.distortion import Fisheye, distort_pixels
from mouselift_jax.data.readers import CALIBRATIONS, examine, find_calibration, read_calibration
from mouselift_jax.data.synthetic.rig import lab_rig
from mouselift_jax.errors import LayoutError

RIG = lab_rig(1152, 1024)
R = [np.asarray(c.w2c)[:3, :3] for c in RIG]
T = [np.asarray(c.w2c)[:3, 3] for c in RIG]
K = [np.asarray(c.K) - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]] for c in RIG]  # OpenCV's
RVEC = [cv2.Rodrigues(r)[0].ravel() for r in R]
D5 = np.array([-0.16, 0.94, -1e-3, -4e-3, -2.7])
D4 = np.array([0.06, -0.02, 0.004, -0.001])
POINTS = np.random.default_rng(0).uniform([20, 20, 0], [80, 80, 40], (30, 3))


def seen(camera):
    """Pixels of POINTS by the reader's camera, pixel centres at +0.5."""
    x = POINTS @ camera.R.T + camera.T
    xy = x[:, :2] / x[:, 2:] @ camera.K[:2, :2].T + camera.K[:2, 2]
    return xy if camera.distortion is None else distort_pixels(xy, camera.K, camera.distortion)


def opencv(i, d=None, scale=1.0):
    """cv2.projectPoints, moved to our pixel origin."""
    return cv2.projectPoints(POINTS, RVEC[i], T[i], K[i], d)[0][:, 0] + 0.5


def fisheye(i, d=D4):
    return cv2.fisheye.projectPoints(POINTS[:, None], RVEC[i], T[i], K[i], d)[0][:, 0] + 0.5


def assert_pixels(calibration, want, n=6):
    assert len(calibration.cameras) == n
    for i, camera in enumerate(calibration.cameras):
        np.testing.assert_allclose(seen(camera), want(i), rtol=0, atol=1e-9)
    assert any("pixel centres" in note for note in calibration.notes)


def storage(path, **values):
    out = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    for key, value in values.items():
        out.write(key, value if isinstance(value, (int, float, str)) else np.asarray(value, float))
    out.release()


def matlab(i):
    """MATLAB's own structure: rows, pixels from 1."""
    return {"K": (K[i] + [[0, 0, 1], [0, 0, 1], [0, 0, 0]]).T, "r": R[i].T, "t": T[i][None],
            "RDistort": D5[[0, 1, 4]][None], "TDistort": D5[[2, 3]][None]}  # fmt: skip


@pytest.mark.parametrize("key", ["params", "camParams"])
def test_matlab_counts_pixels_from_one(tmp_path, key):
    cells = np.empty((6, 1), object)
    cells[:, 0] = [matlab(i) for i in range(6)]
    size = {"imageSize": np.tile([1024, 1152], (6, 1))} if key == "camParams" else {}
    savemat(tmp_path / "a_dannce.mat", {key: cells, **size})
    calibration = read_calibration(tmp_path / "a_dannce.mat")
    assert_pixels(calibration, lambda i: opencv(i, D5))
    assert calibration.pixel_shift == -0.5
    assert calibration.cameras[0].size == ((1152, 1024) if size else None)


def test_the_middle_pixel_of_matlab():
    """A picture of 101 x 81: MATLAB calls its middle (51, 41), we (50.5, 40.5)."""
    from mouselift_jax.data.readers.calibration import AT_ONE, shifted_K

    middle = shifted_K(np.array([[1.0, 0, 51], [0, 1, 41], [0, 0, 1]]), AT_ONE)[:2, 2]
    assert middle.tolist() == [101 / 2, 81 / 2]


def test_folder_of_hires_cameras(tmp_path):
    for i in range(6):
        savemat(tmp_path / f"hires_cam{i + 1}_params.mat", matlab(i))
    savemat(tmp_path / "com.mat", {"com3d": np.zeros((3, 3))})
    calibration = read_calibration(find_calibration(tmp_path))
    assert_pixels(calibration, lambda i: opencv(i, D5))
    assert calibration.kind == "dannce_folder" and len(calibration.files) == 6


def toml(fish=False, caliscope=False, dist=None):
    text, dist = "", D4 if fish else D5 if dist is None else dist
    for i in range(6):
        name = f"[cameras.{i}]\ncam_id = {i}\nrotation_count = -1\ngrid_count = 9\n"
        text += name if caliscope else f'[cam_{i}]\nname = "{i}"\n'
        rotation = R[i].tolist() if caliscope else RVEC[i].tolist()
        text += f"size = [1152, 1024]\nmatrix = {K[i].tolist()}\ndistortions = {dist.tolist()}\n"
        text += f"rotation = {rotation}\ntranslation = {T[i].tolist()}\n"
        text += f"fisheye = {str(fish).lower()}\nignore = false\n"
    return text + "[metadata]\nadjusted = true\n"


@pytest.mark.parametrize("fish", [False, True])
@pytest.mark.parametrize("caliscope", [False, True])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_toml(tmp_path, fish, caliscope, mark):
    path = tmp_path / ("camera_array.toml" if caliscope else "calibration.toml")
    path.write_bytes(mark + toml(fish, caliscope).encode())
    calibration = read_calibration(find_calibration(tmp_path))
    assert_pixels(calibration, fisheye if fish else lambda i: opencv(i, D5))
    kind, unit = ("caliscope", "m") if caliscope else ("anipose", "mm")
    assert (calibration.kind, calibration.unit) == (kind, unit)


def test_a_fisheye_without_coefficients_is_no_pinhole(tmp_path):
    path = tmp_path / "calibration.toml"
    path.write_text(toml(True).replace(str(D4.tolist()), "[0.0, 0.0, 0.0, 0.0]"))
    assert_pixels(read_calibration(path), lambda i: fisheye(i, np.zeros(4)))


def test_jarvis_stores_rows(tmp_path):
    for i in range(6):
        storage(tmp_path / f"Camera_{i}.yaml", intrinsicMatrix=K[i].T, R=R[i].T, T=T[i][:, None],
                distortionCoefficients=D5[None])  # fmt: skip

    def tool(i):
        # JARVIS-HybridNet: points in rows, [X 1] @ [R; T] @ K
        x = np.c_[POINTS, np.ones(30)] @ np.vstack([R[i].T, T[i]]) @ K[i].T
        flat = x[:, :2] / x[:, 2:]
        return distort_pixels(flat, K[i], D5) + 0.5

    assert_pixels(read_calibration(find_calibration(tmp_path)), tool)


def test_easymocap_with_sizes(tmp_path):
    intri = {f"{k}_{i}": v for i in range(6)
             for k, v in {"K": K[i], "dist": D5[None], "H": 1024, "W": 1152}.items()}  # fmt: skip
    extri = {f"R_{i}": RVEC[i][:, None] for i in range(6)} | {f"Rot_{i}": R[i] for i in range(6)}
    extri |= {f"T_{i}": T[i][:, None] for i in range(6)}
    storage(tmp_path / "intri.yml", **intri)
    storage(tmp_path / "extri.yml", **extri)
    calibration = read_calibration(find_calibration(tmp_path))
    assert_pixels(calibration, lambda i: opencv(i, D5))
    assert calibration.cameras[3].size == (1152, 1024) and len(calibration.files) == 2
    storage(tmp_path / "extri.yml", **extri | {"R_2": RVEC[3][:, None]})
    with pytest.raises(LayoutError, match="different rotations"):
        read_calibration(tmp_path)


@pytest.mark.parametrize("form", ["yml", "xml", "plain"])
def test_opencv_files_and_plain_mappings(tmp_path, form):
    for i in range(6):
        if form == "plain":
            matrix = {"rows": 3, "cols": 3, "data": K[i].ravel().tolist()}
            content = {"camera_matrix": matrix, "R": R[i].tolist(), "T": T[i].tolist()}
            content["distortion_coefficients"] = {"rows": 1, "cols": 5, "data": D5.tolist()}
            (tmp_path / f"cam{i}.yaml").write_text("# ours\n" + json.dumps(content))
        else:
            t = T[i] if i % 2 else T[i][:, None]  # OpenCV 5 writes one dimension in another form
            storage(tmp_path / f"cam{i}.{form}", camera_matrix=K[i], R=R[i], T=t,
                    distortion_coefficients=D5[None])  # fmt: skip
    (tmp_path / "config.yaml").write_text("Task: mouse\nvideo_sets:\n  a.mp4:\n    crop: 0\n")
    calibration = read_calibration(find_calibration(tmp_path))
    assert_pixels(calibration, lambda i: opencv(i, D5))
    assert len(calibration.files) == 6 and "config.yaml" in str(calibration.notes)


def ros(i, tx, rect):
    P = np.array([[900.0, 0, 320, -900 * tx], [0, 900, 240, 0], [0, 0, 1, 0]])
    lines = [f"image_width: 640\nimage_height: 480\ncamera_name: cam{i}",
             "distortion_model: plumb_bob"]  # fmt: skip
    for key, m in (("camera_matrix", K[i]), ("distortion_coefficients", D5[None]),
                   ("rectification_matrix", rect), ("projection_matrix", P)):  # fmt: skip
        data = ", ".join(map(repr, np.ravel(m).tolist()))
        lines.append(f"{key}:\n  rows: {len(m)}\n  cols: {m.shape[1]}\n  data: [{data}]")
    return "\n".join(lines) + "\n", P


@pytest.mark.parametrize("head", ["", "%YAML:1.0\n---\n"])
def test_ros_stereo_set(tmp_path, head):
    """image_geometry: a point of the rectified frame projects to P X; unrectified, R^T of it."""
    rects, tools = [Rotation.from_rotvec([0, 0.02 * i, 0.01]).as_matrix() for i in range(3)], []
    for i, rect in enumerate(rects):
        text, P = ros(i, 0.1 * i, rect)
        (tmp_path / f"cam{i}.yaml").write_text(head + text)
        shift = np.array([P[0, 3] / P[0, 0], 0, 0])
        tools.append((POINTS + shift) @ rect)
    calibration = read_calibration(find_calibration(tmp_path))
    assert calibration.unit == "m"
    for i, camera in enumerate(calibration.cameras):
        want = cv2.projectPoints(tools[i], np.zeros(3), np.zeros(3), K[i], D5)[0][:, 0] + 0.5
        np.testing.assert_allclose(seen(camera), want, atol=1e-9)


def test_ros_of_single_cameras_has_no_pose(tmp_path):
    for i in range(2):
        (tmp_path / f"cam{i}.yaml").write_text(ros(i, 0.0, np.eye(3))[0])
    with pytest.raises(LayoutError, match="no pose"):
        read_calibration(find_calibration(tmp_path))


@pytest.mark.parametrize("model", ["radtan", "equidistant", "fov"])
def test_kalibr(tmp_path, model):
    text, dist = "", D4 if model == "equidistant" else D5[:4]
    poses = [np.vstack([np.c_[R[i], T[i]], [0, 0, 0, 1]]) for i in range(6)]
    for i in range(6):
        k = K[i][[0, 1, 0, 1], [0, 1, 2, 2]].tolist()
        text += (
            f"cam{i}:\n  camera_model: pinhole\n  intrinsics: {k}\n  distortion_model: {model}\n"
        )
        text += f"  distortion_coeffs: {dist.tolist()}\n  resolution: [1152, 1024]\n"
        if i:
            text += f"  T_cn_cnm1: {(poses[i] @ np.linalg.inv(poses[i - 1])).tolist()}\n"
    (tmp_path / "camchain.yaml").write_text(text)
    if model == "fov":
        with pytest.raises(LayoutError, match="'fov'"):
            read_calibration(find_calibration(tmp_path))
        return
    calibration = read_calibration(find_calibration(tmp_path))
    world = POINTS @ R[0].T + T[0]  # cam0's
    for i, camera in enumerate(calibration.cameras):
        x = world @ camera.R.T + camera.T
        flat = x[:, :2] / x[:, 2:] @ camera.K[:2, :2].T + camera.K[:2, 2]
        want = fisheye(i) if model == "equidistant" else opencv(i, D5[:4])
        np.testing.assert_allclose(
            distort_pixels(flat, camera.K, camera.distortion), want, atol=1e-9
        )


COLMAP = {
    "SIMPLE_RADIAL": ([], [0.1]),
    "OPENCV": ([1], [0.1, -0.2, 1e-3, 2e-3]),
    "FULL_OPENCV": ([1], [0.1, -0.2, 1e-3, 2e-3, 0.05, 0.02, 0.01, -0.03]),
    "OPENCV_FISHEYE": ([1], D4.tolist()),
    "RADIAL_FISHEYE": ([], D4[:2].tolist()),
    "RAD_TAN_THIN_PRISM_FISHEYE": ([1], [*D4.tolist(), *[0.0] * 8]),  # COLMAP 3.12 and later
    "FISHEYE": ([1], []),
    "SIMPLE_FISHEYE": ([], []),
}


def colmap(folder, binary, model, focal, rest, all_values=None):
    """cameras and images as COLMAP's documentation lays them out."""
    from mouselift_jax.data.readers.colmap import MODELS

    values = [[K[i][0, 0], *[K[i][1, 1]] * len(focal), *(K[i][:2, 2] + 0.5), *rest]
              for i in range(6)] if all_values is None else [all_values] * 6  # fmt: skip
    quats = [np.roll(Rotation.from_matrix(r).as_quat(), 1) for r in R]
    if binary:
        cameras, images = struct.pack("<Q", 6), struct.pack("<Q", 6)
        for i in range(6):
            n = len(values[i])
            cameras += struct.pack(
                f"<iiQQ{n}d", i + 1, list(MODELS).index(model), 1152, 1024, *values[i]
            )
            images += struct.pack("<i7di", i + 1, *quats[i], *T[i], i + 1)
            images += f"cam{i}/0.png".encode() + b"\0" + struct.pack("<Qddq", 1, 1.0, 2.0, -1)
        (folder / "cameras.bin").write_bytes(cameras)
        (folder / "images.bin").write_bytes(images)
        return
    lines = [
        f"{i + 1} {model} 1152 1024 {' '.join(map(repr, map(float, v)))}"
        for i, v in enumerate(values)
    ]
    (folder / "cameras.txt").write_text("# list\n" + "\n".join(lines) + "\n")
    text = "# list\n"
    for i in range(6):
        pose = " ".join(repr(float(x)) for x in (*quats[i], *T[i]))
        text += f"{i + 1} {pose} {i + 1} cam{i}/0.png\n" + ("1.0 2.0 -1\n" if i else "\n")
    (folder / "images.txt").write_text(text)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("model", COLMAP)
def test_colmap(tmp_path, binary, model):
    folder = tmp_path / "sparse" / "0"
    folder.mkdir(parents=True)
    focal, rest = COLMAP[model]
    colmap(folder, binary, model, focal, rest)
    calibration = read_calibration(find_calibration(tmp_path))
    assert [c.number for c in calibration.cameras] == list(range(6))
    for i, camera in enumerate(calibration.cameras):
        k = K[i].copy()
        k[1, 1] = k[1, 1] if focal else k[0, 0]
        if "FISHEYE" in model:
            d = np.pad(np.array(rest, float), (0, max(0, 4 - len(rest))))[:4]
            want = cv2.fisheye.projectPoints(POINTS[:, None], RVEC[i], T[i], k, d)[0][:, 0] + 0.5
        else:
            d = np.pad(np.array(rest), (0, max(0, 4 - len(rest))))
            want = cv2.projectPoints(POINTS, RVEC[i], T[i], k, d)[0][:, 0] + 0.5
        np.testing.assert_allclose(seen(camera), want, atol=1e-9)


@pytest.mark.parametrize("model", ["DIVISION", "EUCM", "EQUIRECTANGULAR"])
def test_colmaps_other_lenses_are_refused_by_name(tmp_path, model):
    values = [1152.0, 1024.0] if model == "EQUIRECTANGULAR" else None
    colmap(tmp_path, True, model, [1], [0.5] if model == "DIVISION" else [0.5, 1.1], values)
    with pytest.raises(LayoutError, match=model):
        read_calibration(tmp_path)


def transforms(extra, sizes=True, frames=None):
    frames = frames or [{} for _ in RIG]
    rows = []
    for i, more in enumerate(frames):
        c2w = np.eye(4)
        c2w[:3, :3], c2w[:3, 3] = R[i].T, -R[i].T @ T[i]
        rows.append({"file_path": f"images/cam{i}.png", "fl_x": K[i][0, 0], "fl_y": K[i][1, 1],
                     "cx": K[i][0, 2] + 0.5, "cy": K[i][1, 2] + 0.5, **more,
                     "transform_matrix": (c2w @ np.diag([1.0, -1, -1, 1])).tolist()})  # fmt: skip
    return {**({"w": 1152, "h": 1024} if sizes else {}), **extra, "frames": rows}


def write(folder, content):
    path = folder / "transforms.json"
    path.write_text(json.dumps(content))
    return path


KANNALA = dict(zip(("k1", "k2", "k3", "k4"), D4.tolist(), strict=True))
BROWN = dict(zip(("k1", "k2", "p1", "p2", "k3"), D5.tolist(), strict=True))


@pytest.mark.parametrize(
    "extra",
    [
        {"camera_model": "OPENCV_FISHEYE", **KANNALA},
        {"camera_model": "opencv-fisheye", **KANNALA},
        {"camera_model": "FISHEYE", **KANNALA},
        {"is_fisheye": True, **KANNALA},
        {"is_fisheye": True, "camera_model": "OPENCV", **KANNALA},
        {"camera_model": "THIN_PRISM_FISHEYE", **KANNALA, "p1": 0.0, "sx1": 0.0},
    ],
)
def test_transforms_that_say_fisheye(tmp_path, extra):
    assert_pixels(read_calibration(write(tmp_path, transforms(extra))), fisheye)
    rows = [extra] * 6  # said in each frame instead
    assert_pixels(read_calibration(write(tmp_path, transforms({}, frames=rows))), fisheye)


def test_transforms_of_ordinary_lenses(tmp_path):
    for extra, d in (
        ({"camera_model": "OPENCV", **BROWN, "k4": 0.0, "is_fisheye": False}, D5),
        (BROWN, D5),
        ({**BROWN, "k4": 0.1, "k5": 0.02, "k6": 0.3}, np.r_[D5, 0.1, 0.02, 0.3]),
        ({"camera_model": "FULL_OPENCV", **BROWN, "k4": 0.1}, np.r_[D5, 0.1, 0, 0]),
        ({"camera_model": "SIMPLE_PINHOLE"}, None),
    ):
        calibration = read_calibration(write(tmp_path, transforms(extra)))
        assert_pixels(calibration, lambda i, d=d: opencv(i, d))


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR"),
        ({"camera_model": "FOV", "k1": 0.1}, "'FOV'"),
        ({"camera_model": "OMNIDIRECTIONALSTEREO_L"}, "OMNIDIRECTIONAL"),
        ({"camera_model": "FISHEYE624", "distortion_params": [0.1]}, "FISHEYE624"),
        ({"camera_model": "THIN_PRISM_FISHEYE", **KANNALA, "p1": 1e-3}, "p1"),
        ({"camera_model": "THIN_PRISM_FISHEYE", **KANNALA, "sx1": 1e-3}, "s1"),
        ({"camera_model": "OPENCV_FISHEYE", **KANNALA, "k5": 1e-3}, "k5"),
        ({"camera_model": "FOV", "is_fisheye": True}, "is_fisheye"),
        ({**BROWN, "k4": 0.1}, "k4"),
        ({"k7": 0.1}, "k7"),
        ({"distortion_params": [0.1, 0.2]}, "distortion_params"),
        ({"equirectangular": True}, "equirectangular"),
        ({"ftheta_p0": 0.2}, "ftheta_p0"),
        ({"latlong": True}, "latlong"),
        ({"rolling_shutter": [0, 0, 0.5]}, "rolling_shutter"),
        ({"lens_model": "wide"}, "lens_model"),
        ({"k1": "much"}, "finite"),
    ],
)
def test_what_is_not_known_of_a_lens_is_refused_by_name(tmp_path, extra, says):
    with pytest.raises(LayoutError, match=says):
        read_calibration(write(tmp_path, transforms(extra)))


def test_settings_that_say_nothing_are_passed_over_by_name(tmp_path):
    extra = {"equirectangular": False, "rolling_shutter": [0, 0, 0], "aabb_scale": 16, "mood": 3}
    calibration = read_calibration(write(tmp_path, transforms(extra)))
    assert_pixels(calibration, opencv)
    assert "mood" in calibration.notes[-1] and "fl_x" in calibration.notes[-1]


@pytest.mark.parametrize("line", ["fisheye = 3", "model = 'omni'", "crop = [1, 2]", "k4 = 0.1"])
def test_the_same_of_toml(tmp_path, line):
    path = tmp_path / "calibration.toml"
    path.write_text(toml(dist=D5).replace("fisheye = false", line))
    if "fisheye" in line:  # any truth is obeyed: five coefficients fit no fisheye
        with pytest.raises(LayoutError, match="fisheye"):
            read_calibration(path)
    else:
        with pytest.raises(LayoutError, match="changes the geometry"):
            read_calibration(path)


def test_transforms_without_a_size_take_the_pictures(tmp_path):
    from PIL import Image

    content = transforms({"camera_angle_x": 1.0}, sizes=False)
    for row in content["frames"]:
        for key in ("fl_x", "fl_y", "cx", "cy"):
            del row[key]
    path = write(tmp_path, content)
    camera = read_calibration(path).cameras[0]
    assert camera.size is None and "size" in str(read_calibration(path).notes)
    want = [[200 / np.tan(0.5), 0, 200], [0, 200 / np.tan(0.5), 150], [0, 0, 1]]
    np.testing.assert_allclose(camera.sized(400, 300).K, want)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (400, 300)).save(tmp_path / "images" / "cam0.png")
    camera = read_calibration(path).cameras[0]
    np.testing.assert_allclose(camera.K, want)
    assert camera.size == (400, 300)


def test_a_byte_order_mark(tmp_path):
    text = json.dumps(transforms({}))
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "transforms.json").write_text(text, encoding=encoding)
        assert_pixels(read_calibration(tmp_path / "transforms.json"), opencv)


def test_frames_without_a_files_name_are_cameras_all_the_same(tmp_path):
    for name in ("", ".", "/"):
        content = transforms({}, frames=[{"file_path": name}] * 6)
        assert_pixels(read_calibration(write(tmp_path, content)), opencv)


def test_two_formats_in_one_folder_are_named(tmp_path):
    storage(tmp_path / "a.yml", camera_matrix=K[0], R=R[0], T=T[0])
    storage(tmp_path / "b.yml", intrinsicMatrix=K[0], R=R[0], T=T[0])
    with pytest.raises(LayoutError, match=r"opencv .*and jarvis"):
        read_calibration(find_calibration(tmp_path))


def test_a_yaml_that_is_no_calibration_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("Task: mouse\nvideo_sets:\n  a.mp4:\n    crop: 0\n")
    with pytest.raises(LayoutError, match="Task"):
        read_calibration(find_calibration(tmp_path))


def test_a_camera_near_the_worlds_origin_is_no_fault(tmp_path):
    rows = [("A", [-0.004, -0.001, -0.002], [1.1, -1.0, 2.6]),
            ("B", [0.49, -1.37, -1.07], [509.0, -87.0, 987.0]),
            ("C", [0.34, -2.31, -1.23], [443.0, -463.0, 1067.0])]  # fmt: skip
    text = "".join(
        f'[cam_{i}]\nname = "{n}"\nsize = [1920, 1080]\nmatrix = [[1460.0, 0.0, 959.5], '
        f"[0.0, 1460.0, 539.5], [0.0, 0.0, 1.0]]\ndistortions = [0.0]\nrotation = {r}\n"
        f"translation = {t}\n\n"
        for i, (n, r, t) in enumerate(rows)
    ).replace("distortions = [0.0]\n", "")
    (tmp_path / "calibration.toml").write_text(text)
    assert examine(read_calibration(tmp_path / "calibration.toml")) == []


@pytest.mark.parametrize("camera", range(6))
def test_one_camera_in_metres_is_still_a_fault(tmp_path, camera):
    path = tmp_path / "calibration.toml"
    path.write_text(toml().replace(str(T[camera].tolist()), str((T[camera] / 1000).tolist())))
    (finding,) = examine(read_calibration(path))
    assert (finding.code, finding.cameras) == ("translation_units", (camera,))


def test_every_format_says_where_it_comes_from():
    names = [f.name for f in CALIBRATIONS]
    assert len(set(names)) == len(names)
    assert all(f.tool and f.files and f.note for f in CALIBRATIONS)


def test_fisheye_there_and_back():
    from mouselift_jax.data.distortion import undistort_pixels

    xy = np.random.default_rng(0).uniform([0, 0], [1152, 1024], (50, 2))
    for lens in (Fisheye(D4), Fisheye(np.zeros(4)), Fisheye([-0.1, 0, 0, 0])):
        wide = np.array([[400.0, 0, 576], [0, 400, 512], [0, 0, 1]])
        raw = distort_pixels(xy, wide, lens)
        np.testing.assert_allclose(undistort_pixels(raw, wide, lens), xy, atol=1e-6)
    assert np.isnan(undistort_pixels(np.array([[2000.0, 512]]), wide, Fisheye(np.zeros(4)))).all()
    middle = np.array([[576.0, 512.0]])
    np.testing.assert_allclose(undistort_pixels(middle, wide, Fisheye(D4)), middle)
