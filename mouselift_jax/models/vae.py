"""Stable Diffusion's autoencoder: pictures in [-1, 1] <-> latents of one eighth the side.

Latents here are unscaled; the UNet works on latents times `scaling_factor`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mouselift_jax.models.attention import attention
from mouselift_jax.models.unet_blocks import (
    Downsample,
    Dtype,
    ResnetBlock,
    Upsample,
    conv,
    group_norm,
    linear,
)

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder; the defaults are Stable Diffusion's."""

    block_channels: Sequence[int] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    picture_channels: int = 3
    norm_groups: int = 32
    scaling_factor: float = 0.18215  # latents times this have about unit variance

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_channels", tuple(self.block_channels))

    @property
    def downscale(self) -> int:
        """Picture pixels per latent pixel, along a side."""
        return 2 ** (len(self.block_channels) - 1)


class SpatialAttention(nn.Module):
    """Single-head self-attention over the pixels, with its own norm and a residual."""

    groups: int
    dtype: Dtype
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "N h w C"]) -> Float[Array, "N h w C"]:
        """Attend."""
        n, h, w, c = x.shape
        y = group_norm(self.groups, EPSILON, name="group_norm", dtype=self.dtype)(x)
        y = y.reshape(n, h * w, c)
        q, k, v = (
            linear(c, name=name, axes=("embed", "heads"), dtype=self.dtype)(y)[:, :, None, :]
            for name in ("to_q", "to_k", "to_v")
        )
        quiet = self.is_initializing()
        y = attention(q, k, v, implementation=self.implementation, quiet=quiet)[:, :, 0]
        y = linear(c, name="to_out_0", axes=("heads", "embed"), dtype=self.dtype)(y)
        return x + y.reshape(n, h, w, c)


class MidBlock(nn.Module):
    """Resnet, attention, resnet."""

    features: int
    groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "N h w _"]) -> Float[Array, "N h w _"]:
        """Apply all three."""
        args = (self.features, self.groups, EPSILON, self.dtype)
        x = ResnetBlock(*args, name="resnets_0")(x)
        x = SpatialAttention(self.groups, self.dtype, name="attentions_0")(x)
        return ResnetBlock(*args, name="resnets_1")(x)


class Level(nn.Module):
    """Resnets at one resolution, then down- or up-sampling."""

    features: int
    n_resnets: int
    groups: int
    dtype: Dtype
    resample: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "N h w _"]) -> Float[Array, "N h2 w2 _"]:
        """Apply the level."""
        for i in range(self.n_resnets):
            args = (self.features, self.groups, EPSILON, self.dtype)
            x = ResnetBlock(*args, name=f"resnets_{i}")(x)
        if self.resample == "down":
            down = Downsample(self.features, False, dtype=self.dtype, name="downsamplers_0")
            x = down(x)
        elif self.resample == "up":
            x = Upsample(self.features, dtype=self.dtype, name="upsamplers_0")(x)
        return x


class Encoder(nn.Module):
    """Pictures -> features of the moments."""

    config: VAEConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "N H W _"]) -> Float[Array, "N h w _"]:
        """Encode."""
        cfg, kw = self.config, {"dtype": self.dtype}
        last = len(cfg.block_channels) - 1
        x = conv(cfg.block_channels[0], 3, padding=1, name="conv_in", **kw)(x)
        for i, channels in enumerate(cfg.block_channels):
            resample = "down" if i < last else None
            args = (channels, cfg.layers_per_block, cfg.norm_groups, self.dtype, resample)
            x = Level(*args, name=f"down_blocks_{i}")(x)
        x = MidBlock(cfg.block_channels[-1], cfg.norm_groups, self.dtype, name="mid_block")(x)
        x = group_norm(cfg.norm_groups, EPSILON, name="conv_norm_out", **kw)(x)
        return conv(2 * cfg.latent_channels, 3, padding=1, name="conv_out", **kw)(nn.silu(x))


class Decoder(nn.Module):
    """Latents -> pictures."""

    config: VAEConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "N h w _"]) -> Float[Array, "N H W _"]:
        """Decode."""
        cfg, kw = self.config, {"dtype": self.dtype}
        channels = cfg.block_channels[::-1]
        x = conv(channels[0], 3, padding=1, name="conv_in", **kw)(x)
        x = MidBlock(channels[0], cfg.norm_groups, self.dtype, name="mid_block")(x)
        for i, features in enumerate(channels):
            resample = "up" if i < len(channels) - 1 else None
            args = (features, cfg.layers_per_block + 1, cfg.norm_groups, self.dtype, resample)
            x = Level(*args, name=f"up_blocks_{i}")(x)
        x = group_norm(cfg.norm_groups, EPSILON, name="conv_norm_out", **kw)(x)
        return conv(cfg.picture_channels, 3, padding=1, name="conv_out", **kw)(nn.silu(x))


class VAE(nn.Module):
    """The autoencoder; call its methods `encode` and `decode`."""

    config: VAEConfig = VAEConfig()
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the four parts."""
        cfg = self.config
        self.encoder = Encoder(cfg, self.dtype)
        self.decoder = Decoder(cfg, self.dtype)
        self.quant_conv = _pointwise(2 * cfg.latent_channels, self.dtype)
        self.post_quant_conv = _pointwise(cfg.latent_channels, self.dtype)

    def encode(
        self, images: Float[Array, "N H W _"]
    ) -> tuple[Float[Array, "N h w _"], Float[Array, "N h w _"]]:
        """Mean and log-variance of the latents of pictures in [-1, 1], float32, unscaled."""
        moments = self.quant_conv(self.encoder(images.astype(self.dtype))).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: Float[Array, "N h w _"]) -> Float[Array, "N H W _"]:
        """Pictures, about [-1, 1], float32, of unscaled latents."""
        x = self.decoder(self.post_quant_conv(latents.astype(self.dtype)))
        return x.astype(jnp.float32)

    def __call__(self, images: Float[Array, "N H W _"]) -> Float[Array, "N H W _"]:
        """Reconstruct through the mean: touches every parameter, for initialisation."""
        return self.decode(self.encode(images)[0])


def sample_latents(
    mean: Float[Array, "*B"], logvar: Float[Array, "*B"], noise: Float[Array, "*B"]
) -> Float[Array, "*B"]:
    """A sample of the latents' distribution from unit noise."""
    return mean + jnp.exp(0.5 * logvar) * noise


def _pointwise(features: int, dtype: Dtype) -> nn.Conv:
    return nn.Conv(features, (1, 1), dtype=dtype)


def kl_divergence(mean: Float[Array, "*B"], logvar: Float[Array, "*B"]) -> Float[Array, ""]:
    """Mean divergence from the unit Gaussian per latent value; for training a small autoencoder."""
    return 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1.0 - logvar)
