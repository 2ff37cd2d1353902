"""Pixels and cameras changed together."""

import numpy as np
import pytest

from mouselift_jax.data.crop import (
    apply_map,
    crop,
    cutout,
    map_points,
    resize,
    shrink_factor,
    undistortion_maps,
    warp,
)
from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.camera import Camera, intrinsics
from mouselift_jax.geometry.rig import look_at_c2w


def camera(width=160, height=120, f=150.0):
    K = intrinsics(f, 1.02 * f, 0.47 * width, 0.55 * height)
    return Camera(K, look_at_c2w([1.0, -2.5, 0.8], [0.1, 0.0, 0.1]), width, height)


def smooth_picture(width, height, channels=3):
    """A picture that is the same function of position at every resolution."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    waves = [0.5 + 0.4 * np.sin(5 * x + k) * np.cos(4 * y - k) for k in range(channels)]
    return np.stack(waves, -1).astype(np.float32)


def blob_picture(cam, points, sigma=1.5):
    """Bright spots where world points project."""
    xy, _ = cam.project(points)
    x, y = np.meshgrid(np.arange(cam.width) + 0.5, np.arange(cam.height) + 0.5)
    d2 = (x[..., None] - xy[:, 0]) ** 2 + (y[..., None] - xy[:, 1]) ** 2
    return np.exp(-d2 / (2 * sigma**2)).sum(-1).astype(np.float32)


def spot_center(picture, near, half=5):
    x0, y0 = int(near[0]) - half, int(near[1]) - half
    part = picture[y0 : y0 + 2 * half + 1, x0 : x0 + 2 * half + 1]
    y, x = np.mgrid[: part.shape[0], : part.shape[1]] + 0.5
    return np.array([(part * x).sum(), (part * y).sum()]) / part.sum() + [x0, y0]


POINTS = np.array([[0.1, 0.0, 0.1], [0.5, 0.1, 0.3], [-0.4, 0.2, -0.1]])


@pytest.mark.parametrize("change", ["crop", "crop_fraction", "resize", "enlarge", "warp"])
def test_spots_stay_where_the_camera_says(change):
    """What the picture shows moves exactly as the new camera projects it."""
    cam = camera()
    picture = blob_picture(cam, POINTS)
    if change == "crop":
        new, out = crop(picture, cam, 12, 9, 120, 100)[::-1]
    elif change == "crop_fraction":
        new, out = crop(picture, cam, 12.3, 9.6, 120, 100)[::-1]
    elif change == "resize":
        new, out = resize(picture, cam, 100, 90)[::-1]
    elif change == "enlarge":
        new, out = resize(picture, cam, 256, 192)[::-1]
    else:
        turned = look_at_c2w(cam.center, [0.2, 0.1, 0.15])
        R = turned[:3, :3].T @ cam.c2w[:3, :3]
        new, out = warp(picture, cam, R, intrinsics(170.0, 170.0, 64, 64), 128, 128)[::-1]
    assert out.shape == (new.height, new.width)
    xy, _ = new.project(POINTS)
    for expected in xy:
        found = spot_center(out, expected, half=5)
        assert np.linalg.norm(found - expected) < 0.06


def test_integer_crop_copies_and_pads():
    cam, picture = camera(), smooth_picture(160, 120)
    out, new = crop(picture, cam, -10, 20, 50, 120)
    assert (out[:, :10] == 0).all() and (out[100:] == 0).all()
    assert (out[:100, 10:] == picture[20:, :40]).all()
    assert new.K[0, 2] == cam.K[0, 2] + 10 and new.K[1, 2] == cam.K[1, 2] - 20


def test_resize_keeps_smooth_pictures():
    out, _ = resize(smooth_picture(160, 120), camera(), 80, 60)
    np.testing.assert_allclose(out, smooth_picture(80, 60), atol=2e-3)


@pytest.mark.parametrize("size", [(256, 192), (200, 60), (100, 240)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_border_of_an_enlarged_picture_keeps_its_colour(size, channels):
    """A photo on white, or views that a smaller network made, must not get a grey frame."""
    white = np.full((120, 160, channels), 255, np.uint8)
    assert (resize(white, camera(), *size)[0] == 255).all()
    out, _ = resize(smooth_picture(160, 120), camera(), *size)
    np.testing.assert_allclose(out, smooth_picture(*size), atol=5e-3)


def test_shrinking_a_cut_out_works_on_its_box():
    rng = np.random.default_rng(0)
    rgba = np.zeros((120, 160, 4), np.uint8)
    rgba[31:77, 42:99] = rng.integers(0, 256, (46, 57, 4))
    out, _ = resize(rgba, camera(), 80, 60)
    a = rgba[..., 3:] / 255.0
    mean = lambda v: v.reshape(60, 2, 80, 2, -1).mean((1, 3))  # noqa: E731
    np.testing.assert_allclose(out[..., 3:], mean(a) * 255, atol=0.51)
    seen = out[..., 3] > 20
    color = (mean(rgba[..., :3] * a) / np.maximum(mean(a), 1e-9))[seen]
    np.testing.assert_allclose(out[seen][:, :3], color, atol=0.51)
    assert (out[out[..., 3] == 0] == 0).all()


def test_colours_behind_the_animal_do_not_leak():
    """A green background under alpha 0 leaves no trace at the outline."""
    x, y = np.meshgrid(np.arange(160), np.arange(120))
    inside = (x - 80) ** 2 + (y - 60) ** 2 < 35**2
    rgba = np.zeros((120, 160, 4), np.uint8)
    rgba[...] = (0, 255, 0, 0)
    rgba[inside] = (200, 30, 30, 255)
    for out in (resize(rgba, camera(), 57, 43)[0], crop(rgba, camera(), 0.5, 0.5, 150, 110)[0]):
        assert (out[out[..., 3] == 0] == 0).all()
        seen = out[out[..., 3] > 8]
        assert np.abs(seen[:, :3].astype(int) - [200, 30, 30]).max() <= 2
        assert ((out[..., 3] > 0) & (out[..., 3] < 255)).any()  # the edge is anti-aliased


@pytest.mark.parametrize("scale", [0.28, 0.45, 0.7, 1.6])
def test_cutout_is_the_whole_map_on_a_box(scale):
    """The fast path gives what `apply_map` gives, colour order apart."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(320), np.arange(256))
    alpha = np.where(((x - 170) / 60) ** 2 + ((y - 120) / 40) ** 2 < 1, 255, 0).astype(np.uint8)
    bgr = rng.integers(0, 256, (256, 320, 3)).astype(np.uint8)
    M = np.array([[scale, 0.02, 10.3], [-0.01, scale, 8.9], [1e-4, -1e-4, 1.0]])
    size = int(320 * scale * 1.3)
    out = cutout(bgr, alpha, M, size, size, (110, 80, 231, 161)).astype(int)
    full = apply_map(np.dstack([bgr[..., ::-1], alpha]), M, size, size).astype(int)
    assert np.abs(out[..., 3] - full[..., 3]).max() <= 3
    difference = np.abs(out[..., :3] - full[..., :3]) * out[..., 3:] / 255
    assert difference.max() <= 8 and difference.mean() < 0.1


def test_cutout_of_nothing_and_of_outside():
    bgr, alpha = np.zeros((50, 60, 3), np.uint8), np.zeros((50, 60), np.uint8)
    assert not cutout(bgr, alpha, np.eye(3), 32, 32, (0, 0, 0, 0)).any()
    alpha[10:20, 10:20] = 255
    away = np.array([[1.0, 0, 500], [0, 1, 0], [0, 0, 1]])
    assert not cutout(bgr, alpha, away, 32, 32, (10, 10, 20, 20)).any()


def test_shrink_factor_is_the_jacobian():
    M = np.array([[0.5, 0.1, 3], [-0.05, 0.4, 7], [1e-3, -5e-4, 1.0]])
    xy, h = np.array([40.0, 25.0]), 1e-4
    J = np.stack(
        [(map_points(M, xy + h * e) - map_points(M, xy - h * e)) / (2 * h) for e in np.eye(2)]
    )
    assert shrink_factor(M, xy) == pytest.approx(1 / np.sqrt(abs(np.linalg.det(J))), rel=1e-6)


def test_undistortion_straightens():
    """A straightened pixel shows what the raw picture has at its raw place."""
    import cv2

    from mouselift_jax.data.distortion import distort_pixels

    cam, coefficients = camera(), np.array([-0.2, 0.1, 0.002, -0.001, 0.0])
    x, y = np.meshgrid(np.arange(160) + 0.5, np.arange(120) + 0.5)
    raw = (x + 2 * y).astype(np.float32)
    out = cv2.remap(raw, *undistortion_maps(cam, coefficients), cv2.INTER_LINEAR)
    for px in ([70, 50], [30, 90], [120, 30]):
        at = distort_pixels(np.array(px) + 0.5, cam.K, coefficients)
        assert out[px[1], px[0]] == pytest.approx(at[0] + 2 * at[1], abs=0.1)


def test_wrong_camera_is_refused():
    with pytest.raises(ShapeError, match="differ in size"):
        resize(np.zeros((10, 10, 3), np.uint8), camera(), 5, 5)
    with pytest.raises(ShapeError, match="uint8 or float32"):
        resize(np.zeros((120, 160, 3)), camera(), 5, 5)
