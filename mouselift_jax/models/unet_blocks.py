"""Convolutional blocks of Stable Diffusion's networks, channels-last; shared by `mvunet` and `vae`.

N below counts pictures (objects times views). Module and parameter names mirror the torch ones of
diffusers, list indices joined by an underscore, so that the conversion tables stay regular.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Real

from mouselift_jax.models.layers import dense, partitioned

Dtype = Any


def conv(
    features: int,
    kernel_size: int,
    *,
    name: str,
    dtype: Dtype,
    stride: int = 1,
    padding: int | tuple[tuple[int, int], tuple[int, int]] = 0,
    use_bias: bool = True,
) -> nn.Conv:
    """A convolution with explicit padding (XLA's SAME differs from torch's for stride 2)."""
    if isinstance(padding, int):
        padding = ((padding, padding),) * 2
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        strides=(stride, stride),
        padding=padding,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=partitioned(nn.initializers.lecun_normal(), None, None, "conv_in", "conv_out"),
        name=name,
    )


def linear(
    features: int,
    *,
    name: str,
    dtype: Dtype,
    use_bias: bool = True,
    axes: tuple[str | None, str | None] = ("embed", "mlp"),
    zero: bool = False,
) -> nn.Dense:
    """A linear layer whose kernel [in, out] carries the logical axes `axes`."""
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return dense(features, axes, name, dtype=dtype, use_bias=use_bias, init=init)


def group_norm(groups: int, epsilon: float, *, name: str, dtype: Dtype) -> nn.GroupNorm:
    """Group normalisation; statistics in float32, by the two-pass variance as in torch."""
    return nn.GroupNorm(groups, epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


class ResnetBlock(nn.Module):
    """GN - SiLU - conv, plus the embedding, GN - SiLU - conv, plus the (projected) input."""

    features: int
    groups: int
    epsilon: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "N h w _"], embedding: Float[Array, "N _"] | None = None
    ) -> Float[Array, "N h w _"]:
        """Apply the block; `embedding` (time and class) is None in the autoencoder."""
        kw = {"dtype": self.dtype}
        y = nn.silu(group_norm(self.groups, self.epsilon, name="norm1", **kw)(x))
        y = conv(self.features, 3, padding=1, name="conv1", **kw)(y)
        if embedding is not None:
            shift = linear(self.features, name="time_emb_proj", axes=(None, "conv_out"), **kw)
            y = y + shift(nn.silu(embedding))[:, None, None, :]
        y = nn.silu(group_norm(self.groups, self.epsilon, name="norm2", **kw)(y))
        y = conv(self.features, 3, padding=1, name="conv2", **kw)(y)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, name="conv_shortcut", **kw)(x)
        return x + y


class Downsample(nn.Module):
    """3x3 convolution of stride 2; padded all round, or right and bottom only (autoencoder)."""

    features: int
    symmetric: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "N h w c"]) -> Float[Array, "N h2 w2 _"]:
        """Halve the picture."""
        padding = 1 if self.symmetric else ((0, 1), (0, 1))
        return conv(self.features, 3, stride=2, padding=padding, name="conv", dtype=self.dtype)(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "N h w c"]) -> Float[Array, "N h2 w2 _"]:
        """Double the picture."""
        n, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c))
        x = x.reshape(n, 2 * h, 2 * w, c)
        return conv(self.features, 3, padding=1, name="conv", dtype=self.dtype)(x)


def sinusoid(t: Real[Array, "*B"], dim: int) -> Float[Array, "*B {dim}"]:
    """Stable Diffusion's embedding of a timestep or noise level: cosines first, float32."""
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(1e4) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.asarray(t, jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
