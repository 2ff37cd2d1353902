"""The multi-view training stage: references, cache, starting weights, alarms; and a whole run."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from configs import mvdiff as configs
from mouselift_jax.data.batches.loader import Batch
from mouselift_jax.data.batches.pictures import composite
from mouselift_jax.errors import ConfigError
from mouselift_jax.models.mvunet import MVUNetConfig
from mouselift_jax.pipelines.pictures import on_background
from mouselift_jax.runs.rows import read_rows
from mouselift_jax.stages import mvdiff
from mouselift_jax.stages.multiview import batches, frozen
from mouselift_jax.stages.multiview.encodings import Cache
from mouselift_jax.stages.multiview.order import azimuths_of, order_from
from mouselift_jax.stages.multiview.rig import measure_rig, spread_advice
from mouselift_jax.training.state import ema_rate
from tests.sample_sets import write_samples

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("set") / "samples")


def tiny(**changes):
    c = configs.get_config("tiny")
    c.data.size = 32
    c.update_from_flattened_dict(changes)
    return c


# --- references ----------------------------------------------------------------------------------


def test_views_follow_the_reference_by_azimuth_not_by_index():
    azimuths = np.array([31.0, 216.0, 95.0, 337.0, 158.0, 282.0])  # a rig numbered at random
    order = order_from(4, azimuths, 6)
    turns = (azimuths[4] - azimuths[order]) % 360
    assert order[0] == 4
    assert (np.diff(turns) > 0).all()
    assert order_from(2, None, 4).tolist() == [2, 3, 0, 1]


def test_random_references_keep_prompts_and_pictures_together(samples):
    config = tiny(reference="random")
    loader_batch = next(_batches(config, samples))
    config_fixed = tiny()
    fixed = next(_batches(config_fixed, samples))
    order = loader_batch["order"]
    assert not (order == np.arange(6)).all()
    # The views are turned on the device, after they were sent as the bytes that are stored.
    np.testing.assert_array_equal(loader_batch["images"], fixed["images"])
    assert loader_batch["images"].dtype == np.uint8
    turned = on_background(*(loader_batch[k] for k in ("images", "background", "order")))
    plain = on_background(fixed["images"], fixed["background"])
    for row in range(len(order)):
        np.testing.assert_array_equal(turned[row], plain[row][order[row]])
    host, _ = composite(fixed["images"][0], fixed["background"][0])
    np.testing.assert_allclose(plain[0], host, atol=1e-6)
    again = next(_batches(config, samples))
    np.testing.assert_array_equal(order, again["order"])


def _batches(config, samples, step=0):
    return batches.picture_batches(config, samples, (0, 1), step)


def test_references_do_not_depend_on_the_number_of_hosts():
    config = tiny(reference="random")
    whole = batches.orders(config, None, 4, 7, (0, 1))
    halves = [batches.orders(config, None, 2, 7, (i, 2)) for i in range(2)]
    np.testing.assert_array_equal(whole, np.concatenate(halves))


def test_poses_are_relative_to_the_reference():
    config = tiny(**{"model.pose_features": 4})
    from mouselift_jax.geometry.rig import rig_from_angles

    rig = rig_from_angles(270 - 60.0 * np.arange(6), 15.0, 2.7, 40.0, 32)
    K, c2w = (np.asarray(x, np.float32)[None] for x in (rig.K, rig.c2w))
    order = order_from(3, azimuths_of(c2w[0]), 6)[None]
    poses = batches.poses_of(config, K, c2w, order)
    turns = np.rad2deg(poses[0, :, 0]) % 360
    np.testing.assert_allclose(turns, [0, 300, 240, 180, 120, 60], atol=1e-3)
    batch = Batch(np.zeros((1, 6, 4, 4, 3)), None, K, c2w, None, None, None)
    assert batches.turned(config, batch, 0)["poses"].shape == (1, 6, 4)


# --- the cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data.brightness": 0.1}, "unlimited augmentation"),
        ({"data.background": "random"}, "backgrounds of any colour"),
    ],
)
def test_endless_augmentation_cannot_be_cached(samples, changes, words):
    with pytest.raises(ConfigError, match=words):
        mvdiff.check(tiny(**changes), samples)


def fake_encode(images):
    """Moments that name their picture."""
    mean = images.mean((1, 2))[:, None, None, :].repeat(2, 1).repeat(2, 2)
    return mean, -mean, images.reshape(len(images), -1)[:1, :5]


def test_cache_is_deterministic_and_resumes(samples, tmp_path):
    config = tiny(**{"data.background": "three_choices", "data.brightness": 0.2})
    config.cache.jitter_draws = 2
    cache = Cache(config, samples, tmp_path, {"vae": 1})
    assert len(cache.variants) == 6

    calls = []

    def failing(images):
        calls.append(1)
        if len(calls) > 10:
            raise KeyboardInterrupt
        return fake_encode(images)

    with pytest.raises(KeyboardInterrupt):
        cache.build(failing, "none")
    cache.build(fake_encode, "none")
    count = []
    cache.build(lambda x: count.append(1), "none")
    assert not count
    a = [b for b, _ in zip(cache.batches((0, 1), 0), range(4), strict=False)]
    later = next(cache.batches((0, 1), 3))
    for key, value in a[3].items():
        np.testing.assert_array_equal(value, later[key])
    halves = [next(cache.batches((i, 2), 3)) for i in range(2)]
    for key, value in later.items():
        np.testing.assert_array_equal(value, np.concatenate([h[key] for h in halves]))
    # what is stored is what the pictures of that row give
    found = fake_encode(cache.pictures(7))
    np.testing.assert_allclose(np.load(cache.folder / "mean.npy")[7], found[0])
    # another background or draw is another picture
    assert np.abs(cache.pictures(0) - cache.pictures(1)).max() > 0
    assert np.abs(cache.pictures(0) - cache.pictures(2)).max() > 0.5


def test_cache_is_another_for_other_pictures(samples, tmp_path):
    copy = tmp_path / "samples"
    shutil.copytree(samples, copy)
    before = Cache(tiny(), copy, tmp_path, {}).folder
    assert Cache(tiny(), copy, tmp_path, {}).folder == before
    picture = sorted(copy.rglob("*.png"))[0]
    data = picture.read_bytes()
    picture.write_bytes(data + b" ")
    assert Cache(tiny(), copy, tmp_path, {}).folder != before


def test_cache_is_another_for_other_networks(samples, tmp_path):
    one, two = (Cache(tiny(), samples, tmp_path, {"vae": i}).folder for i in range(2))
    assert one != two


# --- starting weights ----------------------------------------------------------------------------


def pretend(monkeypatch, in_channels, pose_features=0):
    """A stored UNet with a recognisable first layer."""
    config = dataclasses.asdict(MVUNetConfig(in_channels=in_channels, pose_features=pose_features))
    params = {"conv_in": {"kernel": np.ones((3, 3, in_channels, 2), np.float32)}}
    monkeypatch.setattr(frozen, "read_config", lambda s, n: config)
    import mouselift_jax.weights.pretrained as pretrained

    def load_initial(source, name, expected, checkpoint="best"):
        assert expected["in_channels"] == in_channels
        assert expected["pose_features"] == pose_features
        return params, "loaded"

    monkeypatch.setattr(pretrained, "load_initial", load_initial)


def test_conv_in_is_extended_with_zeros_only_from_4_channels(monkeypatch):
    pretend(monkeypatch, 4)
    params, note = frozen.initial_unet("x", MVUNetConfig(), None)
    kernel = params["conv_in"]["kernel"]
    assert kernel.shape == (3, 3, 8, 2)
    assert (kernel[:, :, :4] == 1).all()
    assert (kernel[:, :, 4:] == 0).all()
    assert "extended" in note


def test_a_tuned_conv_in_is_never_erased(monkeypatch):
    pretend(monkeypatch, 8)
    params, note = frozen.initial_unet("x", MVUNetConfig(), None)
    assert (params["conv_in"]["kernel"] == 1).all()
    assert note == "loaded"


def test_a_pose_input_is_added_to_weights_without_one(monkeypatch):
    pretend(monkeypatch, 8)
    fresh = {"pose_encoder": {"linear_3": {"kernel": np.zeros((2, 2))}}}
    config = MVUNetConfig(pose_features=16)
    params, note = frozen.initial_unet("x", config, lambda: fresh)
    assert "pose_encoder" in params
    assert "pose" in note


# --- averages, alarms, messages ------------------------------------------------------------------


@pytest.mark.parametrize("name, size, good", [("base", 520, 576), ("base", 65, 128)])
def test_a_size_that_the_unet_cannot_take_is_told_with_the_next_good_one(name, size, good):
    config = configs.get_config(name)
    config.data.size = size
    with pytest.raises(ConfigError, match=f"config.data.size={good}"):
        mvdiff.unet_config(config, 8)
    config.data.size = good
    assert mvdiff.unet_config(config, 8).sample_size == good // 8


def test_ema_rate_against_the_reference(shared):
    from tests.models.oracle import tensors

    a = tensors(shared / "goldens" / "golden_schedulers.safetensors", "ema.")
    found = ema_rate(jnp.asarray(a["opt_step"]), 0.9999)
    np.testing.assert_allclose(found, a["decay"], rtol=1e-6)
    shadow = jnp.zeros(3)
    for k, (value, expected) in enumerate(zip(a["params"], a["shadow"], strict=True), start=1):
        rate = ema_rate(k, 0.9999)
        shadow = shadow * rate + value * (1 - rate)
        np.testing.assert_allclose(shadow, expected, atol=1e-6)


def test_there_must_be_weights_or_toys():
    with pytest.raises(ConfigError, match="no weights to start from"):
        frozen.uses_toys(configs.get_config("base"))
    assert frozen.uses_toys(tiny())


def test_toys_are_known_as_such_also_by_what_was_trained_from_them(tmp_path):
    """Reports of every later stage say so."""
    own = {"init_from": None, "toy": {"vae_steps": 300}}
    later = {"init_from": str(tmp_path / "own"), "toy": {"vae_steps": 0}}
    for name, file, record in (
        ("own", "config.json", own),
        ("later", "config.json", later),
        ("released", "conversion.json", {}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps(record))
        if name != "later":
            (tmp_path / name / "image_encoder/params").mkdir(parents=True)
    found = {n: frozen.are_toys(tmp_path / n) for n in ("own", "later", "released")}
    assert found == {"own": True, "later": True, "released": False}


def test_prompts_of_the_wrong_width_stop_the_run(samples):
    from mouselift_jax.data.samples.sample_set import SampleSet

    made = frozen.Towers({}, {}, {}, np.ones((6, 77, 768), np.float32))
    with pytest.raises(ConfigError, match="768"):
        mvdiff.early_alarms(configs.get_config("base"), SampleSet.open(samples), made)


def test_prompts_out_of_register_with_the_cameras_are_told(samples):
    from mouselift_jax.data.samples.sample_set import SampleSet

    prompts = np.random.default_rng(0).normal(size=(6, 4, 32))
    turns = (0, 60, 120, 180, 240, 300)  # the samples' own
    for named, codes in ((turns, []), (None, []), (turns[:1] + turns[:0:-1], ["prompts_register"])):
        made = frozen.Towers({}, {}, {}, prompts, turns=named)
        alarms = mvdiff.early_alarms(tiny(), SampleSet.open(samples), made)
        assert [a.code for a in alarms] == codes


def test_a_cached_run_hands_no_frozen_network_to_its_step():
    for cached in (True, False):
        config = tiny(**{"cache.enabled": cached})
        made = frozen.abstract_towers(config)
        networks = made.networks(mvdiff.make_unet(config, made.modules["vae"].config.downscale))
        task = mvdiff.make_task(config, networks, {**made.params, "prompts": made.prompts})
        assert ({"vae", "image_encoder"} <= task.constants.keys()) != cached
        assert ("images" in task.batch) != cached


def test_rig_of_one_camera_set_has_no_spread(samples):
    from mouselift_jax.data.samples.sample_set import SampleSet

    for reference in ("fixed", "random"):
        rig = measure_rig(tiny(reference=reference), SampleSet.open(samples))
        assert rig.spread_px.max() < 1e-2
        assert rig.cameras.width == 32


def test_a_wide_spread_names_the_commands_against_it(tmp_path, monkeypatch):
    from mouselift_jax.data.samples.sample_set import SampleSet
    from mouselift_jax.data.samples.writer import SampleWriter
    from mouselift_jax.geometry.camera import Camera
    from mouselift_jax.geometry.rig import rig_from_angles

    monkeypatch.setattr(sys, "argv", ["launch.py", "--config=configs/mvdiff.py:tiny"])
    rig = rig_from_angles(270 - 60.0 * np.arange(6), 15.0, 2.7, 35.0, 32)
    said = {}
    for aim in ("box", "centre"):
        manifest = {
            "source": {"a": {"path": "/rec/a b"}},
            "parameters": {"aim": aim, "fov": "fill", "subject_mm": 150.0},
        }
        with SampleWriter(tmp_path / aim / "samples", manifest) as writer:
            for i in range(3):
                K = np.array(rig.K)
                K[:, 0, 2] += 12.0 * (i - 1)
                blank = [np.zeros((32, 32, 4), np.uint8)] * 6
                writer.write(i, blank, Camera(K, rig.c2w, 32, 32), range(6), frame=i)
            writer.finish(lambda rows: ["train"] * 3)
        (tmp_path / aim / "config.json").write_text('{"variant": "tiny"}')
        found = SampleSet.open(tmp_path / aim / "samples")
        for posed in (0, 8):
            config = tiny(**{"model.pose_features": posed})
            rig_of = measure_rig(config, found)
            said[aim, posed] = spread_advice(config, found, rig_of, tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["launch.py", "--config=configs/demo.py"])
    config, found = tiny(), SampleSet.open(tmp_path / "centre/samples")
    rig_of = measure_rig(config, found)
    demo = spread_advice(config, found, rig_of, tmp_path / "demo/mvdiff")
    assert f"--config.mvdiff.model.pose_features=256 --workdir={tmp_path}/demo_posed" in demo
    assert said["box", 8] is said["centre", 8] is None
    assert "9.8 px" in said["box", 0] and f"--workdir={tmp_path}/run_posed" in said["box", 0]
    assert "prepare" not in said["centre", 0]
    again = said["box", 0].split("the spread is then 0.0 px")[1]
    assert "--config=configs/prepare.py:tiny '--config.recording=/rec/a b'" in again
    assert "--config.prepare.aim=centre --config.prepare.subject_mm=220" in again
    assert f"--workdir={tmp_path}/box_centre" in again


@pytest.mark.parametrize("name", list(configs.VARIANTS))
def test_every_variant_is_locked_and_complete(name):
    c = configs.get_config(name)
    assert c.is_locked
    MVUNetConfig(**c.model.to_dict())


# --- whole runs ----------------------------------------------------------------------------------


def launch(config, workdir, *flags):
    command = [sys.executable, "launch.py", f"--config=configs/{config}", "--progress=none"]
    return [*command, f"--workdir={workdir}", *[f"--config.{f}" for f in flags]]


FLAGS = (
    "data.size=16",
    "toy.vae_steps=4",
    "toy.vae.block_channels=(4,8)",
    "train.steps=12",
    "train.save_every=2",
    "train.log_every=1",
    "train.batch_size=2",
    "model.block_channels=(16,16)",
    "model.norm_groups=4",
    "eval.samples=1",
    "eval.steps=2",
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_train_kill_resume_synth_infer(samples, tmp_path):
    flags = (f"samples={samples}", *FLAGS)
    whole = subprocess.run(launch("mvdiff.py:tiny", tmp_path / "a", *flags), cwd=ROOT)
    assert whole.returncode == 0
    victim = subprocess.Popen(launch("mvdiff.py:tiny", tmp_path / "b", *flags), cwd=ROOT)
    deadline = time.monotonic() + 400
    while not (tmp_path / "b/checkpoints/4").exists() and time.monotonic() < deadline:
        assert victim.poll() is None, "finished before it could be killed"
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    resumed = subprocess.run(launch("mvdiff.py:tiny", tmp_path / "b", *flags), cwd=ROOT)
    assert resumed.returncode == 0
    a, b = (
        {
            r["step"]: r["train/loss"]
            for r in read_rows(tmp_path / x / "metrics.jsonl")
            if "train/loss" in r
        }
        for x in "ab"
    )
    assert a == b
    assert len(a) == 12
    record = json.loads((tmp_path / "b/summary.json").read_text())
    assert record["finished"]
    assert "val/psnr" in record["metrics"]
    assert (tmp_path / "b/cameras.json").exists()

    made = subprocess.run(
        launch(
            "synth.py:tiny",
            tmp_path / "s",
            f"samples={samples}",
            f"mvdiff={tmp_path / 'b'}",
            "generate.steps=2",
            "limit=6",
        ),
        cwd=ROOT,
    )
    assert made.returncode == 0
    from mouselift_jax.data.samples.sample_set import SampleSet

    made_set = SampleSet.open(tmp_path / "s/samples")
    assert len(made_set.ids("train")) == 4
    assert len(made_set.ids("val")) == 2
    sample = made_set.load(made_set.ids("train")[0])
    source = SampleSet.open(samples).load("sample_000000", [0])
    assert sample.images_rgba.shape == (6, 16, 16, 4)
    assert sample.info["generated"]["source"] == "sample_000000"
    np.testing.assert_allclose(
        np.asarray(sample.cameras.c2w)[0], np.asarray(source.cameras.c2w)[0], atol=1e-6
    )
