"""Convert torch checkpoints to this project's: python tools/convert_torch_ckpt.py KIND SRC DST.

Torch is needed for .pt, .pth and .bin sources only; safetensors are read without it. See
docs/checkpoints.md for where the files come from and under which licence.
"""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mouselift_jax.errors import MouseLiftError  # noqa: E402
from mouselift_jax.weights.convert import DTYPES, check_destination, convert, verify_conversion  # noqa: E402
from mouselift_jax.weights.kinds import KINDS, LICENCES, Request, plan_conversion  # noqa: E402
from tools.torch_reader import read_torch  # noqa: E402


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    out.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    out.add_argument("src", type=Path, metavar="SRC", help="file or folder to convert")
    out.add_argument("dst", nargs="?", metavar="DST", help="new folder, local or gs://")
    out.add_argument("--dry-run", action="store_true", help="print the mapping, write nothing")
    out.add_argument("--verify", action="store_true", help="read back, compare with the source")
    out.add_argument(
        "--verify-only", action="store_true", help="compare an existing DST with its source"
    )
    out.add_argument("--dtype", default="source", choices=DTYPES, help="of the stored weights")
    out.add_argument(
        "--component", action="append", metavar="NAME", help="only this one; may be repeated"
    )
    out.add_argument("--config", type=Path, help="upstream's yaml or json (gslrm)")
    out.add_argument(
        "--weights", choices=("ema", "raw"), help="which of a training checkpoint's (unet)"
    )
    return out


def run(args: argparse.Namespace) -> None:
    """Convert, or tell what would be converted."""
    components = tuple(args.component) if args.component else None
    request = Request(args.src, read_torch, args.config, args.weights, components)
    if not args.dry_run:
        if args.dst is None:
            raise MouseLiftError("DST is missing", fix="give a new folder, or --dry-run")
        if not args.verify_only:
            check_destination(args.dst)
    plan = plan_conversion(args.kind, request)
    if args.dry_run:
        print(plan.describe())  # noqa: T201
        print("dry run: nothing was written")  # noqa: T201
        return
    if args.verify_only:
        verify_conversion(plan, args.dst, _forward_check(), print)
        return
    convert(
        plan,
        args.dst,
        dtype=args.dtype,
        verify=args.verify,
        forward_check=_forward_check() if args.verify else None,
        report=print,
    )
    print(f"wrote {args.dst}\nlicence: {LICENCES[args.kind]}")  # noqa: T201


def _forward_check() -> object | None:
    """The comparison with torch's networks, where torch is installed."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return None
    from tools.torch_oracles import forward_check

    return forward_check


def main() -> int:
    """Run and turn errors that the user can fix into one message and exit code 2."""
    try:
        run(parser().parse_args())
    except MouseLiftError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was left behind", file=sys.stderr)  # noqa: T201
        return 130
    return 0


if __name__ == "__main__":
    # Importing torch makes a million objects that live on: looking through them for garbage, again
    # and again and at exit, takes longer than converting 300 MB.
    gc.set_threshold(100_000)
    code = main()
    gc.freeze()
    sys.exit(code)
