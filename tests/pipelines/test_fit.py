"""Gaussians fitted to an egg whose every picture is known in closed form."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.camera import Camera, intrinsics
from mouselift_jax.geometry.rig import look_at_c2w
from mouselift_jax.pipelines.fit import (
    EmptyHullError,
    FitSettings,
    UnfittableError,
    Views,
    cut_out,
    fit,
    leave_one_out,
    optimise,
    shifts,
    start,
)
from mouselift_jax.render import render

pytestmark = pytest.mark.any_rasterizer

RADII = np.array([0.5, 0.3, 0.25])
TINY = FitSettings(
    cells=24, coarse_steps=24, fine_steps=36, next_coarse_steps=8, next_fine_steps=24, nodes=32,
    bucket=512, side_bucket=32, margin=6, smooth=0.2, opaque=0.1,  # it bends more in a cell
)  # fmt: skip


def camera(azimuth: float, elevation: float = 20.0, size: int = 80) -> Camera:
    a, e = np.radians([azimuth, elevation])
    at = 2.7 * np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    K = intrinsics(1.1 * size, 1.1 * size, size / 2, size / 2)
    return Camera(K, look_at_c2w(at, np.zeros(3)), size, size)


def photo(cam: Camera, centre: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The egg, red at one end and blue at the other, on white; and its mask."""
    x, y = np.meshgrid(np.arange(cam.width) + 0.5, np.arange(cam.height) + 0.5)
    d = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(cam.K).T @ cam.c2w[:3, :3].T / RADII
    o = (cam.c2w[:3, 3] - [centre, 0, 0]) / RADII
    a, b = (d * d).sum(-1), d @ o
    root = b * b - a * (o @ o - 1)
    hit = root > 0
    t = (-b - np.sqrt(np.maximum(root, 0))) / a
    along = (o + d * t[..., None])[..., 0]
    rgb = np.stack([0.5 + 0.4 * along, np.full_like(along, 0.3), 0.5 - 0.4 * along], -1)
    return np.where(hit[..., None], rgb, 1).astype(np.float32), hit[..., None].astype(np.float32)


def views_of(cameras: list[Camera], centre: float = 0.0) -> tuple:
    pairs = [photo(c, centre) for c in cameras]
    return [p[0] for p in pairs], [p[1] for p in pairs], cameras


RING = [camera(a, e) for a, e in ((0, 20), (90, 15), (180, 25), (270, 20))]


def iou(gaussians: object, cam: Camera, centre: float = 0.0) -> float:
    one = Camera(cam.K[None], cam.c2w[None], cam.width, cam.height)
    drawn, true = np.asarray(render(gaussians, one).alpha[0]) > 0.5, photo(cam, centre)[1] > 0.5
    return float((drawn & true).sum() / (drawn | true).sum())


@pytest.fixture(scope="module")
def fitted() -> tuple:
    views = cut_out(*views_of(RING), TINY)
    begun = start(views, TINY)
    return views, begun, fit(views, begun, TINY)


def test_a_hidden_view_is_better_than_the_hull(fitted: tuple) -> None:
    views, begun, done = fitted
    hidden = camera(45, 40)
    before = iou(begun.gaussians[begun.alive], hidden)
    after = iou(done.gaussians, hidden)
    assert after > before + 0.02
    assert after > 0.93
    assert done.psnr.mean() > 28
    assert done.losses[-6:].mean() < 0.5 * done.losses[:6].mean()


def test_padding_never_gets_out_and_sizes_stay_bounded(fitted: tuple) -> None:
    _, begun, done = fitted
    assert begun.alive.sum() < len(begun.alive)
    assert len(done.gaussians.means) <= begun.alive.sum()
    scales = np.exp(done.gaussians.log_scales) / begun.cell
    assert scales[:, :2].max() <= TINY.widest * 1.001
    assert scales[:, 2].max() <= TINY.thickness * 1.001
    assert np.abs(done.gaussians.means).max() < 0.8


def test_the_next_frame_starts_from_the_last(fitted: tuple) -> None:
    _, _, done = fitted
    moved = cut_out(*views_of(RING, 0.03), TINY)
    programs = optimise._run._cache_size()
    later = fit(moved, done.start, TINY, is_next=True)
    assert optimise._run._cache_size() == programs  # the short schedule needs none of its own
    hidden = camera(45, 40)
    assert iou(later.gaussians, hidden, 0.03) > iou(done.gaussians, hidden, 0.03)
    assert len(later.losses) == TINY.next_coarse_steps + TINY.next_fine_steps


def test_pictures_of_different_size(fitted: tuple) -> None:
    cameras = [camera(0, size=64), *RING[1:]]
    views = cut_out(*views_of(cameras), TINY)
    assert views.mask.shape[1] == views.mask.shape[2]
    assert iou(start(views, TINY).gaussians, camera(45, 40)) > 0.75


def test_outside_a_picture_that_cuts_the_animal_nothing_is_punished() -> None:
    images, masks, cameras = views_of(RING)
    x0 = int(np.nonzero(masks[1].any((0, 2)))[0].mean())  # the picture ends within the animal
    images[1], masks[1] = images[1][:, x0:], masks[1][:, x0:]
    cameras = [cameras[0], cameras[1].cropped(x0, 0, 80 - x0, 80)[0], *cameras[2:]]
    views = cut_out(images, masks, cameras, TINY)
    assert views.unknown[1].any()
    assert not views.unknown[[0, 2, 3]].any()
    whole = start(cut_out(*views_of(RING), TINY), TINY)
    cut = start(views, TINY)
    assert np.ptp(cut.gaussians.means[cut.alive], 0) @ [1, 0, 0] >= 0.95 * np.ptp(
        whole.gaussians.means[whole.alive][:, 0]
    )


def test_places_that_nobody_sees_are_counted_and_coloured() -> None:
    above = [camera(a, 50) for a in (0, 120, 240)]
    begun = start(cut_out(*views_of(above), TINY), TINY)
    unseen = begun.alive & (begun.seen == 0)
    assert unseen.any()
    assert begun.gaussians.means[unseen][:, 2].mean() < 0
    colours = 0.5 + 0.28209479177387814 * begun.gaussians.sh[unseen][:, 0]
    assert np.abs(colours[:, 1] - 0.3).max() < 0.05  # skin, not background


def test_what_cannot_be_fitted_says_so() -> None:
    images, masks, cameras = views_of(RING)
    with pytest.raises(EmptyHullError, match="a mask is empty"):
        cut_out(images, [masks[0] * 0, *masks[1:]], cameras, TINY)
    apart = views_of(RING[:2])[0] + views_of(RING[2:], 0.0)[0]
    away = [np.roll(m, 30 * (i % 2), 0) for i, m in enumerate(masks)]
    with pytest.raises(EmptyHullError, match="nothing in common"):
        start(cut_out(apart, away, cameras, TINY), TINY)
    far = [camera(a, e, 200) for a, e in ((0, 20), (90, 15), (180, 25), (270, 20), (0, 80))]
    pairs = [[photo(c, centre) for c in far] for centre in (-0.6, 0.6)]
    images, masks = ([np.maximum(a[k], b[k]) for a, b in zip(*pairs, strict=True)] for k in (0, 1))
    with pytest.raises(UnfittableError, match="two bodies"):
        start(cut_out(images, masks, far, TINY), TINY)
    images, masks, cameras = views_of(RING, 0.9)  # its far end is 1.4 from the middle
    with pytest.raises(UnfittableError, match=r"leaves the space .*\(cut off in right, left\)"):
        start(cut_out(images, masks, cameras, TINY, names=("front", "right", "back", "left")), TINY)


def test_cameras_that_agree_get_no_gain_of_their_own(fitted: tuple) -> None:
    *_, done = fitted
    assert np.abs(done.gains - 1).max() < 0.1
    fixed = dataclasses.replace(TINY, colours_of_cameras=False, coarse_steps=2, fine_steps=4)
    views = cut_out(*views_of(RING), fixed)
    plain = fit(views, start(views, fixed), fixed)
    assert np.array_equal(plain.gains, np.ones_like(plain.gains))


def test_a_camera_that_is_too_bright_is_found_and_taken_out(fitted: tuple) -> None:
    images, masks, cameras = views_of(RING)
    images[1] = images[1] * 1.2
    views = cut_out(images, masks, cameras, TINY)
    done = fit(views, start(views, TINY), TINY)
    # Gain and offset together: what they make of a middle grey.
    grey = 2 * (0.5 * done.gains + done.offsets).mean(-1)
    assert grey[1] / np.delete(grey, 1).mean() == pytest.approx(1.2, abs=0.04)
    same = fitted[2]
    assert 2 * (0.5 * same.gains + same.offsets).mean(-1) == pytest.approx(1, abs=0.02)


def test_how_far_a_place_is_from_the_surface_without_each_camera(
    fitted: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    views, begun, done = fitted
    heights = {"view 0": 0.1, "view 1": -0.7, "view 2": 0.2, "view 3": None}

    def level(less: Views, *_: object, **__: object) -> SimpleNamespace:
        """A level surface, higher or lower by which view is gone."""
        height = heights[(set(views.names) - set(less.names)).pop()]
        if height is None:
            raise UnfittableError("no")
        x, y = np.meshgrid(*2 * [np.linspace(-0.6, 0.6, 12)])
        still = begun.gaussians[: x.size]
        quats = np.tile([1.0, 0, 0, 0], (x.size, 1))
        means = np.stack([x.ravel(), y.ravel(), np.full(x.size, height)], -1)
        flat = dataclasses.replace(still, means=means, quats=quats)
        return SimpleNamespace(gaussians=flat, alive=np.ones(TINY.bucket, bool))

    monkeypatch.setattr(leave_one_out, "start", level)
    monkeypatch.setattr(leave_one_out, "fit", level)
    shift, failed, room = shifts(done.gaussians, views, TINY)
    z = done.gaussians.means[:, 2]
    np.testing.assert_allclose(shift, np.maximum(np.abs(z - 0.2), np.abs(z + 0.7)), rtol=1e-4)
    assert list(failed) == [3] and room == TINY.bucket
    with pytest.raises(ShapeError, match="three or more"):
        shifts(done.gaussians, views.without(0).without(0), TINY)


def test_a_slope_written_by_hand_is_that_of_the_plain_product() -> None:
    rng = np.random.default_rng(0)
    weights = rng.uniform(size=(7, 5)).astype(np.float32)
    nodes = rng.normal(size=(5, 3)).astype(np.float32)
    a = jax.grad(lambda n: (optimise._deformed(n, weights, weights.T) ** 2).sum())(nodes)
    b = jax.grad(lambda n: ((weights @ n) ** 2).sum())(nodes)
    np.testing.assert_allclose(a, b, rtol=1e-4)


def test_cameras_that_see_a_gaussian_are_counted(fitted: tuple) -> None:
    *_, done = fitted
    up = done.gaussians.means[:, 2]
    assert done.seen.min() >= 0
    assert done.seen.max() <= len(RING)
    assert done.seen[up > 0.12].mean() > 1.3  # the ring looks down on it
    assert done.seen[up < -0.18].mean() < 0.4
