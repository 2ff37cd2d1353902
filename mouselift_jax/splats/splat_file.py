"""The compact `.splat` format of web viewers: 32 bytes a Gaussian, no header.

A row is 3 float32 position, 3 float32 scale (standard deviations), RGBA as bytes and the quaternion
(wxyz, 128 + 128 q) as bytes. View-dependent colour is lost, rotation and colour are rounded to 8
bits, and the file cannot say its axes or unit: keep the .ply beside it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mouselift_jax.errors import LayoutError, ShapeError
from mouselift_jax.files import check_replaceable, write_bytes_atomic
from mouselift_jax.splats.filters import only_drawable
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.sh import C0

ROW = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])


def splat_rows(gaussians: Gaussians) -> np.ndarray:
    """One set of Gaussians as records of `ROW`, the most visible (opacity times size) first.

    Those that hold no numbers are left out, with a warning.
    """
    if np.ndim(gaussians.opacity_logits) != 1:
        raise ShapeError(
            "a .splat file holds one set of Gaussians",
            expected="opacity_logits [N]",
            found=list(np.shape(gaussians.opacity_logits)),
            fix="index the batch first: gaussians[0]",
        )
    gaussians, _ = only_drawable(gaussians, "splats")
    means, quats, scales, opacities, sh = (np.asarray(x) for x in gaussians.activate())
    scales = np.maximum(scales, np.finfo(np.float32).tiny)  # a size of 0 is none to viewers
    order = np.argsort(-opacities * scales.prod(-1) ** (2 / 3), kind="stable")
    rgba = np.concatenate([sh[:, 0] * C0 + 0.5, opacities[:, None]], axis=-1)
    rows = np.zeros(len(means), ROW)
    rows["means"], rows["scales"] = means, scales
    rows["rgba"] = np.round(np.clip(rgba, 0, 1) * 255)
    rows["quats"] = np.clip(np.round(quats * 128 + 128), 0, 255)
    return rows[order]


def save_splat(path: str | Path, gaussians: Gaussians, *, overwrite: bool = False) -> int:
    """Write one set of Gaussians as .splat, whole or not at all; returns how many were left out.

    Raises:
        LayoutError: the file exists, and `overwrite` does not allow to replace it: a .splat cannot
            say who wrote it.
    """
    check_replaceable(path, overwrite=overwrite)
    rows = splat_rows(gaussians)
    write_bytes_atomic(path, rows.tobytes())
    return gaussians.n_gaussians - len(rows)


def load_splat(path: str | Path) -> Gaussians:
    """Read a .splat file; colours come back as SH of degree 0.

    Raises:
        LayoutError: the file is missing, empty, truncated or holds values that are no splats.
    """
    path = Path(path)
    if not path.is_file():
        raise LayoutError("no such .splat file", where=path, fix="check the path")
    data = path.read_bytes()
    if not data or len(data) % ROW.itemsize:
        raise LayoutError(
            "not a whole .splat file",
            where=path,
            expected=f"a multiple of {ROW.itemsize} bytes",
            found=f"{len(data)} bytes",
            fix="copy or export it again",
        )
    rows = np.frombuffer(data, ROW)
    if not (np.isfinite(rows["means"]).all() and (rows["scales"] > 0).all()):
        raise LayoutError(
            "the .splat holds impossible values",
            where=path,
            expected="finite positions, scales above 0",
            fix="the file is damaged or is of another format",
        )
    rgba = rows["rgba"].astype(np.float32) / 255
    opacities = np.clip(rgba[:, 3], 0.5 / 255, 1 - 0.5 / 255)
    return Gaussians(
        rows["means"].copy(),
        (rows["quats"].astype(np.float32) - 128) / 128,
        np.log(rows["scales"]),
        np.log(opacities / (1 - opacities)),
        ((rgba[:, None, :3] - 0.5) / C0).astype(np.float32),
    )
