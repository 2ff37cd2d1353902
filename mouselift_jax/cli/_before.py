"""What to look at before a long phase starts, for `doctor --before`: facts, each with its fix.

GPU free? Room on the disk for what will be written? The weights there? The prompts those of these
cameras? A phase that fails for one of them fails after hours.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.cli._machine import GIB, Fact, nvidia_query
from mouselift_jax.errors import MouseLiftError

BUSY_MIB = 500  # a desktop holds less of a card
# Bytes: a training state (weights and two moments, float32; mvdiff with the moving average) is kept
# `train.keep` + 2 times; a view of 512 px and the splats of a frame as they lie on the disk.
STATE = {"gslrm": 3 * 4 * 303_565_824, "mvdiff": 4 * 4 * 870_000_000}
KEPT, VIEW_512, SPLATS = 5, 30_000, 4_000_000


@dataclasses.dataclass(frozen=True)
class Question:
    """What is about to be started.

    Attributes:
        stage: mvdiff | synth | gslrm | fit.
        samples: sample set, or run that wrote one.
        weights: converted weights or a run; None = those of the stage's usual place.
        prompts: folder of prompt embeddings; None = those of the weights.
        workdir: where the run will write.
    """

    stage: str
    samples: Path
    weights: Path
    prompts: Path
    workdir: Path


def checklist(question: Question) -> list[Fact]:
    """Every fact that the stage needs, in order."""
    parts = {
        "fit": (samples_facts, disk_facts, gpu_facts),
        "gslrm": (samples_facts, weights_facts, gpu_facts, disk_facts),
        "mvdiff": (samples_facts, weights_facts, prompts_facts, gpu_facts, disk_facts),
        "synth": (samples_facts, weights_facts, prompts_facts, gpu_facts, disk_facts),
    }[question.stage]
    return [fact for part in parts for fact in _told(part, question)]


STAGES = ("fit", "gslrm", "mvdiff", "synth")


def _told(part: Callable[[Question], Iterator[Fact]], question: Question) -> Iterator[Fact]:
    """The facts of a part; a user's error in it is a fact too."""
    try:
        yield from part(question)
    except MouseLiftError as error:
        name = part.__name__.removesuffix("_facts").capitalize()
        found = f": {error.found}" if error.found else ""
        yield Fact(name, f"{error.what} ({error.where}){found}", "bad", error.fix or "")


def _open(question: Question) -> Any:
    from mouselift_jax.data.inputs import resolve_samples
    from mouselift_jax.data.samples.sample_set import SampleSet

    return SampleSet.open(resolve_samples(question.samples))


def samples_facts(question: Question) -> Iterator[Fact]:
    """How many there are, for what, and whether these weights know such rays."""
    samples = _open(question)
    counts = {split: len(samples.ids(split)) for split in ("train", "val")}
    record = samples.camera_file(samples.ids()[0])
    views = len(samples.picture_paths(samples.ids()[0]))
    yield Fact(
        "Samples",
        f"{len(samples)} of {views} views: {counts['train']} for training, {counts['val']} for "
        f"validation ({samples.path})",
    )
    if question.stage == "gslrm" and record is None:
        fix = "make them with configs/prepare.py; only mvdiff trains on pictures alone"
        yield Fact("Cameras", "the samples have none", "bad", fix)
    if question.stage in ("gslrm", "mvdiff") and not counts["train"]:
        yield Fact("Training", "the training split is empty", "bad", "prepare more frames")
    elif question.stage in ("gslrm", "mvdiff") and not counts["val"]:
        fix = "prepare with --config.split.val_fraction=0.1"
        yield Fact("Validation", "no sample is kept to judge by", "warn", fix)
    if question.stage == "mvdiff" and views < 6:
        fix = f"--config.model.n_views={views}; the released network makes six"
        yield Fact("Views", f"{views}, the network makes 6", "bad", fix)
    manifest = getattr(samples, "manifest", None) or {}
    fov = (manifest.get("parameters") or {}).get("fov")
    if question.stage != "fit" and fov == "fill":
        fix = (
            "for published weights prepare with configs/prepare.py (base); from nothing it is fine"
        )
        yield Fact("Field of view", "fill: published weights do not know it", "warn", fix)


def weights_facts(question: Question) -> Iterator[Fact]:
    """The networks that the stage starts from."""
    from mouselift_jax.weights.pretrained import read_config

    convert = "docs/checkpoints.md says how to get and convert them"
    needed = {
        "gslrm": ("gslrm", "vgg19"),
        "mvdiff": ("unet", "vae", "image_encoder", "image_normalizer"),
        "synth": ("unet", "vae", "image_encoder", "image_normalizer"),
    }[question.stage]
    without = {
        "gslrm": "without: it trains from nothing, --config.init_from= stays empty",
        "vgg19": "without: --config.loss.perceptual=0 --config.loss.ssim=0.2",
    }
    for component in needed:
        try:
            read_config(question.weights, component)
            yield Fact(f"Weights {component}", f"in {question.weights}")
        except (MouseLiftError, OSError):
            state, fix = ("warn", without[component]) if component in without else ("bad", convert)
            text = f"not in {question.weights}"
            yield Fact(f"Weights {component}", text, state, f"{fix}; or name them with --weights")


def prompts_facts(question: Question) -> Iterator[Fact]:
    """The words of the views: there, six, and of the directions the cameras stand in."""
    from mouselift_jax.data.prompts import SLOT_TURNS
    from mouselift_jax.stages.multiview.order import azimuths_of
    from mouselift_jax.stages.multiview.watchdogs import check_order
    from mouselift_jax.weights.pretrained import read_config

    record = read_config(question.prompts, "prompt_embeds")
    words = record.get("prompts") or ["(the released ones; their words are not stored)"]
    style = record.get("style", "style unknown")
    yield Fact("Prompts", f"{style}: {words[0]} ... ({question.prompts})")
    samples = _open(question)
    if samples.camera_file(samples.ids()[0]) is None:
        yield Fact("Prompts", "the samples have no cameras to compare with", "note")
        return
    azimuths = azimuths_of(np.asarray(samples.cameras(samples.ids()[0]).c2w))
    alarms = check_order(azimuths, record.get("turns_deg", SLOT_TURNS))
    for alarm in alarms:
        yield Fact("Prompts", alarm.what, "bad", alarm.remedy)
    if not alarms:
        yield Fact("Prompts", "in the order of the cameras")


def gpu_facts(question: Question) -> Iterator[Fact]:
    """A card that nobody uses."""
    rows = nvidia_query("index,name,memory.used,memory.total")
    if not rows:
        if question.stage == "fit":
            yield Fact("GPU", "none: fit takes some ten seconds of a processor a frame")
        else:
            fix = f"--config=configs/{question.stage}.py:tiny runs here; base needs a GPU or TPU"
            yield Fact("GPU", "none on this machine (a TPU is not looked for)", "warn", fix)
        return
    free = []
    for index, name, used, total in rows:
        taken = int(used) if used.isdigit() else 0
        free += [index] if taken < BUSY_MIB else []
        yield Fact(f"GPU {index}", f"{name}: {used} of {total} MiB used")
    if free:
        yield Fact("Free GPU", f"CUDA_VISIBLE_DEVICES={free[0]}")
    else:
        fix = "wait, or stop what uses it: python -m mouselift_jax doctor lists the processes"
        yield Fact("Free GPU", "none: all are in use", "bad", fix)


def disk_facts(question: Question) -> Iterator[Fact]:
    """Room for what the stage will write."""
    there = next(p for p in (question.workdir, *question.workdir.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if question.stage in STATE:
        need = KEPT * STATE[question.stage]
        what = f"{KEPT} checkpoints of the base network"
    else:
        samples = _open(question)
        views = len(samples.picture_paths(samples.ids()[0]))
        one = SPLATS if question.stage == "fit" else VIEW_512 * views
        need, what = len(samples) * one, f"{len(samples)} samples"
    text = f"{free / GIB:.1f} GiB free at {there}; {what} take about {need / GIB:.1f} GiB"
    fix = "another disk for --workdir, fewer samples, or remove old runs"
    state = "ok" if free > 1.2 * need else "bad"
    yield Fact("Disk", text, state, "" if state == "ok" else fix)
