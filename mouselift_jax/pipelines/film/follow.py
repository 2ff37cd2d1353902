"""From one frame to the next: the nodes move, what they carry stays the same."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
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
from mouselift_jax.pipelines.fit.tints import tints_of, untinted
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
        psnr: of each given view [V], inside its cut-out, dB, as it is shown.
        iou: of their silhouettes [V].
        held: PSNR without what was painted [V]: whether these are still the same colours.
    """

    motion: Motion
    losses: np.ndarray
    psnr: np.ndarray
    iou: np.ndarray
    held: np.ndarray


def follow(
    views: Views, rest: Rest, start: Motion, settings: FilmSettings, cameras: Sequence[int]
) -> Followed:
    """Move the rest set to where the views show the animal.

    Args:
        views: of the frame, as `fit.cut_out` makes them.
        rest: the Gaussians and their nodes.
        start: where to begin: see `expected`.
        settings: how.
        cameras: number of each view's camera: their tints are those of the rest set's frame.
    """
    g = rest.gaussians
    opacities = np.where(rest.alive, 1 / (1 + np.exp(-g.opacity_logits)), 0).astype(np.float32)
    fixed = Fixed(look_of(rest), np.exp(g.log_scales), opacities, rest.edges, start)
    tints = tints_of(rest.gains, rest.offsets, rest.cameras, cameras)
    rgb = untinted(views.rgb, views.mask, *tints)
    views = dataclasses.replace(views, rgb=np.asarray(rgb, np.float32))
    data = Pictures.of(views)
    steps = settings.coarse_steps, settings.fine_steps
    orders = [order_of_views(len(data.mask), n, settings.seed + i) for i, n in enumerate(steps)]
    return Followed(*jax.device_get(_run(settings, fixed, data, *orders)))


def _moved(p: dict, fixed: Fixed) -> Motion:
    """The motion that parameters mean: steps from where the frame started."""
    half, start = 0.5 * p["turn"], fixed.motion
    small = jnp.concatenate([jnp.ones_like(half[:, :1]), half], -1)
    turns = product(small / jnp.linalg.norm(small, axis=-1, keepdims=True), start.turns)
    places = start.places + fixed.look.cell * p["place"]
    return Motion(places, turns, start.own + p["own"], start.shade + p["shade"],
                  start.tint + p["tint"], start.paint)  # fmt: skip


def _draw(motion: Motion, fixed: Fixed, data: Pictures, how: str | None) -> Any:
    """All views of a frame, without what is painted."""
    side = data.mask.shape[1]
    means, quats, colours = carry(fixed.look, motion)
    return rasterize(means, quats, fixed.scales, fixed.opacities, colours, data.w2c, data.K, side,
                     side, implementation=how)  # fmt: skip


def _loss(p: dict, view: Array, fixed: Fixed, data: Pictures, s: FilmSettings) -> Array:
    motion, seen = _moved(p, fixed), jax.tree.map(lambda x: x[view][None], data)
    out = _draw(motion, fixed, seen, s.implementation)
    rgb = out.rgb[0].reshape(seen.rgb[0].shape)
    pictures = unlike(rgb, seen.rgb[0], seen.rgb_weight[0])
    pictures += s.alpha * unlike_outline(out.alpha[0, ..., 0], seen.mask[0], seen.weight[0])
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


def _painted(motion: Motion, fixed: Fixed, data: Pictures, s: FilmSettings) -> tuple[Motion, Array]:
    """Colours for show: each Gaussian takes what the pictures have more than it, where it shows.

    Returns:
        The motion, and the pictures with its paint [V,S,3S].
    """
    # A pixel that is partly background tells the wrong colour.
    whole = ((data.mask > 0.95) & (data.weight > 0)).astype(jnp.float32)
    known = jnp.repeat(whole, 3, -1)

    def draw(paint: Array) -> Array:
        tint = motion.tint + paint
        out = _draw(dataclasses.replace(motion, tint=tint), fixed, data, s.implementation)
        return out.rgb.reshape(data.rgb.shape)

    paint = motion.paint
    drawn, back = jax.vjp(draw, paint)
    (pixels,) = back(known)  # how many pixels each Gaussian makes up
    for _ in range(s.paint_sweeps):
        (more,) = back(known * (data.rgb - drawn))
        paint = paint + more / (pixels + s.paint_calm)
        drawn, back = jax.vjp(draw, paint)
    return dataclasses.replace(motion, paint=paint), drawn


def _optimiser(s: FilmSettings, steps: int, stage: int) -> optax.GradientTransformation:
    def fall(rate: float) -> Any:
        return optax.exponential_decay(rate, steps, s.decay)

    first = {"place": s.place_rate, "turn": s.turn_rate, "shade": s.shade_rate}
    late = {"own": s.own_rate, "tint": s.tint_rate}  # they wait until the nodes are in place
    if stage == 0:
        rates = first | dict.fromkeys(late, 0.0)
    else:
        rates = {k: fall(0.5 * r) for k, r in first.items()} | {k: fall(r) for k, r in late.items()}
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
    out = _draw(motion, fixed, data, s.implementation)
    held, iou = data.likeness(out.rgb, out.alpha)
    motion, shown = _painted(motion, fixed, data, s)
    psnr, _ = data.likeness(shown, out.alpha)
    return motion, jnp.concatenate([jnp.zeros(0), *losses]), psnr, iou, held
