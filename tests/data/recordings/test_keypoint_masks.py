"""Masks cut out round keypoints, of an animal that need not move."""

import dataclasses

import cv2
import numpy as np
import pytest

from mouselift_jax.data.recordings.keypoint_masks import cut_round, keypoint_masker
from mouselift_jax.errors import LayoutError


@pytest.fixture(scope="module")
def scene():
    """A bright animal on dark bedding with a bright bar beside it; its mask, and five points."""
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(20, 70, (240, 320, 3), dtype=np.uint8), (0, 0), 2)
    picture[20:30] = 220
    mask = cv2.ellipse(np.zeros((240, 320), np.uint8), (150, 130), (46, 26), 25, 0, 360, 1, -1) > 0
    picture[mask] = rng.integers(150, 190, (int(mask.sum()), 3))
    points = np.array([[150, 130], [120, 118], [180, 142], [150, 118], [155, 145]]) + 0.5
    return picture, mask, points


def test_the_animal_is_cut_out(scene):
    picture, mask, points = scene
    made = cut_round(picture, points) > 127
    assert (made & mask).sum() / (made | mask).sum() > 0.93
    assert np.array_equal(cut_round(picture, points), cut_round(picture, points))


def test_too_few_points_give_an_empty_mask(scene):
    picture, _, points = scene
    assert not cut_round(picture, points[:2]).any()
    assert not cut_round(picture, points + 1000).any()


def test_keypoints_of_a_recording_make_masks(recording):
    make = keypoint_masker(recording)
    assert make(0, np.zeros((256, 288, 3), np.uint8), None, 0).shape == (256, 288)
    with pytest.raises(LayoutError, match="has none"):
        keypoint_masker(dataclasses.replace(recording, keypoints=None))
