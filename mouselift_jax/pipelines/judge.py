"""Held-out views of one sample, drawn by a network and by the baselines, with figures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.geometry.camera import Camera
from mouselift_jax.pipelines.baselines import BASELINES, Prediction
from mouselift_jax.pipelines.lift import lift, with_room
from mouselift_jax.render import render
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.training import metrics

NETWORK = "network"  # the name of the method under test


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


@dataclasses.dataclass(frozen=True)
class Judged:
    """A held-out view as every method drew it."""

    target: View
    inputs: list[int]  # camera numbers
    predictions: dict[str, Prediction]
    figures: dict[str, dict[str, float]]  # method -> figure -> value


class Judge:
    """Judges views; compiles once for each number and size of pictures.

    Args:
        model: a `GSLRM`.
        params: its parameters.
        baselines: whether the baselines are judged too.
        implementation: of the rasterizer.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Mapping[str, Any],
        *,
        baselines: bool = True,
        implementation: str | None = None,
    ) -> None:
        self._model, self._params = model, params
        self._lift = jax.jit(lift, static_argnums=0)
        self._draw = jax.jit(functools.partial(_draw, implementation=implementation))
        self._figures = jax.jit(metrics.figures)
        self._baselines: dict[str, Callable] = BASELINES if baselines else {}

    def gaussians(self, inputs: list[View]) -> Gaussians:
        """What the network makes of the inputs."""
        images = np.stack([np.asarray(v.image, np.float32) for v in inputs])
        model = with_room(self._model, images)
        return self._lift(model, self._params, jnp.asarray(images), stacked(inputs))

    def __call__(
        self, inputs: list[View], target: View, gaussians: Gaussians | None = None
    ) -> Judged:
        """Draw and judge one held-out view; `gaussians` saves lifting the same inputs again."""
        gaussians = self.gaussians(inputs) if gaussians is None else gaussians
        rgb, alpha = self._draw(gaussians, stacked([target]))
        predictions = {NETWORK: Prediction(np.asarray(rgb[0]), np.asarray(alpha[0]))}
        same_size = target.image.shape == inputs[0].image.shape
        for name, baseline in self._baselines.items():
            if name == "nearest view" and not same_size:
                continue  # a picture of another camera's size cannot stand in
            predictions[name] = baseline(
                np.stack([v.image for v in inputs]),
                np.stack([v.mask for v in inputs]),
                stacked(inputs),
                target.camera,
            )
        figures = {
            name: {
                key: float(value)
                for key, value in jax.device_get(
                    self._figures(p.rgb, p.alpha, target.image, target.mask)
                ).items()
            }
            for name, p in predictions.items()
        }
        return Judged(target, [v.number for v in inputs], predictions, figures)


def stacked(views: list[View]) -> Camera:
    """The cameras of views of one size as one batch, float32."""
    first = views[0].camera
    return Camera(
        np.stack([np.asarray(v.camera.K, np.float32) for v in views]),
        np.stack([np.asarray(v.camera.c2w, np.float32) for v in views]),
        first.width,
        first.height,
    )


def _draw(
    gaussians: Gaussians, cameras: Camera, implementation: str | None
) -> tuple[jax.Array, jax.Array]:
    out = render(gaussians, cameras, implementation=implementation)
    return jnp.clip(out.rgb, 0, 1), out.alpha
