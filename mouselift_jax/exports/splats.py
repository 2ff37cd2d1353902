"""Export formats for Gaussians and model cards: functions of the parsed arguments of `export`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.errors import ConfigError, LayoutError, one_of


def to_ply(args: argparse.Namespace) -> list[str]:
    """.ply in other axes or in millimetres."""
    from mouselift_jax.geometry.similarity import Similarity
    from mouselift_jax.splats.ply import load_extras, save_ply

    lines = []
    for label, gaussians, scale, file in _sets(args):
        factor = _factor(args, scale)
        if factor != 1.0:
            gaussians = gaussians.transformed(Similarity(factor, np.eye(3), np.zeros(3)))
        path = _target(args, label, ".ply")
        # scene_scale keeps its meaning, units of the file per millimetre: 1 when it is in mm.
        unit = None if scale is None else scale * factor
        left_out = save_ply(
            path, gaussians, scene_scale=unit, axes=_axes(args), overwrite=args.overwrite,
            extras=load_extras(file) if file and file.suffix.lower() == ".ply" else None,
        )  # fmt: skip
        n = gaussians.n_gaussians - left_out
        lines.append(f"{path} ({n:,} Gaussians, axes {_axes(args)})" + _left_out(left_out))
    return [*lines, _view(args.out)]


def to_splat(args: argparse.Namespace) -> list[str]:
    """.splat, 32 bytes a Gaussian, for web viewers."""
    from mouselift_jax.geometry.similarity import Similarity
    from mouselift_jax.splats.ply import AXES
    from mouselift_jax.splats.splat_file import save_splat

    matrix, lines = AXES[_axes(args)][0], []
    for label, gaussians, scale, _ in _sets(args):
        factor = _factor(args, scale)
        gaussians = gaussians.turned(matrix)
        gaussians = gaussians.transformed(Similarity(factor, np.eye(3), np.zeros(3)))
        path = _target(args, label, ".splat")
        left_out = save_splat(path, gaussians, overwrite=args.overwrite)
        size = path.stat().st_size / 1e6
        lines.append(f"{path} ({size:.1f} MB; the file cannot say its axes)" + _left_out(left_out))
    return [*lines, _view(args.out)]


def to_glb(args: argparse.Namespace) -> list[str]:
    """.glb with KHR_gaussian_splatting, y up unless --axes says otherwise."""
    from mouselift_jax.exports.glb import save_glb
    from mouselift_jax.geometry.similarity import Similarity
    from mouselift_jax.splats.ply import AXES

    axes, lines = _axes(args, "opengl"), []
    for label, gaussians, scale, _ in _sets(args):
        factor = _factor(args, scale)
        gaussians = gaussians.transformed(Similarity(factor, np.eye(3), np.zeros(3)))
        path = _target(args, label, ".glb")
        unit = None if scale is None else scale * factor
        extras = {"axes": f"{axes}: {AXES[axes][1]}", "units_per_mm": unit}
        left_out = save_glb(path, gaussians.turned(AXES[axes][0]), extras, overwrite=args.overwrite)
        n = gaussians.n_gaussians - left_out
        lines.append(f"{path} ({n:,} Gaussians, axes {axes})" + _left_out(left_out))
    return [*lines, f"next: open {args.out} in a viewer of KHR_gaussian_splatting"]


def to_mesh(args: argparse.Namespace) -> list[str]:
    """Triangles by fusion of rendered depth; needs Open3D."""
    from mouselift_jax.exports.mesh import save_mesh
    from mouselift_jax.splats.filters import only_drawable

    lines = []
    for label, gaussians, scale, _ in _sets(args):
        path = _target(args, label, ".ply" if args.out.suffix == "" else args.out.suffix)
        factor = _factor(args, scale)
        gaussians, left_out = only_drawable(gaussians, path)
        vertices, triangles = save_mesh(
            path, gaussians, axes=_axes(args), scale=factor, overwrite=args.overwrite
        )
        lines.append(
            f"{path} ({vertices:,} vertices, {triangles:,} triangles)" + _left_out(left_out)
        )
    return [
        *lines,
        "note: splats are no surface; thin parts and hazy regions come out wrong",
        f"next: open {args.out} in Blender or MeshLab",
    ]


def to_html(args: argparse.Namespace) -> list[str]:
    """One page that shows the Gaussians, like `view --export-html`; its unit is a length bar.

    Raises:
        ConfigError: axes or a unit are asked for, which a page does not have.
    """
    from mouselift_jax.exports.page import export_page
    from mouselift_jax.report.scene import open_film_scene

    if args.axes or (args.scale, args.world) != ("scene", "scene"):
        raise ConfigError(
            "a page has neither axes nor a unit to choose",
            where=f"--axes={args.axes} --scale={args.scale} --world={args.world}",
            fix="leave them out: the page turns freely and shows a bar of known length",
        )
    path = args.out if args.out.suffix == ".html" else args.out / "splats.html"
    return [f"next: {export_page(open_film_scene(args.source), path)}"]


def _sets(args: argparse.Namespace) -> Iterator[tuple[str, Any, float | None, Path | None]]:
    """(label, Gaussians, scene units per mm, their file) of all in the source, one by one."""
    from mouselift_jax.report.scene import open_scene

    if args.world == "recording":
        from mouselift_jax.exports.source import open_film

        if args.scale == "scene":
            args.scale = "mm"
        frames = open_film(args.source).frames
        _fits(args, len(frames))
        for frame in frames:
            yield frame.label, frame.gaussians(world="recording"), 1.0, frame.splats
        return
    scene = open_scene(args.source)
    moments = [m for m in scene.moments if m.splats is not None or m.read is not None]
    if not moments:
        raise LayoutError(
            "there are no Gaussians here",
            where=args.source,
            expected="a .ply, a .splat or the folder of an infer run",
            fix="python launch.py --config=configs/infer.py ... makes them",
        )
    _fits(args, len(moments))
    for i, moment in enumerate(moments):
        label = moment.label if scene.reel is None else f"frame_{scene.reel.frames[i]:06d}"
        yield label, moment.gaussians(), scene.scene_scale, moment.splats


def _fits(args: argparse.Namespace, n: int) -> None:
    if n > 1 and args.out.suffix:
        raise ConfigError(
            f"{n} sets of Gaussians do not fit into one file",
            where=args.out,
            fix="name a folder; each set becomes a file in it",
        )


def _left_out(n: int) -> str:
    return f"; {n:,} that hold no numbers were left out" if n else ""


def _view(path: Path) -> str:
    return f"next: python -m mouselift_jax view {shlex.quote(str(path))}"


def _factor(args: argparse.Namespace, scene_scale: float | None) -> float:
    """What coordinates are multiplied with."""
    if args.scale == "scene":
        return 1.0
    if scene_scale is None:
        raise LayoutError(
            "the unit of these Gaussians is unknown",
            where=args.source,
            expected="scene_scale in the header of the .ply",
            fix="--scale scene keeps scene units",
        )
    return {"mm": 1.0, "m": 1e-3}[args.scale] / scene_scale


def _axes(args: argparse.Namespace, usual: str = "opencv") -> str:
    from mouselift_jax.splats.ply import AXES

    axes = args.axes or usual
    one_of(axes, AXES, "unknown axes", where="--axes")
    return axes


def _target(args: argparse.Namespace, label: str, suffix: str) -> Path:
    """OUT itself when it names a file; else OUT/<label><suffix>, and never outside OUT."""
    if args.out.suffix:
        if args.out.exists() and not args.overwrite:
            raise ConfigError(
                "the output exists already",
                where=args.out,
                fix="choose another name, or add --overwrite",
            )
        return args.out
    return args.out / f"{Path(label).name}{suffix}"


def to_card(args: argparse.Namespace) -> list[str]:
    """A model card for the weights of a run or a converted folder."""
    from mouselift_jax.exports.model_card import write_model_card

    folder = Path(args.source)
    if not folder.is_dir():
        raise LayoutError("no such run", where=folder, fix="give the folder of a run")
    path = args.out if args.out.suffix == ".md" else args.out / "MODEL_CARD.md"
    write_model_card(folder, path)
    return [str(path), "next: read it; what the run does not know is marked as not known"]
