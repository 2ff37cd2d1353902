import json

import pytest

from mouselift_jax.__main__ import main
from mouselift_jax.cli import _machine, doctor
from mouselift_jax.cli._machine import Fact


def test_doctor_finds_this_machine_fit_and_says_what_is_next(capsys, tmp_path):
    weights = tmp_path / "w" / "gslrm"
    weights.mkdir(parents=True)
    (weights / "conversion.json").write_text(json.dumps({"kind": "gslrm", "source": "a.pt"}))
    code = main(["doctor", "--checkpoints", str(tmp_path / "w")])
    out = capsys.readouterr().out
    assert code == 0, out
    for text in ("Python:", "Device:", "Rasterizer reference:", "Rasterizer tiled:", "H.264"):
        assert text in out
    assert "kind gslrm, source a.pt" in out and "Fit. Next:" in out


def test_json_is_for_programs(capsys, monkeypatch):
    facts = [Fact("a", "b"), Fact("c", "d", "bad", "mend it")]
    monkeypatch.setattr(doctor, "collect", lambda roots: facts)
    assert main(["doctor", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)[1]["fix"] == "mend it"


def test_what_is_broken_is_named_with_its_remedy(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "collect", lambda roots: [Fact("Video", "no", "bad", "install it")])
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


@pytest.mark.parametrize("text, step", [('{"step": 7}\n{"st', ", step 7"), ("", ""), ("x", "")])
def test_the_last_whole_row_counts(tmp_path, text, step):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert _machine._last_step(tmp_path / "metrics.jsonl") == step
    assert _machine._last_step(tmp_path / "none") == ""
