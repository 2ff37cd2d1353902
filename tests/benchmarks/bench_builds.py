"""This build beside that of another checkout, called in turn: processor time.

    python -m tests.benchmarks.bench_builds --other FOLDER [--repeats N] [--only warp,step]
        [--out FILE]

FOLDER is a checkout of this project (`git worktree add FOLDER COMMIT`). Each build has a process of
its own; they are called in turn, so that both meet the same machine. Medians, ms, one thread of
the rasterizer. Forward and backward; "six calls" is the same work a view at a time. `first step` is
a new process each time, from its start to the end of the first training step, without a cache.
With --only, rows of other works that --out holds are kept, so that all can be measured in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.benchmarks import report

CASES = {  # title -> (what the worker calls, its numbers)
    "warp, 50 k @ 256": ("warp", 50_000, 256, 1, 1),
    "warp, 100 k @ 256": ("warp", 100_000, 256, 1, 1),
    "warp, 100 k @ 512": ("warp", 100_000, 512, 1, 1),
    "warp, 393 k @ 256": ("warp", 393_218, 256, 1, 1),
    "warp, 5 k, six views @ 256, one call": ("warp", 5_000, 256, 6, 1),
    "warp, 10 k, six views @ 320, one call": ("warp", 10_000, 320, 6, 1),
    "warp, 5 k, six views @ 256, six calls": ("warp", 5_000, 256, 6, 6),
    "warp, 10 k, six views @ 320, six calls": ("warp", 10_000, 320, 6, 6),
    "tiled, 50 k @ 256": ("tiled", 50_000, 256, 1, 1),
    "step of gslrm:tiny": ("step",),
}
TITLE = "forward and backward, processor ms (first step: s)"
FIRST = "first step of gslrm:tiny, from the process's start, s"
# Run with the other checkout in front of the path: it may use only what every build has.
_WORKER = """
import sys, time, jax, jax.numpy as jnp, numpy as np
def draw(how, n, size, views, calls):
    from mouselift_jax.render import rasterize
    n, size, views, calls = map(int, (n, size, views, calls))
    with np.load(sys.argv[1]) as held:
        arrays = {k: jnp.asarray(held[f"{n} {size} {views} {k}"]) for k in (
            "means", "quats", "scales", "opacities", "colors", "w2c", "K")}
    cameras = {k: arrays.pop(k) for k in ("w2c", "K")}
    def loss(moving, cameras):
        out = rasterize(**moving, **cameras, width=size, height=size, implementation=how)
        return jnp.square(out.rgb).sum()
    both = jax.jit(jax.value_and_grad(loss))
    parts = [jax.tree.map(lambda a: jnp.split(a, calls)[i], cameras) for i in range(calls)]
    return lambda: jax.block_until_ready([both(arrays, part) for part in parts])
def train(_):
    from configs import gslrm as config_of
    from mouselift_jax.stages import gslrm
    from mouselift_jax.training.trainer import Trainer
    from tests.benchmarks.bench_train_step import make_batch
    config = config_of.get_config("tiny")
    trainer = Trainer(gslrm.make_task(config), config.train)
    state, batch = [trainer.create()], trainer.put(make_batch(config))
    def step():
        state[0], metrics = trainer.step(state[0], batch)
        jax.block_until_ready(metrics)
    return step
made = {}
for line in sys.stdin:
    case = tuple(line.split())
    if case not in made:
        made = {case: (train if case[0] == "step" else draw)(*case)}
        made[case]()
    start = time.process_time()
    made[case]()
    print("ms", 1e3 * (time.process_time() - start), flush=True)
"""


def measure(
    folders: dict[str, Path], scenes: Path, repeats: int, cases: dict[str, tuple]
) -> Iterator[dict]:
    """A row for every case: medians of each build, and their ratio."""
    workers = {}
    for name, folder in folders.items():
        workers[name] = subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(scenes)], cwd=folder, env=settings(folder),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def call(name: str, case: tuple) -> float:
        worker = workers[name]
        worker.stdin.write(" ".join(map(str, case)) + "\n")
        worker.stdin.flush()
        for line in worker.stdout:
            if line.startswith("ms "):
                return float(line.split()[1])
        raise RuntimeError(f"the worker of {name} ended: exit code {worker.wait()}")

    for title, case in cases.items():
        taken = {name: [] for name in workers}
        for _ in range(repeats + 2):
            for name in workers:
                taken[name].append(call(name, case))
        yield row(title, {name: a[2:] for name, a in taken.items()})
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()


def row(title: str, taken: dict[str, list[float]]) -> dict:
    """Medians of each build, and their ratio."""
    medians = {name: float(np.median(a)) for name, a in taken.items()}
    return {
        "work": title,
        **{name: round(v, 1) for name, v in medians.items()},
        "other / this": round(medians["other"] / medians["this"], 2),
    }


def first_steps(folders: dict[str, Path], repeats: int) -> dict:
    """Processor seconds from the start of Python to the end of the first step of a new process."""
    taken: dict[str, list[float]] = {name: [] for name in folders}
    for _ in range(repeats):
        for name, folder in folders.items():
            before = os.times()
            subprocess.run(
                [sys.executable, "-c", _WORKER, "-"], input="step\n", text=True, cwd=folder,
                check=True, env=settings(folder), stdout=subprocess.DEVNULL,
            )  # fmt: skip
            after = os.times()
            taken[name].append(
                after.children_user + after.children_system
                - before.children_user - before.children_system
            )  # fmt: skip
    return row(FIRST, taken)


def settings(folder: Path) -> dict[str, str]:
    """The environment of a build's process: its own sources, no cache of programs."""
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return {**kept, "PYTHONPATH": str(folder), "MOUSELIFT_RENDER_THREADS": "1"}


def main() -> None:
    from tests.render.scenes import gslrm_like

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--other", type=Path, required=True, help="checkout of another build")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", help="works that begin with one of these words, joined by commas")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    wanted = tuple(args.only.split(",")) if args.only else ("",)
    folders = {"other": args.other.resolve(), "this": Path(__file__).resolve().parents[2]}
    cases = {title: case for title, case in CASES.items() if title.startswith(wanted)}
    held = {}
    if args.out and args.out.exists():
        held = {r["work"]: r for r in json.loads(args.out.read_text())["tables"][TITLE]}

    def keep(found: dict) -> None:
        held[found["work"]] = found
        rows = [held[title] for title in (*CASES, FIRST) if title in held]
        report.write("builds", {TITLE: rows}, args.out)  # after each: what was measured stays

    with TemporaryDirectory() as folder:
        scenes = Path(folder) / "scenes.npz"
        drawn = [case for case in cases.values() if case[0] != "step"]
        arrays = {f"{n} {size} {views} {k}": v for _, n, size, views, _ in drawn
                  for k, v in gslrm_like(n, size, views=views).items()}  # fmt: skip
        np.savez(scenes, **arrays)
        for found in measure(folders, scenes, args.repeats, cases):
            keep(found)
    if FIRST.startswith(wanted):
        keep(first_steps(folders, min(args.repeats, 3)))


if __name__ == "__main__":
    main()
