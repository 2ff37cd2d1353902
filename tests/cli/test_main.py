import os
import pty
import re
import subprocess
import sys

import pytest

from mouselift_jax import __main__ as door
from mouselift_jax.cli._verbs import first_line, verbs
from mouselift_jax.errors import MouseLiftError


def test_every_verb_explains_itself(capsys):
    assert {"doctor", "report", "view"} <= set(verbs())
    assert door.main(["--help"]) == 0
    listing = capsys.readouterr().out
    for verb in verbs():
        assert f"  {verb}" in listing
        module = door.load(verb)
        text = module.__doc__
        assert text and len(first_line(verb)) <= 100, verb
        help_text = door.build_parser(verb).format_help()
        assert "--debug" in help_text
        if verb != "completion":
            assert f"python -m mouselift_jax {verb}" in text, f"{verb}: no example in its help"


def test_a_wrong_verb_or_no_verb_is_exit_code_2(capsys):
    assert door.main(["docter"]) == 2
    assert "did you mean 'doctor'" in capsys.readouterr().err
    assert door.main([]) == 2


def test_errors_of_users_have_no_traceback_unless_asked_for(monkeypatch, capsys, tmp_path):
    assert door.main(["report", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "LayoutError: not a run" in err and "Fix:" in err and "Traceback" not in err
    assert door.main(["report", str(tmp_path), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "raised, code", [(KeyboardInterrupt(), 130), (MouseLiftError("x"), 2), (BrokenPipeError(), 0)]
)
def test_exit_codes(monkeypatch, raised, code):
    class Verb:
        """Doc."""

        add_arguments = staticmethod(lambda parser: None)

        @staticmethod
        def run(args):
            raise raised

    monkeypatch.setattr(door, "load", lambda verb: Verb)
    monkeypatch.setattr(os, "dup2", lambda *a: None)
    assert door.main(["doctor"]) == code


def test_bugs_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(door, "load", lambda verb: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        door.main(["doctor"])


def in_terminal(arguments, **environment):
    """Output of the command when it believes to write to a terminal."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mouselift_jax", *arguments],
        stdout=child,
        stderr=child,
        env={**os.environ, **environment},
    )
    os.close(child)
    text = b""
    while True:
        try:
            data = os.read(parent, 4096)
        except OSError:
            break
        if not data:
            break
        text += data
    process.wait()
    os.close(parent)
    return text.decode()


def test_colours_only_on_a_terminal():
    assert "\033[1;31m" in in_terminal(["nonsense"], NO_COLOR="")
    assert "\033[" not in in_terminal(["nonsense"], NO_COLOR="1")
    piped = subprocess.run(
        [sys.executable, "-m", "mouselift_jax", "nonsense"], capture_output=True, text=True
    )
    assert piped.returncode == 2 and "\033[" not in piped.stderr


def test_completion_is_a_script_that_bash_accepts(capsys):
    assert door.main(["completion"]) == 0
    script = capsys.readouterr().out
    test = script + "\nCOMP_WORDS=(python -m mouselift_jax doc); COMP_CWORD=3\n_mouselift_python\n"
    run = subprocess.run(
        ["bash", "-c", test + 'echo "${COMPREPLY[@]}"'], capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stdout.split() == ["doctor"], run.stderr


def test_the_package_and_its_help_load_quickly():
    """Nothing heavy is imported before a verb needs it."""
    code = (
        "import sys, mouselift_jax.__main__ as d; d.main(['--help']);"
        "print('HEAVY', [m for m in ('jax','torch','cv2','diffusers','transformers','matplotlib')"
        " if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.search(r"HEAVY \[\]", out.stdout), out.stdout[-500:] + out.stderr


def test_what_check_says_next_can_be_pasted(tmp_path, monkeypatch, capsys):
    from tests.sample_sets import write_samples

    monkeypatch.chdir(tmp_path)
    write_samples(tmp_path / "my set", n=2, n_val=1, size=64)
    (tmp_path / "launch.py").touch()  # as in a clone; without one it says where there is one
    assert door.main(["check", "my set"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("next: ") and "--config.samples='my set' " in last


def test_a_place_that_cannot_be_written_is_one_error(tmp_path, capsys):
    """Root may write everywhere, so a file stands where a folder is wanted."""
    from tests.sample_sets import write_samples

    samples = write_samples(tmp_path / "set", n=2, n_val=1, size=64)
    (tmp_path / "file").write_text("")
    assert door.main(["check", str(samples), "--out", str(tmp_path / "file" / "out")]) == 2
    said = capsys.readouterr().err
    assert "cannot be written" in said and str(tmp_path / "file") in said
    with pytest.raises(FileNotFoundError):  # a bug keeps its traceback
        door.main(["check", str(samples), "--out", "/proc/out"])


@pytest.mark.parametrize(
    "name, content",
    [
        ("summary.json", b"\xff\xfe"),
        ("metrics.jsonl", b'{"step": "a"}\n{"step": 1}\n'),
        ("metrics.jsonl", b"\xff\xfe\n{}\n"),
        ("report/sections.json", b'{"sections": [{"title": "a", "blocks": [{"kind": "Nope"}]}]}'),
    ],
)
def test_damaged_files_of_a_run_are_one_error(tmp_path, capsys, name, content):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "report").mkdir()
    (tmp_path / name).write_bytes(content)
    assert door.main(["report", str(tmp_path)]) == 2
    assert name.rsplit("/")[-1] in capsys.readouterr().err
