"""A checkpoint judged on views it has not seen, beside baselines, with intervals."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.batches.pictures import composite, resized
from mouselift_jax.data.inputs import must_exist, resolve_samples
from mouselift_jax.data.samples.sample_set import Sample, SampleSet
from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.files import write_json_atomic, write_text_atomic
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.pipelines.judge import NETWORK, Judge, Judged, View
from mouselift_jax.report.html import Picture, Section, Table, Text, write_report
from mouselift_jax.report.pictures import comparison_rows, save_png
from mouselift_jax.report.statistics import mean_interval
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.progress import Progress
from mouselift_jax.runs.record import read_json
from mouselift_jax.stages.harness.plan import Plan
from mouselift_jax.stages.harness.selection import check_sides, frame_times, select, stored_sides
from mouselift_jax.weights.pretrained import find_component, load_pretrained

NEXT = (
    "python launch.py --config=configs/infer.py{tiny} --config.samples={config.samples} "
    "--config.gslrm={config.gslrm} --workdir={beside}/infer",
)

FIGURES = ("psnr", "ssim", "iou", "interior_psnr")
COLUMNS = ("sample", "frame", "camera", "method", *FIGURES, "mean_color_psnr")
MIN_BLOCKS = 5  # fewer blocks make no interval
NAMES = {"visual hull": "hull", "nearest view": "nearest"}  # of baselines in summary.json


class Folds:
    """Samples, cut into inputs and held-out views."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.set = SampleSet.open(resolve_samples(config.samples))
        ids = select(self.set, config.split, config.frames)
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
        views = views_of(sample, self.size)
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
        return views_of(dataclasses.replace(extra, cameras=cameras), 0)


def views_of(sample: Sample, size: int) -> list[View]:
    """The views of a sample on white, resized with their cameras."""
    rgba, cameras = resized(sample.images_rgba, sample.cameras, size or None)
    images, masks = composite(rgba, np.ones(3, np.float32))
    return [
        View(images[v], masks[v], cameras[v], int(sample.camera_ids[v])) for v in range(len(images))
    ]


# --- the stage -----------------------------------------------------------------------------------


def _score_path(workdir: Path, sample_id: str) -> Path:
    return workdir / "scores" / f"{sample_id.replace('/', '_')}.json"


def _is_judged(workdir: Path, sample_id: str) -> bool:
    path = _score_path(workdir, sample_id)
    return path.exists() and path.with_suffix(".png").exists()


def plan(config: Any, workdir: Path) -> Plan:
    """What a run would do."""
    weights, kind = find_component(must_exist(config.gslrm, "gslrm"), "gslrm")
    folds = Folds(config)
    done = sum(_is_judged(workdir, i) for i in folds.ids)
    notes = []
    if config.split != "val":
        notes.append(f"split {config.split!r}: samples the network was trained on are judged too")
    return Plan(
        stage="eval",
        reads=[str(folds.set.path), f"{weights} ({kind} weights)"],
        writes=[f"{workdir}/{n}" for n in ("scores.csv", "summary.json", "report.html")],
        steps=f"{len(folds.ids)} samples",
        skipped=[f"{done} sample(s) that are judged already"] if done else [],
        notes=notes,
    )


def run(config: Any, workdir: Workdir) -> None:
    """Judge every sample that is not judged, then tabulate."""
    must_exist(config.gslrm, "gslrm")
    folds = Folds(config)
    left = [i for i in folds.ids if not _is_judged(workdir.path, i)]
    if left:
        model, params = load_pretrained(config.gslrm, "gslrm", checkpoint=config.gslrm_checkpoint)
        model = model.clone(config=dataclasses.replace(model.config, dtype=config.dtype))
        judge = Judge(model, params, baselines=config.baselines, implementation=config.render)
        done = len(folds.ids) - len(left)
        style = workdir.options.progress
        with Progress(len(folds.ids), unit="sample", done=done, style=style) as progress:
            for sample_id in left:
                judged = _judge(judge, folds, sample_id)
                _keep(workdir.path, folds, sample_id, judged)
                progress.update()
    finish(config, workdir, folds)


def _judge(judge: Judge, folds: Folds, sample_id: str) -> list[Judged]:
    judged = []
    for inputs, targets in folds.of(sample_id):
        gaussians = judge.gaussians(inputs)
        judged += [judge(inputs, target, gaussians) for target in targets]
    return judged


def _keep(workdir: Path, folds: Folds, sample_id: str, judged: list[Judged]) -> None:
    """Write one sample's rows, and its picture before them: a row means that both are there."""
    frames = dict(zip(folds.set.ids("all"), folds.set.frames("all"), strict=True))
    rows = [
        {"sample": sample_id, "frame": frames[sample_id], "camera": one.target.number,
         "method": method, **values}
        for one in judged
        for method, values in one.figures.items()
    ]  # fmt: skip
    path = _score_path(workdir, sample_id)
    shape = judged[0].target.image.shape
    shown = [one for one in judged if one.target.image.shape == shape]
    labels = [
        f"cam {o.target.number}: {o.figures[NETWORK]['psnr']:.1f} dB, "
        f"{o.figures[NETWORK]['iou']:.2f}"
        for o in shown
    ]
    picture = comparison_rows(
        np.stack([o.target.image for o in shown]),
        np.stack([o.predictions[NETWORK].rgb for o in shown]),
        np.stack([o.target.mask for o in shown]),
        np.stack([o.predictions[NETWORK].alpha for o in shown]),
        labels=labels,
        size=max(128, min(256, shape[0])),
    )
    save_png(path.with_suffix(".png"), picture)
    write_json_atomic(path, rows)


def finish(config: Any, workdir: Workdir, folds: Folds) -> None:
    """scores.csv, summary and report."""
    rows = [row for i in folds.ids for row in json.loads(_score_path(workdir.path, i).read_text())]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomic(workdir / "scores.csv", text.getvalue())
    block = _block(folds, config.block_s)
    if len(folds.ids) < MIN_BLOCKS * block:
        workdir.warn(
            f"{len(folds.ids)} samples are less than {MIN_BLOCKS} blocks of {config.block_s:g} s: "
            "neighbouring frames resemble one another, so the intervals are too narrow"
        )
        block = max(1, len(folds.ids) // MIN_BLOCKS)
    table, metrics = summarise(rows, block)
    if config.split != "val":
        workdir.warn(
            f"split {config.split!r} holds training samples: these figures flatter the network"
        )
    if metrics.get("gain/psnr_low", 1.0) <= 0:
        workdir.warn(
            "the network is not surely better than the best baseline (the interval of the "
            "difference reaches 0): train longer, or look at the worst samples below"
        )
    summary = {
        "steps": len(folds.ids),
        "metrics": metrics,
        "artefacts": {"scores": "scores.csv", "report": "report.html"},
        "inputs": {"samples": str(config.samples), "gslrm": str(config.gslrm)},
    }
    workdir.summary(finished=False, **summary)  # the report reads it
    write_report(
        workdir.path,
        title="Held-out views",
        intro=f"{len(folds.ids)} samples of split {config.split!r}; means over held-out views "
        f"with 95 % bootstrap intervals over frames (blocks of {block} samples).",
        sections=_sections(config, folds, rows, table),
    )
    workdir.summary(finished=True, **summary)


def _block(folds: Folds, seconds: float) -> int:
    """How many consecutive samples make `seconds`, at least 1; 1 where times are unknown."""
    known = frame_times(folds.set)
    times = np.sort([known[i][1] for i in folds.ids])
    steps = np.diff(times[np.isfinite(times)])
    steps = steps[steps > 0]
    return max(1, round(seconds / float(np.median(steps)))) if len(steps) else 1


def per_sample(rows: Sequence[dict], method: str, figure: str) -> dict[str, float]:
    """Mean of a figure over the held-out views of each sample."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["method"] == method:
            values.setdefault(row["sample"], []).append(row[figure])
    return {k: float(np.nanmean(v)) if np.isfinite(v).any() else np.nan for k, v in values.items()}


def summarise(rows: Sequence[dict], block: int) -> tuple[Table, dict[str, float]]:
    """The table methods x figures, and the scalars of the summary."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    metrics: dict[str, float] = {}
    lines = []
    for method in methods:
        line: list[Any] = [method]
        prefix = "heldout" if method == NETWORK else NAMES.get(method, method)
        for figure in FIGURES:
            values = np.array(list(per_sample(rows, method, figure).values()))
            interval = mean_interval(values, block=block)
            line.append(str(interval))
            metrics[f"{prefix}/{figure}"] = interval.mean
            if method == NETWORK:
                metrics[f"{prefix}/{figure}_low"] = interval.low
                metrics[f"{prefix}/{figure}_high"] = interval.high
        lines.append(line)
    flat = per_sample(rows, NETWORK, "mean_color_psnr")
    flat_interval = mean_interval(np.array(list(flat.values())), block=block)
    lines.append(["true mean colour", "\u2013", "\u2013", "\u2013", str(flat_interval)])
    metrics["heldout/mean_color_psnr"] = flat_interval.mean
    others = [m for m in methods if m != NETWORK]
    if others:
        best = max(others, key=lambda m: metrics[f"{NAMES.get(m, m)}/psnr"])
        line = [f"network minus {best}"]
        for figure in FIGURES:
            ours, theirs = (per_sample(rows, m, figure) for m in (NETWORK, best))
            difference = mean_interval(np.array([ours[k] - theirs[k] for k in ours]), block=block)
            line.append(str(difference))
            metrics[f"gain/{figure}"] = difference.mean
            metrics[f"gain/{figure}_low"] = difference.low
        lines.append(line)
    headers = ["method", "PSNR (dB)", "SSIM", "mask IoU", "interior PSNR (dB)"]
    caption = (
        "Mean over samples [95 % interval]. PSNR counts the white background; interior PSNR counts "
        "only pixels that are animal in both pictures and 2 px from either outline, and is to be "
        "read against painting them in their true mean colour."
    )
    metrics = {k: v for k, v in metrics.items() if np.isfinite(v)}
    return Table(headers, lines, caption), metrics


def _sections(config: Any, folds: Folds, rows: list[dict], table: Table) -> list[Section]:
    cameras = sorted({row["camera"] for row in rows})
    by_camera = []
    for camera in cameras:
        own = [r for r in rows if r["camera"] == camera and r["method"] == NETWORK]
        values = (str(mean_interval(np.array([r[f] for r in own]))) for f in FIGURES)
        by_camera.append([camera, *values])
    quality = per_sample(rows, NETWORK, "psnr")
    order = sorted(quality, key=quality.get)
    worst = order[: config.pictures]
    best = [i for i in order[::-1] if i not in worst][: config.pictures]  # each is shown once

    def shown(ids: list[str]) -> list[Any]:
        blocks: list[Any] = []
        for i in ids:
            picture = _score_path(Path(), i).with_suffix(".png")
            blocks += [
                Picture(
                    picture.as_posix(),
                    f"{i}: {quality[i]:.2f} dB; above each: camera, PSNR, mask IoU",
                )
            ]
        return blocks

    iou = per_sample(rows, NETWORK, "iou")
    frames = dict(zip(folds.set.ids("all"), folds.set.frames("all"), strict=True))
    by_frame = [[frames[i], i, quality[i], iou[i]] for i in folds.ids][:400]
    headers = ["PSNR (dB)", "SSIM", "mask IoU", "interior PSNR (dB)"]
    return [
        Section("Against baselines", [table]),
        Section("Each held-out camera", [Table(["camera", *headers], by_camera)]),
        Section("Worst samples" if best else "Samples, worst first", shown(worst)),
        *([Section("Best samples", shown(best))] if best else []),
        Section(
            "Each frame",
            [
                Table(["frame", "sample", "PSNR (dB)", "mask IoU"], by_frame),
                Text("All rows, also of the baselines: scores.csv."),
            ],
        ),
    ]
