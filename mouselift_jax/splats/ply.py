"""Gaussians in and out of `.ply`, in the field order that 3DGS viewers read.

The file holds what is optimised: log scales, opacity logits, wxyz quaternions, SH coefficients with
the higher ones channel by channel. The header comments say what viewers leave people to guess:
axes, unit, scene scale, SH degree, colour space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mouselift_jax.errors import LayoutError, ShapeError, one_of
from mouselift_jax.files import check_replaceable
from mouselift_jax.splats.filters import drawable, only_drawable
from mouselift_jax.splats.foreign import colours, filtered, log_scales, refuse_activated, solid
from mouselift_jax.splats.gaussians import SH_COUNTS, Gaussians
from mouselift_jax.splats.ply_table import read_table, write_table

# Where the project's world axes (z up, right-handed) go. "opencv" and "blender" keep the numbers as
# they are: the first says that the cameras of this scene have OpenCV axes, the second is z up too.
AXES = {
    "opencv": (
        np.eye(3),
        "x, y horizontal, z up, right-handed; cameras x right, y down, z forward",
    ),
    "blender": (np.eye(3), "z up, right-handed"),
    "opengl": (np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]), "y up, -z north, right-handed"),
    "3dgs": (
        np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
        "x right, y down, z forward, right-handed: upright in SuperSplat and other 3DGS viewers",
    ),
    "unity": (np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]]), "y up, z north, left-handed"),
}
_TAG = "mouselift_jax"


def save_ply(
    path: str | Path,
    gaussians: Gaussians,
    *,
    scene_scale: float | None = None,
    axes: str = "opencv",
    overwrite: bool = False,
    extras: Mapping[str, np.ndarray] | None = None,
) -> int:
    """Write one set of Gaussians, whole or not at all; those that hold no numbers are left out.

    Args:
        path: file to write.
        gaussians: one set, fields [N,...]; stored as float32.
        scene_scale: scene units per millimetre, for the header; None when unknown.
        axes: axes to write in, a key of `AXES`; "opencv" stores the numbers unchanged.
        overwrite: replace a file that is there even if this project did not write it.
        extras: further properties [N], which other programs pass over; see `load_extras`.

    Returns:
        How many were left out.

    Raises:
        LayoutError: another program's file is there; it is left alone.
    """
    one_of(axes, AXES, "unknown axes", where=str(path))
    if np.ndim(gaussians.opacity_logits) != 1:
        raise ShapeError(
            "a PLY holds one set of Gaussians",
            where=str(path),
            expected="opacity_logits [N]",
            found=list(np.shape(gaussians.opacity_logits)),
            fix="index the batch first: gaussians[0]",
        )
    matrix, meaning = AXES[axes]
    kept, left_out = only_drawable(gaussians, path)
    degree, turned = kept.sh_degree, kept.turned(matrix)
    comments = [
        f"{_TAG} axes {axes}: {meaning}",
        f"{_TAG} sh_degree {degree}",
        f"{_TAG} scene_scale {'unknown' if scene_scale is None else repr(float(scene_scale))} "
        "scene units per mm",
        f"{_TAG} colour sRGB; opacity is a logit, scale a logarithm, rot wxyz",
    ]
    check_replaceable(path, overwrite=overwrite)
    keep = drawable(gaussians)
    more = {name: np.asarray(values)[keep] for name, values in (extras or {}).items()}
    write_table(path, _columns(turned) | more, comments)
    return left_out


def load_extras(path: str | Path) -> dict[str, np.ndarray]:
    """What a PLY holds of each Gaussian that is none of a Gaussian's own fields, each [N]."""
    vertex, _ = read_table(path)
    own = ("x", "y", "z", "nx", "ny", "nz", "opacity", "filter_3D", "red", "green", "blue")
    prefixes = ("f_dc_", "f_rest_", "scale_", "rot_")
    names = [n for n in vertex.dtype.names if n not in own and not n.startswith(prefixes)]
    return {name: np.asarray(vertex[name]) for name in names}


def load_ply(path: str | Path) -> Gaussians:
    """Read one set of Gaussians, from this project or any other 3DGS program.

    The SH degree comes from this project's header comment; without it, from the number of
    coefficients, where padding that is zero throughout counts as degree 0. Files written in other
    axes by `save_ply` are turned back. What other programs add is applied or refused (`foreign`).

    Returns:
        Gaussians of float32 numpy arrays [N,...].

    Raises:
        LayoutError: not a PLY file, truncated, fields are missing, or the values are activated.
    """
    vertex, comments = read_table(path)
    names = vertex.dtype.names
    needed = ["x", "y", "z", "opacity", "scale_0", "scale_1"] + [f"rot_{i}" for i in range(4)]
    missing = [n for n in needed if n not in names]
    dc = colours(vertex, str(path))
    missing += [] if dc is not None else ["f_dc_0"]
    if missing:
        raise LayoutError(
            "the PLY does not hold Gaussians",
            where=str(path),
            expected="the fields of a 3DGS file",
            found=f"no {', '.join(missing)}",
            fix="export splats, not a mesh or points; save a compressed PLY uncompressed first",
        )

    def pick(*fields: str) -> np.ndarray:
        return np.stack([np.asarray(vertex[f], np.float32) for f in fields], axis=-1)

    n_rest = sum(n.startswith("f_rest_") for n in names)
    if n_rest % 3 or 1 + n_rest // 3 not in SH_COUNTS:
        raise LayoutError(
            "the number of f_rest fields fits no SH degree",
            where=str(path),
            expected="0, 9, 24 or 45",
            found=n_rest,
            fix="export it again with SH degree 0 to 3",
        )
    sh = dc[:, None]
    if n_rest:
        rest = pick(*(f"f_rest_{i}" for i in range(n_rest)))
        rest = rest.reshape(len(rest), 3, n_rest // 3).transpose(0, 2, 1)  # [N,S-1,3]
        sh = np.concatenate([sh, rest], axis=1)
    degree = _comment(comments, "sh_degree")
    if degree is not None:
        sh = sh[:, : (_degree(degree, path) + 1) ** 2]
    elif not sh[:, 1:].any():
        sh = sh[:, :1]
    scales, logits = log_scales(vertex), np.asarray(vertex["opacity"], np.float32)
    if degree is None:  # this project's files say that they hold logits
        refuse_activated(scales, logits, str(path))
    logits = solid(logits)
    if "filter_3D" in names:
        scales, logits = filtered(scales, logits, np.asarray(vertex["filter_3D"], np.float32))
    means, quats = pick("x", "y", "z"), pick(*(f"rot_{i}" for i in range(4)))
    gaussians = Gaussians(means, quats, scales, logits, np.ascontiguousarray(sh))
    axes = (_comment(comments, "axes") or "opencv:").rstrip(":")
    one_of(axes, AXES, "unknown axes in the header", where=str(path), error=LayoutError)
    return _turned_back(gaussians, AXES[axes][0].T)


def _turned_back(gaussians: Gaussians, matrix: np.ndarray) -> Gaussians:
    """Turned; rows that hold no numbers stay as they are, a quaternion cannot be made of them."""
    fine = np.isfinite(gaussians.quats).all(-1)
    if fine.all() or np.array_equal(matrix, np.eye(3)):
        return gaussians.turned(matrix)
    quats = np.where(fine[:, None], gaussians.quats, np.float32([1, 0, 0, 0]))
    turned = dataclasses.replace(gaussians, quats=quats).turned(matrix)
    return dataclasses.replace(turned, quats=np.where(fine[:, None], turned.quats, np.nan))


def _degree(text: str, path: str | Path) -> int:
    if text not in map(str, SH_COUNTS.values()):
        raise LayoutError(
            "the header's sh_degree is none",
            where=str(path),
            expected="0 to 3",
            found=text[:40],
            fix="copy or export the file again",
        )
    return int(text)


def read_header(path: str | Path) -> dict[str, str]:
    """What this project's header comments say: axes, sh_degree, scene_scale (strings)."""
    _, comments = read_table(path)
    found = {key: _comment(comments, key) for key in ("axes", "sh_degree", "scene_scale")}
    header = {key: value.rstrip(":") for key, value in found.items() if value is not None}
    scale = header.get("scene_scale", "unknown")
    try:
        good = scale == "unknown" or 0 < float(scale) < float("inf")
    except ValueError:
        good = False
    if not good:
        raise LayoutError(
            "the header's scene_scale is no number above 0",
            where=str(path),
            found=scale[:40],
            fix="copy or export the file again",
        )
    return header


def _columns(g: Gaussians) -> dict[str, np.ndarray]:
    """Fields in the order of the original 3DGS files; normals are zeros that viewers expect."""
    n = g.n_gaussians
    rest = np.asarray(g.sh)[:, 1:].transpose(0, 2, 1)  # channel by channel
    rest = rest.reshape(n, 3 * rest.shape[2])
    columns = {name: np.asarray(g.means)[:, i] for i, name in enumerate("xyz")}
    columns |= {f"n{name}": np.zeros(n) for name in "xyz"}
    columns |= {f"f_dc_{i}": np.asarray(g.sh)[:, 0, i] for i in range(3)}
    columns |= {f"f_rest_{i}": rest[:, i] for i in range(rest.shape[1])}
    columns |= {"opacity": np.asarray(g.opacity_logits)}
    columns |= {f"scale_{i}": np.asarray(g.log_scales)[:, i] for i in range(3)}
    columns |= {f"rot_{i}": np.asarray(g.quats)[:, i] for i in range(4)}
    return columns


def _comment(comments: list[str], key: str) -> str | None:
    for line in comments:
        words = line.split()
        if words[:2] == [_TAG, key] and len(words) > 2:
            return words[2]
    return None
