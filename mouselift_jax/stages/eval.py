"""Each camera hidden in turn and drawn by fit, network and baselines: one table, with intervals."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.batches.pictures import composite
from mouselift_jax.data.crop import resize
from mouselift_jax.data.inputs import must_exist, resolve_samples
from mouselift_jax.data.samples.sample_set import Sample, SampleSet
from mouselift_jax.errors import ConfigError, LayoutError, nearest
from mouselift_jax.files import write_json_atomic, write_text_atomic
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.pipelines import judge as judges
from mouselift_jax.pipelines.fit import FitSettings
from mouselift_jax.pipelines.judge import METHODS, Judge, Judged, View
from mouselift_jax.report.html import Picture, Section, Table, Text, write_report
from mouselift_jax.report.pictures import Sheet, around_the_animal, cut, save_png, strip
from mouselift_jax.report.scores import (
    FIGURES,
    HEADERS,
    per_sample,
    shown_figures,
    summarise,
    verdicts,
)
from mouselift_jax.report.verdict import Verdict, outcome_of
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.progress import Progress
from mouselift_jax.runs.record import read_json
from mouselift_jax.stages.harness.plan import Plan
from mouselift_jax.stages.harness.selection import check_sides, select, stored_sides, time_block
from mouselift_jax.weights.pretrained import find_component, load_pretrained

FIT = (
    "python launch.py --config=configs/fit.py:fast --config.samples={config.samples} "
    "--workdir={beside}/fit"
)
INFER = (
    "python launch.py --config=configs/infer.py{tiny} --config.samples={config.samples} "
    "--config.gslrm={config.gslrm} --workdir={beside}/infer"
)
NEXT = (INFER, FIT)

COLUMNS = ("sample", "frame", "camera", "method", *FIGURES, "mean_color_psnr")


def next_after(config: Any, summary: dict[str, Any]) -> tuple[str, ...]:
    """The network where it was judged and is worth it; else the fit."""
    if "gslrm" not in methods_of(config) or outcome_of(summary) != "better":
        return (FIT,)
    loses = summary.get("metrics", {}).get("gslrm_minus_fit/iou_high", 0.0) < 0
    return (FIT, INFER) if loses else (INFER,)


def methods_of(config: Any) -> list[str]:
    """The methods that a config names; the network only where there is one."""
    names = [name.strip() for name in str(config.methods).split(",") if name.strip()]
    wrong = [name for name in names if name not in METHODS]
    if wrong or not names:
        raise ConfigError(
            "no such method" if wrong else "no method is named",
            where=f"config.methods={config.methods}",
            expected=f"some of {','.join(METHODS)}",
            fix=nearest(wrong[0], METHODS) if wrong else f"--config.methods={','.join(METHODS)}",
        )
    names = list(dict.fromkeys(names))
    if config.gslrm:
        return names
    left = [name for name in names if name != "gslrm"]
    if not left:
        raise ConfigError(
            "the network to judge is not given",
            where="config.gslrm",
            fix="--config.gslrm=DIR: a gslrm run or converted weights",
        )
    return left


class Folds:
    """Samples, cut into inputs and held-out views."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.set = SampleSet.open(resolve_samples(config.samples))
        ids = select(self.set, config.split, config.frames)
        self.methods = methods_of(config)
        self.size, self.n_inputs = 0, config.n_inputs
        self.stored = max(stored_sides(self.set, ids[0]), default=0)
        if "gslrm" in self.methods:
            must_exist(config.gslrm, "gslrm")
            trained = (read_json(Path(config.gslrm) / "config.json") or {}).get("data") or {}
            self.size = config.size or int(trained.get("size") or 0)
            sides = (self.size,) if self.size else stored_sides(self.set, ids[0])
            check_sides(config.gslrm, *sides)
            self.n_inputs = config.n_inputs or int(trained.get("n_inputs") or 0)
        self.extra = None
        if config.heldout:
            folder = must_exist(config.heldout, "heldout")
            names = tuple(sorted(p.name for p in folder.glob("frame_*") if p.is_dir()))
            self.extra = SampleSet(folder, {}, {"all": names})
            by_frame = dict(zip(self.set.ids("all"), self.set.frames("all"), strict=True))
            ids = [i for i in ids if f"frame_{by_frame[i]:06d}" in names]
            if not ids:
                raise LayoutError(
                    "no sample's frame has held-out pictures",
                    where=folder,
                    found=names[:5],
                    fix="--config.heldout=FOLDER with frame_NNNNNN/ of frames in the sample set",
                )
        if config.limit and len(ids) > config.limit:
            ids = [ids[i] for i in np.linspace(0, len(ids) - 1, config.limit).astype(int)]
        self.ids = ids

    def of(self, sample_id: str) -> Iterator[tuple[list[View], list[View]]]:
        """(inputs, held-out views) of one sample, one pair a lift."""
        sample = self.set.load(sample_id)
        if sample.cameras is None or not sample.has_alpha:
            raise LayoutError(
                "evaluation needs cameras and masks (alpha)",
                where=self.set.path / sample_id,
                fix="make the samples with configs/prepare.py",
            )
        views = views_of(sample)
        if self.extra is not None:
            yield self._inputs(views), self._extra_views(sample)
            return
        numbers = [v.number for v in views]
        wanted = [int(c) for c in self.config.heldout_cameras] or numbers
        missing = sorted(set(wanted) - set(numbers))
        if missing:
            raise ConfigError(
                "the sample has no such camera",
                where="config.heldout_cameras",
                expected=f"some of {numbers}",
                found=missing,
                fix="leave heldout_cameras out to hold out each camera in turn",
            )
        for number in wanted:
            others = [v for v in views if v.number != number]
            yield self._inputs(others), [v for v in views if v.number == number]

    def for_the_network(self, view: View) -> View:
        """A view at the size that the network takes."""
        if not self.size or view.image.shape[:2] == (self.size, self.size):
            return view
        image, camera = resize(view.image, view.camera, self.size, self.size)
        mask, _ = resize(view.mask[..., 0], view.camera, self.size, self.size)
        return View(image, mask[..., None], camera, view.number)

    def _inputs(self, views: list[View]) -> list[View]:
        if self.n_inputs > len(views):
            raise ConfigError(
                "fewer views are left than the network gets",
                where="config.n_inputs",
                expected=f"at most {len(views)}",
                found=self.n_inputs,
                fix="a smaller n_inputs: one view is held out",
            )
        return views[: self.n_inputs] if self.n_inputs else views

    def _extra_views(self, sample: Sample) -> list[View]:
        """The extra cameras' pictures of this frame, moved into the sample's world."""
        moved = sample.info.get("scene_from_recording")
        if not moved:
            raise LayoutError(
                "the sample does not say how its world was moved",
                where=sample.id,
                expected="scene_from_recording in its camera file",
                fix="make the samples again with configs/prepare.py",
            )
        similarity = Similarity(moved["scale"], np.array(moved["R"]), np.array(moved["t"]))
        extra = self.extra.load(f"frame_{sample.frame:06d}")
        cameras = extra.cameras.transformed(similarity)
        return views_of(dataclasses.replace(extra, cameras=cameras))


def views_of(sample: Sample) -> list[View]:
    """The views of a sample on white, as they are stored."""
    images, masks = composite(sample.images_rgba, np.ones(3, np.float32))
    return [
        View(images[v], masks[v], sample.cameras[v], int(sample.camera_ids[v]))
        for v in range(len(images))
    ]


# --- the stage -----------------------------------------------------------------------------------


def _score_path(workdir: Path, sample_id: str) -> Path:
    return workdir / "scores" / f"{sample_id.replace('/', '_')}.json"


def _is_judged(workdir: Path, sample_id: str) -> bool:
    path = _score_path(workdir, sample_id)
    return path.exists() and path.with_suffix(".png").exists()


def plan(config: Any, workdir: Path) -> Plan:
    """What a run would do."""
    folds = Folds(config)
    reads = [str(folds.set.path)]
    notes = [_resolution(folds)]
    if "gslrm" in folds.methods:
        weights, kind = find_component(must_exist(config.gslrm, "gslrm"), "gslrm")
        reads.append(f"{weights} ({kind} weights)")
        if config.split != "val":
            notes.append(f"split {config.split!r}: samples the network was trained on are judged")
    elif "gslrm" in config.methods:
        notes.append("no network is judged: --config.gslrm=DIR gives one")
    done = sum(_is_judged(workdir, i) for i in folds.ids)
    return Plan(
        stage="eval",
        reads=reads,
        writes=[f"{workdir}/{n}" for n in ("scores.csv", "summary.json", "report.html")],
        steps=f"{len(folds.ids)} samples, each camera hidden in turn, drawn by "
        f"{', '.join(folds.methods)}",
        skipped=[f"{done} sample(s) that are judged already"] if done else [],
        notes=notes,
    )


def _resolution(folds: Folds) -> str:
    given = f"; the network is given {folds.size} px" if folds.size else ""
    return f"every figure is taken at the samples' {folds.stored} px{given}"


def run(config: Any, workdir: Workdir) -> None:
    """Judge every sample that is not judged, then tabulate."""
    folds = Folds(config)
    left = [i for i in folds.ids if not _is_judged(workdir.path, i)]
    if left:
        judge = Judge(_methods(config, folds))
        done = len(folds.ids) - len(left)
        style = workdir.options.progress
        with Progress(len(folds.ids), unit="sample", done=done, style=style) as progress:
            for sample_id in left:
                judged = [j for fold in folds.of(sample_id) for j in judge(*fold)]
                _keep(workdir.path, folds, sample_id, judged)
                progress.update()
    finish(config, workdir, folds)


def _methods(config: Any, folds: Folds) -> dict[str, judges.Method]:
    made: dict[str, judges.Method] = {}
    for name in folds.methods:
        if name == "gslrm":
            model, params = load_pretrained(
                config.gslrm, "gslrm", checkpoint=config.gslrm_checkpoint
            )
            model = model.clone(config=dataclasses.replace(model.config, dtype=config.dtype))
            made[name] = judges.Network(
                model, params, resized=folds.for_the_network, implementation=config.render
            )
        elif name == "fit":
            settings = FitSettings(**config.fit, seed=config.seed, implementation=config.render)
            made[name] = judges.Fitted(settings)
        else:
            made[name] = {"hull": judges.hull, "nearest": judges.nearest}[name]
    return made


def _keep(workdir: Path, folds: Folds, sample_id: str, judged: list[Judged]) -> None:
    """Write one sample's rows, and its picture before them: a row means that both are there."""
    frames = dict(zip(folds.set.ids("all"), folds.set.frames("all"), strict=True))
    about = {"sample": sample_id, "frame": frames[sample_id]}
    rows = [
        {**about, "camera": one.target.number, "method": method, **values}
        for one in judged
        for method, values in one.figures.items()
    ]
    failed = [
        {**about, "camera": one.target.number, "method": method, "failed": why}
        for one in judged
        for method, why in one.failed.items()
    ]
    path = _score_path(workdir, sample_id)
    save_png(path.with_suffix(".png"), _compared(judged, folds.methods))
    write_json_atomic(path, rows + failed)


def _compared(judged: list[Judged], methods: Sequence[str]) -> Sheet:
    """The hidden views of one sample, cut to the animal: the truth, then every method."""
    shape = judged[0].target.image.shape
    shown = [one for one in judged if one.target.image.shape == shape]
    masks = np.stack([one.target.mask[..., 0] for one in shown])
    corners, side = around_the_animal(masks, margin=0.15)
    blank = np.ones(shape, np.float32)
    of = f" ({side} of {shape[1]} px)" if side < shape[1] else ""
    rows = [(f"truth{of}", [one.target.image for one in shown])]
    for name in methods:
        drawn = [one.predictions[name].rgb if name in one.predictions else blank for one in shown]
        rows.append((name, drawn))
    best = next(m for m in methods if any(m in one.figures for one in shown))
    labels = [
        f"camera {o.target.number}: {o.figures[best]['psnr']:.1f} dB, {o.figures[best]['iou']:.2f}"
        if best in o.figures
        else f"camera {o.target.number}: {best} failed"
        for o in shown
    ]
    cells = [(t, [cut(p, c, side) for p, c in zip(ps, corners, strict=True)]) for t, ps in rows]
    return strip(cells, labels=labels, size=max(128, min(256, side)))


def finish(config: Any, workdir: Workdir, folds: Folds) -> None:
    """scores.csv, summary and report."""
    every = [row for i in folds.ids for row in json.loads(_score_path(workdir.path, i).read_text())]
    rows = [row for row in every if "failed" not in row]
    failed = [row for row in every if "failed" in row]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomic(workdir / "scores.csv", text.getvalue())
    block = _block(workdir, folds, config.block_s)
    for row in failed:
        workdir.warn(
            f"{row['method']} could make nothing of {row['sample']} without camera "
            f"{row['camera']}, which is left out of its means: {row['failed']}"
        )
    if "gslrm" in config.methods and "gslrm" not in folds.methods:
        workdir.warn("no network was judged: --config.gslrm=DIR gives one, in another --workdir")
    if "gslrm" in folds.methods and config.split != "val":
        workdir.warn(
            f"split {config.split!r} holds training samples: these figures flatter the network"
        )
    table, metrics = summarise(rows, folds.methods, block)
    cameras = ", ".join(str(c) for c in sorted({row["camera"] for row in rows}))
    where = f"cameras {cameras} in turn, {folds.stored} px"
    said = verdicts(rows, folds.methods, where=where, block=block)
    (workdir.warn if said[0].outcome == "worse" else lambda text: None)(said[0].text)
    summary = {
        "steps": len(folds.ids),
        "metrics": metrics,
        "artefacts": {"scores": "scores.csv", "report": "report.html"},
        "inputs": {"samples": str(config.samples), "gslrm": str(config.gslrm or "none")},
        "verdict": said[0].record(),
    }
    workdir.summary(finished=False, **summary)  # the report reads it
    write_report(
        workdir.path,
        title="Hidden views",
        intro=f"{len(folds.ids)} samples of split {config.split!r}; each camera is hidden in turn "
        f"and drawn from the others; {_resolution(folds)}. Means with 95 % bootstrap intervals "
        f"over frames (blocks of {block} samples).",
        sections=_sections(config, folds, rows, table, said),
    )
    workdir.summary(finished=True, **summary)


def _block(workdir: Workdir, folds: Folds, seconds: float) -> int:
    """How many consecutive samples are drawn together."""
    block, is_short = time_block(folds.set, folds.ids, seconds)
    if is_short:
        workdir.warn(
            f"{len(folds.ids)} samples are too few blocks of {seconds:g} s: neighbouring frames "
            "resemble one another, so the intervals are too narrow"
        )
    return block


def _sections(
    config: Any, folds: Folds, rows: list[dict], table: Table, said: list[Verdict]
) -> list[Section]:
    first = folds.methods[0]
    by_camera = [
        [camera, method, *map(str, shown_figures(own))]
        for camera in sorted({row["camera"] for row in rows})
        for method in folds.methods
        if (own := [r for r in rows if r["camera"] == camera and r["method"] == method])
    ]
    quality = per_sample(rows, first, "psnr")
    order = sorted(quality, key=quality.get)
    worst = order[: config.pictures]
    best = [i for i in order[::-1] if i not in worst][: config.pictures]  # each is shown once

    def shown(ids: list[str]) -> list[Any]:
        about = f"above each: camera, PSNR and silhouette IoU of {first}"
        return [
            Picture(
                _score_path(Path(), i).with_suffix(".png").as_posix(),
                f"{i}: {quality[i]:.2f} dB; {about}",
            )
            for i in ids
        ]

    iou = per_sample(rows, first, "iou")
    frames = dict(zip(folds.set.ids("all"), folds.set.frames("all"), strict=True))
    by_frame = [[frames[i], i, quality[i], iou[i]] for i in folds.ids if i in quality][:400]
    return [
        Section("Which method?", [*[Text(v.text) for v in said], table]),
        Section("Worst samples" if best else "Samples, worst first", shown(worst)),
        *([Section("Best samples", shown(best))] if best else []),
        Section("Each hidden camera", [Table(["camera", "method", *HEADERS], by_camera)]),
        Section(
            f"Each frame, by {first}",
            [
                Table(["frame", "sample", "PSNR (dB)", "silhouette IoU"], by_frame),
                Text("All rows, also of the other methods: scores.csv."),
            ],
        ),
    ]
