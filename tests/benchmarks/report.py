"""What every benchmark writes: its tables, the machine they were seen on, the command."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "warp-lang", "torch")
Tables = Mapping[str, Sequence[Mapping[str, Any]]]


def write(benchmark: str, tables: Tables, out: Path | None, *, device: str = "") -> None:
    """Print a report as JSON, and write it to `out` when that is given.

    Args:
        benchmark: its name in `run_all.BENCHMARKS`.
        tables: {title: rows}; a row is a flat {column: number, text, yes or no, or None}.
        out: the file.
        device: "cpu" for work that never leaves the processor; else what JAX runs on here.
    """
    report = {
        "benchmark": benchmark,
        "device": device or backend(),
        "command": command(),
        "hardware": hardware(device),
        "versions": versions(),
        "tables": tables,
    }
    text = json.dumps(report, indent=1) + "\n"
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)


def kept(path: Path | None, part: Mapping[str, Any], make: Callable[[], list[dict]]) -> list[dict]:
    """The rows of one part of a benchmark: those that `path` has, else made and written there.

    A benchmark that is cut off goes on with its next part.

    Args:
        path: JSON lines, one a part; None = nothing is kept.
        part: what tells the part from others.
        make: measures it.
    """
    part = json.loads(json.dumps(part))
    lines = path.read_text().splitlines() if path and path.exists() else []
    for record in map(json.loads, lines):
        if record["part"] == part:
            return record["rows"]
    rows = make()
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps({"part": part, "rows": rows}) + "\n")
    return rows


def command() -> str:
    """The command of this process, to paste again; folders of this machine are named PATH."""
    module = Path(sys.argv[0]).stem
    words, skip = [], False
    for word in sys.argv[1:]:
        if skip or word == "--out":
            skip = not skip
        elif not word.startswith("--out="):
            words.append("PATH" if re.search(r"^(/|\.\.?/|~)", word) else word)
    return " ".join(["python -m tests.benchmarks." + module, *words])


def hardware(device: str = "") -> dict[str, str | float]:
    """Accelerator, processor, memory, and how busy the machine was (load of the last minute)."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", info)
    found: dict[str, str | float] = {
        "cores": f"{os.cpu_count()} cores of {model[1] if model else platform.processor()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "load": round(os.getloadavg()[0], 1),
    }
    if not device and backend() != "cpu":
        import jax

        found["devices"] = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    return found


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def backend() -> str:
    """What JAX runs on here: cpu, gpu or tpu."""
    import jax

    return jax.default_backend()


def now_gib(field: str) -> float:
    """A memory row of this program, GiB: VmHWM is the most it has held, VmRSS what it holds.

    (`getrusage` also counts what the parent held before this program began.)
    """
    with open("/proc/self/status") as f:
        rows = dict(line.split(":", 1) for line in f if ":" in line)
    return int(rows[field].split()[0]) / 2**20
