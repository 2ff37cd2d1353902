"""How near the truth `calibrate` brings a rig, on procedural sightings with known cameras.

    python -m tests.benchmarks.bench_calibrate [--seeds 10]

Six cameras of 1152 x 1024 pixels, 60 frames spread over the arena, 20 keypoints with 1.5 px noise;
48 frames fit, 12 judge. Figures are pixels by which the cameras miss true points once the worlds
are laid together (`toy_rig.missed`), the median over points, cameras and seeds, and the worst seed.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from mouselift_jax.geometry.bundle import PARAMETERS, Rig, gauge_generators
from mouselift_jax.pipelines.calibrate import Evidence, Settings, calibrate
from tests import toy_rig


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


def trial(change, wrong: float, seed: int) -> tuple[np.ndarray, np.ndarray, float, np.ndarray, str]:
    """Pixels missed before and after, processor time, (truth - found) / standard error, verdict."""
    rng = np.random.default_rng(seed)
    true, X = toy_rig.rig(), toy_rig.walk(rng, 60, 20)
    s = toy_rig.seen(true, X, rng)
    bad = rng.random(s.seen.shape) < wrong
    s.xy[bad] += rng.uniform(-80, 80, (bad.sum(), 2))
    given = change(true, rng)
    judges = np.arange(60) % 5 == 4
    evidence = Evidence(points=s)
    begin = time.process_time()
    outcome = calibrate(
        given, evidence.of(np.flatnonzero(~judges)), evidence.of(np.flatnonzero(judges)), Settings()
    )
    spent = time.process_time() - begin
    flat = X.reshape(-1, 3)
    before, after = (toy_rig.missed(rig, true, flat) for rig in (given, outcome.rig))
    return (
        before,
        after,
        spent,
        pulls(outcome.fitted.rig, true, outcome.fitted.error),
        outcome.verdict,
    )


def pulls(found: Rig, true: Rig, error: np.ndarray) -> np.ndarray:
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
    distance = 370.0
    weight = np.ones(delta.shape)
    weight[:, :3] = distance**2
    G, w = gauge_generators(true), weight.ravel()
    p = np.linalg.solve(G.T @ (w[:, None] * G), G.T @ (w * delta.ravel()))
    own = (delta.ravel() - G @ p).reshape(delta.shape)
    return (own / np.where(error > 0, error, np.inf))[:, :7].ravel()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    seeds = parser.parse_args().seeds
    print("| rig | before, px | after, px | worst seed, px | improved | within 2 sigma | s |")
    print("|---|---|---|---|---|---|---|")
    for name, (change, wrong) in CASES.items():
        rows = [trial(change, wrong, seed) for seed in range(seeds)]
        before, after = (np.median([np.median(r[k]) for r in rows]) for k in (0, 1))
        worst = max(np.median(r[1]) for r in rows)
        within = np.mean(np.abs(np.concatenate([r[3] for r in rows])) < 2)
        improved = sum(r[4] == "improved" for r in rows)
        spent = np.median([r[2] for r in rows])
        print(
            f"| {name} | {before:.2f} | {after:.3f} | {worst:.3f} | {improved}/{seeds} | "
            f"{within:.1%} | {spent:.1f} |"
        )


if __name__ == "__main__":
    main()
