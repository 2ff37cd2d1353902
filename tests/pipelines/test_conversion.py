"""Every KIND from its real layout into our checkpoint and through `load_pretrained`."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.errors import CheckpointError, ConfigError, LayoutError
from mouselift_jax.weights import store
from mouselift_jax.weights.convert import convert, verify_conversion
from mouselift_jax.weights.kinds import Request, plan_conversion
from mouselift_jax.weights.networks import network
from mouselift_jax.weights.pretrained import (
    load_initial,
    load_pretrained,
    read_config,
    read_raw,
    save_component,
)
from mouselift_jax.weights.rules import flatten, invert_rules
from tests import torch_sources as fake

PERCEPTUAL = "loss_calculator.perceptual_loss_module.net."


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline")
    return root, fake.write_pipeline(root)


@pytest.fixture(scope="module")
def converted(pipeline, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(plan_conversion("mvdiffusion", Request(pipeline[0])), out, verify=True)
    return out


def _torch():
    pytest.importorskip("torch")
    from tools.torch_reader import read_torch

    return read_torch


def _same(component, directory, state):
    back = invert_rules(network(component).rules, read_raw(directory, component, jnp.float32))
    assert back.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_pipeline_arrives_bit_for_bit(pipeline, converted):
    root, states = pipeline
    for component, state in states.items():
        _same(component, converted, state)
    for place in ("scheduler/scheduler_config.json", "tokenizer/merges.txt"):
        assert (converted / place).read_bytes() == (root / place).read_bytes()
    record = json.loads((converted / "conversion.json").read_text())
    assert record["components"]["unet"]["tensors"] == len(states["unet"])
    assert record["components"]["unet"]["dtype"] == ["float32"]
    assert record["verified"]["vae"]["tensors"] == len(states["vae"])
    weights = str(root / "unet" / "diffusion_pytorch_model.safetensors")
    assert len(record["files"][weights]["sha256"]) == 64
    assert "Adobe" in record["licence"] and "jax" in record["versions"]


def test_load_pretrained(converted):
    module, params = load_pretrained(converted, "unet", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert module.dtype == jnp.bfloat16
    assert module.config.in_channels == 8
    assert read_config(converted, "unet")["in_channels"] == 8
    module, params = load_pretrained(converted / "vae", "vae")
    assert jax.tree.leaves(params)[0].dtype == jnp.float32
    module, params = load_pretrained(converted, "image_normalizer")
    assert set(params) == {"mean", "std"}


def test_load_pretrained_refuses_what_is_not_sound(converted, tmp_path):
    def broken(edit):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(converted, copy)
        edit(copy)
        with pytest.raises(CheckpointError) as error:
            load_pretrained(copy, "vae")
        return str(error.value)

    def damage(copy):
        sums = json.loads((copy / "vae" / "checksums.json").read_text())
        sums["quant_conv/bias"] += 1
        (copy / "vae" / "checksums.json").write_text(json.dumps(sums))

    assert "damaged on disk" in broken(damage)
    assert "conversion.json" in broken(lambda c: (c / "conversion.json").unlink())
    assert "checksums.json" in broken(lambda c: (c / "vae" / "checksums.json").unlink())
    assert "config.json" in broken(lambda c: (c / "vae" / "config.json").unlink())
    assert "no weights of vae" in broken(lambda c: shutil.rmtree(c / "vae"))
    other = '{"block_channels": [8, 24], "layers_per_block": 1, "norm_groups": 4}'

    def resize(copy):
        path = copy / "vae" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **json.loads(other)}))

    assert "do not fit the network" in broken(resize)
    with pytest.raises(CheckpointError, match="did you mean 'unet'"):
        load_pretrained(converted, "unett")
    with pytest.raises(CheckpointError, match="no such folder"):
        load_pretrained(tmp_path / "nowhere", "vae")


@pytest.mark.torch
def test_forward_of_every_network_of_the_pipeline(pipeline, converted):
    read = _torch()
    from tools.torch_oracles import forward_check

    lines = []
    plan = plan_conversion("mvdiffusion", Request(pipeline[0], read))
    result = verify_conversion(plan, converted, forward_check, lines.append)
    for component in ("unet", "vae", "image_encoder", "text_encoder"):
        assert result[component]["forward"]["relative_error"] < 1e-5, component
    assert result["image_normalizer"]["forward"] == "not run"


def test_verify_finds_a_changed_value(pipeline, tmp_path, monkeypatch):
    plan = plan_conversion("mvdiffusion", Request(pipeline[0], components=("vae",)))
    convert(plan, tmp_path / "out")
    read = store.read_params

    def flipped(path):
        flat = read(path)
        flat["quant_conv/bias"] = flat["quant_conv/bias"] + np.float32(1e-7)
        return flat

    monkeypatch.setattr(store, "read_params", flipped)
    with pytest.raises(CheckpointError, match=r"1 of 124 tensors differ[\s\S]*quant_conv.bias"):
        verify_conversion(plan, tmp_path / "out")
    with pytest.raises(CheckpointError, match="differ"):
        convert(plan, tmp_path / "other", verify=True)
    assert not (tmp_path / "other").exists()


def test_one_component_only(pipeline, tmp_path):
    plan = plan_conversion("mvdiffusion", Request(pipeline[0], components=("vae",)))
    convert(plan, tmp_path / "out")
    assert not (tmp_path / "out" / "unet").exists()
    with pytest.raises(CheckpointError, match="no such component"):
        plan_conversion("mvdiffusion", Request(pipeline[0], components=("vea",)))


def test_text_encoder_may_be_absent(pipeline, tmp_path):
    shutil.copytree(pipeline[0], tmp_path / "src")
    stub = plan_conversion("mvdiffusion", Request(tmp_path / "src"))
    assert "vocab.json is a stub: 1 words, the text encoder knows 50" in str(stub.notes)
    shutil.rmtree(tmp_path / "src" / "text_encoder")
    (tmp_path / "src" / "tokenizer" / "merges.txt").unlink()
    plan = plan_conversion("mvdiffusion", Request(tmp_path / "src"))
    assert "no text_encoder" in str(plan.notes) and "merges.txt is missing" in str(plan.notes)


@pytest.mark.parametrize("dtype", ["source", "float32", "bfloat16"])
def test_half_precision_sources(tmp_path, dtype):
    state = fake.component_state("vae")
    half = {key: value.astype(np.float16) for key, value in state.items()}
    fake.write_component(
        tmp_path / "src" / "vae", "vae", state=half, file="diffusion_pytorch_model.fp16.safetensors"
    )
    for name in set(fake.SETTINGS) - {"vae"}:
        fake.write_component(tmp_path / "src" / name, name)
    fake.write_settings(tmp_path / "src")
    plan = plan_conversion("mvdiffusion", Request(tmp_path / "src", components=("vae",)))
    assert "half-precision" in str(plan.parts[0].notes)
    record = convert(plan, tmp_path / "out", dtype=dtype, verify=True)
    stored = read_raw(tmp_path / "out", "vae", None)
    want = jnp.float16 if dtype == "source" else jnp.dtype(dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype(want)}
    assert record["components"]["vae"]["source_dtype"] == ["float16"]
    if dtype != "bfloat16":
        _same("vae", tmp_path / "out", {k: v.astype(np.float32) for k, v in half.items()})


@pytest.mark.parametrize("old_rank", [2, 4])
def test_old_attention_names_of_the_vae(pipeline, tmp_path, old_rank):
    root, states = pipeline
    shutil.copytree(root, tmp_path / "src")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in states["vae"].items():
        for new, old in names.items():
            if f".{new}." in key:
                key = key.replace(new, old)
                value = value[:, :, None, None] if value.ndim == 2 and old_rank == 4 else value
        state[key] = value
    fake.write_component(tmp_path / "src" / "vae", "vae", state=state)
    plan = plan_conversion("mvdiffusion", Request(tmp_path / "src", components=("vae",)))
    convert(plan, tmp_path / "out", verify=True)
    _same("vae", tmp_path / "out", states["vae"])


def _shards(folder, state, ending, save):
    keys = sorted(state)
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.{ending}" for i in (1, 2)]
    where = {key: names[i % 2] for i, key in enumerate(keys)}
    for name in names:
        save(folder / name, {k: v for k, v in state.items() if where[k] == name})
    index = folder / f"diffusion_pytorch_model.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "diffusion_pytorch_model.safetensors").unlink()


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards(pipeline, tmp_path, ending):
    from safetensors.numpy import save_file

    read = _torch() if ending == "bin" else None
    root, states = pipeline
    folder = tmp_path / "unet"
    shutil.copytree(root / "unet", folder)
    save = fake.save_torch if ending == "bin" else lambda path, value: save_file(value, path)
    _shards(folder, states["unet"], ending, save)
    plan = plan_conversion("unet", Request(folder, read))
    assert len(plan.parts[0].files) == 2
    convert(plan, tmp_path / "out", verify=True)
    _same("unet", tmp_path / "out", states["unet"])
    next(folder.glob("*00002-of*")).unlink()
    with pytest.raises(CheckpointError, match="1 of 2 shards are missing"):
        plan_conversion("unet", Request(folder, read))


def test_stock_unet_is_extended_and_a_tuned_one_is_kept(pipeline, tmp_path):
    stock = {**fake.SETTINGS["unet"], "in_channels": 4, "_class_name": "UNet2DConditionModel"}
    state = fake.write_component(tmp_path / "stock", "unet", stock)
    assert state["conv_in.weight"].shape == (8, 4, 3, 3)
    plan = plan_conversion("unet", Request(tmp_path / "stock"))
    assert "extended from 4 to 8" in str(plan.parts[0].notes)
    convert(plan, tmp_path / "out", verify=True)
    module, params = load_pretrained(tmp_path / "out", "unet")
    kernel = np.asarray(params["conv_in"]["kernel"])
    assert module.config.in_channels == 8 and kernel.shape == (3, 3, 8, 8)
    np.testing.assert_array_equal(kernel[:, :, :4], state["conv_in.weight"].transpose(2, 3, 1, 0))
    assert not kernel[:, :, 4:].any()
    tuned = plan_conversion("unet", Request(pipeline[0] / "unet"))
    assert "extended" not in str(tuned.parts[0].notes)
    assert np.asarray(tuned.parts[0].tensors["conv_in.weight"])[:, 4:].any()


def test_training_checkpoint_says_which_weights_it_took(tmp_path):
    for step in (100, 2000):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        raw = fake.write_component(folder / "unet", "unet")
        ema = {key: value * 2 for key, value in raw.items()}
        settings = {**fake.SETTINGS["unet"], "decay": 0.9999, "optimization_step": step}
        fake.write_component(folder / "unet_ema", "unet", settings, ema)
    plan = plan_conversion("unet", Request(tmp_path / "run"))
    assert "checkpoint-2000" in plan.notes[0] and "unet_ema" in plan.notes[0]
    convert(plan, tmp_path / "ema")
    _same("unet", tmp_path / "ema", ema)
    plan = plan_conversion("unet", Request(folder, weights="raw"))
    assert "raw weights" in plan.notes[0]
    convert(plan, tmp_path / "raw")
    _same("unet", tmp_path / "raw", raw)


def _gslrm_file(path, **extra):
    state = fake.gslrm_state()
    model = {f"module.{k}": v for k, v in state.items()} | extra
    fake.save_torch(path, {"model": model, "optimizer": {"state": {}}, "fwdbwd_pass_step": 7})
    return state


@pytest.mark.torch
def test_gslrm_with_the_networks_of_its_loss(tmp_path):
    read = _torch()
    from tools.torch_oracles import forward_check

    vgg19 = fake.vgg19_state()
    lpips = {k: np.zeros(s, np.float32) for k, s in fake.torch_shapes("lpips", {}).items()}
    slices = {"features": "net.slice1"}
    packed = {k.replace("features", slices["features"]): v for k, v in lpips.items()}
    packed |= {f"lins.{i}.model.1.weight": lpips[f"lin{i}.model.1.weight"] for i in range(5)}
    packed["scaling_layer.shift"] = np.zeros((1, 3, 1, 1), np.float32)
    extra = {f"module.{PERCEPTUAL}{k}": v for k, v in vgg19.items()}
    extra |= {f"module.loss_calculator.lpips_loss_module.{k}": v for k, v in packed.items()}
    state = _gslrm_file(tmp_path / "ckpt_0000000000021125.pt", **extra)
    plan = plan_conversion("gslrm", Request(tmp_path, read))
    assert [part.component for part in plan.parts] == ["gslrm", "vgg19", "lpips"]
    assert "head size 64" in str(plan.parts[0].notes)
    plan = plan_conversion("gslrm", Request(tmp_path, read, components=("gslrm",)))
    record = convert(plan, tmp_path / "out", verify=True, forward_check=forward_check)
    assert record["verified"]["gslrm"]["forward"]["relative_error"] < 1e-5
    _same("gslrm", tmp_path / "out", state)
    half = convert(
        plan, tmp_path / "half", dtype="bfloat16", verify=True, forward_check=forward_check
    )
    assert half["verified"]["gslrm"]["forward"]["relative_error"] < 1e-5
    other = dataclasses.replace(plan.parts[0], config={**plan.parts[0].config, "depth": "range"})
    assert forward_check(other, tmp_path / "out") is None


@pytest.mark.torch
def test_gslrm_config_beside_the_file(tmp_path):
    read = _torch()
    _gslrm_file(tmp_path / "ckpt_1.pt")
    (tmp_path / "gslrm.yaml").write_text("model: {transformer: {d: 128, d_head: 32, n_layer: 2}}")
    plan = plan_conversion("gslrm", Request(tmp_path / "ckpt_1.pt", read))
    assert plan.parts[0].config["head_dim"] == 32
    assert "gslrm.yaml" in str(plan.parts[0].notes)
    (tmp_path / "gslrm.yaml").write_text("model: {transformer: {d: 128, n_layer: 3}}")
    with pytest.raises(ConfigError, match="n_layers"):
        plan_conversion("gslrm", Request(tmp_path / "ckpt_1.pt", read))


@pytest.mark.torch
def test_vgg19_from_matconvnet(tmp_path):
    pytest.importorskip("torch")
    from scipy.io import savemat

    from tools.torch_oracles import forward_check

    layers = np.empty((1, 40), dtype=object)
    shapes = fake.torch_shapes("vgg19", {})
    rng = np.random.default_rng(0)
    written = {}
    for i in range(16):
        kernel = np.zeros([shapes[f"conv{i + 1}.weight"][j] for j in (2, 3, 1, 0)], np.float32)
        kernel[:, :, 0] = rng.normal(size=kernel[:, :, 0].shape)
        bias = rng.normal(size=(1, kernel.shape[-1])).astype(np.float32)
        cell = np.empty((1, 2), dtype=object)
        cell[0, 0], cell[0, 1] = kernel, bias
        layers[0, 2 * i] = {"name": f"conv{i}", "type": "conv", "weights": cell}
        layers[0, 2 * i + 1] = {"name": f"relu{i}", "type": "relu"}
        written[f"conv{i + 1}.weight"] = kernel.transpose(3, 2, 0, 1)
        written[f"conv{i + 1}.bias"] = bias.ravel()
    for i in range(32, 40):
        layers[0, i] = {"name": f"fc{i}", "type": "conv", "weights": np.zeros((1, 2))}
    savemat(tmp_path / "vgg.mat", {"layers": layers, "meta": 1})
    plan = plan_conversion("vgg19", Request(tmp_path / "vgg.mat"))
    record = convert(plan, tmp_path / "out", verify=True, forward_check=forward_check)
    assert record["verified"]["vgg19"]["forward"]["relative_error"] < 1e-5
    _same("vgg19", tmp_path / "out", written)


@pytest.mark.torch
def test_lpips_from_its_two_files(tmp_path):
    import torch

    read = _torch()
    from tools.torch_oracles import forward_check

    shapes = fake.torch_shapes("lpips", {})
    state = {k: np.abs(v) if "lin" in k else v for k, v in fake.random_state(shapes).items()}
    lins = {k: torch.from_numpy(v) for k, v in state.items() if k.startswith("lin")}
    trunk = {k: v for k, v in state.items() if not k.startswith("lin")}
    # the package's file is in the format of torch 1.5
    (tmp_path / "src").mkdir()
    torch.save(lins, tmp_path / "src" / "vgg.pth", _use_new_zipfile_serialization=False)
    trunk["classifier.0.weight"] = np.zeros((2, 3), np.float32)
    fake.save_torch(tmp_path / "src" / "vgg16-397923af.pth", trunk)
    plan = plan_conversion("lpips", Request(tmp_path / "src", read))
    record = convert(plan, tmp_path / "out", verify=True, forward_check=forward_check)
    assert record["verified"]["lpips"]["forward"]["relative_error"] < 1e-5
    _same("lpips", tmp_path / "out", state)


@pytest.mark.torch
def test_prompt_embeds(tmp_path):
    read = _torch()
    values = np.random.default_rng(0).normal(size=(6, 77, 1024)).astype(np.float16)
    fake.save_torch(tmp_path / "clr_embeds.pt", values)
    plan = plan_conversion("prompt_embeds", Request(tmp_path / "clr_embeds.pt", read))
    convert(plan, tmp_path / "out", verify=True)
    module, array = load_pretrained(tmp_path / "out", "prompt_embeds")
    assert module is None and array.dtype == jnp.float32
    np.testing.assert_array_equal(array, values.astype(np.float32))


def test_real_prompt_embeds(shared, tmp_path):
    read = _torch()
    file = shared / "data" / "facelift_sample" / "clr_embeds.pt"
    convert(plan_conversion("prompt_embeds", Request(file, read)), tmp_path / "out", verify=True)
    _, array = load_pretrained(tmp_path / "out", "prompt_embeds")
    assert array.shape == (6, 77, 1024)
    np.testing.assert_allclose(array[0, 0, :4], [-0.31348, -0.44775, -0.0082, -0.22803], atol=1e-4)


def test_init_from_is_strict_about_the_network(converted):
    config = json.loads((converted / "unet" / "config.json").read_text())
    params, note = load_initial(converted, "unet", {**config, "sample_size": 32})
    assert "unet from" in note and "values" in note
    assert {leaf.dtype for leaf in flatten(params).values()} == {np.dtype(np.float32)}
    with pytest.raises(ConfigError, match=r"model.context_dim[\s\S]*expected: 16"):
        load_initial(converted, "unet", {**config, "context_dim": 1024})


def test_a_stage_writes_a_component(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    values = np.random.default_rng(0).normal(size=(2, 77, 1024)).astype(np.float32)
    config = {"shape": [2, 77, 1024], "style": "mouse"}
    for scale in (1, 2):  # the second replaces the first
        save_component(tmp_path, "prompt_embeds", config, {"prompt_embeds": scale * values})
    _, array = load_pretrained(tmp_path, "prompt_embeds")
    np.testing.assert_array_equal(array, 2 * values)
    with pytest.raises(CheckpointError, match="do not fit"):
        save_component(tmp_path, "prompt_embeds", config, {"prompt_embeds": values[0]})


def test_the_tool_needs_no_torch_for_safetensors(pipeline, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "sys.argv = ['convert', *sys.argv[1:]]\n"
        "from tools.convert_torch_ckpt import main\n"
        "sys.exit(main())\n"
    )
    out = tmp_path / "out"
    args = ["mvdiffusion", str(pipeline[0]), str(out), "--component", "vae"]
    dry = subprocess.run(
        [sys.executable, "-c", code, *args, "--dry-run"], capture_output=True, text=True
    )
    assert dry.returncode == 0, dry.stderr
    assert "encoder.conv_in.weight [8, 3, 3, 3] -> encoder/conv_in/kernel (conv)" in dry.stdout
    assert not out.exists()


def test_the_tool_converts_and_its_errors_are_one_message(pipeline, tmp_path, capsys, monkeypatch):
    from tools import convert_torch_ckpt as tool

    args = ["tool", "mvdiffusion", str(pipeline[0]), str(tmp_path / "out"), "--component", "vae"]
    monkeypatch.setattr(sys, "argv", args)
    assert tool.main() == 0
    assert "licence" in capsys.readouterr().out and (tmp_path / "out/conversion.json").exists()
    assert tool.main() == 2
    err = capsys.readouterr().err
    assert "The destination exists" in err and "Traceback" not in err
    monkeypatch.setattr(sys, "argv", [*args[:3]])
    assert tool.main() == 2
    assert "DST is missing" in capsys.readouterr().err


def test_a_stage_never_replaces_a_converted_component(tmp_path):
    params = {"prompt_embeds": np.zeros((6, 4, 8), np.float32)}
    save_component(tmp_path, "prompt_embeds", {"shape": [6, 4, 8]}, params)
    save_component(tmp_path, "prompt_embeds", {"shape": [6, 4, 8]}, params)  # its own: replaced
    (tmp_path / "prompt_embeds/.made_by_mouselift.json").unlink()  # as a conversion writes it
    with pytest.raises(LayoutError, match="left alone"):
        save_component(tmp_path, "prompt_embeds", {"shape": [6, 4, 8]}, params)
    assert (tmp_path / "prompt_embeds/config.json").exists()
