"""The film of a run as it is played, with its clock and what its PLYs say; what a page needs."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.report import colours
from mouselift_jax.splats.film import FOLDER, INDEX, Film
from mouselift_jax.splats.film_file import write_film
from mouselift_jax.splats.ply import load_extras
from mouselift_jax.splats.reel import Reel, Tracks, tracks
from mouselift_jax.splats.trust import FIELD


def is_film_run(run: Path) -> bool:
    """Whether a run has a film with identity."""
    return (run / FOLDER / INDEX).is_file()


def run_reel(run: Path, samples: SampleSet | None) -> Reel:
    """The film of a run of `fit:film`.

    Args:
        run: its folder.
        samples: what it was made of: they know the clock; None = they are gone.
    """
    film, rows = Film.open(run), film_rows(run, samples)
    reel = film.reel(
        {n: float(r["time_s"]) for n, r in rows.items() if r.get("time_s") is not None}
    )

    def seen(segment: int) -> np.ndarray | None:
        for i in np.flatnonzero(reel.segment == segment):
            row = rows.get(int(reel.frames[i]))
            name = "" if row is None else str(row["id"]).replace("/", "_")
            ply = run / "items" / name / "splats.ply"
            if name and ply.is_file():
                found = load_extras(ply).get(FIELD)
                n = reel.gaussians(int(i)).n_gaussians  # a filter left some out of the PLY
                return found if found is not None and len(found) == n else None
        return None

    return dataclasses.replace(reel, seen=seen)


def film_rows(run: Path, samples: SampleSet | None) -> dict[int, dict[str, Any]]:
    """Frame's number -> its row in the manifest of the samples that the film was made of."""
    rows = [] if samples is None else samples.manifest.get("samples", ())
    mine = set(Film.open(run).about.get("ids") or [r["id"] for r in rows])
    return {int(r["frame"]): r for r in rows if r["id"] in mine}


def rainbow(track: Tracks) -> np.ndarray:
    """Colours [P,3] of paths in [0,1], along the animal: neighbours look alike."""
    import matplotlib

    rest = track.paths[0] - track.paths[0].mean(0)
    along = rest @ np.linalg.svd(rest, full_matrices=False)[2][0]
    rank = along.argsort().argsort() / max(1, len(along) - 1)
    return matplotlib.colormaps["turbo"](0.05 + 0.9 * rank)[:, :3]


def payload(
    reel: Reel, errors: Sequence[np.ndarray | None] | None = None, by: str = "own"
) -> dict[str, Any]:
    """What a page's viewer needs of a film (static/film.js, static/splat_viewer.js).

    Args:
        reel: what to play.
        errors: of each frame's Gaussians [N] (`colours.errors`), None where unknown.
        by: the colours to begin with.
    """
    stream = io.BytesIO()
    write_film(stream, reel)
    painters = (colours.CAMERAS, colours.speed_painter(reel), colours.ERROR)
    shades: dict[str, list[str]] = {p.kind: [] for p in painters}
    centres, spans = [], []
    for i in range(len(reel)):
        gaussians = reel.gaussians(i)
        low, high = np.quantile(np.asarray(gaussians.means), (0.02, 0.98), axis=0)
        centres.append(np.round((low + high) / 2, 4).tolist())
        spans.append(float(np.linalg.norm(high - low)))
        known = {"cameras": reel.seen(int(reel.segment[i])), "speed": colours.speeds(reel, i),
                 "error": errors[i] if errors else None}  # fmt: skip
        for p in painters:
            values = known[p.kind]
            fits = values is not None and len(values) == gaussians.n_gaussians
            shades[p.kind].append(_packed(p.bytes(values, len(values))) if fits else "")
    return {
        "film": base64.b64encode(stream.getvalue()).decode(),
        "frames": [None] * len(reel),
        "labels": [reel.label(i) for i in range(len(reel))],
        "centres": centres, "target": centres[0], "radius": round(max([*spans, 0.1]) * 1.3, 4),
        "scene_scale": reel.scene_scale, "colour": by,
        "colours": {
            p.kind: {"legend": p.legend, "values": shades[p.kind],
                     "table": base64.b64encode(p.table().tobytes()).decode()}
            for p in painters if any(shades[p.kind])
        },
        "tracks": [
            {"at": t.at.tolist(), "colours": np.round(rainbow(t), 3).tolist(),
             "paths": base64.b64encode(t.paths.astype("<f4").tobytes()).decode()}
            for t in tracks(reel) if len(t.at) > 1
        ],
    }  # fmt: skip


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(gzip.compress(values.tobytes(), 6, mtime=0)).decode()
