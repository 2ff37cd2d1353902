"""Stage `calibrate`: from a recording with a calibration that is off, to the file that mends it."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest

from configs import calibrate as configs
from mouselift_jax.data.inputs import calibration_of
from mouselift_jax.data.readers import read_calibration
from mouselift_jax.data.recordings.inspection import open_recording
from mouselift_jax.data.synthetic.recording import write_recording
from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.geometry.bundle import rotations
from mouselift_jax.runs.folder import Options, Workdir
from mouselift_jax.stages import calibrate as stage
from mouselift_jax.stages.harness.plan import next_commands


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A recording with keypoints, and the same with every camera turned by half a degree."""
    root = tmp_path_factory.mktemp("calibrate")
    write_recording(root / "true", frames=24, size=(144, 128), n_heldout=0, fps=2.0)
    shutil.copytree(root / "true", root / "off")
    path = root / "off" / "new_cam.pkl"
    rows = pickle.loads(path.read_bytes())
    rng = np.random.default_rng(0)
    for row in rows:
        row["R"] = rotations(np.deg2rad(0.5) * rng.choice([-1, 1], (1, 3)))[0] @ row["R"]
    path.write_bytes(pickle.dumps(rows))
    return root


def _config(recording, variant="base", **changes):
    config = configs.get_config(variant)
    config.recording = str(recording)
    for key, value in changes.items():
        config.calibrate[key] = value
    return config


def _run(config, path):
    with Workdir(path, config, Options("none")) as workdir:
        stage.run(config, workdir)
    return json.loads((path / "calibration.json").read_text())


def test_a_rig_that_is_off_is_mended_in_the_form_it_came_in(recordings, tmp_path):
    record = _run(_config(recordings / "off"), tmp_path)
    assert record["verdict"] == "improved" and record["file"] == "new_cam.pkl"
    told = record["unused_frames"]
    assert told["after_px"] < 0.6 * told["before_px"]
    old = pickle.loads((recordings / "off" / "new_cam.pkl").read_bytes())
    new = pickle.loads((tmp_path / "new_cam.pkl").read_bytes())
    for a, b in zip(old, new, strict=True):
        assert set(a) == set(b) and all(np.shape(a[k]) == np.shape(b[k]) for k in a)
        np.testing.assert_allclose(a["K"][:2, 2], b["K"][:2, 2])  # the file's pixel origin
    # The file read again has the cameras that calibration.json holds.
    again = read_calibration(tmp_path / "new_cam.pkl")
    for camera, row in zip(again.cameras, record["new"]["frames"], strict=True):
        np.testing.assert_allclose(camera.K[0, [0, 2]], [row["fx"], row["cx"]])
        np.testing.assert_allclose(camera.T, np.array(row["w2c"])[:3, 3])
    errors = record["cameras"]["0"]["standard_error"]
    assert 0 < errors["focal_px"] < np.inf and min(errors["turn_deg"]) > 0
    assert (tmp_path / "report.html").is_file()
    # What was needed here is needed by prepare as well.
    config = _config(recordings / "off", cameras="0,1,2,4,5", trim="shortest", pixel_origin="0")
    (line,) = next_commands(stage, config, tmp_path)
    for words in ("prepare.cameras=0,1,2,4,5 ", "prepare.trim=shortest ", "prepare.pixel_origin=0"):
        assert words in line + " "
    # prepare takes the run.
    assert calibration_of(tmp_path) == tmp_path / "new_cam.pkl"
    mended = open_recording(recordings / "off", calibration=calibration_of(tmp_path))
    np.testing.assert_allclose(mended.cameras[3].w2c[:3, :3], again.cameras[3].R)


def test_the_result_is_in_the_world_of_the_file_though_it_is_not_level(recordings, tmp_path):
    """A world whose z points down is turned for samples, not in the file that is written."""
    shutil.copytree(recordings / "off", tmp_path / "down")
    path = tmp_path / "down" / "new_cam.pkl"
    rows = pickle.loads(path.read_bytes())
    for row in rows:
        row["R"] = row["R"] @ np.diag([1.0, -1.0, -1.0])
    path.write_bytes(pickle.dumps(rows))
    assert open_recording(tmp_path / "down").level is not None
    chosen = _config(tmp_path / "down", cameras="0,1,2,4,5", free=("pose",))
    record = _run(chosen, tmp_path / "run")
    assert set(record["cameras"]) == {"0", "1", "2", "4", "5"}
    for old, new in zip(record["old"]["frames"], record["new"]["frames"], strict=True):
        turned = np.array(old["w2c"])[:3, :3] - np.array(new["w2c"])[:3, :3]
        assert np.abs(turned).max() < 0.05  # half a degree was wrong
    # On the floor: z is up, and the camera that was not chosen moved along.
    record = _run(_config(tmp_path / "down", cameras="0,1,2,4,5", floor=True), tmp_path / "floor")
    true = read_calibration(recordings / "true" / "new_cam.pkl").cameras
    stood = read_calibration(tmp_path / "floor" / "new_cam.pkl").cameras
    for a, b in zip(true, stood, strict=True):
        assert abs(a.center[2] - b.center[2]) < 25 < a.center[2], (a.center, b.center)
    assert 0 < record["floor"]["height_error_mm"] < 5
    assert record["cameras"]["0"]["turned_deg"] < 2  # in the world that was given


def test_a_known_length_sets_the_scale(recordings, tmp_path):
    kwargs = {"length_between": (0, 5), "length_mm": 100.0}
    record = _run(_config(recordings / "true", **kwargs), tmp_path / "run")
    assert record["verdict"] == "scaled"
    scale, error = record["scale_from_length"]
    assert 0 < error < 0.1 * scale
    centre = [
        [
            -np.array(row["w2c"])[:3, :3].T @ np.array(row["w2c"])[:3, 3]
            for row in record[k]["frames"]
        ]
        for k in ("old", "new")
    ]
    np.testing.assert_allclose(centre[1], scale * np.array(centre[0]), atol=1e-6)
    assert max(c["turned_deg"] + c["moved_mm"] for c in record["cameras"].values()) < 1e-5
    again = _run(_config(recordings / "true", **kwargs | {"length_mm": 200.0}), tmp_path / "twice")
    np.testing.assert_allclose(again["scale_from_length"][0], 2 * scale)
    for wrong in ({"length_between": (0, 99)}, {"length_mm": 0.0}):
        with pytest.raises(ConfigError, match="length_between"):
            _run(_config(recordings / "true", **kwargs | wrong), tmp_path / "wrong")


def test_a_right_rig_comes_back_as_it_was(recordings, tmp_path):
    record = _run(_config(recordings / "true"), tmp_path)
    assert record["verdict"] == "already right"
    given = pickle.loads((recordings / "true" / "new_cam.pkl").read_bytes())
    for a, b in zip(given, pickle.loads((tmp_path / "new_cam.pkl").read_bytes()), strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_silhouettes_give_a_verdict_and_other_variants_plan(recordings, tmp_path):
    record = _run(_config(recordings / "off", "silhouettes"), tmp_path)
    assert record["unused_frames"]["after_px"] <= record["unused_frames"]["before_px"]
    for variant in configs.VARIANTS:
        plan = stage.plan(_config(recordings / "off", variant), tmp_path / "plan")
        assert "6 cameras" in plan.steps


def test_what_is_missing_or_misspelt_is_said(recordings, tmp_path):
    with pytest.raises(ConfigError, match="no such evidence"):
        stage.plan(_config(recordings / "true", evidence="keypoint"), tmp_path)
    with pytest.raises(ConfigError, match="no such part"):
        stage.plan(_config(recordings / "true", free=("pose", "k1")), tmp_path)
    with pytest.raises(ConfigError, match="too few frames"):
        stage.plan(_config(recordings / "true", n_frames=1), tmp_path)
    with pytest.raises(ConfigError, match="no calibration in this folder"):
        calibration_of(tmp_path)
    bare = tmp_path / "bare"
    shutil.copytree(recordings / "true", bare)
    shutil.rmtree(next(p for p in bare.iterdir() if p.name.startswith("keypoints")))
    with pytest.raises(LayoutError, match="has no keypoints"):
        stage.plan(_config(bare, evidence="both"), tmp_path)
