"""The optimisation: one compiled program for all frames of a recording."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mouselift_jax.pipelines.fit.settings import FitSettings
from mouselift_jax.pipelines.fit.start import SH_0, Start, Views, control, neighbours
from mouselift_jax.render import rasterize
from mouselift_jax.splats.gaussians import Gaussians


class Data(NamedTuple):
    """What a step reads; S is the side of the pictures.

    Attributes:
        rgb: [V,S,S,3] colour times mask.
        mask: [V,S,S,1].
        weight: [V,S,S,1], 0 where nothing is known, else 1 over the animal's pixels in that view.
        K: [V,3,3].
        w2c: [V,4,4].
    """

    rgb: Array
    mask: Array
    weight: Array
    K: Array
    w2c: Array


class Shape(NamedTuple):
    """What stays fixed: where the Gaussians began.

    Attributes:
        means: [N,3].
        alive: [N,1], 1 or 0.
        control: [N,M] weights of the control points.
        neighbours: [N,k].
        cell: scalar.
    """

    means: Array
    alive: Array
    control: Array
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
        seen: by how many cameras each Gaussian's place was seen at the start [M].
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
    shape = Shape(
        means,
        start.alive[:, None].astype(np.float32),
        control(means, start.alive, settings.nodes),
        neighbours(means, start.alive),
        np.float32(start.cell),
    )
    mask = views.mask[..., None]
    weight = (~views.unknown[..., None]) / np.maximum(mask.sum((1, 2, 3), keepdims=True), 1)
    data = Data(views.rgb, mask, weight.astype(np.float32), views.K, views.w2c)
    params = _parameters(start, settings.nodes, len(mask))
    steps = (
        (settings.next_coarse_steps, settings.next_fine_steps)
        if is_next
        else (settings.coarse_steps, settings.fine_steps)
    )
    orders = [_order(len(mask), n, settings.seed + i) for i, n in enumerate(steps)]
    params, losses, figures = jax.device_get(_run(settings, params, shape, data, *orders))
    return _result(params, shape, losses, figures, start)


def _parameters(start: Start, nodes: int, n_views: int) -> dict[str, np.ndarray]:
    g = start.gaussians
    return {
        "nodes": np.zeros((nodes, 3), np.float32),
        "means": np.zeros_like(g.means),
        "quats": g.quats,
        "log_scales": g.log_scales,
        "opacity": g.opacity_logits,
        "colour": 0.5 + SH_0 * np.asarray(g.sh)[:, 0],
        "gain": np.zeros((n_views, 3), np.float32),
        "offset": np.zeros((n_views, 3), np.float32),
    }


def _order(n_views: int, steps: int, seed: int) -> np.ndarray:
    """Which view each step looks at: every view once before any comes again."""
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(n_views) for _ in range(-(-steps // n_views))]
    return np.concatenate([*rounds, np.zeros(0, int)])[:steps].astype(np.int32)


def moved(params: dict[str, Array], shape: Shape) -> Array:
    """Where the Gaussians are [N,3]: start + smooth deformation + own step, scene units."""
    return shape.means + shape.cell * (shape.control @ params["nodes"] + params["means"])


def draw(
    params: dict[str, Array], shape: Shape, w2c: Array, K: Array, side: int, how: str | None
) -> Any:
    """The Gaussians from cameras [V], on black."""
    opacity = jax.nn.sigmoid(params["opacity"]) * shape.alive[:, 0]
    return rasterize(
        moved(params, shape), params["quats"], jnp.exp(params["log_scales"]), opacity,
        params["colour"], w2c, K, side, side, implementation=how,
    )  # fmt: skip


def _loss(params: dict, view: Array, shape: Shape, data: Data, s: FitSettings) -> Array:
    side = data.mask.shape[1]
    out = draw(params, shape, data.w2c[view][None], data.K[view][None], side, s.implementation)
    gain = params["gain"] - params["gain"].mean(0)
    offset = params["offset"] - params["offset"].mean(0)
    rgb = out.rgb[0] * (1 + gain[view]) + out.alpha[0] * offset[view]
    weight = data.weight[view]
    colour = (jnp.abs(rgb - data.rgb[view]) * weight).sum() / 3
    outline = (_robust(out.alpha[0] - data.mask[view]) * weight).sum()
    n = shape.alive.sum()
    place = moved(params, shape) / shape.cell
    bend = place - place[shape.neighbours].mean(1)
    # The gradient of the bending energy, were every neighbour's neighbour mutual: without it the
    # gather's transpose, which XLA runs one row at a time on CPUs, would take as long as drawing.
    push = jax.lax.stop_gradient(bend - bend[shape.neighbours].mean(1))
    smooth = (push * place * shape.alive).sum() / n
    # What no camera tells, the nearest skin does.
    patch = params["colour"] - params["colour"][shape.neighbours].mean(1)
    skin = (jax.lax.stop_gradient(patch) * params["colour"] * shape.alive).sum() / n
    clear = ((1 - jax.nn.sigmoid(params["opacity"])) * shape.alive[:, 0]).sum() / n
    calm = jnp.square(gain).mean() + jnp.square(offset).mean()
    return (
        colour
        + s.alpha * outline
        + s.smooth * smooth
        + s.skin * skin
        + s.opaque * clear
        + 0.1 * calm
    )


def _robust(x: Array, width: float = 0.3) -> Array:
    """Square of small differences, growing ever slower: a wrong mask does not win."""
    square = jnp.square(x)
    return square * (1 + width) / (square + width)


def _bounded(params: dict, shape: Shape, s: FitSettings) -> dict:
    """Sizes within their bounds; the third axis is the thin one."""
    low = jnp.log(shape.cell * jnp.array([s.narrowest, s.narrowest, 0.05]))
    high = jnp.log(shape.cell * jnp.array([s.widest, s.widest, s.thickness]))
    return params | {
        "log_scales": jnp.clip(params["log_scales"], low, high),
        "colour": jnp.clip(params["colour"], 0, 1),
        "opacity": jnp.clip(params["opacity"], -8.0, 8.0),
    }


def _optimiser(s: FitSettings, steps: int, stage: int) -> optax.GradientTransformation:
    fall = (lambda r: optax.exponential_decay(r, steps, s.decay)) if stage else (lambda r: r)
    start = 1.0 if stage == 0 else 0.5
    camera = 2e-3 if s.colours_of_cameras else 0.0
    rates = {
        "nodes": fall(start * s.node_rate), "means": fall(start * s.mean_rate), "quats": 1e-2,
        "log_scales": 2e-2, "opacity": 5e-2, "colour": 1e-2, "gain": camera, "offset": camera,
    }  # fmt: skip
    # A slope that is nothing but rounding must not become a whole step.
    adams = {k: optax.adam(r, b1=0.9, b2=0.95, eps=s.eps) for k, r in rates.items()}
    return optax.multi_transform(adams, {k: k for k in rates})


def _halved(data: Data) -> Data:
    def mean(x: Array) -> Array:
        v, h, w, c = x.shape
        return x.reshape(v, h // 2, 2, w // 2, 2, c).mean((2, 4))

    K = data.K * jnp.array([0.5, 0.5, 1.0])[:, None]
    return Data(mean(data.rgb), mean(data.mask), 4 * mean(data.weight), K, data.w2c)


@functools.partial(jax.jit, static_argnums=0)
def _run(s: FitSettings, params: dict, shape: Shape, data: Data, coarse: Array, fine: Array) -> Any:
    losses = []
    for stage, (order, pixels) in enumerate(((coarse, _halved(data)), (fine, data))):
        if not len(order):
            continue
        tx = _optimiser(s, len(order), stage)

        def step(carry: tuple, view: Array, tx: Any = tx, pixels: Data = pixels) -> tuple:
            params, state = carry
            value, slope = jax.value_and_grad(_loss)(params, view, shape, pixels, s)
            change, state = tx.update(slope, state, params)
            return (_bounded(optax.apply_updates(params, change), shape, s), state), value

        (params, _), values = jax.lax.scan(step, (params, tx.init(params)), order)
        losses.append(values)
    out = draw(params, shape, data.w2c, data.K, data.mask.shape[1], s.implementation)
    known = data.weight > 0
    error = jnp.square(out.rgb - data.rgb) * known
    mse = error.sum((1, 2, 3)) / jnp.maximum(3 * known.sum((1, 2, 3)), 1)
    a, b = (out.alpha > 0.5) & known, (data.mask > 0.5) & known
    iou = (a & b).sum((1, 2, 3)) / jnp.maximum((a | b).sum((1, 2, 3)), 1)
    gains = 1 + params["gain"] - params["gain"].mean(0)
    offsets = params["offset"] - params["offset"].mean(0)
    params = params | {"means": moved(params, shape)}
    figures = {"psnr": -10 * jnp.log10(jnp.maximum(mse, 1e-10)), "iou": iou, "gains": gains,
               "offsets": offsets}  # fmt: skip
    return params, jnp.concatenate([jnp.zeros(0), *losses]), figures


def _result(params: dict, shape: Shape, losses: np.ndarray, figures: dict, start: Start) -> Fit:
    gaussians = Gaussians(
        params["means"], params["quats"], params["log_scales"], params["opacity"],
        ((params["colour"] - 0.5) / SH_0)[:, None],
    )  # fmt: skip
    kept = start.alive & (params["opacity"] > -3.0)
    return Fit(
        gaussians[kept], losses, figures["psnr"], figures["iou"], start.seen[kept],
        figures["gains"], figures["offsets"], dataclasses.replace(start, gaussians=gaussians),
    )  # fmt: skip
