"""A measured film of a small procedural recording, without fitting anything."""

import json
from types import SimpleNamespace

import numpy as np

from mouselift_jax.data.recordings.inspection import open_recording
from mouselift_jax.data.synthetic.recording import write_recording
from mouselift_jax.exports.source import FilmFrame, FilmSource
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.pipelines.measure import COLUMNS, TEXT
from mouselift_jax.report.sequence import write_csv
from mouselift_jax.splats.film import Film, Part


def write_identity(run, numbers, cut=None, n=80):
    """A film of 100 mm a unit: an egg that walks along x; from `cut` on another set."""
    world = {"scale": 100.0, "R": np.eye(3).tolist(), "t": [5.0, 0, 0]}
    film = Film.begin(run / "film", {"scene_scale": 0.01, "recording_from_film": world,
                                     "segments": [], "ids": []})  # fmt: skip
    rng = np.random.default_rng(0)
    egg = rng.normal(size=(n, 3))
    egg = (egg / np.linalg.norm(egg, axis=1, keepdims=True) * [0.4, 0.15, 0.15]).astype(np.float32)
    for position, number in enumerate(numbers):
        segment = int(cut is not None and number >= cut)
        means = egg + np.float32([0.1 * number, 0, 0.2])
        film.add(position, Part(
            np.array([number]), np.array([segment]), means[None],
            np.tile(np.float32([1, 0, 0, 0]), (1, n, 1)), np.full((n, 3), -4, np.float32),
            np.full(n, 3, np.float32), np.zeros((1, n, 1, 3), np.float32),
            np.array([0.9]), np.array([30.0]),
        ))  # fmt: skip
    return film


def measured_film(folder, numbers=(0, 2, 6), length=8, gaussians=80):
    """Frames of a 10 fps recording, the spine on a line, one frame not trusted."""
    write_recording(folder / "rec", frames=length, size=(64, 56), n_heldout=0, fps=10.0, workers=1)
    frames, rows = [], []
    for n in numbers:
        place = folder / "run" / "items" / f"sample_{n}"
        place.mkdir(parents=True)
        spine = np.linspace([90.0 + n, 50, 20], [n, 50, 14], 21)
        (place / "motion.json").write_text(json.dumps({"spine_mm": spine.tolist()}))
        frames.append(FilmFrame(f"sample_{n}", n, n / 10, place / "splats.ply",
                                Similarity(100.0, np.eye(3), np.zeros(3))))  # fmt: skip
        row = {c: float(n) for c in COLUMNS if c not in TEXT}
        rows.append(row | {"frame": n, "head": "shape", "why": "", "trusted": 1, "length_mm": 90.0})
    rows[1] |= {"trusted": 0, "why": "head and tail could not be told apart"}
    write_csv(folder / "run" / "motion.csv", rows)
    write_identity(folder / "run", numbers, n=gaussians)
    samples = SimpleNamespace(path=folder, manifest={"source": {"rec": {"fps": 10}}})
    return FilmSource(folder / "run", samples, tuple(frames), open_recording(folder / "rec"))
