"""Pictures that people look at: contact sheets, comparison rows, error and mask maps.

Everything takes images as float in [0,1] or uint8, [H,W], [H,W,1], [H,W,3] or [H,W,4], numpy or
jax, and returns uint8 RGB. Nothing here resamples an image that is evaluated; thumbnails are for
the eye only.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mouselift_jax.errors import ShapeError
from mouselift_jax.files import write_bytes_atomic

# Okabe and Ito's colours: told apart with the common colour-vision deficiencies too.
AGREE, MISSING, EXTRA = (0, 158, 115), (213, 94, 0), (86, 180, 233)
ERROR_TOP = 0.3  # absolute error that gets the brightest colour
_INK, _PAPER, _GAP = (32, 33, 36), (255, 255, 255), 4


def to_uint8(image: Any, background: float | Sequence[float] = 1.0) -> np.ndarray:
    """Any picture as uint8 RGB [H,W,3]; an alpha channel is laid over `background`."""
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise ShapeError(
            "a picture has the wrong shape", expected="[H,W(,1|3|4)]", found=array.shape
        )
    if array.dtype == np.bool_:
        array = array.astype(np.float32)
    if array.dtype == np.uint8:
        if array.shape[-1] == 3:
            return array
        array = array.astype(np.float32) / 255
    array = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    if array.shape[-1] == 1:
        array = np.repeat(array, 3, axis=-1)
    if array.shape[-1] == 4:
        rgb, alpha = array[..., :3], array[..., 3:]
        array = rgb * alpha + np.asarray(background, np.float32) * (1 - alpha)
    return np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)


def png_bytes(image: Any) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def save_png(path: str | Path, image: Any) -> Path:
    """Write a picture, whole or not at all; returns the path."""
    write_bytes_atomic(path, png_bytes(image))
    return Path(path)


def fit(image: Any, width: int, height: int) -> np.ndarray:
    """The picture scaled to fit a box, centred on white. For thumbnails only."""
    rgb = to_uint8(image)
    scale = min(width / rgb.shape[1], height / rgb.shape[0])
    size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
    resample = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    small = Image.fromarray(rgb) if scale == 1 else Image.fromarray(rgb).resize(size, resample)
    page = Image.new("RGB", (width, height), _PAPER)
    page.paste(small, ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.asarray(page)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def captioned(image: Any, text: str, *, size: int = 13) -> np.ndarray:
    """The picture with a line of text above it; text that is too long is cut with an ellipsis."""
    rgb = to_uint8(image)
    font, height = _font(size), size + 7
    page = Image.new("RGB", (rgb.shape[1], rgb.shape[0] + height), _PAPER)
    page.paste(Image.fromarray(rgb), (0, height))
    draw = ImageDraw.Draw(page)
    room = rgb.shape[1] - 6
    if draw.textlength(text, font=font) > room:
        while text and draw.textlength(text + "\u2026", font=font) > room:
            text = text[:-1]
        text += "\u2026"
    draw.text((3, 2), text, fill=_INK, font=font)
    return np.asarray(page)


def grid(rows: Sequence[Sequence[Any]], *, gap: int = _GAP) -> np.ndarray:
    """Equal-sized pictures in rows; short rows are filled with white."""
    rows = [[to_uint8(p) for p in row] for row in rows if len(row)]
    if not rows:
        raise ShapeError("a grid of pictures is empty", expected="at least one picture", found=0)
    sizes = {p.shape for row in rows for p in row}
    if len(sizes) != 1:
        raise ShapeError("pictures of one grid differ in size", expected="one size", found=sizes)
    height, width, _ = sizes.pop()
    n_columns = max(len(row) for row in rows)
    page = np.full(
        (len(rows) * (height + gap) + gap, n_columns * (width + gap) + gap, 3), 255, np.uint8
    )
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            y, x = gap + i * (height + gap), gap + j * (width + gap)
            page[y : y + height, x : x + width] = picture
    return page


def contact_sheet(
    images: Sequence[Any],
    *,
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    size: int | tuple[int, int] | None = None,
    title: str | None = None,
) -> np.ndarray:
    """Many pictures on one page.

    Args:
        images: pictures, sizes may differ.
        labels: one caption each.
        columns: pictures in a row; default about 3:2 wide.
        size: side, or (width, height), of each cell; default the largest picture's, at most 512.
        title: a line above the sheet.
    """
    images = [to_uint8(image) for image in images]
    if not images:
        raise ShapeError("a contact sheet has no pictures", expected="at least one", found=0)
    if labels is not None and len(labels) != len(images):
        raise ShapeError("labels and pictures differ", expected=len(images), found=len(labels))
    if size is None:
        width = min(512, max(p.shape[1] for p in images))
        height = min(512, max(p.shape[0] for p in images))
    else:
        width, height = (size, size) if isinstance(size, int) else size
    cells = [fit(p, width, height) for p in images]
    if labels is not None:
        cells = [captioned(c, str(t)) for c, t in zip(cells, labels, strict=True)]
    columns = columns or max(1, int(np.ceil(np.sqrt(1.5 * len(cells)))))
    sheet = grid([cells[i : i + columns] for i in range(0, len(cells), columns)])
    return captioned(sheet, title, size=16) if title else sheet


def error_map(truth: Any, render: Any, *, top: float = ERROR_TOP) -> np.ndarray:
    """Mean absolute error over the channels as a heat map: black 0, bright yellow >= `top`."""
    import matplotlib

    a, b = to_uint8(truth).astype(np.float32), to_uint8(render).astype(np.float32)
    if a.shape != b.shape:
        raise ShapeError("truth and render differ in shape", expected=a.shape, found=b.shape)
    error = np.abs(a - b).mean(-1) / 255
    coloured = matplotlib.colormaps["inferno"](np.clip(error / top, 0, 1))
    return to_uint8(coloured[..., :3])


def mask_agreement(mask_truth: Any, mask_render: Any, *, threshold: float = 0.5) -> np.ndarray:
    """Green where both are foreground, orange where the render misses it, blue where it adds."""
    a, b = _mask(mask_truth) > threshold, _mask(mask_render) > threshold
    if a.shape != b.shape:
        raise ShapeError("the two masks differ in shape", expected=a.shape, found=b.shape)
    picture = np.full((*a.shape, 3), 255, np.uint8)
    picture[a & b], picture[a & ~b], picture[~a & b] = AGREE, MISSING, EXTRA
    return picture


def _mask(mask: Any) -> np.ndarray:
    array = np.asarray(mask)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2:
        raise ShapeError("a mask has the wrong shape", expected="[H,W(,1)]", found=array.shape)
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 255
    return array.astype(np.float32)


def masked(image: Any, mask: Any, background: float = 1.0) -> np.ndarray:
    """The picture where the mask is 1, `background` where it is 0."""
    rgb = to_uint8(image).astype(np.float32) / 255
    weight = _mask(mask)[..., None]
    return to_uint8(rgb * weight + background * (1 - weight))


def comparison_rows(
    truth: Any,
    render: Any,
    mask_truth: Any = None,
    mask_render: Any = None,
    *,
    labels: Sequence[str] | None = None,
    size: int = 256,
    name: str = "truth",
) -> np.ndarray:
    """One column a view, one row a question: truth, render, both masked, error, mask agreement.

    Args:
        truth: [V,H,W,3].
        render: [V,H,W,3].
        mask_truth: [V,H,W(,1)]; without it the masked rows are left out.
        mask_render: rendered opacity [V,H,W(,1)]; without it there is no agreement row.
        labels: caption of each view, such as "camera 3, 27.1 dB".
        size: side of a cell.
        name: what to call the first row.
    """
    truth, render = np.asarray(truth), np.asarray(render)
    if truth.shape != render.shape or truth.ndim != 4:
        raise ShapeError(
            "truth and render must be the same views",
            expected=f"[V,H,W,3], here {truth.shape}",
            found=render.shape,
        )
    views = range(len(truth))
    rows: list[tuple[str, list[np.ndarray]]] = [
        (name, [to_uint8(truth[v]) for v in views]),
        ("render", [to_uint8(render[v]) for v in views]),
    ]
    if mask_truth is not None:
        pair = ((f"{name}, animal only", truth), ("render, same mask", render))
        rows += [(title, [masked(x[v], mask_truth[v]) for v in views]) for title, x in pair]
    title = f"absolute error (black 0, yellow {ERROR_TOP:g})"
    rows.append((title, [error_map(truth[v], render[v]) for v in views]))
    if mask_truth is not None and mask_render is not None:
        title = "masks: green both, orange missing, blue extra"
        rows.append((title, [mask_agreement(mask_truth[v], mask_render[v]) for v in views]))
    bands = []
    for i, (title, cells) in enumerate(rows):
        cells = [fit(c, size, size) for c in cells]
        if i == 0 and labels is not None:
            cells = [captioned(c, t) for c, t in zip(cells, labels, strict=True)]
        bands.append(captioned(grid([cells]), title))
    return np.concatenate(bands)
