"""Decoded frames kept for another preparation of the same recording, only when asked for.

Reading sparse frames out of long videos costs as much as decoding everything between them. A cache
keeps, per chosen frame and camera, the box around the animal, losslessly; a second preparation with
other parameters (size, mode, field of view, heading...) then does not touch the videos. It is for
masks that come with the recording: a mask made on the spot needs the whole picture.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mouselift_jax.data.masks import mask_box, soft_threshold
from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.data.recordings.video import Instant
from mouselift_jax.errors import ConfigError
from mouselift_jax.files import atomic_path

MARGIN = 8  # pixels around the animal: filters look that far


class FrameCache:
    """The cached frames of one recording.

    Args:
        folder: where caches are kept; each recording has its own sub-folder, named by the hashes of
            all its files, so a changed recording is never mistaken for the old one.
        recording: whose frames.
        mask_source: `files` or `alpha`.

    Raises:
        ConfigError: masks of this source need whole pictures.
    """

    def __init__(self, folder: str | Path, recording: Recording, mask_source: str) -> None:
        if mask_source not in ("files", "alpha"):
            raise ConfigError(
                f"a cache of frames does not go with masks={mask_source}",
                where="config.prepare.cache",
                expected="masks of the recording itself (files or alpha)",
                fix="--config.prepare.cache= (none)",
            )
        key = json.dumps([recording.hashes(), mask_source], sort_keys=True)
        self.path = Path(folder) / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.recording, self.has_masks = recording, mask_source == "files"

    def file(self, frame: int) -> Path:
        """The file of one frame."""
        return self.path / f"frame_{frame:06d}.npz"

    def __contains__(self, frame: int) -> bool:
        return self.file(frame).exists()

    def put(self, instant: Instant) -> None:
        """Keep an instant, whole or not at all."""
        arrays = {}
        for view, picture in enumerate(instant.pictures):
            mask = instant.masks[view] if self.has_masks else None
            alpha = picture[..., 3] if mask is None else soft_threshold(mask)
            x0, y0, x1, y1 = mask_box(np.ascontiguousarray(alpha))
            h, w = alpha.shape
            box = (slice(max(y0 - MARGIN, 0), min(y1 + MARGIN, h)),
                   slice(max(x0 - MARGIN, 0), min(x1 + MARGIN, w)))  # fmt: skip
            arrays[f"at{view}"] = np.array([box[0].start, box[1].start, h, w])
            arrays[f"picture{view}"] = picture[box]
            if mask is not None:
                arrays[f"mask{view}"] = mask[box]
        with atomic_path(self.file(instant.frame)) as part:
            np.savez(part, **arrays)

    def get(self, frame: int) -> Instant:
        """A kept instant; outside the boxes pictures and masks are 0."""
        pictures, masks = [], []
        with np.load(self.file(frame)) as arrays:
            for view in range(self.recording.n_views):
                y, x, h, w = arrays[f"at{view}"]
                pictures.append(_placed(arrays[f"picture{view}"], y, x, h, w))
                if self.has_masks:
                    masks.append(_placed(arrays[f"mask{view}"], y, x, h, w))
        return Instant(frame, pictures, masks if self.has_masks else None)

    def read(
        self, frames: list[int], decode: Callable[[list[int]], Iterator[Instant]]
    ) -> Iterator[Instant]:
        """The instants of `frames`: kept ones from here, the others decoded, and kept.

        Which are which is settled before the first: another run may fill the cache meanwhile.

        Args:
            frames: frame numbers, ascending.
            decode: reads the frames that are not kept, in order.

        Raises:
            ConfigError: a kept frame is damaged.
        """
        missing = [frame for frame in frames if frame not in self]
        decoded, absent = decode(missing), set(missing)
        for frame in frames:
            if frame not in absent:
                try:
                    yield self.get(frame)
                    continue
                except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
                    raise ConfigError(
                        "a cached frame is damaged",
                        where=self.file(frame),
                        found=str(error),
                        fix="delete the cache's folder and run the command again",
                    ) from error
            instant = next(decoded)
            self.put(instant)
            yield instant


def _placed(part: np.ndarray, y: int, x: int, h: int, w: int) -> np.ndarray:
    whole = np.zeros((int(h), int(w), *part.shape[2:]), np.uint8)
    whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    return whole
