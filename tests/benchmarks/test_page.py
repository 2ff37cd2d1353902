"""docs/benchmarks.md is what the results say, and the results say where they come from."""

import json

import pytest

from tests.benchmarks import report, run_all

FILES = sorted(report.RESULTS.glob("*.json"))


def test_the_page_is_what_the_results_give():
    again = "write it with `python -m tests.benchmarks.run_all --page`"
    assert run_all.PAGE.read_text() == run_all.page(), again


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_results_say_what_was_measured_where(file):
    found = json.loads(file.read_text())
    assert file.stem == f"{found['benchmark']}-{found['device']}"
    assert found["device"] in ("cpu", "gpu", "tpu") and found["benchmark"] in run_all.BENCHMARKS
    assert {"cores", "memory", "load"} <= set(found["hardware"])
    assert {"python", "jax"} <= set(found["versions"])
    module = run_all.BENCHMARKS[found["benchmark"]].module
    assert module in found["command"] and "PATH" not in found["hardware"].values()
    rows = [row for table in found["tables"].values() for row in table]
    assert rows and not any(isinstance(v, (dict, list)) for row in rows for v in row.values())


def test_every_benchmark_can_be_run():
    for benchmark in run_all.BENCHMARKS.values():
        file = run_all.ROOT / "tests" / "benchmarks" / f"{benchmark.module}.py"
        assert not benchmark.module or (file.exists() and '"--out"' in file.read_text())


def test_a_report_is_written_as_the_page_reads_it(tmp_path, monkeypatch):
    argv = ["somewhere/bench_loader.py", "--samples", "/a/b", "--out", "x.json", "--seconds", "1"]
    monkeypatch.setattr("sys.argv", argv)
    rows = [{"what": "a|b", "n": 1234567, "s": 0.123456, "ok": True}, {"what": "c", "extra": None}]
    report.write("loader", {"first": rows}, tmp_path / "loader-cpu.json", device="cpu")
    page = run_all.page(tmp_path)
    assert "`python -m tests.benchmarks.bench_loader --samples PATH --seconds 1`" in page
    assert "| what | n | s | ok | extra |\n|---|--:|--:|--:|--:|" in page
    assert "| a/b | 1,234,567 | 0.123 | yes |  |" in page and "| c |  |  |  |  |" in page
    assert "**CPU**" in page and "Not measured: CPU, GPU." in page


def test_a_part_is_measured_once_and_kept(tmp_path):
    calls, path = [], tmp_path / "rows" / "film.jsonl"

    def measured(seed):
        calls.append(seed)
        return [{"seed": seed, "mm": 0.5}]

    for _ in range(2):
        for seed in (31, 32):
            part = {"seed": seed, "size": (288, 256)}
            rows = report.kept(path, part, lambda s=seed: measured(s))
            assert rows == [{"seed": seed, "mm": 0.5}]
    assert calls == [31, 32]
    report.kept(path, {"seed": 31, "size": (576, 512)}, lambda: measured(31))
    assert calls == [31, 32, 31] and len(path.read_text().splitlines()) == 3
    assert report.kept(None, {}, lambda: measured(1)) == report.kept(None, {}, lambda: measured(1))
