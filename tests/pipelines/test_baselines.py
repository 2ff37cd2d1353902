import numpy as np
import pytest

from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.rig import rig_from_angles
from mouselift_jax.pipelines.baselines import nearest_view, visual_hull

SIZE = 48


def cameras(azimuths, elevations):
    return rig_from_angles(azimuths, elevations, 2.7, SIZE * 1.07, SIZE)


def ball_pictures(cams, radius=0.5):
    """A ball, red where y < 0 and green where y > 0, ray-cast exactly."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    K, c2w = np.asarray(cams.K), np.asarray(cams.c2w)
    images, masks = [], []
    for v in range(len(K)):
        ray = np.stack(
            [(x - K[v, 0, 2]) / K[v, 0, 0], (y - K[v, 1, 2]) / K[v, 1, 1], x * 0 + 1], -1
        )
        ray = ray @ c2w[v, :3, :3].T
        ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
        origin = c2w[v, :3, 3]
        b = ray @ origin
        under = b**2 - (origin @ origin - radius**2)
        hit = under > 0
        place = origin + (-b - np.sqrt(np.maximum(under, 0)))[..., None] * ray
        rgb = np.where(place[..., 1:2] < 0, [0.8, 0.1, 0.1], [0.1, 0.8, 0.1])
        images.append(np.where(hit[..., None], rgb, 1.0))
        masks.append(hit[..., None].astype(np.float32))
    return np.array(images, np.float32), np.array(masks)


@pytest.fixture(scope="module")
def scene():
    every = cameras([*range(0, 360, 30), *range(0, 360, 45)], [0, 30, -30] * 4 + [60, -60] * 4)
    images, masks = ball_pictures(every)
    return images, masks, every


@pytest.mark.parametrize("azimuth, colour", [(275, "red"), (95, "green")])
def test_the_hull_of_a_ball_is_the_ball_in_its_colours(scene, azimuth, colour):
    images, masks, cams = scene
    heldout = cameras([azimuth], [10])[0]
    truth, mask = (x[0] for x in ball_pictures(cameras([azimuth], [10])))
    seen = visual_hull(images, masks, cams, heldout)
    both, either = (mask > 0.5) & (seen.alpha > 0.5), (mask > 0.5) | (seen.alpha > 0.5)
    assert both.sum() / either.sum() > 0.9
    inner = np.s_[SIZE // 2 - 4 : SIZE // 2 + 4, SIZE // 2 - 4 : SIZE // 2 + 4]
    assert np.abs(seen.rgb[inner] - truth[inner]).mean() < 0.02
    assert seen.rgb[inner][..., {"red": 0, "green": 1}[colour]].mean() > 0.75


def test_few_views_leave_a_larger_body(scene):
    images, masks, cams = scene
    heldout = cameras([275], [10])[0]
    few = visual_hull(images[:3], masks[:3], cams[:3], heldout).alpha.sum()
    assert few > 1.2 * visual_hull(images, masks, cams, heldout).alpha.sum()


def test_masks_without_anything_in_common_give_an_empty_picture(scene):
    images, masks, cams = scene
    seen = visual_hull(images, np.zeros_like(masks), cams, cams[6])
    assert seen.alpha.max() < 0.01 and seen.rgb.min() > 0.99


def test_nearest_view_is_the_one_that_looks_the_same_way(scene):
    images, masks, cams = scene
    seen = nearest_view(images, masks, cams, cameras([272], [3])[0])
    assert np.array_equal(seen.rgb, images[9]) and np.array_equal(seen.alpha, masks[9])


def test_a_wrong_number_of_masks_is_refused(scene):
    images, masks, cams = scene
    with pytest.raises(ShapeError):
        visual_hull(images, masks[:5], cams, cams[6])
