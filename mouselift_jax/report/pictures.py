"""Pictures that people look at: contact sheets, comparison rows, error and mask maps.

Everything takes images as float in [0,1] or uint8, [H,W], [H,W,1], [H,W,3] or [H,W,4], numpy or
jax, and returns uint8 RGB. Nothing here resamples an image that is evaluated; thumbnails are for
the eye only.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

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


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Pictures in columns on one page, which knows where they are: a narrow screen wraps them.

    Attributes:
        pixels: [H,W,3] uint8, as a file viewer shows it; arrays are made of it.
        labels: one a column.
        rows: what the pictures of a column are, from the top.
        boxes: x, y, width, height of each column's pictures.
    """

    pixels: np.ndarray
    labels: Sequence[str]
    rows: Sequence[str]
    boxes: Sequence[Sequence[tuple[int, int, int, int]]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.pixels, dtype, copy=copy is not False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the pixels."""
        return self.pixels.shape

    def columns(self) -> list[np.ndarray]:
        """Each column's pictures, one above the other."""
        return [
            np.concatenate([self.pixels[y : y + h, x : x + w] for x, y, w, h in column])
            for column in self.boxes
        ]


SHEET_KEY = "mouselift_jax sheet"  # of the PNG's text chunk that holds what is not pixels


def png_bytes(image: Any) -> bytes:
    """The picture as PNG, with our name in it; that of a `Sheet` carries its layout along."""
    about, buffer = PngInfo(), io.BytesIO()
    about.add_text("Software", "mouselift_jax")
    if isinstance(image, Sheet):
        layout = {"labels": image.labels, "rows": image.rows, "boxes": image.boxes}
        about.add_text(SHEET_KEY, json.dumps(layout))
    Image.fromarray(to_uint8(image)).save(buffer, "png", optimize=True, pnginfo=about)
    return buffer.getvalue()


def sheet_of(path: str | Path) -> Sheet | None:
    """The sheet in a file, None when the file holds a plain picture."""
    with Image.open(path) as image:
        layout = getattr(image, "text", {}).get(SHEET_KEY)
        return Sheet(np.asarray(image.convert("RGB")), **json.loads(layout)) if layout else None


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
    ImageDraw.Draw(page).text((3, 2), _fitted(text, font, rgb.shape[1] - 6), fill=_INK, font=font)
    return np.asarray(page)


def _fitted(text: str, font: Any, room: float) -> str:
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(text + "\u2026", font=font) > room:
        text = text[:-1]
    return text + "\u2026"


FILM_WIDTH = 320  # least, of a film's picture: below it no label could be read
FILM_LETTERS = 26  # of a label in the width: readable where a film is shown as small as a thumb


def film_frame(image: Any, lines: Sequence[str]) -> np.ndarray:
    """A film's picture under lines of text, whose letters grow with the picture.

    A small picture is enlarged without smoothing; the size depends on the picture's and on the
    number of lines alone, so that all frames of a film agree.
    """
    rgb = to_uint8(image)
    times = -(-FILM_WIDTH // rgb.shape[1])
    rgb = rgb.repeat(times, 0).repeat(times, 1)
    size = max(16, round(rgb.shape[1] / FILM_LETTERS * 1.7))
    font, step = _font(size), round(1.3 * size)
    page = Image.new("RGB", (rgb.shape[1], rgb.shape[0] + step * len(lines) + 4), _PAPER)
    page.paste(Image.fromarray(rgb), (0, step * len(lines) + 4))
    draw = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        text = _fitted(line, font, rgb.shape[1] - 6)
        draw.text((3, 2 + i * step), text, fill=_INK, font=font)
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
) -> Sheet:
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
    page = grid([cells[i : i + columns] for i in range(0, len(cells), columns)])
    high, wide = cells[0].shape[:2]
    top = page.shape[0]
    page = captioned(page, title, size=16) if title else page
    top = page.shape[0] - top + _GAP + high - height  # of the first picture, below its label
    boxes = [
        [(_GAP + i % columns * (wide + _GAP), top + i // columns * (high + _GAP), width, height)]
        for i in range(len(cells))
    ]
    return Sheet(page, [str(t) for t in labels or [""] * len(cells)], [""], boxes)


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


def around_the_animal(masks: np.ndarray, margin: float = 0.06) -> tuple[np.ndarray, int]:
    """Square windows of one size round what each mask holds.

    Args:
        masks: [V,H,W], subject above 0.5.
        margin: on each side, as a share of the animal.

    Returns:
        Left and top of each window [V,2], which may lie outside the picture, and the side. Without
        an animal, or where it fills the picture, the windows are the pictures' middles, whole.
    """
    height, width = masks.shape[1:]
    middle, size = np.full((len(masks), 2), (width / 2, height / 2)), 0.0
    for v, mask in enumerate(masks > 0.5):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            low, high = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]]) + 1
            middle[v], size = (low + high) / 2, max(size, *(high - low))
    side = int(np.ceil(size * (1 + 2 * margin)))
    if not 0 < side < 0.9 * max(height, width):
        side = max(height, width)
        middle[:] = width / 2, height / 2
    return np.round(middle - side / 2).astype(int), side


def cut(image: Any, corner: np.ndarray, side: int, beyond: float = 1.0) -> np.ndarray:
    """A square window of a picture, `beyond` outside its border; the type stays."""
    array = np.asarray(image)
    fill = round(255 * beyond) if array.dtype == np.uint8 else beyond
    out = np.full((side, side, *array.shape[2:]), fill, array.dtype)
    x, y = (int(c) for c in corner)
    part = array[max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)]
    out[max(-y, 0) :, max(-x, 0) :][: part.shape[0], : part.shape[1]] = part
    return out


def close_up(images: Sequence[np.ndarray]) -> tuple[list[np.ndarray], str]:
    """Pictures with alpha [H,W,4] of one size cut to what they show, at one zoom, and that zoom."""
    corners, side = around_the_animal(np.stack([_mask(im[..., 3]) for im in images]))
    whole = max(images[0].shape[:2])
    if side == whole:
        return list(images), f"{whole} px, whole"
    tiles = [cut(im, c, side, 0.0) for im, c in zip(images, corners, strict=True)]
    return tiles, f"{side} of {whole} px"


def strip(
    rows: Sequence[tuple[str, Sequence[Any]]], *, labels: Sequence[str] | None, size: int
) -> Sheet:
    """One column a view, one row a question.

    Args:
        rows: title and the views' pictures, each.
        labels: a caption of each view.
        size: side of a cell.
    """
    bands, tops, below = [], [], 0
    for i, (title, pictures) in enumerate(rows):
        cells = [fit(c, size, size) for c in pictures]
        if i == 0 and labels is not None:
            cells = [captioned(c, t) for c, t in zip(cells, labels, strict=True)]
        bands.append(captioned(grid([cells]), title))
        below += bands[-1].shape[0]
        tops.append(below - _GAP - size)
    n = len(rows[0][1])
    boxes = [[(_GAP + v * (size + _GAP), top, size, size) for top in tops] for v in range(n)]
    return Sheet(
        np.concatenate(bands), list(labels or [""] * n), [title for title, _ in rows], boxes
    )


def comparison_rows(
    truth: Any,
    render: Any,
    mask_truth: Any = None,
    mask_render: Any = None,
    *,
    labels: Sequence[str] | None = None,
    size: int = 256,
    name: str = "truth",
) -> Sheet:
    """One column a view, one row a question: truth, render, both masked, error, mask agreement.

    With masks, all tiles are cut to the animal, at one zoom.

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
    about = name
    if mask_truth is not None:
        mask_truth = np.stack([_mask(m) for m in np.asarray(mask_truth)])
        shown = mask_truth
        if mask_render is not None:
            mask_render = np.stack([_mask(m) for m in np.asarray(mask_render)])
            shown = np.maximum(mask_truth, mask_render)
        corners, side = around_the_animal(shown)
        if side < max(truth.shape[1:3]):
            about += f" ({side} of {truth.shape[2]} px)"
        truth, render = (_cut_all(x, corners, side) for x in (truth, render))
        mask_truth = _cut_all(mask_truth, corners, side, 0.0)
        mask_render = None if mask_render is None else _cut_all(mask_render, corners, side, 0.0)
    views = range(len(truth))
    rows: list[tuple[str, list[Any]]] = [(about, list(truth)), ("render", list(render))]
    if mask_truth is not None:
        pair = ((f"{name}, animal only", truth), ("render, same mask", render))
        rows += [(title, [masked(x[v], mask_truth[v]) for v in views]) for title, x in pair]
    title = f"absolute error (black 0, yellow {ERROR_TOP:g})"
    rows.append((title, [error_map(truth[v], render[v]) for v in views]))
    if mask_truth is not None and mask_render is not None:
        title = "masks: green both, orange missing, blue extra"
        rows.append((title, [mask_agreement(mask_truth[v], mask_render[v]) for v in views]))
    return strip(rows, labels=labels, size=size)


def _cut_all(
    pictures: np.ndarray, corners: np.ndarray, side: int, beyond: float = 1.0
) -> np.ndarray:
    return np.stack([cut(p, c, side, beyond) for p, c in zip(pictures, corners, strict=True)])
