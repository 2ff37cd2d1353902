"""What the documents say exists: tests, keys, verbs, options."""

import ast
import re
import runpy
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from mouselift_jax.__main__ import main
from mouselift_jax.cli import view
from mouselift_jax.cli._verbs import build_parser, verbs
from mouselift_jax.data.synthetic.recording import write_recording
from mouselift_jax.runs.record import flatten
from mouselift_jax.stages.harness import command

ROOT = Path(__file__).resolve().parents[1]
DOCS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "SECURITY.md"]


def porting_rows() -> list[tuple[str, str, str, str]]:
    """(what, module or "", test file, test) of every row; "same" means the row above."""
    text = (ROOT / "docs" / "porting_notes.md").read_text()
    rows, above = [], ["", ""]
    for line in re.findall(r"^\| (.*) \|$", text, re.M):
        cells = [c.strip() for c in line.split("|")]
        if cells[0] in ("quirk", "theirs"):
            has_module = cells[1] == "where"
            continue
        where, test = cells[1] if has_module else "", cells[-1]
        where, test = (a if c == "same" else c for a, c in zip(above, (where, test), strict=True))
        above = [where, test]
        named = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", test)
        assert named, f"{cells[0]}: names no test: {test}"
        rows.append((cells[0], where.strip("`"), *named.groups()))
    return rows


@pytest.mark.parametrize("row", porting_rows(), ids=lambda row: row[3])
def test_every_line_of_the_porting_notes_has_a_test_of_its_module(row):
    what, module, file, test = row
    text = (ROOT / file).read_text()
    assert re.search(rf"^ *def {test}\(", text, re.M), f"{what}: no {test} in {file}"
    if module:
        assert (ROOT / module).is_file(), module
        package, _, name = module.removesuffix(".py").replace("/", ".").rpartition(".")
        used = rf"{package}\.{name}\b|from {package} import [^\n]*\b{name}\b"
        assert re.search(used, text), f"{file} does not use {module}"


def test_every_quirk_of_the_code_is_in_the_porting_notes():
    assert len(porting_rows()) > 25
    known = {module for _, module, _, _ in porting_rows()}
    code = (ROOT / "mouselift_jax").rglob("*.py")
    marked = {str(p.relative_to(ROOT)) for p in code if re.search(r"\bQUIRK\b", p.read_text())}
    assert marked and marked <= known


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_verbs_and_options_in_documents_exist(path):
    text = path.read_text().replace("\\\n", " ")
    for verb, rest in re.findall(r"python -m mouselift_jax (\w+)([^\n`]*)", text):
        assert verb in verbs(), f"{path.name}: {verb}"
        known = build_parser(verb).format_help()
        for option in re.findall(r"(--[a-z][\w-]*)", rest.split("#")[0]):
            assert option in known, f"{path.name}: {verb} {option}"


# --- the commands themselves ----------------------------------------------------------------------

# What makes each stage small. Nothing else of a command is changed: variants and folders are those
# that the documents print, but for published weights, in whose place lies the toy run's network.
SHRUNK = {
    "prepare": {
        "prepare.size": 64, "prepare.min_mask_px": 20.0, "prepare.n_samples": 12,
        "split.gap_s": 0.05,
    },
    "fit": {
        "fit.cells": 16, "fit.coarse_steps": 2, "fit.fine_steps": 2, "fit.nodes": 16,
        "fit.next_coarse_steps": 2, "fit.next_fine_steps": 2, "limit": 2,
    },
    "gslrm": {
        "data.size": 32, "model.animal_share": 0.8, "train.steps": 2, "eval_samples": 1,
        "train.log_every": 1, "train.batch_size": 2,
    },
    "infer": {"limit": 2, "turntable.frames": 2, "turntable.size": 32},
    "eval": {"limit": 1, "methods": "gslrm,hull,nearest"},
}  # fmt: skip
# Not run: they install, or need programs and networks from elsewhere.
ELSEWHERE = ("make ", ". .venv/bin/activate", "npx ", "git ", "pip ")


def commands_of(name: str) -> list[str]:
    """The lines of a document's code blocks that start a program, joined and without remarks."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / name).read_text(), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines = [line.split("  #")[0].strip() for line in lines]
    return [line for line in lines if line and not line.startswith(ELSEWHERE)]


class Terminal:
    """Runs commands as they are printed, in this process: one start of JAX serves all of them."""

    def __init__(self, monkeypatch, capfd):
        self.monkeypatch, self.capfd, self.followed = monkeypatch, capfd, []

    def run(self, line: str, *, shrink: bool) -> str:
        """What a command says; it must end well."""
        words = shlex.split(line)
        assert words[0] == "python", line
        code = self._verb(words[3:]) if words[1] == "-m" else self._stage(words[2:], shrink)
        out, err = self.capfd.readouterr()
        assert code == 0, f"{line}\n{out}\n{err[-3000:]}"
        return out + err

    def _verb(self, words: list[str]) -> int:
        if words[0] != "view" or "--export-html" in words:
            return main(words)

        def stop():
            raise KeyboardInterrupt  # a person has seen enough

        with self.monkeypatch.context() as patch:
            event = SimpleNamespace(wait=stop)
            patch.setattr(view, "threading", SimpleNamespace(Event=lambda: event))
            return main([*words, "--port", "0"])

    def _stage(self, words: list[str], shrink: bool) -> int:
        given = dict(w.removeprefix("--").split("=", 1) for w in words)
        file, _, variant = given.pop("config").partition(":")
        config = runpy.run_path(file)["get_config"](variant or "base")
        if file.endswith("gslrm.py") and shrink and not variant:
            config = runpy.run_path(file)["get_config"]("tiny")  # base needs published weights
        workdir, changes = given.pop("workdir"), {}
        for key, value in given.items():
            key = key.removeprefix("config.")
            known = flatten(config.to_dict())[key]
            changes[key] = value if isinstance(known, str | None) else ast.literal_eval(value)
            if isinstance(known, tuple) and not isinstance(changes[key], tuple):
                changes[key] = (changes[key],)  # as the flags' parser does
        if shrink:
            changes |= SHRUNK[config.stage]
        config.update_from_flattened_dict(changes)
        plan = None if shrink else "quick"
        return command.run(config, workdir, command.Options(progress="plain", plan=plan))

    def follow(self, said: str) -> None:
        """Run what a command says comes next, each once: stages as plans, verbs themselves."""
        for line in re.findall(r"^next: +(python .*)$", said, re.M):
            if line not in self.followed:
                self.followed.append(line)
                self.run(line, shrink=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_commands_of_readme_and_quickstart_run_in_order(tmp_path, monkeypatch, capfd):
    """As printed, on a recording that is not in the repository; and every `next:` they print."""
    for name in ("configs", "launch.py", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    write_recording("my_mouse", frames=60, size=(288, 256), seed=7, n_heldout=0)
    for document in ("README.md", "docs/quickstart.md"):
        terminal = Terminal(monkeypatch, capfd)
        lines = commands_of(document)
        assert len(lines) > 4
        for line in lines:
            if "init_from=checkpoints/gslrm" in line and not Path("checkpoints").exists():
                shutil.copytree("runs/gslrm", "checkpoints/gslrm")
            terminal.follow(terminal.run(line, shrink=True))
        assert any("configs/fit.py" in line for line in terminal.followed)
        if document == "README.md":
            shutil.rmtree("runs")  # the quick start begins anew
    assert any("configs/eval.py" in line for line in terminal.followed)
