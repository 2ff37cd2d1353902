"""Sample sets of one rig, drawn from fits: cameras, provenance, what is left out, what is told."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from configs import synth as config_file
from mouselift_jax.data.batches.pictures import composite
from mouselift_jax.data.samples.rig_file import load_rig, named_rig, save_rig
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.errors import CalibrationError, ConfigError, LayoutError, MouseLiftError
from mouselift_jax.geometry.median_rig import Rig
from mouselift_jax.geometry.rig import azimuth_elevation, rig_from_angles
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.runs.record import read_json
from mouselift_jax.splats.ply import load_ply
from mouselift_jax.stages import prompts, synth
from mouselift_jax.stages.harness.plan import next_commands
from mouselift_jax.stages.multiview import from_fits
from tests.fit_runs import write_fit
from tests.sample_sets import write_samples
from tests.stages import runs

run = functools.partial(runs.run, synth)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("set") / "samples", n=5, size=48)


@pytest.fixture(scope="module")
def fits(samples, tmp_path_factory):
    return write_fit(tmp_path_factory.mktemp("fit") / "fit", samples, {1: 0.4, 2: None})


def config(fits, **changes):
    c = config_file.get_config("tiny")
    c.fits, c.size, c.further, c.zoom, c.limit = str(fits), 48, 2, 1.0, 0
    c.update(changes)
    return c


@pytest.fixture(scope="module")
def done(fits, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "synth"
    return path, run(config(fits), path)


def test_all_samples_have_the_rig_that_the_networks_know(done):
    path, summary = done
    made = SampleSet.open(path / "samples")
    canonical, _ = load_rig(named_rig("canonical"))
    expected = canonical.cameras.resized(48, 48)[0]
    assert len(made) == 4
    for name in made.ids():
        sample = made.load(name)
        assert sample.images_rgba.shape == (8, 48, 48, 4) and sample.has_alpha
        np.testing.assert_allclose(sample.cameras.K[:6], expected.K, atol=1e-9)
        np.testing.assert_allclose(sample.cameras.c2w[:6], expected.c2w, atol=1e-9)
        assert (sample.images_rgba[..., 3].max((1, 2)) == 255).all()
    assert summary["metrics"]["rig/spread_px"] < 1e-6
    assert summary["metrics"]["synth/hull_cover_min"] >= 0.995
    assert "the canonical rig (" in (path / "report.html").read_text()


def test_a_sample_says_where_it_comes_from_and_how_good_its_fit_is(done, samples, fits):
    path, _ = done
    made, source = SampleSet.open(path / "samples"), SampleSet.open(samples)
    assert made.manifest["source"]["kind"] == "from fit"
    assert made.manifest["source"]["fits"] == str(fits)
    rows = {r["id"]: r for r in made.manifest["samples"]}
    assert rows["sample_000000"]["heldout_iou"] == 0.95 and rows["sample_000000"]["frame"] == 0
    about = made.load("sample_000003").info["fitted"]
    assert about["source"] == "sample_000003" and about["hidden"]["iou"] == 0.95
    assert set(made.ids("val")) == set(source.ids("val"))  # no frame is on both sides


def test_bad_fits_are_left_out_and_counted_and_unknown_ones_are_told(done):
    path, summary = done
    rows = {r["id"]: r for r in read_json(path / "samples/manifest.json")["samples"]}
    assert rows["sample_000001"]["status"] == "skipped"
    assert "IoU below 0.85" in rows["sample_000001"]["reason"]
    assert not (path / "samples/sample_000001").exists()
    told = "\n".join(summary["warnings"])
    assert "1 of 5 fitted frames were left out" in told and "sample_000001, 0.400" in told
    assert "1 of 5 fits were not judged, sample_000002 first" in told
    assert "head and tail look alike" in told  # an ellipsoid has none
    assert summary["metrics"]["left_out"] == 1


def test_a_second_command_draws_only_what_is_left(done, fits, monkeypatch):
    path, before = done
    drawn = []
    real = from_fits.cut_outs
    monkeypatch.setattr(from_fits, "cut_outs", lambda *a, **k: drawn.append(1) or real(*a, **k))
    (path / "samples/sample_000003/opencv_cameras.json").unlink()
    again = run(config(fits), path)
    assert len(drawn) == 2  # the check of the first sample, and the one that is missing
    assert again["metrics"] == before["metrics"] and again["warnings"] == before["warnings"]
    with pytest.raises(ConfigError, match="zoom"):
        run(config(fits, zoom=2.0), path)


def test_the_report_shows_the_pictures_on_white(fits, tmp_path, monkeypatch):
    """Their outlines once wrapped round: bytes of straight alpha were added as if weighted."""
    shown, real = [], synth.contact_sheet
    monkeypatch.setattr(
        synth, "contact_sheet", lambda p, **k: shown.append(np.stack(p)) or real(p, **k)
    )
    run(config(fits, limit=1), tmp_path / "x")
    rgba = SampleSet.open(tmp_path / "x/samples").load("sample_000000").images_rgba
    expected, masks = composite(rgba, np.ones(3, np.float32))
    assert ((masks > 0) & (masks < 1)).any()
    np.testing.assert_allclose(shown[0], expected, atol=1e-6)


def test_the_plan_counts_and_touches_nothing(fits, tmp_path):
    plan = synth.plan(config(fits), tmp_path / "x")
    text = plan.describe()
    assert "5 fitted frames, each drawn from 8 cameras (6 of the rig 'canonical')" in text
    assert "1 frames are left out" in text and "1 frames were not judged" in text
    assert not (tmp_path / "x").exists()
    commands = next_commands(synth, config(fits), tmp_path / "x")
    assert "configs/mvdiff.py:tiny" in commands[0] and "configs/gslrm.py:tiny" in commands[1]


def test_the_world_is_turned_with_the_cameras(samples, fits, tmp_path):
    """A real picture kept in slot 0 shows the animal where the drawn views have it."""
    c = config(fits, reference="real", heading="random", limit=1, further=0)
    run(c, tmp_path / "real")
    made = SampleSet.open(tmp_path / "real/samples")
    sample = made.load("sample_000000")
    azimuth, elevation = azimuth_elevation(sample.cameras.c2w)
    assert abs((azimuth[0] - 270 + 180) % 360 - 180) <= 30 and elevation[0] == pytest.approx(15)
    source = SampleSet.open(samples).load("sample_000000")
    number = made.manifest["samples"][0]["real_camera"]
    np.testing.assert_array_equal(sample.images_rgba[0], source.images_rgba[number])
    camera = sample.cameras[np.array([0])]
    still = load_ply(fits / "items" / sample.id / "splats.ply")
    move = sample.info["world_from_source"]
    moved = still.transformed(
        Similarity(np.float64(move["scale"]), np.array(move["R"]), np.array(move["t"]))
    )
    off = [_off(from_fits.cut_outs(g, camera)[0], sample.images_rgba[0]) for g in (moved, still)]
    assert off[0] < 10 and off[1] > 25  # colours tell where each side of the animal is


def _off(drawn, true):
    """Mean difference of colours where both pictures show the animal, levels."""
    inside = (drawn[..., 3] == 255) & (true[..., 3] == 255)
    return np.abs(drawn[..., :3].astype(int) - true[..., :3])[inside].mean()


def test_the_prompts_are_of_the_rig_alone(done):
    class Config:
        samples = str(done[0])

    assert prompts._cameras(Config).batch_shape == (6,)


# --- bad input -----------------------------------------------------------------------------------


def test_a_fit_of_other_samples_is_refused(fits, samples, tmp_path):
    other = write_samples(tmp_path / "few", n=3, size=48)
    with pytest.raises(MouseLiftError, match=r"2 problem[\s\S]*no such sample"):
        synth.plan(config(fits, samples=str(other)), tmp_path / "x")
    for name in SampleSet.open(other).ids():
        file = other / name / "opencv_cameras.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"frame": 77}))
    with pytest.raises(MouseLiftError, match="frame 77 of the recording, fitted was 0"):
        synth.plan(config(fits, samples=str(other)), tmp_path / "x")


def test_samples_prepared_anew_under_the_same_names_are_told_by_their_pixels(
    fits, samples, tmp_path
):
    import shutil

    from mouselift_jax.data.png import encode_png, read_picture

    shutil.copytree(samples, tmp_path / "set")
    for file in (tmp_path / "set/sample_000000/images").iterdir():
        file.write_bytes(encode_png(np.roll(read_picture(file), 24, 1)))
    with pytest.raises(LayoutError, match="do not show the animal of these samples"):
        run(config(fits, samples=str(tmp_path / "set")), tmp_path / "x")


@pytest.mark.parametrize(
    "changes, error, said",
    [
        ({"rig": "canonicle"}, ConfigError, "did you mean 'canonical'"),
        ({"heading": "frnt"}, ConfigError, "did you mean 'front'"),
        ({"reference": "photo"}, ConfigError, "rendered | real"),
        ({"least_iou": 1.5}, ConfigError, "from 0 to 1"),
        ({"least_iou": 0.99}, ConfigError, "every fit is bad"),
        ({"elevations": (50.0, 10.0)}, ConfigError, "the lower first"),
        ({"mvdiff": "runs/mvdiff"}, ConfigError, "leave one of the two out"),
        ({"frames": "400:"}, ConfigError, "no sample is of these frames"),
    ],
)  # fmt: skip
def test_values_without_sense_are_told_by_the_plan(samples, tmp_path, changes, error, said):
    judged = write_fit(tmp_path / "fit", samples)
    with pytest.raises(error) as told:
        synth.plan(config(judged, **changes), tmp_path / "x")
    assert said in str(told.value)


def test_damaged_frames_of_a_fit_are_all_told_with_what_makes_them_again(samples, tmp_path):
    broken = write_fit(tmp_path / "fit", samples)
    places = sorted((broken / "items").iterdir())
    (places[0] / "splats.ply").unlink()
    for place, change in zip(
        places[1:], ({"heldout": 0.9}, {"heldout": {"iou": "0.9"}}, {"heldout": {"iou": 9}},
                     {"id": None}), strict=True,
    ):  # fmt: skip
        file = place / "item.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(MouseLiftError) as told:
        synth.plan(config(broken), tmp_path / "x")
    text = str(told.value)
    assert "5 problem" in text and "repeat the command of the fit" in text
    for said in ("no splats.ply", "heldout = 0.9", "'0.9'", "heldout.iou = 9", "names no sample"):
        assert said in text


def test_hidden_cameras_without_a_figure_are_no_fit_that_saw_all(samples, tmp_path):
    fit = write_fit(tmp_path / "fit", samples, {0: float("nan"), 1: None})
    notes = synth.plan(config(fit), tmp_path / "x").describe()
    assert "1 frames' hidden cameras have no IoU that is a number" in notes
    assert "1 frames were not judged" in notes
    told = "\n".join(run(config(fit, limit=2, further=0), tmp_path / "x")["warnings"])
    assert "1 of 2 fits, sample_000000 first, had cameras hidden whose IoU is missing" in told
    assert "1 of 2 fits were not judged, sample_000001 first" in told


def test_a_rig_that_looks_past_the_animal_is_named(fits, tmp_path):
    away = rig_from_angles(270 - 60.0 * np.arange(6), 0.0, 2.7, 60.0, 48)
    K = away.K.copy()
    K[:, 0, 2] = 47.0  # the origin is at the edge: most of the animal is beyond it
    K[:, :2, :2] *= 3
    import dataclasses

    file = tmp_path / "rig.json"
    save_rig(file, Rig(dataclasses.replace(away, K=K), np.zeros(6), np.zeros(6), 1))
    with pytest.raises(CalibrationError, match="looks past the animal"):
        run(config(fits, rig=str(file), zoom=3.0), tmp_path / "x")


def test_what_is_no_finished_fit_is_told(samples, fits, tmp_path):
    with pytest.raises(LayoutError, match="no run of fit"):
        synth.plan(config(samples), tmp_path / "x")
    moved = write_fit(tmp_path / "moved", samples, samples="gone")
    with pytest.raises(LayoutError, match="--config.samples=PLACE"):
        synth.plan(config(moved), tmp_path / "x")
    assert synth.plan(config(moved, samples=str(samples)), tmp_path / "x").writes
    (moved / "summary.json").write_text("{}")
    with pytest.raises(LayoutError, match="has not finished"):
        synth.plan(config(moved), tmp_path / "x")
