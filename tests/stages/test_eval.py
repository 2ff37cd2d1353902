import csv
import json

import numpy as np
import pytest

from configs import eval as eval_config
from mouselift_jax.data.samples.writer import SampleWriter
from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.geometry.rig import rig_from_angles
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
        import jax

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
    assert m["gain/psnr"] > 5 and "resemble" in summary["warnings"][0]
    rows = list(csv.DictReader(open(tmp_path / "a" / "scores.csv")))
    assert len(rows) == 2 * 2 * 3  # samples x cameras x methods
    assert {r["camera"] for r in rows} == {"0", "3"}
    html = (tmp_path / "a" / "report.html").read_text()
    assert "network minus" in html
    for name in (f"sample_{i:06d}" for i in (1, 2)):  # few samples are not shown twice
        assert html.count(f"<figcaption>{name}: ") == 1
    assert "Samples, worst first" in html and "Best samples" not in html


def test_of_many_samples_the_worst_and_the_best_are_shown(samples, tmp_path, monkeypatch):
    run(samples, tmp_path / "a", ball(), monkeypatch, pictures=1, baselines=False)
    html = (tmp_path / "a" / "report.html").read_text()
    assert html.index("Worst samples") < html.index("Best samples")
    assert all(html.count(f"<figcaption>sample_{i:06d}: ") == 1 for i in (1, 2))


def test_a_bad_network_is_called_one(samples, tmp_path, monkeypatch):
    summary = run(samples, tmp_path / "b", ball(0.5), monkeypatch)
    assert summary["metrics"]["gain/psnr"] < 0
    assert any("not surely better" in w for w in summary["warnings"])


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
    first = run(samples, tmp_path / "c", ball(), monkeypatch, baselines=False)
    (tmp_path / "c/scores/sample_000001.png").unlink()  # the report shows it: it is made again
    assert run(samples, tmp_path / "c", ball(), monkeypatch, baselines=False) == {
        **first, "wall_s": pytest.approx(first["wall_s"], abs=60)
    }  # fmt: skip
    monkeypatch.setattr(stage.Judge, "__call__", lambda *a: 1 / 0)
    again = run(samples, tmp_path / "c", ball(), monkeypatch, baselines=False)
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
    with pytest.raises(LayoutError):
        run(samples, tmp_path / "f", ball(), monkeypatch, heldout=str(samples))
