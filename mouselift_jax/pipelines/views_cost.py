"""Floating-point operations of the multi-view networks, counted from their sizes.

A multiplication and an addition count as two. Only convolutions, linear layers and attention
products are counted; the rest is a few per cent. A test compares with the compiler's own count.
"""

from __future__ import annotations

from mouselift_jax.models.clip import VisionConfig
from mouselift_jax.models.mvunet import POSE_TOKENS, MVUNetConfig
from mouselift_jax.models.vae import VAEConfig
from mouselift_jax.pipelines.views import Networks


def _conv(pixels: int, c_in: int, c_out: int, kernel: int = 3) -> float:
    return 2.0 * pixels * c_in * c_out * kernel**2


def _resnet(pixels: int, c_in: int, c_out: int, embedding: int = 0) -> float:
    shortcut = _conv(pixels, c_in, c_out, 1) if c_in != c_out else 0.0
    return (
        _conv(pixels, c_in, c_out)
        + _conv(pixels, c_out, c_out)
        + shortcut
        + 2.0 * embedding * c_out
    )


def _attention(tokens: int, keys: int, channels: int) -> float:
    return 4.0 * tokens * keys * channels


def keys_per_view(cfg: MVUNetConfig, tokens: int, mode: str | None = None) -> float:
    """Keys that a token attends to, averaged over the views."""
    mode, v = mode or cfg.attention, cfg.n_views
    if mode == "none" or v == 1:
        return tokens
    return tokens * (v if mode == "dense" else (2 * v - 1) / v)


def _transformer(cfg: MVUNetConfig, tokens: int, c: int, n_tokens: int, mode: str | None) -> float:
    linear = 2.0 * tokens * c * c
    context = 2.0 * 2 * n_tokens * cfg.context_dim * c
    if cfg.pose_features:
        context += 2.0 * 2 * POSE_TOKENS * cfg.context_dim * c
        context += _attention(tokens, POSE_TOKENS, c)
    # proj_in and proj_out; q, k, v, out of the views; q, out of the prompt; 8 + 4 of the MLP
    return (
        (2 + 4 + 2 + 12) * linear
        + context
        + _attention(tokens, keys_per_view(cfg, tokens, mode), c)
        + _attention(tokens, n_tokens, c)
    )


def unet_flops(cfg: MVUNetConfig, n_tokens: int = 77, mode: str | None = None) -> float:
    """One forward pass of one view."""
    channels, last = list(cfg.block_channels), len(cfg.block_channels) - 1
    width = 4 * channels[0]
    total = 2.0 * width * (channels[0] + cfg.class_dim + 2 * width)
    side = cfg.sample_size
    total += _conv(side**2, cfg.in_channels, channels[0])
    skips, c = [channels[0]], channels[0]
    for i, c_out in enumerate(channels):
        for _ in range(cfg.layers_per_block):
            total += _resnet(side**2, c, c_out, width)
            if cfg.block_attends[i]:
                total += _transformer(cfg, side**2, c_out, n_tokens, mode)
            c = c_out
            skips.append(c)
        if i < last:
            side //= 2
            total += _conv(side**2, c, c)
            skips.append(c)
    total += 2 * _resnet(side**2, c, c, width) + _transformer(cfg, side**2, c, n_tokens, mode)
    for i in range(last, -1, -1):
        for _ in range(cfg.layers_per_block + 1):
            total += _resnet(side**2, c + skips.pop(), channels[i], width)
            c = channels[i]
            if cfg.block_attends[i]:
                total += _transformer(cfg, side**2, c, n_tokens, mode)
        if i > 0:
            side *= 2
            total += _conv(side**2, c, c)
    return total + _conv(side**2, c, cfg.out_channels)


def vae_encode_flops(cfg: VAEConfig, side: int) -> float:
    """Encoding one picture of `side` pixels."""
    channels, last = list(cfg.block_channels), len(cfg.block_channels) - 1
    total, c = _conv(side**2, cfg.picture_channels, channels[0]), channels[0]
    for i, c_out in enumerate(channels):
        for _ in range(cfg.layers_per_block):
            total += _resnet(side**2, c, c_out)
            c = c_out
        if i < last:
            side //= 2
            total += _conv(side**2, c, c)
    total += 2 * _resnet(side**2, c, c) + 8.0 * side**2 * c * c + _attention(side**2, side**2, c)
    moments = 2 * cfg.latent_channels
    return total + _conv(side**2, c, moments) + _conv(side**2, moments, moments, 1)


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
        remat: whether blocks are recomputed in the backward pass (4 forwards' worth, else 3).
        cached: whether encodings are read instead of computed.
    """
    cfg = networks.unet.config
    parts = {"unet": batch * cfg.n_views * unet_flops(cfg, n_tokens) * (4 if remat else 3)}
    if not cached:
        # The reference is slot 0: its moments come with the targets'.
        encode = vae_encode_flops(networks.vae.config, networks.picture_side)
        parts["vae"] = batch * cfg.n_views * encode
        parts["image_encoder"] = batch * image_encoder_flops(networks.image_encoder.config)
    return parts | {"total": sum(parts.values())}
