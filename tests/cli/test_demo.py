import json
import socket

import numpy as np
import pytest

from mouselift_jax.__main__ import main
from mouselift_jax.cli import demo
from mouselift_jax.cli.demo import make_page
from mouselift_jax.errors import LayoutError, MissingExtraError


def test_without_gradio_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r"-e '\.\[demo\]'"):
        make_page(lambda photo: None)


def test_weights_must_be_named(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["demo"])
    assert stop.value.code == 2 and "--mvdiff" in capsys.readouterr().err


def test_words_that_are_none_are_refused_before_the_page_opens(capsys):
    from mouselift_jax.stages.items import from_photos

    assert demo.BACKGROUNDS == from_photos.BACKGROUNDS
    for wrong in ("--background=rmbg", "--dtype=float16"):
        with pytest.raises(SystemExit) as stop:
            main(["demo", "--mvdiff=a", "--gslrm=b", wrong])
        assert stop.value.code == 2 and "invalid choice" in capsys.readouterr().err


def test_a_port_in_use_is_said(monkeypatch, capsys):
    monkeypatch.setattr(demo, "make_page", lambda *a: None)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["demo", "--mvdiff=a", "--gslrm=b", f"--port={port}"]) == 2
    said = capsys.readouterr().err
    assert f"--port={port + 1}" in said and "nothing can listen there" in said


def test_the_page_answers_a_photo_with_views_viewer_and_splats(tmp_path):
    pytest.importorskip("gradio", reason="the extra [demo] is not installed")

    flag = "--config.generate.background=rembg"

    def reconstruct(photo, background, fill, warn):
        assert (background, fill) == ("plain", 0.0)
        if photo.name == "bad.png":
            raise LayoutError(
                "the photo's background is not plain",
                fix=f"cut it out, or {flag} (slow)",
            )
        (tmp_path / "splats.ply").write_text("ply")
        return np.zeros((8, 8, 3), np.uint8), '<p>"viewer"</p>', tmp_path / "splats.ply"

    page = make_page(reconstruct, "toys", "plain")
    go = next(f.fn for f in page.fns.values() if f.api_name == "reconstruct")
    views, frame, ply = go(str(tmp_path / "mouse.png"))
    assert views.shape == (8, 8, 3) and ply.endswith("splats.ply")
    assert 'srcdoc="&lt;p&gt;&quot;viewer' in frame
    with pytest.raises(Exception, match='out, or "rembg" in the field "background" .slow'):
        go(str(tmp_path / "bad.png"))
    with pytest.raises(Exception, match="photo first"):
        go(None)


def test_the_page_says_when_weights_are_toys_or_lose(tmp_path):
    tiny, good, bad = (tmp_path / n for n in ("tiny", "good", "bad"))
    for folder, variant, outcome in (
        (tiny, "tiny", "better"),
        (good, "base", "better"),
        (bad, "base", "worse"),
    ):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"variant": variant}))
        (folder / "summary.json").write_text(json.dumps({"verdict": {"outcome": outcome}}))
    assert demo.about_weights(str(good), str(tmp_path / "converted")) == ""
    assert "make the views are toys" in demo.about_weights(str(tiny), str(good))
    assert "make the splats did worse" in demo.about_weights(str(good), str(bad))


def test_messages_speak_of_the_pages_fields():
    said = demo.in_page_words("it fills 0.5; say it with --config.generate.fill")
    assert said == 'it fills 0.5; say it with the field "size of the animal"'
    assert "config" not in demo.in_page_words(
        "no such file  (config.mvdiff)\n Fix: --config.cameras=FILE"
    )
