"""cameras.json: the rig that a multi-view network has learned, kept beside its weights.

The layout is opencv_cameras.json's with entries more (`slots`, `spread_deg`, `spread_px`,
`subject_share`, `subject_centre`), so any program that reads the one reads the other.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from mouselift_jax.data.samples.camera_file import camera_record, parse_cameras
from mouselift_jax.errors import CalibrationError, ConfigError, LayoutError, nearest
from mouselift_jax.files import write_json_atomic
from mouselift_jax.geometry.median_rig import HALF_LENGTH, Rig, shifts, slot_order
from mouselift_jax.geometry.rig import azimuth_elevation
from mouselift_jax.geometry.validate import validate_cameras

RIGS = Path(__file__).resolve().parents[3] / "data" / "rigs"
SAME_PX = 1.0  # of 512: cameras that move no point of the animal by more are the same
WARN_SPREAD_PX = 5.0  # above, pictures and cameras of generated views visibly disagree
_IN_ORDER = "clockwise from slot 0"


def save_rig(
    path: str | Path,
    rig: Rig,
    *,
    half_length: float = HALF_LENGTH,
    source: str = "",
    subject_share: float | None = None,
    subject_centre: str | None = None,
) -> None:
    """Write cameras.json, whole or not at all.

    Args:
        path: the file.
        rig: the cameras.
        half_length: where the spread was measured, scene units from the origin.
        source: where the samples are.
        subject_share: of a picture's side, that the subject's longer side takes in slot 0.
        subject_centre: box | centroid: what of its silhouette lies in the middle of slot 0.
    """
    cameras = rig.cameras
    n = cameras.batch_shape[0]
    names = [f"slot_{i}" for i in range(n)]
    record = camera_record("rig", cameras, range(n), names)
    azimuth, elevation = azimuth_elevation(cameras.c2w)
    record |= {
        "slots": _IN_ORDER,
        "azimuth_deg": np.round(azimuth, 3).tolist(),
        "elevation_deg": np.round(elevation, 3).tolist(),
        "spread_deg": np.round(rig.spread_deg, 4).tolist(),
        "spread_px": np.round(rig.spread_px, 3).tolist(),
        "spread_measured_at": half_length,
        "n_samples": rig.n_samples,
        "source": source,
        "subject_share": subject_share,
        "subject_centre": subject_centre,
    }
    write_json_atomic(path, record)


def load_rig(path: str | Path) -> tuple[Rig, str]:
    """Read cameras.json, or any opencv_cameras.json with one frame a view.

    Returns:
        The rig with views in slot order, and a sentence to log: how the order was found and how
        wide the spread is. The spread of a foreign file is unknown and is given as NaN.

    Raises:
        LayoutError: no such file, or it is not of this layout.
        CalibrationError: a camera is impossible, or does not look at the origin.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, IsADirectoryError) as error:
        raise LayoutError(
            "no camera file",
            where=path,
            expected="cameras.json of a mvdiff run, or an opencv_cameras.json",
            fix="--config.cameras=FILE",
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LayoutError(
            "not a JSON file",
            where=path,
            found=str(error),
            fix="give the opencv_cameras.json of a training sample",
        ) from error
    cameras = validate_cameras(parse_cameras(record, path), subject=np.zeros(3))
    size = np.array([cameras.width, cameras.height])
    xy, _ = cameras.project(np.zeros(3))
    if (xy < 0).any() or (xy > size).any():
        raise CalibrationError(
            "the cameras do not see the origin, where the subject is",
            where=path,
            found=f"the origin falls on pixels {np.round(xy).astype(int).tolist()}",
            fix="give the cameras of a prepared sample, whose subject is at the origin",
        )
    n = cameras.batch_shape[0]
    missing = {"spread_deg", "spread_px", "n_samples"} - record.keys()
    if record.get("slots") == _IN_ORDER and missing:
        raise LayoutError(
            "cameras.json is incomplete",
            where=path,
            expected="spread_deg, spread_px and n_samples beside the cameras",
            found=f"no {', '.join(sorted(missing))}",
            fix='take "slots" out of a file that no mvdiff run wrote',
        )
    if record.get("slots") == _IN_ORDER:
        spread_deg, spread_px = (np.asarray(record[k]) for k in ("spread_deg", "spread_px"))
        note = f"the median rig of {record['n_samples']} samples, spread {spread_px.max():.1f} px"
        return Rig(cameras, spread_deg, spread_px, int(record["n_samples"])), note
    azimuth, _ = azimuth_elevation(cameras.c2w)
    unknown = np.full(n, np.nan)
    if (slot_order(azimuth, front_deg=float(azimuth[0])) == np.arange(n)).all():
        note = f"{path.name}: its frames go clockwise already and are the slots"
        return Rig(cameras, unknown, unknown, 1), note
    order = slot_order(azimuth)
    note = (
        f"{path.name} does not say its slot order: taken clockwise from the camera nearest the "
        f"front (azimuth 270), frames {order.tolist()}"
    )
    return Rig(cameras[order], unknown, unknown, 1), note


def named_rig(name: str) -> Path:
    """The file of a rig that travels with the project, or the file itself.

    Raises:
        ConfigError: neither a name in data/rigs nor a file.
    """
    own = RIGS / f"{name}.json"
    path = own if own.is_file() else Path(name)
    if not path.is_file():
        known = sorted(p.stem for p in RIGS.glob("*.json"))
        raise ConfigError(
            "no such rig",
            where=f"config.rig={name}",
            expected=f"{' | '.join(known)}, or a camera file",
            fix=nearest(name, known),
        )
    return path


def rig_words(rig: Rig) -> str:
    """Which rig this is, for people: one that travels with the project, or its angles."""
    spread = float(np.max(rig.spread_px))
    told = f"spread {spread:.1f} px" if np.isfinite(spread) else "spread not known"
    cameras = rig.cameras
    for path in sorted(RIGS.glob("*.json")):
        known = load_rig(path)[0].cameras.resized(cameras.width, cameras.height)[0]
        if known.batch_shape != cameras.batch_shape:
            continue
        zoom = float(np.mean(cameras.K[:, 0, 0]) / np.mean(known.K[:, 0, 0]))
        K = np.array(known.K, np.float64)
        K[:, :2, :2] *= zoom
        off = float(shifts(cameras, dataclasses.replace(known, K=K)).max())
        if off <= SAME_PX * cameras.width / 512:
            lens = f", focal lengths times {zoom:.2f}" if abs(zoom - 1) > 0.005 else ""
            return f"the {path.stem} rig{lens} (cameras within {off:.1f} px of it, {told})"
    azimuth, elevation = azimuth_elevation(cameras.c2w)
    pairs = zip(np.rint(azimuth).astype(int), np.rint(elevation).astype(int), strict=True)
    angles = ", ".join(f"{a % 360}/{e}" for a, e in pairs)
    return f"a rig of its own: azimuth/elevation {angles} degrees ({told})"
