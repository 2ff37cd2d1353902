"""Look at Gaussians, samples or a recording in the browser.

PATH is a .ply or .splat file, the --workdir of a run, a sample set, a recording, or a folder of
.ply files (which becomes a film with a slider). Cameras are drawn with their pictures, or with the
render or the error in their place.

Examples:
  python -m mouselift_jax view runs/infer                              live, needs viser
  python -m mouselift_jax view runs/infer --samples runs/prepare       with the true pictures
  python -m mouselift_jax view splats.ply --export-html splats.html    one file, no server

A page made with --export-html opens by double click, works offline, and can be sent by mail; it
shows the Gaussians without the cameras.
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mouselift_jax.report.scene import Scene

MAX_PAGE_FRAMES = 200  # a page of more would be too large for a browser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("path", type=Path, metavar="PATH")
    parser.add_argument(
        "--samples", type=Path, help="sample set, or run that wrote it, with the true pictures"
    )
    parser.add_argument("--port", type=int, default=8080, help="of the server (default 8080)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets the whole network in (default: this machine)",
    )
    parser.add_argument("--export-html", type=Path, metavar="FILE", help="write a page and stop")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, or write the page."""
    from mouselift_jax.report.scene import open_scene

    scene = open_scene(args.path, samples=args.samples)
    if args.export_html:
        sys.stdout.write(export_page(scene, args.export_html) + "\n")
        return 0
    from mouselift_jax.report.live import LiveViewer, addresses

    viewer = LiveViewer(scene, port=args.port, host=args.host)
    sys.stdout.write(addresses(viewer.port) + "\nCtrl-C ends it.\n")
    sys.stdout.flush()
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        viewer.stop()
    return 0


def export_page(scene: Scene, path: Path) -> str:
    """Write a page that needs no server; returns a line that says so.

    Raises:
        LayoutError: the scene has no Gaussians.
    """
    from mouselift_jax.errors import LayoutError
    from mouselift_jax.report.viewer import export_html

    files = scene.splat_files
    if not files:
        raise LayoutError(
            "a page shows Gaussians, and there are none here",
            where=scene.title,
            fix="give a .ply or an infer run; samples can be viewed live: "
            "python -m mouselift_jax view PATH",
        )
    step = -(-len(files) // MAX_PAGE_FRAMES)
    labels = [m.label for m in scene.moments if m.splats is not None] if len(files) > 1 else None
    export_html(
        path,
        files[::step],
        title=scene.title,
        labels=labels[::step] if labels else None,
        scene_scale=scene.scene_scale,
    )
    size = path.stat().st_size / (1 << 20)
    note = f", {every(step)}" if step > 1 else ""
    return f"{path} ({size:.1f} MiB{note}); open it in any browser"


def every(step: int) -> str:
    """In words: every 2nd frame."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(step % 10 if step % 100 not in (11, 12, 13) else 0)
    return f"every {step}{ending or 'th'} frame"
