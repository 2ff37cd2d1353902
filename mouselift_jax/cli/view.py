"""Look at Gaussians, samples or a recording in the browser.

PATH is a .ply or .splat file, the --workdir of a run, a sample set, a recording, or a folder of
.ply files (which becomes a film with a slider). Cameras are drawn with their pictures, or with the
render or the error in their place.

Examples:
  python -m mouselift_jax view runs/infer                              live, needs viser
  python -m mouselift_jax view runs/infer --samples runs/prepare       with the true pictures
  python -m mouselift_jax view runs/fit --colours cameras              which places are guessed
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

from mouselift_jax.exports.page import export_page

if TYPE_CHECKING:
    pass


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
    parser.add_argument(
        "--colours",
        choices=("own", "cameras"),
        default="own",
        help="cameras: by how many cameras see each Gaussian, where `fit` wrote it (default own)",
    )
    parser.add_argument("--export-html", type=Path, metavar="FILE", help="write a page and stop")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, or write the page."""
    from mouselift_jax.report.scene import open_scene

    scene = open_scene(args.path, samples=args.samples)
    if args.colours == "cameras":
        scene = scene.coloured_by_trust()
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
