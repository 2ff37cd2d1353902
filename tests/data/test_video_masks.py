"""Decoding in step, and masks from every source."""

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from mouselift_jax.data.masks import clean_mask, mask_box, mask_centroid, ramp_table, soft_threshold
from mouselift_jax.data.recordings.mask_sources import MaskSettings, make_masker, resolve_source
from mouselift_jax.data.recordings.probe import probe
from mouselift_jax.data.recordings.recording import Frames
from mouselift_jax.data.recordings.video import FrameStream, count_frames, read_instants
from mouselift_jax.errors import LayoutError, MouseLiftError
from mouselift_jax.geometry.rig import axes_meeting_point, clockwise

FRAMES = 6  # of the fixture `recording`


def test_damaged_video_is_not_silently_shifted(recording, tmp_path):
    """Bytes zeroed in the middle must not end as frames out of step."""
    data = bytearray(recording.videos[1].path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    bad = tmp_path / "1.mp4"
    bad.write_bytes(data)
    frames = dataclasses.replace(recording.videos[1], path=bad)
    try:
        n = count_frames(frames)
    except LayoutError:
        return
    videos = [frames if i == 1 else v for i, v in enumerate(recording.videos)]
    if n == FRAMES:  # concealed by the decoder: as many frames as before, still in step
        assert len(list(read_instants(videos, None, range(FRAMES)))) == FRAMES
    else:
        with pytest.raises(MouseLiftError, match=r"1\.mp4"):
            list(read_instants(videos, None, range(FRAMES)))


def test_lost_frame_is_noticed(tmp_path):
    """A file whose clock skips a frame that the others have is named."""
    import imageio_ffmpeg

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (20, 64, 64, 3)).astype(np.uint8)
    streams = []
    for name, keep in (("a", range(20)), ("b", range(20)), ("c", [k for k in range(20) if k != 9])):
        folder = tmp_path / name
        folder.mkdir()
        lines = []
        for k in range(20):
            cv2.imwrite(str(folder / f"{k:02d}.png"), noise[k])
        for a, b in zip(
            keep, [*keep[1:], 20] if isinstance(keep, list) else [*range(1, 20), 20], strict=True
        ):
            lines.append(f"file '{a:02d}.png'\nduration {(b - a) / 25}\n")
        (folder / "list.txt").write_text("".join(lines))
        out = tmp_path / f"{name}.mp4"
        subprocess.run(
            [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "concat", "-i",
             str(folder / "list.txt"), "-fps_mode", "vfr", "-pix_fmt", "yuv420p", str(out)],
            check=True,
        )  # fmt: skip
        streams.append(Frames("video", out, 20, 25.0, 64, 64))
    with pytest.raises(LayoutError, match=r"frame is lost just before frame 9(.|\n)*c\.mp4"):
        list(read_instants(streams, None, range(18)))
    assert len(list(read_instants(streams[:2], None, range(18)))) == 18


def test_no_seeks_one_pass(recording):
    """Skipping frames and reading them all give the same pictures."""
    every = [i.pictures[0] for i in read_instants(recording.videos, None, range(FRAMES))]
    some = list(read_instants(recording.videos, recording.masks, [1, 4]))
    assert [i.frame for i in some] == [1, 4]
    assert np.array_equal(some[0].pictures[0], every[1])
    assert np.array_equal(some[1].pictures[0], every[4])


def test_luma_masks_equal_converted_masks(recording):
    plain = FrameStream(recording.masks[0], grey=True)
    colour = FrameStream(dataclasses.replace(recording.masks[0]), grey=False)
    a, b = plain.read(), colour.read()[..., 0]
    assert np.abs(a.astype(int) - b).max() <= 3


# --- masks, scene -----------------------------------------------------------------------------


def test_ramp_is_anti_aliased_and_drops_ringing():
    table = ramp_table()
    assert table[:79].max() == 0 and table[176:].min() == 255 and 100 < table[127] < 155
    grey = np.arange(256, dtype=np.uint8)[None]
    assert np.abs(soft_threshold(grey)[0].astype(int) - table).max() <= 1


def test_soft_masks_keep_the_edge_where_it_is():
    """A disc stored lossily and shrunk has the area of the disc, better than nearest pixels."""
    from mouselift_jax.data.crop import apply_map

    x, y = np.meshgrid(np.arange(200) + 0.5, np.arange(200) + 0.5)
    disc = (np.hypot(x - 100.3, y - 99.6) < 55).astype(np.float32) * 255
    lossy = np.clip(
        cv2.GaussianBlur(disc, (0, 0), 0.8) + np.random.default_rng(0).normal(0, 12, disc.shape),
        0,
        255,
    )
    small = apply_map(soft_threshold(lossy.astype(np.uint8)), np.diag([0.3, 0.3, 1]), 60, 60)
    assert small.sum() / 255 == pytest.approx(np.pi * (55 * 0.3) ** 2, rel=0.01)
    assert ((small > 10) & (small < 245)).sum() > 60  # an edge with grey levels


def test_clean_mask_keeps_the_animal_and_fills_it():
    alpha = np.zeros((60, 80), np.uint8)
    alpha[10:40, 10:50] = 255
    alpha[20:25, 20:25] = 0  # a hole
    alpha[50:54, 70:74] = 255  # a speck
    out = clean_mask(alpha)
    assert out[22, 22] == 255 and out[51, 71] == 0 and (out[10:40, 10:50] == 255).all()
    assert not clean_mask(np.zeros((5, 5), np.uint8)).any()


def test_box_and_centroid():
    alpha = np.zeros((30, 40), np.uint8)
    alpha[5:9, 10:20] = 255
    assert mask_box(alpha) == (10, 5, 20, 9)
    xy, area = mask_centroid(alpha, mask_box(alpha))
    np.testing.assert_allclose(xy, [15, 7])
    assert area == 40
    assert mask_box(alpha * 0) == (0, 0, 0, 0) and mask_centroid(alpha * 0, (0, 0, 0, 0))[1] == 0


@pytest.mark.parametrize("source", ["threshold", "background_model"])
def test_masks_made_on_the_spot(source):
    """A dark animal walks over a bright, static scene."""

    class Fake:
        masks, path = None, "fake"

    scene = np.full((80, 120, 3), 200, np.uint8)
    frames, truth = [], []
    for k in range(12):
        picture = scene.copy()
        cv2.ellipse(picture, (15 + 8 * k, 40), (12, 8), 0, 0, 360, (30, 32, 35), -1)
        frames.append(picture)
        truth.append(picture[..., 0] < 100)

    with tempfile.TemporaryDirectory() as folder:
        files = []
        for k, f in enumerate(frames):
            files.append(Path(folder) / f"{k}.png")
            cv2.imwrite(str(files[-1]), f)
        fake = Fake()
        fake.videos = (Frames("folder", Path(folder), 12, 0.0, 120, 80, tuple(files)),)
        make = make_masker(fake, MaskSettings(source=source, difference=60), range(12))
        for k in (0, 5, 11):
            made = make(0, frames[k], None, k) > 127
            assert (made & truth[k]).sum() / (made | truth[k]).sum() > 0.85


def test_rembg_is_an_extra(recording, monkeypatch):
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(MouseLiftError, match=r"-e '\.\[matte\]'"):
        make_masker(recording, MaskSettings(source="rembg"), range(3))
    assert resolve_source(recording, "auto") == "files"


def test_axes_and_order():
    centers = np.array([[3.0, 0, 1], [0, 3.0, 1], [-3.0, 0, 1], [0, -3.0, 1]]) + [5, 5, 0]
    axes = np.array([5.0, 5, 0]) - centers
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    np.testing.assert_allclose(axes_meeting_point(centers, axes), [5, 5, 0], atol=1e-9)
    assert clockwise(centers, np.array([5.0, 5, 0]), 260.0) == (3, 2, 1, 0)


def test_pictures_of_one_camera_have_alpha_or_not(tmp_path):
    """Some programs leave the alpha of an opaque picture out."""
    for i, channels in enumerate((4, 3)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((8, 8, channels), 255, np.uint8))
    stream = FrameStream(probe(tmp_path))
    assert stream.read().shape == (8, 8, 4)
    with pytest.raises(LayoutError, match=r"has no alpha[\s\S]*1.png"):
        stream.read()
