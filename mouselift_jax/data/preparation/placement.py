"""The geometry of preparation: where the sample's frame is, and what each view becomes.

One world similarity per sample, one scale for the whole recording: x = scale * Rz (X - centre).
Every view keeps its true camera centre; only its direction and its intrinsics may change, and they
change together with its pixels by the homography M = K_new R K_old^-1, exact for any scene.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mouselift_jax.data.preparation.recipes import RECIPES
from mouselift_jax.errors import CalibrationError, ConfigError, nearest
from mouselift_jax.geometry.camera import Camera, intrinsics, stack_cameras
from mouselift_jax.geometry.pretrained_frame import FRONT_AZIMUTH_DEG, PRETRAINED_HALF_FOV_DEG
from mouselift_jax.geometry.rig import axes_meeting_point, azimuth_elevation, clockwise, look_at_c2w
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.geometry.triangulate import triangulate

MODES = ("look_at", "crop", "as_is")
FOVS = ("pretrained", "fill")
AIMS = ("centre", "box")


@dataclasses.dataclass(frozen=True)
class SceneSettings:
    """How cameras and world are changed.

    Attributes:
        mode: look_at (turn every camera towards the animal, one K for all) | crop (shift and
            scale) | as_is (the whole picture, one fixed world).
        size: side of the pictures, pixels.
        fov: pretrained (f = 549 px at 512: the field of view the published weights know; a mouse is
            about 170 px long) | fill (longer f: the animal fills the picture; the rays are steeper
            than any the published weights have seen).
        fill: `fill`: share of the picture that `subject_mm` takes at the mean camera distance.
        subject_mm: `fill`: length to make room for, with the tail as it is usually held.
        aim: what comes to the middle of the pictures: centre (the animal's 3D centre) | box (the
            middle of each view's silhouette box: the tail is cut least). Cameras stay true either
            way.
        radius: mean camera distance in scene units.
        scale: scene units per millimetre; 0 derives it from the rig: radius / mean distance of the
            cameras from the point their axes meet.
        equal_size: look_at: longer f for farther cameras, so that the animal is equally large in
            all.
        reference_camera: camera number of slot 0; -1 takes the first camera (heading: the
            frontmost).
    """

    mode: str = "look_at"
    size: int = 512
    fov: str = "pretrained"
    fill: float = 0.75
    subject_mm: float = 150.0
    aim: str = "centre"
    radius: float = 2.7
    scale: float = 0.0
    equal_size: bool = False
    reference_camera: int = -1


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is fixed for a whole recording.

    Attributes:
        cameras: true cameras, NumPy float64, recording's unit, in the recording's order.
        camera_ids: their numbers.
        settings: see `SceneSettings`.
        point: where the optical axes meet [3], recording's unit.
        scale: scene units per recording unit.
        scene_scale: scene units per millimetre.
        focal: focal length of the new pictures, pixels (as_is: of the first camera).
        order: camera indices in slot order, clockwise seen from above from the reference.
    """

    cameras: tuple[Camera, ...]
    camera_ids: tuple[int, ...]
    settings: SceneSettings
    point: np.ndarray
    scale: float
    scene_scale: float
    focal: float
    order: tuple[int, ...]

    def view(
        self, index: int, centre: np.ndarray, middle: np.ndarray | None = None
    ) -> tuple[Camera, np.ndarray]:
        """What a camera becomes for a sample about `centre` (recording's frame), and its map M.

        Args:
            index: which camera.
            centre: the animal's centre [3], recording's frame.
            middle: pixel [2] that comes to the middle of the picture; None takes the centre's.

        Returns:
            The new camera, still in the recording's frame, and M [3,3], old to new pixels.
        """
        s, old = self.settings, self.cameras[index]
        half = s.size / 2
        if s.mode == "look_at":
            new_c2w = look_at_c2w(old.center, self._target(index, centre, middle))
            turn = new_c2w[:3, :3].T @ old.c2w[:3, :3]
            f = self.focal
            if s.equal_size:
                f *= np.linalg.norm(centre - old.center) * self.scale / s.radius
            return old.rotated(turn, intrinsics(f, f, half, half), s.size, s.size)
        K = old.K
        if s.mode == "crop":
            a = self.focal / self._mean_focal()
            xy = old.project(centre)[0] if middle is None else middle
            cx, cy = half + a * (K[0, 2] - xy[0]), half + a * (K[1, 2] - xy[1])
        else:
            a = s.size / max(old.width, old.height)
            cx = a * K[0, 2] + (s.size - a * old.width) / 2
            cy = a * K[1, 2] + (s.size - a * old.height) / 2
        # Going through K^-1 also removes a skew, which opencv_cameras.json cannot hold.
        K_new = intrinsics(a * K[0, 0], a * K[1, 1], cx, cy)
        return old.rotated(np.eye(3), K_new, s.size, s.size)

    def similarity(self, centre: np.ndarray, heading_deg: float | None = None) -> Similarity:
        """The map from the recording's frame to the sample's.

        Args:
            centre: the animal's centre; as_is keeps one world and uses the scene's point instead.
            heading_deg: direction the animal faces, azimuth in the recording's frame; it is turned
                to where the front camera of the published rig stands. None turns nothing.
        """
        origin = self.point if self.settings.mode == "as_is" else centre
        turn = 0.0 if heading_deg is None else np.radians(FRONT_AZIMUTH_DEG - heading_deg)
        c, s = np.cos(turn), np.sin(turn)
        R = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
        return Similarity(np.float64(self.scale), R, -self.scale * (R @ origin))

    def slots(self, centre: np.ndarray, heading_deg: float | None = None) -> tuple[int, ...]:
        """Camera indices in slot order for a sample; fixed for the recording without a heading."""
        if heading_deg is None:
            return self.order
        centers = np.stack([c.center for c in self.cameras])
        return clockwise(centers, centre, front_deg=heading_deg)

    def describe(self) -> dict[str, object]:
        """What the manifest says of it."""
        centers = np.stack([c.center for c in self.cameras])
        azimuth, elevation = azimuth_elevation(np.stack([c.c2w for c in self.cameras]), self.point)
        distance = np.linalg.norm(centers - self.point, axis=1)
        return {
            "scene_point": self.point.tolist(),
            "units_per_recording_unit": self.scale,
            "focal_px": self.focal,
            "views": [
                {
                    "slot": slot,
                    "camera": int(self.camera_ids[i]),
                    "azimuth_deg": round(float(azimuth[i]), 3),
                    "elevation_deg": round(float(elevation[i]), 3),
                    "distance": round(float(distance[i] * self.scale), 4),
                }
                for slot, i in enumerate(self.order)
            ],
        }

    def _target(self, index: int, centre: np.ndarray, middle: np.ndarray | None) -> np.ndarray:
        """The world point a camera turns to: the centre, or one seen at pixel `middle`."""
        if middle is None:
            return centre
        old = self.cameras[index]
        ray = old.c2w[:3, :3] @ np.linalg.solve(old.K, np.append(middle, 1.0))
        return old.center + ray

    def _mean_focal(self) -> float:
        return float(np.mean([[c.K[0, 0], c.K[1, 1]] for c in self.cameras]))


def build_scene(
    cameras: Sequence[Camera],
    camera_ids: Sequence[int],
    unit_mm: float,
    settings: SceneSettings,
) -> Scene:
    """Fix scale, focal length and view order for a recording.

    Raises:
        ConfigError: a setting is unknown or out of range.
        CalibrationError: the optical axes meet nowhere in front of the cameras.
    """
    _check(settings, camera_ids)
    cameras = tuple(
        Camera(np.asarray(c.K, float), np.asarray(c.c2w, float), c.width, c.height) for c in cameras
    )
    centers = np.stack([c.center for c in cameras])
    axes = np.stack([c.c2w[:3, 2] for c in cameras])
    point = axes_meeting_point(centers, axes)
    depth = ((point - centers) * axes).sum(1)
    distance = np.linalg.norm(point - centers, axis=1)
    if (depth <= 0).any():
        bad = [int(camera_ids[i]) for i in np.flatnonzero(depth <= 0)]
        raise CalibrationError(
            "the cameras do not look at a common place",
            where=f"cameras {bad}",
            expected="optical axes that meet in front of every camera",
            found=f"the axes meet nearest at {np.round(point, 1).tolist()}, behind these",
            fix="python -m mouselift_jax check RECORDING names the likely cause",
        )
    scale = settings.scale * unit_mm if settings.scale else settings.radius / distance.mean()
    focal = 0.5 * settings.size / np.tan(np.radians(PRETRAINED_HALF_FOV_DEG))
    if settings.fov == "fill":
        subject = settings.subject_mm / unit_mm * scale
        focal = settings.fill * settings.size * (distance.mean() * scale) / subject
    reference = _reference(settings.reference_camera, camera_ids)
    azimuth = np.degrees(np.arctan2(*(centers[reference] - point)[1::-1]))
    order = clockwise(centers, point, front_deg=azimuth)
    return Scene(
        cameras,
        tuple(camera_ids),
        settings,
        point,
        float(scale),
        float(scale / unit_mm),
        focal,
        order,
    )


def triangulate_centre(cameras: Sequence[Camera], xy: np.ndarray) -> np.ndarray:
    """The point [3] nearest the rays of one observation [V,2] per camera (least squares in pixels).

    Mask centroids are not pictures of one point, so this is a place to look at, not a measurement.
    """
    return triangulate(xy[:, None], stack_cameras(cameras, any_size=True))[0]


def _reference(number: int, camera_ids: Sequence[int]) -> int:
    return 0 if number < 0 else list(camera_ids).index(number)


def _check(settings: SceneSettings, camera_ids: Sequence[int]) -> None:
    for key, known in (("mode", MODES), ("fov", FOVS), ("aim", AIMS)):
        value = getattr(settings, key)
        if value not in known:
            raise ConfigError(
                f"no such {key}",
                where=f"config.prepare.{key}",
                found=value,
                fix=nearest(value, (*known, *RECIPES) if key == "mode" else known),
            )
    if settings.reference_camera >= 0 and settings.reference_camera not in camera_ids:
        raise ConfigError(
            "the reference camera is not in the recording",
            where="config.prepare.reference_camera",
            expected=f"one of {list(camera_ids)}",
            found=settings.reference_camera,
            fix=f"--config.prepare.reference_camera={camera_ids[0]}",
        )
    sizes = {k: getattr(settings, k) for k in ("size", "fill", "subject_mm", "radius", "scale")}
    bad = {k: v for k, v in sizes.items() if not (v > 0 or (k == "scale" and v == 0))}
    if bad:
        raise ConfigError(
            "sizes and scales must be positive",
            where="config.prepare",
            found=bad,
            fix="leave them out: the defaults fit the published rig",
        )
