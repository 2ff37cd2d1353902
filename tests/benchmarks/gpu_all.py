"""All that a GPU should answer once one is there, in twelve minutes, the most valuable first.

    python -m tests.benchmarks.gpu_all --plan                  # what would be run; starts nothing
    python -m tests.benchmarks.gpu_all --out gpu_all.json      # the same command again goes on
    python -m tests.benchmarks.gpu_all --only parity,render --minutes 5
    python -m tests.benchmarks.gpu_all --toy                   # tiny sizes, on a CPU: does all run?

Each part is a process of its own with a limit of time, and writes into the file before the next
begins: a machine that is taken away loses the part that ran. Parts that are done are not run again;
those that failed or ran out of time are. `python -m tests.benchmarks.run_all --page` shows what
`run_all --only NAME` measured; this file is for a machine that is lent for minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KEPT_LINES = 30  # of what a part that failed said last


@dataclasses.dataclass(frozen=True)
class Part:
    """One question to the GPU.

    Attributes:
        asks: what it answers.
        words: a module of this package, or pytest, and its arguments.
        toy: what runs of it on any CPU in a minute.
        least: seconds without which it is not begun.
        most: seconds after which it is stopped.
    """

    asks: str
    words: str
    toy: str
    least: int
    most: int


TESTS = "pytest -n 0 -p no:cacheprovider"
KERNELS = "tests/render/test_warp_cuda.py"
RENDER = "bench_render --implementations warp --parts"
PARTS = {
    "parity": Part(
        "do the kernels give the goldens and the reference's gradients?",
        f"{TESTS} -m 'slow or not slow' {KERNELS}", f"{TESTS} {KERNELS}::test_golden_on_fibers",
        30, 180,
    ),
    "render": Part(
        "rasterizer beside gsplat, 400 k @ 256 and 512 px",
        f"{RENDER} time --cases gslrm:400000:256,gslrm:400000:512",
        f"{RENDER} time --cases gslrm:500:32 --repeats 1", 30, 120,
    ),
    "gslrm_step": Part(
        "GS-LRM's step in bfloat16, MFU, beside torch",
        "bench_train_step --network gslrm --batch 2",
        "bench_train_step --network gslrm --size 32 --repeat 1", 60, 180,
    ),
    "unet_step": Part(
        "the UNet's step in bfloat16, beside torch",
        "bench_views --train", "bench_train_step --network unet --size 32 --repeat 1", 90, 180,
    ),
    "full_shape": Part(
        "1.57 M Gaussians in 8 views @ 512 px: time and memory", f"{RENDER} full", f"{RENDER} full",
        30, 90,
    ),
    "attention": Part(
        "attention beside torch, 4,096 and 24,576 tokens",
        "bench_attention --tokens 4096,24576 --dtypes bfloat16",
        "bench_attention --tokens 64 --heads 2 --repeat 1", 30, 120,
    ),
    "fit": Part(
        "a frame fitted without weights", "bench_fit --quick", "bench_fit --quick", 60, 150,
    ),
    "lowmem": Part(
        "what GS-LRM lowmem holds and takes",
        "bench_train_step --network gslrm --variant lowmem --size 384 --batch 1 --repeat 2",
        "bench_train_step --network gslrm --size 32 --batch 1 --repeat 1", 60, 120,
    ),
}  # fmt: skip


def command(part: Part, *, toy: bool, out: Path) -> list[str]:
    """What is run; `out` gets the part's own report, if it writes one."""
    module, *words = shlex.split(part.toy if toy else part.words)
    if module == "pytest":
        return [sys.executable, "-m", module, *words]
    return [sys.executable, "-m", f"tests.benchmarks.{module}", *words, "--out", str(out)]


def environment(*, toy: bool) -> dict[str, str]:
    """Tests take a CPU unless told otherwise; torch needs room beside JAX."""
    platform = {"JAX_PLATFORMS": "cpu"} if toy else {"JAX_PLATFORMS": "cuda,cpu"}
    return os.environ | platform | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def ask(part: Part, seconds: float, *, toy: bool) -> dict[str, Any]:
    """Run one part for at most so many seconds -> its row of the file."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        words = command(part, toy=toy, out=out)
        log = Path(folder) / "log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                words, cwd=ROOT, env=environment(toy=toy), stdout=stream, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(timeout=seconds)
                state = "done" if code == 0 else "failed"
            except subprocess.TimeoutExpired:
                state, code = "stopped", None
            finally:
                if process.poll() is None:  # with what it started
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        said = log.read_text(errors="replace").splitlines()
        row = {
            "asks": part.asks,
            "state": state,
            "exit_code": code,
            "seconds": round(time.monotonic() - started, 1),
            "command": " ".join(["python", *words[1:]]).replace(str(out), "FILE"),
        }
        if out.exists():  # some write after each table: what was measured is kept
            row["report"] = json.loads(out.read_text())
        if "pytest" in words:
            row["tests"] = next((s for s in reversed(said) if re.search(r"\d+ (pass|fail)", s)), "")
            row["failed"] = [s for s in said if s.startswith("FAILED")]
        if state != "done":
            row["said"] = said[-KEPT_LINES:]
        return row


def platform() -> str:
    """What JAX runs on here, asked in a process of its own: this one must not hold the GPU."""
    asked = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip().split("\n")[-1] or "nothing: " + done.stderr[-300:]


def keep(found: dict[str, Any], out: Path) -> None:
    """Write the file, whole or not at all."""
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(out)


def show(names: list[str], found: dict[str, Any], *, toy: bool) -> None:
    """The plan: what is done, what would be run, with its limit."""
    for name in names:
        part, known = PARTS[name], found.get(name, {}).get("state", "")
        words = " ".join(["python", *command(part, toy=toy, out=Path("FILE"))[1:]])
        print(f"{name:11} {known or f'<= {part.most} s':9} {part.asks}\n{'':21} {words}")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu_all.json"))
    parser.add_argument("--minutes", type=float, default=12.0, help="for this call, in all")
    parser.add_argument("--only", default="", help=f"of {','.join(PARTS)}")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, on a CPU")
    args = parser.parse_args(words)
    names = args.only.split(",") if args.only else list(PARTS)
    if unknown := [n for n in names if n not in PARTS]:
        parser.error(f"unknown: {unknown}; known: {', '.join(PARTS)}")
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    if args.plan:
        show(names, found, toy=args.toy)
        return 0
    if not args.toy and (here := platform()) != "gpu":
        print(f"no GPU here (JAX runs on {here}): --toy tries every part on a CPU", file=sys.stderr)
        return 2
    end = time.monotonic() + 60 * args.minutes
    for name in names:
        if found.get(name, {}).get("state") == "done":
            print(f"{name}: done before", flush=True)
            continue
        part, left = PARTS[name], end - time.monotonic()
        if left < (5 if args.toy else part.least):
            found[name] = {"asks": part.asks, "state": "not begun", "seconds_left": round(left)}
        else:
            print(f"{name}: {part.asks} (at most {min(part.most, left):.0f} s) ...", flush=True)
            found[name] = ask(part, min(part.most, left), toy=args.toy)
            found[name]["toy"] = args.toy
        keep(found, args.out)
        print(f"{name}: {found[name]['state']}", flush=True)
    wrong = [n for n in names if found[n]["state"] != "done"]
    print(f"{len(names) - len(wrong)} of {len(names)} done; {args.out}")
    if wrong:
        print(f"left: {', '.join(wrong)}; the same command goes on")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
