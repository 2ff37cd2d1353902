"""Colours that say something of each Gaussian: cameras that see it, its speed, its error.

Values are bytes: 0 to 254 along a scale, 255 = not known (grey). Viewers here and in pages paint
them with the same table.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mouselift_jax.geometry.camera import Camera
from mouselift_jax.render.types import Render
from mouselift_jax.report.pictures import ERROR_TOP, to_uint8
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.reel import Reel
from mouselift_jax.splats.sh import C0
from mouselift_jax.splats.trust import LEGEND, SCALE

KINDS = ("own", "cameras", "speed", "error")
UNKNOWN, TOP = 255, 254
GREY = (0.62, 0.62, 0.62)
LOOKED_AT = 12  # frames of a film that set the scale of its speeds
BEHIND = 0.1  # of the animal's length: farther behind what is drawn, a Gaussian is hidden


@dataclasses.dataclass(frozen=True)
class Painter:
    """One way to colour Gaussians.

    Attributes:
        kind: one of KINDS, not "own".
        top: the value that has the last colour.
        legend: what the colours say.
    """

    kind: str
    top: float
    legend: str

    def table(self) -> np.ndarray:
        """Colours [256,3] uint8 of the bytes."""
        import matplotlib

        along = np.linspace(0, 1, TOP + 1)
        if self.kind == "cameras":
            at = along * (len(SCALE) - 1)
            rgb = np.stack([np.interp(at, np.arange(len(SCALE)), c) for c in SCALE.T], -1)
        else:
            rgb = matplotlib.colormaps["inferno" if self.kind == "error" else "viridis"](along)
        return np.round(255 * np.concatenate([rgb[:, :3], [GREY]])).astype(np.uint8)

    def bytes(self, values: np.ndarray | None, n: int) -> np.ndarray:
        """Bytes [n] of values [n], NaN and None where unknown."""
        if values is None:
            return np.full(n, UNKNOWN, np.uint8)
        scaled = np.round(np.clip(np.asarray(values, float) / (self.top or 1.0), 0, 1) * TOP)
        return np.where(np.isfinite(scaled), scaled, UNKNOWN).astype(np.uint8)

    def paint(self, gaussians: Gaussians, values: np.ndarray | None) -> Gaussians:
        """The Gaussians in the colours of their values [N]."""
        rgb = self.table()[self.bytes(values, gaussians.n_gaussians)] / np.float32(255)
        return dataclasses.replace(gaussians, sh=((rgb - 0.5) / C0)[:, None].astype(np.float32))


CAMERAS = Painter("cameras", len(SCALE) - 1, LEGEND)
ERROR = Painter(
    "error", ERROR_TOP,
    f"mean difference from the pictures: black 0, bright {ERROR_TOP:.0%} of white or more",
)  # fmt: skip


def speed_painter(reel: Reel) -> Painter:
    """Colours from 0 to what 2 % of the Gaussians exceed."""
    some = np.unique(np.linspace(0, len(reel) - 1, min(LOOKED_AT, len(reel))).astype(int))
    values = [speeds(reel, int(i)) for i in some]
    known = np.concatenate([v[np.isfinite(v)] for v in values if v is not None] or [np.zeros(0)])
    top = float(np.quantile(known, 0.98)) if len(known) else 1.0
    unit = ("mm" if reel.scene_scale else "units") + ("/s" if _has_clock(reel) else " a frame")
    return Painter("speed", top, f"speed: dark 0, bright {top:.3g} {unit} or more")


def _has_clock(reel: Reel) -> bool:
    return bool(np.isfinite(reel.times).all())


def speeds(reel: Reel, i: int) -> np.ndarray | None:
    """Speed of each Gaussian [N] in a frame, between its neighbours in the same segment.

    Returns:
        mm (film units without a known unit) a second (a frame without a clock); None where the
        frame has no neighbour.
    """
    near = [j for j in (i - 1, i + 1) if 0 <= j < len(reel) and reel.segment[j] == reel.segment[i]]
    if not near:
        return None
    first, last = min(near[0], i), max(near[-1], i)
    clock = reel.times if _has_clock(reel) else reel.frames.astype(float)
    way = np.asarray(reel.gaussians(last).means) - np.asarray(reel.gaussians(first).means)
    return np.linalg.norm(way, axis=-1) / (reel.scene_scale or 1.0) / (clock[last] - clock[first])


def errors(gaussians: Gaussians, cameras: Camera, drawn: Render, pictures: Any) -> np.ndarray:
    """How far the pictures are from the render where each Gaussian shows [N], 0 to 1.

    Args:
        gaussians: N.
        cameras: [V].
        drawn: of these Gaussians by these cameras.
        pictures: RGB, V of them.

    Returns:
        Mean over the cameras of the mean difference of the channels at the pixel that holds the
        Gaussian's centre; NaN where no camera sees it (others are before it, or it is outside).
    """
    means = np.asarray(gaussians.means, np.float64)
    length = np.ptp(np.quantile(means, (0.02, 0.98), axis=0), axis=0).max()
    total, count = np.zeros(len(means)), np.zeros(len(means))
    for v, picture in enumerate(pictures):
        camera = cameras[v]
        away = np.abs(to_uint8(drawn.rgb[v]).astype(float) - to_uint8(picture)[..., :3]).mean(-1)
        alpha = np.asarray(drawn.alpha[v], float)[..., 0]
        front = np.asarray(drawn.depth[v], float)[..., 0] / np.maximum(alpha, 1e-6)
        xy, z = (np.asarray(a, np.float64) for a in camera.project(means))
        inside = (z > 0) & (xy >= 0).all(-1) & (xy < [away.shape[1], away.shape[0]]).all(-1)
        x, y = np.where(inside[:, None], xy, 0).astype(int).T
        shows = inside & (z <= front[y, x] + BEHIND * length)
        total += np.where(shows, away[y, x] / 255, 0)
        count += shows
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
