"""Figures called held-out are of cameras that were never trained on, in every row of a batch."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import gslrm as configs
from mouselift_jax.data.batches.loader import Batch
from mouselift_jax.errors import ConfigError
from mouselift_jax.stages import gslrm, lift_judge
from mouselift_jax.stages.lift_judge import FIGURES, LiftJudge, inputs_first
from mouselift_jax.training import sharding
from tests.sample_sets import write_samples


def batch(camera_ids):
    """A batch whose every array holds its camera's number."""
    ids = np.asarray(camera_ids, np.int32)

    def full(*shape):
        return np.broadcast_to(ids.reshape(*ids.shape, *[1] * len(shape)), (*ids.shape, *shape))

    return Batch(
        full(4, 4, 3), full(4, 4, 1), full(3, 3), full(4, 4), np.arange(len(ids)), ids, None
    )


def test_every_row_is_ordered_by_its_own_cameras():
    out = inputs_first(batch([[0, 1, 2, 3, 4, 5], [5, 0, 1, 2, 3, 4]]), (5,))
    assert out.camera_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    for name in ("images", "masks", "K", "c2w"):
        views = getattr(out, name)
        np.testing.assert_array_equal(views.reshape(2, 6, -1)[..., 0], out.camera_ids)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("set") / "samples")


def config_of(samples, **changes):
    config = configs.get_config("tiny")
    config.samples, config.data.size, config.model.patch_size = str(samples), 32, 8
    config.data.n_views, config.data.n_inputs, config.model.animal_share = 5, 3, 1.0
    config.update_from_flattened_dict(changes)
    return config


def judge_of(config, samples, monkeypatch):
    """A judge whose network answers each view's camera number for every figure."""
    mesh = sharding.make_mesh(config.train.mesh, jax.devices()[:1])
    trainer = types.SimpleNamespace(
        mesh=mesh, rows=(0, 1), put=lambda batch: jax.tree.map(jnp.asarray, batch)
    )
    judge = LiftJudge(config, samples, trainer, None)

    def answer(params, batch):
        cameras = batch.camera_ids.astype(jnp.float32)
        rendered = types.SimpleNamespace(rgb=batch.images, alpha=batch.masks)
        return types.SimpleNamespace(metrics=dict.fromkeys(FIGURES, cameras), rendered=rendered)

    judge._eval = answer
    monkeypatch.setattr("mouselift_jax.stages.lift_judge.eval_params", lambda state: None)
    monkeypatch.setattr(jax, "device_get", lambda tree: tree)
    return judge


def test_held_out_figures_are_of_held_out_cameras_alone(samples, monkeypatch):
    config = config_of(samples, **{"data.heldout_cameras": (5,)})
    figures = judge_of(config, samples, monkeypatch)(None, 1)
    assert figures["heldout/psnr"] == 5.0  # cameras 3 and 4 were trained on, though not given
    assert figures["val/psnr"] == np.mean([0, 1, 2])


def test_the_verdict_stands_beside_the_hull_of_the_stored_pictures(samples, monkeypatch):
    """The network sees 16 px of the 32 that are stored."""
    sizes = set()
    real = lift_judge.visual_hull
    monkeypatch.setattr(
        lift_judge, "visual_hull",
        lambda i, m, c, h: sizes.add((i.shape[:2], h.width)) or real(i, m, c, h),
    )  # fmt: skip
    config = config_of(samples, **{"data.size": 16, "data.heldout_cameras": (5,)})
    judge = judge_of(config, samples, monkeypatch)
    assert judge.verdict() is None  # nothing was evaluated
    judge(None, 1)
    judge.rows = {i: row | {"iou": 0.1} for i, row in judge.rows.items()}
    said = judge.verdict()
    assert said.outcome == "worse" and "cameras 5, 16 px; 2 frames" in said.text
    assert sizes == {((3, 32), 16)}  # three views are given, one is drawn
    assert all(row["hull_iou"] > 0.5 for row in judge.rows.values())
    after = gslrm.next_after(config, {"verdict": said.record()})
    assert "configs/fit.py" in after[0] and "infer" not in "".join(after)


def test_pictures_alone_lift_only_what_is_shown(tmp_path, monkeypatch):
    many = write_samples(tmp_path / "samples", n=7, n_val=5)
    judge = judge_of(config_of(many), many, monkeypatch)
    read = []
    judged = judge._eval
    judge._eval = lambda *a: read.append(1) or judged(*a)
    assert sorted(judge.draw(None, 1)) == ["heldout/0", "heldout/1", "heldout/2"]
    assert len(read) == 3


@pytest.mark.parametrize("heldout, n_inputs", [((7,), 3), ((2, 3, 4, 5), 3)])
def test_cameras_that_cannot_be_held_out_are_told(samples, heldout, n_inputs):
    config = config_of(samples, **{"data.heldout_cameras": heldout, "data.n_inputs": n_inputs})
    with pytest.raises(ConfigError, match="cannot be held out"):
        gslrm.check(config, samples)
