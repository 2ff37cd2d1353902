"""A film on disk: one set of Gaussians through time, in parts of some frames (docs/film_format.md).

    film = Film.open("runs/fit")
    for part in film.parts():            # one at a time: memory does not grow with the film
        part.gaussians(0)                # of the part's first frame, in the film's world

T frames, N Gaussians, S colour coefficients. N and the order of the Gaussians are one and the same
in all frames of a segment.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.errors import LayoutError
from mouselift_jax.files import atomic_path, write_json_atomic
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.reel import Reel

FOLDER, INDEX = "film", "film.json"
VERSION = 1
PART = 16  # frames of a part: written anew with each frame, so not many


@dataclasses.dataclass(frozen=True)
class Part:
    """Frames of one segment, in the order of time.

    Attributes:
        frames: their numbers in the recording [T].
        segment: number of the set they show [T], the same for all of a part.
        means: [T,N,3], film units.
        quats: [T,N,4], wxyz, unit.
        log_scales: [N,3].
        opacity_logits: [N].
        sh: [T,N,S,3]; colours change slowly, with the light.
        iou: of the given views' silhouettes, mean [T].
        psnr: inside their cut-outs, mean [T], dB.
    """

    frames: np.ndarray
    segment: np.ndarray
    means: np.ndarray
    quats: np.ndarray
    log_scales: np.ndarray
    opacity_logits: np.ndarray
    sh: np.ndarray
    iou: np.ndarray
    psnr: np.ndarray

    def gaussians(self, i: int) -> Gaussians:
        """The Gaussians [N] of the part's i-th frame, in the film's world."""
        return Gaussians(
            self.means[i], self.quats[i], self.log_scales, self.opacity_logits, self.sh[i]
        )

    def with_frame(self, other: Part) -> Part:
        """This part and the single frame of another of the same segment, which replaces its own."""
        kept = self.frames != other.frames[0]
        order = np.argsort([*self.frames[kept], other.frames[0]])
        joined = {
            name: np.concatenate([getattr(self, name)[kept], getattr(other, name)])[order]
            for name in _EACH
        }
        return dataclasses.replace(self, **joined)


_EACH = ("frames", "segment", "means", "quats", "sh", "iou", "psnr")  # what has a row a frame


@dataclasses.dataclass(frozen=True)
class Film:
    """A film's folder.

    Attributes:
        folder: where its parts lie.
        about: what film.json says: scene_scale, recording_from_film, segments...
    """

    folder: Path
    about: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Film:
        """The film of a run, or of its folder `film`.

        Raises:
            LayoutError: there is none, or it is of a later version.
        """
        path = Path(path)
        folder = path if (path / INDEX).is_file() else path / FOLDER
        if not (folder / INDEX).is_file():
            raise LayoutError(
                "no film here", where=path, expected=f"{FOLDER}/{INDEX}",
                fix="make one: python launch.py --config=configs/fit.py:film --config.samples=...",
            )  # fmt: skip
        about = json.loads((folder / INDEX).read_text())
        if about.get("version") != VERSION:
            raise LayoutError(
                "a film of another version", where=folder / INDEX, expected=VERSION,
                found=about.get("version"), fix="update this program, or make the film again",
            )  # fmt: skip
        return cls(folder, about)

    @classmethod
    def begin(cls, folder: Path, about: dict[str, Any]) -> Film:
        """A new film; `about` goes into film.json beside the version."""
        folder.mkdir(parents=True, exist_ok=True)
        film = cls(folder, {"version": VERSION, **about})
        write_json_atomic(folder / INDEX, film.about)
        return film

    @property
    def recording_from_film(self) -> Similarity | None:
        """From the film's world to the recording's (millimetres, where its unit is known)."""
        known = self.about.get("recording_from_film")
        return known and Similarity(known["scale"], np.array(known["R"]), np.array(known["t"]))

    def told(self, **more: Any) -> Film:
        """The same film with more said in film.json."""
        about = self.about | more
        write_json_atomic(self.folder / INDEX, about)
        return dataclasses.replace(self, about=about)

    def files(self) -> list[Path]:
        """The parts' files, by segment and time."""
        return sorted(self.folder.glob("segment_*_part_*.npz"))

    def parts(self) -> Iterator[Part]:
        """The parts, read one at a time, by segment and time."""
        return (_read(file) for file in self.files())

    def reel(self, times: Mapping[int, float] | None = None) -> Reel:
        """The film as it is played; one part is in memory.

        Args:
            times: seconds since the recording's start of frames by their number.

        Raises:
            LayoutError: it has no frames yet.
        """
        rows = []
        for file in self.files():
            with np.load(file, allow_pickle=False) as arrays:  # reads no more than these two
                pairs = zip(arrays["frames"], arrays["segment"], strict=True)
                rows += [(int(f), int(s), file, row) for row, (f, s) in enumerate(pairs)]
        if not rows:
            raise LayoutError(
                "this film has no frames yet", where=self.folder,
                fix="repeat the command that makes it: it goes on",
            )  # fmt: skip
        rows.sort(key=lambda row: row[:2])
        held: dict[Path, Part] = {}

        def gaussians(i: int) -> Gaussians:
            _, _, file, row = rows[i]
            if file not in held:
                part = _read(file)
                held.clear()
                held[file] = part
            return held[file].gaussians(row)

        frames, segment = (np.array(column) for column in list(zip(*rows, strict=True))[:2])
        known = np.array([(times or {}).get(int(f), np.nan) for f in frames], float)
        return Reel(
            frames, segment, known, gaussians, scene_scale=self.about.get("scene_scale"),
            recording_from_film=self.recording_from_film,
        )  # fmt: skip

    def add(self, position: int, frame: Part) -> None:
        """Write the single frame `frame`; `position`: its place among all frames of the film."""
        segment = int(frame.segment[0])
        file = self.folder / f"segment_{segment:03d}_part_{position // PART:05d}.npz"
        whole = _read(file).with_frame(frame) if file.exists() else frame
        with atomic_path(file) as part, part.open("wb") as stream:
            np.savez(stream, **dataclasses.asdict(whole))

    def find(self, position: int, frame: int) -> Part | None:
        """The frame of that number alone, None where it is not there yet."""
        for file in sorted(self.folder.glob(f"segment_*_part_{position // PART:05d}.npz")):
            part = _read(file)
            at = np.flatnonzero(part.frames == frame)
            if len(at):
                return dataclasses.replace(part, **{k: getattr(part, k)[at] for k in _EACH})
        return None


def _read(file: Path) -> Part:
    with np.load(file, allow_pickle=False) as arrays:
        return Part(**{f.name: arrays[f.name] for f in dataclasses.fields(Part)})
