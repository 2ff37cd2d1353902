"""Stage `fit`: Gaussians fitted to the views of every frame, without weights."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.data.check import check_recording
from mouselift_jax.data.findings import raise_errors
from mouselift_jax.data.inputs import contents, looks_like_recording, must_exist
from mouselift_jax.errors import ConfigError, LayoutError, MouseLiftError
from mouselift_jax.files import write_json_atomic
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.hull import hull_cover
from mouselift_jax.pipelines import fit as fits
from mouselift_jax.pipelines.film import FilmSettings
from mouselift_jax.render import render
from mouselift_jax.report.html import Section, Text
from mouselift_jax.report.verdict import outcome_of
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.progress import Progress
from mouselift_jax.runs.record import is_whole, read_json
from mouselift_jax.splats import trust
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.stages import infer, prepare
from mouselift_jax.stages.harness.plan import Plan
from mouselift_jax.stages.items import film_report
from mouselift_jax.stages.items.film import Follower, area_seen
from mouselift_jax.stages.items.from_samples import FromSamples
from mouselift_jax.stages.items.hidden import HiddenJudge, judged
from mouselift_jax.stages.items.item import Item

log = logging.getLogger("mouselift_jax")
NEXT = (
    "python -m mouselift_jax view {workdir}",
    "python -m mouselift_jax export {workdir} {beside}/fit.html --to=html",
)
CHECK = "python -m mouselift_jax check {config.%s}"
UNSEEN = 0.05  # cameras that see a Gaussian, below which its colour is a guess
SKIPPED = "skipped.json"  # a frame that cannot be fitted, and why
LEAST_COVER = 0.9  # of a mask by the hull of the others; below it cameras or masks are wrong
WARM_LOSS = 0.01  # IoU of the given views below the last start from a hull: paws and tail are gone


def next_after(config: Any, summary: dict[str, Any]) -> tuple[str, ...]:
    """A fit that is worse than its hull is looked at and checked, not exported."""
    if outcome_of(summary) != "worse":
        return NEXT
    return (NEXT[0], CHECK % ("recording" if config.recording else "samples"))


class Frames(FromSamples):
    """The samples to fit."""

    least = 2

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.leave_one_out:
            self.least = 3

    def load(self, item_id: str) -> Item:
        """Read one sample; it needs masks."""
        item = super().load(item_id)
        if item.masks is None:
            raise LayoutError(
                "a fit needs masks (pictures with alpha)",
                where=item_id,
                fix="make the samples with configs/prepare.py",
            )
        return item


def _samples_config(config: Any, workdir: Path) -> Any:
    """The config with `samples` set: what was given, or where the recording's go."""
    given = [key for key in ("recording", "samples") if config[key]]
    if len(given) != 1:
        raise ConfigError(
            "give exactly one input",
            expected="--config.samples=PATH or --config.recording=PATH",
            found=" and ".join(given) or "none",
            fix="samples for a run of prepare, recording for a folder of videos",
        )
    if config.film.truth:
        must_exist(config.film.truth, "film.truth")  # now, not when all frames are fitted
    config = config.copy_and_resolve_references()
    if config.recording:
        path = must_exist(config.recording, "recording")
        if not looks_like_recording(path):
            raise LayoutError(
                "no recording here", where=path, found=contents(path),
                fix=f"--config.samples={path} if it is a run of prepare or a sample set",
            )  # fmt: skip
        config.samples = str(workdir / "prepare")
        config.prepare.recording = str(path)
        if config.frames:
            config.prepare.prepare.frames = config.frames
        config.prepare.prepare.n_samples = 0
    return config


def plan(config: Any, workdir: Path) -> Plan:
    """What a run would do."""
    config = _samples_config(config, workdir)
    notes = [_hidden_note(config)]
    if config.leave_one_out:
        notes.append("every frame is fitted again without each camera: so many times the time")
    if config.film.identity:
        notes.append("one set of Gaussians is followed through all frames: film/")
    writes = [f"{workdir}/items/<id>/{name}" for name in infer.FILES[:2]]
    writes += [f"{workdir}/{n}" for n in ("report.html", "motion.csv", "sequence.html", "videos/")]
    if config.recording and not is_whole(config.samples):
        first = prepare.plan(config.prepare, workdir / "prepare")
        return Plan("fit", first.reads, [*first.writes, *writes], f"prepare: {first.steps}; fit",
                    first.memory, first.skipped, [*first.notes, *notes],
                    _stops(config, n := prepare.n_samples(config.prepare), n > 1))  # fmt: skip
    items = Frames(config)
    alone = len(items.ids) == 1
    done = [i for i in items.ids if _is_done(infer.place_of(workdir, i, alone))]
    s, later = config.fit, "starts from the one before"
    steps = s.next_coarse_steps, s.next_fine_steps
    if config.film.identity:
        steps, later = (config.film.coarse_steps, config.film.fine_steps), "is followed"
    return Plan(
        "fit",
        reads=items.reads,
        writes=writes,
        steps=f"{len(items.ids)} frame(s): {s.coarse_steps} + {s.fine_steps} steps for the first, "
        f"{steps[0]} + {steps[1]} for each that {later}",
        memory="about 1.2 GB at 512 px, whatever the number of frames",
        skipped=[f"{len(done)} frame(s) that are done"] if done else [],
        notes=notes,
        stops=_stops(config, len(items.ids), items.is_film()),
    )


def _hidden_note(config: Any) -> str:
    hidden = list(config.heldout_cameras)
    if hidden:
        return f"hidden from the fit, to judge it: camera {', '.join(map(str, hidden))}"
    return (
        "no camera is hidden, so nothing says how good an unseen view is; "
        "--config.heldout_cameras=N, hides one"
    )


def _is_done(place: Path) -> bool:
    return infer.is_whole(place) or (place / SKIPPED).exists()


def run(config: Any, workdir: Workdir) -> None:
    """Fit every frame that is not done, then the film and the report."""
    config = _samples_config(config, workdir.path)
    if config.recording:
        _prepare(config, workdir)
    items = Frames(config)
    for error in _stops(config, len(items.ids), items.is_film()):
        raise error
    alone = len(items.ids) == 1
    places = {i: infer.place_of(workdir.path, i, alone) for i in items.ids}
    left = [i for i in items.ids if not _is_done(places[i])]
    if not left and is_whole(workdir.path):
        log.info("nothing left to do: %d frame(s) are done", len(items.ids))
        return
    if left:
        follower = _follower(config, items, workdir)
        fitter = Fitter(config, items, workdir.warn, follower)
        if follower is not None:
            left = [i for i in follower.order(fitter.area_seen) if i in left]
        each = config.copy_and_resolve_references()
        if items.is_film():
            each.turntable.frames = 0  # the film has one
        done, style = len(items.ids) - len(left), workdir.options.progress
        with Progress(len(items.ids), unit="frame", done=done, style=style) as progress:
            for item_id in left:
                _fit_item(each, fitter, items.load(item_id), places[item_id])
                progress.update()
    whole = _tell_skipped(workdir, places)
    records = {i: read_json(p / infer.DONE) for i, p in whole.items()}
    _tell_cut_off(workdir, records)
    nothing = Text(f"Nothing can be said: {_hidden_note(config)}.")
    first, said = Section("How good is it?", [nothing]), None
    if items.hidden:
        said, first, mean = judged(items, records, who="the fit", instead=INSTEAD)
        (workdir.warn if said.outcome == "worse" else log.info)(said.text)
        workdir.summary(finished=False, metrics={f"heldout/{k}": v for k, v in mean.items()})
    lead = [first]
    if config.film.identity:
        lead.append(film_report.section(workdir, config.film.truth))
    infer.finish(config, workdir, items, whole, alone, lead=lead, note=NOTE, said=said)


INSTEAD = "do not use it: cameras or masks are wrong, which `check` names"


def _stops(config: Any, samples: int, is_film: bool) -> list[MouseLiftError]:
    if is_film or not config.film.identity:
        return []
    return [ConfigError(
        "a film needs two or more frames of one recording", where="config.film.identity",
        found=f"{samples} sample(s)", fix="--config.film.identity=False, or more frames",
    )]  # fmt: skip


def _follower(config: Any, items: Frames, workdir: Workdir) -> Follower | None:
    if not config.film.identity:
        return None
    return Follower(workdir.path, items.sample_set, items.ids, film_settings(config), workdir.warn)


NOTE = (
    "The figures of this table compare renders with the very pictures that were fitted: they say "
    "that a frame is not broken, not how good an unseen view is. "
)


def _prepare(config: Any, workdir: Workdir) -> None:
    """Check the recording, then make samples of it, in a folder of the workdir."""
    folder = workdir / "prepare"
    if is_whole(folder):
        return
    log.info("the recording %s is checked, then prepared in %s", config.recording, folder)
    c = config.prepare.prepare
    found = check_recording(config.recording).findings
    stop = c.faults == "stop"
    for finding in found:
        if finding.severity == "warning" or (finding.severity == "error" and not stop):
            workdir.warn(finding.text())
    if stop:
        raise_errors("not fitted (--config.prepare.prepare.faults=warn goes on)", found)
    with Workdir(folder, config.prepare, workdir.options) as sub:
        prepare.run(config.prepare, sub)


def _fit_item(config: Any, fitter: Fitter, item: Item, place: Path) -> None:
    try:
        infer.lift_item(config, fitter, item, place)
    except fits.UnfittableError as error:
        fitter.forget()
        place.mkdir(parents=True, exist_ok=True)
        write_json_atomic(place / SKIPPED, {"id": item.id, "why": str(error)})


def _tell_skipped(workdir: Workdir, places: dict[str, Path]) -> dict[str, Path]:
    """Warn of every frame that was left out; the places of the others."""
    why = {i: read_json(p / SKIPPED) for i, p in places.items() if (p / SKIPPED).exists()}
    for item_id, record in why.items():
        workdir.warn(f"{item_id} was left out: {record['why']}")
    whole = {i: p for i, p in places.items() if i not in why}
    if not whole:
        raise LayoutError(
            "no frame could be fitted",
            where=workdir.path,
            found=f"{len(why)} frame(s) left out, the first: {next(iter(why.values()))['why']}",
            fix="python -m mouselift_jax check RECORDING looks for the cause",
        )
    if why:
        workdir.warn(f"{len(why)} of {len(places)} frames were left out")
    return whole


def _tell_cut_off(workdir: Workdir, records: dict[str, dict[str, Any]]) -> None:
    """Warn of animals that some picture does not hold whole."""
    cut = {i: r["cut_off"] for i, r in records.items() if r.get("cut_off")}
    if cut:
        times = Counter(number for cameras in cut.values() for number in cameras)
        where = ", ".join(f"camera {number} in {n}" for number, n in sorted(times.items()))
        workdir.warn(
            f"{len(cut)} of {len(records)} frames ({next(iter(cut))} first): a border cuts the "
            f"animal off, and the other cameras alone tell what lies beyond: {where}"
        )


# --- one frame -----------------------------------------------------------------------------------


class Fitter:
    """`fitter(item) -> (Gaussians, Render of all its cameras)`; remembers the frame before."""

    def __init__(
        self,
        config: Any,
        items: Frames,
        warn: Callable[[str], None],
        follower: Follower | None = None,
    ) -> None:
        self._items, self._follower = items, follower
        self._settings, self._warn = settings_from(config), warn
        if follower is not None:
            cells = round(self._settings.cells * follower.finer)
            self._settings = dataclasses.replace(self._settings, cells=cells)
        self._warm = config.warm_start and items.is_film()
        self._leave_one_out, self._room_less = config.leave_one_out, 0
        self._last: fits.Start | None = None
        self._cameras: list[int] = []  # that showed it
        self._side = self._room = 0  # the largest cut-out and number of Gaussians so far
        self._reach = 0.0  # IoU of the given views that the last start from a hull reached
        self._judge = HiddenJudge(items)
        self._draw = jax.jit(lambda g, c: render(g, c, implementation=config.render))

    def forget(self) -> None:
        """The next frame starts from its own hull."""
        self._last = None
        if self._follower is not None:
            self._follower.forget()

    def area_seen(self, item_id: str) -> float:
        """Area of a frame's hull that two cameras see; nan where it cannot be fitted."""
        try:
            return area_seen(self._views(self._items.load(item_id))[1], self._settings)
        except fits.UnfittableError:
            return float("nan")

    def _views(self, item: Item) -> tuple[np.ndarray, fits.Views]:
        """Places of the views that are not hidden, and their cut-outs."""
        numbers, given = item.about["cameras"], item.given
        cameras = item.cameras[given]
        check_cover(item.masks[given], cameras, [numbers[i] for i in given])
        # Never smaller than before: every new size compiles a program of its own.
        views = fits.cut_out(
            item.images[given], item.masks[given], cameras, self._settings, side=self._side,
            names=[f"camera {numbers[i]}" for i in given],
        )  # fmt: skip
        self._side = views.mask.shape[1]
        item.about["cut_off"] = [numbers[given[place]] for place in views.cut_off]
        return given, views

    def __call__(self, item: Item) -> tuple[Any, Any]:
        """Fit one frame; the figures go into `item.about`."""
        if self._leave_one_out and not item.scene_scale:
            raise LayoutError(
                "nothing says the unit of these samples, so no shift can be given in mm",
                where=item.id,
                fix="--config.leave_one_out=False, or prepare again with --config.prepare.unit=mm",
            )
        given, views = self._views(item)
        cameras = [item.about["cameras"][i] for i in given]
        done, how = self._fit(views, cameras, item.id)
        self._last, self._cameras = done.start if self._warm else None, cameras
        drawn = self._draw(
            jax.tree.map(jnp.asarray, done.start.gaussians), infer.on_device(item.cameras)
        )
        rgb = np.clip(np.asarray(drawn.rgb), 0, 1)
        item.about |= {
            "start": how,
            "unseen_share": float(np.mean(done.seen < UNSEEN)),
            "gain_spread": float(np.ptp(done.gains)),
        }
        item.of_splats[trust.FIELD] = done.seen
        if self._leave_one_out:
            item.of_splats[trust.SHIFT] = self._shift_mm(item, given, views, done.gaussians)
        if item.hidden:
            item.about["heldout"] = self._judge(item, rgb, np.asarray(drawn.alpha))
        return done.gaussians, drawn

    def _shift_mm(
        self, item: Item, given: np.ndarray, views: fits.Views, gaussians: Gaussians
    ) -> np.ndarray:
        shift, failed, self._room_less = fits.shifts(
            gaussians, views, self._settings, room=self._room_less
        )
        for place, why in failed.items():
            number = item.about["cameras"][given[place]]
            self._warn(f"{item.id}: nothing could be fitted without camera {number}: {why}")
        return shift / item.scene_scale

    def _fit(
        self, views: fits.Views, cameras: Sequence[int], item_id: str
    ) -> tuple[fits.Fit, str]:  # fmt: skip
        if self._follower is not None:
            return self._follower(views, cameras, item_id, self._from_hull)
        if self._last is not None:
            begun = fits.for_cameras(fits.carried(self._last, views), self._cameras, cameras)
            warm = fits.fit(views, begun, self._settings, is_next=True)
            if _is_finite(warm) and warm.iou.mean() >= self._reach - WARM_LOSS:
                return warm, "frame before"
            log.info("%s starts from its hull: the frame before is too far", item_id)
        return self._from_hull(views, item_id), "hull"

    def _from_hull(self, views: fits.Views, item_id: str) -> fits.Fit:
        begun = fits.start(views, self._settings, room=self._room)
        self._room = len(begun.alive)
        for seed in range(2):
            settings = dataclasses.replace(self._settings, seed=self._settings.seed + seed)
            done = fits.fit(views, begun, settings)
            if _is_finite(done):
                self._reach = float(done.iou.mean())
                return done
            self._warn(f"{item_id}: the fit diverged and was begun again")
        raise fits.UnfittableError("the fit diverged twice", expected="finite Gaussians")


def settings_from(config: Any) -> fits.FitSettings:
    """The settings of `pipelines.fit` that a config means."""
    return fits.FitSettings(**config.fit, seed=config.seed, implementation=config.render)


def film_settings(config: Any) -> FilmSettings:
    """The settings of `pipelines.film` that a config means."""
    chosen = {k: v for k, v in config.film.items() if k not in ("identity", "truth")}
    return FilmSettings(**chosen, seed=config.seed, implementation=config.render)


def check_cover(masks: np.ndarray, cameras: Camera, numbers: Sequence[int]) -> None:
    """Stop at cameras that disagree: a hull that misses a mask.

    Raises:
        UnfittableError: names the cameras whose masks the hull of the others misses.
    """
    cover = hull_cover([m[..., 0] for m in masks], [cameras[v] for v in range(len(masks))])
    bad = {n: c for n, c in zip(numbers, cover, strict=True) if not c >= LEAST_COVER}
    empty = [n for n in bad if not np.isfinite(bad[n])]
    if empty:
        raise fits.EmptyHullError(
            "a mask is empty", where=f"camera {', '.join(map(str, empty))}",
            expected="the animal in every camera's mask",
        )  # fmt: skip
    if bad:
        raise fits.UnfittableError(
            "cameras or masks disagree",
            where=", ".join(f"camera {n}" for n in bad),
            expected=f"{LEAST_COVER:.0%} of each mask within the hull of the others",
            found=", ".join(f"{c:.0%}" for c in bad.values()),
            fix="python -m mouselift_jax check RECORDING looks for the cause",
        )


def _is_finite(done: fits.Fit) -> bool:
    g = done.gaussians
    arrays = (done.losses, g.means, g.quats, g.log_scales, g.opacity_logits, g.sh)
    return all(np.isfinite(x).all() for x in arrays)
