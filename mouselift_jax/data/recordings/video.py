"""Decoding synchronised videos in step: one pass, in order, never a seek.

Seeking in compressed video is slow and, with many files, wrong by a frame or more; reading in
order is neither. Frames that are not wanted are decoded (the codec needs them) but not converted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from mouselift_jax.data.masks import stretch
from mouselift_jax.data.recordings.mask_levels import plane, to_bytes
from mouselift_jax.data.recordings.recording import Frames
from mouselift_jax.errors import LayoutError, MouseLiftError, raise_all

# A camera that skips this share of a frame interval, when the others do not, has lost a frame.
LOST_FRAME = 0.75
LUMA_RANGE = (16, 235)  # black and white of ordinary video
LUMA_TOLERANCE = 3  # grey levels; rounding of the colour conversion


class FrameStream:
    """The pictures of one camera, read in order.

    Args:
        frames: a video file or a folder of pictures.
        grey: return one channel [H,W] (masks) instead of BGR [H,W,3] (or BGRA where there is
            alpha).

    Raises:
        LayoutError: the video cannot be opened.
    """

    def __init__(self, frames: Frames, *, grey: bool = False) -> None:
        self.frames, self.grey = frames, grey
        self.position = 0  # number of the next frame
        self.gap_ms = 0.0  # between the last two frames read, by the container's clock
        self._time_ms = 0.0
        self._capture = _open_video(frames.path) if frames.kind == "video" else None
        self._chunks = list(frames.files[1:]) if frames.kind == "video" else []
        self._luma = False
        self._spare: list[np.ndarray] = []  # pictures handed back, to decode into
        plain = grey and not frames.white and frames.channel == "grey"
        if frames.deep and self._capture is not None:
            self._capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        elif plain and self._capture is not None and _luma_is_grey(frames.path):
            self._luma = bool(self._capture.set(cv2.CAP_PROP_CONVERT_RGB, 0))

    def skip(self, count: int = 1) -> None:
        """Go past frames without converting them."""
        for _ in range(count):
            if self._capture is not None:
                self._grab()
            self.position += 1

    def read(self) -> np.ndarray:
        """The next frame, uint8.

        Raises:
            LayoutError: the video ends or is damaged here, or a picture cannot be read.
        """
        if self._capture is None:
            image = self._read_file()
        else:
            self._grab()
            ok, image = self._capture.retrieve(self._spare.pop() if self._spare else None)
            if not ok or image is None:
                raise self._ended()
        self.position += 1
        if image.shape[:2] != (self.frames.height, self.frames.width):
            raise LayoutError(
                f"frame {self.position - 1} differs in size",
                where=self.frames.path,
                expected=f"{self.frames.width} x {self.frames.height}",
                found=f"{image.shape[1]} x {image.shape[0]}",
                fix="all pictures of one camera must have one size",
            )
        if self._luma:
            self._spare.append(image)
            return stretch(image, *LUMA_RANGE)
        if self.grey:
            return to_bytes(plane(image, self.frames.channel), self.frames.white)
        if image.dtype != np.uint8:
            image = self._shallow(image)
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image

    def read_at(self, frame: int) -> np.ndarray:
        """Frame number `frame`, which must not be behind."""
        self.skip(frame - self.position)
        return self.read()

    def give_back(self, picture: np.ndarray) -> None:
        """Let a picture that `read` returned, and nobody looks at any more, be overwritten.

        Fresh megabytes for every frame are page faults for every frame.
        """
        if self._capture is not None and not self.grey:
            self._spare.append(picture)

    def close(self) -> None:
        """Release the decoder."""
        if self._capture is not None:
            self._capture.release()

    def _grab(self) -> None:
        while not self._capture.grab():
            if not self._chunks:
                raise self._ended()
            self._capture.release()  # recorders begin a new file every few thousand frames
            self._capture = _open_video(self._chunks.pop(0))
            if self.frames.deep or self._luma:
                self._capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        now = self._capture.get(cv2.CAP_PROP_POS_MSEC)
        self.gap_ms, self._time_ms = now - self._time_ms, now

    def _read_file(self) -> np.ndarray:
        if self.position >= len(self.frames.files):
            raise self._ended()
        path = self.frames.files[self.position]
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if image is None:
            raise LayoutError("a picture cannot be read", where=path, fix="export it again")
        if self.frames.has_alpha and not self.grey and image.shape[2:] != (4,):
            raise LayoutError(
                "a picture has no alpha, though the first one has",
                where=path,
                expected="RGBA",
                found=f"{image.shape[2] if image.ndim == 3 else 1} channel(s)",
                fix="export all pictures of a camera alike",
            )
        return image

    def _shallow(self, image: np.ndarray) -> np.ndarray:
        """Pictures of more than 8 bits as 8 bits."""
        where = self.frames.files[self.position - 1] if self._capture is None else self.frames.path
        if image.dtype not in (np.uint8, np.uint16):
            raise LayoutError(
                "samples of this kind cannot be read",
                where=where,
                expected="8 or 16 bits, unsigned",
                found=image.dtype,
                fix="export the pictures as 8- or 16-bit PNG",
            )
        white = self.frames.white
        if white and int(image.max()) > white:
            raise LayoutError(
                f"a picture is brighter than {white}, which the first pictures of its camera took "
                "for white",
                where=where,
                expected=f"samples of {white.bit_length()} bits",
                found=f"up to {int(image.max())}",
                fix="export the pictures in 8 bits, or left-aligned in 16",
            )
        return to_bytes(image, white)

    def _ended(self) -> LayoutError:
        declared = self.frames.n_frames
        return LayoutError(
            f"the video stops at frame {self.position}",
            where=self.frames.path,
            expected=f"{declared} frames, as its header says",
            found=f"{self.position} that decode",
            fix="copy or export the file again (it is truncated or damaged), or use only whole "
            f"frames: --config.prepare.frames=0:{self.position}",
        )


@dataclasses.dataclass
class Instant:
    """All cameras at one moment.

    Attributes:
        frame: frame number.
        pictures: per camera BGR(A) [H,W,3|4] uint8.
        masks: per camera [H,W] uint8 as stored, or None.
        release: call it when the pictures are not needed any more: their memory is used again.
    """

    frame: int
    pictures: list[np.ndarray]
    masks: list[np.ndarray] | None
    release: Callable[[], None] = lambda: None


def read_instants(
    videos: Sequence[Frames],
    masks: Sequence[Frames] | None,
    frames: Iterable[int],
    executor: Executor | None = None,
    check_clock: bool = True,
) -> Iterator[Instant]:
    """Read chosen frames of all cameras together, each file once and in order.

    Args:
        videos: the pictures of each camera.
        masks: the silhouettes of each camera, or None.
        frames: frame numbers, ascending.
        executor: threads to decode on (OpenCV frees the interpreter); None decodes one by one.
        check_clock: raise when one file loses a frame that the others have.

    Raises:
        LayoutError: a file cannot be opened, ends early, is damaged, or lost a frame; ProblemList:
            several are.
    """
    with quiet_decoder():
        yield from _read_instants(videos, masks, frames, executor, check_clock)


def _read_instants(
    videos: Sequence[Frames],
    masks: Sequence[Frames] | None,
    frames: Iterable[int],
    executor: Executor | None,
    check_clock: bool,
) -> Iterator[Instant]:
    streams = _open_all(videos, masks)
    clock = (
        [s for s in streams if s.frames.kind == "video" and s.frames.fps > 0] if check_clock else []
    )
    # The streams are not closed here: an interrupted caller leaves reads under way on other
    # threads, and closing a decoder below them crashes. The last reference releases it.
    wanted = iter(frames)
    ahead = _advance(streams, next(wanted, None), executor)
    while ahead is not None:
        frame, done = ahead
        images = _in_step(frame, [f.result() for f in done], streams, clock)
        # The next instant is decoded while the caller works on this one.
        ahead = _advance(streams, next(wanted, None), executor)
        n = len(videos)
        yield Instant(
            frame,
            images[:n],
            images[n:] if masks is not None else None,
            functools.partial(_give_back, streams[:n], images[:n]),
        )


def _give_back(streams: Sequence[FrameStream], pictures: Sequence[np.ndarray]) -> None:
    for stream, picture in zip(streams, pictures, strict=True):
        stream.give_back(picture)


def count_frames(frames: Frames) -> int:
    """Number of frames that really decode (reads the whole file)."""
    stream = FrameStream(frames)
    try:
        while True:
            stream.skip()
    except LayoutError:
        return stream.position
    finally:
        stream.close()


_Advanced = tuple[np.ndarray | None, float, MouseLiftError | None]


def _advance(
    streams: list[FrameStream], frame: int | None, executor: Executor | None
) -> tuple[int, list[Future[_Advanced]]] | None:
    """Start to read one frame of every stream: image, longest gap on the way, error."""
    if frame is None:
        return None

    def read(stream: FrameStream) -> _Advanced:
        try:
            worst = 0.0
            while stream.position < frame:  # a loss is noticed where it happens
                stream.skip()
                worst = max(worst, stream.gap_ms)
            image = stream.read()
            return image, max(worst, stream.gap_ms), None
        except MouseLiftError as error:
            return None, 0.0, error

    if executor is not None:
        return frame, [executor.submit(read, stream) for stream in streams]
    done: list[Future[_Advanced]] = [Future() for _ in streams]
    for future, stream in zip(done, streams, strict=True):
        future.set_result(read(stream))
    return frame, done


def _in_step(
    frame: int, done: list[_Advanced], streams: list[FrameStream], clock: list[FrameStream]
) -> list[np.ndarray]:
    """The images of all streams, or what went wrong in any of them."""
    raise_all("the recording cannot be decoded", [e for _, _, e in done if e is not None])
    gaps = {id(s): g for s, (_, g, _) in zip(streams, done, strict=True)}
    if len(clock) > 1 and frame > 0:
        typical = float(np.median([gaps[id(s)] for s in clock]))
        for s in clock:
            if gaps[id(s)] - typical > LOST_FRAME * 1000.0 / s.frames.fps:
                raise LayoutError(
                    f"a frame is lost just before frame {frame}",
                    where=s.frames.path,
                    expected=f"a step of {typical:.1f} ms as in the other files",
                    found=f"{gaps[id(s)]:.1f} ms",
                    fix="from here on it lags behind the others: copy or export it again, or "
                    f"use only the frames before: --config.prepare.frames=0:{frame}",
                )
    return [image for image, _, _ in done]


def _open_all(videos: Sequence[Frames], masks: Sequence[Frames] | None) -> list[FrameStream]:
    streams, problems = [], []
    for frames, grey in [*((f, False) for f in videos), *((f, True) for f in masks or ())]:
        try:
            streams.append(FrameStream(frames, grey=grey))
        except LayoutError as error:
            problems.append(error)
    raise_all("videos cannot be opened", problems)
    return streams


def _luma_is_grey(path: Path) -> bool:
    """Whether a mask video's luma plane, taken as it is, gives the same picture as converting it.

    Taking it spares the conversion to colour and back. Other pixel formats, colour ranges or
    coloured masks fail the comparison and are converted. (A decoder of its own for each: one that
    has converted a frame goes on converting.)
    """
    converted, plain = _open_video(path), _open_video(path)
    try:
        plain.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        (ok, a), (ok_plain, b) = converted.read(), plain.read()
        if not (ok and ok_plain) or a.ndim != 3 or b.shape != a.shape[:2]:
            return False
        return int(cv2.absdiff(a[..., 0], stretch(b, *LUMA_RANGE)).max()) <= LUMA_TOLERANCE
    finally:
        converted.release()
        plain.release()


@contextmanager
def quiet_decoder() -> Iterator[None]:
    """Silence OpenCV's remark, once a frame, that a luma plane is treated as a grey picture."""
    logging = cv2.utils.logging
    before = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_ERROR)
    try:
        yield
    finally:
        logging.setLogLevel(before)


def _open_video(path: Path) -> cv2.VideoCapture:
    # One decoding thread a file: there are many files, and threads of our own keep the cores busy.
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if not capture.isOpened():
        size = path.stat().st_size if path.exists() else None
        raise LayoutError(
            "a video cannot be opened",
            where=path,
            expected="a video file that FFmpeg reads",
            found="no such file" if size is None else f"{size} bytes",
            fix="copy or export it again: it is truncated, damaged or not a video",
        )
    return capture
