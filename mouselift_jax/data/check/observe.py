"""What a check needs to have seen of a recording: outlines, edges, areas, a few whole masks.

Short recordings are read whole, long ones in a few runs of consecutive frames (offsets between
cameras show in consecutive frames only). Pictures are kept small, so memory does not grow with
the recording.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from mouselift_jax.data.distortion import distort_pixels
from mouselift_jax.data.findings import Finding
from mouselift_jax.data.recordings.mask_levels import MaskFacts
from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.data.recordings.video import FrameStream, quiet_decoder
from mouselift_jax.errors import LayoutError
from mouselift_jax.geometry.hull import outline

MAX_FRAMES = 120  # looked at in all
_WINDOW = 30  # consecutive frames of a long recording
_SMALL = 288  # width in pixels of the edge pictures
_OUTLINE_POINTS = 160
_SHEET_WIDTH = 320
_MASK_THRESHOLD = 127


@dataclasses.dataclass
class Observations:
    """What was seen. V cameras, T frames.

    Attributes:
        frames: frame numbers [T].
        window: which run of consecutive frames each belongs to [T].
        outlines: convex outlines [V,T,P,2], pixels of the camera, NaN where empty.
        areas: mask areas [V,T], pixels.
        edges: gradient magnitude of the pictures, per camera uint8 [T,h,w] at reduced size.
        edge_scale: per camera (x, y) reduced pixels per picture pixel.
        contours: mask outlines per camera and frame, [n,2] in mask pixels.
        colours: mean grey value on the masked animal [V,T].
        masks: whole masks of the frames `mask_rows`, per camera bool [k,H,W].
        mask_rows: indices into `frames`.
        brightest: per camera the brightest each place ever was [h,w], uint8, at the edges' size.
        thumbnails: per camera RGB uint8 [k,h,w,3] of the same frames, mask outline drawn in.
        has_masks: the recording brings masks.
        changes: mean change of each picture against the one before it [V,T], grey levels, NaN
            where there is none before it.
        facts: what the masks of each camera are (see `mask_levels`).
    """

    frames: np.ndarray
    window: np.ndarray
    outlines: np.ndarray
    areas: np.ndarray
    edges: list[np.ndarray]
    edge_scale: list[tuple[float, float]]
    contours: list[list[np.ndarray]]
    colours: np.ndarray
    masks: list[np.ndarray]
    mask_rows: np.ndarray
    thumbnails: list[np.ndarray]
    has_masks: bool
    brightest: list[np.ndarray] = dataclasses.field(default_factory=list)
    facts: list[MaskFacts] = dataclasses.field(default_factory=list)
    changes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))


class _Seekable(FrameStream):
    """A stream that may jump to the start of a run of frames."""

    def jump(self, frame: int) -> None:
        ahead = frame - self.position
        if self._capture is None or 0 <= ahead <= 300 or self._chunks or self.frames.declared:
            self.skip(ahead)
            return
        self._capture.set(cv2.CAP_PROP_POS_FRAMES, frame)
        if int(self._capture.get(cv2.CAP_PROP_POS_FRAMES)) != frame:
            raise LayoutError(
                f"cannot seek to frame {frame}",
                where=self.frames.path,
                fix="re-encode the video with an ordinary encoder (ffmpeg -c:v libx264)",
            )
        self.position = frame


def choose_frames(n_frames: int, limit: int = MAX_FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """Frame numbers to look at and the run each belongs to."""
    if n_frames <= limit:
        return np.arange(n_frames), np.zeros(n_frames, int)
    length = min(_WINDOW, max(limit, 1))
    n = max(1, limit // length)
    starts = np.linspace(0, n_frames - length, n).astype(int)
    frames = (starts[:, None] + np.arange(length)).ravel()
    return frames, np.repeat(np.arange(n), length)


def observe(
    recording: Recording, findings: list[Finding], *, max_frames: int = MAX_FRAMES, n_masks: int = 8
) -> Observations:
    """Read the recording's pictures and masks.

    Args:
        recording: what to look at.
        findings: unreadable videos are added here.
        max_frames: frames to look at.
        n_masks: frames of which whole masks and thumbnails are kept.
    """
    frames, window = choose_frames(recording.n_frames, max_frames)
    rows = np.unique(np.linspace(0, len(frames) - 1, min(n_masks, len(frames))).astype(int))
    views = [_View(recording, v, frames, window, rows) for v in range(recording.n_views)]
    for v, view in enumerate(views):
        try:
            with quiet_decoder():
                view.read()
        except LayoutError as error:
            number = recording.camera_ids[v]
            findings.append(
                Finding(
                    "video_unreadable",
                    "error",
                    f"camera {number}: {error.what}",
                    (number,),
                    error.fix or "",
                    {"expected": str(error.expected), "found": str(error.found)},
                    where=str(error.where),
                )
            )
    return Observations(
        frames,
        window,
        np.stack([v.outlines for v in views]),
        np.stack([v.areas for v in views]),
        [v.edges for v in views],
        [v.edge_scale for v in views],
        [v.contours for v in views],
        np.stack([v.colours for v in views]),
        [np.stack(v.masks) if v.masks else np.zeros((0, 1, 1), bool) for v in views],
        rows,
        [np.stack(v.thumbnails) if v.thumbnails else np.zeros((0, 1, 1, 3)) for v in views],
        recording.mask_kind != "none",
        [v.brightest for v in views],
        [v.facts for v in views],
        np.stack([v.changes for v in views]),
    )


class _View:
    """One camera's part of the observations."""

    def __init__(
        self, recording: Recording, v: int, frames: np.ndarray, window: np.ndarray, rows: np.ndarray
    ) -> None:
        self.recording, self.v, self.frames, self.window, self.rows = (
            recording, v, frames, window, set(rows.tolist())
        )  # fmt: skip
        source = recording.videos[v]
        self.edge_size = (_SMALL, max(16, round(_SMALL * source.height / source.width)))
        self.edge_scale = (_SMALL / source.width, self.edge_size[1] / source.height)
        n = len(frames)
        self.outlines = np.full((n, 96, 2), np.nan)
        self.areas, self.colours = np.full(n, np.nan), np.full(n, np.nan)
        self.edges = np.zeros((n, self.edge_size[1], self.edge_size[0]), np.uint8)
        self.brightest = np.zeros(self.edge_size[::-1], np.uint8)
        self.facts, self.changes = MaskFacts(), np.full(n, np.nan)
        self._before: np.ndarray | None = None
        self.contours: list[np.ndarray] = [np.zeros((0, 2))] * n
        self.masks: list[np.ndarray] = []
        self.thumbnails: list[np.ndarray] = []

    def read(self) -> None:
        masks = self.recording.masks
        colour = _Seekable(self.recording.videos[self.v])
        stored = _Seekable(masks[self.v], grey=True) if masks is not None else None
        flatten = _flattener(self.recording, self.v)
        try:
            for row, frame in enumerate(self.frames):
                if row == 0 or self.window[row] != self.window[row - 1]:
                    colour.jump(int(frame))
                    if stored is not None:
                        stored.jump(int(frame))
                picture = flatten(colour.read())
                alpha = picture.ndim == 3 and picture.shape[2] == 4
                mask = None
                if stored is not None:
                    mask = flatten(stored.read()) > _MASK_THRESHOLD
                elif alpha and self.recording.mask_kind == "alpha":
                    mask = picture[..., 3] > _MASK_THRESHOLD
                self._take(row, picture[..., :3], mask)
        finally:
            colour.close()
            if stored is not None:
                stored.close()

    def _take(self, row: int, picture: np.ndarray, mask: np.ndarray | None) -> None:
        grey = cv2.resize(
            cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), self.edge_size, interpolation=cv2.INTER_AREA
        ).astype(np.float32)
        if self._before is not None and self.window[row] == self.window[row - 1]:
            self.changes[row] = float(cv2.absdiff(grey, self._before).mean())
        self._before = grey
        np.maximum(self.brightest, grey.astype(np.uint8), out=self.brightest)
        gx, gy = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
        self.edges[row] = np.minimum(np.sqrt(gx * gx + gy * gy) / 2, 255)
        if mask is not None:
            self.areas[row] = mask.sum()
            self.facts.add(mask)
            self.outlines[row] = outline(mask)
            self.contours[row] = _contour(mask)
            inside = mask.view(np.uint8)
            x, y, w, h = cv2.boundingRect(inside)
            if mask.shape == picture.shape[:2] and w:
                place = (slice(y, y + h), slice(x, x + w))
                self.colours[row] = cv2.mean(picture[place], inside[place])[1]
        if row in self.rows:
            shape = picture.shape[:2]
            self.masks.append(np.zeros(shape, bool) if mask is None else mask)
            self.thumbnails.append(_thumbnail(picture, mask))


def _flattener(recording: Recording, v: int):  # noqa: ANN202
    """A function that frees pictures of lens distortion, or leaves them where there is none."""
    coefficients, camera = recording.distortion[v], recording.cameras[v]
    if coefficients is None:
        return lambda picture: picture
    grid = np.stack(np.meshgrid(np.arange(camera.width), np.arange(camera.height)), -1) + 0.5
    raw = (distort_pixels(grid, camera.K, coefficients) - 0.5).astype(np.float32)
    return lambda picture: cv2.remap(picture, raw[..., 0], raw[..., 1], cv2.INTER_LINEAR)


def _contour(mask: np.ndarray) -> np.ndarray:
    """Points [n,2] on the outlines of a mask, evenly thinned, pixels."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return np.zeros((0, 2))
    points = np.concatenate(contours)[:, 0].astype(np.float64) + 0.5
    # Where the animal leaves the picture there is no outline to compare.
    inside = ((points > 2) & (points < np.array(mask.shape[::-1]) - 2)).all(1)
    points = points[inside]
    return points[:: max(1, len(points) // _OUTLINE_POINTS)]


def _thumbnail(picture: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    height = round(_SHEET_WIDTH * picture.shape[0] / picture.shape[1])
    small = cv2.resize(picture, (_SHEET_WIDTH, height), interpolation=cv2.INTER_AREA)
    if mask is not None:
        tiny = cv2.resize(mask.astype(np.uint8), (_SHEET_WIDTH, height))
        contours, _ = cv2.findContours(tiny, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        small = cv2.drawContours(small.copy(), contours, -1, (233, 180, 86), 1)
    return small[..., ::-1]
