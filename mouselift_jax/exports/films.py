"""Export formats of whole films: functions of the parsed arguments of `export`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mouselift_jax.errors import ConfigError

if TYPE_CHECKING:
    from mouselift_jax.splats.reel import Reel


def _new(args: argparse.Namespace, suffix: str, name: str) -> Path:
    path = args.out if args.out.suffix == suffix else args.out / f"{name}{suffix}"
    if path.exists():
        raise ConfigError("the output exists already", where=path, fix="choose another name")
    return path


def to_film(args: argparse.Namespace) -> list[str]:
    """.film of a run of fit:film: the whole film in one file, a tenth of its PLYs."""
    from mouselift_jax.splats.film_file import SUFFIX, save_film_file

    reel = identity_of(Path(args.source))
    path = args.out
    if path.suffix != SUFFIX:
        path = path / f"{Path(args.source).resolve().name}{SUFFIX}"
    size = save_film_file(path, reel, overwrite=args.overwrite)
    sets = len(set(reel.segment.tolist()))
    return [
        f"{path} ({len(reel)} frames, {sets} set(s) of Gaussians, {size / 1e6:.1f} MB)",
        f"next: python -m mouselift_jax view {shlex.quote(str(path))}",
    ]


def identity_of(run: Path) -> Reel:
    """The film of a run, or the error that says how to make one."""
    from mouselift_jax.data.samples.sample_set import SampleSet
    from mouselift_jax.report.reels import run_reel
    from mouselift_jax.report.scene import samples_of
    from mouselift_jax.runs.record import read_json

    found = samples_of(run, read_json(run / "summary.json") or {})
    return run_reel(run, SampleSet.open(found) if found is not None else None)


def to_nwb(args: argparse.Namespace) -> list[str]:
    """.nwb of a film: rig, videos, keypoints, measures (extra [nwb])."""
    from mouselift_jax.exports.nwb import save_nwb
    from mouselift_jax.exports.source import open_film

    film = open_film(args.source)
    path = _new(args, ".nwb", film.run.resolve().name)
    given = {k: v for k, v in (("start", args.session_start), ("subject", args.subject),
                               ("age", args.age)) if v}  # fmt: skip
    held = save_nwb(path, film, **given)
    lines = [f"{path} ({', '.join(f'{n} {what}' for what, n in held.items())})"]
    if not held["tracks"]:
        lines.append("note: no tracks: only a run of fit:film whose unit is known has them")
    if film.rate is None:
        lines.append(
            "note: the frames are not evenly apart; movement takes rows of NWB as if they were: "
            "give it the file of --to=csv"
        )
    if not args.subject:
        lines.append("note: no subject is named: --subject=NAME --age=P70D")
    return [*lines, f"next: nwbinspector {path}   (pip install nwbinspector)"]


def to_rrd(args: argparse.Namespace) -> list[str]:
    """.rrd of a run for the Rerun viewer: splats, cameras, pictures, tracks (extra [rrd])."""
    from mouselift_jax.exports.rrd import save_rrd
    from mouselift_jax.report.scene import open_film_scene

    scene = open_film_scene(args.source)
    path = args.out
    if path.suffix != ".rrd":
        path = path / f"{Path(args.source).resolve().stem}.rrd"
    held = save_rrd(path, scene, overwrite=args.overwrite)
    lines = [f"{path} ({', '.join(f'{n} {what}' for what, n in held.items())})"]
    if not held["tracks"]:
        lines.append("note: no tracks: only a film with identity has them (fit:film)")
    return [*lines, f"next: rerun {shlex.quote(str(path))}"]


def to_csv(args: argparse.Namespace) -> list[str]:
    """.csv of a film's points in space, in anipose's form: movement, keypoint-MoSeq."""
    from mouselift_jax.exports.pose_csv import save_pose_csv
    from mouselift_jax.exports.source import open_film

    film = open_film(args.source)
    path = _new(args, ".csv", film.run.resolve().name)
    points, rows, rate = save_pose_csv(path, film)
    fps = "None" if rate is None else f"{rate:.6g}"
    return [
        f"{path} ({points} points, {rows} rows, mm)",
        f"next: movement.io.load_poses.from_anipose_file('{path}', fps={fps})",
    ]
