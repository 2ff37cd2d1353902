"""Where the animal is: masks from files, alpha, a threshold, a background model or rembg.

Every source gives alpha [H,W] uint8 at the picture's resolution. Mask *videos* are lossy: a hard
edge comes back as ringing around both its levels. Cutting at the threshold would make edges
jagged, taking the grey values as they are would make the ringing visible; so grey values within
`SOFTNESS` of the threshold become a ramp and everything else becomes 0 or 255. Resampling then
averages that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from mouselift_jax.data.recording import Frames, Recording
from mouselift_jax.errors import ConfigError, LayoutError, MissingExtraError, nearest

SOURCES = ("auto", "files", "alpha", "threshold", "background_model", "rembg")
THRESHOLD = 127
SOFTNESS = 48
BACKGROUND_FRAMES = 25


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """How masks are made; a ConfigError where `animal_is` is no such word.

    Attributes:
        source: auto (what the recording has) | files | alpha | threshold | background_model |
            rembg.
        threshold: `threshold`: grey level that parts animal and background.
        animal_is: `threshold`: dark | bright, compared with the background.
        difference: `background_model`: levels a channel must differ from the empty scene.
        clean: keep only the animal's own blob(s) and fill its holes.
        min_blob: `clean`: blobs smaller than this share of the largest are removed.
    """

    source: str = "auto"
    threshold: int = 80
    animal_is: str = "dark"
    difference: int = 30
    clean: bool = False
    min_blob: float = 0.2

    def __post_init__(self) -> None:
        if self.animal_is not in ("dark", "bright"):
            raise ConfigError(
                "an animal is dark or bright",
                where="config.prepare.mask_animal",
                found=self.animal_is,
                fix=nearest(self.animal_is, ("dark", "bright")),
            )


MaskMaker = Callable[[int, np.ndarray, np.ndarray | None], np.ndarray]


def make_masker(recording: Recording, settings: MaskSettings, frames: Sequence[int]) -> MaskMaker:
    """A function (camera index, BGR(A) picture, stored mask or None) -> alpha [H,W] uint8.

    Args:
        recording: whose masks.
        settings: how.
        frames: the frames that will be asked for (a background model samples among them).

    Raises:
        ConfigError, LayoutError: the recording does not hold what the source needs.
        MissingExtraError: rembg is not installed.
    """
    source = resolve_source(recording, settings.source)
    if source == "files":

        def make(view: int, picture: np.ndarray, stored: np.ndarray | None) -> np.ndarray:
            return soft_threshold(stored)
    elif source == "alpha":

        def make(view: int, picture: np.ndarray, stored: np.ndarray | None) -> np.ndarray:
            return cv2.extractChannel(picture, 3)
    elif source == "threshold":
        make = _threshold_masker(settings)
    elif source == "background_model":
        make = _background_masker(recording.videos, settings, frames)
    else:
        make = _rembg_masker()
    if not settings.clean:
        return make
    return lambda view, picture, stored: clean_mask(make(view, picture, stored), settings.min_blob)


def resolve_source(recording: Recording, source: str) -> str:
    """What `auto` means for a recording; the source itself otherwise, checked against it."""
    if source not in SOURCES:
        raise ConfigError(
            "no such source of masks",
            where="config.prepare.masks",
            found=source,
            fix=nearest(source, SOURCES),
        )
    has_files, has_alpha = recording.masks is not None, all(v.has_alpha for v in recording.videos)
    if source == "auto":
        if not has_files and not has_alpha:
            raise LayoutError(
                "the recording has no masks",
                where=recording.path,
                expected="simpleclick_undist/<camera>.mp4, or pictures with alpha",
                fix="--config.prepare.masks=background_model (static cameras), threshold or rembg",
            )
        return "files" if has_files else "alpha"
    if (source == "files" and not has_files) or (source == "alpha" and not has_alpha):
        raise LayoutError(
            f"masks={source}, but the recording has none",
            where=recording.path,
            fix="--config.prepare.masks=auto, background_model, threshold or rembg",
        )
    return source


def ramp_table(threshold: int = THRESHOLD, softness: int = SOFTNESS) -> np.ndarray:
    """Lookup table [256] uint8: 0 below threshold - softness, 255 above threshold + softness."""
    levels = np.arange(256, dtype=np.float64)
    ramp = (levels - (threshold - softness)) / (2 * softness)
    return (np.clip(ramp, 0, 1) * 255 + 0.5).astype(np.uint8)


def soft_threshold(
    grey: np.ndarray, threshold: int = THRESHOLD, softness: int = SOFTNESS
) -> np.ndarray:
    """`ramp_table` applied to a picture [H,W] uint8 (saturating, faster than a lookup)."""
    return stretch(grey, threshold - softness, threshold + softness)


def stretch(grey: np.ndarray, black: int, white: int) -> np.ndarray:
    """Levels black .. white of a picture [H,W] uint8 as 0 .. 255; what lies beyond saturates."""
    out = cv2.subtract(grey, black)
    rows = np.flatnonzero(out.max(axis=1))  # most of a mask is empty: nothing to multiply there
    if len(rows):
        filled = out[rows[0] : rows[-1] + 1]
        cv2.convertScaleAbs(filled, dst=filled, alpha=255.0 / (white - black))
    return out


def clean_mask(alpha: np.ndarray, min_blob: float = 0.2) -> np.ndarray:
    """Remove blobs smaller than `min_blob` of the largest, and fill holes."""
    x0, y0, x1, y1 = mask_box(alpha)
    if (x1 - x0, y1 - y0) != alpha.shape[::-1] and x1 > x0:
        out = np.zeros_like(alpha)  # the rest is empty: work on the animal's box
        out[y0:y1, x0:x1] = clean_mask(np.ascontiguousarray(alpha[y0:y1, x0:x1]), min_blob)
        return out
    inside = (alpha > THRESHOLD).astype(np.uint8)
    n, labels, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    if n <= 1:
        return alpha
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.float64)
    keep = areas >= min_blob * areas[1:].max()
    keep[0] = False
    kept = keep[labels].astype(np.uint8)
    # One pixel more, so that the soft edge of the kept blobs stays.
    near = cv2.dilate(kept, np.ones((3, 3), np.uint8))
    contours, _ = cv2.findContours(kept, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(kept), contours, -1, 1, cv2.FILLED)
    out = np.where(near > 0, alpha, 0).astype(np.uint8)
    out[(filled > 0) & (kept == 0)] = 255
    return out


def mask_box(alpha: np.ndarray) -> tuple[int, int, int, int]:
    """Box x0, y0, x1, y1 (end exclusive) of alpha > 0; all 0 where there is none."""
    rows = np.flatnonzero(alpha.max(axis=1))  # twice as fast as cv2.boundingRect
    if not len(rows):
        return (0, 0, 0, 0)
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(alpha[y0:y1].max(axis=0))
    return (int(columns[0]), y0, int(columns[-1]) + 1, y1)


def mask_centroid(alpha: np.ndarray, box: tuple[int, int, int, int]) -> tuple[np.ndarray, float]:
    """Centroid [2] (x, y; pixel centres at +0.5) and area in pixels of a mask."""
    x0, y0, x1, y1 = box
    m = cv2.moments(np.ascontiguousarray(alpha[y0:y1, x0:x1])) if x1 > x0 else {"m00": 0.0}
    if m["m00"] <= 0:
        return np.full(2, np.nan), 0.0
    xy = np.array([m["m10"] / m["m00"] + x0 + 0.5, m["m01"] / m["m00"] + y0 + 0.5])
    return xy, m["m00"] / 255.0


def sharpness(picture: np.ndarray, alpha: np.ndarray, box: tuple[int, int, int, int]) -> float:
    """Variance of the Laplacian on the animal."""
    x0, y0, x1, y1 = box
    grey = cv2.cvtColor(picture[y0:y1, x0:x1, :3], cv2.COLOR_BGR2GRAY)
    inside = cv2.erode(alpha[y0:y1, x0:x1], np.ones((5, 5), np.uint8)) > 127
    if not inside.any():
        return 0.0
    return float(cv2.Laplacian(grey, cv2.CV_32F)[inside].var())


def _threshold_masker(settings: MaskSettings) -> MaskMaker:
    table = ramp_table(settings.threshold, min(SOFTNESS, 12))
    table = 255 - table if settings.animal_is == "dark" else table

    def make(view: int, picture: np.ndarray, stored: np.ndarray | None) -> np.ndarray:
        return cv2.LUT(cv2.cvtColor(picture[..., :3], cv2.COLOR_BGR2GRAY), table)

    return make


def _background_masker(
    videos: Sequence[Frames], settings: MaskSettings, frames: Sequence[int]
) -> MaskMaker:
    """Difference from the median picture; one extra pass over each video, with bounded memory."""
    from mouselift_jax.data.video import FrameStream

    chosen = np.asarray(frames)[np.linspace(0, len(frames) - 1, BACKGROUND_FRAMES).astype(int)]
    scenes = []
    for video in videos:
        stream = FrameStream(video)
        pictures = [stream.read_at(int(f))[..., :3] for f in sorted(set(chosen.tolist()))]
        stream.close()
        scenes.append(np.median(np.stack(pictures), axis=0).astype(np.uint8))
    table = ramp_table(settings.difference, min(SOFTNESS, settings.difference // 3))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))

    def make(view: int, picture: np.ndarray, stored: np.ndarray | None) -> np.ndarray:
        apart = cv2.absdiff(picture[..., :3], scenes[view]).max(axis=2)
        alpha = cv2.LUT(cv2.GaussianBlur(apart, (0, 0), 0.7), table)
        alpha = cv2.morphologyEx(alpha, cv2.MORPH_OPEN, kernel)
        return clean_mask(cv2.morphologyEx(alpha, cv2.MORPH_CLOSE, kernel), settings.min_blob)

    return make


def _rembg_masker() -> MaskMaker:
    try:
        import rembg
    except ImportError:
        raise MissingExtraError("rembg", "matte", "masks=rembg") from None
    session = rembg.new_session()

    def make(view: int, picture: np.ndarray, stored: np.ndarray | None) -> np.ndarray:
        rgb = cv2.cvtColor(picture[..., :3], cv2.COLOR_BGR2RGB)
        return np.asarray(rembg.remove(rgb, session=session, only_mask=True), np.uint8)

    return make
