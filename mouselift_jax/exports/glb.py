"""Gaussians as binary glTF with Khronos' KHR_gaussian_splatting.

The extension's meaning of SCALE changed while it was a draft: first the logarithm, since 2026 the
standard deviation itself. This writes the later one, which the published text asks for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.errors import LayoutError
from mouselift_jax.files import check_replaceable, write_bytes_atomic
from mouselift_jax.splats.filters import only_drawable
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.sh import C0

EXTENSION = "KHR_gaussian_splatting"
_FLOAT, _BYTE, _POINTS = 5126, 5121, 0
_TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}


def save_glb(
    path: str | Path,
    gaussians: Gaussians,
    extras: dict[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> int:
    """Write one set of Gaussians, whole or not at all; those that hold no numbers are left out.

    Args:
        path: file to write.
        gaussians: one set, in the axes of the file (glTF's y is up).
        extras: what to say of the file in asset.extras, such as its unit.
        overwrite: replace a file that is there even if this project did not write it.

    Returns:
        How many were left out.
    """
    check_replaceable(path, overwrite=overwrite)
    kept, left_out = only_drawable(gaussians, path)
    if kept.n_gaussians == 0:
        raise LayoutError(
            "glTF cannot hold an empty set", where=path, expected="some Gaussians",
            fix="look at the source with `view`",
        )  # fmt: skip
    means, quats, scales, opacities, sh = (np.asarray(x, np.float32) for x in kept.activate())
    dc = np.clip(sh[:, 0] * C0 + 0.5, 0, 1)
    fallback = np.concatenate([dc, opacities[:, None]], 1)  # for viewers without the extension
    arrays = {
        "POSITION": means,
        "COLOR_0": np.round(fallback * 255).astype(np.uint8),
        f"{EXTENSION}:ROTATION": np.roll(quats, -1, axis=-1),  # xyzw
        f"{EXTENSION}:SCALE": scales,
        f"{EXTENSION}:OPACITY": opacities[:, None],
    }
    first = 0
    for degree in range(kept.sh_degree + 1):
        for m in range(2 * degree + 1):
            arrays[f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{m}"] = sh[:, first + m]
        first += 2 * degree + 1
    views, accessors, parts, offset = [], [], [], 0
    for name, values in arrays.items():
        data = np.ascontiguousarray(values).tobytes()
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": len(data), "target": 34962})
        accessor = {
            "bufferView": len(views) - 1, "count": len(values), "type": _TYPES[values.shape[1]],
            "componentType": _BYTE if values.dtype == np.uint8 else _FLOAT,
        }  # fmt: skip
        if values.dtype == np.uint8:
            accessor["normalized"] = True
        if name == "POSITION" and len(values):
            accessor |= {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        accessors.append(accessor)
        parts.append(data)
        offset += len(data)
    about = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display",
             "sortingMethod": "cameraDistance", "projection": "perspective"}  # fmt: skip
    attributes = {name: i for i, name in enumerate(arrays)}
    primitive = {"attributes": attributes, "mode": _POINTS, "extensions": {EXTENSION: about}}
    gltf = {
        "asset": {"version": "2.0", "generator": "mouselift_jax", "extras": extras or {}},
        "extensionsUsed": [EXTENSION],
        "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "buffers": [{"byteLength": offset}], "bufferViews": views, "accessors": accessors,
    }  # fmt: skip
    write_bytes_atomic(path, _binary(gltf, b"".join(parts)))
    return left_out


def _binary(gltf: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(gltf, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    data += b"\0" * (-len(data) % 4)
    chunks = _chunk(b"JSON", text) + (_chunk(b"BIN\0", data) if data else b"")
    return b"glTF" + (2).to_bytes(4, "little") + (12 + len(chunks)).to_bytes(4, "little") + chunks


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + kind + data
