"""One animal of several: balls of two colours before the lab's six cameras."""

import pickle

import cv2
import numpy as np
import pytest

from mouselift_jax.data.check.recording import check_recording
from mouselift_jax.data.preparation.animals import Chooser, find_animals, find_bodies
from mouselift_jax.data.preparation.placement import SceneSettings
from mouselift_jax.data.preparation.preparer import Preparer, PrepareSettings
from mouselift_jax.data.recordings.inspection import open_recording
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.data.samples.writer import SampleWriter
from mouselift_jax.data.synthetic.rig import lab_rig
from mouselift_jax.errors import ConfigError

RIG = lab_rig(192, 171)
MIDDLE = np.array([51.5, 52.6, 10.0])
FRAMES, TOUCH = 8, 4
RED, BLUE = (0, 0, 200, 255), (200, 0, 0, 255)


def paint(balls):
    """Pictures BGRA of balls (place, radius in mm, colour), the nearest drawn last."""
    out = []
    for camera in RIG:
        picture = np.zeros((171, 192, 4), np.uint8)
        for place, radius, colour in sorted(balls, key=lambda b: -camera.project(b[0])[1]):
            xy, z = camera.project(place)
            size = round(radius * camera.K[0, 0] / float(z))
            cv2.circle(picture, np.floor(xy).astype(int).tolist(), size, colour, -1)
        out.append(picture)
    return out


def bodies(*balls):
    return [find_bodies(p[..., 3]) for p in paint([(MIDDLE + b[:3], b[3], RED) for b in balls])]


APART = 50 * np.array([np.cos(0.26), np.sin(0.26), 0.0])  # no camera sees one before the other


def red_at(t):
    return MIDDLE - APART + [0.0, 1.5 * t, 0.0]


def balls_at(t):
    """Red is the larger one until frame 5; once the blue one comes near."""
    blue = red_at(t) + [25.0, 0, 0] if t == TOUCH else MIDDLE + APART
    return [(red_at(t), 15.0, RED), (blue, 12.0 if t < 5 else 20.0, BLUE)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    path = tmp_path_factory.mktemp("pair") / "rec"
    for t in range(FRAMES):
        for v, picture in enumerate(paint(balls_at(t))):
            (path / f"videos/{v}").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path / f"videos/{v}/{t:03d}.png"), picture)
    rows = [{"K": c.K - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]], "R": c.w2c[:3, :3],
             "T": c.w2c[:3, 3]} for c in RIG]  # fmt: skip
    (path / "new_cam.pkl").write_bytes(pickle.dumps(rows))
    return path


def prepared(path, target, animal, first=0):
    recording = open_recording(path)
    settings = PrepareSettings(
        scene=SceneSettings(size=64), animal=animal, min_mask_px=20.0, max_speed_mm_s=0.0
    )
    preparer, told = Preparer(recording, settings, range(FRAMES)), []
    with SampleWriter(target, {"parameters": {}, **preparer.manifest_entries()}) as writer:
        if first:
            Preparer(recording, settings, range(first)).run(writer, threads=2)
        preparer.run(writer, threads=2, on_finding=told.append)
        manifest = writer.finish(lambda r: ["train"] * len(r), numbers=preparer.numbers())
    return SampleSet.open(target), manifest["samples"], told


def is_red(sample):
    seen = sample.images_rgba[..., 3] > 200
    mean = sample.images_rgba[seen].mean(0)
    assert max(mean[0], mean[2]) > 150 and min(mean[0], mean[2]) < 5  # of one animal alone
    return mean[0] > mean[2]


@pytest.mark.parametrize("animal", ["largest", "followed"])
def test_samples_are_of_one_animal(pair, tmp_path, animal):
    samples, rows, told = prepared(pair, tmp_path / "set", animal)
    assert {r["frame"]: r["reason"] for r in rows if r["status"] != "ok"} == {
        TOUCH: "animals touch"
    }
    assert not told
    for name in samples.ids("all"):
        sample = samples.load(name)
        red = animal == "followed" or sample.frame < 5
        assert is_red(sample) == red
        (row,) = (r for r in rows if r["id"] == name)
        place = red_at(sample.frame) if red else balls_at(sample.frame)[1][0]
        assert np.linalg.norm(row["centre"] - place) < 3.0 and row["animal"]["of"] == 2
        assert row.get("hull", {"cover": 1.0})["cover"] > 0.97


def test_an_interrupted_run_follows_the_same_animal(pair, tmp_path):
    samples, _, _ = prepared(pair, tmp_path / "set", "followed", first=6)
    assert all(is_red(samples.load(name)) for name in samples.ids("all"))


def test_check_names_it_with_the_remedy(pair):
    result = check_recording(pair)
    (finding,) = (f for f in result.findings if f.code == "several_animals")
    assert "--config.prepare.animal=largest" in finding.fix and result.usable


def test_three_animals_and_their_pieces():
    seen = bodies((45, 0, 0, 18), (-45, 0, 0, 14), (0, 60, 0, 12), (0, 66, 13, 2))
    found = find_animals(seen, RIG)
    assert len(found) == 3
    centres = np.array(sorted((f.centre - MIDDLE).tolist() for f in found))
    np.testing.assert_allclose(centres, [[-45, 0, 0], [0, 60, 0], [45, 0, 0]], atol=10)
    assert [len(find_animals(bodies(b), RIG)) for b in ((0, 0, 0, 15), (30, 9, 0, 9))] == [1, 1]


def test_which_animal_must_be_clear():
    chooser, two = Chooser("followed", RIG), bodies((45, 0, 0, 18), (-45, 0, 0, 14))
    first, reason, _ = chooser.choose(two, None)
    assert not reason and first.centre[0] > MIDDLE[0]
    assert chooser.choose(two, MIDDLE - [5.0, 0, 0])[1] == "unclear which animal"
    other, reason, row = chooser.choose(two, MIDDLE - [30.0, 0, 0])
    assert not reason and other.centre[0] < MIDDLE[0] and row["animal"]["of"] == 2
    # Later only one body is seen everywhere, larger than the animal: the two in a heap.
    heap = bodies((0, 0, 0, 14), (8, 0, 0, 18))
    before = [{"animal": {"of": 2, "size": row["animal"]["size"]}}]
    assert Chooser("followed", RIG, before).choose(heap, MIDDLE)[1] == "animals touch"
    assert not Chooser("followed", RIG, before).choose(bodies((0, 0, 0, 14)), MIDDLE)[1]
    assert Chooser("largest", RIG).choose(bodies(), None)[:2] == (None, "no common centre")


def test_a_choice_takes_three_cameras():
    with pytest.raises(ConfigError, match="three cameras"):
        Chooser("largest", RIG[:2])
