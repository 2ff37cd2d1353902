import dataclasses

import numpy as np
import pytest

from mouselift_jax.geometry.solid import Solid, body_shape
from tests.mouse import body_of, solid_of_body


def off(a, b):
    """Difference of two angles in degrees."""
    return abs((a - b + 180) % 360 - 180)


@pytest.mark.parametrize(("seed", "frame"), [(0, 20), (3, 40), (21, 40)])
def test_a_walking_mouse_is_measured_by_its_shape_alone(seed, frame):
    body = body_of(seed, frame)
    shape = body_shape(solid_of_body(body))
    nose, tail_root = body.keypoints[[2, 5]]
    assert shape.front > 0.5  # the tail is at the other end
    assert np.linalg.norm(shape.spine[0] - nose) < 3.0
    assert np.linalg.norm(shape.spine[-1] - tail_root) < 4.0
    joints = body.keypoints[2:6]  # nose, neck, mid body, tail root; the nose's tip is 2.4 mm on
    true = np.linalg.norm(np.diff(joints, axis=0), axis=1).sum() + 2.4
    assert shape.length == pytest.approx(true, rel=0.02)
    assert off(shape.heading, np.degrees(body.heading)) < 3.5
    assert abs(shape.roll) < 3 and abs(shape.pitch) < 3
    assert 55 < shape.tail < 80


def test_turned_and_moved_it_measures_the_same_and_the_angles_turn_along():
    body = body_of(3, 20)
    before = body_shape(solid_of_body(body, 1.2))
    a = np.radians(37.0)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1.0]])
    moved = dataclasses.replace(
        body, centre=body.centre @ turn.T + [40, -20, 5], frame=turn @ body.frame
    )
    after = body_shape(solid_of_body(moved, 1.2))
    np.testing.assert_allclose(after.centre, turn @ before.centre + [40, -20, 5], atol=0.4)
    assert off(after.heading, before.heading + 37) < 1.5
    for name in ("length", "volume", "area", "width", "height"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=0.05), name
    assert after.bend == pytest.approx(before.bend, abs=3)


def test_roll_turns_with_the_animal():
    body = body_of(0, 0)
    a, h = np.radians(20.0), body.heading
    face = np.array([[np.cos(h), -np.sin(h), 0], [np.sin(h), np.cos(h), 0], [0, 0, 1.0]])
    lean = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn = face @ lean @ face.T
    rolled = dataclasses.replace(
        body, centre=(body.centre - body.position) @ turn.T, frame=turn @ body.frame
    )
    assert body_shape(solid_of_body(rolled, 1.2)).roll == pytest.approx(20, abs=4)


def test_known_ends_say_where_the_spine_stops_and_which_end_is_the_head():
    body = body_of(12, 0)
    solid = solid_of_body(body, 1.2)
    shape = body_shape(solid)
    nose, inside = body.keypoints[2], shape.spine[-4]  # a tail root 14 mm in the rump
    assert body_shape(solid, np.stack([nose, inside])).length == pytest.approx(81, abs=3)
    turned = body_shape(solid, np.stack([shape.spine[-1], shape.spine[0]]))
    assert off(turned.heading, shape.heading + 180) < 20  # of the other end's part of the spine


def test_volume_area_and_extent_of_an_ellipsoid():
    axes = [np.arange(-r - 2, r + 2) + 0.5 for r in (50, 20, 15)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    cells = (x / 50) ** 2 + (y / 20) ** 2 + (z / 15) ** 2 <= 1
    shape = body_shape(Solid(cells, np.array([-52.0, -22, -17]), 1.0))
    np.testing.assert_allclose(shape.centre, 0, atol=0.1)
    assert shape.volume == pytest.approx(4 / 3 * np.pi * 50 * 20 * 15, rel=0.01)
    parts = [(a * b) ** 1.6 for a, b in ((50, 20), (50, 15), (20, 15))]
    assert shape.area == pytest.approx(4 * np.pi * np.mean(parts) ** (1 / 1.6), rel=0.03)
    assert shape.width == pytest.approx(40, abs=2) and shape.height == pytest.approx(30, abs=2)


def test_crumbs_are_no_body():
    cells = np.zeros((20, 20, 20), bool)
    cells[3:6, 3:6, 3:6] = True
    assert body_shape(Solid(cells, np.zeros(3), 1.0)) is None


def test_a_shell_or_haze_has_no_shape_and_is_no_error():
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.arange(-20, 21)] * 3, indexing="ij"), -1)
    far = np.linalg.norm(places, axis=-1)
    for inner in range(8, 19):  # hollow balls: their middle is empty
        body_shape(Solid((far > inner) & (far <= inner + 2), np.zeros(3), 1.0))
    haze = rng.random(far.shape) < 0.2
    assert body_shape(Solid(haze, np.zeros(3), 1.0).largest()) is None
