"""A four-legged body as full cells: where it is, which way it lies, how long and how large it is.

Everything follows from which cells are full, so turning or moving the animal changes nothing but
the place and the angles. Lengths are in the unit of the cells, z is up. M cells, K points.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

THIN = 0.33  # of the greatest half-thickness: legs, ears and tail are thinner, the trunk is not
TAIL_ROOT = 0.5  # of the greatest section's radius: where the trunk ends and the tail begins
NEAR = 0.85  # of the greatest half-thickness: how far from the spine a section reaches
POWER = 3.0
SMOOTH = 4.0  # per cent of the trunk's length over which the spine is smoothed
SPINE_POINTS = 21
_HEADING = (7, 15)  # its points that tell the heading: the trunk; a head turns on its own
_NOSE = 0.02  # of the greatest section's area: less is a crumb, not a nose


@dataclasses.dataclass(frozen=True)
class Solid:
    """Full cells of a grid.

    Attributes:
        cells: [X,Y,Z] bool.
        low: outer corner of cell (0, 0, 0) [3].
        cell: side of a cell.
    """

    cells: np.ndarray
    low: np.ndarray
    cell: float

    def largest(self) -> Solid:
        """Its largest connected part."""
        return dataclasses.replace(self, cells=_largest(self.cells))

    def points(self) -> np.ndarray:
        """Centres [M,3] of the full cells."""
        return self.low + self.cell * (np.argwhere(self.cells) + 0.5)


@dataclasses.dataclass(frozen=True)
class BodyShape:
    """What a solid measures; lengths in its unit, angles in degrees.

    Attributes:
        centre: centroid of the trunk: the solid without what is thin (tail, paws, ears) [3].
        spine: points from the nose's tip to the tail root, evenly spaced [SPINE_POINTS,3].
        length: along that curve.
        tail: how far the solid goes on behind the tail root.
        width: greatest horizontal width of the trunk's sections.
        height: from the lowest to the highest cell of trunk and legs.
        volume: of all full cells, tail and legs included.
        area: of the surface of all full cells.
        heading: azimuth of the spine between 35 % and 75 % of the way from nose to tail root.
        pitch: its rise above the horizontal.
        roll: about the spine, of the plane that halves the body best; left side up is positive.
        bend: the spine's turn from tail to head, seen from above, positive to the left.
        box: low and high corner of the solid.
        front: how surely `spine[0]` is the nose by shape alone, -1 (it is the tail) to 1.
    """

    centre: np.ndarray
    spine: np.ndarray
    length: float
    tail: float
    width: float
    height: float
    volume: float
    area: float
    heading: float
    pitch: float
    roll: float
    bend: float
    box: tuple[np.ndarray, np.ndarray]
    front: float


def body_shape(solid: Solid, ends: np.ndarray | None = None) -> BodyShape | None:
    """Measure a body.

    Args:
        solid: of one piece (see `Solid.largest`).
        ends: nose and tail root [2,3] where they are known, as of keypoints. They say which end is
            the head, and where the spine stops: labels of tail roots lie up to 15 mm in the rump.
            None = both are told by shape.

    Returns:
        The measures; None where there is no trunk (fewer than 64 cells of it).
    """
    depth = ndimage.distance_transform_edt(np.pad(solid.cells, 1), sampling=solid.cell)
    thickest = float(depth.max(initial=0.0))
    trunk = _opened(depth, THIN * thickest)[1:-1, 1:-1, 1:-1] & solid.cells
    if trunk.sum() < 64:
        return None
    points = solid.points()
    weights = depth[1:-1, 1:-1, 1:-1][solid.cells] ** POWER  # the middle counts, legs hardly do
    inner = Solid(trunk, solid.low, solid.cell).points()
    curve = _spine(points, weights, inner, solid.cell, NEAR * thickest)
    if curve is None:  # a shell or scattered haze: nothing runs through its middle
        return None
    found = _ends(points, curve, solid.cell, NEAR * thickest, ends)
    if found is None:
        return None
    spine, tail, vote = found
    last = spine[-1]
    if ends is not None:
        spine = spine[: int(np.argmin(((spine - ends[1]) ** 2).sum(1))) + 1]
        if len(spine) < SPINE_POINTS:  # the points are not of this body
            return None
    return _measured(solid, spine, last, tail, trunk, vote)


def _measured(
    solid: Solid,
    spine: np.ndarray,
    thin_from: np.ndarray,
    tail: float,
    trunk: np.ndarray,
    vote: float,
) -> BodyShape:
    points, inner = solid.points(), Solid(trunk, solid.low, solid.cell).points()
    steps = np.linalg.norm(np.diff(spine, axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    wanted = np.linspace(0, along[-1], SPINE_POINTS)
    even = np.stack([np.interp(wanted, along, c) for c in spine.T], -1)
    ahead = even[_HEADING[0]] - even[_HEADING[1]]
    ahead /= np.linalg.norm(ahead)
    front, rear = even[0] - even[SPINE_POINTS // 2], even[SPINE_POINTS // 2] - even[-1]
    bend = np.arctan2(front[1], front[0]) - np.arctan2(rear[1], rear[0])
    left = np.cross([0.0, 0.0, 1.0], ahead)
    left = left / max(float(np.linalg.norm(left)), 1e-9)
    offset = inner - even[SPINE_POINTS // 2]
    middle = np.abs(offset @ ahead) < 0.2 * along[-1]
    across = offset[middle] @ left
    behind = (points - thin_from) @ (even[-1] - even[-2]) > 0
    rest = points[~behind] if (~behind).any() else points
    return BodyShape(
        centre=inner.mean(0),
        spine=even,
        length=float(along[-1]),
        tail=float(tail),
        width=float(np.ptp(across)) + solid.cell if len(across) else float("nan"),
        height=float(np.ptp(rest[:, 2])) + solid.cell,
        volume=float(len(points) * solid.cell**3),
        area=_area(solid),
        heading=float(np.degrees(np.arctan2(ahead[1], ahead[0])) % 360),
        pitch=float(np.degrees(np.arcsin(np.clip(ahead[2], -1, 1)))),
        roll=_roll(rest, even, solid.cell),
        bend=float(np.degrees((bend + np.pi) % (2 * np.pi) - np.pi)),
        box=(points.min(0) - solid.cell / 2, points.max(0) + solid.cell / 2),
        front=vote,
    )


def _roll(points: np.ndarray, spine: np.ndarray, cell: float) -> float:
    """Angle in degrees about the spine of the plane in which the cells mirror themselves best."""
    ahead = -np.gradient(spine, axis=0)
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    left = np.cross([0.0, 0.0, 1.0], ahead)
    left /= np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-9)
    up = np.cross(ahead, left)
    index = cKDTree(spine).query(points)[1]
    offset = points - spine[index]
    a, b = (offset * left[index]).sum(1), (offset * up[index]).sum(1)
    reach = float(np.hypot(a, b).max()) + 2 * cell
    n = 2 * int(reach / cell / 2) + 2
    angles = np.radians(np.arange(-60.0, 60.1, 3.0))
    scores = []
    for angle in angles:
        x, y = a * np.cos(angle) + b * np.sin(angle), b * np.cos(angle) - a * np.sin(angle)
        grid, _ = np.histogramdd((index, x, y), (len(spine), n, n),
                                 ((0, len(spine)), (-reach, reach), (-reach, reach)))  # fmt: skip
        scores.append(float(np.minimum(grid, grid[:, ::-1]).sum()))
    best = int(np.argmax(scores))
    if best in (0, len(angles) - 1):  # as round as a ball, or it lies on its side
        return float("nan")
    near = slice(max(0, best - 3), best + 4)
    curve = np.polyfit(angles[near], scores[near], 2)  # between the steps
    peak = -curve[1] / (2 * curve[0]) if curve[0] < 0 else angles[best]
    return float(np.degrees(np.clip(peak, angles[best - 1], angles[best + 1])))


def _area(solid: Solid) -> float:
    """The surface's area: the integral of the gradient of the smoothed cells (coarea formula)."""
    soft = ndimage.gaussian_filter(np.pad(solid.cells, 6).astype(np.float32), 1.5)
    slopes = np.gradient(soft)
    return float(np.sqrt(sum(s.astype(np.float64) ** 2 for s in slopes)).sum() * solid.cell**2)


def _largest(cells: np.ndarray) -> np.ndarray:
    parts, n = ndimage.label(cells, np.ones((3, 3, 3)))
    if n < 2:
        return cells
    sizes = np.bincount(parts.reshape(-1))
    sizes[0] = 0
    return parts == np.argmax(sizes)


def _opened(depth: np.ndarray, radius: float) -> np.ndarray:
    """Cells within `radius` of those deeper than it: what is thinner is gone."""
    core = _largest(depth > radius)
    if not core.any():
        return core
    step = depth[depth > 0].min()  # one cell
    return ndimage.distance_transform_edt(~core, sampling=step) <= radius


def _spine(
    points: np.ndarray, weights: np.ndarray, inner: np.ndarray, cell: float, near: float
) -> np.ndarray | None:
    """A smooth curve [P,3] through the middle of the trunk's sections, one point a cell; or None.

    It begins as the trunk's longest axis, goes through the middle of the cells that are nearest
    each of its points, and is made longer straight on until it leaves the body.
    """
    centre = inner.mean(0)
    axis = np.linalg.svd(inner - centre, full_matrices=False)[2][0]
    reach = np.abs((inner - centre) @ axis).max()
    curve = centre + np.arange(-reach, reach + cell, cell)[:, None] * axis
    for _ in range(4):
        if len(curve) < 3:
            return None
        curve = _lengthened(curve, cell, near)
        place, index = cKDTree(curve).query(points, distance_upper_bound=near)
        kept = np.isfinite(place)
        count = np.bincount(index[kept], weights[kept], len(curve))
        if not count.any():
            return None
        first, last = _run_of(count > 0, len(curve) // 2)
        moments = weights[kept, None] * points[kept]
        sums = np.stack([np.bincount(index[kept], m, len(curve)) for m in moments.T], -1)
        sigma = SMOOTH / 100 * (last - first)
        shares = sums[first:last] / count[first:last, None]
        curve = _evenly(_smooth(shares, sigma), cell)
    return None if len(curve) < 3 else _lengthened(curve, cell, near)


def _smooth(curve: np.ndarray, sigma: float) -> np.ndarray:
    """Smoothed along the curve, whose ends stay where they point to (odd reflection)."""
    n = min(len(curve) - 1, int(4 * sigma))
    before, after = 2 * curve[0] - curve[n:0:-1], 2 * curve[-1] - curve[-2 : -n - 2 : -1]
    grown = np.concatenate([before, curve, after])
    return ndimage.gaussian_filter1d(grown, sigma, axis=0)[n : n + len(curve)]


def _lengthened(curve: np.ndarray, cell: float, near: float) -> np.ndarray:
    """The curve, straight on at both ends by three half-thicknesses."""
    n = max(2, min(len(curve) // 4, int(near / cell)))
    more = cell * np.arange(1, int(3 * near / cell) + 1)[:, None]
    ahead, back = curve[-1] - curve[-1 - n], curve[0] - curve[n]
    ahead, back = ahead / np.linalg.norm(ahead), back / np.linalg.norm(back)
    return np.concatenate([(curve[0] + more * back)[::-1], curve, curve[-1] + more * ahead])


def _evenly(curve: np.ndarray, cell: float) -> np.ndarray:
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    wanted = np.arange(0, along[-1], cell)
    return np.stack([np.interp(wanted, along, c) for c in curve.T], -1)


def _run_of(full: np.ndarray, middle: int) -> tuple[int, int]:
    """First and one past the last of the unbroken run of full sections nearest the middle."""
    runs, n = ndimage.label(full)
    if n == 0:
        return 0, len(full)
    at = np.flatnonzero(full)
    number = runs[at[np.argmin(np.abs(at - middle))]]
    own = np.flatnonzero(runs == number)
    return int(own[0]), int(own[-1]) + 1


def _ends(
    points: np.ndarray, curve: np.ndarray, cell: float, near: float, known: np.ndarray | None
) -> tuple[np.ndarray, float, float] | None:
    """Where the curve has its nose and its tail root.

    Returns:
        The curve from the nose's tip to the tail root [P,3], how far the body goes on beyond it,
        and how surely the shape says that this way round is right (-1 to 1).
    """
    distance, index = cKDTree(curve).query(points, distance_upper_bound=near)
    kept = np.isfinite(distance)
    areas = np.bincount(index[kept], minlength=len(curve)) * cell**2
    areas = ndimage.gaussian_filter1d(areas.astype(float), 1.0)
    first, last = _run_of(areas > _NOSE * areas.max(), int(np.argmax(areas)))
    radius = np.sqrt(areas / np.pi)
    thick = _run_of(radius > TAIL_ROOT * radius.max(), int(np.argmax(radius)))
    if thick[1] - thick[0] < 8:
        return None
    begin, end = (
        _beyond(points, curve[i], curve[i] - curve[j], cell)
        for i, j in ((thick[0], thick[0] + 3), (thick[1] - 1, thick[1] - 4))
    )
    sections = areas[thick[0] : thick[1]]
    # A tail is thin and long, a nose ends soon; the rump is blunt, the head is slender.
    blunt = float(np.average(np.linspace(-1, 1, len(sections)), weights=sections))
    vote = float(np.tanh((end - begin) / near + 4 * blunt))
    is_nose_first = vote >= 0
    if known is not None:
        is_nose_first = (curve[thick[0]] - curve[thick[1] - 1]) @ (known[0] - known[1]) >= 0
    if is_nose_first:
        return curve[first : thick[1]], end, vote
    return curve[thick[0] : last][::-1], begin, -vote


def _beyond(points: np.ndarray, root: np.ndarray, ahead: np.ndarray, cell: float) -> float:
    """How far the cells beyond the plane through `root` that hang together with it reach."""
    ahead = ahead / np.linalg.norm(ahead)
    out = points[(points - root) @ ahead > 0]
    if not len(out):
        return 0.0
    index = np.round((out - out.min(0)) / cell).astype(int)
    grid = np.zeros(index.max(0) + 1, bool)
    grid[tuple(index.T)] = True
    parts = ndimage.label(grid, np.ones((3, 3, 3)))[0][tuple(index.T)]
    own = out[parts == parts[np.argmin(((out - root) ** 2).sum(1))]]
    return float(np.linalg.norm(own - root, axis=1).max())
