"""Samples of one rig made from fits: every fitted frame is drawn from the same cameras."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.data.batches.pictures import composite, resized
from mouselift_jax.data.samples.rig_file import load_rig, named_rig
from mouselift_jax.data.samples.sample_set import Sample
from mouselift_jax.data.samples.writer import SampleWriter
from mouselift_jax.errors import CalibrationError, ConfigError, LayoutError, nearest
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.hull import hull_cover
from mouselift_jax.geometry.pretrained_frame import FRONT_AZIMUTH_DEG
from mouselift_jax.geometry.rig import azimuth_elevation
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.pipelines.rig_views import cut_outs, further_cameras, share_outside
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.measure import centre_of, facing
from mouselift_jax.stages.multiview.fits import FitRun, Fitted
from mouselift_jax.training import metrics as metric

HEADINGS = ("front", "random", "none")
REFERENCES = ("rendered", "real")
SALT_HEADING = 0x4EAD
PAST = 0.5  # share of the animal outside a picture: the rig looks elsewhere
CUT = 0.02  # above, some of the animal is cut off by the picture's edge
SAME = 0.5  # IoU of a fit's render and its sample's mask: below, they are different animals
BAD = "the fit is bad"


@dataclasses.dataclass(frozen=True)
class RigSettings:
    """How fitted frames become samples.

    Attributes:
        rig: name in data/rigs, or a camera file.
        further: views behind those of the rig, from a belt of the sphere that it stands on.
        elevations_deg: lowest and highest of the belt.
        size: side of the pictures, pixels.
        zoom: focal lengths in units of the rig's.
        heading: front (the animal faces slot 0's camera) | random | none (as in its sample).
        reference: rendered | real (slot 0 is the real picture from nearest there, own camera).
        least_iou: silhouette IoU of hidden cameras below which a frame is left out.
        seed: of random headings.
        implementation: of the rasterizer; None = the best here.
    """

    rig: str = "canonical"
    further: int = 26
    elevations_deg: tuple[float, float] = (0.0, 60.0)
    size: int = 512
    zoom: float = 1.0
    heading: str = "front"
    reference: str = "rendered"
    least_iou: float = 0.85
    seed: int = 0
    implementation: str | None = None

    def check(self) -> None:
        """Raise a ConfigError for values without sense."""
        for key, known in (("heading", HEADINGS), ("reference", REFERENCES)):
            if getattr(self, key) not in known:
                raise ConfigError(
                    f"no such {key}",
                    where=f"config.{key}",
                    expected=" | ".join(known),
                    found=getattr(self, key),
                    fix=nearest(getattr(self, key), known),
                )
        low, high = self.elevations_deg
        for key, good, range_ in (
            ("further", self.further >= 0, "0 or more views"),
            ("size", self.size >= 16, "16 pixels or more"),
            ("zoom", self.zoom > 0, "above 0"),
            ("least_iou", 0 <= self.least_iou <= 1, "from 0 to 1"),
            (
                "elevations",
                -89 < low <= high < 89,
                "two degrees between -89 and 89, the lower first",
            ),
        ):
            if not good:
                found = (low, high) if key == "elevations" else getattr(self, key)
                raise ConfigError(
                    "a value is out of its range",
                    where=f"config.{key}",
                    expected=range_,
                    found=found,
                    fix="leave it out: the default fits the released networks",
                )


def rig_cameras(settings: RigSettings) -> tuple[Camera, int]:
    """The cameras of every sample [V], and how many of them, the first, are the rig's."""
    rig, _ = load_rig(named_rig(settings.rig))
    cameras, _ = rig.cameras.resized(settings.size, settings.size)
    K = np.array(cameras.K, np.float64)
    K[:, :2, :2] *= settings.zoom
    cameras = Camera(K, np.asarray(cameras.c2w, np.float64), settings.size, settings.size)
    n = cameras.batch_shape[0]
    if settings.further:
        radius = float(np.linalg.norm(cameras.center, axis=-1).mean())
        focal = float(K[:, [0, 1], [0, 1]].mean())
        belt = further_cameras(
            settings.further, settings.elevations_deg, radius, focal, settings.size
        )
        both = (np.concatenate([getattr(c, k) for c in (cameras, belt)]) for k in ("K", "c2w"))
        cameras = Camera(*both, settings.size, settings.size)
    return cameras, n


def manifest_of(settings: RigSettings, run: FitRun, cameras: Camera, n_rig: int) -> dict[str, Any]:
    """What the new set says of itself before its samples."""
    azimuth, elevation = azimuth_elevation(cameras.c2w)
    parameters = dataclasses.asdict(settings)
    del parameters["implementation"]
    return {
        "source": {
            "kind": "from fit",
            "fits": str(run.path),
            "samples": str(run.samples.path),
            "samples_source": run.samples.manifest.get("source", {}),
            "fit": run.settings,
        },
        "parameters": json.loads(json.dumps(parameters)),
        "scene_scale": run.samples.scene_scale,
        "rig": {"name": settings.rig, "slots": n_rig, "further": settings.further},
        "views": [
            {"slot": i, "camera": i, "azimuth_deg": round(float(a), 3),
             "elevation_deg": round(float(e), 3)}
            for i, (a, e) in enumerate(zip(azimuth, elevation, strict=True))
        ],
    }  # fmt: skip


class Maker:
    """`maker(writer, number, fitted)` writes one sample, or says in the set why it is left out.

    Args:
        settings: how.
        run: the fits.
    """

    def __init__(self, settings: RigSettings, run: FitRun) -> None:
        self.settings, self.run = settings, run
        self.cameras, self.n_rig = rig_cameras(settings)
        self._rows = {r["id"]: r for r in run.samples.manifest.get("samples", ())}

    def __call__(self, writer: SampleWriter, number: int, fitted: Fitted) -> np.ndarray | None:
        """Write it; returns its pictures [V,H,W,4], None where it was left out."""
        s, row = self.settings, self._rows.get(fitted.id, {})
        kept = {k: row[k] for k in ("time_s", "recording") if k in row}
        frame = int(fitted.record.get("frame", row.get("frame", -1)))
        figures = {f"heldout_{k}": v for k, v in (fitted.hidden or {}).items()}
        if fitted.hidden and fitted.hidden["iou"] < s.least_iou:
            writer.skip(number, f"{BAD}: hidden cameras' IoU below {s.least_iou:g}", frame=frame,
                        source=fitted.id, **figures, **kept)  # fmt: skip
            return None
        gaussians = fitted.gaussians()
        move, sure = self._placed(gaussians, number)
        placed = jax.tree.map(np.asarray, gaussians.transformed(move))
        outside = share_outside(placed, self.cameras)
        self._check_aim(fitted.id, outside)
        rgba = cut_outs(placed, self.cameras, implementation=s.implementation)
        cameras, ids = self.cameras, np.arange(len(rgba))
        masks = [x[..., 3] for x in rgba[: self.n_rig]]
        cover = hull_cover(masks, [cameras[v] for v in range(self.n_rig)])
        real: dict[str, Any] = {}
        if s.reference == "real":
            rgba, cameras, real = self._with_real(fitted, move, rgba)
        sample = self.run.samples.camera_file(fitted.id) or {}
        about = {
            "source": fitted.id,
            "hull_cover": float(np.nanmin(cover)),
            "outside": round(float(outside.max()), 5),
            "heading_sure": round(sure, 3),
            **figures,
            **real,
        }
        writer.write(
            number, list(rgba), cameras, ids.tolist(), frame=frame, row={**about, **kept},
            fitted={"source": fitted.id, "fit": str(self.run.path), "hidden": fitted.hidden,
                    "kept": [0] if real else [], **real},
            world_from_source={"scale": 1.0, "R": move.R.tolist(), "t": move.t.tolist()},
            **_placement(sample, self.run.samples.scene_scale, move),
        )  # fmt: skip
        return rgba

    def _placed(self, gaussians: Gaussians, number: int) -> tuple[Similarity, float]:
        """The turn about the vertical that the heading asks for, centred; how sure the heading."""
        centre = centre_of(gaussians)
        azimuth, sure = facing(gaussians)
        turn = 0.0
        if self.settings.heading == "front":
            turn = np.radians(FRONT_AZIMUTH_DEG - azimuth)
        if self.settings.heading == "random":
            rng = np.random.default_rng((self.settings.seed, number, SALT_HEADING))
            turn = rng.uniform(0, 2 * np.pi)
        cos, sin = np.cos(turn), np.sin(turn)
        R = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        return Similarity(np.float64(1.0), R, -R @ centre), sure

    def _check_aim(self, name: str, outside: np.ndarray) -> None:
        past = np.flatnonzero(outside[: self.n_rig] > PAST)
        if len(past):
            raise CalibrationError(
                "the rig looks past the animal",
                where=f"config.rig={self.settings.rig}, {name}",
                expected=f"at most {PAST:.0%} of it outside any picture",
                found=", ".join(f"slot {v}: {outside[v]:.0%}" for v in past),
                fix="a rig whose cameras look at the origin, or a smaller --config.zoom",
            )

    def _with_real(
        self, fitted: Fitted, move: Similarity, rgba: np.ndarray
    ) -> tuple[np.ndarray, Camera, dict[str, Any]]:
        """Slot 0 becomes the real picture taken from nearest its azimuth, with its own camera."""
        sample = self.run.samples.load(fitted.id)
        if sample.cameras is None:
            raise LayoutError(
                "a sample without cameras has no real reference",
                where=fitted.id,
                fix="--config.reference=rendered",
            )
        pictures, cameras = resized(sample.images_rgba, sample.cameras, self.settings.size)
        cameras = cameras.transformed(move)
        front = azimuth_elevation(self.cameras.c2w[:1])[0]
        azimuth, _ = azimuth_elevation(cameras.c2w)
        slot = int(np.abs((azimuth - front + 180.0) % 360.0 - 180.0).argmin())
        K, c2w = (np.array(x, np.float64) for x in (self.cameras.K, self.cameras.c2w))
        K[0], c2w[0] = np.asarray(cameras.K)[slot], np.asarray(cameras.c2w)[slot]
        first = np.where(pictures[slot, ..., 3:] > 0, pictures[slot], 0)
        about = {"real_camera": int(sample.camera_ids[slot])}
        side = self.settings.size
        return np.concatenate([first[None], rgba[1:]]), Camera(K, c2w, side, side), about


def check_pixels(run: FitRun, fitted: Fitted, implementation: str | None = None) -> None:
    """Whether a fit looks like its sample: folders can be made anew under the same names.

    Raises:
        LayoutError: what the fit shows from the sample's own cameras is another animal.
    """
    sample: Sample = run.samples.load(fitted.id)
    if sample.cameras is None or not sample.has_alpha:
        return
    drawn = cut_outs(fitted.gaussians(), sample.cameras, implementation=implementation)
    _, masks = composite(sample.images_rgba, np.ones(3, np.float32))
    iou = float(np.mean(metric.mask_iou(jnp.asarray(drawn[..., 3:] / 255.0), masks)))
    if iou < SAME:
        raise LayoutError(
            "these fits do not show the animal of these samples",
            where=f"{run.samples.path}, {fitted.id}",
            expected=f"silhouettes that agree to an IoU of {SAME:g} or more",
            found=f"{iou:.2f}",
            fix="were the samples prepared anew? then fit them again",
        )


def _placement(
    record: dict[str, Any], scene_scale: float | None, move: Similarity
) -> dict[str, Any]:
    """Unit, and the way from the recording to the new sample's world, where it is known."""
    unit = record.get("scene_scale") or scene_scale
    found: dict[str, Any] = {} if unit is None else {"scene_scale": unit}
    known = record.get("scene_from_recording")
    if known is None:
        return found
    first = Similarity(
        np.float64(known["scale"]), np.asarray(known["R"], float), np.asarray(known["t"], float)
    )
    both = move.compose(first)
    return found | {
        "scene_from_recording": {
            "scale": float(both.scale), "R": both.R.tolist(), "t": both.t.tolist()
        }
    }  # fmt: skip
