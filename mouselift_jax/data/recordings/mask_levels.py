"""Which channel and values of a mask picture are the animal, and what a mask cannot be.

Tools write masks as white on black, as labels (0, 1, 2 ... or 38 of 255), as colours of a palette,
as cut-outs with alpha, in 8 or 16 bits. One look at the first pictures says which; every reader of
the recording then gets 0 .. 255. What is no silhouette of one animal (inverted, all of the picture,
two bodies) is told by numbers that cost next to nothing per frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from mouselift_jax.data.findings import Finding

CHANNELS = ("grey", "brightest", "alpha")
_FULL = 0.78  # of the range: a mask as bright as that is white
_FEW = 8  # distinct levels of a picture of labels
_SOLID = 0.75  # share of a mask's inside that must be near its brightest level
_NOISE = 0.15  # of the brightest level: what lies below is a codec's ringing
_DARK_VIDEO = 16  # of 255: labels that lossy coding does not carry
MOST_OF_PICTURE, MOST_OF_BORDER = 0.45, 0.35  # median shares that no animal covers
_ALL_ROUND = 0.85  # share of the border that an inverted mask covers at least
_SECOND_BODY = 0.3  # of the largest body's area
ONE_ANIMAL = (
    "--config.prepare.animal=largest (--config.prepare.animal=followed stays with the one that was "
    "largest at first): frames in which animals touch are left out"
)
_THIN = 4  # every 4th row and column is enough for shares and bodies


@dataclasses.dataclass(frozen=True)
class MaskLevels:
    """How a source of masks writes the animal.

    Attributes:
        channel: `grey` (all channels alike), `brightest` (of the colour channels) or `alpha`.
        white: level of the animal; 0 where masks use the whole range.
        colours: how many colours or labels other than the background there are.
        problem: why it cannot be read as a mask; empty if it can.
        brightest: the brightest level seen.
    """

    channel: str = "grey"
    white: int = 0
    colours: int = 1
    problem: str = ""
    brightest: int = 255


def full_scale(dtype: np.dtype) -> float:
    """The level that means white for samples of this type."""
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0


def plane(image: np.ndarray, channel: str) -> np.ndarray:
    """The one channel [H,W] of a picture that says where the animal is."""
    if image.ndim == 2:
        return image
    if channel == "alpha" and image.shape[2] == 4:
        return np.ascontiguousarray(image[..., 3])
    if channel == "brightest":
        return image[..., :3].max(axis=2)
    return cv2.extractChannel(image, 0)


def find_levels(images: Sequence[np.ndarray], *, lossless: bool) -> MaskLevels:
    """How masks are written, from some of them.

    Args:
        images: pictures as stored [H,W] or [H,W,3|4], of one type; empty masks among them are fine.
        lossless: pictures or lossless video; otherwise levels are only about what was written.
    """
    full = full_scale(images[0].dtype)
    channel = _channel(images, tolerance=0 if lossless else 12)
    planes = [plane(i, channel) for i in images]
    top = max(float(p.max()) for p in planes)
    if not lossless and top < _DARK_VIDEO * full / 255:
        # Nothing but noise so far, or labels that did not survive: told apart by who asks.
        return MaskLevels(channel, 0, 1, "" if top < 2 else "dark", int(top))
    if top <= 0:
        return MaskLevels(channel, 0, 1, "", 0)
    if full == 1.0:  # floating point
        return MaskLevels(channel, 0, 1, "" if top <= 1.0 else "dark", int(top))
    if lossless:
        values = np.unique(np.concatenate([np.unique(p) for p in planes]))
        labels = [v for v in values if v > 0 and any(_has_inside(p == v) for p in planes)]
        if labels and len(values) <= _FEW:
            n_colours = _colours(images) if channel == "brightest" else len(labels)
            low = int(min(labels))
            return MaskLevels(channel, low if low < _FULL * full else 0, n_colours, "", int(top))
    if min(_solidity(planes, top), _darkness(planes, top)) < _SOLID:
        return MaskLevels(channel, 0, 1, "shades", int(top))
    return MaskLevels(channel, 0 if top >= _FULL * full else int(top), 1, "", int(top))


def _channel(images: Sequence[np.ndarray], tolerance: int) -> str:
    if images[0].ndim == 2:
        return "grey"
    if images[0].shape[2] == 4 and any(i[..., 3].min() < i[..., 3].max() for i in images):
        return "alpha"
    for image in images:
        blue, green, red = cv2.split(image)[:3]
        for one, other in ((blue, green), (green, red), (red, blue)):
            if int(cv2.absdiff(one, other).max()) > tolerance:
                return "brightest"
    return "grey"


def _has_inside(binary: np.ndarray) -> bool:
    """Whether a label has an inside, as bodies have and soft edges have not."""
    return bool(cv2.erode(binary.view(np.uint8), np.ones((3, 3), np.uint8)).any())


def _colours(images: Sequence[np.ndarray]) -> int:
    """Distinct colours but black that have an inside."""
    found: set[int] = set()
    for image in images:
        packed = image[..., :3].astype(np.int64) @ np.array([1, 1 << 16, 1 << 32])
        values = [int(v) for v in np.unique(packed)[: 4 * _FEW] if v]
        found |= {v for v in values if v not in found and _has_inside(packed == v)}
    return len(found)


def _solidity(planes: Sequence[np.ndarray], top: float) -> float:
    """Share of the masks' inside (edges taken off) that is near their brightest level."""
    solid = total = 0
    for p in planes:
        inside = (p > _NOISE * top).astype(np.uint8)
        for kernel in (5, 3):
            worn = cv2.erode(inside, np.ones((kernel, kernel), np.uint8))
            if worn.any():
                break
        level = p[worn > 0]
        solid, total = solid + int((level > 0.7 * top).sum()), total + level.size
    return solid / total if total else 1.0


def _darkness(planes: Sequence[np.ndarray], top: float) -> float:
    """Share that is black of what is not white, in masks with white all round; else 1."""
    dark = total = 0
    for p in planes:
        ring = np.concatenate([p[0], p[-1], p[:, 0], p[:, -1]])
        if (ring > 0.7 * top).mean() > _ALL_ROUND:
            inside = cv2.erode((p < (1 - _NOISE) * top).astype(np.uint8), np.ones((3, 3), np.uint8))
            level = p[inside > 0]
            dark, total = dark + int((level < _NOISE * top).sum()), total + level.size
    return dark / total if total else 1.0


def levels_findings(
    rows: Sequence[tuple[MaskLevels, str, tuple[int, ...], Path]],
) -> list[Finding]:
    """What to tell of the way masks are written, one finding for all cameras written alike.

    Args:
        rows: levels, the camera's name, its number (if any), and the file, of each camera.
    """
    found: dict[tuple[str, str], Finding] = {}
    names: dict[tuple[str, str], list[str]] = {}
    for levels, name, numbers, path in rows:
        told = _told(levels)
        if told is None:
            continue
        code, severity, message, fix, seen = told
        key = (code, message)
        names.setdefault(key, []).append(name)
        evidence = {"expected": "0 for background, white for the animal", "found": seen}
        finding = found.setdefault(
            key, Finding(code, severity, message, (), fix, evidence, where=str(path))
        )
        finding.cameras += numbers
    for key, finding in found.items():
        many = "s" if len(names[key]) > 1 else ""
        finding.message = f"the masks of camera{many} {', '.join(names[key])} {finding.message}"
    return list(found.values())


def _told(levels: MaskLevels) -> tuple[str, str, str, str, str] | None:
    """Code, severity, message, fix and what was found; None where it is the usual way."""
    if levels.problem == "dark":
        return (
            "mask_levels", "error", "are too dark: everything counts as background",
            "save them with 0 for background and full white for the animal (multiply masks of 0 "
            "and 1 by 255), in a lossless format if they are labels",
            f"up to {levels.brightest}",
        )  # fmt: skip
    if levels.problem == "shades":
        return (
            "mask_levels", "error",
            "hold shades, as cut-out pictures or maps of probabilities do: dark parts of the "
            "animal would count as background",
            "save the silhouette itself, white on black, or cut-outs with alpha (PNG)",
            f"shades up to {levels.brightest} inside the animal",
        )  # fmt: skip
    if levels.colours > 1:
        return (
            "several_animals", "warning",
            f"hold {levels.colours} labels or colours; one animal is assumed, and all of them "
            "count as it",
            f"export the label of one animal alone, white on black, or {ONE_ANIMAL}",
            f"{levels.colours} labels or colours",
        )  # fmt: skip
    if levels.channel == "grey" and not levels.white:
        return None
    white = f", {levels.white} taken as white" if levels.white else ""
    how = f"{levels.channel} channel{white}"
    return "mask_levels", "info", f"are not white on black: read from the {how}", "", how


def to_bytes(image: np.ndarray, white: int) -> np.ndarray:
    """Samples of any type as uint8: 0 .. `white` (0: the type's whole range) become 0 .. 255."""
    if image.dtype == np.uint8 and not white:
        return image
    top = float(white) or full_scale(image.dtype)
    if image.dtype == np.uint16 and not white:
        return (image >> 8).astype(np.uint8)
    scaled = image.astype(np.float32) * np.float32(255.0 / top)
    return np.clip(scaled, 0, 255).astype(np.uint8)


# --- what a mask cannot be ------------------------------------------------------------------------


@dataclasses.dataclass
class MaskFacts:
    """Numbers of the masks of one camera, one entry a frame.

    Attributes:
        share: of the picture.
        border: share of the picture's outermost ring.
        hole: share of the picture that the largest part of the background takes.
        second: area of the second largest body as a share of the largest's.
    """

    share: list[float] = dataclasses.field(default_factory=list)
    border: list[float] = dataclasses.field(default_factory=list)
    hole: list[float] = dataclasses.field(default_factory=list)
    second: list[float] = dataclasses.field(default_factory=list)

    def add(self, mask: np.ndarray) -> None:
        """Note one mask [H,W], bool or 0..255; empty ones do not count."""
        inside = mask if mask.dtype == bool else mask > 127
        small = np.ascontiguousarray(inside[::_THIN, ::_THIN]).view(np.uint8)
        share = float(small.mean())
        if share == 0.0:
            return
        ring = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
        self.share.append(share)
        self.border.append(float(ring.mean()))
        areas = _areas(small)
        self.second.append(float(areas[1] / areas[0]) if len(areas) > 1 else 0.0)
        empty = _areas(1 - small) if share > MOST_OF_PICTURE else np.zeros(0)
        self.hole.append(float(empty[0] / small.size) if len(empty) else 0.0)


def _areas(binary: np.ndarray) -> np.ndarray:
    """Areas of the connected parts, largest first."""
    stats = cv2.connectedComponentsWithStats(binary, connectivity=8)[2]
    return np.sort(stats[1:, cv2.CC_STAT_AREA])[::-1]


def judge_masks(facts: Sequence[MaskFacts], numbers: Sequence[int]) -> list[Finding]:
    """What the masks of a recording are, if not silhouettes of one animal.

    Args:
        facts: of each camera.
        numbers: the cameras' numbers.
    """
    inverted, covering, several = [], [], []
    for number, f in zip(numbers, facts, strict=True):
        if not f.share:
            continue
        share, border, hole = (float(np.median(x)) for x in (f.share, f.border, f.hole))
        if share > MOST_OF_PICTURE and border > _ALL_ROUND and 0 < hole < MOST_OF_PICTURE:
            inverted.append((number, share, border))
        elif share > MOST_OF_PICTURE or border > MOST_OF_BORDER:
            covering.append((number, share, border))
        elif np.mean(np.array(f.second) > _SECOND_BODY) > 0.5:
            several.append((number, float(np.median(f.second)), border))
    found = []
    if inverted:
        found.append(_inverted(inverted))
    if covering:
        found.append(_covering(covering))
    if len(several) * 2 > len(facts):  # legs and tails come apart in a view, not in most
        found.append(_several(several))
    return found


def _inverted(rows: list[tuple[int, float, float]]) -> Finding:
    share = float(np.median([r[1] for r in rows]))
    return Finding(
        "mask_inverted", "error",
        f"{_cameras(rows)}: the masks are inverted: the background is white, the animal black "
        f"({share:.0%} of the picture and its whole border are white)",
        tuple(r[0] for r in rows),
        "exchange black and white (ffmpeg -vf negate, or 255 - mask): white is the animal here; "
        "COLMAP and instant-ngp use it the other way round",
        {"expected": "white on the animal, black elsewhere", "found": f"{share:.0%} white",
         "mask_share": {int(r[0]): round(r[1], 3) for r in rows}},
    )  # fmt: skip


def _covering(rows: list[tuple[int, float, float]]) -> Finding:
    worst = max(rows, key=lambda r: r[1] + r[2])
    return Finding(
        "mask_not_animal", "error",
        f"{_cameras(rows)}: the masks are not of an animal: they cover {worst[1]:.0%} of the "
        f"picture and {worst[2]:.0%} of its border",
        tuple(r[0] for r in rows),
        "was the arena, the floor or a wrong label exported, or an alpha that is full everywhere? "
        "export the animal's mask, or let prepare.masks= make one",
        {"expected": f"less than {MOST_OF_PICTURE:.0%} of the picture",
         "found": f"{worst[1]:.0%}, and {worst[2]:.0%} of the border",
         "mask_share": {int(r[0]): round(r[1], 3) for r in rows}},
    )  # fmt: skip


def _several(rows: list[tuple[int, float, float]]) -> Finding:
    return Finding(
        "several_animals", "warning",
        f"{_cameras(rows)}: the masks show two or more separate bodies (the second "
        f"{np.median([r[1] for r in rows]):.0%} of the first); one animal is assumed, and "
        "its centre would lie between them",
        tuple(r[0] for r in rows),
        f"export the masks of one animal alone, or {ONE_ANIMAL}",
        {"expected": "one body", "found": "two or more in most frames"},
    )  # fmt: skip


def _cameras(rows: Sequence[tuple[int, ...]]) -> str:
    numbers = ", ".join(str(r[0]) for r in rows)
    return f"camera {numbers}" if len(rows) == 1 else f"cameras {numbers}"
