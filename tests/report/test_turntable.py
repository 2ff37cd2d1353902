import imageio.v3 as iio
import numpy as np
import pytest

from mouselift_jax.data.mp4 import ffmpeg_version, mp4_writer
from mouselift_jax.errors import BackendError, ShapeError
from mouselift_jax.report.turntable import write_mp4


def frames(n, height=48, width=65):
    for i in range(n):
        picture = np.full((height, width, 3), 255, np.uint8)
        picture[:, : 6 * i + 6] = (200, 30, 30)
        yield picture


def test_mp4_is_h264_with_even_size_and_the_right_pictures(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", frames(8), fps=25)
    meta = iio.immeta(path, plugin="FFMPEG")
    assert meta["codec"] == "h264" and meta["fps"] == 25 and meta["size"] == (66, 48)
    assert "yuv420p" in meta["pix_fmt"]
    back = iio.imread(path, plugin="FFMPEG")
    assert len(back) == 8
    for i, (a, b) in enumerate(zip(frames(8), back, strict=True)):
        assert np.abs(a.astype(int) - b[:, :65]).mean() < 8, i


def test_a_video_that_fails_half_way_leaves_nothing(tmp_path):
    def broken():
        yield from frames(3)
        raise RuntimeError("the renderer died")

    with pytest.raises(RuntimeError):
        write_mp4(tmp_path / "a.mp4", broken())
    with pytest.raises(ShapeError, match="no frames"):
        write_mp4(tmp_path / "a.mp4", [])
    with pytest.raises(ShapeError, match="differ in size"):
        write_mp4(tmp_path / "a.mp4", [np.zeros((4, 4, 3)), np.zeros((6, 4, 3))])
    with (
        pytest.raises(ShapeError, match="no frame of a video"),
        mp4_writer(tmp_path / "a.mp4") as w,
    ):
        w(np.zeros((4, 4, 3)))  # floats: nobody said which range
    assert list(tmp_path.iterdir()) == []


def test_ffmpeg_says_its_version():
    assert any(c.isdigit() for c in ffmpeg_version())


def test_an_encoder_that_fails_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", lambda: "false")
    with pytest.raises(BackendError, match="ffmpeg stopped"):
        write_mp4(tmp_path / "a.mp4", frames(200, 480, 640))
    assert list(tmp_path.iterdir()) == []


def test_padding_is_invisible_and_gives_few_shapes():
    from mouselift_jax.geometry.rig import turntable
    from mouselift_jax.render import render
    from mouselift_jax.report.turntable import render_turntable
    from mouselift_jax.splats.gaussians import padded
    from tests.report.test_scene import one

    gaussians = one(n=20)
    more = padded(gaussians, 64)
    assert more.n_gaussians == 64 and padded(more, 64).n_gaussians == 64
    cameras = turntable(1, size=24)
    a, b = (np.asarray(render(g, cameras).rgb) for g in (gaussians, more))
    np.testing.assert_allclose(a, b, atol=1e-6)
    frames = list(render_turntable(gaussians, n=3, size=24, chunk=2))
    assert len(frames) == 3 and frames[0].shape == (24, 24, 3) and frames[0].min() < 200
