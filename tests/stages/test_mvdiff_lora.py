"""Low-rank training of the multi-view UNet: what moves, what falls, what is stored and exported."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import mvdiff as configs
from mouselift_jax.runs.rows import read_rows
from mouselift_jax.stages import mvdiff
from mouselift_jax.stages.multiview import frozen
from mouselift_jax.training import optim
from mouselift_jax.training.checkpoint import checksum, state_items
from mouselift_jax.training.trainer import Trainer
from mouselift_jax.weights.export_torch import export_torch
from mouselift_jax.weights.pretrained import load_pretrained
from mouselift_jax.weights.rules import flatten
from tests.pipelines.tiny_views import tiny_models

STEPS = 24


def batches(step):
    """One batch for ever: what is left to learn is the network's answer to it."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(4, 3, 8, 8, 4)).astype(np.float32)
    one = {
        "mean": mean,
        "logvar": np.full_like(mean, -8.0),
        "image_embeds": rng.normal(size=(4, 8)).astype(np.float32),
        "order": np.tile(np.arange(3, dtype=np.int32), (4, 1)),
    }
    while True:
        yield one


def make_trainer(models):
    """Low-rank training of a network, as the stage sets it up."""
    config = configs.get_config("tiny")
    network = dataclasses.asdict(models.networks.unet.config)
    network.pop("sample_size")
    flat = {f"model.{k}": v for k, v in network.items()} | {
        "lora.rank": 2,
        "lora.alpha": 4.0,
        "train.log_every": 1,
        "train.save_every": 10,
    }
    config.update_from_flattened_dict(flat)
    prompts = np.random.default_rng(1).normal(size=(3, 5, 12)).astype(np.float32)
    task = mvdiff.make_task(config, models.networks, {**models.params, "prompts": prompts})
    return Trainer(task, config.train, low_rank=frozen.low_rank(config))


class Lab:
    """Runs of one network with different settings, through one compiled step."""

    def __init__(self, root):
        self.root, self.models = root, tiny_models()
        self.trainer = make_trainer(self.models)

    def run(self, name, steps=STEPS, lr=1e-2):
        train = self.trainer.config
        rate = dataclasses.replace(train.optim, lr=lr)
        self.trainer.config = dataclasses.replace(train, steps=steps, optim=rate)
        self.trainer.schedule = optim.schedule(rate, steps)
        folder = self.root / name
        start = jax.device_get(self.models.params["unet"])
        state, _ = self.trainer.fit(folder, batches, initial=lambda: start, style="none")
        (folder / "unet").mkdir(exist_ok=True)
        record = dataclasses.asdict(self.models.networks.unet.config)
        (folder / "unet/config.json").write_text(json.dumps(record))
        (folder / "config.json").write_text(json.dumps({"stage": "mvdiff", "init_from": None}))
        losses = [r["train/loss"] for r in read_rows(folder / "metrics.jsonl")]
        return folder, state, np.array(losses)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def whole(lab):
    return lab.run("whole")


def test_the_loss_falls_below_that_of_the_network_as_it_was(lab, whole):
    """Draws are functions of the step, so a run that learns nothing has them too."""
    *_, still = lab.run("still", lr=0.0)
    *_, losses = whole
    assert losses[0] == still[0]
    assert losses[-8:].mean() < 0.97 * still[-8:].mean()


def test_a_run_that_stopped_goes_on_to_the_same_state(lab, whole):
    lab.run("cut", steps=10)
    _, state, losses = lab.run("cut")
    np.testing.assert_array_equal(losses, whole[2])
    assert int(checksum(state_items(state))) == int(checksum(state_items(whole[1])))


def test_only_attention_moves_and_what_is_stored_and_exported_is_the_sum(lab, whole, tmp_path):
    folder, state, _ = whole
    start = flatten(jax.device_get(lab.models.params["unet"]))
    for path, leaf in flatten(jax.device_get(state.frozen)).items():
        if not path.endswith("lora_scale"):
            np.testing.assert_array_equal(leaf, start[path], err_msg=path)
    assert {p.rsplit("/", 1)[1] for p in flatten(state.params)} == {"lora_a", "lora_b"}

    _, stored = load_pretrained(folder, "unet")
    flat = {k: np.asarray(v) for k, v in flatten(stored).items()}
    assert flat.keys() == start.keys()
    moved = {k for k, v in flat.items() if (v != np.asarray(start[k])).any()}
    assert moved == {k for k in flat if "/attn" in k and k.endswith("kernel")}

    export_torch(folder, tmp_path / "out")
    (file,) = (tmp_path / "out/unet").glob("*.safetensors")
    exported = load_file(file)
    where = "down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel"
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    np.testing.assert_array_equal(exported[name].T, flat[where])
    assert not any("lora" in key for key in exported)


def test_what_a_run_adds_to_the_network_is_trained_whole(monkeypatch):
    """A pose input that starts at zero would stay there if only the additions to others moved."""
    trained = flatten(make_trainer(tiny_models(pose_features=4)).abstract.params)
    own = {path for path in trained if not path.endswith(("lora_a", "lora_b"))}
    assert own and all(path.startswith("pose_encoder/") for path in own)

    config = configs.get_config("lowmem")
    config.init_from = "stock"
    for channels, expected in ((4, ("^conv_in/",)), (8, ())):
        stored = {"in_channels": channels}
        monkeypatch.setattr(frozen, "read_config", lambda source, name, stored=stored: stored)
        assert frozen.low_rank(config).whole == expected
    assert config.lora.whole == ()
