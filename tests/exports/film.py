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


def measured_film(folder, numbers=(0, 2, 6)):
    """Frames of a 10 fps recording, the spine on a line, one frame not trusted."""
    write_recording(folder / "rec", frames=8, size=(64, 56), n_heldout=0, fps=10.0, workers=1)
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
    samples = SimpleNamespace(path=folder, manifest={"source": {"rec": {"fps": 10}}})
    return FilmSource(folder / "run", samples, tuple(frames), open_recording(folder / "rec"))
