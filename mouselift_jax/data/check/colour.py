"""Do the pictures and the masks of one camera belong together?

An outline that belongs to a picture lies on its edges. The measure is the mean edge strength
along the outline over the mean in the picture; it is compared for the mask as given and for each
way in which a picture may have parted from its mask: shifted in time, mirrored, cropped or
resized, or taken from another camera.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from mouselift_jax.data.check.hypotheses import MAX_OFFSET
from mouselift_jax.data.check.observe import Observations
from mouselift_jax.data.check.time import cheapest_path, segments, steps_hypothesis

# A correction must raise the edge strength by this factor to count, and reach this share of what
# the recording's good cameras have (measured: the right one reaches over 0.9, wrong ones 0.2-0.7).
_GAIN, _TYPICAL = 1.12, 0.6
_OFFSET_GAIN = 1.05  # one frame of a slow animal changes little, but in every frame
_STEP_PRICE = 2.5  # frames' worth of edges: what a change of offset on the way must save
_FIT_FRAMES = 10
_SCALES = np.exp(np.linspace(-0.36, 0.36, 25))


@dataclasses.dataclass(frozen=True)
class Fit:
    """How one camera's masks sit on pictures.

    Attributes:
        code: the finding's code; empty if the masks fit as they are (or nothing helps).
        parameters: numbers of the correction.
        partner: index of the camera whose pictures fit instead, or -1.
        before: edge strength along the outline as given, in units of the picture's mean.
        after: with the correction.
    """

    code: str
    parameters: dict[str, float]
    partner: int
    before: float
    after: float


class ColourTest:
    """Edge pictures of all cameras, looked up along outlines."""

    def __init__(self, seen: Observations) -> None:
        self.seen = seen
        kernel = np.ones((3, 3), np.uint8)  # outlines are never better than a pixel
        self.edges = [
            np.stack([cv2.dilate(e, kernel) for e in camera]) if len(camera) else camera
            for camera in seen.edges
        ]
        self.level = [max(float(e.mean()), 1e-3) for e in self.edges]

    def strength(
        self,
        v: int,
        *,
        picture_of: int | None = None,
        offset: int = 0,
        scale: np.ndarray | float = 1.0,
        shift: np.ndarray | float = 0.0,
        mirror: int | tuple[int, ...] | None = None,
    ) -> np.ndarray:
        """Relative edge strength [T] of mask v laid on pictures, NaN where there is no outline.

        Args:
            v: camera of the masks.
            picture_of: camera of the pictures, the same if None.
            offset: the pictures `offset` frames later.
            scale: of mask pixels (x, y) before they are laid on the picture.
            shift: in picture pixels, after that.
            mirror: axis (0 or 1), or both, along which the outline is mirrored.
        """
        p = v if picture_of is None else picture_of
        seen, edges = self.seen, self.edges[p]
        n, h, w = edges.shape
        size = np.array([w, h]) / np.array(seen.edge_scale[p])
        out = np.full(n, np.nan)
        for t in range(n):
            points, u = seen.contours[v][t], t + offset
            if not len(points) or not 0 <= u < n or seen.window[u] != seen.window[t]:
                continue
            if mirror is not None:
                points = points.copy()
                axes = np.atleast_1d(mirror)
                points[:, axes] = size[axes] - points[:, axes]
            xy = ((points * scale + shift) * seen.edge_scale[p]).astype(int)
            inside = ((xy >= 0) & (xy < [w, h])).all(1)
            if inside.sum() < 0.5 * len(points):
                continue
            xy = xy[inside]
            out[t] = edges[u, xy[:, 1], xy[:, 0]].mean() / self.level[p]
        return out

    def exchanged(self, i: int, j: int) -> bool:
        """Whether the masks of two cameras fit each other's pictures better than their own."""
        own = _mean(np.concatenate([self.strength(i), self.strength(j)]))
        across = [self.strength(i, picture_of=j), self.strength(j, picture_of=i)]
        return _mean(np.concatenate(across)) > _GAIN * own

    def fits(self) -> list[Fit]:
        """The best account of each camera's masks and pictures."""
        n = len(self.edges)
        given = [_mean(self.strength(v)) for v in range(n)]
        typical = float(np.nanmedian(given)) if np.isfinite(given).any() else 0.0
        return [self._fit(v, given, typical) for v in range(n)]

    def _fit(self, v: int, given: list[float], typical: float) -> Fit:
        before = given[v]
        none = Fit("", {}, -1, before, before)
        if not np.isfinite(before):
            return none
        offset = self._best_offset(v, before)
        if offset is not None and offset.after > _TYPICAL * typical:
            return offset
        if before > 0.8 * typical and len(given) > 2:
            return none  # the outline lies on edges: nothing coarse is wrong
        tried = [
            Fit("video_mirrored", {name: 1.0}, -1, before, _mean(self.strength(v, mirror=axis)))
            for axis, name in ((0, "horizontal"), (1, "vertical"))
        ]
        turned = _mean(self.strength(v, mirror=(0, 1)))
        tried.append(Fit("video_turned", {"degrees": 180.0}, -1, before, turned))
        tried += [
            Fit("cameras_swapped", {}, j, before, _mean(self.strength(v, picture_of=j)))
            for j in range(len(self.edges))
            if j != v
        ]
        best = max(tried, key=lambda f: np.nan_to_num(f.after))
        if best.after < 0.85 * typical:
            crop = self._crop(v)
            if crop is not None and crop[2] > best.after:
                names = ("scale_x", "scale_y", "shift_x", "shift_y")
                values = (float(x) for x in (*crop[0], *crop[1]))
                parameters = dict(zip(names, values, strict=True))
                best = Fit("video_cropped", parameters, -1, before, crop[2])
        good = best.after > max(_GAIN * before, _TYPICAL * typical)
        return best if good else none

    def _best_offset(self, v: int, before: float) -> Fit | None:
        """The shift in time that lays the masks on edges best, if it does so in most frames.

        Or the shifts, where they change on the way.
        """
        base, best, gain = self.strength(v), None, _OFFSET_GAIN
        table = {d: self.strength(v, offset=d) for d in range(-MAX_OFFSET, MAX_OFFSET + 1) if d}
        for d, moved in table.items():
            both = np.isfinite(moved) & np.isfinite(base)  # judged on the same frames
            if both.sum() < 4:
                continue
            ratio = float(moved[both].mean() / max(base[both].mean(), 1e-6))
            if ratio > gain and np.mean(moved[both] > base[both]) > 0.7:
                # Later pictures fit: they run behind, which counts as negative.
                gain, parameters = ratio, {"frames": -float(d)}
                best = Fit("video_offset", parameters, -1, before, before * ratio)
        return self._steps({**table, 0: base}, before, gain) or best

    def _steps(self, table: dict[int, np.ndarray], before: float, gain: float) -> Fit | None:
        """Offsets that change on the way, if they fit clearly better than a constant one."""
        offsets = sorted(table)
        strength = np.stack([table[d] for d in offsets], 1)
        level = float(np.nanmedian(np.nanmax(np.where(np.isfinite(strength), strength, 0), 1)))
        path = cheapest_path(-strength / max(level, 1e-6), _STEP_PRICE, -0.8)
        taken = strength[np.arange(len(path)), path]
        known = np.isfinite(taken) & np.isfinite(table[0])
        if len(segments(path)) < 2 or known.sum() < 8:
            return None
        ratio = float(taken[known].mean() / max(table[0][known].mean(), 1e-6))
        if ratio < max(_OFFSET_GAIN, 1.0 + 1.3 * (gain - 1.0)):
            return None
        h = steps_hypothesis(0, -np.array(offsets)[path])
        return Fit(h.code, h.parameters, -1, before, before * ratio)

    def _crop(self, v: int) -> tuple[np.ndarray, np.ndarray, float] | None:
        """Scale and shift that lay mask outlines on the pictures' edges, by correlation."""
        seen, edges = self.seen, self.edges[v]
        rows = [t for t in range(len(edges)) if len(seen.contours[v][t]) > 8]
        rows = rows[:: max(1, len(rows) // _FIT_FRAMES)]
        if not rows:
            return None
        n, h, w = edges.shape
        shape = (2 * h, 2 * w)
        # Edges that are always there (disc, wall) would attract any outline: they are taken off.
        static = np.median(edges[rows], axis=0)
        moving = [np.maximum(edges[t].astype(np.float32) - static, 0) for t in rows]
        spectra = [np.fft.rfft2(e, shape) for e in moving]
        grid = np.array(seen.edge_scale[v])
        best = None
        for scale in _SCALES:
            total = np.zeros(shape)
            for t, spectrum in zip(rows, spectra, strict=True):
                drawn = np.zeros(shape, np.float32)
                xy = (seen.contours[v][t] * scale * grid).astype(int)
                ok = ((xy >= 0) & (xy < [2 * w, 2 * h])).all(1)
                drawn[xy[ok, 1], xy[ok, 0]] = 1.0 / max(ok.sum(), 1)
                total += np.fft.irfft2(spectrum * np.conj(np.fft.rfft2(drawn)), shape)
            peak = int(total.argmax())
            dy, dx = divmod(peak, shape[1])
            dy, dx = dy - shape[0] * (dy > h), dx - shape[1] * (dx > w)
            if best is None or total.max() > best[0]:
                best = (total.max(), scale, np.array([dx, dy]) / grid)
        scale, shift = np.array([best[1]] * 2), best[2]
        return self._refine(v, scale, shift)

    def _refine(
        self, v: int, scale: np.ndarray, shift: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, float]:
        from scipy.optimize import minimize

        unit = 10.0 / np.array(self.seen.edge_scale[v])

        def unpack(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return scale * np.exp(0.1 * p[2:]), shift + unit * p[:2]

        def objective(p: np.ndarray) -> float:
            s, o = unpack(p)
            value = _mean(self.strength(v, scale=s, shift=o))
            return -value if np.isfinite(value) else 0.0

        simplex = np.vstack([np.zeros(4), 0.2 * np.eye(4)])
        options = {"initial_simplex": simplex, "maxfev": 120, "xatol": 1e-3, "fatol": 1e-3}
        result = minimize(objective, np.zeros(4), method="Nelder-Mead", options=options)
        s, o = unpack(result.x)
        return s, o, -float(result.fun)


def _mean(values: np.ndarray) -> float:
    known = np.isfinite(values)
    return float(values[known].mean()) if known.sum() >= 2 else float("nan")
