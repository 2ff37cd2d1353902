"""What a path that a user gave means: a recording, a sample set, a run, or none of them."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from mouselift_jax.data.samples.sample_set import is_sample_set
from mouselift_jax.errors import ConfigError, LayoutError, nearest
from mouselift_jax.runs.record import read_json, read_summary

CALIBRATION = "calibration.json"  # what a run of stage calibrate found


def must_exist(path: str | os.PathLike | None, key: str) -> Path:
    """The path of an input key; an absent one is an error naming the key and what is near."""
    if not path:
        raise ConfigError("an input is missing", where=f"config.{key}", fix=f"--config.{key}=PATH")
    path = Path(path)
    if not path.exists():
        parent = path.parent
        fix = f"{parent} is not there"
        if parent.is_dir():
            names = [p.name for p in parent.iterdir() if not p.name.startswith(".")]
            fix = nearest(path.name, names) if names else f"there is nothing in {parent}"
        raise LayoutError("no such file or folder", where=f"config.{key}={path}", fix=fix)
    return path


def calibration_of(path: str | Path) -> Path:
    """The calibration that a run of that stage wrote (a file, or a folder of one a camera).

    Raises:
        ConfigError: there is none.
    """
    place = must_exist(path, "prepare.calibration")
    if place.is_file():
        return place
    record = read_json(place / CALIBRATION)
    file = place / record["file"] if record and "file" in record else None
    if file is None or not file.exists():
        raise ConfigError(
            "no calibration in this folder",
            where=f"config.prepare.calibration={path}",
            expected="a finished run of configs/calibrate.py, or a calibration file",
            fix="python launch.py --config=configs/calibrate.py --config.recording=RECORDING "
            f"--workdir={path}",
        )
    return file


def looks_like_recording(path: Path) -> bool:
    """Whether a folder holds videos and calibration rather than samples."""
    if (path / "summary.json").exists():
        return False  # a run, whose videos are its results
    return path.is_dir() and (
        (path / "new_cam.pkl").exists() or any(path.glob("videos*")) or any(path.glob("*.mp4"))
    )


def resolve_samples(path: str | os.PathLike | None, *, key: str = "samples") -> Path:
    """The sample set that a path means: a set, a list of one, or a run that wrote one."""
    path = must_exist(path, key)
    if path.is_file() and path.suffix == ".txt":
        return path
    if (path / "manifest.json").exists() or any(path.glob("data_*.txt")):
        return path
    summary = read_summary(path)
    if "samples" in summary.get("artefacts", {}):
        found = path / summary["artefacts"]["samples"]
        if not summary.get("finished", False):
            raise LayoutError(
                "the run that writes these samples has not finished",
                where=path,
                fix="repeat its command first: it resumes",
            )
        return resolve_samples(found, key=key)
    if (path / "samples" / "manifest.json").exists():
        return path / "samples"
    if looks_like_recording(path):
        raise LayoutError(
            f"config.{key} is a recording, not a sample set", where=path, fix=prepare_command(path)
        )
    if is_sample_set(path):  # made elsewhere: folders sample_* without a list, or one of them
        return path
    raise LayoutError(
        "no sample set here",
        where=f"config.{key}={path}",
        expected="manifest.json, a list data_*.txt, or a finished prepare or synth run",
        found=contents(path),
        fix="give the --workdir of a prepare or synth run, or the folder of a sample set",
    )


def contents(path: Path) -> str:
    """What lies in a folder, in a few words, for a message."""
    if not path.is_dir():
        return "a file"
    names = sorted(p.name for p in path.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "an empty folder"


def prepare_command(recording: str | os.PathLike) -> str:
    """The command that makes samples from a recording."""
    key = shlex.quote(f"--config.recording={recording}")
    return (
        f"python launch.py --config=configs/prepare.py {key} "
        "--workdir=runs/prepare, then --config.samples=runs/prepare"
    )
