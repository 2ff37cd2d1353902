"""Visual hull and tangents on the ray-cast animal: true cameras agree, wrong ones do not."""

import dataclasses

import numpy as np
import pytest

from mouselift_jax.data.synthetic.recording import Scene
from mouselift_jax.data.synthetic.render import Painter, full_mask
from mouselift_jax.data.synthetic.rig import lab_rig
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.hull import (
    hull_cover,
    hull_points,
    outline,
    pixel_rays,
    tangent_contacts,
    tangent_residuals,
)

RIG = lab_rig(384, 340)


@pytest.fixture(scope="module")
def masks():
    body, painter = Scene(0, 30.0).body(5), Painter(0)
    drawn = []
    for camera in RIG:
        _, alpha, start = painter.mouse(body, camera)
        drawn.append(full_mask(alpha, start, camera) >= 0.5)
    return drawn


def test_true_cameras_cover_and_touch(masks):
    assert hull_cover(masks, RIG).min() > 0.99
    outlines = [outline(m)[None] for m in masks]
    for i in range(6):
        for j in range(i):
            gap = tangent_residuals(outlines[i], outlines[j], RIG[i], RIG[j])
            assert not np.nanmax(gap) > 1.5


def test_swapped_masks_are_not_covered(masks):
    swapped = [masks[i] for i in (0, 4, 2, 3, 1, 5)]
    assert hull_cover(swapped, RIG).mean() < 0.7


def test_wrong_focal_length_shows(masks):
    K = RIG[1].K * np.array([[1.05], [1.05], [1.0]])
    wrong = [*RIG]
    wrong[1] = dataclasses.replace(RIG[1], K=K)
    assert hull_cover(masks, wrong)[1] < hull_cover(masks, RIG)[1] - 0.005
    a, b = outline(masks[1])[None], outline(masks[3])[None]
    assert np.nanmean(tangent_residuals(a, b, wrong[1], RIG[3])) > 1.5


def test_hull_points_enclose_the_animal(masks):
    points = hull_points(masks, RIG)
    body = Scene(0, 30.0).body(5)
    assert np.linalg.norm(np.median(points, 0) - body.position) < 25
    assert np.ptp(points, 0).max() < 250


def test_tangent_residual_is_in_pixels():
    """A sphere: its silhouette moved by two pixels across the baseline is off by two pixels."""
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], -1)
    K = np.array([[4000.0, 0, 500], [0, 4000, 500], [0, 0, 1]])
    cameras = []
    for x in (-100.0, 100.0):
        c2w = np.eye(4)
        c2w[:3, 3] = [x, 0, -4000.0]
        cameras.append(Camera(K, c2w, 1000, 1000))
    centres = [c.project(np.zeros((1, 3)))[0][0] for c in cameras]
    a, b = centres[0] + 50 * circle, centres[1] + 50 * circle
    straight = tangent_residuals(a[None], b[None], *cameras)
    assert np.nanmax(straight) < 0.1
    moved = tangent_residuals(a[None], (b + [0.0, 2.0])[None], *cameras)
    np.testing.assert_allclose(moved, 2.0, atol=0.1)


def angles_of_rays(points, camera, other, sign):
    """Angle of each point's half-plane about the baseline, pixels per radian: ray by ray."""
    origin, d = pixel_rays(camera, points)
    axis = sign * (other - origin) / np.linalg.norm(other - origin)
    e1 = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
    e1 /= np.linalg.norm(e1)
    e2 = np.cross(axis, e1)
    u, w = d @ e1, d @ e2
    normal = (-w[..., None] * e1 + u[..., None] * e2) / np.hypot(u, w)[..., None]
    in_picture = np.sqrt(np.maximum(1 - (normal @ camera.c2w[:3, 2]) ** 2, 1e-6))
    focal = 0.5 * (camera.K[0, 0] + camera.K[1, 1])
    return np.arctan2(w, u), focal * np.hypot(u, w) / in_picture


def slow_tangents(a, b, camera_a, camera_b):
    """Residuals [2] and indices [2,2] of one instant's tangents, from the angles of all rays."""
    (angle_a, reach_a), (angle_b, reach_b) = (
        angles_of_rays(a, camera_a, camera_b.center, 1.0),
        angles_of_rays(b, camera_b, camera_a.center, -1.0),
    )
    middle = np.angle(np.exp(1j * angle_a).mean() + np.exp(1j * angle_b).mean())
    angle_a, angle_b = (np.angle(np.exp(1j * (x - middle))) for x in (angle_a, angle_b))
    out, at = np.full(2, np.nan), np.full((2, 2), -1)
    if max(np.ptp(angle_a), np.ptp(angle_b)) < 2.0:
        for k, pick in enumerate((np.argmin, np.argmax)):
            i, j = pick(angle_a), pick(angle_b)
            inside = [((p > 1.5) & (p < np.array([c.width, c.height]) - 1.5)).all()
                      for p, c in ((a[i], camera_a), (b[j], camera_b))]  # fmt: skip
            if all(inside):
                out[k] = 0.5 * abs(angle_a[i] - angle_b[j]) * (reach_a[i] + reach_b[j])
                at[:, k] = i, j
    return out, at


def test_tangents_are_those_of_all_rays(masks):
    cut = [m.copy() for m in masks]
    rows = np.flatnonzero(cut[2].any(1))
    cut[2][rows[0]] = False
    first = np.stack([outline(m) for m in masks])
    second = np.stack([outline(m) for m in cut]) + [3.0, -2.0]
    border = first - first[:, :, :1].min(axis=1, keepdims=True) * [1.0, 0.0]  # leaves the picture
    outlines = np.stack([first, second, border], 1)
    for i in range(6):
        for j in range(6):
            if i != j:
                pair = outlines[i], outlines[j], RIG[i], RIG[j]
                got, touched = tangent_residuals(*pair), tangent_contacts(*pair)
                for t in range(3):
                    wanted, at = slow_tangents(outlines[i][t], outlines[j][t], RIG[i], RIG[j])
                    np.testing.assert_allclose(got[t], wanted, rtol=1e-9, atol=1e-9)
                    np.testing.assert_array_equal(touched[:, t], at)


def test_empty_masks_are_unknown_not_wrong(masks):
    empty = [m if i != 2 else np.zeros_like(m) for i, m in enumerate(masks)]
    cover = hull_cover(empty, RIG)
    assert np.isnan(cover[2]) and np.nanmin(cover) > 0.97
    assert np.isnan(outline(empty[2])).all()
    assert np.isnan(hull_cover([np.zeros((8, 8), bool)] * 6, RIG)).all()


def test_an_animal_cut_by_the_border_is_not_held_against_the_cover(masks):
    cut, cameras = list(masks), list(RIG)
    columns = np.flatnonzero(masks[0].any(0))
    x0 = int(columns[len(columns) // 2])
    cut[0] = masks[0][:, x0:]
    cameras[0], _ = RIG[0].cropped(float(x0), 0.0, 384 - x0, 340)
    assert hull_cover(cut, cameras).min() > 0.97
