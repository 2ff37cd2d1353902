"""From one frame to the next: the nodes move, what they carry stays the same."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mouselift_jax.pipelines.film.motion import Look, Motion, carry, look_of, product
from mouselift_jax.pipelines.film.rest import Rest
from mouselift_jax.pipelines.film.settings import FilmSettings
from mouselift_jax.pipelines.fit.pictures import (
    Pictures,
    order_of_views,
    unlike,
    unlike_outline,
)
from mouselift_jax.pipelines.fit.start import Views
from mouselift_jax.pipelines.fit.tints import untinted
from mouselift_jax.render import rasterize
from mouselift_jax.splats.gaussians import quat_to_rotation


class Fixed(NamedTuple):
    """What does not change while a frame is followed; N Gaussians, M nodes.

    Attributes:
        look: the rest set.
        scales: [N,3].
        opacities: [N].
        edges: [M,E].
        motion: where the frame starts.
    """

    look: Look
    scales: Array
    opacities: Array
    edges: Array
    motion: Motion


@dataclasses.dataclass(frozen=True)
class Followed:
    """One frame of a film.

    Attributes:
        motion: against the rest set.
        losses: of every step [T].
        psnr: of each given view [V], inside its cut-out, dB.
        iou: of their silhouettes [V].
    """

    motion: Motion
    losses: np.ndarray
    psnr: np.ndarray
    iou: np.ndarray


def follow(views: Views, rest: Rest, start: Motion, settings: FilmSettings) -> Followed:
    """Move the rest set to where the views show the animal.

    Args:
        views: of the frame, as `fit.cut_out` makes them.
        rest: the Gaussians and their nodes.
        start: where to begin: see `expected`.
        settings: how.
    """
    g = rest.gaussians
    opacities = np.where(rest.alive, 1 / (1 + np.exp(-g.opacity_logits)), 0).astype(np.float32)
    fixed = Fixed(look_of(rest), np.exp(g.log_scales), opacities, rest.edges, start)
    if len(views.rgb) == len(rest.gains):  # else a camera lacks this frame, nobody knows which
        rgb = untinted(views.rgb, views.mask, rest.gains, rest.offsets)
        views = dataclasses.replace(views, rgb=rgb)
    data = Pictures.of(views)
    steps = settings.coarse_steps, settings.fine_steps
    orders = [order_of_views(len(data.mask), n, settings.seed + i) for i, n in enumerate(steps)]
    motion, losses, psnr, iou = jax.device_get(_run(settings, fixed, data, *orders))
    return Followed(motion, losses, psnr, iou)


def _moved(p: dict, fixed: Fixed) -> Motion:
    """The motion that parameters mean: steps from where the frame started."""
    half, start = 0.5 * p["turn"], fixed.motion
    small = jnp.concatenate([jnp.ones_like(half[:, :1]), half], -1)
    turns = product(small / jnp.linalg.norm(small, axis=-1, keepdims=True), start.turns)
    places = start.places + fixed.look.cell * p["place"]
    return Motion(places, turns, start.own + p["own"], start.shade + p["shade"],
                  start.tint + p["tint"])  # fmt: skip


def _draw(motion: Motion, fixed: Fixed, w2c: Array, K: Array, side: int, how: str | None) -> Any:
    means, quats, colours = carry(fixed.look, motion)
    return rasterize(means, quats, fixed.scales, fixed.opacities, colours, w2c, K, side, side,
                     implementation=how)  # fmt: skip


def _loss(p: dict, view: Array, fixed: Fixed, data: Pictures, s: FilmSettings) -> Array:
    side = data.mask.shape[1]
    motion = _moved(p, fixed)
    out = _draw(motion, fixed, data.w2c[view][None], data.K[view][None], side, s.implementation)
    pictures = unlike(out.rgb[0].reshape(side, -1), data.rgb[view], data.rgb_weight[view])
    pictures += s.alpha * unlike_outline(out.alpha[0, ..., 0], data.mask[view], data.weight[view])
    # Seen from each node, its neighbours turn as it does.
    R, nodes = quat_to_rotation(motion.turns), fixed.look.nodes
    was = nodes[fixed.edges] - nodes[:, None]
    now = motion.places[fixed.edges] - motion.places[:, None]
    off = now - jnp.einsum("mij,mej->mei", R, was)
    length = jnp.square(was).sum(-1).mean()
    rigid = jnp.square(off).sum(-1).mean() / length
    calm = jnp.square(motion.own).sum(-1).mean()
    keep = jnp.square(motion.tint).sum(-1).mean()
    even = motion.shade - motion.shade[fixed.edges].mean(1)
    light = jnp.square(even).sum(-1).mean()
    return pictures + s.rigid * rigid + s.calm * calm + s.keep * keep + s.light * light


def _optimiser(s: FilmSettings, steps: int, stage: int) -> optax.GradientTransformation:
    def fall(rate: float) -> Any:
        if stage == 0:
            return rate
        return optax.exponential_decay(0.5 * rate, steps, s.decay)

    late = float(stage)  # single Gaussians and colours wait until the nodes are in place
    rates = {
        "place": fall(s.place_rate), "turn": fall(s.turn_rate),
        "shade": fall(s.shade_rate), "own": late * s.own_rate, "tint": late * s.tint_rate,
    }  # fmt: skip
    adams = {k: optax.adam(r, b1=0.9, b2=0.95, eps=1e-6) for k, r in rates.items()}
    return optax.multi_transform(adams, {k: k for k in rates})


@functools.partial(jax.jit, static_argnums=0)
def _run(s: FilmSettings, fixed: Fixed, data: Pictures, coarse: Array, fine: Array) -> Any:
    m, n = len(fixed.look.nodes), len(fixed.look.means)
    shapes = {"place": m, "turn": m, "shade": m, "own": n, "tint": n}
    params = {k: jnp.zeros((rows, 3)) for k, rows in shapes.items()}
    losses = []
    for stage, (order, pixels) in enumerate(((coarse, data.halved()), (fine, data))):
        if not len(order):
            continue
        tx = _optimiser(s, len(order), stage)

        def step(carry: tuple, view: Array, tx: Any = tx, pixels: Pictures = pixels) -> tuple:
            params, state = carry
            value, slope = jax.value_and_grad(_loss)(params, view, fixed, pixels, s)
            change, state = tx.update(slope, state, params)
            return (optax.apply_updates(params, change), state), value

        (params, _), values = jax.lax.scan(step, (params, tx.init(params)), order)
        losses.append(values)
    motion = _moved(params, fixed)
    out = _draw(motion, fixed, data.w2c, data.K, data.mask.shape[1], s.implementation)
    psnr, iou = data.likeness(out.rgb, out.alpha)
    return motion, jnp.concatenate([jnp.zeros(0), *losses]), psnr, iou
