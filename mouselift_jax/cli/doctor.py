"""Say whether this machine is fit, and what to do when it is not.

Checks Python and packages, accelerators, writing and reading H.264, memory, disk, compilation
cache, converted weights and their provenance, GPUs and who uses them, and runs that are going on.
--full also asks JAX for its devices and draws with every rasterizer. --before=STAGE goes through
what a long phase needs: samples, weights, prompts, a free GPU, room on the disk.

Examples:
  python -m mouselift_jax doctor                    in a second or two
  python -m mouselift_jax doctor --full             the block to paste into an issue
  python -m mouselift_jax doctor --before=mvdiff --samples runs/prepare
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

from mouselift_jax.cli import _before
from mouselift_jax.cli._machine import Fact, collect
from mouselift_jax.errors import ConfigError, nearest

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
    parser.add_argument(
        "--full", action="store_true", help="ask JAX for its devices and draw with each rasterizer"
    )
    parser.add_argument(
        "--before",
        metavar="STAGE",
        help=f"go through what a stage needs: {', '.join(_before.STAGES)}",
    )
    parser.add_argument(
        "--samples", type=Path, default=Path("runs/prepare"), help="--before: [%(default)s]"
    )
    parser.add_argument(
        "--weights", type=Path, help="--before: converted weights or a run [the usual place]"
    )
    parser.add_argument("--prompts", type=Path, help="--before: embeddings [those of the weights]")
    parser.add_argument(
        "--workdir", type=Path, help="--before: where the run will write [runs/STAGE]"
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
    if args.before is not None:
        facts = _before.checklist(_question(args))
    else:
        facts = collect(roots, full=args.full)
    if args.json:
        sys.stdout.write(json.dumps([dataclasses.asdict(f) for f in facts], indent=1) + "\n")
    else:
        sys.stdout.write(block(facts) + "\n\n" + verdict(facts, args.before) + "\n")
    return 2 if any(f.state == "bad" for f in facts) else 0


# Where the weights lie that a stage starts from, unless --weights names them.
USUAL = {
    "gslrm": "checkpoints/gslrm",
    "mvdiff": "checkpoints/mvdiffusion",
    "synth": "runs/mvdiff",
    "fit": "",
}


def _question(args: argparse.Namespace) -> _before.Question:
    stage = args.before
    if stage not in _before.STAGES:
        raise ConfigError(
            "there is no checklist for this",
            where=f"--before={stage}",
            fix=nearest(stage, _before.STAGES),
        )
    weights = args.weights or Path(USUAL[stage])
    return _before.Question(
        stage, args.samples, weights, args.prompts or weights, args.workdir or Path("runs") / stage
    )


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


def verdict(facts: list[Fact], before: str | None = None) -> str:
    """One sentence, and what to do next."""
    bad = list(dict.fromkeys(f.name for f in facts if f.state == "bad"))
    if bad:
        return f"Not fit yet: {', '.join(bad)}. The lines marked x say what to do."
    if before is not None:
        doubts = [f.name for f in facts if f.state == "warn"]
        but = f", but look at: {', '.join(doubts)}" if doubts else ""
        return f"Ready for {before}{but}. Its own --plan says the rest."
    if not Path("launch.py").is_file():
        return (
            "Fit. Next: `python -m mouselift_jax check RECORDING`. Fitting and training "
            "need a clone of the repository, which has launch.py and configs/."
        )
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
