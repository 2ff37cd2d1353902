"""A page with splats that a browser shows without a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mouselift_jax.report.scene import Scene


MAX_PAGE_FRAMES = 200  # a page of more would be too large for a browser


def export_page(scene: Scene, path: Path, colours: str = "own") -> str:
    """Write a page that needs no server; returns a line that says so.

    Args:
        scene: what to show.
        path: *.html.
        colours: of a film with identity: which it begins with (`report/colours.py`).

    Raises:
        LayoutError: the scene has no Gaussians.
    """
    from mouselift_jax.errors import LayoutError
    from mouselift_jax.report.viewer import export_film_html, export_html

    if scene.reel is not None:
        step = -(-len(scene.reel) // MAX_PAGE_FRAMES)
        export_film_html(path, scene.reel.every(step), title=scene.title, colours=colours)
        return _told(path, step)
    shown = [m for m in scene.moments if m.splats is not None]
    files = [m.gaussians() if m.read else m.splats for m in shown]
    if not files:
        raise LayoutError(
            "a page shows Gaussians, and there are none here",
            where=scene.title,
            fix="give a .ply or an infer run; samples can be viewed live: "
            "python -m mouselift_jax view PATH",
        )
    step = -(-len(files) // MAX_PAGE_FRAMES)
    labels = [m.label for m in shown] if len(files) > 1 else None
    export_html(
        path,
        files[::step],
        title=scene.title,
        labels=labels[::step] if labels else None,
        scene_scale=scene.scene_scale,
    )
    return _told(path, step)


def _told(path: Path, step: int) -> str:
    size = path.stat().st_size / (1 << 20)
    note = f", {every(step)}" if step > 1 else ""
    return f"{path} ({size:.1f} MiB{note}); open it in any browser"


def every(step: int) -> str:
    """In words: every 2nd frame."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(step % 10 if step % 100 not in (11, 12, 13) else 0)
    return f"every {step}{ending or 'th'} frame"
