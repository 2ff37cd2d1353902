"""Posed views to Gaussians, and the loss that teaches it: pure functions of arrays.

The terms of the loss are in `training/losses.py`.

A *batch* is anything with the fields of `mouselift_jax.data.batches.loader.Batch`:
images [B,V,H,W,3] on `background` [B,3] (white where there is none), masks [B,V,H,W,1], K
[B,V,3,3], c2w [B,V,4,4]; the loss also takes one of bytes with alpha. The first `n_input_views`
views go into the network; views behind them are seen by the loss or the evaluation alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mouselift_jax.errors import ConfigError
from mouselift_jax.geometry.camera import Camera, invert_rigid
from mouselift_jax.geometry.rays import camera_rays
from mouselift_jax.models.gslrm import unpatchify
from mouselift_jax.models.layers import mesh_spec
from mouselift_jax.models.silhouettes import animal_patches
from mouselift_jax.pipelines.pictures import laid
from mouselift_jax.render import rasterize
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.training import metrics as metric
from mouselift_jax.training.losses import Distance, LossConfig, image_loss

WHITE = (1.0, 1.0, 1.0)


class Views(Protocol):
    """What a batch must offer."""

    images: Array
    masks: Array
    K: Array
    c2w: Array


class Rendered(NamedTuple):
    """Renders of Gaussians from several cameras."""

    rgb: Array  # [B,V,H,W,3] on the background
    alpha: Array  # [B,V,H,W,1]
    depth: Array  # [B,V,H,W,1] sum of weight times camera z


def lift(
    model: nn.Module,
    params: Mapping[str, Any],
    images: Float[Array, "*B V H W 3"],
    cameras: Camera,
) -> Gaussians:
    """Lift posed views to Gaussians, unfiltered.

    Args:
        model: a `GSLRM`. Under jit, one with `animal_share` comes from `with_room`: compiled code
            cannot say that patches were left out.
        params: its parameters.
        images: pictures in [0,1] on white.
        cameras: their cameras [*B,V], object at the origin, near radius 2.7.

    Returns:
        Gaussians [*B,N].
    """
    if not isinstance(images, jax.core.Tracer):  # under jit the caller does this before
        model = with_room(model, images)
    lead = images.shape[:-4]
    images = images.reshape(-1, *images.shape[-4:])
    K = jnp.asarray(cameras.K).reshape(-1, *cameras.K.shape[-3:])
    c2w = jnp.asarray(cameras.c2w).reshape(-1, *cameras.c2w.shape[-3:])
    gaussians = model.apply({"params": params}, images, K, c2w)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), gaussians)


def with_room(model: nn.Module, images: Float[Array, "*B V H W 3"]) -> nn.Module:
    """The model with room for the animal in these pictures; its weights do not depend on it.

    In training too little room is an error; here eighths are added, so that few programs are
    compiled.
    """
    share = model.config.animal_share
    if share is None:
        return model
    most, total = animal_patches(images, model.config.patch_size)
    share = max(share, math.ceil(8 * most / total) / 8)
    return model.clone(config=dataclasses.replace(model.config, animal_share=share))


def render_views(
    gaussians: Gaussians,
    K: Float[Array, "B V 3 3"],
    c2w: Float[Array, "B V 4 4"],
    width: int,
    height: int,
    *,
    background: tuple[float, float, float] | Float[Array, "B 3"] = WHITE,
    implementation: str | None = None,
) -> Rendered:
    """Render every sample from its own cameras, all views in one call.

    The rasterizer bounds its memory itself: it keeps pictures, not what made them. Under a mesh,
    samples go to its batch axes and views to its view axes.

    Args:
        gaussians: one set a sample, [B,N].
        K: intrinsics in pixels of `width` x `height`.
        c2w: camera-to-world.
        width: of the renders, pixels.
        height: of the renders, pixels.
        background: colour in [0,1], one for all or one a sample.
        implementation: of `rasterize`; None = the best here.
    """
    behind = jnp.broadcast_to(jnp.asarray(background, jnp.float32), (len(K), 3))

    def own_views(gaussians: Gaussians, K: Array, c2w: Array, behind: Array) -> Rendered:
        a = gaussians.activate()
        out = rasterize(
            a.means, a.quats, a.scales, a.opacities, a.sh, invert_rigid(c2w), K, width, height,
            sh_degree=gaussians.sh_degree,
            background=jnp.broadcast_to(behind[:, None], (*K.shape[:2], 3)),
            implementation=implementation,
        )  # fmt: skip
        return Rendered(out.rgb, out.alpha, out.depth)

    cameras = mesh_spec(("batch", "view"), K.shape[:2])
    if cameras is None:
        return own_views(gaussians, K, c2w, behind)
    samples = jax.sharding.PartitionSpec(cameras[0])
    return jax.shard_map(
        own_views, in_specs=(samples, cameras, cameras, samples), out_specs=cameras,
        check_vma=False,
    )(gaussians, K, c2w, behind)  # fmt: skip


def gslrm_loss(
    params: Mapping[str, Any],
    batch: Views,
    *,
    model: nn.Module,
    loss_config: LossConfig,
    n_input_views: int,
    n_target_views: int | None = None,
    step: Array | int | None = None,
    rng: Array | None = None,
    networks: Mapping[str, Distance] | None = None,
    implementation: str | None = None,
) -> tuple[Array, dict[str, Array]]:
    """The training loss of one batch: lift the input views, render the target views, compare.

    Args:
        params: of `model`.
        batch: posed views; see the module's docstring.
        model: a `GSLRM`.
        loss_config: weights of the terms.
        n_input_views: the network sees the first so many views.
        n_target_views: the loss sees the first so many views, inputs included; None = all.
        step: update number, for the loss's warm-ups; None = they are over.
        rng: of this step, where the loss draws backgrounds.
        networks: `perceptual` and `lpips` distances of `models.vgg`, where the loss weighs them.
        implementation: of the rasterizer; None = the best here.

    Returns:
        The loss, and scalars: every term, psnr, and opaque_share, the share of Gaussians with
        opacity above 0.05.
    """
    batch = laid(batch)
    n_views, (h, w) = batch.images.shape[1], batch.images.shape[2:4]
    n_target = n_views if n_target_views is None else n_target_views
    if not (1 <= n_input_views <= n_views and 1 <= n_target <= n_views):
        raise ConfigError(
            "the batch has fewer views than asked for",
            expected=f"1 to {n_views}",
            found=f"{n_input_views} input and {n_target} target views",
            fix="fewer views, or a batch of more",
        )
    inputs = tuple(x[:, :n_input_views] for x in (batch.images, batch.K, batch.c2w))
    gaussians = model.apply({"params": params}, *inputs)
    targets = jax.tree.map(
        lambda x: x[:, :n_target], (batch.images, batch.masks, batch.K, batch.c2w)
    )
    images, masks, K, c2w = targets
    background = batch_background(batch)
    if loss_config.random_background:
        drawn = jax.random.uniform(rng, (len(K), 3))
        # On another colour, what is not the animal changes by the difference of the two.
        images = images + (1 - masks) * (drawn - background)[:, None, None, None]
        background = drawn
    out = render_views(
        gaussians, K, c2w, w, h, background=background, implementation=implementation
    )
    points = None
    if loss_config.pixelalign > 0 or loss_config.pointsdist > 0 or loss_config.points_warmup_steps:
        points = pixel_points(model, gaussians, *inputs[1:], w, h)
    loss, terms = image_loss(
        out.rgb, images, loss_config, masks=masks, alphas=out.alpha, points=points,
        networks=networks, step=step,
    )  # fmt: skip
    terms["opaque_share"] = jnp.mean(nn.sigmoid(gaussians.opacity_logits) > 0.05)
    return loss, terms


def batch_background(batch: Views) -> Array:
    """The colour [B,3] that a batch's pictures lie on; white where the batch does not say it."""
    given = getattr(batch, "background", None)
    return jnp.ones((len(batch.images), 3)) if given is None else jnp.asarray(given)


def pixel_points(
    model: nn.Module, gaussians: Gaussians, K: Array, c2w: Array, width: int, height: int
) -> tuple[Array, Array, Array]:
    """(means, ray_o, ray_d) of the input pixels' Gaussians as pictures, each [B,V,H,W,3]."""
    c = model.config
    if c.animal_share is not None:
        raise ConfigError(
            "pixelalign and pointsdist need a Gaussian for every pixel",
            where="config.loss",
            found=f"model.animal_share {c.animal_share}",
            fix="--config.loss.pixelalign=0 --config.loss.pointsdist=0, or no animal_share",
        )
    means = gaussians.means[:, c.n_gaussian_tokens :]
    means = unpatchify(means, K.shape[1], height, width, c.patch_size)
    return (means, *camera_rays(K, c2w, height, width))


class Evaluation(NamedTuple):
    """Figures and pictures of one batch, of each sample and view.

    Attributes:
        metrics: psnr, ssim, iou, interior_psnr, mean_color_psnr, each [B,V] (dB where a PSNR).
        rendered: the renders.
        gaussians: what was rendered.
        is_heldout: [V], whether the network did not see the view.
    """

    metrics: dict[str, Array]
    rendered: Rendered
    gaussians: Gaussians
    is_heldout: Array


def gslrm_eval(
    params: Mapping[str, Any],
    batch: Views,
    *,
    model: nn.Module,
    n_input_views: int,
    implementation: str | None = None,
) -> Evaluation:
    """Lift the first `n_input_views` views and judge the renders of every view.

    Report `metrics[name][:, is_heldout]`: figures of input views say little.
    """
    inputs = (x[:, :n_input_views] for x in (batch.images, batch.K, batch.c2w))
    gaussians = model.apply({"params": params}, *inputs)
    h, w = batch.images.shape[2:4]
    out = render_views(
        gaussians, batch.K, batch.c2w, w, h,
        background=batch_background(batch), implementation=implementation,
    )  # fmt: skip
    figures = metric.figures(out.rgb, out.alpha, batch.images, batch.masks)
    is_heldout = jnp.arange(batch.images.shape[1]) >= n_input_views
    return Evaluation(figures, out, gaussians, is_heldout)
