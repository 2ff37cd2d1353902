"""Stage `prepare`: recordings to a sample set, with the proof that cameras and pictures agree."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.check.recording import check_recording
from mouselift_jax.data.check.silhouettes import misfit_px
from mouselift_jax.data.cores import available_cores
from mouselift_jax.data.findings import Finding, raise_errors
from mouselift_jax.data.inputs import calibration_of, must_exist
from mouselift_jax.data.preparation.frames import choose_frames
from mouselift_jax.data.preparation.placement import SceneSettings
from mouselift_jax.data.preparation.preparer import Preparer, PrepareSettings
from mouselift_jax.data.preparation.proofs import LEAST_COVER
from mouselift_jax.data.recordings.inspection import open_recording
from mouselift_jax.data.recordings.mask_sources import MaskSettings
from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.data.samples.grade import grade_samples
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.data.samples.split import split_blocks, split_by_recording
from mouselift_jax.data.samples.writer import SampleWriter, sample_id
from mouselift_jax.errors import ConfigError, MouseLiftError, nearest, one_of, raise_all
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.stages.harness.plan import Plan, cpu_only

log = logging.getLogger("mouselift_jax")
NEXT = (
    "python launch.py --config=configs/fit.py{tiny} --config.samples={workdir} "
    "--workdir={beside}/fit",
    "python launch.py --config=configs/gslrm.py{train} --config.samples={workdir} "
    "--workdir={beside}/gslrm",
)
FOLDER = "samples"
FAULTS = ("stop", "warn")
BYTES_PER_VIEW_512 = 30_000  # of a cut-out mouse; only for the plan's estimate
SHEET_SAMPLES = 4
GRADED_SAMPLES = 6
MANY_OUT = 0.02  # share of a visual hull outside the export box: hulls are fatter than animals
MANY_CUT = 0.02  # share of samples with an animal cut by the border that is worth a warning


def next_after(config: Any, summary: dict[str, Any]) -> tuple[str, ...]:
    """A toy network, all that a processor trains, sees too little in the published view."""
    del summary
    return NEXT[:1] if config.prepare.fov == "pretrained" and cpu_only() else NEXT


def settings_from(config: Any) -> PrepareSettings:
    """The settings of `data.prepare` that a config means."""
    c = config.prepare
    scene = {f.name: c[f.name] for f in dataclasses.fields(SceneSettings)}
    masks = MaskSettings(
        source=c.masks,
        threshold=c.mask_threshold,
        animal_is=c.mask_animal,
        difference=c.mask_difference,
        clean=c.mask_clean,
    )
    return PrepareSettings(
        scene=SceneSettings(**scene),
        masks=masks,
        animal=c.animal,
        heading=c.heading,
        heading_keypoints=tuple(c.heading_keypoints),
        min_mask_px=c.min_mask_px,
        min_sharpness=c.min_sharpness,
        max_speed_mm_s=c.max_speed_mm_s,
        match_gain=c.match_gain,
    )


def plan(config: Any, workdir: Path) -> Plan:
    """What would be read and written."""
    preparers = _preparers(config)
    _check_split(config, preparers, _names([p.recording for p in preparers]))
    total = sum(len(p.frames) for p in preparers)
    views = preparers[0].recording.n_views
    size = config.prepare.size
    disk = total * views * BYTES_PER_VIEW_512 * (size / 512) ** 2 / 1e9
    written = [sample_id(n) for p in preparers for n in p.numbers()]
    there = sum((Path(workdir) / FOLDER / name).is_dir() for name in written)
    biggest = max(v.width * v.height for p in preparers for v in p.recording.videos)
    in_flight = (config.prepare.threads or available_cores()) + 3
    return Plan(
        "prepare",
        reads=[f"{p.recording.path} ({p.recording.n_frames} frames)" for p in preparers],
        writes=[f"{Path(workdir) / FOLDER}: {total} samples x {views} views, about {disk:.2g} GB"],
        steps=f"{total} samples of {size} x {size} pixels, mode {config.prepare.mode}",
        memory=f"about {0.3 + in_flight * views * biggest * 5 / 1e9:.1f} GB, whatever the length",
        skipped=[f"{there} samples that are there already"] if there else [],
        notes=_notes(preparers[0]),
    )


def n_samples(config: Any) -> int:
    """How many samples a run would make."""
    return sum(len(p.frames) for p in _preparers(config))


def run(config: Any, workdir: Workdir) -> None:
    """Write the sample set, its report and the summary."""
    from mouselift_jax.runs.progress import Progress

    started = time.monotonic()
    preparers = _preparers(config)
    names = _names([p.recording for p in preparers])
    _check_split(config, preparers, names)
    for name, preparer in zip(names, preparers, strict=True):
        for note in preparer.recording.notes:  # what had to be guessed
            log.info("%s: %s", name, note)
        for finding in _news(preparer):
            tell = workdir.warn if finding.severity == "warning" else log.info
            tell(f"{name}: {finding.text()}")
    writer = SampleWriter(workdir / FOLDER, _manifest(config, preparers, names))
    total = sum(len(p.frames) for p in preparers)
    before = len(writer.done)
    with (
        writer,
        Progress(
            total,
            unit="sample",
            done=before,
            style=workdir.options.progress,
            title="prepare",
        ) as progress,
    ):
        for preparer, name in zip(preparers, names, strict=True):
            preparer.run(
                writer,
                threads=config.prepare.threads or None,
                on_done=lambda _: progress.update(1),
                name=name,
                on_finding=lambda f, n=name: workdir.warn(f"{n}: {f.text()}"),
                on_doubt=lambda p=preparer, n=name: _diagnose(p, n, config, workdir),
            )
            _judge_silhouettes(preparer, name, config, workdir)
        manifest = writer.finish(
            lambda rows: _split(config, preparers, rows),
            numbers=[n for p in preparers for n in p.numbers()],
        )
    seconds = time.monotonic() - started
    metrics = _metrics(manifest)
    if total > before:  # a repeated command has no speed, and keeps the one that was
        metrics["samples_per_s"] = round((total - before) / seconds, 2)
    for text in _warnings(manifest, metrics):
        workdir.warn(text)
    graded = grade_samples(SampleSet.open(workdir / FOLDER), max_samples=GRADED_SAMPLES)
    sheet = _sheet(workdir)
    workdir.summary(
        finished=True,
        steps=total,
        metrics=metrics,
        artefacts={"samples": FOLDER, "views": "views.png", "report": "report.html"},
        inputs={"recording": [str(p.recording.path) for p in preparers]},
    )
    _report(workdir, manifest, preparers, sheet, graded)


# --- inputs -----------------------------------------------------------------------------------


def _preparers(config: Any) -> list[Preparer]:
    """One `Preparer` per recording, numbered on; everything wrong with any of them at once."""
    c = config.prepare
    if c.threads < 0:
        raise ConfigError(
            "fewer than no threads",
            where="config.prepare.threads",
            found=c.threads,
            fix="--config.prepare.threads=0 takes one per core",
        )
    one_of(
        c.faults, FAULTS, "what to do about faults is stop or warn", where="config.prepare.faults"
    )
    paths = [p for p in (config.recording or "").split(",") if p] or [None]
    settings = settings_from(config)
    preparers, problems, first = [], [], 0
    for path in paths:
        try:
            folder = must_exist(path, "recording")
            recording = open_recording(folder, **_reading(c))
            frames = choose_frames(
                recording.n_frames,
                ranges=c.frames,
                every=c.every,
                n_samples=c.n_samples,
                exclude=c.exclude,
                margin=c.exclude_margin,
            )
            preparers.append(Preparer(recording, settings, frames, first, c.cache or None))
            first += len(frames)
        except MouseLiftError as error:
            problems.append(error)
    raise_all("recordings cannot be prepared", problems)
    _same_rig(preparers)
    return preparers


def _reading(c: Any) -> dict[str, Any]:
    """How a recording is read, of `inspect_recording`."""
    cameras = c.cameras if isinstance(c.cameras, str) else ",".join(map(str, c.cameras))
    return {
        "trim": c.trim,
        "unit": c.unit or None,
        "calibration": calibration_of(c.calibration) if c.calibration else None,
        "cameras": cameras.split(","),
        "up": c.up,
        "pixel_origin": str(c.pixel_origin),
    }


def _same_rig(preparers: Sequence[Preparer]) -> None:
    ids = {p.recording.camera_ids for p in preparers}
    if len(ids) > 1:
        raise ConfigError(
            "recordings of one sample set must have the same cameras",
            where="config.recording",
            found="; ".join(map(str, sorted(ids))),
            fix="prepare each recording into its own workdir",
        )


def _names(recordings: Sequence[Recording]) -> list[str]:
    """Names of recordings, told apart by their parents where the folders are called alike."""
    names = [r.path.resolve().name for r in recordings]
    if len(set(names)) < len(names):
        names = ["/".join(r.path.resolve().parts[-2:]) for r in recordings]
    return names


def _manifest(config: Any, preparers: Sequence[Preparer], names: Sequence[str]) -> dict[str, Any]:
    c = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    parameters = {k: v for k, v in c["prepare"].items() if k not in ("threads", "cache", "faults")}
    source = {
        name: {
            "path": str(p.recording.path),
            "hashes": p.recording.hashes(),
            "n_frames": p.recording.n_frames,
            "fps": p.recording.fps,
            "unit": p.recording.unit,
            "frames": len(p.frames),
            "notes": list(p.recording.notes),
        }
        for name, p in zip(names, preparers, strict=True)
    }
    entries = preparers[0].manifest_entries()
    if len(preparers) > 1:
        entries["scenes"] = {
            name: p.manifest_entries() for name, p in zip(names, preparers, strict=True)
        }
    return {"source": source, "parameters": {**parameters, "split": c["split"]}, **entries}


def _check_split(config: Any, preparers: Sequence[Preparer], names: Sequence[str]) -> None:
    """Fail before the work, not after it, if even with every frame the split is impossible."""
    rows = [
        {"id": sample_id(number), "frame": frame, "recording": name}
        for preparer, name in zip(preparers, names, strict=True)
        for number, frame in zip(preparer.numbers(), preparer.frames, strict=True)
    ]
    _split(config, preparers, rows)


def _split(config: Any, preparers: Sequence[Preparer], rows: list[dict[str, Any]]) -> list[str]:
    s = config.split
    if s.by == "recording":
        return split_by_recording([r["recording"] for r in rows], tuple(s.val_recordings))
    if s.by != "time":
        raise ConfigError(
            "config.split.by is time or recording",
            found=s.by,
            fix=nearest(s.by, ("time", "recording")),
        )
    if s.val_recordings:
        raise ConfigError(
            "val_recordings say nothing about a split by time",
            where="config.split.val_recordings",
            found=list(s.val_recordings),
            fix="--config.split.by=recording, or leave val_recordings out",
        )
    labels: list[str] = []
    for preparer in preparers:
        own = {sample_id(n) for n in preparer.numbers()}
        fps = preparer.recording.fps or 30.0
        times = [r["frame"] / fps for r in rows if r["id"] in own]
        labels += split_blocks(
            times, val_fraction=s.val_fraction, gap=s.gap_s, n_blocks=s.n_blocks or None
        )
    return labels


def _judge_silhouettes(preparer: Preparer, name: str, config: Any, workdir: Workdir) -> None:
    """A pixel's fault in all cameras leaves the hulls as they are: the outlines say it."""
    witness = preparer.witness
    if preparer.mask_source not in ("files", "alpha") or witness.worst_cover() < LEAST_COVER:
        return
    misfit = misfit_px(preparer.recording, witness.outlines)
    if misfit:
        _diagnose(
            preparer, name, config, workdir, f"silhouettes miss each other by {misfit:.2f} px"
        )


def _diagnose(preparer: Preparer, name: str, config: Any, workdir: Workdir, seen: str = "") -> None:
    """What does not fit has a cause: look for it, and stop or tell."""
    seen = seen or f"a hull covers only {preparer.witness.worst_cover():.3f} of its masks"
    log.info("%s: %s: looking for the cause", name, seen)
    c = config.prepare
    found = check_recording(preparer.recording.path, **_reading(c)).findings
    stop = c.faults == "stop"
    for finding in found:
        if finding.severity == "warning" or (finding.severity == "error" and not stop):
            workdir.warn(f"{name}: {finding.text()}")
    if stop:
        raise_errors(f"{name}: {seen} (--config.prepare.faults=warn goes on)", found)


# --- results ----------------------------------------------------------------------------------


def _metrics(manifest: dict[str, Any]) -> dict[str, float]:
    rows = [r for r in manifest["samples"] if r["status"] == "ok"]
    metrics = {
        "samples": len(rows),
        "skipped": len(manifest["samples"]) - len(rows),
        "warp_error_px/max": max(r["warp_error_px"] for r in rows),
        "cut/share": float(np.mean([max(r["border_px"]) > 0 for r in rows])),
        "size_px/mean": float(np.mean([r["size_px"] for r in rows])),
    }
    residuals = [r["keypoint_px"] for r in rows if "keypoint_px" in r]
    if residuals:
        for key in ("raw", "sample"):
            metrics[f"keypoint_px/{key}"] = float(np.mean([r[key] for r in residuals]))
    hulls = [r["hull"] for r in rows if "hull" in r]
    if hulls:
        metrics["hull_cover/mean"] = float(np.mean([h["cover"] for h in hulls]))
        out = [h.get("outside_box", 1.0) > MANY_OUT for h in hulls]
        metrics["outside_box/share"] = float(np.mean(out))
    return metrics


def _warnings(manifest: dict[str, Any], metrics: dict[str, float]) -> list[str]:
    found = [
        f"{count} frames left out: {reason}"
        for reason, count in manifest["counts"]["skipped"].items()
    ]
    if "inconsistent" in manifest["scene"]:
        found.append(
            f"mode {manifest['parameters']['mode']} is inconsistent: its cameras miss its pictures "
            f"by up to {metrics['warp_error_px/max']:.0f} px; for comparison only"
        )
    if metrics["cut/share"] > MANY_CUT:
        found.append(
            f"the picture's border cuts the animal in {metrics['cut/share']:.0%} of the samples: "
            "lower prepare.fill, or raise prepare.subject_mm"
        )
    if (
        metrics.get("hull_cover/mean", 1.0) < LEAST_COVER
        and "inconsistent" not in manifest["scene"]
    ):
        found.append(
            f"the visual hull covers only {metrics['hull_cover/mean']:.3f} of the masks: "
            "calibration, masks or synchronisation are wrong; "
            "python -m mouselift_jax check RECORDING finds out which"
        )
    if metrics.get("outside_box/share", 0.0) > MANY_CUT:
        found.append(
            f"{metrics['outside_box/share']:.0%} of the samples reach beyond the export box "
            "(|x|, |y| < 0.91, |z| < 1): exported splats will be cut there; lower prepare.radius"
        )
    return found


def _notes(preparer: Preparer) -> list[str]:
    scene = preparer.scene
    notes = [
        f"scale {scene.scene_scale:.6f} scene units per mm; f = {scene.focal:.0f} px",
        "slots (camera numbers): " + " ".join(str(scene.camera_ids[i]) for i in scene.order),
        f"masks: {preparer.mask_source}",
    ]
    if preparer.mask_source == "background_model":
        notes.append("the background model needs one more pass over each video")
    recording = preparer.recording
    if preparer.settings.animal:
        notes.append(f"of several animals the {preparer.settings.animal} one is taken")
    return [*notes, *recording.notes, *(finding.text() for finding in _news(preparer))]


def _news(preparer: Preparer) -> list[Finding]:
    """Findings of the look at the folder; that there are several animals, if none was chosen."""
    chosen = bool(preparer.settings.animal)
    found = preparer.recording.findings
    return [f for f in found if not (chosen and f.code == "several_animals")]


def _sheet(workdir: Workdir) -> tuple[Any, str]:
    """Some samples as views.png, the first as it is, the others cut to the animal; its caption."""
    from mouselift_jax.report.pictures import close_up, contact_sheet, save_png

    samples = SampleSet.open(workdir / FOLDER)
    ids = samples.ids("all")
    chosen = [
        ids[i] for i in np.linspace(0, len(ids) - 1, min(SHEET_SAMPLES, len(ids))).astype(int)
    ]
    images, labels = [], []
    for name in chosen:
        sample = samples.load(name)
        images += list(sample.images_rgba)
        labels += [f"frame {sample.frame}, camera {c}" for c in sample.camera_ids]
    n = len(images) // len(chosen)
    images[n:], zoom = close_up(images[n:]) if len(chosen) > 1 else ([], "")
    sheet = contact_sheet(images, labels=labels, columns=n, size=192)
    save_png(workdir / "views.png", sheet)
    about = "All slots of one instant, as they are stored"
    return sheet, about + (f"; then of others, cut to the animal ({zoom})." if zoom else ".")


def _report(
    workdir: Workdir,
    manifest: dict[str, Any],
    preparers: Sequence[Preparer],
    sheet: tuple[Any, str],
    graded: dict[str, Any],
) -> None:
    from mouselift_jax.report.html import Picture, Section, Table, Text, write_report

    free = shutil.disk_usage(workdir.path).free / 1e9
    views = manifest["views"]
    geometry = Table(
        ["slot", "camera", "azimuth, deg", "elevation, deg", "distance"],
        [
            [v["slot"], v["camera"]]
            + [f"{v['azimuth_deg']:.1f}", f"{v['elevation_deg']:.1f}", f"{v['distance']:.2f}"]
            for v in views
        ],
        caption="Slots go clockwise seen from above; distance in scene units.",
    )
    counts: dict[str, int] = {}
    for row in manifest["samples"]:
        label = row.get("split", row.get("reason", ""))
        counts[label] = counts.get(label, 0) + 1
    write_report(
        workdir.path,
        title="Samples",
        intro="What was cut out of the recording, and whether pictures and cameras agree.",
        sections=[
            Section(
                f"Quality: {graded['grade']}",
                [Text(reason) for reason in graded["reasons"]] or [Text("nothing to remark")],
            ),
            Section("Pictures", [Picture(*sheet)]),
            Section("Cameras", [geometry, Text(" · ".join(_notes(preparers[0])))]),
            Section(
                "Samples",
                [
                    Table(["use", "samples"], [[k, v] for k, v in counts.items()]),
                    Text(f"{free:.1f} GB are free on this disk."),
                ],
            ),
        ],
    )
