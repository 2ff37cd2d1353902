import numpy as np
from scipy.spatial.transform import Rotation

from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.pipelines.descriptor import descriptor, names
from tests.mouse import body_of, skin_of


def test_turning_and_moving_changes_nothing_and_another_pose_does():
    splats = skin_of(body_of(3, 20), apart=2.5)
    before = descriptor(splats)
    assert before.dtype == np.float32 and before.shape == (len(names()),)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        turn = Rotation.random(random_state=seed).as_matrix()
        moved = splats.transformed(Similarity(0.013, turn, rng.normal(size=3)))
        change = np.linalg.norm(descriptor(moved) - before) / np.linalg.norm(before)
        assert change <= 1e-3
    other = descriptor(skin_of(body_of(3, 45), apart=2.5))
    assert np.linalg.norm(other - before) > 0.02 * np.linalg.norm(before)


def test_nothing_visible_is_not_a_number():
    splats = skin_of(body_of(3, 20), apart=4.0)
    assert np.isnan(descriptor(splats[np.zeros(splats.n_gaussians, bool)])).all()
