"""Sample sets: written whole, read back the same, foreign layouts, clear complaints."""

import json
import shutil

import numpy as np
import pytest

from mouselift_jax.data.png import decode_png, encode_png
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.data.samples.writer import SampleWriter
from mouselift_jax.errors import ConfigError, LayoutError, MouseLiftError
from mouselift_jax.geometry.rig import rig_from_angles

SIZE = 24


def make_images(n, seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    images = np.zeros((n, size, size, 4), np.uint8)
    images[:, 6:18, 4:20] = rng.integers(0, 256, (n, 12, 16, 4))
    images[..., :3] *= images[..., 3:] > 0
    return images


def rig(n=6, size=SIZE):
    return rig_from_angles(270 - 60.0 * np.arange(n), 15.0, 2.7, 1.1 * size, size)


def write_set(path, n=5, n_views=6, finish=True, size=SIZE, **manifest):
    cameras = rig(n_views, size)
    writer = SampleWriter(path, {"parameters": {"size": size}, "scene_scale": 0.008, **manifest})
    for k in range(n):
        if f"sample_{k:06d}" not in writer.done:
            writer.write(
                k,
                make_images(n_views, k, size),
                cameras,
                range(n_views),
                frame=10 * k,
                row={"error_px": 0.1},
            )
    if finish:
        writer.finish(lambda rows: ["train"] * (len(rows) - 1) + ["val"])
    return writer


@pytest.fixture
def sample_dir(tmp_path):
    write_set(tmp_path / "set")
    return tmp_path / "set"


def test_png_round_trip():
    rng = np.random.default_rng(0)
    for image in (
        make_images(1)[0],
        np.zeros((7, 5, 4), np.uint8),
        rng.integers(0, 256, (9, 11, 3)).astype(np.uint8),
        rng.integers(0, 256, (1, 1, 4)).astype(np.uint8),
    ):
        assert (decode_png(encode_png(image)) == image).all()


def test_png_is_read_by_others():
    import io

    from PIL import Image

    image = make_images(1, 3)[0]
    picture = Image.open(io.BytesIO(encode_png(image)))
    picture.verify()
    assert (np.asarray(Image.open(io.BytesIO(encode_png(image)))) == image).all()


def test_round_trip(sample_dir):
    s = SampleSet.open(sample_dir)
    assert s.ids("train") == tuple(f"sample_{i:06d}" for i in range(4))
    assert s.ids("val") == ("sample_000004",)
    assert s.frames("all") == [0, 10, 20, 30, 40]
    assert s.scene_scale == 0.008
    sample = s.load("sample_000002")
    assert (sample.images_rgba == make_images(6, 2)).all()
    np.testing.assert_allclose(sample.cameras.K, rig().K)
    np.testing.assert_allclose(sample.cameras.c2w, rig().c2w, atol=1e-12)
    assert sample.frame == 20 and sample.has_alpha
    assert s.load("sample_000002", [4, 1]).camera_ids.tolist() == [4, 1]


def test_interrupted_set_is_refused_and_then_completed(tmp_path):
    path = tmp_path / "set"
    write_set(path, n=2, finish=False).close()
    (path / ".part_1_sample_000002" / "images").mkdir(parents=True)  # what a kill leaves behind
    with open(path / "journal.jsonl", "a") as f:
        f.write('{"id": "sample_000002", "fra')
    with pytest.raises(LayoutError, match="not finished"):
        SampleSet.open(path)
    writer = write_set(path, n=5)
    assert not list(path.glob(".part*")) and not (path / "journal.jsonl").exists()
    assert writer.manifest["counts"] == {"written": 5, "skipped": {}}
    whole = SampleSet.open(path)
    write_set(tmp_path / "once", n=5)
    assert whole.manifest["samples"] == SampleSet.open(tmp_path / "once").manifest["samples"]


def test_journal_lines_without_their_folder_are_done_again(tmp_path):
    path = tmp_path / "set"
    write_set(path, n=3, finish=False).close()
    shutil.rmtree(path / "sample_000001")
    writer = SampleWriter(path, {"parameters": {"size": SIZE}, "scene_scale": 0.008})
    assert writer.done == {"sample_000000", "sample_000002"}


def test_a_deleted_sample_of_a_finished_set_is_made_again(sample_dir):
    """As the errors about damaged samples advise."""
    before = SampleSet.open(sample_dir)
    shutil.rmtree(sample_dir / "sample_000001")
    with SampleWriter(sample_dir, {"parameters": {"size": SIZE}}) as writer:
        assert writer.done == set(before.ids()) - {"sample_000001"}
    with pytest.raises(LayoutError, match="not finished"):  # nor is the set taken for whole
        SampleSet.open(sample_dir)
    write_set(sample_dir)
    after = SampleSet.open(sample_dir)
    assert after.splits == before.splits
    assert after.manifest["samples"] == before.manifest["samples"]


def test_a_damaged_manifest_is_one_error_for_the_writer_too(sample_dir):
    (sample_dir / "manifest.json").write_text('{"finished": tr')
    with pytest.raises(LayoutError, match="manifest is damaged"):
        SampleWriter(sample_dir, {"parameters": {"size": SIZE}})


def test_other_parameters_are_refused(sample_dir):
    with pytest.raises(ConfigError, match="another parameters"):
        SampleWriter(sample_dir, {"parameters": {"size": 48}})


def test_skips_are_counted_and_named(tmp_path):
    writer = write_set(tmp_path, n=3, finish=False)
    writer.skip(3, "empty mask in camera 2", frame=30)
    manifest = writer.finish(lambda rows: ["train"] * len(rows))
    assert manifest["counts"] == {"written": 3, "skipped": {"empty mask in camera 2": 1}}
    assert manifest["samples"][3]["status"] == "skipped"


def test_full_disk_is_said(tmp_path, monkeypatch):
    import errno
    import os

    writer = write_set(tmp_path, n=1, finish=False)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mouselift_jax.data.samples.writer.encode_png", full)
    with pytest.raises(LayoutError, match="No space left"):
        writer.write(1, make_images(6), rig(), range(6))
    assert not list(tmp_path.glob(".part*")) and "sample_000001" not in writer.done


def test_damaged_files_are_named(sample_dir):
    s = SampleSet.open(sample_dir)
    picture = sample_dir / "sample_000000/images/cam_003.png"
    picture.write_bytes(picture.read_bytes()[:60])
    with pytest.raises(LayoutError, match="cam_003.png"):
        s.load("sample_000000")
    (sample_dir / "sample_000001/images/cam_002.png").unlink()
    with pytest.raises(LayoutError, match="view 2 is missing"):
        s.load("sample_000001")
    (sample_dir / "sample_000002/opencv_cameras.json").write_text('{"id": 1, "fra')
    with pytest.raises(LayoutError, match="camera file is damaged"):
        s.load("sample_000002")
    file = sample_dir / "sample_000003/opencv_cameras.json"
    record = json.loads(file.read_text())
    del record["frames"][1]["fx"], record["frames"][4]["w2c"]
    file.write_text(json.dumps(record))
    with pytest.raises(MouseLiftError, match="'fx'(.|\n)*'w2c'"):
        s.load("sample_000003")


@pytest.mark.parametrize(
    "frame, message",
    [
        ({"fx": "a"}, "'fx' of frame 1 is not a number"),
        ({"w2c": [1, 2]}, "'w2c' of frame 1 is not a 4x4 matrix"),
        ({"w2c": [[1, 2], [3]]}, "'w2c' of frame 1 is not a 4x4 matrix"),
        ({"w2c": [[float("nan")] * 4] * 4}, "'w2c' of frame 1 is not a 4x4 matrix"),
        ({"camera": "left"}, "'camera' of frame 1 is not a whole number"),
        (None, "without frames"),
    ],
)
def test_camera_files_of_other_programs_are_checked(sample_dir, frame, message):
    """As people write them themselves; not-a-number would only be seen in the loss."""
    file = sample_dir / "sample_000000/opencv_cameras.json"
    record = json.loads(file.read_text())
    record["frames"][1] = frame and record["frames"][1] | frame
    file.write_text(json.dumps(record))
    with pytest.raises(LayoutError, match=message):
        SampleSet.open(sample_dir).load("sample_000000")


def test_what_is_null_in_a_camera_file_counts_as_absent(sample_dir):
    file = sample_dir / "sample_000000/opencv_cameras.json"
    record = json.loads(file.read_text()) | {"frame": None}
    record["frames"][0]["file_path"] = None
    file.write_text(json.dumps(record))
    assert SampleSet.open(sample_dir).load("sample_000000").frame == -1


def test_picture_of_another_size_than_its_camera(sample_dir):
    (sample_dir / "sample_000000/images/cam_001.png").write_bytes(
        encode_png(make_images(1, size=30)[0])
    )
    with pytest.raises(LayoutError, match="24 x 24(.|\n)*30 x 30"):
        SampleSet.open(sample_dir).load("sample_000000")


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda p: (p / "manifest.json").write_text("{"), "manifest is damaged"),
        (lambda p: (p / "train.txt").write_text("sample_000077\n"), "listed sample is missing"),
        (lambda p: (p / "manifest.json").write_text('{"schema": 99}'), "newer version"),
        (lambda p: (p / "manifest.json").write_text("[]"), "manifest is damaged"),
        (lambda p: (p / "manifest.json").write_text('{"schema": "a"}'), "manifest is damaged"),
        (lambda p: (p / "train.txt").write_bytes(b"\xff\xfe\x00"), "no text"),
    ],
)
def test_broken_sets(sample_dir, break_it, message):
    break_it(sample_dir)
    with pytest.raises(LayoutError, match=message):
        SampleSet.open(sample_dir)


def test_not_a_set(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(LayoutError, match="no samples here"):
        SampleSet.open(tmp_path)
    with pytest.raises(LayoutError, match="did you mean 'notes'"):
        SampleSet.open(tmp_path / "note")


def test_facelift_layout_with_foreign_lists(tmp_path, sample_dir, caplog):
    """No manifest, no images/ folder, lists that hold another machine's paths."""
    foreign = tmp_path / "foreign"
    for i in range(2):
        (foreign / f"sample_{i:03d}").mkdir(parents=True)
        for v in range(6):
            shutil.copy(
                sample_dir / f"sample_{i:06d}/images/cam_{v:03d}.png",
                foreign / f"sample_{i:03d}/cam_{v:03d}.png",
            )
    (foreign / "data_train.txt").write_text("/mnt/disk/elsewhere/sample_000\n")
    (foreign / "data_val.txt").write_text("/mnt/disk/elsewhere/sample_001")
    with caplog.at_level("INFO", logger="mouselift_jax"):
        s = SampleSet.open(foreign)
        SampleSet.open(foreign)
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1 and "/mnt/disk/elsewhere/sample_000 -> sample_000, and 1 more" in said[0]
    assert s.ids("train") == ("sample_000",) and s.ids("val") == ("sample_001",)
    assert len(s.notes) == 2
    sample = s.load("sample_001")
    assert sample.cameras is None and (sample.images_rgba == make_images(6, 1)).all()
    assert SampleSet.open(foreign / "data_val.txt").ids("val") == ("sample_001",)


@pytest.mark.parametrize("part", ["train.txt", "sample_000002"])
def test_a_part_of_a_set_keeps_its_scale_and_frames(sample_dir, part, monkeypatch):
    samples = SampleSet.open(sample_dir / part)
    assert samples.scene_scale == 0.008
    assert samples.frames() == ([0, 10, 20, 30] if part == "train.txt" else [20])
    monkeypatch.chdir(sample_dir / "sample_000002")
    here = SampleSet.open(".")
    assert here.load(*here.ids()).id == "sample_000002"


def test_captions_name_the_frame_where_it_is_known(sample_dir):
    samples = SampleSet.open(sample_dir)
    assert samples.caption("sample_000002") == "sample_000002, frame 20"
    (sample_dir / "manifest.json").unlink()
    assert SampleSet.open(sample_dir).caption("sample_000002") == "sample_000002"


def test_one_sample_alone(sample_dir):
    assert SampleSet.open(sample_dir / "sample_000001").ids() == ("sample_000001",)


def test_shared_facelift_sample(shared):
    s = SampleSet.open(shared / "data/facelift_sample/gslrm")
    sample = s.load(s.ids("train")[0])
    assert sample.images_rgba.shape == (32, 512, 512, 4)
    np.testing.assert_allclose(np.linalg.norm(sample.cameras.center, axis=-1), 2.7, atol=1e-5)
    pictures = SampleSet.open(shared / "data/facelift_sample/mvdiffusion")
    assert pictures.load(pictures.ids()[0]).images_rgba.shape == (6, 512, 512, 4)


def test_samples_of_others_are_left_alone(tmp_path):
    (tmp_path / "sample_000001").mkdir()
    (tmp_path / "sample_000001/mine.png").write_text("mine")
    with pytest.raises(LayoutError, match="not made here"):
        SampleWriter(tmp_path, {"source": {}, "parameters": {}})
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["mine.png", "sample_000001"]
