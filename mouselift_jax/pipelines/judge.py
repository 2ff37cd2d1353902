"""Hidden views of one instant, drawn by several methods from the others, with figures.

A method takes the views that are given and answers with a function that draws any camera. All are
judged on the same pictures; what a method does not use of their resolution is its own choice.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.geometry.camera import Camera
from mouselift_jax.pipelines import fit as fits
from mouselift_jax.pipelines.baselines import Prediction, nearest_view, visual_hull
from mouselift_jax.pipelines.lift import lift, with_room
from mouselift_jax.render import render
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.training import metrics

METHODS = ("gslrm", "fit", "hull", "nearest")


@dataclasses.dataclass(frozen=True)
class View:
    """A picture with its camera.

    Attributes:
        image: [H,W,3] in [0,1] on white.
        mask: [H,W,1].
        camera: unbatched.
        number: camera number.
    """

    image: np.ndarray
    mask: np.ndarray
    camera: Camera
    number: int


Draw = Callable[[Camera], Prediction | None]  # None: this camera cannot be drawn
Method = Callable[[Sequence[View]], Draw]


@dataclasses.dataclass(frozen=True)
class Judged:
    """A hidden view as every method drew it.

    Attributes:
        target: the hidden view.
        inputs: camera numbers that were given.
        predictions: by method.
        figures: method -> figure -> value.
        failed: methods that could make nothing of the inputs, and why.
    """

    target: View
    inputs: list[int]
    predictions: dict[str, Prediction]
    figures: dict[str, dict[str, float]]
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


class Judge:
    """Judges hidden views; compiles once for each number and size of pictures.

    Args:
        methods: by name, in the order of the table.
    """

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods, self._figures = dict(methods), jax.jit(metrics.figures)

    def __call__(self, inputs: Sequence[View], targets: Sequence[View]) -> list[Judged]:
        """Draw and judge hidden views; each method sees the inputs once."""
        drawers: dict[str, Draw] = {}
        failed: dict[str, str] = {}
        for name, method in self._methods.items():
            try:
                drawers[name] = method(inputs)
            except fits.UnfittableError as error:
                failed[name] = str(error)
        given = [v.number for v in inputs]
        judged = []
        for target in targets:
            drawn = {name: draw(target.camera) for name, draw in drawers.items()}
            kept = {name: p for name, p in drawn.items() if p is not None}
            figures = {name: self._measured(p, target) for name, p in kept.items()}
            judged.append(Judged(target, given, kept, figures, failed))
        return judged

    def _measured(self, drawn: Prediction, target: View) -> dict[str, float]:
        values = self._figures(drawn.rgb, drawn.alpha, target.image, target.mask)
        return {key: float(value) for key, value in jax.device_get(values).items()}


# --- methods -------------------------------------------------------------------------------------


def hull(inputs: Sequence[View]) -> Draw:
    """The visual hull of the masks, painted."""
    return functools.partial(visual_hull, *_arrays(inputs), stacked(inputs))


def nearest(inputs: Sequence[View]) -> Draw:
    """The picture of the nearest camera as it is; a camera of another size cannot be drawn."""
    pictures = (*_arrays(inputs), stacked(inputs))
    height, width = inputs[0].image.shape[:2]

    def draw(camera: Camera) -> Prediction | None:
        is_like = (camera.height, camera.width) == (height, width)
        return nearest_view(*pictures, camera) if is_like else None

    return draw


class Fitted:
    """Gaussians fitted to the inputs, each instant from its own hull: no order, no memory.

    Args:
        settings: of the fit.
    """

    def __init__(self, settings: fits.FitSettings) -> None:
        self._settings, self._draw = settings, drawer(settings.implementation)

    def __call__(self, inputs: Sequence[View]) -> Draw:
        """Fit; raises `UnfittableError` where that is impossible."""
        images, masks = [v.image for v in inputs], [v.mask for v in inputs]
        views = fits.cut_out(images, masks, [v.camera for v in inputs], self._settings)
        done = fits.fit(views, fits.start(views, self._settings), self._settings)
        # Its padding is kept, so that one program draws every instant.
        return functools.partial(self._draw, jax.tree.map(jnp.asarray, done.start.gaussians))


class Network:
    """Gaussians lifted by a network.

    Args:
        model: a `GSLRM`.
        params: its parameters.
        resized: brings a view to the size that the network takes.
        implementation: of the rasterizer.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Mapping[str, Any],
        *,
        resized: Callable[[View], View] = lambda view: view,
        implementation: str | None = None,
    ) -> None:
        self._model, self._params = model, params
        self._resized = resized
        self._lift, self._draw = jax.jit(lift, static_argnums=0), drawer(implementation)

    def __call__(self, inputs: Sequence[View]) -> Draw:
        """Lift the views."""
        views = [self._resized(v) for v in inputs]
        images, _ = _arrays(views)
        model = with_room(self._model, images)
        gaussians = self._lift(model, self._params, jnp.asarray(images), stacked(views))
        return functools.partial(self._draw, gaussians)


def drawer(implementation: str | None) -> Callable[[Gaussians, Camera], Prediction]:
    """`draw(gaussians, camera)`, compiled for each size of either."""

    @jax.jit
    def go(gaussians: Gaussians, camera: Camera) -> tuple[jax.Array, jax.Array]:
        out = render(gaussians, camera, implementation=implementation)
        return jnp.clip(out.rgb, 0, 1), out.alpha

    def draw(gaussians: Gaussians, camera: Camera) -> Prediction:
        K, c2w = (np.asarray(x, np.float32)[None] for x in (camera.K, camera.c2w))
        rgb, alpha = go(gaussians, Camera(K, c2w, camera.width, camera.height))
        return Prediction(np.asarray(rgb[0]), np.asarray(alpha[0]))

    return draw


def stacked(views: Sequence[View]) -> Camera:
    """The cameras of views of one size as one batch, float32."""
    first = views[0].camera
    return Camera(
        np.stack([np.asarray(v.camera.K, np.float32) for v in views]),
        np.stack([np.asarray(v.camera.c2w, np.float32) for v in views]),
        first.width,
        first.height,
    )


def _arrays(views: Sequence[View]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [V,H,W,3] and masks [V,H,W,1]."""
    return (
        np.stack([np.asarray(v.image, np.float32) for v in views]),
        np.stack([np.asarray(v.mask, np.float32) for v in views]),
    )
