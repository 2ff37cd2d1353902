"""Look at Gaussians, samples or a recording in the browser.

PATH is a .ply, .splat or .film file, the --workdir of a run, a sample set, a recording, or a folder
of .ply files (which becomes a film with a slider). Cameras are drawn with their pictures, or with
the render or the error in their place. A film of `fit:film` plays in the recording's world, with
the tracks of 50 of its Gaussians.

Examples:
  python -m mouselift_jax view runs/infer                              live, needs viser
  python -m mouselift_jax view runs/infer --samples runs/prepare       with the true pictures
  python -m mouselift_jax view runs/fit --colours cameras              which places are guessed
  python -m mouselift_jax view mouse.film --colours speed              what moves
  python -m mouselift_jax view splats.ply --export-html splats.html    one file, no server

A page made with --export-html opens by double click, works offline, and can be sent by mail; it
shows the Gaussians without the cameras.
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.exports.page import export_page


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
        choices=("own", "cameras", "speed", "error", "shift"),
        default="own",
        help="cameras: by how many cameras see each Gaussian, where `fit` wrote it; speed: of a "
        "film with identity; error: difference from the pictures, live only; shift: by how far it "
        "moves without a camera, where fit's leave_one_out wrote it (default own)",
    )
    parser.add_argument("--export-html", type=Path, metavar="FILE", help="write a page and stop")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, or write the page."""
    from mouselift_jax.report.scene import open_film_scene, open_scene

    by = args.colours
    if by == "shift":  # a property of each frame's own file: a film does not hold it
        scene, by = open_scene(args.path, samples=args.samples).coloured_by(by), "own"
    else:
        scene = open_film_scene(args.path, samples=args.samples)
    reel = scene.reel
    if by == "speed" and reel is None:
        raise ConfigError(
            "without identity nothing has a speed", where="--colours=speed", found=args.path,
            fix="make a film: python launch.py --config=configs/fit.py:film --config.samples=...",
        )  # fmt: skip
    if by == "cameras" and reel is not None and reel.seen(int(reel.segment[0])) is None:
        raise LayoutError(
            "the film does not say how many cameras see each Gaussian", where=args.path,
            fix="look at it in its own colours",
        )  # fmt: skip
    if args.export_html:
        if by == "error":
            raise ConfigError(
                "a page of `view` has no pictures to differ from", where="--colours=error",
                fix="leave --export-html out; sequence.html of a film's run has these colours",
            )  # fmt: skip
        if by == "cameras" and reel is None:
            scene = scene.coloured_by(by)
        sys.stdout.write(export_page(scene, args.export_html, by) + "\n")
        return 0
    from mouselift_jax.report.live import LiveViewer, addresses

    viewer = LiveViewer(scene, port=args.port, host=args.host, colours=by)
    sys.stdout.write(addresses(viewer.port) + "\nCtrl-C ends it.\n")
    sys.stdout.flush()
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        viewer.stop()
    return 0
