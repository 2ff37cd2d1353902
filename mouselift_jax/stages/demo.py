"""The stages one after the other on a procedural recording, judged from cameras of no video."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.batches.pictures import composite
from mouselift_jax.data.png import read_picture
from mouselift_jax.data.samples.camera_file import parse_cameras
from mouselift_jax.data.samples.rig_file import load_rig, rig_words
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.data.synthetic.recording import write_recording
from mouselift_jax.files import write_bytes_atomic
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.pipelines.judge import Judge, Judged, View, drawer, hull
from mouselift_jax.report.html import Picture, Section, Splats, Table, Text, Video, write_report
from mouselift_jax.report.pictures import Sheet, comparison_rows
from mouselift_jax.report.scores import summarise, verdicts
from mouselift_jax.report.verdict import Verdict
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.record import read_json, read_summary
from mouselift_jax.splats import load_ply
from mouselift_jax.splats.gaussians import padded
from mouselift_jax.stages import fit, gslrm, infer, mvdiff, prepare, synth
from mouselift_jax.stages.harness.plan import Plan

log = logging.getLogger("mouselift_jax")
NEXT = ("python -m mouselift_jax view {workdir}/fit",)

STAGES = {
    "prepare": prepare, "fit": fit, "gslrm": gslrm,
    "infer": infer, "mvdiff": mvdiff, "synth": synth,
}  # fmt: skip
# What each stage reads of the others: key -> folder in the demo's workdir.
WIRES = {
    "prepare": {"recording": "recording"},
    "fit": {"samples": "prepare"},
    "film": {"samples": "prepare"},
    "gslrm": {"samples": "prepare"},
    "infer": {"samples": "prepare", "gslrm": "gslrm"},
    "one_rig": {"fits": "film"},
    "mvdiff": {"samples": "one_rig"},
    "synth": {"samples": "one_rig", "mvdiff": "mvdiff"},
    "gslrm_synth": {"samples": "synth", "init_from": "gslrm"},
    "photo": {"image": "photo.png", "mvdiff": "mvdiff", "gslrm": "gslrm"},
}


def wired(config: Any, workdir: Path) -> dict[str, Any]:
    """The config of every stage, with its inputs in the demo's folder."""
    configs = {}
    for name, wires in WIRES.items():
        configs[name] = config[name].copy_and_resolve_references()
        for key, folder in wires.items():
            configs[name][key] = str(workdir / folder)
    return configs


def plan(config: Any, workdir: Path) -> Plan:
    """What a run would do."""
    done = [n for n in WIRES if read_summary(workdir / n).get("finished")]
    return Plan(
        stage="demo",
        writes=[f"{workdir}/{n}/" for n in ("recording", *WIRES)] + [f"{workdir}/report.html"],
        steps=f"a recording of {config.recording.frames} frames, then {', '.join(WIRES)}",
        memory="below 6 GiB",
        skipped=[f"{name}: finished" for name in done],
        notes=["report.html is there as soon as the first frames are fitted, and then grows"],
    )


def run(config: Any, workdir: Workdir) -> None:
    """Every stage that is not finished; the page is written anew after each that it shows."""
    r = config.recording
    if not (workdir / "recording" / "recording.json").exists():
        log.info("recording: %d frames by six cameras", r.frames)
        write_recording(
            workdir / "recording",
            frames=r.frames,
            size=(r.width, r.height),
            seed=config.seed,
            n_heldout=r.heldout_cameras,
        )
    page = Page(config, workdir)
    for name, sub in wired(config, workdir.path.absolute()).items():
        log.info("stage %s", name)
        if name == "photo":
            take_photo(workdir.path)
        with Workdir(workdir / name, sub, workdir.options) as folder:
            STAGES[sub.stage].run(sub, folder)
        page.add(name, wired(config, workdir.path)[name])
    page.write(finished=True)


def take_photo(workdir: Path) -> None:
    """The photo of the second half: the reference view of a frame that nothing was trained on."""
    samples = SampleSet.open(workdir / "prepare" / "samples")
    name = (samples.ids("val") or samples.ids("all"))[0]
    write_bytes_atomic(workdir / "photo.png", samples.picture_paths(name)[0].read_bytes())


# --- judged from cameras of no video -------------------------------------------------------------


def splats_of(folder: Path, item_id: str) -> Any:
    """What a stage made of an item, read back."""
    alone = (folder / "splats.ply").exists()  # a single item lies in the folder itself
    return padded(load_ply(infer.place_of(folder, item_id, alone) / "splats.ply"))


def judge(
    sub: Any, workdir: Path, method: str, gaussians_of: Callable[[Any], Any], *, baseline: bool
) -> tuple[list[dict[str, Any]], list[Sheet]]:
    """Figures of every held-out view of the items of a stage, and pictures of the first frames.

    Args:
        sub: the stage's configuration.
        workdir: of the demo.
        method: the stage, as the table names it.
        gaussians_of: item -> Gaussians.
        baseline: whether the visual hull of the same views is judged too.
    """
    items, draw = infer.FromSamples(sub), drawer(sub.render)
    samples = SampleSet.open(workdir / "prepare" / "samples")
    rows, sheets = [], []
    for item_id in items.ids:
        item, seen = items.load(item_id), items.load_stored(item_id)  # the hull gets all there is
        views = [View(seen.images[v], seen.masks[v], seen.cameras[v], c)
                 for v, c in enumerate(seen.about["cameras"])]  # fmt: skip
        methods = {method: lambda _, item=item: functools.partial(draw, gaussians_of(item))}
        if baseline:
            methods["hull"] = hull
        moved = samples.camera_file(item_id)["scene_from_recording"]
        hidden = heldout_views(workdir / "recording", item.about["frame"], moved)
        judged = Judge(methods)(views, hidden)
        rows += [
            {"sample": item_id, "frame": item.about["frame"], "camera": one.target.number,
             "method": name, **figures}
            for one in judged for name, figures in one.figures.items()
        ]  # fmt: skip
        if len(sheets) < 2:
            sheets.append(_sheet(judged, method, item.about["frame"]))
    return rows, sheets


def _sheet(judged: list[Judged], method: str, frame: int) -> Sheet:
    labels = [
        f"frame {frame}, hidden camera {one.target.number}: {one.figures[method]['psnr']:.1f} dB, "
        f"IoU {one.figures[method]['iou']:.3f}"
        for one in judged
    ]
    return comparison_rows(
        np.stack([one.target.image for one in judged]),
        np.stack([one.predictions[method].rgb for one in judged]),
        np.stack([one.target.mask for one in judged]),
        np.stack([one.predictions[method].alpha for one in judged]),
        labels=labels,
    )


def heldout_views(recording: Path, frame: int, similarity: dict[str, Any]) -> list[View]:
    """Pictures of cameras of no video, their cameras moved into the sample's scene."""
    folder = recording / "heldout" / f"frame_{frame:06d}"
    record = read_json(folder / "opencv_cameras.json")
    s = {k: np.asarray(similarity[k], np.float64) for k in ("scale", "R", "t")}
    cameras = parse_cameras(record, folder).transformed(Similarity(**s))
    rgba = np.stack([read_picture(folder / f["file_path"]) for f in record["frames"]])
    images, masks = composite(rgba, np.ones(3, np.float32))
    return [View(images[v], masks[v], cameras[v], v + 1) for v in range(len(images))]


# --- the page ------------------------------------------------------------------------------------


class Page:
    """The report, which grows with the stages: first what was fitted, at last the photo."""

    def __init__(self, config: Any, workdir: Workdir) -> None:
        self._config, self._workdir = config, workdir
        self._parts: dict[str, Section] = {}
        self._said: Verdict | None = None
        self._metrics: dict[str, float] = {}
        self._artefacts = {"samples": "prepare/samples"}
        self._seconds: dict[str, float] = {}

    def add(self, name: str, sub: Any) -> None:
        """What a stage that has run adds; the page is written where it shows something new."""
        self._seconds[name] = read_summary(self._workdir / name)["wall_s"]
        made = {"fit": self._fitted, "film": self._film, "infer": self._lifted,
                "photo": self._photo}.get(name)  # fmt: skip
        if made is not None:
            self._parts[name] = made(sub)
            self.write(finished=False)
            if name == "fit":
                log.info("first splats, seen by hidden cameras: %s", self._workdir / "report.html")

    def write(self, *, finished: bool) -> None:
        """Summary and report of what there is so far."""
        times = Table(["stage", "seconds"], [[k, v] for k, v in self._seconds.items()])
        sheet = Section("Samples", [Picture("prepare/views.png", "six views of some instants")])
        sections = [*self._parts.values(), sheet, Section("Time", [times])]
        summary = {
            "steps": len(self._seconds),
            "metrics": self._metrics,
            "artefacts": {**self._artefacts, "report": "report.html"},
            "inputs": {"recording": "recording"},
            "verdict": self._said.record() if self._said else None,
        }
        self._workdir.summary(finished=False, **summary)  # the report reads it
        rest = [name for name in WIRES if name not in self._seconds]
        intro = "A procedural recording, made into samples, fitted, and learned from."
        if rest:
            intro += f" Still to come: {', '.join(rest)}; load this page again."
        write_report(self._workdir.path, title="Demo", intro=intro, sections=sections)
        self._workdir.summary(finished=finished, **summary)

    def _judged(self, sub: Any, method: str, gaussians_of: Callable, baseline: bool) -> list[Any]:
        rows, sheets = judge(sub, self._workdir.path, method, gaussians_of, baseline=baseline)
        names = [method, *(["hull"] if baseline else [])]
        table, metrics = summarise(rows, names, 1)
        cameras = sorted({row["camera"] for row in rows})
        size = f"{self._config.recording.width} x {self._config.recording.height} px"
        where = f"{len(cameras)} cameras of no video, {size}"
        said = verdicts(rows, names, where=where, block=1)[0]
        log.info("%s", said.text)
        if method == "fit":
            self._said, self._metrics = said, self._metrics | metrics
        self._metrics |= {k: v for k, v in metrics.items() if not k.startswith("heldout/")}
        return [Text(said.text), *map(Picture, sheets), table]

    def _fitted(self, sub: Any) -> Section:
        folder = self._workdir / "fit"
        blocks = self._judged(sub, "fit", lambda item: splats_of(folder, item.id), True)
        self._artefacts["ply"] = f"fit/{read_summary(folder)['artefacts']['ply']}"
        blocks.insert(1, Splats(self._artefacts["ply"], "drag to turn"))
        return Section("Fitted, without any network", blocks)

    def _film(self, sub: Any) -> Section:
        del sub
        videos = self._workdir / "film" / "videos"
        if not videos.is_dir():
            return Section("The film", [Text("One frame makes no film.")])
        shown = [videos / "turntable.mp4", *sorted(videos.glob("camera_*.mp4"))[:1]]
        self._artefacts |= {"film": "film/sequence.html", "motion": "film/motion.csv"}
        made = [
            Video(str(p.relative_to(self._workdir.path)), p.stem.replace("_", " ")) for p in shown
        ]
        text = (
            "One set of Gaussians follows the animal through consecutive frames; the lines are the "
            "tracks of 50 of them. All of it: film/sequence.html, film/motion.csv; for others: "
            "python -m mouselift_jax export --to=film, nwb, csv, glb."
        )
        tracks = Picture("film/film/tracks.png", "the tracks, seen from above")
        return Section("The film", [*made, tracks, Text(text)])

    def _lifted(self, sub: Any) -> Section:
        sub.limit, sub.split = 0, "val"
        lifter = infer.make_lifter(sub)
        blocks = self._judged(sub, "gslrm", lambda item: lifter(item)[0], True)
        made = read_summary(self._workdir / "infer")["artefacts"]
        self._artefacts["checkpoint"] = "gslrm/checkpoints"
        blocks.insert(1, Splats(f"infer/{made['ply']}", "drag to turn"))
        steps = self._config.gslrm.train.steps
        blocks.append(
            Text(
                f"A toy: half a million weights, {steps} steps. What it gains is speed; what more "
                "training would gain is more steps of `configs/gslrm.py`."
            )  # fmt: skip
        )
        return Section("A small network, seen from the same cameras", blocks)

    def _photo(self, sub: Any) -> Section:
        del sub
        return Section("From one photo: toy weights", from_photo(self._workdir.path))


def from_photo(workdir: Path) -> list[Any]:
    """The report's part about the way from one photo to Gaussians."""
    metrics = read_summary(workdir / "mvdiff").get("metrics", {})
    made = read_summary(workdir / "photo")["artefacts"]
    rig, _ = load_rig(workdir / "mvdiff/cameras.json")
    blocks: list[Any] = [
        Text(
            f"The film's fits were drawn from one rig, and a network learned it: {rig_words(rig)}. "
            "Its weights are toys. The demo has no released networks: the autoencoder was trained "
            "in some steps on these very samples, the image encoder and the prompts are random, "
            "and the UNet has had a few steps of training. This part shows that fits, one rig, "
            "photo, six views, splat and turntable hang together; what they show means nothing. "
            "Generated views against those of the fits: PSNR "
            f"{metrics.get('val/psnr', math.nan):.1f} dB, "
            f"SSIM {metrics.get('val/ssim', math.nan):.2f}."
        ),
        Picture("one_rig/views.png", "a frame of the film, its fit drawn from that rig"),
        Picture("photo.png", "the photo"),
        Picture(f"photo/{made['views']}", "its six views, and renders of the splat"),
        Picture("synth/views.png", "a sample of the set that synth made"),
    ]
    if "turntable" in made:
        blocks.append(Video(f"photo/{made['turntable']}", "turntable"))
    return [*blocks, Splats(f"photo/{made['ply']}", "drag to turn")]
