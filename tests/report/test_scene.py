import dataclasses
import json

import numpy as np
import pytest

from mouselift_jax.errors import LayoutError
from mouselift_jax.geometry.rig import turntable
from mouselift_jax.report.scene import Moment, Scene, open_scene, recording_of
from mouselift_jax.splats import ply
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.ply import save_ply
from mouselift_jax.splats.splat_file import load_splat, save_splat


def one(x=0.0, n=5):
    rng = np.random.default_rng(0)
    return Gaussians(
        (rng.normal(size=(n, 3)) * 0.1 + [x, 0, 0]).astype(np.float32),
        np.tile(np.array([1, 0, 0, 0], np.float32), (n, 1)),
        np.full((n, 3), -3, np.float32),
        np.full(n, 2, np.float32),
        rng.normal(size=(n, 1, 3)).astype(np.float32),
    )


def write_samples(path, n=3, size=32):
    from mouselift_jax.data.samples.camera_file import camera_record
    from mouselift_jax.report.pictures import save_png

    cameras = turntable(2, size=size)
    ids = [f"sample_{i:06d}" for i in range(n)]
    for name in ids:
        files = [f"images/cam_{v:03d}.png" for v in range(2)]
        for file in files:
            save_png(path / name / file, np.full((size, size, 3), 90, np.uint8))
        record = camera_record(name, cameras, [0, 1], files)
        (path / name / "opencv_cameras.json").write_text(json.dumps(record))
    (path / "data_train.txt").write_text("\n".join(ids) + "\n")
    return path


def test_items_of_a_run_become_moments_in_natural_order(tmp_path):
    for i in (10, 9, 100):
        save_ply(tmp_path / "items" / f"frame_{i}" / "splats.ply", one(), scene_scale=0.02)
    scene = open_scene(tmp_path)
    assert [m.label for m in scene.moments] == ["frame_9", "frame_10", "frame_100"]
    assert scene.scene_scale == 0.02 and scene.moments[0].gaussians().n_gaussians == 5


def test_splats_find_the_pictures_of_their_sample(tmp_path):
    samples = write_samples(tmp_path / "samples")
    save_ply(tmp_path / "run" / "items" / "sample_000001" / "splats.ply", one())
    save_ply(tmp_path / "run" / "items" / "other" / "splats.ply", one())
    scene = open_scene(tmp_path / "run", samples=samples)
    by_name = {m.label: m for m in scene.moments}
    assert by_name["other"].views is None
    cameras, pictures, names = by_name["sample_000001"].views()
    assert len(pictures) == 2 and cameras.batch_shape == (2,) and names[1] == "camera 1"


def test_the_recording_of_samples_is_read_as_prepare_read_it(tmp_path):
    from types import SimpleNamespace

    from mouselift_jax.data.synthetic.recording import write_recording

    path = write_recording(tmp_path / "rec", frames=2, size=(64, 56), n_heldout=0, workers=1)
    manifest = {"source": {"rec": {"path": str(path)}}, "parameters": {}}
    assert recording_of(SimpleNamespace(manifest=manifest)).n_views == 6
    manifest["parameters"] = {"cameras": "0,2,4", "up": "-z", "unit": "", "pixel_origin": ""}
    found = recording_of(SimpleNamespace(manifest=manifest))
    assert found.camera_ids == (0, 2, 4) and found.level is not None
    manifest["source"] = {}
    assert recording_of(SimpleNamespace(manifest=manifest)) is None


def test_sample_sets_and_single_files_open(tmp_path):
    scene = open_scene(write_samples(tmp_path / "s"))
    assert len(scene.moments) == 3 and scene.moments[0].gaussians() is None
    save_splat(tmp_path / "a.splat", one())
    assert open_scene(tmp_path / "a.splat").moments[0].gaussians().n_gaussians == 5


def test_the_folder_of_the_run_that_wrote_the_samples_is_as_good_as_theirs(tmp_path):
    samples = write_samples(tmp_path / "prepare" / "samples")
    rows = [{"id": f"sample_{i:06d}", "status": "ok", "frame": i} for i in range(3)]
    (samples / "manifest.json").write_text(json.dumps({"schema": 1, "samples": rows}))
    (samples / "train.txt").write_text("\n".join(r["id"] for r in rows) + "\n")
    (samples / "val.txt").write_text("")
    save_ply(tmp_path / "run" / "items" / "sample_000001" / "splats.ply", one())
    scene = open_scene(tmp_path / "run", samples=tmp_path / "prepare")
    assert scene.moments[0].views is not None


def test_nothing_to_see_is_said(tmp_path):
    with pytest.raises(LayoutError, match="nothing to look at"):
        open_scene(tmp_path)
    with pytest.raises(LayoutError, match="no such file"):
        open_scene(tmp_path / "x.ply")


def test_splat_files_keep_what_eight_bits_can(tmp_path):
    gaussians = one()
    save_splat(tmp_path / "a.splat", gaussians)
    back = load_splat(tmp_path / "a.splat")
    order = np.argsort(back.means[:, 0]), np.argsort(gaussians.means[:, 0])
    a, b = back[order[0]].activate(), gaussians[order[1]].activate()
    np.testing.assert_array_equal(a.means, b.means)
    np.testing.assert_allclose(a.scales, b.scales, rtol=1e-6)
    np.testing.assert_allclose(a.opacities, b.opacities, atol=1 / 255)
    seen = np.clip(b.sh * 0.28209479 + 0.5, 0, 1)
    np.testing.assert_allclose(a.sh * 0.28209479 + 0.5, seen, atol=1 / 255)


@pytest.mark.parametrize("data", [b"", b"x" * 31, b"\xff" * 64, b"\x00" * 64])
def test_a_damaged_splat_file_is_an_error(tmp_path, data):
    (tmp_path / "a.splat").write_bytes(data)
    with pytest.raises(LayoutError):
        load_splat(tmp_path / "a.splat")


def test_live_viewer_shows_splats_cameras_and_errors(tmp_path):
    from mouselift_jax.report.live import RENDER, LiveViewer, addresses

    samples = write_samples(tmp_path / "samples")
    for i in range(2):
        save_ply(tmp_path / "run" / "items" / f"sample_{i:06d}" / "splats.ply", one(i))
    viewer = LiveViewer(open_scene(tmp_path / "run", samples=samples), port=0)
    try:
        assert viewer._set and len(viewer._handles) == 2 and "dB" in viewer.errors.content
        viewer.kind.value = RENDER
        viewer.show(1)
        assert "sample_000001" in viewer.label.content
        assert f"ssh -L {viewer.port}" in addresses(viewer.port)
    finally:
        viewer.stop()


def test_a_recording_has_its_own_colours(tmp_path):
    import cv2

    from mouselift_jax.data.synthetic.recording import write_recording

    path = write_recording(tmp_path / "r", frames=2, size=(72, 64), n_heldout=0, workers=1)
    _, pictures, names = open_scene(path).moments[0].views()
    stored = cv2.VideoCapture(str(path / "videos_undist/0.mp4")).read()[1]
    np.testing.assert_array_equal(pictures[0], stored[..., ::-1])
    assert (stored[..., 0] != stored[..., 2]).any() and names[0] == "camera 0"


@pytest.mark.parametrize("unit", [1.0, 100.0])
def test_the_live_viewer_starts_where_everything_is_in_sight(tmp_path, capfd, unit):
    """In scene units and in a recording's millimetres, round a centre that is not the origin."""
    from mouselift_jax.geometry.rig import turntable
    from mouselift_jax.geometry.similarity import Similarity
    from mouselift_jax.report.live import LiveViewer

    away = np.array([50.0, 60.0, 0.0])
    cameras = turntable(6, size=16).transformed(Similarity(unit, np.eye(3), away))
    views = (cameras, [np.zeros((16, 16, 3), np.uint8)] * 6, list("abcdef"))
    viewer = LiveViewer(Scene("x", [Moment("a", None, lambda: views)], None), port=0)
    try:
        start = viewer.server.initial_camera
        np.testing.assert_allclose(start.look_at, away, atol=1e-3 * unit)
        distance = np.linalg.norm(start.position - away)
        assert 1.5 * 2.7 * unit < distance < 2.5 * 2.7 * unit
        assert start.near < 0.1 * unit and start.far > 2 * distance
        assert not capfd.readouterr().out  # viser's own table of addresses
    finally:
        viewer.stop()


def test_gaussians_without_numbers_are_left_out_and_counted(tmp_path, monkeypatch):
    from mouselift_jax.report.live import LiveViewer

    splats = one()
    means, scales = np.array(splats.means), np.array(splats.log_scales)
    means[0, 1], scales[-1, 2] = np.nan, np.inf
    splats = dataclasses.replace(splats, means=means, log_scales=scales)
    monkeypatch.setattr(ply, "only_drawable", lambda given, where: (given, 0))  # another program's
    save_ply(tmp_path / "a.ply", splats)
    viewer = LiveViewer(open_scene(tmp_path / "a.ply"), port=0)
    try:
        assert "2 of them not drawn" in viewer.label.content
        sent = viewer._set[0].centers
        assert len(sent) == len(means) - 2 and np.isfinite(sent).all()
    finally:
        viewer.stop()
