"""The loss that trains the multi-view UNet, as a pure function of weights, batch and draws.

It has two halves, so that the second can run on cached results of the first: `encode` turns
pictures into latents' moments and image embeddings with the frozen networks; `diffusion_loss`
noises them and asks the UNet. Means and log-variances are kept, not samples: sampling stays per
step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mouselift_jax.diffusion import schedule
from mouselift_jax.models import vae as autoencoder
from mouselift_jax.models.clip_pixels import clip_pixels_float
from mouselift_jax.models.layers import constrain
from mouselift_jax.pipelines.views import Networks, class_labels


@dataclasses.dataclass(frozen=True)
class DiffusionLossConfig:
    """What the loss does; the defaults are the published recipe."""

    drop_rate: float = 0.05  # of each of the three kinds of condition dropout
    snr_gamma: float | None = 5.0  # cap of the signal-to-noise ratio in the weights; None = off
    snr_form: str = "epsilon"  # epsilon | v, see `schedule.min_snr_weights`


class Encoded(NamedTuple):
    """What the frozen networks know of a batch of objects, views in slot order."""

    image_embeds: Any  # [B,D] of the reference picture, without noise
    reference: Any  # [B,h,w,4] mean of its latents, unscaled
    mean: Any  # [B,V,h,w,4] of the targets' latents, unscaled
    logvar: Any  # [B,V,h,w,4]


class Draws(NamedTuple):
    """Every random array of a training step."""

    clip_noise: Any  # [B,V,D]
    vae_noise: Any  # [B,V,h,w,4]
    latent_noise: Any  # [B,V,h,w,4], independent for every view
    timesteps: Any  # [B], shared by the views of an object
    dropout: Any  # [B] in [0,1)


def draw_training(
    rng: jax.Array, networks: Networks, shape: tuple[int, ...], n_steps: int
) -> Draws:
    """Draws for latents of `shape` [B,V,h,w,4]."""
    keys = jax.random.split(rng, 5)
    embed = (*shape[:2], networks.image_normalizer.embedding_dim)
    return Draws(
        jax.random.normal(keys[0], embed),
        jax.random.normal(keys[1], shape),
        jax.random.normal(keys[2], shape),
        jax.random.randint(keys[3], shape[:1], 0, n_steps),
        jax.random.uniform(keys[4], shape[:1]),
    )


def encode(
    networks: Networks, params: Mapping[str, Any], targets: jax.Array, reference: Any = None
) -> Encoded:
    """Run the frozen networks.

    Args:
        networks: modules.
        params: weights of vae and image_encoder.
        targets: [B,V,H,W,3] in [0,1], slot 0 first.
        reference: [B,H,W,3]; None = slot 0's picture, whose moments are not computed twice.
    """
    b, v = targets.shape[:2]

    def moments(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return networks.vae.apply({"params": params["vae"]}, 2 * images - 1, method="encode")

    pictures = constrain(targets.reshape(b * v, *targets.shape[2:]), "picture", None, None, None)
    mean, logvar = moments(pictures)
    mean, logvar = (x.reshape(b, v, *x.shape[1:]) for x in (mean, logvar))
    embeds = embed(networks, params, targets[:, 0] if reference is None else reference)
    known = mean[:, 0] if reference is None else moments(reference)[0]
    return jax.lax.stop_gradient(Encoded(embeds, known, mean, logvar))


def embed(networks: Networks, params: Mapping[str, Any], pictures: jax.Array) -> jax.Array:
    """Image embeddings [N,D] of pictures [N,H,W,3] in [0,1], without noise."""
    pixels = clip_pixels_float(pictures, networks.clip)
    return networks.image_encoder.apply({"params": params["image_encoder"]}, pixels)


def diffusion_loss(
    params: Any,
    encoded: Encoded,
    prompts: jax.Array,
    draws: Draws,
    *,
    networks: Networks,
    normalizer: Any,
    config: DiffusionLossConfig = DiffusionLossConfig(),
    poses: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted squared error of the predicted velocity.

    Args:
        params: the UNet's weights.
        encoded: of `encode`.
        prompts: [V,T,C] or [B,V,T,C].
        draws: of `draw_training`.
        networks: modules.
        normalizer: weights of the image normaliser.
        config: of the loss.
        poses: [B,V,4] for a posed network.

    Returns:
        The loss, and metrics: the unweighted error and that of the quarters of the schedule.
    """
    scale = networks.vae.config.scaling_factor
    table = jnp.asarray(schedule.alpha_bars(networks.latent_noise))
    x0 = autoencoder.sample_latents(encoded.mean, encoded.logvar, draws.vae_noise) * scale
    noisy = schedule.add_noise(x0, draws.latent_noise, draws.timesteps, table)
    target = schedule.velocity(x0, draws.latent_noise, draws.timesteps, table)

    labels = class_labels(networks, normalizer, encoded.image_embeds[:, None], draws.clip_noise)
    keep_label, keep_picture = dropout_masks(draws.dropout, config.drop_rate)
    labels = labels * keep_label[:, None, None]
    reference = encoded.reference * scale * keep_picture[:, None, None, None]
    reference = jnp.broadcast_to(reference[:, None], noisy.shape)
    prompts = jnp.broadcast_to(prompts, (noisy.shape[0], *prompts.shape[-3:]))

    sample = jnp.concatenate([noisy, reference], axis=-1)
    found = networks.unet.apply(
        {"params": params}, sample, draws.timesteps, prompts, labels, poses=poses
    )
    error = jnp.mean((found - target) ** 2, axis=(2, 3, 4))  # [B,V]
    weight = schedule.min_snr_weights(table[draws.timesteps], config.snr_gamma, config.snr_form)
    loss = jnp.mean(weight[:, None] * error)
    return loss, {"mse": jnp.mean(error)}


def dropout_masks(u: jax.Array, rate: float) -> tuple[jax.Array, jax.Array]:
    """1 or 0 for the label and for the reference picture of each object, from u in [0,1).

    Below `rate` the label is dropped, below twice that both, below three times the picture.
    """
    drop_label = u < 2 * rate
    drop_picture = (u >= rate) & (u < 3 * rate)
    return 1.0 - drop_label, 1.0 - drop_picture
