"""The live viewer: a viser server that shows a Scene.

Splats, camera frusta with their pictures, the render or the error instead of the picture, PSNR of
each view, a slider over time; of a film with identity the tracks of some Gaussians, and colours by
speed. The server holds one moment in memory.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from typing import Any

import numpy as np

from mouselift_jax.errors import MissingExtraError
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.rig import looked_at
from mouselift_jax.report import colours as colouring
from mouselift_jax.report.pictures import error_map, fit, to_uint8
from mouselift_jax.report.reels import rainbow
from mouselift_jax.report.scene import Scene
from mouselift_jax.splats.filters import drawable, only_drawable
from mouselift_jax.splats.gaussians import (
    Gaussians,
    padded,
    quat_to_rotation,
    rotation_to_quat,
)
from mouselift_jax.splats.ply import load_extras
from mouselift_jax.splats.reel import tracks
from mouselift_jax.splats.sh import C0
from mouselift_jax.splats.trust import FIELD

PICTURE, RENDER, ERROR = "picture", "render", "error"
THUMBNAIL = 256  # side of the pictures in the frusta
TRAIL = 30  # frames of the past that tracks show
PLAYED = 10.0  # frames a second, where the browser and the line keep up


class LiveViewer:
    """A running server.

    Args:
        scene: what to show.
        port: TCP port.
        host: address to listen on; the default is this machine only, reached through ssh -L.
        colours: one of `colours.KINDS`, to begin with.
    """

    def __init__(
        self, scene: Scene, *, port: int = 8080, host: str = "127.0.0.1", colours: str = "own"
    ) -> None:
        try:
            import viser
        except ImportError as error:
            raise MissingExtraError(
                "viser", "viewer", "the live viewer (not --export-html FILE)"
            ) from error
        self.scene = scene
        with contextlib.redirect_stdout(io.StringIO()):  # the address is told once, by `addresses`
            self.server = viser.ViserServer(host=host, port=port, label=scene.title, verbose=False)
        self.port = self.server.get_port()
        self._handles: list[Any] = []
        self._loaded: tuple[Gaussians | None, Camera | None, list[np.ndarray], list[str]] | None
        self._loaded, self._drawn, self._at = None, None, 0
        self._set: tuple[Any, float] | None = None  # the splats' handle, and its unit
        self._lock, self._ended = threading.Lock(), threading.Event()
        reel = scene.reel
        self._tracks = [] if reel is None else [(t, rainbow(t)) for t in tracks(reel)]
        self._fastest = None if reel is None else colouring.speed_painter(reel)
        self.server.scene.set_up_direction("+z")
        self._controls(colours)
        self.show(0)
        self._stand_back()

    def _controls(self, colours: str) -> None:
        gui, scene = self.server.gui, self.scene
        gui.add_markdown(f"**{scene.title}**")
        self.label = gui.add_markdown("")
        if len(scene.moments) > 1:
            self.slider = gui.add_slider("time", 0, len(scene.moments) - 1, 1, 0)
            self.slider.on_update(lambda _: self.show(int(self.slider.value)))
            self.playing = gui.add_checkbox("play", False)
            threading.Thread(target=self._play, daemon=True).start()
        kinds = [k for k in colouring.KINDS if k != "speed" or scene.reel is not None]
        self.colours = gui.add_dropdown("colours", kinds, initial_value=colours)
        self.colours.on_update(lambda _: self._draw())
        self.legend = gui.add_markdown("")
        self.tracks = gui.add_checkbox("tracks", True, visible=bool(self._tracks))
        self.tracks.on_update(lambda _: self._draw())
        self.kind = gui.add_dropdown("in the cameras", (PICTURE, RENDER, ERROR))
        self.kind.on_update(lambda _: self._draw())
        self.cameras = gui.add_checkbox("cameras", True)
        self.cameras.on_update(lambda _: self._draw())
        self.errors = gui.add_markdown("")

    def _play(self) -> None:
        while not self._ended.wait(1 / PLAYED):
            if self.playing.value:
                self.slider.value = (self.slider.value + 1) % len(self.scene.moments)

    def show(self, index: int) -> None:
        """Load and show one moment."""
        with self._lock:
            moment = self.scene.moments[index]
            gaussians = moment.gaussians()
            cameras, pictures, names = moment.views() if moment.views else (None, [], [])
            self._loaded, self._drawn, self._at = (gaussians, cameras, pictures, names), None, index
            count = f", {gaussians.n_gaussians:,} Gaussians" if gaussians is not None else ""
            broken = 0 if gaussians is None else int((~drawable(gaussians)).sum())
            note = f", {broken:,} of them not drawn: they hold no numbers" if broken else ""
            self.label.content = f"{moment.label}{count}{note}"
        self._draw()

    def _stand_back(self) -> None:
        """Start where everything is in sight, whatever the unit of the world: mm or scene units."""
        gaussians, cameras = self._loaded[:2]
        if cameras is not None:
            c2w = np.asarray(cameras.c2w, np.float64)
            middle = looked_at(c2w[:, :3, 3], c2w[:, :3, 2])
            reach = float(np.linalg.norm(c2w[:, :3, 3] - middle, axis=1).max())
        else:
            means = np.asarray(gaussians.means, np.float64)[drawable(gaussians)]
            if not len(means):
                return
            middle = np.median(means, axis=0)
            reach = 2 * float(np.quantile(np.linalg.norm(means - middle, axis=1), 0.95))
        reach = reach or 1.0
        start = self.server.initial_camera
        start.position, start.look_at = middle + 1.1 * reach, middle
        start.near, start.far = 0.004 * reach, 400 * reach

    def _draw(self) -> None:
        with self._lock:
            if self._loaded is None:
                return
            gaussians, cameras, pictures, names = self._loaded
            for handle in self._handles:
                handle.remove()
            self._handles = []
            if gaussians is not None:
                self._splats(self._coloured(gaussians))
            if self.tracks.value:
                self._trails()
            if cameras is not None and self.cameras.value:
                shown, psnr = self._pictures(gaussians, cameras, pictures)
                self._frusta(cameras, shown, names)
                rows = [f"{n}: {p:.1f} dB" for n, p in zip(names, psnr, strict=False)]
                self.errors.content = "PSNR of the pictures  \n" + "  \n".join(rows) if rows else ""

    def _coloured(self, gaussians: Gaussians) -> Gaussians:
        """In the colours that were chosen; where nothing is known the legend says so."""
        kind, reel = self.colours.value, self.scene.reel
        if kind == "own":
            self.legend.content = ""
            return gaussians
        painter, read = {
            "cameras": (colouring.CAMERAS, self._seen),
            "speed": (self._fastest, lambda: colouring.speeds(reel, self._at)),
            "error": (colouring.ERROR, self._errors),
        }[kind]
        values = read()
        if values is not None and len(values) != gaussians.n_gaussians:
            values = None
        self.legend.content = painter.legend if values is not None else "not known here: grey"
        return painter.paint(gaussians, values)

    def _seen(self) -> np.ndarray | None:
        reel, file = self.scene.reel, self.scene.moments[self._at].splats
        if reel is not None:
            return reel.seen(int(reel.segment[self._at]))
        return load_extras(file).get(FIELD) if file is not None and file.suffix == ".ply" else None

    def _errors(self) -> np.ndarray | None:
        gaussians, cameras, pictures, _ = self._loaded
        if cameras is None:
            return None
        return colouring.errors(gaussians, cameras, self._rendered(gaussians, cameras), pictures)

    def _rendered(self, gaussians: Gaussians, cameras: Camera) -> Any:
        """This moment by all its cameras, drawn once."""
        if self._drawn is None:
            from mouselift_jax.render import render

            self._drawn = render(padded(gaussians), cameras)
        return self._drawn

    def _trails(self) -> None:
        """The tracks of the moment's segment up to now; older parts are paler."""
        for track, rgb in self._tracks:
            last = int(np.searchsorted(track.at, self._at))
            if last >= len(track.at) or track.at[last] != self._at or last == 0:
                continue
            first = max(0, last - TRAIL)
            ends = np.stack([track.paths[first:last], track.paths[first + 1 : last + 1]], 2)
            age = np.linspace(1, 0, last - first)[:, None, None]
            tint = (rgb[None] * (1 - 0.7 * age) + 0.7 * age)[:, :, None].repeat(2, 2)
            tint = np.round(255 * tint).astype(np.uint8).reshape(-1, 2, 3)
            self._handles.append(self.server.scene.add_line_segments(
                f"/tracks/{track.segment}", ends.reshape(-1, 2, 3), tint,
                thickness=2.0, thickness_units="screen",
            ))  # fmt: skip

    def _splats(self, gaussians: Gaussians) -> None:
        # Three.js calls the radius of viser's splats NaN when the mouse is first pressed, whatever
        # they are: the square that viser draws each with has no z. It changes nothing.
        gaussians = only_drawable(gaussians, "view")[0]
        means, _, _, opacities, sh = (np.asarray(x) for x in gaussians.activate())
        unit, covariances = near_unit_covariances(gaussians)
        rgbs, opacities = np.clip(sh[:, 0] * C0 + 0.5, 0, 1), opacities[:, None]
        if self._set is not None and self._set[1] == unit:  # the film goes on: one message
            self._set[0].set_gaussians(means / unit, covariances, rgbs, opacities)
            return
        if self._set is not None:
            self._set[0].remove()
        self._set = self.server.scene.add_gaussian_splats(
            "/splats", centers=means / unit, covariances=covariances, scale=unit, rgbs=rgbs,
            opacities=opacities,
        ), unit  # fmt: skip

    def _pictures(
        self, gaussians: Gaussians | None, cameras: Camera, pictures: list[np.ndarray]
    ) -> tuple[list[np.ndarray], list[float]]:
        """What the frusta show, and the PSNR of each view when there are Gaussians."""
        if gaussians is None:
            return pictures, []
        renders = np.asarray(self._rendered(gaussians, cameras).rgb)
        psnr = [
            -10 * np.log10(max(1e-10, np.mean((to_uint8(r) / 255.0 - p / 255.0) ** 2)))
            for r, p in zip(renders, pictures, strict=True)
        ]
        if self.kind.value == RENDER:
            return [to_uint8(r) for r in renders], psnr
        if self.kind.value == ERROR:
            return [error_map(p, r) for r, p in zip(renders, pictures, strict=True)], psnr
        return pictures, psnr

    def _frusta(self, cameras: Camera, pictures: list[np.ndarray], names: list[str]) -> None:
        c2w, K = np.asarray(cameras.c2w, np.float64), np.asarray(cameras.K, np.float64)
        centre = c2w[:, :3, 3].mean(0)
        size = 0.12 * float(np.linalg.norm(c2w[:, :3, 3] - centre, axis=1).max() or 1.0)
        for v, (picture, name) in enumerate(zip(pictures, names, strict=True)):
            fov = 2 * np.arctan(cameras.height / 2 / K[v, 1, 1])
            scale = THUMBNAIL / max(picture.shape[:2])
            small = fit(picture, round(picture.shape[1] * scale), round(picture.shape[0] * scale))
            wxyz = rotation_to_quat(c2w[v, :3, :3])
            frustum = self.server.scene.add_camera_frustum(
                f"/cameras/{v}",
                fov=float(fov),
                aspect=cameras.width / cameras.height,
                scale=size,
                thickness=0.02 * size,
                image=small,
                wxyz=wxyz,
                position=c2w[v, :3, 3],
            )
            self.server.scene.add_label(  # goes with its frustum
                f"/cameras/{v}/name", name, font_screen_scale=0.8, depth_test=True
            )
            self._handles.append(frustum)

    def stop(self) -> None:
        """End the server."""
        self._ended.set()
        self.server.stop()


def near_unit_covariances(gaussians: Gaussians) -> tuple[float, np.ndarray]:
    """The unit of length for the viewer, and covariances [N,3,3] in it.

    viser sends covariances as 16-bit floats: in metres or millimetres most would be rounded to
    matrices that are no ellipsoids. In units of a typical splat, and with no axis under a twentieth
    of the longest (nor any splat 60 times smaller than the typical one), all stay positive.
    """
    _, quats, scales, _, _ = (np.asarray(x, np.float64) for x in gaussians.activate())
    if not len(scales):
        return 1.0, np.zeros((0, 3, 3))
    longest = scales.max(-1, keepdims=True)
    unit = float(np.median(longest)) or 1.0
    longest = np.clip(longest / unit, 1 / 60, 200.0)
    axes = quat_to_rotation(quats) * np.clip(scales / unit, longest / 20, 200.0)[:, None, :]
    return unit, axes @ axes.swapaxes(-1, -2)


def addresses(port: int) -> str:
    """Where to point a browser, from here and from another machine."""
    import getpass

    host = socket.gethostname()
    return (
        f"viewer: http://localhost:{port}\n"
        f"on another machine, first:  ssh -L {port}:localhost:{port} {getpass.getuser()}@{host}"
    )
