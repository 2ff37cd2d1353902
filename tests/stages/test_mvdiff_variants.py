"""Whole runs of every kind of multi-view training, on a pipeline as small as it gets."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from configs import mvdiff as configs
from configs import synth as synth_configs
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.models.vgg import LPIPS
from mouselift_jax.pipelines.views import load_models, sample_views
from mouselift_jax.runs.folder import Options, Workdir
from mouselift_jax.runs.rows import read_rows
from mouselift_jax.stages import mvdiff, synth
from mouselift_jax.weights.pretrained import load_pretrained, save_component
from mouselift_jax.weights.rules import flatten
from tests.models.oracle import shapes
from tests.pipelines.tiny_views import random_like, save_pipeline, tiny_models
from tests.sample_sets import write_samples

QUIET = Options(progress="none")
PLAIN = {  # what the variants of the config have and `tiny` does not
    "cache.enabled": False,
    "data.background": "three_choices",
    "data.brightness": 0.1,
    "data.contrast": 0.1,
    "train.accum_steps": 2,
    "train.dtype": "bfloat16",
    "train.remat": "block",
    "frozen_dtype": "bfloat16",
}
KINDS = {
    "base": PLAIN,
    "facelift": {**PLAIN, "data.brightness": 0.0, "data.contrast": 0.0},
    "six_x": {"reference": "random"},
    "lowmem": {**PLAIN, "cache.enabled": True, "cache.jitter_draws": 2, "lora.rank": 2},
    "posed": {**PLAIN, "model.pose_features": 8},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_samples(folder / "samples", n=4, n_val=1, size=16, views=3)
    models = tiny_models()
    pipeline = save_pipeline(models, folder / "pipeline")
    prompts = np.random.default_rng(0).normal(size=(3, 5, 12)).astype(np.float32)
    save_component(pipeline, "prompt_embeds", {"shape": [3, 5, 12]}, {"prompt_embeds": prompts})
    struct = np.zeros((1, 16, 16, 3), np.float32)
    save_component(pipeline, "lpips", {}, random_like(shapes(LPIPS(), struct, struct)))
    return folder, models, prompts


def run(place, name, **changes):
    folder, models, _ = place
    config = configs.get_config("tiny")
    network = dataclasses.asdict(models.networks.unet.config)
    network.pop("sample_size")
    flat = {f"model.{k}": v for k, v in network.items()} | {
        "samples": str(folder / "samples"),
        "init_from": str(folder / "pipeline"),
        "perceptual_from": str(folder / "pipeline"),
        "data.size": 16,
        "train.steps": 4,
        "train.batch_size": 4,
        "train.log_every": 1,
        "train.eval_every": 2,
        "train.save_every": 2,
        "eval.samples": 1,
        "eval.steps": 2,
    }
    config.update_from_flattened_dict(flat | changes)
    with Workdir(folder / name, config, QUIET) as workdir:
        mvdiff.run(config, workdir)
    return folder / name


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", list(KINDS))
def test_whole_run(place, name):
    folder, models, prompts = place
    path = run(place, name, **KINDS[name])
    rows = read_rows(path / "metrics.jsonl")
    losses = [r["train/loss"] for r in rows if "train/loss" in r]
    assert len(losses) == 4 and np.isfinite(losses).all()
    judged = [r for r in rows if "val/psnr" in r]
    assert [r["step"] for r in judged] == [2, 4]
    for figure in ("psnr", "ssim", "lpips"):
        assert {f"val/{figure}_g1", f"val/{figure}_g3"} <= judged[-1].keys()
    summary = json.loads((path / "summary.json").read_text())
    assert summary["finished"] and (path / "report.html").exists()

    # what is stored is a plain network, and it moved from where it started
    _, trained = load_pretrained(path, "unet")
    flat, start = flatten(trained), flatten(models.params["unet"])
    added = {k for k in flat if k not in start}
    assert all(k.startswith("pose_encoder") for k in added) and bool(added) == (name == "posed")
    moved = {k for k in start if (np.asarray(flat[k]) != np.asarray(start[k])).any()}
    if name == "lowmem":
        assert moved and all("/attn" in k and k.endswith("kernel") for k in moved)
    else:
        assert len(moved) > 0.9 * len(start)

    loaded = load_models(path)
    picture = np.full((16, 16, 3), 255, np.uint8)
    assert sample_views(loaded, picture, prompts, steps=1).shape == (3, 16, 16, 3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_synth_of_a_posed_network_has_the_cameras_of_its_source(place):
    folder, *_ = place
    mvdiff_run = folder / "posed"
    if not mvdiff_run.exists():
        run(place, "posed", **KINDS["posed"])
    config = synth_configs.get_config("tiny")
    config.samples, config.mvdiff = str(folder / "samples"), str(mvdiff_run)
    config.generate.steps, config.limit = 2, 1
    with Workdir(folder / "synth", config, QUIET) as workdir:
        synth.run(config, workdir)
    made, source = (SampleSet.open(p) for p in (folder / "synth/samples", folder / "samples"))
    name = source.ids("train")[0]
    found, wanted = made.load(made.ids("all")[0]), source.load(name)
    np.testing.assert_allclose(found.cameras.c2w, wanted.cameras.c2w, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_goes_on_from_a_run(place):
    """`init_from` may be a run; a pose input is added without effect."""
    folder, *_ = place
    first = folder / "base"
    if not first.exists():
        run(place, "base", **KINDS["base"])
    second = run(place, "again", **KINDS["posed"], **{"train.steps": 1, "init_from": str(first)})
    _, a = load_pretrained(first, "unet")
    _, b = load_pretrained(second, "unet")
    apart = [np.abs(np.asarray(x) - np.asarray(flatten(b)[k])).max() for k, x in flatten(a).items()]
    assert 0 < max(apart) < 0.05
