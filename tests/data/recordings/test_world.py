"""A world that is not z up is noticed and levelled; one that is stays as it is."""

import dataclasses
import pickle

import numpy as np
import pytest

from mouselift_jax.data.check.recording import check_recording, link
from mouselift_jax.data.findings import Finding
from mouselift_jax.data.recordings.inspection import inspect_recording, open_recording
from mouselift_jax.data.recordings.world import (
    camera_up,
    levelled,
    parse_up,
    rotation_to_z,
    z_is_up,
)
from mouselift_jax.data.synthetic import write_recording
from mouselift_jax.errors import ConfigError, MouseLiftError
from mouselift_jax.geometry.similarity import Similarity


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    path = tmp_path_factory.mktemp("up") / "mouse"
    return write_recording(path, frames=2, size=(72, 64), n_heldout=0, workers=1)


@pytest.fixture
def turned(clean, tmp_path):
    """The same recording, with a world turned by any rotation; and the original's cameras."""

    def write(turn):
        path = tmp_path / "turned"
        path.mkdir()
        for part in ("videos_undist", "simpleclick_undist"):
            (path / part).symlink_to(clean / part)
        rows = pickle.loads((clean / "new_cam.pkl").read_bytes())
        turn = np.asarray(rows[0]["R"]) if turn is None else turn
        for row in rows:
            row["R"] = np.asarray(row["R"]) @ turn.T
        (path / "new_cam.pkl").write_bytes(pickle.dumps(rows))
        return path, turn

    return write


TURNS = {
    "first camera": None,
    "y up": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "upside down": np.diag([1.0, -1, -1]),
}


@pytest.mark.parametrize("name", TURNS)
def test_the_world_is_levelled(clean, turned, name):
    path, turn = turned(TURNS[name])
    recording, findings = inspect_recording(path)
    (told,) = [f for f in findings if f.severity != "info"]
    assert told.code == "world_not_z_up" and told.severity == "warning"
    up = recording.level @ turn @ [0, 0, 1]  # the true up, in the levelled world
    assert np.degrees(np.arccos(up[2])) < 6.0
    # The level says how to get there from the file's world.
    for ours, theirs in zip(recording.cameras, open_recording(clean).cameras, strict=True):
        np.testing.assert_allclose(ours.center, recording.level @ turn @ theirs.center, atol=1e-8)
    exact = turn @ [0, 0, 1]
    said = ",".join(f"{v:.12f}" for v in exact)
    recording, findings = inspect_recording(path, up=said)
    assert not [f for f in findings if f.severity != "info"]
    np.testing.assert_allclose(recording.level @ exact, [0, 0, 1], atol=1e-9)
    assert open_recording(path, up="z").level is None


def test_a_level_world_stays(clean):
    recording = open_recording(clean)
    assert recording.level is None and not recording.findings


def test_cameras_that_hang_above_do_not_turn_the_world():
    down = np.diag([1.0, -1.0, -1.0])
    rig = np.stack([down @ rotation_to_z(np.array([np.cos(a), np.sin(a), 4.0])) for a in range(6)])
    assert z_is_up(rig)


def test_up_of_levelled_cameras_is_exact():
    rng = np.random.default_rng(0)
    true = np.array([0.3, -0.8, 0.52])
    true /= np.linalg.norm(true)
    rotations = []
    for _ in range(5):
        z = rng.normal(size=3) - 1.2 * true
        z /= np.linalg.norm(z)
        x = np.cross(z, true)
        x /= np.linalg.norm(x)
        rotations.append(np.stack([x, np.cross(z, x), z]))
    np.testing.assert_allclose(camera_up(np.stack(rotations)), true, atol=1e-9)


def test_directions():
    np.testing.assert_array_equal(parse_up("-y"), [0, -1, 0])
    assert parse_up("") is None
    with pytest.raises(ConfigError, match="no such direction"):
        parse_up("up")


def test_two_cameras_in_one_place(clean, turned):
    path, _ = turned(np.eye(3))
    rows = pickle.loads((path / "new_cam.pkl").read_bytes())
    rows[4] = rows[1]
    (path / "new_cam.pkl").write_bytes(pickle.dumps(rows))
    with pytest.raises(MouseLiftError, match=r"cameras 1 .* and 4 .* one and the same pose"):
        open_recording(path)
    # Keypoints of the two would have one ray: nothing is triangulated.
    (path / "keypoints2d_undist").symlink_to(clean / "keypoints2d_undist")
    first = check_recording(path).findings[0]
    assert first.code == "calibration_duplicate" and first.cameras == (1, 4)
    three = open_recording(path, cameras=("0", "1", "2"))
    assert three.camera_ids == (0, 1, 2)
    assert not three.findings  # the files of cameras that were left out are no strangers
    with pytest.raises(ConfigError, match="no such camera"):
        open_recording(path, cameras=("0", "7"))


def test_up_from_the_floor_that_the_animal_walks_on(clean):
    """Keypoints of a walk in a world that lies on its side, seen by the same cameras."""
    recording = open_recording(clean)
    rng = np.random.default_rng(0)
    walk = rng.uniform(-1, 1, (60, 1, 3)) * [120, 80, 3] + [50, 50, 20]
    points = walk + rng.normal(0, 4, (1, 5, 3))
    turn = rotation_to_z(np.array([0.8, -0.5, 0.1])).T
    rigid = np.eye(4)
    rigid[:3, :3] = turn
    cameras, xy = [], []
    for c in recording.cameras:
        cameras.append(dataclasses.replace(c, c2w=rigid @ np.asarray(c.c2w)))
        seen = c.project(points.reshape(-1, 3))[0].reshape(60, 5, 2)
        xy.append(np.concatenate([seen, np.ones((60, 5, 1))], -1))
    told = dataclasses.replace(
        recording, cameras=tuple(cameras), keypoints=np.stack(xy), n_frames=60
    )
    after = levelled(told, "floor", [])
    up = after.level @ turn @ [0, 0, 1]
    assert np.degrees(np.arccos(up[2])) < 1.5
    # The floor, on which the animal's lowest points walk, is z = 0; samples know the file's world.
    lowest = points.reshape(60, 5, 3)[:, points[0, :, 2].argmin()]
    heights = (lowest @ (after.level @ turn).T)[:, 2] - after.floor
    assert abs(np.median(heights)) < 0.1 and np.ptp(heights) < 12
    np.testing.assert_allclose(
        after.cameras[2].center,
        after.level @ turn @ recording.cameras[2].center - [0, 0, after.floor], atol=1e-9,
    )  # fmt: skip
    move = Similarity(np.float64(0.02), rotation_to_z(np.array([0.3, 0.1, 1])), np.arange(3.0))
    told_move, place = after.from_file(move), np.array([[40.0, -3.0, 9.0]])
    here = place @ after.level.T - [0, 0, after.floor]
    np.testing.assert_allclose(
        told_move["scale"] * place @ np.array(told_move["R"]).T + told_move["t"], move.apply(here)
    )
    for keypoints in (None, np.repeat(np.stack(xy)[:, :1], 60, 1)):
        with pytest.raises(ConfigError, match="floor cannot be told"):
            levelled(dataclasses.replace(told, keypoints=keypoints), "floor", [])


def test_a_mirrored_world_is_not_told_to_lie_on_its_side_as_well():
    mirrored = Finding("handedness", "error", "R mirrors the world", (0, 1))
    lying = Finding("world_not_z_up", "warning", "not z up")
    assert link([], [mirrored, lying]) == [mirrored] and mirrored.consequences == [lying]
