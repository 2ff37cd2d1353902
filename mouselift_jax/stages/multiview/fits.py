"""Fitted frames as a source: what a run of `fit` holds, of which samples, and how good each is."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.inputs import contents, must_exist, resolve_samples
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.errors import LayoutError, MouseLiftError, raise_all
from mouselift_jax.runs.record import plain, read_json, read_summary
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.ply import load_ply, read_header

SPLATS, DONE = "splats.ply", "item.json"  # as `infer` and `fit` name them
SHOWN_PROBLEMS = 8


@dataclasses.dataclass(frozen=True)
class Fitted:
    """One fitted frame.

    Attributes:
        id: of its sample.
        place: folder with splats.ply and item.json.
        record: content of item.json.
    """

    id: str
    place: Path
    record: dict[str, Any]

    @property
    def hidden(self) -> dict[str, float] | None:
        """Figures of cameras that the fit did not see; None where it saw all, or they are none."""
        found = self.record.get("heldout")
        return found if found and math.isfinite(found.get("iou", math.nan)) else None

    @property
    def spoilt(self) -> bool:
        """Whether cameras were hidden from the fit, but their IoU is missing or no number."""
        return bool(self.record.get("heldout")) and self.hidden is None

    def gaussians(self) -> Gaussians:
        """Its Gaussians, in the frame of its sample."""
        return load_ply(self.place / SPLATS)


@dataclasses.dataclass(frozen=True)
class FitRun:
    """A finished run of `fit`.

    Attributes:
        path: its folder.
        samples: the sample set whose frames were fitted.
        items: fitted frames by sample id.
        skipped: frames that `fit` left out.
        settings: what the fit was told.
    """

    path: Path
    samples: SampleSet
    items: dict[str, Fitted]
    skipped: tuple[str, ...]
    settings: dict[str, Any]


def open_fits(path: str | Path, samples: str | Path | None = None) -> FitRun:
    """Open a run of `fit`.

    Args:
        path: its folder.
        samples: the samples that it fitted, where they are no longer at the place it remembers.

    Raises:
        LayoutError: no finished run of `fit`, its samples are gone, or they are others.
    """
    folder = must_exist(path, "fits")
    config = read_json(folder / "config.json") or {}
    if config.get("stage") != "fit":
        raise LayoutError(
            "this is no run of fit",
            where=f"config.fits={folder}",
            expected="the --workdir of a finished configs/fit.py",
            found=f"a run of {config['stage']}" if "stage" in config else contents(folder),
            fix="python launch.py --config=configs/fit.py --config.samples=SAMPLES "
            f"--workdir={folder}_fit",
        )
    if not read_summary(folder).get("finished", False):
        raise LayoutError(
            "the fit has not finished",
            where=folder,
            fix="repeat its command first: it resumes",
        )
    source = SampleSet.open(_samples_of(folder, config, samples))
    items = _items(folder)
    _check_same(folder, source, items)
    skipped = tuple(
        str((read_json(p) or {}).get("id")) for p in folder.glob("items/*/skipped.json")
    )
    return FitRun(folder, source, items, skipped, plain(config.get("fit", {})))


def _samples_of(folder: Path, config: dict[str, Any], given: str | Path | None) -> Path:
    if given:
        return resolve_samples(given)
    known = config.get("samples") or (str(folder / "prepare") if config.get("recording") else "")
    for place in (Path(known), folder / known):
        if known and place.exists():
            return resolve_samples(place)
    raise LayoutError(
        "the samples that were fitted are not where they were",
        where=folder,
        expected=known or "samples in the run's config.json",
        fix="--config.samples=PLACE says where they are now",
    )


def _items(folder: Path) -> dict[str, Fitted]:
    alone = [folder] if (folder / DONE).exists() else []
    places = [*alone, *sorted(p.parent for p in folder.glob(f"items/*/{DONE}"))]
    found, problems = {}, []
    for place in places:
        record = read_json(place / DONE)
        if wrong := _damage(record, place):
            problems.append(
                LayoutError(
                    "a fitted frame is damaged",
                    where=place,
                    found=wrong,
                    fix=f"remove its {DONE} and repeat the command of the fit: it makes the frame "
                    "again",
                )
            )
        else:
            found[record["id"]] = Fitted(record["id"], place, record)
    raise_all("fitted frames are damaged", problems[:SHOWN_PROBLEMS])
    if not found:
        raise LayoutError(
            "the run of fit holds no fitted frames",
            where=folder,
            found=contents(folder),
            fix="repeat its command: it makes what is missing",
        )
    return found


def _damage(record: Any, place: Path) -> str:
    """What is wrong with a fitted frame's files, "" when nothing is."""
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        return f"{DONE} names no sample"
    if not (place / SPLATS).exists():
        return f"no {SPLATS}"
    hidden = record.get("heldout") or {}
    if not isinstance(hidden, dict) or not all(isinstance(v, int | float) for v in hidden.values()):
        return f"heldout = {hidden!r}: no figures of hidden cameras"
    if "iou" in hidden and not (math.isnan(hidden["iou"]) or 0 <= hidden["iou"] <= 1):
        return f"heldout.iou = {hidden['iou']}: an IoU lies between 0 and 1"
    return ""


def _check_same(folder: Path, source: SampleSet, items: dict[str, Fitted]) -> None:
    """Whether the frames that were fitted are these samples'.

    Raises:
        LayoutError: or several: a frame has no sample, another number, camera or scale.
    """
    there = set(source.ids("all"))
    problems: list[MouseLiftError] = []
    for i, item in enumerate(items.values()):
        differs = _difference(source, item) if item.id in there else "no such sample"
        if not differs and i == 0:  # it reads a whole file
            differs = _other_scale(source, item)
        if differs:
            problems.append(
                LayoutError(
                    f"the fit of {item.id} is of another sample than the set's",
                    where=source.path,
                    expected=f"the samples that {folder} fitted",
                    found=differs,
                    fix="--config.samples=PLACE of those samples, or fit these",
                )
            )
    raise_all("these fits are not of these samples", problems[:SHOWN_PROBLEMS])


def _difference(source: SampleSet, item: Fitted) -> str:
    """What tells a fitted frame from the sample of its name, "" when nothing does."""
    record = source.camera_file(item.id) or {"frames": []}
    numbers = [f.get("camera", i) for i, f in enumerate(record["frames"])]
    frame = int(record.get("frame", -1))
    if int(item.record.get("frame", frame)) != frame:
        return f"frame {frame} of the recording, fitted was {item.record['frame']}"
    strange = sorted(set(item.record.get("cameras", numbers)) - set(numbers))
    if strange:
        return f"cameras {numbers}, fitted were also {strange}"
    return ""


def _other_scale(source: SampleSet, item: Fitted) -> str:
    scale = (source.camera_file(item.id) or {}).get("scene_scale") or source.scene_scale
    text = read_header(item.place / SPLATS).get("scene_scale", "unknown")
    if scale and text != "unknown" and not np.isclose(float(text), scale, rtol=1e-6):
        return f"{scale:.6g} scene units per mm, fitted was {float(text):.6g}"
    return ""
