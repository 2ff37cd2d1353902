"""Grades of sample sets: true cameras pass, views moved behind their cameras' back do not."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from mouselift_jax.cli import check as cli
from mouselift_jax.data.check.samples import check_samples
from mouselift_jax.data.samples.grade import grade_samples, grade_table, letter
from mouselift_jax.data.samples.sample_set import SampleSet, is_sample_set
from mouselift_jax.data.synthetic.recording import Scene
from mouselift_jax.data.synthetic.render import Painter
from mouselift_jax.data.synthetic.rig import lab_rig
from mouselift_jax.geometry.camera import intrinsics
from mouselift_jax.geometry.rig import look_at_c2w

SIDE, N = 128, 3


def write_set(path, change=None):
    """Cameras turned to the animal, drawn directly; `change(rgba, view)` alters the pictures."""
    scene, painter = Scene(0, 10.0), Painter(0)
    for k in range(N):
        body = scene.body(k)
        folder = path / f"sample_{k:06d}" / "images"
        folder.mkdir(parents=True)
        frames = []
        for v, old in enumerate(lab_rig(SIDE, SIDE)):
            K = intrinsics(140.0, 140.0, SIDE / 2, SIDE / 2)
            c2w = look_at_c2w(old.center, body.position)
            camera = type(old)(K, c2w, SIDE, SIDE)
            rgb, alpha, (x0, y0) = painter.mouse(body, camera)
            rgba = np.zeros((SIDE, SIDE, 4), np.float32)
            window = rgba[y0 : y0 + alpha.shape[0], x0 : x0 + alpha.shape[1]]
            window[..., :3], window[..., 3] = rgb * (alpha > 0)[..., None], alpha
            rgba = np.round(rgba * 255).astype(np.uint8)
            rgba = rgba if change is None else change(rgba, v)
            Image.fromarray(rgba).save(folder / f"cam_{v:03d}.png")
            frames.append(
                {"w": SIDE, "h": SIDE, "fx": 140.0, "fy": 140.0, "cx": SIDE / 2, "cy": SIDE / 2,
                 "w2c": np.asarray(camera.w2c).tolist(),
                 "file_path": f"images/cam_{v:03d}.png", "camera": v}
            )  # fmt: skip
        record = {"id": folder.parent.name, "frames": frames}
        (folder.parent / "opencv_cameras.json").write_text(json.dumps(record))
    return path


def per_view_box(rgba, view):
    """The other project's way: every view scaled and centred on its own, cameras untouched."""
    rows, columns = np.nonzero(rgba[..., 3] > 127)
    size = max(np.ptp(rows), np.ptp(columns)) + 1
    s = 0.7 * SIDE / size
    cx, cy = columns.mean(), rows.mean()
    M = np.array([[s, 0, SIDE / 2 - s * cx], [0, s, SIDE / 2 - s * cy]])
    return cv2.warpAffine(rgba, M, (SIDE, SIDE))


@pytest.fixture(scope="module")
def true_set(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("g") / "true")


@pytest.fixture(scope="module")
def boxed_set(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("g") / "boxed", per_view_box)


def test_true_cameras_are_consistent(true_set):
    grade = grade_samples(SampleSet.open(true_set))
    assert grade["parts"]["hull_cover"] == grade["parts"]["tangent"] == "A"
    assert grade["grade"] in "AB" and grade["samples"] == N
    assert len(grade["measures"]["histogram_per_view"]) == 6


def test_per_view_scaling_is_geometrically_inconsistent(boxed_set):
    grade = grade_samples(SampleSet.open(boxed_set))
    assert grade["grade"] == "D"
    assert any("geometrically inconsistent" in r for r in grade["reasons"])


def test_check_names_the_disagreement(true_set, boxed_set):
    assert check_samples(true_set).usable
    result = check_samples(boxed_set)
    assert not result.usable
    assert result.findings[0].code == "samples_inconsistent"


def test_mirrored_camera_is_reported(tmp_path):
    path = write_set(tmp_path / "m")
    file = path / "sample_000001/opencv_cameras.json"
    record = json.loads(file.read_text())
    w2c = np.array(record["frames"][2]["w2c"])
    record["frames"][2]["w2c"] = (np.diag([-1.0, 1, 1, 1]) @ w2c).tolist()
    file.write_text(json.dumps(record))
    assert not check_samples(path).usable


def test_unreadable_sample_is_named(tmp_path):
    path = write_set(tmp_path / "u")
    (path / "sample_000001/images/cam_003.png").write_bytes(b"no picture")
    result = check_samples(path)
    assert "sample_unreadable" in [f.code for f in result.findings]
    assert result.measures["grade"]["grade"] == "D"


def test_table_compares_sets(true_set, boxed_set):
    rows = [(p.name, grade_samples(SampleSet.open(p))) for p in (true_set, boxed_set)]
    text = grade_table(rows)
    assert "true" in text and "boxed" in text and "hull_cover" in text


def test_letters():
    assert [letter("hull_cover", v) for v in (0.999, 0.98, 0.95, 0.43)] == list("ABCD")
    assert [letter("clipped_views", v) for v in (0.0, 0.02, 0.05, 0.5)] == list("ABCD")


def test_command_line(true_set, boxed_set, tmp_path, capsys):
    import argparse

    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    out = tmp_path / "out"
    code = cli.run(parser.parse_args([str(true_set), str(boxed_set), "--out", str(out)]))
    assert code == 2
    content = json.loads((out / "boxed/check.json").read_text())
    assert content["findings"][0]["code"] == "samples_inconsistent"
    assert (out / "true/contact_sheet.png").stat().st_size > 1000
    assert (out / "grades.png").exists()
    said = capsys.readouterr().out
    assert "geometrically inconsistent" in said and "check.json and contact_sheet.png" in said


def test_public_sample(shared):
    grade = grade_samples(SampleSet.open(shared / "data/facelift_sample/gslrm"))
    assert grade["parts"]["tangent"] == "A" and grade["parts"]["hull_cover"] == "A"


def test_kinds_of_folder(true_set, shared):
    assert is_sample_set(true_set) and is_sample_set(true_set / "sample_000000")
    assert not is_sample_set(shared / "recordings/mouse_a")
