"""Train the multi-view UNet on a sample set and judge the views it makes."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.data.inputs import must_exist, resolve_samples
from mouselift_jax.data.samples.rig_file import rig_words, save_rig
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.diffusion.sampler import check_sampling
from mouselift_jax.errors import ConfigError, LayoutError, one_of
from mouselift_jax.files import write_json_atomic
from mouselift_jax.geometry.median_rig import Rig
from mouselift_jax.models import mvunet
from mouselift_jax.pipelines import views_cost
from mouselift_jax.pipelines.pictures import on_background
from mouselift_jax.pipelines.views import Networks
from mouselift_jax.pipelines.views_training import (
    DiffusionLossConfig,
    Encoded,
    diffusion_loss,
    draw_training,
    embed,
    encode,
)
from mouselift_jax.report.html import Finding, Picture, Section, Table, Text, write_report
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.record import command_line, read_summary
from mouselift_jax.runs.settings import typed
from mouselift_jax.stages.harness import cost
from mouselift_jax.stages.harness.plan import Plan
from mouselift_jax.stages.multiview.batches import picture_batches
from mouselift_jax.stages.multiview.encodings import Cache, variants, weights_sum
from mouselift_jax.stages.multiview.frozen import (
    Towers,
    abstract_towers,
    downscale_of,
    initial_unet,
    load_towers,
    low_rank,
    uses_toys,
)
from mouselift_jax.stages.multiview.judge import Judge
from mouselift_jax.stages.multiview.order import azimuths_of
from mouselift_jax.stages.multiview.rig import (
    measure_rig,
    mixed_rigs,
    spread_advice,
    stacked_cameras,
    subject_place,
)
from mouselift_jax.stages.multiview.settings import MultiviewSettings
from mouselift_jax.stages.multiview.watchdogs import Alarm, check_order, check_prompts
from mouselift_jax.training import distributed, loop, lora
from mouselift_jax.training.trainer import Task, Trainer

log = logging.getLogger("mouselift_jax")
NEXT = (
    "python launch.py --config=configs/synth.py{tiny} --config.mvdiff={workdir} "
    "--config.samples={config.samples} --workdir={beside}/synth",
)


# --- what is trained -----------------------------------------------------------------------------


def unet_config(config: MultiviewSettings, downscale: int) -> mvunet.MVUNetConfig:
    """The network of a config; its picture size follows `data.size`."""
    levels = len(config.model.block_channels)
    step = downscale * 2 ** (levels - 1)  # the UNet halves the latents before each further level
    if config.data.size % step:
        raise ConfigError(
            "config.data.size must be a multiple of the networks' step",
            expected=f"a multiple of {step}: {downscale} of the autoencoder times "
            f"{step // downscale} of the UNet",
            found=config.data.size,
            fix=f"--config.data.size={-(-config.data.size // step) * step}",
        )
    return dataclasses.replace(
        typed(mvunet.MVUNetConfig, config.model), sample_size=config.data.size // downscale
    )


def make_unet(config: MultiviewSettings, downscale: int) -> mvunet.MVUNet:
    """The network, with this run's arithmetic."""
    if config.train.remat not in ("none", "block"):
        raise ConfigError(
            "the UNet recomputes whole blocks or nothing",
            where="config.train.remat",
            expected="none | block",
            found=config.train.remat,
            fix="--config.train.remat=block",
        )
    views, parts = config.model.n_views, config.train.mesh.sequence
    if parts > 1 and views % parts:
        raise ConfigError(
            "the views do not split evenly",
            where="config.train.mesh.sequence",
            expected=f"a divisor of config.model.n_views = {views}",
            found=parts,
            fix="--config.train.mesh.sequence=1, or 2, 3 or 6 for six views",
        )
    return mvunet.MVUNet(
        unet_config(config, downscale),
        dtype=jnp.dtype(config.train.dtype),
        remat=config.train.remat == "block",
    )


def init_unet(module: mvunet.MVUNet, key: jax.Array) -> Any:
    """Random weights, with axis names."""
    c = module.config
    side, v = 2 ** (len(c.block_channels) - 1), c.n_views
    args = (
        jnp.zeros((1, v, side, side, c.in_channels)),
        jnp.zeros((1,), jnp.int32),
        jnp.zeros((1, v, 1, c.context_dim)),
        jnp.zeros((1, v, c.class_dim)),
    )
    poses = jnp.ones((1, v, 4)) if c.pose_features else None
    return module.init(key, *args, poses=poses)["params"]


def batch_shapes(config: MultiviewSettings, networks: Networks) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one training batch, of pictures or of encodings."""
    b, v, size = config.train.batch_size, config.model.n_views, config.data.size
    side, channels = networks.latent_side, networks.vae.config.latent_channels

    def f32(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((b, *shape), jnp.float32)

    found = {"order": jax.ShapeDtypeStruct((b, v), jnp.int32)}
    if config.cache.enabled:
        found |= {k: f32(v, side, side, channels) for k in ("mean", "logvar")}
        found["image_embeds"] = f32(networks.image_normalizer.embedding_dim)
    else:
        found["images"] = jax.ShapeDtypeStruct((b, v, size, size, 4), jnp.uint8)
        found["background"] = f32(3)
    return found | ({"poses": f32(v, 4)} if config.model.pose_features else {})


def make_task(config: MultiviewSettings, networks: Networks, constants: dict[str, Any]) -> Task:
    """The training task. Frozen networks that the step does not need are not handed to it."""
    n_steps = networks.latent_noise.n_steps

    def loss(params: Any, batch: Any, *, rng: Any, step: Any, constants: Any) -> Any:
        del step
        if config.cache.enabled:
            mean = batch["mean"]
            encoded = Encoded(batch["image_embeds"], mean[:, 0], mean, batch["logvar"])
        else:
            pictures = on_background(batch["images"], batch["background"], batch["order"])
            encoded = encode(networks, constants, pictures)
        return diffusion_loss(
            params,
            encoded,
            constants["prompts"][batch["order"]],
            draw_training(rng, networks, encoded.mean.shape, n_steps),
            networks=networks,
            normalizer=constants["image_normalizer"],
            config=typed(DiffusionLossConfig, config.loss),
            poses=batch.get("poses"),
        )

    needed = ["prompts", "image_normalizer"]
    needed += [] if config.cache.enabled else ["vae", "image_encoder"]
    flops = views_cost.training_flops(
        networks,
        config.train.batch_size,
        n_tokens=constants["prompts"].shape[1],
        remat=False,  # useful operations: what is recomputed is not counted
        cached=config.cache.enabled,
    )
    return Task(
        functools.partial(init_unet, networks.unet),
        loss,
        batch_shapes(config, networks),
        constants={k: constants[k] for k in needed},
        flops_per_step=flops["total"],
    )


# --- data ----------------------------------------------------------------------------------------


def check(config: MultiviewSettings, samples: Path) -> SampleSet:
    """The sample set, after everything about it that can be wrong has been looked at."""
    sample_set = SampleSet.open(samples)
    if not sample_set.ids("train"):
        raise LayoutError(
            "the training split is empty", where=samples, fix="prepare more frames, or less gap"
        )
    one_of(config.reference, ("fixed", "random"), "no such reference", where="config.reference")
    first = len(sample_set.picture_paths(sample_set.ids("train")[0]))
    if first < config.model.n_views:
        raise LayoutError(
            "the samples have too few views",
            where=samples,
            expected=config.model.n_views,
            found=first,
            fix=f"--config.model.n_views={first} (unlike the released one's), or more cameras",
        )
    if config.cache.enabled:
        variants(config)
    e = config.eval
    for guidance in e.guidances:
        check_sampling(e.steps, guidance, e.eta, section="config.eval.")
    return sample_set


# --- the stage -----------------------------------------------------------------------------------


def plan(config: Any, workdir: Path) -> Plan:
    """What a run would do."""
    config = MultiviewSettings.of(config)
    samples = resolve_samples(config.samples)
    sample_set = check(config, samples)
    toys = uses_toys(config)
    if not toys:
        must_exist(config.init_from, "init_from")
    t = config.train
    module = make_unet(config, downscale_of(config))
    weights, trained = lora.count(lambda: init_unet(module, jax.random.key(0)), low_rank(config))
    state = 4 * (weights + trained * (3 if t.ema_decay else 2))
    notes = [f"{weights:,} weights; {len(sample_set.ids('train'))} training samples"]
    if trained != weights:
        sums = lora.folded(lambda: init_unet(module, jax.random.key(0)), low_rank(config))
        notes.append(
            f"low-rank: {trained:,} weights are trained, the others stay; a step holds "
            f"{8 * sums / 2**30:.2f} GiB for sums of kernels and their gradients"
        )
    if toys:
        notes.append("toy networks: the run makes its own autoencoder; no use beyond testing")
    if config.cache.enabled:
        count = len(sample_set.ids("train")) * len(variants(config))
        side = module.config.sample_size
        size = count * (2 * config.model.n_views * side**2 * 4 + config.model.class_dim) * 4
        notes.append(f"cache of {count} encodings, {size / 2**30:.2f} GiB of disk")
    done = read_summary(workdir)
    finished = done.get("finished") and done.get("steps", 0) >= t.steps
    return Plan(
        stage="mvdiff",
        reads=[str(samples)] + ([str(config.init_from)] if config.init_from else []),
        writes=[f"{workdir}/{n}" for n in ("checkpoints/", "unet/", "cameras.json", "report.html")],
        steps=f"{t.steps} updates of {t.batch_size} objects of {config.model.n_views} views",
        memory=f"weights, optimiser and average {state / 2**30:.2f} GiB over all devices, "
        f"checkpoints {state / 2**30 * t.keep:.2g} GiB of disk",
        skipped=[f"all {t.steps} steps: finished"] if finished else [],
        notes=notes,
    )


def compile_plan(config: Any, workdir: Path, devices: Sequence[Any] | None = None) -> cost.Cost:
    """Memory, FLOPs and traffic of the compiled step, and its time on the devices that are here."""
    del workdir
    trainer = abstract_trainer(config, devices)
    # What the pictures show does not change the time.
    return cost.cost(trainer, None if devices else functools.partial(cost.blank_batch, trainer))


def abstract_trainer(config: Any, devices: Sequence[Any] | None = None) -> Trainer:
    """The trainer of a config on shapes alone: nothing is read but configs of weights."""
    config = MultiviewSettings.of(config)
    task = _abstract_task(config)
    return Trainer(task, config.train, low_rank=low_rank(config), devices=devices)


def flops_per_step(config: Any) -> float:
    """Useful operations of a training step, by arithmetic."""
    config = MultiviewSettings.of(config)
    if not uses_toys(config):
        must_exist(config.init_from, "init_from")
    return _abstract_task(config).flops_per_step


def _abstract_task(config: MultiviewSettings) -> Task:
    towers = abstract_towers(config)
    networks = towers.networks(make_unet(config, towers.modules["vae"].config.downscale))
    return make_task(config, networks, {**towers.params, "prompts": towers.prompts})


def run(config: Any, workdir: Workdir) -> None:
    """Train, validate, report."""
    config = MultiviewSettings.of(config)
    samples = resolve_samples(config.samples)
    sample_set = check(config, samples)
    done = read_summary(workdir)
    if done.get("finished") and done["steps"] >= config.train.steps:
        log.info("nothing left to do: %s steps are done", config.train.steps)
        return
    towers = load_towers(config, workdir, samples)
    alarms = early_alarms(config, sample_set, towers)
    for alarm in alarms:
        workdir.warn(f"{alarm.what}. Cause: {alarm.cause}. Try: {alarm.remedy}")
    rig = keep_rig(config, workdir, sample_set)

    module = make_unet(config, towers.modules["vae"].config.downscale)
    networks = towers.networks(module)
    constants = {**towers.params, "prompts": jnp.asarray(towers.prompts)}
    task = make_task(config, networks, constants)
    trainer = Trainer(task, config.train, seed=config.seed, low_rank=low_rank(config))
    if workdir.options.primary:
        record = json.loads(json.dumps(dataclasses.asdict(module.config)))
        write_json_atomic(workdir / "unet/config.json", record)
    batches = training_batches(config, workdir, samples, towers, networks, trainer.rows)
    judge = Judge(config, samples, networks, towers, workdir.path)
    alone = jax.process_count() == 1
    if judge.count and not alone:
        workdir.warn("several processes train: they do not validate; run configs/synth.py instead")
    started: dict[str, str] = {}

    def initial() -> Any:
        if not config.init_from:
            return None

        def fresh() -> Any:
            return jax.jit(lambda: nn.meta.unbox(init_unet(module, jax.random.key(config.seed))))()

        params, started["note"] = initial_unet(
            config.init_from, module.config, fresh, config.init_checkpoint
        )
        log.info("%s", started["note"])
        return params

    with jax.debug_nans(workdir.options.debug):
        state, metrics = trainer.fit(
            workdir.path,
            batches,
            initial=initial,
            hooks=loop.Hooks(
                evaluate=judge if judge.count and alone else None,
                evaluated=judge.named_pictures,
                warn=workdir.warn,
                replay=command_line(),
            ),
            style=workdir.options.progress,
            profile=workdir.options.profile,
            primary=workdir.options.primary,
        )
    if not workdir.options.primary:
        return
    if judge.count and not judge.pictures and alone:
        metrics |= judge(state, config.train.steps)
    finish(config, workdir, judge, metrics, rig, alarms, towers, started)


def early_alarms(config: MultiviewSettings, sample_set: SampleSet, towers: Towers) -> list[Alarm]:
    """What can be seen to be wrong before the first step; a file of the wrong width stops it."""
    alarms = check_prompts(towers.prompts, config.model.n_views, config.model.context_dim)
    for alarm in alarms:
        if alarm.code in ("prompts_shape", "prompts_not_finite", "prompts_zero"):
            raise ConfigError(
                alarm.what, where="config.prompt_embeds", found=alarm.cause, fix=alarm.remedy
            )
    found = stacked_cameras(sample_set, sample_set.ids("train"), config)
    if found is not None:
        wrong = [check_order(azimuths_of(c2w), towers.turns) for c2w in found[1]]
        alarms += next((a for a in wrong if a), [])
    return alarms


def keep_rig(config: MultiviewSettings, workdir: Workdir, sample_set: SampleSet) -> Rig | None:
    """Write cameras.json and say whether one rig can stand for all samples."""
    rig = measure_rig(config, sample_set)
    if rig is None:
        workdir.warn(
            "the samples have no cameras: there will be no cameras.json, and synth and infer will "
            "need --config.cameras=FILE"
        )
        return None
    if workdir.options.primary:
        path = workdir / "cameras.json"
        place = subject_place(sample_set)
        save_rig(path, rig, source=str(sample_set.path), **place)
    log.info("rig that is learned: %s", rig_words(rig))
    ids = sample_set.ids("train")
    mixed = mixed_rigs(*stacked_cameras(sample_set, ids, config), config.data.size, ids)
    if mixed and not config.model.pose_features:
        workdir.warn(mixed)
    advice = spread_advice(config, sample_set, rig, workdir.path)
    if advice:
        workdir.warn(advice)
    return rig


def training_batches(
    config: MultiviewSettings,
    workdir: Workdir,
    samples: Path,
    towers: Towers,
    networks: Networks,
    rows: tuple[int, int],
) -> Callable[[int], Iterator[Any]]:
    """A function from a step to the batches from there on; fills the cache first."""
    if not config.cache.enabled:
        return functools.partial(picture_batches, config, samples, rows)
    root = Path(config.cache.dir) if config.cache.dir else workdir / "cache"
    identity = {
        n: {"config": dataclasses.asdict(towers.modules[n].config), "sum": weights_sum(p)}
        for n, p in towers.params.items()
        if n != "image_normalizer"
    }
    cache = Cache(config, samples, root, json.loads(json.dumps(identity)))

    references = cache.n_references

    @jax.jit
    def encode_views(params: Any, views: jax.Array) -> tuple:
        found = encode(networks, params, views[None])
        others = [embed(networks, params, views[r : r + 1]) for r in range(1, references)]
        return found.mean[0], found.logvar[0], jnp.concatenate([found.image_embeds, *others])

    def encode_one(images: np.ndarray) -> tuple:
        return encode_views(towers.params, jnp.asarray(images))

    if workdir.options.primary:
        cache.build(encode_one, workdir.options.progress)
    distributed.barrier("cache of encodings")
    return functools.partial(cache.batches, rows)


def finish(
    config: MultiviewSettings,
    workdir: Workdir,
    judge: Judge,
    metrics: dict[str, float],
    rig: Rig | None,
    alarms: list[Alarm],
    towers: Towers,
    started: dict[str, str],
) -> None:
    """Summary and report."""
    findings = [Finding(a.what, a.cause, a.remedy) for a in (*alarms, *judge.alarms)]
    for alarm in judge.alarms:
        workdir.warn(f"{alarm.what}. Cause: {alarm.cause}. Try: {alarm.remedy}")
    notes: list[Any] = []
    if towers.toy:
        notes.append(
            Text(
                "Toy weights: there were no released networks to start from, only a small "
                "autoencoder and a random image encoder that the run, or the one it goes on from, "
                "made itself. They show that the stages work; the views mean nothing."
            )
        )
    if judge.verdict is not None:
        kind = judge.verdict.kind.replace("_", " ")
        remedy = judge.verdict.remedy
        remedy = remedy[:1].upper() + remedy[1:]
        notes.append(Text(f"Verdict: {kind}. {judge.verdict.reason}. {remedy}."))
        notes.append(Text(f"Next: {judge.next_command()}"))
    names = {"psnr": "PSNR, dB", "ssim": "SSIM", "lpips": "LPIPS"}
    shown = [k for k in names if f"val/{k}" in metrics]
    figures = [
        [f"{g:g}", *[metrics[f"val/{k}_g{g:g}"] for k in shown]]
        for g in config.eval.guidances
        if shown
    ]
    views = [[str(i), p] for i, p in enumerate(judge.per_view)]
    blocks = [
        *notes,
        Table(["guidance", *[names[k] for k in shown]], figures),
        Table(["slot", f"PSNR, dB, at guidance {config.eval.guidances[-1]:g}"], views),
        *map(Picture, judge.pictures, judge.captions),
        *findings,
    ]
    sections = [Section("Generated views", blocks)]
    if rig is not None:
        rows = [
            [str(i), float(d), float(p)]
            for i, (d, p) in enumerate(zip(rig.spread_deg, rig.spread_px, strict=True))
        ]
        text = Text(
            f"Rig learned: {rig_words(rig)}. "
            f"The median camera of each slot over {rig.n_samples} samples is in cameras.json. "
            "Spread: how far single samples stray from it, in pixels at the animal's half-length."
        )
        table = Table(["slot", "spread, degrees", "spread, px"], rows)
        sections.append(Section("Cameras", [text, table]))
        metrics["rig/spread_px"] = float(np.max(rig.spread_px))
    workdir.summary(
        finished=True,
        steps=config.train.steps,
        metrics=metrics,
        artefacts={"checkpoint": "checkpoints", "report": "report.html"},
        inputs={"samples": str(config.samples), "init_from": config.init_from, **started},
    )
    write_report(workdir.path, title="Multi-view diffusion training", sections=sections)
