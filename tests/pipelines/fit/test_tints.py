import numpy as np

from mouselift_jax.pipelines.fit.tints import tints_of


def test_tints_go_with_the_cameras_number_and_an_unknown_one_is_neutral():
    gains = np.float32([[1, 1, 1], [0.8, 1, 1.2], [1.2, 1, 0.8]])
    offsets = np.float32([[0, 0, 0], [0.1, 0, 0], [-0.1, 0, 0]])
    gain, offset = tints_of(gains, offsets, [4, 7, 2], [2, 9, 4])
    np.testing.assert_array_equal(gain, [gains[2], [1, 1, 1], gains[0]])
    np.testing.assert_array_equal(offset, [offsets[2], [0, 0, 0], offsets[0]])
