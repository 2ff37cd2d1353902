"""How many RGBA views a second the loader delivers, from PNG files and from packed shards.

    python -m tests.benchmarks.bench_loader [--samples DIR] [--seconds 5] [--out FILE]

Without --samples it makes a set of noisy ellipses at 512 px, harder to compress than fur. Views a
second are given by the wall and by processor time (per 2 cores: 2 / processor seconds per view).
Batches are read as training reads them: decoded, composited on white, stacked. The packed shard
(raw RGBA of the animal's box, one file) is what was weighed against PNG files; see
docs/data_format.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from mouselift_jax.data.batches.loader import make_loader
from mouselift_jax.data.batches.pictures import composite
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.data.samples.writer import SampleWriter
from mouselift_jax.geometry.rig import rig_from_angles
from tests.benchmarks import report

N_SAMPLES, N_VIEWS, SIZE = 24, 6, 512


def make_set(path: Path, radius_px: tuple[int, int]) -> Path:
    """A set of noisy ellipses; radii as the animal's size in the picture."""
    rng = np.random.default_rng(0)
    cameras = rig_from_angles(270 - 60.0 * np.arange(N_VIEWS), 15.0, 2.7, 549.0, SIZE)
    y, x = np.mgrid[:SIZE, :SIZE]
    with SampleWriter(path, {"parameters": {}, "scene_scale": 0.0087}) as writer:
        for k in range(N_SAMPLES):
            a, b = radius_px
            inside = ((x - 256) / a) ** 2 + ((y - 256) / b) ** 2 < 1
            images = np.zeros((N_VIEWS, SIZE, SIZE, 4), np.uint8)
            images[:, inside, :3] = rng.integers(20, 90, (N_VIEWS, inside.sum(), 3))
            images[:, inside, 3] = 255
            writer.write(k, images, cameras, range(N_VIEWS), frame=k)
        writer.finish(lambda rows: ["train"] * len(rows))
    return path


def rate(step: object, seconds: float) -> dict[str, float]:
    """Call `step` (returns the number of views it made) for some seconds."""
    step()
    n, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        n += step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"views_per_s": n / wall, "ms_cpu_per_view": cpu / n * 1e3, "per_2_cores": 2 * n / cpu}


def from_loader(path: Path, seconds: float, **settings: object) -> dict[str, float]:
    """The loader as training uses it."""
    batches = iter(make_loader(path, "train", batch_size=4, threads=2, **settings))
    return rate(lambda: next(batches).masks[..., 0].shape[0] * N_VIEWS, seconds)


def from_shard(path: Path, folder: Path, seconds: float) -> dict[str, float]:
    """The same pictures from one memory-mapped file of uncompressed boxes."""
    samples, offsets, parts, at = SampleSet.open(path), [], [], 0
    for name in samples.ids("train"):
        for image in samples.load(name).images_rgba:
            rows = np.flatnonzero(image[..., 3].max(1))
            columns = np.flatnonzero(image[..., 3].max(0))
            box = (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
            part = np.ascontiguousarray(image[box[0] : box[1], box[2] : box[3]])
            offsets.append((at, part.shape, box))
            parts.append(part.reshape(-1))
            at += part.size
    file = folder / "shard.bin"
    np.concatenate(parts).tofile(file)
    shard = np.memmap(file, np.uint8, mode="r")
    rng, n = np.random.default_rng(0), len(offsets)

    def step() -> int:
        batch = []
        for i in rng.integers(0, n, 4 * N_VIEWS):
            start, shape, (r0, r1, c0, c1) = offsets[i]
            image = np.zeros((SIZE, SIZE, 4), np.uint8)
            image[r0:r1, c0:c1] = shard[start : start + np.prod(shape)].reshape(shape)
            batch.append(image)
        composite(np.stack(batch), np.ones(3, np.float32))
        return len(batch)

    result = rate(step, seconds)
    result["bytes_per_view"] = at / n
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        sets = {"given": args.samples} if args.samples else {}
        if not sets:
            sets["small animal"] = make_set(Path(folder) / "small", (100, 50))
            sets["large animal"] = make_set(Path(folder) / "large", (200, 110))
        for name, path in sets.items():
            files = list(path.rglob("cam_*.png"))
            png = from_loader(path, args.seconds)
            png["bytes_per_view"] = sum(f.stat().st_size for f in files) / len(files)
            for form, found in (
                ("PNG", png),
                ("PNG, read at 256 px", from_loader(path, args.seconds, size=256)),
                ("packed, one file", from_shard(path, Path(folder), args.seconds)),
            ):
                rows.append({"set": name, "form": form, **found})
    report.write("loader", {"": rows}, args.out, device="cpu")


if __name__ == "__main__":
    main()
