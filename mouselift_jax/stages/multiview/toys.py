"""Toy stand-ins for the frozen networks, made by the run itself.

Toys exist so that every stage can be run and tested without the released weights: an autoencoder
trained for a minute on the run's own samples, an image encoder with random weights, and one random
prompt embedding a view. What they teach a UNet is worth nothing beyond that.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.data.batches.loader import Views, make_loader
from mouselift_jax.files import write_json_atomic
from mouselift_jax.models import vae
from mouselift_jax.models.clip_pixels import ClipPixels
from mouselift_jax.pipelines.views import SETTINGS
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.settings import typed
from mouselift_jax.stages.multiview.settings import MultiviewSettings
from mouselift_jax.training import distributed, sharding
from mouselift_jax.training.settings import TrainSettings
from mouselift_jax.training.trainer import Task, Trainer
from mouselift_jax.weights.networks import network
from mouselift_jax.weights.pretrained import save_component

log = logging.getLogger("mouselift_jax")


TOY_PROMPT_TOKENS = 4


def toy_configs(config: MultiviewSettings) -> dict[str, dict[str, Any]]:
    """Configs of the toy networks."""
    width = config.model.class_dim // 2
    return {
        "vae": _plain(dataclasses.asdict(typed(vae.VAEConfig, config.toy.vae))),
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


def make_toys(config: MultiviewSettings, workdir: Workdir, samples: Path) -> None:
    """Train and write the toy networks, if they are not there yet."""
    # The first process's word counts: one that sees a file later would leave the others waiting.
    primary = workdir.options.primary
    there = primary and (workdir / SETTINGS[-1]).exists()  # written last
    if distributed.agree(int(there)):
        return
    configs = toy_configs(config)
    log.info("toy autoencoder: %d steps on the training pictures", config.toy.vae_steps)
    coder = vae.VAE(vae.VAEConfig(**configs["vae"]))
    params, scale = train_toy_vae(config, coder, workdir, samples)
    configs["vae"]["scaling_factor"] = scale
    if primary:
        shape = (config.model.n_views, TOY_PROMPT_TOKENS, config.model.context_dim)
        prompts = None if config.prompt_embeds else shape
        _write_toys(workdir, configs, params, seed=config.seed, prompts=prompts)
    distributed.barrier("toy networks")  # the others read what the first wrote


def _write_toys(
    workdir: Workdir,
    configs: dict[str, dict[str, Any]],
    coder: dict[str, Any],
    *,
    seed: int,
    prompts: tuple[int, ...] | None,
) -> None:
    """The components in files: the trained autoencoder, the others random.

    `prompts` is the shape of random prompt embeddings; None writes none.
    """
    save_component(workdir.path, "vae", configs["vae"], coder)

    encoder = network("image_encoder").make(configs["image_encoder"], jnp.float32)
    side = configs["image_encoder"]["image_size"]
    random = jax.jit(lambda k: nn.meta.unbox(encoder.init(k, jnp.zeros((1, side, side, 3)))))
    made = random(jax.random.key(seed))["params"]
    save_component(workdir.path, "image_encoder", configs["image_encoder"], jax.device_get(made))
    width = configs["image_normalizer"]["embedding_dim"]
    statistics = {"mean": np.zeros((1, width), np.float32), "std": np.ones((1, width), np.float32)}
    save_component(workdir.path, "image_normalizer", configs["image_normalizer"], statistics)

    if prompts is not None:
        values = np.random.default_rng(seed).normal(size=prompts).astype(np.float32)
        record = {"shape": list(prompts), "source": "toy: random", "turns_deg": None}
        save_component(workdir.path, "prompt_embeds", record, {"prompt_embeds": values})
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
    config: MultiviewSettings, coder: vae.VAE, workdir: Workdir, samples: Path
) -> tuple[dict[str, Any], float]:
    """Weights of a small autoencoder of the training pictures, and the scale of its latents."""
    toy, size, v = config.toy, config.data.size, config.model.n_views
    train = TrainSettings.of(config.train)
    # one sample a device
    b = sharding.batch_parts(sharding.make_mesh(dataclasses.asdict(train.mesh)))

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

    optim = dataclasses.replace(
        train.optim,
        lr=toy.vae_lr,
        warmup_steps=20,
        end_lr_fraction=0.05,
        weight_decay=0.0,
        skip_factor=0.0,
        freeze=(),
        lr_scale=(),
    )
    train = dataclasses.replace(
        train,
        steps=toy.vae_steps,
        batch_size=b,
        accum_steps=1,
        eval_every=0,
        picture_every=0,
        save_every=toy.vae_steps,
        keep=1,
        keep_best="",
        ema_decay=0.0,
        optim=optim,
    )
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
            views=Views("first", v),
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
