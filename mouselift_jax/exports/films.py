"""Export formats of whole films: functions of the parsed arguments of `export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mouselift_jax.errors import ConfigError


def _new(args: argparse.Namespace, suffix: str, name: str) -> Path:
    path = args.out if args.out.suffix == suffix else args.out / f"{name}{suffix}"
    if path.exists():
        raise ConfigError("the output exists already", where=path, fix="choose another name")
    return path


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
    if not args.subject:
        lines.append("note: no subject is named: --subject=NAME --age=P70D")
    return [*lines, f"next: nwbinspector {path}   (pip install nwbinspector)"]


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
