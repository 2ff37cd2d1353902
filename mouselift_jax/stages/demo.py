"""The stages one after the other on a procedural recording, judged from cameras of no video."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.data.batches.pictures import composite
from mouselift_jax.data.png import read_picture
from mouselift_jax.data.samples.camera_file import parse_cameras
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.data.synthetic.recording import write_recording
from mouselift_jax.files import write_bytes_atomic
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.report.html import (
    Finding,
    Picture,
    Section,
    Splats,
    Table,
    Text,
    Video,
    write_report,
)
from mouselift_jax.report.pictures import comparison_rows
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.record import read_json, read_summary
from mouselift_jax.splats import load_ply
from mouselift_jax.stages import fit, gslrm, infer, mvdiff, prepare, synth
from mouselift_jax.stages.harness.plan import Plan
from mouselift_jax.training import metrics as metric

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
    "gslrm": {"samples": "prepare"},
    "infer": {"samples": "prepare", "gslrm": "gslrm"},
    "mvdiff": {"samples": "prepare"},
    "synth": {"samples": "prepare", "mvdiff": "mvdiff"},
    "gslrm_synth": {"samples": "synth", "init_from": "gslrm"},
    "photo": {"image": "photo.png", "mvdiff": "mvdiff", "gslrm": "gslrm"},
}
GOALS = {"iou": 0.80, "gain": 2.0}


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
        memory="below 8 GiB",
        skipped=[f"{name}: finished" for name in done],
    )


def run(config: Any, workdir: Workdir) -> None:
    """Every stage that is not finished, then the judgement."""
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
    seconds = {}
    for name, sub in wired(config, workdir.path.absolute()).items():
        log.info("stage %s", name)
        if name == "photo":
            take_photo(workdir.path)
        with Workdir(workdir / name, sub, workdir.options) as folder:
            STAGES[sub.stage].run(sub, folder)
        seconds[name] = read_summary(workdir / name)["wall_s"]
    sub = wired(config, workdir.path)["infer"]
    sub.limit, sub.split = 0, "val"
    lifter = infer.make_lifter(sub)
    figures, pictures = judge(sub, workdir.path, lambda item: lifter(item)[0])
    fitted, looks = judge(wired(config, workdir.path)["fit"], workdir.path, from_fit(workdir.path))
    finish(config, workdir, figures, pictures, seconds, fitted_section(workdir.path, fitted, looks))


def take_photo(workdir: Path) -> None:
    """The photo of the second half: the reference view of a frame that nothing was trained on."""
    samples = SampleSet.open(workdir / "prepare" / "samples")
    name = (samples.ids("val") or samples.ids("all"))[0]
    write_bytes_atomic(workdir / "photo.png", samples.picture_paths(name)[0].read_bytes())


def from_fit(workdir: Path) -> Callable[[Any], Any]:
    """What `fit` made of an item, read back."""
    alone = (workdir / "fit" / "splats.ply").exists()  # a single item lies in the folder itself
    return lambda item: load_ply(infer.place_of(workdir / "fit", item.id, alone) / "splats.ply")


def judge(
    sub: Any, workdir: Path, gaussians_of: Callable[[Any], Any]
) -> tuple[list[dict[str, float]], list[np.ndarray]]:
    """Figures of every held-out view of the items of a stage, and pictures of the first frames."""
    items = infer.FromSamples(sub)
    from mouselift_jax.render import render

    draw = jax.jit(lambda g, c: render(g, c, implementation=sub.render))
    samples = SampleSet.open(workdir / "prepare" / "samples")
    rows, pictures = [], []
    for item_id in items.ids:
        item = items.load(item_id)
        gaussians = gaussians_of(item)
        record = samples.camera_file(item_id)
        camera, images, masks = heldout_views(
            workdir / "recording", item.about["frame"], record["scene_from_recording"]
        )
        out = jax.device_get(draw(gaussians, camera))
        inside = metric.interior_psnr(out.rgb, out.alpha, images, masks)
        figures = {
            "iou": metric.mask_iou(out.alpha, masks),
            "interior_psnr": inside.psnr,
            "mean_color_psnr": inside.mean_color_psnr,
            "psnr": metric.psnr(out.rgb, images),
            "ssim": metric.ssim(out.rgb, images),
        }
        for v in range(len(images)):
            row = {k: float(x[v]) for k, x in figures.items()}
            rows.append({"frame": item.about["frame"], "view": v, **row})
        if len(pictures) < 3:
            labels = [f"frame {item.about['frame']}, camera {v + 1}" for v in range(len(images))]
            rgb = np.clip(out.rgb, 0, 1)
            pictures.append(comparison_rows(images, rgb, masks, out.alpha, labels=labels))
    return rows, pictures


def heldout_views(
    recording: Path, frame: int, similarity: dict[str, Any]
) -> tuple[Camera, np.ndarray, np.ndarray]:
    """Cameras [V] in the sample's scene, pictures on white and masks of cameras of no video."""
    folder = recording / "heldout" / f"frame_{frame:06d}"
    record = read_json(folder / "opencv_cameras.json")
    s = {k: np.asarray(similarity[k], np.float64) for k in ("scale", "R", "t")}
    camera = parse_cameras(record, folder).transformed(Similarity(**s))
    rgba = np.stack([read_picture(folder / f["file_path"]) for f in record["frames"]])
    images, masks = composite(rgba, np.ones(3, np.float32))
    K, c2w = (jnp.asarray(x, jnp.float32) for x in (camera.K, camera.c2w))
    return Camera(K, c2w, camera.width, camera.height), images, masks


def from_photo(workdir: Path) -> list[Any]:
    """The report's part about the way from one photo to Gaussians."""
    metrics = read_summary(workdir / "mvdiff").get("metrics", {})
    made = read_summary(workdir / "photo")["artefacts"]
    blocks: list[Any] = [
        Text(
            "These are toy weights. The demo has no released networks: the autoencoder was trained "
            "for a minute on these very samples, the image encoder and the prompts are random, and "
            "the UNet has about a million weights and a minute of training. This part shows that "
            "photo, six views, splat and turntable hang together; what they show means nothing. "
            f"Generated views against the true ones: PSNR {metrics.get('val/psnr', math.nan):.1f} "
            f"dB, SSIM {metrics.get('val/ssim', math.nan):.2f}."
        ),
        Picture("photo.png", "the photo"),
        Picture(f"photo/{made['views']}", "its six views, and renders of the splat"),
        Picture("synth/views.png", "a sample of the set that synth made"),
    ]
    if "turntable" in made:
        blocks.append(Video(f"photo/{made['turntable']}", "turntable"))
    return [*blocks, Splats(f"photo/{made['ply']}", "drag to turn")]


def means_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over frames and views of the figures of `judge`."""
    return {
        k: float(np.nanmean([r[k] for r in rows])) for k in rows[0] if k not in ("frame", "view")
    }


def fitted_section(
    workdir: Path, rows: list[dict[str, float]], pictures: list[np.ndarray]
) -> Section:
    """The report's part about Gaussians without weights."""
    m = means_of(rows)
    text = (
        f"`fit` needs no network: {len({r['frame'] for r in rows})} frames, seen from cameras that "
        f"no video has: silhouette IoU {m['iou']:.3f}, interior PSNR {m['interior_psnr']:.2f} dB, "
        f"{m['interior_psnr'] - m['mean_color_psnr']:+.2f} dB against the mean colour."
    )
    log.info("%s", text)
    first = read_summary(workdir / "fit")["artefacts"]["ply"]
    splats = Splats(f"fit/{first}", "drag to turn")
    return Section("Fitted, without weights", [Text(text), *map(Picture, pictures), splats])


def finish(
    config: Any,
    workdir: Workdir,
    rows: list[dict[str, float]],
    pictures: list[np.ndarray],
    seconds: dict[str, float],
    fitted: Section,
) -> None:
    """Summary and report with the figures that count."""
    means = means_of(rows)
    gain = means["interior_psnr"] - means["mean_color_psnr"]
    reached = means["iou"] >= GOALS["iou"] and gain >= GOALS["gain"]
    metrics = {f"heldout/{k}": v for k, v in means.items()} | {"heldout/gain_db": gain}
    inner = read_summary(workdir / "infer")["artefacts"]
    artefacts = {k: f"infer/{v}" for k, v in inner.items() if k in ("ply", "turntable", "views")}
    artefacts |= {"samples": "prepare/samples", "checkpoint": "gslrm/checkpoints"}
    table = Table(
        ["frame", "camera", "silhouette IoU", "interior PSNR", "mean colour", "gain, dB"],
        [
            [r["frame"], r["view"] + 1, r["iou"], r["interior_psnr"], r["mean_color_psnr"],
             r["interior_psnr"] - r["mean_color_psnr"]]
            for r in rows
        ],
        "interior: pixels that are foreground in both pictures and 2 px from either outline; "
        "mean colour: the PSNR of painting them with their true mean colour",
    )  # fmt: skip
    verdict = (
        f"Held-out cameras of {len({r['frame'] for r in rows})} held-out frames: silhouette IoU "
        f"{means['iou']:.3f} (goal {GOALS['iou']:.2f}), interior PSNR "
        f"{means['interior_psnr']:.2f} dB, {gain:+.2f} dB against the mean colour "
        f"(goal {GOALS['gain']:+.1f})."
    )
    blocks: list[Any] = [Text(verdict), table, *[Picture(p) for p in pictures]]
    if not reached:
        why = f"{config.gslrm.train.steps} steps of a small network; more steps help"
        blocks.insert(1, Finding("the goals were not reached", why, "--config.gslrm.train.steps=N"))
        workdir.warn(f"the goals were not reached: {verdict}")
    splats = [Splats(artefacts["ply"], "drag to turn")]
    if "turntable" in artefacts:
        splats.insert(0, Video(artefacts["turntable"], "turntable"))
    times = Table(["stage", "seconds"], [[k, v] for k, v in seconds.items()])
    sections = [
        fitted,
        Section("A small network, seen from cameras of no video", blocks),
        Section("3D Gaussians", [*splats, Picture(artefacts["views"], "input views and renders")]),
        Section("Samples", [Picture("prepare/views.png", "six views of one instant")]),
        Section("From one photo: toy weights", from_photo(workdir.path)),
        Section("Time", [times]),
    ]
    summary = {
        "steps": config.gslrm.train.steps,
        "metrics": metrics,
        "artefacts": {**artefacts, "report": "report.html"},
        "inputs": {"recording": "recording"},
    }
    workdir.summary(finished=False, **summary)  # the report reads it
    intro = "A procedural recording, prepared, learned from and lifted. " + verdict
    write_report(workdir.path, title="Demo", intro=intro, sections=sections)
    workdir.summary(finished=True, **summary)
    if reached:
        log.info("%s", verdict)
