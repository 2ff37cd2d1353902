"""How near the truth `calibrate` brings a rig, and what that is worth to a fit.

    python -m tests.benchmarks.bench_calibrate [--recording ../shared/recordings/mouse_a]
    python -m tests.benchmarks.bench_calibrate --parts toy,fit --seeds 3 --folder runs/bench

toy: six cameras of 1152 x 1024 pixels, 60 frames spread over the arena, 20 keypoints with 1.5 px
noise; 48 frames fit, 12 judge. recording: masks and keypoints of a procedural recording whose
calibration is perturbed; its frames are chosen once, with the true cameras. fit: Gaussians of a
procedural recording by the true, the perturbed and the mended cameras, judged by six cameras that
no video has, moved into each rig's world; a recording is made in --folder where it is not there.
gradients: what the derivatives by K add to a backward pass.

Pixels are those by which the cameras miss true points once the worlds are laid together
(`toy_rig.missed`), the median over points, cameras and seeds, and the worst seed. Every trial is
kept in --folder, where a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import calibrate as configs
from mouselift_jax.data.batches.pictures import composite
from mouselift_jax.data.calibration.calibrate import Outcome, Settings, calibrate
from mouselift_jax.data.calibration.evidence import Evidence, cameras_of
from mouselift_jax.data.recordings.inspection import open_recording
from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.data.recordings.video import read_instants
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.data.synthetic import write_recording
from mouselift_jax.geometry.bundle import PARAMETERS, Rig, Sightings, gauge_generators, located
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.pipelines import fit as fits
from mouselift_jax.render import rasterize, render
from mouselift_jax.stages.calibrate import evidence_of, rig_of
from tests import toy_rig
from tests.benchmarks import report
from tests.benchmarks.bench_fit import judged
from tests.benchmarks.bench_render import GAUSSIANS, SCENES, alternate, implementations_here
from tests.benchmarks.run_all import SHARED

PARTS = {  # name of a part -> title of its table
    "toy": "keypoints with 1.5 px noise",
    "recording": "a procedural recording, calibration perturbed",
    "fit": "Gaussians in views that no fit saw",
    "gradients": "derivatives by K, share of a backward pass",
}
FIT_SIZE, FIT_FRAMES, EVERY = (432, 384), 40, 16  # of the recordings that are fitted
SCENE = np.float64(0.01)  # scene units in a millimetre
WATCHED = np.array([51.5, 52.6, 0.0]), np.array([[-80, -80, 0], [80, 80, 40]])  # arena, mm


def knocked(true: Rig, rng: np.random.Generator) -> Rig:
    """One camera turned by 5 degrees."""
    delta = np.zeros((len(true.R), len(PARAMETERS)))
    way = rng.normal(size=3)
    delta[rng.integers(len(true.R)), :3] = np.deg2rad(5) * way / np.linalg.norm(way)
    return true.changed(delta)


CASES = {
    "off in everything (1 degree, 3 mm, 1 %)": (toy_rig.perturbed, 0.0),
    "the same, a tenth of the keypoints wrong": (toy_rig.perturbed, 0.1),
    "right": (lambda true, rng: true, 0.0),
    "one camera knocked by 5 degrees": (knocked, 0.0),
}


class Kept:
    """Trials that are done, in a file of lines; what is there is not done again."""

    def __init__(self, folder: Path) -> None:
        self.file, self.rows = folder / "trials.jsonl", {}
        if self.file.exists():
            lines = map(json.loads, self.file.read_text().splitlines())
            self.rows = {line["key"]: line["row"] for line in lines}

    def __call__(self, key: str, trial: Callable[[], Any]) -> Any:
        """A trial's result, JSON's types."""
        if key not in self.rows:
            self.rows[key] = trial()
            with self.file.open("a") as out:
                out.write(json.dumps({"key": key, "row": self.rows[key]}) + "\n")
            print(key, flush=True)
        return self.rows[key]


def figures(given: Rig, true: Rig, outcome: Outcome, X: np.ndarray) -> dict[str, Any]:
    """Pixels missed before and after, (found - truth) / standard error, verdict."""
    before, after = (float(np.median(toy_rig.missed(rig, true, X))) for rig in (given, outcome.rig))
    pull = pulls(outcome.fitted.rig, true, outcome.fitted.error, X).tolist()
    return {"before": before, "after": after, "pull": pull, "verdict": outcome.verdict}


def trial(change: Callable, wrong: float, seed: int) -> dict[str, Any]:
    """One seed of the toy rig."""
    rng = np.random.default_rng(seed)
    true, X = toy_rig.rig(), toy_rig.walk(rng, 60, 20)
    s = toy_rig.seen(true, X, rng)
    bad = rng.random(s.seen.shape) < wrong
    s.xy[bad] += rng.uniform(-80, 80, (bad.sum(), 2))
    given = change(true, rng)
    judges = np.arange(60) % 5 == 4
    evidence = Evidence(points=s)
    return mended(given, true, evidence, np.flatnonzero(~judges), np.flatnonzero(judges),
                  X.reshape(-1, 3))  # fmt: skip


def mended(
    given: Rig, true: Rig, evidence: Evidence, train: np.ndarray, unused: np.ndarray, X: np.ndarray
) -> dict[str, Any]:
    """Calibrate, with processor time, and compare with the truth."""
    begin = time.process_time()
    outcome = calibrate(given, evidence.of(train), evidence.of(unused), Settings())
    spent = time.process_time() - begin
    return figures(given, true, outcome, X) | {"s": spent}


def pulls(found: Rig, true: Rig, error: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Found minus true in standard errors [V*7], in the world of the fit's gauge."""
    delta = np.zeros((len(true.R), len(PARAMETERS)))
    turn = found.R @ np.swapaxes(true.R, -1, -2)
    delta[:, :3] = 0.5 * np.stack(
        [
            turn[:, 2, 1] - turn[:, 1, 2],
            turn[:, 0, 2] - turn[:, 2, 0],
            turn[:, 1, 0] - turn[:, 0, 1],
        ],
        -1,
    )
    delta[:, 3:6] = found.t - np.einsum("vij,vj->vi", turn, true.t)
    delta[:, 6] = np.log(found.K[:, 0, 0] / true.K[:, 0, 0])
    # The true rig may stand in any world: take the one that is nearest in the gauge's own measure.
    distance = np.median(np.linalg.norm(true.centres[:, None] - X, axis=-1))
    weight = np.ones(delta.shape)
    weight[:, :3] = distance**2
    G, w = gauge_generators(true), weight.ravel()
    p = np.linalg.solve(G.T @ (w[:, None] * G), G.T @ (w * delta.ravel()))
    own = (delta.ravel() - G @ p).reshape(delta.shape)
    return (own / np.where(error > 0, error, np.inf))[:, :7].ravel()


def row_of(about: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All seeds of a case in one row."""
    pull = np.abs(np.concatenate([r["pull"] for r in rows]))
    row = about | {
        "seeds": len(rows),
        "before, px": round(float(np.median([r["before"] for r in rows])), 2),
        "after, px": round(float(np.median([r["after"] for r in rows])), 3),
        "worst seed, px": round(float(max(r["after"] for r in rows)), 3),
        "improved": sum(r["verdict"] == "improved" for r in rows),
        "within 2 sigma, %": round(100 * float((pull < 2).mean()), 1),
        "cpu_s": round(float(np.median([r["s"] for r in rows])), 2),
    }
    print(row, flush=True)
    return row


def toy(kept: Kept, seeds: int) -> list[dict[str, Any]]:
    """A row for each way a rig may be off."""
    return [
        row_of(
            {"rig": name},
            [kept(f"{name}, {i}", lambda c=case, i=i: trial(*c, i)) for i in range(seeds)],
        )
        for name, case in CASES.items()
    ]


def gathered(recording: Recording, true: Rig, kind: str) -> tuple:
    """Evidence of one kind, frames to fit and frames to judge by."""
    return evidence_of(configs.get_config(), recording, true, [kind])


def of_recording(kept: Kept, path: Path, seeds: int) -> list[dict[str, Any]]:
    """A row for each kind of evidence and state of the rig."""
    recording = open_recording(path)
    true, rows = rig_of(recording, Settings()), []
    middle, box = WATCHED
    X = middle + np.random.default_rng(5).uniform(*box, (200, 3))
    for kind in ("keypoints", "silhouettes"):
        evidence, train, unused = gathered(recording, true, kind)
        for name in list(CASES)[0], "right":

            def one(
                seed: int,
                change: Callable = CASES[name][0],
                about: tuple = (evidence, train, unused),
            ) -> dict:
                return mended(change(true, np.random.default_rng(seed)), true, *about, X)

            about = {"evidence": kind, "rig": name, "frames": f"{len(train)} + {len(unused)}"}
            done = [kept(f"{kind}, {name}, {i}", lambda i=i, o=one: o(i)) for i in range(seeds)]
            rows.append(row_of(about, done))
    return rows


# --- what it is worth to a fit --------------------------------------------------------------------


def recorded(folder: Path, seed: int) -> Recording:
    """A walk of twenty seconds, two pictures a second, watched by six cameras of no video."""
    path = folder / f"recording_{seed}"
    if not (path / "recording.json").exists():
        write_recording(path, frames=FIT_FRAMES, size=FIT_SIZE, seed=seed, n_heldout=6, fps=2.0,
                        heldout_every=EVERY, workers=1)  # fmt: skip
    return open_recording(path)


def rigs_of(kept: Kept, recording: Recording, true: Rig, seed: int) -> dict[str, Rig]:
    """The true rig, a perturbed one, and what `calibrate` makes of that."""
    given = toy_rig.perturbed(true, np.random.default_rng(seed))
    rigs = {"true": true, "perturbed": given}
    for kind in ("keypoints", "silhouettes"):

        def mend(kind: str = kind) -> dict[str, list]:
            evidence, train, unused = gathered(recording, given, kind)
            rig = calibrate(given, evidence.of(train), evidence.of(unused), Settings()).rig
            return {k: np.asarray(v).tolist() for k, v in vars(rig).items()}

        found = kept(f"rig by {kind}, {seed}", mend)
        rigs[f"mended by {kind}"] = Rig(**{k: np.array(v) for k, v in found.items()})
    return rigs


def seen_by_none(recording: Recording, frame: int) -> list[tuple]:
    """Pictures on white, masks and cameras [1] of the cameras of no video, true world."""
    folder = recording.path / "heldout"
    sample = SampleSet(folder, {}, {"all": ()}).load(f"frame_{frame:06d}")
    rgb, mask = composite(sample.images_rgba, np.ones(3, np.float32))
    return [(rgb[v], mask[v], sample.cameras[np.array([v])]) for v in range(len(rgb))]


def fitted(recording: Recording, rig: Rig, frame: int) -> tuple[Any, Similarity]:
    """Gaussians of one frame by a rig, and the move from its world to their scene.

    None in place of them where the hull is empty.
    """
    instant = next(iter(read_instants(recording.videos, recording.masks, [frame])))
    rgb = [picture[..., 2::-1].astype(np.float32) / 255 for picture in instant.pictures]
    masks = [mask.astype(np.float32) / 255 for mask in instant.masks]
    sizes = np.array([(c.width, c.height) for c in recording.cameras])
    middle = np.stack([np.argwhere(m > 0.5).mean(0)[::-1] + 0.5 for m in masks])[:, None]
    one = np.zeros(1, int)
    sightings = Sightings(middle, np.ones((len(masks), 1)), np.zeros_like(middle), one, one)
    scene = Similarity(SCENE, np.eye(3), -SCENE * located(rig, sightings)[0])
    cameras = [camera.transformed(scene) for camera in cameras_of(rig, sizes)]
    settings = fits.FitSettings()
    views = fits.cut_out(rgb, masks, cameras, settings)
    try:
        return fits.fit(views, fits.start(views, settings), settings).gaussians, scene
    except fits.EmptyHullError:
        return None, scene


def worth(kept: Kept, folder: Path, seeds: int) -> list[dict[str, Any]]:
    """A row for each rig: means over seeds, frames and hidden cameras, and what is regained."""
    found: dict[str, list[dict[str, float]]] = {}
    middle, box = WATCHED
    X = middle + np.random.default_rng(5).uniform(*box, (200, 3))
    for seed in range(seeds):
        recording = recorded(folder, seed)
        true = rig_of(recording, Settings())
        rigs = rigs_of(kept, recording, true, seed)
        for name, rig in rigs.items():
            for frame in (EVERY, 2 * EVERY):
                found.setdefault(name, []).extend(
                    kept(
                        f"fit, {name}, {seed}, {frame}",
                        lambda r=recording, t=true, rig=rig, f=frame: drawn(r, t, rig, f, X),
                    )
                )
    best, worst = means(found["true"]), means(found["perturbed"])
    rows = []
    for name, pictures in found.items():
        row = {"cameras": name, "seeds": seeds, "pictures": len(pictures), **means(pictures)}
        for key in ("IoU", "interior, dB"):
            share = (row[key] - worst[key]) / (best[key] - worst[key])
            row[f"regained, {key.split(',')[0]}, %"] = round(100 * share, 1)
        rows.append(row)
        print(row, flush=True)
    return rows


def drawn(
    recording: Recording, true: Rig, rig: Rig, frame: int, X: np.ndarray
) -> list[dict[str, float]]:
    """Figures of one frame fitted by a rig, in each camera of no video."""
    world = toy_rig.between(rig, true, X)
    missed = float(np.median(toy_rig.missed(rig, true, X)))
    (gaussians, scene), rows = fitted(recording, rig, frame), []
    for rgb, mask, camera in seen_by_none(recording, frame):
        row = {"px": missed, "IoU": 0.0, "interior, dB": float("nan")}
        if gaussians is not None:
            out = render(gaussians, camera.transformed(scene.compose(world)))
            picture = np.clip(np.asarray(out.rgb[0]), 0, 1), np.asarray(out.alpha[0])
            row |= judged(*picture, rgb, mask)
        rows.append(row)
    return rows


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of the figures of several pictures."""
    names = ("px", "IoU", "interior, dB")
    return {n: round(float(np.nanmean([r[n] for r in rows])), 4) for n in names}


# --- derivatives by K -----------------------------------------------------------------------------


def gradients(kept: Kept, repeats: int) -> list[dict[str, Any]]:
    """Forward, backward, and backward with the derivatives by K, called in turn."""
    scenes = (("shell", 50_000, 256), ("gslrm", 100_000, 256))
    return [
        kept(f"gradients, {scene[0]}, {name}", lambda s=scene, n=name: of_scene(s, n, repeats))
        for name in implementations_here()
        for scene in scenes
    ]


def of_scene(scene: tuple[str, int, int], name: str, repeats: int) -> dict[str, Any]:
    """A row: one scene, one implementation."""
    kind, n, size = scene
    arrays = {k: jnp.asarray(v) for k, v in SCENES[kind](n, size).items()}

    def loss(moving: dict, fixed: dict) -> Any:
        out = rasterize(**moving, **fixed, width=size, height=size, implementation=name)
        return jnp.square(out.rgb).sum()

    calls: dict[str, Callable] = {}
    for way, wanted in (("without K", (*GAUSSIANS, "w2c")), ("with K", (*GAUSSIANS, "w2c", "K"))):
        moving = {k: arrays[k] for k in wanted}
        fixed = {k: v for k, v in arrays.items() if k not in wanted}
        run = jax.jit(jax.grad(loss))
        calls[way] = lambda r=run, m=moving, f=fixed: jax.block_until_ready(r(m, f))
    forward = jax.jit(lambda fixed: loss({}, fixed))
    calls["forward"] = lambda: jax.block_until_ready(forward(arrays))
    ms = {way: t["cpu_ms"] for way, t in alternate(calls, repeats).items()}
    share = 100 * (ms["with K"] - ms["without K"]) / (ms["without K"] - ms["forward"])
    row = {"scene": kind, "gaussians": n, "size": size, "implementation": name}
    row |= {f"{way} cpu_ms": value for way, value in ms.items()}
    return row | {"K, % of backward": round(share, 1)}


def main() -> None:
    """Measure the parts, one table each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", help=f"only these of {','.join(PARTS)}; --out keeps the others")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--fit-seeds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--recording", type=Path, default=SHARED / "recordings" / "mouse_a")
    parser.add_argument("--folder", type=Path, help="what is done is found again there")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        kept = Kept(folder)
        measure: dict[str, Callable[[], list[dict]]] = {
            "toy": lambda: toy(kept, args.seeds),
            "recording": lambda: of_recording(kept, args.recording, args.seeds),
            "fit": lambda: worth(kept, folder, args.fit_seeds),
            "gradients": lambda: gradients(kept, args.repeats),
        }
        parts = args.parts.split(",") if args.parts else list(PARTS)
        tables: dict[str, list[dict]] = {}
        if args.parts and args.out and args.out.exists():
            tables = json.loads(args.out.read_text())["tables"]
        if "--parts" in sys.argv:  # the page shows the command that measures all of the tables
            at = sys.argv.index("--parts")
            del sys.argv[at : at + 2]
        for part in parts:
            tables[PARTS[part]] = measure[part]()
            order = {title: tables[title] for title in PARTS.values() if title in tables}
            report.write("calibrate", order, args.out, device="cpu")  # each part as it is done


if __name__ == "__main__":
    main()
