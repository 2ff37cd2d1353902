"""How good a fit is in views that it did not see, and what it costs.

    python -m tests.benchmarks.bench_fit --samples runs/prepare [--hide 3] [--frames 2]

Of each of the first frames of a sample set one camera is hidden and the others are fitted; the
visual hull of the same views stands beside it. Frames after the first are fitted twice: from their
hull and from the frame before. Seconds are processor time; compiling is done before, on the first
frame.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mouselift_jax.data.batches.pictures import composite
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.pipelines import fit as fits
from mouselift_jax.pipelines.baselines import visual_hull
from mouselift_jax.render import render
from mouselift_jax.training import metrics
from tests.benchmarks import report

SPECK = 0.25  # error of a pixel that is seen at once


def judged(rgb: np.ndarray, alpha: np.ndarray, image: np.ndarray, mask: np.ndarray) -> dict:
    """Figures of one hidden view."""
    values = jax.jit(metrics.figures)(rgb[None], alpha[None], image[None], mask[None])
    f = {k: float(v[0]) for k, v in values.items()}
    inside = np.asarray(metrics.interior(alpha[None], 2) * metrics.interior(mask[None], 2))[0] > 0
    off = (np.abs(rgb - image).max(-1, keepdims=True) > SPECK) & inside
    return {
        "IoU": round(f["iou"], 4),
        "interior, dB": round(f["interior_psnr"], 2),
        "mean colour, dB": round(f["mean_color_psnr"], 2),
        "specks, %": round(100 * off.sum() / max(1, inside.sum()), 3),
    }


def trial(samples: SampleSet, ids: list[str], hide: int) -> list[dict[str, Any]]:
    """Rows of all frames with the view of place `hide` in the sample hidden."""
    settings, rows, last = fits.FitSettings(), [], None
    for item_id in ids:
        sample = samples.load(item_id)
        rgb, mask = composite(sample.images_rgba, np.ones(3, np.float32))
        given = np.array([i for i in range(len(rgb)) if i != hide])
        cameras, hidden = sample.cameras[given], sample.cameras[np.array([hide])]
        views = fits.cut_out(rgb[given], mask[given], cameras, settings)
        begin = time.process_time()
        hull = visual_hull(rgb[given], mask[given], cameras, sample.cameras[hide])
        spent = {"hull": time.process_time() - begin}
        about = {"frame": item_id, "hidden view": hide}
        found = judged(hull.rgb, hull.alpha, rgb[hide], mask[hide])
        rows.append(
            about | {"method": "visual hull"} | found | {"seconds": round(spent["hull"], 2)}
        )

        def cold(views: fits.Views = views) -> fits.Fit:
            return fits.fit(views, fits.start(views, settings), settings)

        ways = {"fit, from the hull": cold}
        if last is None:
            cold()  # compiles
        else:
            ways["fit, from the frame before"] = lambda views=views, last=last: fits.fit(
                views, fits.carried(last, views), settings, is_next=True
            )
            ways["fit, from the frame before"]()
        for name, way in ways.items():
            begin = time.process_time()
            done = way()
            seconds = time.process_time() - begin
            drawn = render(done.gaussians, hidden)
            picture = np.clip(np.asarray(drawn.rgb[0]), 0, 1)
            found = judged(picture, np.asarray(drawn.alpha[0]), rgb[hide], mask[hide])
            rows.append(about | {"method": name} | found | {"seconds": round(seconds, 2)})
            if name == "fit, from the hull":
                last = done.start
    return rows


def main() -> None:
    """Print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", required=True, help="sample set or run of prepare")
    parser.add_argument("--hide", type=int, nargs="+", default=[4], help="places of hidden views")
    parser.add_argument("--frames", type=int, default=2, help="the first so many")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    samples = SampleSet.open(args.samples)
    rows = [r for h in args.hide for r in trial(samples, samples.ids("all")[: args.frames], h)]
    report.write("fit", {"Views that the fit did not see": rows}, args.out)


if __name__ == "__main__":
    main()
