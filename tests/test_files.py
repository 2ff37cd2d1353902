"""Files are whole or absent, and one process at a time holds a lock."""

import errno
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from mouselift_jax.__main__ import main
from mouselift_jax.cli import check
from mouselift_jax.cli._verbs import build_parser
from mouselift_jax.data.readers.calibrations import read_calibration
from mouselift_jax.data.readers.write_back import write_back
from mouselift_jax.data.samples.writer import SAMPLE_FILES, SampleWriter
from mouselift_jax.data.synthetic.recording import write_recording
from mouselift_jax.errors import LayoutError, MouseLiftError
from mouselift_jax.exports.glb import save_glb
from mouselift_jax.exports.mesh import save_mesh
from mouselift_jax.exports.model_card import write_model_card
from mouselift_jax.files import (
    MARK,
    FileLock,
    atomic_path,
    check_replaceable,
    mark_made,
    remove_known,
    remove_made,
    write_json_atomic,
)
from mouselift_jax.report.html import write_report
from mouselift_jax.report.viewer import export_html
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.splats import save_ply
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.splat_file import save_splat
from mouselift_jax.training.checkpoint import Checkpoints
from mouselift_jax.weights.pretrained import save_component


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path):
    write_json_atomic(tmp_path / "a.json", {"old": 1})
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a.json") as part:
        part.write_text('{"new')
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]
    with pytest.raises(TypeError):
        write_json_atomic(tmp_path / "b.json", {"x": object()})
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_process_killed_in_the_middle_leaves_the_old_file(tmp_path):
    write_json_atomic(tmp_path / "a.json", {"old": 1})
    program = (
        "import os, sys\nfrom mouselift_jax.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as part:\n    part.write_text('{')\n    os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.json")])
    assert done.returncode == 9
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


def test_a_lock_is_one_processs_and_names_it(tmp_path):
    one, two = FileLock(tmp_path / ".lock"), FileLock(tmp_path / ".lock")
    assert one.acquire() is None
    assert two.acquire().startswith(f"process {os.getpid()} on ")
    one.release()
    assert two.acquire() is None  # left behind by nobody
    two.release(remove=True)
    assert not (tmp_path / ".lock").exists()


def test_a_disk_without_locks_is_not_taken_for_another_process(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="No locks available"):
        FileLock(tmp_path / ".lock").acquire()


def test_a_lock_of_a_process_that_died_is_free(tmp_path):
    program = (
        "import os, sys\nfrom mouselift_jax.files import FileLock\n"
        "assert FileLock(sys.argv[1]).acquire() is None\nos._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / ".lock")])
    assert done.returncode == 9 and (tmp_path / ".lock").read_text()
    assert FileLock(tmp_path / ".lock").acquire() is None


def one_splat():
    return Gaussians(
        np.zeros((1, 3), np.float32), np.eye(4, dtype=np.float32)[:1],
        np.zeros((1, 3), np.float32), np.zeros(1, np.float32), np.zeros((1, 1, 3), np.float32),
    )  # fmt: skip


def run_of(folder):
    folder.mkdir()
    (folder / "config.json").write_text('{"stage": "gslrm"}')
    (folder / "summary.json").write_text('{"finished": true}')
    return folder


def a_calibration(path):
    rows = [{"K": np.eye(3), "R": np.eye(3), "T": np.zeros(3)}]
    path.write_bytes(pickle.dumps(rows))
    return read_calibration(path)


def exported(to, folder):
    save_ply(folder / "in.ply", one_splat(), scene_scale=0.1)
    return main(["export", "--to", to, str(folder / "in.ply"), str(folder / "out")])


# What writes where a user says, and a file that it would replace: each leaves a stranger's alone.
WRITERS = {
    "save_ply": ("a.ply", lambda f: save_ply(f / "a.ply", one_splat())),
    "save_splat": ("a.splat", lambda f: save_splat(f / "a.splat", one_splat())),
    "save_mesh": ("a.obj", lambda f: save_mesh(f / "a.obj", one_splat())),
    "save_glb": ("a.glb", lambda f: save_glb(f / "a.glb", one_splat())),
    "export_html": ("a.html", lambda f: export_html(f / "a.html", [one_splat()])),
    "model card": ("CARD.md", lambda f: write_model_card(run_of(f / "run"), f / "CARD.md")),
    "report": ("report.html", lambda f: write_report(f, sections=[])),
    "write_back": (
        "new_cam.pkl",
        lambda f: write_back(c := a_calibration(f / "new_cam.pkl"), c.cameras, f, [(4, 4)]),
    ),
    "recording": ("recording.json", lambda f: write_recording(f, frames=1, size=(32, 32))),
    "sample list": ("train.txt", lambda f: SampleWriter(f, {})),
    "half a sample": (".part_7_x/notes.txt", lambda f: SampleWriter(f, {})),
    "checkpoints": ("7/video.mp4", lambda f: Checkpoints(f)),
    "component": (
        "prompt_embeds/notes.txt",
        lambda f: save_component(
            f, "prompt_embeds", {"shape": [1, 1, 1]}, {"prompt_embeds": np.zeros((1, 1, 1))}
        ),
    ),
    "workdir": ("summary.json", lambda f: Workdir(f, {"stage": "x"}).__enter__()),
    "verb check": (
        "check.json",
        lambda f: check.run(check_arguments(["nowhere", "--out", str(f)])),
    ),
    "verb export ply": ("out/in.ply", lambda f: refused(exported("ply", f))),
    "verb export splat": ("out/in.splat", lambda f: refused(exported("splat", f))),
    "verb export html": ("out/splats.html", lambda f: refused(exported("html", f))),
}


def check_arguments(words):
    return build_parser("check").parse_args(words)


def refused(code):
    if code == 2:
        raise LayoutError("the verb refused", fix="none")


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_replaces_a_file_that_we_did_not_write(tmp_path, name):
    file, write = WRITERS[name]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(mine := b"the work of years")
    if name == "write_back":  # here the user's file is the calibration that was read
        a_calibration(tmp_path / file)
        mine = (tmp_path / file).read_bytes()
    with pytest.raises(MouseLiftError):
        write(tmp_path)
    assert (tmp_path / file).read_bytes() == mine


def test_what_we_wrote_is_replaced_and_the_rest_when_told_to(tmp_path):
    for _ in range(2):
        save_ply(tmp_path / "a.ply", one_splat())
        export_html(tmp_path / "a.html", [one_splat()])
        save_splat(tmp_path / "a.splat", one_splat(), overwrite=True)
        write_model_card(tmp_path / "run" if _ else run_of(tmp_path / "run"), tmp_path / "CARD.md")
    with pytest.raises(LayoutError, match="left alone"):
        save_splat(tmp_path / "a.splat", one_splat())
    (tmp_path / "b.ply").write_text("mine")
    save_ply(tmp_path / "b.ply", one_splat(), overwrite=True)
    check_replaceable(tmp_path / "b.ply")


def test_a_damaged_sample_is_made_anew_but_not_over_a_stranger(tmp_path):
    folder = tmp_path / "sample_000000"
    (folder / "images").mkdir(parents=True)
    (folder / "images/cam_000.png").write_text("half")
    remove_known(folder, SAMPLE_FILES)
    assert not folder.exists()
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(LayoutError, match="notes.txt"):
        remove_known(folder, SAMPLE_FILES)
    assert (folder / "notes.txt").read_text() == "mine"


def test_only_a_folder_of_our_making_is_removed(tmp_path):
    folder = tmp_path / "a"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/mine.txt").write_text("12")
    with pytest.raises(LayoutError, match="not made by this project"):
        remove_made(folder)
    mark_made(folder)
    (folder / "deep/mine.txt").write_text("1234")
    (folder / "new.txt").write_text("")
    with pytest.raises(LayoutError, match="deep/mine.txt, new.txt"):
        remove_made(folder)
    assert (folder / "deep/mine.txt").read_text() == "1234"
    (folder / "new.txt").unlink()
    (folder / "deep/mine.txt").write_text("12")
    remove_made(folder)
    assert not folder.exists()
    remove_made(folder)  # absent is fine

    (folder / "empty").mkdir(parents=True)
    with pytest.raises(LayoutError):
        remove_made(folder)
    remove_made(folder / "empty")
    (folder / "work").mkdir()
    mark_made(folder / "work")  # marked while empty: what comes later is ours
    (folder / "work/half.bin").write_text("x")
    remove_made(folder / "work")
    assert not any(folder.iterdir())
    (folder / MARK).write_text("not json")
    with pytest.raises(LayoutError):
        remove_made(folder)
