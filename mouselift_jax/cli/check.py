"""Is this recording, or sample set, what it claims to be? Every problem at once, root cause first.

Calibration, masks, pictures and keypoints must agree; where they do not, the likely corrections are
tried and the one that mends it is named. PATH itself is never written.

Examples:
  python -m mouselift_jax check my_mouse                  -> check_my_mouse/check.json, a picture
  python -m mouselift_jax check runs/prepare --out out/   a sample set

Exit code: 0 usable (clean or warnings), 2 errors
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import numpy as np

from mouselift_jax import __version__
from mouselift_jax.cli._verbs import launch
from mouselift_jax.data.check.mend import command
from mouselift_jax.data.check.recording import CheckResult, check_recording
from mouselift_jax.data.check.samples import check_samples
from mouselift_jax.data.samples.grade import grade_table
from mouselift_jax.data.samples.sample_set import is_sample_set
from mouselift_jax.errors import ConfigError
from mouselift_jax.files import check_replaceable, write_json_atomic
from mouselift_jax.report.grades import grade_plot
from mouselift_jax.report.pictures import contact_sheet, save_png

EXIT_USABLE, EXIT_UNUSABLE = 0, 2
WRITES = ("check.json", "contact_sheet.png")


class _ListFormats(argparse.Action):
    """Print the formats, and stop: no PATH is needed."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from mouselift_jax.data.readers.calibrations import CALIBRATIONS
        from mouselift_jax.data.readers.keypoints import KEYPOINTS
        from mouselift_jax.data.readers.registry import lines
        from mouselift_jax.data.readers.space import POINTS

        texts = ("Calibrations", lines(CALIBRATIONS), "Keypoints", lines(KEYPOINTS),
                 "Points in space", lines(POINTS))  # fmt: skip
        print("\n".join(texts))  # noqa: T201
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="recording or sample set folder")
    parser.add_argument(
        "--list-formats",
        action=_ListFormats,
        nargs=0,
        help="print which calibration and keypoint files are read, and stop",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where check.json and the contact sheet go [./check_<name>]"
    )
    parser.add_argument(
        "--max-frames", type=int, default=120, help="frames of a recording to look at [%(default)s]"
    )
    parser.add_argument(
        "--max-samples", type=int, default=24, help="samples of a set to look at [%(default)s]"
    )
    for name, text in (
        ("unit", "mm or m: what the calibration is in [the format's usual unit]"),
        ("trim", "error or shortest: files with different numbers of frames [error]"),
        ("cameras", "numbers or names of the cameras to use, joined by commas [all]"),
        ("up", "up in the calibration's world: z, -y, cameras, floor, x,y,z [found out]"),
        ("pixel_origin", "0, 0.5 or 1: the first pixel's centre in the calibration [its format's]"),
    ):
        # The names of prepare's options are understood as well: errors recommend them.
        names = (f"--{name.replace('_', '-')}", f"--config.prepare.{name}")
        parser.add_argument(*names, dest=name, default="", help=text)


def run(args: argparse.Namespace) -> int:
    """Check, write, print; 0 if all are usable, 2 if one is not."""
    paths = [Path(p) for p in args.paths]
    places = _places(paths, args.out)
    grades = Path(args.out or ".") / "grades.png"
    for file in [p / n for p in places for n in WRITES] + [grades][: len(paths) - 1]:
        check_replaceable(file)  # before the work
    results = [_check(path, args) for path in paths]
    for out, result in zip(places, results, strict=True):
        _write(out, result)
        _print(out, result)
    graded = [(str(r.path), r.measures["grade"]) for r in results if "grade" in r.measures]
    if graded:
        print(grade_table(graded))  # noqa: T201
    if len(graded) > 1:
        save_png(grades, grade_plot(graded))
        print(f"wrote {grades}")  # noqa: T201
    errors = {f.code for r in results for f in r.findings if f.severity == "error"}
    if errors <= {"calibration_off"}:
        print(f"next: {launch(_next(results[0], args))}")  # noqa: T201
    return EXIT_UNUSABLE if errors else EXIT_USABLE


def _next(result: CheckResult, args: argparse.Namespace) -> str:
    path = shlex.quote(str(result.path))
    if is_sample_set(result.path):
        return (
            f"python launch.py --config=configs/fit.py --config.samples={path} --workdir=runs/fit"
        )
    off = next((f for f in result.findings if f.code == "calibration_off"), None)
    stage, names = "prepare", ("unit", "trim", "cameras", "up", "pixel_origin")
    line = f"python launch.py --config=configs/prepare.py:fill --config.recording={path} "
    line += "--workdir=runs/prepare"
    if any(f.code == "masks_absent" for f in result.findings):
        line += " --config.prepare.masks=background_model"
    if off is not None:
        stage, names = "calibrate", tuple(n for n in names if n != "up")
        line = command(result.path, off.evidence["evidence"])
    return line + "".join(
        f" --config.{stage}.{name}={shlex.quote(getattr(args, name))}"
        for name in names
        if getattr(args, name)
    )


def _places(paths: list[Path], out: str | None) -> list[Path]:
    """Where each result goes; folders called alike are told apart by their parents.

    Raises:
        ConfigError: a result would be written into what is checked.
    """
    whole = [path.resolve() for path in paths]
    names = [path.name for path in whole]
    names = ["_".join(p.parts[-2:]) if names.count(p.name) > 1 else p.name for p in whole]
    if out is None:
        places = [Path(f"check_{name}") for name in names]
    else:
        places = [Path(out) / name if len(paths) > 1 else Path(out) for name in names]
    for place, path in zip(places, whole, strict=True):
        if path in (place.resolve(), *place.resolve().parents):
            raise ConfigError(
                "check never writes into what it checks",
                where=place,
                fix="give --out=DIR outside the checked folder",
            )
    return places


def _check(path: Path, args: argparse.Namespace) -> CheckResult:
    if is_sample_set(path):
        return check_samples(path, max_samples=args.max_samples)
    options = {"trim": args.trim or "error", "unit": args.unit or None, "up": args.up}
    options["pixel_origin"] = args.pixel_origin
    cameras = args.cameras.split(",")
    return check_recording(path, max_frames=args.max_frames, cameras=cameras, **options)


def _write(out: Path, result: CheckResult) -> None:
    made_by = {"written_by": f"mouselift_jax {__version__}"}
    write_json_atomic(out / "check.json", made_by | result.to_json())
    pictures, labels = _sheet(result)
    if pictures:
        sheet = contact_sheet(
            pictures, labels=labels, columns=len(result.camera_ids) or None, size=(240, 214),
            title=f"{result.path.name}: {_summary(result)}",
        )  # fmt: skip
        save_png(out / "contact_sheet.png", sheet)


def _sheet(result: CheckResult) -> tuple[list[np.ndarray], list[str]]:
    """Rows of instants, columns of cameras."""
    if result.seen is None:
        return [], []
    pictures, labels = [], []
    rows = result.seen.mask_rows[:: max(1, len(result.seen.mask_rows) // 4)]
    for k, row in enumerate(result.seen.mask_rows):
        if row not in rows:
            continue
        for v, number in enumerate(result.camera_ids):
            thumbnails = result.seen.thumbnails[v]
            blank = np.full((8, 8, 3), 128, np.uint8)
            pictures.append(thumbnails[k] if k < len(thumbnails) else blank)
            labels.append(f"camera {number}, frame {result.seen.frames[row]}")
    return pictures, labels


def _summary(result: CheckResult) -> str:
    if result.clean:
        return "clean"
    counts = {s: sum(f.severity == s for f in result.findings) for s in ("error", "warning")}
    return ", ".join(f"{n} {s}(s)" for s, n in counts.items() if n)


def _print(out: Path, result: CheckResult) -> None:
    print(f"{result.path}: {_summary(result)}")  # noqa: T201
    for finding in result.findings:
        print(f"  {finding.severity}: {finding.message}  [{finding.code}]")  # noqa: T201
        if finding.where:
            print(f"    in: {finding.where}")  # noqa: T201
        for key in ("expected", "found"):
            if finding.evidence.get(key) is not None:
                print(f"    {key}: {finding.evidence[key]}")  # noqa: T201
        if finding.fix:
            print(f"    Fix: {finding.fix}")  # noqa: T201
        for consequence in finding.consequences:
            print(f"    hence: {consequence.message}")  # noqa: T201
    for key, name in (
        ("hull_cover_mean", "hull cover"),
        ("keypoint_reprojection_px", "keypoint px"),
    ):
        values = result.measures.get(key)
        if values is not None:
            cells = "  ".join(
                f"{n}: {v:.3f}" if np.isfinite(v) else f"{n}: unknown"
                for n, v in zip(result.camera_ids, values, strict=False)
            )
            print(f"  {name} per camera  {cells}")  # noqa: T201
    sheet = " and contact_sheet.png" if (out / "contact_sheet.png").exists() else ""
    print(f"  wrote {out / 'check.json'}{sheet}")  # noqa: T201
