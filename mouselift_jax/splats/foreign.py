"""What other programs write into a .ply of splats, turned into plain Gaussians or refused.

Mip-Splatting keeps a smoothing filter beside the splats, 2DGS leaves out the third scale, viewers
and converters write colours as bytes, some write activated values. Read as plain 3DGS each would
look nearly right.
"""

from __future__ import annotations

import numpy as np

from mouselift_jax.errors import LayoutError
from mouselift_jax.splats.gaussians import SOLID_LOGIT
from mouselift_jax.splats.sh import C0

FLATNESS = 1e-3  # thickness of a flat splat, in units of its smaller axis
_ENOUGH = 16  # fewer rows tell nothing about a column


def colours(vertex: np.ndarray, path: str) -> np.ndarray | None:
    """Coefficients of degree 0 [N,3]: f_dc, or red, green, blue as bytes or in 0..1; else None."""
    names = vertex.dtype.names
    if all(f"f_dc_{i}" in names for i in range(3)):
        return np.stack([vertex[f"f_dc_{i}"] for i in range(3)], -1).astype(np.float32)
    for fields in (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green",
                   "diffuse_blue")):  # fmt: skip
        if not all(f in names for f in fields):
            continue
        rgb = np.stack([vertex[f].astype(np.float64) for f in fields], -1)
        kinds = {vertex.dtype[f] for f in fields}
        known = rgb[np.isfinite(rgb)]
        top = float(known.max(initial=0.0))
        if all(k.kind == "u" for k in kinds):
            rgb = rgb / np.iinfo(next(iter(kinds))).max
        elif top > 255 or known.min(initial=0.0) < 0:
            raise LayoutError(
                "the colours of this PLY are neither bytes nor in 0..1",
                where=path,
                found=f"{fields[0]} up to {top:g}",
                fix="export it with f_dc_0, f_dc_1, f_dc_2, as 3DGS does",
            )
        elif top > 1:
            rgb = rgb / 255
        return ((rgb - 0.5) / C0).astype(np.float32)
    return None


def log_scales(vertex: np.ndarray) -> np.ndarray:
    """Log scales [N,3]; a flat splat (2DGS: two scales) gets a thin third axis, its normal."""
    names = [n for n in ("scale_0", "scale_1", "scale_2") if n in vertex.dtype.names]
    scales = np.stack([np.asarray(vertex[n], np.float32) for n in names], -1)
    if len(names) == 2:
        thin = scales.min(-1, keepdims=True) + np.float32(np.log(FLATNESS))
        scales = np.concatenate([scales, thin], -1)
    return scales


def filtered(
    log_scales: np.ndarray, logits: np.ndarray, filter_3D: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mip-Splatting's 3D smoothing filter applied, as its renderer does before each picture.

    s' = sqrt(s^2 + f^2) on each axis, and opacity' = opacity sqrt(prod s^2 / prod s'^2).

    Args:
        log_scales: [N,3].
        logits: opacity logits [N].
        filter_3D: f, scene units [N].

    Returns:
        log_scales [N,3] and opacity logits [N], float32.
    """
    s2 = np.exp(2 * log_scales.astype(np.float64))
    wide = s2 + filter_3D.astype(np.float64)[:, None] ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        loss = np.exp(0.5 * (2 * log_scales.astype(np.float64) - np.log(wide)).sum(-1))
        opacities = loss / (1 + np.exp(-logits.astype(np.float64)))
        new = np.log(opacities) - np.log1p(-np.minimum(opacities, 1.0))
        return (0.5 * np.log(wide)).astype(np.float32), solid(new.astype(np.float32))


def solid(logits: np.ndarray) -> np.ndarray:
    """Opacity logits of +infinity (splat-transform and others write them) as a number."""
    return np.where(np.isposinf(logits), np.float32(SOLID_LOGIT), logits)


def refuse_activated(log_scales: np.ndarray, logits: np.ndarray, path: str) -> None:
    """Refuse columns that hold opacities in 0..1 where logits belong.

    Raises:
        LayoutError: opacities between 0 and 1 throughout, and scales all above 0 (sizes) or
            opacities that reach both ends, which logits of splats never do.
    """
    finite = np.isfinite(logits) & np.isfinite(log_scales).all(-1)
    if finite.sum() < _ENOUGH:
        return
    o, s = logits[finite], log_scales[finite]
    within = o.min() >= 0 and o.max() <= 1 and len(np.unique(o)) > _ENOUGH // 2
    if within and (s.min() > 0 or (o.min() < 0.1 and o.max() > 0.9)):
        raise LayoutError(
            "this PLY holds activated values, not what 3DGS files hold",
            where=path,
            expected="opacity as a logit (before the sigmoid), scales as logarithms",
            found=f"opacity from {o.min():.3g} to {o.max():.3g}, scales from {s.min():.3g} to "
            f"{s.max():.3g}",
            fix="export it in 3DGS's form; or store log(o / (1 - o)) and log(scale)",
        )
