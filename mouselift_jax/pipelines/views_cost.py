"""Floating-point operations of the multi-view networks, counted from their sizes.

A multiplication and an addition count as two. Only convolutions, linear layers and attention
products are counted; the rest is a few per cent. A test compares with the compiler's own count.
"""

from __future__ import annotations

import dataclasses

from mouselift_jax.models.clip import VisionConfig
from mouselift_jax.models.mvunet import POSE_TOKENS, MVUNetConfig
from mouselift_jax.models.vae import VAEConfig
from mouselift_jax.pipelines.views import Networks


def _conv(side: int, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> float:
    """A convolution to a picture of `side` pixels; taps on the padding are not counted."""
    taps = kernel * side - ((2 if stride == 1 else 1) if kernel == 3 else 0)
    return 2.0 * taps**2 * c_in * c_out


@dataclasses.dataclass
class Count:
    """Operations of a forward pass, and those of them that a backward pass with remat repeats.

    What a recomputed block ends with (a resnet's second convolution, a transformer's `proj_out`)
    is not repeated: nothing in the backward pass needs its result.
    """

    forward: float = 0.0
    repeated: float = 0.0

    def add(self, forward: float, repeated: float = 0.0) -> None:
        """Count a part."""
        self.forward += forward
        self.repeated += repeated

    def resnet(self, side: int, c_in: int, c_out: int, embedding: int = 0) -> None:
        """A resnet."""
        first = _conv(side, c_in, c_out) + 2.0 * embedding * c_out
        shortcut = _conv(side, c_in, c_out, 1) if c_in != c_out else 0.0
        self.add(first + shortcut + _conv(side, c_out, c_out), first)


def _attention(tokens: float, keys: float, channels: int) -> float:
    return 4.0 * tokens * keys * channels


def keys_per_view(cfg: MVUNetConfig, tokens: int, mode: str | None = None) -> float:
    """Keys that a token attends to, averaged over the views."""
    mode, v = mode or cfg.attention, cfg.n_views
    if mode == "none" or v == 1:
        return tokens
    return tokens * (v if mode == "dense" else (2 * v - 1) / v)


def _transformer(cfg: MVUNetConfig, tokens: int, c: int, n_tokens: int, mode: str | None) -> float:
    """All but `proj_out`."""
    linear = 2.0 * tokens * c * c
    context = 2.0 * 2 * n_tokens * cfg.context_dim * c
    if cfg.pose_features:
        context += 2.0 * 2 * POSE_TOKENS * cfg.context_dim * c
        context += _attention(tokens, POSE_TOKENS, c)
    # proj_in; q, k, v, out among the views; q, out to the prompt; 8 + 4 of the MLP
    return (
        (1 + 4 + 2 + 12) * linear
        + context
        + _attention(tokens, keys_per_view(cfg, tokens, mode), c)
        + _attention(tokens, n_tokens, c)
    )


def unet_count(cfg: MVUNetConfig, n_tokens: int = 77, mode: str | None = None) -> Count:
    """One view."""
    channels, last = list(cfg.block_channels), len(cfg.block_channels) - 1
    width, side, total = 4 * channels[0], cfg.sample_size, Count()

    def transformer(side: int, c: int) -> None:
        inner = _transformer(cfg, side**2, c, n_tokens, mode)
        total.add(inner + 2.0 * side**2 * c * c, inner)

    # The time's part is computed once an object.
    total.add(2.0 * width * (cfg.class_dim + width + (channels[0] + width) / cfg.n_views))
    total.add(_conv(side, cfg.in_channels, channels[0]))
    skips, c = [channels[0]], channels[0]
    for i, c_out in enumerate(channels):
        for _ in range(cfg.layers_per_block):
            total.resnet(side, c, c_out, width)
            c = c_out
            if cfg.block_attends[i]:
                transformer(side, c)
            skips.append(c)
        if i < last:
            side //= 2
            total.add(_conv(side, c, c, stride=2))
            skips.append(c)
    total.resnet(side, c, c, width)
    transformer(side, c)
    total.resnet(side, c, c, width)
    for i in range(last, -1, -1):
        for _ in range(cfg.layers_per_block + 1):
            total.resnet(side, c + skips.pop(), channels[i], width)
            c = channels[i]
            if cfg.block_attends[i]:
                transformer(side, c)
        if i > 0:
            side *= 2
            total.add(_conv(side, c, c))
    total.add(_conv(side, c, cfg.out_channels))
    return total


def unet_flops(cfg: MVUNetConfig, n_tokens: int = 77, mode: str | None = None) -> float:
    """One forward pass of one view."""
    return unet_count(cfg, n_tokens, mode).forward


def vae_encode_flops(cfg: VAEConfig, side: int) -> float:
    """Encoding one picture of `side` pixels."""
    channels, last, total = list(cfg.block_channels), len(cfg.block_channels) - 1, Count()
    total.add(_conv(side, cfg.picture_channels, channels[0]))
    c = channels[0]
    for i, c_out in enumerate(channels):
        for _ in range(cfg.layers_per_block):
            total.resnet(side, c, c_out)
            c = c_out
        if i < last:
            side //= 2
            total.add(_conv(side, c, c, stride=2))
    for _ in range(2):
        total.resnet(side, c, c)
    total.add(8.0 * side**2 * c * c + _attention(side**2, side**2, c))
    moments = 2 * cfg.latent_channels
    total.add(_conv(side, c, moments) + _conv(side, moments, moments, 1))
    return total.forward


def image_encoder_flops(cfg: VisionConfig) -> float:
    """Embedding one picture."""
    tokens = (cfg.image_size // cfg.patch_size) ** 2
    d = cfg.hidden_size
    total = 2.0 * tokens * 3 * cfg.patch_size**2 * d + 2.0 * d * cfg.projection_dim
    tokens += 1
    layer = 8.0 * tokens * d * d + _attention(tokens, tokens, d)
    return total + cfg.n_layers * (layer + 4.0 * tokens * d * cfg.intermediate_size)


def training_flops(
    networks: Networks, batch: int, *, n_tokens: int = 77, remat: bool = True, cached: bool = False
) -> dict[str, float]:
    """One training step: by part, and `total`.

    Args:
        networks: modules.
        batch: objects.
        n_tokens: of a prompt.
        remat: whether blocks are recomputed in the backward pass.
        cached: whether encodings are read instead of computed.
    """
    cfg = networks.unet.config
    one = unet_count(cfg, n_tokens)
    parts = {"unet": batch * cfg.n_views * (3 * one.forward + (one.repeated if remat else 0))}
    if not cached:
        # The reference is slot 0: its moments come with the targets'.
        encode = vae_encode_flops(networks.vae.config, networks.picture_side)
        parts["vae"] = batch * cfg.n_views * encode
        parts["image_encoder"] = batch * image_encoder_flops(networks.image_encoder.config)
    return parts | {"total": sum(parts.values())}
