import csv
import dataclasses

import numpy as np
import pytest

from mouselift_jax.errors import LayoutError
from mouselift_jax.exports.pose_csv import save_pose_csv
from tests.exports.film import measured_film


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return measured_film(tmp_path_factory.mktemp("film"))


def test_missing_frames_are_empty_rows_because_readers_count_rows(film, tmp_path):
    points, rows, rate = save_pose_csv(tmp_path / "a.csv", film)
    assert (points, rows) == (27, 4) and rate == pytest.approx(5.0)  # every second frame of 10 fps
    table = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [r["fnum"] for r in table] == ["0", "2", "4", "6"]
    assert table[2]["nose_x"] == "" and float(table[3]["spine.nose_x"]) == 96.0
    true = np.load(film.recording.path / "truth.npz")["keypoints"]
    found = [float(table[1][f"mid_body_{c}"]) for c in "xyz"]
    assert np.linalg.norm(found - true[2, 4]) < 3.0
    assert float(table[1]["mid_body_ncams"]) >= 2 and float(table[1]["M_00"]) == 1.0


def test_movement_loads_it(film, tmp_path):
    load = pytest.importorskip("movement.io.load_poses", reason="movement is not installed")
    _, _, rate = save_pose_csv(tmp_path / "a.csv", film)
    poses = load.from_anipose_file(tmp_path / "a.csv", fps=rate)
    np.testing.assert_allclose(poses.time, [0, 0.2, 0.4, 0.6])  # frame 6 of 10 fps is at 0.6 s
    place = poses.position.sel(keypoints="spine.tail_root").values[:, :, 0]
    np.testing.assert_allclose(place[[0, 1, 3], 0], [0, 2, 6])


def test_a_film_without_points_says_how_to_get_them(film, tmp_path):
    nowhere = tuple(
        dataclasses.replace(f, splats=tmp_path / f.label / "splats.ply") for f in film.frames
    )
    with pytest.raises(LayoutError, match="no points to write"):
        save_pose_csv(tmp_path / "a.csv", dataclasses.replace(film, frames=nowhere, recording=None))
