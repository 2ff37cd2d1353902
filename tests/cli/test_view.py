import pytest

from mouselift_jax.__main__ import main
from mouselift_jax.splats.ply import save_ply
from tests import sample_sets
from tests.report.test_scene import one, write_samples


def test_a_film_becomes_one_page(tmp_path, capsys):
    for i in range(3):
        save_ply(tmp_path / "run" / "items" / f"frame_{i}" / "splats.ply", one(i), scene_scale=0.02)
    page = tmp_path / "page.html"
    assert main(["view", str(tmp_path / "run"), "--export-html", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    html = page.read_text()
    assert "frame_2" in html and '"scene_scale": 0.02' in html


def test_long_films_are_thinned_and_that_is_said(tmp_path, capsys, monkeypatch):
    from mouselift_jax.exports import page

    monkeypatch.setattr(page, "MAX_PAGE_FRAMES", 2)
    for i in range(3):
        save_ply(tmp_path / f"{i}.ply", one(i))
    assert main(["view", str(tmp_path), "--export-html", str(tmp_path / "p.html")]) == 0
    assert "every 2nd frame" in capsys.readouterr().out
    assert (tmp_path / "p.html").read_text().count("H4sI") == 2  # gzip, in base64


def test_samples_have_no_page_and_nothing_has_no_view(tmp_path, capsys):
    samples = write_samples(tmp_path / "samples")
    assert main(["view", str(samples), "--export-html", str(tmp_path / "p.html")]) == 2
    assert "there are none here" in capsys.readouterr().err
    assert main(["view", str(tmp_path / "nowhere")]) == 2


def test_a_runs_folder_stands_for_its_samples(tmp_path):
    sample_sets.write_samples(tmp_path / "prepare" / "samples", n=1, size=16, n_val=0)
    save_ply(tmp_path / "a.ply", one())
    page = tmp_path / "p.html"
    flags = ["--samples", str(tmp_path / "prepare"), "--export-html", str(page)]
    assert main(["view", str(tmp_path / "a.ply"), *flags]) == 0 and page.exists()


def test_without_viser_it_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "viser", None)
    save_ply(tmp_path / "a.ply", one())
    assert main(["view", str(tmp_path / "a.ply")]) == 2
    said = capsys.readouterr().err
    assert ".[viewer]" in said and "--export-html" in said


@pytest.mark.parametrize("step, text", [(2, "every 2nd frame"), (3, "every 3rd"), (4, "every 4th")])
def test_ordinals(step, text):
    from mouselift_jax.exports.page import every

    assert text in every(step)


def test_a_film_with_identity_plays_with_its_tracks(tmp_path, capsys):
    from tests.exports.test_films import a_run

    run, page = a_run(tmp_path / "fit"), tmp_path / "p.html"
    command = ["view", str(run), "--export-html", str(page)]
    assert main([*command, "--colours", "speed"]) == 0
    html = page.read_text()
    assert '"tracks": [{"at": [0, 1, 2]' in html and '"colour": "speed"' in html
    assert "frame 3, 0.30 s" in html
    assert main(["export", "--to=film", str(run), str(tmp_path / "a.film")]) == 0
    assert main(["view", str(tmp_path / "a.film"), "--export-html", str(tmp_path / "q.html")]) == 0
    assert '"tracks": [{"at": [0, 1, 2]' in (tmp_path / "q.html").read_text()
    capsys.readouterr()
    assert main([*command, "--colours", "error"]) == 2
    assert "no pictures to differ from" in capsys.readouterr().err
    for ply in run.glob("items/*/splats.ply"):
        ply.unlink()
    assert main([*command, "--colours", "cameras"]) == 2
    assert "does not say how many cameras" in capsys.readouterr().err


def test_speed_needs_identity(tmp_path, capsys):
    save_ply(tmp_path / "a.ply", one())
    assert main(["view", str(tmp_path / "a.ply"), "--colours", "speed"]) == 2
    assert "fit.py:film" in capsys.readouterr().err
