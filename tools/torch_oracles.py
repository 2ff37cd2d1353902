"""One forward pass with torch's networks, to compare a converted component with.

The networks of diffusers and transformers where they have them; the UNet with keys and values
shared between views in the place of its self-attention; GS-LRM, VGG-19 and LPIPS written out here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from etils import epath

from mouselift_jax.errors import CheckpointError
from mouselift_jax.geometry.rig import turntable
from mouselift_jax.weights import store
from mouselift_jax.weights.export_torch import clip_sizes
from mouselift_jax.weights.kinds import Part
from mouselift_jax.weights.networks import network
from mouselift_jax.weights.rules import unflatten

TOLERANCE = 1e-4  # relative, float32

Inputs = Mapping[str, np.ndarray]


def forward_check(part: Part, folder: Any) -> dict[str, Any] | None:
    """Compare one forward pass at reduced resolution, in float32.

    Args:
        part: the source.
        folder: the converted folder.

    Returns:
        The relative L2 error and the size of the comparison; None where nothing can be compared.

    Raises:
        CheckpointError: the outputs differ more than float32 rounding explains.
    """
    if part.component not in ORACLES or not _is_known(part):
        return None
    make_inputs, oracle, ours = ORACLES[part.component]
    inputs = make_inputs(part.config, np.random.default_rng(0))
    flat = store.read_params(epath.Path(folder) / part.component / "params")
    kinds = {path: leaf.dtype for path, leaf in flat.items()}
    params = unflatten({path: jnp.asarray(flat.pop(path), jnp.float32) for path in list(flat)})
    module = network(part.component).make(part.config, jnp.float32)
    found = np.asarray(jax.jit(lambda p, x: ours(module, p, x))(params, dict(inputs)))
    del params
    # Rounded as the stored weights were: what is compared is the network, not the rounding.
    state = {
        m.key: torch.from_numpy(
            np.asarray(part.tensors[m.key]).astype(kinds[m.path]).astype(np.float32)
        )
        for m in part.pairing.moves
    }
    with torch.no_grad():
        expected = oracle(part, state, {k: torch.from_numpy(v) for k, v in inputs.items()}).numpy()
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    if not error < TOLERANCE:
        raise CheckpointError(
            "The converted network computes something else than the source",
            where=f"{folder}/{part.component}",
            expected=f"relative error below {TOLERANCE}",
            found=f"{error:.1e}",
            fix="report it: the weights arrived, but this network is another one",
        )
    return {"relative_error": error, "shape": list(found.shape)}


def _is_known(part: Part) -> bool:
    """Whether the oracle computes this variant; GS-LRM's knows the released one only."""
    released = {"ray_embed": "dir_nearest", "depth": "around_nearest", "depth_bias": 0.0}
    released |= {"mark_source": False, "clip_means": False}
    return part.component != "gslrm" or all(
        part.config.get(key, value) == value for key, value in released.items()
    )


def _load(make: Callable[[], torch.nn.Module], state: Mapping[str, torch.Tensor]) -> Any:
    """A torch network that owns the given tensors, without a second copy of them."""
    with torch.device("meta"):
        model = make()
    model.load_state_dict(state, strict=False, assign=True)
    left = [name for name, p in model.named_parameters() if p.is_meta]
    if left:
        raise CheckpointError(
            "torch's network wants other tensors",
            found=", ".join(left[:5]),
            fix="convert without --verify, and report it",
        )
    for name, buffer in model.named_buffers():
        if buffer.is_meta and name.endswith("position_ids"):
            parent = model.get_submodule(name.rpartition(".")[0])
            parent.position_ids = torch.arange(buffer.shape[-1])[None]
    return model.eval()


def _canonical(part: Part, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict in the names that torch's classes use now."""
    table = network(part.component).rules
    renames = [rule for rule in table if hasattr(rule, "rename")]
    out = {}
    for key, value in state.items():
        for alias in renames:
            key = alias.rename(key) or key
        out[key] = value.reshape(value.shape[:2]) if ".to_" in key and value.ndim == 4 else value
    return out


# --- UNet -----------------------------------------------------------------------------------------


class SharedAttention:
    """Self-attention of a view to slot 0 and itself, in diffusers' processor interface."""

    def __init__(self, n_views: int) -> None:
        self.n_views = n_views

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, **_: Any
    ) -> torch.Tensor:
        """Attend; `attn` is diffusers' `Attention`."""
        n, t, c = hidden_states.shape
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if encoder_hidden_states is None:
            k, v = (self._with_slot_0(x) for x in (k, v))
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)
        return attn.to_out[0](y)

    def _with_slot_0(self, x: torch.Tensor) -> torch.Tensor:
        views = x.unflatten(0, (-1, self.n_views))
        return torch.cat([views[:, :1].expand_as(views), views], dim=2).flatten(0, 1)


def _unet_inputs(c: Mapping[str, Any], rng: np.random.Generator) -> Inputs:
    v, side = c["n_views"], 2 ** len(c["block_channels"])
    return {
        "sample": rng.normal(size=(1, v, side, side, c["in_channels"])).astype(np.float32),
        "t": np.array([500], np.int32),
        "prompts": rng.normal(size=(1, v, 7, c["context_dim"])).astype(np.float32),
        "labels": rng.normal(size=(1, v, c["class_dim"])).astype(np.float32),
    }


def _unet_torch(part: Part, state: Mapping[str, torch.Tensor], x: Mapping) -> torch.Tensor:
    from diffusers import UNet2DConditionModel

    c = part.config
    attends = c["block_attends"]
    model = _load(
        lambda: UNet2DConditionModel(
            sample_size=c["sample_size"],
            in_channels=c["in_channels"],
            out_channels=c["out_channels"],
            block_out_channels=c["block_channels"],
            down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
            attention_head_dim=c["heads"],
            layers_per_block=c["layers_per_block"],
            cross_attention_dim=c["context_dim"],
            use_linear_projection=True,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=c["class_dim"],
            norm_num_groups=c["norm_groups"],
            norm_eps=c["norm_eps"],
        ),
        state,
    )
    model.set_attn_processor(SharedAttention(c["n_views"]))
    sample = x["sample"][0].movedim(-1, 1)
    t = x["t"].repeat(c["n_views"])
    y = model(sample, t, x["prompts"][0], class_labels=x["labels"][0]).sample
    return y.movedim(1, -1)[None]


def _unet_ours(module: Any, params: Any, x: Mapping) -> jax.Array:
    args = (x["sample"], x["t"], x["prompts"], x["labels"])
    return module.apply({"params": params}, *args, attention="sparse")


# --- VAE, CLIP ------------------------------------------------------------------------------------


def _vae_inputs(c: Mapping[str, Any], rng: np.random.Generator) -> Inputs:
    side = 2 ** (len(c["block_channels"]) + 2)
    return {"images": rng.uniform(-1, 1, (1, side, side, 3)).astype(np.float32)}


def _vae_torch(part: Part, state: Mapping[str, torch.Tensor], x: Mapping) -> torch.Tensor:
    from diffusers import AutoencoderKL

    c = part.config
    n = len(c["block_channels"])
    model = _load(
        lambda: AutoencoderKL(
            block_out_channels=c["block_channels"],
            down_block_types=["DownEncoderBlock2D"] * n,
            up_block_types=["UpDecoderBlock2D"] * n,
            layers_per_block=c["layers_per_block"],
            latent_channels=c["latent_channels"],
            norm_num_groups=c["norm_groups"],
        ),
        _canonical(part, state),
    )
    mean = model.encode(x["images"].movedim(-1, 1)).latent_dist.mean
    picture = model.decode(mean).sample
    return torch.cat([mean.flatten(), picture.movedim(1, -1).flatten()])


def _vae_ours(module: Any, params: Any, x: Mapping) -> jax.Array:
    mean, _ = module.apply({"params": params}, x["images"], method="encode")
    picture = module.apply({"params": params}, mean, method="decode")
    return jnp.concatenate([jnp.moveaxis(mean, -1, 1).ravel(), picture.ravel()])


def _vision_inputs(c: Mapping[str, Any], rng: np.random.Generator) -> Inputs:
    shape = (1, c["image_size"], c["image_size"], 3)
    return {"pixels": rng.normal(size=shape).astype(np.float32)}


def _vision_torch(part: Part, state: Mapping[str, torch.Tensor], x: Mapping) -> torch.Tensor:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    c = part.config
    config = CLIPVisionConfig(
        **clip_sizes(c),
        image_size=c["image_size"],
        patch_size=c["patch_size"],
        projection_dim=c["projection_dim"],
    )
    model = _load(lambda: CLIPVisionModelWithProjection(config), state)
    return model(pixel_values=x["pixels"].movedim(-1, 1)).image_embeds


def _text_inputs(c: Mapping[str, Any], rng: np.random.Generator) -> Inputs:
    shape = (1, c["max_tokens"])
    return {"tokens": rng.integers(0, c["vocab_size"], shape).astype(np.int32)}


def _text_torch(part: Part, state: Mapping[str, torch.Tensor], x: Mapping) -> torch.Tensor:
    from transformers import CLIPTextConfig, CLIPTextModel

    c = part.config
    config = CLIPTextConfig(
        **clip_sizes(c), vocab_size=c["vocab_size"], max_position_embeddings=c["max_tokens"]
    )
    with torch.device("meta"):
        names = set(CLIPTextModel(config).state_dict())
    state = _canonical(part, state)
    if not any(name.startswith("text_model.") for name in names):  # newer transformers
        state = {key.removeprefix("text_model."): value for key, value in state.items()}
    return _load(lambda: CLIPTextModel(config), state)(input_ids=x["tokens"]).last_hidden_state


def _ours(name: str) -> Callable[[Any, Any, Mapping], jax.Array]:
    return lambda module, params, x: module.apply({"params": params}, x[name])


# --- GS-LRM ---------------------------------------------------------------------------------------


def _gslrm_inputs(c: Mapping[str, Any], rng: np.random.Generator) -> Inputs:
    side = 4 * c["patch_size"]
    rig = turntable(3, radius=2.7, size=side)
    k, c2w = (np.asarray(a, np.float32)[None] for a in (rig.K, rig.c2w))
    return {
        "images": rng.uniform(size=(1, 3, side, side, 3)).astype(np.float32),
        "K": k,
        "c2w": c2w,
    }


def gslrm_torch(part: Part, state: Mapping[str, torch.Tensor], x: Mapping) -> torch.Tensor:
    """GS-LRM in torch: every parameter of every Gaussian, [N, 14 or more], before activation."""
    s = {key.removeprefix("module."): value for key, value in state.items()}
    p, heads = part.config["patch_size"], part.config["width"] // part.config["head_dim"]

    def norm(y: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(y, y.shape[-1:], s[name], None, 1e-5)

    def patches(y: torch.Tensor) -> torch.Tensor:  # [V,H,W,C] -> [V * patches, p, p, C]
        v, h, w, ch = y.shape
        y = y.reshape(v, h // p, p, w // p, p, ch).permute(0, 1, 3, 2, 4, 5)
        return y.reshape(-1, p, p, ch)

    images, k, c2w = x["images"][0], x["K"][0], x["c2w"][0]
    v, h, w, _ = images.shape
    row, column = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    d = torch.stack(
        [
            (column - k[:, 0, 2, None, None]) / k[:, 0, 0, None, None],
            (row - k[:, 1, 2, None, None]) / k[:, 1, 1, None, None],
            torch.ones(v, h, w),
        ],
        -1,
    )
    d = F.normalize(torch.einsum("vij,vhwj->vhwi", c2w[:, :3, :3], F.normalize(d, dim=-1)), dim=-1)
    o = c2w[:, None, None, :3, 3].expand_as(d)
    t0 = -(o * d).sum(-1, keepdim=True)
    posed = torch.cat([2 * images - 1, d, o + t0 * d], -1)
    tokens = patches(posed).flatten(1) @ s["patch_embedder.1.weight"].T
    free = s["gaussian_position_embeddings"]
    y = norm(torch.cat([free, tokens]), "input_layer_norm.weight")
    for i in range(part.config["n_layers"]):
        name = f"transformer_layers.{i}."
        z = norm(y, name + "norm1.weight") @ s[name + "attn.to_qkv.weight"].T
        q, key, value = (a.unflatten(-1, (heads, -1)).transpose(0, 1) for a in z.chunk(3, -1))
        z = F.scaled_dot_product_attention(q, key, value).transpose(0, 1).flatten(1)
        y = y + z @ s[name + "attn.fc.weight"].T
        z = F.gelu(norm(y, name + "norm2.weight") @ s[name + "mlp.mlp.0.weight"].T)
        y = y + z @ s[name + "mlp.mlp.2.weight"].T
    g = norm(y[: len(free)], "gaussian_upsampler.layernorm.weight")
    g = g @ s["gaussian_upsampler.linear.weight"].T
    z = norm(y[len(free) :], "pixel_gaussian_decoder.0.weight")
    z = (z @ s["pixel_gaussian_decoder.1.weight"].T).reshape(-1, g.shape[-1])
    o, d, t0 = (patches(a).flatten(0, 2) for a in (o, d, t0))
    t = 1.8 * (2 * torch.sigmoid(z[:, :3].mean(-1, keepdim=True)) - 1) + t0
    raw = torch.cat([g, torch.cat([o + t * d, z[:, 3:]], -1)])
    colours = raw.shape[-1] - 11
    mean, sh, scale, quat, opacity = raw.split([3, colours, 3, 4, 1], -1)
    return torch.cat([mean, sh, (scale - 2.3).clamp(max=-1.2), quat, opacity - 2.0], -1)


def _gslrm_ours(module: Any, params: Any, x: Mapping) -> jax.Array:
    g = module.apply({"params": params}, x["images"], x["K"], x["c2w"])
    n = g.means.shape[1]
    logits = g.opacity_logits.reshape(n, 1)
    return jnp.concatenate(
        [g.means[0], g.sh[0].reshape(n, -1), g.log_scales[0], g.quats[0], logits], -1
    )


# --- perceptual distances -------------------------------------------------------------------------


def _pair(c: Mapping[str, Any], rng: np.random.Generator) -> Inputs:
    return {name: rng.uniform(size=(1, 32, 32, 3)).astype(np.float32) for name in ("a", "b")}


def _features(
    x: torch.Tensor,
    layers: list[tuple[torch.Tensor, torch.Tensor]],
    pools: tuple[int, ...],
    taps: tuple[int, ...],
    pool: Callable,
) -> list[torch.Tensor]:
    out = []
    for i, (weight, bias) in enumerate(layers[: taps[-1]], start=1):
        x = F.relu(F.conv2d(x, weight, bias, padding=1))
        out += [x] if i in taps else []
        x = pool(x, 2) if i in pools else x
    return out


def _vgg19_torch(part: Part, s: Mapping[str, torch.Tensor], x: Mapping) -> torch.Tensor:
    mean = torch.tensor([123.68, 116.779, 103.939])[:, None, None]
    layers = [(s[f"conv{i}.weight"], s[f"conv{i}.bias"]) for i in range(1, 17)]
    a, b = (x[name].movedim(-1, 1) * 255 - mean for name in ("a", "b"))
    found = (_features(y, layers, (2, 4, 8, 12), (2, 4, 6, 10, 14), F.avg_pool2d) for y in (a, b))
    weights = (1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)
    terms = [w * (f - g).abs().mean() for w, f, g in zip(weights, *found, strict=True)]
    return ((a - b).abs().mean() + sum(terms))[None] / 255


def _lpips_torch(part: Part, s: Mapping[str, torch.Tensor], x: Mapping) -> torch.Tensor:
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    s = {re.sub(r"^net\.slice\d\.", "features.", key): value for key, value in s.items()}
    numbers = sorted(int(k.split(".")[1]) for k in s if re.fullmatch(r"features\.\d+\.weight", k))
    layers = [(s[f"features.{i}.weight"], s[f"features.{i}.bias"]) for i in numbers]
    a, b = ((2 * x[name].movedim(-1, 1) - 1 - shift) / scale for name in ("a", "b"))
    found = (_features(y, layers, (2, 4, 7, 10), (2, 4, 7, 10, 13), F.max_pool2d) for y in (a, b))
    total = 0.0
    for i, (f, g) in enumerate(zip(*found, strict=True)):
        f, g = (y / (y.norm(dim=1, keepdim=True) + 1e-10) for y in (f, g))
        total = total + ((f - g) ** 2 * s[f"lin{i}.model.1.weight"]).sum(1).mean()
    return total[None]


def _distance(module: Any, params: Any, x: Mapping) -> jax.Array:
    return module.apply({"params": params}, x["a"], x["b"])


ORACLES: dict[str, tuple[Callable, Callable, Callable]] = {
    "unet": (_unet_inputs, _unet_torch, _unet_ours),
    "vae": (_vae_inputs, _vae_torch, _vae_ours),
    "image_encoder": (_vision_inputs, _vision_torch, _ours("pixels")),
    "text_encoder": (_text_inputs, _text_torch, _ours("tokens")),
    "gslrm": (_gslrm_inputs, gslrm_torch, _gslrm_ours),
    "vgg19": (_pair, _vgg19_torch, _distance),
    "lpips": (_pair, _lpips_torch, _distance),
}
