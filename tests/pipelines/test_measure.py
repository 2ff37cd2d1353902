import numpy as np
import pytest

from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.rig import rig_from_angles
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.geometry.solid import body_shape
from mouselift_jax.pipelines import measure as measures
from mouselift_jax.render import render
from tests.mouse import body_of, skin_of, solid_of_body

pytestmark = pytest.mark.any_rasterizer

SCALE = 0.01  # scene units per mm


def world():
    """How a sample's scene was moved: turned, shifted, in its own unit."""
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    return Similarity(SCALE, turn, np.array([0.3, -0.2, 0.1]))


def to_mm():
    moved = world()
    record = {"scale": moved.scale, "R": moved.R.tolist(), "t": moved.t.tolist()}
    return measures.to_millimetres(SCALE, record)


@pytest.fixture(scope="module")
def walking():
    """A body, its true cells, its Gaussians in a moved scene, and what they measure."""
    body = body_of(21, 45)
    splats = skin_of(body, world(), apart=1.1)
    return body, solid_of_body(body), splats, *measures.measure(splats, to_mm())


def test_gaussians_measure_what_the_body_is_in_the_recordings_millimetres(walking):
    _, solid, splats, row, shape = walking
    true = body_shape(solid)
    assert np.linalg.norm([row["x_mm"], row["y_mm"], row["z_mm"]] - true.centre) < 0.5
    assert abs((row["heading_deg"] - true.heading + 180) % 360 - 180) < 3
    assert row["volume_mm3"] == pytest.approx(true.volume, rel=0.05)
    assert row["length_mm"] == pytest.approx(true.length, rel=0.03)
    assert row["tail_mm"] == pytest.approx(true.tail, rel=0.06)
    assert row["height_mm"] == pytest.approx(true.height, abs=2)
    assert row["head"] == "shape" and row["trusted"] == 1 and shape.front > 0.5
    assert row["gaussians"] == splats.n_gaussians


def test_errors_grow_as_the_pictures_say_less(walking):
    body, _, splats, _, shape = walking
    cameras = rig_from_angles([0, 60, 120, 180, 240, 300, 20, 40], 15.0, 4.0, 380.0, 200)
    masks = np.asarray(render(splats, cameras).alpha)[..., 0]
    in_mm = Camera(cameras.K, cameras.c2w, 200, 200).transformed(to_mm())
    around, aside = np.arange(6), np.array([0, 6, 7, 1])  # four from one side only
    six = measures.standard_errors(shape.box, masks[around], in_mm[around])
    four = measures.standard_errors(shape.box, masks[aside], in_mm[aside])
    assert six["volume_se_mm3"] < four["volume_se_mm3"]
    assert 0 < six["volume_se_mm3"] < 0.2 * shape.volume
    assert {f"{n}_se_{u}" for n, u in measures.MEASURES.items()} < set(six)
    assert measures.standard_errors(shape.box, masks[:3], in_mm[:3]) == {}
    ends = body.keypoints[[2, 5]]
    told = measures.standard_errors(shape.box, masks[around], in_mm[around], ends)
    assert told["length_se_mm"] != six["length_se_mm"]
    assert six["height_se_mm"] > 0.2  # a hull that loses a camera may stay as high: cells do not


def test_keypoints_say_where_the_tail_root_is_unless_they_are_of_another_animal(
    walking, monkeypatch
):
    monkeypatch.setattr(measures, "VIEWS", 24)
    monkeypatch.setattr(measures, "SIDE", 256)
    body, _, splats, row, shape = walking
    inside = np.stack([shape.spine[0], shape.spine[-4]])
    told, _ = measures.measure(splats, to_mm(), inside)
    assert told["head"] == "keypoints"
    assert told["length_mm"] == pytest.approx(0.85 * row["length_mm"], rel=0.03)
    assert told["keypoint_length_mm"] == pytest.approx(np.linalg.norm(inside[0] - inside[1]))
    other, _ = measures.measure(splats, to_mm(), body.keypoints[[2, 5]] + [60.0, 0, 0])
    assert other["trusted"] == 0 and "not on this body" in other["why"]
    assert other["length_mm"] == pytest.approx(row["length_mm"], rel=0.02)


def test_units_are_kept_apart():
    assert measures.to_millimetres(None, None) is None
    metres = {"scale": SCALE * 1000, "R": np.eye(3).tolist(), "t": [0, 0, 0]}
    point = measures.to_millimetres(SCALE, metres).apply(np.array([0.5, 0, 0]))
    np.testing.assert_allclose(point, [50, 0, 0])  # 0.05 m of a recording in metres


def test_nothing_visible_is_nan_not_zero(walking):
    splats = walking[2]
    row, shape = measures.measure(splats[np.zeros(splats.n_gaussians, bool)], to_mm())
    assert np.isnan(row["x_mm"]) and row["gaussians"] == 0 and shape is None
    assert row["trusted"] == 0 and row["why"] == "the Gaussians enclose no body"


def test_haze_is_drawn_small_and_skin_is_not():
    assert measures._side(0.01) == measures.SIDE
    assert measures._side(0.1) == measures.SIDE // 4 and measures._side(9.0) == 64


def rows_of_a_walk(turned=(), **more):
    """A walk in a circle whose heading is that of its motion, but turned round in some frames."""
    rows = []
    for i in range(20):
        a = np.radians(10 * i)
        axis = (10 * i + 90 + (180 if i in turned else 0)) % 360
        x, y = 100 * np.cos(a), 100 * np.sin(a)
        rows.append({"frame": i, "time_s": 0.1 * i, "x_mm": x, "y_mm": y, "z_mm": 0.0,
                     "heading_deg": axis, "volume_mm3": 5000.0, "length_mm": 90.0, "why": "",
                     "head": "shape", "trusted": 1, "centre_se_mm": 0.2, **more})  # fmt: skip
    return rows


def test_speed_and_heading_of_a_walk_in_a_circle():
    rows = measures.motion(rows_of_a_walk(turned=range(0, 20, 3)))
    speeds = [r["speed_mm_s"] for r in rows[1:-1]]
    np.testing.assert_allclose(speeds, 100 * np.radians(100), rtol=0.02)
    assert rows[5]["speed_se_mm_s"] == pytest.approx(0.2 / (2**0.5 * 0.1))
    for i, row in enumerate(rows):  # the way it goes, though the axis was given either way round
        assert abs((row["heading_deg"] - (10 * i + 90) + 180) % 360 - 180) < 1e-6
        assert row["trusted"] == (i % 3 != 0)  # a length from the other end is not one
    assert measures.steadiness(rows)["sequence/volume_wobble"] == 0
    with pytest.raises(ShapeError):
        measures.motion([])


def test_a_shape_that_is_sure_beats_a_walk_backwards_and_keypoints_beat_both():
    backwards = rows_of_a_walk(turned=range(20))
    kept = measures.motion(backwards, [0.99] * 20)
    assert all(a["heading_deg"] == b["heading_deg"] for a, b in zip(kept, backwards, strict=True))
    assert all(r["trusted"] for r in kept)
    assert all(r["head"] == "motion" for r in measures.motion(backwards, [-0.2] * 20))
    told = [{**r, "head": "keypoints"} for r in backwards]
    assert all(r["head"] == "keypoints" for r in measures.motion(told, [-0.9] * 20))


def test_one_frame_cannot_turn_round():
    votes = np.full(20, 0.9)
    votes[7] = -0.6
    rows = measures.motion(rows_of_a_walk(turned=[7]), votes)
    assert rows[7]["heading_deg"] == pytest.approx(160) and rows[7]["head"] == "motion"


def test_a_hole_in_time_has_no_speed_and_a_frame_that_stands_out_is_marked():
    rows = rows_of_a_walk()
    for row in rows[10:]:
        row["time_s"] += 3.0
        row["x_mm"] += 500.0
    rows[4]["volume_mm3"] = 9000.0
    moved = measures.motion(rows)
    np.testing.assert_allclose(
        [r["speed_mm_s"] for r in moved], 100 * np.radians(100), rtol=0.02
    )  # not 500 mm in one step
    assert [r["frame"] for r in moved if not r["trusted"]] == [4]
    assert moved[4]["why"] == "its volume is +80% off the film's median"


def test_without_a_clock_the_way_it_goes_is_known_but_not_how_fast():
    def row(i, time):
        return {"x_mm": -10.0 * i, "y_mm": 0.0, "z_mm": 0.0, "heading_deg": 2.0, "time_s": time}

    timed = measures.motion([row(i, i / 10) for i in range(5)])
    untimed = measures.motion([row(i, float("nan")) for i in range(5)])
    assert [r["heading_deg"] for r in untimed] == [r["heading_deg"] for r in timed]
    assert untimed[0]["heading_deg"] == pytest.approx(182)
    assert timed[2]["speed_mm_s"] == pytest.approx(100)
    assert all(np.isnan(r["speed_mm_s"]) for r in untimed)
