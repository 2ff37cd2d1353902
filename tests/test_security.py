"""Files of strangers: none may run code, lead out of its folder, or be half taken for whole."""

import json
import os
import pickle

import numpy as np
import pytest

from mouselift_jax.data.readers.pickles import read_camera_pickle, read_keypoints_pickle
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.errors import LayoutError, MouseLiftError
from mouselift_jax.report.html import Picture, Section, write_report
from mouselift_jax.report.scene import open_scene
from mouselift_jax.splats.ply import load_ply
from mouselift_jax.splats.splat_file import load_splat
from tests.report.test_scene import write_samples

SECRET = "a file of the host"


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Getter:
    """Reaches a method through an innocent built-in."""

    def __reduce__(self):
        return getattr, ("text", "upper")


def camera(**more):
    return {"K": np.eye(3), "R": np.eye(3), "T": np.zeros(3), **more}


@pytest.mark.parametrize("read", [read_camera_pickle, read_keypoints_pickle])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_cannot_run_anything(tmp_path, read, protocol):
    fuse = tmp_path / "ran"
    for content in (Bomb(fuse), [camera(x=Bomb(fuse))], {"0": Bomb(fuse)}, Getter()):
        path = tmp_path / "new_cam.pkl"
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(MouseLiftError) as raised:
            read(path)
        assert not fuse.exists()
        assert "Fix:" in str(raised.value) or raised.value.expected or raised.value.found


@pytest.mark.parametrize("data", [b"", b"\x80", b"cos\nsystem\n(S'true'\ntR.", b"not a pickle"])
def test_a_damaged_pickle_is_an_error(tmp_path, data):
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(MouseLiftError):
        read_camera_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    "name", ["../../secret.png", "/etc/hostname", "images/../../../secret.png"]
)
def test_a_sample_cannot_show_pictures_outside_it(tmp_path, name):
    (tmp_path / "secret.png").write_text(SECRET)
    samples = write_samples(tmp_path / "set", n=1)
    file = samples / "sample_000000" / "opencv_cameras.json"
    record = json.loads(file.read_text())
    record["frames"][0]["file_path"] = name
    file.write_text(json.dumps(record))
    with pytest.raises(LayoutError, match="leads out of its sample"):
        SampleSet.open(samples).load("sample_000000")


def test_lists_and_manifests_cannot_name_folders_outside_the_set(tmp_path):
    write_samples(tmp_path / "other", n=1)
    samples = write_samples(tmp_path / "set", n=1)
    (samples / "data_train.txt").write_text("../other/sample_000000\nsample_000000\n")
    assert SampleSet.open(samples).ids() == ("sample_000000",)  # its own sample of that name
    rows = [{"id": "../other/sample_000000", "status": "ok", "frame": 0}]
    (samples / "manifest.json").write_text(json.dumps({"schema": 1, "samples": rows}))
    (samples / "train.txt").write_text("sample_000000\n")
    with pytest.raises(LayoutError, match="outside the set"):
        SampleSet.open(samples)


def test_a_report_cannot_show_files_outside_its_run(tmp_path):
    (tmp_path / "secret.png").write_text(SECRET)
    (tmp_path / "run" / "report").mkdir(parents=True)
    with pytest.raises(LayoutError):
        write_report(tmp_path / "run", sections=[Section("x", [Picture("../secret.png")])])


def test_names_of_items_are_not_trusted_in_pages(tmp_path):
    from mouselift_jax.report.viewer import viewer_fragment
    from tests.report.test_scene import one

    html = viewer_fragment([one()], ["</script><script>alert(1)</script>"])
    assert "<script>alert" not in html and html.count("</script>") == 1


@pytest.mark.parametrize("loader, suffix", [(load_ply, ".ply"), (load_splat, ".splat")])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"ply\n",
        b"ply\nformat binary_little_endian 1.0\nelement vertex 99999999999\nproperty float x\n"
        b"end_header\n",
        b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\nabc\n",
        b"ply\nformat ascii 1.0\nelement vertex 99999999999\nproperty float x\nend_header\n1\n",
        b"ply\nformat ascii 1.0\nelement vertex 3\nend_header\n1\n",
        b"ply\nformat binary_little_endian 1.0\nelement vertex 3\nend_header\n1\n",
        b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\n" + b"comment \xff " * 999,
        b"\x00" * 1000,
    ],
)
def test_damaged_splats_are_errors(tmp_path, loader, suffix, data):
    (tmp_path / f"a{suffix}").write_bytes(data)
    with pytest.raises(LayoutError):
        loader(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("text", ["{", "[]", '{"artefacts": {"ply": "../../secret.ply"}}'])
def test_a_strange_summary_does_not_lead_the_viewer_astray(tmp_path, text):
    run = tmp_path / "a" / "run"
    run.mkdir(parents=True)
    (tmp_path / "secret.ply").write_text(SECRET)
    (run / "summary.json").write_text(text)
    with pytest.raises(LayoutError):
        open_scene(run)
