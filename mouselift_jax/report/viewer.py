"""The splat viewer inside a page: reports and `view --export-html`, no server and no network.

The script (static/splat_viewer.js) is our own and small: the viewers on npm that were tried start
module workers, which browsers refuse in a page opened from disk. The data travels in the page as
gzipped .splat rows.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.files import check_replaceable, write_text_atomic
from mouselift_jax.report.reels import payload
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.ply import load_ply, read_header
from mouselift_jax.splats.reel import Reel
from mouselift_jax.splats.splat_file import load_splat, splat_rows

MAX_GAUSSIANS = 120_000  # per frame of a page: about 3 MB of text
MIN_OPACITY = 1 / 255  # what no renderer draws is not sent
START_DEG = (236.0, 20.0)  # azimuth, elevation of the first view: the front, a little to the side

CSS = """
.mouselift-splats { max-width:760px } .mouselift-splats .stage { position:relative; width:100%; aspect-ratio:4/3; max-height:80vh }
.mouselift-splats canvas { width:100%; height:100%; display:block; touch-action:none; cursor:grab;
  border:1px solid #d8dee4; border-radius:6px; background:#fff; outline:none }
.mouselift-splats .scale { position:absolute; left:14px; bottom:12px; border:solid #1f2328; border-width:0 2px 2px;
  font-size:.8rem; text-align:center; pointer-events:none; white-space:nowrap }
.mouselift-splats .bar { display:flex; flex-wrap:wrap; gap:10px; align-items:center; margin-top:6px; font-size:.88rem }
.mouselift-splats input[type=range] { flex:1 1 160px }
.mouselift-splats .soft { color:#5f6b7a }
"""  # noqa: E501  (CSS reads better unbroken)


def load_splats(path: str | Path) -> Gaussians:
    """Gaussians from a .ply or a .splat file."""
    path = Path(path)
    loaders = {".ply": load_ply, ".splat": load_splat}
    if path.suffix.lower() not in loaders:
        raise ConfigError(
            "not a file of Gaussians",
            where=path,
            expected=" or ".join(loaders),
            found=path.suffix,
            fix="give a .ply or a .splat",
        )
    return loaders[path.suffix.lower()](path)


@cache
def viewer_script() -> str:
    """The viewer's JavaScript, to be put once at the end of a page."""
    folder = files("mouselift_jax.report") / "static"
    sources = [(folder / name).read_text() for name in ("film.js", "splat_viewer.js")]
    return "".join(sources).replace("</script", "<\\/script")


def viewer_fragment(
    splats: Sequence[str | Path | Gaussians],
    labels: Sequence[str] | None = None,
    *,
    fps: float = 10,
    scene_scale: float | None = None,
    max_gaussians: int = MAX_GAUSSIANS,
) -> str:
    """HTML of one viewer (without the script); several sets become a time slider.

    Args:
        splats: files or Gaussians, one a frame.
        labels: a caption for each frame; default the file name and the number of Gaussians.
        fps: frames a second when played.
        scene_scale: scene units per millimetre, for the length bar; None = as the file says.
        max_gaussians: of a larger set only the most visible are shown, and the label says so.
    """
    if not splats:
        raise LayoutError(
            "nothing to view",
            expected="at least one set of Gaussians",
            found=0,
            fix="pass at least one file",
        )
    packed, texts, centres, spans = [], [], [], []
    for i, item in enumerate(splats):
        gaussians = item if isinstance(item, Gaussians) else load_splats(item)
        rows = splat_rows(gaussians)
        broken = gaussians.n_gaussians - len(rows)
        rows = rows[rows["rgba"][:, 3] >= round(MIN_OPACITY * 255)]
        total, rows = len(rows), rows[:max_gaussians]
        if scene_scale is None and not isinstance(item, Gaussians):
            scene_scale = _scene_scale(Path(item))
        name = "" if isinstance(item, Gaussians) else Path(item).name
        text = (
            labels[i] if labels else " \u00b7 ".join(filter(None, [name, f"{total:,} Gaussians"]))
        )
        text += f" ({broken:,} that hold no numbers left out)" if broken else ""
        texts.append(text + (f" (the {len(rows):,} most visible)" if len(rows) < total else ""))
        packed.append(base64.b64encode(gzip.compress(rows.tobytes(), 6, mtime=0)).decode())
        if len(rows):
            low, high = np.percentile(rows["means"], (2, 98), axis=0)
            centres.append((low + high) / 2)
            spans.append(float(np.linalg.norm(high - low)))
    centre = np.mean(centres, axis=0) if centres else np.zeros(3)
    return _fragment({
        "frames": packed, "labels": texts, "target": [round(float(x), 4) for x in centre],
        "radius": round(max([*spans, 0.1]) * 1.3, 4), "scene_scale": scene_scale,
    }, fps)  # fmt: skip


def film_fragment(
    reel: Reel, errors: Sequence[np.ndarray | None] | None = None, *, fps: float = 10,
    colours: str = "own",
) -> str:  # fmt: skip
    """HTML of one viewer that plays a film with identity: tracks, colours; see `reels.payload`."""
    return _fragment(payload(reel, errors, colours), fps)


def _fragment(data: dict[str, Any], fps: float) -> str:
    data |= {"angles": [round(float(a), 5) for a in np.radians(START_DEG)], "fps": fps}
    text = json.dumps(data).replace("<", "\\u003c")
    return f'<div class="mouselift-splats"><script type="application/json">{text}</script></div>'


def _scene_scale(path: Path) -> float | None:
    text = read_header(path).get("scene_scale", "unknown") if path.suffix == ".ply" else "unknown"
    return None if text == "unknown" else float(text)


def export_html(
    path: str | Path,
    splats: Sequence[str | Path | Gaussians],
    *,
    title: str = "Gaussians",
    labels: Sequence[str] | None = None,
    fps: float = 10,
    scene_scale: float | None = None,
) -> Path:
    """Write a page that shows the Gaussians in any browser, without a server.

    Raises:
        LayoutError: another file is there, which no export wrote.
    """
    check_replaceable(path)
    return _page(path, title, viewer_fragment(splats, labels, fps=fps, scene_scale=scene_scale))


def export_film_html(
    path: str | Path, reel: Reel, errors: Sequence[np.ndarray | None] | None = None, *,
    title: str = "Film", fps: float = 10, colours: str = "own",
) -> Path:  # fmt: skip
    """Write a page that plays a film with identity, with its tracks, without a server.

    Args:
        path: *.html.
        reel: what to play.
        errors: of each frame's Gaussians (`report/colours.py`), None where unknown.
        title: of the page.
        fps: frames a second when played.
        colours: which of `colours.KINDS` it begins with.

    Raises:
        LayoutError: another file is there, which no export wrote.
    """
    check_replaceable(path)
    return _page(path, title, film_fragment(reel, errors, fps=fps, colours=colours))


def _page(path: str | Path, title: str, fragment: str) -> Path:
    import html

    write_text_atomic(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="mouselift_jax">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>'
        f"body {{ font:15px/1.5 system-ui,sans-serif; margin:0; padding:12px; color:#1f2328 }}"
        f"{CSS} .mouselift-splats {{ max-width:none; margin:0 auto }}"
        f".mouselift-splats .stage {{ aspect-ratio:auto; height:82vh; max-height:none }}"
        f"</style></head><body>{fragment}<script>{viewer_script()}</script></body></html>",
    )
    return Path(path)
