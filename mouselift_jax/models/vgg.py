"""Distances of pictures in the features of VGG: the perceptual loss, and LPIPS.

Both are called as `module.apply({"params": p}, a, b)` on pictures [N,H,W,3] in [0,1] and return one
distance a picture. Weights are frozen and come from elsewhere: VGG-19 of MatConvNet (also carried
in GS-LRM checkpoints), and VGG-16 of torchvision with the channel weights of the lpips package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mouselift_jax.errors import ShapeError
from mouselift_jax.models.layers import AnyArray, partitioned

VGG19_WIDTHS = (64,) * 2 + (128,) * 2 + (256,) * 4 + (512,) * 8
VGG19_POOLS, VGG19_TAPS = (2, 4, 8, 12), (2, 4, 6, 10, 14)  # after convolution number
VGG19_MEAN = (123.68, 116.779, 103.939)  # RGB, 0..255
# Of the picture itself and the five taps.
VGG19_WEIGHTS = (1.0, 1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)

VGG16_WIDTHS = (64,) * 2 + (128,) * 2 + (256,) * 3 + (512,) * 6
VGG16_POOLS, VGG16_TAPS = (2, 4, 7, 10), (2, 4, 7, 10, 13)
VGG16_NAMES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # torchvision's `features.N`
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Conv3x3(nn.Module):
    """3x3 convolution with bias, zero-padded, and ReLU; `x=None` only declares the weights."""

    features: int
    inputs: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"] | None) -> Float[Array, "N H W F"] | None:
        """Apply the layer."""
        shape = (3, 3, self.inputs, self.features)
        init = partitioned(nn.initializers.he_normal(), None, None, "conv_in", "conv_out")
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = self.param("bias", partitioned(nn.initializers.zeros, "conv_out"), shape[-1:])
        if x is None:
            return None
        kernel, bias = (jnp.asarray(w, self.dtype) for w in (kernel, bias))
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return nn.relu(x + bias)


class VGG19(nn.Module):
    """Perceptual distance in VGG-19 features with average pooling.

    Mean absolute differences of the picture (0..255) and of five feature maps, weighted, over 255.
    The last two convolutions are declared because checkpoints carry them; nothing uses them.
    """

    dtype: str = "float32"

    def __call__(
        self, a: Float[AnyArray, "N H W 3"], b: Float[AnyArray, "N H W 3"]
    ) -> Float[Array, "N"]:
        """The distance of each pair of pictures; gradients flow to both."""
        taps = self.features(_pairs(a, b))
        total = 0.0
        for weight, tap in zip(VGG19_WEIGHTS, taps, strict=True):
            fa, fb = _apart(tap)
            total += weight * jnp.mean(jnp.abs(fa - fb), (1, 2, 3), dtype=jnp.float32)
        return total / 255

    @nn.compact
    def features(self, x: Float[AnyArray, "N H W 3"]) -> list[Float[Array, "N h w c"]]:
        """The centred picture in 0..255, and the five feature maps."""
        _check_size(x.shape, VGG19_POOLS)
        x = (jnp.asarray(x) * 255 - jnp.asarray(VGG19_MEAN, jnp.float32)).astype(self.dtype)
        return [x, *_trunk(x, VGG19_WIDTHS, VGG19_POOLS, VGG19_TAPS, nn.avg_pool, self.dtype)]


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity v0.1 on VGG-16 (Zhang et al., 2018)."""

    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, a: Float[AnyArray, "N H W 3"], b: Float[AnyArray, "N H W 3"]
    ) -> Float[Array, "N"]:
        """The distance of each pair of pictures; gradients flow to both."""
        x = _pairs(a, b)
        _check_size(x.shape, VGG16_POOLS)
        shift, scale = (jnp.asarray(v, jnp.float32) for v in (LPIPS_SHIFT, LPIPS_SCALE))
        x = ((2 * x - 1 - shift) / scale).astype(self.dtype)
        names = [f"features_{i}" for i in VGG16_NAMES]
        taps = _trunk(x, VGG16_WIDTHS, VGG16_POOLS, VGG16_TAPS, nn.max_pool, self.dtype, names)
        total = 0.0
        for i, tap in enumerate(taps):
            fa, fb = _apart(_unit(tap.astype(jnp.float32)))
            weights = ChannelWeights(tap.shape[-1], name=f"lin{i}")()
            total += jnp.mean((jnp.square(fa - fb) * weights).sum(-1), (1, 2))
        return total


class ChannelWeights(nn.Module):
    """Non-negative weights of feature channels."""

    channels: int

    @nn.compact
    def __call__(self) -> Float[AnyArray, "C"]:
        """The weights."""
        init = partitioned(nn.initializers.constant(1 / self.channels), "conv_out")
        return self.param("weights", init, (self.channels,), jnp.float32)


# A picture and its partner lie side by side, not all of one kind before all of the other: so a
# batch that is split over devices stays where it is.


def _pairs(a: AnyArray, b: AnyArray) -> Array:
    """Two stacks [N,...] as one [2N,...]."""
    x = jnp.stack([jnp.asarray(a), jnp.asarray(b)], 1)
    return x.reshape(-1, *x.shape[2:])


def _apart(x: Array) -> tuple[Array, Array]:
    """The two stacks of `_pairs`."""
    x = x.reshape(-1, 2, *x.shape[1:])
    return x[:, 0], x[:, 1]


def _trunk(
    x: Array,
    widths: Sequence[int],
    pools: Sequence[int],
    taps: Sequence[int],
    pool: Callable,
    dtype: str,
    names: Sequence[str] | None = None,
) -> list[Array]:
    """Feature maps after the convolutions numbered `taps`; later ones are only declared."""
    out, inputs = [], 3
    for i, features in enumerate(widths, start=1):
        name = names[i - 1] if names else f"conv{i}"
        used = i <= taps[-1]
        y = Conv3x3(features, inputs, dtype, name=name)(x if used else None)
        inputs = features
        if not used:
            continue
        x = y
        if i in taps:
            out.append(x)
        if i in pools:
            x = pool(x, (2, 2), strides=(2, 2))
    return out


def _unit(x: Array) -> Array:
    """Divide by the norm over channels; its gradient at a zero vector is 0, not NaN."""
    square = (x * x).sum(-1, keepdims=True)
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return x / (norm + 1e-10)


def _check_size(shape: Sequence[int], pools: Sequence[int]) -> None:
    smallest = 2 ** len(pools)
    if min(shape[1:3]) < smallest:
        raise ShapeError(
            "the picture is too small for this network",
            expected=f">= {smallest} px",
            found=f"{shape[1]} x {shape[2]}",
        )
