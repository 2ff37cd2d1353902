"""A rig a little off in everything is mended as a whole; other faults and right rigs are not."""

import dataclasses
import shlex
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from mouselift_jax.cli import check
from mouselift_jax.data.calibration.evidence import cameras_of
from mouselift_jax.data.check.hypotheses import Geometry, cost
from mouselift_jax.data.check.mend import mend
from mouselift_jax.data.check.recording import CheckResult
from mouselift_jax.data.check.search import Verdict
from mouselift_jax.data.findings import Finding
from tests import toy_rig

FRAMES, FLOOR = 24, 4.0
TRUE = toy_rig.rig()


def geometry(rig):
    """Keypoints seen by the true rig, and cameras that may be others."""
    rng = np.random.default_rng(0)
    X = toy_rig.walk(rng, FRAMES, 8)
    xy = toy_rig.seen(TRUE, X, rng).xy.reshape(6, FRAMES, 8, 2)
    cameras = tuple(cameras_of(rig, np.tile([1152, 1024], (6, 1))))
    return Geometry("keypoints", xy, cameras, np.zeros(FRAMES, int))


def verdict(g, after=None, best=None):
    before = cost(g)
    return Verdict(before, before if after is None else after, best, [], np.zeros((6, 6)), g)


@pytest.fixture(scope="module")
def off():
    return geometry(toy_rig.perturbed(TRUE, np.random.default_rng(1), 0.3, 1.0, 0.003))


def test_a_rig_a_little_off_is_mended(off):
    found = mend(off, verdict(off), FLOOR)
    assert found.before > 5 > 2.5 > found.after
    assert cost(found.of(off)) < 0.3 * cost(off)
    assert mend(off, verdict(off), FLOOR, witness=off) is not None


def test_what_mends_it_is_next_with_the_options_that_were_needed():
    finding = Finding("calibration_off", "warning", "", evidence={"evidence": "silhouettes"})
    result = CheckResult(Path("my mouse"), "recording", [finding], {})
    args = Namespace(unit="", trim="shortest", cameras="0,1", up="z", pixel_origin="")
    words = shlex.split(check._next(result, args))
    assert words[2] == "--config=configs/calibrate.py:silhouettes"
    assert words[3:5] == ["--config.recording=my mouse", "--workdir=runs/calibrate"]
    assert words[5:] == ["--config.calibrate.trim=shortest", "--config.calibrate.cameras=0,1"]
    result.findings[:] = [Finding("masks_absent", "info", "")]
    said = check._next(result, args)
    assert "--config.prepare.up=z" in said and "--config.prepare.masks=background_model" in said
    result.findings.clear()
    assert "masks" not in check._next(result, args)


def test_one_fault_that_explains_it_comes_first(off):
    fault = object()
    assert mend(off, verdict(off, after=0.5 * FLOOR, best=fault), FLOOR) is None


def test_measurements_that_agree_with_the_calibration_speak_against_it(off):
    given = dataclasses.replace(off, xy=_seen_by(off.cameras, geometry(TRUE)))
    assert cost(given) < 2
    assert mend(off, verdict(off), FLOOR, witness=given) is None


def _seen_by(cameras, right):
    """Where these cameras would see what the true ones saw."""
    from mouselift_jax.geometry.camera import stack_cameras
    from mouselift_jax.geometry.triangulate import triangulate

    flat = right.xy.reshape(6, -1, 2)
    points = triangulate(flat, stack_cameras(list(right.cameras)), np.ones(flat.shape[:2]))
    return np.stack([np.asarray(c.project(points)[0]) for c in cameras]).reshape(right.xy.shape)


def test_a_right_rig_and_one_that_is_wholly_wrong_are_left():
    right = geometry(TRUE)
    assert mend(right, verdict(right), FLOOR) is None
    order = [0, 4, 2, 3, 1, 5]
    swapped = dataclasses.replace(right, cameras=tuple(right.cameras[i] for i in order))
    assert mend(swapped, verdict(swapped), FLOOR) is None
