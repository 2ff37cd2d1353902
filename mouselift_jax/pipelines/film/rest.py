"""The rest set: Gaussians of the best-seen frame, and the nodes that will carry them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from mouselift_jax.pipelines.fit.optimise import Fit
from mouselift_jax.splats.gaussians import Gaussians

ROOM = 512  # numbers of Gaussians are rounded up to a multiple: less padding than a fit's
LIVES = -3.0  # opacity logit below which a Gaussian is left out
EDGES = 6  # neighbours of a node
LINKS = 8  # neighbours of a Gaussian, along which the skin is walked


@dataclasses.dataclass(frozen=True)
class Rest:
    """One animal as it was in one frame; N with padding, M nodes.

    Attributes:
        gaussians: [N] of SH degree 0, NumPy.
        alive: [N] bool; False for padding and for what is transparent.
        seen: by how many cameras each was seen [N].
        nodes: where the nodes are [M,3].
        weights: how much each node carries each Gaussian [N,M]; rows sum to 1, of padding to 0.
        edges: neighbours of each node along the skin [M,EDGES].
        cell: length unit of the settings, scene units.
        iou: of the given views in the frame it was made from, mean.
        psnr: of them, mean, dB.
        gains: of each camera's colours in it [V,3].
        offsets: [V,3].
        cameras: their numbers [V].
    """

    gaussians: Gaussians
    alive: np.ndarray
    seen: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray
    edges: np.ndarray
    cell: float
    iou: float
    psnr: float
    gains: np.ndarray
    offsets: np.ndarray
    cameras: np.ndarray


def rest_of(done: Fit, nodes: int, cameras: Sequence[int], *, finer: float = 1.0) -> Rest:
    """The rest set of a fitted frame, with nodes spread along its skin.

    Args:
        done: the fit.
        nodes: how many.
        cameras: number of each of its views' cameras.
        finer: how much finer than others it was fitted: the unit of the settings stays.

    Distances are walked from Gaussian to Gaussian: a paw beside the belly is not carried by it.
    """
    room = min(len(done.start.alive), -(-int(done.start.alive.sum()) // ROOM) * ROOM)
    g = done.start.gaussians[:room]  # the living ones come first
    alive = done.start.alive[:room] & (np.asarray(g.opacity_logits) > LIVES)
    seen = np.zeros(len(alive), np.float32)
    seen[alive] = done.seen
    points = np.asarray(g.means, np.float64)[alive]
    nodes = min(nodes, len(points))
    links = _links(points)
    chosen, rows = [int(((points - points.mean(0)) ** 2).sum(-1).argmax())], []
    gap = np.full(len(points), np.inf)
    for _ in range(nodes):
        walked = dijkstra(links, indices=chosen[-1])
        straight = np.linalg.norm(points - points[chosen[-1]], axis=-1)
        rows.append(np.where(np.isfinite(walked), walked, 4 * straight + 20 * done.start.cell))
        gap = np.minimum(gap, rows[-1])
        chosen.append(int(gap.argmax()))
    far = np.stack(rows, -1)  # [N',M]
    reach = 0.5 * max(float(gap.max()), 1e-12)
    near = np.exp(-0.5 * (np.square(far) - np.square(far.min(-1, keepdims=True))) / reach**2)
    weights = np.zeros((len(alive), nodes), np.float32)
    weights[alive] = near / near.sum(-1, keepdims=True)
    between = far[chosen[:-1]] + np.diag(np.full(nodes, np.inf))
    edges = np.argsort(between, -1)[:, : min(EDGES, nodes - 1)].astype(np.int32)
    return Rest(
        g, alive, seen, points[chosen[:-1]].astype(np.float32), weights, edges,
        finer * float(done.start.cell), float(np.mean(done.iou)), float(np.mean(done.psnr)),
        done.start.gains, done.start.offsets, np.asarray(cameras, int),
    )  # fmt: skip


def _links(points: np.ndarray) -> csr_matrix:
    k = min(LINKS, len(points) - 1)
    length, index = cKDTree(points).query(points, k + 1)
    rows = np.repeat(np.arange(len(points)), k)
    half = csr_matrix((length[:, 1:].ravel() + 1e-12, (rows, index[:, 1:].ravel())),
                      (len(points),) * 2)  # fmt: skip
    return half.maximum(half.T)
