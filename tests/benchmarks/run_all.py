"""All benchmarks, one after the other -> tests/benchmarks/results/*.json -> docs/benchmarks.md.

    make bench            (= python -m tests.benchmarks.run_all)
    python -m tests.benchmarks.run_all --only attention,loader
    python -m tests.benchmarks.run_all --page          # only write the page from the JSON files

How a number gets onto the page: a benchmark hands its tables to `report.write`, which adds the
command, the hardware, its load and the versions; the file is `results/NAME-cpu.json`,
`NAME-gpu.json` or `NAME-tpu.json` by where it ran, and replaces the former one of that name. The
page is made from those files alone, marked CPU, GPU or TPU, and `test_page.py` fails when the two
differ. So: run `--only NAME` (on any machine; `-- --repeats 5` and the like reach the benchmark),
commit the JSON file and the page. To add a benchmark, give it `--out FILE`, let it call
`report.write("NAME", {title: [row, ...]}, out)`, and name it in `BENCHMARKS`. After a merge
conflict in the page, run `--page`. Timings of whole commands, which have no program of their own,
stand in `results/stages-cpu.json` in the same form, each row with the command that was timed.

Each benchmark is a process of its own, so that none inherits another's memory or caches. One that
fails is reported at the end, leaves the former file, and the others are still run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.report import RESULTS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
SHARED = Path(os.environ.get("MOUSELIFT_SHARED", ROOT.parent / "shared"))


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One section of the page.

    Attributes:
        title: its heading.
        says: what is measured, a sentence or two.
        module: what to run, in this package; "" = timed by hand.
        on: devices it is meant for; the page says which of them were not measured.
        needs: a file or folder without which a plain `make bench` leaves it out.
    """

    title: str
    says: str
    module: str = ""
    on: tuple[str, ...] = ("cpu", "gpu")
    needs: Path | None = None


BENCHMARKS = {
    "train_step": Benchmark(
        "Training step",
        "Loss, gradient and AdamW update of GS-LRM and of the multi-view UNet; `network` is "
        "without the rasterizer. On a GPU beside the same network in torch.",
        "bench_train_step",
    ),
    "views": Benchmark(
        "Multi-view UNet beside torch",
        "Full size: 0.87 billion weights, six views. The same network in both frameworks, in turn.",
        "bench_views",
    ),
    "attention": Benchmark(
        "Attention",
        "Every backend that runs there, beside torch's scaled_dot_product_attention, in turn; "
        "`temp` is what the compiled program needs beyond its arguments.",
        "bench_attention",
    ),
    "render": Benchmark(
        "Rasterizers",
        "Projection, lists and blending; `both` is forward and backward together. gsplat, where it "
        "was there, is a peer.",
        "bench_render",
    ),
    "builds": Benchmark(
        "Beside an earlier build",
        "`other` is commit a14a939, `this` the build of the page; called in turn, in runs of "
        "some rows each. Asked for by name, with `-- --other FOLDER`.",
        "bench_builds",
        on=("cpu",),
        needs=Path("asked for by name"),
    ),
    "loader": Benchmark(
        "Loader",
        "RGBA views a second as training reads them, 512 px files, two threads.",
        "bench_loader",
        on=("cpu",),
    ),
    "loader_memory": Benchmark(
        "Loader, memory",
        "Growth of the largest resident size while two batches of six views at 512 px are read and "
        "the last is held.",
        "bench_loader_memory",
        on=("cpu",),
    ),
    "prepare": Benchmark(
        "Preparation of a recording",
        "A recording of 90 frames, 6 cameras of 1152x1024, with mask videos.",
        "bench_prepare",
        on=("cpu",),
        needs=SHARED / "recordings" / "mouse_a",
    ),
    "fit": Benchmark(
        "Fit without weights",
        "Judged by views hidden from the fit, beside the nearest given view, the visual hull, an "
        "experiment and a network; processor time after compilation. Asked for by name, with "
        "`-- --folder FOLDER --seeds 21 22 23` or `-- --samples RUN_OF_PREPARE`.",
        "bench_fit",
        on=("cpu",),
        needs=Path("asked for by name"),
    ),
    "calibrate": Benchmark(
        "Calibration by the animal",
        "Pixels by which cameras miss true points before and after `calibrate`, once the worlds "
        "are laid together; what mended cameras are worth to a fit, judged by hidden cameras; "
        "derivatives by K. `-- --folder FOLDER`: a stopped benchmark goes on there.",
        "bench_calibrate",
        on=("cpu",),
        needs=SHARED / "recordings" / "mouse_a",
    ),
    "film": Benchmark(
        "One set of Gaussians through a film",
        "Material points of procedural recordings followed by their Gaussians, beside the fit that "
        "starts from the frame before and beside fits that know nothing of each other; judged from "
        "two cameras that nothing saw. Asked for by name, with `-- --rows FILE`, where a stopped "
        "benchmark goes on.",
        "bench_film",
        on=("cpu",),
        needs=Path("asked for by name"),
    ),
    "measure": Benchmark(
        "Measures and descriptor",
        "Fits of procedural recordings against the exact body, by what the animal does; whether "
        "the standard errors are honest; which rows tell what it does. Asked for by name, with "
        "`-- --rows FILE`, where a stopped benchmark goes on.",
        "bench_measure",
        on=("cpu",),
        needs=Path("asked for by name"),
    ),
    "rigs": Benchmark(
        "One rig, drawn from fits",
        "Tiny networks taught on a recording and judged on another one. Asked for by name, with "
        "`-- --folder FOLDER`, where a stopped benchmark goes on.\n\n"
        "The table is of 80 steps and tells nothing apart. Of 800 steps on 12 frames, judged in "
        "four frames of another animal as sharp as its recording, two rows were measured: six "
        "real views 0.749 and 17.4 dB, the fits' 32 views 0.747 and 17.0 dB, 3.3 and 4.1 dB below "
        "the mean colour. The goal (0.02 and 1.0 dB above six real views) is missed. Why is not "
        "settled: the networks saw one animal, and pictures sharper than their 64 px show holes "
        "between their Gaussians; hidden pictures are shrunk to the network's pixels since, which "
        "was not run to its end. The multi-view network of the walking rig (spread 1.2 px), 200 "
        "steps at 64 px: views 24.2 dB, hull cover 0.79, no watchdog; its twin of the canonical "
        "rig was not finished.",
        "bench_rigs",
        on=("cpu",),
        needs=Path("asked for by name"),
    ),
    "checkpoint": Benchmark(
        "Checkpoints",
        "`blocked` is what a training step waits for, `whole` until the checkpoint is complete, "
        "`restore` with every bit checked.",
        "bench_checkpoint",
        on=("cpu",),
    ),
    "conversion": Benchmark(
        "Conversion of torch checkpoints",
        "Full size, random weights, beside reading and rewriting the same bytes with safetensors, "
        "in turn. Needs 25 GB of disk: not part of a plain `make bench`.",
        "full_size_conversion",
        on=("cpu",),
        needs=Path("asked for by name"),
    ),
    "stages": Benchmark("Whole commands", "Timed from outside, as a user would see them.", on=()),
}

HEAD = """# Benchmarks

Written by `make bench` from the files in `tests/benchmarks/results/` (the page alone:
`python -m tests.benchmarks.run_all --page`). Every figure was measured by the command above its
table, on the machine named there; what has no figure was not measured, and nothing here is an
estimate. `load` is how many processes wanted the cores when the figures were written: where it is
above the number of cores, wall-clock times are upper bounds, and processor time (`cpu`) compares.
"""


def run(name: str, extra: Sequence[str]) -> bool:
    """Run one benchmark; True when it left its JSON among the results."""
    benchmark = BENCHMARKS[name]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        module = f"tests.benchmarks.{benchmark.module}"
        command = [sys.executable, "-m", module, *extra, "--out", str(out)]
        print("$ python", *command[1:], flush=True)
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode or not out.exists():
            return False
        device = json.loads(out.read_text())["device"]
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}-{device}.json").write_text(out.read_text())
    return True


def cell(value: Any) -> str:
    """A number or text as it stands in a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "/").replace("\n", " ")


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown of rows; columns in the order in which they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numbers = [all(not isinstance(r.get(c), str) for r in rows) for c in columns]
    lines = ["| " + " | ".join(columns) + " |"]
    lines += ["|" + "|".join("--:" if n else "---" for n in numbers) + "|"]
    return lines + ["| " + " | ".join(cell(r.get(c)) for c in columns) + " |" for r in rows]


def section(report: Mapping[str, Any]) -> list[str]:
    """One report: the machine, the command, its tables."""
    machine = dict(report["hardware"])
    machine["load"] = f"load {machine['load']}"
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    lines = [f"**{report['device'].upper()}**: {', '.join(machine.values())}; {versions}.", ""]
    if report["command"]:
        lines += [f"`{report['command']}`", ""]
    for title, rows in report["tables"].items():
        lines += [f"{title}:", ""] if title else []
        lines += [*table(rows), ""]
    return lines


def page(folder: Path = RESULTS) -> str:
    """The whole page."""
    lines = [HEAD]
    for name, benchmark in BENCHMARKS.items():
        files = sorted(folder.glob(f"{name}-*.json"))
        lines += [f"## {benchmark.title}", "", benchmark.says, ""]
        for file in files:
            lines += section(json.loads(file.read_text()))
        missing = [d.upper() for d in benchmark.on if not (folder / f"{name}-{d}.json").exists()]
        if missing:
            lines += [f"Not measured: {', '.join(missing)}.", ""]
    return "\n".join(lines)


def main() -> int:
    """Run, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names, joined by commas")
    parser.add_argument("--page", action="store_true", help="run nothing")
    parser.add_argument("rest", nargs="*", help="after --: arguments of the one benchmark named")
    args = parser.parse_args()
    able = [n for n, b in BENCHMARKS.items() if b.module]
    names = [n for n in able if not (b := BENCHMARKS[n].needs) or b.exists()]
    if args.only:
        names = args.only.split(",")
    if unknown := [n for n in names if n not in able]:
        parser.error(f"unknown: {unknown}; known: {', '.join(able)}")
    if args.rest and len(names) != 1:
        parser.error("arguments after -- are of one benchmark: give --only NAME")
    failed = [] if args.page else [n for n in names if not run(n, args.rest)]
    PAGE.write_text(page())
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
