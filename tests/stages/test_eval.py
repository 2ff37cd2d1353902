import csv
import json
import re

import jax
import numpy as np
import pytest

from configs import eval as eval_config
from mouselift_jax.data.samples.writer import SampleWriter
from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.geometry.rig import rig_from_angles
from mouselift_jax.pipelines.fit import EmptyHullError
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.stages import eval as stage

SIZE, VIEWS = 32, 6


def ball(shift=0.0, n=400):
    rng = np.random.default_rng(0)
    d = rng.normal(size=(n, 3))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    rgb = 0.4 + 0.4 * np.sin(5 * d)
    return Gaussians(
        (0.5 * d + [0, 0, shift]).astype(np.float32),
        np.tile(np.array([1, 0, 0, 0], np.float32), (n, 1)),
        np.full((n, 3), np.log(0.06), np.float32),
        np.full(n, 4, np.float32),
        ((rgb[:, None] - 0.5) / 0.28209479).astype(np.float32),
    )


class Oracle:
    """A network that always says `gaussians`."""

    def __init__(self, gaussians):
        from mouselift_jax.models.gslrm import GSLRMConfig

        self.gaussians, self.config = gaussians, GSLRMConfig()

    def clone(self, config):
        return self

    def apply(self, variables, images, K, c2w):

        assert images.shape[1] == VIEWS - 1  # the held-out view is not among the inputs
        return jax.tree.map(lambda x: np.stack([x] * images.shape[0]), self.gaussians)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    from mouselift_jax.render import render

    path = tmp_path_factory.mktemp("samples")
    cameras = rig_from_angles(np.arange(VIEWS) * 60, 15, 2.7, SIZE * 1.07, SIZE)
    drawn = render(ball(), cameras, background=(0, 0, 0))
    alpha = np.asarray(drawn.alpha)
    rgba = np.concatenate([np.asarray(drawn.rgb) / np.maximum(alpha, 1e-3), alpha], -1)
    rgba = (np.clip(rgba, 0, 1) * 255).round().astype(np.uint8)
    writer = SampleWriter(path, {"source": {"fps": 10.0}, "scene_scale": 0.01})
    for i in range(3):
        writer.write(i, list(rgba), cameras, list(range(VIEWS)), frame=10 * i)
    writer.finish(lambda rows: ["train"] + ["val"] * (len(rows) - 1))
    return path


def run(samples, workdir, gaussians, monkeypatch, **changes):
    config = eval_config.get_config("tiny")
    weights = workdir.parent / "weights"  # the network's shape; `Oracle` stands for the rest
    for folder in ("gslrm", "checkpoints"):
        (weights / folder).mkdir(parents=True, exist_ok=True)
    (weights / "gslrm/config.json").write_text('{"patch_size": 8}')
    config.samples, config.gslrm = str(samples), str(weights)
    config.render, config.heldout_cameras = "tiled", (0, 3)
    config.methods = "gslrm,hull,nearest"
    config.update_from_flattened_dict(changes.pop("flat", {}))
    config.update(changes)
    monkeypatch.setattr(stage, "load_pretrained", lambda *a, **k: (Oracle(gaussians), {}))
    with Workdir(workdir, config) as folder:
        stage.run(config, folder)
    return json.loads((workdir / "summary.json").read_text())


def test_a_network_that_knows_the_truth_beats_the_baselines(samples, tmp_path, monkeypatch):
    summary = run(samples, tmp_path / "a", ball(), monkeypatch)
    m = summary["metrics"]
    assert m["heldout/psnr"] > 35 and m["heldout/iou"] > 0.97
    assert m["heldout/psnr_low"] <= m["heldout/psnr"] <= m["heldout/psnr_high"]
    assert m["hull/iou"] > 0.5 and m["nearest/iou"] > 0.5
    assert m["gslrm_minus_hull/psnr"] > 5 and "resemble" in summary["warnings"][0]
    rows = list(csv.DictReader(open(tmp_path / "a" / "scores.csv")))
    assert len(rows) == 2 * 2 * 3  # samples x cameras x methods
    assert {r["camera"] for r in rows} == {"0", "3"}
    html = (tmp_path / "a" / "report.html").read_text()
    assert "gslrm minus hull" in html and f"{SIZE} px" in html
    for name in (f"sample_{i:06d}" for i in (1, 2)):  # few samples are not shown twice
        assert html.count(f"<figcaption>{name}: ") == 1
    assert "Samples, worst first" in html and "Best samples" not in html
    assert summary["verdict"]["outcome"] == "better" and "the network is better" in html
    assert "below the baselines" not in html
    assert following(summary) == ["infer"]


def following(summary):
    """The configs of the commands that come next."""
    config = eval_config.get_config("tiny")
    config.samples, config.gslrm = "a", "b"
    config.methods = "gslrm,fit,hull,nearest"
    return [re.search(r"configs/(\w+)", c)[1] for c in stage.next_after(config, summary)]


def test_of_many_samples_the_worst_and_the_best_are_shown(samples, tmp_path, monkeypatch):
    run(samples, tmp_path / "a", ball(), monkeypatch, pictures=1, methods="gslrm")
    html = (tmp_path / "a" / "report.html").read_text()
    assert html.index("Worst samples") < html.index("Best samples")
    assert all(html.count(f"<figcaption>sample_{i:06d}: ") == 1 for i in (1, 2))


def test_a_bad_network_is_called_one(samples, tmp_path, monkeypatch):
    summary = run(samples, tmp_path / "b", ball(0.5), monkeypatch)
    assert summary["metrics"]["gslrm_minus_hull/psnr"] < 0
    assert summary["verdict"]["outcome"] == "worse"
    assert any("worse than the visual hull" in w for w in summary["warnings"])
    html = (tmp_path / "b" / "report.html").read_text()
    assert "below the baselines" in html and ">finished<" not in html
    assert following(summary) == ["fit"]


def test_a_network_that_loses_to_the_fit_is_told_so(samples, tmp_path, monkeypatch):
    """Both get five views; the network stands beside the animal, the fit finds it."""
    small = {"fit.cells": 16, "fit.coarse_steps": 2, "fit.fine_steps": 4, "fit.nodes": 8,
             "fit.smooth": 0.2, "fit.opaque": 0.1}  # fmt: skip
    summary = run(samples, tmp_path / "f", ball(0.3), monkeypatch, limit=1, render=None,
                  methods="gslrm,fit,hull", heldout_cameras=(3,), flat=small)  # fmt: skip
    m = summary["metrics"]
    assert m["fit/iou"] > 0.8 > m["gslrm/iou"]
    assert m["gslrm_minus_fit/iou_high"] < 0
    html = (tmp_path / "f" / "report.html").read_text()
    assert "The network loses" in html
    good = {**summary, "verdict": {"outcome": "better"}}
    assert following(good) == ["fit", "infer"]


def test_without_a_network_the_fit_is_judged_and_that_is_said(samples, tmp_path, monkeypatch):
    config = eval_config.get_config("tiny")
    config.samples, config.limit, config.heldout_cameras = str(samples), 1, (3,)
    monkeypatch.setattr(stage.judges, "Fitted", lambda settings: stage.judges.hull)
    with Workdir(tmp_path / "n", config) as folder:
        stage.run(config, folder)
    summary = json.loads((tmp_path / "n/summary.json").read_text())
    assert any("no network was judged" in w for w in summary["warnings"])
    assert summary["metrics"]["heldout/iou"] == summary["metrics"]["fit/iou"]
    assert "no network is judged" in stage.plan(config, tmp_path / "n").describe()


def test_a_sample_that_cannot_be_fitted_is_named_and_counts_for_no_method_but_its_own(
    samples, tmp_path, monkeypatch
):
    class Fails:
        def __init__(self, settings):
            self.calls = 0

        def __call__(self, inputs):
            self.calls += 1
            if self.calls == 1:
                raise EmptyHullError("a mask is empty", expected="an animal")
            return stage.judges.hull(inputs)

    monkeypatch.setattr(stage.judges, "Fitted", Fails)
    summary = run(samples, tmp_path / "g", ball(), monkeypatch, methods="fit,hull", gslrm=None)
    rows = list(csv.DictReader(open(tmp_path / "g" / "scores.csv")))
    assert [r["method"] for r in rows].count("fit") == 3
    assert [r["method"] for r in rows].count("hull") == 4
    assert any("sample_000001 without camera 0" in w for w in summary["warnings"])


def test_the_hull_gets_the_pictures_as_they_are_stored(samples, tmp_path, monkeypatch):
    """The network is given 16 px, the baselines and the judge 32."""
    seen = set()
    real = stage.judges.hull
    monkeypatch.setattr(stage.judges, "hull", lambda v: seen.add(v[0].image.shape[0]) or real(v))
    sizes = set()
    real_apply = Oracle.apply
    monkeypatch.setattr(
        Oracle,
        "apply",
        lambda o, v, images, *c: sizes.add(images.shape[-2]) or real_apply(o, v, images, *c),
    )
    summary = run(samples, tmp_path / "h", ball(), monkeypatch, size=16, limit=1)
    assert seen == {SIZE} and sizes == {16}
    assert summary["metrics"]["gslrm/psnr"] > 35


def test_a_limit_counts_samples_with_heldout_pictures(samples, tmp_path):
    """Of the frames 10 and 20 only the second was seen by extra cameras."""
    (tmp_path / "heldout/frame_000020").mkdir(parents=True)
    (tmp_path / "weights/gslrm").mkdir(parents=True)
    (tmp_path / "weights/checkpoints").mkdir()
    (tmp_path / "weights/gslrm/config.json").write_text('{"patch_size": 8}')
    config = eval_config.get_config("tiny")
    config.samples, config.gslrm = str(samples), str(tmp_path / "weights")
    config.heldout, config.limit = str(tmp_path / "heldout"), 1
    assert stage.Folds(config).ids == ["sample_000002"]


def test_judged_samples_are_not_judged_again(samples, tmp_path, monkeypatch):
    first = run(samples, tmp_path / "c", ball(), monkeypatch, methods="gslrm")
    (tmp_path / "c/scores/sample_000001.png").unlink()  # the report shows it: it is made again
    assert run(samples, tmp_path / "c", ball(), monkeypatch, methods="gslrm") == {
        **first, "wall_s": pytest.approx(first["wall_s"], abs=60)
    }  # fmt: skip
    monkeypatch.setattr(stage.Judge, "__call__", lambda *a: 1 / 0)
    again = run(samples, tmp_path / "c", ball(), monkeypatch, methods="gslrm")
    assert again["metrics"] == first["metrics"]


def test_wrong_settings_are_named(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(stage.SampleSet, "load", lambda *a: 1 / 0)
    with pytest.raises(ConfigError, match=r"multiple of 8 [\s\S]*--config.size=40"):
        run(samples, tmp_path / "s", ball(), monkeypatch, size=37)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="no such camera"):
        run(samples, tmp_path / "d", ball(), monkeypatch, heldout_cameras=(9,))
    with pytest.raises(ConfigError, match="fewer views"):
        run(samples, tmp_path / "e", ball(), monkeypatch, n_inputs=6)
    with pytest.raises(ConfigError, match=r"no such method[\s\S]*did you mean 'nearest'"):
        run(samples, tmp_path / "g", ball(), monkeypatch, methods="fit,nearst")
    with pytest.raises(LayoutError):
        run(samples, tmp_path / "f", ball(), monkeypatch, heldout=str(samples))
