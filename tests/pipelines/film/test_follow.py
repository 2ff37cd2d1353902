"""An egg with a pattern turns: its Gaussians follow the pattern, not the outline alone."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mouselift_jax.pipelines.film import FilmSettings, at_rest, expected, follow, posed, rest_of
from mouselift_jax.pipelines.fit import Fit, FitSettings, Start, cut_out
from mouselift_jax.pipelines.fit.start import SH_0
from mouselift_jax.render import render
from mouselift_jax.splats.gaussians import Gaussians, rotation_to_quat
from tests.pipelines.test_fit import RING, TINY

pytestmark = pytest.mark.any_rasterizer

SETTINGS = FilmSettings(nodes=24, coarse_steps=24, fine_steps=36)
RADII = np.array([0.5, 0.3, 0.25])
TURN = Rotation.from_rotvec([0.14, 0.0, 0.0])  # about its long axis: the outline hardly shows it
SHIFT = np.array([0.03, -0.02, 0.01])


def egg() -> Gaussians:
    """Flat Gaussians on an ellipsoid, in stripes and patches of colour."""
    k = np.arange(1400) + 0.5
    z, a = 1 - 2 * k / 1400, np.pi * (1 + 5**0.5) * k
    unit = np.stack([np.sqrt(1 - z * z) * np.cos(a), np.sqrt(1 - z * z) * np.sin(a), z], -1)
    normal = unit / RADII
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    x = np.cross(normal, [0.3, 0.5, 0.8])
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    frames = np.stack([x, np.cross(normal, x), normal], -1)
    phase = unit @ np.array([[6.0, 3, 0], [2, 7, 4], [0, 5, 9]])
    colours = 0.5 + 0.3 * np.sin(phase)
    arrays = (
        unit * RADII, rotation_to_quat(frames), np.log(np.tile([0.022, 0.022, 0.006], (1400, 1))),
        np.full(1400, 3.0), ((colours - 0.5) / SH_0)[:, None],
    )  # fmt: skip
    return Gaussians(*(np.float32(x) for x in arrays))


def views_of(gaussians: Gaussians, settings: FitSettings) -> object:
    images, masks = [], []
    for cam in RING:
        one = dataclasses.replace(cam, K=np.float32(cam.K[None]), c2w=np.float32(cam.c2w[None]))
        drawn = jax.device_get(render(gaussians, one))
        images.append(drawn.rgb[0])
        masks.append(drawn.alpha[0])
    return cut_out(images, masks, RING, settings)


@pytest.fixture(scope="module")
def rest() -> object:
    g = egg()
    start = Start(
        g, np.ones(1400, bool), np.full(1400, 2.0), 0.03, np.ones((4, 3)), np.zeros((4, 3))
    )
    done = Fit(g, np.zeros(1), np.full(4, 30.0), np.full(4, 0.95), np.ones(1400), None, None, start)
    return rest_of(done, SETTINGS.nodes, range(4))


def moved(g: Gaussians, times: int) -> Gaussians:
    R = (TURN**times).as_matrix()
    turned = g.turned(R)
    return dataclasses.replace(turned, means=(turned.means + times * SHIFT).astype(np.float32))


def test_it_follows_a_turn_that_the_outline_does_not_show(rest) -> None:
    motion, before = at_rest(rest), None
    for n in (1, 2):
        true = moved(egg(), n)
        start = expected(motion, before, SETTINGS.trust)
        done = follow(views_of(true, TINY), rest, start, SETTINGS, range(4))
        before, motion = motion, done.motion
        error = np.linalg.norm(posed(rest, motion).means - true.means, axis=-1)
        stayed = np.linalg.norm(posed(rest, start).means - true.means, axis=-1)
        # A pixel is 0.03 wide.
        assert np.median(error) < 0.015 and np.quantile(error, 0.95) < 0.03
        if n == 1:
            assert np.median(stayed) > 0.04
    assert done.iou.mean() > 0.97 and done.psnr.mean() > 30
    assert np.abs(motion.own).mean() < 0.2  # the nodes do the work


def test_a_camera_keeps_its_tint_whatever_its_place_among_the_views(rest) -> None:
    gains = np.float32(1 + 0.2 * np.array([[0, 0, 0], [-1, 1, 0], [1, 0, -1], [0, -1, 1]]))
    tinted = dataclasses.replace(rest, gains=gains, cameras=np.array([7, 3, 5, 9]))
    views = views_of(egg(), TINY)
    order = [2, 0, 3, 1]
    rgb = (views.rgb * gains[:, None, None])[order]
    pictures = {k: getattr(views, k)[order] for k in ("mask", "unknown", "K", "w2c")}
    shown = dataclasses.replace(views, rgb=rgb, **pictures)
    done = follow(shown, tinted, at_rest(rest), SETTINGS, [5, 7, 9, 3])
    assert done.psnr.mean() > 30 and np.abs(done.motion.tint).mean() < 0.01
