"""`check` on recordings with planted faults: the root cause is named, and nothing else."""

import json
import os
import pickle
import re
import runpy
import shlex
import shutil

import numpy as np
import pytest

from mouselift_jax.__main__ import main
from mouselift_jax.data.check.recording import check_recording, link
from mouselift_jax.data.findings import Finding
from mouselift_jax.data.synthetic.recording import write_recording
from mouselift_jax.stages import calibrate
from tests.benchmarks.fault_injection import Fault, examine, faults, link_copy, seen_once

FRAMES, SIZE = 20, (240, 214)
FAULTS = {f.name: f for f in faults()}
# One of each kind here; the whole table is the benchmark (and the slow test below).
QUICK = (
    "clean",
    "swap 1,4 in calibration",
    "swap masks 1,2",
    "swap colour 0,3",
    "T x 1000, all",
    "T x 1000, camera 2",
    "transpose R 3",
    "K 5 % off, camera 4",
    "shift 3, both 2",
    "drop first 3, colour 5",
    "cropped, colour 1",
    "cropped+black, colour 1",
    "mirrored, both 4",
)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    path = tmp_path_factory.mktemp("check") / "mouse"
    return write_recording(path, frames=FRAMES, size=SIZE, n_heldout=0, workers=1, seed=1)


def assert_right(row):
    assert row["right"], row
    assert not row["other alarms"], row


@pytest.mark.parametrize("name", QUICK)
def test_fault_is_named(clean, tmp_path, name):
    assert_right(examine(clean, FAULTS[name], tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_on_mouse_a(shared, tmp_path, name):
    assert_right(examine(shared / "recordings/mouse_a", FAULTS[name], tmp_path))


def test_what_was_seen_of_untouched_cameras_is_what_decoding_shows(clean, tmp_path):
    """`examine` decodes a camera once for all rows: the same measures as of a check by itself."""
    link_copy(clean, tmp_path / "r")
    alone = check_recording(tmp_path / "r").to_json()["measures"]
    for _ in range(2):
        with seen_once():
            assert check_recording(tmp_path / "r").to_json()["measures"] == alone


def test_bad_masks_are_not_blamed_on_other_cameras():
    """Nor do they hide what pictures show by themselves: repeats, and cut margins."""
    bad = Finding("mask_levels", "error", "hold shades", (1,))
    step = Finding("frames_lost", "error", "lost 3", (4,), evidence={"frames": 3})
    drift = Finding("clock_drift", "error", "drifts", (2,))
    repeats = Finding("frames_doubled", "warning", "repeat", (1,), evidence={"repeats": 9})
    assert link([step, drift, repeats], [bad]) == [bad, repeats]
    assert bad.consequences == [step, drift]
    info = Finding("mask_levels", "info", "read from the brightest channel", (1,))
    assert link([step], [info]) == [step, info]


@pytest.mark.slow
def test_a_rig_a_little_off_is_told_with_what_mends_it(clean, tmp_path, capsys):
    """Not with a chain of faults that are none; the command that follows runs."""
    path = link_copy(clean, tmp_path / "r")
    FAULTS["all cameras a little off"].plant(path)
    code = main(["check", str(path), "--out", str(tmp_path / "out"), "--cameras=0,1,2,3,4,5"])
    said = json.loads((tmp_path / "out/check.json").read_text())["findings"]
    assert [f["code"] for f in said] == ["calibration_off"]
    assert (
        said[0]["evidence"]["misfit_px_before"] > 2 > 0.8 > said[0]["evidence"]["misfit_px_after"]
    )
    assert code == (2 if said[0]["severity"] == "error" else 0)
    (line,) = re.findall(r"^next: (.*)$", capsys.readouterr().out, re.M)
    given = dict(w.removeprefix("--").split("=", 1) for w in shlex.split(line)[2:])
    file, variant = given.pop("config").split(":")
    config, workdir = runpy.run_path(file)["get_config"](variant), given.pop("workdir")
    config.update_from_flattened_dict({k.removeprefix("config."): v for k, v in given.items()})
    assert "6 cameras" in calibrate.plan(config, workdir).steps


def test_without_keypoints(clean, tmp_path):
    def plant(path):
        shutil.rmtree(path / "keypoints2d_undist")
        FAULTS["swap 1,4 in calibration"].plant(path)

    assert_right(examine(clean, Fault("no keypoints", plant, "cameras_swapped", (1, 4)), tmp_path))


def test_without_masks_keypoints_are_enough(clean, tmp_path):
    def plant(path):
        shutil.rmtree(path / "simpleclick_undist")
        FAULTS["transpose R 3"].plant(path)

    row = examine(clean, Fault("no masks", plant, "rotation_transposed", (3,)), tmp_path)
    assert_right(row)


def test_keypoints_of_another_time_are_a_warning(clean, tmp_path):
    def plant(path):
        file = path / "keypoints2d_undist/result_view_2.pkl"
        points = pickle.loads(file.read_bytes())
        file.unlink()
        file.write_bytes(pickle.dumps(np.roll(points, -5, 0)))

    row = examine(clean, Fault("stale", plant, "keypoints_inconsistent", (2,)), tmp_path)
    assert_right(row)
    assert "while masks agree" in row["says"]


def test_empty_masks_are_counted(clean, tmp_path):
    from tests.benchmarks.fault_injection import videos

    def blank(x):
        x = x.copy()
        x[4:7] = 0
        return x

    path = link_copy(clean, tmp_path / "r")
    videos(path, 3, "masks", blank)
    result = check_recording(path)
    assert [f.code for f in result.findings] == ["mask_empty"]
    assert result.findings[0].cameras == (3,) and result.usable and not result.clean
    assert result.to_json()["findings"][0]["evidence"]["frames"] == [4, 5, 6]


@pytest.mark.slow
def test_a_camera_that_never_saw_the_animal_has_no_figures(clean, tmp_path, capsys):
    """Null in check.json, and no complaint of NumPy's on the way."""
    import warnings

    from mouselift_jax.cli import check as cli
    from tests.benchmarks.fault_injection import videos

    path = link_copy(clean, tmp_path / "r")
    videos(path, 3, "masks", np.zeros_like)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        result = check_recording(path)
    assert any(f.code == "mask_empty" and f.cameras == (3,) for f in result.findings)
    measures = result.to_json()["measures"]
    assert [b is None for b in measures["brightness_of_animal"]] == [v == 3 for v in range(6)]
    cli._print(tmp_path, result)
    assert "3: unknown  4: " in capsys.readouterr().out
    assert measures["mask_share"][3] == 0 and min(measures["mask_share"][:3]) > 0


def test_planted_jump_is_found(tmp_path):
    path = write_recording(
        tmp_path / "j", frames=26, size=(144, 128), n_heldout=0, workers=1, jumps=(13,), seed=1
    )
    result = check_recording(path)
    assert [f.code for f in result.findings] == ["content_jump"]
    assert result.findings[0].evidence["frames"] == [13]


def test_truncated_in_the_middle_is_found_by_decoding(clean, tmp_path):
    """Damage that the header does not show."""
    path = link_copy(clean, tmp_path / "r")
    video = path / "videos_undist/4.mp4"
    data = bytearray(video.read_bytes())
    at = data.index(b"mdat")
    data[at + len(data) // 2 : at + len(data) // 2 + 4000] = bytes(4000)
    video.unlink()
    video.write_bytes(bytes(data))
    result = check_recording(path)
    assert result.findings  # concealed by the decoder or not, the pictures of camera 4 suffer


def test_unusable_recording_without_cameras(clean, tmp_path):
    path = link_copy(clean, tmp_path / "r")
    (path / "new_cam.pkl").unlink()
    (path / "videos_undist/2.mp4").unlink()
    result = check_recording(path)
    assert not result.usable and result.findings[0].code == "calibration_missing"


def test_json_is_plain(clean):
    result = check_recording(clean)
    text = json.dumps(result.to_json(), allow_nan=False)
    content = json.loads(text)
    assert content["clean"] is True and content["findings"] == []
    assert min(content["measures"]["hull_cover_mean"]) > 0.97
    assert len(content["measures"]["rig"]) == 6


def test_nothing_is_written_into_the_recording(clean):
    before = {p: os.stat(p).st_mtime_ns for p in clean.rglob("*")}
    check_recording(clean)
    assert before == {p: os.stat(p).st_mtime_ns for p in clean.rglob("*")}


def test_few_frames_are_enough(clean, tmp_path):
    path = link_copy(clean, tmp_path / "r")
    FAULTS["swap 1,4 in calibration"].plant(path)
    result = check_recording(path, max_frames=6)
    assert result.findings[0].code == "cameras_swapped"
    assert result.measures["looked_at_frames"] == 6


def test_published_track_is_checked_for_cuts(shared):
    """A folder with DANNCE's file alone: no videos, but its track tells of three cuts."""
    result = check_recording(shared / "data/dannce")
    assert [f.code for f in result.findings] == ["camera_missing", "content_jump"]
    assert result.measures["content_jumps"] == [5900, 11800, 17700]


def test_long_recordings_are_sampled_in_runs(tmp_path):
    path = write_recording(
        tmp_path / "l", frames=70, size=(96, 84), n_heldout=0, workers=1, jumps=(50,), seed=1
    )
    result = check_recording(path, max_frames=30)
    assert result.measures["looked_at_frames"] == 30
    assert [f.code for f in result.findings] == ["content_jump"]
    assert result.findings[0].evidence["frames"] == [50]
