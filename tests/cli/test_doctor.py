import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mouselift_jax.__main__ import main
from mouselift_jax.cli import _before, _machine, doctor
from mouselift_jax.cli._machine import Fact
from mouselift_jax.weights.pretrained import save_component
from tests.sample_sets import write_samples


def test_doctor_finds_this_machine_fit_and_says_what_is_next(capsys, tmp_path):
    weights = tmp_path / "w" / "gslrm"
    weights.mkdir(parents=True)
    (weights / "conversion.json").write_text(json.dumps({"kind": "gslrm", "source": "a.pt"}))
    code = main(["doctor", "--full", "--checkpoints", str(tmp_path / "w")])
    out = capsys.readouterr().out
    assert code == 0, out
    for text in ("Python:", "Device:", "Rasterizer reference:", "Rasterizer tiled:", "H.264"):
        assert text in out
    assert "kind gslrm, source a.pt" in out and "Fit. Next:" in out


def test_json_is_for_programs(capsys, monkeypatch):
    facts = [Fact("a", "b"), Fact("c", "d", "bad", "mend it")]
    monkeypatch.setattr(doctor, "collect", lambda roots, full: facts)
    assert main(["doctor", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)[1]["fix"] == "mend it"


def test_what_is_broken_is_named_with_its_remedy(capsys, monkeypatch):
    monkeypatch.setattr(
        doctor, "collect", lambda roots, full: [Fact("Video", "no", "bad", "install it")]
    )
    assert main(["doctor"]) == 2
    out = capsys.readouterr().out
    assert "Not fit yet: Video" in out and "-> install it" in out


def test_watch_repeats_until_it_is_stopped(capsys, monkeypatch):
    ticks = iter([None, KeyboardInterrupt()])

    def sleep(seconds):
        tick = next(ticks)
        if tick:
            raise tick

    monkeypatch.setattr(doctor.time, "sleep", sleep)
    assert main(["doctor", "--watch", "1"]) == 130
    assert capsys.readouterr().out.count("Memory:") == 2


def test_gpus_and_their_processes_are_listed(monkeypatch):
    def query(fields, what="gpu"):
        if what == "gpu":
            return [["0", "RTX 3060", "11900", "12288", "97", "71", "580.65"]]
        return [["4242", "python a", "b.py", "11800"]]  # a name with a comma, which is cut there

    monkeypatch.setattr(_machine, "nvidia_query", query)
    facts = list(_machine.gpu_facts())
    assert facts[0].state == "warn" and "RTX 3060" in facts[0].value
    assert facts[1].value == "4242 python a, b.py: 11800 MiB"


def test_why_there_is_no_cuda_is_said(monkeypatch):
    monkeypatch.setattr(_machine, "nvidia_query", lambda fields: [])
    monkeypatch.setattr(_machine.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    facts = [f for f in _machine.device_facts() if f.name == "CUDA"]
    assert [f.value for f in facts] == ["not available: no NVIDIA driver is installed"]
    monkeypatch.setattr(_machine.ctypes, "CDLL", lambda name: None)
    assert "lists no GPU" in _machine._without_gpu()


def test_a_run_is_listed_once_not_with_what_started_it(tmp_path, monkeypatch):
    class Process:
        def __init__(self, *words):
            self.info = dict(pid=1, cmdline=words, memory_info=None, create_time=0, cwd=tmp_path)

    flags = ("launch.py", "--workdir=run")
    running = [
        Process("/venv/bin/python3.11", *flags), Process("timeout", "9", "python", *flags),
        Process("vim", "launch.py"), Process(),
    ]  # fmt: skip
    monkeypatch.setattr("psutil.process_iter", lambda fields: running)
    assert [f.value.split(", ")[-1] for f in _machine.training_facts()] == ["run"]


def test_without_full_it_is_quick_and_starts_no_jax():
    """Seconds of the processor, its children's too; 0.5 s when written, 7.6 s before."""
    program = (
        "import os, sys\nfrom mouselift_jax.__main__ import main\nmain(['doctor'])\n"
        "print('jax' in sys.modules, sum(os.times()[:4]))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    loaded, seconds = out.split()[-2:]
    assert loaded == "False" and float(seconds) <= 2.0
    assert "H.264" in out and "Device:" in out


def test_an_accelerator_is_asked_for_in_a_child(monkeypatch):
    """JAX takes a GPU's memory as long as its process lives: not doctor's own."""
    monkeypatch.setattr(_machine, "nvidia_query", lambda fields: [["RTX 3060"]])
    known = {"jax-cuda13-plugin": "0.10"}
    monkeypatch.setattr(_machine, "_version", known.get)
    asked = []
    monkeypatch.setattr(
        _machine.subprocess,
        "run",
        lambda command, **_: (
            asked.append(command)
            or SimpleNamespace(stdout='[{"name": "Device", "value": "cuda:0"}]', stderr="")
        ),
    )
    assert [f.value for f in _machine.accelerator_facts()] == ["cuda:0"] and "-c" in asked[0]
    known.clear()
    assert next(_machine.accelerator_facts()).state == "warn"  # a GPU, and a JAX for CPUs


def words_of(*args, capsys):
    code = main(["doctor", *map(str, args)])
    return code, capsys.readouterr().out


def test_before_a_training_everything_it_needs_is_gone_through(tmp_path, capsys, monkeypatch):
    samples = write_samples(tmp_path / "set", n=3, size=16, n_val=1)
    cards = [["0", "RTX 3060", "11900", "12288"], ["1", "RTX 3060", "3", "12288"]]
    monkeypatch.setattr(_before, "nvidia_query", lambda fields: cards)
    given = ("--samples", samples, "--workdir", tmp_path / "runs/gslrm")
    code, text = words_of("--before=gslrm", *given, capsys=capsys)
    assert code == 0 and "3 of 6 views: 2 for training, 1 for validation" in text
    assert "CUDA_VISIBLE_DEVICES=1" in text and "5 checkpoints of the base network" in text
    assert "--config.loss.perceptual=0" in text and "Ready for gslrm, but look at: W" in text

    cards[1][2] = "12000"
    usage = SimpleNamespace(free=2**30, total=2**40)
    monkeypatch.setattr(_before.shutil, "disk_usage", lambda place: usage)
    code, text = words_of("--before=gslrm", *given, capsys=capsys)
    assert code == 2 and "Not fit yet: Free GPU, Disk." in text and "remove old runs" in text


def test_before_views_are_made_the_prompts_are_compared_with_the_cameras(tmp_path, capsys):
    samples = write_samples(tmp_path / "set", n=2, size=16, n_val=1)  # 60 degrees apart
    for turns, code, said in (
        ([0, 60, 120, 180, 240, 300], 0, "in the order of the cameras"),
        ([0, 300, 240, 180, 120, 60], 2, "its prompt"),
    ):
        weights = tmp_path / f"weights{code}"
        words = {"prompts": ["a mouse, front view"], "turns_deg": turns, "shape": [6, 1, 4]}
        weights.mkdir()
        (weights / "config.json").write_text("{}")
        save_component(weights, "prompt_embeds", words, {"prompt_embeds": np.ones((6, 1, 4))})
        found = _before.checklist(
            _before.Question("mvdiff", samples, weights, weights, tmp_path / "runs")
        )
        prompts = [f for f in found if f.name == "Prompts"]
        assert "a mouse, front view" in prompts[0].value
        assert said in prompts[1].value and (prompts[1].state == "bad") == (code == 2)
        assert [f.state for f in found if f.name == "Weights unet"] == ["bad"]
    code, text = words_of("--before=fit", "--samples", samples, capsys=capsys)
    assert code == 0 and "Ready for fit" in text
    code, text = words_of("--before=synth", "--samples", tmp_path / "none", capsys=capsys)
    assert code == 2 and "no such file or folder" in text  # told, with all the rest
    assert main(["doctor", "--before=prepare"]) == 2
    assert "fit, gslrm, mvdiff, synth" in capsys.readouterr().err


@pytest.mark.parametrize("text, step", [('{"step": 7}\n{"st', ", step 7"), ("", ""), ("x", "")])
def test_the_last_whole_row_counts(tmp_path, text, step):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert _machine._last_step(tmp_path / "metrics.jsonl") == step
    assert _machine._last_step(tmp_path / "none") == ""
