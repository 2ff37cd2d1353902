"""What a GPU should answer: planned, stopped, resumed; every part at toy size on a CPU."""

import dataclasses
import json

import pytest

from tests.benchmarks import gpu_all
from tests.benchmarks.gpu_all import Part


def test_the_plan_starts_nothing(tmp_path, capsys):
    out = tmp_path / "all.json"
    assert gpu_all.main(["--plan", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()[::2]] == list(gpu_all.PARTS)
    assert not out.exists()


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_all, "platform", lambda: "cpu")
    assert gpu_all.main(["--out", str(tmp_path / "all.json")]) == 2
    assert "--toy" in capsys.readouterr().err


def test_a_call_that_ended_early_goes_on(tmp_path, monkeypatch):
    """Done parts stay, others are asked again; what a part wrote before it was stopped is kept."""
    tries = tmp_path / "tries"
    script = {
        "good": "print('x')",
        "slow": "import sys, time; open(sys.argv[-1], 'w').write('[1]'); time.sleep(60)",
        "bad": "raise SystemExit('no such card')",
    }

    def command(part, *, toy, out):  # noqa: ARG001
        tries.open("a").write(part.words + " ")
        return [gpu_all.sys.executable, "-c", script[part.words], str(out)]

    monkeypatch.setattr(gpu_all, "command", command)
    parts = {n: Part("?", n, n, 1, 1 if n == "slow" else 20) for n in script}
    monkeypatch.setattr(gpu_all, "PARTS", parts)
    out = tmp_path / "all.json"
    words = ["--toy", "--out", str(out)]
    assert gpu_all.main(words) == 1
    found = json.loads(out.read_text())
    assert {n: r["state"] for n, r in found.items()} == {
        "good": "done", "slow": "stopped", "bad": "failed"
    }  # fmt: skip
    assert found["slow"]["report"] == [1] and found["bad"]["said"] == ["no such card"]
    assert gpu_all.main([*words, "--only", "good,bad"]) == 1
    assert tries.read_text().split() == ["good", "slow", "bad", "bad"]
    assert gpu_all.main([*words, "--only", "bad", "--minutes", "0"]) == 1
    assert json.loads(out.read_text())["bad"]["state"] == "not begun"


@pytest.mark.parametrize(
    "name",
    [n if n == "parity" else pytest.param(n, marks=pytest.mark.slow) for n in gpu_all.PARTS],
)
def test_each_part_runs_at_toy_size(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device, as where a GPU is lent; here there are two
    slow = {n: dataclasses.replace(p, most=2.5 * p.most) for n, p in gpu_all.PARTS.items()}
    monkeypatch.setattr(gpu_all, "PARTS", slow)  # the limits are a GPU's; a busy CPU takes longer
    if name in ("parity", "render", "full_shape"):
        pytest.importorskip("warp")
    out = tmp_path / "all.json"
    assert gpu_all.main(["--toy", "--only", name, "--out", str(out)]) == 0, out.read_text()
    row = json.loads(out.read_text())[name]
    assert "1 passed" in row["tests"] if name == "parity" else row["report"]["tables"]
