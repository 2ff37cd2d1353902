"""Views to Gaussians and what people want of them: PLY, turntable, pictures, report.

Items come from a source: samples (real views), or photos whose other views are generated first
(`stages/generated.py`). Every item has the same shapes, so the network is compiled once.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.data.loader import composite, resized
from mouselift_jax.data.samples import SampleSet
from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.files import write_json_atomic
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.pipelines.lift import lift, with_room
from mouselift_jax.pipelines.pretrained import find_component, load_pretrained
from mouselift_jax.report.html import Picture, Section, Splats, Table, Text, Video, write_report
from mouselift_jax.report.pictures import comparison_rows, fit, save_png
from mouselift_jax.report.turntable import write_turntable
from mouselift_jax.splats.filters import RECIPES, apply_filters
from mouselift_jax.splats.ply import save_ply
from mouselift_jax.stages import sequence
from mouselift_jax.stages import workdir as workdirs
from mouselift_jax.stages.selection import check_sides, select, stored_sides
from mouselift_jax.stages.stage import Plan
from mouselift_jax.stages.workdir import (
    Workdir,
    looks_like_recording,
    must_exist,
    prepare_command,
    read_json,
    resolve_samples,
)
from mouselift_jax.training import metrics as metric
from mouselift_jax.training.progress import Progress

log = logging.getLogger("mouselift_jax")
NEXT = ("python -m mouselift_jax view {workdir}",)

PHOTO, PHOTO_SIDE = "photo.png", 384  # what views were generated from, shrunk to so many pixels
DONE = "item.json"  # written last: an item with it is whole
SHOWN = 3  # items in the report: the worst, the middle and the best


@dataclasses.dataclass
class Item:
    """Posed views to lift.

    Attributes:
        id: name, unique in the run.
        images: [V,H,W,3] in [0,1] on white.
        masks: [V,H,W,1], None where unknown.
        cameras: [V].
        labels: one for each view.
        scene_scale: scene units per millimetre, None where unknown.
        about: what goes into item.json besides.
        photo: [H,W,3] uint8, what the views were generated from; None when they are real.
    """

    id: str
    images: np.ndarray
    masks: np.ndarray | None
    cameras: Camera
    labels: list[str]
    scene_scale: float | None = None
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    photo: np.ndarray | None = None


class Source(Protocol):
    """Where items come from.

    Attributes:
        ids: all items of the run, in order.
        reads: paths it reads, for the plan.
        sides: of the pictures that it loads, pixels.
    """

    ids: list[str]
    reads: list[str]
    sides: tuple[int, ...]

    def load(self, item_id: str) -> Item:
        """Read or make one item."""
        ...


class FromSamples:
    """Items that are samples of a set."""

    def __init__(self, config: Any) -> None:
        path = resolve_samples(config.samples)
        self._set, self._config = SampleSet.open(path), config
        self.reads = [str(path)]
        self.ids = select(self._set, config.split, config.frames)[: config.limit or None]
        self._size = config.size or trained_size(config.gslrm)
        self.sides = (self._size,) if self._size else stored_sides(self._set, self.ids[0])

    @property
    def sample_set(self) -> SampleSet:
        """Where the items come from."""
        return self._set

    def is_film(self) -> bool:
        """Whether the items are frames of one recording."""
        return sequence.is_film(self._set, self.ids)

    def load(self, item_id: str) -> Item:
        """Read one sample; its pictures are resized with their cameras."""
        slots = self._slots(item_id)
        sample = self._set.load(item_id, slots)
        if sample.cameras is None:
            raise _without_cameras(item_id)
        rgba, cameras = resized(sample.images_rgba, sample.cameras, self._size or None)
        images, masks = composite(rgba, np.ones(3, np.float32))
        return Item(
            item_id,
            images,
            masks if sample.has_alpha else None,
            cameras,
            [f"camera {c}" for c in sample.camera_ids],
            sample.info.get("scene_scale") or self._set.scene_scale,  # recordings may differ
            {"frame": sample.frame, "cameras": [int(c) for c in sample.camera_ids]},
        )

    def _slots(self, item_id: str) -> list[int] | None:
        wanted = [int(v) for v in self._config.views]
        if not wanted:
            return None
        record = self._set.camera_file(item_id)
        if record is None:
            raise _without_cameras(item_id)
        numbers = [f.get("camera", i) for i, f in enumerate(record["frames"])]
        missing = [v for v in wanted if v not in numbers]
        if missing:
            raise ConfigError(
                "the sample has no such camera",
                where="config.views",
                expected=f"some of {numbers}",
                found=missing,
                fix=f"--config.views={tuple(v for v in wanted if v in numbers) or tuple(numbers)}",
            )
        return [numbers.index(v) for v in wanted]


def _without_cameras(item_id: str) -> LayoutError:
    return LayoutError(
        "a sample without cameras cannot be lifted",
        where=item_id,
        expected="opencv_cameras.json",
        fix="make the samples with configs/prepare.py",
    )


def trained_size(gslrm: str | None) -> int:
    """The picture size a run was trained on, 0 for converted weights (they take any)."""
    record = read_json(Path(gslrm) / "config.json") if gslrm else None
    return int(((record or {}).get("data") or {}).get("size") or 0)


def source(config: Any, warn: Callable[[str], None] = log.warning) -> Source:
    """The source that the config names: exactly one; `warn` tells what lowers its quality."""
    given = [key for key in ("image", "samples") if getattr(config, key)]
    if len(given) != 1:
        raise ConfigError(
            "give exactly one input",
            expected="--config.image=PATH or --config.samples=PATH",
            found=" and ".join(given) or "none",
            fix="image for a photo or a folder of them, samples for six real views of each frame",
        )
    if given == ["samples"]:
        return FromSamples(config)
    of_samples = [key for key in ("frames", "views") if config[key]]
    if of_samples:
        raise ConfigError(
            "photos are no frames of a recording",
            where=", ".join(f"config.{key}={config[key]}" for key in of_samples),
            fix="leave it out, or give --config.samples instead of --config.image",
        )
    path = must_exist(config.image, "image")
    if looks_like_recording(path):
        raise LayoutError(
            "config.image is a recording, not a photo", where=path, fix=prepare_command(path)
        )
    if not config.mvdiff:
        raise ConfigError(
            "views are generated by a network",
            where="config.mvdiff",
            fix="--config.mvdiff=DIR: a converted pipeline, or the folder of an mvdiff run",
        )
    return importlib.import_module("mouselift_jax.stages.generated").FromImages(config, warn=warn)


# --- the stage -----------------------------------------------------------------------------------


def place_of(workdir: Path, item_id: str, alone: bool) -> Path:
    """Where the files of an item go."""
    return workdir if alone else workdir / "items" / item_id.replace("/", "_")


def plan(config: Any, workdir: Path) -> Plan:
    """What a run would do."""
    items = source(config)
    folder, kind = find_component(must_exist(config.gslrm, "gslrm"), "gslrm")
    check_sides(config.gslrm, *items.sides)
    alone = len(items.ids) == 1
    done = [i for i in items.ids if is_whole(place_of(workdir, i, alone))]
    return Plan(
        stage="infer",
        reads=[*items.reads, f"{folder} ({kind} weights)"],
        writes=[f"{workdir}/{'' if alone else 'items/<id>/'}{name}" for name in FILES]
        + [f"{workdir}/report.html"],
        steps=f"{len(items.ids)} item(s)",
        skipped=[f"{len(done)} item(s) that are whole"] if done else [],
    )


FILES = ("splats.ply", "views.png", "turntable.mp4")


def is_whole(place: Path) -> bool:
    """Whether an item is done and its files are still there (a turntable may be unwanted)."""
    return all((place / name).exists() for name in (DONE, *FILES[:2]))


def run(config: Any, workdir: Workdir) -> None:
    """Lift every item that is not done."""
    items = source(config, workdir.warn)
    must_exist(config.gslrm, "gslrm")
    check_sides(config.gslrm, *items.sides)
    alone = len(items.ids) == 1
    places = {i: place_of(workdir.path, i, alone) for i in items.ids}
    left = [i for i in items.ids if not is_whole(places[i])]
    done = len(items.ids) - len(left)
    if left:
        lifter = make_lifter(config)
        style = workdir.options.progress
        with Progress(len(items.ids), unit="item", done=done, style=style) as progress:
            for item_id in left:
                lift_item(config, lifter, items.load(item_id), places[item_id])
                progress.update()
    else:
        log.info("nothing left to do: %d item(s) are done", len(items.ids))
        if workdirs.is_whole(workdir.path):  # a film's videos take long to draw
            return
    finish(config, workdir, items, places, alone)


def make_lifter(config: Any) -> Callable[[Item], tuple[Any, Any]]:
    """`lifter(item) -> (Gaussians, Render of the item's own cameras)`, compiled once per shape."""
    from mouselift_jax.render import render

    model, params = load_pretrained(config.gslrm, "gslrm", checkpoint=config.gslrm_checkpoint)
    model = model.clone(config=dataclasses.replace(model.config, dtype=config.dtype))

    @functools.partial(jax.jit, static_argnums=0)
    def go(model: Any, params: Any, images: jax.Array, cameras: Camera) -> tuple[Any, Any]:
        gaussians = lift(model, params, images, cameras)
        return gaussians, render(gaussians, cameras, implementation=config.render)

    def lifter(item: Item) -> tuple[Any, Any]:
        camera = item.cameras
        placed = Camera(
            jnp.asarray(camera.K, jnp.float32),
            jnp.asarray(camera.c2w, jnp.float32),
            camera.width,
            camera.height,
        )
        return go(with_room(model, item.images), params, jnp.asarray(item.images), placed)

    return lifter


def lift_item(config: Any, lifter: Callable, item: Item, place: Path) -> None:
    """Write one item's files, the marker last."""
    place.mkdir(parents=True, exist_ok=True)
    gaussians, drawn = jax.device_get(lifter(item))
    kept = apply_filters(gaussians, RECIPES[config.filter])
    save_ply(place / "splats.ply", kept, scene_scale=item.scene_scale, axes=config.axes)
    rgb = np.clip(drawn.rgb, 0, 1)
    psnr = np.asarray(metric.psnr(rgb, item.images))
    labels = [f"{name}, {value:.1f} dB" for name, value in zip(item.labels, psnr, strict=True)]
    side = max(128, min(256, item.images.shape[1]))
    picture = comparison_rows(
        item.images, rgb, item.masks, drawn.alpha, labels=labels, size=side, name="given"
    )
    save_png(place / "views.png", picture)
    if item.photo is not None:
        h, w = item.photo.shape[:2]
        shrink = min(1.0, PHOTO_SIDE / max(h, w))
        save_png(place / PHOTO, fit(item.photo, round(w * shrink), round(h * shrink)))
    if config.turntable.frames:
        write_turntable(
            place / "turntable.mp4",
            jax.tree.map(jnp.asarray, kept),
            n=config.turntable.frames,
            size=config.turntable.size,
            fps=config.turntable.fps,
            elevation_deg=config.turntable.elevation_deg,
        )
    figures = {"input_psnr": float(psnr.mean())}
    if item.masks is not None:
        figures["input_iou"] = float(np.mean(metric.mask_iou(drawn.alpha, item.masks)))
    record = {
        "id": item.id,
        "gaussians": len(kept.opacity_logits),
        "predicted": len(gaussians.opacity_logits),
        **figures,
        **item.about,
    }
    write_json_atomic(place / DONE, record)


def finish(
    config: Any, workdir: Workdir, items: Source, places: dict[str, Path], alone: bool
) -> None:
    """Summary and report."""
    records = [read_json(places[i] / DONE) for i in items.ids]
    keys = ("input_psnr", "input_iou")
    means = {
        k: float(np.mean([r[k] for r in records if k in r]))
        for k in keys
        if any(k in r for r in records)
    }
    first = places[items.ids[0]].relative_to(workdir.path)
    names = {"ply": FILES[0], "views": FILES[1], "turntable": FILES[2]}
    artefacts = {k: str(first / v) for k, v in names.items() if (places[items.ids[0]] / v).exists()}
    for record in records:
        if not record["gaussians"]:
            workdir.warn(
                f"{record['id']}: the filter {config.filter!r} left no Gaussians of "
                f"{record['predicted']:,}: the weights are untrained or of other samples; "
                "--config.filter=none keeps all"
            )
    motion, film = {}, []
    if not alone:
        artefacts["items"] = "items"
        if config.sequence and isinstance(items, FromSamples) and items.is_film():
            side = config.turntable.size
            motion, made, film = sequence.write(workdir, items.sample_set, places, side)
            artefacts |= made
    summary = {
        "steps": len(items.ids),
        "metrics": {"items": len(items.ids), **means, **motion},
        "artefacts": {**artefacts, "report": "report.html"},
        "inputs": {k: str(v) for k, v in workdir.config.items() if k in INPUTS and v},
    }
    workdir.summary(finished=False, **summary)  # the report reads it
    ranked = sorted(records, key=lambda r: r["input_psnr"])
    chosen = np.linspace(0, len(ranked) - 1, min(SHOWN, len(ranked)), dtype=int)
    sections = [_section(workdir.path, places[ranked[i]["id"]], ranked[i]) for i in chosen]
    table = Table(
        ["item", "Gaussians", "input PSNR", "input IoU"],
        [[r["id"], r["gaussians"], r["input_psnr"], r.get("input_iou")] for r in records[:200]],
    )
    note = Text(
        "Figures compare renders with the very pictures the network was given: they say that an "
        "item is not broken, not how good an unseen view is. "
        + ("Shown below: worst, middle and best by input PSNR." if len(records) > SHOWN else "")
    )
    overview = Section("Items", [note, table])
    write_report(workdir.path, title="3D Gaussians", sections=[*film, overview, *sections])
    workdir.summary(finished=True, **summary)


INPUTS = ("image", "samples", "gslrm", "mvdiff", "cameras", "prompt_embeds")


def _section(workdir: Path, place: Path, record: dict[str, Any]) -> Section:
    picture = str((place / "views.png").relative_to(workdir))
    blocks: list[Any] = [Picture(picture, "the views given, and what is drawn in their place")]
    if (place / "turntable.mp4").exists():
        blocks.insert(0, Video(str((place / "turntable.mp4").relative_to(workdir)), "turntable"))
    if (place / PHOTO).exists():
        blocks.insert(0, Picture(str((place / PHOTO).relative_to(workdir)), "the photo"))
    blocks.append(Splats(str((place / "splats.ply").relative_to(workdir))))
    return Section(f"Item {record['id']}", blocks)
