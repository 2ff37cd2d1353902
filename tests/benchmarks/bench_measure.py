"""Measures, their standard errors and the descriptor, against the truth of procedural recordings.

    python -m tests.benchmarks.bench_measure [--seeds 41 42 43] [--behaviours walk rear turn groom]
        [--frames 8] [--every 8] [--rows FILE] [--fit RUN]

Every `every`th frame of each recording is fitted by itself from six views (`fit:fast`), measured as
motion.csv is, without keypoints, and compared with the exact body's measures. "inside 1 SE" is the
share of frames whose error is at most the standard error beside it; an honest one has 68 % of them
inside it, 95 % inside two. `stretch` is what the errors would have to be multiplied with for 68 %,
found on all recordings but the first seed's; "held out" is what it gives on those.
Which behaviour a frame shows is told by a linear classifier (ridge regression; its weight chosen
inside the training recordings) taught on all seeds but one and asked about that one: on the columns
of motion.csv that say nothing of the place in the arena, and on the descriptor.
--fit RUN adds `length_mm` of a run of `fit` beside its recording's triangulated keypoints.
A recording that --rows holds is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.synthetic.body import BEHAVIOURS
from mouselift_jax.geometry.solid import body_shape
from mouselift_jax.pipelines import fit as fits
from mouselift_jax.pipelines import measure as measures
from mouselift_jax.pipelines.descriptor import descriptor
from tests.benchmarks import report
from tests.benchmarks.bench_film import UNIT, Recording
from tests.mouse import solid_of_body

PLACE = ("x_mm", "y_mm", "z_mm", "heading_deg")  # of the arena, not of what the animal does
RIDGES = 10.0 ** np.arange(-2, 5)


def measured(behaviour: str, seed: int, frames: Sequence[int], args: Any) -> list[dict[str, Any]]:
    """A row of each frame: what motion.csv is made of, and the truth as `true_...`."""
    recording = Recording(seed, 1, tuple(args.size), args.fps, behaviour)
    s = fits.FitSettings(cells=args.cells, coarse_steps=80, fine_steps=80, bucket=4096)
    rows = []
    for frame in frames:
        body = recording.scene.body(frame)
        scene = recording.scene_of(body)
        cameras = [c.transformed(scene) for c in recording.rig]
        views = fits.cut_out(*recording.pictures(frame, recording.rig), cameras, s)
        done = fits.fit(views, fits.start(views, s), s)
        to_mm = measures.to_millimetres(UNIT, {"scale": UNIT, "R": scene.R, "t": scene.t})
        assert to_mm is not None
        row, shape = measures.measure(done.gaussians, to_mm)
        row |= {"frame": frame, "time_s": frame / args.fps, "front": 0.0}
        if shape is not None:
            in_mm = views.cameras.transformed(scene.inverse())
            row |= measures.standard_errors(shape.box, views.mask, in_mm)
            row["front"] = shape.front
        true = body_shape(solid_of_body(body))
        assert true is not None
        row |= {f"true_{k}": getattr(true, k) for k in measures.MEASURES}
        row |= {"true_centre": true.centre.tolist(), "walks": float(np.degrees(body.heading))}
        row["descriptor"] = descriptor(done.gaussians).tolist()
        rows.append({k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()})
    return rows


# --- errors ---------------------------------------------------------------------------------------


def error_of(row: dict[str, Any], name: str) -> float:
    """How far a measure is from the truth, in its unit; angles the short way round."""
    if name == "centre":
        return float(np.linalg.norm([row[f"{a}_mm"] for a in "xyz"] - np.array(row["true_centre"])))
    off = row[f"{name}_{measures.MEASURES[name]}"] - row[f"true_{name}"]
    return (off + 180) % 360 - 180 if name in measures.ANGLES else off


def errors_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row of each behaviour."""
    table = []
    for behaviour in dict.fromkeys(r["behaviour"] for r in rows):
        own = [r for r in rows if r["behaviour"] == behaviour]
        centre, heading = (np.array([error_of(r, n) for r in own]) for n in ("centre", "heading"))
        turned = np.abs(heading) > 90
        relative = {n: np.array([100 * error_of(r, n) / r[f"true_{n}"] for r in own])
                    for n in ("volume", "length")}  # fmt: skip
        line = {"behaviour": behaviour, "frames": len(own)}
        for name, unit, off in (
            ("centre", "mm", centre), ("heading", "degrees", np.abs(heading[~turned])),
            *((n, "%", np.abs(off)) for n, off in relative.items()),
        ):  # fmt: skip
            line[f"{name}, {unit}: median"] = round(float(np.nanmedian(off)), 2)
            line[f"{name}: 95 %"] = round(float(np.nanquantile(off, 0.95)), 2)
        line["volume, mean %"] = round(float(np.nanmean(relative["volume"])), 2)
        line["head for tail"] = int(turned.sum())
        line["not trusted"] = int(sum(not r["trusted"] for r in own))
        table.append(line)
    return table


def coverage(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Are the standard errors honest? A row of each measure."""
    first, table = rows[0]["seed"], []
    for name in ("centre", *measures.MEASURES):
        unit = measures.MEASURES.get(name, "mm")
        error = np.array([abs(error_of(r, name)) for r in rows])
        said = np.array([r.get(f"{name}_se_{unit}", np.nan) for r in rows], float)
        ratio = np.where(said == 0, np.inf, error / np.where(said == 0, 1, said))
        held = np.array([r["seed"] == first for r in rows])
        known = ~np.isnan(ratio)
        ours, others = ratio[known & held], ratio[known & ~held]
        stretch = float(np.quantile(others, 0.68)) if len(others) else float("nan")
        if not len(ours) or not len(others):
            table.append({"measure": f"{name}, {unit}", "without SE": int((~known).sum())})
            continue
        table.append({
            "measure": f"{name}, {unit}", "median error": round(float(np.nanmedian(error)), 2),
            "inside 1 SE, %": round(100 * float((ratio[known] <= 1).mean())),
            "inside 2 SE, %": round(100 * float((ratio[known] <= 2).mean())),
            "stretch": round(stretch, 2),
            "held out: inside 1, %": round(100 * float((ours <= stretch).mean())),
            "held out: inside 2, %": round(100 * float((ours <= 2 * stretch).mean())),
            "without SE": int((~known).sum()),
        })  # fmt: skip
    return table


# --- which behaviour ------------------------------------------------------------------------------


def ridge(X: np.ndarray, Y: np.ndarray, weight: float) -> tuple[np.ndarray, ...]:
    """Weights of a linear map from X [T,D] to Y [T,C], and what X is normalised by."""
    mean, spread = X.mean(0), X.std(0) + 1e-9
    Z = np.c_[(X - mean) / spread, np.ones(len(X))]
    penalty = weight * np.eye(Z.shape[1])
    penalty[-1, -1] = 0
    return np.linalg.solve(Z.T @ Z + penalty, Z.T @ Y), mean, spread


def right(X: np.ndarray, labels: np.ndarray, train: np.ndarray, weight: float) -> np.ndarray:
    """Whether each frame that was not taught is told rightly."""
    W, mean, spread = ridge(X[train], np.eye(labels.max() + 1)[labels[train]], weight)
    Z = np.c_[(X[~train] - mean) / spread, np.ones((~train).sum())]
    return (Z @ W).argmax(-1) == labels[~train]


def told(X: np.ndarray, labels: np.ndarray, seeds: np.ndarray) -> list[float]:
    """Share of frames told rightly in each held-out seed."""
    shares = []
    for seed in np.unique(seeds):
        train = seeds != seed
        inner = [np.concatenate([
            right(X[train], labels[train], seeds[train] != other, w)
            for other in np.unique(seeds[train])
        ]).mean() for w in RIDGES]  # fmt: skip
        shares.append(float(right(X, labels, train, RIDGES[int(np.argmax(inner))]).mean()))
    return shares


def behaviours_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Which rows tell behaviours apart."""
    names = list(dict.fromkeys(r["behaviour"] for r in rows))
    labels = np.array([names.index(r["behaviour"]) for r in rows])
    seeds = np.array([r["seed"] for r in rows])
    columns = [f"{n}_{u}" for n, u in measures.MEASURES.items() if f"{n}_{u}" not in PLACE]
    motion = np.array([[r[c] for c in [*columns, "speed_mm_s"]] for r in rows], float)
    middle = np.nanmedian(motion, 0)
    motion = np.where(np.isfinite(motion), motion, middle)
    table = []
    for what, X in (
        ("motion.csv", motion),
        ("motion.csv without speed", motion[:, :-1]),
        ("descriptor", np.array([r["descriptor"] for r in rows])),
    ):
        shares = told(X, labels, seeds)
        each = {
            f"seed {s}, %": round(100 * x) for s, x in zip(np.unique(seeds), shares, strict=True)
        }
        table.append({
            "told by": what, "numbers": X.shape[1], "frames": len(rows),
            **each, "mean, %": round(100 * float(np.mean(shares)), 1),
        })  # fmt: skip
    return table


# --- keypoints ------------------------------------------------------------------------------------


def lengths(run: Path) -> list[dict[str, Any]]:
    """`length_mm` of a run's motion.csv beside its recording's keypoints, frame by frame.

    Nose and tail root of keypoints are a straight line apart, a length goes along the spine: so the
    spine's ends are compared too, straight.
    """
    with open(run / "motion.csv", newline="") as file:
        motion = {int(r["frame"]): r for r in csv.DictReader(file)}
    kept = [json.loads(path.read_text()) for path in sorted(run.glob("items/*/motion.json"))]
    rows = []
    for one in kept:
        row = motion[one["frame"]]
        ends = float(np.linalg.norm(np.subtract(one["spine_mm"][0], one["spine_mm"][-1])))
        given = float(row["keypoint_length_mm"])
        rows.append({
            "frame": one["frame"], "bend, degrees": round(float(row["bend_deg"])),
            "length_mm": round(float(row["length_mm"]), 1),
            "keypoints, straight, mm": round(given, 1),
            "length off, %": round(100 * (float(row["length_mm"]) / given - 1), 1),
            "spine's ends, straight, mm": round(ends, 1),
            "ends off, %": round(100 * (ends / given - 1), 1),
        })  # fmt: skip
    return rows


def main() -> None:
    """Print the tables as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[41, 42, 43])
    parser.add_argument("--behaviours", nargs="+", default=list(BEHAVIOURS))
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--size", type=int, nargs=2, default=[576, 512])
    parser.add_argument("--cells", type=int, default=80)
    parser.add_argument("--fit", type=Path, help="a run of fit on a recording with keypoints")
    parser.add_argument("--rows", type=Path, help="what is measured is kept here, by recording")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    frames = range(0, args.frames * args.every, args.every)
    rows = []
    for seed in args.seeds:
        for behaviour in args.behaviours:
            part = {"behaviour": behaviour, "seed": seed, "frames": list(frames), "fps": args.fps,
                    "size": args.size, "cells": args.cells}  # fmt: skip
            found = report.kept(
                args.rows, part, lambda b=behaviour, s=seed: measured(b, s, frames, args)
            )
            moved = measures.motion(found, [r["front"] for r in found])
            rows += [{**r, "behaviour": behaviour, "seed": seed} for r in moved]
    tables = {
        "Measures": errors_table(rows), "Standard errors": coverage(rows),
        "Which behaviour": behaviours_table(rows),
    }  # fmt: skip
    if args.fit:
        tables["Length beside triangulated keypoints"] = lengths(args.fit)
    report.write("measure", tables, args.out)


if __name__ == "__main__":
    main()
