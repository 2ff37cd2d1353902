"""Where masks come from: files, alpha, threshold, background model, keypoints, a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from mouselift_jax.data.masks import SOFTNESS, clean_mask, ramp_table, soft_threshold
from mouselift_jax.data.recordings.keypoint_masks import keypoint_masker
from mouselift_jax.data.recordings.recording import Frames, Recording
from mouselift_jax.errors import LayoutError, MissingExtraError, one_of

SOURCES = ("auto", "files", "alpha", "threshold", "background_model", "keypoints", "rembg")


BACKGROUND_FRAMES = 25
_FEW_PIXELS, _MOSTLY_STILL = 8, 0.3


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """How masks are made; a ConfigError where `animal_is` is no such word.

    Attributes:
        source: auto (what the recording has) | files | alpha | threshold | background_model |
            keypoints | rembg.
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
        one_of(
            self.animal_is,
            ("dark", "bright"),
            "an animal is dark or bright",
            where="config.prepare.mask_animal",
        )


MaskMaker = Callable[[int, np.ndarray, np.ndarray | None, int], np.ndarray]


def make_masker(recording: Recording, settings: MaskSettings, frames: Sequence[int]) -> MaskMaker:
    """A function (camera index, BGR(A) picture, stored mask or None, frame) -> alpha [H,W].

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

        def make(
            view: int, picture: np.ndarray, stored: np.ndarray | None, frame: int
        ) -> np.ndarray:
            return soft_threshold(stored)
    elif source == "alpha":

        def make(
            view: int, picture: np.ndarray, stored: np.ndarray | None, frame: int
        ) -> np.ndarray:
            return cv2.extractChannel(picture, 3)
    elif source == "threshold":
        make = _threshold_masker(settings)
    elif source == "background_model":
        make = _background_masker(recording.videos, settings, frames)
    elif source == "keypoints":
        make = keypoint_masker(recording)
    else:
        make = _rembg_masker()
    if not settings.clean:
        return make
    return lambda *seen: clean_mask(make(*seen), settings.min_blob)


def resolve_source(recording: Recording, source: str) -> str:
    """What `auto` means for a recording; the source itself otherwise, checked against it."""
    one_of(source, SOURCES, "no such source of masks", where="config.prepare.masks")
    has_files, has_alpha = recording.masks is not None, all(v.has_alpha for v in recording.videos)
    if source == "auto":
        if not has_files and not has_alpha:
            raise LayoutError(
                "the recording has no masks",
                where=recording.path,
                expected="simpleclick_undist/<camera>.mp4, or pictures with alpha",
                fix="--config.prepare.masks=background_model (static cameras), keypoints, "
                "threshold or rembg",
            )
        return "files" if has_files else "alpha"
    if (source == "files" and not has_files) or (source == "alpha" and not has_alpha):
        raise LayoutError(
            f"masks={source}, but the recording has none",
            where=recording.path,
            fix="--config.prepare.masks=auto, background_model, threshold or rembg",
        )
    return source


def _threshold_masker(settings: MaskSettings) -> MaskMaker:
    table = ramp_table(settings.threshold, min(SOFTNESS, 12))
    table = 255 - table if settings.animal_is == "dark" else table

    def make(view: int, picture: np.ndarray, stored: np.ndarray | None, frame: int) -> np.ndarray:
        return cv2.LUT(cv2.cvtColor(picture[..., :3], cv2.COLOR_BGR2GRAY), table)

    return make


def _background_masker(
    videos: Sequence[Frames], settings: MaskSettings, frames: Sequence[int]
) -> MaskMaker:
    """Difference from the median picture; one extra pass over each video, with bounded memory."""
    from mouselift_jax.data.recordings.video import FrameStream

    # Of the whole recording: an animal that rests in the chosen frames would be its own background.
    last = min(v.n_frames for v in videos) - 1
    chosen = np.linspace(0, last, BACKGROUND_FRAMES).astype(int)
    scenes = []
    for video in videos:
        stream = FrameStream(video)
        pictures = [stream.read_at(int(f))[..., :3] for f in sorted(set(chosen.tolist()))]
        stream.close()
        scenes.append(np.median(np.stack(pictures), axis=0).astype(np.uint8))
        _must_move(video, np.stack(pictures), scenes[-1], settings)
    table = ramp_table(settings.difference, min(SOFTNESS, settings.difference // 3))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))

    def make(view: int, picture: np.ndarray, stored: np.ndarray | None, frame: int) -> np.ndarray:
        apart = cv2.absdiff(picture[..., :3], scenes[view]).max(axis=2)
        alpha = cv2.LUT(cv2.GaussianBlur(apart, (0, 0), 0.7), table)
        alpha = cv2.morphologyEx(alpha, cv2.MORPH_OPEN, kernel)
        return clean_mask(cv2.morphologyEx(alpha, cv2.MORPH_CLOSE, kernel), settings.min_blob)

    return make


def _must_move(
    video: Frames, pictures: np.ndarray, scene: np.ndarray, settings: MaskSettings
) -> None:
    """Raise a LayoutError where the animal rests so long that it is part of the empty scene.

    Then most pictures do not differ from the scene anywhere, or what differs in the others stays
    where it is: the empty place of an animal that left.
    """
    size = (max(1, video.width // 4), max(1, video.height // 4))
    apart = [
        cv2.resize(cv2.absdiff(p, scene).max(axis=2), size, interpolation=cv2.INTER_AREA)
        > settings.difference
        for p in pictures
    ]
    seen = np.array([a.sum() for a in apart])
    usual = np.median(seen[seen > _FEW_PIXELS]) if (seen > _FEW_PIXELS).any() else 0.0
    absent = float(np.mean(seen <= max(_FEW_PIXELS, 0.1 * usual)))
    if absent > _MOSTLY_STILL:
        raise LayoutError(
            "the animal hardly moves, so that it became part of the background",
            where=video.path,
            expected="an animal that leaves every place for most of the recording",
            found=f"nothing differs from the median picture in {absent:.0%} of {len(pictures)} "
            "pictures over the whole recording",
            fix="--config.prepare.masks=keypoints (where there are any), threshold or rembg, or "
            "bring masks",
        )


def _rembg_masker() -> MaskMaker:
    try:
        import rembg
    except ImportError:
        raise MissingExtraError("rembg", "matte", "masks=rembg") from None
    session = rembg.new_session()

    def make(view: int, picture: np.ndarray, stored: np.ndarray | None, frame: int) -> np.ndarray:
        rgb = cv2.cvtColor(picture[..., :3], cv2.COLOR_BGR2RGB)
        return np.asarray(rembg.remove(rgb, session=session, only_mask=True), np.uint8)

    return make
