"""Videos: H.264 in mp4, and the turntable round a set of Gaussians."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from mouselift_jax.errors import BackendError, ShapeError
from mouselift_jax.files import atomic_path
from mouselift_jax.report.pictures import to_uint8

if TYPE_CHECKING:
    from mouselift_jax.splats.gaussians import Gaussians

FOV_DEG = 50.0  # field of view of the pretrained frame's cameras
RADIUS = 2.7  # their distance from the origin, scene units


def write_mp4(path: str | Path, frames: Iterable[Any], fps: float = 30, *, crf: int = 18) -> Path:
    """Write frames (each [H,W,3], float in [0,1] or uint8) as H.264 that every browser plays.

    The file appears only when it is complete. Odd sizes get one repeated row or column, because
    4:2:0 colour needs even ones. `frames` may be a generator: one frame is held at a time.
    """
    with mp4_writer(path, fps, crf=crf) as write:
        for frame in frames:
            write(frame)
    return Path(path)


@contextmanager
def mp4_writer(
    path: str | Path, fps: float = 30, *, crf: int = 18
) -> Iterator[Callable[[Any], None]]:
    """A function that appends one frame; the file appears when the block ends well.

    For several videos at once; otherwise `write_mp4` is simpler.
    """
    with atomic_path(path) as part, ExitStack() as stack:
        shape: tuple[int, ...] | None = None
        pipe: IO[bytes] | None = None

        def write(frame: Any) -> None:
            nonlocal shape, pipe
            frame = _even(to_uint8(frame))
            if pipe is None:
                shape = frame.shape
                pipe = stack.enter_context(_encoder(path, part, shape, fps, crf))
            if frame.shape != shape:
                raise ShapeError(
                    "frames of one video differ in size",
                    where=path,
                    expected=shape,
                    found=frame.shape,
                )
            pipe.write(frame.tobytes())

        yield write
        stack.close()
        if pipe is None:
            raise ShapeError("a video has no frames", where=path, expected="at least one", found=0)


@contextmanager
def _encoder(
    path: str | Path, part: Path, shape: tuple[int, ...], fps: float, crf: int
) -> Iterator[IO[bytes]]:
    """The standard input of an ffmpeg that writes `part`; ended well or killed at the end."""
    import imageio_ffmpeg

    size, rate = f"{shape[1]}x{shape[0]}", f"{fps:g}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", rate, "-i", "-"]
    command += ["-an", "-vcodec", "libx264", "-pix_fmt", "yuv420p", "-crf", str(crf)]
    command += ["-movflags", "+faststart", str(part)]
    with tempfile.TemporaryFile() as messages:
        # Its own process group: Ctrl-C must reach us first, so that the half video is removed.
        # (imageio_ffmpeg's own writer forks with Python code in the child, which JAX forbids.)
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=messages, stderr=messages, process_group=0
        )
        try:
            pipe: IO[bytes] = process.stdin  # type: ignore[assignment]
            yield pipe
            pipe.close()
            failed = process.wait() != 0
        except BrokenPipeError:
            failed = process.wait() is not None
        except BaseException:
            process.kill()
            process.wait()
            raise
        if failed:
            messages.seek(0)
            said = messages.read().decode(errors="replace").strip()
            raise BackendError(
                "ffmpeg stopped while writing a video",
                where=path,
                found=said or f"exit code {process.returncode}",
                fix="check the free disk space; `python -m mouselift_jax doctor` tests ffmpeg",
            )


def _even(frame: np.ndarray) -> np.ndarray:
    pad = (frame.shape[0] % 2, frame.shape[1] % 2)
    return np.pad(frame, ((0, pad[0]), (0, pad[1]), (0, 0)), mode="edge") if any(pad) else frame


def ffmpeg_version() -> str:
    """Version of the ffmpeg that imageio-ffmpeg brings, or why it does not run."""
    import imageio_ffmpeg

    try:
        run = subprocess.run(
            [imageio_ffmpeg.get_ffmpeg_exe(), "-version"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        return f"unavailable: {error}"
    found = re.match(r"ffmpeg version (\S+)", run.stdout)
    return found.group(1) if found else "unknown"


def padded(gaussians: Gaussians, multiple: int = 2048) -> Gaussians:
    """The same picture with N rounded up: invisible Gaussians are added at the end.

    Filtered sets differ in N from frame to frame, and a renderer compiles for every N.
    """
    from mouselift_jax.splats.gaussians import Gaussians

    n = int(np.shape(gaussians.opacity_logits)[0])
    extra = -n % multiple if n else multiple
    fill = {"quats": 1.0, "log_scales": -10.0, "opacity_logits": -30.0}

    def grown(name: str) -> np.ndarray:
        values = np.asarray(getattr(gaussians, name), np.float32)
        shape = (extra, *values.shape[1:])
        return np.concatenate([values, np.full(shape, fill.get(name, 0.0), np.float32)])

    names = ("means", "quats", "log_scales", "opacity_logits", "sh")
    return Gaussians(*(grown(name) for name in names))


def render_turntable(
    gaussians: Gaussians,
    *,
    n: int = 120,
    size: int = 256,
    radius: float = RADIUS,
    elevation_deg: float = 20.0,
    fov_deg: float = FOV_DEG,
    background: Sequence[float] = (1.0, 1.0, 1.0),
    chunk: int = 4,
) -> Iterator[np.ndarray]:
    """Frames (uint8 [size,size,3]) of one turn round the world's z axis, drawn as asked for.

    Args:
        gaussians: one set, unbatched.
        n: frames of the turn.
        size: side of the picture.
        radius: distance of the camera from the origin, scene units.
        elevation_deg: height of the camera path above the horizon.
        fov_deg: field of view; the defaults are the pretrained frame's.
        background: colour behind the object.
        chunk: views drawn at once; more costs memory and compiles for that number of views.
    """
    from mouselift_jax.geometry.rig import turntable
    from mouselift_jax.render import render

    focal = size / 2 / np.tan(np.radians(fov_deg) / 2)
    path = turntable(n, radius=radius, elevation_deg=elevation_deg, focal=focal, size=size)
    chunk, gaussians = min(chunk, n), padded(gaussians)
    for start in range(0, n, chunk):
        # The last chunk repeats its last camera, so that one shape is compiled.
        cameras = path[np.minimum(np.arange(start, start + chunk), n - 1)]
        rgb = np.asarray(render(gaussians, cameras, background=tuple(background)).rgb)
        for picture in rgb[: n - start]:
            yield to_uint8(picture)


def write_turntable(
    path: str | Path, gaussians: Gaussians, *, fps: float = 30, **kwargs: Any
) -> Path:
    """`render_turntable` straight into an mp4; takes its keyword arguments."""
    return write_mp4(path, render_turntable(gaussians, **kwargs), fps)
