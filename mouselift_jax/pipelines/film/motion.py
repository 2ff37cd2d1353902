"""Where the nodes are in one instant, and the Gaussians that they carry."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from mouselift_jax.geometry.similarity import array_namespace
from mouselift_jax.pipelines.film.rest import Rest
from mouselift_jax.splats.gaussians import Gaussians, quat_to_rotation

Array = Any
SH_0 = 0.28209479177387814


@dataclasses.dataclass(frozen=True)
class Motion:
    """The animal in one instant, told against its rest set.

    Attributes:
        places: of the nodes [M,3], scene units.
        turns: rotations of the nodes since rest, wxyz [M,4].
        own: what each Gaussian is off the place its nodes carry it to [N,3], cells, axes of rest.
        shade: how much brighter than at rest it is about each node, of each colour [M,3].
        tint: what each Gaussian's colour is off its shaded colour of rest [N,3].
        paint: what is further added where the frame is shown [N,3]. It is followed without: what
            is painted on skin that lies a little wrong must not hold it there.
    """

    places: np.ndarray
    turns: np.ndarray
    own: np.ndarray
    shade: np.ndarray
    tint: np.ndarray
    paint: np.ndarray


def at_rest(rest: Rest) -> Motion:
    """No motion."""
    n, m = len(rest.alive), len(rest.nodes)
    zeros = [np.zeros((rows, 3), np.float32) for rows in (n, m, n, n)]
    return Motion(rest.nodes, np.tile(np.float32([1, 0, 0, 0]), (m, 1)), *zeros)


class Look(NamedTuple):
    """Gaussians at rest, as arrays: what `carry` moves.

    Attributes:
        means: [N,3].
        quats: [N,4].
        colours: [N,3].
        nodes: [M,3].
        weights: [N,M].
        cell: scalar.
    """

    means: Array
    quats: Array
    colours: Array
    nodes: Array
    weights: Array
    cell: Array


def look_of(rest: Rest) -> Look:
    """The arrays of a rest set."""
    g = rest.gaussians
    colours = 0.5 + SH_0 * np.asarray(g.sh)[:, 0]
    arrays = (g.means, g.quats, colours, rest.nodes, rest.weights, rest.cell)
    return Look(*(np.asarray(x, np.float32) for x in arrays))


def carry(look: Look, motion: Motion) -> tuple[Array, Array, Array]:
    """Means [N,3], quats [N,4], colours [N,3] of an instant: the nodes' motions, blended."""
    xp = array_namespace(motion.places)
    R = quat_to_rotation(motion.turns)
    shift = motion.places - (R * look.nodes[:, None]).sum(-1)
    of_nodes = xp.concatenate([R.reshape(-1, 9), shift, motion.turns, motion.shade], -1)
    blend = look.weights @ of_nodes  # [N,19]
    own = look.means + look.cell * motion.own
    means = (blend[:, :9].reshape(-1, 3, 3) * own[:, None]).sum(-1) + blend[:, 9:12]
    colours = look.colours * (1 + blend[:, 16:]) + motion.tint
    return means, product(blend[:, 12:16], look.quats), colours


def product(a: Array, b: Array) -> Array:
    """Hamilton product of quaternions wxyz [...,4]: b first, then a."""
    xp = array_namespace(a, b)
    aw, ax, ay, az = (a[..., i] for i in range(4))
    bw, bx, by, bz = (b[..., i] for i in range(4))
    return xp.stack([
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    ], -1)  # fmt: skip


def posed(rest: Rest, motion: Motion) -> Gaussians:
    """The Gaussians of an instant [N], padding included."""
    g = rest.gaussians
    means, quats, colours = carry(look_of(rest), motion)
    colours = colours + motion.paint
    norm = np.linalg.norm(quats, axis=-1, keepdims=True)
    quats = np.where(norm > 1e-6, quats / np.maximum(norm, 1e-6), np.float32([1, 0, 0, 0]))
    sh = ((np.clip(colours, 0, 1) - 0.5) / SH_0)[:, None]
    return Gaussians(means.astype(np.float32), quats.astype(np.float32), g.log_scales,
                     g.opacity_logits, sh.astype(np.float32))  # fmt: skip


def expected(last: Motion, before: Motion | None, trust: float) -> Motion:
    """The next instant, if a share of the motion between the last two goes on."""
    if before is None:
        return last
    places = last.places + trust * (last.places - before.places)
    inverse = before.turns * np.float32([1, -1, -1, -1])
    step = product(last.turns, inverse)
    step = step * np.where(step[:, :1] < 0, -1, 1)
    step = (1 - trust) * np.float32([1, 0, 0, 0]) + trust * step  # short ways: as good as a slerp
    turns = product(step, last.turns)
    turns = turns / np.linalg.norm(turns, axis=-1, keepdims=True)
    return dataclasses.replace(
        last, places=places.astype(np.float32), turns=turns.astype(np.float32)
    )


jax.tree_util.register_dataclass(Motion)
