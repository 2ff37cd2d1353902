"""`export --to=film`: one file of a run, and what a run without identity is told."""

import json

import numpy as np

from mouselift_jax.__main__ import main
from mouselift_jax.exports.source import FilmFrame, FilmSource
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.splats.film import Film
from mouselift_jax.splats.film_file import load_film_file
from mouselift_jax.splats.ply import load_ply, read_header, save_ply
from mouselift_jax.splats.trust import FIELD
from tests import sample_sets
from tests.exports.film import write_identity


def a_run(path, numbers=(0, 2, 3)):
    """A run of fit:film with its samples, which know the time."""
    write_identity(path, numbers)
    samples = sample_sets.write_samples(path / "samples", n=len(numbers), size=16, n_val=0)
    manifest = json.loads((samples / "manifest.json").read_text())
    for row, number in zip(manifest["samples"], numbers, strict=True):
        row |= {"frame": number, "time_s": number / 10}
    (samples / "manifest.json").write_text(json.dumps(manifest))
    (path / "summary.json").write_text(json.dumps({"inputs": {"samples": str(samples)}}))
    reel = Film.open(path).reel()
    for i, row in enumerate(manifest["samples"]):
        place = path / "items" / row["id"].replace("/", "_") / "splats.ply"
        save_ply(place, reel.gaussians(i), scene_scale=0.01, extras={FIELD: np.full(80, 3.0)})
    return path


def test_a_run_becomes_one_file_with_its_clock_and_trust(tmp_path, capsys):
    run, out = a_run(tmp_path / "fit"), tmp_path / "mouse.film"
    assert main(["export", "--to=film", str(run), str(out)]) == 0
    said = capsys.readouterr().out
    assert "3 frames, 1 set(s)" in said and f"view {out}" in said
    reel = load_film_file(out)
    assert list(reel.frames) == [0, 2, 3] and list(reel.times) == [0, 0.2, 0.3]
    assert list(reel.seen(0)) == [3.0] * 80
    true = Film.open(run).reel().gaussians(2).means
    assert np.abs(reel.gaussians(2).means - true).max() < 0.001  # 0.1 mm
    # The file is a source like any other.
    assert main(["export", "--to=ply", str(out), str(tmp_path / "plys")]) == 0
    assert np.abs(load_ply(tmp_path / "plys/frame_000003.ply").means - true).max() < 0.001
    assert main(["export", "--to=film", str(run), str(out)]) == 0  # ours: replaced


def test_a_run_without_identity_is_told_how_to_get_it(tmp_path, capsys):
    save_ply(tmp_path / "items/a/splats.ply", Film.open(a_run(tmp_path / "f")).reel().gaussians(0))
    assert main(["export", "--to=film", str(tmp_path), str(tmp_path / "a.film")]) == 2
    assert "fit.py:film" in capsys.readouterr().err


def test_plys_in_the_recordings_world_keep_the_walk(tmp_path, monkeypatch, capsys):
    """Frames that are centred each on itself come back to where they were, in mm."""
    still = Film.open(a_run(tmp_path / "f")).reel().gaussians(0)
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    frames = []
    for i in range(3):
        ply = tmp_path / f"run/items/f{i}/splats.ply"
        save_ply(ply, still, scene_scale=0.01)
        moved = Similarity(100.0, turn, np.array([30.0 * i, 0, 0]))
        frames.append(FilmFrame(f"f{i}", i, i / 10, ply, moved if i < 2 else None))
    found = [FilmSource(tmp_path / "run", None, tuple(frames[:2]), None)]
    monkeypatch.setattr("mouselift_jax.exports.source.open_film", lambda _: found[0])
    command = [
        "export",
        "--to=ply",
        str(tmp_path / "run"),
        str(tmp_path / "o"),
        "--world=recording",
    ]
    assert main(command) == 0
    for i in range(2):
        path = tmp_path / f"o/f{i}.ply"
        expected = 100 * still.means @ turn.T + [30 * i, 0, 0]
        np.testing.assert_allclose(load_ply(path).means, expected, atol=1e-3)
        assert read_header(path)["scene_scale"] == "1.0"
    found[0] = FilmSource(tmp_path / "run", None, tuple(frames), None)  # the last has no unit
    assert main([*command[:3], str(tmp_path / "p"), command[-1]]) == 2
    assert "where these Gaussians were" in capsys.readouterr().err
