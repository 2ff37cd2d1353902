"""Is preparation true, fast, and bounded in memory?

    python -m tests.benchmarks.bench_prepare [RECORDING] [--parts geometry,speed,memory] [--out
    FILE]

RECORDING defaults to $MOUSELIFT_SHARED/recordings/mouse_a (../shared). Prints one table a part and
writes them as JSON. `geometry`: every mode, and the original's recipes, by camera against warp,
keypoint residuals and visual-hull cover. `speed`: the whole run against merely decoding its videos,
alternately, medians; processor seconds beside wall seconds, because only they are fair on a busy
machine.
`memory`: peak resident memory on the recording and on the same recording looped.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.benchmarks import report

MODES = ("look_at", "look_at:fill", "crop", "as_is", "original", "original_boxes",
         "original_centered", "original_uniform", "original_pixels")  # fmt: skip
HULL_EVERY = 6  # samples between those whose hull cover is measured
LOOPS = 20


def prepare(recording: Path, out: Path, *, mode: str = "look_at", frames: int = 0, size: int = 512):
    """Run the preparation as the stage does; returns the manifest."""
    from mouselift_jax.data.preparation.placement import SceneSettings
    from mouselift_jax.data.preparation.preparer import Preparer, PrepareSettings
    from mouselift_jax.data.recordings.inspection import open_recording
    from mouselift_jax.data.samples.writer import SampleWriter

    mode, _, fov = mode.partition(":")
    settings = PrepareSettings(
        scene=SceneSettings(
            mode=mode, fov=fov or "pretrained", aim="box" if fov else "centre", size=size
        )
    )
    source = open_recording(recording)
    preparer = Preparer(source, settings, range(frames or source.n_frames))
    with SampleWriter(out, {"parameters": {"mode": mode}, **preparer.manifest_entries()}) as writer:
        preparer.run(writer)
        return writer.finish(lambda rows: ["train"] * len(rows))


def geometry(recording: Path) -> list[dict[str, object]]:
    """One row a mode."""
    from mouselift_jax.data.samples.sample_set import SampleSet
    from mouselift_jax.geometry.hull import hull_cover

    rows = []
    for mode in MODES:
        with tempfile.TemporaryDirectory() as folder:
            manifest = prepare(recording, Path(folder) / "set", mode=mode)
            samples = SampleSet.open(Path(folder) / "set")
            cover = []
            for name in samples.ids("all")[::HULL_EVERY]:
                sample = samples.load(name)
                cameras = [sample.cameras[i] for i in range(len(sample.camera_ids))]
                cover.append(hull_cover(list(sample.images_rgba[..., 3]), cameras))
        done = [r for r in manifest["samples"] if r["status"] == "ok"]
        residual = [r["keypoint_px"] for r in done if "keypoint_px" in r]
        rows.append(
            {
                "mode": mode,
                "samples": len(done),
                "warp_px_max": max(r["warp_error_px"] for r in done),
                "keypoint_px_raw": float(np.mean([r["raw"] for r in residual] or [np.nan])),
                "keypoint_px_sample": float(np.mean([r["sample"] for r in residual] or [np.nan])),
                "hull_cover_mean": float(np.nanmean(cover)),
                "hull_cover_min": float(np.nanmin(cover)),
                "cut_share": float(np.mean([max(r["border_px"]) > 0 for r in done])),
            }
        )
        print(rows[-1], flush=True)
    return rows


def decode_only(recording: Path) -> int:
    """Decode all videos with OpenCV as it comes, in step; returns the number of instants."""
    import cv2

    from mouselift_jax.data.recordings.inspection import open_recording

    source = open_recording(recording)
    captures = [cv2.VideoCapture(str(f.path)) for f in (*source.videos, *source.masks)]
    n = 0
    while all(c.read()[0] for c in captures):
        n += 1
    return n


def timed(code: str) -> dict[str, float]:
    """Wall and processor seconds and peak memory of a Python process that runs `code`."""
    code += "; import time; from tests.benchmarks import report"
    code += "; print(time.process_time(), report.now_gib('VmHWM'))"
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the measured process failed: {code}")
    wall = time.perf_counter() - start
    cpu, peak = map(float, said.split()[-2:])
    return {"wall_s": wall, "cpu_s": cpu, "rss_mb": peak * 1024}


HEAD = "from pathlib import Path; from tests.benchmarks import bench_prepare as b; "


def speed(recording: Path, repeats: int) -> list[dict[str, object]]:
    """Whole run against decoding, alternately in one process: both meet the same machine."""
    calls = {
        "decode": lambda folder: decode_only(recording),
        "look_at": lambda folder: prepare(recording, folder / "s"),
        "look_at:fill": lambda folder: prepare(recording, folder / "s", mode="look_at:fill"),
    }
    with tempfile.TemporaryDirectory() as folder:  # files and libraries are warm from here on
        prepare(recording, Path(folder) / "s", frames=4)
    n = decode_only(recording)
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(repeats):
        rounds.append({})
        for what, call in calls.items():
            with tempfile.TemporaryDirectory() as folder:
                wall, cpu = time.perf_counter(), time.process_time()
                call(Path(folder))
                spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
            rounds[-1][what] = spent
        print(rounds[-1], flush=True)

    def median(what: str, key: str, against: str = "") -> float:
        values = [r[what][key] / (r[against][key] if against else n / 1e3) for r in rounds]
        return float(np.median(values))

    return [
        {
            "what": what,
            "samples": n,
            "cpu ms a sample": median(what, "cpu_s"),
            "wall ms a sample": median(what, "wall_s"),
            "cpu / decode": median(what, "cpu_s", "decode"),
            "wall / decode": median(what, "wall_s", "decode"),
        }
        for what in calls
    ]


def looped(recording: Path, folder: Path, times: int) -> Path:
    """The recording played `times` times over, without decoding it (stream copy)."""
    import imageio_ffmpeg

    out = folder / "looped"
    for source in sorted(recording.rglob("*.mp4")):
        target = out / source.relative_to(recording)
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-stream_loop", str(times - 1),
             "-i", str(source), "-c", "copy", str(target)],
            check=True,
        )  # fmt: skip
    shutil.copy(recording / "new_cam.pkl", out / "new_cam.pkl")
    return out


def memory(recording: Path, times: int) -> list[dict[str, object]]:
    """Peak memory of the recording once and looped, every frame prepared at 128 px."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        long = looped(recording, Path(folder), times)
        for name, path in (("once", recording), (f"looped {times} times", long)):
            out = Path(folder) / f"out{len(rows)}"
            code = f"b.prepare(Path({str(path)!r}), Path({str(out)!r}), size=128)"
            rows.append({"recording": name, **timed(HEAD + code)})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run the parts asked for."""
    shared = Path(os.environ.get("MOUSELIFT_SHARED", "../shared"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recording", nargs="?", type=Path, default=shared / "recordings/mouse_a")
    parser.add_argument("--parts", default="geometry,speed,memory")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loops", type=int, default=LOOPS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    parts = args.parts.split(",")
    tables: dict[str, list[dict[str, object]]] = {}
    if "geometry" in parts:
        tables["geometry (pixels of the original pictures)"] = geometry(args.recording)
    if "speed" in parts:
        tables["speed, start of Python taken off"] = speed(args.recording, args.repeats)
    if "memory" in parts:
        tables["whole process"] = memory(args.recording, args.loops)
    report.write("prepare", tables, args.out, device="cpu")


if __name__ == "__main__":
    main()
