import dataclasses

import numpy as np
import pytest

from mouselift_jax.errors import ConfigError, LayoutError, MissingExtraError
from mouselift_jax.exports.nwb import save_nwb
from mouselift_jax.splats.reel import spread
from tests.exports.film import measured_film, write_identity


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return measured_film(tmp_path_factory.mktemp("film"))


def test_pynwb_reads_rig_points_and_measures(film, tmp_path):
    pynwb = pytest.importorskip("pynwb", reason="the extra [nwb] is not installed")
    held = save_nwb(tmp_path / "a.nwb", film, start="2026-05-04T10:30:00+02:00")
    assert held["frames"] == 3 and held["cameras"] == 6 and held["keypoints"] == 22
    with pynwb.NWBHDF5IO(str(tmp_path / "a.nwb"), "r") as io:
        file = io.read()
        camera, recording = file.devices["camera_2"], film.recording
        K = np.array(recording.cameras[2].K)
        K[:2, 2] -= 0.5  # OpenCV counts pixel centres from 0
        np.testing.assert_allclose(camera.intrinsic_matrix[:], K, rtol=1e-6)
        behavior = file.processing["behavior"]
        poses = behavior["Keypoints"]
        nose = poses.pose_estimation_series["nose"]
        assert nose.unit == "meters" and nose.conversion == 1e-3
        # What NWB holds belongs together: the point in space falls on the point in the picture.
        x = camera.rotation_matrix[:] @ nose.data[1] + camera.translation_vector[:]
        pixel = (camera.intrinsic_matrix[:] @ x)[:2] / x[2]
        view = poses.pose_estimations["in_camera_2"]
        seen = view.pose_estimation_series["nose"].data[1]
        assert np.linalg.norm(pixel - seen) < 1.0 and view.device is camera
        np.testing.assert_allclose(nose.timestamps[:], [0.0, 0.2, 0.6])
        assert view.source_video.external_file[0].endswith("videos_undist/2.mp4")
        spine = behavior["Spine"].pose_estimation_series["tail_root"]
        np.testing.assert_allclose(spine.data[:], [[0, 50, 14], [2, 50, 14], [6, 50, 14]])
        tracks = behavior["Tracks"].pose_estimation_series
        assert len(tracks) == 50 == held["tracks"]
        one = tracks["track_007"]  # 0.1 film units of 100 mm a frame; the world begins at 5 mm
        np.testing.assert_allclose(np.diff(one.data[:, 0]), [20, 40], atol=1e-3)
        reel = film.reel()
        index = spread(reel.gaussians(0), 50)[7]
        np.testing.assert_allclose(
            one.data[0], 100 * reel.gaussians(0).means[index] + [5, 0, 0], atol=1e-3
        )
        np.testing.assert_allclose(one.timestamps[:], [0.0, 0.2, 0.6])
        length = behavior["Measures"]["length"]
        assert length.unit == "meters" and list(length.data[:] * length.conversion) == [0.09] * 3
        assert behavior["Measures"]["volume"].unit == "m^3"
        marked = file.intervals["untrusted_frames"].to_dataframe()
        assert list(marked["why"]) == ["head and tail could not be told apart"]
        assert marked["start_time"].iloc[0] == pytest.approx(0.2)


def test_tracks_end_where_identity_does(film, tmp_path):
    pynwb = pytest.importorskip("pynwb", reason="the extra [nwb] is not installed")
    for f in film.frames:
        place = tmp_path / "run" / "items" / f.label
        place.mkdir(parents=True)
    write_identity(tmp_path / "run", [f.number for f in film.frames], cut=2)
    held = save_nwb(tmp_path / "a.nwb", dataclasses.replace(film, run=tmp_path / "run"))
    assert held["tracks"] == 100
    with pynwb.NWBHDF5IO(str(tmp_path / "a.nwb"), "r") as io:
        behavior = io.read().processing["behavior"]
        first, second = (behavior[f"Tracks_00{i}"].pose_estimation_series["track_000"]
                         for i in (0, 1))  # fmt: skip
        assert len(first.data) == 1 and len(second.data) == 2
        np.testing.assert_allclose([second.starting_time, second.rate], [0.2, 2.5])


def test_nothing_critical_for_nwbinspector(film, tmp_path):
    pytest.importorskip("pynwb", reason="the extra [nwb] is not installed")
    inspector = pytest.importorskip("nwbinspector", reason="nwbinspector is not installed")
    save_nwb(tmp_path / "a.nwb", film, subject="m7", age="P70D")
    found = list(inspector.inspect_nwbfile(nwbfile_path=tmp_path / "a.nwb"))
    worst = inspector.Importance.BEST_PRACTICE_VIOLATION.value
    assert not [m for m in found if m.importance.value >= worst], found


def test_what_is_missing_is_named(film, tmp_path, monkeypatch):
    pytest.importorskip("pynwb", reason="the extra [nwb] is not installed")
    with pytest.raises(ConfigError, match="a name and an age"):
        save_nwb(tmp_path / "a.nwb", film, subject="m7")
    with pytest.raises(ConfigError, match="not a time"):
        save_nwb(tmp_path / "a.nwb", film, start="yesterday")
    with pytest.raises(LayoutError, match="recording of this film is not there"):
        save_nwb(tmp_path / "a.nwb", dataclasses.replace(film, recording=None))
    frames = tuple(dataclasses.replace(f, time_s=float("nan")) for f in film.frames)
    with pytest.raises(LayoutError, match="no clock"):
        save_nwb(tmp_path / "a.nwb", dataclasses.replace(film, frames=frames))
    monkeypatch.setitem(__import__("sys").modules, "pynwb", None)
    with pytest.raises(MissingExtraError, match="nwb"):
        save_nwb(tmp_path / "a.nwb", film)
    assert not list(tmp_path.glob("*.nwb"))


def test_a_video_in_pieces_begins_where_its_pieces_do(tmp_path):
    from mouselift_jax.data.mp4 import mp4_writer
    from mouselift_jax.data.recordings.probe import probe
    from mouselift_jax.exports.nwb import _starts

    for name, n in (("0", 5), ("1", 3), ("2", 4)):
        with mp4_writer(tmp_path / f"{name}.mp4", fps=10) as write:
            for i in range(n):
                write(np.full((48, 64, 3), 20 * i, np.uint8))
    assert _starts(probe(tmp_path)) == [0, 5, 8]
