"""Broken recordings: each is told in one clear error, and everything wrong at once."""

import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from mouselift_jax.data.recordings.inspection import inspect_recording, open_recording
from mouselift_jax.data.recordings.layout import find_recording
from mouselift_jax.data.synthetic.recording import write_recording
from mouselift_jax.data.synthetic.rig import lab_rig
from mouselift_jax.errors import (
    CalibrationError,
    ConfigError,
    LayoutError,
    MouseLiftError,
    ProblemList,
)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    path = tmp_path_factory.mktemp("rec") / "mouse"
    return write_recording(path, frames=3, size=(72, 64), n_heldout=0, workers=1)


@pytest.fixture
def broken(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "mouse")


def change_cameras(path, change):
    rows = pickle.loads((path / "new_cam.pkl").read_bytes())
    for i, row in enumerate(rows):
        change(i, row)
    (path / "new_cam.pkl").write_bytes(pickle.dumps(rows))


def test_clean_recording(clean):
    recording = open_recording(clean)
    assert recording.camera_ids == (0, 1, 2, 3, 4, 5)
    assert recording.n_frames == 3 and recording.fps == 30 and recording.unit == "mm"
    assert recording.mask_kind == "files" and recording.keypoints.shape == (6, 3, 22, 3)
    for camera, truth in zip(recording.cameras, lab_rig(72, 64), strict=True):
        np.testing.assert_allclose(camera.K, truth.K, atol=1e-9)
        np.testing.assert_allclose(camera.c2w, truth.c2w, atol=1e-9)
    hashes = recording.hashes()
    assert len(hashes["new_cam.pkl"]) == 64 and "videos_undist/5.mp4" in hashes
    truth = np.load(clean / "truth.npz")["keypoints"]
    xy, _ = recording.cameras[2].project(truth.reshape(-1, 3))
    sure = recording.keypoints[2, ..., 2].ravel() > 0.5
    off = np.linalg.norm(recording.keypoints[2, ..., :2].reshape(-1, 2) - xy, axis=1)
    assert np.median(off[sure]) < 0.3


def test_mouse_a(shared):
    recording = open_recording(shared / "recordings/mouse_a")
    assert recording.n_frames == 90 and recording.n_views == 6


@pytest.mark.parametrize(
    ("delete", "words"),
    [
        ("videos_undist/3.mp4", "camera 3 is calibrated but has no video"),
        ("simpleclick_undist/2.mp4", "camera 2 has no mask"),
        ("new_cam.pkl", "no calibration found"),
    ],
)
def test_missing(broken, delete, words):
    (broken / delete).unlink()
    with pytest.raises(LayoutError, match=words):
        open_recording(broken)


def test_several_cameras_without_a_video_are_one_sentence(broken):
    for name in "345":
        (broken / f"videos_undist/{name}.mp4").unlink()
    with pytest.raises(LayoutError, match="cameras 3, 4, 5 are calibrated but have no") as told:
        open_recording(broken)
    assert "--config.prepare.cameras=0,1,2" in str(told.value)


def test_one_level_too_high_is_one_sentence(broken, tmp_path):
    (tmp_path / "above").mkdir()
    broken.rename(tmp_path / "above/mouse")
    with pytest.raises(LayoutError, match="a folder near this one is a recording") as told:
        open_recording(tmp_path / "above")
    assert str(told.value).count("near this one") == 1


def test_everything_at_once(broken):
    (broken / "videos_undist/3.mp4").unlink()
    (broken / "simpleclick_undist/2.mp4").write_bytes(b"")
    change_cameras(broken, lambda i, r: r.update(R=-r["R"]) if i == 1 else None)
    with pytest.raises(ProblemList) as error:
        open_recording(broken)
    text = str(error.value)
    for words in ("camera 3 is calibrated", "2.mp4", "camera 1: R mirrors", "3 problem(s)"):
        assert words in text


def test_missing_calibrated_camera(broken):
    rows = pickle.loads((broken / "new_cam.pkl").read_bytes())
    (broken / "new_cam.pkl").write_bytes(pickle.dumps(rows[:5]))
    with pytest.raises(LayoutError, match="video 5 has no calibrated camera"):
        open_recording(broken)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95])
def test_truncated_video(broken, keep):
    video = broken / "videos_undist/4.mp4"
    data = video.read_bytes()
    video.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(LayoutError, match=r"cut short|cannot be decoded"):
        open_recording(broken)


def test_corrupt_video(broken):
    (broken / "videos_undist/4.mp4").write_bytes(bytes(range(256)) * 40)
    with pytest.raises(LayoutError, match="cannot be decoded"):
        open_recording(broken)


def test_frame_counts(broken, tmp_path):
    short = write_recording(tmp_path / "s", frames=2, size=(72, 64), n_heldout=0, workers=1)
    shutil.copy(short / "videos_undist/1.mp4", broken / "videos_undist/1.mp4")
    with pytest.raises(LayoutError, match="camera 1 has 2 frames, the others 3"):
        open_recording(broken)
    assert open_recording(broken, trim="shortest").n_frames == 2


@pytest.mark.parametrize("factor", [1000.0, 0.001])
@pytest.mark.parametrize("which", ["all", 2])
def test_translation_units(broken, factor, which):
    def change(i, row):
        if which in ("all", i):
            row["T"] = row["T"] * factor

    change_cameras(broken, change)
    with pytest.raises(CalibrationError, match=r"times the others|look like") as error:
        open_recording(broken)
    assert ("camera 2" in str(error.value)) == (which == 2)


def test_misspelt_choices_are_no_silent_default(clean):
    """`shortst` would have trimmed, `cm` would have counted as millimetres."""
    with pytest.raises(ConfigError, match="did you mean 'shortest'"):
        open_recording(clean, trim="shortst")
    with pytest.raises(ConfigError, match=r"no such unit[\s\S]*mm \| m"):
        open_recording(clean, unit="cm")


def test_metres_can_be_declared(broken):
    change_cameras(broken, lambda i, r: r.update(T=r["T"] / 1000))
    recording = open_recording(broken, unit="m")
    assert recording.unit == "m" and recording.unit_mm == 1000.0


def test_mirrored_and_transposed(broken):
    change_cameras(broken, lambda i, r: r.update(R=r["R"] @ np.diag([1.0, 1, -1])))
    with pytest.raises(MouseLiftError, match="mirrors the world"):
        open_recording(broken)
    change_cameras(
        broken, lambda i, r: r.update(R=r["R"] @ np.diag([1.0, 1, -1]), K=np.array(r["K"]).T)
    )
    with pytest.raises(MouseLiftError, match="K is transposed"):
        open_recording(broken)


def test_camera_to_world_given_as_world_to_camera(broken):
    def invert(i, row):
        row["T"] = -row["R"].T @ row["T"]
        row["R"] = row["R"].T

    change_cameras(broken, invert)
    with pytest.raises(MouseLiftError, match=r"camera-to-world|looks away"):
        open_recording(broken)


def test_many_cameras_are_sorted_by_number(tmp_path):
    path = write_recording(
        tmp_path / "m", frames=1, size=(64, 64), n_cameras=11, n_heldout=0, workers=1
    )
    recording = open_recording(path)
    assert recording.camera_ids == tuple(range(11))
    assert [f.path.stem for f in recording.videos] == [str(i) for i in range(11)]


def test_pictures_in_folders_with_alpha(tmp_path):
    rig = lab_rig(48, 40)
    frames = []
    for i, camera in enumerate(rig[:3]):
        folder = tmp_path / "images" / f"cam{i}"
        folder.mkdir(parents=True)
        for t in range(12):
            rgba = np.full((40, 48, 4), t, np.uint8)
            Image.fromarray(rgba).save(folder / f"{t}.png")
        K = camera.K
        frames.append(
            {"w": 48, "h": 40, "fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2],
             "w2c": np.asarray(camera.w2c).tolist(), "file_path": "", "camera": i}
        )  # fmt: skip
    (tmp_path / "opencv_cameras.json").write_text(json.dumps({"frames": frames}))
    recording = open_recording(tmp_path)
    assert recording.mask_kind == "alpha" and recording.masks is None
    assert recording.n_frames == 12 and recording.unit == "unknown"
    assert [p.stem for p in recording.videos[0].files] == [str(t) for t in range(12)]


def test_no_such_folder_suggests_the_nearest(clean):
    with pytest.raises(LayoutError, match="did you mean 'mouse'"):
        open_recording(clean.parent / "mose")


def test_inspect_goes_on_after_errors(broken):
    change_cameras(broken, lambda i, r: r.update(T=r["T"] * 1000))
    recording, findings = inspect_recording(broken)
    assert recording is not None
    assert [f.code for f in findings] == ["translation_units"]
    assert findings[0].to_json()["evidence"]["factor"] == 1000.0


@pytest.mark.parametrize(
    "names, joined",
    [
        (("0.mp4", "3500.mp4"), True),
        (("rec_2024-05-01_12-00.mp4", "rec_2024-05-01_12-10.mp4"), True),
        (("Camera1-0.avi", "Camera1-1.avi"), True),
        (("GX010007.MP4", "GX020007.MP4"), True),
        (("cam0.mp4", "cam1.mp4"), False),
        (("colour.mp4", "infrared.mp4"), False),
    ],
)
def test_pieces_of_one_video_are_known_by_their_names(tmp_path, names, joined):
    for name in names:
        (tmp_path / "videos/Camera1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos/Camera1" / name).touch()
    assert set(find_recording(tmp_path).videos) == ({"Camera1"} if joined else set())


@pytest.mark.parametrize(
    "names, cameras, joined",
    [
        ("cam{c}_{k:03d}", 3, ["cam0", "cam1", "cam2"]),
        ("{k}_left{c}", 3, ["left0", "left1", "left2"]),
        ("rec_2024-05-01_cam{c}-{k}", 3, [f"rec_2024-05-01_cam{c}" for c in range(3)]),
        ("cam{c}_{k:03d}", 6, None),  # six calibrated cameras: six videos
        ("{k}_cam{c}", 2, None),  # three cameras of two: not for us to say which are pieces
    ],
)
def test_pieces_of_all_cameras_in_one_folder(tmp_path, names, cameras, joined):
    (tmp_path / "videos").mkdir()
    files = [names.format(c=c, k=k) for c in range(3) for k in (0, 1)]
    for name in files:
        (tmp_path / f"videos/{name}.mp4").touch()
    layout = find_recording(tmp_path)
    layout.join_chunks(cameras)
    assert sorted(layout.videos) == sorted(joined or files)
    for name, source in layout.videos.items() if joined else ():
        c = int(name[-1])
        assert [p.stem for p in source] == [names.format(c=c, k=k) for k in (0, 1)]


def test_keypoints_beside_each_cameras_video_are_found(tmp_path):
    for camera in ("back", "top"):
        (tmp_path / camera).mkdir()
        (tmp_path / camera / "a.mp4").touch()
        (tmp_path / camera / f"{camera}DLC.csv").write_text("scorer,net,net\n")
        (tmp_path / camera / "frametimes.npy").touch()
        (tmp_path / camera / "metadata.csv").write_text("fps,30\n")
    layout = find_recording(tmp_path)
    assert set(layout.videos) == set(layout.keypoints) == {"back", "top"}
    assert {p.name for p in layout.keypoints.values()} == {"backDLC.csv", "topDLC.csv"}


def test_one_depth_for_all_cameras(clean, tmp_path):
    """12 bits in 16; one camera's pictures are so dark that they might be of 10."""
    path = tmp_path / "deep"
    shutil.copytree(clean, path, ignore=shutil.ignore_patterns("videos_undist"))
    for camera in range(6):
        folder = path / "videos_undist" / str(camera)
        folder.mkdir(parents=True)
        level = 1000 if camera == 2 else 4000
        for t in range(3):
            picture = np.full((64, 72), level, np.uint16)
            Image.fromarray(picture).save(folder / f"{t}.png")
    recording = open_recording(path)
    assert {f.white for f in recording.videos} == {4095}
    assert any("12 bits in 16" in note for note in recording.notes)
