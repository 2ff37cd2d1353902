"""What a step of a fit or a film compares.

Pictures are rows of numbers, not of triples: XLA's CPU backend is slow at arrays whose last axis is
short.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mouselift_jax.pipelines.fit.start import Views

ROBUST = 0.3  # square of a difference of opacity from which it counts as a wrong mask


class Pictures(NamedTuple):
    """The views of a frame; S is their side.

    Attributes:
        rgb: [V,S,3S] colour times mask.
        mask: [V,S,S].
        weight: [V,S,S], 0 where nothing is known, else 1 over the animal's pixels in that view;
            [V,1,1] where all is known: two numbers less to read for each pixel and colour.
        rgb_weight: [V,S,3S] or [V,1,1], a third of it for each colour.
        K: [V,3,3].
        w2c: [V,4,4].
    """

    rgb: Array
    mask: Array
    weight: Array
    rgb_weight: Array
    K: Array
    w2c: Array

    @classmethod
    def of(cls, views: Views) -> Pictures:
        """The views of `cut_out`, in their own size."""
        mask = views.mask
        known = ~views.unknown if views.unknown.any() else np.ones((len(mask), 1, 1), bool)
        weight = known / np.maximum(mask.sum((1, 2), keepdims=True), 1)
        weight = weight.astype(np.float32)
        rgb = np.asarray(views.rgb, np.float32).reshape(*mask.shape[:2], -1)
        each = np.repeat(weight / 3, 3, -1) if known.shape == mask.shape else weight / 3
        return cls(rgb, mask, weight, each, views.K, views.w2c)

    def halved(self) -> Pictures:
        """In half the size."""

        def mean(x: Array, c: int) -> Array:
            v, h, w = x.shape
            if h == 1:  # a weight of all pixels
                return x
            small = x.reshape(v, h // 2, 2, w // c // 2, 2, c).mean((2, 4))
            return small.reshape(v, h // 2, w // 2)

        K = self.K * jnp.array([0.5, 0.5, 1.0])[:, None]
        weights = 4 * mean(self.weight, 1), 4 * mean(self.rgb_weight, 3)
        return Pictures(mean(self.rgb, 3), mean(self.mask, 1), *weights, K, self.w2c)

    def likeness(self, rgb: Array, alpha: Array) -> tuple[Array, Array]:
        """PSNR inside the cut-outs in dB, and IoU of the silhouettes; of each view [V].

        Args:
            rgb: what was drawn [V,S,S,3].
            alpha: its opacity [V,S,S,1].
        """
        known = jnp.broadcast_to(self.weight > 0, self.mask.shape)
        error = jnp.square(rgb.reshape(self.rgb.shape) - self.rgb) * (self.rgb_weight > 0)
        mse = error.sum(1).sum(1) / jnp.maximum(3 * known.sum((1, 2)), 1)
        a, b = (alpha[..., 0] > 0.5) & known, (self.mask > 0.5) & known
        iou = (a & b).sum((1, 2)) / jnp.maximum((a | b).sum((1, 2)), 1)
        return -10 * jnp.log10(jnp.maximum(mse, 1e-10)), iou


def order_of_views(n_views: int, steps: int, seed: int) -> np.ndarray:
    """Which view each step looks at: every view once before any comes again."""
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(n_views) for _ in range(-(-steps // n_views))]
    return np.concatenate([*rounds, np.zeros(0, int)])[:steps].astype(np.int32)


@jax.custom_vjp
def unlike(x: Array, true: Array, weight: Array) -> Array:
    """Weighed sum of absolute differences of pictures [S,C]."""
    return (jnp.abs(x - true) * weight).sum(0).sum()  # columns first: many at a time


@jax.custom_vjp
def unlike_outline(x: Array, true: Array, weight: Array) -> Array:
    """Sum of squares of small differences, growing ever slower: a wrong mask does not win."""
    square = jnp.square(x - true)
    return (square * ((1 + ROBUST) * weight) / (square + ROBUST)).sum(0).sum()


def _unlike_slope(arrays: tuple, slope: Array) -> tuple:
    x, true, weight = arrays
    # 0 where they are equal (black on black must push nothing), not a number where x is none.
    return jnp.sign(x - true) * (slope * weight), None, None


def _outline_slope(arrays: tuple, slope: Array) -> tuple:
    x, true, weight = arrays
    off = x - true
    scale = (2 * (1 + ROBUST) * ROBUST * slope) * weight
    return scale * off / jnp.square(jnp.square(off) + ROBUST), None, None


# By hand: what autodiff makes of these two takes as long on CPUs as drawing does.
unlike.defvjp(lambda *arrays: (unlike(*arrays), arrays), _unlike_slope)
unlike_outline.defvjp(lambda *arrays: (unlike_outline(*arrays), arrays), _outline_slope)
