"""Whether Gaussians keep their identity: material points of procedural recordings, followed.

    python -m tests.benchmarks.bench_film [--seeds 31 32 33] [--frames 60] [--judge-every 5]
        [--rows FILE]

Three ways through the same six views of every frame: the film (one set, followed from the first
frame), the warm start alone (every frame fitted from the one before, the same numbers), and
independent fits (every frame from its hull; a point goes to the nearest Gaussian of the next
frame). Points count from the first frame in which two cameras see them; error in mm over all later
and earlier frames. Figures of quality are of two cameras that nothing saw, in every `judge-every`th
frame. Seconds are processor time a frame without the first; compiling is done before. Pictures are
drawn here, without videos and their loss; the fit's settings are those of `fit:fast` unless
--cells says otherwise. A recording that --rows holds is not measured again; one that was cut off
goes on where it stood.
"""

from __future__ import annotations

import argparse
import dataclasses
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mouselift_jax.data.synthetic.body import Body
from mouselift_jax.data.synthetic.recording import Scene
from mouselift_jax.data.synthetic.render import Painter
from mouselift_jax.data.synthetic.rig import heldout_rig, lab_rig
from mouselift_jax.data.synthetic.skin import Skin
from mouselift_jax.files import atomic_path
from mouselift_jax.geometry.camera import Camera, stack_cameras
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.pipelines import film as films
from mouselift_jax.pipelines import fit as fits
from mouselift_jax.pipelines.film import tracks
from mouselift_jax.render import render
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.training import metrics
from tests.benchmarks import report

UNIT = 0.01  # scene units per mm
CAMERAS = range(6)
KEEP_EVERY = 5  # frames


class Recording:
    """Pictures and truth of one procedural recording; a frame's scene has the animal at 0."""

    def __init__(
        self, seed: int, frames: int, size: tuple[int, int], fps: float, behaviour: str = "walk"
    ) -> None:
        self.scene, self.painter = Scene(seed, fps, (), behaviour), Painter(seed)
        self.rig, self.hidden = lab_rig(*size), heldout_rig(2, *size)
        bodies = [self.scene.body(f) for f in range(frames)]
        skin = Skin.spread(bodies[:: max(1, frames // 8)], np.random.default_rng([seed, 4]))
        self.skin = np.stack([skin.at(b) for b in bodies])
        seen = np.stack([skin.seen(b, self.rig) for b in bodies])
        self.starts = tracks.first_seen(seen)
        self.origin = self.skin.mean(1)  # [T,3]
        self._side = 0

    @staticmethod
    def scene_of(body: Body) -> Similarity:
        """Scene from mm with the middle of a body's ellipsoids at 0."""
        return Similarity(np.float64(UNIT), np.eye(3), -UNIT * body.centre.mean(0))

    def scene_from_mm(self, frame: int) -> Similarity:
        return Similarity(np.float64(UNIT), np.eye(3), -UNIT * self.origin[frame])

    def pictures(self, frame: int, cameras: list[Camera]) -> tuple[list, list]:
        """On white, and masks."""
        images, masks, body = [], [], self.scene.body(frame)
        for camera in cameras:
            rgb, alpha, (x, y) = self.painter.mouse(body, camera)
            image = np.ones((camera.height, camera.width, 3), np.float32)
            mask = np.zeros((camera.height, camera.width, 1), np.float32)
            box = slice(y, y + alpha.shape[0]), slice(x, x + alpha.shape[1])
            mask[box] = alpha[..., None]
            image[box] = rgb * mask[box] + 1 - mask[box]
            images.append(image)
            masks.append(mask)
        return images, masks

    def views(self, frame: int, settings: fits.FitSettings) -> fits.Views:
        """Cut-outs, never smaller than before: a new size would compile again."""
        cameras = [c.transformed(self.scene_from_mm(frame)) for c in self.rig]
        views = fits.cut_out(*self.pictures(frame, self.rig), cameras, settings, side=self._side)
        self._side = views.mask.shape[1]
        return views


@dataclasses.dataclass
class Way:
    """What one way through the frames gave, in mm."""

    means: list[np.ndarray] = dataclasses.field(default_factory=list)
    quats: list[np.ndarray] = dataclasses.field(default_factory=list)
    figures: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)

    def add(self, gaussians: Gaussians, move: Similarity, seconds: float) -> None:
        self.means.append(move.inverse().apply(np.asarray(gaussians.means, np.float64)))
        self.quats.append(np.asarray(gaussians.quats))
        self.seconds.append(seconds)


def judge_of(recording: Recording) -> Callable[[Gaussians, int], tuple[float, float]]:
    """IoU and dB inside the animal of the hidden cameras."""
    figures, draw = jax.jit(metrics.figures), jax.jit(lambda g, c: render(g, c))

    def judge(gaussians: Gaussians, frame: int) -> tuple[float, float]:
        move = recording.scene_from_mm(frame)
        cameras = stack_cameras([c.transformed(move) for c in recording.hidden])
        cameras = dataclasses.replace(cameras, K=np.float32(cameras.K), c2w=np.float32(cameras.c2w))
        out = draw(gaussians, cameras)
        images, masks = recording.pictures(frame, recording.hidden)
        found = figures(np.clip(out.rgb, 0, 1), out.alpha, np.stack(images), np.stack(masks))
        return float(np.mean(found["iou"])), float(np.mean(found["interior_psnr"]))

    return judge


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.process_time()
    return call(), time.process_time() - begin


def trial(
    recording: Recording, s: fits.FitSettings, every: int, alone: bool, state: Path | None
) -> dict[str, Way]:
    """All ways through all frames; `alone` leaves out the independent fits.

    `state`: where a run that is cut off goes on from; gone when all is done.
    """
    film_settings, judge = films.FilmSettings(), judge_of(recording)
    names = ("film", "warm start alone") + (() if alone else ("independent fits",))
    ways, first = {name: Way() for name in names}, 0
    rest = track = warm = None
    if state and state.exists():
        first, ways, rest, track, warm = pickle.loads(state.read_bytes())
    for frame in range(first, len(recording.skin)):
        if state and frame > first and frame % KEEP_EVERY == 0:
            with atomic_path(state) as part:
                part.write_bytes(pickle.dumps((frame, ways, rest, track, warm)))
        views, move = recording.views(frame, s), recording.scene_from_mm(frame)
        in_film = move.compose(recording.scene_from_mm(0).inverse()).inverse()  # film from scene
        placed = dataclasses.replace(
            views, w2c=np.asarray(views.cameras.transformed(in_film).w2c, np.float32)
        )
        made = {}
        if frame == 0 or not alone:
            cold, spent = timed(lambda v=views: fits.fit(v, fits.start(v, s), s))
            made["independent fits"] = cold.gaussians, spent
        if frame == 0:
            fine = dataclasses.replace(s, cells=round(s.cells * film_settings.finer))
            begun = fits.fit(views, fits.start(views, fine), fine)
            rest = films.rest_of(begun, film_settings.nodes, CAMERAS, finer=film_settings.finer)
            warm = cold
            track = films.at_rest(rest), None
            films.follow(placed, rest, track[0], film_settings, CAMERAS)  # compiles
            fits.fit(views, warm.start, s, is_next=True)
            made |= {"film": (rest.gaussians[rest.alive], 0.0)}
            made |= {"warm start alone": (cold.start.gaussians[cold.start.alive], 0.0)}
        else:
            guess = films.expected(*track, film_settings.trust)
            done, spent = timed(
                lambda: films.follow(placed, rest, guess, film_settings, CAMERAS)  # noqa: B023 - called at once
            )
            track = done.motion, track[0]
            g = films.posed(rest, done.motion)[rest.alive].transformed(in_film.inverse())
            made["film"] = g, spent
            warm, spent = timed(
                lambda: fits.fit(views, fits.carried(warm.start, views), s, is_next=True)  # noqa: B023 - called at once
            )
            made["warm start alone"] = warm.start.gaussians[warm.start.alive], spent
        for name, way in ways.items():
            way.add(made[name][0], move, made[name][1])
            if frame % every == 0:
                shown = warm.gaussians if name == "warm start alone" else made[name][0]
                way.figures.append(judge(shown, frame))
    if state:
        state.unlink(missing_ok=True)
    return ways


def rows_of(seed: int, recording: Recording, ways: dict[str, Way]) -> list[dict[str, Any]]:
    """A row of each way."""
    rows, frames = [], len(recording.skin)
    for name, way in ways.items():
        if name == "independent fits":
            found = tracks.matched(recording.skin, recording.starts, way.means)
        else:

            def walk(way: Way = way) -> Any:
                return zip(range(frames), way.means, way.quats, strict=True)

            same = np.zeros(frames, int)
            found = tracks.paths(recording.skin, recording.starts, walk, same)
        f = tracks.figures(found, recording.skin, recording.starts)
        iou, psnr = np.mean(way.figures, 0)
        about = {"recording": seed, "frames": frames, "way": name}
        rows.append(about | {
            "median, mm": round(f["median_mm"], 2), "95 %, mm": round(f["p95_mm"], 2),
            "lost, %": round(100 * f["lost"], 2), "hidden IoU": round(iou, 4),
            "hidden interior, dB": round(psnr, 2),
            "seconds a frame": round(float(np.median(way.seconds[1:])), 2),
        })  # fmt: skip
    return rows


def main() -> None:
    """Print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[31, 32, 33])
    parser.add_argument(
        "--frames", type=int, nargs="+", default=[60], help="of each seed; the last goes on"
    )
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--size", type=int, nargs=2, default=[288, 256])
    parser.add_argument("--cells", type=int, default=80)
    parser.add_argument("--judge-every", type=int, default=5)
    parser.add_argument("--no-independent", action="store_true", help="leave out the slow way")
    parser.add_argument("--rows", type=Path, help="what is measured is kept here, by recording")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    settings = fits.FitSettings(
        cells=args.cells, coarse_steps=80, fine_steps=80, bucket=4096, side_bucket=64
    )

    def measured(seed: int, frames: int) -> list[dict[str, Any]]:
        recording = Recording(seed, frames, tuple(args.size), args.fps)
        state = args.rows and args.rows.with_suffix(f".{seed}.state")
        ways = trial(recording, settings, args.judge_every, args.no_independent, state)
        return rows_of(seed, recording, ways)

    rows = []
    for i, seed in enumerate(args.seeds):
        frames = args.frames[min(i, len(args.frames) - 1)]
        asked = {k: v for k, v in vars(args).items() if k not in ("seeds", "out", "rows")}
        part = asked | {"seed": seed, "frames": frames}
        rows += report.kept(args.rows, part, lambda s=seed, f=frames: measured(s, f))
        report.write("film", {"Material points followed": rows}, args.out)


if __name__ == "__main__":
    main()
