"""The CPU rasterizer beside that of another checkout: processor time, forward and backward.

    python -m tests.benchmarks.bench_builds --other FOLDER [--repeats N] [--out FILE]

FOLDER is a checkout of this project (`git worktree add FOLDER COMMIT`). Each build has a process of
its own; they are called in turn, so that both meet the same machine. Medians, ms, one thread. "six
calls" is the same work a view at a time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.benchmarks import report

CASES = {
    "50 k @ 256": (50_000, 256, 1, 1),
    "100 k @ 256": (100_000, 256, 1, 1),
    "100 k @ 512": (100_000, 512, 1, 1),
    "393 k @ 256": (393_218, 256, 1, 1),
    "5 k, six views @ 256, one call": (5_000, 256, 6, 1),
    "10 k, six views @ 320, one call": (10_000, 320, 6, 1),
    "5 k, six views @ 256, six calls": (5_000, 256, 6, 6),
    "10 k, six views @ 320, six calls": (10_000, 320, 6, 6),
}
# Run with the other checkout in front of the path: it may use only what every build has.
_WORKER = """
import sys, time, jax, jax.numpy as jnp, numpy as np
from mouselift_jax.render import rasterize
def make(n, size, views, calls):
    with np.load(sys.argv[1]) as held:
        arrays = {k: jnp.asarray(held[f"{n} {size} {views} {k}"]) for k in (
            "means", "quats", "scales", "opacities", "colors", "w2c", "K")}
    cameras = {k: arrays.pop(k) for k in ("w2c", "K")}
    def loss(moving, cameras):
        out = rasterize(**moving, **cameras, width=size, height=size, implementation="warp")
        return jnp.square(out.rgb).sum()
    both = jax.jit(jax.value_and_grad(loss))
    parts = [jax.tree.map(lambda a: jnp.split(a, calls)[i], cameras) for i in range(calls)]
    return lambda: jax.block_until_ready([both(arrays, part) for part in parts])
made = {}
for line in sys.stdin:
    case = tuple(map(int, line.split()))
    if case not in made:
        made = {case: make(*case)}
        made[case]()
    start = time.process_time()
    made[case]()
    print("ms", 1e3 * (time.process_time() - start), flush=True)
"""


def measure(folders: dict[str, Path], scenes: Path, repeats: int) -> list[dict]:
    """A row for every case: medians of each build, and their ratio."""
    workers = {}
    for name, folder in folders.items():
        environment = {**os.environ, "PYTHONPATH": str(folder), "MOUSELIFT_RENDER_THREADS": "1"}
        workers[name] = subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(scenes)], cwd=folder, env=environment,
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

    rows = []
    for title, case in CASES.items():
        taken = {name: [] for name in workers}
        for _ in range(repeats + 2):
            for name in workers:
                taken[name].append(call(name, case))
        medians = {name: float(np.median(a[2:])) for name, a in taken.items()}
        ratio = medians["other"] / medians["this"]
        rows.append({"work": title, **{f"{k} ms": round(v, 1) for k, v in medians.items()},
                     "other / this": round(ratio, 2)})  # fmt: skip
        print(rows[-1], flush=True)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return rows


def main() -> None:
    from tempfile import TemporaryDirectory

    from tests.render.scenes import gslrm_like

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--other", type=Path, required=True, help="checkout of another build")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    here = Path(__file__).resolve().parents[2]
    with TemporaryDirectory() as folder:
        scenes = Path(folder) / "scenes.npz"
        held = {f"{n} {size} {views} {k}": v for n, size, views, _ in CASES.values()
                for k, v in gslrm_like(n, size, views=views).items()}  # fmt: skip
        np.savez(scenes, **held)
        rows = measure({"other": args.other.resolve(), "this": here}, scenes, args.repeats)
    report.write("render_builds", {"forward and backward, processor time": rows}, args.out)


if __name__ == "__main__":
    main()
