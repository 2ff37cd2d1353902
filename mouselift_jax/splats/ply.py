"""Gaussians in and out of `.ply`, in the field order that 3DGS viewers read.

The file holds what is optimised: log scales, opacity logits, wxyz quaternions, SH coefficients with
the higher ones channel by channel. The header comments say what viewers leave people to guess:
axes, unit, scene scale, SH degree, colour space.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mouselift_jax.errors import ConfigError, LayoutError, ShapeError, nearest
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
    "unity": (np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]]), "y up, z north, left-handed"),
}
_TAG = "mouselift_jax"


def save_ply(
    path: str | Path,
    gaussians: Gaussians,
    *,
    scene_scale: float | None = None,
    axes: str = "opencv",
) -> None:
    """Write one set of Gaussians, whole or not at all.

    Args:
        path: file to write.
        gaussians: one set, fields [N,...]; stored as float32.
        scene_scale: scene units per millimetre, for the header; None when unknown.
        axes: axes to write in, a key of `AXES`; "opencv" stores the numbers unchanged.
    """
    if axes not in AXES:
        raise ConfigError("unknown axes", where=str(path), found=axes, fix=nearest(axes, AXES))
    if np.ndim(gaussians.opacity_logits) != 1:
        raise ShapeError(
            "a PLY holds one set of Gaussians",
            where=str(path),
            expected="opacity_logits [N]",
            found=list(np.shape(gaussians.opacity_logits)),
            fix="index the batch first: gaussians[0]",
        )
    matrix, meaning = AXES[axes]
    degree, turned = gaussians.sh_degree, gaussians.turned(matrix)
    comments = [
        f"{_TAG} axes {axes}: {meaning}",
        f"{_TAG} sh_degree {degree}",
        f"{_TAG} scene_scale {'unknown' if scene_scale is None else repr(float(scene_scale))} "
        "scene units per mm",
        f"{_TAG} colour sRGB; opacity is a logit, scale a logarithm, rot wxyz",
    ]
    write_table(path, _columns(turned), comments)


def load_ply(path: str | Path) -> Gaussians:
    """Read one set of Gaussians, from this project or any other 3DGS program.

    The SH degree comes from this project's header comment; without it, from the number of
    coefficients, where padding that is zero throughout counts as degree 0. Files written in other
    axes by `save_ply` are turned back.

    Returns:
        Gaussians of float32 numpy arrays [N,...].

    Raises:
        LayoutError: not a PLY file, truncated, or fields are missing.
    """
    vertex, comments = read_table(path)
    names = vertex.dtype.names
    needed = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"]
    needed += [f"scale_{i}" for i in range(3)] + [f"rot_{i}" for i in range(4)]
    missing = [n for n in needed if n not in names]
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
    sh = pick("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
    if n_rest:
        rest = pick(*(f"f_rest_{i}" for i in range(n_rest)))
        rest = rest.reshape(len(rest), 3, n_rest // 3).transpose(0, 2, 1)  # [N,S-1,3]
        sh = np.concatenate([sh, rest], axis=1)
    degree = _comment(comments, "sh_degree")
    if degree is not None:
        sh = sh[:, : (int(degree) + 1) ** 2]
    elif not sh[:, 1:].any():
        sh = sh[:, :1]
    gaussians = Gaussians(
        pick("x", "y", "z"),
        pick(*(f"rot_{i}" for i in range(4))),
        pick(*(f"scale_{i}" for i in range(3))),
        np.asarray(vertex["opacity"], np.float32),
        np.ascontiguousarray(sh),
    )
    axes = (_comment(comments, "axes") or "opencv:").rstrip(":")
    if axes not in AXES:
        raise LayoutError("unknown axes in the header", where=str(path), fix=nearest(axes, AXES))
    return gaussians.turned(AXES[axes][0].T)


def read_header(path: str | Path) -> dict[str, str]:
    """What this project's header comments say: axes, sh_degree, scene_scale (strings)."""
    _, comments = read_table(path)
    found = {key: _comment(comments, key) for key in ("axes", "sh_degree", "scene_scale")}
    return {key: value.rstrip(":") for key, value in found.items() if value is not None}


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
        if words[:2] == [_TAG, key]:
            return words[2]
    return None
