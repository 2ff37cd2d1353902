"""CLIP's two towers as this project needs them, and the normaliser of image embeddings.

* `ImageEncoder`: OpenCLIP ViT-H/14 with its projection; the embedding is not normalised.
* `TextEncoder`: Stable Diffusion 2's text tower, last hidden state after the final norm. It runs
  only to make prompt-embedding files.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from mouselift_jax.errors import ConfigError, ShapeError
from mouselift_jax.models.attention import attention
from mouselift_jax.models.unet_blocks import Dtype, linear


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the image encoder; the defaults are ViT-H/14's."""

    hidden_size: int = 1280
    intermediate_size: int = 5120
    n_layers: int = 32
    n_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    projection_dim: int = 1024
    activation: str = "gelu"  # gelu (exact) | quick_gelu
    norm_eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the text encoder; the defaults are Stable Diffusion 2's."""

    vocab_size: int = 49408
    hidden_size: int = 1024
    intermediate_size: int = 4096
    n_layers: int = 23
    n_heads: int = 16
    max_tokens: int = 77
    activation: str = "gelu"
    norm_eps: float = 1e-5


def _activate(x: Array, name: str) -> Array:
    if name == "gelu":
        return nn.gelu(x, approximate=False)
    if name == "quick_gelu":
        return x * nn.sigmoid(1.702 * x)
    raise ConfigError(
        "Unknown activation of CLIP",
        expected="gelu or quick_gelu",
        found=name,
        fix="give the CLIP of Stable Diffusion 2.1 unCLIP",
    )


def _norm(name: str, eps: float, dtype: Dtype) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases; causal in the text tower."""

    n_heads: int
    causal: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
        """Attend."""
        n, t, d = x.shape
        q, k, v = (
            linear(d, name=name, axes=("embed", "heads"), dtype=self.dtype)(x).reshape(
                n, t, self.n_heads, d // self.n_heads
            )
            for name in ("q_proj", "k_proj", "v_proj")
        )
        if self.causal:  # 77 tokens: no need of a tiled implementation
            y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        else:
            y = attention(q, k, v, quiet=self.is_initializing())
        y = y.reshape(n, t, d)
        return linear(d, name="out_proj", axes=("heads", "embed"), dtype=self.dtype)(y)


class MLP(nn.Module):
    """Two linear layers."""

    features: int
    activation: str
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
        """Apply both."""
        y = linear(self.features, name="fc1", dtype=self.dtype)(x)
        y = _activate(y, self.activation)
        return linear(x.shape[-1], name="fc2", axes=("mlp", "embed"), dtype=self.dtype)(y)


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    config: VisionConfig | TextConfig
    causal: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
        """Apply attention and MLP."""
        cfg = self.config
        y = _norm("layer_norm1", cfg.norm_eps, self.dtype)(x)
        x = x + SelfAttention(cfg.n_heads, self.causal, self.dtype, name="self_attn")(y)
        y = _norm("layer_norm2", cfg.norm_eps, self.dtype)(x)
        return x + MLP(cfg.intermediate_size, cfg.activation, self.dtype, name="mlp")(y)


class Layers(nn.Module):
    """The stack of layers."""

    config: VisionConfig | TextConfig
    causal: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
        """Apply every layer."""
        for i in range(self.config.n_layers):
            x = Layer(self.config, self.causal, self.dtype, name=f"layers_{i}")(x)
        return x


class VisionEmbeddings(nn.Module):
    """Patches, a class token in front, and positions."""

    config: VisionConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, pixels: Float[Array, "N H W 3"]) -> Float[Array, "N T D"]:
        """Pictures -> tokens."""
        cfg = self.config
        patch = (cfg.patch_size, cfg.patch_size)
        x = nn.Conv(
            cfg.hidden_size,
            patch,
            strides=patch,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            name="patch_embedding",
        )(pixels)
        x = x.reshape(x.shape[0], -1, cfg.hidden_size)
        init = nn.initializers.normal(0.02)
        token = self.param("class_embedding", init, (cfg.hidden_size,))
        token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, cfg.hidden_size))
        x = jnp.concatenate([token, x], axis=1)
        table = nn.Embed(
            x.shape[1],
            cfg.hidden_size,
            dtype=self.dtype,
            embedding_init=init,
            name="position_embedding",
        )
        return x + table(jnp.arange(x.shape[1]))


class VisionTower(nn.Module):
    """The image transformer up to the normalised class token."""

    config: VisionConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, pixels: Float[Array, "N H W 3"]) -> Float[Array, "N D"]:
        """Pictures -> one feature vector each."""
        cfg = self.config
        x = VisionEmbeddings(cfg, self.dtype, name="embeddings")(pixels)
        x = _norm("pre_layrnorm", cfg.norm_eps, self.dtype)(x)  # spelt so in the checkpoints
        x = Layers(cfg, False, self.dtype, name="encoder")(x)
        return _norm("post_layernorm", cfg.norm_eps, self.dtype)(x[:, 0])


class ImageEncoder(nn.Module):
    """CLIP's image encoder with projection."""

    config: VisionConfig = VisionConfig()
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: Float[Array, "N H W 3"]) -> Float[Array, "N _"]:
        """CLIP-normalised pictures -> image embeddings, float32, not of unit length."""
        cfg = self.config
        if pixels.shape[1:3] != (cfg.image_size, cfg.image_size):
            raise ShapeError(
                "The image encoder takes pictures of one size",
                where="pixels",
                expected=f"[N,{cfg.image_size},{cfg.image_size},3]",
                found=list(pixels.shape),
                fix="preprocess them with `pipelines.preprocess.clip_pixels`",
            )
        x = VisionTower(cfg, self.dtype, name="vision_model")(pixels.astype(self.dtype))
        x = linear(cfg.projection_dim, name="visual_projection", use_bias=False, dtype=self.dtype)(
            x
        )
        return x.astype(jnp.float32)


class TextEmbeddings(nn.Module):
    """Tokens and positions."""

    config: TextConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, tokens: Int[Array, "N T"]) -> Float[Array, "N T D"]:
        """Look both up."""
        cfg, init = self.config, nn.initializers.normal(0.02)
        kw = {"dtype": self.dtype, "embedding_init": init}
        words = nn.Embed(cfg.vocab_size, cfg.hidden_size, name="token_embedding", **kw)
        places = nn.Embed(cfg.max_tokens, cfg.hidden_size, name="position_embedding", **kw)
        return words(tokens) + places(jnp.arange(tokens.shape[1]))


class TextTower(nn.Module):
    """The text transformer."""

    config: TextConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, tokens: Int[Array, "N T"]) -> Float[Array, "N T D"]:
        """Token numbers -> hidden states after the final norm."""
        cfg = self.config
        x = TextEmbeddings(cfg, self.dtype, name="embeddings")(tokens)
        x = Layers(cfg, True, self.dtype, name="encoder")(x)
        return _norm("final_layer_norm", cfg.norm_eps, self.dtype)(x)


class TextEncoder(nn.Module):
    """Stable Diffusion 2's text encoder."""

    config: TextConfig = TextConfig()
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "N T"]) -> Float[Array, "N T _"]:
        """Token numbers, padded to `max_tokens` -> prompt embeddings, float32."""
        return TextTower(self.config, self.dtype, name="text_model")(tokens).astype(jnp.float32)


class ImageNormalizer(nn.Module):
    """Statistics of image embeddings: noise is added to the standardised embedding."""

    embedding_dim: int = 1024
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Two constants; the released model's are 0 and 1."""
        self.mean = self.param("mean", nn.initializers.zeros, (1, self.embedding_dim))
        self.std = self.param("std", nn.initializers.ones, (1, self.embedding_dim))

    def scale(self, embeds: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Standardise."""
        return (embeds - self.mean[0]) / self.std[0]

    def unscale(self, embeds: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Undo `scale`."""
        return embeds * self.std[0] + self.mean[0]

    def __call__(self, embeds: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """The same as `scale`."""
        return self.scale(embeds)
