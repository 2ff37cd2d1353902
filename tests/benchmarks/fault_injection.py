"""Does `check` name the right fault? Plants each fault in a copy of a recording and asks.

    python -m tests.benchmarks.fault_injection [RECORDING] [--only NAME] [--json FILE] [--table]

FILE takes every row as it is done; the same command goes on after an interruption with the rows
that are not there yet, unless the code has changed since. --table prints docs/checking.md's rows.

RECORDING defaults to recordings/mouse_a in the folder MOUSELIFT_SHARED (../shared). Each fault is
planted in different depths: in the colour video alone, in colour and masks, or in the calibration;
keypoints stay as they are, as they would if they had been made before the mishap.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import cv2
import numpy as np

import mouselift_jax
from mouselift_jax.data.check import observe
from mouselift_jax.data.check.recording import check_recording
from mouselift_jax.data.synthetic.recording import lossless

COLOUR, MASKS, KEYPOINTS = "videos_undist", "simpleclick_undist", "keypoints2d_undist"


def link_copy(source: Path, target: Path) -> Path:
    """A copy whose files are links to the original's, to be replaced one by one."""
    for path in source.rglob("*"):
        if path.is_file() and "heldout" not in path.parts:
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())
    return target


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Pass all frames [F,H,W,3] of a video through `change` and encode them again."""
    capture = cv2.VideoCapture(str(path))
    fps, frames = capture.get(cv2.CAP_PROP_FPS), []
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        frames.append(frame[..., ::-1])
    capture.release()
    frames = change(np.stack(frames))
    path.unlink()
    with lossless(path, fps) as write:
        for frame in frames:
            write(np.ascontiguousarray(frame))


def exchange(a: Path, b: Path) -> None:
    """Exchange two files."""
    spare = a.with_name("spare" + a.suffix)
    a.rename(spare)
    b.rename(a)
    spare.rename(b)


def calibration(path: Path, change: Callable[[list[dict]], None]) -> None:
    """Change new_cam.pkl."""
    file = path / "new_cam.pkl"
    rows = pickle.loads(file.read_bytes())
    change(rows)
    file.unlink()
    file.write_bytes(pickle.dumps(rows))


def videos(path: Path, camera: int, depth: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Rewrite the colour video, the masks, or both of one camera."""
    for folder in {"colour": [COLOUR], "both": [COLOUR, MASKS], "masks": [MASKS]}[depth]:
        rewrite(path / folder / f"{camera}.mp4", change)


def shift(frames: int) -> Callable[[np.ndarray], np.ndarray]:
    """Run ahead by `frames`; the last frame is repeated so that the count stays."""
    return lambda x: np.concatenate([x[frames:], np.repeat(x[-1:], frames, 0)])


def mirror(x: np.ndarray) -> np.ndarray:
    """Left to right."""
    return x[:, :, ::-1]


def crop(x: np.ndarray) -> np.ndarray:
    """Cut 10 % off left and top, 4 % off right and bottom."""
    h, w = x.shape[1:3]
    y0, y1, x0, x1 = (2 * round(v / 2) for v in (0.1 * h, 0.96 * h, 0.1 * w, 0.96 * w))
    return x[:, y0:y1, x0:x1]


def crop_padded(x: np.ndarray) -> np.ndarray:
    """The same, with black in place of what was cut off."""
    h, w = x.shape[1:3]
    out = np.zeros_like(x)
    y0, y1, x0, x1 = (2 * round(v / 2) for v in (0.1 * h, 0.96 * h, 0.1 * w, 0.96 * w))
    out[:, y0:y1, x0:x1] = x[:, y0:y1, x0:x1]
    return out


def crop_resized(x: np.ndarray) -> np.ndarray:
    """The same, blown up to the old size."""
    h, w = x.shape[1:3]
    return np.stack([cv2.resize(f, (w, h)) for f in crop(x)])


def late(frames: int) -> Callable[[np.ndarray], np.ndarray]:
    """Start late: black frames first, and the end is missing."""
    return lambda x: np.concatenate([np.zeros_like(x[:frames]), x[:-frames]])


def without(path: Path, folder: str) -> None:
    """Take a folder out."""
    shutil.rmtree(path / folder)


def swap_rows(rows: list[dict], i: int, j: int) -> None:
    """Exchange two calibrations."""
    rows[i], rows[j] = rows[j], rows[i]


def scale_K(rows: list[dict], camera: int, factor: float, whole: bool = False) -> None:
    """Scale the focal lengths, or all of K."""
    K = np.array(rows[camera]["K"])
    if whole:
        K[:2] *= factor
    else:
        K[0, 0] *= factor
        K[1, 1] *= factor
    rows[camera]["K"] = K


def nudge(rows: list[dict]) -> None:
    """Turn every camera by a degree and change its focal length by 1 %, each in its own way."""
    rng = np.random.default_rng(0)
    for camera, row in enumerate(rows):
        way = rng.normal(size=3)
        turn = cv2.Rodrigues(np.radians(1.0) * way / np.linalg.norm(way))[0]
        row["R"], row["T"] = turn @ row["R"], turn @ np.ravel(row["T"])
        scale_K(rows, camera, rng.choice([0.99, 1.01]))


def scale_T(rows: list[dict], cameras: list[int], factor: float) -> None:
    """Scale translations."""
    for c in cameras:
        rows[c]["T"] = np.asarray(rows[c]["T"]) * factor


@dataclasses.dataclass(frozen=True)
class Fault:
    """One row of the table: what is planted, what must be said."""

    name: str
    plant: Callable[[Path], None]
    code: str
    cameras: tuple[int, ...]
    number: tuple[str, float, float] | None = None  # evidence key, value, tolerance


def faults() -> list[Fault]:
    """All faults of the table."""
    everyone = (0, 1, 2, 3, 4, 5)
    rows = [
        Fault("swap 1,4 in calibration", lambda p: calibration(p, lambda r: swap_rows(r, 1, 4)),
              "cameras_swapped", (1, 4)),
        Fault("swap colour+masks 2,5", lambda p: [
            exchange(p / f / "2.mp4", p / f / "5.mp4") for f in (COLOUR, MASKS)],
              "cameras_swapped", (2, 5)),
        Fault("swap colour 0,3", lambda p: exchange(p / COLOUR / "0.mp4", p / COLOUR / "3.mp4"),
              "cameras_swapped", (0, 3)),
        Fault("swap masks 1,2", lambda p: exchange(p / MASKS / "1.mp4", p / MASKS / "2.mp4"),
              "masks_swapped", (1, 2)),
        Fault("T x 1000, all", lambda p: calibration(p, lambda r: scale_T(r, list(everyone), 1e3)),
              "translation_units", everyone, ("factor", 1000, 1)),
        Fault("T / 1000, all", lambda p: calibration(p, lambda r: scale_T(r, list(everyone), 1e-3)),
              "translation_units", everyone, ("factor", 0.001, 1e-4)),
        Fault("T x 1000, camera 2", lambda p: calibration(p, lambda r: scale_T(r, [2], 1e3)),
              "translation_units", (2,), ("factor", 1000, 1)),
        Fault("transpose R 3", lambda p: calibration(
            p, lambda r: r[3].update(R=np.array(r[3]["R"]).T.copy())),
              "rotation_transposed", (3,)),
        Fault("K 5 % off, camera 4", lambda p: calibration(p, lambda r: scale_K(r, 4, 1.05)),
              "intrinsics_wrong", (4,), ("factor", 1.05, 0.005)),
        Fault("K -5 %, camera 0", lambda p: calibration(p, lambda r: scale_K(r, 0, 0.95)),
              "intrinsics_wrong", (0,), ("factor", 0.95, 0.005)),
        Fault("whole K 5 % off, camera 1", lambda p: calibration(
            p, lambda r: scale_K(r, 1, 1.05, True)),
              "intrinsics_wrong", (1,), ("factor", 1.05, 0.005)),
        Fault("all cameras a little off", lambda p: calibration(p, nudge), "calibration_off", ()),
        Fault("mirrored world (det R = -1)", lambda p: calibration(
            p, lambda r: [x.update(R=x["R"] @ np.diag([1.0, 1.0, -1.0])) for x in r]),
              "handedness", (0,)),
    ]  # fmt: skip
    rows.append(Fault("cropped+black, colour 1", lambda p: videos(p, 1, "colour", crop_padded),
                      "video_cropped", (1,)))  # fmt: skip
    for depth in ("colour", "both"):
        for n in (1, 3, 10):
            rows.append(
                Fault(f"shift {n}, {depth} 2", lambda p, n=n, d=depth: videos(p, 2, d, shift(n)),
                      "video_offset", (2,), ("frames", n, 0.5))
            )  # fmt: skip
        rows.append(
            Fault(f"drop first 3, {depth} 5", lambda p, d=depth: videos(p, 5, d, lambda x: x[3:]),
                  "video_offset", (5,), ("frames", 3, 0.5))
        )  # fmt: skip
        for name, change in (("cropped", crop), ("cropped+resized", crop_resized)):
            rows.append(
                Fault(f"{name}, {depth} 1", lambda p, c=change, d=depth: videos(p, 1, d, c),
                      "video_cropped", (1,))
            )  # fmt: skip
        rows.append(
            Fault(f"mirrored, {depth} 4", lambda p, d=depth: videos(p, 4, d, mirror),
                  "video_mirrored", (4,))
        )  # fmt: skip
    return [Fault("clean", lambda p: None, "", ()), *rows, *untuned(), *labs()]


def untuned() -> list[Fault]:
    """Faults that came after the thresholds: no number in the checks was chosen on them."""
    everyone = (0, 1, 2, 3, 4, 5)
    return [
        Fault("no keypoints", lambda p: without(p, KEYPOINTS), "", ()),
        Fault("no masks", lambda p: without(p, MASKS), "", ()),
        Fault("no masks, swap 0,3 in calibration", lambda p: [
            without(p, MASKS), calibration(p, lambda r: swap_rows(r, 0, 3))],
              "cameras_swapped", (0, 3)),
        Fault("no keypoints, transpose R 4", lambda p: [
            without(p, KEYPOINTS), calibration(
                p, lambda r: r[4].update(R=np.array(r[4]["R"]).T.copy()))],
              "rotation_transposed", (4,)),
        Fault("cameras numbered from the next on", lambda p: calibration(
            p, lambda r: r.append(r.pop(0))), "cameras_swapped", everyone),
        Fault("principal point 40 px off, camera 1", lambda p: calibration(
            p, lambda r: r[1].update(K=r[1]["K"] + [[0, 0, 40.0], [0, 0, 0], [0, 0, 0]])),
              "intrinsics_wrong", (1,), ("principal_point_off_x", 40, 2)),
        Fault("fx alone 5 % off, camera 2", lambda p: calibration(
            p, lambda r: r[2].update(K=r[2]["K"] * [[1.05, 1, 1], [1, 1, 1], [1, 1, 1]])),
              "intrinsics_wrong", (2,), ("factor_x", 1.05, 0.01)),
        Fault("late by 5 (black), both 3", lambda p: videos(p, 3, "both", late(5)),
              "video_offset", (3,), ("frames", -5, 0.5)),
        Fault("late by 3 (black), colour 1", lambda p: videos(p, 1, "colour", late(3)),
              "video_offset", (1,), ("frames", -3, 0.5)),
        Fault("upside down, both 2", lambda p: videos(p, 2, "both", lambda x: x[:, ::-1]),
              "video_mirrored", (2,)),
        Fault("upside down, colour 3", lambda p: videos(p, 3, "colour", lambda x: x[:, ::-1]),
              "video_mirrored", (3,)),
        Fault("mirrored, masks 5", lambda p: videos(p, 5, "masks", mirror),
              "video_mirrored", (5,)),
    ]  # fmt: skip


def order(index: Callable[[int], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Frames in another order: `index` of their number; beyond the end the last is repeated."""
    return lambda x: x[np.clip(index(len(x)), 0, len(x) - 1)]


def lost(at: int, n: int) -> Callable[[np.ndarray], np.ndarray]:
    """n frames lost at `at` (negative: doubled), the end filled up so that the count stays."""
    return order(lambda f: np.where(np.arange(f) < at, np.arange(f), np.arange(f) + n))


def resized(x: np.ndarray, factor: float) -> np.ndarray:
    """Frames at another size, even numbers of pixels."""
    h, w = (2 * round(factor * v / 2) for v in x.shape[1:3])
    return np.stack([cv2.resize(f, (w, h), interpolation=cv2.INTER_AREA) for f in x])


def every(path: Path, depth: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Rewrite the videos of all cameras."""
    for camera in range(6):
        videos(path, camera, depth, change)


def turn_world(rows: list[dict], turn: np.ndarray) -> None:
    """Give the calibration another world: X_new = turn X."""
    for row in rows:
        row["R"] = np.asarray(row["R"]) @ turn.T


def two_bodies(x: np.ndarray) -> np.ndarray:
    """The silhouette and one more of the same size, elsewhere in the picture."""
    return np.maximum(x, np.roll(x, (x.shape[1] // 2, x.shape[2] // 3), (1, 2)))


def shades(x: np.ndarray) -> np.ndarray:
    """A cut-out's greys in place of white."""
    coat = np.random.default_rng(0).integers(10, 90, x.shape[1:3], dtype=np.uint8)
    coat = cv2.resize(coat[::6, ::6], x.shape[2:0:-1], interpolation=cv2.INTER_NEAREST)
    return np.where(x > 127, coat[None, ..., None], 0).astype(np.uint8)


def labs() -> list[Fault]:
    """Faults that recordings of labs have: time, sizes, masks, worlds."""
    everyone = (0, 1, 2, 3, 4, 5)
    time = [
        ("lost 4 at 30", "both", 1, lost(30, 4), "frames_lost", ("frames", 4, 0.5)),
        ("lost 2 at 60", "both", 4, lost(60, 2), "frames_lost", ("frames", 2, 0.5)),
        ("lost 5 at 50", "colour", 3, lost(50, 5), "frames_lost", ("frames", 5, 0.5)),
        ("doubled 3 at 40", "both", 0, lost(40, -3), "frames_doubled", ("frames", 3, 0.5)),
        ("drift of 6 %", "both", 5, order(lambda f: np.round(np.arange(f) * 1.06).astype(int)),
         "clock_drift", None),
        ("twice the rate", "both", 2, order(lambda f: np.arange(f) // 2), "clock_drift", None),
        ("pieces exchanged at 30", "both", 3, lambda x: np.concatenate([x[30:], x[:30]]),
         "pieces_exchanged", None),
        ("half the rate, filled up", "both", 5, order(lambda f: np.arange(f) // 2 * 2),
         "frames_doubled", None),
        ("half a turn", "both", 1, lambda x: x[:, ::-1, ::-1], "video_turned", None),
        ("half a turn", "colour", 4, lambda x: x[:, ::-1, ::-1], "video_turned", None),
        ("a quarter turn", "both", 2, lambda x: np.rot90(x, -1, (1, 2)), "video_turned", None),
        ("half size", "both", 3, lambda x: resized(x, 0.5), "picture_resized",
         ("factor_x", 0.5, 0.01)),
        ("two thirds of the size", "both", 0, lambda x: resized(x, 2 / 3), "picture_resized",
         ("factor_x", 2 / 3, 0.01)),
        ("white everywhere", "masks", 2, lambda x: np.full_like(x, 255), "mask_not_animal", None),
        ("shades", "masks", 1, shades, "mask_levels", None),
    ]  # fmt: skip
    rows = [
        Fault(f"lab: {name}, {depth} {camera}",
              lambda p, c=camera, d=depth, f=change: videos(p, c, d, f), code, (camera,), number)
        for name, depth, camera, change, code, number in time
    ]  # fmt: skip
    first = lambda r: turn_world(r, np.asarray(r[0]["R"]))  # noqa: E731
    up_y = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    return [
        *rows,
        Fault("lab: half size, all", lambda p: every(p, "both", lambda x: resized(x, 0.5)),
              "picture_resized", everyone),
        Fault("lab: masks inverted", lambda p: every(p, "masks", lambda x: 255 - x),
              "mask_inverted", everyone),
        Fault("lab: two bodies", lambda p: every(p, "masks", two_bodies), "several_animals",
              everyone),
        Fault("lab: all principal points 2 px off", lambda p: calibration(p, lambda r: [
            x.update(K=x["K"] + [[0, 0, 2.0], [0, 0, 2.0], [0, 0, 0]]) for x in r]),
              "principal_points", everyone, ("x", 2, 0.4)),
        Fault("lab: one pose twice", lambda p: calibration(p, lambda r: r.__setitem__(5, r[2])),
              "calibration_duplicate", (2, 5)),
        Fault("lab: the world is camera 0", lambda p: calibration(p, first),
              "world_not_z_up", ()),
        Fault("lab: y is up", lambda p: calibration(p, lambda r: turn_world(r, up_y)),
              "world_not_z_up", ()),
    ]  # fmt: skip


_seen: dict[tuple, dict] = {}


@contextlib.contextmanager
def seen_once() -> Iterator[None]:
    """Within: a camera whose files a fault left alone is not decoded again, it was seen before.

    What is seen depends on its two files, its K and lens, and the frames looked at; nothing else.
    """
    read = observe._View.read

    def remembered(view: observe._View) -> None:
        recording, v = view.recording, view.v
        sources = [recording.videos[v], *((recording.masks or ())[v : v + 1])]
        if not all(f.path.is_symlink() for f in sources):
            read(view)
            return
        lens = recording.distortion[v]
        key = (
            *(dataclasses.replace(f, path=f.path.resolve()) for f in sources),
            recording.mask_kind, np.asarray(recording.cameras[v].K).tobytes(),
            None if lens is None else repr(lens), view.frames.tobytes(), tuple(sorted(view.rows)),
        )  # fmt: skip
        if key not in _seen:
            read(view)
            _seen[key] = {k: x for k, x in vars(view).items() if k not in ("recording", "v")}
        vars(view).update(_seen[key])

    with mock.patch.object(observe._View, "read", remembered):
        yield


def examine(source: Path, fault: Fault, folder: Path) -> dict:
    """Plant one fault, check, compare."""
    path = link_copy(source, folder / "recording")
    fault.plant(path)
    started = time.process_time()
    with seen_once():
        result = check_recording(path)
    told = [f for f in result.findings if f.severity != "info"]
    first = told[0] if told else None
    right = first is None and not fault.code
    if first is not None:
        right = first.code == fault.code and set(fault.cameras) <= set(first.cameras)
        if fault.number is not None and right:
            key, value, tolerance = fault.number
            right = abs(first.evidence[key] - value) <= tolerance
    alarms = [f.code for f in told[1:]]
    return {
        "fault": fault.name,
        "expected": fault.code or "nothing",
        "named": f"{first.code} {list(first.cameras)}" if first else "nothing",
        "says": first.message if first else "",
        "right": bool(right),
        "other alarms": alarms,
        "cpu_s": round(time.process_time() - started, 1),
    }


@functools.cache
def code() -> str:
    """Digest of all source that rows may depend on."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for folder in ("data", "geometry"):
        for file in sorted((Path(mouselift_jax.__file__).parent / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def table(rows: list[dict]) -> str:
    """The rows as docs/checking.md shows them."""
    lines = ["| planted | named [cameras] | says |", "|---|---|---|"]
    for row in rows:
        name, _, cameras = row["named"].partition(" ")
        named = f"`{name}` {cameras}".strip() if cameras else name
        more = "".join(f", also `{c}`" for c in row["other alarms"])
        wrong = "" if row["right"] else "WRONG: "
        lines.append(f"| {row['fault']} | {wrong}{named}{more} | {row['says'] or '-'} |")
    return "\n".join(lines)


def main() -> None:
    """Print the rows."""
    shared = Path(os.environ.get("MOUSELIFT_SHARED", "../shared"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recording", nargs="?", default=shared / "recordings/mouse_a", type=Path)
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--json", type=Path, help="take rows from here, and write them here")
    parser.add_argument("--table", action="store_true", help="print the rows as a table")
    args = parser.parse_args()
    done = {}
    if args.json and args.json.exists():
        done = {r["fault"]: r for r in json.loads(args.json.read_text()) if r["code"] == code()}
    rows = []
    for fault in faults():
        if args.only not in fault.name:
            continue
        if fault.name not in done:
            with tempfile.TemporaryDirectory() as folder:
                row = examine(args.recording, fault, Path(folder)) | {"code": code()}
            done[fault.name] = row
            more = f"  (+ {', '.join(row['other alarms'])})" if row["other alarms"] else ""
            mark = "right" if row["right"] else "WRONG"
            print(f"{mark}  {fault.name:28s} -> {row['named']}{more}  [{row['cpu_s']} s]")
            print(f"       {row['says']}", flush=True)
            if args.json:
                args.json.write_text(json.dumps(list(done.values()), indent=1))
        rows.append(done[fault.name])
    if args.table:
        print(table(rows))
    alarms = sum(bool(r["other alarms"]) for r in rows)
    print(f"{sum(r['right'] for r in rows)} of {len(rows)} right, {alarms} with other alarms")


if __name__ == "__main__":
    main()
