"""Calibration by the animal: mended, left alone where it is right, and silent on nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mouselift_jax.data.calibration.calibrate import Settings, calibrate, changes, misfits
from mouselift_jax.data.calibration.evidence import (
    Evidence,
    Outlines,
    keypoint_sightings,
    moments_of,
    spread_frames,
    touching,
    velocities,
)
from mouselift_jax.errors import CalibrationError, ConfigError
from mouselift_jax.geometry.bundle import PARAMETERS
from mouselift_jax.geometry.hull import outline
from tests import toy_rig

TRAIN, UNUSED = np.arange(0, 30), np.arange(30, 40)


def _split(s):
    evidence = Evidence(points=s)
    return evidence.of(TRAIN), evidence.of(UNUSED)


def _scene(seed, n=6, noise=1.5, arena=120.0):
    rng = np.random.default_rng(seed)
    true, X = toy_rig.rig(n), toy_rig.walk(rng, 40, arena=arena)
    return rng, true, X, toy_rig.seen(true, X, rng, noise)


def test_a_rig_off_in_everything_is_mended_and_judged_on_unused_frames():
    rng, true, X, s = _scene(0)
    given = toy_rig.perturbed(true, rng)
    outcome = calibrate(given, *_split(s), Settings())
    assert outcome.verdict == "improved" and not outcome.undetermined
    assert np.median(toy_rig.missed(outcome.rig, true, X.reshape(-1, 3))) < 0.3
    assert np.nanmedian(outcome.before) > 5 > 2.5 > np.nanmedian(outcome.after)
    # The world stays where the given cameras have it: no common shift, turn or growth.
    centre = (outcome.rig.centres - given.centres).mean(0)
    assert np.linalg.norm(centre) < 3.0


def test_a_right_rig_comes_back_unchanged():
    _, true, _, s = _scene(1)
    outcome = calibrate(true, *_split(s), Settings())
    assert outcome.verdict == "already right" and outcome.rig is true


def test_one_knocked_camera_is_found():
    _, true, X, s = _scene(2)
    knock = np.zeros((6, len(PARAMETERS)))
    knock[4, :3] = np.deg2rad(5) * np.array([0.6, -0.8, 0.0])
    given = true.changed(knock)
    outcome = calibrate(given, *_split(s), Settings())
    assert np.median(toy_rig.missed(outcome.rig, true, X.reshape(-1, 3))) < 0.3
    turn, _ = changes(outcome.given, outcome.rig)
    assert np.argmax(turn) == 4 and np.argmax(np.nanmedian(outcome.before, 1)) == 4


def test_an_animal_that_stays_in_one_place_tells_no_focal_lengths():
    rng, true, _, s = _scene(3, arena=0.0)
    outcome = calibrate(toy_rig.perturbed(true, rng, focal=0.0), *_split(s), Settings())
    assert {part for _, parts in outcome.undetermined for part in parts} >= {"focal"}
    np.testing.assert_array_equal(
        outcome.fitted.rig.K[outcome.undetermined[0][0]], true.K[outcome.undetermined[0][0]]
    )


def test_an_animal_at_rest_is_one_moment_and_mends_nothing():
    """Its keypoints err alike in all frames, those that judge included."""
    rng, true, X, s = _scene(11)
    still = toy_rig.pixels(true, np.tile(X[0], (40, 1))).reshape(6, 40, 20, 2)
    still += 2.0 * rng.normal(size=(6, 1, 20, 2)) + 0.5 * rng.normal(size=still.shape)
    s = dataclasses.replace(s, xy=still.reshape(6, -1, 2))
    assert set(moments_of(s, true).values()) == {0}
    outcome = calibrate(true, *_split(s), Settings())
    assert outcome.verdict == "untold" and outcome.rig is true
    assert [v for v, _ in outcome.undetermined] == list(range(6))
    walked = _scene(11)[3]
    assert len(set(moments_of(walked, true).values())) == 40


def test_a_camera_without_overlap_is_left_and_named():
    rng, true, _, s = _scene(4, 4)
    s = dataclasses.replace(s, seen=s.seen * (np.arange(4) != 3)[:, None])
    given = toy_rig.perturbed(true, rng)
    outcome = calibrate(given, *_split(s), Settings())
    assert (3, ("pose", "focal")) in outcome.undetermined
    np.testing.assert_array_equal(outcome.rig.R[3], given.R[3])


def test_two_cameras_say_what_they_cannot_tell():
    rng, true, _, s = _scene(5, 6)
    two = dataclasses.replace(s, xy=s.xy[:2], seen=s.seen[:2], velocity=s.velocity[:2])
    rig = toy_rig.perturbed(true, rng)
    rig = dataclasses.replace(
        rig, K=rig.K[:2], R=rig.R[:2], t=rig.t[:2], coefficients=rig.coefficients[:2],
        offset=rig.offset[:2],
    )  # fmt: skip
    outcome = calibrate(rig, *_split(two), Settings(free=("pose", "focal", "centre")))
    assert outcome.undetermined
    assert (outcome.fitted.error < np.inf).all()


def test_exchanged_cameras_are_refused():
    _, true, _, s = _scene(6)
    order = [0, 4, 2, 3, 1, 5]
    other = dataclasses.replace(s, xy=s.xy[order])
    with pytest.raises(CalibrationError, match="no cameras near the given ones"):
        calibrate(true, *_split(other), Settings())


def test_nothing_seen_twice_is_an_error_and_so_are_unknown_words():
    _, true, _, s = _scene(7)
    alone = dataclasses.replace(s, seen=s.seen * (np.arange(6) == 0)[:, None])
    with pytest.raises(CalibrationError, match="too little was seen"):
        calibrate(true, *_split(alone), Settings())
    with pytest.raises(ConfigError, match="no such part"):
        Settings(free=("pose", "fokal")).columns()
    with pytest.raises(ConfigError, match="nothing may change"):
        Settings(free=()).columns()


def test_a_late_camera_is_found_by_its_tracks():
    rng = np.random.default_rng(8)
    true = toy_rig.rig()
    t = np.arange(120)
    body = rng.normal(size=(12, 3)) * [25.0, 12.0, 8.0]

    def where(f):  # a walk of 3 mm a frame
        place = np.stack([90 * np.cos(f / 30), 70 * np.sin(f / 23), 20 + 0 * f], -1)
        return place[:, None] + body

    keypoints = np.ones((6, 120, 12, 3))
    for v in range(6):
        late = where(t + (0.7 if v == 2 else 0.0))
        keypoints[v, ..., :2] = toy_rig.pixels(true, late.reshape(-1, 3))[v].reshape(120, 12, 2)
    keypoints[..., :2] += 0.5 * rng.normal(size=(6, 120, 12, 2))
    evidence = Evidence(points=keypoint_sightings(keypoints, np.arange(2, 118, 3), least=0.5))
    frames = np.unique(evidence.points.frame)
    outcome = calibrate(
        true, evidence.of(frames[:28]), evidence.of(frames[28:]), Settings(free=("pose", "time"))
    )
    offset = outcome.rig.offset - np.median(outcome.rig.offset)
    np.testing.assert_allclose(offset, [0, 0, 0.7, 0, 0, 0], atol=0.1)


def test_velocities_are_slopes_and_gaps_are_unknown():
    xy = np.zeros((1, 6, 2, 2))
    xy[0, :, 0] = np.arange(6)[:, None] * [2.0, -1.0]
    xy[0, :, 1] = np.nan
    speed = velocities(xy)
    np.testing.assert_allclose(speed[0, 1:5, 0], np.tile([2.0, -1.0], (4, 1)))
    assert np.isnan(speed[0, :, 1]).all()


def test_misfits_of_right_cameras_are_the_noise():
    _, true, _, s = _scene(9, noise=1.0)
    # The point located by five others adds little to the sighting's own noise.
    assert 1.1 < np.nanmedian(misfits(true, s)) < 1.6


def _balls(true, rng, frames):
    """Masks of three balls (a body, a head, a tail) in every camera and frame [V][F]."""
    import cv2

    places = toy_rig.walk(rng, frames, 1, arena=80.0)[:, 0]
    offsets = rng.normal(size=(frames, 3, 3)) * [18.0, 18.0, 6.0]
    xy = np.zeros((6, frames, 96, 2))
    for f in range(frames):
        for v in range(6):
            mask = np.zeros((1024, 1152), np.uint8)
            centres = places[f] + offsets[f]
            cam = centres @ true.R[v].T + true.t[v]
            for ray, radius in zip(cam, (12.0, 8.0, 5.0), strict=True):
                # A ball's outline is an ellipse; its convex shape is drawn exactly, by its cone.
                direction = ray / np.linalg.norm(ray)
                side = np.cross(direction, [0.0, 0.0, 1.0])
                side /= np.linalg.norm(side)
                up = np.cross(direction, side)
                half = np.arcsin(radius / np.linalg.norm(ray))
                turn = np.linspace(0, 2 * np.pi, 80, endpoint=False)[:, None]
                rim = np.cos(half) * direction + np.sin(half) * (
                    np.cos(turn) * side + np.sin(turn) * up
                )
                pixel = (rim / rim[:, 2:]) @ true.K[v].T
                poly = np.round((pixel[:, :2] - 0.5) * 256).astype(np.int32)
                cv2.fillPoly(mask, [poly], 255, shift=8)
            xy[v, f] = outline(mask)
    return Outlines(xy, np.arange(frames), np.tile([1152, 1024], (6, 1)))


def test_silhouettes_alone_mend_a_rig():
    rng = np.random.default_rng(10)
    true = toy_rig.rig()
    outlines = _balls(true, rng, 30)
    given = toy_rig.perturbed(true, rng)
    evidence = Evidence(outlines=outlines)
    assert ((touching(outlines, true).seen > 0).sum(0) == 2).mean() > 0.8
    outcome = calibrate(
        given, evidence.of(np.arange(24)), evidence.of(np.arange(24, 30)), Settings()
    )
    X = toy_rig.walk(rng, 20, arena=80.0).reshape(-1, 3)
    assert np.median(toy_rig.missed(given, true, X)) > 8
    assert np.median(toy_rig.missed(outcome.rig, true, X)) < 1.0


def test_frames_are_spread_over_the_arena():
    places = np.concatenate(
        [np.zeros((90, 3)), np.array([[9.0, 0, 0], [0, 9.0, 0], [9.0, 9.0, 0]])]
    )
    places[5] = np.nan
    chosen = spread_frames(places, 6)
    assert len(chosen) == 6 and {90, 91, 92} <= set(chosen) and 5 not in chosen
    assert np.ptp(chosen[:3]) > 40  # the rest is spread in time
