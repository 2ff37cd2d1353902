"""A model card: what weights were trained on, how good they are, and under which licence.

Made from what the run wrote itself; what the run does not know, the card says is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mouselift_jax.errors import LayoutError
from mouselift_jax.files import check_replaceable, write_text_atomic
from mouselift_jax.report.html import number
from mouselift_jax.runs.record import read_json, read_summary

# Weights that started from FaceLift's stay under its licence, however long they are trained.
ADOBE = "Adobe Research License (non-commercial research), as the weights it started from"
WHAT = {
    "gslrm": "GS-LRM: posed views of one moment to 3D Gaussians",
    "mvdiff": "Multi-view diffusion: one picture to six views of a fixed rig",
}


def write_model_card(run: str | Path, path: str | Path) -> Path:
    """Write the card of a training run or of converted weights as Markdown.

    Raises:
        LayoutError: the folder holds neither.
    """
    run, path = Path(run), Path(path)
    config, summary = read_json(run / "config.json"), read_summary(run)
    conversion = read_json(run / "conversion.json")
    if not conversion and not (config and summary):
        raise LayoutError(
            "no card can be written for this folder",
            where=run,
            expected="config.json and summary.json of a run, or conversion.json",
            fix="give the --workdir of a finished run, or a converted folder",
        )
    text = _converted_card(run, conversion) if conversion else _run_card(run, config, summary)
    check_replaceable(path)
    write_text_atomic(path, f"<!-- written by mouselift_jax -->\n{text}")
    return path


def licence(config: Mapping[str, Any], run: Path) -> str:
    """Under which licence the weights of a run are, as far as its starting point tells."""
    start = config.get("init_from")
    if not start:
        return "no published weights were used: the licence is that of whoever trained it"
    for base in (Path(start), run / start):
        if (base / "conversion.json").is_file():
            record = read_json(base / "conversion.json") or {}
            return str(record.get("license") or record.get("licence") or ADOBE)
        if (base / "config.json").is_file():
            return licence(read_json(base / "config.json") or {}, base)
    return f"unknown: it started from {start}, which is not there any more. If those were " + (
        f"converted FaceLift weights: {ADOBE}"
    )


def _run_card(run: Path, config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    stage = summary.get("stage", "unknown")
    figures = {k: v for k, v in summary.get("metrics", {}).items() if not k.startswith("train/")}
    train = config.get("train", {})
    lines = [
        f"# {run.resolve().name}",
        "",
        WHAT.get(stage, f"Stage {stage}"),
        "",
        "## Training",
        "",
        f"- data: {config.get('samples') or 'not known'}",
        f"- started from: {config.get('init_from') or 'random weights'}",
        f"- updates: {summary.get('steps', 'not known')} of {train.get('steps', 'not known')}, "
        f"batch {train.get('batch_size', 'not known')}, variant {config.get('variant', 'base')}",
        f"- wall-clock time: {summary.get('wall_s', float('nan')) / 3600:.2f} h",
        f"- finished: {'yes' if summary.get('finished') else 'no'}",
        "",
        "## Figures",
        "",
        "`heldout/` are views the network was not given, in frames it was not trained on; `val/` "
        "are views it was given. PSNR in dB.",
        "",
        *_table(figures),
        "",
        "## Limits",
        "",
        "Trained for one rig and one kind of animal unless the data above say otherwise. Judge it "
        "on your own recording with `configs/eval.py` before believing a number.",
        "",
        "## Licence",
        "",
        licence(config, run),
        "",
        "## Warnings of the run",
        "",
        *([f"- {w}" for w in summary.get("warnings", [])] or ["none"]),
        "",
        "## Versions",
        "",
        *[f"- {k} {v}" for k, v in summary.get("versions", {}).items()],
    ]
    return "\n".join(lines) + "\n"


def _converted_card(run: Path, record: Mapping[str, Any]) -> str:
    lines = [
        f"# {run.resolve().name}",
        "",
        "Converted weights: the values are those of their source, only names and layouts changed.",
        "",
        "## Provenance",
        "",
    ]
    for key, value in record.items():
        if isinstance(value, (str, int, float, bool)):
            lines.append(f"- {key}: {value}")
    lines += ["", "## Licence", "", str(record.get("license") or record.get("licence") or ADOBE)]
    return "\n".join(lines) + "\n"


def _table(figures: Mapping[str, Any]) -> list[str]:
    if not figures:
        return ["none were measured"]
    rows = [f"| {name} | {number(value)} |" for name, value in figures.items()]
    return ["| figure | value |", "|---|---|", *rows]
