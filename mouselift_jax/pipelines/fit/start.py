"""Where a fit starts: views cut out round the animal, and Gaussians on its visual hull."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from mouselift_jax.data.crop import crop
from mouselift_jax.errors import MouseLiftError, ShapeError
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.pipelines import voxels
from mouselift_jax.pipelines.fit.settings import FitSettings
from mouselift_jax.pipelines.fit.tints import tints, tints_of
from mouselift_jax.splats.gaussians import Gaussians, rotation_to_quat

SH_0 = 0.28209479177387814
NEIGHBOURS = 8
COARSE_CELLS = 40  # along the animal: to see how it moved as a whole
TWO_BODIES = 0.3  # share of the hull's largest part that makes another one a second animal


class UnfittableError(MouseLiftError):
    """This instant cannot be fitted; others may."""


class EmptyHullError(UnfittableError):
    """The silhouettes have nothing in common, so there is nothing to start from."""


@dataclasses.dataclass(frozen=True)
class Views:
    """Pictures of one instant, cut out round the animal to one square size.

    Attributes:
        rgb: [V,S,S,3] colour times mask.
        mask: [V,S,S] in [0,1].
        unknown: [V,S,S] bool, beyond the border of a picture that cuts the animal off.
        K: [V,3,3], pixels of the cut-outs.
        w2c: [V,4,4].
        names: of the views, for errors.
    """

    rgb: np.ndarray
    mask: np.ndarray
    unknown: np.ndarray
    K: np.ndarray
    w2c: np.ndarray
    names: tuple[str, ...]

    @property
    def cut_off(self) -> list[int]:
        """Places of the views whose border cuts the animal off."""
        return np.flatnonzero(self.unknown.any((1, 2))).tolist()

    @property
    def cameras(self) -> Camera:
        """The cut-outs' cameras [V]."""
        side = self.mask.shape[-1]
        c2w = np.linalg.inv(self.w2c.astype(np.float64))
        return Camera(self.K.astype(np.float64), c2w, side, side)

    def without(self, place: int) -> Views:
        """All but one of them."""
        kept = np.arange(len(self.mask)) != place
        arrays = (x[kept] for x in (self.rgb, self.mask, self.unknown, self.K, self.w2c))
        return Views(*arrays, self.names[:place] + self.names[place + 1 :])


@dataclasses.dataclass(frozen=True)
class Start:
    """Gaussians before the optimisation, padded to a round number.

    Attributes:
        gaussians: [N] of SH degree 0; padding has opacity 0.
        alive: [N] bool, False for padding.
        seen: [N], by how many cameras each is seen; 0 = coloured from its nearest seen neighbours.
        cell: side of a cell of the hull, scene units.
        gains: of each camera's colours [V,3], mean 1 over the cameras.
        offsets: [V,3], mean 0.
    """

    gaussians: Gaussians
    alive: np.ndarray
    seen: np.ndarray
    cell: float
    gains: np.ndarray
    offsets: np.ndarray


def cut_out(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    cameras: Sequence[Camera] | Camera,
    settings: FitSettings,
    *,
    side: int = 0,
    names: Sequence[str] = (),
) -> Views:
    """Cut every view out round its animal.

    Args:
        images: one [H,W,3] float in [0,1] a view, on any background; sizes may differ.
        masks: one [H,W,1] (or [H,W]) in [0,1] a view.
        cameras: one a view.
        settings: `margin` and `side_bucket` are read.
        side: least side of the cut-outs, pixels: of the frames before, so that one program does.
        names: of the views, for errors; () = their places.

    Raises:
        ShapeError: fewer than two views, or they do not belong together.
        EmptyHullError: a mask is empty.
    """
    cameras = _each(cameras, len(images))
    masks = [np.asarray(m, np.float32).reshape(np.shape(m)[:2]) for m in masks]
    if len(images) < 2 or len(masks) != len(images):
        raise ShapeError(
            "a fit needs two or more views, each with a mask and a camera",
            found=f"{len(images)} pictures, {len(masks)} masks",
        )
    names = tuple(names) or tuple(f"view {v}" for v in range(len(masks)))
    empty = [name for name, m in zip(names, masks, strict=True) if not (m > 0.5).any()]
    if empty:
        raise EmptyHullError("a mask is empty", where=", ".join(empty), expected="an animal in it")
    boxes = [_box(m > 0.5) for m in masks]
    widest = max(max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes) + 2 * settings.margin
    side = max(side, -(-widest // settings.side_bucket) * settings.side_bucket)
    parts = []
    for image, mask, camera, (x0, y0, x1, y1) in zip(images, masks, cameras, boxes, strict=True):
        left, top = (x0 + x1 - side) // 2, (y0 + y1 - side) // 2
        stack = np.dstack(
            [np.asarray(image, np.float32) * mask[..., None], mask, np.ones_like(mask)]
        )
        h, w = mask.shape
        is_cut = x0 == 0 or y0 == 0 or x1 == w or y1 == h
        part, moved = crop(stack, camera, left, top, side, side)
        unknown = (part[..., 4] < 0.5) & is_cut
        parts.append((part[..., :4], unknown, np.asarray(moved.K), np.asarray(moved.w2c)))
    pixels = np.stack([p[0] for p in parts])
    return Views(
        pixels[..., :3],
        pixels[..., 3],
        np.stack([p[1] for p in parts]),
        np.stack([p[2] for p in parts]).astype(np.float32),
        np.stack([p[3] for p in parts]).astype(np.float32),
        names,
    )


def start(views: Views, settings: FitSettings, *, room: int = 0) -> Start:
    """Gaussians on the surface of the visual hull, coloured by the cameras that see them.

    Args:
        views: see `cut_out`.
        settings: how.
        room: least number of Gaussians, padding included, as `side` of `cut_out`.

    Raises:
        EmptyHullError: the masks have nothing in common.
        UnfittableError: two bodies, or one that leaves the space that the cameras look at or that
            they do not bound.
    """
    points, normals, cell = _surface(views, settings.cells)
    colours, seen, *gains_and_offsets = colours_of(views, points, cell, settings.colours_of_cameras)
    n = len(points)
    room = max(room, -(-n // settings.bucket) * settings.bucket)
    gaussians = Gaussians(
        means=_padded(points, room),
        quats=_padded(rotation_to_quat(_frames(normals)), room, (1, 0, 0, 0)),
        log_scales=_padded(np.log(cell * np.tile([0.65, 0.65, 0.3], (n, 1))), room, np.log(cell)),
        opacity_logits=_padded(np.full(n, 2.0), room, -30.0),
        sh=_padded(((colours - 0.5) / SH_0)[:, None], room),
    )
    return Start(gaussians, np.arange(room) < n, _padded(seen, room), cell, *gains_and_offsets)


def carried(start: Start, views: Views, *, points: int = 1500, rounds: int = 15) -> Start:
    """A start moved as a whole to where another instant's hull is: closest points, in turns."""
    low, high = voxels.bounds(views.mask, views.cameras, views.unknown)
    cell = float((high - low).max()) / COARSE_CELLS
    counts = np.ceil((high - low) / cell).astype(int)
    solid = voxels.carve(low, counts, cell, views.mask, views.cameras, views.unknown)
    if not solid.any():
        raise EmptyHullError("the masks have nothing in common", expected="one animal in all views")
    hull = voxels.centres(low, cell, voxels.surface_of(voxels.without_ghosts(solid)))
    old = np.asarray(start.gaussians.means, np.float64)[start.alive]
    old = old[:: max(1, len(old) // points)]
    hull = hull[:: max(1, len(hull) // points)]
    tree, moved = cKDTree(hull), old + hull.mean(0) - old.mean(0)
    for _ in range(rounds):
        moved = _rigid(moved, hull[tree.query(moved)[1]]).apply(moved)
    whole = _rigid(old, moved)
    gaussians = jax.tree.map(
        lambda x: np.asarray(x, np.float32), start.gaussians.transformed(whole)
    )
    return dataclasses.replace(start, gaussians=gaussians)


def for_cameras(start: Start, known: Sequence[int], asked: Sequence[int]) -> Start:
    """A start of an instant that cameras `known` saw, for views of the cameras `asked`."""
    gains, offsets = tints_of(start.gains, start.offsets, known, asked)
    return dataclasses.replace(start, gains=gains, offsets=offsets)


def _rigid(old: np.ndarray, new: np.ndarray) -> Similarity:
    """The rigid motion that takes points [M,3] nearest to others [M,3]."""
    from_, to = old.mean(0), new.mean(0)
    R = Rotation.align_vectors(new - to, old - from_)[0].as_matrix()
    return Similarity(np.float64(1.0), R, to - R @ from_)


def _surface(views: Views, cells: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Points on the hull's surface [M,3], outward normals [M,3], side of a cell."""
    cameras = views.cameras
    low, high = voxels.bounds(views.mask, cameras, views.unknown)
    if (low < -voxels.EXTENT).any() or (high > voxels.EXTENT).any():
        cut = ", ".join(views.names[v] for v in views.cut_off)
        raise UnfittableError(
            "the animal leaves the space that the cameras look at" if cut
            else "nothing bounds the animal: few cameras, or from alike directions",
            where=f"cut off in {cut}" if cut else None,
            expected=f"a hull within {voxels.EXTENT} scene units of the middle",
            fix="prepare again: its crops follow the animal; more cameras; or leave this frame out",
        )  # fmt: skip
    cell = float((high - low).max()) / cells
    counts = np.ceil((high - low) / cell).astype(int)
    solid = voxels.carve(low, counts, cell, views.mask, cameras, views.unknown)
    if voxels.second_part(solid) > TWO_BODIES:
        raise UnfittableError(
            "the masks show two bodies", expected="one animal in each mask",
            fix="masks of one animal: --config.prepare.mask_clean=True keeps the largest blob",
        )  # fmt: skip
    solid = voxels.without_ghosts(solid)
    if not solid.any():
        raise EmptyHullError("the masks have nothing in common", expected="one animal in all views")
    blurred = gaussian_filter(np.pad(solid, 3).astype(np.float32), 1.5)
    slope = np.stack(np.gradient(blurred), -1)[3:-3, 3:-3, 3:-3]
    surface = voxels.surface_of(solid)
    normals = -slope[surface]
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
    return voxels.centres(low, cell, surface), normals, cell


def colours_of(views: Views, points: np.ndarray, cell: float, are_learned: bool) -> tuple:
    """Mean colour [M,3] over the cameras that see each point, how many they are [M], their tints.

    Returns:
        colours, seen, gains [V,3], offsets [V,3]: see `tints`; ones and zeros unless learned.
    """
    found, good = np.zeros((len(views.mask), *points.shape)), []
    for v, camera in enumerate(views.cameras[i] for i in range(len(views.mask))):
        xy, depth = voxels.project(camera, points)
        front = voxels.first_cells(xy, depth, cell, camera)[0]
        # A pixel that is partly background tells the wrong colour.
        whole = voxels.look_up(views.mask[v], xy) > 0.98
        good.append((depth <= voxels.look_up(front, xy) + 3 * cell) & whole)
        found[v] = voxels.look_up(views.rgb[v], xy)
    good = np.stack(good)
    seen, shown = good.sum(0), good if are_learned else np.zeros_like(good)
    gain, offset = tints(found, shown)
    even = (found - offset[:, None]) / gain[:, None]
    colours = (even * good[..., None]).sum(0) / np.maximum(seen, 1)[:, None]
    unseen = seen == 0
    if unseen.all():
        return np.full_like(colours, 0.5), seen, gain, offset
    if unseen.any():
        near = cKDTree(points[~unseen]).query(points[unseen], min(NEIGHBOURS, (~unseen).sum()))[1]
        colours[unseen] = colours[~unseen][near.reshape(unseen.sum(), -1)].mean(1)
    return colours, seen, gain, offset


def neighbours(points: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """The nearest living points of each point [N,NEIGHBOURS]; padding is its own neighbour."""
    out = np.tile(np.arange(len(points))[:, None], (1, NEIGHBOURS))
    n = int(alive.sum())
    k = min(NEIGHBOURS, n - 1)
    if k > 0:
        index = np.flatnonzero(alive)
        out[index, :k] = index[cKDTree(points[index]).query(points[index], k + 1)[1][:, 1:]]
    return out.astype(np.int32)


def control(points: np.ndarray, alive: np.ndarray, nodes: int) -> np.ndarray:
    """Weights [N,nodes] of control points spread over the living points; rows sum to 1."""
    living = np.asarray(points)[alive]
    nodes_at = np.empty((nodes, 3))
    gap = np.full(len(living), np.inf)
    chosen = 0
    for i in range(nodes):  # each new one is farthest from all before
        nodes_at[i] = living[chosen]
        gap = np.minimum(gap, ((living - nodes_at[i]) ** 2).sum(-1))
        chosen = int(gap.argmax())
    reach2 = max(float(gap.max()), 1e-12)
    square = (living**2).sum(-1)[:, None] + (nodes_at**2).sum(-1) - 2 * living @ nodes_at.T
    weights = np.exp(-np.maximum(square, 0) / (0.5 * reach2)).astype(np.float32)
    out = np.zeros((len(points), nodes), np.float32)
    out[alive] = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-12)
    return out


def _frames(normals: np.ndarray) -> np.ndarray:
    """Rotations [M,3,3] whose third axis is the normal."""
    helper = np.eye(3)[np.argmin(np.abs(normals), -1)]
    x = np.cross(helper, normals)
    x /= np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)
    frames = np.stack([x, np.cross(normals, x), normals], -1)
    bad = np.linalg.norm(normals, axis=-1) < 0.5
    frames[bad] = np.eye(3)
    return frames


def _padded(values: np.ndarray, room: int, fill: object = 0.0) -> np.ndarray:
    out = np.empty((room, *values.shape[1:]), np.float32)
    out[: len(values)], out[len(values) :] = values, fill
    return out


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _each(cameras: Sequence[Camera] | Camera, n: int) -> list[Camera]:
    out = (
        [cameras[v] for v in range(cameras.batch_shape[0])]
        if isinstance(cameras, Camera)
        else list(cameras)
    )
    if len(out) != n:
        raise ShapeError("pictures and cameras differ in number", expected=n, found=len(out))
    return out
