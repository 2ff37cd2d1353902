import csv

import imageio.v3 as iio
import numpy as np
import pytest

from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.pipelines import measure as measures
from mouselift_jax.report import sequence as film
from mouselift_jax.splats.gaussians import Gaussians

SCALE = 0.01  # scene units per mm


def ellipsoid(centre_mm, semi_mm, heading_deg, moved, n=4000):
    """The surface of an ellipsoid in the recording's mm, as Gaussians of a sample's scene."""
    rng = np.random.default_rng(0)
    d = rng.normal(size=(n, 3))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    a = np.radians(heading_deg)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    mm = (d * semi_mm) @ turn.T + centre_mm
    scene = np.asarray(moved.apply(mm))
    return Gaussians(
        scene.astype(np.float32),
        np.tile(np.array([1, 0, 0, 0], np.float32), (n, 1)),
        np.full((n, 3), np.log(1.0 * SCALE), np.float32),
        np.full(n, 3, np.float32),
        np.zeros((n, 1, 3), np.float32),
    )


def moved_world():
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    return Similarity(SCALE, turn, np.array([0.3, -0.2, 0.1]))


def to_mm():
    world = moved_world()
    record = {"scale": world.scale, "R": world.R.tolist(), "t": world.t.tolist()}
    return measures.to_millimetres(SCALE, record)


def rows_of_a_walk(backwards=False):
    rows = []
    for i in range(20):
        a = np.radians(10 * i)
        axis = (10 * i + 90 + (180 if backwards or i % 3 == 0 else 0)) % 360
        x, y = 100 * np.cos(a), 100 * np.sin(a)
        rows.append({"frame": i, "time_s": 0.1 * i, "x_mm": x, "y_mm": y, "z_mm": 0.0,
                     "heading_deg": axis, "volume_mm3": 5000.0, "length_mm": 90.0,
                     "trusted": 1, "why": ""})  # fmt: skip
    return rows


def test_csv_leaves_unknown_values_empty(tmp_path):
    rows = measures.motion(rows_of_a_walk())
    rows[0]["speed_mm_s"] = float("nan")
    film.write_csv(tmp_path / "m.csv", rows)
    back = list(csv.DictReader(open(tmp_path / "m.csv")))
    assert list(back[0]) == list(film.COLUMNS)
    assert back[1]["why"] == "" and back[1]["trusted"] == "1"
    assert back[0]["speed_mm_s"] == "" and float(back[1]["x_mm"]) == pytest.approx(98.4808)


def test_videos_show_truth_beside_render(tmp_path):
    from mouselift_jax.geometry.rig import turntable

    world = moved_world()
    gaussians = ellipsoid((0, 0, 0), (30, 20, 15), 0, world, n=200)
    cameras = turntable(2, size=32)
    grey = [np.full((32, 32, 3), 90, np.uint8)] * 2
    frames = [
        film.Frame(
            i,
            0.1 * i,
            lambda: gaussians,
            to_mm(),
            lambda: (grey, cameras, ["camera 0", "camera 7"]),
        )
        for i in range(3)
    ]
    paths = film.write_videos(tmp_path, frames, fps=10, size=32)
    assert sorted(p.name for p in paths) == ["camera_0.mp4", "camera_7.mp4", "turntable.mp4"]
    video = iio.imread(tmp_path / "camera_7.mp4", plugin="FFMPEG")
    assert len(video) == 3 and video.shape[2] == 5 * 64  # enlarged until its label is readable
    plot = film.motion_plot(measures.motion(rows_of_a_walk()))
    assert plot.shape == (600, 1000, 3) and plot.std() > 5
