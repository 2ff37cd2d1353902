"""The procedural recording: layout, determinism, truth that agrees with its own pictures."""

import dataclasses
import json
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from mouselift_jax.data.synthetic.body import BEHAVIOURS, Walk, posed_body
from mouselift_jax.data.synthetic.recording import Scene, write_recording
from mouselift_jax.data.synthetic.render import Painter, _cast
from mouselift_jax.data.synthetic.rig import ARENA_CENTRE, ARENA_RADIUS, heldout_rig, lab_rig
from mouselift_jax.data.synthetic.skin import Skin, solid
from mouselift_jax.errors import ConfigError, LayoutError


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("rec") / "mouse"
    return write_recording(path, frames=3, size=(144, 128), n_heldout=1, workers=1)


def test_layout_is_the_labs(recording):
    names = {p.name for p in recording.iterdir()}
    assert {"videos_undist", "simpleclick_undist", "keypoints2d_undist", "new_cam.pkl"} <= names
    cameras = pickle.loads((recording / "new_cam.pkl").read_bytes())
    assert isinstance(cameras, list) and len(cameras) == 6
    assert cameras[3]["T"].shape == (3,)
    for folder in ("videos_undist", "simpleclick_undist"):
        for number in range(6):
            capture = cv2.VideoCapture(str(recording / folder / f"{number}.mp4"))
            assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
            ok, frame = capture.read()
            assert ok and frame.shape == (128, 144, 3)
    points = pickle.loads((recording / "keypoints2d_undist/result_view_0.pkl").read_bytes())
    assert points.shape == (3, 22, 3)


def test_deterministic(recording, tmp_path):
    again = write_recording(tmp_path / "b", frames=3, size=(144, 128), n_heldout=1, workers=1)
    for name in ("new_cam.pkl", "keypoints2d_undist/result_view_1.pkl", "simpleclick_undist/2.mp4"):
        assert (recording / name).read_bytes() == (again / name).read_bytes(), name
    images = [r / "heldout/frame_000001/images/cam_100.png" for r in (recording, again)]
    assert images[0].read_bytes() == images[1].read_bytes()


def test_heldout_mask_covers_the_true_keypoints(recording):
    folder = recording / "heldout/frame_000002"
    row = json.loads((folder / "opencv_cameras.json").read_text())["frames"][0]
    alpha = np.asarray(Image.open(folder / row["file_path"]))[..., 3]
    points = np.load(recording / "truth.npz")["keypoints"][2]
    cam = points @ np.array(row["w2c"])[:3, :3].T + np.array(row["w2c"])[:3, 3]
    xy = cam[:, :2] / cam[:, 2:] * [row["fx"], row["fy"]] + [row["cx"], row["cy"]]
    near = cv2.dilate(alpha, np.ones((3, 3)))
    inside = near[xy[:, 1].astype(int), xy[:, 0].astype(int)] > 0
    assert inside.mean() > 0.9


def test_rig_is_the_published_one():
    rig = lab_rig(1152, 1024)
    distance = [np.linalg.norm(c.center) for c in rig]
    np.testing.assert_allclose(distance, [246.1, 414.5, 363.7, 340.0, 318.3, 305.7], atol=0.15)
    small = lab_rig(288, 256)
    point = np.array([[60.0, 40.0, 15.0]])
    for a, b in zip(rig, small, strict=True):
        np.testing.assert_allclose(a.project(point)[0], 4 * b.project(point)[0], atol=1e-9)


def test_ray_cast_sphere_matches_the_formula():
    """A lone sphere in the middle of the picture: its disc has the exact projected area."""
    body = posed_body(Walk.random(np.random.default_rng(0)), 0.0)
    one = [getattr(body, k)[:1] for k in ("frame", "rest_centre", "part")]
    camera = heldout_rig(1, 512, 512)[0]
    centre = camera.center + 300.0 * camera.c2w[:3, 2]
    ball = type(body)(
        centre[None], one[0], np.full((1, 3), 20.0), *one[1:], body.keypoints, centre, 0.0
    )
    _, alpha, _ = Painter(0).mouse(ball, camera)
    radius = camera.K[0, 0] * 20.0 / np.sqrt(300.0**2 - 20.0**2)
    assert abs(alpha.sum() / (np.pi * radius**2) - 1) < 0.01


def test_each_pixel_shows_what_its_ray_meets_first():
    """`_cast` beside one ray and one ellipsoid at a time."""
    body = Scene(0, 30.0).body(7)
    centre = body.centre.mean(0)
    camera, _ = heldout_rig(1, 512, 512)[0].resized(56, 56)
    cast = _cast(body, camera)
    number = np.cumsum(cast["hit"].ravel()).reshape(cast["hit"].shape) - 1
    assert cast["hit"].sum() > 100 and np.linalg.norm(camera.center - centre) > 100
    for y in range(0, 56, 4):
        for x in range(0, 56, 4):
            ray = np.linalg.inv(camera.K) @ [x + 0.5, y + 0.5, 1.0]
            ray = camera.c2w[:3, :3] @ ray
            meets = [_meets(body, p, camera.center, ray) for p in range(len(body.centre))]
            t = min(meets)
            assert np.isfinite(t) == cast["hit"][y, x]
            if not np.isfinite(t):
                continue
            expected = _blend(body, camera.center + t * ray)
            for name, value in expected.items():
                np.testing.assert_allclose(
                    cast[name][number[y, x]],
                    value,
                    err_msg=f"{name} at {x}, {y}",
                    atol=0.02 if name == "rest" else 5e-3,  # mm; float32 at 300 mm, grazing
                )


def _meets(body, p, origin, ray):
    """How far along the ray ellipsoid p begins."""
    to_sphere = (body.frame[p] / body.radii[p]).T
    o, d = to_sphere @ (origin - body.centre[p]), to_sphere @ ray
    roots = np.roots([d @ d, 2 * o @ d, o @ o - 1])
    return roots.real.min() if np.isreal(roots).all() else np.inf


def _blend(body, point):
    """Normal, place at rest and shares of material there, of all ellipsoids by nearness."""
    total, normal, rest, skin, eye = 0.0, np.zeros(3), np.zeros(3), 0.0, 0.0
    for p in range(len(body.centre)):
        radii, local = body.radii[p], body.frame[p].T @ (point - body.centre[p])
        norm = np.linalg.norm(local / radii)
        softness = max(0.35 if body.part[p] == 0 else 0.2, 0.06 * radii.min())
        weight = np.exp(-np.clip((norm - 1) * radii.min() / softness, 0, 20))
        total += weight
        normal += weight * (body.frame[p] @ (local / radii**2)) / norm
        rest += weight * (local + body.rest_centre[p])
        skin += weight * (body.part[p] == 1)
        eye += weight * (body.part[p] == 2)
    return {"normal": normal / np.linalg.norm(normal), "rest": rest / total,
            "skin": skin / total, "eye": eye / total}  # fmt: skip


def test_it_walks_turns_and_stays_in_the_arena():
    walk = Walk.random(np.random.default_rng(3))
    bodies = [posed_body(walk, t) for t in np.linspace(0, 3, 31)]
    positions = np.stack([b.position for b in bodies])
    assert np.linalg.norm(positions[:, :2] - ARENA_CENTRE[:2], axis=1).max() < ARENA_RADIUS - 30
    assert np.linalg.norm(np.diff(positions, axis=0), axis=1).min() > 1.0
    assert np.ptp(np.unwrap([b.heading for b in bodies])) > 2.0
    low = min((b.centre[:, 2] - b.radii.max(1)).min() for b in bodies)
    assert low > -3.0


def test_odd_sizes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="even"):
        write_recording(tmp_path / "x", size=(145, 128))


def test_a_folder_of_the_users_is_left_alone(tmp_path):
    mine = tmp_path / "mouse"
    mine.mkdir()
    (mine / "0.mp4").write_text("my only copy")
    with pytest.raises(LayoutError, match="left alone"):
        write_recording(mine, frames=1, size=(72, 64), n_heldout=0, workers=1)
    assert (mine / "0.mp4").read_text() == "my only copy" and len(list(mine.iterdir())) == 1

    made = write_recording(tmp_path / "p", frames=1, size=(72, 64), n_heldout=0, workers=1)
    (made / "notes.txt").write_text("mine")
    with pytest.raises(LayoutError, match="notes.txt"):
        write_recording(made, frames=1, size=(72, 64), n_heldout=0, workers=1)
    (made / "notes.txt").unlink()
    write_recording(made, frames=1, size=(72, 64), n_heldout=0, workers=1, seed=1)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_paint_stays_on_the_skin_whatever_the_animal_does(behaviour):
    """A material point seen by the renderer's own rays has one place in the coat at all times."""
    scene = Scene(3, 30.0, (), behaviour)
    bodies = [scene.body(f) for f in (0, 9, 25)]
    assert len({len(b.centre) for b in bodies}) == 1
    assert min((b.centre[:, 2] - b.radii.max(1)).min() for b in bodies) > -3.0
    skin = Skin.spread(bodies, np.random.default_rng(0), 400)
    camera = heldout_rig(1, 512, 512)[0]
    places = np.full((3, 400, 3), np.nan)
    for i, body in enumerate(bodies):
        seen = skin.seen(body, [camera])[:, 0]
        xy, depth = camera.project(skin.at(body))
        cast = _cast(body, camera)
        rest = np.full((*cast["hit"].shape, 3), np.nan)
        rest[cast["hit"]] = cast["rest"]
        column, row = xy[seen].astype(int).T
        places[i, seen] = rest[row, column]
        assert 0.1 < seen.mean() < 0.6
        # A point on the very outline may fall into a pixel whose centre lies beside the animal.
        assert np.isfinite(rest[row, column]).all(-1).mean() > 0.88
    rest = bodies[0].rest_centre[skin.ellipsoid]
    is_limb = (np.abs(rest[:, 1]) > 7) & (rest[:, 2] < 18)
    apart = [np.linalg.norm(places[a] - places[b], axis=-1) for a, b in ((0, 1), (0, 2), (1, 2))]
    for some in (is_limb, ~is_limb):  # pixels of outlines may show what lies behind
        slip = np.concatenate([x[some] for x in apart])
        slip = slip[np.isfinite(slip)]
        assert len(slip) > 15 and np.median(slip) < 1.0 and np.quantile(slip, 0.75) < 2.5


def test_truth_of_a_ball():
    body = posed_body(Walk.random(np.random.default_rng(0)), 0.0)
    ball = dataclasses.replace(
        body, centre=np.array([[50.0, 52.0, 30.0]]), frame=body.frame[:1], part=body.part[:1],
        radii=np.full((1, 3), 20.0), rest_centre=body.rest_centre[:1],
    )  # fmt: skip
    volume, centre = solid(ball)
    assert volume == pytest.approx(4 / 3 * np.pi * 20**3, rel=5e-3)
    np.testing.assert_allclose(centre, ball.centre[0], atol=0.05)
    skin = Skin.spread([ball], np.random.default_rng(0))
    points, (camera,) = skin.at(ball), heldout_rig(1, 512, 512)
    np.testing.assert_allclose(np.linalg.norm(points - ball.centre, axis=-1), 20, atol=1e-9)
    towards = camera.center - points
    faces = np.einsum("si,si->s", points - ball.centre[0], towards) > 0
    assert (skin.seen(ball, [camera])[:, 0] == faces).mean() > 0.97


def test_truth_is_written(recording):
    truth = np.load(recording / "truth.npz")
    assert truth["skin"].shape == (3, 500, 3) and truth["skin_seen"].shape == (3, 500, 6)
    assert 3e4 < truth["volume"][0] < 7e4 and truth["centre"].shape == (3, 3)
    with pytest.raises(ConfigError, match="rear"):
        write_recording(recording.parent / "x", behaviour="raer")
