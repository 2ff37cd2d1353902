"""The multi-view UNet: Stable Diffusion 2.1's, with keys and values shared between the views.

Per view it sees the noisy latents and, behind them on the channel axis, the latents of the
reference picture; the view's prompt embedding by cross-attention; and the reference picture's CLIP
embedding added to the time embedding. Views exchange information in self-attention only:

* `sparse`: every view attends to slot 0 and itself. The released weights were trained this way.
* `dense`: every view attends to all views of its object.
* `none`: every view attends to itself.

There is no pose input, so the network can only learn one rig of cameras. `pose_features > 0` adds
one (the variant `posed`): context tokens made from each view's azimuth, elevation, radius and focal
length, attended apart from the text and zero at the start, so pretrained weights start unchanged.

Letters: N = B * V pictures, T = h * w tokens of a picture, L = tokens of a prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from mouselift_jax.errors import ConfigError, ShapeError, one_of
from mouselift_jax.models.attention import attention
from mouselift_jax.models.layers import constrain, is_split
from mouselift_jax.models.unet_blocks import (
    Downsample,
    Dtype,
    ResnetBlock,
    Upsample,
    conv,
    group_norm,
    linear,
    sinusoid,
)

ATTENTION_MODES = ("sparse", "dense", "none")
PICTURES = ("picture", None, None, None)  # [N,h,w,C]: views may lie on different devices
# azimuth and elevation enter as sine and cosine, log radius and log focal length as they are
POSE_TOKENS = 4


@dataclasses.dataclass(frozen=True)
class MVUNetConfig:
    """Sizes of the UNet; the defaults are the released model's."""

    sample_size: int = 64  # latent pixels along a side; 8 picture pixels each
    in_channels: int = 8  # noisy latents, then latents of the reference picture
    out_channels: int = 4
    block_channels: Sequence[int] = (320, 640, 1280, 1280)
    block_attends: Sequence[bool] = (True, True, True, False)  # on the way down
    heads: Sequence[int] = (5, 10, 20, 20)
    layers_per_block: int = 2
    context_dim: int = 1024  # of the prompt embedding
    class_dim: int = 2048  # of the noise-augmented image embedding with its noise level
    norm_groups: int = 32
    norm_eps: float = 1e-5
    n_views: int = 6
    attention: str = "sparse"  # used when the call does not say
    pose_features: int = 0  # hidden width of the pose encoder; 0 = no pose input

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_channels", tuple(self.block_channels))
        object.__setattr__(self, "block_attends", tuple(self.block_attends))
        object.__setattr__(self, "heads", tuple(self.heads))
        lengths = {len(self.block_channels), len(self.block_attends), len(self.heads)}
        if len(lengths) != 1:
            raise ConfigError(
                "The UNet's lists differ in length",
                where="block_channels, block_attends, heads",
                found=(self.block_channels, self.block_attends, self.heads),
                fix="one entry a level in each of the three",
            )
        one_of(self.attention, ATTENTION_MODES, "Unknown attention mode")


class Embedding(nn.Module):
    """Linear, SiLU, Linear."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*B _"]) -> Float[Array, "*B _"]:
        """Embed a sinusoid or a class vector."""
        x = nn.silu(linear(self.features, name="linear_1", dtype=self.dtype)(x))
        return linear(self.features, name="linear_2", axes=("mlp", "embed"), dtype=self.dtype)(x)


class CrossAttention(nn.Module):
    """Multi-head attention with the parameters of diffusers' `Attention`.

    Without `context` the views of an object share keys and values as `mode` says; with it, each
    view attends to its own prompt, and apart from that to its pose tokens.
    """

    heads: int
    mode: str
    n_views: int
    dtype: Dtype
    implementation: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N T C"],
        context: Float[Array, "N L _"] | None = None,
        pose: Float[Array, "N _ _"] | None = None,
    ) -> Float[Array, "N T C"]:
        """Attend and project."""
        channels = x.shape[-1]

        def project(name: str) -> nn.Dense:
            return linear(
                channels, name=name, use_bias=False, axes=("embed", "heads"), dtype=self.dtype
            )

        def split(y: Array) -> Array:
            return y.reshape(*y.shape[:2], self.heads, channels // self.heads)

        to_k, to_v = project("to_k"), project("to_v")
        q = split(project("to_q")(x))
        source = x if context is None else context
        k, v = split(to_k(source)), split(to_v(source))
        if context is None:
            y = self._across_views(q, k, v)
        else:
            y = self._attend(q, k, v)
            if pose is not None:
                # Apart from the text: as more tokens of one softmax, even zeros would dilute it.
                y = y + self._attend(q, split(to_k(pose)), split(to_v(pose)))
        y = y.reshape(x.shape)
        return linear(channels, name="to_out_0", axes=("heads", "embed"), dtype=self.dtype)(y)

    def _attend(self, q: Array, k: Array, v: Array, batch: str = "picture") -> Array:
        how, quiet = self.implementation, self.is_initializing()
        return attention(q, k, v, implementation=how, batch=batch, quiet=quiet)

    def _across_views(self, q: Array, k: Array, v: Array) -> Array:
        """Self-attention over the views of each object, `mode` deciding who sees whom."""
        (n, t, heads, d), views = q.shape, self.n_views
        if self.mode == "none" or views == 1:
            return self._attend(q, k, v)
        if self.mode == "dense":
            all_views = (n // views, views * t, heads, d)
            q, k, v = (y.reshape(all_views) for y in (q, k, v))
            return self._attend(q, k, v, "batch").reshape(n, t, heads, d)
        q, k, v = (y.reshape(n // views, views, t, heads, d) for y in (q, k, v))
        if is_split("view", views):
            # Slot 0's keys and values travel to the devices of the other views. Slot 0 sees its own
            # twice, which cancels in the softmax and keeps the devices even.
            hub = [jnp.broadcast_to(y[:, :1], y.shape) for y in (k, v)]
            k, v = (jnp.concatenate(pair, axis=2) for pair in zip(hub, (k, v), strict=True))
            q, k, v = (y.reshape(n, -1, heads, d) for y in (q, k, v))
            return self._attend(q, k, v)
        # Slot 0 would see its own tokens twice, which cancels in the softmax.
        hub = self._attend(q[:, 0], k[:, 0], v[:, 0], "batch")
        shape = (n // views, views - 1, t, heads, d)
        with_hub = [
            jnp.concatenate([jnp.broadcast_to(y[:, :1], shape), y[:, 1:]], axis=2) for y in (k, v)
        ]
        k, v = (y.reshape(-1, 2 * t, heads, d) for y in with_hub)
        rest = self._attend(q[:, 1:].reshape(-1, t, heads, d), k, v, "batch")
        out = jnp.concatenate([hub[:, None], rest.reshape(shape)], axis=1)
        return out.reshape(n, t, heads, d)


class GatedProjection(nn.Module):
    """One linear layer to twice the width: values, then gates under an exact GELU."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*B _"]) -> Float[Array, "*B _"]:
        """Project and gate."""
        y = linear(2 * self.features, name="proj", dtype=self.dtype)(x)
        value, gate = jnp.split(y, 2, axis=-1)
        return value * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """The gated two-layer network of a transformer block."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        """Apply both layers."""
        channels = x.shape[-1]
        x = GatedProjection(4 * channels, name="net_0", dtype=self.dtype)(x)
        return linear(channels, name="net_2", axes=("mlp", "embed"), dtype=self.dtype)(x)


class TransformerBlock(nn.Module):
    """Self-attention across views, cross-attention to the prompt, feed-forward; pre-norm."""

    heads: int
    mode: str
    n_views: int
    dtype: Dtype
    implementation: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N T C"],
        context: Float[Array, "N L _"],
        pose: Float[Array, "N _ _"] | None = None,
    ) -> Float[Array, "N T C"]:
        """Apply the three sub-layers."""

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, use_fast_variance=False, name=name)

        kw = {
            "heads": self.heads,
            "mode": self.mode,
            "n_views": self.n_views,
            "dtype": self.dtype,
            "implementation": self.implementation,
        }
        x = x + CrossAttention(name="attn1", **kw)(norm("norm1")(x))
        x = x + CrossAttention(name="attn2", **kw)(norm("norm2")(x), context, pose)
        return x + FeedForward(name="ff", dtype=self.dtype)(norm("norm3")(x))


class Transformer(nn.Module):
    """A transformer block over the tokens of a picture, wrapped in norm and projections."""

    heads: int
    mode: str
    n_views: int
    groups: int
    dtype: Dtype
    implementation: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N h w C"],
        context: Float[Array, "N L _"],
        pose: Float[Array, "N _ _"] | None = None,
    ) -> Float[Array, "N h w C"]:
        """Pictures in, pictures out."""
        n, h, w, c = x.shape
        y = group_norm(self.groups, 1e-6, name="norm", dtype=self.dtype)(x).reshape(n, h * w, c)
        y = linear(c, name="proj_in", axes=("embed", None), dtype=self.dtype)(y)
        y = constrain(y, "picture", "tokens", "act_embed")
        y = TransformerBlock(
            self.heads,
            self.mode,
            self.n_views,
            self.dtype,
            self.implementation,
            name="transformer_blocks_0",
        )(y, context, pose)
        y = linear(c, name="proj_out", axes=(None, "embed"), dtype=self.dtype)(y)
        return y.reshape(n, h, w, c) + x


class PoseEncoder(nn.Module):
    """Azimuth, elevation (radians), radius, focal length (picture widths) -> context tokens.

    The last layer starts at zero, so a network that was trained without poses starts unchanged.
    """

    features: int
    context_dim: int
    dtype: Dtype

    @nn.compact
    def __call__(self, poses: Float[Array, "N 4"]) -> Float[Array, "N _ _"]:
        """One token per quantity."""
        azimuth, elevation, radius, focal = jnp.moveaxis(poses.astype(jnp.float32), -1, 0)
        harmonics = [
            f(k * a) for k in (1, 2, 4) for a in (azimuth, elevation) for f in (jnp.sin, jnp.cos)
        ]
        x = jnp.stack([*harmonics, jnp.log(radius), jnp.log(focal)], axis=-1)
        x = nn.silu(linear(self.features, name="linear_1", dtype=self.dtype)(x))
        x = nn.silu(linear(self.features, name="linear_2", dtype=self.dtype)(x))
        x = linear(POSE_TOKENS * self.context_dim, name="linear_3", zero=True, dtype=self.dtype)(x)
        return x.reshape(-1, POSE_TOKENS, self.context_dim)


class Block(nn.Module):
    """One resolution level: resnets, each with a transformer where the level attends."""

    channels: int
    n_resnets: int
    resample: Literal["down", "up"] | None
    heads: int
    attends: bool
    config: MVUNetConfig
    mode: str
    n_views: int
    dtype: Dtype
    remat: bool
    implementation: str | None
    mid: bool = False  # the middle block begins with one resnet more

    @nn.compact
    def __call__(
        self,
        x: Array,
        embedding: Array,
        context: Array,
        pose: Array | None,
        skips: tuple[Array, ...] = (),
    ) -> tuple[Array, tuple[Array, ...]]:
        """Apply the level; returns its output and every output on the way."""
        cfg = self.config
        # prevent_cse stays on: without a scan around it, XLA would undo the recomputation.
        make_resnet = nn.remat(ResnetBlock) if self.remat else ResnetBlock
        make_transformer = nn.remat(Transformer) if self.remat else Transformer

        def resnet(i: int, x: Array) -> Array:
            args = (self.channels, cfg.norm_groups, cfg.norm_eps, self.dtype)
            return make_resnet(*args, name=f"resnets_{i}")(x, embedding)

        if self.mid:
            x = resnet(0, x)
        outputs = []
        for i in range(self.n_resnets):
            if skips:
                x = jnp.concatenate([x, skips[-1 - i]], axis=-1)
            # In the middle the transformer stands between two resnets, elsewhere behind each.
            x = x if self.mid else resnet(i, x)
            if self.attends:
                x = make_transformer(
                    self.heads,
                    self.mode,
                    self.n_views,
                    cfg.norm_groups,
                    self.dtype,
                    self.implementation,
                    name=f"attentions_{i}",
                )(x, context, pose)
            x = resnet(i + 1, x) if self.mid else x
            x = constrain(x, *PICTURES)
            outputs.append(x)
        if self.resample == "down":
            x = Downsample(self.channels, dtype=self.dtype, name="downsamplers_0")(x)
            outputs.append(x)
        elif self.resample == "up":
            x = Upsample(self.channels, dtype=self.dtype, name="upsamplers_0")(x)
        return x, tuple(outputs)


class MVUNet(nn.Module):
    """The network. Parameters are float32; `dtype` is what it computes in.

    Args:
        config: sizes.
        dtype: of the activations and products; group norms and softmax reduce in float32.
        remat: recompute each resnet and each transformer in the backward pass.
        implementation: of attention, see `models.attention`; None = best for the device.
    """

    config: MVUNetConfig = MVUNetConfig()
    dtype: Dtype = jnp.float32
    remat: bool = False
    implementation: str | None = None

    @nn.compact
    def __call__(
        self,
        sample: Float[Array, "B V h w _"],
        timesteps: Int[Array, " B"],
        prompt_embeds: Float[Array, "B V L _"],
        class_labels: Float[Array, "B V _"],
        attention: str | None = None,
        poses: Float[Array, "B V 4"] | None = None,
    ) -> Float[Array, "B V h w _"]:
        """Predict v for every view.

        Args:
            sample: noisy latents, then the reference picture's latents, on the channel axis.
            timesteps: one per object.
            prompt_embeds: text embedding of each view.
            class_labels: noise-augmented CLIP embedding with the sinusoid of its noise level.
            attention: which views see which; None = the config's.
            poses: azimuth and elevation in radians, camera radius in scene units, focal length in
                picture widths; for a network with `pose_features`.

        Returns:
            The prediction, float32.
        """
        cfg = self.config
        mode = attention or cfg.attention
        _check_inputs(cfg, sample, prompt_embeds, class_labels, mode, poses)
        b, v = sample.shape[:2]
        n = b * v
        x = constrain(sample.reshape(n, *sample.shape[2:]).astype(self.dtype), *PICTURES)
        context = prompt_embeds.reshape(n, *prompt_embeds.shape[2:]).astype(self.dtype)

        width = 4 * cfg.block_channels[0]
        time = sinusoid(timesteps, cfg.block_channels[0]).astype(self.dtype)
        time = Embedding(width, self.dtype, name="time_embedding")(time)
        label = class_labels.reshape(n, -1).astype(self.dtype)
        label = Embedding(width, self.dtype, name="class_embedding")(label)
        embedding = jnp.repeat(time, v, axis=0) + label
        pose = None
        if cfg.pose_features:
            encoder = PoseEncoder(
                cfg.pose_features, cfg.context_dim, self.dtype, name="pose_encoder"
            )
            pose = encoder(poses.reshape(n, 4))

        x = conv(cfg.block_channels[0], 3, padding=1, name="conv_in", dtype=self.dtype)(x)
        x = self._levels(x, (embedding, context, pose), mode, v)
        x = group_norm(cfg.norm_groups, cfg.norm_eps, name="conv_norm_out", dtype=self.dtype)(x)
        x = conv(cfg.out_channels, 3, padding=1, name="conv_out", dtype=self.dtype)(nn.silu(x))
        return x.reshape(b, v, *x.shape[1:]).astype(jnp.float32)

    def _levels(self, x: Array, inputs: tuple[Any, ...], mode: str, n_views: int) -> Array:
        """Down, middle and up, with the skip connections between them."""
        cfg = self.config
        last = len(cfg.block_channels) - 1

        def block(level: int, name: str, **kw: Any) -> Block:
            shared = (cfg, mode, n_views, self.dtype, self.remat, self.implementation)
            names = ("config", "mode", "n_views", "dtype", "remat", "implementation")
            kw = {
                "attends": cfg.block_attends[level],
                **dict(zip(names, shared, strict=True)),
                **kw,
            }
            return Block(
                channels=cfg.block_channels[level], heads=cfg.heads[level], name=name, **kw
            )

        skips = [x]
        for i in range(last + 1):
            resample = "down" if i < last else None
            down = block(i, f"down_blocks_{i}", n_resnets=cfg.layers_per_block, resample=resample)
            x, outputs = down(x, *inputs)
            skips += outputs
        middle = block(last, "mid_block", n_resnets=1, resample=None, attends=True, mid=True)
        x, _ = middle(x, *inputs)
        n_up = cfg.layers_per_block + 1
        for i in range(last + 1):
            resample = "up" if i < last else None
            up = block(last - i, f"up_blocks_{i}", n_resnets=n_up, resample=resample)
            x, _ = up(x, *inputs, skips=tuple(skips[-n_up:]))
            del skips[-n_up:]
        return x


def _check_inputs(
    cfg: MVUNetConfig, sample: Any, prompt_embeds: Any, class_labels: Any, mode: str, poses: Any
) -> None:
    """Say in the model's words what a shape error deep inside would hide."""
    one_of(mode, ATTENTION_MODES, "Unknown attention mode")
    if sample.shape[-1] != cfg.in_channels:
        raise ShapeError(
            "The UNet's input has the wrong number of channels",
            where="sample",
            expected=f"{cfg.in_channels}: noisy latents, then latents of the reference picture",
            found=list(sample.shape),
        )
    if prompt_embeds.shape[-1] != cfg.context_dim:
        raise ShapeError(
            "The prompt embeddings have the wrong width",
            where="prompt_embeds",
            expected=cfg.context_dim,
            found=f"{prompt_embeds.shape[-1]} (768 is another text encoder's)",
            fix="make them with `launch.py --config=configs/prompts.py`, from this model's encoder",
        )
    if class_labels.shape[-1] != cfg.class_dim:
        raise ShapeError(
            "The image embedding has the wrong width",
            where="class_labels",
            expected=f"{cfg.class_dim}: embedding, then the sinusoid of its noise level",
            found=list(class_labels.shape),
        )
    if bool(cfg.pose_features) != (poses is not None):
        raise ShapeError(
            "Poses are for networks with a pose input, which need them",
            where="poses",
            expected="an array [B,V,4]" if cfg.pose_features else "None",
            found="None" if poses is None else list(poses.shape),
        )
