"""Silhouettes: which patches show the animal, and how far along a ray its surface can lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.rays import camera_rays
from mouselift_jax.geometry.rig import turntable
from mouselift_jax.models import silhouettes as lib
from mouselift_jax.models.gslrm import GSLRM, GSLRMConfig
from mouselift_jax.pipelines.lift import lift

SIZE, RADIUS = 64, 0.3


@pytest.fixture(scope="module")
def ball():
    """Eight views round a ball at the origin: solid [1,V,H,W], K, c2w, and their pixels' rays."""
    cameras = turntable(8, elevation_deg=20.0, size=SIZE)
    K, c2w = (jnp.asarray(x, jnp.float32)[None] for x in (cameras.K, cameras.c2w))
    ray_o, ray_d = camera_rays(K, c2w, SIZE, SIZE)
    away = jnp.linalg.norm(jnp.cross(ray_o, ray_d), axis=-1)
    return away < RADIUS, K, c2w, ray_o, ray_d


def test_a_rays_way_through_the_hull_holds_the_true_surface_and_little_more(ball):
    solid, K, c2w, ray_o, ray_d = ball
    on = np.asarray(solid[0, 0])
    o, d = (r[:, 0][:, on] for r in (ray_o, ray_d))
    enters, leaves = (np.asarray(x[0]) for x in jax.jit(lib.hull_span)(solid, K, c2w, o, d))
    o, d = np.asarray(o), np.asarray(d)
    middle = -(o[0] * d[0]).sum(-1)
    half = np.sqrt(RADIUS**2 - np.linalg.norm(np.cross(o[0], d[0]), axis=-1) ** 2)
    pixel = 2 * lib.REACH * lib.SPACING / SIZE
    assert (enters <= middle - half + 2 * pixel).all()
    assert (leaves >= middle + half - 2 * pixel).all()
    # The hull of eight views of a ball is not much larger than the ball.
    assert np.median(middle - half - enters) < 0.15
    assert (leaves - enters < 2 * lib.REACH).all()


def test_a_damaged_silhouette_leaves_a_span(ball):
    solid, K, c2w, ray_o, ray_d = ball
    solid = solid.at[0, 3].set(False)  # this view says that there is nothing at all
    on = np.asarray(solid[0, 0])
    o, d = (r[:, 0][:, on] for r in (ray_o, ray_d))
    enters, leaves = lib.hull_span(solid, K, c2w, o, d)
    assert np.isfinite(enters).all() and (enters < leaves).all()
    assert np.median(leaves - enters) < 1.0


def test_patches_of_the_animal_come_first_and_in_order():
    images = np.ones((1, 2, 8, 8, 3), np.float32)
    images[0, 0, 5, 1] = 0.2  # patch 2 of view 0
    images[0, 1, 0, 7, 0] = 0.9  # patch 1 of view 1: one channel is enough
    patches = jnp.asarray(images.reshape(1, 2, 2, 4, 2, 4, 3).swapaxes(3, 4).reshape(1, 8, 48))
    assert lib.animal_first(patches, 0.25).tolist() == [[2, 5]]
    assert lib.animal_first(patches, 0.3).tolist() == [[2, 5, 0]]
    assert lib.animal_patches(images, 4) == (2, 8)


def test_too_little_room_is_said_with_the_share_that_is_enough():
    images = np.ones((1, 1, 8, 8, 3), np.float32)
    images[0, 0, :, :4] = 0.5
    lib.check_room(images, 4, 0.5)
    lib.check_room(images, 4, None)
    with pytest.raises(ShapeError, match=r"(?s)at most 1 of 4.*animal_share=0\.50"):
        lib.check_room(images, 4, 0.25)


def test_lifting_makes_room_for_a_large_animal():
    config = GSLRMConfig(
        width=32, head_dim=16, n_layers=1, patch_size=8, animal_share=0.25, depth="hull"
    )
    model = GSLRM(config)
    images = jnp.full((2, 16, 16, 3), 0.5)  # no patch is white
    camera = turntable(2, size=16)
    K, c2w = (jnp.asarray(x, jnp.float32) for x in (camera.K, camera.c2w))
    params = model.init(jax.random.key(0), images[None], K[None], c2w[None])["params"]
    found = lift(model, params, images, Camera(K, c2w, 16, 16))
    assert found.means.shape == (config.n_gaussian_tokens + 2 * 16 * 16, 3)
