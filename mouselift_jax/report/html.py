"""One self-contained report.html for a run.

The page is made from what the run left in its folder (config.json, summary.json, metrics.jsonl)
plus sections that the stage hands over. Those sections are kept in `DIR/report/` (pictures as
files, the rest in sections.json), so that `python -m mouselift_jax report DIR` can draw the page
again later without the stage.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mouselift_jax.errors import LayoutError
from mouselift_jax.files import (
    check_replaceable,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)
from mouselift_jax.report.curves import curves_svg, read_metrics
from mouselift_jax.report.glossary import explained
from mouselift_jax.report.pictures import Sheet, png_bytes, sheet_of
from mouselift_jax.runs.record import read_json, read_summary

MAX_VIDEO_BYTES = 12 << 20  # larger videos are linked, not embedded
PICTURE_BYTES = 600_000  # larger PNGs are embedded as JPEG; the file in DIR/report stays PNG


@dataclass
class Text:
    """A paragraph. Plain text; it is escaped."""

    text: str


@dataclass
class Picture:
    """A picture (array) or the path of a .png/.jpg, relative to the run's folder."""

    image: Any
    caption: str = ""


@dataclass
class Video:
    """The path of an .mp4, relative to the run's folder."""

    path: str
    caption: str = ""


@dataclass
class Table:
    """Rows of values under headers; numbers are rounded for reading."""

    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass
class Splats:
    """The path of a .ply, relative to the run's folder, shown in the built-in viewer."""

    path: str
    caption: str = ""


@dataclass
class Finding:
    """A warning that teaches: what was seen, why it probably is so, what to do about it."""

    what: str
    cause: str = ""
    remedy: str = ""
    severity: str = "warning"  # error | warning | info


@dataclass
class Section:
    """A headed part of the report."""

    title: str
    blocks: Sequence[Any] = field(default_factory=list)


BLOCKS = {c.__name__: c for c in (Text, Picture, Video, Table, Splats, Finding)}


def write_report(
    workdir: str | Path,
    *,
    title: str | None = None,
    intro: str = "",
    sections: Sequence[Section] | None = None,
    name: str = "report.html",
) -> Path:
    """Write DIR/report.html, one file that needs no other and no network.

    Args:
        workdir: the run's folder.
        title: heading; default "<stage> - <folder name>".
        intro: a sentence or two under the heading: what was done, what came out.
        sections: parts made by the stage; None = those of the last time, from DIR/report/.
        name: file name of the page.

    Returns:
        Path of the page.

    Raises:
        LayoutError: the folder does not exist or a named artefact is missing.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise LayoutError("no such run", where=workdir, fix="give the --workdir of a run")
    given = sections is not None  # a stage hands over its sections when its work is done
    if sections is None:
        kept = load_sections(workdir)
        title, intro, sections = title or kept["title"], intro or kept["intro"], kept["sections"]
    else:
        sections = save_sections(workdir, title or "", intro, sections)
    config, summary = read_json(workdir / "config.json") or {}, read_summary(workdir)
    stage = summary.get("stage") or config.get("stage") or "run"
    metrics = read_metrics(workdir / "metrics.jsonl")
    html = _template().render(
        title=title or f"{stage} \u2013 {workdir.resolve().name}",
        intro=intro,
        stage=stage,
        finished=True if given else summary.get("finished"),
        steps=summary.get("steps"),
        wall=_duration(summary.get("wall_s")),
        verdict=summary.get("verdict"),
        findings=[_finding(w) for w in summary.get("warnings", [])],
        metrics=headline(summary.get("metrics", {})),
        figures=[(k, number(v)) for k, v in summary.get("metrics", {}).items()],
        curves=curves_svg(metrics),
        sections=[
            {"title": s.title, "blocks": [_block(workdir, b) for b in s.blocks]} for s in sections
        ],
        artefacts=[(k, str(v)) for k, v in summary.get("artefacts", {}).items()],
        inputs=_flat(summary.get("inputs", {})),
        timings=[(k, _duration(v)) for k, v in summary.get("timings", {}).items()],
        versions=_flat(summary.get("versions", {})),
        config=_flat(config),
        viewer=_viewer(sections),
        words=explained(_words(sections, summary)),
    )
    path = workdir / name
    check_replaceable(path)
    write_text_atomic(path, html)
    return path


def headline(metrics: Mapping[str, Any], most: int = 8) -> list[tuple[str, str]]:
    """The figures for the top of the page; ends of intervals and what is beyond `most` are below.

    Figures on held-out views come first.
    """
    names = [k for k in metrics if not k.endswith(("_low", "_high"))]
    names.sort(key=lambda k: not k.startswith(("heldout/", "val/")))
    return [(k, number(metrics[k])) for k in names[:most]]


def _words(sections: Sequence[Section], summary: Mapping[str, Any]) -> str:
    """All that a page says, for the glossary; not the stored configuration."""
    said = [str(summary.get("verdict") or ""), *summary.get("metrics", {})]
    for section in sections:
        said.append(section.title)
        said += [str(v) for b in section.blocks for v in asdict(b).values() if v is not None]
    return "\n".join(said)


def _viewer(sections: Sequence[Section]) -> dict[str, str] | None:
    """Style and script of the splat viewer, when a block needs them."""
    if not any(isinstance(b, Splats) for s in sections for b in s.blocks):
        return None
    from mouselift_jax.report import viewer

    return {"css": viewer.CSS, "script": viewer.viewer_script()}


def save_sections(
    workdir: Path, title: str, intro: str, sections: Sequence[Section]
) -> list[Section]:
    """Keep the sections in DIR/report/; pictures given as arrays become files there."""
    kept, n = [], 0
    for section in sections:
        blocks = []
        for block in section.blocks:
            if isinstance(block, str):
                block = Text(block)
            if isinstance(block, Picture) and not isinstance(block.image, (str, Path)):
                n += 1
                words = re.sub(r"[^a-z0-9]+", "_", section.title.lower()).strip("_")
                file = f"report/{n:02d}_{words[:40]}.png"
                write_bytes_atomic(workdir / file, png_bytes(block.image))
                block = Picture(file, block.caption)
            elif isinstance(block, Picture):
                block = Picture(_relative(workdir, block.image), block.caption)
            elif isinstance(block, (Video, Splats)):
                block = type(block)(_relative(workdir, block.path), block.caption)
            blocks.append(block)
        kept.append(Section(section.title, blocks))
    dump = [
        {
            "title": s.title,
            "blocks": [{"kind": type(b).__name__, **_plain(asdict(b))} for b in s.blocks],
        }
        for s in kept
    ]
    write_json_atomic(
        workdir / "report" / "sections.json", {"title": title, "intro": intro, "sections": dump}
    )
    return kept


def load_sections(workdir: Path) -> dict[str, Any]:
    """The title, intro and sections of the last report of this folder; empty when there is none."""
    saved = read_json(workdir / "report" / "sections.json") or {}
    sections = []
    try:
        for part in saved.get("sections", []):
            blocks = []
            for block in part["blocks"]:
                block = dict(block)
                blocks.append(BLOCKS[block.pop("kind")](**block))
            sections.append(Section(part["title"], blocks))
    except (KeyError, TypeError, ValueError) as error:
        raise LayoutError(
            "the sections of this report are damaged, or of another version",
            where=workdir / "report" / "sections.json",
            found=repr(error),
            fix="repeat the stage's command, or delete that file for a page without them",
        ) from error
    return {
        "title": saved.get("title") or None,
        "intro": saved.get("intro", ""),
        "sections": sections,
    }


def _relative(workdir: Path, path: str | Path) -> str:
    path = Path(path)
    full = path if path.is_absolute() else workdir / path
    if not full.exists() and path.exists():
        full = path
    try:
        return full.resolve().relative_to(workdir.resolve()).as_posix()
    except ValueError:
        raise LayoutError(
            "a report shows only files of its own run",
            where=path,
            expected=f"inside {workdir}",
            fix="copy the file into the run first",
        ) from None


def _block(workdir: Path, block: Any) -> dict[str, Any]:
    """What the template needs to draw one block."""
    kind = type(block).__name__
    if isinstance(block, Picture):
        path = _inside(workdir, block.image)
        sheet = sheet_of(path)
        if sheet is not None:
            return {"kind": "Sheet", "caption": block.caption, **_tiles(sheet)}
        return {"kind": kind, "src": _picture_uri(path.read_bytes()), "caption": block.caption}
    if isinstance(block, Video):
        path = _inside(workdir, block.path)
        big = path.stat().st_size > MAX_VIDEO_BYTES
        src = block.path if big else "data:video/mp4;base64," + _b64(path.read_bytes())
        return {"kind": kind, "src": src, "caption": block.caption, "linked": big}
    if isinstance(block, Table):
        rows = [[number(v) for v in row] for row in block.rows]
        return {"kind": kind, "headers": block.headers, "rows": rows, "caption": block.caption}
    if isinstance(block, Splats):
        from mouselift_jax.report.viewer import viewer_fragment

        path = _inside(workdir, block.path)
        return {"kind": kind, "html": viewer_fragment([path]), "caption": block.caption}
    if isinstance(block, (Finding, Text)):
        return {"kind": kind, **asdict(block)}
    raise TypeError(f"not a report block: {kind}")


def _inside(workdir: Path, relative: str) -> Path:
    """The file of a saved section; sections.json is read from disk, so it may not leave DIR."""
    path = (workdir / relative).resolve()
    if not path.is_relative_to(workdir.resolve()):
        raise LayoutError(
            "a report may only show files of its own run",
            where=relative,
            fix="copy the file into the run first",
        )
    if not path.is_file():
        raise LayoutError(
            "the report names a file that is not there",
            where=path,
            fix="repeat the stage's command; it writes the missing artefacts again",
        )
    return path


def _tiles(sheet: Sheet) -> dict[str, Any]:
    """The columns of a sheet, each a picture of its own, so that they wrap on a narrow screen."""
    columns = [png_bytes(c) for c in sheet.columns()]
    most = PICTURE_BYTES // len(columns)
    tiles = zip([_picture_uri(c, most) for c in columns], sheet.labels, strict=True)
    return {"tiles": list(tiles), "rows": [r for r in sheet.rows if r]}


def _picture_uri(png: bytes, most: int = PICTURE_BYTES) -> str:
    """A picture file's bytes as a data URI; a large PNG becomes a JPEG."""
    kind = "jpeg" if png[:2] == b"\xff\xd8" else "png"
    if kind == "png" and len(png) > most:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").save(buffer, "jpeg", quality=90)
        kind, png = "jpeg", buffer.getvalue()
    return f"data:image/{kind};base64," + _b64(png)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _finding(warning: Any) -> Finding:
    if isinstance(warning, Mapping):
        known = {k: str(v) for k, v in warning.items() if k in Finding.__dataclass_fields__}
        return Finding(**{"what": json.dumps(dict(warning)), **known})
    return Finding(str(warning))


def number(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        if not np.isfinite(value):
            return str(float(value))
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}" if abs(value) >= 10_000 else str(int(value))
    return "" if value is None else str(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m:02d} min" if hours else f"{m} min {s:02d} s"


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as dotted keys."""
    if not isinstance(tree, Mapping):
        return [(prefix or "value", json.dumps(tree))]
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            rows += _flat(value, name)
        else:
            rows.append((name, value if isinstance(value, str) else json.dumps(value)))
    return rows


def _plain(value: Any) -> Any:
    """The value with numpy scalars and arrays as JSON types."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    return value


def _template() -> Any:
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.PackageLoader("mouselift_jax.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return env.get_template("report.html.j2")
