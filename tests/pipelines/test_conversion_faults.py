"""Each kind of bad input: one clear error, and the destination untouched."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mouselift_jax.errors import CheckpointError, ConfigError, MouseLiftError
from mouselift_jax.weights import convert as conversion
from mouselift_jax.weights import store
from mouselift_jax.weights.convert import convert
from mouselift_jax.weights.kinds import Request, plan_conversion
from mouselift_jax.weights.pretrained import load_pretrained
from tests import torch_sources as fake

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    fake.write_pipeline(root)
    return root


@pytest.fixture
def source(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "src")
    return tmp_path / "src"


def _refused(source, tmp_path, kind="mvdiffusion", read=None, **options):
    """Convert; the one error's text. Nothing may be left behind."""
    before = set(tmp_path.iterdir())
    with pytest.raises(MouseLiftError) as error:
        convert(plan_conversion(kind, Request(source, read, **options)), tmp_path / "dst")
    assert set(tmp_path.iterdir()) == before
    return str(error.value)


def _torch():
    pytest.importorskip("torch")
    from tools.torch_reader import read_torch

    return read_torch


def test_lfs_pointer(source, tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (source / "vae" / WEIGHTS).write_text(pointer)
    assert "Git LFS pointer" in _refused(source, tmp_path)


def test_web_page(source, tmp_path):
    (source / "unet" / WEIGHTS).write_text("<!DOCTYPE html><html>404</html>")
    assert "web page" in _refused(source, tmp_path)
    (tmp_path / "ckpt_1.pt").write_text("\n<html>Not found</html>")
    message = _refused(tmp_path / "ckpt_1.pt", tmp_path, "gslrm", lambda path: None)
    assert "web page" in message


def test_empty_file(source, tmp_path):
    (source / "vae" / WEIGHTS).write_bytes(b"")
    assert "empty" in _refused(source, tmp_path)


@pytest.mark.parametrize("part", ["header", "values", "garbage"])
def test_truncated_safetensors(source, tmp_path, part):
    file = source / "vae" / WEIGHTS
    whole = file.read_bytes()
    cut = {"header": whole[:100], "values": whole[:-7], "garbage": b"\x01" * 500}[part]
    file.write_bytes(cut)
    assert "cut off" in _refused(source, tmp_path)


@pytest.mark.torch
@pytest.mark.parametrize("keep", [0.2, 0.9])
def test_truncated_torch_file(tmp_path, keep):
    read = _torch()
    file = tmp_path / "ckpt_1.pt"
    fake.save_torch(file, {"model": fake.gslrm_state()})
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole))])
    assert "cut off" in _refused(file, tmp_path, "gslrm", read)


@pytest.mark.torch
def test_truncated_old_torch_file_and_other_files(tmp_path):
    import torch

    read = _torch()
    file = tmp_path / "vgg.pth"
    torch.save({"a": torch.zeros(50)}, file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes()[:-90])
    assert "cut off" in _refused(file, tmp_path, "lpips", read)
    file.write_bytes(b"\x93NUMPY" + bytes(200))
    assert "not a torch file" in _refused(file, tmp_path, "lpips", read)


@pytest.mark.torch
def test_pickle_that_wants_to_run_code(tmp_path):
    import torch

    class Harm:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/harmed",)

    read = _torch()
    torch.save({"model": {"a": Harm()}}, tmp_path / "ckpt_1.pt")
    message = _refused(tmp_path / "ckpt_1.pt", tmp_path, "gslrm", read)
    assert "wants to run code" in message
    assert not (tmp_path / "harmed").exists()


def test_torch_file_without_torch(tmp_path):
    (tmp_path / "ckpt_1.pt").write_bytes(b"PK" + bytes(100))
    message = _refused(tmp_path / "ckpt_1.pt", tmp_path, "gslrm")
    assert "needs torch" in message and "pip install torch" in message


def test_missing_component_and_missing_weights(source, tmp_path):
    shutil.rmtree(source / "image_encoder")
    assert "component of the pipeline is missing" in _refused(source, tmp_path)
    (source / "vae" / WEIGHTS).unlink()
    message = _refused(source, tmp_path, components=("vae",))
    assert "no weights in this folder" in message


def test_wrong_kind(source, tmp_path):
    assert "not a diffusers pipeline" in _refused(source / "unet", tmp_path)
    assert "a file" in _refused(source / "model_index.json", tmp_path)
    shutil.move(source / "vae" / WEIGHTS, source / "unet" / WEIGHTS)
    message = _refused(source / "unet", tmp_path, "unet")
    assert "another network" in message and "expected: unet" in message and "vae" in message
    assert "no such KIND" in _refused(source, tmp_path, "gs-lrm")
    assert "no such file or folder" in _refused(source / "nowhere", tmp_path)
    (tmp_path / "outer").mkdir()
    shutil.move(source, tmp_path / "outer" / "pipeckpts")
    assert "pipeckpts" in _refused(tmp_path / "outer", tmp_path)


@pytest.mark.torch
def test_wrong_kind_of_torch_file(tmp_path):
    read = _torch()
    fake.save_torch(tmp_path / "a.pt", {"epoch": 3, "weights": {"x": np.zeros(2)}})
    message = _refused(tmp_path / "a.pt", tmp_path, "gslrm", read)
    assert "no state dict" in message and "epoch, weights" in message
    fake.save_torch(tmp_path / "b.pt", fake.component_state("vae"))
    assert "another network" in _refused(tmp_path / "b.pt", tmp_path, "gslrm", read)
    fake.save_torch(tmp_path / "c.pt", {"model": fake.gslrm_state()})
    assert "one tensor" in _refused(tmp_path / "c.pt", tmp_path, "prompt_embeds", read)
    assert "folder" in _refused(tmp_path / "c.pt", tmp_path, "unet", read)
    (tmp_path / "empty").mkdir()
    assert "ckpt_*.pt" in _refused(tmp_path / "empty", tmp_path, "gslrm", read)
    assert "vgg16" in _refused(tmp_path / "empty", tmp_path, "lpips", read)


def _edit(source, component, edit):
    from safetensors.numpy import load_file, save_file

    file = next((source / component).glob("*.safetensors"))
    state = load_file(file)
    edit(state)
    save_file(state, file)


def test_extra_missing_and_misshapen_tensors(source, tmp_path):
    _edit(source, "vae", lambda s: s.update({"encoder.extra.weight": np.zeros(3, np.float32)}))
    message = _refused(source, tmp_path, components=("vae",))
    assert "no place in this network" in message and "encoder.extra.weight" in message
    _edit(source, "vae", lambda s: s.pop("encoder.extra.weight"))
    _edit(source, "vae", lambda s: s.update({"quant_conv.biass": s.pop("quant_conv.bias")}))
    message = _refused(source, tmp_path, components=("vae",))
    assert "did you mean 'quant_conv.bias'" in message
    _edit(source, "vae", lambda s: s.update({"quant_conv.bias": s.pop("quant_conv.biass")[:-1]}))
    assert "wrong shape" in _refused(source, tmp_path, components=("vae",))


def test_transposed_tensors(source, tmp_path):
    def transpose(state):
        for key in [k for k in state if k.endswith("net.0.proj.weight")]:
            state[key] = np.ascontiguousarray(state[key].T)

    _edit(source, "unet", transpose)
    assert "looks transposed" in _refused(source, tmp_path, components=("unet",))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_the_weights(source, tmp_path, value):
    _edit(source, "vae", lambda s: s["quant_conv.weight"].__setitem__((0, 0, 0, 0), value))
    message = _refused(source, tmp_path, components=("vae",))
    assert "NaN or infinity" in message and "quant_conv.weight" in message and "1 of 64" in message


def test_values_that_do_not_fit_the_dtype(source, tmp_path):
    _edit(source, "vae", lambda s: s["quant_conv.weight"].__setitem__((0, 0, 0, 0), 1e6))
    plan = plan_conversion("mvdiffusion", Request(source, components=("vae",)))
    with pytest.raises(CheckpointError, match="--dtype=bfloat16"):
        convert(plan, tmp_path / "dst", dtype="float16")
    with pytest.raises(ConfigError, match="float64"):
        convert(plan, tmp_path / "dst", dtype="float64")
    assert not (tmp_path / "dst").exists()


@pytest.mark.torch
def test_narrow_prompt_embeddings(tmp_path):
    read = _torch()
    fake.save_torch(tmp_path / "clr_embeds.pt", np.zeros((6, 77, 768), np.float16))
    message = _refused(tmp_path / "clr_embeds.pt", tmp_path, "prompt_embeds", read)
    assert "clip-vit-large-patch14" in message and "[6, 77, 768]" in message
    fake.save_torch(tmp_path / "clr_embeds.pt", np.zeros((77, 1024), np.float16))
    assert "not prompt embeddings" in _refused(
        tmp_path / "clr_embeds.pt", tmp_path, "prompt_embeds", read
    )


def test_four_channels_where_the_config_says_eight(source, tmp_path):
    _edit(source, "unet", lambda s: s.update({"conv_in.weight": s["conv_in.weight"][:, :4].copy()}))
    message = _refused(source, tmp_path, components=("unet",))
    assert "input channels" in message and "expected: 8" in message and "found:    4" in message


def _set(path, **changes):
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in value.items() if v != "absent"}))


@pytest.mark.parametrize(
    ("file", "changes", "names"),
    [
        ("unet/config.json", {"act_fn": "gelu"}, "act_fn"),
        ("unet/config.json", {"flip_sin_to_cos": False}, "flip_sin"),
        ("unet/config.json", {"class_embed_type": None}, "class_embed_type"),  # SD 2.1
        ("unet/config.json", {"class_embed_type": "absent"}, "class_embed_type"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("unet/config.json", {"use_linear_projection": "absent"}, "use_linear_projection"),  # 1.4
        ("unet/config.json", {"use_linear_projection": None}, "use_linear_projection"),
        ("unet/config.json", {"_class_name": "UNet3DConditionModel"}, "_class_name"),
        ("unet/config.json", {"attention_head_dim": "absent"}, "attention_head_dim"),
        ("unet/config.json", {"in_channels": 9}, "in_channels"),
        ("vae/config.json", {"shift_factor": 0.1}, "shift_factor"),
        ("scheduler/scheduler_config.json", {"clip_sample": True}, "clip_sample"),
        ("scheduler/scheduler_config.json", {"clip_sample": "absent"}, "clip_sample"),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "prediction_type"),
        ("image_noising_scheduler/scheduler_config.json", {"beta_schedule": "linear"}, "beta_sch"),
        ("unet/config.json", {"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type"),
        ("unet/config.json", {"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "up_block_types"),
        ("unet/config.json", {"down_block_types": "DownBlock2D"}, "down_block_types"),
        ("unet/config.json", {"mid_block_type": None}, "mid_block_type"),
        ("unet/config.json", {"selfattn_block": "self_rowwise"}, "selfattn_block"),
        ("unet/config.json", {"block_out_channels": "abc"}, "block_out_channels"),
        ("unet/config.json", {"in_channels": "8"}, "in_channels"),
        ("unet/config.json", {"num_views": 0}, "num_views"),
        ("unet/config.json", {"attention_head_dim": [3, 3]}, "attention_head_dim"),
        ("unet/config.json", {"norm_eps": "small"}, "norm_eps"),
        ("vae/config.json", {"norm_num_groups": 3}, "norm_num_groups"),
        ("image_encoder/config.json", {"num_attention_heads": 3}, "num_attention_heads"),
        ("image_encoder/config.json", {"hidden_size": None}, "hidden_size"),
        ("feature_extractor/preprocessor_config.json", {"size": {"shortest_edge": 336}}, "sizes"),
    ],
)
def test_settings_that_are_not_implemented(source, tmp_path, file, changes, names):
    _set(source / file, **changes)
    message = _refused(source, tmp_path)
    assert names in message and file.split("/")[0] in message


def test_settings_that_change_nothing_are_let_pass(source, tmp_path):
    _set(
        source / "unet" / "config.json",
        upcast_attention=True,
        cross_attention_norm=None,
        num_class_embeds=None,
        mid_block_type="UNetMidBlockMV2DCrossAttn",
        decay=0.9999,
        optimization_step=7,
        _name_or_path="somewhere",
    )
    assert plan_conversion("unet", Request(source / "unet")).parts


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd"])
def test_shards_outside_the_folder_are_not_opened(source, tmp_path, name):
    file = source / "unet" / WEIGHTS
    file.rename(source / "secret.safetensors")
    index = source / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    assert "index of the shards" in _refused(source / "unet", tmp_path, "unet")
    for text in ("{}", '{"weight_map": []}', '{"weight_map": {}}'):
        index.write_text(text)
        assert "no weight_map" in _refused(source / "unet", tmp_path, "unet")


def test_a_component_that_does_not_exist_and_a_place_that_cannot_be(source, tmp_path):
    message = _refused(source, tmp_path, components=("une",))
    assert "no such component" in message and "did you mean 'unet'" in message
    plan = plan_conversion("mvdiffusion", Request(source, components=("vae",)))
    with pytest.raises(CheckpointError, match=r"cannot be made[\s\S]*Not a directory"):
        convert(plan, source / "model_index.json" / "dst")


@pytest.mark.torch
def test_state_dicts_that_are_not_what_they_seem(tmp_path):
    import torch

    read = _torch()
    state = {key: torch.from_numpy(value) for key, value in fake.gslrm_state().items()}
    name = "patch_embedder.1.weight"
    file = tmp_path / "ckpt_1.pt"
    for extra, says in (
        ({f"module.{name}": state[name]}, "there twice"),
        ({name: state[name].to_sparse()}, "sparse"),
        ({name: state[name].to("meta")}, "sparse, quantised or empty"),
        ({5: state[name]}, "no state dict"),
    ):
        torch.save({"model": state | extra}, file)
        assert says in _refused(file, tmp_path, "gslrm", read)
    both = {f"{p}.{k}": v for p in ("student", "teacher") for k, v in state.items()}
    for content, says in (
        ({"model": both}, "student., teacher."),
        ({"model": state, "state_dict": dict(state)}, "several state dicts"),
        ({"optimizer": {"state": {}}, "epoch": 3}, "optimizer, epoch"),
    ):
        torch.save(content, file)
        assert says in _refused(file, tmp_path, "gslrm", read)
    torch.save({"model": state}, file)
    assert "no moving average" in _refused(file, tmp_path, "gslrm", read, weights="ema")


@pytest.mark.torch
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: [1]", "no section"),
        ("model: {transformer: []}", "no section"),
        ("model: {transformer: {d_head: abc}}", "d_head"),
        ("model: {transformer: {d_head: 0}}", "d_head"),
        ("model: {transformer: {d_head: 48}}", "does not divide"),
        ("model: {depth_min: near, use_custom_plucker: false}", "depth_min"),
        ("a: b: c", "not yaml or json"),
    ],
)
def test_training_configs_that_make_no_sense(tmp_path, text, says):
    read = _torch()
    fake.save_torch(tmp_path / "ckpt_1.pt", {"model": fake.gslrm_state()})
    (tmp_path / "gslrm.yaml").write_text(text)
    assert says in _refused(tmp_path / "ckpt_1.pt", tmp_path, "gslrm", read)


def test_broken_json(source, tmp_path):
    (source / "vae" / "config.json").write_text("{")
    assert "not valid json" in _refused(source, tmp_path)
    (source / "vae" / "config.json").write_text("[]")
    assert "dictionary" in _refused(source, tmp_path)


def test_not_a_matconvnet_file(tmp_path):
    from scipy.io import savemat

    (tmp_path / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file" + bytes(300))
    assert "MATLAB 5" in _refused(tmp_path / "a.mat", tmp_path, "vgg19")
    savemat(tmp_path / "b.mat", {"x": np.zeros(3)})
    assert "not a MatConvNet network" in _refused(tmp_path / "b.mat", tmp_path, "vgg19")
    whole = (tmp_path / "b.mat").read_bytes()
    (tmp_path / "b.mat").write_bytes(whole[:-20])
    assert "cut off" in _refused(tmp_path / "b.mat", tmp_path, "vgg19")


def test_destination_exists(source, tmp_path):
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "mine.txt").write_text("keep")
    assert "destination exists" in _refused(source, tmp_path, components=("vae",))
    assert (tmp_path / "dst" / "mine.txt").read_text() == "keep"


def test_no_space_left(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(conversion.shutil, "disk_usage", lambda path: usage)
        assert "no space left" in _refused(source, tmp_path, components=("vae",))

    def full(path, leaves):
        path.mkdir(parents=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_params", full)
    assert "no space left" in _refused(source, tmp_path, components=("vae",))


def test_a_killed_conversion_leaves_nothing_that_loads_and_a_repeat_completes(source, tmp_path):
    """SIGKILL while the weights are written: the worst that can happen."""
    code = (
        "import sys, time\n"
        "from mouselift_jax.weights import store\n"
        "import mouselift_jax.weights.convert\n"
        "def slow(array):\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
        "store.checksum = slow\n"
        "from tools.convert_torch_ckpt import main\n"
        "main()\n"
    )
    args = ["mvdiffusion", str(source), str(tmp_path / "dst"), "--component", "vae"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().strip() == "writing"
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "dst").exists()
    partial = tmp_path / ".dst.partial"
    assert partial.exists()
    with pytest.raises(CheckpointError):
        load_pretrained(partial, "vae")
    convert(plan_conversion("mvdiffusion", Request(source, components=("vae",))), tmp_path / "dst")
    assert load_pretrained(tmp_path / "dst", "vae")[0] is not None
    assert not partial.exists()


def test_a_second_conversion_to_the_same_place_is_refused(source, tmp_path):
    """It would otherwise clear away what the first one has written."""
    plan = plan_conversion("mvdiffusion", Request(source, components=("vae",)))
    told = []

    def second(line):  # while the first is at work
        with pytest.raises(
            CheckpointError, match=f"Another conversion[\\s\\S]*process {os.getpid()}"
        ):
            convert(plan, tmp_path / "dst")
        told.append(line)

    convert(plan, tmp_path / "dst", report=second)
    assert told and load_pretrained(tmp_path / "dst", "vae")[0] is not None
    # neither lock nor partial folder
    assert {p.name for p in tmp_path.iterdir()} == {"src", "dst"}


def test_on_an_object_store_the_record_comes_last(source, tmp_path, monkeypatch):
    """There no rename is atomic: a folder without conversion.json is what a killed run leaves."""
    monkeypatch.setattr(conversion, "_is_remote", lambda path: True)
    request = Request(source, components=("vae", "unet"))
    write, calls = store.write_params, []

    def stops(path, leaves):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(path, leaves)

    monkeypatch.setattr(store, "write_params", stops)
    with pytest.raises(KeyboardInterrupt):
        convert(plan_conversion("mvdiffusion", request), tmp_path / "dst")
    assert (tmp_path / "dst" / "unet" / "params").exists()
    with pytest.raises(CheckpointError, match="no weights"):
        load_pretrained(tmp_path / "dst", "unet")
    convert(plan_conversion("mvdiffusion", request), tmp_path / "dst")
    assert load_pretrained(tmp_path / "dst", "vae")[0] is not None
    with pytest.raises(CheckpointError, match="destination exists"):
        convert(plan_conversion("mvdiffusion", request), tmp_path / "dst")
