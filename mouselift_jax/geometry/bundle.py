"""Bundle adjustment: cameras and points that explain where the points were seen, robustly.

Levenberg-Marquardt on pixel residuals; the points are eliminated (Schur complement), so that a step
costs one small dense system whatever the number of points. Computed in float64 with NumPy: six
cameras are too few for a device, and float32 loses the covariance. `project` returns analytic
derivatives; the tests hold them against JAX's.

V cameras, N points, P = len(PARAMETERS) numbers a camera.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.triangulate import triangulate

# What may change in a camera, least basic last. Turns (rad) are about the camera's own centre and
# moves (world units) shift what it sees, both along its axes; focal and aspect (fy / fx) are
# logarithms, cx and cy pixels, time is frames.
PARAMETERS = (
    "turn_x", "turn_y", "turn_z", "move_x", "move_y", "move_z",
    "focal", "aspect", "cx", "cy", "k1", "k2", "time",
)  # fmt: skip
POSE = slice(0, 6)
_CAUCHY = 2.385  # standard deviations; 95 % as efficient as least squares where noise is normal
_RAYLEIGH = 1.1774  # median length of a normal 2D vector of unit standard deviation
_FLOOR_PX = 0.05  # no detector is better, and a scale of 0 would divide
_SPREAD = 3.0  # cameras' noise may differ by this factor from the median camera's


@dataclasses.dataclass(frozen=True)
class Rig:
    """Cameras as bundle adjustment sees them.

    Attributes:
        K: intrinsics [V,3,3], pixels.
        R: world-to-camera rotations [V,3,3], OpenCV axes.
        t: world-to-camera translations [V,3], world units.
        coefficients: OpenCV's k1, k2, p1, p2, k3, k4, k5, k6 [V,8].
        offset: frames by which a camera is late [V]: its frame f shows the instant f + offset.
    """

    K: np.ndarray
    R: np.ndarray
    t: np.ndarray
    coefficients: np.ndarray
    offset: np.ndarray

    @property
    def centres(self) -> np.ndarray:
        """Camera centres [V,3], world units."""
        return -np.einsum("vji,vj->vi", self.R, self.t)

    def changed(self, delta: np.ndarray) -> Rig:
        """The rig after a change of its parameters [V,P]."""
        turn = rotations(delta[:, :3])
        K = self.K.copy()
        K[:, :2, :2] *= np.exp(delta[:, 6])[:, None, None]
        K[:, 1, 1] *= np.exp(delta[:, 7])
        K[:, :2, 2] += delta[:, 8:10]
        coefficients = self.coefficients.copy()
        coefficients[:, :2] += delta[:, 10:12]
        t = np.einsum("vij,vj->vi", turn, self.t) + delta[:, 3:6]
        return Rig(K, turn @ self.R, t, coefficients, self.offset + delta[:, 12])

    def moved(self, scale: float, R: np.ndarray, shift: np.ndarray) -> Rig:
        """The rig in the world x' = scale R x + shift; its pictures stay the same."""
        rotation = self.R @ R.T
        t = scale * self.t - rotation @ shift
        return dataclasses.replace(self, R=rotation, t=t)


@dataclasses.dataclass(frozen=True)
class Sightings:
    """Where points were seen.

    Attributes:
        xy: raw pixels [V,N,2], anything where not seen.
        seen: confidence [V,N], 0 where not seen.
        velocity: pixels a frame [V,N,2], for the time offset; zeros where unknown.
        group: kind of each point [N] (0, 1, ...); noise is estimated for each kind.
        frame: instant of each point [N]; errors of one instant may depend on each other.
    """

    xy: np.ndarray
    seen: np.ndarray
    velocity: np.ndarray
    group: np.ndarray
    frame: np.ndarray

    def chosen(self, keep: np.ndarray) -> Sightings:
        """Only these points (index or bool [N])."""
        return Sightings(
            self.xy[:, keep], self.seen[:, keep], self.velocity[:, keep],
            self.group[keep], self.frame[keep],
        )  # fmt: skip

    @classmethod
    def joined(cls, parts: list[Sightings]) -> Sightings:
        """Several kinds of points together."""
        xy, seen, velocity = (
            np.concatenate([getattr(p, name) for p in parts], 1)
            for name in ("xy", "seen", "velocity")
        )
        group, frame = (
            np.concatenate([getattr(p, name) for p in parts]) for name in ("group", "frame")
        )
        return cls(xy, seen, velocity, group, frame)


@dataclasses.dataclass(frozen=True)
class Solution:
    """A fitted rig.

    Attributes:
        rig: the cameras.
        points: [N,3]; NaN where a point is seen by fewer than two cameras.
        error: standard errors [V,P] in the parameters' units, 0 where a parameter was not free,
            inf where the sightings do not tell it.
        noise: noise of a pixel coordinate [V,G] by camera and group, pixels.
        residual: sighting minus projection [V,N,2], NaN where not seen.
        iterations: steps tried.
    """

    rig: Rig
    points: np.ndarray
    error: np.ndarray
    noise: np.ndarray
    residual: np.ndarray
    iterations: int


def rotations(vectors: np.ndarray) -> np.ndarray:
    """Rotation matrices [V,3,3] of rotation vectors [V,3], radians (Rodrigues)."""
    angle = np.linalg.norm(vectors, axis=-1)[:, None, None]
    S = skew(vectors)
    # np.sinc(x) is sin(pi x) / (pi x), which is smooth at 0.
    half = np.sinc(angle / (2 * np.pi))
    return np.eye(3) + np.sinc(angle / np.pi) * S + 0.5 * half**2 * (S @ S)


def skew(vectors: np.ndarray) -> np.ndarray:
    """Matrices [...,3,3] of the cross product with vectors [...,3] from the left."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def project(
    rig: Rig, points: np.ndarray, velocity: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where points [N,3] appear, and how that changes with cameras and points.

    Returns:
        pixels [V,N,2], depth [V,N], derivative by the parameters [V,N,2,P], by the points
        [V,N,2,3].
    """
    cam = np.einsum("vij,nj->vni", rig.R, points) + rig.t[:, None]
    z = cam[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = cam[..., 0] / z, cam[..., 1] / z
    k1, k2, p1, p2, k3, k4, k5, k6 = (c[:, None] for c in rig.coefficients.T)
    r2 = x * x + y * y
    above, below = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)), 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
    radial = above / below
    slope = (k1 + r2 * (2 * k2 + 3 * r2 * k3) - radial * (k4 + r2 * (2 * k5 + 3 * r2 * k6))) / below
    bent = np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ],
        -1,
    )
    cross = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
    bend = np.stack(
        [
            np.stack([radial + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x, cross], -1),
            np.stack([cross, radial + 2 * y * y * slope + 6 * p1 * y + 2 * p2 * x], -1),
        ],
        -2,
    )  # [V,N,2,2]
    F = rig.K[:, None, :2, :2]
    from_centre = (F @ bent[..., None])[..., 0]
    pixels = from_centre + rig.K[:, None, :2, 2] + rig.offset[:, None, None] * velocity
    zero, inverse = np.zeros_like(x), 1 / z
    flat = np.stack(
        [
            np.stack([inverse, zero, -x * inverse], -1),
            np.stack([zero, inverse, -y * inverse], -1),
        ],
        -2,
    )
    by_cam = F @ bend @ flat  # [V,N,2,3]
    J = np.zeros((*pixels.shape, len(PARAMETERS)))
    J[..., 0:3] = -by_cam @ skew(cam)
    J[..., 3:6] = by_cam
    J[..., 6] = from_centre
    J[..., 1, 7] = from_centre[..., 1]
    J[..., 0, 8] = J[..., 1, 9] = 1.0
    ray = np.stack([x, y], -1)[..., None]
    for column, power in ((10, r2), (11, r2 * r2)):
        J[..., column] = (F @ (ray * (power / below)[..., None, None]))[..., 0]
    J[..., 12] = velocity
    return pixels, z, J, by_cam @ rig.R[:, None]


def gauge_generators(rig: Rig) -> np.ndarray:
    """Changes of all parameters [V*P,7] that no picture shows: 3 shifts, 3 turns and a scale."""
    G = np.zeros((len(rig.R), len(PARAMETERS), 7))
    G[:, 3:6, 0:3] = -rig.R
    G[:, 0:3, 3:6] = -rig.R
    G[:, 3:6, 3:6] = -skew(rig.t) @ rig.R
    G[:, 3:6, 6] = rig.t
    return G.reshape(-1, 7)


def _allowed(rig: Rig, free: np.ndarray, sees: np.ndarray, distance: float) -> np.ndarray:
    """Orthonormal basis [V*P,Q] of the changes of free parameters that leave the gauge alone.

    The gauge is the given rig's: of all worlds, the one in which turns times `distance` and moves
    of the cameras are smallest together. Cameras whose pose is not free hold it themselves.
    """
    flat = free.ravel()
    G = gauge_generators(rig)
    held = (sees[:, None] & ~free)[:, POSE].any(1)
    if held.any():
        rows = np.zeros(free.shape, bool)
        rows[held, POSE] = True
        _, s, Vt = np.linalg.svd(G[rows.ravel()], full_matrices=True)
        rank = int((s > 1e-9 * s[0]).sum())
        G = G @ Vt[rank:].T
    weight = np.ones(free.shape)
    weight[:, :3] = distance**2
    C = (G * weight.ravel()[:, None])[flat].T
    E = np.eye(flat.size)[:, flat]
    if C.size == 0:
        return E
    # Turned into pixels' size first: turns and moves differ by `distance`.
    unit = np.where(np.arange(flat.size) % len(PARAMETERS) < 3, 1 / distance, 1.0)[flat]
    _, s, Vt = np.linalg.svd(C * unit, full_matrices=True)
    rank = int((s > 1e-9 * max(s[0], 1e-300)).sum())
    return E @ (unit[:, None] * Vt[rank:].T)


@dataclasses.dataclass
class _Linear:
    """The problem at one place: residuals, weights, mean curvature and derivatives."""

    residual: np.ndarray
    weight: np.ndarray
    curvature: np.ndarray
    Jc: np.ndarray
    Jp: np.ndarray
    cost: float


def _linear(rig: Rig, points: np.ndarray, s: Sightings, noise: np.ndarray) -> _Linear:
    pixels, depth, Jc, Jp = project(rig, points, s.velocity)
    good = (s.seen > 0) & (depth > 0)
    residual = np.where(good[..., None], s.xy - pixels, 0.0)
    sigma = noise[:, s.group]
    q = (residual**2).sum(-1) / (_CAUCHY * sigma) ** 2
    trust = s.seen * good
    weight = trust / sigma**2 / (1 + q)
    # A point behind a camera costs as much as one far off: no step gains by hiding it.
    lost = (s.seen > 0) & ~good
    cost = 0.5 * _CAUCHY**2 * float((trust * np.log1p(q)).sum() + 20.0 * lost.sum())
    keep = good[..., None, None]
    # Averaged over directions, Cauchy's curvature is the weight times 1 / (1 + q).
    Jc, Jp = np.where(keep, Jc, 0.0), np.where(keep, Jp, 0.0)
    return _Linear(residual, weight, weight / (1 + q), Jc, Jp, cost)


def noise_of(lin: _Linear, s: Sightings, groups: int) -> np.ndarray:
    """Robust noise of a coordinate [V,G], pixels.

    A residual is smaller than the noise by what fitting the point took: exactly corrected, since
    otherwise the camera that is trusted most seems best, is trusted more, and so on.
    """
    Wp = lin.Jp * lin.weight[..., None, None]
    H = (np.swapaxes(Wp, -1, -2) @ lin.Jp).sum(0)
    H += 1e-9 * np.maximum(np.trace(H, axis1=-2, axis2=-1), 1e-12)[:, None, None] * np.eye(3)
    taken = 0.5 * np.einsum("vnij,nkj,vnik->vn", Wp, np.linalg.inv(H), lin.Jp, optimize=True)
    length = np.linalg.norm(lin.residual, axis=-1) / np.sqrt(np.maximum(1 - taken, 0.02))
    length = np.where(lin.weight > 0, length, np.nan)
    noise = np.full((len(length), groups), np.nan)
    for g in range(groups):
        for v in range(len(length)):
            own = length[v, s.group == g]
            own = own[np.isfinite(own)]
            if len(own):
                noise[v, g] = max(np.median(own) / _RAYLEIGH, _FLOOR_PX)
        known = np.isfinite(noise[:, g])
        middle = np.median(noise[known, g]) if known.any() else 1.0
        noise[:, g] = np.clip(
            np.where(known, noise[:, g], middle), middle / _SPREAD, middle * _SPREAD
        )
    return noise


def located(rig: Rig, sightings: Sightings, *, rounds: int = 12) -> np.ndarray:
    """Points [N,3] of sightings by known cameras, robustly; NaN where fewer than two saw one.

    Linear first, then Gauss-Newton in pixels while sightings far off lose their weight.
    """
    c2w = np.tile(np.eye(4), (len(rig.R), 1, 1))
    c2w[:, :3, :3], c2w[:, :3, 3] = np.swapaxes(rig.R, -1, -2), rig.centres
    xy = sightings.xy - rig.offset[:, None, None] * sightings.velocity
    ok = sightings.seen > 0
    points = triangulate(np.where(ok[..., None], xy, np.nan), Camera(rig.K, c2w, 1, 1), ok)
    found = np.isfinite(points).all(-1)
    s, X = sightings.chosen(found), points[found]
    if not len(X):
        return points
    groups = int(sightings.group.max(initial=0)) + 1
    noise = np.ones((len(rig.R), groups))
    for k in range(rounds):
        noise = noise_of(_linear(rig, X, s, noise), s, groups)
        lin = _linear(rig, X, s, noise * max(1.0, 4.0 - k))
        Wp = lin.Jp * lin.weight[..., None, None]
        H = (np.swapaxes(Wp, -1, -2) @ lin.Jp).sum(0)
        H += 1e-9 * np.maximum(np.trace(H, axis1=-2, axis2=-1), 1e-12)[:, None, None] * np.eye(3)
        X = X + np.linalg.solve(H, np.einsum("vnij,vni->nj", Wp, lin.residual)[..., None])[..., 0]
    points[found] = X
    return points


def _reduced(
    lin: _Linear, weight: np.ndarray, damp: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Schur complement S [VP,VP], its right side [VP], and what gives the points' step back."""
    V, N, _, P = lin.Jc.shape
    Wc = lin.Jc * weight[..., None, None]
    A = np.einsum("vnip,vniq->vpq", Wc, lin.Jc, optimize=True)
    E = np.swapaxes(Wc, -1, -2) @ lin.Jp  # [V,N,P,3]
    H = (np.swapaxes(lin.Jp, -1, -2) @ (lin.Jp * weight[..., None, None])).sum(0)
    trace = np.trace(H, axis1=-2, axis2=-1)[:, None, None] / 3
    # The damping also keeps a point of two nearly parallel rays solvable.
    H = H + np.maximum(damp, 1e-9) * np.maximum(trace, 1e-12) * np.eye(3)
    inverse = np.linalg.inv(H)
    gc = np.einsum("vnip,vni->vp", Wc, lin.residual).ravel()
    gp = np.einsum("vnij,vni->nj", lin.Jp * weight[..., None, None], lin.residual)
    L = np.linalg.cholesky(inverse)
    Z = (E @ L).transpose(0, 2, 1, 3).reshape(V * P, 3 * N)
    S = -Z @ Z.T
    for v in range(V):
        S[v * P : (v + 1) * P, v * P : (v + 1) * P] += A[v]
    right = gc - Z @ np.einsum("nji,nj->ni", L, gp).ravel()
    return S, right, E, np.concatenate([inverse, gp[..., None]], -1)


def adjust(
    rig: Rig,
    points: np.ndarray,
    sightings: Sightings,
    free: np.ndarray,
    *,
    iterations: int = 80,
    tolerance: float = 1e-7,
) -> Solution:
    """Cameras and points that explain the sightings.

    Args:
        rig: where to start; its free parameters change, its gauge (place, turn and size of the
            world) stays.
        points: where to start [N,3]; points not finite or seen by fewer than two cameras are left
            out.
        sightings: what was seen.
        free: which parameters may change [V,P].
        iterations: steps at most.
        tolerance: relative gain below which it is done.
    """
    ok = ((sightings.seen > 0).sum(0) >= 2) & np.isfinite(points).all(-1)
    s, X = sightings.chosen(ok), points[ok]
    groups = int(sightings.group.max(initial=0)) + 1
    sees = (s.seen > 0).any(1)
    free = free & sees[:, None]
    V, P = free.shape
    distance = (
        float(np.median(np.linalg.norm(rig.centres[:, None] - X, axis=-1))) if len(X) else 1.0
    )
    damp, tried, quiet = 1e-4, 0, 0
    noise = noise_of(_linear(rig, X, s, np.ones((V, groups))), s, groups)
    lin = _linear(rig, X, s, noise)
    while tried < iterations and quiet < 2 and len(X):
        basis = _allowed(rig, free, sees, distance)
        S, right, E, back = _reduced(lin, lin.weight, damp)
        size = np.sqrt(np.maximum(np.diag(basis.T @ S @ basis), 1e-12))
        basis = basis / size
        system = basis.T @ S @ basis + damp * np.eye(basis.shape[1])
        step = (basis @ np.linalg.lstsq(system, basis.T @ right, rcond=None)[0]).reshape(V, P)
        g = back[..., 3] - np.einsum("vnpj,vp->nj", E, step)
        moved, shifted = rig.changed(step), X + np.einsum("nij,nj->ni", back[..., :3], g)
        new = _linear(moved, shifted, s, noise)
        tried += 1
        if new.cost < lin.cost:
            gain = (lin.cost - new.cost) / lin.cost
            rig, X, damp = moved, shifted, max(damp / 5, 1e-9)
            quiet = quiet + 1 if gain < tolerance else 0
            noise = noise_of(new, s, groups)
            lin = _linear(rig, X, s, noise)
        else:
            damp *= 8
            quiet = 2 if damp > 1e4 else quiet
    found = np.full(points.shape, np.nan)
    found[ok] = X
    residual = np.full(sightings.xy.shape, np.nan)
    residual[:, ok] = _masked(rig, X, s)
    error = standard_errors(lin, s, _allowed(rig, free, sees, distance), free)
    return Solution(rig, found, error, noise, residual, tried)


def _masked(rig: Rig, X: np.ndarray, s: Sightings) -> np.ndarray:
    """Residuals [V,N,2], NaN where a point was not seen."""
    pixels, depth, _, _ = project(rig, X, s.velocity)
    return np.where(((s.seen > 0) & (depth > 0))[..., None], s.xy - pixels, np.nan)


def standard_errors(lin: _Linear, s: Sightings, basis: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Standard errors [V,P]: the sandwich of curvature and the gradients' actual spread.

    Gradients are taken as independent by point, and by instant, and the larger error is reported:
    detectors err alike for all points of an instant. A number that changes nothing has error inf.
    """
    V, P = free.shape
    if basis.shape[1] == 0 or not len(s.frame):
        return np.where(free, np.inf, 0.0)
    S, _, _, _ = _reduced(lin, lin.curvature)
    H = basis.T @ S @ basis
    size = np.sqrt(np.maximum(np.diag(H), 1e-300))
    values, vectors = np.linalg.eigh(H / size / size[:, None])
    known = values > 1e-10
    half = vectors[:, known] / values[known]
    inverse = half @ vectors[:, known].T / size / size[:, None]
    Wc = lin.Jc * lin.weight[..., None, None]
    g = np.einsum("vnip,vni->nvp", Wc, lin.residual).reshape(len(s.frame), V * P) @ basis
    _, index = np.unique(s.frame, return_inverse=True)
    by_frame = np.zeros((index.max() + 1, g.shape[1]))
    np.add.at(by_frame, index, g)
    variance = np.zeros(V * P)
    for rows in (g, by_frame):
        n = len(rows)
        if n > 1:
            spread = rows @ inverse @ basis.T
            variance = np.maximum(variance, (spread**2).sum(0) * n / (n - 1))
    # Directions that nothing tells: every parameter with a part in one is unknown.
    blind = (np.abs(basis @ ((vectors / size[:, None])[:, ~known])) > 1e-6).any(1)
    error = np.where(blind, np.inf, np.sqrt(variance)).reshape(V, P)
    return np.where(free, error, 0.0)
