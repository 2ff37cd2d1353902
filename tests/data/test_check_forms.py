"""`check` on recordings of other forms: raw pictures with distortion, alpha, few cameras."""

import json
import shutil

import cv2
import numpy as np
import pytest

from mouselift_jax.data.check.recording import check_recording
from mouselift_jax.data.distortion import undistort_pixels
from mouselift_jax.data.recordings.inspection import open_recording
from mouselift_jax.data.synthetic.recording import Scene, write_recording
from mouselift_jax.data.synthetic.render import Arena, Painter, compose, full_mask
from mouselift_jax.data.synthetic.rig import lab_rig

SIZE = (160, 142)
COEFFICIENTS = np.array([-0.16, 0.3, 0.001, -0.002, 0.0])


def pictures(n_cameras, n_frames):
    scene, painter = Scene(1, 15.0), Painter(1)
    for v, camera in enumerate(lab_rig(*SIZE, n_cameras)):
        arena = Arena(camera, 1, v)
        for t in range(n_frames):
            body = scene.body(t)
            rgb, alpha, start = painter.mouse(body, camera)
            picture = compose(arena.with_shadow(body), rgb, alpha, start)
            rgba = np.concatenate([picture, full_mask(alpha, start, camera)[..., None]], -1)
            yield v, t, camera, np.round(np.clip(rgba, 0, 1) * 255).astype(np.uint8)


def write_folders(path, n_cameras, n_frames):
    """RGBA pictures in folders, opencv_cameras.json."""
    frames = {}
    for v, t, camera, rgba in pictures(n_cameras, n_frames):
        folder = path / "images" / f"cam{v}"
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{t:04d}.png"), cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))
        K = camera.K
        frames[v] = {
            "w": SIZE[0], "h": SIZE[1], "fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2],
            "cy": K[1, 2], "w2c": np.asarray(camera.w2c).tolist(), "camera": v,
        }  # fmt: skip
    text = json.dumps({"frames": list(frames.values())})
    (path / "opencv_cameras.json").write_text(text)
    return path


@pytest.mark.parametrize("n_cameras", [2, 3])
def test_few_cameras_with_alpha(tmp_path, n_cameras):
    result = check_recording(write_folders(tmp_path / "r", n_cameras, 6))
    assert result.clean, [f.message for f in result.findings]


def test_raw_pictures_are_undistorted_once(tmp_path):
    path = tmp_path / "raw"
    text = ""
    grid = np.stack(np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1])), -1) + 0.5
    for v, t, camera, rgba in pictures(4, 6):
        lookup = (undistort_pixels(grid, camera.K, COEFFICIENTS) - 0.5).astype(np.float32)
        raw = cv2.remap(rgba, lookup[..., 0], lookup[..., 1], cv2.INTER_LINEAR)
        for name, image in (("images", raw[..., 2::-1]), ("masks", raw[..., 3])):
            folder = path / name / f"cam{v}"
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{t:04d}.png"), image)
        if t == 0:
            w2c, K = np.asarray(camera.w2c), camera.K.copy()
            K[:2, 2] -= 0.5
            text += (
                f'[cam_{v}]\nname = "cam{v}"\nsize = [{SIZE[0]}, {SIZE[1]}]\n'
                f"matrix = {K.tolist()}\ndistortions = {COEFFICIENTS.tolist()}\n"
                f"rotation = {cv2.Rodrigues(w2c[:3, :3])[0].ravel().tolist()}\n"
                f"translation = {w2c[:3, 3].tolist()}\n"
            )
    (path / "calibration.toml").write_text(text)
    recording = open_recording(path)
    assert recording.distortion[0] is not None and recording.mask_kind == "files"
    result = check_recording(path)
    assert result.clean, [f.message for f in result.findings]
    # The same pictures in a folder that says they are undistorted: coefficients stay unused.
    (path / "images").rename(path / "videos_undist")
    assert open_recording(path).distortion[0] is None


def test_ten_cameras(tmp_path):
    path = write_recording(
        tmp_path / "ten", frames=4, size=(96, 86), n_cameras=10, n_heldout=0, workers=1
    )
    result = check_recording(path)
    assert result.camera_ids == tuple(range(10)) and result.usable
    shutil.rmtree(path)
