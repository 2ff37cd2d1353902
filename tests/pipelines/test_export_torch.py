"""Weights back to torch's layouts: bit for bit, opened by torch, diffusers and our own tool."""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.errors import CheckpointError, MouseLiftError
from mouselift_jax.weights.convert import convert
from mouselift_jax.weights.export_torch import export_torch
from mouselift_jax.weights.kinds import Request, plan_conversion
from mouselift_jax.weights.networks import network, param_shapes
from mouselift_jax.weights.pretrained import load_pretrained
from mouselift_jax.weights.rules import apply_rules, flatten
from mouselift_jax.weights.torch_writer import write_torch_file
from tests import torch_sources as fake


def _run(folder, component, config, state, step, **items):
    """A training run's folder, as far as its weights go."""
    from mouselift_jax.training.checkpoint import Checkpoints

    params = apply_rules(network(component).rules, state, param_shapes(component, config))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"stage": component, "init_from": None}))
    (folder / component).mkdir()
    (folder / component / "config.json").write_text(json.dumps(config))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(step, {"params": params, **items})
    return params


def _assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[key]), value, err_msg=key)


@pytest.mark.torch
def test_a_gslrm_run_goes_to_torch_and_back(tmp_path):
    torch = pytest.importorskip("torch")
    from tools.torch_reader import read_torch

    state = fake.gslrm_state()
    _run(tmp_path / "run", "gslrm", fake.GSLRM, state, 12)
    lines = export_torch(tmp_path / "run", tmp_path / "out")
    file = tmp_path / "out" / "ckpt_0000000000000012.pt"
    assert str(file) in lines[0] and "strict" in lines[1] and "as trained" in lines[-1]
    content = torch.load(file, weights_only=True, mmap=True)
    assert content["fwdbwd_pass_step"] == 12
    _assert_same({k: v.numpy() for k, v in content["model"].items()}, state)
    assert content["model"]["patch_embedder.1.weight"].is_contiguous()
    convert(plan_conversion("gslrm", Request(file, read_torch)), tmp_path / "again", verify=True)
    _, params = load_pretrained(tmp_path / "again", "gslrm")
    _, trained = load_pretrained(tmp_path / "run", "gslrm")
    for path, leaf in flatten(trained).items():
        np.testing.assert_array_equal(leaf, flatten(params)[path])


def test_a_run_prefers_its_moving_average(tmp_path):
    state = fake.gslrm_state()
    ema = {key: value + 1 for key, value in state.items()}
    shapes = param_shapes("gslrm", fake.GSLRM)
    average = apply_rules(network("gslrm").rules, ema, shapes)
    _run(tmp_path / "run", "gslrm", fake.GSLRM, state, 3, ema=average)
    assert "moving average" in export_torch(tmp_path / "run", tmp_path / "out")[-1]
    _, params = load_pretrained(tmp_path / "run", "gslrm")
    np.testing.assert_array_equal(
        params["gaussian_position_embeddings"], ema["gaussian_position_embeddings"]
    )


def test_a_lora_run_is_folded(tmp_path):
    import jax

    from mouselift_jax.training import lora
    from mouselift_jax.training.checkpoint import Checkpoints

    state = fake.gslrm_state()
    params = _run(tmp_path / "run", "gslrm", fake.GSLRM, state, 1)
    tree = lora.add(params, jax.random.key(0), rank=2, alpha=2.0)
    tree = jax.tree.map(lambda leaf: leaf + 0.01, tree)
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(2, {"params": tree})
    _, loaded = load_pretrained(tmp_path / "run", "gslrm")
    expected = flatten(lora.fold(tree))
    assert flatten(loaded).keys() == expected.keys()
    for path, leaf in flatten(loaded).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-6)


def test_a_damaged_newest_checkpoint_does_not_name_the_file(tmp_path):
    """Step and weights are those of the newest sound one."""
    from mouselift_jax.training.checkpoint import Checkpoints

    state = fake.gslrm_state()
    params = _run(tmp_path / "run", "gslrm", fake.GSLRM, state, 7)
    folder = tmp_path / "run" / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(9, {"params": {k: v for k, v in params.items()}})
    largest = max((p for p in (folder / "9").rglob("*") if p.is_file()), key=_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0x10
    largest.write_bytes(data)
    export_torch(tmp_path / "run", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["ckpt_0000000000000007.pt"]


def test_what_torch_does_not_know_is_refused_or_said(tmp_path):
    """A decoding unlike the released one would give other Gaussians from the same tensors."""
    import jax

    config = {**fake.GSLRM, "depth": "hull", "opacity_bias": 1.5}
    _run(tmp_path / "run", "gslrm", config, fake.gslrm_state(), 1)
    lines = export_torch(tmp_path / "run", tmp_path / "out")
    said = next(line for line in lines if "unlike the released network" in line)
    assert "depth = hull" in said and "opacity_bias = 1.5" in said and "clip_means" not in said

    config["pixel_skip"] = True
    shapes = param_shapes("gslrm", config)
    params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    (tmp_path / "run/gslrm/config.json").write_text(json.dumps(config))
    from mouselift_jax.training.checkpoint import Checkpoints

    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(2, {"params": params})
    with pytest.raises(CheckpointError, match=r"lacks[\s\S]*pixel_skip"):
        export_torch(tmp_path / "run", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def _size(path):
    return path.stat().st_size


@pytest.mark.torch
def test_a_unet_run_opens_in_diffusers_and_comes_back(tmp_path):
    torch = pytest.importorskip("torch")
    from diffusers import UNet2DConditionModel

    from mouselift_jax.models.mvunet import MVUNetConfig
    from mouselift_jax.weights.tables import mvunet

    config = MVUNetConfig(**mvunet.config_from_source(fake.SETTINGS["unet"]))
    config = json.loads(json.dumps(dataclasses.asdict(config)))
    state = fake.component_state("unet")
    _run(tmp_path / "run", "unet", config, state, 5)
    export_torch(tmp_path / "run", tmp_path / "out")
    model = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    assert model.config.in_channels == 8 and model.dtype == torch.float32
    _assert_same({k: v.numpy() for k, v in model.state_dict().items()}, state)
    for multiview in (False, True):
        out = tmp_path / f"out_{multiview}"
        export_torch(tmp_path / "run", out, multiview=multiview)
        settings = json.loads((out / "unet" / "config.json").read_text())
        assert ("MV" in settings["_class_name"]) == multiview
        plan = plan_conversion("unet", Request(out))
        assert {**config, **plan.parts[0].config} == config
        convert(plan, tmp_path / f"back_{multiview}")


@pytest.mark.torch
def test_a_converted_pipeline_goes_back_whole(tmp_path):
    from transformers import CLIPVisionModelWithProjection

    states = fake.write_pipeline(tmp_path / "src")
    convert(plan_conversion("mvdiffusion", Request(tmp_path / "src")), tmp_path / "converted")
    export_torch(tmp_path / "converted", tmp_path / "out")
    from safetensors.numpy import load_file

    for component, state in states.items():
        file = next((tmp_path / "out" / component).glob("*.safetensors"))
        _assert_same(load_file(file), state)
    pytest.importorskip("torch")
    tower = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "out" / "image_encoder")
    assert tower.config.projection_dim == 32


@pytest.mark.torch
def test_torch_file_types_and_alignment(tmp_path):
    torch = pytest.importorskip("torch")
    values = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b.bias": np.arange(5, dtype=np.float16),
        "scalar": np.float32(2.5) * np.ones(()),
        "bf16": np.asarray(jnp.arange(4, dtype=jnp.bfloat16)),
        "empty": np.zeros((0, 3), np.float32),
    }
    values["scalar"] = values["scalar"].astype(np.float32)
    lazy = {k: (v.shape, v.dtype, lambda v=v: v) for k, v in values.items()}
    write_torch_file(tmp_path / "x.pt", lazy, {"step": 3, "note": "hello"})
    for mapped in (False, True):
        content = torch.load(tmp_path / "x.pt", weights_only=True, mmap=mapped)
        assert content["step"] == 3 and content["note"] == "hello"
        for key, value in values.items():
            tensor = content["model"][key]
            assert tuple(tensor.shape) == value.shape
            assert tensor.data_ptr() % 64 == 0 or not mapped or tensor.numel() == 0
            np.testing.assert_array_equal(tensor.float().numpy(), value.astype(np.float32))
    assert content["model"]["bf16"].dtype == torch.bfloat16


def test_nothing_is_overwritten_and_nothing_to_export_is_said(tmp_path):
    _run(tmp_path / "run", "gslrm", fake.GSLRM, fake.gslrm_state(), 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(CheckpointError, match="destination exists"):
        export_torch(tmp_path / "run", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="nothing to export"):
        export_torch(tmp_path / "empty", tmp_path / "new")
    with pytest.raises(CheckpointError, match="vgg19"):
        export_torch(tmp_path / "run", tmp_path / "new", perceptual_from=tmp_path / "run")
    assert not (tmp_path / "new").exists()


def test_perceptual_weights_that_are_damaged_are_not_taken_for_absent(tmp_path):
    run = tmp_path / "run"
    _run(run, "gslrm", fake.GSLRM, fake.gslrm_state(), 1)
    (run / "vgg19/params").mkdir(parents=True)  # of a conversion, and empty
    (run / "vgg19/config.json").write_text("{}")
    (run / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="vgg19"):
        export_torch(run, tmp_path / "a.pt")


def test_the_verb(tmp_path, capsys):
    from mouselift_jax.__main__ import main

    _run(tmp_path / "run", "gslrm", fake.GSLRM, fake.gslrm_state(), 1)
    assert main(["export", "--to=torch", str(tmp_path / "run"), str(tmp_path / "a.pt")]) == 0
    said = capsys.readouterr().out
    assert "19 tensors" in said
    back = f"convert_torch_ckpt.py gslrm {tmp_path / 'a.pt'} {tmp_path / 'a_back'} --verify"
    assert back in said.splitlines()[-1]
    assert (tmp_path / "a.pt").is_file()
    assert main(["export", "--to=torhc", str(tmp_path / "run"), str(tmp_path / "b.pt")]) == 2
    assert "'torch'" in capsys.readouterr().err


def test_a_type_that_torch_files_do_not_hold(tmp_path):
    lazy = {"a": ((2,), np.dtype("complex64"), lambda: np.zeros(2, np.complex64))}
    with pytest.raises(MouseLiftError, match="complex64"):
        write_torch_file(tmp_path / "x.pt", lazy, {})
