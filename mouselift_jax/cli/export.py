"""Write trained or converted weights in another program's format.

Formats:
  torch   GS-LRM as ckpt_<step>.pt {"model": ...}, networks of diffusion as diffusers folders

Examples:
  python -m mouselift_jax export --to=torch runs/gslrm out/              out/ckpt_<step>.pt
  python -m mouselift_jax export --to=torch runs/mvdiff out/             out/unet/
  python -m mouselift_jax export --to=torch checkpoints/facelift out/ --component unet

Values are exact: converting the result again gives the same bits. It stays under the licence of the
weights that the training started from.

Exit code: 0 done, 2 something to correct
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from mouselift_jax.errors import MouseLiftError, nearest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("source", metavar="RUN", help="folder of a run, or converted weights")
    parser.add_argument("out", type=Path, metavar="OUT", help="where to write; must not exist")
    parser.add_argument("--to", default="torch", help=f"format: {', '.join(FORMATS)}")
    parser.add_argument("--component", action="append", metavar="NAME", help="only this network")
    parser.add_argument(
        "--multiview",
        action="store_true",
        help="torch: name FaceLift's own classes in unet/config.json, not diffusers' stock ones",
    )
    parser.add_argument("--vgg19", metavar="DIR", help="torch: VGG-19 to put beside GS-LRM")


def run(args: argparse.Namespace) -> int:
    """Write the files and say which."""
    if args.to not in FORMATS:
        raise MouseLiftError(
            "no such format", where=f"--to={args.to}", fix=nearest(args.to, FORMATS)
        )
    for line in FORMATS[args.to](args):
        sys.stdout.write(line + "\n")
    return 0


def _to_torch(args: argparse.Namespace) -> list[str]:
    from mouselift_jax.pipelines.export_torch import export_torch

    return export_torch(
        args.source,
        args.out,
        components=tuple(args.component) if args.component else None,
        multiview=args.multiview,
        perceptual_from=args.vgg19,
    )


# Another format is one more entry: a function of the parsed arguments that returns lines to print.
FORMATS: dict[str, Callable[[argparse.Namespace], list[str]]] = {"torch": _to_torch}
