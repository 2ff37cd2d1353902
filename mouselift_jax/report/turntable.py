"""The turntable round a set of Gaussians, and videos of pictures of any type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mouselift_jax.data.mp4 import mp4_writer
from mouselift_jax.report.pictures import to_uint8
from mouselift_jax.splats.gaussians import padded

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
            write(to_uint8(frame))
    return Path(path)


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
