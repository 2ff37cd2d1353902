"""The stage `fit`: what it writes, resumes, skips and says of itself."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json

import numpy as np
import pytest

from configs import fit as config_file
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.data.synthetic import write_recording
from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.exports.source import open_film
from mouselift_jax.pipelines import fit as fits
from mouselift_jax.report.scene import open_scene
from mouselift_jax.splats import trust
from mouselift_jax.stages import fit
from tests.sample_sets import write_samples
from tests.stages import runs

run = functools.partial(runs.run, fit)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory):
    return write_samples(tmp_path_factory.mktemp("set"), n=3, size=64, n_val=1)


def config(samples: object, **more: object):
    c = config_file.get_config("tiny")
    c.samples = str(samples)
    for key, value in more.items():
        c[key] = value
    return c


@pytest.fixture(scope="module")
def done(samples, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "fit"
    return path, run(config(samples, heldout_cameras=(2,)), path)


def test_every_frame_is_written_and_judged_by_the_hidden_camera(done) -> None:
    path, summary = done
    assert summary["finished"] and summary["metrics"]["items"] == 3
    assert len(open_scene(path).moments) == 3
    record = json.loads((path / "items/sample_000001/item.json").read_text())
    assert record["heldout"]["iou"] > 0.85
    assert "hull_iou" in record["heldout"]
    assert summary["metrics"]["heldout/iou"] == pytest.approx(
        np.mean(
            [json.loads(p.read_text())["heldout"]["iou"] for p in path.glob("items/*/item.json")]
        )
    )
    page = (path / "report.html").read_text()
    assert "camera 2" in page and "visual hull" in page


def test_hidden_means_hidden(samples, done, monkeypatch) -> None:
    """The fit gets five views; a hidden camera that sees nonsense changes nothing."""
    seen = []
    real = fits.cut_out
    monkeypatch.setattr(fits, "cut_out", lambda i, *a, **k: seen.append(len(i)) or real(i, *a, **k))
    c = config(samples, heldout_cameras=(2,))
    items = fit.Frames(c)
    item = items.load(items.ids[0])
    slot = item.about["cameras"].index(2)
    assert item.labels[slot].endswith("(hidden)")
    item.images[slot] = 0.5
    item.masks[slot] = 1
    gaussians, _ = fit.Fitter(c, items, pytest.fail)(item)
    again, _ = fit.Fitter(c, items, pytest.fail)(items.load(items.ids[0]))
    assert seen == [5, 5]
    assert np.array_equal(gaussians.means, again.means)


def test_a_second_command_does_only_what_is_left(samples, done, monkeypatch) -> None:
    path, _ = done
    calls = []
    real = fit.Fitter.__call__
    monkeypatch.setattr(fit.Fitter, "__call__", lambda s, i: calls.append(i.id) or real(s, i))
    c = config(samples, heldout_cameras=(2,))
    assert "3 frame(s) that are done" in fit.plan(c, path).skipped[0]
    run(c, path)
    assert calls == []
    (path / "items/sample_000001/splats.ply").unlink()
    run(c, path)
    assert calls == ["sample_000001"]


def test_without_a_hidden_camera_the_report_says_so(samples, tmp_path) -> None:
    run(config(samples, limit=1), tmp_path / "fit")
    assert "no camera is hidden" in (tmp_path / "fit/report.html").read_text()
    assert (tmp_path / "fit/splats.ply").exists() and (tmp_path / "fit/turntable.mp4").exists()


def test_frames_that_cannot_be_fitted_are_named_and_left_out(
    samples, tmp_path, monkeypatch
) -> None:
    real = SampleSet.load

    def load(self: SampleSet, item_id: str, *a: object):
        sample = real(self, item_id, *a)
        rgba = sample.images_rgba.copy()
        if item_id == "sample_000000":
            rgba[3] = 0  # an empty mask
        if item_id == "sample_000001":
            rgba[1] = np.roll(rgba[1], 24, 0)  # a camera that disagrees
        if item_id == "sample_000002":
            rgba[4, :, :34] = 0
            rgba[4] = np.roll(rgba[4], -34, 1)  # a picture that begins within the animal
            K = np.array(sample.cameras.K)
            K[4, 0, 2] -= 34
            sample = dataclasses.replace(sample, cameras=dataclasses.replace(sample.cameras, K=K))
        return dataclasses.replace(sample, images_rgba=rgba)

    monkeypatch.setattr(SampleSet, "load", load)
    summary = run(config(samples), tmp_path / "fit")
    warnings = "\n".join(summary["warnings"])
    assert "sample_000000 was left out" in warnings and "mask is empty" in warnings
    assert "camera 3" in warnings
    assert "sample_000001 was left out" in warnings and "disagree" in warnings
    assert "2 of 3 frames were left out" in warnings
    assert "1 of 1 frames (sample_000002 first)" in warnings and "camera 4 in 1" in warnings
    assert summary["metrics"]["items"] == 1
    with pytest.raises(LayoutError, match="no frame could be fitted"):
        run(config(samples, frames="0"), tmp_path / "none")


def test_a_start_that_lost_something_since_the_frame_before_is_not_kept(
    samples, monkeypatch
) -> None:
    real, loss = fits.fit, [0.0]

    def lossy(views, begun, settings, *, is_next=False):
        out = real(views, begun, settings, is_next=is_next)
        return dataclasses.replace(out, iou=np.full(4, 0.99 - loss[0] * is_next))

    monkeypatch.setattr(fits, "fit", lossy)
    c = config(samples)
    items = fit.Frames(c)
    fitter, starts = fit.Fitter(c, items, print), []
    for item_id, loss[0] in zip(
        items.ids, (0, 0.5 * fit.WARM_LOSS, 2 * fit.WARM_LOSS), strict=True
    ):
        item = items.load(item_id)
        fitter(item)
        starts.append(item.about["start"])
    assert starts == ["hull", "frame before", "hull"]


def test_what_a_place_owes_to_one_camera_is_measured_in_mm(samples) -> None:
    c = config(samples, leave_one_out=True, heldout_cameras=(2,))
    items = fit.Frames(c)
    fitter, item = fit.Fitter(c, items, pytest.fail), items.load(items.ids[0])
    with pytest.raises(LayoutError, match="unit"):
        fitter(item)
    shifts = {}
    for scale in (1.0, 0.5):
        item.scene_scale = scale
        gaussians, _ = fitter(item)
        shifts[scale] = item.of_splats[trust.SHIFT]
        assert shifts[scale].shape == (gaussians.n_gaussians,)
    np.testing.assert_allclose(shifts[0.5], 2 * shifts[1.0], rtol=1e-5)
    assert 0.005 < np.median(shifts[1.0]) < 0.3  # of a body of half a unit, seen by four


def test_a_fit_that_diverges_is_begun_again_once(samples, monkeypatch) -> None:
    real, seeds, times = fits.fit, [], 1

    def diverging(views, begun, settings, **k):
        seeds.append(settings.seed)
        out = real(views, begun, settings, **k)
        broken = dataclasses.replace(out, losses=out.losses * np.nan)
        return broken if len(seeds) <= times else out

    monkeypatch.setattr(fits, "fit", diverging)
    c = config(samples)
    items, said = fit.Frames(c), []
    gaussians, _ = fit.Fitter(c, items, said.append)(items.load(items.ids[0]))
    assert seeds == [0, 1] and np.isfinite(gaussians.means).all()
    assert "diverged" in said[0]
    seeds, times = [], 2  # no haze in place of a result: the frame is left out
    with pytest.raises(fits.UnfittableError, match="diverged twice"):
        fit.Fitter(c, items, said.append)(items.load(items.ids[0]))
    assert seeds == [0, 1] and len(said) == 3


def test_inputs_that_are_wrong_say_what_to_type(samples, tmp_path) -> None:
    with pytest.raises(ConfigError, match="exactly one input"):
        fit.plan(config_file.get_config("tiny"), tmp_path)
    with pytest.raises(ConfigError, match="no such camera"):
        run(config(samples, heldout_cameras=(9,)), tmp_path / "a")
    with pytest.raises(ConfigError, match="too few cameras"):
        run(config(samples, heldout_cameras=(0, 1, 2, 3, 4)), tmp_path / "b")
    judged = config(samples)
    judged.film.truth = str(tmp_path / "no.npz")
    with pytest.raises(LayoutError, match="truth"):  # before hours of fitting, not after
        fit.plan(judged, tmp_path)
    c = config_file.get_config("tiny")
    c.recording = str(samples)
    with pytest.raises(LayoutError, match="no recording here"):
        fit.plan(c, tmp_path)


def test_from_a_recording_to_a_film(tmp_path) -> None:
    recording = write_recording(tmp_path / "rec", frames=8, size=(144, 128), n_heldout=0, workers=1)
    c = config_file.get_config("tiny")
    c.recording, c.heldout_cameras, c.frames = str(recording), (1,), "0:6:2"
    summary = run(c, tmp_path / "fit")
    for name in ("motion.csv", "sequence.html", "videos/turntable.mp4", "prepare/summary.json"):
        assert (tmp_path / "fit" / name).exists(), name
    starts = [
        json.loads(p.read_text())["start"] for p in (tmp_path / "fit").glob("items/*/item.json")
    ]
    assert len(starts) == 3
    film = open_film(tmp_path / "fit")  # its samples are in its own folder
    assert len(film.frames) == 3 and film.recording.n_views == 6
    rows = list(csv.DictReader((tmp_path / "fit/motion.csv").open()))
    assert all(0.5 < float(row["cameras"]) < 5 for row in rows)  # five were given
    assert summary["metrics"]["heldout/iou"] > 0.5
