"""Sets of one rig, of several, and of cameras that move."""

from __future__ import annotations

import numpy as np

from mouselift_jax.geometry.rig import rig_from_angles
from mouselift_jax.stages.multiview.rig import mixed_rigs


def cameras(turns):
    rigs = [rig_from_angles(270 - 60.0 * np.arange(6) + t, 15.0, 2.7, 60.0, 64) for t in turns]
    return np.stack([r.K for r in rigs]), np.stack([r.c2w for r in rigs])


def test_several_fixed_rigs_are_named_with_their_counts():
    ids = [f"s{i}" for i in range(5)]
    told = mixed_rigs(*cameras([0, 0, 20, 0, 20]), 64, ids)
    assert "mixes 2 rigs (3 like s0, 2 like s2)" in told


def test_one_rig_and_cameras_that_move_are_no_mixture():
    ids = [f"s{i}" for i in range(12)]
    assert mixed_rigs(*cameras([0] * 12), 64, ids) is None
    assert mixed_rigs(*cameras(5.0 * np.arange(12)), 64, ids) is None  # a walk
    assert mixed_rigs(*cameras([0] * 11 + [20]), 64, ids) is None  # one stray sample
