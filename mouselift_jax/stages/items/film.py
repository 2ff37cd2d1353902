"""The film mode of `fit`: one set of Gaussians through all frames, kept on disk frame by frame.

The best-seen frame is fitted from its hull; from there the set is followed to the end, then from
there again back to the beginning. What a killed run needs to go on is written after every frame.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.errors import LayoutError
from mouselift_jax.files import atomic_path
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.pipelines import film as films
from mouselift_jax.pipelines import fit as fits
from mouselift_jax.pipelines.film import Motion, Rest
from mouselift_jax.splats.film import FOLDER, Film, Part
from mouselift_jax.splats.gaussians import Gaussians, rotation_to_quat

log = logging.getLogger("mouselift_jax")
STATE, REST = "state.npz", "rest_{:03d}.npz"
CANDIDATES = 8  # frames among which the best-seen one is looked for
MOST = 3.0  # times the last motion is expected at most, where frames are missing
COARSE = 32  # cells along the animal, to see how much of it is seen
Cold = Callable[[fits.Views, str], fits.Fit]


@dataclasses.dataclass(frozen=True)
class Moment:
    """A frame's place in the film.

    Attributes:
        id: of its sample.
        number: of the frame in the recording.
        position: among the film's frames, in time.
        film_from_scene: from the sample's world to the film's.
    """

    id: str
    number: int
    position: int
    film_from_scene: Similarity


@dataclasses.dataclass(frozen=True)
class _Track:
    """Where following stands.

    Attributes:
        segment: number of the set that is followed.
        rest: the set.
        last: its motion in the last frame.
        before: in the one before; None when it was another segment's, or there was none.
        numbers: of the two frames in the recording.
    """

    segment: int
    rest: Rest
    last: Motion
    before: Motion | None
    numbers: tuple[int, int]

    def expected(self, number: int, trust: float) -> Motion:
        """Where the nodes will be in a frame; frames may be missing between."""
        last, before = self.numbers
        gaps = min((number - last) / (last - before), MOST) if self.before is not None else 0.0
        return films.expected(self.last, self.before, trust * gaps)

    def went_on(self, motion: Motion, number: int) -> _Track:
        """One frame later."""
        numbers = number, self.numbers[0]
        return dataclasses.replace(self, last=motion, before=self.last, numbers=numbers)


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A frame as it is followed.

    Attributes:
        moment: which it is.
        views: in its sample's world.
        placed: the same, in the film's.
        cameras: number of each view's camera.
    """

    moment: Moment
    views: fits.Views
    placed: fits.Views
    cameras: Sequence[int]


class Follower:
    """`follower(views, cameras, item_id, cold) -> (Fit, how)`, in the order of `order`."""

    def __init__(
        self, workdir: Path, samples: SampleSet, ids: Sequence[str], settings: films.FilmSettings,
        warn: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._folder, self._settings, self._warn = workdir / FOLDER, settings, warn
        self.moments, self._about = _moments(samples, ids, warn)
        self.finer = settings.finer
        self._film: Film | None = None
        if (self._folder / "film.json").exists():
            self._film = Film.open(self._folder)
        self._track: _Track | None = None
        self._untinted: set[int] = set()  # cameras that have been named

    def order(self, seen: Callable[[str], float]) -> list[str]:
        """All ids: from the best-seen frame to the end, then back to the beginning.

        Args:
            seen: area of the animal that two cameras see in a frame, square units of its sample;
                nan where it cannot be said.
        """
        ids = list(self.moments)
        if self._film is None:
            at = np.unique(np.linspace(0, len(ids) - 1, min(CANDIDATES, len(ids))).astype(int))
            units = [float(self.moments[ids[i]].film_from_scene.scale) for i in at]
            areas = np.array([seen(ids[i]) * u**2 for i, u in zip(at, units, strict=True)])
            best = int(at[np.nanargmax(areas)]) if np.isfinite(areas).any() else 0
            self._film = Film.begin(
                self._folder, self._about | {"first": ids[best], "ids": ids, "segments": []}
            )
            log.info("the film begins at its best-seen frame, %s", ids[best])
        first = ids.index(self._film.about["first"])
        return ids[first:] + ids[:first][::-1]

    def __call__(
        self, views: fits.Views, cameras: Sequence[int], item_id: str, cold: Cold
    ) -> tuple[fits.Fit, str]:
        """One frame.

        Args:
            views: in the world of its sample.
            cameras: number of each view's camera.
            item_id: of the sample.
            cold: `cold(views, item_id)` fits a frame from its hull.

        Returns:
            The frame in its sample's world, and how it was made.
        """
        moment = self.moments[item_id]
        assert self._film is not None, "order() comes first"
        known = self._film.find(moment.position, moment.number)
        if known is not None:  # its splats were lost, or the run was killed while they were written
            return self._again(known, moment), "film"
        self._resume(moment)
        shown = _Shown(moment, views, _moved_views(views, moment.film_from_scene), cameras)
        done, how = self._followed(shown), "film"
        if done is None:
            done, how = self._begun(cold(views, item_id), shown), "hull"
        motion, iou, psnr = done
        assert self._track is not None
        gaussians = films.posed(self._track.rest, motion)
        kept = gaussians[self._track.rest.alive]
        self._film.add(moment.position, Part(
            np.array([moment.number]), np.array([self._track.segment]), kept.means[None],
            kept.quats[None], kept.log_scales, kept.opacity_logits, kept.sh[None],
            np.array([iou.mean()]), np.array([psnr.mean()]),
        ))  # fmt: skip
        self._save(moment)
        return self._fit(gaussians, self._track.rest, moment, iou, psnr), how

    # --- following -------------------------------------------------------------------------------

    def _followed(self, shown: _Shown) -> tuple[Motion, np.ndarray, np.ndarray] | None:
        """The set moved to this frame, or None where it must begin anew."""
        track, s, moment = self._track, self._settings, shown.moment
        if track is None:
            return None
        self._tell_untinted(shown, track.rest)

        def follow(start: Motion) -> films.Followed:
            return films.follow(shown.placed, track.rest, start, s, shown.cameras)

        done = follow(track.expected(moment.number, s.trust))
        if self._is_lost(done, track.rest):
            log.info("%s: looked for again from its hull", moment.id)
            done = follow(self._laid_on(shown.views, moment))
        if self._is_lost(done, track.rest):
            self._warn(
                f"{moment.id}: identity ends here, a new set begins: the given views' IoU fell to "
                f"{done.iou.mean():.3f} (the set's own frame: {track.rest.iou:.3f}), "
                f"{done.held.mean():.1f} dB ({track.rest.psnr:.1f}); a jump, or a wrong mask"
            )
            return None
        self._track = track.went_on(done.motion, moment.number)
        return done.motion, done.iou, done.psnr

    def _tell_untinted(self, shown: _Shown, rest: Rest) -> None:
        """Name, once, the cameras that did not show the frame in which the set began."""
        new = {int(c) for c in shown.cameras} - set(rest.cameras.tolist()) - self._untinted
        if new:
            self._untinted |= new
            self._warn(
                f"{shown.moment.id}: camera {', '.join(map(str, sorted(new)))} did not show the "
                "frame in which the set began: its colours are taken as they are"
            )

    def _is_lost(self, done: films.Followed, rest: Rest) -> bool:
        s = self._settings
        finite = all(np.isfinite(x).all() for x in dataclasses.astuple(done.motion))
        close = done.iou.mean() >= rest.iou - s.loss and done.held.mean() >= rest.psnr - s.loss_db
        return not (finite and close)

    def _laid_on(self, views: fits.Views, moment: Moment) -> Motion:
        """The last motion, moved as a whole to where this frame's hull is."""
        assert self._track is not None
        rest, last = self._track.rest, self._track.last
        to_scene = moment.film_from_scene.inverse()
        here = films.posed(rest, last).transformed(to_scene)
        begun = _start(here, rest, to_scene)
        there = fits.carried(begun, views).gaussians.transformed(moment.film_from_scene)
        old = films.posed(rest, last).means[rest.alive]
        new = np.asarray(there.means)[rest.alive]
        R = Rotation.align_vectors(new - new.mean(0), old - old.mean(0))[0].as_matrix()
        places = (last.places - old.mean(0)) @ R.T + new.mean(0)
        turns = films.product(rotation_to_quat(R), last.turns)
        return dataclasses.replace(
            last, places=places.astype(np.float32), turns=turns.astype(np.float32)
        )

    def _begun(self, done: fits.Fit, shown: _Shown) -> tuple[Motion, np.ndarray, np.ndarray]:
        """A new segment."""
        assert self._film is not None
        moment = shown.moment
        gaussians = done.start.gaussians.transformed(moment.film_from_scene)
        cell = done.start.cell * float(moment.film_from_scene.scale)
        start = dataclasses.replace(done.start, gaussians=gaussians, cell=cell)
        in_film = dataclasses.replace(done, start=start)
        rest = films.rest_of(in_film, self._settings.nodes, shown.cameras, finer=self.finer)
        # A run that was killed just here had begun this one already.
        segments = [s for s in self._film.about["segments"] if s["begins_at"] != moment.id]
        number = len(segments)
        _save_arrays(self._folder / REST.format(number), _rest_arrays(rest))
        found = {"number": number, "begins_at": moment.id, "gaussians": int(rest.alive.sum()),
                 "nodes": len(rest.nodes)}  # fmt: skip
        self._film = self._film.told(segments=[*segments, found])
        motion = films.at_rest(rest)
        self._track = _Track(number, rest, motion, None, (moment.number, moment.number))
        return motion, done.iou, done.psnr

    # --- what a later run goes on from -----------------------------------------------------------

    def forget(self) -> None:
        """A frame was left out: its motion is unknown, the set stays."""
        if self._track is not None:
            self._track = dataclasses.replace(self._track, before=None)

    def _resume(self, moment: Moment) -> None:
        """Stand where the frame's neighbour was left: in memory, on disk, or at the first frame."""
        assert self._film is not None
        ids = list(self.moments)
        first = ids.index(self._film.about["first"])
        if moment.position < first and not self._went_back(first):
            if self._film.about["segments"]:
                rest = self._rest(0)
                begun = self.moments[ids[first]].number
                self._track = _Track(0, rest, films.at_rest(rest), None, (begun, begun))
            return
        if self._track is None and (self._folder / STATE).exists():
            with np.load(self._folder / STATE, allow_pickle=False) as a:
                rest = self._rest(int(a["segment"]))
                last = Motion(**{f.name: a[f.name] for f in dataclasses.fields(Motion)})
                before = None
                if a["has_before"]:
                    before = dataclasses.replace(
                        last, places=a["before_places"], turns=a["before_turns"]
                    )
                numbers = int(a["numbers"][0]), int(a["numbers"][1])
                self._track = _Track(int(a["segment"]), rest, last, before, numbers)

    def _went_back(self, first: int) -> bool:
        """Whether the last frame that was followed lies before the first one."""
        path = self._folder / STATE
        if not path.exists():
            return False
        with np.load(path, allow_pickle=False) as arrays:
            return int(arrays["position"]) < first

    def _save(self, moment: Moment) -> None:
        track = self._track
        assert track is not None
        before = track.before or track.last
        _save_arrays(self._folder / STATE, {
            **{f.name: getattr(track.last, f.name) for f in dataclasses.fields(Motion)},
            "before_places": before.places, "before_turns": before.turns,
            "has_before": np.array(track.before is not None), "segment": np.array(track.segment),
            "position": np.array(moment.position), "numbers": np.array(track.numbers),
        })  # fmt: skip

    def _rest(self, segment: int) -> Rest:
        path = self._folder / REST.format(segment)
        with np.load(path, allow_pickle=False) as a:
            if "cameras" not in a.files:
                raise LayoutError(
                    "an earlier version of this program began this film", where=path,
                    fix="make it again, in another --workdir",
                )  # fmt: skip
            g = Gaussians(**{f.name: a[f.name] for f in dataclasses.fields(Gaussians)})
            return Rest(g, a["alive"], a["seen"], a["nodes"], a["weights"], a["edges"],
                        *(float(x) for x in a["scalars"]), a["gains"], a["offsets"],
                        a["cameras"])  # fmt: skip

    # --- as a fit --------------------------------------------------------------------------------

    def _again(self, part: Part, moment: Moment) -> fits.Fit:
        rest = self._rest(int(part.segment[0]))
        colours = films.posed(rest, films.at_rest(rest))
        whole = {}
        for name, rows in (("means", part.means[0]), ("quats", part.quats[0]), ("sh", part.sh[0])):
            whole[name] = np.array(getattr(colours, name))
            whole[name][rest.alive] = rows
        return self._fit(dataclasses.replace(colours, **whole), rest, moment, part.iou, part.psnr)

    def _fit(
        self, gaussians: Gaussians, rest: Rest, moment: Moment, iou: np.ndarray, psnr: np.ndarray
    ) -> fits.Fit:
        to_scene = moment.film_from_scene.inverse()
        here = gaussians.transformed(to_scene)
        start = _start(here, rest, to_scene)
        return fits.Fit(here[rest.alive], np.zeros(0), psnr, iou, rest.seen[rest.alive],
                        rest.gains, rest.offsets, start)  # fmt: skip


def _start(here: Gaussians, rest: Rest, to_scene: Similarity) -> fits.Start:
    """A rest set's Gaussians as they are in a sample's world, as a start of `fit` there."""
    cell = rest.cell * float(to_scene.scale)
    return fits.Start(here, rest.alive, rest.seen, cell, rest.gains, rest.offsets)


def area_seen(views: fits.Views, settings: fits.FitSettings) -> float:
    """Area of the hull that two or more cameras see, square scene units."""
    begun = fits.start(views, dataclasses.replace(settings, cells=COARSE))
    return float((begun.alive & (begun.seen >= 2)).sum()) * begun.cell**2


def _moments(
    samples: SampleSet, ids: Sequence[str], warn: Callable[[str], None]
) -> tuple[dict[str, Moment], dict[str, Any]]:
    """Every frame's place, in the order of time, and what the film says of its world."""
    rows = {row["id"]: row for row in samples.manifest.get("samples", ())}
    ids = sorted(ids, key=lambda i: rows[i]["frame"])
    records = [samples.camera_file(i) or {} for i in ids]
    moves = [_similarity(r.get("scene_from_recording")) for r in records]
    known = all(m is not None for m in moves)
    if not known:
        warn(
            "the samples do not say how their worlds were moved: the film takes them to share one, "
            "and knows neither the recording's world nor millimetres"
        )
        moves = [Similarity.identity()] * len(ids)
    # The film's world: axes of the recording, unit of the first sample, its origin too.
    first = moves[0]
    origin = np.asarray(first.inverse().apply(np.zeros(3)))
    film = Similarity(first.scale, np.eye(3), -first.scale * origin)
    moments = {
        i: Moment(i, int(rows[i]["frame"]), n, film.compose(move.inverse()))
        for n, (i, move) in enumerate(zip(ids, moves, strict=True))
    }
    scale = records[0].get("scene_scale") or samples.scene_scale
    back = film.inverse()
    about = {
        "scene_scale": scale if known else None,
        "recording_from_film": {
            "scale": float(back.scale), "R": np.asarray(back.R).tolist(),
            "t": np.asarray(back.t).tolist(),
        } if known else None,
    }  # fmt: skip
    return moments, about


def _similarity(record: dict[str, Any] | None) -> Similarity | None:
    if not record:
        return None
    return Similarity(np.float64(record["scale"]), np.array(record["R"]), np.array(record["t"]))


def _moved_views(views: fits.Views, similarity: Similarity) -> fits.Views:
    moved = views.cameras.transformed(similarity)
    return dataclasses.replace(views, w2c=np.asarray(moved.w2c, np.float32))


def _rest_arrays(rest: Rest) -> dict[str, np.ndarray]:
    arrays = {f.name: getattr(rest, f.name) for f in dataclasses.fields(Rest)}
    g = arrays.pop("gaussians")
    scalars = np.array([arrays.pop(k) for k in ("cell", "iou", "psnr")])
    return (
        arrays | {f.name: getattr(g, f.name) for f in dataclasses.fields(g)} | {"scalars": scalars}
    )


def _save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    with atomic_path(path) as part, part.open("wb") as stream:
        np.savez(stream, **arrays)
