"""Placing a head in the picture as the released head weights were trained to see it.

Source: the published inference recipe. The face box's mean side is scaled to `FACE_SIZE` pixels and
its centre moved to `FACE_CENTRE` of a white 512 x 512 picture; sizes and offsets are truncated to
whole pixels, as there.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mouselift_jax.errors import ConfigError, LayoutError, nearest

SIDE = 512
FACE_SIZE = 194.2749650813705
FACE_CENTRE = (251.83270369057132, 280.0133630862363)


def face_square(
    rgba: np.ndarray, box: tuple[float, float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The head on a clear 512 x 512 picture, and the pixel map that took it there.

    Args:
        rgba: photo [H,W,4] uint8, background off.
        box: face as x0, y0, x1, y1 in pixels of the photo.

    Returns:
        Picture [512,512,4] uint8 with colour on white, and M [3,3], old to new pixel coordinates.

    Raises:
        LayoutError: the box is empty or outside the photo.
    """
    x0, y0, x1, y1 = box
    height, width = rgba.shape[:2]
    if not (x1 > x0 and y1 > y0 and x1 > 0 and y1 > 0 and x0 < width and y0 < height):
        raise LayoutError(
            "the face box lies outside the photo",
            where="config.face_box",
            expected=f"x0 < x1 <= {width}, y0 < y1 <= {height}",
            found=list(box),
            fix="x0,y0,x1,y1 in pixels of the photo, from its upper left corner",
        )
    ratio = FACE_SIZE / (((x1 - x0) + (y1 - y0)) / 2)
    size = (int(width * ratio), int(height * ratio))
    alpha = rgba[..., 3:].astype(np.float32) / 255
    white = np.round(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    bicubic = Image.Resampling.BICUBIC
    scaled = Image.fromarray(white).resize(size, bicubic)
    mask = Image.fromarray(np.ascontiguousarray(rgba[..., 3])).resize(size, bicubic)
    centre = (int((x0 + x1) / 2 * ratio), int((y0 + y1) / 2 * ratio))
    offset = [FACE_CENTRE[i] - centre[i] for i in (0, 1)]
    crop = (
        int(max(0, -offset[0])),
        int(max(0, -offset[1])),
        int(min(size[0], SIDE - offset[0])),
        int(min(size[1], SIDE - offset[1])),
    )
    place = (int(max(0, offset[0])), int(max(0, offset[1])))
    picture = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    picture.paste(scaled.crop(crop), place)
    cover = Image.new("L", (SIDE, SIDE), 0)
    cover.paste(mask.crop(crop), place)
    M = np.diag([size[0] / width, size[1] / height, 1.0])
    M[:2, 2] = place[0] - crop[0], place[1] - crop[1]
    return np.dstack([np.asarray(picture), np.asarray(cover)]), M


def face_box(text: str, photo: str) -> tuple[float, float, float, float]:
    """The face box of a photo from "x0,y0,x1,y1", or from a JSON file {photo: [x0,y0,x1,y1]}.

    Raises:
        ConfigError: there is none, or it is no box.
    """
    if not text:
        raise ConfigError(
            "the head recipe needs to know where the face is",
            where="config.face_box",
            expected="x0,y0,x1,y1 in pixels of the photo, or a JSON file {photo: [x0,y0,x1,y1]}",
            fix="--config.face_box=210,140,330,290",
        )
    if text.endswith(".json"):
        if not Path(text).is_file():
            raise ConfigError(
                "no such file",
                where=f"config.face_box={text}",
                fix="four numbers x0,y0,x1,y1, or a JSON file {photo: [x0, y0, x1, y1]}",
            )
        try:
            boxes = dict(json.loads(Path(text).read_text()))
        except (ValueError, TypeError) as error:  # not JSON, not text, not a mapping
            raise ConfigError(
                "not a file of face boxes",
                where=f"config.face_box={text}",
                expected="{photo: [x0, y0, x1, y1], ...}",
                found=str(error),
                fix="write one box a photo, in pixels from its upper left corner",
            ) from error
        name = next((k for k in (photo, Path(photo).stem) if k in boxes), None)
        if name is None:
            raise ConfigError(
                "no face box for this photo", where=text, found=photo, fix=nearest(photo, boxes)
            )
        values = boxes[name]
    else:
        values = text.split(",")
    try:
        x0, y0, x1, y1 = (float(v) for v in values)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "not a face box",
            where="config.face_box",
            expected="four numbers",
            found=values,
            fix="--config.face_box=x0,y0,x1,y1",
        ) from error
    return x0, y0, x1, y1
