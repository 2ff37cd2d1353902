"""How good a fit is in views that it did not see, and what it costs.

    python -m tests.benchmarks.bench_fit --folder runs/bench_fit --seeds 21 22 23 --frames 10
        [--network 1200] [--samples runs/prepare --hide 0 1 2 3 4 5]
    python -m tests.benchmarks.bench_fit --quick

--seeds: procedural recordings are made and prepared first, all six cameras are given, and four
further ones that belong to no video judge. --samples: of frames spread over a sample set one camera
after the other is hidden and the others are fitted. --quick: one frame of one seed, half the size.
Beside the fit stand the nearest given view, the visual hull, the experiment that the fit had to
outdo (Gaussians of any shape on the hull, drawn against random backgrounds, one step size), and
with --network STEPS a `gslrm:tiny` of so many steps on the first seed's own samples. --methods next
fits each frame after the first from the one before, too (with --in-a-row these are neighbours).

Every frame's rows are kept in --folder as soon as they are there, so that a stopped benchmark goes
on; rows of a method are made again when its file is removed. Seconds are processor time, `start`
included and compiling not: each program is run once before on every new shape.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import fit as fit_config
from configs import infer
from mouselift_jax.data.batches.pictures import composite
from mouselift_jax.data.crop import resize
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.data.synthetic import write_recording
from mouselift_jax.files import write_json_atomic
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.pipelines import fit as fits
from mouselift_jax.pipelines.baselines import nearest_view, visual_hull
from mouselift_jax.render import rasterize, render
from mouselift_jax.runs.record import is_whole, read_json
from mouselift_jax.splats.gaussians import Gaussians, padded
from mouselift_jax.stages.infer import make_lifter
from mouselift_jax.stages.items.from_samples import FromSamples
from mouselift_jax.training import metrics
from tests.benchmarks import report

SPECK = 0.25  # error of a pixel that is seen at once
STEPS = 500  # of the experiment
FULL = (1152, 1024)  # of a procedural recording; hidden views are judged at half of it
HIDDEN = 4  # cameras of no video that judge a procedural recording
NAMES = {
    "nearest": "nearest view",
    "hull": "visual hull",
    "experiment": "experiment",
    "next": "fit, from the frame before",
    "fit": "fit, from the hull",
    "fast": "fit:fast, from the hull",
    "network": "gslrm:tiny",
}
METHODS = ("nearest", "hull", "experiment", "fit", "fast")
FIGURES = ("IoU", "interior, dB", "above mean colour, dB", "whole, dB", "specks, %")
Hidden = tuple[np.ndarray, np.ndarray, Camera]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """One frame: views [V,...] that are given, and hidden ones."""

    frame: str
    rgb: np.ndarray
    mask: np.ndarray
    cameras: Camera
    hidden: list[Hidden]


def of_samples(
    folder: str | Path, hide: int | None, frames: int, *, in_a_row: bool = False
) -> Iterator[Case]:
    """Frames spread over a sample set (or its first), the view of place `hide` hidden."""
    samples = SampleSet.open(folder)
    ids = samples.ids("all")
    frames = min(frames, len(ids))
    last = frames - 1 if in_a_row else len(ids) - 1
    for i in np.unique(np.linspace(0, last, frames).round().astype(int)):
        sample = samples.load(ids[i])
        rgb, mask = composite(sample.images_rgba, np.ones(3, np.float32))
        given = np.array([v for v in range(len(rgb)) if v != hide])
        gone = [] if hide is None else [(rgb[hide], mask[hide], sample.cameras[hide])]
        yield Case(ids[i], rgb[given], mask[given], sample.cameras[given], gone)


def launched(*words: str) -> None:
    """Run a stage in a process of its own."""
    subprocess.run([sys.executable, "launch.py", *words], check=True, capture_output=True)


def of_seed(seed: int, frames: int, size: tuple[int, int], folder: Path) -> Iterator[Case]:
    """Frames of a procedural recording, a second apart, judged by cameras of no video."""
    recording, prepared = folder / f"recording_{seed}", folder / f"prepare_{seed}"
    if not (recording / "recording.json").exists():
        write_recording(recording, frames=frames, size=size, seed=seed, n_heldout=HIDDEN, fps=1.0)
    if not is_whole(prepared):
        launched(
            "--config=configs/prepare.py:fill", f"--config.recording={recording}",
            "--config.prepare.n_samples=0", "--config.prepare.max_speed_mm_s=0",
            f"--config.prepare.size={size[0] * 4 // 9}", f"--workdir={prepared}",
        )  # fmt: skip
    samples = SampleSet.open(prepared)
    numbers = dict(zip(samples.ids("all"), samples.frames("all"), strict=True))
    further = SampleSet(recording / "heldout", {}, {"all": ()})
    for case in of_samples(prepared, None, frames):
        move = samples.load(case.frame).info["scene_from_recording"]
        to_scene = Similarity(move["scale"], np.array(move["R"]), np.array(move["t"]))
        sample = further.load(f"frame_{numbers[case.frame]:06d}")
        hidden = []
        for rgba, camera in zip(sample.images_rgba, _each(sample.cameras), strict=True):
            small, moved = resize(rgba, camera, size[0] // 2, size[1] // 2)
            rgb, mask = composite(small, np.ones(3, np.float32))
            hidden.append((rgb, mask, moved.transformed(to_scene)))
        yield dataclasses.replace(case, hidden=hidden)


def network(run: Path, samples: Path, steps: int) -> Callable[[str], Gaussians]:
    """`lifted(sample) -> Gaussians` by a `gslrm:tiny` that was taught on these samples."""
    if not is_whole(run):
        launched(
            "--config=configs/gslrm.py:tiny", f"--config.samples={samples}",
            f"--config.train.steps={steps}", f"--workdir={run}",
        )  # fmt: skip
    config = infer.get_config("tiny")
    config.samples, config.gslrm, config.split = str(samples), str(run), "all"
    items, lift = FromSamples(config), make_lifter(config)
    return lambda name: lift(items.load(name))[0]


def _each(cameras: Camera) -> list[Camera]:
    return [cameras[i] for i in range(cameras.batch_shape[0])]


# --- the experiment -------------------------------------------------------------------------------


def experiment(views: fits.Views, settings: fits.FitSettings) -> Gaussians:
    """What the fit had to outdo, on the same cut-outs and hull."""
    begun = fits.start(views, dataclasses.replace(settings, colours_of_cameras=False))
    g = begun.gaussians
    params = {
        "means": g.means, "quats": np.tile(np.float32([1, 0, 0, 0]), (len(g.means), 1)),
        "log_scales": np.full_like(g.log_scales, np.log(0.6 * begun.cell)),
        "opacity": np.zeros_like(g.opacity_logits), "colour": 0.5 + 0.2820948 * g.sh[:, 0],
    }  # fmt: skip
    data = (views.rgb, views.mask[..., None], views.K, views.w2c)
    done = jax.device_get(_experiment(params, data, np.float32(begun.cell), begun.alive))
    sh = ((done["colour"] - 0.5) / 0.2820948)[:, None]
    out = Gaussians(done["means"], done["quats"], done["log_scales"], done["opacity"], sh)
    return out[begun.alive]


@jax.jit
def _experiment(params: dict, data: tuple, cell: Any, alive: Any) -> dict:
    rgb, mask, K, w2c = map(jnp.asarray, data)
    side = mask.shape[1]
    rates: dict[str, Any] = {"quats": 2e-3, "log_scales": 1e-2, "opacity": 3e-2, "colour": 5e-3}
    rates["means"] = lambda i: 0.5 * cell * 0.02 ** (i / STEPS)
    tx = optax.multi_transform({k: optax.adam(r, eps=1e-15) for k, r in rates.items()},
                               {k: k for k in rates})  # fmt: skip

    def loss(p: dict, key: Any) -> Any:
        v = jax.random.randint(key, (), 0, len(rgb))
        background = jax.random.uniform(jax.random.fold_in(key, 1), (3,))
        opacity = jax.nn.sigmoid(p["opacity"]) * alive
        out = rasterize(p["means"], p["quats"], jnp.exp(p["log_scales"]), opacity, p["colour"],
                        w2c[v][None], K[v][None], side, side, background=background)  # fmt: skip
        large = (jnp.maximum(p["log_scales"] - jnp.log(3 * cell), 0) * alive[:, None]).mean()
        target = rgb[v] + (1 - mask[v]) * background
        clear = ((1 - jax.nn.sigmoid(p["opacity"])) * alive).sum() / alive.sum()
        return (jnp.abs(out.rgb[0] - target).mean() + jnp.square(out.alpha[0] - mask[v]).mean()
                + 0.03 * large + 0.03 * clear)  # fmt: skip

    def step(carry: tuple, key: Any) -> tuple:
        p, state = carry
        change, state = tx.update(jax.grad(loss)(p, key), state, p)
        return (optax.apply_updates(p, change), state), None

    keys = jax.random.split(jax.random.key(0), STEPS)
    return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]


# --- figures --------------------------------------------------------------------------------------


@functools.cache
def _figures() -> Callable:
    return jax.jit(metrics.figures)


def judged(rgb: np.ndarray, alpha: np.ndarray, image: np.ndarray, mask: np.ndarray) -> dict:
    """Figures of one hidden view."""
    values = _figures()(rgb[None], alpha[None], image[None], mask[None])
    f = {k: float(v[0]) for k, v in values.items()}
    inside = np.asarray(metrics.interior(alpha[None], 2) * metrics.interior(mask[None], 2))[0] > 0
    off = (np.abs(rgb - image).max(-1, keepdims=True) > SPECK) & inside
    return {
        "IoU": f["iou"],
        "interior, dB": f["interior_psnr"],
        "above mean colour, dB": f["interior_psnr"] - f["mean_color_psnr"],
        "whole, dB": f["psnr"],
        "specks, %": 100 * float(off.sum()) / max(1, int(inside.sum())),
    }


class Trial:
    """Draws the hidden views of one set's cases by every method, and keeps what was found.

    Args:
        folder: where rows are kept.
        settings: of the fit.
        lifted: makes a network, see `network`, when one is wanted.
    """

    def __init__(
        self,
        folder: Path,
        settings: fits.FitSettings,
        lifted: Callable[[], Callable[[str], Any]] | None = None,
    ) -> None:
        self._folder, self._settings, self._lifted = folder, settings, lifted
        fast = {k.removeprefix("fit."): v for k, v in fit_config.VARIANTS["fast"].items()}
        self._fast = dataclasses.replace(settings, **fast)
        self._before: Case | None = None
        self._start: tuple[str, fits.Start] | None = None  # of the last frame that was fitted

    def __call__(self, case: Case, methods: list[str]) -> list[Row]:
        """Rows of all methods and hidden views of a frame: found before, or now."""
        files = {m: self._folder / f"{case.frame}_{m}.json" for m in methods}
        known = {m: read_json(f) for m, f in files.items()}
        missing = [m for m, rows in known.items() if rows is None]
        for method in missing:
            rows = self._found(method, case)
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json_atomic(files[method], {"rows": rows})
            known[method] = {"rows": rows}
            told = (f"{k} {v}" for k, v in mean(rows).items())
            print(self._folder.name, case.frame, *told, file=sys.stderr, flush=True)
        self._before = case
        return [row for m in methods for row in known[m]["rows"]]

    def _views(self, case: Case) -> fits.Views:
        return fits.cut_out(case.rgb, case.mask, case.cameras, self._settings)

    def _of_hull(self, case: Case) -> fits.Fit:
        done = self._fitted(case, self._settings)
        self._start = case.frame, done.start
        return done

    def _fitted(self, case: Case, settings: fits.FitSettings) -> fits.Fit:
        views = self._views(case)
        return fits.fit(views, fits.start(views, settings), settings)

    def _of_before(self, case: Case) -> fits.Fit:
        views = self._views(case)
        return fits.fit(views, fits.carried(self._start[1], views), self._settings, is_next=True)

    def _found(self, method: str, case: Case) -> list[Row]:
        if method == "next":
            if self._before is None:
                return []
            if self._start is None or self._start[0] != self._before.frame:
                self._of_hull(self._before)
        rows = []
        given = (case.rgb, case.mask, case.cameras)
        made: dict[str, Callable[[], Any]] = {
            "experiment": lambda: experiment(self._views(case), self._settings),
            "fit": lambda: self._of_hull(case),
            "fast": lambda: self._fitted(case, self._fast),
            "next": lambda: self._of_before(case),
            "network": lambda: self._lifted()(case.frame),
        }
        painted = {"nearest": nearest_view, "hull": visual_hull}
        if method in made:
            seconds, done = _compiled(made[method])
            draw = functools.partial(_drawn, padded(getattr(done, "gaussians", done)))
        else:
            draw = functools.partial(painted[method], *given)
        for place, (rgb, mask, camera) in enumerate(case.hidden):
            spent, drawn = _timed(functools.partial(draw, camera))
            if drawn[0].shape != rgb.shape:  # the nearest view is as its camera took it
                both, size = (drawn[0], np.repeat(drawn[1], 3, -1)), rgb.shape[1::-1]
                both = [resize(x, case.cameras[0], *size)[0] for x in both]
                drawn = (both[0], both[1][..., :1])
            row = {"frame": case.frame, "judge": place, "method": NAMES[method]}
            row |= judged(drawn[0], drawn[1], rgb, mask)
            rows.append(row | {"seconds": spent if method in painted else seconds})
        return rows


def _timed(way: Callable) -> tuple[float, Any]:
    begin = time.process_time()
    made = way()
    return time.process_time() - begin, made


_COMPILED: list[str] = []


def _note(event: str, _: float, **__: Any) -> None:
    if "backend_compile" in event:
        _COMPILED.append(event)


def _compiled(way: Callable) -> tuple[float, Any]:
    """The same of a way whose programs are there: where one was compiled, once more."""
    before = len(_COMPILED)
    spent, made = _timed(way)
    return _timed(way) if len(_COMPILED) > before else (spent, made)


def _drawn(gaussians: Gaussians, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    one = Camera(camera.K[None], camera.c2w[None], camera.width, camera.height)
    out = render(gaussians, one)
    return np.clip(np.asarray(out.rgb[0]), 0, 1), np.asarray(out.alpha[0])


def mean(rows: list[Row]) -> Row:
    """One row of those of one method: means over frames and judges, and the worst frame."""
    out: Row = {"method": rows[0]["method"], "pictures": len(rows)} if rows else {}
    for name in FIGURES if rows else ():
        out[name] = round(float(np.nanmean([r[name] for r in rows])), 4)
    return out


def of_frames(rows: list[Row]) -> dict[Any, Row]:
    """Means over the judges of each frame (of each hidden view where one was hidden in turn)."""
    keys = dict.fromkeys((r["set"], r["hidden"], r["frame"]) for r in rows)
    return {k: mean([r for r in rows if (r["set"], r["hidden"], r["frame"]) == k]) for k in keys}


def table(rows: list[Row]) -> list[Row]:
    """One row a set and method."""
    out = []
    for name in dict.fromkeys(r["set"] for r in rows):
        of_set = [r for r in rows if r["set"] == name]
        hull = of_frames([r for r in of_set if r["method"] == NAMES["hull"]])
        for method in dict.fromkeys(r["method"] for r in of_set):
            mine = [r for r in of_set if r["method"] == method]
            each = of_frames(mine)
            row = {"set": name} | mean(mine)
            row["worst frame's IoU"] = round(min(f["IoU"] for f in each.values()), 4)
            if hull:
                worse = [f["IoU"] < hull[k]["IoU"] for k, f in each.items()]
                row["frames worse than the hull"] = sum(worse)
            out.append(row | {"seconds": round(float(np.mean([r["seconds"] for r in mine])), 2)})
    return out


def main() -> None:
    """Print the tables as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="what is kept; a stopped benchmark goes on")
    parser.add_argument("--samples", help="sample set or run of prepare")
    parser.add_argument("--hide", type=int, nargs="+", default=[4], help="places of hidden views")
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="procedural recordings")
    parser.add_argument("--frames", type=int, default=10, help="so many of each seed")
    parser.add_argument("--sample-frames", type=int, default=2, help="so many of the samples")
    parser.add_argument("--in-a-row", action="store_true", help="the samples' first frames")
    parser.add_argument("--network", type=int, default=0, help="steps of a gslrm:tiny")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(NAMES))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the fit")
    parser.add_argument("--quick", action="store_true", help="one frame of one seed, half the size")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.frames = args.seeds[:1] or [21], 1
    if not args.samples and not args.seeds:
        parser.error("give --samples, --seeds or --quick")
    jax.monitoring.register_event_duration_secs_listener(_note)
    with tempfile.TemporaryDirectory() as passing:
        rows = found(args, args.folder or Path(passing))
    report.write("fit", {"Views that the fit did not see": table(rows)}, args.out)


def found(args: argparse.Namespace, folder: Path) -> list[Row]:
    """All rows; those that `folder` has are not made again."""
    # `next` before `fit`: it starts from the frame before, whose start `fit` replaces.
    chosen = [m for m in NAMES if m in args.methods]
    changed = {k: ast.literal_eval(v) for k, v in (word.split("=") for word in args.set)}
    settings, rows = dataclasses.replace(fits.FitSettings(), **changed), []
    size = (576, 512) if args.quick else FULL
    kept = folder / "-".join(["rows", *args.set])
    for hide in args.hide if args.samples else ():
        trial = Trial(kept / f"hidden_{hide}", settings)
        about = {"set": "samples, one hidden", "hidden": hide}
        cases = of_samples(args.samples, hide, args.sample_frames, in_a_row=args.in_a_row)
        for case in cases:
            rows += [about | row for row in trial(case, chosen)]
    for seed in args.seeds:
        methods, lifted = list(chosen), None
        cases = of_seed(seed, args.frames, size, folder)
        if args.network and seed == args.seeds[0]:
            methods.append("network")
            run = folder / f"gslrm_{seed}", folder / f"prepare_{seed}"
            lifted = functools.cache(functools.partial(network, *run, args.network))
        trial = Trial(kept / f"seed_{seed}", settings, lifted)
        for case in cases:
            rows += [{"set": f"seed {seed}", "hidden": None} | r for r in trial(case, methods)]
    return rows


if __name__ == "__main__":
    main()
