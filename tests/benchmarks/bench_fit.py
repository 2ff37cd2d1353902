"""How good a fit is in views that it did not see, and what it costs.

    python -m tests.benchmarks.bench_fit --samples runs/prepare --hide 0 1 2 3 4 5 [--frames 2]
    python -m tests.benchmarks.bench_fit --seeds 21 22 23 [--frames 2]
    python -m tests.benchmarks.bench_fit --quick

--samples: of each of the first frames of a sample set one camera after the other is hidden and the
others are fitted. --seeds: procedural recordings are made and prepared first, all six cameras are
given, and six further ones that belong to no video judge. --quick: one frame of one seed, half the
size. Beside the fit stand the nearest given view, the visual hull and the experiment that the fit
had to outdo: Gaussians of any shape on the hull, drawn against random backgrounds, one step size.
Frames after the first are fitted twice: from their hull and from the frame before. Seconds are
processor time, `start` included; each program is run once before, on the first frame.
"""

from __future__ import annotations

import argparse
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

from mouselift_jax.data.batches.pictures import composite
from mouselift_jax.data.crop import resize
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.data.synthetic import write_recording
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.pipelines import fit as fits
from mouselift_jax.pipelines.baselines import nearest_view, visual_hull
from mouselift_jax.render import rasterize, render
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.training import metrics
from tests.benchmarks import report

SPECK = 0.25  # error of a pixel that is seen at once
STEPS = 500  # of the experiment
FULL = (1152, 1024)  # of a procedural recording; hidden views are judged at half of it
Hidden = tuple[np.ndarray, np.ndarray, Camera]


@dataclasses.dataclass(frozen=True)
class Case:
    """One frame: views [V,...] that are given, and hidden ones."""

    frame: str
    rgb: np.ndarray
    mask: np.ndarray
    cameras: Camera
    hidden: list[Hidden]


def of_samples(folder: str | Path, hide: int | None, frames: int) -> Iterator[Case]:
    """The first frames of a sample set, the view of place `hide` hidden."""
    samples = SampleSet.open(folder)
    for item_id in samples.ids("all")[:frames]:
        sample = samples.load(item_id)
        rgb, mask = composite(sample.images_rgba, np.ones(3, np.float32))
        given = np.array([i for i in range(len(rgb)) if i != hide])
        gone = [] if hide is None else [(rgb[hide], mask[hide], sample.cameras[hide])]
        yield Case(item_id, rgb[given], mask[given], sample.cameras[given], gone)


def of_seed(seed: int, frames: int, size: tuple[int, int], folder: Path) -> Iterator[Case]:
    """Frames of a procedural recording, a second apart, judged by cameras of no video."""
    recording = folder / f"recording_{seed}"
    write_recording(recording, frames=frames, size=size, seed=seed, n_heldout=6, fps=1.0)
    command = [
        sys.executable, "launch.py", "--config=configs/prepare.py:fill",
        f"--config.recording={recording}", "--config.prepare.n_samples=0",
        "--config.prepare.max_speed_mm_s=0", f"--config.prepare.size={size[0] * 4 // 9}",
        f"--workdir={folder / f'prepare_{seed}'}",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    samples = SampleSet.open(folder / f"prepare_{seed}")
    numbers = dict(zip(samples.ids("all"), samples.frames("all"), strict=True))
    further = SampleSet(recording / "heldout", {}, {"all": ()})
    for case in of_samples(folder / f"prepare_{seed}", None, frames):
        move = samples.load(case.frame).info["scene_from_recording"]
        to_scene = Similarity(move["scale"], np.array(move["R"]), np.array(move["t"]))
        sample = further.load(f"frame_{numbers[case.frame]:06d}")
        hidden = []
        for rgba, camera in zip(sample.images_rgba, _each(sample.cameras), strict=True):
            small, moved = resize(rgba, camera, size[0] // 2, size[1] // 2)
            rgb, mask = composite(small, np.ones(3, np.float32))
            hidden.append((rgb, mask, moved.transformed(to_scene)))
        yield dataclasses.replace(case, hidden=hidden)


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


def trial(cases: Iterator[Case], about: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of all frames and hidden views."""
    settings, rows, last = fits.FitSettings(), [], None
    for case in cases:
        given = (case.rgb, case.mask, case.cameras)
        views = fits.cut_out(*given, settings)

        def cold(views: fits.Views = views) -> fits.Fit:
            return fits.fit(views, fits.start(views, settings), settings)

        ways: dict[str, Callable] = {
            "nearest view": lambda camera, given=given: nearest_view(*given, camera),
            "visual hull": lambda camera, given=given: visual_hull(*given, camera),
        }
        fitted: dict[str, Callable] = {
            "experiment": lambda views=views: experiment(views, settings),
            "fit, from the hull": cold,
        }
        if last is not None:
            fitted["fit, from the frame before"] = lambda views=views, last=last: fits.fit(
                views, fits.carried(last, views), settings, is_next=True
            )
        for name, way in (ways | fitted).items():
            spent, made = 0.0, None
            if name in fitted:
                if last is None:
                    way()  # compiles
                spent, made = _timed(way)
            if name == "fit, from the hull":
                last = made.start
            for place, (rgb, mask, camera) in enumerate(case.hidden):
                if name in fitted:
                    drawn = render(getattr(made, "gaussians", made), _one(camera))
                    drawn = (np.clip(np.asarray(drawn.rgb[0]), 0, 1), np.asarray(drawn.alpha[0]))
                else:
                    spent, drawn = _timed(functools.partial(way, camera))
                    if drawn[0].shape != rgb.shape:  # the nearest view is as its camera took it
                        both, size = (drawn[0], np.repeat(drawn[1], 3, -1)), rgb.shape[1::-1]
                        both = [resize(x, case.cameras[0], *size)[0] for x in both]
                        drawn = (both[0], both[1][..., :1])
                found = judged(drawn[0], drawn[1], rgb, mask)
                row = {"frame": case.frame, "judge": place, "method": name, **found}
                rows.append(about | row | {"seconds": spent})
    return rows


def _timed(way: Callable) -> tuple[float, Any]:
    begin = time.process_time()
    made = way()
    return time.process_time() - begin, made


def _one(camera: Camera) -> Camera:
    return Camera(camera.K[None], camera.c2w[None], camera.width, camera.height)


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a set and method: means over frames and judges, and the worst outline."""
    out = []
    for key in dict.fromkeys((r["set"], r["method"]) for r in rows):
        mine = [r for r in rows if (r["set"], r["method"]) == key]
        row: dict[str, Any] = {"set": key[0], "method": key[1], "pictures": len(mine)}
        for name in ("IoU", "interior, dB", "above mean colour, dB", "whole, dB", "specks, %"):
            row[name] = round(float(np.nanmean([r[name] for r in mine])), 4)
        row["worst IoU"] = round(min(r["IoU"] for r in mine), 4)
        out.append(row | {"seconds": round(float(np.mean([r["seconds"] for r in mine])), 2)})
    return out


def main() -> None:
    """Print the tables as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", help="sample set or run of prepare")
    parser.add_argument("--hide", type=int, nargs="+", default=[4], help="places of hidden views")
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="procedural recordings")
    parser.add_argument("--frames", type=int, default=2, help="the first so many")
    parser.add_argument("--quick", action="store_true", help="one frame of one seed, half the size")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.frames = args.seeds[:1] or [21], 1
    if not args.samples and not args.seeds:
        parser.error("give --samples, --seeds or --quick")
    rows, size = [], (576, 512) if args.quick else FULL
    for hide in args.hide if args.samples else ():
        rows += trial(of_samples(args.samples, hide, args.frames), {"set": "samples, one hidden"})
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            cases = of_seed(seed, args.frames, size, Path(folder))
            rows += trial(cases, {"set": "procedural, six further"})
    report.write("fit", {"Views that the fit did not see": means(rows)}, args.out)


if __name__ == "__main__":
    main()
