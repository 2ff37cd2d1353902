"""The film mode of fit: one set in all frames, resumed by frame, cut at a jump.

An egg turns and walks; from frame `JUMP` on another one stands in its place.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from configs import fit as config_file
from mouselift_jax.data.samples.writer import SampleWriter
from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.geometry.rig import rig_from_angles
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.splats.film import Film
from mouselift_jax.splats.ply import load_ply
from mouselift_jax.stages import fit
from mouselift_jax.stages.items.film import Follower
from mouselift_jax.stages.items.film_report import judged
from tests.sample_sets import ellipsoid_picture
from tests.stages import runs

FRAMES, JUMP, SIZE, SCALE = 5, 3, 64, 0.01
AXES = np.array([[0.8, 0.4, 0.45], [0.45, 0.85, 0.7]])


def pose(frame: int) -> tuple[np.ndarray, np.ndarray]:
    """The egg's rotation [3,3] in the recording and its centre [3], mm."""
    R = Rotation.from_rotvec([0, 0, 0.08 * frame]).as_matrix()
    return R, np.array([50 + 4.0 * frame, 40, 20])


def move(frame: int) -> Similarity:
    """Scene from recording: the egg at the origin, its heading turned half away."""
    R = Rotation.from_rotvec([0, 0, -0.04 * frame]).as_matrix()
    return Similarity(np.float64(SCALE), R, -SCALE * R @ pose(frame)[1])


run = functools.partial(runs.run, fit)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    root = tmp_path_factory.mktemp("film")
    rig = rig_from_angles(270.0 - 60.0 * np.arange(6), 15.0, 2.7, 1.1 * SIZE, SIZE)
    writer = SampleWriter(root / "set", {"source": {"kind": "test"}, "parameters": {"size": SIZE}})
    ball = np.random.default_rng(0).normal(size=(60, 3))
    ball /= np.linalg.norm(ball, axis=-1, keepdims=True)
    skin = []
    for i in range(FRAMES):
        axes, (R, centre), moved = AXES[int(i >= JUMP)], pose(i), move(i)
        egg_from_scene = Similarity(np.float64(1.0), (moved.R @ R).T, np.zeros(3))
        pictures = ellipsoid_picture(rig.transformed(egg_from_scene), axes, SIZE)
        if i >= JUMP:  # another coat
            pictures[..., :3] = (255 - pictures[..., :3]) * (pictures[..., 3:] > 0)
        similarity = {"scale": SCALE, "R": moved.R.tolist(), "t": moved.t.tolist()}
        writer.write(i, list(pictures), rig, range(6), frame=i, scene_scale=SCALE,
                     scene_from_recording=similarity)  # fmt: skip
        skin.append(centre + ball * axes / SCALE @ R.T)
    writer.finish(lambda rows: ["train"] * FRAMES)
    np.savez(root / "truth.npz", skin=np.stack(skin), skin_seen=np.ones((FRAMES, 60, 6), bool))
    return root


def config(samples):
    c = config_file.get_config("tiny")
    c.samples, c.film.identity, c.sequence = str(samples / "set"), True, False
    c.film.truth, c.film.coarse_steps, c.film.fine_steps = str(samples / "truth.npz"), 12, 24
    c.film.loss_db = 3.0
    return c


@pytest.fixture(scope="module")
def done(samples, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "fit"
    return path, run(config(samples), path)


def test_one_set_keeps_its_order_until_a_jump(done):
    path, summary = done
    film = Film.open(path)
    parts = {int(p.segment[0]): list(p.frames) for p in film.parts()}
    assert sorted(parts.values()) == [[0, 1, 2], [3, 4]]
    assert len(film.about["segments"]) == 2
    assert sum("identity ends here" in w for w in summary["warnings"]) == 1
    figures = summary["metrics"]
    assert 0 < figures["tracks/median_mm"] < 4  # a pixel is 4 mm wide, half of the axis 80 long
    assert figures["tracks/lost"] == pytest.approx(0.5, abs=0.02)  # what the jump took away
    assert "Identity ended 1 time(s)" in (path / "report.html").read_text()
    with np.load(path / "film/tracks.npz") as tracks:
        there = np.isfinite(tracks["paths"]).all(-1)  # a path lives as long as its set
        assert np.array_equal(there, tracks["segment"][:, None] == tracks["of"])
        assert len(tracks["of"]) == 100 == len(tracks["index"])


def test_splats_and_film_agree_across_their_worlds(done):
    path, _ = done
    film = Film.open(path)
    for part in film.parts():
        for i, frame in enumerate(part.frames):
            splats = load_ply(path / f"items/sample_{frame:06d}/splats.ply")
            assert len(splats.means) == part.means.shape[1]
            expected = move(frame).apply(film.recording_from_film.apply(part.means[i]))
            np.testing.assert_allclose(splats.means, expected, atol=1e-5)


def test_a_killed_run_goes_on_where_it_stood(done, samples, tmp_path, monkeypatch):
    whole, path, calls = Film.open(done[0]), tmp_path / "fit", []
    real = Follower.__call__

    def killed(self, views, cameras, item_id, cold):
        calls.append(item_id)
        if len(calls) in (2, 5):
            raise KeyboardInterrupt
        return real(self, views, cameras, item_id, cold)

    monkeypatch.setattr(Follower, "__call__", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(config(samples), path)
    run(config(samples), path)
    assert len(calls) == FRAMES + 2 and calls[1] == calls[2] and calls[4] == calls[5]
    for a, b in zip(whole.parts(), Film.open(path).parts(), strict=True):
        assert np.array_equal(a.frames, b.frames)
        np.testing.assert_allclose(a.means, b.means, atol=1e-4)
    (path / "items/sample_000001/splats.ply").unlink()  # lost later: drawn from the film again
    before = (path / "film/segment_000_part_00000.npz").read_bytes()
    run(config(samples), path)
    assert (path / "film/segment_000_part_00000.npz").read_bytes() == before
    again, first = (load_ply(p / "items/sample_000001/splats.ply") for p in (path, done[0]))
    np.testing.assert_allclose(again.means, first.means, atol=1e-4)


def test_what_is_no_film_says_so(samples, tmp_path):
    c = config(samples)
    c.limit = 1
    with pytest.raises(ConfigError, match="two or more frames"):
        run(c, tmp_path / "fit")
    assert "two or more frames" in fit.plan(c, tmp_path / "fit").describe()


def test_a_truth_of_something_else_is_refused(done, samples, tmp_path):
    np.savez(tmp_path / "truth.npz", skin=np.zeros((2, 60, 3)), skin_seen=np.ones((2, 60, 6)))
    with pytest.raises(LayoutError, match="not of this film"):
        judged(Film.open(done[0]), tmp_path / "truth.npz")
