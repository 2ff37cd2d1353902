"""Sample sets of views that no camera took, in the format of real ones and with their split.

Two sources: a multi-view network that generates them from one picture, and a run of `fit` whose
Gaussians are drawn from one rig (`multiview/from_fits`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.batches.pictures import composite, resized
from mouselift_jax.data.inputs import must_exist, resolve_samples
from mouselift_jax.data.photos.cutout import cut_out
from mouselift_jax.data.samples.rig_file import rig_words
from mouselift_jax.data.samples.sample_set import Sample, SampleSet
from mouselift_jax.data.samples.writer import SampleWriter, sample_id
from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.files import write_bytes_atomic
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.report.html import Picture, Section, Table, Text, write_report
from mouselift_jax.report.pictures import contact_sheet, save_png
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.progress import Progress
from mouselift_jax.runs.record import plain
from mouselift_jax.stages.harness.plan import Plan
from mouselift_jax.stages.harness.selection import select
from mouselift_jax.stages.multiview import from_fits
from mouselift_jax.stages.multiview.fits import FitRun, Fitted, open_fits
from mouselift_jax.stages.multiview.generator import Generator, check_generate, make_generator
from mouselift_jax.stages.multiview.order import azimuths_of, order_from
from mouselift_jax.stages.multiview.rig_report import finish_rig_set, spread_table, unjudged
from mouselift_jax.training import metrics as metric
from mouselift_jax.weights.pretrained import find_component

NEXT = (
    "python launch.py --config=configs/gslrm.py{train} --config.samples={workdir} "
    "--workdir={beside}/gslrm",
)

# Of samples made from fits, which also train the network that generates views.
NEXT_FITS = (
    "python launch.py --config=configs/mvdiff.py{tiny} --config.samples={workdir} "
    "--workdir={beside}/mvdiff",
    *NEXT,
)

SHOWN = 4  # samples in the report
SHEETS = "pictures"


def next_after(config: Any, summary: dict[str, Any]) -> tuple[str, ...]:
    """The commands that use the result."""
    del summary
    if not config.fits:
        return NEXT
    tiny = "tiny" in config.variant.split(",")
    return NEXT_FITS if tiny else NEXT  # mvdiff at full size needs converted weights first


def references(config: Any, n_views: int) -> list[int]:
    """Slots that serve as reference."""
    text = str(config.references)
    if text == "all":
        return list(range(n_views))
    try:
        found = [int(r) for r in text.split(",")]
    except ValueError:
        found = [-1]
    if not all(0 <= r < n_views for r in found):
        raise ConfigError(
            "no such reference slots",
            where="config.references",
            expected=f'"all", or slots 0 to {n_views - 1} as in "0,2"',
            found=text,
            fix="--config.references=0",
        )
    return found


def jobs(config: Any, sample_set: SampleSet) -> list[tuple[int, str, int]]:
    """(number of the new sample, source id, reference slot), numbers by source, not by count."""
    everything = sample_set.ids("all")
    place = {name: i for i, name in enumerate(everything)}
    wanted = select(sample_set, config.split, config.frames)[: config.limit or None]
    v = len(sample_set.picture_paths(everything[0]))
    return [(place[i] * v + r, i, r) for i in wanted for r in references(config, v)]


def plan(config: Any, workdir: Path) -> Plan:
    """What a run would do."""
    if config.fits:
        return _plan_fits(config, workdir)
    check_generate(config.generate)
    samples = resolve_samples(config.samples)
    folder, kind = find_component(must_exist(config.mvdiff, "mvdiff"), "unet")
    todo = jobs(config, SampleSet.open(samples))
    done = [n for n, _, _ in todo if (workdir / "samples" / sample_id(n)).is_dir()]
    return Plan(
        stage="synth",
        reads=[str(samples), f"{folder} ({kind} weights)"],
        writes=[f"{workdir}/samples/", f"{workdir}/report.html"],
        steps=f"{len(todo)} samples of generated views, {config.generate.steps} sampling steps",
        skipped=[f"{len(done)} samples that are whole"] if done else [],
    )


def run(config: Any, workdir: Workdir) -> None:
    """Make what is not there yet."""
    if config.fits:
        _run_fits(config, workdir)
        return
    samples = resolve_samples(config.samples)
    source = SampleSet.open(samples)
    todo = jobs(config, source)
    generator = make_generator(config, workdir.warn)
    _check_views(source, generator, todo)
    if generator.reference == "fixed" and {r for _, _, r in todo} != {0}:
        raise ConfigError(
            "the network was trained with slot 0 as reference only",
            where="config.references",
            found=config.references,
            fix="--config.references=0, or train configs/mvdiff.py:six_x",
        )
    manifest = {
        "source": {
            "kind": "generated",
            "samples": str(samples),
            "samples_source": plain(source.manifest.get("source", {})),
            "mvdiff": str(config.mvdiff),
        },
        "parameters": {
            "seed": config.seed,
            "references": str(config.references),
            "generate": plain(config.generate),
            "cameras": "the source's own" if generator.posed else generator.note,
        },
        "scene_scale": source.scene_scale,
    }
    # Kept as files, and figures as manifest rows, so that a repeated command shows them too.
    sheets = {job: workdir / SHEETS / f"{sample_id(job[0])}.png" for job in todo[:SHOWN]}
    with SampleWriter(workdir / "samples", manifest) as writer:
        left = [job for job in todo if sample_id(job[0]) not in writer.done]
        done = len(todo) - len(left)
        style = workdir.options.progress
        with Progress(len(todo), unit="sample", done=done, style=style) as progress:
            for job in left:
                _one(generator, source, writer, job, sheets.get(job))
                progress.update()
        splits = {name: s for s in ("train", "val") for name in source.ids(s)}
        written = writer.finish(
            lambda rows: [splits.get(row["source"], "gap") for row in rows],
            numbers=[n for n, _, _ in todo],
        )
    shown = {_caption(source, job): path for job, path in sheets.items() if path.exists()}
    psnr = [row["psnr"] for row in written["samples"] if "psnr" in row]
    finish(config, workdir, generator, len(todo), shown, psnr)


def _check_views(source: SampleSet, generator: Generator, todo: list[tuple[int, str, int]]) -> None:
    """The network's views must be among the samples'; what is beyond them is not used."""
    n, there = len(generator.prompts), len(source.picture_paths(todo[0][1]))
    if there < n:
        raise LayoutError(
            "the samples have too few views",
            where=source.path,
            expected=f"{n}, as many as the network makes",
            found=there,
            fix="samples of more cameras, or a network of as many views",
        )
    beyond = sorted({r for _, _, r in todo if r >= n})
    if beyond:
        raise ConfigError(
            "no such reference slots",
            where="config.references",
            expected=f"slots 0 to {n - 1}: the network makes {n} views",
            found=beyond,
            fix=f"--config.references={','.join(map(str, range(n)))}",
        )


def _caption(source: SampleSet, job: tuple[int, str, int]) -> str:
    number, name, reference = job
    return f"{sample_id(number)}: made from slot {reference} of {source.caption(name)}"


def _one(
    generator: Generator,
    source: SampleSet,
    writer: SampleWriter,
    job: tuple[int, str, int],
    sheet: Path | None,
) -> None:
    """Write one sample, after its picture in `sheet` where one is wanted."""
    number, name, reference = job
    sample = source.load(name)
    if sample.cameras is None:
        raise LayoutError(
            "a sample without cameras cannot be a source",
            where=name,
            fix="make the samples with configs/prepare.py",
        )
    n = len(generator.prompts)
    order = np.arange(n)
    if reference:
        order = order_from(reference, azimuths_of(sample.cameras.c2w)[:n], n)
    rgba, cameras = resized(sample.images_rgba[order], sample.cameras[order], generator.side)
    truth, _ = composite(rgba, np.ones(3, np.float32))
    picture = (truth[0] * 255 + 0.5).astype(np.uint8)
    # A network of random references has learned a rig whose reference stands at the front.
    free = generator.reference == "random" and not generator.posed
    turn = _turn_to_front(cameras) if free else np.eye(4)
    cameras = Camera(cameras.K, turn @ np.asarray(cameras.c2w), cameras.width, cameras.height)
    views = generator.views(picture, (number,), order=order, cameras=cameras)
    out = cut_out(views, generator.generate.white)
    written = cameras if generator.posed else generator.rig.cameras
    if generator.generate.keep_reference:
        out[0] = np.where(rgba[0, ..., 3:] > 0, rgba[0], 0)  # the source may not clear them
        written = _with_first(written, cameras)
    if sheet is not None:
        pictures = [*truth, *views]
        labels = [f"{what}, slot {i}" for what in ("source", "generated") for i in range(n)]
        save_png(sheet, contact_sheet(pictures, labels=labels, size=128, columns=n))
    psnr = float(np.mean(np.asarray(metric.psnr(views, truth))))  # dB, against the source's views
    writer.write(
        number,
        list(out),
        written,
        [int(c) for c in np.asarray(sample.camera_ids)[order]],
        frame=sample.frame,
        row={"source": name, "reference": reference, "psnr": psnr},
        generated={
            "source": name,
            "reference_slot": reference,
            "kept": [0] if generator.generate.keep_reference else [],
            "seed": [generator.seed, number],
            "world_from_source": turn.tolist(),
        },
        **_alignment(sample, turn),
    )


def _turn_to_front(cameras: Camera) -> np.ndarray:
    """Turn about the vertical that brings slot 0's camera to the front, azimuth 270."""
    angle = np.deg2rad(270.0 - float(azimuths_of(cameras.c2w)[0]))
    out = np.eye(4)
    out[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return out


def _with_first(cameras: Camera, first: Camera) -> Camera:
    """Cameras [V] with slot 0 of other ones."""
    K, c2w = (np.array(x, np.float64) for x in (cameras.K, cameras.c2w))
    K[0], c2w[0] = np.asarray(first.K)[0], np.asarray(first.c2w)[0]
    return Camera(K, c2w, cameras.width, cameras.height)


def _alignment(sample: Sample, turn: np.ndarray) -> dict[str, Any]:
    """Unit and way from the recording to this sample's world, where the source knows its own."""
    unit = sample.info.get("scene_scale")
    found = {} if unit is None else {"scene_scale": unit}
    known = sample.info.get("scene_from_recording")
    if known is None:
        return found
    R, t = np.asarray(known["R"]), np.asarray(known["t"])
    return found | {
        "scene_from_recording": {
            "scale": known["scale"],
            "R": (turn[:3, :3] @ R).tolist(),
            "t": (turn[:3, :3] @ t).tolist(),
        }
    }


def finish(
    config: Any,
    workdir: Workdir,
    generator: Generator,
    count: int,
    shown: dict[str, Path],
    psnr: list[float],
) -> None:
    """Summary and report."""
    metrics = {"samples": float(count)}
    if psnr:
        metrics["synth/psnr"] = float(np.mean(psnr))
    artefacts = {"samples": "samples", "report": "report.html"}
    if shown:
        write_bytes_atomic(workdir / "views.png", next(iter(shown.values())).read_bytes())
        artefacts["views"] = "views.png"
    rig = generator.rig
    cameras = (
        "the source's own, which the network was told"
        if generator.posed
        else f"{generator.note}. Rig learned: {rig_words(rig)}"
    )
    kept = "Slot 0 as written is the reference itself, not the view shown here as generated."
    text = Text(
        "Views are generated from one picture; they are guesses. Figures compare them with the "
        f"source's own views of the same instant. Cameras: {cameras}. "
        + (kept if generator.generate.keep_reference else "")
    )
    blocks = [
        text,
        Table(["figure", "value"], [[k, v] for k, v in metrics.items()]),
        *[Picture(path, caption) for caption, path in shown.items()],
        spread_table(rig),
    ]
    workdir.summary(
        finished=True,
        steps=count,
        metrics=metrics,
        artefacts=artefacts,
        inputs={"samples": str(config.samples), "mvdiff": str(config.mvdiff)},
    )
    write_report(
        workdir.path, title="Generated samples", sections=[Section("Generated views", blocks)]
    )


# --- from fits -----------------------------------------------------------------------------------


def _opened(config: Any) -> tuple[from_fits.RigSettings, FitRun, list[tuple[int, Fitted]]]:
    """Settings, fits, and (number of the new sample, fitted frame) of all that is asked for."""
    if config.mvdiff:
        raise ConfigError(
            "samples come from fits or from a network",
            where=f"config.fits={config.fits}, config.mvdiff={config.mvdiff}",
            fix="leave one of the two out",
        )
    settings = from_fits.RigSettings(
        rig=str(config.rig),
        further=config.further,
        elevations_deg=tuple(float(e) for e in config.elevations),
        size=config.size,
        zoom=config.zoom,
        heading=config.heading,
        reference=config.reference,
        least_iou=config.least_iou,
        seed=config.seed,
        implementation=config.render,
    )
    settings.check()
    from_fits.rig_cameras(settings)  # whether there is such a rig
    run = open_fits(config.fits, config.samples)
    place = {name: i for i, name in enumerate(run.samples.ids("all"))}
    wanted = [i for i in select(run.samples, config.split, config.frames) if i in run.items]
    todo = [(place[i], run.items[i]) for i in wanted[: config.limit or None]]
    if not todo:
        raise ConfigError(
            "none of these frames was fitted",
            where=f"config.split={config.split}, config.frames={config.frames!r}",
            expected=f"some of the {len(run.items)} frames of {run.path}",
            fix="--config.split=all, or fit those frames",
        )
    bad = [f for _, f in todo if f.hidden and f.hidden["iou"] < settings.least_iou]
    if len(bad) == len(todo):
        raise ConfigError(
            "every fit is bad: no sample would be left",
            where=f"config.least_iou={settings.least_iou:g}",
            expected="hidden cameras whose silhouettes the fit meets",
            found=f"IoU {max(f.hidden['iou'] for f in bad):.3f} in the best of {len(bad)} frames",
            fix="look at the report of the fit: python -m mouselift_jax check RECORDING; or "
            "--config.least_iou lower",
        )
    return settings, run, todo


def _plan_fits(config: Any, workdir: Path) -> Plan:
    settings, run, todo = _opened(config)
    done = [n for n, _ in todo if (workdir / "samples" / sample_id(n)).is_dir()]
    bad = [f for _, f in todo if f.hidden and f.hidden["iou"] < settings.least_iou]
    cameras, n_rig = from_fits.rig_cameras(settings)
    blind = unjudged([f for _, f in todo])
    notes = []
    if bad:
        least = settings.least_iou
        notes.append(f"{len(bad)} frames are left out: hidden cameras' IoU below {least:g}")
    if blind:
        notes.append(f"{len(blind)} frames were not judged: no camera was hidden from their fit")
    if spoilt := [f for _, f in todo if f.spoilt]:
        notes.append(f"{len(spoilt)} frames' hidden cameras have no IoU that is a number")
    return Plan(
        stage="synth",
        reads=[str(run.path), str(run.samples.path)],
        writes=[f"{workdir}/samples/", f"{workdir}/report.html"],
        steps=f"{len(todo)} fitted frames, each drawn from {cameras.batch_shape[0]} cameras "
        f"({n_rig} of the rig {settings.rig!r}) at {settings.size} px",
        skipped=[f"{len(done)} samples that are whole"] if done else [],
        notes=notes,
    )


def _run_fits(config: Any, workdir: Workdir) -> None:
    """Draw every fitted frame that is not there yet from the rig."""
    settings, run, todo = _opened(config)
    from_fits.check_pixels(run, todo[0][1], settings.implementation)
    make = from_fits.Maker(settings, run)
    sheets = {n: workdir / SHEETS / f"{sample_id(n)}.png" for n, _ in todo}
    manifest = from_fits.manifest_of(settings, run, make.cameras, make.n_rig)
    with SampleWriter(workdir / "samples", manifest) as writer:
        left = [(n, fitted) for n, fitted in todo if sample_id(n) not in writer.done]
        style, done = workdir.options.progress, len(todo) - len(left)
        drawn = 0
        with Progress(len(todo), unit="sample", done=done, style=style) as progress:
            for number, fitted in left:
                pictures = make(writer, number, fitted)
                if pictures is not None and done + drawn < SHOWN:
                    drawn += 1
                    labels = [f"{'rig' if i < make.n_rig else 'further'} {i}" for i in range(12)]
                    shown, _ = composite(pictures[:12], np.ones(3, np.float32))
                    sheet = contact_sheet(
                        list(shown), labels=labels[: len(shown)], size=128, columns=6
                    )
                    save_png(sheets[number], sheet)
                progress.update()
        splits = {name: s for s in ("train", "val") for name in run.samples.ids(s)}
        written = writer.finish(
            lambda rows: [splits.get(row["source"], "gap") for row in rows],
            numbers=[n for n, _ in todo],
        )
    shown = {
        f"{sample_id(n)}: drawn from the fit of {run.samples.caption(f.id)}": sheets[n]
        for n, f in todo
        if sheets[n].exists()
    }
    finish_rig_set(workdir, make, [f for _, f in todo], written, shown)
