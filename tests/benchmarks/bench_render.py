"""Speed, memory and agreement of the rasterizers, as JSON, and difference pictures.

    python -m tests.benchmarks.bench_render [--quick] [--parts LIST] [--gsplat FOLDER]
        [--out FILE] [--pictures FOLDER]

Times are medians of calls that alternate between implementations in one process: processor
milliseconds (both cores added up), and wall milliseconds, which on a busy machine are noise.
Projection, lists and blending are included; "both" is forward and backward together. gsplat is only
a peer: `pip install --no-deps --target FOLDER gsplat==1.5.3` and name the folder. The last part is
GS-LRM's training shape, 1,572,866 Gaussians in 8 views of 512 px, in processes of their own. With
--parts, the tables of the other parts stay in --out as they are, so that the whole can be measured
in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.render import rasterize
from mouselift_jax.render.types import Spec
from tests.benchmarks import report
from tests.benchmarks.peers_render import gsplat_cuda, gsplat_torch
from tests.render.scenes import gslrm_like, shell, untrained

GAUSSIANS = ("means", "quats", "scales", "opacities", "colors")
SCENES = {"gslrm": gslrm_like, "shell": shell, "untrained": untrained}
GSLRM_FULL = 6 * 512 * 512 + 2
PARTS = {  # name of a part -> title of its table
    "time": "time",
    "pictures": "pictures, 100,000 Gaussians @ 512 px",
    "compiled": "forward and backward, as compiled",
    "slabs": "`tiled`, one slab and four",
    "threads": "`warp`, one thread and two",
    "step": "GS-LRM of the demo, a training step",
    "full": "GS-LRM's training shape, forward and backward, a process each",
}


def calls(arrays: dict, size: int, implementation: str) -> dict[str, Callable]:
    """Compiled forward and both-ways calls, as functions of nothing."""
    arrays = {k: jnp.asarray(v) for k, v in arrays.items()}

    def draw(arrays):
        return rasterize(**arrays, width=size, height=size, implementation=implementation)

    def loss(moving, cameras):
        return jnp.square(draw({**moving, **cameras}).rgb).sum()

    moving = {k: arrays[k] for k in GAUSSIANS}
    cameras = {k: arrays[k] for k in ("w2c", "K")}
    forward, both = jax.jit(draw), jax.jit(jax.value_and_grad(loss))
    return {
        "forward": lambda: jax.block_until_ready(forward(arrays)),
        "both": lambda: jax.block_until_ready(both(moving, cameras)),
    }


def alternate(functions: dict[str, Callable], repeats: int) -> dict[str, dict[str, float]]:
    """Median processor and wall milliseconds of each function, called in turn."""
    taken = {name: ([], []) for name in functions}
    for name in functions:
        functions[name]()
    for _ in range(repeats):
        for name, function in functions.items():
            cpu, wall = time.process_time(), time.perf_counter()
            function()
            taken[name][0].append((time.process_time() - cpu) * 1e3)
            taken[name][1].append((time.perf_counter() - wall) * 1e3)
    return {
        name: {"cpu_ms": round(float(np.median(a)), 1), "wall_ms": round(float(np.median(b)), 1)}
        for name, (a, b) in taken.items()
    }


def speed(kind: str, n: int, size: int, implementations: list[str], args) -> list[dict]:
    """A row for every implementation, and for gsplat where it is wanted and present."""
    arrays = SCENES[kind](n, size)
    functions = {}
    for name in implementations:
        for way, function in calls(arrays, size, name).items():
            functions[f"{name}/{way}"] = function
    taken = alternate(functions, args.repeats)
    peer = gsplat_torch(arrays, size, args.gsplat) if args.gsplat and n <= 50_000 else None
    if peer is not None:
        ways = {f"gsplat_torch/{w}": (lambda w=w: peer(w == "both")) for w in ("forward", "both")}
        taken |= alternate(ways, 1 if args.quick else 3)
    peer = gsplat_cuda(arrays, size, args.gsplat) if jax.default_backend() != "cpu" else None
    if peer is not None:
        ways = {f"gsplat_cuda/{w}": (lambda w=w: peer(w == "both")) for w in ("forward", "both")}
        taken |= alternate(ways, args.repeats)
    return by_implementation({"scene": kind, "gaussians": n, "size": size}, taken)


def by_implementation(about: dict, taken: dict[str, dict[str, float]]) -> list[dict]:
    """{"warp/forward": {"cpu_ms": ...}} as one row a name, "forward cpu_ms" being a column."""
    rows: dict[str, dict] = {}
    for key, times in taken.items():
        name, _, way = key.partition("/")
        row = rows.setdefault(name, {**about, "implementation": name})
        row |= {f"{way} {unit}": value for unit, value in times.items()}
    return list(rows.values())


def compiled(n: int, size: int, implementation: str) -> dict:
    """What XLA plans, and how long it takes to compile, forward and backward."""
    arrays = {k: jnp.asarray(v) for k, v in gslrm_like(n, size).items()}

    def loss(moving, cameras):
        out = rasterize(**moving, **cameras, width=size, height=size, implementation=implementation)
        return jnp.square(out.rgb).sum()

    moving = {k: arrays[k] for k in GAUSSIANS}
    cameras = {k: arrays[k] for k in ("w2c", "K")}
    cpu, wall = time.process_time(), time.perf_counter()
    memory = jax.jit(jax.grad(loss)).lower(moving, cameras).compile().memory_analysis()
    return {
        "gaussians": n,
        "size": size,
        "implementation": implementation,
        "temporary_mb": round(memory.temp_size_in_bytes / 2**20, 1),
        "compile_wall_s": round(time.perf_counter() - wall, 1),
        "compile_cpu_s": round(time.process_time() - cpu, 1),
    }


def slab_cost(n: int, size: int, repeats: int) -> list[dict]:
    """The same picture from one slab and from several."""
    from mouselift_jax.render import tiled

    arrays = [jnp.asarray(a)[None] for a in gslrm_like(n, size).values()]
    spec = Spec(size, size, 0.2, None)
    functions = {}
    for capacity in (8 * n, 5 * n // 4):  # one slab, and four

        def loss(gaussians, cameras, capacity=capacity):
            rgb, *_, info = tiled.rasterize_flat(spec, *gaussians, *cameras, capacity=capacity)
            return jnp.square(rgb).sum(), info

        run = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, counts), _ = run(arrays[:5], arrays[5:])
        name = f"{int(counts['slabs'])} slabs"
        functions[f"tiled, {name}/both"] = lambda run=run: jax.block_until_ready(
            run(arrays[:5], arrays[5:])
        )
    return by_implementation({"gaussians": n, "size": size}, alternate(functions, repeats))


def thread_gain(n: int, size: int, repeats: int) -> list[dict]:
    """Wall time of `warp` with one and two threads; needs an idle machine to mean anything."""
    functions = {}
    for threads in (1, 2):
        for way, function in calls(gslrm_like(n, size), size, "warp").items():

            def run(function=function, threads=threads):
                os.environ["MOUSELIFT_RENDER_THREADS"] = str(threads)
                function()

            functions[f"warp, {threads} threads/{way}"] = run
    taken = alternate(functions, repeats)
    os.environ.pop("MOUSELIFT_RENDER_THREADS", None)
    return by_implementation({"gaussians": n, "size": size}, taken)


def training_step(implementations: list[str], repeats: int) -> list[dict]:
    """A training step of the demo's GS-LRM, from its first weights, with each rasterizer."""
    from configs import gslrm as config_of
    from mouselift_jax.stages import gslrm
    from mouselift_jax.training.trainer import Trainer
    from tests.benchmarks.bench_train_step import make_batch

    functions = {}
    for name in implementations:
        config = config_of.get_config("tiny")
        config.render = name
        trainer = Trainer(gslrm.make_task(config), config.train)
        held = {"state": trainer.create(), "batch": trainer.put(make_batch(config))}

        def step(trainer=trainer, held=held):
            held["state"], metrics = trainer.step(held["state"], held["batch"])
            jax.block_until_ready(metrics)

        functions[f"{name}/step"] = step
    about = {"network": "gslrm:tiny", "size": config.data.size, "batch": config.train.batch_size}
    return by_implementation(about, alternate(functions, repeats))


def full_shape(views: int, implementation: str) -> dict:
    """One training step's rendering at full size, in this process; peak memory of the process."""
    arrays = gslrm_like(GSLRM_FULL, 512, views=views)
    before = report.now_gib("VmHWM")
    run = calls(arrays, 512, implementation)["both"]
    run()
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return {
        "gaussians": GSLRM_FULL,
        "views": views,
        "size": 512,
        "implementation": implementation,
        "cpu_s": round(time.process_time() - cpu, 2),
        "wall_s": round(time.perf_counter() - wall, 2),
        "peak_gib": round(report.now_gib("VmHWM"), 2),
        "peak_before_gib": round(before, 2),
    }


def pictures(
    out: Path, implementations: list[str], size: int = 512, n: int = 100_000
) -> list[dict]:
    """Pictures of each implementation and their differences, as one sheet."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arrays = {k: jnp.asarray(v) for k, v in gslrm_like(n, size).items()}
    drawn = {
        name: np.asarray(
            rasterize(**arrays, width=size, height=size, background=(1, 1, 1), implementation=name)
            .rgb[0]
        )
        for name in implementations
    }  # fmt: skip
    first = drawn[implementations[0]]
    panels = 2 * len(drawn) - 1
    figure, axes = pyplot.subplots(1, panels, figsize=(5 * panels, 5), layout="constrained")
    axes = np.atleast_1d(axes)
    differences = []
    for k, (name, picture) in enumerate(drawn.items()):
        axes[k].imshow(np.clip(picture, 0, 1))
        axes[k].set_title(f"{name}, {n:,} Gaussians, {size} px")
        if k:
            error = np.abs(picture - first).max(-1)
            differences.append(
                {
                    "difference": f"{name} - {implementations[0]}",
                    "max": float(error.max()),
                    "mean": float(error.mean()),
                    "pixels above 1e-4": int((error > 1e-4).sum()),
                    "of": error.size,
                }
            )
            panel = axes[len(drawn) + k - 1]
            shown = panel.imshow(np.log10(np.maximum(error, 1e-9)), vmin=-9, vmax=-2)
            panel.set_title(f"log10 |{name} - {implementations[0]}|")
            figure.colorbar(shown, ax=panel, fraction=0.046)
    for panel in axes:
        panel.axis("off")
    figure.savefig(out / "render_difference.png", dpi=60)
    pyplot.close(figure)
    return differences


def implementations_here() -> list[str]:
    """What this machine can run."""
    try:
        import warp  # noqa: F401
    except ImportError:
        print("warp-lang is not installed: tiled alone")
        return ["tiled"]
    return ["tiled", "warp"]


def full_shapes(implementation: str) -> list[dict]:
    """`full_shape` for one view and for more, in processes of their own."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_render", "--one-full-shape"]
    return [
        json.loads(
            subprocess.run(
                [*command, views, implementation], capture_output=True, text=True, check=True
            ).stdout.strip().splitlines()[-1]
        )
        for views in ("1", "2", "8")
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pictures", type=Path, default=Path("runs/bench"))
    parser.add_argument("--quick", action="store_true", help="the small scenes only")
    parser.add_argument("--parts", help=f"only these of {','.join(PARTS)}; --out keeps the others")
    parser.add_argument("--cases", help="SCENE:GAUSSIANS:SIZE,... instead of those of `time`")
    parser.add_argument("--implementations", help="only these, joined by commas")
    parser.add_argument("--gsplat", help="folder that gsplat was installed into")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--one-full-shape", nargs=2, metavar=("VIEWS", "IMPLEMENTATION"))
    args = parser.parse_args()
    if args.one_full_shape:
        print(json.dumps(full_shape(int(args.one_full_shape[0]), args.one_full_shape[1])))
        return
    args.pictures.mkdir(parents=True, exist_ok=True)
    names = args.implementations.split(",") if args.implementations else implementations_here()
    cases = [("gslrm", 10_000, 128), ("gslrm", 10_000, 256), ("gslrm", 50_000, 256)]
    if not args.quick:
        cases += [("shell", 50_000, 256), ("gslrm", 100_000, 256), ("gslrm", 100_000, 512)]
        cases += [("gslrm", 393_218, 256), ("untrained", 10_000, 128)]
    if jax.default_backend() != "cpu":  # wall_ms are the numbers to read there
        cases += [("gslrm", 400_000, 256), ("gslrm", 400_000, 512)]
    if args.cases:
        given = [case.split(":") for case in args.cases.split(",")]
        cases = [(kind, int(n), int(size)) for kind, n, size in given]
    shapes = ((50_000, 256), (393_218, 256), (393_218, 512))
    measure: dict[str, Callable[[], list[dict]]] = {
        "time": lambda: [row for case in cases for row in speed(*case, names, args)],
        "pictures": lambda: pictures(args.pictures, names),
        "compiled": lambda: [compiled(*shape, name) for name in names for shape in shapes],
        "slabs": lambda: slab_cost(100_000, 256, args.repeats),
        "threads": lambda: thread_gain(100_000, 512, args.repeats) if "warp" in names else [],
        "step": lambda: training_step(names, args.repeats),
        "full": lambda: full_shapes(names[-1]),
    }
    tables: dict[str, list[dict]] = {}
    if args.parts and args.out and args.out.exists():
        tables = json.loads(args.out.read_text())["tables"]
    parts = args.parts.split(",") if args.parts else ["time"] if args.quick else PARTS
    if "--parts" in sys.argv:  # the page shows the command that measures all of the tables
        at = sys.argv.index("--parts")
        del sys.argv[at : at + 2]
    for part in parts:
        tables[PARTS[part]] = measure[part]()
        order = {title: tables[title] for title in PARTS.values() if title in tables}
        report.write("render", order, args.out)  # after each: a run cut short keeps its figures


if __name__ == "__main__":
    main()
