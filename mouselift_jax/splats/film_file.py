"""A film in one file: motion quantised against each segment's set at rest (docs/film_format.md).

A zip archive of film.json and numpy arrays, so `np.load` opens it. Positions are within 0.09 mm of
what was written, rotations within 0.2 degrees, colours within 1/512.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from mouselift_jax.errors import LayoutError, ShapeError
from mouselift_jax.files import atomic_path, check_replaceable
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.splats.gaussians import SH_COUNTS, Gaussians
from mouselift_jax.splats.reel import Reel
from mouselift_jax.splats.sh import C0

SUFFIX, INDEX = ".film", "film.json"
FORMAT, VERSION = "mouselift_jax film", 1
PART = 16  # frames that are read together
STEP_MM = 0.1  # of positions
STEPS_OF_SIZE = 1000  # of positions where the unit is unknown: steps along the animal
STEP_QUAT, STEP_SH = 1 / 512, 1 / (256 * C0)
PLANES = 4  # bytes of a number, at most
_REST = {"means": "<f4", "quats": "<f2", "log_scales": "<f2", "opacity_logits": "<f2", "sh": "<f2"}
_MOVES = ("means", "quats", "sh")


# --- writing -------------------------------------------------------------------------------------


def save_film_file(path: str | Path, reel: Reel, *, overwrite: bool = False) -> int:
    """Write a film, whole or not at all; a part of its frames is in memory at a time.

    Returns:
        The file's size in bytes.

    Raises:
        LayoutError: another program's file is there, or numbers of a Gaussian are not finite.
        ShapeError: the Gaussians of a segment are not the same ones.
    """
    path = Path(path)
    check_replaceable(path, overwrite=overwrite)
    with atomic_path(path) as part, part.open("wb") as stream:
        write_film(stream, reel, where=path)
    return path.stat().st_size


def write_film(stream: io.BufferedIOBase, reel: Reel, *, where: object = None) -> None:
    """The same into a binary stream."""
    rests, parts = {}, _parts(reel.segment)
    for segment, at in parts:  # the set at rest is the first frame of its segment
        if segment not in rests:
            rests[segment] = _rest(reel.gaussians(int(at[0])), where)
    step = _step(reel, next(iter(rests.values())))
    about = {
        "format": FORMAT, "version": VERSION, "scene_scale": reel.scene_scale,
        "recording_from_film": _record(reel.recording_from_film),
        "frames": reel.frames.tolist(),
        "times": [float(t) if np.isfinite(t) else None for t in reel.times],
        "step": {"means": step, "quats": STEP_QUAT, "sh": STEP_SH},
        "segments": [{"number": int(s), "gaussians": len(r["means"]), "coefficients":
                      r["sh"].shape[1]} for s, r in rests.items()],
        "parts": [{"segment": int(s), "at": at.tolist()} for s, at in parts],
    }  # fmt: skip
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(INDEX, json.dumps(about), zipfile.ZIP_STORED)  # bears our name, readable
        for segment, rest in rests.items():
            seen = reel.seen(int(segment))
            for name, values in rest.items():
                _put(archive, f"segment_{segment:03d}/{name}", values)
            if seen is not None and len(seen) == len(rest["means"]):
                _put(archive, f"segment_{segment:03d}/seen", np.asarray(seen, "<f2"))
        for number, (segment, at) in enumerate(parts):
            moved = _moved([reel.gaussians(int(i)) for i in at], rests[segment], where)
            for name, values in _coded(moved, rests[segment], about["step"]).items():
                _put(archive, f"part_{number:05d}/{name}", values)


def _parts(segment: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(segment, frames of the reel) of every part: neighbours in time of one segment."""
    cuts = np.flatnonzero(np.diff(segment)) + 1
    return [
        (int(segment[run[0]]), run[i : i + PART])
        for run in np.split(np.arange(len(segment)), cuts)
        for i in range(0, len(run), PART)
    ]


def _rest(gaussians: Gaussians, where: object) -> dict[str, np.ndarray]:
    found = {name: np.asarray(getattr(gaussians, name)) for name in _REST}
    found["quats"] = np.asarray(gaussians.activate().quats)
    rest = {name: found[name].astype(kind) for name, kind in _REST.items()}
    _check_finite(rest, where)
    return rest


def _check_finite(arrays: dict[str, np.ndarray], where: object) -> None:
    bad = [name for name, values in arrays.items() if not np.isfinite(values).all()]
    if bad:
        raise LayoutError(
            "Gaussians of a film hold what is no number", where=where, found=", ".join(bad),
            fix="look at the run with `view`; fit it again",
        )  # fmt: skip


def _step(reel: Reel, rest: dict[str, np.ndarray]) -> float:
    if reel.scene_scale:
        return STEP_MM * reel.scene_scale
    size = np.ptp(np.quantile(rest["means"], (0.02, 0.98), axis=0), axis=0).max()
    return float(size or 1.0) / STEPS_OF_SIZE


def _moved(
    frames: list[Gaussians], rest: dict[str, np.ndarray], where: object
) -> dict[str, np.ndarray]:
    """What changes from frame to frame, [T,N,...]; all else must be the set's at rest."""
    for g in frames:
        for name in ("log_scales", "opacity_logits"):
            here = np.asarray(getattr(g, name))
            if here.shape != rest[name].shape or not np.array_equal(here.astype("<f2"), rest[name]):
                raise ShapeError(
                    "the Gaussians of a segment are not the same ones in all frames", where=where,
                    expected=f"{name} {list(rest[name].shape)} as in its first frame",
                    found=list(here.shape), fix="one segment for each set",
                )  # fmt: skip
    moved = {
        "means": np.stack([np.asarray(g.means, np.float64) for g in frames]),
        "quats": np.stack([np.asarray(g.activate().quats, np.float64) for g in frames]),
        "sh": np.stack([np.asarray(g.sh, np.float64) for g in frames]),
    }
    _check_finite(moved, where)
    return moved


def _coded(
    moved: dict[str, np.ndarray], rest: dict[str, np.ndarray], step: dict[str, float]
) -> dict[str, np.ndarray]:
    """The arrays of a part."""
    still = rest["means"].astype(np.float64)
    middle = still.mean(0)
    pose, left = [], {"means": [], "quats": []}
    back = _rotation(rest["quats"]).inv()
    for means, quats in zip(moved["means"], moved["quats"], strict=True):
        body = _turned(still - middle, means - means.mean(0))
        origin = means.mean(0) - body.apply(middle)
        pose.append([*body.as_quat(scalar_first=True), *origin])
        left["means"].append(body.inv().apply(means - origin) - still)
        turn = (body.inv() * _rotation(quats) * back).as_quat(scalar_first=True)
        before = left["quats"][-1] if left["quats"] else np.array([1.0, 0, 0, 0])
        left["quats"].append(turn * np.where((turn * before).sum(-1, keepdims=True) < 0, -1, 1))
    left["sh"] = (moved["sh"] - rest["sh"].astype(np.float64)).reshape(len(pose), len(still), -1)
    numbers = {n: np.round(np.asarray(left[n]) / step[n]).astype(np.int64) for n in _MOVES}
    return {"pose": np.asarray(pose, "<f8")} | {n: _planes(v) for n, v in numbers.items()}


def _turned(still: np.ndarray, moved: np.ndarray) -> Rotation:
    """The rotation that lays points [N,3] about the origin upon others, least squares."""
    u, _, vt = np.linalg.svd(still.T @ moved)
    mirrored = np.sign(np.linalg.det(u @ vt))
    return Rotation.from_matrix(vt.T @ np.diag([1, 1, mirrored]) @ u.T)


def _planes(numbers: np.ndarray) -> np.ndarray:
    """Whole numbers [T,N,C] as bytes [B,C,T,N], lowest first: differences in time, zigzag."""
    steps = np.diff(numbers, axis=0, prepend=0).transpose(2, 0, 1)
    zigzag = (steps << 1) ^ (steps >> 63)
    count = max(1, -(-int(zigzag.max(initial=0)).bit_length() // 8))
    if count > PLANES:
        raise LayoutError(
            "a Gaussian moves too far for a film", expected=f"below 2^{8 * PLANES} steps",
            found=int(zigzag.max()), fix="look at the run with `view`; fit it again",
        )  # fmt: skip
    return np.stack([(zigzag >> (8 * b)).astype(np.uint8) for b in range(count)])


def _rotation(quats: np.ndarray) -> Rotation:
    quats = np.array(quats, np.float64)
    quats[~quats.any(-1)] = 1.0, 0, 0, 0  # a zero quaternion stands for no rotation
    return Rotation.from_quat(quats, scalar_first=True)


def _put(archive: zipfile.ZipFile, name: str, values: np.ndarray) -> None:
    with archive.open(f"{name}.npy", "w") as stream:
        np.lib.format.write_array(stream, np.ascontiguousarray(values), allow_pickle=False)


def _record(similarity: Similarity | None) -> dict[str, Any] | None:
    if similarity is None:
        return None
    return {"scale": float(similarity.scale), "R": np.asarray(similarity.R).tolist(),
            "t": np.asarray(similarity.t).tolist()}  # fmt: skip


# --- reading -------------------------------------------------------------------------------------


def load_film_file(path: str | Path) -> Reel:
    """The film of a file; frames are read when they are asked for, a part at a time.

    Raises:
        LayoutError: it is missing, damaged, no such file, or of a later version. What lies in a
            part that is damaged is told when a frame of it is asked for.
    """
    file = _File(Path(path))
    about = file.about
    segment = np.zeros(len(about["frames"]), int)
    place = {}
    for number, part in enumerate(about["parts"]):
        for row, i in enumerate(part["at"]):
            segment[i], place[i] = part["segment"], (number, row)
    moved = about["recording_from_film"]
    held: dict[int, list[Gaussians]] = {}  # the part that was read last

    def gaussians(i: int) -> Gaussians:
        number, row = place[range(len(segment))[i]]
        if number not in held:
            frames = file.part(number)
            held.clear()
            held[number] = frames
        return held[number][row]

    return Reel(
        np.array(about["frames"], int), segment,
        np.array([np.nan if t is None else t for t in about["times"]], float), gaussians,
        file.seen, about["scene_scale"],
        moved and Similarity(moved["scale"], np.array(moved["R"]), np.array(moved["t"])),
    )  # fmt: skip


class _File:
    """The archive; every array is held against what film.json says of it before it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise LayoutError("no such film", where=path, fix="check the path")
        self.about = self._read(INDEX, self._about)
        self._sets = {s["number"]: s for s in self.about["segments"]}
        self._rest: dict[int, dict[str, np.ndarray]] = {}

    def _wrong(self, what: str, **more: Any) -> LayoutError:
        fix = more.pop("fix", "copy or export it again")
        return LayoutError(what, where=self.path, fix=fix, **more)

    def _read(self, name: str, use: Callable[[io.BufferedIOBase, int], Any]) -> Any:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(name) as stream:
                return use(stream, archive.getinfo(name).file_size)
        except KeyError:
            raise self._wrong(
                "not a film, or not all of it", expected=f"{name} in the archive",
                fix=f"give a *{SUFFIX} that `export --to=film` wrote",
            ) from None  # fmt: skip
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise self._wrong(
                "not a film, or a damaged one", expected="a whole zip archive", found=error,
                fix=f"give a *{SUFFIX} that `export --to=film` wrote, or copy it again",
            ) from error  # fmt: skip

    def _about(self, stream: io.BufferedIOBase, size: int) -> dict[str, Any]:
        del size
        try:
            about = json.loads(stream.read())
        except ValueError as error:
            raise self._wrong("film.json is not JSON", found=error) from error
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise self._wrong("an archive of something else", expected=f"format: {FORMAT}")
        if about.get("version") != VERSION:
            raise self._wrong("a film of another version", expected=VERSION,
                              found=about.get("version"), fix="update this program")  # fmt: skip
        problems = list(_problems(about))
        if problems:
            raise self._wrong("film.json contradicts itself", found="; ".join(problems[:5]))
        return about

    def _array(self, name: str, kind: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """One array; None in a shape is any number of bytes up to `PLANES`."""

        def use(stream: io.BufferedIOBase, size: int) -> np.ndarray:
            form = np.lib.format
            try:
                major, _ = form.read_magic(stream)
                read = form.read_array_header_1_0 if major == 1 else form.read_array_header_2_0
                found, column, dtype = read(stream)
            except ValueError as error:
                raise self._wrong("an array is damaged", found=f"{name}: {error}") from error
            fits = len(found) == len(shape) and all(
                f == s if s is not None else 1 <= f <= PLANES
                for f, s in zip(found, shape, strict=True)
            )
            room = int(np.prod(found)) * dtype.itemsize
            if not fits or column or dtype.str != np.dtype(kind).str or room > size:
                wanted = [s or f"1-{PLANES}" for s in shape]
                raise self._wrong(
                    "an array does not fit film.json", expected=f"{name}: {kind} {wanted}",
                    found=f"{dtype.str} {list(found)} in {size} bytes",
                )  # fmt: skip
            data = stream.read()  # to the end: that is where the archive checks its sum
            if len(data) != room:
                raise self._wrong("an array is damaged", expected=f"{name}: {room} bytes",
                                  found=len(data))  # fmt: skip
            return np.frombuffer(data, dtype).reshape(found)

        return self._read(f"{name}.npy", use)

    def seen(self, segment: int) -> np.ndarray | None:
        name = f"segment_{segment:03d}/seen"
        with zipfile.ZipFile(self.path) as archive:
            if f"{name}.npy" not in archive.namelist():
                return None
        n = self._sets[segment]["gaussians"]
        return self._array(name, "<f2", (n,)).astype(np.float32)

    def rest(self, segment: int) -> dict[str, np.ndarray]:
        if segment not in self._rest:
            n, s = (self._sets[segment][k] for k in ("gaussians", "coefficients"))
            shapes = {"means": (n, 3), "quats": (n, 4), "log_scales": (n, 3),
                      "opacity_logits": (n,), "sh": (n, s, 3)}  # fmt: skip
            rest = {
                name: self._array(f"segment_{segment:03d}/{name}", kind, shapes[name])
                for name, kind in _REST.items()
            }
            _check_finite(rest, self.path)
            self._rest[segment] = rest
        return self._rest[segment]

    def part(self, number: int) -> list[Gaussians]:
        """The Gaussians of the frames of a part."""
        about, step = self.about["parts"][number], self.about["step"]
        rest, t = self.rest(about["segment"]), len(about["at"])
        n, s = rest["sh"].shape[:2]
        pose = self._array(f"part_{number:05d}/pose", "<f8", (t, 7))
        _check_finite({"pose": pose}, self.path)
        whole = {}
        for name, c in (("means", 3), ("quats", 4), ("sh", 3 * s)):
            planes = self._array(f"part_{number:05d}/{name}", "|u1", (None, c, t, n))
            whole[name] = _numbers(planes) * step[name]
        still, first = rest["means"].astype(np.float64), _rotation(rest["quats"])
        log_scales, opacities = (
            rest[k].astype(np.float32) for k in ("log_scales", "opacity_logits")
        )
        frames = []
        for i, (*turn, x, y, z) in enumerate(pose):
            body = _rotation(np.array(turn))
            means = body.apply(still + whole["means"][i]) + (x, y, z)
            quats = (body * _rotation(whole["quats"][i]) * first).as_quat(scalar_first=True)
            sh = rest["sh"] + whole["sh"][i].reshape(n, s, 3)
            frames.append(Gaussians(means.astype(np.float32), quats.astype(np.float32),
                                    log_scales, opacities, sh.astype(np.float32)))  # fmt: skip
        return frames


def _numbers(planes: np.ndarray) -> np.ndarray:
    """The way back from `_planes`: [B,C,T,N] -> [T,N,C]."""
    zigzag = sum(p.astype(np.int64) << (8 * b) for b, p in enumerate(planes))
    return ((zigzag >> 1) ^ -(zigzag & 1)).cumsum(1).transpose(1, 2, 0)


def _problems(about: dict[str, Any]) -> Iterator[str]:
    """What is wrong with film.json."""
    frames, times, step = (about.get(k) for k in ("frames", "times", "step"))
    if not (isinstance(frames, list) and frames and all(isinstance(f, int) for f in frames)):
        yield "frames is no list of whole numbers"
        return
    if not (isinstance(times, list) and len(times) == len(frames)
            and all(t is None or isinstance(t, int | float) for t in times)):  # fmt: skip
        yield f"times is no list of {len(frames)} seconds or null"
    if not (isinstance(step, dict) and all(_above_0(step.get(n)) for n in _MOVES)):
        yield "step does not hold means, quats and sh, each above 0"
    if about.get("scene_scale") is not None and not _above_0(about["scene_scale"]):
        yield "scene_scale is neither null nor above 0"
    moved = about.get("recording_from_film", "")
    if moved is not None and not (
        isinstance(moved, dict) and _above_0(moved.get("scale"))
        and _has_shape(moved.get("R"), (3, 3)) and _has_shape(moved.get("t"), (3,))
    ):  # fmt: skip
        yield "recording_from_film is neither null nor scale, R [3,3], t [3]"
    sets, parts = about.get("segments"), about.get("parts")
    if not (isinstance(sets, list) and all(isinstance(s, dict) for s in sets)
            and isinstance(parts, list) and all(isinstance(p, dict) for p in parts)):  # fmt: skip
        yield "segments and parts are not lists of records"
        return
    known = set()
    for s in sets:
        number, n, count = (s.get(k) for k in ("number", "gaussians", "coefficients"))
        if not (_whole(number) and _whole(n) and n > 0 and count in SH_COUNTS):
            yield f"segment {number!r} holds no number, gaussians or coefficients"
        else:
            known.add(number)
    places = [p.get("at") for p in parts]
    if not all(_whole(p.get("segment")) and p["segment"] in known for p in parts):
        yield "a part is of a segment that is not there"
    if not all(isinstance(a, list) and a and all(_whole(i) for i in a) for a in places) or sorted(
        i for a in places for i in a
    ) != list(range(len(frames))):
        yield f"the parts do not hold each of {len(frames)} frames once"


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    try:
        found = np.array(value, np.float64)
    except (ValueError, TypeError):  # ragged, or words
        return False
    return found.shape == shape and bool(np.isfinite(found).all())


def _above_0(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < np.inf


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
