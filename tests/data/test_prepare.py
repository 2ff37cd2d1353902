"""Preparation end to end on a small procedural recording, and its parts."""

import dataclasses
import shutil

import cv2
import numpy as np
import pytest

from mouselift_jax.data.masks import soft_threshold
from mouselift_jax.data.preparation.frame_cache import FrameCache
from mouselift_jax.data.preparation.placement import SceneSettings, build_scene
from mouselift_jax.data.preparation.preparer import Preparer, PrepareSettings
from mouselift_jax.data.recordings.inspection import open_recording
from mouselift_jax.data.recordings.mask_sources import MaskSettings
from mouselift_jax.data.recordings.video import FrameStream, read_instants
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.data.samples.writer import SampleWriter
from mouselift_jax.data.synthetic.recording import write_recording
from mouselift_jax.errors import CalibrationError, ConfigError, LayoutError, MouseLiftError
from mouselift_jax.geometry.hull import hull_cover
from mouselift_jax.geometry.rig import azimuth_elevation
from mouselift_jax.geometry.similarity import Similarity

FRAMES = 6
SMALL = {"min_mask_px": 20.0, "max_speed_mm_s": 0.0}


def run(recording, path, frames=None, first=0, **settings):
    scene = {k: settings.pop(k) for k in list(settings) if hasattr(SceneSettings(), k)}
    chosen = PrepareSettings(scene=SceneSettings(**{"size": 96, **scene}), **{**SMALL, **settings})
    preparer = Preparer(recording, chosen, range(FRAMES) if frames is None else frames, first)
    with SampleWriter(path, {"parameters": {}, **preparer.manifest_entries()}) as writer:
        preparer.run(writer, threads=2)
        manifest = writer.finish(lambda rows: ["train"] * len(rows), numbers=preparer.numbers())
    return SampleSet.open(path), manifest, preparer


@pytest.mark.parametrize(
    "scene",
    [
        {"mode": "look_at"},
        {"mode": "look_at", "fov": "fill", "aim": "box"},
        {"mode": "look_at", "equal_size": True},
        {"mode": "crop"},
        {"mode": "crop", "fov": "fill", "aim": "box"},
        {"mode": "as_is"},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_pictures_and_cameras_agree(recording, tmp_path, scene):
    samples, manifest, _ = run(recording, tmp_path / "set", **scene)
    assert manifest["counts"] == {"written": FRAMES, "skipped": {}}
    for row in manifest["samples"]:
        assert row["warp_error_px"] <= 0.05
        assert row["keypoint_px"]["sample"] <= row["keypoint_px"]["raw"] + 0.1
    cover = []
    for name in samples.ids("all")[::3]:
        sample = samples.load(name)
        cover.append(
            hull_cover(list(sample.images_rgba[..., 3]), [sample.cameras[i] for i in range(6)])
        )
        assert (sample.images_rgba[sample.images_rgba[..., 3] == 0] == 0).all()
    assert np.nanmean(cover) >= 0.99


def test_sample_frame(recording, tmp_path):
    """The animal is at the origin, one scale for all, and the way back to millimetres is there."""
    samples, manifest, preparer = run(recording, tmp_path / "set")
    scale = manifest["scene_scale"]
    for name, row in zip(samples.ids("all"), manifest["samples"], strict=True):
        sample = samples.load(name)
        moved = sample.info["scene_from_recording"]
        similarity = Similarity(moved["scale"], np.array(moved["R"]), np.array(moved["t"]))
        np.testing.assert_allclose(similarity.apply(np.array(row["centre"])), 0, atol=1e-5)
        for slot, number in enumerate(sample.camera_ids):
            true = recording.cameras[recording.camera_ids.index(number)]
            np.testing.assert_allclose(
                sample.cameras[slot].center, scale * (true.center - row["centre"]), atol=1e-4
            )
            xy, _ = sample.cameras[slot].project(np.zeros(3))
            np.testing.assert_allclose(xy, 48, atol=1e-3)  # look_at: the centre is in the middle
        assert len({tuple(k.ravel()) for k in sample.cameras.K}) == 1  # one K for all
    distances = [v["distance"] for v in manifest["views"]]
    assert np.mean(distances) == pytest.approx(2.7, abs=1e-3)


def test_views_go_clockwise_with_their_camera_numbers(recording, tmp_path):
    samples, manifest, _ = run(recording, tmp_path / "set", frames=[0], reference_camera=2)
    sample = samples.load(samples.ids("all")[0])
    assert sample.camera_ids.tolist() == [v["camera"] for v in manifest["views"]]
    assert sample.camera_ids[0] == 2
    azimuth, _ = azimuth_elevation(sample.cameras.c2w)
    steps = (azimuth - np.roll(azimuth, -1)) % 360
    assert (steps > 0).all() and steps.sum() == pytest.approx(360)
    # Around this rig the order is 1, 2, 4, 0, 5, 3 counter-clockwise.
    assert sample.camera_ids.tolist() == [2, 1, 3, 5, 0, 4]


def test_original_recipes_are_measured_as_inconsistent(recording, tmp_path):
    for mode in ("original", "original_boxes", "original_centered", "original_uniform",
                 "original_pixels"):  # fmt: skip
        _, manifest, _ = run(recording, tmp_path / mode, mode=mode, frames=[0, 3])
        assert "inconsistent" in manifest["scene"]
        assert min(r["warp_error_px"] for r in manifest["samples"]) > 3


@pytest.mark.parametrize("heading", ["keypoints", "pca"])
def test_heading_turns_the_animal_to_the_front(recording, tmp_path, heading):
    samples, manifest, _ = run(recording, tmp_path / "set", heading=heading)
    truth = recording.keypoints
    for name in samples.ids("all"):
        sample = samples.load(name)
        m = sample.info["scene_from_recording"]
        similarity = Similarity(m["scale"], np.array(m["R"]), np.array(m["t"]))
        nose, tail = animal_axis(recording, truth[:, sample.frame])
        direction = similarity.apply(nose) - similarity.apply(tail)
        azimuth = np.degrees(np.arctan2(direction[1], direction[0])) % 180
        assert abs(azimuth - 90) < (6 if heading == "keypoints" else 35)
        if heading == "keypoints":
            assert direction[1] < 0  # faces azimuth 270
        first, _ = azimuth_elevation(sample.cameras.c2w[:1])
        assert abs((first[0] - 270 + 180) % 360 - 180) <= 35


def animal_axis(recording, points):
    from mouselift_jax.data.preparation.placement import triangulate_centre

    return [triangulate_centre(recording.cameras, points[:, k, :2]) for k in (2, 5)]


def test_resumes_to_the_same_set(recording, tmp_path):
    whole, manifest, _ = run(recording, tmp_path / "whole")
    part = PrepareSettings(scene=SceneSettings(size=96), **SMALL)
    preparer = Preparer(recording, part, range(FRAMES))

    class Stop(Exception):
        pass

    def stop(n):
        if n == 2:
            raise Stop

    writer = SampleWriter(tmp_path / "set", {"parameters": {}, **preparer.manifest_entries()})
    with pytest.raises(Stop):
        preparer.run(writer, threads=1, on_done=stop)
    writer.close()
    with pytest.raises(LayoutError, match="not finished"):
        SampleSet.open(tmp_path / "set")
    again, second, _ = run(recording, tmp_path / "set")
    assert second["samples"] == manifest["samples"]
    for name in whole.ids("all"):
        assert np.array_equal(whole.load(name).images_rgba, again.load(name).images_rgba)


def test_cached_frames_give_the_same_set(recording, tmp_path, monkeypatch):
    settings = PrepareSettings(scene=SceneSettings(size=96), **SMALL)
    sets = []
    for name, frames in (("a", range(2)), ("b", range(4)), ("c", range(4))):
        preparer = Preparer(recording, settings, frames, cache=tmp_path / "cache")
        if name == "c":  # everything is there: no video is touched
            monkeypatch.setattr("mouselift_jax.data.recordings.video._open_video", None)
        with SampleWriter(tmp_path / name, {"parameters": {}}) as writer:
            preparer.run(writer, threads=2)
            writer.finish(lambda rows: ["train"] * len(rows))
        sets.append(SampleSet.open(tmp_path / name))
    monkeypatch.undo()
    plain, *_ = run(recording, tmp_path / "plain", frames=range(4))
    for name in plain.ids("all"):
        for other in sets[1:]:
            assert np.array_equal(plain.load(name).images_rgba, other.load(name).images_rgba)
    preparer.cache.file(0).write_bytes(b"PK")
    with SampleWriter(tmp_path / "d", {"parameters": {}}) as writer:
        with pytest.raises(ConfigError, match="cached frame is damaged"):
            preparer.run(writer, threads=1)
    with pytest.raises(ConfigError, match="does not go with masks=threshold"):
        masks = MaskSettings(source="threshold")
        Preparer(recording, PrepareSettings(masks=masks), range(2), cache=tmp_path / "cache")


def test_a_cache_may_be_filled_by_another_run_meanwhile(recording, tmp_path):
    """Two preparations of one recording, side by side."""
    cache = FrameCache(tmp_path / "cache", recording, "files")

    def decode(wanted):
        return read_instants(recording.videos, recording.masks, wanted)

    expected = {i.frame: i.pictures[0].copy() for i in decode(range(FRAMES))}
    got = []
    for instant in cache.read(list(range(FRAMES)), decode):
        got.append(instant.frame)
        if instant.frame == 1:
            for other in decode([2, 3]):
                cache.put(other)
        if instant.frame > 1:
            assert np.array_equal(instant.pictures[0], expected[instant.frame])
    assert got == list(range(FRAMES))


def test_memory_holds_few_instants(recording, tmp_path, monkeypatch):
    """However many frames: those whose pictures are alive at once stay below a bound."""
    import gc
    import threading

    from mouselift_jax.data.preparation import preparer as module
    from mouselift_jax.data.recordings.video import Instant, read_instants

    threads, n_frames, most = 2, 24, 0
    finish = module.Preparer._finish
    one_at_a_time = threading.Lock()

    def longer(videos, masks, frames, executor):
        """The first instant again and again: a recording of any length."""
        first = next(read_instants(videos, masks, [0], executor))
        pictures, masks = first.pictures, first.masks
        del first
        for frame in frames:
            yield Instant(frame, [p.copy() for p in pictures], masks)

    def counting(self, *args):
        nonlocal most
        gc.collect()
        with one_at_a_time:  # a list of all objects keeps them alive
            alive = {o.frame for o in gc.get_objects() if isinstance(o, Instant | module._Located)}
            most = max(most, len(alive))
        return finish(self, *args)

    monkeypatch.setattr(module, "read_instants", longer)
    monkeypatch.setattr(module.Preparer, "_finish", counting)
    _, manifest, _ = run(recording, tmp_path / "set", range(n_frames))
    assert manifest["counts"]["written"] == n_frames
    # Two being located, `threads` + 1 handed over, and one per thread that is finished but that
    # the thread has not let go of yet.
    assert 1 <= most <= 2 * threads + 3


def test_empty_masks_are_counted_and_named(recording, tmp_path):
    masks = list(recording.masks)
    folder = tmp_path / "masks"
    folder.mkdir()
    stream = FrameStream(masks[3], grey=True)
    for k in range(FRAMES):
        picture = stream.read()
        cv2.imwrite(str(folder / f"{k}.png"), picture * (k not in (1, 4)))
    files = tuple(folder / f"{k}.png" for k in range(FRAMES))
    masks[3] = dataclasses.replace(masks[3], kind="folder", path=folder, files=files)
    broken = dataclasses.replace(recording, masks=tuple(masks))
    _, manifest, _ = run(broken, tmp_path / "set")
    assert manifest["counts"] == {"written": 4, "skipped": {"empty mask": 2}}
    skipped = [r for r in manifest["samples"] if r["status"] == "skipped"]
    assert [(r["frame"], r["cameras"]) for r in skipped] == [(1, [3]), (4, [3])]


def test_pictures_with_alpha_in_folders(recording, tmp_path):
    """RGBA pictures bring their own masks, and give what videos with mask videos give."""
    videos = []
    for view, video in enumerate(recording.videos):
        folder = tmp_path / "images" / str(view)
        folder.mkdir(parents=True)
        colour, mask = FrameStream(video), FrameStream(recording.masks[view], grey=True)
        for k in range(2):
            rgba = np.dstack([colour.read(), soft_threshold(mask.read())])
            cv2.imwrite(str(folder / f"{k}.png"), rgba)
        files = tuple(folder / f"{k}.png" for k in range(2))
        videos.append(
            dataclasses.replace(video, kind="folder", path=folder, files=files, has_alpha=True)
        )
    alpha = dataclasses.replace(recording, videos=tuple(videos), masks=None, mask_kind="alpha")
    made, *_ = run(alpha, tmp_path / "alpha", frames=[0, 1])
    plain, *_ = run(recording, tmp_path / "plain", frames=[0, 1])
    for name in plain.ids("all"):
        assert np.array_equal(made.load(name).images_rgba, plain.load(name).images_rgba)


def test_jumps_and_blur_are_left_out(recording, tmp_path):
    _, manifest, _ = run(recording, tmp_path / "jump", max_speed_mm_s=1e-3)
    assert manifest["counts"]["skipped"] == {"jump": FRAMES - 1}
    with pytest.raises(LayoutError, match="no sample was written"):
        run(recording, tmp_path / "blur", min_sharpness=1e9)


def test_a_resumed_run_sees_the_same_jumps(tmp_path):
    """A speed is to the instant just before, also where that one is done already."""
    folder = write_recording(
        tmp_path / "cut", frames=FRAMES, size=(144, 128), n_heldout=0, workers=1, jumps=(3,)
    )
    recording = open_recording(folder)
    samples, manifest, _ = run(recording, tmp_path / "set", max_speed_mm_s=400.0)
    assert [r["status"] for r in manifest["samples"]] == ["ok"] * 3 + ["skipped"] + ["ok"] * 2
    for name in samples.ids("all")[2:]:  # what threads had not written when the run was stopped
        shutil.rmtree(tmp_path / "set" / name)
    assert (
        run(recording, tmp_path / "set", max_speed_mm_s=400.0)[1]["samples"] == manifest["samples"]
    )


def test_gain_matching_brings_cameras_together(recording, tmp_path):
    def spread(**settings):
        samples, *_ = run(recording, tmp_path / str(settings), frames=[0, 1], **settings)
        images = samples.load(samples.ids("all")[0]).images_rgba
        means = np.array([im[im[..., 3] > 200][:, :3].mean(0) for im in images])
        return (means.std(0) / means.mean(0)).mean()

    assert spread(match_gain=True) < 0.5 * spread(match_gain=False)


# --- bad input --------------------------------------------------------------------------------


def test_truncated_video_says_where(recording_dir, recording, tmp_path):
    short = tmp_path / "2.mp4"
    data = recording.videos[2].path.read_bytes()
    short.write_bytes(data[: len(data) // 2])
    videos = list(recording.videos)
    videos[2] = dataclasses.replace(videos[2], path=short)
    with pytest.raises(MouseLiftError, match=r"2\.mp4(.|\n)*(truncated|damaged)"):
        run(dataclasses.replace(recording, videos=tuple(videos)), tmp_path / "set")


def test_cameras_that_do_not_look_at_a_common_place(recording):
    away = recording.cameras[0]
    c2w = away.c2w.copy()
    c2w[:3, :3] = c2w[:3, :3] @ np.diag([-1.0, 1.0, -1.0])
    cameras = [dataclasses.replace(away, c2w=c2w), *recording.cameras[1:]]
    with pytest.raises(CalibrationError, match=r"cameras \[0\]"):
        build_scene(cameras, recording.camera_ids, 1.0, SceneSettings())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mode": "lookat"}, "did you mean 'look_at'"),
        ({"mode": "orginal"}, "did you mean 'original'"),
        ({"fov": "full"}, "no such fov"),
        ({"reference_camera": 9}, "not in the recording"),
        ({"size": 0}, "positive"),
        ({"scale": -1.0}, r"'scale': -1.0"),
        ({"heading": "nose"}, "no such heading"),
        ({"heading": "keypoints", "heading_keypoints": (2,)}, "two numbers"),
        ({"heading": "keypoints", "heading_keypoints": (2, -1)}, "two numbers"),
        ({"masks": MaskSettings(source="file")}, "did you mean 'files'"),
        ({"masks": MaskSettings(source="alpha")}, "the recording has none"),
    ],
)
def test_settings_that_do_not_fit(recording, tmp_path, settings, message):
    with pytest.raises(MouseLiftError, match=message):
        run(recording, tmp_path / "set", **settings)


def test_recording_without_masks(recording, tmp_path):
    bare = dataclasses.replace(recording, masks=None, mask_kind="none")
    with pytest.raises(LayoutError, match="no masks(.|\n)*background_model"):
        run(bare, tmp_path / "set")


@pytest.mark.slow
def test_the_shared_recording_is_true(shared, tmp_path):
    """The numbers of the issue on six frames of the shared recording."""
    recording = open_recording(shared / "recordings/mouse_a")
    samples, manifest, _ = run(recording, tmp_path / "set", frames=range(0, 90, 15), size=512)
    cover = []
    for name, row in zip(samples.ids("all"), manifest["samples"], strict=True):
        assert row["warp_error_px"] <= 0.05
        assert row["keypoint_px"]["sample"] <= row["keypoint_px"]["raw"] + 0.1
        sample = samples.load(name)
        cover.append(
            hull_cover(list(sample.images_rgba[..., 3]), [sample.cameras[i] for i in range(6)])
        )
    assert np.mean(cover) >= 0.99
