"""A procedural recording in the exact layout of a lab recording, for demo, tests and benchmarks.

    recording/
      videos_undist/N.mp4          H.264 colour
      simpleclick_undist/N.mp4     H.264 silhouettes, lossy like the real ones
      keypoints2d_undist/result_view_N.pkl   [F,22,3] float64: x, y, confidence
      new_cam.pkl                  list of {K, R, T}; millimetres; pixel centres at integers
      recording.json               what it is and how it was made
      truth.npz                    what is true of it, mm and rad (docs/data_format.md, "Truth")
      heldout/frame_%06d/          the animal seen by further cameras: images/cam_%03d.png (RGBA,
                                   exact alpha) and opencv_cameras.json (+0.5 centres, mm)

Everything is a function of the arguments: the same call writes the same pictures.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from PIL import Image

from mouselift_jax.data.mp4 import mp4_writer
from mouselift_jax.data.synthetic.body import BEHAVIOURS, Body, Walk, posed_body
from mouselift_jax.data.synthetic.render import Arena, Painter, compose, full_mask
from mouselift_jax.data.synthetic.rig import ARENA_CENTRE, FULL_SIZE, heldout_rig, lab_rig
from mouselift_jax.data.synthetic.skin import Skin, solid
from mouselift_jax.errors import ConfigError, nearest
from mouselift_jax.files import mark_made, remove_made, write_bytes_atomic, write_json_atomic
from mouselift_jax.geometry.camera import Camera

FIRST_HELDOUT_NUMBER = 100  # camera numbers of the held-out views


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is filmed: the animal's walk, its coat, the clock and what it does."""

    seed: int
    fps: float
    jumps: tuple[int, ...] = ()
    behaviour: str = "walk"

    def body(self, frame: int) -> Body:
        """The animal in one frame; at each planted jump it continues elsewhere on its way."""
        return _body(self, frame)


@functools.lru_cache(1024)
def _body(scene: Scene, frame: int) -> Body:
    # Kept, as each camera films the same bodies, and posing one takes half as long as a picture.
    walk = Walk.random(np.random.default_rng([scene.seed, 1]), scene.behaviour)
    skipped = 0.63 * sum(frame >= j for j in scene.jumps)
    body = posed_body(walk, frame / scene.fps + skipped)
    for array in vars(body).values():
        if isinstance(array, np.ndarray):
            array.setflags(write=False)  # it belongs to all cameras
    return body


def write_recording(  # noqa: PLR0913 - all of a recording, by keyword
    path: str | Path,
    *,
    frames: int = 60,
    size: tuple[int, int] = (288, 256),
    seed: int = 0,
    n_heldout: int = 2,
    n_cameras: int = 6,
    fps: float = 30.0,
    jumps: tuple[int, ...] = (),
    heldout_every: int = 1,
    behaviour: str = "walk",
    workers: int = 2,
) -> Path:
    """Write a procedural recording; an earlier one at `path`, unchanged since, is replaced.

    Args:
        path: folder to make.
        frames: number of frames.
        size: (width, height) of the pictures in pixels, even; the rig's intrinsics are scaled.
        seed: of walk, coat, arena and noise.
        n_heldout: cameras that belong to no video, for evaluation.
        n_cameras: cameras with videos; the rig has six real ones, more are invented.
        fps: frames per second.
        jumps: frames at which the animal is suddenly elsewhere.
        heldout_every: held-out views of every n-th frame only.
        behaviour: walk | rear | turn | groom, what the animal does all the time.
        workers: processes that draw; the result does not depend on it.

    Returns:
        The folder.

    Raises:
        ConfigError: the size is odd, there are fewer than two cameras or no frames, or no such
            behaviour.
        LayoutError: `path` holds anything that this function did not write; it is left alone.
    """
    width, height = (int(s) for s in size)
    if width % 2 or height % 2 or min(width, height) < 32 or frames < 1 or n_cameras < 2:
        raise ConfigError(
            "cannot make such a procedural recording",
            expected="even width and height >= 32, frames >= 1, n_cameras >= 2",
            found=f"size {width}x{height}, frames {frames}, n_cameras {n_cameras}",
            fix="choose, for instance, size=(288, 256), frames=60, n_cameras=6",
        )
    if behaviour not in BEHAVIOURS:
        raise ConfigError(
            "no such behaviour", where="behaviour", expected=" | ".join(BEHAVIOURS),
            found=behaviour, fix=nearest(behaviour, BEHAVIOURS),
        )  # fmt: skip
    path = Path(path)
    remove_made(path)  # before the work: a user's folder is refused at once
    part = path.with_name(f".{path.name}.part")
    remove_made(part)
    part.mkdir(parents=True)
    mark_made(part)
    for name in ("videos_undist", "simpleclick_undist", "keypoints2d_undist"):
        (part / name).mkdir(parents=True)
    scene = Scene(seed, fps, tuple(jumps), behaviour)
    rig = lab_rig(width, height, n_cameras)
    heldout = heldout_rig(n_heldout, width, height)
    jobs = [(part, scene, camera, v, frames) for v, camera in enumerate(rig)]
    extra = [
        (part, scene, camera, FIRST_HELDOUT_NUMBER + i, frames, heldout_every)
        for i, camera in enumerate(heldout)
    ]
    _run(jobs, extra, workers)
    _write_calibration(part, rig)
    _write_truth(part, scene, rig, frames)
    _write_heldout_cameras(part, heldout, frames, heldout_every)
    about = {
        "what": "procedural recording of mouselift_jax; not a real animal",
        "frames": frames, "fps": fps, "size": [width, height], "seed": seed, "units": "mm",
        "world": "floor z = 0, z up, frame of the real rig's calibration",
        "arena_centre": ARENA_CENTRE.tolist(), "jumps": list(jumps), "behaviour": behaviour,
        "pixel_centres": "integers in new_cam.pkl and keypoints, +0.5 in heldout/",
    }  # fmt: skip
    write_json_atomic(part / "recording.json", about)
    mark_made(part)
    part.rename(path)
    return path


def _run(jobs: list[tuple], extra: list[tuple], workers: int) -> None:
    if workers <= 1:
        for job in jobs:
            _film(*job)
        for job in extra:
            _photograph(*job)
        return
    # Spawned, because the parent may hold jax's threads, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        pending = [pool.submit(_film, *job) for job in jobs]
        pending += [pool.submit(_photograph, *job) for job in extra]
        for future in pending:
            future.result()


def _film(part: Path, scene: Scene, camera: Camera, number: int, frames: int) -> None:
    """Write colour and mask video of one camera."""
    painter, arena = Painter(scene.seed), Arena(camera, scene.seed, number)
    rng = np.random.default_rng([scene.seed, 2, number])
    with (
        lossless(part / "videos_undist" / f"{number}.mp4", scene.fps) as write_colour,
        lossless(part / "simpleclick_undist" / f"{number}.mp4", scene.fps) as write_mask,
    ):
        for frame in range(frames):
            body = scene.body(frame)
            rgb, alpha, start = painter.mouse(body, camera)
            picture = compose(arena.with_shadow(body), rgb, alpha, start) * arena.gain
            picture = picture + rng.normal(0, 2 / 255, (camera.height, camera.width, 1))
            write_colour(_to_uint8(picture))
            mask = full_mask(alpha, start, camera) >= 0.5
            write_mask(np.repeat(mask[..., None], 3, -1).astype(np.uint8) * np.uint8(255))


def _photograph(
    part: Path, scene: Scene, camera: Camera, number: int, frames: int, every: int
) -> None:
    """Write the held-out pictures of one camera: the animal alone, straight alpha."""
    painter = Painter(scene.seed)
    for frame in range(0, frames, every):
        rgb, alpha, start = painter.mouse(scene.body(frame), camera)
        rgba = np.zeros((camera.height, camera.width, 4), np.float32)
        h, w = alpha.shape
        window = rgba[start[1] : start[1] + h, start[0] : start[0] + w]
        window[..., :3], window[..., 3] = rgb * (alpha > 0)[..., None], alpha
        folder = part / "heldout" / f"frame_{frame:06d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_to_uint8(rgba)).save(folder / f"cam_{number:03d}.png", compress_level=1)


def _to_uint8(picture: np.ndarray) -> np.ndarray:
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def lossless(path: Path, fps: float) -> AbstractContextManager[Callable[[np.ndarray], None]]:
    """A visually lossless mp4 on one thread: takes frames [H,W,3] uint8 one by one.

    One thread, because the cameras are filmed by a process each, and the file must not depend on
    the number of cores.
    """
    return mp4_writer(path, fps, crf=17, options=("-preset", "veryfast", "-threads", "1"))


def _write_calibration(part: Path, rig: list[Camera]) -> None:
    rows = []
    for camera in rig:
        K = np.array(camera.K, np.float64)
        K[:2, 2] -= 0.5  # the file's convention: pixel centres at integers
        w2c = np.asarray(camera.w2c)
        rows.append({"K": K, "R": w2c[:3, :3].copy(), "T": w2c[:3, 3].copy()})
    write_bytes_atomic(part / "new_cam.pkl", pickle.dumps(rows, protocol=4))


def _write_truth(part: Path, scene: Scene, rig: list[Camera], frames: int) -> None:
    """3D truth, and the noisy 2D keypoints a detector would give."""
    bodies = [scene.body(f) for f in range(frames)]
    points = np.stack([b.keypoints for b in bodies])
    position = np.stack([b.position for b in bodies])
    heading = np.array([b.heading for b in bodies])
    rng = np.random.default_rng([scene.seed, 4])
    skin = Skin.spread(bodies[:: max(1, frames // 8)], rng)
    volume, centre = zip(*[solid(b) for b in bodies], strict=True)
    np.savez_compressed(
        part / "truth.npz", keypoints=points, position=position, heading=heading,
        skin=np.stack([skin.at(b) for b in bodies]).astype(np.float32),
        skin_seen=np.stack([skin.seen(b, rig) for b in bodies]),
        skin_part=bodies[0].part[skin.ellipsoid], volume=np.array(volume), centre=np.stack(centre),
    )  # fmt: skip
    for v, camera in enumerate(rig):
        rng = np.random.default_rng([scene.seed, 3, v])
        xy, _ = camera.project(points.reshape(-1, 3))
        sigma = 1.5 * camera.width / FULL_SIZE[0]
        xy = xy.reshape(frames, -1, 2) + rng.normal(0, sigma, (frames, points.shape[1], 2)) - 0.5
        confidence = rng.choice([0.95, 0.85, 0.6, 0.1], xy.shape[:2], p=[0.5, 0.3, 0.17, 0.03])
        xy[confidence < 0.25] += rng.normal(0, 40 * sigma, (int((confidence < 0.25).sum()), 2))
        rows = np.concatenate([xy, confidence[..., None]], -1)
        target = part / "keypoints2d_undist" / f"result_view_{v}.pkl"
        write_bytes_atomic(target, pickle.dumps(rows, protocol=4))


def _write_heldout_cameras(part: Path, cameras: list[Camera], frames: int, every: int) -> None:
    rows = []
    for i, camera in enumerate(cameras):
        number = FIRST_HELDOUT_NUMBER + i
        K = camera.K
        rows.append(
            {
                "w": camera.width, "h": camera.height,
                "fx": float(K[0, 0]), "fy": float(K[1, 1]),
                "cx": float(K[0, 2]), "cy": float(K[1, 2]),
                "w2c": np.asarray(camera.w2c).tolist(),
                "file_path": f"images/cam_{number:03d}.png", "camera": number,
            }
        )  # fmt: skip
    if not rows:
        return
    for frame in range(0, frames, every):
        folder = part / "heldout" / f"frame_{frame:06d}"
        text = json.dumps({"id": folder.name, "frames": rows}, indent=1)
        (folder / "opencv_cameras.json").write_text(text + "\n")
