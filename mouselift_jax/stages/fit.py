"""Stage `fit`: Gaussians fitted to the views of every frame, without weights."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.data.check import check_recording
from mouselift_jax.data.findings import raise_errors
from mouselift_jax.data.inputs import contents, looks_like_recording, must_exist
from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.files import write_json_atomic
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.hull import hull_cover
from mouselift_jax.pipelines import fit as fits
from mouselift_jax.pipelines.baselines import visual_hull
from mouselift_jax.render import render
from mouselift_jax.report.html import Section, Table, Text
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.progress import Progress
from mouselift_jax.runs.record import is_whole, read_json
from mouselift_jax.stages import infer, prepare
from mouselift_jax.stages.harness.plan import Plan
from mouselift_jax.stages.items.from_samples import FromSamples
from mouselift_jax.stages.items.item import Item
from mouselift_jax.training import metrics as metric

log = logging.getLogger("mouselift_jax")
NEXT = (
    "python -m mouselift_jax view {workdir}",
    "python -m mouselift_jax export {workdir} {beside}/fit.html --to=html",
)
SKIPPED = "skipped.json"  # a frame that cannot be fitted, and why
LEAST_COVER = 0.9  # of a mask by the hull of the others; below it cameras or masks are wrong
WARM_LOSS = 0.01  # IoU of the given views below the last start from a hull: paws and tail are gone
HULLS = 8  # frames whose hidden views are drawn from the hull too: it is slow
SPECK = 0.25  # error of a pixel that is seen at once


class Frames(FromSamples):
    """The samples to fit; cameras hidden from the fit stay among an item's views."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.hidden = [int(c) for c in config.heldout_cameras]

    def load(self, item_id: str) -> Item:
        """Read one sample; it needs masks, and two cameras that are not hidden."""
        item = super().load(item_id)
        if item.masks is None:
            raise LayoutError(
                "a fit needs masks (pictures with alpha)",
                where=item_id,
                fix="make the samples with configs/prepare.py",
            )
        numbers = item.about["cameras"]
        missing = sorted(set(self.hidden) - set(numbers))
        if missing or len(numbers) - len(self.hidden) < 2:
            raise ConfigError(
                "the sample has no such camera" if missing else "too few cameras are left to fit",
                where=f"config.heldout_cameras, {item_id}",
                expected=f"some of {numbers}, and two or more besides",
                found=missing or self.hidden,
                fix=f"--config.heldout_cameras={numbers[-1]},",
            )
        for i, number in enumerate(numbers):
            if number in self.hidden:
                item.labels[i] += " (hidden)"
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
    writes = [f"{workdir}/items/<id>/{name}" for name in infer.FILES[:2]]
    writes += [f"{workdir}/{n}" for n in ("report.html", "motion.csv", "sequence.html", "videos/")]
    if config.recording and not is_whole(config.samples):
        first = prepare.plan(config.prepare, workdir / "prepare")
        return Plan("fit", first.reads, [*first.writes, *writes], f"prepare: {first.steps}; fit",
                    first.memory, first.skipped, [*first.notes, *notes])  # fmt: skip
    items = Frames(config)
    alone = len(items.ids) == 1
    done = [i for i in items.ids if _is_done(infer.place_of(workdir, i, alone))]
    s = config.fit
    return Plan(
        "fit",
        reads=items.reads,
        writes=writes,
        steps=f"{len(items.ids)} frame(s): {s.coarse_steps} + {s.fine_steps} steps for the first, "
        f"{s.next_coarse_steps} + {s.next_fine_steps} for each that starts from the one before",
        memory="about 1.2 GB at 512 px, whatever the number of frames",
        skipped=[f"{len(done)} frame(s) that are done"] if done else [],
        notes=notes,
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
    alone = len(items.ids) == 1
    places = {i: infer.place_of(workdir.path, i, alone) for i in items.ids}
    left = [i for i in items.ids if not _is_done(places[i])]
    if not left and is_whole(workdir.path):
        log.info("nothing left to do: %d frame(s) are done", len(items.ids))
        return
    if left:
        fitter = Fitter(config, items, workdir.warn)
        each = config.copy_and_resolve_references()
        if items.is_film():
            each.turntable.frames = 0  # the film has one
        done, style = len(items.ids) - len(left), workdir.options.progress
        with Progress(len(items.ids), unit="frame", done=done, style=style) as progress:
            for item_id in left:
                _fit_item(each, fitter, items.load(item_id), places[item_id])
                progress.update()
    whole = _tell_skipped(workdir, places)
    lead = [_verdict(workdir, config, {i: read_json(p / infer.DONE) for i, p in whole.items()})]
    infer.finish(config, workdir, items, whole, alone, lead=lead, note=NOTE)


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


# --- one frame -----------------------------------------------------------------------------------


class Fitter:
    """`fitter(item) -> (Gaussians, Render of all its cameras)`; remembers the frame before."""

    def __init__(self, config: Any, items: Frames, warn: Callable[[str], None]) -> None:
        self._settings = settings_from(config)
        self._hidden, self._warn = set(items.hidden), warn
        self._warm = config.warm_start and items.is_film()
        self._last: fits.Start | None = None
        self._reach = 0.0  # IoU of the given views that the last start from a hull reached
        ids = items.ids
        chosen = np.linspace(0, len(ids) - 1, min(HULLS, len(ids))).astype(int)
        self._hulls = {ids[i] for i in chosen} if self._hidden else set()
        self._figures = jax.jit(metric.figures)
        self._draw = jax.jit(lambda g, c: render(g, c, implementation=config.render))

    def forget(self) -> None:
        """The next frame starts from its own hull."""
        self._last = None

    def __call__(self, item: Item) -> tuple[Any, Any]:
        """Fit one frame; the figures go into `item.about`."""
        numbers = item.about["cameras"]
        given = np.array([i for i, n in enumerate(numbers) if n not in self._hidden])
        cameras = item.cameras[given]
        check_cover(item.masks[given], cameras, [numbers[i] for i in given])
        views = fits.cut_out(item.images[given], item.masks[given], cameras, self._settings)
        done, how = self._fit(views, item.id)
        self._last = done.start if self._warm else None
        drawn = self._draw(jax.tree.map(jnp.asarray, done.start.gaussians), _float32(item.cameras))
        rgb = np.clip(np.asarray(drawn.rgb), 0, 1)
        item.about |= {
            "start": how,
            "input_psnr": float(np.mean(metric.psnr(rgb[given], item.images[given]))),
            "input_iou": float(np.mean(done.iou)),
            "unseen_share": float(np.mean(done.seen == 0)),
            "gain_spread": float(np.ptp(done.gains)),
        }
        if self._hidden:
            item.about["heldout"] = self._judge(item, given, rgb, np.asarray(drawn.alpha))
        return done.gaussians, drawn

    def _fit(self, views: fits.Views, item_id: str) -> tuple[fits.Fit, str]:
        if self._last is not None:
            warm = fits.fit(views, fits.carried(self._last, views), self._settings, is_next=True)
            if _is_finite(warm) and warm.iou.mean() >= self._reach - WARM_LOSS:
                return warm, "frame before"
            log.info("%s starts from its hull: the frame before is too far", item_id)
        begun = fits.start(views, self._settings)
        for seed in range(2):
            settings = dataclasses.replace(self._settings, seed=self._settings.seed + seed)
            done = fits.fit(views, begun, settings)
            if _is_finite(done):
                self._reach = float(done.iou.mean())
                return done, "hull"
            self._warn(f"{item_id}: the fit diverged and was begun again")
        raise fits.UnfittableError("the fit diverged twice", expected="finite Gaussians")

    def _judge(
        self, item: Item, given: np.ndarray, rgb: np.ndarray, alpha: np.ndarray
    ) -> dict[str, float]:
        """Mean figures of the hidden views, the hull's beside them in some frames."""
        hidden = np.setdiff1d(np.arange(len(item.images)), given)
        image, mask = item.images[hidden], item.masks[hidden]
        values = dict(self._figures(rgb[hidden], alpha[hidden], image, mask))
        inside = np.asarray(metric.interior(alpha[hidden], 2) * metric.interior(mask, 2)) > 0
        off = (np.abs(rgb[hidden] - image).max(-1, keepdims=True) > SPECK) & inside
        values["specks"] = off.sum((1, 2, 3)) / np.maximum(inside.sum((1, 2, 3)), 1)
        if item.id in self._hulls:
            drawn = [visual_hull(item.images[given], item.masks[given], item.cameras[given],
                                 item.cameras[int(v)]) for v in hidden]  # fmt: skip
            hull = self._figures(
                np.stack([d.rgb for d in drawn]), np.stack([d.alpha for d in drawn]), image, mask
            )
            values |= {"hull_iou": hull["iou"], "hull_interior_psnr": hull["interior_psnr"]}
        return {k: float(np.mean(v)) for k, v in values.items()}


def settings_from(config: Any) -> fits.FitSettings:
    """The settings of `pipelines.fit` that a config means."""
    return fits.FitSettings(**config.fit, seed=config.seed, implementation=config.render)


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


def _float32(camera: Camera) -> Camera:
    K, c2w = jnp.asarray(camera.K, jnp.float32), jnp.asarray(camera.c2w, jnp.float32)
    return Camera(K, c2w, camera.width, camera.height)


# --- what the run says of itself -----------------------------------------------------------------


def _verdict(workdir: Workdir, config: Any, records: dict[str, dict]) -> Section:
    """The report's first words: how far to trust the frames, by views that were hidden."""
    rows = {i: r["heldout"] for i, r in records.items() if "heldout" in r}
    if not rows:
        return Section("How good is it?", [Text(f"Nothing can be said: {_hidden_note(config)}.")])
    mean = {k: float(np.nanmean([r[k] for r in rows.values() if k in r]))
            for k in sorted({k for r in rows.values() for k in r})}  # fmt: skip
    gain = mean["interior_psnr"] - mean["mean_color_psnr"]
    worst = min(rows, key=lambda i: rows[i]["iou"])
    judged = [r for r in rows.values() if "hull_iou" in r]
    beats = np.mean([r["iou"] for r in judged]) > np.mean([r["hull_iou"] for r in judged])
    is_good = mean["iou"] >= 0.9 and gain >= 2.0 and beats
    shown = ", ".join(map(str, config.heldout_cameras))
    word = "Trust it" if is_good else "Look before you trust it"
    text = (
        f"{word}: in what the fit did not see (camera {shown}) the silhouette "
        f"agrees to {mean['iou']:.3f} (IoU; the visual hull {mean['hull_iou']:.3f}), and inside "
        f"the animal the colours to {mean['interior_psnr']:.1f} dB, {gain:+.1f} dB against "
        f"painting it in its mean colour (the hull {mean['hull_interior_psnr']:.1f} dB). "
        f"Worst frame: {worst}, IoU {rows[worst]['iou']:.3f}."
    )
    (log.info if is_good else workdir.warn)(text)
    workdir.summary(finished=False, metrics={f"heldout/{k}": v for k, v in mean.items()})
    table = Table(
        ["frame", "IoU", "interior, dB", "over mean colour, dB", "specks, %"],
        [[i, r["iou"], r["interior_psnr"], r["interior_psnr"] - r["mean_color_psnr"],
          100 * r["specks"]] for i, r in list(rows.items())[:200]],
    )  # fmt: skip
    return Section("How good is it?", [Text(text), table])
