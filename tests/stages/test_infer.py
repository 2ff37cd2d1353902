"""The stage `infer` on samples: what is hidden judges it, what is refined is told."""

import json
import re

import jax
import numpy as np
import pytest

from configs import infer as infer_config
from mouselift_jax.errors import ConfigError
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.stages import infer as stage
from tests.sample_sets import write_samples

SIZE = 48


def ball(radius=0.62, n=600):
    rng = np.random.default_rng(0)
    d = rng.normal(size=(n, 3))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    return Gaussians(
        (radius * d).astype(np.float32),
        np.tile(np.array([1, 0, 0, 0], np.float32), (n, 1)),
        np.tile(np.log([0.01, 0.06, 0.06]).astype(np.float32), (n, 1)),
        np.full(n, 3, np.float32),
        np.zeros((n, 1, 3), np.float32),
    )


class Oracle:
    """A network that always says a grey ball."""

    def __init__(self, views):
        from mouselift_jax.models.gslrm import GSLRMConfig

        self.config, self.views = GSLRMConfig(), views

    def clone(self, config):
        return self

    def apply(self, variables, images, K, c2w):
        self.views.append(images.shape[1])
        return jax.tree.map(lambda x: np.stack([x] * images.shape[0]), ball())


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("set"), n=1, size=SIZE, n_val=0)


def run(samples, folder, monkeypatch, verdict=None, **changes):
    weights = folder / "weights"
    for name in ("gslrm", "checkpoints"):
        (weights / name).mkdir(parents=True)
    (weights / "gslrm/config.json").write_text('{"patch_size": 8}')
    if verdict:
        (weights / "summary.json").write_text(json.dumps({"verdict": verdict}))
    config = infer_config.get_config("tiny")
    config.samples, config.gslrm, config.filter = str(samples), str(weights), "none"
    config.turntable.frames = 0
    config.update_from_flattened_dict(changes)
    views = []
    monkeypatch.setattr(stage, "load_pretrained", lambda *a, **k: (Oracle(views), {}))
    with Workdir(folder / "w", config) as workdir:
        stage.run(config, workdir)
    summary = json.loads((folder / "w/summary.json").read_text())
    return summary, set(views), stage.next_after(config, summary)


def configs_of(commands):
    return [m[1] for c in commands if (m := re.search(r"configs/(\w+)", c))]


def test_hidden_cameras_judge_what_refining_did(samples, tmp_path, monkeypatch):
    summary, views, _ = run(
        samples, tmp_path, monkeypatch, heldout_cameras=(2, 4), **{"refine.steps": 60}
    )
    assert views == {4}  # the network did not see the hidden ones
    record = json.loads((tmp_path / "w/item.json").read_text())
    before, after = record["heldout_unrefined"], record["heldout"]
    assert after["iou"] > before["iou"] + 0.03
    assert after["interior_psnr"] > before["interior_psnr"] + 3
    assert after["hull_iou"] == before["hull_iou"] > 0.7
    page = (tmp_path / "w/report.html").read_text()
    assert "Refined in 60 steps" in page and "In hidden views the silhouette IoU went from" in page
    assert summary["metrics"]["heldout/iou"] == pytest.approx(after["iou"])
    assert "camera" in summary["verdict"]["text"] and f"{SIZE} px" in summary["verdict"]["text"]


def test_without_hidden_cameras_the_networks_training_speaks(samples, tmp_path, monkeypatch):
    bad = {"text": "The network is worse than the hull.", "outcome": "worse"}
    summary, views, after = run(samples, tmp_path, monkeypatch, verdict=bad)
    assert views == {6} and summary["verdict"]["outcome"] == "worse"
    assert bad["text"] in summary["verdict"]["text"] and configs_of(after) == ["fit"]
    assert ">finished<" not in (tmp_path / "w/report.html").read_text()


def test_what_nobody_judged_is_to_be_judged_next(samples, tmp_path, monkeypatch):
    summary, _, after = run(samples, tmp_path, monkeypatch)
    assert summary["verdict"]["outcome"] == "unknown" and configs_of(after) == ["eval"]
    with pytest.raises(ConfigError, match="no such camera"):
        run(samples, tmp_path / "x", monkeypatch, heldout_cameras=(9,))


def test_generated_views_are_refined_on_only_when_asked_for(tmp_path):
    config = infer_config.get_config("tiny")
    config.image, config.mvdiff, config.refine.steps = str(tmp_path), "nowhere", 10
    with pytest.raises(ConfigError, match=r"generated[\s\S]*refine.generated=True"):
        stage.source(config)
    config.refine.generated = True
    with pytest.raises(Exception, match="photo|mvdiff|nowhere"):  # it goes on to the photos
        stage.source(config)
