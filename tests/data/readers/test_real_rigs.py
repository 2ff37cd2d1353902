"""Calibrations of public projects read, or are refused for a true reason."""

import csv

import numpy as np
import pytest

from mouselift_jax.data.distortion import distort_pixels
from mouselift_jax.data.readers import examine, find_calibration, read_calibration

RIGS = {
    "anipose_gui": ("anipose", 3),
    "caliscope_4_cam_recording": ("caliscope", 4),
    "caliscope_charuco": ("caliscope", 4),
    "caliscope_post_optimization": ("caliscope", 4),
    "label3d": ("label3d", 6),
    "transforms_dtu": ("transforms.json", 49),
}


@pytest.mark.parametrize("name", RIGS)
def test_a_real_rig_reads_and_nothing_is_said_against_it(shared, name):
    calibration = read_calibration(find_calibration(shared / "data" / "real_rigs" / name))
    assert (calibration.kind, len(calibration.cameras)) == RIGS[name]
    assert [f.message for f in examine(calibration)] == []


def test_one_camera_is_too_few_and_that_is_the_reason(shared):
    calibration = read_calibration(find_calibration(shared / "data/real_rigs/jarvis"))
    assert calibration.kind == "jarvis"
    (finding,) = examine(calibration)
    assert "at least two calibrated cameras" in finding.message
    camera = calibration.cameras[0]  # it hangs above and looks down; T is in mm
    assert abs(np.linalg.det(camera.R) - 1) < 1e-6 and 900 < np.linalg.norm(camera.center) < 1400


@pytest.mark.parametrize("file", ["camera_array.toml", "config.toml"])
def test_the_board_of_caliscope_lands_where_it_was_seen(shared, file):
    folder = shared / "data/real_rigs/caliscope_post_optimization"
    cameras = {c.number: c for c in read_calibration(folder / file).cameras}
    with open(folder / "xyz_CHARUCO.csv") as f:
        points = {(r["sync_index"], r["keypoint_id"]): [float(r[f"{k}_coord"]) for k in "xyz"]
                  for r in csv.DictReader(f)}  # fmt: skip
    misses: dict[int, list[float]] = {n: [] for n in cameras}
    with open(folder / "xy_CHARUCO.csv") as f:
        for row in csv.DictReader(f):
            point = points.get((row["sync_index"], row["keypoint_id"]))
            if point is None:
                continue
            camera = cameras[int(row["cam_id"])]
            x = camera.R @ point + camera.T
            flat = (camera.K @ x)[:2] / x[2]
            seen = np.array([float(row["img_loc_x"]), float(row["img_loc_y"])]) + 0.5
            raw = distort_pixels(flat, camera.K, camera.distortion)
            misses[int(row["cam_id"])].append(float(np.linalg.norm(raw - seen)))
    assert all(len(m) > 100 and np.median(m) < 1.6 for m in misses.values()), {
        n: np.median(m) for n, m in misses.items()
    }


def test_the_real_mouse(shared):
    calibration = read_calibration(find_calibration(shared / "data/real_mouse"))
    assert [c.name for c in calibration.cameras] == ["back", "mid", "side", "top"]
