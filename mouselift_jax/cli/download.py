"""Fetch published weights from the Hugging Face Hub, after showing their size and licence.

What:
  facelift   wlyu/OpenFaceLift: GS-LRM and the multi-view diffusion pipeline (about 9 GB)
  base       Stable Diffusion 2.1 unCLIP, the stock base of the diffusion stage (about 8 GB)

Examples:
  python -m mouselift_jax download facelift            shows size and licence, asks, then fetches
  python -m mouselift_jax download facelift --yes      without asking
  python -m mouselift_jax download base --list         shows size and licence only

An interrupted download goes on where it stopped when the command is repeated. Without a network it
says which files to copy where. Then convert: see docs/checkpoints.md.

Exit code: 0 done, 2 something to correct
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mouselift_jax.errors import MouseLiftError, one_of


@dataclasses.dataclass(frozen=True)
class Item:
    """Something that can be fetched.

    Attributes:
        repo: on the Hub.
        patterns: files of it that are wanted.
        licence: what its authors allow, in words.
        convert: commands that make it usable; {dir} is where it lies.
    """

    repo: str
    patterns: tuple[str, ...]
    licence: str
    convert: tuple[str, ...]


PIPELINE = ("model_index.json", "*/*.json", "tokenizer/*")
ITEMS = {
    "facelift": Item(
        "wlyu/OpenFaceLift",
        (
            "gslrm/*",
            *(f"mvdiffusion/pipeckpts/{p}" for p in PIPELINE),
            "mvdiffusion/pipeckpts/*/*.safetensors",
            "README.md",
            "LICENSE*",
        ),
        "Adobe Research License: non-commercial research use only; converted weights and what is "
        "trained from them stay under it",
        (
            "python tools/convert_torch_ckpt.py gslrm {dir}/gslrm checkpoints/gslrm --verify",
            "python tools/convert_torch_ckpt.py mvdiffusion {dir}/mvdiffusion/pipeckpts "
            "checkpoints/mvdiffusion --verify",
        ),
    ),
    "base": Item(
        "sd2-community/stable-diffusion-2-1-unclip",
        (
            *PIPELINE,
            "*/diffusion_pytorch_model.safetensors",
            "*/model.safetensors",
            "README.md",
            "LICENSE*",
        ),
        "CreativeML Open RAIL++-M: use is restricted by its annex A",
        ("python tools/convert_torch_ckpt.py mvdiffusion {dir} checkpoints/base --verify",),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("what", metavar="WHAT", help=" or ".join(ITEMS))
    parser.add_argument("--to", type=Path, help="folder (default: data/downloads/WHAT)")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--list", action="store_true", help="show files, size, licence; stop there")
    parser.add_argument(
        "--revision", default="main", help="branch, tag or commit of the repository"
    )
    parser.add_argument("--endpoint", help="another server with the Hub's interface")


def run(args: argparse.Namespace) -> int:
    """Show, ask, fetch."""
    one_of(args.what, ITEMS, "nothing is known by this name", error=MouseLiftError)
    item = ITEMS[args.what]
    place = args.to or Path("data/downloads") / args.what
    files = _reach(item, place, lambda: _listing(item, args))
    if not files:
        raise MouseLiftError(
            "the repository holds none of the files",
            where=item.repo,
            expected=", ".join(item.patterns),
            fix="another --revision, or copy the files by hand: docs/checkpoints.md",
        )
    odd = [f.filename for f in files if Path(f.filename).is_absolute() or ".." in f.filename]
    if odd:
        raise MouseLiftError(
            "the server names files outside the folder",
            where=item.repo,
            found=", ".join(odd[:3]),
            fix="do not fetch from this server",
        )
    missing = [f for f in files if not _there(place / f.filename, f.file_size)]
    for f in files:
        here = "" if f in missing else "  (here)"
        _say(f"  {f.file_size / 1e6:10.1f} MB  {f.filename}{here}")
    other = [f.filename for f in missing if (place / f.filename).exists()]
    if other:
        raise MouseLiftError(
            "other files of these names are there already: they are left alone",
            where=place,
            found=", ".join(other[:6]),
            fix="give another folder with --to, or move them away yourself",
        )
    total, left = (sum(f.file_size for f in part) / 1e9 for part in (files, missing))
    _say(f"{item.repo}: {total:.2f} GB, {left:.2f} GB to fetch")
    _say(f"licence: {item.licence}")
    _say(f"  (what the repository says today: https://huggingface.co/{item.repo})")
    if args.list:
        return 0
    if missing and not args.yes and not _agreed(place):
        _say("nothing was fetched")
        return 0
    for f in missing:
        _reach(item, place, lambda f=f: _fetch(item, f, place, args.endpoint))
    _say(f"in {place}\nnext:")
    for command in item.convert:
        _say("  " + command.format(dir=place))
    return 0


def _agreed(place: Path) -> bool:
    if not sys.stdin.isatty():
        raise MouseLiftError(
            "nobody is there to agree to the licence", fix="read it, then repeat with --yes"
        )
    return input(f"fetch into {place}? [y/N] ").strip().lower() in ("y", "yes")


def _there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _listing(item: Item, args: argparse.Namespace) -> list[Any]:
    """The wanted files of a repository, with sizes and the commit they are of."""
    from huggingface_hub import snapshot_download

    with tempfile.TemporaryDirectory() as empty:
        found = snapshot_download(
            item.repo,
            revision=args.revision,
            local_dir=empty,
            allow_patterns=list(item.patterns),
            endpoint=args.endpoint,
            dry_run=True,
        )
    return sorted(found, key=lambda info: info.filename)


def _fetch(item: Item, info: Any, place: Path, endpoint: str | None) -> None:
    """Fetch one file; what an earlier attempt left is kept and only the rest is asked for.

    `snapshot_download` itself starts a file anew when its process was stopped.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    path = place / info.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{info.commit_hash[:12]}.part")
    url = hf_hub_url(item.repo, info.filename, revision=info.commit_hash, endpoint=endpoint)
    with part.open("ab") as file:
        http_get(
            url,
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(),
            expected_size=info.file_size,
            displayed_filename=info.filename,
        )
    part.replace(path)


def _reach(item: Item, place: Path, call: Callable[[], Any]) -> Any:
    """Run something that needs the Hub; one clear error when it cannot be reached."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        return call()
    except RepositoryNotFoundError as error:
        raise MouseLiftError(
            "the repository is not there, or not public any more",
            where=item.repo,
            found=str(error).strip().splitlines()[0],
            fix=by_hand(item, place),
        ) from error
    except (*HfHubHTTPError.__bases__, OSError) as error:  # the HTTP client's base class, any name
        raise MouseLiftError(
            "the Hub cannot be reached",
            where=item.repo,
            found=(str(error).strip().splitlines() or [repr(error)])[0][:200],
            fix=by_hand(item, place),
        ) from error


def by_hand(item: Item, place: Path) -> str:
    """What to copy where on a machine without a network."""
    patterns = " ".join(f"'{p}'" for p in item.patterns)
    return (
        f"repeat the command when there is a network (it resumes), or on a machine with one run\n"
        f"    hf download {item.repo} --local-dir {place.name} --include {patterns}\n"
        f"  and copy that folder to {place.absolute()}; then:\n    "
        + "\n    ".join(command.format(dir=place) for command in item.convert)
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
