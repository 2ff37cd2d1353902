"""A run in Rerun's file, read by Rerun's own reader."""

import numpy as np
import pytest

from mouselift_jax.__main__ import main
from mouselift_jax.exports.rrd import save_rrd
from mouselift_jax.report.scene import open_film_scene
from tests.exports.test_films import a_run


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return open_film_scene(a_run(tmp_path_factory.mktemp("run") / "fit"))


def column(chunks, entity, name, frame):
    """A component's values in a frame."""
    for chunk in chunks:
        if str(chunk.entity_path) == f"/{entity}" and not chunk.is_static:
            batch = chunk.to_record_batch()
            key = next((n for n in batch.schema.names if n.endswith(name)), None)
            frames = batch.column("frame").to_pylist()
            if key is not None and frame in frames:
                return batch.column(key)[frames.index(frame)].as_py()
    raise AssertionError(f"{entity} has no {name} in frame {frame}")


def test_reruns_reader_finds_splats_cameras_pictures_and_tracks(scene, tmp_path):
    pytest.importorskip("rerun", reason="the extra [rrd] is not installed")
    from rerun.chunk import RrdReader

    held = save_rrd(tmp_path / "a.rrd", scene)
    assert held == {"frames": 3, "pictures": 18, "tracks": 50}
    chunks = list(RrdReader(tmp_path / "a.rrd").stream().to_chunks())
    true = scene.reel.gaussians(1)
    centers = np.array(column(chunks, "world/splats", "centers", 2))
    np.testing.assert_allclose(centers, 100 * true.means + [5, 0, 0], atol=1e-3)  # mm
    scales = np.array(column(chunks, "world/splats", "scales", 2))
    np.testing.assert_allclose(scales, 100 * np.exp(true.log_scales), rtol=1e-5)
    quats = np.array(column(chunks, "world/splats", "quaternions", 2))
    np.testing.assert_allclose(np.abs(quats[:, 3]), 1, atol=1e-6)  # xyzw
    lines = column(chunks, "world/tracks", "strips", 3)
    assert len(lines) == 50 and {len(line) for line in lines} == {3}
    np.testing.assert_allclose(np.diff(np.array(lines[0])[:, 0]), [20, 10], atol=1e-3)
    cameras, _, names = scene.moments[0].views()
    place = f"world/cameras/{names[4].replace(' ', '_')}"
    K = np.array(column(chunks, place, "image_from_camera", 0)).reshape(3, 3).T
    np.testing.assert_allclose(K, cameras.K[4], rtol=1e-5)
    where = np.array(column(chunks, place, "translation", 0)).reshape(-1)
    moved = np.asarray(scene.reel.mm.apply(np.asarray(cameras.c2w[4][:3, 3], float)))
    np.testing.assert_allclose(where, moved, rtol=1e-4, atol=1e-3)
    picture = bytes(np.array(column(chunks, place, "blob", 0), np.uint8).reshape(-1))
    assert picture[:2] == b"\xff\xd8"  # JPEG
    times = {t for c in chunks for t in c.timeline_names}
    assert {"frame", "time"} <= times


def test_without_rerun_it_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rerun", None)
    run = a_run(tmp_path / "fit")
    assert main(["export", "--to=rrd", str(run), str(tmp_path / "a.rrd")]) == 2
    assert ".[rrd]" in capsys.readouterr().err and not (tmp_path / "a.rrd").exists()
