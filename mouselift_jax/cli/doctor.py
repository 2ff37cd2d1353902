"""Say whether this machine is fit, and what to do when it is not.

Checks Python and packages, JAX devices and their memory, every rasterizer (and why one is not
available), writing and reading H.264, memory, disk, compilation cache, converted weights and their
provenance, GPUs and who uses them, and runs that are going on.

Examples:
  python -m mouselift_jax doctor                    the block to paste into an issue
  python -m mouselift_jax doctor --watch 5          GPU, memory, disk and runs, every 5 seconds
  python -m mouselift_jax doctor --json             for programs

Exit code: 0 fit, 2 something is broken (the lines marked with x)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from mouselift_jax.cli._machine import Fact, collect

MARKS = {"ok": ("+", "32"), "note": ("-", "2"), "warn": ("!", "33"), "bad": ("x", "1;31")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument(
        "--checkpoints",
        type=Path,
        action="append",
        metavar="DIR",
        help="where converted weights may be (default: checkpoints and data/checkpoints)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="refresh GPU, memory, disk and running trainings until Ctrl-C (default every 10 s)",
    )


def run(args: argparse.Namespace) -> int:
    """Collect, print, and say by the exit code whether the machine is fit."""
    roots = args.checkpoints or [Path("checkpoints"), Path("data/checkpoints")]
    if args.watch is not None:
        return _watch(args.watch)
    facts = collect(roots)
    if args.json:
        sys.stdout.write(json.dumps([dataclasses.asdict(f) for f in facts], indent=1) + "\n")
    else:
        sys.stdout.write(block(facts) + "\n\n" + verdict(facts) + "\n")
    return 2 if any(f.state == "bad" for f in facts) else 0


def block(facts: list[Fact]) -> str:
    """The facts as text, one line each, the fix below."""
    from mouselift_jax.cli._verbs import coloured

    lines = []
    for fact in facts:
        mark, colour = MARKS[fact.state]
        head = coloured(mark, colour, sys.stdout)
        lines.append(f"{head} {fact.name + ':':<22} {fact.value}")
        if fact.fix:
            lines.append(f"{'':25}-> {fact.fix}")
    return "\n".join(lines)


def verdict(facts: list[Fact]) -> str:
    """One sentence, and what to do next."""
    bad = [f.name for f in facts if f.state == "bad"]
    if bad:
        return f"Not fit yet: {', '.join(bad)}. The lines marked x say what to do."
    return "Fit. Next: `make demo`, or `python -m mouselift_jax check RECORDING`."


def _watch(seconds: float) -> int:
    """Print the changing facts again and again; on a terminal over the former ones."""
    clear = "\033[2J\033[H" if sys.stdout.isatty() else ""
    while True:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        text = block(collect([], quick=True))
        sys.stdout.write(f"{clear}{stamp}\n{text}\n\n")
        sys.stdout.flush()
        time.sleep(max(0.5, seconds))
