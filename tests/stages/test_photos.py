"""Photos as people have them: any format and depth, upright, alpha kept; errors name the file."""

import types

import cv2
import numpy as np
import pytest
from PIL import Image

from configs import infer as infer_config
from mouselift_jax import Gaussians
from mouselift_jax.data.photos.photo import centred, foreground, photos, read_photo
from mouselift_jax.data.samples.writer import SampleWriter
from mouselift_jax.errors import ConfigError, LayoutError, MouseLiftError
from mouselift_jax.geometry.rig import rig_from_angles
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.stages import infer
from tests.sample_sets import write_samples


@pytest.fixture
def rgb():
    image = np.full((24, 32, 3), 255, np.uint8)
    image[6:18, 4:20] = (200, 40, 90)
    return image


def test_depths_and_colour_models_become_eight_bit_rgb(tmp_path, rgb):
    cv2.imwrite(str(tmp_path / "deep.png"), rgb[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_photo(tmp_path / "deep.png"), rgb)
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    for bits in (10, 12, 14):  # right-aligned in 16
        cv2.imwrite(str(tmp_path / "part.png"), rgb[..., ::-1].astype(np.uint16) << bits - 8)
        assert np.abs(read_photo(tmp_path / "part.png").astype(int) - rgb).max() <= 1
    np.testing.assert_array_equal(read_photo(tmp_path / "grey.png"), np.dstack([rgb[..., 0]] * 3))
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    assert np.abs(read_photo(tmp_path / "cmyk.jpg").astype(int) - rgb)[8:16, 6:18].max() < 12


def test_a_photo_taken_sideways_is_turned(tmp_path, rgb):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    Image.fromarray(np.rot90(rgb)).save(tmp_path / "a.jpg", exif=exif, quality=98)
    assert np.abs(read_photo(tmp_path / "a.jpg").astype(int) - rgb)[8:16, 6:18].max() < 12


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_alpha_is_kept_in_every_format_that_has_it(tmp_path, rgb, name):
    rgba = np.dstack([rgb, (rgb[..., 1] < 100) * np.uint8(255)])
    Image.fromarray(rgba).save(tmp_path / name, lossless=True)
    found = read_photo(tmp_path / name)
    np.testing.assert_array_equal(found[..., 3], rgba[..., 3])
    np.testing.assert_array_equal(found[6:18, 4:20], rgba[6:18, 4:20])


def test_everything_wrong_with_a_folder_at_once(tmp_path, rgb):
    with pytest.raises(LayoutError, match="no photos here"):
        photos(tmp_path)
    for name in ("a.png", "a.jpg", "b.png"):
        Image.fromarray(rgb).save(tmp_path / name)
    (tmp_path / "c.png").write_text("no picture")
    (tmp_path / "d.png").mkdir()  # a folder is no photo
    with pytest.raises(MouseLiftError) as told:
        photos(tmp_path)
    assert "c.png" in str(told.value) and "a.jpg and a.png" in str(told.value)
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "c.png").unlink()
    assert [p.name for p in photos(tmp_path)] == ["a.png", "b.png"]
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    with pytest.raises(LayoutError, match="not a picture"):
        read_photo(tmp_path / "b.png")


def test_a_photo_that_cannot_be_used_is_named(tmp_path):
    white = np.full((16, 16, 3), 255, np.uint8)
    with pytest.raises(LayoutError, match="mouse.png"):
        centred(foreground(white)[0], 16, 0.5, where=tmp_path / "mouse.png")
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for how in ("auto", "alpha"):
        with pytest.raises(LayoutError, match="mouse.png"):
            foreground(noise, how, where=tmp_path / "mouse.png")


def test_a_size_that_the_network_cannot_take_is_told_before_weights_are_read(tmp_path):
    """The run below has a configuration but no weights."""
    for folder in ("run/gslrm", "run/checkpoints"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "run/gslrm/config.json").write_text('{"patch_size": 8}')
    config = infer_config.get_config("tiny")
    config.samples = str(write_samples(tmp_path / "set", n=1, size=30, n_val=0))
    config.gslrm = str(tmp_path / "run")
    for size, said in ((0, "30 x 30"), (37, "37"), (-8, "-8")):
        config.size = size
        with pytest.raises(ConfigError, match="multiple of 8") as told:
            infer.plan(config, tmp_path / "out")
        assert f"found:    {said}" in str(told.value)
        with (
            pytest.raises(ConfigError, match="multiple of 8"),
            Workdir(tmp_path / "w", config) as w,
        ):
            infer.run(config, w)
    config.size = 32
    assert infer.plan(config, tmp_path / "out").steps == "1 item(s)"


def test_samples_without_cameras_are_told_whatever_views_are_wanted(tmp_path):
    samples = write_samples(tmp_path / "set", n=1, size=16, n_val=0)
    (samples / "sample_000000/opencv_cameras.json").unlink()
    config = infer_config.get_config("tiny")
    config.samples, config.size = str(samples), 16
    for views in ((), (0, 1)):
        config.views = views
        with pytest.raises(LayoutError, match="without cameras"):
            infer.FromSamples(config).load("sample_000000")


def test_a_sample_of_another_recording_has_its_own_unit(tmp_path):
    """Two recordings of one set: the distance of the cameras, and with it the scale, may differ."""
    rig = rig_from_angles(270 - 60.0 * np.arange(6), 15.0, 2.7, 20.0, 16)
    picture = np.full((16, 16, 4), 255, np.uint8)
    with SampleWriter(tmp_path / "set", {"scene_scale": 0.01}) as writer:
        for number, unit in enumerate(({"scene_scale": 0.01}, {"scene_scale": 0.02}, {})):
            writer.write(number, [picture] * 6, rig, range(6), frame=number, **unit)
        writer.finish(lambda rows: ["train"] * len(rows))
    config = infer_config.get_config("tiny")
    config.samples, config.size = str(tmp_path / "set"), 16
    items = infer.FromSamples(config)
    assert [items.load(i).scene_scale for i in items.ids] == [0.01, 0.02, 0.01]


def test_frames_are_of_recordings(tmp_path, rgb):
    config = infer_config.get_config("tiny")
    config.image, config.frames = str(tmp_path), "0:10"
    with pytest.raises(ConfigError, match="no frames of a recording"):
        infer.source(config)


def test_a_photo_is_shown_beside_what_was_made_of_it(tmp_path):
    """Also a large one."""
    config = infer_config.get_config("tiny")
    config.turntable.frames, config.filter = 0, "none"
    rig = rig_from_angles(270 - 60.0 * np.arange(6), 15.0, 2.7, 20.0, 16)
    images, masks = np.full((6, 16, 16, 3), 0.5, np.float32), np.ones((6, 16, 16, 1), np.float32)
    photo = np.full((450, 600, 3), 90, np.uint8)
    item = infer.Item("a", images, masks, rig, ["made"] * 6, None, {}, photo)
    zeros = np.zeros((4, 3), np.float32)
    one = np.tile(np.float32([1, 0, 0, 0]), (4, 1))
    gaussians = Gaussians(zeros, one, zeros, np.zeros(4, np.float32), np.zeros((4, 1, 3), "f4"))
    drawn = types.SimpleNamespace(rgb=images, alpha=masks)
    infer.lift_item(config, lambda item: (gaussians, drawn), item, tmp_path)
    assert infer.is_whole(tmp_path)
    views = (tmp_path / "views.png").rename(tmp_path / "lost.png")
    assert not infer.is_whole(tmp_path)  # what is missing is made by the same command
    views.rename(tmp_path / "views.png")
    shown = cv2.imread(str(tmp_path / "photo.png"))
    assert shown.shape == (288, 384, 3) and (shown == 90).all()
    blocks = infer._section(tmp_path, tmp_path, {"id": "a"}).blocks
    assert [b.image for b in blocks[:2]] == ["photo.png", "views.png"]
    real = infer.Item("b", images, masks, rig, ["made"] * 6)
    infer.lift_item(config, lambda item: (gaussians, drawn), real, tmp_path / "real")
    assert not (tmp_path / "real/photo.png").exists()
