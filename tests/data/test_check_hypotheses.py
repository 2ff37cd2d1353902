"""Each fault planted in exact measurements is named, with its numbers; clean ones raise nothing."""

import dataclasses

import numpy as np
import pytest

from mouselift_jax.data.check import corrections, hypotheses, search
from mouselift_jax.data.synthetic.recording import Scene
from mouselift_jax.data.synthetic.rig import lab_rig

RIG = tuple(lab_rig(1152, 1024))


@pytest.fixture(scope="module")
def clean():
    scene = Scene(2, 30.0)
    points = np.stack([scene.body(f).keypoints[::2] for f in range(36)])
    xy = np.stack([c.project(points.reshape(-1, 3))[0].reshape(36, 11, 2) for c in RIG])
    xy = xy + np.random.default_rng(0).normal(0, 1.0, xy.shape)
    return hypotheses.Geometry("keypoints", xy, RIG, np.zeros(36, int))


def camera(v, change):
    return lambda g: g.replaced(v, camera=change(g.cameras[v]))


def mirrored(g):
    xy = g.xy[4].copy()
    xy[..., 0] = 1152 - xy[..., 0]
    return g.replaced(4, xy=xy)


FAULTS = {
    "swap": (lambda g: dataclasses.replace(g, xy=g.xy[[0, 4, 2, 3, 1, 5]]),
             "cameras_swapped", {1, 4}, {}),
    "T x 1000": (camera(2, lambda c: corrections.scale_translation(c, 1e-3)),
                 "translation_units", {2}, {"factor": 1000}),
    "T / 1000": (camera(3, lambda c: corrections.scale_translation(c, 1e3)),
                 "translation_units", {3}, {"factor": 0.001}),
    "R transposed": (camera(3, corrections.transpose_rotation), "rotation_transposed", {3}, {}),
    "all R transposed": (lambda g: dataclasses.replace(
        g, cameras=tuple(map(corrections.transpose_rotation, g.cameras))),
        "rotation_transposed", {0, 1, 2, 3, 4, 5}, {}),
    "c2w for w2c": (camera(0, corrections.invert_extrinsics),
                    "extrinsics_convention", {0}, {"camera_to_world": 1}),
    "centre for T": (camera(0, lambda c: corrections.with_extrinsics(c, c.w2c[:3, :3], c.center)),
                     "extrinsics_convention", {0}, {"centre_as_translation": 1}),
    "OpenGL": (camera(5, corrections.opengl_axes), "extrinsics_convention", {5},
               {"opengl_axes": 1}),
    "1 frame": (lambda g: g.replaced(2, xy=hypotheses.shifted(g, 2, 1)), "video_offset", {2},
                {"frames": 1}),
    "-3 frames": (lambda g: g.replaced(5, xy=hypotheses.shifted(g, 5, -3)), "video_offset", {5},
                  {"frames": -3}),
    "10 frames": (lambda g: g.replaced(0, xy=hypotheses.shifted(g, 0, 10)), "video_offset", {0},
                  {"frames": 10}),
    "mirrored": (mirrored, "video_mirrored", {4}, {"horizontal": 1}),
    "K 5 %": (camera(4, lambda c: corrections.scale_focal(c, 1 / 1.05)), "intrinsics_wrong", {4},
              {"factor": 1.05}),
    "K 3 % all": (lambda g: dataclasses.replace(
        g, cameras=tuple(corrections.scale_focal(c, 1.03) for c in g.cameras)),
        "intrinsics_wrong", {0, 1, 2, 3, 4, 5}, {"factor": 0.971}),
    "cropped": (lambda g: g.replaced(1, xy=g.xy[1] - [60.0, 40.0]), "video_cropped", {1},
                {"shift_x": 60, "shift_y": 40}),
    "cropped and resized": (lambda g: g.replaced(1, xy=(g.xy[1] - [60.0, 40.0]) * [1.15, 1.13]),
                            "video_cropped", {1}, {"scale_x": 1 / 1.15, "scale_y": 1 / 1.13}),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named(clean, name):
    plant, code, cameras, numbers = FAULTS[name]
    verdict = search.explain(plant(clean), floor=4.0)
    assert verdict.best is not None
    assert (verdict.best.code, set(verdict.best.cameras)) == (code, cameras)
    for key, value in numbers.items():
        assert verdict.best.parameters[key] == pytest.approx(value, rel=0.02, abs=1e-4 * value)
    assert verdict.after < 0.5 * verdict.before and verdict.after < 1.5


def test_clean_measurements_raise_nothing(clean):
    verdict = search.explain(clean, floor=4.0)
    assert verdict.best is None and verdict.before < 1.5


def test_noise_is_not_explained_away(clean):
    """Sloppy measurements of all cameras have no single cause, and none is invented."""
    xy = clean.xy + np.random.default_rng(1).normal(0, 12.0, clean.xy.shape)
    assert search.explain(dataclasses.replace(clean, xy=xy), floor=4.0).best is None


def test_calibration_is_not_blamed_when_ruled_out(clean):
    plant = FAULTS["K 5 %"][0]
    verdict = search.explain(plant(clean), floor=4.0, families=("pixels",))
    assert verdict.best.code == "video_cropped"


def test_offsets_do_not_cross_windows(clean):
    window = np.repeat([0, 1], 18)
    cut = dataclasses.replace(clean, window=window)
    moved = hypotheses.shifted(cut, 0, 2)
    assert np.isnan(moved[16:18]).all() and np.isfinite(moved[18:20]).all()


def test_epipolar_distance_is_zero_for_exact_points():
    points = np.random.default_rng(0).uniform(0, 80, (5, 3))
    a, b = (c.project(points)[0][None] for c in RIG[:2])
    assert hypotheses.epipolar_distance(a, b, RIG[0], RIG[1]).max() < 1e-6
    off = hypotheses.epipolar_distance(a, b + [0.0, 3.0], RIG[0], RIG[1])
    assert 1.0 < off.max() < 3.5
