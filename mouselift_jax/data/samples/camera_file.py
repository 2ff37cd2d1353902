"""opencv_cameras.json: the cameras of a sample's pictures, in FaceLift's layout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from mouselift_jax.errors import LayoutError, raise_all
from mouselift_jax.geometry.camera import Camera, intrinsics, invert_rigid


def parse_cameras(record: dict[str, Any], where: object = None) -> Camera:
    """The cameras [V] of an opencv_cameras.json, NumPy float64.

    Raises:
        LayoutError: a field is missing or holds no numbers, or the frames differ in size.
    """
    frames = with_frames(record, where)["frames"]
    needed = ("w", "h", "fx", "fy", "cx", "cy", "w2c")
    problems = [
        LayoutError(
            f"frame {i} has no {key!r}",
            where=where,
            fix="write w, h, fx, fy, cx, cy and w2c for every view; docs/data_format.md",
        )
        for i, frame in enumerate(frames)
        for key in needed
        if key not in frame
    ]
    problems += [
        LayoutError(
            f"{key!r} of frame {i} is not {'a 4x4 matrix' if key == 'w2c' else 'a number'}",
            where=where,
            found=str(frame[key])[:80],
            fix="finite numbers, w2c row by row; docs/data_format.md",
        )
        for i, frame in enumerate(frames)
        for key in needed
        if key in frame and not _is_numeric(frame[key], (4, 4) if key == "w2c" else ())
    ]
    problems += [
        LayoutError(
            f"'camera' of frame {i} is not a whole number",
            where=where,
            found=frame["camera"],
            fix="give the recording's number of the camera, or leave the key out",
        )
        for i, frame in enumerate(frames)
        if not isinstance(frame.get("camera", 0), int)
    ]
    raise_all("a camera file cannot be used", problems)
    sizes = {(int(f["w"]), int(f["h"])) for f in frames}
    if len(sizes) > 1:
        raise LayoutError(
            "views of one sample differ in size",
            where=where,
            found=sorted(sizes),
            fix="resize the pictures to one size, and their intrinsics with them",
        )
    w2c = np.asarray([f["w2c"] for f in frames], np.float64)
    K = intrinsics(
        *(np.asarray([f[k] for f in frames], np.float64) for k in ("fx", "fy", "cx", "cy"))
    )
    width, height = sizes.pop()
    return Camera(K, invert_rigid(w2c), width, height)


def with_frames(record: Any, where: object) -> dict[str, Any]:
    """The record itself, if it has frames.

    Raises:
        LayoutError: it has none, or they are no objects.
    """
    frames = record.get("frames") if isinstance(record, dict) else None
    if isinstance(frames, list) and frames and all(isinstance(f, dict) for f in frames):
        return record
    raise LayoutError(
        "a camera file without frames",
        where=where,
        found=str(record)[:80],
        fix='write {"frames": [{...}, ...]}, one entry a view; docs/data_format.md',
    )


def _is_numeric(value: Any, shape: tuple[int, ...]) -> bool:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return False
    return array.shape == shape and bool(np.isfinite(array).all())


def camera_record(
    sample_id: str,
    cameras: Camera,
    camera_ids: Iterable[int],
    file_paths: Iterable[str],
    **info: Any,
) -> dict[str, Any]:
    """The content of opencv_cameras.json for cameras [V]; extra entries ride along."""
    K, w2c = np.asarray(cameras.K, np.float64), np.asarray(cameras.w2c, np.float64)
    frames = [
        {
            "w": cameras.width,
            "h": cameras.height,
            "fx": float(k[0, 0]),
            "fy": float(k[1, 1]),
            "cx": float(k[0, 2]),
            "cy": float(k[1, 2]),
            "w2c": m.tolist(),
            "file_path": name,
            "camera": int(number),
        }
        for k, m, number, name in zip(K, w2c, camera_ids, file_paths, strict=True)
    ]
    return {"id": sample_id, "frames": frames, **info}
