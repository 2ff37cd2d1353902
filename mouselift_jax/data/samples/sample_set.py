"""Sample sets on disk: several pictures of one instant with their cameras, many instants a set.

Layout (docs/data_format.md): `manifest.json`, `train.txt`, `val.txt` and `sample_%06d/` folders
with `images/cam_%03d.png` and `opencv_cameras.json`. FaceLift's own sets load too: lists named
`data_*.txt` with paths of another machine, pictures without `images/`, no manifest, pictures
without cameras. Reading is here; writing is in `writer.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mouselift_jax.data.png import read_picture
from mouselift_jax.data.samples.camera_file import parse_cameras, with_frames
from mouselift_jax.errors import LayoutError, MouseLiftError, nearest, one_of, raise_all
from mouselift_jax.geometry.camera import Camera

log = logging.getLogger("mouselift_jax")

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CAMERAS = "opencv_cameras.json"
SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One instant.

    Attributes:
        id: name of the sample's folder.
        images_rgba: [V,H,W,4] uint8, straight alpha; pictures without alpha get alpha 255.
        cameras: cameras [V] (NumPy float64), or None in a set without cameras.
        camera_ids: camera number of each view [V]; the slot where the file names none.
        frame: frame number in the recording, -1 where unknown.
        has_alpha: whether the files carried alpha.
        info: everything else the sample's camera file says (centre, scale, per-sample errors...).
    """

    id: str
    images_rgba: np.ndarray
    cameras: Camera | None
    camera_ids: np.ndarray
    frame: int
    has_alpha: bool
    info: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SampleSet:
    """A folder of samples, opened. Use `SampleSet.open(path)`.

    Attributes:
        path: the folder.
        manifest: content of manifest.json; {} for sets made elsewhere.
        splits: sample ids by split, plus `all`. Ids are paths relative to `path`.
        notes: what had to be guessed (lists with another machine's paths...).
    """

    path: Path
    manifest: dict[str, Any]
    splits: dict[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: str | Path) -> SampleSet:
        """Open a set: its folder, its run's, one of its list files, or a single sample's.

        What had to be guessed is said in the log, once.

        Raises:
            LayoutError: there is no sample set, or a list names samples that are not there.
        """
        samples = cls._open(Path(path))
        if samples.notes:
            _tell(samples.path, samples.notes[0], len(samples.notes))
        return samples

    @classmethod
    def _open(cls, path: Path) -> SampleSet:
        if path.is_file() and path.suffix == ".txt":
            found = _open_lists(path.parent, {path.stem: path})
            return dataclasses.replace(found, manifest=_read_manifest(path.parent))
        if not path.is_dir():
            raise LayoutError(
                "no such sample set",
                where=path,
                expected="a folder with manifest.json, train.txt and sample_* folders",
                fix=_near(path),
            )
        if (path / CAMERAS).exists():
            path = path.resolve()  # `.` has no name
            alone = {"all": (path.name,), "train": (path.name,), "val": ()}
            return cls(path.parent, _read_manifest(path.parent), alone)
        if (path / MANIFEST).exists():
            return _open_own(path)
        if (path / "samples" / MANIFEST).exists():  # the folder of a run that wrote one
            return _open_own(path / "samples")
        lists = _list_files(path)
        if lists:
            return _open_lists(path, lists)
        ids = tuple(p.name for p in sorted(path.glob("sample_*")) if p.is_dir())
        if not ids:
            raise LayoutError(
                "no samples here",
                where=path,
                expected="manifest.json, a list data_*.txt, or folders sample_*",
                found=", ".join(sorted(p.name for p in path.iterdir())[:8]) or "an empty folder",
                fix="give the folder that a prepare run wrote (its workdir or workdir/samples)",
            )
        return cls(path, {}, {"all": ids, "train": ids, "val": ()}, ("no lists: all is training",))

    def __len__(self) -> int:
        return len(self.splits["all"])

    def ids(self, split: str = "all") -> tuple[str, ...]:
        """Sample ids of a split (`train`, `val`, `all`)."""
        one_of(
            split,
            self.splits,
            "the sample set has no such split",
            where=self.path,
            error=LayoutError,
        )
        return self.splits[split]

    def frames(self, split: str = "all") -> list[int]:
        """Recording frame number of each sample of a split, -1 where the manifest has none."""
        known = {row["id"]: row.get("frame", -1) for row in self.manifest.get("samples", ())}
        return [int(known.get(name, -1)) for name in self.ids(split)]

    def caption(self, sample_id: str) -> str:
        """What to call a sample for people: its folder, and its frame where the set says it."""
        rows = self.manifest.get("samples", ())
        frame = next((row.get("frame", -1) for row in rows if row["id"] == sample_id), -1)
        return f"{sample_id}, frame {frame}" if frame >= 0 else sample_id

    @property
    def scene_scale(self) -> float | None:
        """Scene units per millimetre, None where the set does not say."""
        return self.manifest.get("scene_scale")

    def camera_file(self, sample_id: str) -> dict[str, Any] | None:
        """The sample's opencv_cameras.json, None where it has none.

        Raises:
            LayoutError: the sample is missing, or its camera file is damaged or has no frames.
        """
        folder = self.path / sample_id
        try:
            return with_frames(json.loads((folder / CAMERAS).read_text()), folder / CAMERAS)
        except FileNotFoundError:
            if not folder.is_dir():
                raise LayoutError(
                    "a sample is missing",
                    where=folder,
                    fix="run the command that writes the set again, or take it from the list",
                ) from None
            return None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise LayoutError(
                "a sample's camera file is damaged",
                where=folder / CAMERAS,
                found=str(error),
                fix="delete the sample's folder and run the command that made it again",
            ) from None

    def picture_paths(self, sample_id: str, record: dict[str, Any] | None = None) -> list[Path]:
        """The picture files of a sample in slot order."""
        folder = self.path / sample_id
        record = self.camera_file(sample_id) if record is None else record
        if record is None:
            return _pictures_without_cameras(folder)
        return [_picture_path(folder, i, f) for i, f in enumerate(record.get("frames", ()))]

    def cameras(self, sample_id: str) -> Camera | None:
        """A sample's cameras [V] without reading its pictures, None where it has none."""
        record = self.camera_file(sample_id)
        return None if record is None else parse_cameras(record, self.path / sample_id / CAMERAS)

    def load(self, sample_id: str, slots: Iterable[int] | None = None) -> Sample:
        """Read a sample, whole or some of its slots.

        Raises:
            LayoutError: a file is missing, damaged, or of another size than its camera says.
        """
        record = self.camera_file(sample_id)
        where = self.path / sample_id
        paths = self.picture_paths(sample_id, record)
        slots = range(len(paths)) if slots is None else list(slots)
        pictures = [read_picture(paths[i]) for i in slots]
        _check_pictures(pictures, [paths[i] for i in slots], record)
        images = np.stack([_with_alpha(p) for p in pictures])
        has_alpha = all(p.shape[2] == 4 for p in pictures)
        index = np.asarray(list(slots))
        if record is None:
            return Sample(sample_id, images, None, index, -1, has_alpha, {})
        cameras = parse_cameras(record, where / CAMERAS)[index]
        ids = np.asarray([f.get("camera", i) for i, f in enumerate(record["frames"])])[index]
        info = {k: v for k, v in record.items() if k not in ("id", "frames")}
        frame = info.get("frame")
        frame = -1 if frame is None else int(frame)
        return Sample(sample_id, images, cameras, ids, frame, has_alpha, info)


@functools.cache
def _tell(where: Path, note: str, count: int) -> None:
    log.info("%s: %s%s", where, note, f", and {count - 1} more" if count > 1 else "")


def is_sample_set(path: str | Path) -> bool:
    """Whether `SampleSet.open` takes a path."""
    path = Path(path)
    if path.is_file():
        return path.suffix == ".txt"
    own = (path / MANIFEST, path / "samples" / MANIFEST)
    if any(p.exists() for p in own) or _list_files(path):
        return True
    inside = (f"sample_*/{name}" for name in (CAMERAS, "images/cam_*.png", "cam_*.png"))
    if any(any(path.glob(pattern)) for pattern in inside):
        return True
    return (path / CAMERAS).exists() and ((path / "images").is_dir() or any(path.glob("cam_*.png")))


# --- finding samples -----------------------------------------------------------------------------


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a set, {} where it has none: a part of a set keeps its scale and frames."""
    try:
        found = json.loads((folder / MANIFEST).read_text())
        if isinstance(found, dict) and isinstance(found.get("schema", 0), int):
            return found
        said = str(found)[:80]
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        said = str(error)
    raise LayoutError(
        "the manifest is damaged",
        where=folder / MANIFEST,
        found=said,
        fix="delete it and run the command that writes the set again",
    )


def _open_own(path: Path) -> SampleSet:
    manifest = _read_manifest(path)
    if manifest.get("schema", 0) > SCHEMA_VERSION:
        raise LayoutError(
            "the sample set was written by a newer version",
            where=path / MANIFEST,
            expected=f"schema <= {SCHEMA_VERSION}",
            found=manifest["schema"],
            fix="update mouselift_jax",
        )
    if manifest.get("finished") is False:
        raise LayoutError(
            "the sample set is not finished",
            where=path,
            fix="run the command that writes it again: it continues where it stopped",
        )
    lists = {name: path / f"{name}.txt" for name in SPLITS if (path / f"{name}.txt").exists()}
    if not lists:
        raise LayoutError(
            "the sample set has no train.txt",
            where=path,
            fix="run the command that writes the set again",
        )
    found = _open_lists(path, lists)
    listed = [row["id"] for row in manifest.get("samples", ()) if row.get("status") == "ok"]
    outside = [
        i for i in listed if ".." in PurePosixPath(i).parts or PurePosixPath(i).is_absolute()
    ]
    if outside:
        raise LayoutError(
            "the manifest names samples outside the set",
            where=path / MANIFEST,
            found=outside[:3],
            fix="keep every sample inside the folder of its set",
        )
    everything = tuple(listed) or found.splits["all"]
    return SampleSet(path, manifest, {**found.splits, "all": everything}, found.notes)


def _list_files(path: Path) -> dict[str, Path]:
    """The lists of a set by split: train.txt, val.txt, or FaceLift's data_*train*.txt, ..."""
    lists = {n: path / f"{n}.txt" for n in SPLITS if (path / f"{n}.txt").exists()}
    foreign = sorted(path.glob("data_*.txt"))
    for name in SPLITS:
        found = [f for f in foreign if _split_of(f.stem) == name]
        if len(found) > 1 and name not in lists:
            raise LayoutError(
                f"the folder has several lists of {name} samples",
                where=path,
                found=", ".join(f.name for f in found),
                fix="give the list file itself instead of the folder",
            )
        if found:
            lists.setdefault(name, found[0])
    return lists


def _open_lists(path: Path, lists: dict[str, Path]) -> SampleSet:
    problems: list[MouseLiftError] = []
    notes: list[str] = []
    splits: dict[str, tuple[str, ...]] = {}
    for name, file in lists.items():
        ids = []
        try:
            lines = file.read_text().splitlines()
        except UnicodeDecodeError as error:
            problems.append(
                LayoutError(
                    "a list of samples is no text",
                    where=file,
                    found=str(error),
                    fix="write one sample folder a line, in UTF-8",
                )
            )
            continue
        for line in filter(None, map(str.strip, lines)):
            found = _resolve(path, line)
            if found is None:
                problems.append(
                    LayoutError(
                        "a listed sample is missing",
                        where=file,
                        found=line,
                        fix="copy the sample, or take it from the list",
                    )
                )
            else:
                ids.append(found)
                if found != line:
                    notes.append(f"{file.name}: {line} -> {found}")
        splits[_split_of(name)] = tuple(ids)
    raise_all(f"the lists of {path} do not fit its folders", problems[:20])
    splits = {"train": (), "val": (), **splits}
    everything = tuple(dict.fromkeys(i for ids in splits.values() for i in ids))
    return SampleSet(path, {}, {**splits, "all": everything}, tuple(notes))


def _split_of(stem: str) -> str:
    return "val" if re.search(r"val|test", stem) else "train"


def _resolve(root: Path, line: str) -> str | None:
    """A list line as an id relative to `root`.

    Lists of other machines hold that machine's absolute paths: the longest tail of such a path that
    exists under the set is the sample.
    """
    line = line.replace("\\", "/").removesuffix(f"/{CAMERAS}")
    parts = PurePosixPath(line).parts
    if not PurePosixPath(line).is_absolute() and ".." not in parts and (root / line).is_dir():
        return line
    absolute = Path(line)
    if absolute.is_dir() and absolute.resolve().is_relative_to(root.resolve()):
        return absolute.resolve().relative_to(root.resolve()).as_posix()
    for start in range(1, len(parts)):
        tail = PurePosixPath(*parts[start:])
        if ".." not in tail.parts and (root / tail).is_dir():
            return tail.as_posix()
    return None


def _near(path: Path) -> str | None:
    parent = path.parent
    return nearest(path.name, [p.name for p in parent.iterdir()]) if parent.is_dir() else None


# --- pictures ------------------------------------------------------------------------------------


def _picture_path(folder: Path, slot: int, frame: dict[str, Any]) -> Path:
    names = [frame.get("file_path"), f"images/cam_{slot:03d}.png", f"cam_{slot:03d}.png"]
    for name in filter(lambda n: isinstance(n, str) and n, names):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise LayoutError(
                "a picture's path leads out of its sample",
                where=folder / CAMERAS,
                expected="a path inside the sample's folder",
                found=name,
                fix="keep the pictures in images/ beside opencv_cameras.json",
            )
        if (folder / name).exists():
            return folder / name
    raise LayoutError(
        f"the picture of view {slot} is missing",
        where=folder,
        expected=" or ".join(str(n) for n in names if n),
        fix="delete the sample's folder and run the command that made it again",
    )


def _pictures_without_cameras(folder: Path) -> list[Path]:
    found = sorted(folder.glob("images/cam_*.png")) or sorted(folder.glob("cam_*.png"))
    if not found:
        raise LayoutError(
            "a sample without pictures",
            where=folder,
            expected="images/cam_000.png ...",
            fix="images/cam_000.png, cam_001.png, ... in slot order",
        )
    return found


def _check_pictures(
    pictures: list[np.ndarray], paths: list[Path], record: dict[str, Any] | None
) -> None:
    problems: list[MouseLiftError] = []
    frames = record["frames"] if record else [{}]
    expected = (frames[0].get("h", pictures[0].shape[0]), frames[0].get("w", pictures[0].shape[1]))
    for picture, path in zip(pictures, paths, strict=True):
        if picture.shape[:2] != tuple(expected):
            problems.append(
                LayoutError(
                    "a picture differs in size from its camera",
                    where=path,
                    expected=f"{expected[1]} x {expected[0]}",
                    found=f"{picture.shape[1]} x {picture.shape[0]}",
                    fix="intrinsics count pixels of the picture beside them: rewrite both together",
                )
            )
    raise_all("pictures and cameras of a sample disagree", problems)


def _with_alpha(picture: np.ndarray) -> np.ndarray:
    if picture.shape[2] == 4:
        return picture
    return np.concatenate([picture, np.full_like(picture[..., :1], 255)], axis=-1)
