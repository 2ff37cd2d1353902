"""Every network that has stored weights: how it is made, its inputs, its table, its shapes."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mouselift_jax.errors import CheckpointError, one_of
from mouselift_jax.weights.rules import Entry
from mouselift_jax.weights.tables import clip as clip_table
from mouselift_jax.weights.tables import embeddings, gslrm, mvunet, vae, vgg


@dataclasses.dataclass(frozen=True)
class Network:
    """What conversion and loading need to know of a component.

    Attributes:
        rules: the table of names.
        make: (config, dtype) -> module; None when there is nothing to apply.
        inputs: config -> shapes and types of the smallest arguments that initialise it.
    """

    rules: Sequence[Entry]
    make: Callable[[Mapping[str, Any], Any], nn.Module | None]
    inputs: Callable[[Mapping[str, Any]], tuple[jax.ShapeDtypeStruct | None, ...]]


def _f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _i32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _unet_inputs(c: Mapping[str, Any]) -> tuple[jax.ShapeDtypeStruct | None, ...]:
    side, views = 2 ** (len(c["block_channels"]) - 1), c["n_views"]
    inputs = (
        _f32(1, views, side, side, c["in_channels"]),
        _i32(1),
        _f32(1, views, 1, c["context_dim"]),
        _f32(1, views, c["class_dim"]),
    )
    if not c.get("pose_features"):
        return inputs
    return (*inputs, None, _f32(1, views, 4))  # the attention stays the config's


def _vae_inputs(c: Mapping[str, Any]) -> tuple[jax.ShapeDtypeStruct, ...]:
    side = 2 ** (len(c["block_channels"]) - 1)
    return (_f32(1, side, side, c["picture_channels"]),)


def _model(name: str) -> ModuleType:
    """A module of `models`, imported when first needed."""
    return importlib.import_module(f"mouselift_jax.models.{name}")


@functools.cache
def networks() -> dict[str, Network]:
    """Every component that can be converted or loaded, by name."""
    return {
        "unet": Network(
            mvunet.RULES,
            lambda c, t: _model("mvunet").MVUNet(_model("mvunet").MVUNetConfig(**c), dtype=t),
            _unet_inputs,
        ),
        "vae": Network(
            vae.RULES,
            lambda c, t: _model("vae").VAE(_model("vae").VAEConfig(**c), dtype=t),
            _vae_inputs,
        ),
        "image_encoder": Network(
            clip_table.IMAGE_ENCODER_RULES,
            lambda c, t: _model("clip").ImageEncoder(_model("clip").VisionConfig(**c), dtype=t),
            lambda c: (_f32(1, c["image_size"], c["image_size"], 3),),
        ),
        "text_encoder": Network(
            clip_table.TEXT_ENCODER_RULES,
            lambda c, t: _model("clip").TextEncoder(_model("clip").TextConfig(**c), dtype=t),
            lambda c: (_i32(1, c["max_tokens"]),),
        ),
        "image_normalizer": Network(
            clip_table.IMAGE_NORMALIZER_RULES,
            lambda c, t: _model("clip").ImageNormalizer(**c, dtype=t),
            lambda c: (_f32(1, c["embedding_dim"]),),
        ),
        "gslrm": Network(
            gslrm.RULES,
            lambda c, t: _model("gslrm").GSLRM(
                _model("gslrm").GSLRMConfig(**{**c, "dtype": jnp.dtype(t).name})
            ),
            lambda c: (
                _f32(1, 1, c["patch_size"], c["patch_size"], 3),
                _f32(1, 1, 3, 3),
                _f32(1, 1, 4, 4),
            ),
        ),
        "vgg19": Network(
            vgg.VGG19_RULES,
            lambda c, t: _model("vgg").VGG19(jnp.dtype(t).name),
            lambda c: (_f32(1, 16, 16, 3),) * 2,
        ),
        "lpips": Network(
            vgg.LPIPS_RULES,
            lambda c, t: _model("vgg").LPIPS(jnp.dtype(t).name),
            lambda c: (_f32(1, 16, 16, 3),) * 2,
        ),
        "prompt_embeds": Network(embeddings.RULES, lambda c, t: None, lambda c: ()),
    }


def network(component: str) -> Network:
    """The entry of one component.

    Raises:
        CheckpointError: there is no such component.
    """
    known = networks()
    one_of(component, known, "There is no such component", error=CheckpointError)
    return known[component]


def param_shapes(component: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dict of ShapeDtypeStructs of a component's parameters; nothing is computed.

    Raises:
        CheckpointError: the config is not one of this network.
    """
    if component == "prompt_embeds":
        return {"prompt_embeds": _f32(*config["shape"])}
    entry = network(component)
    try:
        module = entry.make(config, jnp.float32)
    except TypeError as error:  # an unknown or missing field
        raise CheckpointError(
            "The config does not belong to this network",
            where=f"{component}/config.json",
            found=str(error),
            fix="convert again, into a new folder",
        ) from error
    tree = jax.eval_shape(module.init, jax.random.key(0), *entry.inputs(config))
    return nn.meta.unbox(tree)["params"]
