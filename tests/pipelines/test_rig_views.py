"""Gaussians drawn from a rig."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mouselift_jax.data.batches.pictures import composite
from mouselift_jax.geometry.rig import azimuth_elevation, rig_from_angles
from mouselift_jax.pipelines.rig_views import cut_outs, further_cameras, share_outside
from mouselift_jax.render import render
from tests.fit_runs import ellipsoid
from tests.sample_sets import ellipsoid_picture

pytestmark = pytest.mark.any_rasterizer

AXES = np.array([0.4, 0.6, 0.5])


def test_further_cameras_lie_on_the_belt_and_look_at_the_animal():
    cameras = further_cameras(26, (0.0, 60.0), 2.7, 100.0, 64)
    azimuth, elevation = azimuth_elevation(cameras.c2w)
    assert elevation.min() > 0 and elevation.max() < 60 and np.ptp(elevation) > 50
    gaps = np.diff(np.sort(azimuth))
    assert gaps.max() < 30  # all round
    np.testing.assert_allclose(cameras.project(np.zeros(3))[0], 32, atol=1e-9)


def test_cut_outs_are_pictures_with_straight_alpha_and_exact_cameras():
    cameras = rig_from_angles(270 - 40.0 * np.arange(9), 10.0, 2.7, 120.0, 96)  # 9: two groups
    drawn = cut_outs(ellipsoid(AXES), cameras)
    assert drawn.shape == (9, 96, 96, 4) and drawn.dtype == np.uint8
    assert not drawn[drawn[..., 3] == 0].any()
    true = ellipsoid_picture(cameras, AXES, 96)
    a, b = drawn[..., 3] > 127, true[..., 3] > 127
    assert (a & b).sum() / (a | b).sum() > 0.93
    inside = a & b & (drawn[..., 3] == 255)
    assert np.abs(drawn[..., :3].astype(int) - true[..., :3])[inside].mean() < 12
    # straight alpha: laid on white again, the pictures are what the rasterizer draws on white
    on_white = composite(drawn, np.ones(3, np.float32))[0]
    K, c2w = (np.asarray(x, np.float32) for x in (cameras.K, cameras.c2w))
    direct = render(ellipsoid(AXES), dataclasses.replace(cameras, K=K, c2w=c2w)).rgb
    np.testing.assert_allclose(on_white, np.clip(direct, 0, 1), atol=1.5 / 255)
    # one view alone is the view in company
    np.testing.assert_array_equal(cut_outs(ellipsoid(AXES), cameras[np.array([3])])[0], drawn[3])


def test_share_outside():
    cameras = rig_from_angles([270.0, 180.0], 0.0, 2.7, 60.0, 48)
    assert share_outside(ellipsoid(AXES), cameras).max() == 0
    moved = dataclasses.replace(
        ellipsoid(AXES), means=ellipsoid(AXES).means + np.float32([9, 0, 0])
    )
    out = share_outside(moved, cameras)
    assert out[0] == 1.0
