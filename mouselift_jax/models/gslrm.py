"""GS-LRM: posed views to one 3D Gaussian a pixel, with a plain transformer.

Zhang et al., "GS-LRM: Large Reconstruction Model for 3D Gaussian Splatting" (2024), in the form
that FaceLift trains (Lyu et al., 2025): rays by direction and nearest point, learned Gaussian
tokens, one weight-only LayerNorm in front of the blocks and none behind. Letters: B batch, V views,
p patch size, L tokens = n_gaussian_tokens + V (H/p) (W/p), D width.

The parameter tree is torch's with the blocks stacked on a leading axis; see
`weights/tables/gslrm.py`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from mouselift_jax.errors import ConfigError, ShapeError, one_of
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.rays import camera_rays, nearest_to_origin
from mouselift_jax.models.attention import KV_AXES, Q_AXES, attention
from mouselift_jax.models.layers import (
    ATTENTION_OUT,
    BLOCK_IN,
    AnyArray,
    constrain,
    dense,
    layer_norm,
    partitioned,
    remat,
)
from mouselift_jax.models.silhouettes import animal_first, hull_span, is_white, room
from mouselift_jax.splats.gaussians import SH_COUNTS, Gaussians
from mouselift_jax.splats.sh import C0

RAY_CHANNELS = {"dir_nearest": 6, "plucker": 6, "plucker_nearest": 9}
SKIP_OPACITY = 5.0  # logits between mid-grey and white, at the start of `pixel_skip`
DEPTHS = ("around_nearest", "around_origin", "range", "hull")
EMPTY = -20.0  # opacity logit of a Gaussian that is not drawn
DEPTH_REACH = 1.8  # scene units each side of the centre; object at the origin, cameras near 2.7


@dataclasses.dataclass(frozen=True)
class GSLRMConfig:
    """Size and variant of a GS-LRM. The defaults are the released network: 303,565,824 parameters.

    Attributes:
        width: D, the residual width.
        head_dim: size of one attention head; it divides `width`.
        n_layers: transformer blocks.
        mlp_ratio: hidden width of the feed-forward layers over `width`.
        patch_size: p, pixels; it divides the picture's sides.
        n_gaussian_tokens: learned tokens, each of which becomes one free Gaussian.
        sh_degree: spherical-harmonics degree of the colours, 0 to 3.
        ray_embed: what a pixel knows of its ray. `dir_nearest`: direction and the ray's point
            nearest the world origin; `plucker`: (o x d, d); `plucker_nearest`: both.
        depth: where along its ray a pixel may put its Gaussian. `around_nearest`: within 1.8 of the
            point nearest the origin; `around_origin`: within 1.8 of the camera's distance to the
            origin; `range`: between `depth_near` and `depth_far`; `hull`: inside the silhouettes of
            the other views, see `models.silhouettes.hull_span`.
        depth_near: scene units, for `range`.
        depth_far: scene units, for `range`.
        depth_bias: added to the depth before the sigmoid.
        log_scale_bias: added to the raw log-scales.
        max_log_scale: upper bound of the log-scales.
        min_log_scale: lower bound of the log-scales; None = none. About one pixel's width on the
            subject: splats smaller than the training pixels look dense there, because rendering
            widens them by half a pixel, and fall apart into dots in sharper pictures.
        opacity_bias: added to the raw opacity logits.
        clip_means: clamp the pixels' Gaussians to the cube [-1, 1]^3. The released weights were
            trained without.
        pixel_skip: a linear map from each pixel's own colour and ray to its Gaussian, beside the
            transformer. It starts as: the pixel's colour, transparent where white, opaque where
            dark. Small networks learn from scratch with it; the released weights have none.
        animal_share: room for the animal, as a share of the pictures' patches; None = all patches
            are tokens and all pixels have Gaussians, as in the released weights. Otherwise white
            pixels have no Gaussian and patches of nothing else are no tokens: a mouse covers a
            tenth of the patches, and the rest would be most of the work. More of them than there is
            room for must not come in: `models.silhouettes.check_room`.
        shared_volume: Gaussians that an input camera does not have in its picture are not drawn:
            the animal is in all of them, so what lies elsewhere is a floater. For inputs that show
            the animal whole. The released weights were trained without. Source: BEAST3D.
        mark_source: add one learned vector to the first view's tokens and another to the others'.
        token_multiple: pad the sequence to a multiple of this, so that a mesh can divide it.
        dtype: of the matrix products; rays, norms, residuals, depths and activations are float32.
        remat: what the backward pass recomputes, see `models.layers.remat`.
        attention: backend, see `models.attention`; None = the best here.
    """

    width: int = 1024
    head_dim: int = 64
    n_layers: int = 24
    mlp_ratio: int = 4
    patch_size: int = 8
    n_gaussian_tokens: int = 2
    sh_degree: int = 0
    ray_embed: Literal["dir_nearest", "plucker", "plucker_nearest"] = "dir_nearest"
    depth: Literal["around_nearest", "around_origin", "range", "hull"] = "around_nearest"
    depth_near: float = 1.2
    depth_far: float = 4.2
    depth_bias: float = 0.0
    log_scale_bias: float = -2.3
    max_log_scale: float = -1.2
    min_log_scale: float | None = None
    opacity_bias: float = -2.0
    clip_means: bool = False
    pixel_skip: bool = False
    animal_share: float | None = None
    shared_volume: bool = False
    mark_source: bool = False
    token_multiple: int = 1
    dtype: str = "float32"
    remat: str = "block"
    attention: str | None = None

    def __post_init__(self) -> None:
        if self.width % self.head_dim:
            raise ConfigError(
                "width must be a multiple of head_dim",
                where="GSLRMConfig",
                found=f"width {self.width}, head_dim {self.head_dim}",
                fix=f"width {self.width - self.width % self.head_dim}, or another head_dim",
            )
        one_of(self.ray_embed, RAY_CHANNELS, "unknown ray_embed")
        one_of(self.depth, DEPTHS, "unknown depth")
        if self.animal_share is not None and not 0 < self.animal_share <= 1:
            raise ConfigError(
                "animal_share lies above 0 and up to 1",
                found=self.animal_share,
                fix="0.25, or None",
            )
        if self.sh_degree not in SH_COUNTS.values():
            raise ConfigError(
                "sh_degree must be 0 to 3", found=self.sh_degree, fix="0, as the released weights"
            )

    @property
    def in_channels(self) -> int:
        """Colour and ray channels of a pixel."""
        return 3 + RAY_CHANNELS[self.ray_embed]

    @property
    def gaussian_channels(self) -> int:
        """Raw channels of one Gaussian: mean 3, colour, scales 3, rotation 4, opacity 1."""
        return 11 + 3 * (self.sh_degree + 1) ** 2

    @property
    def n_heads(self) -> int:
        """Attention heads."""
        return self.width // self.head_dim


class Attention(nn.Module):
    """Multi-head self-attention over all tokens of all views, without masks or biases."""

    config: GSLRMConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], n_tokens: int | None = None
    ) -> Float[Array, "B L D"]:
        """Attend to the first `n_tokens` tokens (None = all)."""
        c = self.config
        qkv = dense(3 * c.width, ("embed", "qkv"), "to_qkv", dtype=c.dtype)(x)
        qkv = qkv.reshape(*x.shape[:2], 3, c.n_heads, c.head_dim)
        q = constrain(qkv[:, :, 0], *Q_AXES)
        k = constrain(qkv[:, :, 1], *KV_AXES)
        v = constrain(qkv[:, :, 2], *KV_AXES)
        quiet = self.is_initializing()
        out = attention(q, k, v, implementation=c.attention, kv_length=n_tokens, quiet=quiet)
        out = checkpoint_name(out.reshape(x.shape), ATTENTION_OUT)
        return dense(c.width, ("heads", "embed"), "fc", dtype=c.dtype)(out)


class MLP(nn.Module):
    """Two linear layers around an exact GELU."""

    config: GSLRMConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Apply the same map to every token."""
        c = self.config
        x = dense(c.mlp_ratio * c.width, ("embed", "mlp"), "fc1", dtype=c.dtype)(x)
        return dense(c.width, ("mlp", "embed"), "fc2", dtype=c.dtype)(nn.gelu(x, approximate=False))


class Block(nn.Module):
    """Pre-norm transformer block on a float32 residual stream."""

    config: GSLRMConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], n_tokens: int | None = None
    ) -> tuple[Float[Array, "B L D"], None]:
        """One step of the scan over layers."""
        c = self.config
        x = checkpoint_name(constrain(x, "batch", "tokens", "act_embed"), BLOCK_IN)
        a = Attention(c, name="attn")(layer_norm("norm1")(x), n_tokens)
        self.sow("intermediates", "block_attn", a)
        x = x + a
        m = MLP(c, name="mlp")(layer_norm("norm2")(x))
        self.sow("intermediates", "block_mlp", m)
        x = constrain(x + m, "batch", "tokens", "act_embed")
        self.sow("intermediates", "block", x)
        return x, None


class Head(nn.Module):
    """LayerNorm and one linear layer: token to raw Gaussian channels."""

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B n D"]) -> Float[Array, "B n F"]:
        """Decode tokens."""
        x = layer_norm("layernorm")(x)
        # In 8 bits a Gaussian would move along its ray by up to half a pixel.
        return dense(
            self.features, ("embed", "gaussian"), "linear", dtype=self.dtype, unrounded=True
        )(x)


class GSLRM(nn.Module):
    """Posed views to Gaussians.

    `apply({"params": p}, images, K, c2w)` returns `Gaussians` [B,N]: the free Gaussians of the
    learned tokens first, then one a pixel in patch-major order (view, patch row, patch column, row,
    column), of the animal's patches alone where `animal_share` is given. With
    `mutable=["intermediates"]` every named step is returned as well: posed_images, patch_tokens,
    tokens_in_ln, block_attn / block_mlp / block (stacked over layers), decoder_raw, upsampler_raw,
    raw_params.
    """

    config: GSLRMConfig

    @nn.compact
    def __call__(
        self,
        images: Float[AnyArray, "B V H W 3"],
        K: Float[AnyArray, "B V 3 3"],
        c2w: Float[AnyArray, "B V 4 4"],
        *,
        features: bool = False,
    ) -> Gaussians | tuple[Gaussians, Float[Array, "B D"]]:
        """Lift views to Gaussians.

        Args:
            images: pictures in [0,1] on the training background (white), at least one view.
            K: intrinsics in pixels of these pictures.
            c2w: camera-to-world, object at the origin, cameras near radius 2.7.
            features: return the mean of the pictures' tokens behind the last block as well, one
                vector of the network's width for each sample: what it knows of the instant, for
                use downstream (behaviour, decoding). Source: BEAST3D.

        Raises:
            ShapeError: the patch size does not divide the pictures.
        """
        c = self.config
        b, v, h, w, _ = images.shape
        if h % c.patch_size or w % c.patch_size:
            raise ShapeError(
                "the patch size does not divide the pictures",
                expected=f"sides that are multiples of {c.patch_size}",
                found=f"{h} x {w}",
                fix="resize the pictures and their cameras",
            )
        f32 = jnp.float32
        images, K, c2w = (jnp.asarray(x, f32) for x in (images, K, c2w))
        rays = camera_rays(K, c2w, h, w)
        ray_o, ray_d = jax.lax.stop_gradient(rays)

        # Tokens: patches of colour and ray, behind the learned ones.
        posed = jnp.concatenate([2 * images - 1, ray_embedding(ray_o, ray_d, c.ray_embed)], axis=-1)
        self.sow("intermediates", "posed_images", posed)
        patches, colors, ray_o, ray_d = (
            patchify(a, c.patch_size).reshape(b, -1, c.patch_size**2 * a.shape[-1])
            for a in (posed, images, ray_o, ray_d)
        )
        view = jnp.repeat(jnp.arange(v), patches.shape[1] // v)[None]
        if c.animal_share is not None:
            kept = animal_first(colors, c.animal_share)
            patches, colors, ray_o, ray_d = (
                jnp.take_along_axis(a, kept[..., None], axis=1)
                for a in (patches, colors, ray_o, ray_d)
            )
            view = view[0, kept]
        x = dense(c.width, ("patch", "embed"), "patch_embedder", dtype=c.dtype)(patches)
        if c.mark_source:
            x = x + self._table("view_type_embeddings", 2)[jnp.minimum(view, 1)]
        self.sow("intermediates", "patch_tokens", x)
        free = self._table("gaussian_position_embeddings", c.n_gaussian_tokens)
        x = jnp.concatenate(
            [jnp.broadcast_to(free, (b, *free.shape)), x.astype(f32)],
            axis=1,
        )
        n_tokens = x.shape[1]
        x = jnp.pad(x, ((0, 0), (0, -n_tokens % c.token_multiple), (0, 0)))
        x = layer_norm("input_layer_norm")(x)
        self.sow("intermediates", "tokens_in_ln", x)

        # Transformer: one scan, so that compile time does not grow with depth.
        blocks = nn.scan(
            remat(Block, c.remat, prevent_cse=False, static_argnums=(2,)),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.n_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(c, name="transformer_layers")(x, n_tokens)

        # Heads: raw channels of the free Gaussians and of the pixels'.
        n_free, per_pixel = c.n_gaussian_tokens, c.gaussian_channels
        free = Head(per_pixel, c.dtype, name="gaussian_upsampler")(x[:, :n_free])
        pixels = Head(c.patch_size**2 * per_pixel, c.dtype, name="pixel_gaussian_decoder")(
            x[:, n_free:n_tokens]
        )
        self.sow("intermediates", "upsampler_raw", free)
        self.sow("intermediates", "decoder_raw", pixels)
        pixels = pixels.reshape(b, -1, per_pixel)
        self.sow("intermediates", "raw_params", jnp.concatenate([free, pixels], axis=1))
        if c.pixel_skip:
            pixels += nn.Dense(
                per_pixel,
                use_bias=False,
                kernel_init=partitioned(skip_init, None, "gaussian"),
                name="pixel_skip",
            )(patches.reshape(b, -1, c.in_channels))
        ray_o, ray_d = (r.reshape(b, -1, 3) for r in (ray_o, ray_d))
        span = hull_span(~is_white(images), K, c2w, ray_o, ray_d) if c.depth == "hull" else None
        white = None if c.animal_share is None else is_white(colors.reshape(b, -1, 3))
        gaussians = decode(free, pixels, ray_o, ray_d, c, span=span, empty=white)
        if c.shared_volume:
            gaussians = in_all_pictures(gaussians, K, c2w, w, h)
        if features:
            return gaussians, x[:, n_free:n_tokens].astype(f32).mean(1)
        return gaussians

    def _table(self, name: str, rows: int) -> AnyArray:
        init = nn.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0)
        return self.param(
            name, partitioned(init, "vocab", "embed"), (rows, self.config.width), jnp.float32
        )


def in_all_pictures(
    gaussians: Gaussians,
    K: Float[Array, "B V 3 3"],
    c2w: Float[Array, "B V 4 4"],
    width: int,
    height: int,
) -> Gaussians:
    """Gaussians [B,N], transparent where a camera does not have their centre in its picture."""

    def seen(means: Array, K: Array, c2w: Array) -> Array:  # [N,3], of one camera
        xy, depth = Camera(K, c2w, width, height).project(means)
        size = jnp.asarray([width, height], xy.dtype)
        return ((xy >= 0) & (xy <= size)).all(-1) & (depth > 0)

    cameras = jax.vmap(seen, in_axes=(None, 0, 0))
    inside = jax.vmap(cameras)(jax.lax.stop_gradient(gaussians.means), K, c2w).all(1)
    logits = jnp.where(inside, gaussians.opacity_logits, EMPTY)
    return dataclasses.replace(gaussians, opacity_logits=logits)


def skip_init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """The start of `pixel_skip`: a pixel's colour as it is, and an opacity that falls with it.

    Pictures come on white: the whiter, 2 rgb - 1 = (1, 1, 1), the more likely background.
    """
    del key
    kernel = jnp.zeros(shape, dtype)
    kernel = kernel.at[jnp.arange(3), 3 + jnp.arange(3)].set(0.5 / C0)
    return kernel.at[:3, -1].set(-SKIP_OPACITY / 3)


def ray_embedding(
    ray_o: Float[Array, "... 3"], ray_d: Float[Array, "... 3"], kind: str
) -> Float[Array, "... R"]:
    """What the network is told of each ray, see `GSLRMConfig.ray_embed`."""
    moment, nearest = jnp.cross(ray_o, ray_d), nearest_to_origin(ray_o, ray_d)
    parts = {
        "dir_nearest": (ray_d, nearest),
        "plucker": (moment, ray_d),
        "plucker_nearest": (moment, ray_d, nearest),
    }
    return jnp.concatenate(parts[kind], axis=-1)


def patchify(x: Float[Array, "B V H W C"], p: int) -> Float[Array, "B V n F"]:
    """Cut views into patches in row-major order, each flattened as (row, column, channel)."""
    b, v, h, w, c = x.shape
    x = x.reshape(b, v, h // p, p, w // p, p, c).swapaxes(3, 4)
    return x.reshape(b, v, (h // p) * (w // p), p * p * c)


def unpatchify(
    x: Float[Array, "B N C"], n_views: int, height: int, width: int, p: int
) -> Float[Array, "B V H W C"]:
    """Bring one value a pixel from patch-major order back into pictures."""
    b, _, c = x.shape
    x = x.reshape(b, n_views, height // p, width // p, p, p, c).swapaxes(3, 4)
    return x.reshape(b, n_views, height, width, c)


def decode(
    free: Float[Array, "B n F"],
    pixels: Float[Array, "B M F"],
    ray_o: Float[Array, "B M 3"],
    ray_d: Float[Array, "B M 3"],
    config: GSLRMConfig,
    *,
    span: tuple[Float[Array, "B M"], Float[Array, "B M"]] | None = None,
    empty: Bool[Array, "B M"] | None = None,
) -> Gaussians:
    """Turn raw channels into Gaussians; pixels' means lie on their rays.

    Args:
        free: raw channels of the free Gaussians: mean 3, colour, log-scales 3, quaternion 4,
            opacity.
        pixels: raw channels of the pixels' Gaussians, patch-major; their first three are averaged
            into one depth.
        ray_o: origin of each pixel's ray.
        ray_d: unit direction of each pixel's ray.
        config: biases, bounds and the depth's parametrisation.
        span: where each pixel's Gaussian may lie along its ray, for depth `hull`.
        empty: pixels whose Gaussians are not drawn.
    """
    s = nn.sigmoid(pixels[..., :3].mean(-1, keepdims=True) + config.depth_bias)
    if config.depth == "hull":
        t = span[0][..., None] + s * (span[1] - span[0])[..., None]
    elif config.depth == "range":
        t = config.depth_near + s * (config.depth_far - config.depth_near)
    elif config.depth == "around_origin":
        t = DEPTH_REACH * (2 * s - 1) + jnp.linalg.norm(ray_o, axis=-1, keepdims=True)
    else:
        t = DEPTH_REACH * (2 * s - 1) - (ray_o * ray_d).sum(-1, keepdims=True)
    means = ray_o + t * ray_d
    if config.clip_means:
        means = jnp.clip(means, -1.0, 1.0)

    raw = jnp.concatenate([free, pixels], axis=1)
    n_sh = (config.sh_degree + 1) ** 2
    sh, scales, quats, opacity = jnp.split(raw[..., 3:], [3 * n_sh, 3 * n_sh + 3, 3 * n_sh + 7], -1)
    log_scales = jnp.minimum(scales + config.log_scale_bias, config.max_log_scale)
    if config.min_log_scale is not None:
        log_scales = jnp.maximum(log_scales, config.min_log_scale)
    logits = opacity[..., 0] + config.opacity_bias
    if empty is not None:
        n_free = free.shape[1]
        logits = logits.at[:, n_free:].set(jnp.where(empty, EMPTY, logits[:, n_free:]))
    return Gaussians(
        means=jnp.concatenate([free[..., :3], means], axis=1),
        quats=quats,
        log_scales=log_scales,
        opacity_logits=logits,
        sh=sh.reshape(*sh.shape[:-1], n_sh, 3),
    )


def forward_flops(config: GSLRMConfig, n_views: int, height: int, width: int) -> float:
    """Floating-point operations of one forward pass of one sample: 2 for each multiply-add."""
    c = config
    patches = room(n_views * height * width // c.patch_size**2, c.animal_share)
    n, pixels = c.n_gaussian_tokens + patches, patches * c.patch_size**2
    weights = (4 + 2 * c.mlp_ratio) * c.width**2
    blocks = c.n_layers * (2 * weights * n + 4 * n**2 * c.width)
    ends = 2 * c.width * pixels * (c.in_channels + c.gaussian_channels)
    return float(blocks + ends)


def n_params(config: GSLRMConfig) -> int:
    """Parameters of the network, without allocating them."""
    shapes = param_shapes(config)
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def param_shapes(config: GSLRMConfig) -> dict:
    """The parameter tree as `jax.ShapeDtypeStruct`s; sizes do not depend on the pictures'."""
    p = config.patch_size
    x = jax.ShapeDtypeStruct((1, 1, p, p, 3), jnp.float32)
    K = jax.ShapeDtypeStruct((1, 1, 3, 3), jnp.float32)
    c2w = jax.ShapeDtypeStruct((1, 1, 4, 4), jnp.float32)
    shapes = jax.eval_shape(GSLRM(config).init, jax.random.key(0), x, K, c2w)
    return nn.meta.unbox(shapes["params"])
