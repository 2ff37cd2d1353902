"""Files are whole or absent, and one process at a time holds a lock."""

import errno
import json
import os
import subprocess
import sys

import pytest

from mouselift_jax.errors import LayoutError
from mouselift_jax.files import (
    MARK,
    FileLock,
    atomic_path,
    mark_made,
    remove_made,
    write_json_atomic,
)


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
