"""Draw report.html of a run again, from what is in its folder.

Useful while a run is going on, or after pictures were added: the page is made from config.json,
summary.json, metrics.jsonl and the sections in RUN/report/.

Examples:
  python -m mouselift_jax report runs/gslrm
  python -m mouselift_jax report runs/*             one page each
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the --workdir of a run")


def run(args: argparse.Namespace) -> int:
    """Write each page and say where it is."""
    from mouselift_jax.errors import LayoutError
    from mouselift_jax.report.html import write_report

    for path in args.runs:
        if not any((path / n).is_file() for n in ("config.json", "summary.json", "metrics.jsonl")):
            raise LayoutError(
                "not a run",
                where=path,
                expected="config.json, summary.json or metrics.jsonl in it",
                fix="give the --workdir of a launch.py command",
            )
        sys.stdout.write(f"{write_report(path)}; open it in any browser\n")
    return 0
