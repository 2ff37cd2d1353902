"""A run for the Rerun viewer: splats, cameras with their pictures, tracks, on two timelines.

    world/splats             GaussianSplats3D; world/tracks  LineStrips3D, the last second
    world/cameras/NAME       Transform3D, Pinhole and the picture of one camera

A film with identity has the timelines `frame`, the number in the recording, and `time` in seconds
where the samples know it, and is in the recording's world, in mm where its unit is known. Other
runs have `frame`, the place among their frames, each centred on itself, in scene units.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mouselift_jax.errors import LayoutError, MissingExtraError
from mouselift_jax.files import atomic_path, check_replaceable
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.report.reels import rainbow
from mouselift_jax.report.scene import Scene
from mouselift_jax.splats.filters import only_drawable
from mouselift_jax.splats.reel import tracks
from mouselift_jax.splats.sh import C0

if TYPE_CHECKING:
    from rerun import RecordingStream

TRAIL = 30  # frames of the past that tracks show
QUALITY = 85  # of the pictures' JPEG


def save_rrd(path: str | Path, scene: Scene, *, overwrite: bool = False) -> dict[str, int]:
    """Write a recording of Rerun, whole or not at all; one frame is in memory at a time.

    Returns:
        How many frames, pictures and tracks it holds.

    Raises:
        MissingExtraError: rerun-sdk is not installed.
        LayoutError: there are no Gaussians, or another program's file is there.
    """
    try:
        import rerun as rr
    except ImportError as error:
        raise MissingExtraError("rerun-sdk", "rrd", "files of Rerun") from error
    moments = [m for m in scene.moments if m.splats is not None or m.read is not None]
    if not moments:
        raise LayoutError(
            "there are no Gaussians here", where=scene.title, fix="give a run of fit or infer"
        )
    check_replaceable(path, overwrite=overwrite)
    reel = scene.reel
    world = Similarity.identity() if reel is None else reel.mm or Similarity.identity()
    paths = [] if reel is None else tracks(reel)
    held = {"frames": len(moments), "pictures": 0, "tracks": sum(len(t.index) for t in paths)}
    with _strict(rr), atomic_path(path) as part:
        stream = rr.RecordingStream("mouselift_jax")
        stream.save(str(part))
        stream.send_recording_name(scene.title)
        stream.log("world", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        for i, moment in enumerate(moments):
            stream.set_time("frame", sequence=i if reel is None else int(reel.frames[i]))
            if reel is not None and np.isfinite(reel.times[i]):
                stream.set_time("time", duration=float(reel.times[i]))
            _log_splats(rr, stream, moment.gaussians().transformed(world))
            if moment.views is not None:
                held["pictures"] += _log_cameras(rr, stream, moment.views(), world)
            _log_tracks(rr, stream, paths, i, world)
        stream.flush()
        stream.disconnect()
    return held


@contextlib.contextmanager
def _strict(rr: Any) -> Iterator[None]:
    """Rerun warns of an array that does not fit, and leaves it out, unless it is told to raise."""
    before = rr.strict_mode()
    rr.set_strict_mode(True)
    try:
        yield
    finally:
        rr.set_strict_mode(before)


def _log_splats(rr: Any, stream: RecordingStream, gaussians: Any) -> None:
    kept = only_drawable(gaussians, "rrd")[0]
    means, quats, scales, opacities, sh = (np.asarray(x, np.float32) for x in kept.activate())
    rgba = np.concatenate([sh[:, 0] * C0 + 0.5, opacities[:, None]], -1)
    rest = {}
    if kept.sh_degree:  # Rerun wants the 15 coefficients of degree 3, whatever there is
        more = np.zeros((len(means), 15, 3), np.float32)
        more[:, : sh.shape[1] - 1] = sh[:, 1:]
        rest = {"sh_coefficients": more, "spherical_harmonics_degree": kept.sh_degree}
    stream.log("world/splats", rr.GaussianSplats3D(
        means, scales=scales, quaternions=np.roll(quats, -1, axis=-1),  # xyzw
        colors=np.round(np.clip(rgba, 0, 1) * 255).astype(np.uint8), **rest,
    ))  # fmt: skip


def _log_cameras(rr: Any, stream: RecordingStream, views: Any, world: Similarity) -> int:
    cameras, pictures, names = views
    cameras = cameras.transformed(world)
    for v, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        place, c2w = f"world/cameras/{name.replace(' ', '_')}", np.asarray(cameras.c2w[v], float)
        stream.log(place, rr.Transform3D(translation=c2w[:3, 3], mat3x3=c2w[:3, :3]))
        stream.log(place, rr.Pinhole(
            image_from_camera=np.asarray(cameras.K[v], float),
            resolution=[cameras.width, cameras.height], camera_xyz=rr.ViewCoordinates.RDF,
        ))  # fmt: skip
        picture = np.ascontiguousarray(picture[..., :3])
        stream.log(place, rr.Image(picture).compress(jpeg_quality=QUALITY))
    return len(pictures)


def _log_tracks(
    rr: Any, stream: RecordingStream, paths: list[Any], i: int, world: Similarity
) -> None:
    lines, tints = [], []
    for track in paths:
        last = np.searchsorted(track.at, i)
        if last < len(track.at) and track.at[last] == i:
            past = world.apply(track.paths[max(0, last - TRAIL) : last + 1].astype(np.float64))
            lines += list(past.transpose(1, 0, 2).astype(np.float32))
            tints += list(np.round(rainbow(track) * 255).astype(np.uint8))
    if paths:  # also where a new set begins: the old tracks end there
        stream.log("world/tracks", rr.LineStrips3D(lines, colors=tints))
