"""All benchmarks, one after the other -> runs/bench/*.json and the tables of docs/benchmarks.md.

    make bench            (= python -m tests.benchmarks.run_all)
    python -m tests.benchmarks.run_all --only attention,loader
    python -m tests.benchmarks.run_all --tables          # only write the tables from the JSON there

Each benchmark is a process of its own, so that none inherits another's memory or caches. One that
fails is reported at the end, and its table is left out; the others are still run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOC = ROOT / "docs" / "benchmarks.md"
MARK = "<!-- below: written by `make bench` from runs/bench/*.json -->"
# name -> arguments after the module; {out} is the JSON to write.
BENCHMARKS = {
    "render": ["--out", "{folder}/render"],
    "attention": ["--out", "{out}"],
    "train_step": ["--out", "{out}"],
    "loader": ["--out", "{out}"],
    "checkpoint": ["--out", "{out}"],
}


def machine() -> dict[str, str]:
    """What the numbers were seen on."""
    code = "import jax; d = jax.devices(); print(len(d), d[0].device_kind)"
    devices = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return {
        "devices": devices.stdout.strip(),
        "cores": str(os.cpu_count()),
        "processor": platform.machine(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")},
    }


def result_path(folder: Path, name: str) -> Path:
    """Where a benchmark leaves its JSON."""
    return folder / "render" / "render.json" if name == "render" else folder / f"{name}.json"


def run(name: str, folder: Path) -> bool:
    """Run one benchmark; True when it left its JSON."""
    out = result_path(folder, name)
    arguments = [a.format(out=out, folder=folder) for a in BENCHMARKS[name]]
    command = [sys.executable, "-m", f"tests.benchmarks.bench_{name}", *arguments]
    print("$ python", *command[1:], flush=True)
    done = subprocess.run(command, cwd=ROOT, check=False)
    return done.returncode == 0 and out.exists()


def flatten(value: object, prefix: str = "") -> list[tuple[str, str]]:
    """Nested results as (dotted name, text); lists of numbers stay on one line."""
    if isinstance(value, dict):
        return [row for k, v in value.items() for row in flatten(v, f"{prefix}{k}.")]
    if isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        return [row for i, v in enumerate(value) for row in flatten(v, f"{prefix}{i}.")]
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return [(prefix.rstrip("."), text.replace("|", "/").replace("\n", " "))]


def tables(folder: Path, host: dict[str, str]) -> str:
    """Markdown of every JSON in the folder, marked CPU or accelerator."""
    kind = "CPU" if "cpu" in host["devices"].lower() else "accelerator"
    lines = ["", f"## {kind}: " + ", ".join(f"{k} {v}" for k, v in host.items() if v), ""]
    for name in BENCHMARKS:
        path = result_path(folder, name)
        if not path.exists():
            continue
        lines += [
            f"### `python -m tests.benchmarks.bench_{name}`",
            "",
            "| what | figure |",
            "|---|---|",
        ]
        lines += [f"| {k} | {v} |" for k, v in flatten(json.loads(path.read_text()))] + [""]
    return "\n".join(lines)


def main() -> int:
    """Run, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="names, joined by commas")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    names = args.only.split(",")
    unknown = [n for n in names if n not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown: {unknown}; known: {', '.join(BENCHMARKS)}")
    failed = [] if args.tables else [n for n in names if not run(n, args.out)]
    text = DOC.read_text().split(MARK)[0]
    DOC.write_text(text + MARK + "\n" + tables(args.out, machine()))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
