"""Masks cut out round keypoints, of an animal that need not move."""

import dataclasses
import sys

import cv2
import numpy as np
import pytest

from mouselift_jax.data.recordings.keypoint_masks import cut_round, keypoint_masker
from mouselift_jax.data.recordings.keypoints import keypoints_of
from mouselift_jax.data.recordings.layout import Layout
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


def test_keypoints_that_cannot_be_read_are_not_called_absent(recording, tmp_path, monkeypatch):
    """A package that is missing is told once for all cameras, and where masks are wanted."""
    monkeypatch.setitem(sys.modules, "h5py", None)
    files = {name: tmp_path / f"{name}.h5" for name in "abc"}
    for file in files.values():
        file.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    findings = []
    layout = Layout(tmp_path, None, {}, {}, files)
    assert keypoints_of(layout, list(files), [], 3, findings) is None
    assert [f.code for f in findings] == ["keypoints_unreadable"]
    bare = dataclasses.replace(recording, keypoints=None, findings=tuple(findings))
    with pytest.raises(LayoutError, match=r"that could be read[\s\S]*pip install[\s\S]*masks="):
        keypoint_masker(bare)
