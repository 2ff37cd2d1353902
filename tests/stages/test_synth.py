"""Samples of generated views: cameras, provenance, split, seeds; and photos for infer."""

from __future__ import annotations

import re
import types

import numpy as np
import pytest

from configs import synth as configs
from mouselift_jax.data.photos.cutout import cut_out, off_white
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.data.samples.writer import SampleWriter
from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.geometry.median_rig import Rig
from mouselift_jax.geometry.rig import azimuth_elevation, rig_from_angles
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.record import read_summary
from mouselift_jax.stages import synth
from mouselift_jax.stages.items import from_photos
from mouselift_jax.stages.multiview.rig import subject_place
from tests.sample_sets import write_samples


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("set") / "samples")


class FakeGenerator:
    """Returns the reference in every slot and remembers what it was asked."""

    side, posed, note, seed, reference = 24, False, "test", 5, "random"

    def __init__(self):
        rig = rig_from_angles(270 - 60.0 * np.arange(6), 15.0, 2.7, 1.1 * 24, 24)
        self.rig = Rig(rig, np.zeros(6), np.zeros(6), 4)
        self.prompts = np.zeros((6, 4, 8), np.float32)
        self.generate = types.SimpleNamespace(white=0.94, keep_reference=True)
        self.asked = []

    def views(self, picture, key, *, order=None, cameras=None):
        self.asked.append((picture, key, np.asarray(order)))
        return np.repeat(picture[None].astype(np.float32) / 255, 6, axis=0)


@pytest.mark.parametrize("reference", [0, 2])
def test_a_generated_sample(samples, tmp_path, reference):
    source, made = SampleSet.open(samples), FakeGenerator()
    with SampleWriter(tmp_path / "out", {"source": {}, "parameters": {}}) as writer:
        synth._one(made, source, writer, (12 + reference, "sample_000002", reference), None)
        writer.finish(lambda rows: ["train"] * len(rows))
    sample = SampleSet.open(tmp_path / "out").load(f"sample_{12 + reference:06d}")
    original = source.load("sample_000002")
    order = made.asked[0][2]
    assert order[0] == reference
    assert made.asked[0][1] == (12 + reference,)
    assert sample.camera_ids.tolist() == original.camera_ids[order].tolist()
    assert sample.info["generated"]["reference_slot"] == reference
    # every slot's camera is one of the rig's; the kept reference stands where the rig's front is
    azimuth = np.asarray(azimuth_elevation(sample.cameras.c2w)[0])
    np.testing.assert_allclose(azimuth % 360, (270 - 60 * np.arange(6)) % 360, atol=1e-3)
    # the reference picture itself is in slot 0, with its own alpha
    assert sample.images_rgba.shape == (6, 24, 24, 4)
    assert (sample.images_rgba[0, ..., 3] > 0).any()
    assert not sample.images_rgba[sample.images_rgba[..., 3] == 0].any()


def test_a_free_reference_stands_at_the_front_whichever_slot_it_is(tmp_path):
    """The rig of a six_x run has its reference at azimuth 270; the world turns to meet it."""
    source = SampleSet.open(write_samples(tmp_path / "source", n=1, n_val=0, first=200.0))
    with SampleWriter(tmp_path / "out", {"source": {}, "parameters": {}}) as writer:
        for reference in (0, 2):
            job = (reference, "sample_000000", reference)
            synth._one(FakeGenerator(), source, writer, job, None)
        writer.finish(lambda rows: ["train"] * len(rows))
    for name in SampleSet.open(tmp_path / "out").ids("train"):
        sample = SampleSet.open(tmp_path / "out").load(name)
        azimuth = np.asarray(azimuth_elevation(sample.cameras.c2w)[0])
        np.testing.assert_allclose(azimuth % 360, (270 - 60 * np.arange(6)) % 360, atol=1e-3)


def test_numbers_and_split_come_from_the_source(samples):
    source = SampleSet.open(samples)
    config = configs.get_config("all_views")
    all_jobs = synth.jobs(config, source)
    assert len(all_jobs) == 36
    config.split = "val"
    some = synth.jobs(config, source)
    assert {n for n, _, _ in some} <= {n for n, _, _ in all_jobs}
    assert {name for _, name, _ in some} == set(source.ids("val"))
    assert dict((n, i) for n, i, _ in all_jobs)[some[0][0]] == some[0][1]


def run(samples, folder, monkeypatch, made=None, **changes):
    config = configs.get_config("tiny")
    config.samples, config.mvdiff = str(samples), "network"
    config.update(changes)
    monkeypatch.setattr(synth, "make_generator", lambda *a: made or FakeGenerator())
    with Workdir(folder, config) as workdir:
        synth.run(config, workdir)
    return read_summary(folder), (folder / "report.html").read_text()


def shown(page):
    """Samples whose pictures a page has."""
    return set(re.findall(r"sample_\d+(?=: made from slot)", page))


def test_a_repeated_command_shows_the_same_figures_and_pictures(samples, tmp_path, monkeypatch):
    class Stopped(FakeGenerator):
        def views(self, *args, **kwargs):
            if len(self.asked) == 4:
                raise KeyboardInterrupt
            return super().views(*args, **kwargs)

    whole, page = run(samples, tmp_path / "whole", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(samples, tmp_path / "synth", monkeypatch, Stopped())
    for _ in range(2):  # goes on, then has nothing left to do
        summary, again = run(samples, tmp_path / "synth", monkeypatch)
        assert summary["metrics"] == whole["metrics"]
        assert again.count("<img") == page.count("<img")  # sheets lie in tiles
        assert shown(again) == shown(page) and len(shown(page)) == synth.SHOWN
    caption = "sample_000012: made from slot 0 of sample_000002, frame 2"
    assert caption in page and caption in again


def test_samples_that_do_not_fit_the_network_are_told_first(tmp_path, monkeypatch):
    few = write_samples(tmp_path / "few", n=2, n_val=1, views=4)
    with pytest.raises(LayoutError, match="too few views"):
        run(few, tmp_path / "a", monkeypatch)
    many = write_samples(tmp_path / "many", n=2, n_val=1, views=8)
    with pytest.raises(ConfigError, match=r"slots 0 to 5[\s\S]*\[6, 7\]"):
        run(many, tmp_path / "b", monkeypatch, references="all")


@pytest.mark.parametrize(
    "key, value", [("eta", 1.5), ("guidance", -2.0), ("steps", 0), ("white", 0.0)]
)
def test_numbers_without_sense_are_told_by_the_plan(samples, tmp_path, key, value):
    config = configs.get_config()
    config.samples, config.generate[key] = str(samples), value
    with pytest.raises(ConfigError, match=rf"config\.generate\.{key}"):
        synth.plan(config, tmp_path)


@pytest.mark.parametrize("text", ["7", "x", "-1"])
def test_references_are_checked(text):
    config = configs.get_config()
    config.references = text
    with pytest.raises(ConfigError, match="reference slots"):
        synth.references(config, 6)


def test_cut_out_keeps_colours_and_clears_the_rest():
    views = np.ones((1, 16, 16, 3), np.float32)
    views[0, 4:12, 4:12] = (0.5, 0.2, 0.1)
    rgba = cut_out(views, 0.94)
    assert rgba[0, 8, 8].tolist() == [128, 51, 26, 255]
    assert not rgba[0, 0, 0].any()


def test_undoing_white_is_the_inverse_of_laying_on_it():
    rng = np.random.default_rng(0)
    alpha = np.array([[0, 60, 255], [200, 128, 255]], np.uint8)
    rgb = rng.integers(0, 256, (2, 3, 3)) / 255
    a = alpha[..., None] / 255
    rgba = off_white(rgb * a + 1 - a, alpha)
    np.testing.assert_allclose(rgba[..., :3], np.where(a > 0, rgb * 255, 0), atol=0.51)
    np.testing.assert_array_equal(rgba[..., 3], alpha)


# --- photos --------------------------------------------------------------------------------------


def photo(background=(230, 230, 230)):
    image = np.full((40, 60, 3), background, np.uint8)
    image[10:20, 40:56] = (40, 30, 20)
    return image


def test_plain_background_is_removed():
    rgba, how = from_photos.foreground(photo())
    assert how == "plain"
    assert rgba[15, 50, 3] == 255
    assert rgba[0, 0, 3] == 0


def test_alpha_is_used_where_it_says_something():
    image = np.dstack([photo(), np.zeros((40, 60), np.uint8)])
    image[10:20, 40:56, 3] = 255
    assert from_photos.foreground(image)[1] == "alpha"
    image[..., 3] = 255
    assert from_photos.foreground(image)[1] == "plain"


def test_a_busy_background_is_an_error_that_says_what_to_do():
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    with pytest.raises(LayoutError, match="rembg"):
        from_photos.foreground(noise)


def test_the_subject_is_centred_and_scaled():
    rgba, _ = from_photos.foreground(photo())
    square, M = from_photos.centred(rgba, 64, 0.5)
    assert square.shape == (64, 64, 4)
    rows, columns = np.nonzero(square[..., 3] > 127)
    assert columns.max() + 1 - columns.min() == pytest.approx(32, abs=1)
    assert (columns.max() + 1 + columns.min()) / 2 == pytest.approx(32, abs=1)
    assert (rows.max() + 1 + rows.min()) / 2 == pytest.approx(32, abs=1)
    np.testing.assert_allclose(M @ [48, 15, 1], [32, 32, 1])
    with pytest.raises(LayoutError, match="no subject"):
        from_photos.centred(np.zeros((8, 8, 4), np.uint8), 16, 0.5)


@pytest.mark.parametrize("by", ["box", "centroid"])
def test_a_photo_is_laid_as_the_training_pictures_were(tmp_path, by):
    """A body with a tail: the middle of its box is not its centroid."""
    body = np.zeros((40, 40, 4), np.uint8)
    body[18:26, 20:30] = body[21:23, 4:20] = (90, 60, 30, 255)
    square, _ = from_photos.centred(body, 64, 0.5, by=by)
    rig = rig_from_angles(270 - 60.0 * np.arange(6), 15.0, 2.7, 70.0, 64)
    with SampleWriter(tmp_path / "set", {"source": {}, "parameters": {}}) as writer:
        writer.write(0, [square] * 6, rig, range(6), frame=0)
        writer.finish(lambda rows: ["train"])
    found = subject_place(SampleSet.open(tmp_path / "set"))
    assert found == {"subject_share": pytest.approx(0.5, abs=0.04), "subject_centre": by}
    again, M = from_photos.centred(square, 64, found["subject_share"], by=by)
    np.testing.assert_allclose(M @ [32, 32, 1], [32, 32, 1], atol=1.0)
    other, _ = from_photos.centred(square, 64, 0.5, by="box" if by == "centroid" else "centroid")
    rows = [np.average(np.arange(64), weights=x[..., 3].sum(0)) for x in (again, other)]
    assert abs(rows[0] - rows[1]) > 3


def test_the_animal_fills_what_it_filled_in_training(samples):
    share = subject_place(SampleSet.open(samples))["subject_share"]
    alpha = SampleSet.open(samples).load("sample_000000", [0]).images_rgba[0, ..., 3]
    columns = np.nonzero(alpha.any(0))[0]
    assert share == pytest.approx((columns[-1] + 1 - columns[0]) / 32, abs=0.15)
    told = []
    made = from_photos.FromImages.__new__(from_photos.FromImages)
    made._warn, made.generator = told.append, types.SimpleNamespace(subject_share=share)
    assert made._share() == share and not told
    made.generator.subject_share = None
    assert made._share() == from_photos.FILL and "generate.fill" in told[0]
