"""The optimisation: one compiled program for all frames of a recording.

What it minimises is `_loss`; its weights are in `settings.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mouselift_jax.pipelines.fit.pictures import (
    Pictures,
    order_of_views,
    unlike,
    unlike_outline,
)
from mouselift_jax.pipelines.fit.settings import FitSettings
from mouselift_jax.pipelines.fit.start import SH_0, Start, Views, control, neighbours
from mouselift_jax.pipelines.fit.tints import untinted
from mouselift_jax.pipelines.fit.trust import cameras_that_see
from mouselift_jax.render import rasterize
from mouselift_jax.splats.gaussians import Gaussians


class Shape(NamedTuple):
    """What stays fixed: where the Gaussians began.

    Attributes:
        means: [N,3].
        alive: [N,1], 1 or 0.
        control: [N,M] weights of the control points.
        control_T: [M,N], the same; a product that has to turn it first takes ten times as long.
        neighbours: [k,N].
        cell: scalar.
    """

    means: Array
    alive: Array
    control: Array
    control_T: Array
    neighbours: Array
    cell: Array


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a fit learned.

    Attributes:
        gaussians: [M] of SH degree 0, NumPy; padding and what became transparent is left out.
        losses: of every step [T].
        psnr: of each view [V], inside its cut-out, dB: of the views that were fitted.
        iou: of their silhouettes [V].
        seen: by how many of the cameras each Gaussian is seen [M]; a camera that sees it in part
            counts in part. Near 0 its colour is a guess.
        gains: of each camera's colours [V,3], mean 1 over the cameras.
        offsets: [V,3].
        start: what the next frame can start from; its padding is kept.
    """

    gaussians: Gaussians
    losses: np.ndarray
    psnr: np.ndarray
    iou: np.ndarray
    seen: np.ndarray
    gains: np.ndarray
    offsets: np.ndarray
    start: Start


def fit(views: Views, start: Start, settings: FitSettings, *, is_next: bool = False) -> Fit:
    """Fit Gaussians to the views of one instant.

    Args:
        views: see `cut_out`.
        start: Gaussians to start from: of `start`, or the `start` of a neighbouring frame's fit.
        settings: how.
        is_next: take the shorter schedule of a start that is nearly there.
    """
    means = np.asarray(start.gaussians.means)
    weights = control(means, start.alive, settings.nodes)
    shape = Shape(
        means,
        start.alive[:, None].astype(np.float32),
        weights,
        np.ascontiguousarray(weights.T),
        np.ascontiguousarray(neighbours(means, start.alive).T),
        np.float32(start.cell),
    )
    rgb = untinted(views.rgb, views.mask, start.gains, start.offsets)
    data = Pictures.of(dataclasses.replace(views, rgb=rgb))
    params = _parameters(start, settings.nodes)
    steps = (
        (settings.next_coarse_steps, settings.next_fine_steps)
        if is_next
        else (settings.coarse_steps, settings.fine_steps)
    )
    longest = max(settings.coarse_steps, settings.fine_steps, *steps)
    orders = [order_of_views(len(views.mask), longest, settings.seed + i) for i in range(2)]
    same = dataclasses.replace(  # one program for all seeds and schedules
        settings, seed=0, coarse_steps=0, fine_steps=0, next_coarse_steps=0, next_fine_steps=0
    )
    out = _run(same, params, shape, data, np.stack(orders), np.asarray(steps, np.int32))
    params, losses, figures = jax.device_get(out)
    losses = np.concatenate([values[:n] for values, n in zip(losses, steps, strict=True)])
    return _result(params, shape, losses, figures, start)


def _parameters(start: Start, nodes: int) -> dict[str, np.ndarray]:
    g = start.gaussians
    return {
        "nodes": np.zeros((nodes, 3), np.float32),
        "means": np.zeros_like(g.means),
        "quats": g.quats,
        "log_scales": g.log_scales,
        "opacity": g.opacity_logits,
        "colour": 0.5 + SH_0 * np.asarray(g.sh)[:, 0],
    }


def moved(params: dict[str, Array], shape: Shape) -> Array:
    """Where the Gaussians are [N,3]: start + smooth deformation + own step, scene units."""
    smooth = _deformed(params["nodes"], shape.control, shape.control_T)
    return shape.means + shape.cell * (smooth + params["means"])


@jax.custom_vjp
def _deformed(nodes: Array, control: Array, control_T: Array) -> Array:  # noqa: ARG001
    return control @ nodes


_deformed.defvjp(
    lambda nodes, control, control_T: (control @ nodes, control_T),
    lambda control_T, slope: (control_T @ slope, None, None),
)


def _arrays(params: dict[str, Array], shape: Shape) -> tuple[Array, Array, Array, Array]:
    """Means, quats, scales, opacities."""
    opacity = jax.nn.sigmoid(params["opacity"]) * shape.alive[:, 0]
    return moved(params, shape), params["quats"], jnp.exp(params["log_scales"]), opacity


def _loss(params: dict, view: Array, shape: Shape, data: Pictures, s: FitSettings) -> Array:
    side, arrays = data.mask.shape[1], _arrays(params, shape)
    out = rasterize(
        *arrays, params["colour"], data.w2c[view][None], data.K[view][None], side, side,
        implementation=s.implementation,
    )  # fmt: skip
    rgb, cover = out.rgb[0].reshape(side, -1), out.alpha[0, ..., 0]
    pictures = unlike(rgb, data.rgb[view], data.rgb_weight[view])
    pictures += s.alpha * unlike_outline(cover, data.mask[view], data.weight[view])
    n = shape.alive.sum()
    place = arrays[0] / shape.cell  # asked for once: its slope is a product with all nodes
    bend = _unlike_neighbours(place, shape)
    # The gradient of the bending energy, were every neighbour's neighbour mutual: without it the
    # gather's transpose, which XLA runs one row at a time on CPUs, would take as long as drawing.
    push = jax.lax.stop_gradient(_unlike_neighbours(bend, shape))
    smooth = (push * place * shape.alive).sum() / n
    # What no camera tells, the nearest skin does.
    patch = jax.lax.stop_gradient(_unlike_neighbours(params["colour"], shape))
    skin = (patch * params["colour"] * shape.alive).sum() / n
    clear = ((1 - jax.nn.sigmoid(params["opacity"])) * shape.alive[:, 0]).sum() / n
    return pictures + s.smooth * smooth + s.skin * skin + s.opaque * clear


def _unlike_neighbours(values: Array, shape: Shape) -> Array:
    """What each Gaussian has more than its neighbours have on the mean [N,C]."""
    # One gather a neighbour: eight times as fast on CPUs as one gather of all and a mean.
    return values - sum(values[n] for n in shape.neighbours) / len(shape.neighbours)


def _bounded(params: dict, shape: Shape, s: FitSettings) -> dict:
    """Sizes within their bounds; the third axis is the thin one."""
    low = jnp.log(shape.cell * jnp.array([s.narrowest, s.narrowest, 0.05]))
    high = jnp.log(shape.cell * jnp.array([s.widest, s.widest, s.thickness]))
    return params | {
        "log_scales": jnp.clip(params["log_scales"], low, high),
        "colour": jnp.clip(params["colour"], 0, 1),
        "opacity": jnp.clip(params["opacity"], -8.0, 8.0),
    }


def _optimiser(s: FitSettings, steps: Array, stage: int) -> optax.GradientTransformation:
    def fall(rate: float) -> Any:
        return (lambda count: rate * s.decay ** (count / steps)) if stage else rate

    start = 1.0 if stage == 0 else 0.5
    rates = {
        "nodes": fall(start * s.node_rate), "means": fall(start * s.mean_rate), "quats": 1e-2,
        "log_scales": 2e-2, "opacity": 5e-2, "colour": s.colour_rate,
    }  # fmt: skip
    # A slope that is nothing but rounding must not become a whole step.
    adams = {k: optax.adam(r, b1=0.9, b2=0.95, eps=s.eps) for k, r in rates.items()}
    return optax.multi_transform(adams, {k: k for k in rates})


@functools.partial(jax.jit, static_argnums=0)
def _run(
    s: FitSettings, params: dict, shape: Shape, data: Pictures, orders: Array, steps: Array
) -> tuple[dict, Array, dict]:
    """Both stages; how many steps each takes is data, so short schedules need no own program."""
    losses = []
    for stage, pixels in enumerate((data.halved(), data)):
        tx = _optimiser(s, steps[stage], stage)

        def step(i: Array, carry: tuple, tx: Any = tx, pixels: Pictures = pixels, at: int = stage):  # noqa: ANN202
            params, state, values = carry
            value, slope = jax.value_and_grad(_loss)(params, orders[at, i], shape, pixels, s)
            change, state = tx.update(slope, state, params)
            params = _bounded(optax.apply_updates(params, change), shape, s)
            return params, state, values.at[i].set(value)

        carry = (params, tx.init(params), jnp.zeros(orders.shape[1]))
        params, _, values = jax.lax.fori_loop(0, steps[stage], step, carry)
        losses.append(values)
    side, arrays = data.mask.shape[1], _arrays(params, shape)

    def drawn(colour: Array, w2c: Array, K: Array) -> Any:
        return rasterize(*arrays, colour, w2c, K, side, side, implementation=s.implementation)

    out = drawn(params["colour"], data.w2c, data.K)
    seen = cameras_that_see(lambda *x: drawn(*x).rgb, arrays, data.w2c, data.K, side)
    psnr, iou = data.likeness(out.rgb, out.alpha)
    params = params | {"means": arrays[0]}
    figures = {"psnr": psnr, "iou": iou, "seen": seen}
    return params, jnp.stack(losses), figures


def _result(params: dict, shape: Shape, losses: np.ndarray, figures: dict, start: Start) -> Fit:
    gaussians = Gaussians(
        params["means"], params["quats"], params["log_scales"], params["opacity"],
        ((params["colour"] - 0.5) / SH_0)[:, None],
    )  # fmt: skip
    kept = start.alive & (params["opacity"] > -3.0)
    return Fit(
        gaussians[kept], losses, figures["psnr"], figures["iou"], figures["seen"][kept],
        start.gains, start.offsets, dataclasses.replace(start, gaussians=gaussians),
    )  # fmt: skip
