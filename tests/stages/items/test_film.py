"""The film mode of fit: one set in all frames, resumed by frame, cut at a jump."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from configs import fit as config_file
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.data.synthetic import write_recording
from mouselift_jax.errors import ConfigError
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.record import read_summary
from mouselift_jax.splats.film import Film
from mouselift_jax.splats.ply import load_ply
from mouselift_jax.stages import fit
from mouselift_jax.stages.items.film import Follower

FRAMES, JUMP = 6, 4


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "rec"
    return write_recording(
        path, frames=FRAMES, size=(144, 128), n_heldout=0, jumps=(JUMP,), workers=1
    )


def config(recording, **film):
    c = config_file.get_config("tiny")
    c.recording, c.film.identity, c.sequence = str(recording), True, False
    c.film.truth, c.prepare.prepare.max_speed_mm_s = str(recording / "truth.npz"), 0.0
    for key, value in film.items():
        c.film[key] = value
    return c


def run(c, path):
    with Workdir(path, c) as workdir:
        fit.run(c, workdir)
    return read_summary(path)


@pytest.fixture(scope="module")
def done(recording, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "fit"
    return path, run(config(recording), path)


def test_one_set_keeps_its_order_until_a_jump(done):
    path, summary = done
    film = Film.open(path)
    parts = {int(p.segment[0]): p for p in film.parts()}
    assert list(parts[0].frames) == [0, 1, 2, 3] and list(parts[1].frames) == [4, 5]
    assert [s["begins_at"] for s in film.about["segments"]][1] == "sample_000004"
    assert any("identity ends here" in w and "sample_000004" in w for w in summary["warnings"])
    assert 0 < summary["metrics"]["tracks/median_mm"] < 4  # a toy: 127 Gaussians, 12 steps
    assert 0.3 < summary["metrics"]["tracks/lost"] < 0.6  # those that the jump took away
    assert "Identity ended 1 time(s)" in (path / "report.html").read_text()
    with np.load(path / "film/tracks.npz") as tracks:
        assert np.isfinite(tracks["paths"][:4]).all() and np.isnan(tracks["paths"][4:]).all()


def test_splats_and_film_agree_across_their_worlds(done):
    path, _ = done
    film, samples = Film.open(path), SampleSet.open(path / "prepare/samples")
    part = next(film.parts())
    for i, frame in enumerate(part.frames):
        sample = f"sample_{frame:06d}"
        moved = samples.camera_file(sample)["scene_from_recording"]
        there = Similarity(moved["scale"], np.array(moved["R"]), np.array(moved["t"]))
        splats = load_ply(path / "items" / sample / "splats.ply")
        assert len(splats.means) == part.means.shape[1]
        expected = there.apply(film.recording_from_film.apply(part.means[i]))
        np.testing.assert_allclose(splats.means, expected, atol=1e-5)


def test_a_killed_run_goes_on_where_it_stood(done, recording, tmp_path, monkeypatch):
    whole, path, calls = Film.open(done[0]), tmp_path / "fit", []
    real = Follower.__call__

    def killed(self, views, item_id, cold):
        calls.append(item_id)
        if len(calls) in (3, 6):
            raise KeyboardInterrupt
        return real(self, views, item_id, cold)

    shutil.copytree(done[0] / "prepare", path / "prepare")
    monkeypatch.setattr(Follower, "__call__", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(config(recording), path)
    run(config(recording), path)
    assert calls == [f"sample_{i:06d}" for i in (2, 3, 4, 4, 5, 1, 1, 0)]
    for a, b in zip(whole.parts(), Film.open(path).parts(), strict=True):
        assert np.array_equal(a.frames, b.frames)
        np.testing.assert_allclose(a.means, b.means, atol=1e-4)
    (path / "items/sample_000001/splats.ply").unlink()  # lost later: drawn from the film again
    before = (path / "film/segment_000_part_00000.npz").read_bytes()
    run(config(recording), path)
    assert (path / "film/segment_000_part_00000.npz").read_bytes() == before


def test_one_frame_is_no_film(recording, done, tmp_path):
    c = config(recording)
    c.recording, c.samples, c.limit = None, str(done[0] / "prepare"), 1
    with pytest.raises(ConfigError, match="two or more frames"):
        run(c, tmp_path / "fit")
