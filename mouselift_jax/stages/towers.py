"""The frozen networks of a multi-view run: converted ones, or toys that the run makes itself.

Toys exist so that every stage can be run and tested without the released weights: an autoencoder
trained for a minute on the run's own samples, an image encoder with random weights, and one random
prompt embedding a view. What they teach a UNet is worth nothing beyond that.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.data.loader import make_loader
from mouselift_jax.data.prompts import SLOT_TURNS
from mouselift_jax.errors import CheckpointError, ConfigError
from mouselift_jax.files import write_json_atomic
from mouselift_jax.models import mvunet, vae
from mouselift_jax.pipelines import views
from mouselift_jax.pipelines.preprocess import ClipPixels
from mouselift_jax.pipelines.pretrained import (
    find_component,
    load_pretrained,
    network,
    param_shapes,
    read_config,
    save_component,
)
from mouselift_jax.stages.workdir import Workdir, must_exist, read_json
from mouselift_jax.training import sharding
from mouselift_jax.training.trainer import Task, Trainer

log = logging.getLogger("mouselift_jax")

FROZEN = ("vae", "image_encoder", "image_normalizer")
SETTINGS = (
    "scheduler/scheduler_config.json",
    "image_noising_scheduler/scheduler_config.json",
    "feature_extractor/preprocessor_config.json",
)
TOY_PROMPT_TOKENS = 4


@dataclasses.dataclass
class Towers:
    """What a multi-view run does not train.

    Attributes:
        modules: vae, image_encoder, image_normalizer.
        params: their weights.
        settings: schedules and preprocessing, `views.Networks`' keyword arguments.
        prompts: [V,T,C].
        toy: whether they are toys.
        turns: the turn from slot 0 that each prompt names, degrees; None for toys' random ones.
    """

    modules: dict[str, nn.Module]
    params: dict[str, Any]
    settings: dict[str, Any]
    prompts: np.ndarray
    toy: bool = False
    turns: tuple[float, ...] | None = None

    def networks(self, unet: mvunet.MVUNet) -> views.Networks:
        """Modules with a UNet among them."""
        return views.Networks(unet, **self.modules, **self.settings)


def uses_toys(config: Any) -> bool:
    """Whether this run makes its frozen networks itself.

    Raises:
        ConfigError: neither weights nor toys were asked for.
    """
    if config.init_from:
        return False
    if config.toy.vae_steps:
        return True
    raise ConfigError(
        "there are no weights to start from",
        where="config.init_from",
        fix="--config.init_from=DIR (a converted pipeline, see docs/checkpoints.md), or the "
        "variant tiny, which makes toy networks itself",
    )


def are_toys(source: Path) -> bool:
    """Whether the frozen networks that these weights go with are toys, which a run made itself."""
    folder, _ = find_component(source, "image_encoder")
    record = read_json(Path(folder.parent) / "config.json") or {}  # of a run; others are converted
    return bool((record.get("toy") or {}).get("vae_steps"))


def downscale_of(config: Any) -> int:
    """Pixels for one latent along a side, of this run's autoencoder."""
    settings = toy_configs(config)["vae"] if uses_toys(config) else None
    settings = settings or read_config(must_exist(config.init_from, "init_from"), "vae")
    return network("vae").make(settings, jnp.float32).config.downscale


def load_towers(config: Any, workdir: Workdir, samples: Path) -> Towers:
    """Read the frozen networks, after making them if they are toys."""
    if uses_toys(config):
        make_toys(config, workdir, samples)
        source = workdir.path
    else:
        source = must_exist(config.init_from, "init_from")
        copy_settings(source, workdir)
    dtype = jnp.dtype(config.frozen_dtype)
    modules, params = {}, {}
    for name in FROZEN:
        modules[name], params[name] = views.load_network(source, name, dtype)
    settings = views.read_settings(workdir.path)
    prompts, turns = read_prompts(config, workdir)
    return Towers(modules, params, settings, prompts, are_toys(source), turns)


def abstract_towers(config: Any) -> Towers:
    """The frozen networks as shapes, for plans: nothing is read but configs."""
    toys = toy_configs(config) if uses_toys(config) else {}
    dtype = jnp.dtype(config.frozen_dtype)
    modules, params = {}, {}
    for name in FROZEN:
        settings = toys.get(name) or read_config(config.init_from, name)
        kind = views.network_dtype(name, dtype)
        modules[name] = network(name).make(settings, kind)
        params[name] = jax.tree.map(
            lambda x, kind=kind: jax.ShapeDtypeStruct(x.shape, kind), param_shapes(name, settings)
        )
    c = config.model
    tokens = TOY_PROMPT_TOKENS if toys else 77
    prompts = jax.ShapeDtypeStruct((c.n_views, tokens, c.context_dim), jnp.float32)
    return Towers(modules, params, {}, prompts, bool(toys))


def settings_folder(source: Path) -> Path:
    """The folder with the schedules: that of weights, or of what a run started from."""
    for _ in range(20):
        if (source / SETTINGS[0]).exists():
            return source
        record = source / "config.json"
        start = json.loads(record.read_text()).get("init_from") if record.exists() else None
        if not start:
            break
        source = Path(start)
    raise CheckpointError(
        "The settings of the pipeline are missing",
        where=source / SETTINGS[0],
        fix="convert the whole pipeline: tools/convert_torch_ckpt.py mvdiffusion SRC DST",
    )


def copy_settings(source: Path, workdir: Workdir) -> None:
    """Keep the schedules beside the run's weights."""
    found = settings_folder(source)
    for name in SETTINGS:
        if workdir.options.primary and found / name != workdir / name:
            (workdir / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found / name, workdir / name)


def read_prompts(config: Any, workdir: Workdir) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """The prompt embeddings [V,T,C] of the config, kept beside the run's weights, and their turns.

    A file that does not tell the turns its prompts name is taken for the released one's.
    """
    source = config.prompt_embeds or config.init_from or workdir.path
    path = must_exist(source, "prompt_embeds")
    if path.is_file():
        raise ConfigError(
            "prompt embeddings are read from a folder",
            where=f"config.prompt_embeds={path}",
            fix=f"python tools/convert_torch_ckpt.py prompt_embeds {path} DST, then "
            "--config.prompt_embeds=DST",
        )
    record = read_config(path, "prompt_embeds")
    _, array = load_pretrained(path, "prompt_embeds")
    array = np.asarray(array, np.float32)
    if workdir.options.primary and Path(source) != workdir.path:
        record = {"source": str(source), **record}
        save_component(workdir.path, "prompt_embeds", record, {"prompt_embeds": array})
    turns = record.get("turns_deg", SLOT_TURNS if len(array) == len(SLOT_TURNS) else None)
    return array, None if turns is None else tuple(turns)


# --- toys ----------------------------------------------------------------------------------------


def toy_configs(config: Any) -> dict[str, dict[str, Any]]:
    """Configs of the toy networks."""
    width = config.model.class_dim // 2
    return {
        "vae": _plain(dataclasses.asdict(vae.VAEConfig(**config.toy.vae.to_dict()))),
        "image_encoder": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "n_layers": 2,
            "n_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "projection_dim": width,
        },
        "image_normalizer": {"embedding_dim": width},
    }


def make_toys(config: Any, workdir: Workdir, samples: Path) -> None:
    """Train and write the toy networks, if they are not there yet."""
    if (workdir / SETTINGS[-1]).exists():  # written last
        return
    configs = toy_configs(config)
    log.info("toy autoencoder: %d steps on the training pictures", config.toy.vae_steps)
    coder = vae.VAE(vae.VAEConfig(**configs["vae"]))
    params, scale = train_toy_vae(config, coder, workdir, samples)
    configs["vae"]["scaling_factor"] = scale
    save_component(workdir.path, "vae", configs["vae"], params)

    encoder = network("image_encoder").make(configs["image_encoder"], jnp.float32)
    side = configs["image_encoder"]["image_size"]
    random = jax.jit(lambda k: nn.meta.unbox(encoder.init(k, jnp.zeros((1, side, side, 3)))))
    made = random(jax.random.key(config.seed))["params"]
    save_component(workdir.path, "image_encoder", configs["image_encoder"], jax.device_get(made))
    width = configs["image_normalizer"]["embedding_dim"]
    statistics = {"mean": np.zeros((1, width), np.float32), "std": np.ones((1, width), np.float32)}
    save_component(workdir.path, "image_normalizer", configs["image_normalizer"], statistics)

    shape = (config.model.n_views, TOY_PROMPT_TOKENS, config.model.context_dim)
    prompts = np.random.default_rng(config.seed).normal(size=shape).astype(np.float32)
    if not config.prompt_embeds:
        record = {"shape": list(shape), "source": "toy: random", "turns_deg": None}
        save_component(workdir.path, "prompt_embeds", record, {"prompt_embeds": prompts})
    write_json_atomic(workdir / SETTINGS[0], TOY_SCHEDULER)
    write_json_atomic(workdir / SETTINGS[1], {"beta_schedule": "squaredcos_cap_v2"})
    write_json_atomic(workdir / SETTINGS[2], ClipPixels(size=side).to_source())


TOY_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}


def train_toy_vae(
    config: Any, coder: vae.VAE, workdir: Workdir, samples: Path
) -> tuple[dict[str, Any], float]:
    """Weights of a small autoencoder of the training pictures, and the scale of its latents."""
    toy, size, v = config.toy, config.data.size, config.model.n_views
    b = sharding.batch_parts(sharding.make_mesh(config.train.mesh))  # one sample a device

    def loss(params: Any, batch: jax.Array, *, rng: jax.Array, step: Any) -> Any:
        x = 2 * batch.reshape(-1, *batch.shape[2:]) - 1
        mean, logvar = coder.apply({"params": params}, x, method="encode")
        z = vae.sample_latents(mean, logvar, jax.random.normal(rng, mean.shape))
        y = coder.apply({"params": params}, z, method="decode")
        error = jnp.mean(jnp.abs(y - x)) + jnp.mean((y - x) ** 2)
        # The animal is small: without weight on what is not background, white is a good answer.
        subject = jnp.abs(x - x[:, :1, :1]).max(-1, keepdims=True) > 0.05
        error += jnp.sum(subject * (y - x) ** 2) / (3 * jnp.sum(subject) + 1)
        return error + toy.vae_kl * vae.kl_divergence(mean, logvar), {}

    train = config.train.copy_and_resolve_references()
    with train.unlocked():
        train.steps, train.batch_size, train.accum_steps = toy.vae_steps, b, 1
        train.eval_every = train.picture_every = 0
        train.save_every, train.keep, train.keep_best = toy.vae_steps, 1, ""
        train.ema_decay = 0.0
        train.optim.lr, train.optim.warmup_steps = toy.vae_lr, 20
        train.optim.end_lr_fraction, train.optim.weight_decay = 0.05, 0.0
        train.optim.skip_factor, train.optim.freeze, train.optim.lr_scale = 0.0, (), ()
    task = Task(
        lambda key: coder.init(key, jnp.zeros((1, size, size, 3)))["params"],
        loss,
        jax.ShapeDtypeStruct((b, v, size, size, 3), jnp.float32),
    )
    trainer = Trainer(task, train, seed=config.seed)

    def batches(step: int) -> Iterator[np.ndarray]:
        loader = make_loader(
            samples,
            "train",
            batch_size=b,
            seed=config.seed,
            start_step=step,
            size=size,
            background=config.data.background,
            shard=trainer.rows,
        )
        return (batch.images for batch in loader)

    state, _ = trainer.fit(
        workdir / "toy_vae",
        batches,
        style=workdir.options.progress,
        primary=workdir.options.primary,
    )
    params = jax.device_get(state.params)
    encode = jax.jit(functools.partial(coder.apply, method="encode"))
    some = next(batches(0))
    mean, _ = encode({"params": params}, 2 * jnp.asarray(some[0]) - 1)
    return params, float(1.0 / np.asarray(mean).std())


# --- the UNet to start from ----------------------------------------------------------------------


def initial_unet(
    source: str,
    config: mvunet.MVUNetConfig,
    fresh: Callable[[], Any],
    checkpoint: str | int = "best",
) -> tuple[dict[str, Any], str]:
    """The weights of a UNet to start from, fitted to this run's network.

    A network with 4 input channels (stock Stable Diffusion) gets 4 more, of zeros, for the
    reference picture's latents; one that has 8 is never touched. A pose input it lacks is added,
    without effect at the start.

    Args:
        source: `config.init_from`.
        config: of this run's network.
        fresh: makes random weights of this run's network; called only where something is added.
        checkpoint: where the source is a run: best | newest | STEP.
    """
    from mouselift_jax.pipelines.pretrained import load_initial

    stored = read_config(source, "unet")
    expected = dataclasses.asdict(config)
    extends = _extends(stored, config.in_channels)
    adds_pose = config.pose_features and not stored.get("pose_features", 0)
    if extends:
        expected["in_channels"] = 4
    if adds_pose:
        expected["pose_features"] = 0
    params, note = load_initial(source, "unet", expected, checkpoint)
    if extends:
        kernel = params["conv_in"]["kernel"]
        params["conv_in"]["kernel"] = np.concatenate([kernel, np.zeros_like(kernel)], axis=2)
        note += "; conv_in extended from 4 to 8 channels with zeros"
    if adds_pose:
        params["pose_encoder"] = jax.device_get(fresh()["pose_encoder"])
        note += "; a pose input was added, without effect at the start"
    return params, note


def _extends(stored: Mapping[str, Any], in_channels: int) -> bool:
    return stored.get("in_channels") == 4 and in_channels == 8


def low_rank(config: Any) -> Any:
    """The section `lora` of a run.

    What the run adds to the network starts without effect; it is trained whole, for low-rank
    additions to the other weights would leave it so.
    """
    low = config.lora.copy_and_resolve_references()
    if not low.rank:
        return low
    added = ["^pose_encoder/"] if config.model.pose_features else []
    if config.init_from and _extends(
        read_config(config.init_from, "unet"), config.model.in_channels
    ):
        added.append("^conv_in/")
    low.whole = (*low.whole, *added)
    return low
