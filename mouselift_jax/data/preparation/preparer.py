"""From a recording to a sample set: cut out, centred, scaled, with cameras that stay true.

Per instant: masks, the triangulated centre, the new cameras with their pixel maps, the pictures
warped by these very maps, the checks, and one sample written whole. Decoding, masks, warping,
encoding and writing run on threads (OpenCV and zlib free the interpreter); a few instants are in
memory at a time, whatever the length of the recording.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mouselift_jax.data.cores import available_cores, single_threaded_opencv
from mouselift_jax.data.crop import cutout, undistortion_maps
from mouselift_jax.data.findings import Finding, raise_errors
from mouselift_jax.data.masks import mask_box, mask_centroid, sharpness
from mouselift_jax.data.preparation.animals import Bodies, Chooser, find_bodies
from mouselift_jax.data.preparation.frame_cache import FrameCache
from mouselift_jax.data.preparation.gains import GAIN_FRAMES, matched, measure_gains
from mouselift_jax.data.preparation.heading import check_heading, keypoint_heading, mask_heading
from mouselift_jax.data.preparation.placement import (
    Scene,
    SceneSettings,
    build_scene,
    triangulate_centre,
)
from mouselift_jax.data.preparation.proofs import (
    LEAST_COVER,
    MAX_WARP_ERROR_PX,
    Witness,
    border_contact,
    hull_check,
    keypoint_residuals,
    warp_error,
)
from mouselift_jax.data.preparation.recipes import RECIPES, recipe_views
from mouselift_jax.data.recordings.mask_sources import (
    MaskMaker,
    MaskSettings,
    make_masker,
    resolve_source,
)
from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.data.recordings.video import Instant, quiet_decoder, read_instants
from mouselift_jax.data.samples.writer import SampleWriter, sample_id
from mouselift_jax.geometry.camera import Camera, stack_cameras

RANDOM_POINT_REACH_MM = 60.0


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """What decides the content of a sample set (all of it goes into the manifest).

    Attributes:
        scene: mode, size, field of view, scale; `mode` may also be one of `recipes.RECIPES`.
        masks: where masks come from.
        animal: of several: largest | followed (see `animals`); empty = all bodies are one animal.
        heading: none | keypoints | pca: turn the world so that the animal faces the front camera.
        heading_keypoints: front and back keypoint of the animal (nose, tail root).
        min_mask_px: a mask smaller than this counts as empty, original pixels.
        min_sharpness: variance of the Laplacian on the animal below which a frame is blurred; 0 =
            off.
        max_speed_mm_s: a centre that moves faster marks a jump; the sample after it is left out; 0
            = off.
        match_gain: equalise the cameras' brightness and colour on the animal.
    """

    scene: SceneSettings = SceneSettings()
    masks: MaskSettings = MaskSettings()
    animal: str = ""
    heading: str = "none"
    heading_keypoints: tuple[int, int] = (2, 5)
    min_mask_px: float = 200.0
    min_sharpness: float = 0.0
    max_speed_mm_s: float = 3000.0
    match_gain: bool = False

    @property
    def is_consistent(self) -> bool:
        """Whether pictures and cameras agree (all but the original's recipes)."""
        return self.scene.mode not in RECIPES


@dataclasses.dataclass
class _Located:
    """An instant with masks and the animal's place."""

    frame: int
    pictures: list[np.ndarray]
    alphas: list[np.ndarray]
    release: Callable[[], None]
    bodies: list[Bodies] = dataclasses.field(default_factory=list)  # until one animal is taken
    boxes: list[tuple[int, int, int, int]] = dataclasses.field(default_factory=list)
    centroids: np.ndarray | None = None
    areas: np.ndarray | None = None
    centre: np.ndarray = dataclasses.field(default_factory=lambda: np.full(3, np.nan))
    heading_deg: float | None = None
    reject: str = ""
    row: dict[str, Any] = dataclasses.field(default_factory=dict)


_Place = tuple[int, np.ndarray, float | None]  # frame, centre, heading in degrees


class Preparer:
    """Turns chosen frames of one recording into samples of a `SampleWriter`.

    Args:
        recording: what to read.
        settings: see `PrepareSettings`.
        frames: frame numbers, ascending.
        first_number: number of the first frame's sample.
        cache: folder for decoded frames (see `frame_cache`); None decodes every time.

    Raises:
        ConfigError, LayoutError, CalibrationError: settings and recording do not fit.
    """

    def __init__(
        self,
        recording: Recording,
        settings: PrepareSettings,
        frames: Sequence[int],
        first_number: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        self.recording, self.settings = recording, settings
        self.frames = [int(f) for f in frames]
        self.first_number = first_number
        scene_settings = settings.scene
        if not settings.is_consistent:
            scene_settings = dataclasses.replace(scene_settings, mode="crop")
        self.scene: Scene = build_scene(
            recording.cameras, recording.camera_ids, recording.unit_mm, scene_settings
        )
        self.mask_source = resolve_source(recording, settings.masks.source)
        self._undistort = [
            None if c is None else undistortion_maps(camera, c)
            for camera, c in zip(recording.cameras, recording.distortion, strict=True)
        ]
        self.cache = FrameCache(cache, recording, self.mask_source) if cache else None
        self._gains: np.ndarray | None = None
        self._chooser = Chooser(settings.animal, recording.cameras)
        self._masker: MaskMaker | None = None
        self._last: _Place | None = None
        self._noted: collections.deque[_Place] = collections.deque()
        self.witness = self._witness(self.frames)
        check_heading(recording, settings.heading, settings.heading_keypoints)

    def manifest_entries(self) -> dict[str, Any]:
        """What the sample set's manifest says about this recording."""
        described = self.scene.describe()
        if not self.settings.is_consistent:
            described["inconsistent"] = RECIPES[self.settings.scene.mode]
        return {
            "scene_scale": self.scene.scene_scale,
            "views": described.pop("views"),
            "scene": {**described, "mask_source": self.mask_source},
        }

    def numbers(self) -> range:
        """Numbers of this recording's samples."""
        return range(self.first_number, self.first_number + len(self.frames))

    def run(
        self,
        writer: SampleWriter,
        *,
        threads: int | None = None,
        on_done: Callable[[int], None] | None = None,
        name: str = "",
        on_finding: Callable[[Finding], None] | None = None,
        on_doubt: Callable[[], None] | None = None,
    ) -> None:
        """Write every sample that is not there yet.

        Args:
            writer: where to.
            threads: worker threads; None takes one per core.
            on_done: called with the number of samples finished so far in this call.
            name: the recording's name, noted in each sample's row.
            on_finding: told what the masks are, where they are not one animal's; errors among it
                stop the run after it.
            on_doubt: called once, when a hull does not cover its masks.

        Raises:
            LayoutError: masks or hulls say that these are no pictures of an animal by these
                cameras.
        """
        todo = {
            f: n
            for f, n in zip(self.frames, self.numbers(), strict=True)
            if sample_id(n) not in writer.done
        }
        if not todo:
            return
        self._masker = make_masker(self.recording, self.settings.masks, self.frames)
        self._begin(writer)
        threads = threads or available_cores()
        witness = self.witness = self._witness(sorted(todo))
        done, doubted = 0, False
        located: collections.deque[Future] = collections.deque()
        under_way: collections.deque[Future] = collections.deque()

        def finish(most: int) -> None:
            nonlocal done, doubted
            while len(under_way) > most:
                under_way.popleft().result()
                done += 1
                if on_done:
                    on_done(done)
            if on_doubt and not doubted and witness.worst_cover() < LEAST_COVER:
                doubted = True
                on_doubt()

        with quiet_decoder(), single_threaded_opencv(), ThreadPoolExecutor(threads) as pool:

            def hand_on(most: int) -> None:
                self._tell(witness.news(), on_finding)
                while len(located) > most:
                    one = self._follow(located.popleft().result())
                    under_way.append(pool.submit(self._finish, writer, todo[one.frame], one, name))
                    finish(threads)

            if self.settings.match_gain:
                self._gains = measure_gains(self._usable(pool), self.recording.path)
                self._begin(writer)
            try:
                for instant in self._instants(sorted(todo), pool):
                    located.append(pool.submit(self._locate, instant))
                    # Not waited for at once: while it runs, the next instant is asked for, and no
                    # thread is without work.
                    hand_on(witness.patience)
                self._tell(witness.news(final=True), on_finding)
                hand_on(0)
                finish(0)
                no_cover = witness.no_cover()
                self._tell([no_cover] if no_cover else [], on_finding)
            finally:
                for future in (*located, *under_way):
                    future.cancel()

    def _tell(self, found: list[Finding], on_finding: Callable[[Finding], None] | None) -> None:
        for finding in found:
            finding.where = finding.where or str(self.recording.path)
            if on_finding and finding.severity != "error":
                on_finding(finding)
        raise_errors(f"not a usable recording: {self.recording.path}", found)

    # --- steps of one sample -----------------------------------------------------------------

    def _instants(self, frames: list[int], pool: ThreadPoolExecutor) -> Iterator[Instant]:
        masks = self.recording.masks if self.mask_source == "files" else None

        def decode(wanted: list[int]) -> Iterator[Instant]:
            return read_instants(self.recording.videos, masks, wanted, pool)

        yield from decode(frames) if self.cache is None else self.cache.read(frames, decode)

    def _locate(self, instant: Instant) -> _Located:
        """Masks, and where the animal is."""
        s = self.settings
        pictures, alphas = [], []
        for view, picture in enumerate(instant.pictures):
            stored = None if instant.masks is None else instant.masks[view]
            alpha = self._masker(view, picture, stored, instant.frame)
            picture = np.ascontiguousarray(
                picture[..., :3]
            )  # without the alpha some pictures bring
            maps = self._undistort[view]
            if maps is not None:
                picture = cv2.remap(picture, *maps, cv2.INTER_LINEAR)
                alpha = cv2.remap(alpha, *maps, cv2.INTER_LINEAR)
            pictures.append(picture)
            alphas.append(alpha)
        located = _Located(instant.frame, pictures, alphas, instant.release)
        self.witness.see(instant.frame, alphas)
        if s.animal:
            located.bodies = [find_bodies(a) for a in alphas]
            return located
        self.witness.hold(instant.frame, alphas)
        return self._settle(located)

    def _settle(self, located: _Located) -> _Located:
        """Where the one animal of an instant's masks is."""
        s = self.settings
        boxes = located.boxes = [mask_box(a) for a in located.alphas]
        found = [mask_centroid(a, b) for a, b in zip(located.alphas, boxes, strict=True)]
        located.centroids = np.stack([xy for xy, _ in found])
        located.areas = np.array([area for _, area in found])
        empty = np.flatnonzero(located.areas < s.min_mask_px)
        if len(empty):
            ids = [int(self.recording.camera_ids[i]) for i in empty]
            located.reject = "empty mask"
            located.row = {"cameras": ids}
            return located
        located.centre = triangulate_centre(self.recording.cameras, located.centroids)
        depth = [camera.project(located.centre)[1] for camera in self.recording.cameras]
        if not np.isfinite(located.centre).all() or min(depth) <= 0:
            located.reject = "no common centre"
            return located
        if s.min_sharpness > 0:
            seen = zip(located.pictures, located.alphas, boxes, strict=True)
            sharp = min(sharpness(p, a, b) for p, a, b in seen)
            located.row["sharpness"] = round(sharp, 2)
            if sharp < s.min_sharpness:
                located.reject = "blurred"
        located.heading_deg = self._heading(located)
        return located

    def _take(self, located: _Located) -> None:
        """Leave one animal of an instant, and settle where that is."""
        last = None if self._last is None else self._last[1]
        animal, reason, row = self._chooser.choose(located.bodies, last)
        if animal is not None and not reason:
            seen = zip(located.bodies, located.alphas, animal.bodies, strict=True)
            located.alphas = [bodies.only(alpha, body) for bodies, alpha, body in seen]
            self.witness.hold(located.frame, located.alphas)
            self._settle(located)
        located.bodies = []
        located.reject = reason or located.reject
        located.row |= row

    def _follow(self, located: _Located) -> _Located:
        """What needs the previous instant: jumps, and which end of the animal is its front."""
        # An interrupted run leaves holes: what lies before this instant may be done already.
        while self._noted and self._noted[0][0] < located.frame:
            self._last = self._noted.popleft()
        if located.bodies:
            self._take(located)
        if not np.isfinite(located.centre).all():
            return located
        last, heading = self._last, located.heading_deg
        if last is not None:
            frame, centre, last_heading = last
            moved = np.linalg.norm(located.centre - centre) * self.recording.unit_mm
            fps = self.recording.fps or 30.0
            speed = moved * fps / max(located.frame - frame, 1)
            limit = self.settings.max_speed_mm_s
            if limit and speed > limit and not located.reject:
                located.reject = "jump"
                located.row["speed_mm_s"] = round(float(speed), 1)
            if self.settings.heading == "pca" and None not in (heading, last_heading):
                apart = (heading - last_heading + 180.0) % 360.0 - 180.0
                located.heading_deg = heading if abs(apart) <= 90.0 else (heading + 180.0) % 360.0
        self._last = (located.frame, located.centre, located.heading_deg)
        return located

    def _finish(self, writer: SampleWriter, number: int, located: _Located, name: str) -> None:
        try:
            self._write(writer, number, located, name)
        finally:
            located.release()

    def _write(self, writer: SampleWriter, number: int, located: _Located, name: str) -> None:
        row = {"recording": name, **located.row} if name else located.row
        if np.isfinite(located.centre).all():
            row["centre"] = [round(float(v), 4) for v in located.centre]
            if located.heading_deg is not None:
                row["heading_deg"] = round(float(located.heading_deg), 3)
        if located.reject:
            writer.skip(number, located.reject, frame=located.frame, **row)
            return
        slots, maps, written, similarity = self._place(located)
        images = []
        for i, M in zip(slots, maps, strict=True):
            size = self.settings.scene.size
            rgba = cutout(located.pictures[i], located.alphas[i], M, size, size, located.boxes[i])
            images.append(rgba if self._gains is None else matched(rgba, self._gains[i]))
        row.update(self._check(number, located, slots, maps, written, similarity, images))
        if self.recording.fps:
            row["time_s"] = round(located.frame / self.recording.fps, 6)
        writer.write(
            number,
            images,
            written,
            [self.recording.camera_ids[i] for i in slots],
            frame=located.frame,
            row=row,
            scene_scale=self.scene.scene_scale,
            scene_from_recording=self.recording.from_file(similarity),
        )

    def _place(self, located: _Located) -> tuple[list[int], list[np.ndarray], Camera, Any]:
        """Slots, pixel maps, written cameras [V], and the world's similarity."""
        slots = list(self.scene.slots(located.centre, located.heading_deg))
        similarity = self.scene.similarity(located.centre, located.heading_deg)
        if self.settings.is_consistent:
            aim_at_box = self.settings.scene.aim == "box"
            middles = [_box_middle(located.boxes[i]) if aim_at_box else None for i in slots]
            views = [
                self.scene.view(i, located.centre, m) for i, m in zip(slots, middles, strict=True)
            ]
            written = stack_cameras([c for c, _ in views]).transformed(similarity)
            return slots, [np.asarray(M) for _, M in views], written, similarity
        maps, written = recipe_views(
            self.settings.scene.mode,
            [self.recording.cameras[i] for i in slots],
            np.array([located.boxes[i] for i in slots], float),
            located.centroids[slots],
            located.areas[slots],
            self.settings.scene.size,
        )
        return slots, maps, written, similarity

    def _check(
        self,
        number: int,
        located: _Located,
        slots: list[int],
        maps: list[np.ndarray],
        written: Camera,
        similarity: Any,
        images: list[np.ndarray],
    ) -> dict[str, Any]:
        """Errors of a sample for its manifest row; a warp that misses its camera is a bug."""
        cameras = [self.recording.cameras[i] for i in slots]
        alphas = [cv2.extractChannel(image, 3) for image in images]
        rng = np.random.default_rng(located.frame)
        reach = RANDOM_POINT_REACH_MM / self.recording.unit_mm
        error = warp_error(cameras, maps, written, similarity, located.centre, reach, rng)
        row: dict[str, Any] = {
            "warp_error_px": round(error, 6),
            "border_px": [border_contact(a) for a in alphas],
            "size_px": [round(float(np.sqrt(np.count_nonzero(a > 127))), 2) for a in alphas],
        }
        if self.settings.is_consistent:
            if row["warp_error_px"] > MAX_WARP_ERROR_PX:
                raise RuntimeError(
                    f"frame {located.frame}: camera and warp differ by {row['warp_error_px']} px"
                )
        if located.frame in self.witness.tested:
            row["hull"] = hull_check(alphas, written)
            if self.settings.is_consistent:
                self.witness.covers[located.frame] = float(row["hull"]["cover"])
        points = self.recording.keypoints
        if points is not None and located.frame < points.shape[1]:
            residual = keypoint_residuals(points[slots, located.frame], cameras, maps, written)
            if residual is not None:
                row["keypoint_px"] = {"raw": round(residual[0], 4), "sample": round(residual[1], 4)}
        return row

    # --- colour, heading, resuming -----------------------------------------------------------

    def _usable(self, pool: ThreadPoolExecutor) -> Iterator[tuple[list, list]]:
        """Pictures and masks of the first instants."""
        for instant in self._instants(self.frames[:GAIN_FRAMES], pool):
            located = self._follow(self._locate(instant))
            if not located.reject:
                yield located.pictures, located.alphas

    def _heading(self, located: _Located) -> float | None:
        kind, recording = self.settings.heading, self.recording
        if kind == "none":
            return None
        if kind == "pca":
            return mask_heading(recording.cameras, located.alphas, located.boxes, located.centroids)
        found = keypoint_heading(recording, located.frame, self.settings.heading_keypoints)
        if found is None:
            located.reject = located.reject or "no heading"
        return found

    def _witness(self, frames: Sequence[int]) -> Witness:
        return Witness(frames, self.recording.camera_ids, chosen=bool(self.settings.animal))

    def _begin(self, writer: SampleWriter) -> None:
        """Where an interrupted run saw the animal, by frame, and which of several it took."""
        own = {sample_id(n) for n in self.numbers()}
        rows = sorted((r for r in writer.rows.values() if r["id"] in own), key=_frame)
        self._last, self._noted = (
            None,
            collections.deque(
                (r["frame"], np.array(r["centre"]), r.get("heading_deg"))
                for r in rows
                if "centre" in r
            ),
        )
        self._chooser = Chooser(self.settings.animal, self.recording.cameras, rows)


def _frame(row: dict[str, Any]) -> int:
    return row["frame"]


def _box_middle(box: tuple[int, int, int, int]) -> np.ndarray:
    return np.array([box[0] + box[2], box[1] + box[3]]) / 2.0
