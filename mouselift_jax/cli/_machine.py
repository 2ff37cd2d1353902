"""Facts about this machine, for `doctor`. Every probe returns findings and never raises."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

GIB = 1 << 30
PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint numpy scipy opencv-python grain "
    "warp-lang viser ml_collections imageio-ffmpeg"
).split()
EXTRAS = {
    "demo": ("gradio", "`demo`, the web page from photo to splat"),
    "prompts": ("transformers", "new words for the multi-view network"),
    "matte": ("rembg", "background removal of photos"),
    "mesh": ("open3d", "`export --to=mesh`"),
}


@dataclasses.dataclass
class Fact:
    """One line of the doctor's block: state is ok | note | warn | bad."""

    name: str
    value: str
    state: str = "ok"
    fix: str = ""


def python_facts() -> Iterator[Fact]:
    """Interpreter, operating system, packages."""
    good = sys.version_info >= (3, 11)
    yield Fact(
        "Python",
        f"{platform.python_version()} ({sys.executable})",
        "ok" if good else "bad",
        "" if good else "use Python 3.11 or newer",
    )
    yield Fact("System", f"{platform.platform()}, {os.cpu_count()} CPU cores")
    found, missing = [], []
    for names in PACKAGES:
        version = next((v for n in names.split("|") if (v := _version(n))), None)
        if version:
            found.append(f"{names.split('|')[0]} {version}")
        else:
            missing.append(names.split("|")[0])
    yield Fact("Packages", ", ".join(found))
    if missing:
        yield Fact("Missing", ", ".join(missing), "bad", "pip install -r requirements.txt")
    for extra, (module, purpose) in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            fix = f"pip install -e '.[{extra}]' in the project's folder"
            yield Fact(f"Extra [{extra}]", f"not installed: {purpose}", "note", fix)
        else:
            yield Fact(f"Extra [{extra}]", f"installed: {purpose}")


def _version(name: str) -> str | None:
    """The installed version of a package, without importing it; None where it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def accelerator_facts() -> Iterator[Fact]:
    """What is there for JAX, asked without JAX, whose start takes seconds of a processor."""
    rows = nvidia_query("name")
    plugins = [n for n in ("jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu") if _version(n)]
    if rows and not any("cuda" in n for n in plugins):
        fix = "pip install -e '.[cuda13]' (driver >= 580) or [cuda12]; docs/install.md"
        yield Fact("Device", "an NVIDIA GPU is here, but this JAX knows only the CPU", "warn", fix)
    elif rows or "libtpu" in plugins:
        yield from _in_a_child(device_facts)
    else:
        yield Fact("Device", f"CPU; CUDA: {_without_gpu()}; --full asks JAX itself", "note")


def _in_a_child(probe: Callable[[], Iterator[Fact]]) -> Iterator[Fact]:
    """Facts from another process: JAX takes most of a GPU's memory while its process lives."""
    program = (
        "import dataclasses, json; from mouselift_jax.cli import _machine; "
        f"print(json.dumps([dataclasses.asdict(f) for f in _machine.{probe.__name__}()]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    try:
        yield from (Fact(**row) for row in json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        why = (done.stderr.strip().splitlines() or ["no word"])[-1]
        yield Fact("JAX", f"does not start: {why}", "bad", "see docs/install.md")


def device_facts() -> Iterator[Fact]:
    """JAX devices with their memory; why an accelerator that is there is not used."""
    try:
        import jax

        devices = jax.devices()
    except (ImportError, RuntimeError) as error:
        yield Fact("JAX", f"does not start: {error}", "bad", "see docs/install.md")
        return
    for device in devices:
        stats = device.memory_stats() if device.platform != "cpu" else None
        memory = ""
        if stats and "bytes_limit" in stats:
            used, limit = stats.get("bytes_in_use", 0), stats["bytes_limit"]
            memory = f", {(limit - used) / GIB:.1f} of {limit / GIB:.1f} GiB free to JAX"
        yield Fact("Device", f"{device.platform}:{device.id} {device.device_kind}{memory}")
    if devices[0].platform != "cpu":
        return
    if not nvidia_query("name"):
        yield Fact("CUDA", f"not available: {_without_gpu()}", "note")
    else:
        fix = "pip install -e '.[cuda13]' (driver >= 580) or [cuda12]; docs/install.md"
        if os.environ.get("JAX_PLATFORMS"):
            fix = f"unset JAX_PLATFORMS (now {os.environ['JAX_PLATFORMS']!r})"
        yield Fact("Device", "an NVIDIA GPU is here, but JAX uses the CPU", "warn", fix)


def _without_gpu() -> str:
    """What is missing for CUDA where nvidia-smi lists no GPU."""
    for name in ("libcuda.so.1", "libcuda.so", "nvcuda.dll"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return "an NVIDIA driver is installed, but it lists no GPU"
    return "no NVIDIA driver is installed"


def rasterizer_facts() -> Iterator[Fact]:
    """Each implementation: drawn with once, or the reason why it cannot."""
    from mouselift_jax.errors import MouseLiftError
    from mouselift_jax.render.rasterize import IMPLEMENTATIONS, rasterize

    one = np.ones((1, 3), np.float32)
    turn = np.array([[1, 0, 0, 0]], np.float32)
    w2c, K = np.eye(4, dtype=np.float32)[None], np.diag([20.0, 20, 1]).astype(np.float32)[None]
    K[:, :2, 2] = 8
    place = np.array([[0, 0, 2]], np.float32)
    for name in IMPLEMENTATIONS:
        start = time.perf_counter()
        try:
            picture = rasterize(
                place, turn, 0.1 * one, 0.9 * one[:, 0], one, w2c, K, 16, 16, implementation=name
            )
            good = float(np.asarray(picture.alpha).max()) > 0.5
            text = f"works (first picture after {time.perf_counter() - start:.1f} s)"
            yield Fact(
                f"Rasterizer {name}", text if good else "draws nothing", "ok" if good else "bad"
            )
        except (MouseLiftError, ImportError) as error:
            yield Fact(f"Rasterizer {name}", f"unavailable: {str(error).splitlines()[0]}", "note")


def video_facts() -> Iterator[Fact]:
    """Whether H.264 can be written and read back."""
    import cv2

    from mouselift_jax.data.mp4 import ffmpeg_version, mp4_writer
    from mouselift_jax.errors import MouseLiftError

    version = ffmpeg_version()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        try:
            with mp4_writer(path, 30.0) as write:
                for value in (0, 100, 200):
                    write(np.full((32, 32, 3), value, np.uint8))
            video = cv2.VideoCapture(str(path))
            n = 0
            while video.read()[0]:
                n += 1
            video.release()
        except (MouseLiftError, OSError, RuntimeError) as error:
            fix = "pip install --force-reinstall imageio-ffmpeg"
            yield Fact("Video", f"ffmpeg {version} cannot write H.264: {error}", "bad", fix)
            return
    good = n == 3
    yield Fact(
        "Video",
        f"ffmpeg {version} writes H.264, OpenCV {cv2.__version__} reads "
        + ("it" if good else f"{n} of 3 frames"),
        "ok" if good else "bad",
        "" if good else "pip install --force-reinstall opencv-python",
    )


def memory_facts(paths: list[Path]) -> Iterator[Fact]:
    """RAM, disk, compilation caches."""
    import psutil

    ram = psutil.virtual_memory()
    state = "warn" if ram.available < 4 * GIB else "ok"
    yield Fact(
        "Memory",
        f"{ram.available / GIB:.1f} of {ram.total / GIB:.1f} GiB free",
        state,
        "close other programs, or use the `tiny` and `lowmem` variants" if state != "ok" else "",
    )
    for path in paths:
        disk = shutil.disk_usage(path)
        state = "bad" if disk.free < GIB else "warn" if disk.free < 10 * GIB else "ok"
        yield Fact(
            "Disk",
            f"{disk.free / GIB:.0f} of {disk.total / GIB:.0f} GiB free at {path}",
            state,
            "a run keeps 3 checkpoints; remove old runs" if state != "ok" else "",
        )
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    caches = [Path(named)] if named else [Path("runs/.cache/xla"), Path(".cache/xla")]
    for cache in [c for c in caches if c.is_dir()]:
        size = sum(f.stat().st_size for f in cache.rglob("*") if f.is_file())
        yield Fact("Compile cache", f"{cache}: {size / (1 << 20):.0f} MiB")
    if not any(c.is_dir() for c in caches):
        yield Fact("Compile cache", "none yet (launch.py makes one beside the runs)")


def checkpoint_facts(roots: list[Path]) -> Iterator[Fact]:
    """Converted weights below `roots`, with where they came from."""
    found = False
    for root in roots:
        for file in sorted([*root.glob("conversion.json"), *root.glob("*/conversion.json")]):
            found = True
            try:
                record = json.loads(file.read_text())
            except (OSError, json.JSONDecodeError) as error:
                yield Fact(f"Weights {file.parent}", f"conversion.json: {error}", "bad")
                continue
            keys = ("kind", "source", "sha256", "date", "license")
            known = ", ".join(f"{k} {record[k]}" for k in keys if isinstance(record.get(k), str))
            yield Fact(f"Weights {file.parent}", known or "converted")
    if not found:
        looked = ", ".join(map(str, roots))
        fix = "docs/checkpoints.md; `make demo` needs none"
        yield Fact("Weights", f"no converted checkpoint below {looked}", "note", fix)


def nvidia_query(fields: str, what: str = "gpu") -> list[list[str]]:
    """Rows of nvidia-smi, [] where there is no NVIDIA driver."""
    try:
        out = subprocess.run(
            ["nvidia-smi", f"--query-{what}={fields}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [[v.strip() for v in line.split(",")] for line in out.splitlines() if line.strip()]


def gpu_facts() -> Iterator[Fact]:
    """Memory, load and temperature of every GPU, and who uses it."""
    fields = "index,name,memory.used,memory.total,utilization.gpu,temperature.gpu,driver_version"
    for row in nvidia_query(fields):
        index, name, used, total, load, heat, driver = row
        full = float(used) / max(1.0, float(total)) > 0.9 if used.isdigit() else False
        yield Fact(
            f"GPU {index}",
            f"{name}: {used} of {total} MiB used, load {load} %, {heat} C, driver {driver}",
            "warn" if full else "ok",
            "choose another with CUDA_VISIBLE_DEVICES" if full else "",
        )
    for pid, *name, used in nvidia_query("pid,process_name,used_memory", "compute-apps"):
        yield Fact("GPU process", f"{pid} {', '.join(name)}: {used} MiB")  # names may hold commas


def training_facts() -> Iterator[Fact]:
    """Runs of launch.py that are going on, with how far they are."""
    import psutil

    for process in psutil.process_iter(["pid", "cmdline", "memory_info", "create_time", "cwd"]):
        words = process.info["cmdline"] or []
        python = words and Path(words[0]).name.startswith("python")  # not srun, nice, timeout...
        if not python or not any(w.endswith("launch.py") for w in words):
            continue
        name = next((w.split("=", 1)[1] for w in words if w.startswith("--workdir=")), None)
        hours = (time.time() - process.info["create_time"]) / 3600
        rss = process.info["memory_info"].rss / GIB if process.info["memory_info"] else 0
        text = f"process {process.info['pid']}, {hours:.1f} h, {rss:.1f} GiB"
        if name:
            folder = Path(process.info["cwd"] or ".") / name
            text += f", {name}{_last_step(folder / 'metrics.jsonl')}"
        yield Fact("Running", text)


def _last_step(path: Path) -> str:
    """Step of the last whole row; read from the end, the file may be long."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            return f", step {json.loads(line)['step']}"
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return ""


def collect(roots: list[Path], *, quick: bool = False, full: bool = False) -> list[Fact]:
    """The facts; `quick` = what changes from minute to minute, `full` = with JAX and drawing."""
    here = [Path.cwd()]
    probes: list[Callable[[], Iterator[Fact]]] = [
        gpu_facts,
        lambda: memory_facts(here),
        training_facts,
    ]
    if not quick:
        probes = [
            python_facts,
            *([device_facts, rasterizer_facts] if full else [accelerator_facts]),
            video_facts,
            *probes,
            lambda: checkpoint_facts(roots),
        ]
    return [fact for probe in probes for fact in probe()]
