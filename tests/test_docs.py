"""What the documents say exists: tests, keys, verbs, options."""

import re
from pathlib import Path

import pytest

from mouselift_jax.cli._verbs import build_parser, verbs

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
