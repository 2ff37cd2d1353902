"""What teaching on one rig, drawn from fits, is worth: tiny networks, the same steps, judged alike.

    python -m tests.benchmarks.bench_rigs --folder runs/bench_rigs [--frames 12 --steps 800]

Two procedural recordings of different seeds: one is learned from, the other judges, from cameras
that no video has. GS-LRM is taught on the six real views, on the fits' views of one rig and further
cameras, and on both, each time with five inputs as six cameras allow; then on the fits' views with
six inputs, as it is used. It lifts six real views of the other recording. The multi-view network is
taught on the walking rig (prepared for it: aim=centre) and on the canonical one; its views of the
other recording's animal are compared with that recording's own (real, or drawn from its fits), and
with each other: the hull cover of the generated silhouettes with the cameras written beside them.
Every stage resumes in the folder and a row that is known is not judged again, so that a benchmark
that was stopped goes on with the same command, or with other --seeds. The fits see all six cameras.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from configs import fit, gslrm, infer, mvdiff, prepare, synth
from mouselift_jax.data.batches.pictures import composite
from mouselift_jax.data.png import read_picture
from mouselift_jax.data.samples.camera_file import parse_cameras
from mouselift_jax.data.samples.rig_file import load_rig, named_rig
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.data.synthetic import write_recording
from mouselift_jax.files import write_json_atomic
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.hull import hull_cover
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.render import render
from mouselift_jax.runs.folder import Options, Workdir
from mouselift_jax.runs.record import read_json, read_summary
from mouselift_jax.stages.harness.plan import find_stage
from mouselift_jax.stages.infer import make_lifter
from mouselift_jax.stages.items.from_samples import FromSamples
from mouselift_jax.training import metrics
from tests.benchmarks import report

CONFIGS = {"prepare": prepare, "fit": fit, "synth": synth, "gslrm": gslrm, "mvdiff": mvdiff}
SEEDS = {"learn": 21, "judge": 22}  # of the recordings
FPS = 6.0  # the animal walks on between two frames


def stage(name: str, folder: Path, variant: str = "tiny", **keys: Any) -> Path:
    """Run a stage, or what is left of it."""
    config = CONFIGS[name].get_config(variant)
    config.update_from_flattened_dict(keys)
    with Workdir(folder, config, Options(progress="plain")) as workdir:
        find_stage(name).run(config, workdir)
    return folder


def recorded(folder: Path, a: argparse.Namespace) -> None:
    """Recordings, samples of 128 px and fits; of the judge fewer frames."""
    for name, seed in SEEDS.items():
        place, frames = folder / name, a.frames if name == "learn" else a.judged
        if not (place / "recording/recording.json").exists():
            write_recording(place / "recording", frames=frames, fps=FPS, seed=seed, workers=1)
        keys = {"prepare.min_mask_px": 20, "prepare.subject_mm": 175.0, "split.gap_s": 0.0}
        stage("prepare", place / "prepare", recording=str(place / "recording"), **keys)
        if "views" in a.parts:
            keys |= {"prepare.aim": "centre", "prepare.subject_mm": 220.0}
            stage("prepare", place / "centred", recording=str(place / "recording"), **keys)
        if name == "learn" or "views" in a.parts:  # GS-LRM is judged by the recording itself
            keys = {"turntable.frames": 0, "sequence": False}
            if a.fitted and name == "learn":
                keys["frames"] = f"0:{a.fitted}"
            stage("fit", place / "fit", "fast", samples=str(place / "prepare"), **keys)


def known(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row of a table, made once."""
    if not path.exists():
        write_json_atomic(path, make())
    print(row := json.loads(path.read_text()), flush=True)
    return row


def zoom_of(samples: SampleSet) -> float:
    """Focal length of the real samples in units of the canonical rig's at the same size."""
    real = samples.cameras(samples.ids()[0])
    known = load_rig(named_rig("canonical"))[0].cameras.resized(real.width, real.height)[0]
    return float(np.mean(real.K[:, 0, 0]) / np.mean(known.K[:, 0, 0]))


def both(folder: Path, *sets: Path) -> Path:
    """One set of several, by links."""
    lists: dict[str, list[str]] = {"train": [], "val": []}
    folder.mkdir(exist_ok=True)
    for k, place in enumerate(sets):
        source = SampleSet.open(place)
        for split, ids in lists.items():
            for name in source.ids(split):
                link = folder / f"{k}_{name}"
                if not link.exists():
                    os.symlink((source.path / name).resolve(), link)
                ids.append(link.name)
    for split, ids in lists.items():
        (folder / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))
    return folder


def hidden(
    place: Path, frame: int, world: dict[str, Any], density: float
) -> tuple[Camera, Any, Any]:
    """Cameras of no video in the sample's scene, their pictures on white, their masks.

    They are shrunk to `density`, pixels a scene unit at the animal: the network's Gaussians are as
    large as the pixels it sees, and sharper pictures would show the holes between them.
    """
    folder = place / "recording/heldout" / f"frame_{frame:06d}"
    record = read_json(folder / "opencv_cameras.json")
    move = Similarity(*(np.asarray(world[k], np.float64) for k in ("scale", "R", "t")))
    camera = parse_cameras(record, folder).transformed(move)
    rgba = np.stack([read_picture(folder / f["file_path"]) for f in record["frames"]])
    share = density / density_of(camera)
    size = round(camera.width * share), round(camera.height * share)
    images, masks = composite(rgba, np.ones(3, np.float32))
    shrunk = [cv2.resize(np.concatenate(x, -1), size, interpolation=cv2.INTER_AREA)
              for x in zip(images, masks, strict=True)]  # fmt: skip
    both = np.stack(shrunk)
    camera, _ = camera.resized(*size)
    K, c2w = (jnp.asarray(x, jnp.float32) for x in (camera.K, camera.c2w))
    return Camera(K, c2w, *size), both[..., :3], both[..., 3:]


def density_of(camera: Camera) -> float:
    """Pixels a scene unit at the origin, the mean over cameras."""
    distance = np.linalg.norm(np.asarray(camera.center), axis=-1)
    return float(np.mean(np.asarray(camera.K)[:, 0, 0] / distance))


def lifted(run: Path, place: Path, count: int) -> dict[str, float]:
    """Mean figures of a GS-LRM on six real views of the judge's frames, from hidden cameras."""
    config = infer.get_config("tiny")
    config.samples, config.gslrm, config.split = str(place / "prepare"), str(run), "all"
    items, lift, rows = FromSamples(config), make_lifter(config), []
    draw = jax.jit(render)
    for name in items.ids[:count]:
        item = items.load(name)
        world = items.sample_set.camera_file(name)["scene_from_recording"]
        density = density_of(item.cameras)
        camera, images, masks = hidden(place, item.about["frame"], world, density)
        out = draw(lift(item)[0], camera)
        figures = metrics.figures(out.rgb, out.alpha, images, masks)
        rows.append({k: np.asarray(v) for k, v in figures.items()})
    return {k: float(np.nanmean([r[k] for r in rows])) for k in rows[0]}


def lift_rows(folder: Path, a: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each way to teach GS-LRM, and seed."""
    learn = folder / "learn"
    real = learn / "prepare"
    drawn = stage("synth", learn / "one_rig", "base", fits=str(learn / "fit"), size=128,
                  heading="none", zoom=zoom_of(SampleSet.open(real)))  # fmt: skip
    two = both(learn / "both", real, drawn)
    ways = {  # samples, inputs, views of a batch
        "six real views": (real, 5, 6),
        "the fits' 32 views": (drawn, 5, 6),
        "both": (two, 5, 6),
        "the fits' 32 views, six inputs": (drawn, 6, 8),
    }

    def row(name: str, run: Path, seed: int, keys: dict[str, Any]) -> dict[str, Any]:
        samples, inputs, views = ways[name]
        keys = keys | {"samples": str(samples), "data.n_inputs": inputs, "data.n_views": views}
        found = lifted(stage("gslrm", run, **keys), folder / "judge", a.judged)
        gain = found["interior_psnr"] - found["mean_color_psnr"]
        made = {"taught on": name, "steps": a.steps, "seed": seed}
        made |= {"hidden IoU": round(found["iou"], 3)}
        made |= {"interior, dB": round(found["interior_psnr"], 2)}
        return made | {"over mean colour, dB": round(gain, 2)}

    rows = []
    for seed in a.seeds:
        for k, name in enumerate(ways):
            if a.rows and k not in a.rows:
                continue
            keys = {"data.size": a.size, "train.steps": a.steps, "eval_samples": 1, "seed": seed,
                    "train.batch_size": jax.device_count(), "model.animal_share": 0.5,
                    "train.save_every": 200}  # fmt: skip
            run = folder / f"gslrm_{k}_{seed}"
            make = functools.partial(row, name, run, seed, keys)
            rows.append(known(folder / f"{run.name}.json", make))
    return rows


def cover(samples: Path) -> float:
    """Mean hull cover of the generated silhouettes with their cameras."""
    made, found = SampleSet.open(samples), []
    for name in made.ids("all"):
        s = made.load(name)
        masks = [x[..., 3] for x in s.images_rgba]
        found.append(np.nanmean(hull_cover(masks, [s.cameras[v] for v in range(len(masks))])))
    return float(np.nanmean(found))


def view_rows(folder: Path, a: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each rig that the multi-view network was taught on, and seed."""
    sets = {}
    for name in SEEDS:
        place = folder / name
        sets[name, "walking"] = place / "centred"
        sets[name, "canonical"] = stage(
            "synth", place / "canonical", "base", fits=str(place / "fit"), size=128, further=0,
            zoom=zoom_of(SampleSet.open(place / "centred")),
        )  # fmt: skip

    def row(rig: str, seed: int) -> dict[str, Any]:
        keys = {"data.size": a.views_size, "train.steps": a.views_steps, "eval.samples": 1,
                "toy.vae_steps": a.views_steps, "train.eval_every": 0, "eval.guidances": (3.0,),
                "train.batch_size": 4 * jax.device_count(), "seed": seed}  # fmt: skip
        place = folder / f"mvdiff_{rig}_{seed}"
        run = stage("mvdiff", place, samples=str(sets["learn", rig]), **keys)
        keys = {"limit": a.judged, "generate.keep_reference": False}
        place = folder / f"generated_{rig}_{seed}"
        made = stage("synth", place, mvdiff=str(run), samples=str(sets["judge", rig]), **keys)
        told, learned = read_summary(made)["metrics"], read_summary(run)
        found = {"rig": rig, "steps": a.views_steps, "seed": seed}
        found |= {"spread, px": round(learned["metrics"]["rig/spread_px"], 2)}
        found |= {"PSNR of views, dB": round(told["synth/psnr"], 2)}
        found |= {"hull cover of views": round(cover(made / "samples"), 3)}
        return found | {"watchdogs": sum("Cause:" in w for w in learned["warnings"])}

    return [
        known(folder / f"views_{rig}_{seed}.json", functools.partial(row, rig, seed))
        for seed in a.seeds
        for k, rig in enumerate(("walking", "canonical"))
        if not a.rows or k in a.rows
    ]


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=12, help="of the recording learned from")
    parser.add_argument("--fitted", type=int, default=0, help="of them, that are fitted; 0 = all")
    parser.add_argument("--judged", type=int, default=4, help="frames of the other recording")
    parser.add_argument("--size", type=int, default=64, help="pixels of GS-LRM's pictures")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--views-size", type=int, default=64)
    parser.add_argument("--views-steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[], help="only these, from 0")
    parser.add_argument("--parts", default="lift,views")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    recorded(a.folder, a)
    tables = {}
    if "lift" in a.parts:
        tables["GS-LRM, judged from hidden cameras of another recording"] = lift_rows(a.folder, a)
    if "views" in a.parts:
        tables["Multi-view network, views of another recording's animal"] = view_rows(a.folder, a)
    report.write("rigs", tables, a.out)


if __name__ == "__main__":
    main()
