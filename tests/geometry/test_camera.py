import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.errors import CalibrationError, MouseLiftError, ShapeError
from mouselift_jax.geometry.camera import Camera, intrinsics, stack_cameras
from mouselift_jax.geometry.rays import camera_rays, nearest_to_origin, pixel_centers, plucker
from mouselift_jax.geometry.rig import azimuth_elevation, look_at_c2w, rig_from_angles, turntable
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.geometry.triangulate import reprojection_error, triangulate
from mouselift_jax.geometry.validate import camera_problems, validate_cameras


@pytest.fixture
def rig() -> Camera:
    return rig_from_angles([270, 225, 180, 90, 0, 315], [0, 5, 10, 20, 30, -10], 2.7, 500.0, 512)


def random_rotation(rng):
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def warp(M, xy):
    out = np.concatenate([xy, np.ones_like(xy[..., :1])], -1) @ np.swapaxes(M, -1, -2)
    return out[..., :2] / out[..., 2:]


def points(n=20, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (n, 3))


@pytest.mark.parametrize("change", ["cropped", "resized", "rotated", "twice"])
def test_project_then_map_equals_map_then_project(rig, change):
    camera, p = rig[1], points()
    xy, _ = camera.project(p)
    if change == "cropped":
        new, M = camera.cropped(17.5, -30.0, 200, 300)
    elif change == "resized":
        new, M = camera.resized(300, 700)
    elif change == "rotated":
        R = random_rotation(np.random.default_rng(1))
        R = np.linalg.qr(np.eye(3) + 0.1 * R)[0]
        R *= np.sign(np.diag(R))[:, None]
        R *= np.sign(np.linalg.det(R))
        new, M = camera.rotated(R, intrinsics(700.0, 710.0, 100.0, 90.0), 256, 256)
    else:
        once, M1 = camera.cropped(10, 20, 300, 300)
        new, M2 = once.resized(128, 64)
        M = M2 @ M1
    np.testing.assert_allclose(new.project(p)[0], warp(M, xy), atol=1e-8)


def test_flip_is_the_mirrored_world(rig):
    camera, p = rig[3], points()
    new, M = camera.flipped()
    mirrored = p * np.array([-1.0, 1.0, 1.0])
    np.testing.assert_allclose(new.project(mirrored)[0], warp(M, camera.project(p)[0]), atol=1e-9)
    assert np.linalg.det(new.c2w[:3, :3]) == pytest.approx(1.0)


def test_similarity_leaves_pictures_unchanged(rig):
    rng = np.random.default_rng(3)
    s = Similarity(np.float64(0.02), random_rotation(rng), rng.normal(size=3))
    p = points()
    before, depth = rig.project(p)
    after, depth_after = rig.transformed(s).project(s.apply(p))
    np.testing.assert_allclose(after, before, atol=1e-8)
    np.testing.assert_allclose(depth_after, 0.02 * depth, rtol=1e-9)
    np.testing.assert_allclose(s.inverse().apply(s.apply(p)), p, atol=1e-12)
    np.testing.assert_allclose(s.compose(s).apply(p), s.apply(s.apply(p)), atol=1e-12)


def test_batch_projection_equals_loop(rig):
    p = points()
    xy, depth = rig.project(p)
    for v in range(6):
        one, d = rig[v].project(p)
        np.testing.assert_allclose(xy[v], one)
        np.testing.assert_allclose(depth[v], d)
    each, _ = rig.project_each(points(6))
    np.testing.assert_allclose(each, np.stack([rig[v].project(points(6)[v])[0] for v in range(6)]))


def test_rays_pass_through_their_pixels(rig):
    camera = rig[2].resized(16, 12)[0]
    ray_o, ray_d = camera_rays(camera.K, camera.c2w, 12, 16)
    xy, depth = camera.project((ray_o + 1.7 * ray_d).reshape(-1, 3))
    np.testing.assert_allclose(
        xy.reshape(12, 16, 2), pixel_centers(12, 16, like=camera.K), atol=1e-9
    )
    assert (depth > 0).all()
    np.testing.assert_allclose(np.linalg.norm(ray_d, axis=-1), 1.0)
    near = nearest_to_origin(ray_o, ray_d)
    np.testing.assert_allclose((near * ray_d).sum(-1), 0.0, atol=1e-12)
    moment = plucker(ray_o, ray_d)[..., :3]
    np.testing.assert_allclose(
        np.linalg.norm(moment, axis=-1), np.linalg.norm(near, axis=-1), atol=1e-12
    )


def test_triangulation_inverts_projection_and_skips_unseen(rig):
    p = points(8)
    xy, _ = rig.project(p)
    weights = np.ones((6, 8))
    weights[2:, 0], weights[1:, 1] = 0, 0  # point 0 in two cameras, point 1 in one
    xy = xy.copy()
    xy[3, 0] = np.nan
    got = triangulate(xy, rig, weights)
    np.testing.assert_allclose(got[[0, 2, 3, 4, 5, 6, 7]], p[[0, 2, 3, 4, 5, 6, 7]], atol=1e-9)
    assert np.isnan(got[1]).all()
    assert reprojection_error(p, rig.project(p)[0], rig).max() < 1e-9


def test_triangulation_minimises_pixel_error(rig):
    p = points(4)
    xy = rig.project(p)[0] + np.random.default_rng(0).normal(size=(6, 4, 2))
    best = triangulate(xy, rig)
    cost = (reprojection_error(best, xy, rig) ** 2).sum()
    for delta in 1e-3 * np.concatenate([np.eye(3), -np.eye(3)]):
        assert (reprojection_error(best + delta, xy, rig) ** 2).sum() > cost


def test_canonical_angles_and_look_at(rig):
    azimuth, elevation = azimuth_elevation(rig.c2w)
    np.testing.assert_allclose(azimuth, [270, 225, 180, 90, 0, 315], atol=1e-9)
    np.testing.assert_allclose(elevation, [0, 5, 10, 20, 30, -10], atol=1e-9)
    xy, depth = rig.project(np.zeros(3))
    np.testing.assert_allclose(xy, 256.0, atol=1e-9)
    np.testing.assert_allclose(depth, 2.7)
    up_pixel = rig.project(np.array([0, 0, 0.1]))[0]
    assert (up_pixel[:, 1] < 256).all()  # world up is picture up
    with pytest.raises(CalibrationError, match="along `up`"):
        look_at_c2w([0, 0, 2.0])


def test_turntable_goes_clockwise_and_closes():
    cameras = turntable(8, size=64)
    azimuth, elevation = azimuth_elevation(cameras.c2w)
    np.testing.assert_allclose(np.diff(azimuth) % 360, 315.0, atol=1e-6)
    np.testing.assert_allclose(elevation, 20.0)


def test_camera_is_a_pytree_and_works_under_jit_and_vmap(rig):
    cameras = jax.tree.map(jnp.asarray, rig)
    p = jnp.asarray(points(5), jnp.float32)
    xy = jax.jit(lambda c, q: c.project(q)[0])(cameras, p)
    np.testing.assert_allclose(xy, rig.project(points(5))[0], atol=1e-2)
    per_view = jax.vmap(lambda c: c.project(p)[0])(cameras)
    np.testing.assert_allclose(per_view, xy, atol=1e-3)
    assert cameras.width == 512


def test_stacking_needs_one_size(rig):
    with pytest.raises(ShapeError, match="different picture sizes"):
        stack_cameras([rig[0], rig[1].resized(64, 64)[0]])
    assert stack_cameras([rig[0], rig[1]]).batch_shape == (2,)
    mixed = stack_cameras([rig[0], rig[1].resized(64, 64)[0]], any_size=True)
    assert (mixed.width, mixed.height) == (1, 1)  # nobody takes it for the camera of a picture
    np.testing.assert_array_equal(mixed.K[0], rig[0].K)


def test_camera_shapes_are_checked():
    with pytest.raises(ShapeError, match="same batch shape"):
        Camera(np.eye(3), np.eye(4)[None], 4, 4)


def test_validation_names_every_fault(rig):
    assert camera_problems(rig, subject=np.zeros(3)) == []
    c2w, K = rig.c2w.copy(), rig.K.copy()
    c2w[0, :3, 0] *= -1  # mirrored
    c2w[1, 0, 0] = np.nan
    c2w[2, :3, :3] *= 1.1  # scaled
    c2w[3] = np.linalg.inv(c2w[3])  # w2c where c2w is meant: subject behind, or elsewhere
    K[4] = K[4].T
    found = camera_problems(Camera(K, c2w, 512, 512), names="abcdef", subject=np.zeros(3))
    text = "\n".join(map(str, found))
    for words in ("mirrored  (camera a)", "not finite  (camera b)", "not orthonormal  (camera c)"):
        assert words in text
    assert "not a pinhole matrix  (camera e)" in text and "camera f" not in text
    with pytest.raises(MouseLiftError, match="problem"):
        validate_cameras(Camera(K, c2w, 512, 512))
