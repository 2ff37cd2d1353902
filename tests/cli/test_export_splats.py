import json

import numpy as np
import pytest

from mouselift_jax.__main__ import main
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.ply import load_extras, load_ply, read_header, save_ply
from mouselift_jax.splats.splat_file import load_splat


def ball(n=300):
    d = np.random.default_rng(0).normal(size=(n, 3))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    return Gaussians(
        (0.4 * d * [1, 1.5, 1]).astype(np.float32),
        np.tile(np.array([1, 0, 0, 0], np.float32), (n, 1)),
        np.full((n, 3), np.log(0.05), np.float32),
        np.full(n, 4, np.float32),
        np.random.default_rng(1).normal(size=(n, 1, 3)).astype(np.float32),
    )


@pytest.fixture
def ply(tmp_path):
    save_ply(tmp_path / "in.ply", ball(), scene_scale=0.02, extras={"cameras": np.arange(300)})
    return tmp_path / "in.ply"


def test_ply_in_millimetres_and_other_axes(ply, tmp_path, capsys):
    out = tmp_path / "out.ply"
    assert main(["export", "--to=ply", str(ply), str(out), "--scale=mm", "--axes=unity"]) == 0
    assert read_header(out) == {"axes": "unity", "sh_degree": "0", "scene_scale": "1.0"}
    back = load_ply(out)  # turns the axes back
    np.testing.assert_allclose(back.means, ball().means / 0.02, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(np.exp(back.log_scales), 0.05 / 0.02, rtol=1e-5)
    np.testing.assert_array_equal(load_extras(out)["cameras"], np.arange(300))
    assert "300 Gaussians" in capsys.readouterr().out


def test_every_format_says_what_to_do_next(ply, tmp_path, capsys):
    for kind, name, said in (
        ("ply", "a b.ply", "view '{out}'"),
        ("splat", "a.splat", "view {out}"),
        ("html", "a.html", "{out} (0.0 MiB); open it in any browser"),
    ):
        out = tmp_path / name
        assert main(["export", f"--to={kind}", str(ply), str(out)]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("next: ") and said.format(out=out) in last


def test_a_long_film_is_read_one_frame_at_a_time(tmp_path, monkeypatch):
    """Thousands of frames do not fit into memory together."""
    from mouselift_jax.report.scene import Moment

    for i in range(3):
        save_ply(tmp_path / f"in/{i}.ply", ball(20), scene_scale=0.02)
    out, before = tmp_path / "out", []
    read = Moment.gaussians
    monkeypatch.setattr(
        Moment, "gaussians", lambda self: (before.append(len(list(out.glob("*")))), read(self))[1]
    )
    assert main(["export", "--to=ply", str(tmp_path / "in"), str(out)]) == 0
    assert before == [0, 1, 2]


def test_a_page_has_no_axes_and_no_unit(ply, tmp_path, capsys):
    for wish in ("--axes=unity", "--scale=mm"):
        assert main(["export", "--to=html", str(ply), str(tmp_path / "a.html"), wish]) == 2
        assert "neither axes nor a unit" in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()


def test_splat_and_html(ply, tmp_path):
    assert main(["export", "--to=splat", str(ply), str(tmp_path / "a.splat")]) == 0
    assert load_splat(tmp_path / "a.splat").n_gaussians == 300
    assert main(["export", "--to=html", str(ply), str(tmp_path / "a.html")]) == 0
    assert (tmp_path / "a.html").stat().st_size > 10_000


def test_what_cannot_be_done_is_said(ply, tmp_path, capsys):
    save_ply(tmp_path / "unknown.ply", ball())
    command = ["export", str(tmp_path / "unknown.ply"), str(tmp_path / "o.ply")]
    assert main([*command, "--to=ply", "--scale=mm"]) == 2
    assert "unit of these Gaussians is unknown" in capsys.readouterr().err
    assert main(["export", "--to=ply", str(ply), str(ply)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", "--to=ply", str(ply), str(tmp_path / "p.ply"), "--axes=unty"]) == 2
    assert "unity" in capsys.readouterr().err
    assert main(["export", "--to=plx", str(ply), str(tmp_path / "p.ply")]) == 2
    assert "did you mean 'ply'" in capsys.readouterr().err


def test_transforms_of_one_sample_say_that_there_are_more(tmp_path, capsys):
    from tests.report.test_scene import write_samples

    samples = write_samples(tmp_path / "samples", n=2)
    command = ["export", "--to=transforms", str(samples)]
    assert main([*command, str(tmp_path / "one")]) == 0
    said = capsys.readouterr().out
    assert "sample_000000, the first of 2 samples" in said and "next: " in said
    assert main([*command, str(tmp_path / "all"), "--all"]) == 0
    assert "the first of" not in capsys.readouterr().out
    assert len(list((tmp_path / "all").glob("*/transforms.json"))) == 2


def test_transforms_point_the_cameras_where_they_look(tmp_path):
    from tests.report.test_scene import write_samples

    samples = write_samples(tmp_path / "samples", n=2)
    command = ["export", "--to=transforms", str(samples), str(tmp_path / "out")]
    assert main([*command, "--sample", "sample_000001"]) == 0
    record = json.loads((tmp_path / "out" / "transforms.json").read_text())
    for frame in record["frames"]:
        assert (tmp_path / "out" / frame["file_path"]).is_file()
        matrix = np.array(frame["transform_matrix"])
        assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)
        backwards, place = matrix[:3, 2], matrix[:3, 3]  # OpenGL cameras look along -z
        np.testing.assert_allclose(backwards, place / np.linalg.norm(place), atol=1e-6)
        assert matrix[2, 1] > 0.5  # y up
    assert main([*command, "--sample", "sample_9"]) == 2


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb"])
def test_mesh_of_a_ball_is_a_ball(ply, tmp_path, capfd, suffix):
    pytest.importorskip("open3d", reason="the extra [mesh] is not installed")
    import open3d as o3d

    out = tmp_path / f"m{suffix}"
    assert main(["export", "--to=mesh", str(ply), str(out), "--scale=mm"]) == 0
    said = capfd.readouterr()
    assert "splats are no surface" in said.out and "WARNING" not in said.out + said.err
    mesh = o3d.io.read_triangle_mesh(str(out))
    size = np.ptp(np.asarray(mesh.vertices), axis=0)
    np.testing.assert_allclose(size, [40 + 6, 60 + 6, 40 + 6], atol=5)
    assert mesh.has_vertex_colors()


def test_a_mesh_of_nothing_is_one_error(tmp_path, capsys):
    save_ply(tmp_path / "empty.ply", ball()[np.zeros(300, bool)])
    assert main(["export", "--to=mesh", str(tmp_path / "empty.ply"), str(tmp_path / "m.obj")]) == 2
    assert "enclose no surface" in capsys.readouterr().err


def test_mesh_without_open3d_says_how_to_get_it(ply, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "open3d", None)
    assert main(["export", "--to=mesh", str(ply), str(tmp_path / "m.obj")]) == 2
    assert ".[mesh]" in capsys.readouterr().err


def test_model_cards_know_where_weights_came_from(tmp_path, capsys):
    weights, run = tmp_path / "facelift", tmp_path / "run"
    for folder in (weights, run):
        folder.mkdir()
    (weights / "conversion.json").write_text(json.dumps({"kind": "gslrm", "source": "ckpt.pt"}))
    config = {"stage": "gslrm", "init_from": str(weights), "samples": "s", "train": {"steps": 9}}
    (run / "config.json").write_text(json.dumps(config))
    summary = {"stage": "gslrm", "steps": 9, "finished": True, "metrics": {"heldout/psnr": 21.5}}
    (run / "summary.json").write_text(json.dumps({**summary, "wall_s": 7200}))
    assert main(["export", "--to=card", str(run), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("next: ")
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    for text in ("Adobe Research License", "heldout/psnr | 21.5", "2.00 h", str(weights)):
        assert text in card
    assert main(["export", "--to=card", str(weights), str(tmp_path / "w.md")]) == 0
    assert "ckpt.pt" in (tmp_path / "w.md").read_text()
    assert main(["export", "--to=card", str(tmp_path), str(tmp_path / "x.md")]) == 2
