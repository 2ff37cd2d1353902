"""Videos: H.264 in mp4, whole or not at all."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from mouselift_jax.errors import BackendError, ShapeError
from mouselift_jax.files import atomic_path


@contextmanager
def mp4_writer(
    path: str | Path, fps: float = 30, *, crf: int = 18, options: Sequence[str] = ()
) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that appends one frame [H,W,3] uint8; the file appears when the block ends well.

    Odd sizes get one repeated row or column, because 4:2:0 colour needs even ones.

    Args:
        path: the mp4 to write, H.264 that every browser plays.
        fps: frames per second.
        crf: x264's quality, lower is better; 17 is visually lossless.
        options: more options of ffmpeg for the file.

    Raises:
        ShapeError: the frames differ in size, are not uint8 [H,W,3], or there are none;
            BackendError: ffmpeg failed.
    """
    with atomic_path(path) as part, ExitStack() as stack:
        shape: tuple[int, ...] | None = None
        pipe: IO[bytes] | None = None

        def write(frame: np.ndarray) -> None:
            nonlocal shape, pipe
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise ShapeError(
                    "this is no frame of a video",
                    where=path,
                    expected="uint8 [H,W,3]",
                    found=f"{frame.dtype} {list(frame.shape)}",
                )
            frame = _even(frame)
            if pipe is None:
                shape = frame.shape
                pipe = stack.enter_context(_encoder(path, part, shape, fps, crf, options))
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
    path: str | Path,
    part: Path,
    shape: tuple[int, ...],
    fps: float,
    crf: int,
    options: Sequence[str],
) -> Iterator[IO[bytes]]:
    """The standard input of an ffmpeg that writes `part`; ended well or killed at the end."""
    import imageio_ffmpeg

    size, rate = f"{shape[1]}x{shape[0]}", f"{fps:g}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", rate, "-i", "-"]
    command += ["-an", "-vcodec", "libx264", "-pix_fmt", "yuv420p", "-crf", str(crf)]
    command += [*options, "-movflags", "+faststart", str(part)]
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
