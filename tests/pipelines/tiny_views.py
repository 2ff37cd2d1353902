"""A multi-view pipeline with random weights, as small as it gets."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.files import write_json_atomic
from mouselift_jax.models import clip, mvunet, vae
from mouselift_jax.models.clip_pixels import ClipPixels
from mouselift_jax.pipelines.views import SETTINGS, Models, Networks
from mouselift_jax.stages.multiview.toys import TOY_SCHEDULER
from mouselift_jax.weights.pretrained import save_component
from tests.models.oracle import TINY_UNET, shapes


def tiny_networks(pose_features: int = 0) -> Networks:
    unet = dataclasses.replace(TINY_UNET, n_views=3, pose_features=pose_features)
    coder = vae.VAEConfig(block_channels=(4, 8), layers_per_block=1, norm_groups=2)
    encoder = clip.VisionConfig(
        hidden_size=8,
        intermediate_size=16,
        n_layers=1,
        n_heads=2,
        image_size=14,
        patch_size=7,
        projection_dim=8,
    )
    return Networks(
        mvunet.MVUNet(unet),
        vae.VAE(coder),
        clip.ImageEncoder(encoder),
        clip.ImageNormalizer(embedding_dim=8),
        ClipPixels(size=14),
    )


def random_like(tree, seed: int = 0):
    """Weights of the size a trained network has, for a tree of shapes."""
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        z = rng.normal(size=x.shape)
        if "scale" in str(path[-1]):
            z = 1 + 0.1 * z
        elif len(x.shape) > 1:
            z = z / np.sqrt(np.prod(x.shape[:-1]))
        else:
            z = 0.1 * z
        return jnp.asarray(z, jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def tiny_models(pose_features: int = 0) -> Models:
    networks = tiny_networks(pose_features)
    c = networks.unet.config

    def f32(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    kw = {"poses": f32(1, c.n_views, 4)} if pose_features else {}
    unet = shapes(
        networks.unet,
        f32(1, c.n_views, 8, 8, 8),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        f32(1, c.n_views, 5, c.context_dim),
        f32(1, c.n_views, c.class_dim),
        **kw,
    )
    trees = {
        "unet": unet,
        "vae": shapes(networks.vae, f32(1, 16, 16, 3)),
        "image_encoder": shapes(networks.image_encoder, f32(1, 14, 14, 3)),
    }
    params = {name: random_like(tree, i) for i, (name, tree) in enumerate(trees.items())}
    params["image_normalizer"] = {"mean": jnp.zeros((1, 8)), "std": jnp.ones((1, 8))}
    return Models(networks, params)


def save_pipeline(models: Models, folder: Path) -> Path:
    """Write a pipeline as a conversion does."""
    n = models.networks
    configs = {
        name: json.loads(json.dumps(dataclasses.asdict(getattr(n, name).config)))
        for name in ("unet", "vae", "image_encoder")
    }
    configs["image_normalizer"] = {"embedding_dim": n.image_normalizer.embedding_dim}
    folder.mkdir()
    write_json_atomic(folder / "config.json", {})
    for name, config in configs.items():
        save_component(folder, name, config, models.params[name])
    write_json_atomic(folder / SETTINGS[0], TOY_SCHEDULER)
    write_json_atomic(folder / SETTINGS[1], {"beta_schedule": "squaredcos_cap_v2"})
    write_json_atomic(folder / SETTINGS[2], n.clip.to_source())
    return folder
