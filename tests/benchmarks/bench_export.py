"""How long a film takes to be written for other programs: processor seconds of each writer.

    python -m tests.benchmarks.bench_export [--frames 60] [--gaussians 20000]

The film is made up (random Gaussians on an egg that walks), its recording is procedural and small;
every writer reads it from disk as `export` does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from mouselift_jax.exports.glb import save_glb
from mouselift_jax.exports.nwb import save_nwb
from mouselift_jax.exports.pose_csv import save_pose_csv
from mouselift_jax.splats.film_file import save_film_file
from mouselift_jax.splats.ply import save_ply
from tests.exports.film import measured_film


def main() -> None:
    """Write the film in every format, and say how long each took."""
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--frames", type=int, default=60)
    args.add_argument("--gaussians", type=int, default=20_000)
    args = args.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        numbers, root = range(args.frames), Path(folder)
        film = measured_film(root, numbers, args.frames, args.gaussians)
        reel = film.reel()
        for i, frame in enumerate(film.frames):
            save_ply(frame.splats, reel.gaussians(i), scene_scale=0.01)
        plys = sum(f.splats.stat().st_size for f in film.frames)

        def glb() -> None:
            for frame in film.frames:
                save_glb(root / f"glb/{frame.label}.glb", frame.gaussians(world="recording"))

        writers = {
            "nwb": lambda: save_nwb(root / "a.nwb", film),
            "csv": lambda: save_pose_csv(root / "a.csv", film),
            "glb": glb,
            "film": lambda: save_film_file(root / "a.film", reel),
        }
        print(f"{args.frames} frames of {args.gaussians:,} Gaussians, PLYs {plys / 1e6:.0f} MB")
        for name, write in writers.items():
            wall, processor = time.time(), time.process_time()
            write()
            wall, processor = time.time() - wall, time.process_time() - processor
            print(f"{name:5} {processor:6.2f} s of processor, {wall:6.2f} s")


if __name__ == "__main__":
    main()
