"""Cameras and pictures of a sample as nerfstudio's transforms.json."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.errors import LayoutError, one_of
from mouselift_jax.files import check_replaceable, write_json_atomic


def to_transforms(args: argparse.Namespace) -> list[str]:
    """Cameras and pictures of samples as transforms.json (NeRF's convention)."""
    from mouselift_jax.data.inputs import resolve_samples
    from mouselift_jax.data.samples.sample_set import SampleSet

    samples = SampleSet.open(resolve_samples(args.source))
    ids, lines = list(samples.ids()), []
    if args.sample:
        one_of(args.sample, ids, "no such sample")
        ids = [args.sample]
    elif len(ids) > 1 and not args.all:
        lines.append(f"{ids[0]}, the first of {len(ids)} samples: --sample ID or --all for others")
        ids = ids[:1]
    for sample_id in ids:
        sample = samples.load(sample_id)
        folder = args.out / sample_id if args.all else args.out
        check_replaceable(folder / "transforms.json")
        if (folder / "images").exists() and not (folder / "transforms.json").exists():
            raise LayoutError(
                "there are pictures already that no export wrote: they are left alone",
                where=folder / "images",
                fix="give another folder",
            )
        frames = []
        for v, number in enumerate(sample.camera_ids):
            name = f"images/cam_{int(number):03d}.png"
            _write_rgba(folder / name, sample.images_rgba[v])
            frames.append({"file_path": name, **transforms_frame(sample.cameras[v])})
        scale = sample.info.get("scene_scale") or samples.scene_scale
        record = {"aabb_scale": 1, "frames": frames, "scene_scale_per_mm": scale}
        record["made_by"] = "mouselift_jax"
        write_json_atomic(folder / "transforms.json", record)
        lines.append(f"{folder / 'transforms.json'} ({len(frames)} cameras)")
    return [*lines, "next: give the folder to what reads transforms.json, such as nerfstudio"]


def transforms_frame(camera: Any) -> dict[str, Any]:
    """One frame of transforms.json: OpenGL camera axes (x right, y up, z backwards), world z up."""
    K, c2w = np.asarray(camera.K, float), np.asarray(camera.c2w, float)
    matrix = c2w @ np.diag([1.0, -1.0, -1.0, 1.0])
    return {
        "transform_matrix": matrix.tolist(),
        "fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2],
        "w": int(camera.width), "h": int(camera.height),
    }  # fmt: skip


def _write_rgba(path: Path, rgba: np.ndarray) -> None:
    import io

    from PIL import Image

    from mouselift_jax.files import write_bytes_atomic

    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "png")
    write_bytes_atomic(path, buffer.getvalue())
