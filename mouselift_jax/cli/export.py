"""Write weights, Gaussians or cameras in another program's format.

Formats:
  torch       GS-LRM as ckpt_<step>.pt {"model": ...}, networks of diffusion as diffusers folders
  ply         Gaussians in other axes or in millimetres (3DGS fields; SuperSplat, Blender, Unity)
  splat       Gaussians at 32 bytes each, for web viewers
  glb         Gaussians as glTF (KHR_gaussian_splatting)
  film        a film with identity in one file, a tenth of its PLYs (docs/film_format.md)
  nwb         a film with its rig, videos, keypoints and measures (extra [nwb])
  rrd         a run for the Rerun viewer: splats, cameras, pictures, tracks (extra [rrd])
  csv         a film's points in space as anipose writes them, for movement and keypoint-MoSeq
  html        Gaussians in a page that needs no server
  mesh        triangles by fusion of rendered depth: .ply .obj .glb (extra [mesh])
  transforms  cameras and pictures of a sample as transforms.json (NeRF's convention)
  card        a model card for trained weights: data, figures, licence

Examples:
  python -m mouselift_jax export --to=torch runs/gslrm out/              out/ckpt_<step>.pt
  python -m mouselift_jax export --to=torch runs/mvdiff out/             out/unet/
  python -m mouselift_jax export --to=torch checkpoints/facelift out/ --component unet
  python -m mouselift_jax export --to=ply runs/infer out/ --axes unity --scale m
  python -m mouselift_jax export --to=ply runs/fit out/ --world recording
  python -m mouselift_jax export --to=film runs/fit mouse.film
  python -m mouselift_jax export --to=nwb runs/fit film.nwb --subject mouse_7 --age P70D
  python -m mouselift_jax export --to=rrd runs/fit mouse.rrd
  python -m mouselift_jax export --to=mesh runs/infer/splats.ply mouse.glb --scale mm
  python -m mouselift_jax export --to=transforms runs/prepare out/ --sample sample_000012

.spz, .sog, compressed .ply: SuperSplat's own converter reads the .ply (Node.js, MIT licence);
--axes 3dgs is upright there; not in millimetres, .spz wraps positions beyond 2048:
  npx @playcanvas/splat-transform@3.7.0 out/splats.ply out/splats.spz

torch: values are exact; converting the result again gives the same bits. It stays under the licence
of the weights that the training started from.

Exit code: 0 done, 2 something to correct
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from mouselift_jax.errors import MouseLiftError, one_of
from mouselift_jax.exports import splats as _export_splats
from mouselift_jax.exports.films import to_csv, to_film, to_nwb, to_rrd
from mouselift_jax.exports.transforms import to_transforms


class _ListFormats(argparse.Action):
    """Print the formats, and stop: no RUN is needed."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        docs = {name: (to.__doc__ or "").splitlines()[0] for name, to in FORMATS.items()}
        sys.stdout.write("".join(f"  {name:<12}{doc}\n" for name, doc in docs.items()))
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("source", metavar="RUN", help="folder of a run, or converted weights")
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="where to write; for torch a new place"
    )
    parser.add_argument("--to", default="torch", help=f"format: {', '.join(FORMATS)}")
    parser.add_argument(
        "--list-formats", action=_ListFormats, nargs=0, help="print the formats, and stop"
    )
    parser.add_argument("--component", action="append", metavar="NAME", help="only this network")
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="WHICH",
        help="torch: of a run: best (where it kept one), newest, or the number of a step",
    )
    parser.add_argument(
        "--multiview",
        action="store_true",
        help="torch: name FaceLift's own classes in unet/config.json, not diffusers' stock ones",
    )
    parser.add_argument("--vgg19", metavar="DIR", help="torch: VGG-19 to put beside GS-LRM")
    parser.add_argument(
        "--axes",
        help="ply, splat, mesh, glb: opencv (default), 3dgs (SuperSplat), opengl (default of glb), "
        "blender, unity",
    )
    parser.add_argument(
        "--scale",
        default="scene",
        choices=("scene", "mm", "m"),
        help="ply, splat, mesh, glb: unit of coordinates",
    )
    parser.add_argument(
        "--world",
        default="scene",
        choices=("scene", "recording"),
        help="ply, splat, mesh, glb of a film: each frame centred (scene), or where it was in the "
        "recording's world, in mm",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="ply, splat, glb, mesh, film, rrd: replace files that are there, whoever wrote them",
    )
    parser.add_argument("--session-start", metavar="TIME", help="nwb: when the recording began")
    parser.add_argument("--subject", metavar="NAME", help="nwb: the animal's name")
    parser.add_argument("--age", metavar="P70D", help="nwb: its age, an ISO 8601 duration")
    parser.add_argument("--sample", metavar="ID", help="transforms: which sample")
    parser.add_argument("--all", action="store_true", help="transforms: every sample, in folders")


def run(args: argparse.Namespace) -> int:
    """Write the files and say which."""
    one_of(args.to, FORMATS, "no such format", where=f"--to={args.to}", error=MouseLiftError)
    for line in FORMATS[args.to](args):
        sys.stdout.write(line + "\n")
    return 0


def _to_torch(args: argparse.Namespace) -> list[str]:
    """Weights as torch files: GS-LRM as ckpt_<step>.pt, networks of diffusion as folders."""
    from mouselift_jax.exports.model_card import write_model_card
    from mouselift_jax.weights.export_torch import export_torch

    lines = export_torch(
        args.source,
        args.out,
        components=tuple(args.component) if args.component else None,
        multiview=args.multiview,
        perceptual_from=args.vgg19,
        checkpoint=args.checkpoint,
    )
    source = Path(args.source)
    if (source / "summary.json").is_file() or (source / "conversion.json").is_file():
        # Weights travel with what they are and under which licence.
        is_folder = args.out.is_dir()
        card = args.out / "MODEL_CARD.md" if is_folder else args.out.with_suffix(".md")
        lines.append(str(write_model_card(source, card)))
    return [*lines, _after_torch(args.out)]


def _after_torch(out: Path) -> str:
    """The command that proves the files: it reads them back and compares."""
    kind, file = "unet", out
    if out.is_file() or any(out.glob("ckpt_*.pt")):
        kind, file = "gslrm", out if out.is_file() else next(out.glob("ckpt_*.pt"))
    elif not (out / "unet").is_dir():
        return "next: from_pretrained() of diffusers or transformers opens each folder"
    back = out.with_name(f"{out.stem}_back")
    paths = shlex.join([str(file), str(back)])
    return f"next: python tools/convert_torch_ckpt.py {kind} {paths} --verify   (the way back)"


# Another format is one more entry: a function of the parsed arguments that returns lines to print.
FORMATS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "torch": _to_torch,
    "ply": _export_splats.to_ply,
    "splat": _export_splats.to_splat,
    "glb": _export_splats.to_glb,
    "film": to_film,
    "nwb": to_nwb,
    "csv": to_csv,
    "rrd": to_rrd,
    "html": _export_splats.to_html,
    "mesh": _export_splats.to_mesh,
    "transforms": to_transforms,
    "card": _export_splats.to_card,
}
