"""Train GS-LRM on a sample set and judge it on views it did not see."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mouselift_jax.data.batches.loader import Batch, Views, make_loader
from mouselift_jax.data.batches.pictures import Augment
from mouselift_jax.data.inputs import must_exist, resolve_samples
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.files import write_json_atomic
from mouselift_jax.models import gslrm as network
from mouselift_jax.models.silhouettes import room
from mouselift_jax.pipelines import lift as pipeline
from mouselift_jax.report.html import Finding, Picture, Section, Table, Text, write_report
from mouselift_jax.report.pictures import close_up, contact_sheet
from mouselift_jax.report.verdict import outcome_of
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.record import command_line, plain, read_summary
from mouselift_jax.stages.harness import cost
from mouselift_jax.stages.harness.plan import Plan
from mouselift_jax.stages.lift_judge import FIGURES, LiftJudge, roomy
from mouselift_jax.training import loop, lora
from mouselift_jax.training.losses import LossConfig
from mouselift_jax.training.trainer import Task, Trainer
from mouselift_jax.weights.pretrained import load_initial, load_pretrained

log = logging.getLogger("mouselift_jax")
INFER = (
    "python launch.py --config=configs/infer.py{tiny} --config.samples={config.samples} "
    "--config.gslrm={workdir} --workdir={beside}/infer"
)
FIT = (
    "python launch.py --config=configs/fit.py:fast --config.samples={config.samples} "
    "--workdir={beside}/fit"
)
NEXT = (
    INFER,
    "python launch.py --config=configs/eval.py{tiny} --config.samples={config.samples} "
    "--config.gslrm={workdir} --workdir={beside}/eval",
)
LOSS_NETWORKS = {"perceptual": "vgg19", "lpips": "lpips"}


def next_after(config: Any, summary: dict[str, Any]) -> tuple[str, ...]:
    """A network that is worse than what needs no learning is not used."""
    del config
    return (FIT, *NEXT[1:]) if outcome_of(summary) == "worse" else NEXT


def network_config(config: Any) -> network.GSLRMConfig:
    """The network of a config; padded so that the sequence axis of the mesh divides its tokens."""
    sequence = config.train.mesh.sequence
    return network.GSLRMConfig(
        **config.model.to_dict(),
        dtype=config.train.dtype,
        remat=config.train.remat,
        token_multiple=max(1, sequence),
    )


def batch_shapes(config: Any) -> Batch:
    """Shapes of one training batch, whose pictures are bytes with alpha."""
    b, v, s = config.train.batch_size, n_train_views(config), config.data.size

    def f32(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((b, *shape), jnp.float32)

    i32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    images = jax.ShapeDtypeStruct((b, v, s, s, 4), jnp.uint8)
    return Batch(images, None, f32(v, 3, 3), f32(v, 4, 4), i32((b,)), i32((b, v)), f32(3))


def n_train_views(config: Any) -> int:
    """Views of a sample the loss sees: when overfitting, none but the inputs."""
    return config.data.n_inputs if config.overfit else config.data.n_views


def make_task(config: Any, networks: Any = None) -> Task:
    """The training task; `networks` are the loss's own, as {name: (module, params)}."""
    cfg = network_config(config)
    model, shapes = network.GSLRM(cfg), batch_shapes(config)
    losses, networks = LossConfig(**config.loss.to_dict()), networks or {}

    def init(key: jax.Array) -> Any:
        small = cfg.patch_size
        images = jnp.zeros((1, 1, small, small, 3))
        return model.init(key, images, jnp.eye(3)[None, None], jnp.eye(4)[None, None])["params"]

    def loss(params: Any, batch: Batch, *, rng: Any, step: Any, constants: Any = None) -> Any:
        distances = {
            name: functools.partial(module.apply, {"params": constants[name]})
            for name, (module, _) in networks.items()
        }
        return pipeline.gslrm_loss(
            params,
            batch,
            model=model,
            loss_config=losses,
            n_input_views=config.data.n_inputs,
            step=step,
            rng=rng,
            networks=distances,
            implementation=config.render,
        )

    return Task(
        init,
        loss,
        shapes,
        constants={name: params for name, (_, params) in networks.items()} or None,
        flops_per_step=flops_per_step(config),
    )


def flops_per_step(config: Any) -> float:
    """Useful operations of a training step, by arithmetic."""
    side = config.data.size
    forward = network.forward_flops(network_config(config), config.data.n_inputs, side, side)
    return 3 * config.train.batch_size * forward


def check_loss_networks(config: Any) -> None:
    """Losses that compare features have their network's weights.

    Raises:
        ConfigError: no place is named where they are.
    """
    for name in LossConfig(**config.loss.to_dict()).needs():
        if not (config.perceptual_from or config.init_from):
            raise ConfigError(
                f"config.loss.{name} needs the weights of {LOSS_NETWORKS[name]}",
                where="config.perceptual_from",
                fix=f"--config.perceptual_from=DIR (see docs/checkpoints.md), or "
                f"--config.loss.{name}=0 --config.loss.ssim=0.2",
            )


def loss_networks(config: Any, *, abstract: bool = False) -> dict[str, Any]:
    """The networks of the loss, read from `perceptual_from` or `init_from`."""
    if not abstract:
        check_loss_networks(config)
    found = {}
    for name in LossConfig(**config.loss.to_dict()).needs():
        component = LOSS_NETWORKS[name]
        source = config.perceptual_from or config.init_from
        if abstract:
            from mouselift_jax.weights import pretrained

            module = pretrained.network(component).make({}, config.train.dtype)
            shapes = pretrained.param_shapes(component, {})
            kept = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.dtype(config.train.dtype))
            found[name] = (module, jax.tree.map(lambda x, kept=kept: kept(x.shape), shapes))
            continue
        found[name] = load_pretrained(source, component, dtype=jnp.dtype(config.train.dtype))
    return found


# --- data ----------------------------------------------------------------------------------------


def train_views(config: Any) -> Views:
    """Which views a training batch holds."""
    d = config.data
    heldout = tuple(int(c) for c in d.heldout_cameras)
    if config.overfit:
        return Views("first", d.n_inputs, d.n_inputs, exclude=heldout)
    return Views(d.policy, d.n_views, d.n_inputs, exclude=heldout)


def train_batches(config: Any, samples: Path, rows: tuple[int, int], step: int) -> Iterator[Batch]:
    """This process's rows of the batches from `step` on."""
    d, t = config.data, config.train
    loader = make_loader(
        samples,
        "train",
        batch_size=t.batch_size,
        seed=config.seed,
        start_step=step,
        views=train_views(config),
        size=d.size,
        background=d.background,
        augment=Augment(d.brightness, d.contrast, d.hflip),
        shard=rows,
        limit=config.overfit or None,
        workers=d.workers,
        on_bad_sample=t.on_bad_sample,
        composited=False,
    )
    return (roomy(config, batch) for batch in loader)


# --- the stage -----------------------------------------------------------------------------------


def check(config: Any, samples: Path) -> SampleSet:
    """The sample set, after everything about it that can be wrong has been looked at."""
    d = config.data
    if not 1 <= d.n_inputs <= d.n_views:
        raise ConfigError(
            "config.data.n_inputs must lie between 1 and n_views",
            found=f"n_inputs {d.n_inputs}, n_views {d.n_views}",
            fix="--config.data.n_views is how many views a batch holds, n_inputs how many go in",
        )
    if d.size % config.model.patch_size:
        raise ConfigError(
            "config.data.size must be a multiple of config.model.patch_size",
            found=f"{d.size}, {config.model.patch_size}",
            fix=f"--config.data.size={d.size - d.size % config.model.patch_size}",
        )
    silhouettes = config.model.depth == "hull" or config.model.animal_share is not None
    if silhouettes and d.background != "white":
        raise ConfigError(
            "model.depth=hull and model.animal_share take white for background",
            where="config.data.background",
            expected="white",
            found=d.background,
            fix="--config.data.background=white",
        )
    sample_set = SampleSet.open(samples)
    if not sample_set.ids("train"):
        raise LayoutError(
            "the training split is empty", where=samples, fix="prepare more frames, or less gap"
        )
    if sample_set.camera_file(sample_set.ids("train")[0]) is None:
        raise LayoutError(
            "GS-LRM needs samples with cameras",
            where=samples,
            expected="opencv_cameras.json in every sample",
            found="pictures alone",
            fix="make the samples with configs/prepare.py; only mvdiff trains without cameras",
        )
    _check_heldout(config, sample_set)
    return sample_set


def _check_heldout(config: Any, sample_set: SampleSet) -> None:
    """Cameras that are to be held out must be there, and leave enough to be the inputs."""
    heldout = {int(c) for c in config.data.heldout_cameras}
    if not heldout:
        return
    record = sample_set.camera_file(sample_set.ids("train")[0])
    there = [f.get("camera", i) for i, f in enumerate(record["frames"])]
    left = len(there) - len(heldout)
    if heldout - set(there) or left < config.data.n_inputs:
        raise ConfigError(
            "these cameras cannot be held out",
            where="config.data.heldout_cameras",
            expected=f"some of the cameras {sorted(there)}, of which n_inputs = "
            f"{config.data.n_inputs} stay",
            found=sorted(heldout),
            fix=f"--config.data.n_inputs={max(left, 1)}, or fewer held-out cameras",
        )


def plan(config: Any, workdir: Path) -> Plan:
    """What a run would do."""
    samples = resolve_samples(config.samples)
    sample_set = check(config, samples)
    if config.init_from:
        must_exist(config.init_from, "init_from")
    cfg, t, d, summary = network_config(config), config.train, config.data, read_summary(workdir)
    weights, trained = lora.count(lambda: make_task(config).init(jax.random.key(0)), config.lora)
    patches = d.n_inputs * (d.size // cfg.patch_size) ** 2
    tokens = cfg.n_gaussian_tokens + room(patches, cfg.animal_share)
    moments = 2 if t.optim.second_moment == "full" else 0.5
    state = 4 * (weights + trained * (moments + (t.ema_decay > 0)))
    notes = [
        f"{weights:,} weights, {tokens:,} tokens a sample; {len(sample_set.ids('train'))} "
        f"training and {len(sample_set.ids('val'))} validation samples"
    ]
    if trained != weights:
        sums = lora.folded(lambda: make_task(config).init(jax.random.key(0)), config.lora)
        notes.append(
            f"low-rank: {trained:,} weights are trained, the others stay; a step holds "
            f"{8 * sums / 2**30:.2f} GiB for sums of kernels and their gradients"
        )
    if not sample_set.ids("val") and not config.overfit:
        notes.append("the validation split is empty: nothing will be evaluated")
    stops = []
    try:
        check_loss_networks(config)
    except ConfigError as error:
        stops.append(error)
    skipped = []
    if summary.get("finished") and summary.get("steps", 0) >= t.steps:
        skipped.append(f"all {t.steps} steps: finished")
    elif (workdir / "checkpoints").is_dir():
        done = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
        skipped += [f"steps up to {max(done)}: in checkpoints/"] if done else []
    return Plan(
        stage="gslrm",
        reads=[str(samples)] + ([str(config.init_from)] if config.init_from else []),
        writes=[f"{workdir}/{name}" for name in ("checkpoints/", "metrics.jsonl", "report.html")],
        steps=f"{t.steps} updates of {t.batch_size} samples, {d.n_inputs} inputs at {d.size} px",
        memory=f"weights and optimiser {state / 2**30:.2f} GiB over all devices, "
        f"checkpoints {state / 2**30 * t.keep:.2g} GiB of disk",
        skipped=skipped,
        notes=notes,
        stops=stops,
    )


def compile_plan(config: Any, workdir: Path, devices: Sequence[Any] | None = None) -> cost.Cost:
    """Memory, FLOPs and traffic of the compiled step, and its time on the devices that are here."""
    del workdir
    trainer = abstract_trainer(config, devices)
    samples = resolve_samples(config.samples)

    def batch() -> Batch:
        return next(iter(train_batches(config, samples, trainer.rows, 0)))

    return cost.cost(trainer, None if devices else batch)


def abstract_trainer(config: Any, devices: Sequence[Any] | None = None) -> Trainer:
    """The trainer of a config on shapes alone: nothing is read."""
    task = make_task(config, loss_networks(config, abstract=True))
    return Trainer(task, config.train, low_rank=config.lora, devices=devices)


def run(config: Any, workdir: Workdir) -> None:
    """Train, evaluate, report."""
    samples = resolve_samples(config.samples)
    sample_set = check(config, samples)
    if (
        read_summary(workdir).get("finished")
        and read_summary(workdir)["steps"] >= config.train.steps
    ):
        log.info("nothing left to do: %s steps are done", config.train.steps)
        return
    cfg = network_config(config)
    task = make_task(config, loss_networks(config))
    trainer = Trainer(task, config.train, seed=config.seed, low_rank=config.lora)
    if workdir.options.primary:
        write_json_atomic(workdir / "gslrm/config.json", dataclasses.asdict(cfg))
    judge = LiftJudge(config, samples, trainer, network.GSLRM(cfg))
    started: dict[str, str] = {}

    def initial() -> Any:
        if not config.init_from:
            return None
        params, note = load_initial(
            config.init_from, "gslrm", dataclasses.asdict(cfg), config.init_checkpoint
        )
        started["note"] = note
        log.info("starting from %s", note)
        return params

    with jax.debug_nans(workdir.options.debug):
        state, metrics = trainer.fit(
            workdir.path,
            functools.partial(train_batches, config, samples, trainer.rows),
            initial=initial,
            hooks=loop.Hooks(
                evaluate=judge if judge.count else None,
                evaluated=judge.named_pictures,
                # Several processes hold no whole batch to draw.
                pictures=judge.draw if judge.count and jax.process_count() == 1 else None,
                warn=workdir.warn,
                replay=command_line(),
                texts=_texts(config, sample_set),
            ),
            style=workdir.options.progress,
            profile=workdir.options.profile,
            primary=workdir.options.primary,
        )
    if judge.count and judge.done != config.train.steps:  # by all processes: they judge together
        metrics |= judge(state, config.train.steps)
    if not workdir.options.primary:
        return
    finish(config, workdir, sample_set, judge, metrics, int(state.skipped), started)


def _texts(config: Any, sample_set: SampleSet) -> dict[str, str]:
    source = (getattr(sample_set, "manifest", None) or {}).get("source", {})
    return {
        "config": f"```json\n{json.dumps(plain(config), indent=1)}\n```",
        "data": f"{sample_set.path}\n```json\n{json.dumps(plain(source), indent=1)[:4000]}\n```",
    }


def finish(
    config: Any,
    workdir: Workdir,
    sample_set: SampleSet,
    judge: LiftJudge,
    metrics: dict[str, float],
    skipped: int,
    started: dict[str, str],
) -> None:
    """Summary and report."""
    findings = []
    if skipped > 0.1 * config.train.steps:
        findings.append(
            Finding(
                f"{skipped} of {config.train.steps} updates were skipped",
                "their gradients were far larger than config.train.optim.clip_norm",
                "a lower learning rate, or a smaller weight of the perceptual loss",
            )
        )
        workdir.warn(findings[-1].what)
    said = judge.verdict()
    if said and said.outcome == "worse":
        workdir.warn(said.text)
    elif said:
        log.info(said.text)
    rows = [
        [name, metrics.get(f"heldout/{name}", math.nan), metrics.get(f"val/{name}", math.nan)]
        for name in FIGURES
    ]
    title = "training samples (overfit)" if config.overfit else "validation samples"
    blocks = [
        Text(
            f"{judge.count} {title} at {config.data.size} px; held-out views were not given to the "
            "network."
        ),
        Table(["figure", "held-out views", "input views"], rows),
        *map(Picture, judge.pictures, judge.captions),
        *findings,
    ]
    sections = [Section("Held-out views", blocks), Section("Data", _data_blocks(sample_set))]
    record = {
        "steps": config.train.steps,
        "metrics": metrics,
        "artefacts": {"checkpoint": "checkpoints", "report": "report.html"},
        "inputs": {"samples": str(sample_set.path), "init_from": config.init_from, **started},
        "verdict": said.record() if said else None,
    }
    workdir.summary(finished=False, **record)  # the report reads it
    write_report(workdir.path, title="GS-LRM training", sections=sections)
    workdir.summary(finished=True, **record)


def _data_blocks(sample_set: SampleSet) -> list[Any]:
    first = sample_set.load(sample_set.ids("train")[0])
    pictures, zoom = close_up(list(first.images_rgba))
    labels = [f"camera {c}" for c in first.camera_ids]
    text = f"{len(sample_set)} samples of {sample_set.path}"
    source = (getattr(sample_set, "manifest", None) or {}).get("source", {})
    paths = [v["path"] for v in source.values() if isinstance(v, dict) and "path" in v]
    text += f"; made of {', '.join(paths)}" if paths else ""
    return [
        Text(text),
        Picture(
            contact_sheet(pictures, labels=labels, size=160),
            f"{sample_set.caption(first.id)} ({zoom})",
        ),
    ]
