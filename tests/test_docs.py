"""What the documents say exists: tests, keys, verbs, options."""

import re
from pathlib import Path

import pytest

from mouselift_jax.__main__ import build_parser, verbs

ROOT = Path(__file__).resolve().parents[1]
DOCS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "SECURITY.md"]


def test_every_test_named_in_the_porting_notes_exists():
    text = (ROOT / "docs" / "porting_notes.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 20
    absent = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / file).is_file()
        or (test and not re.search(rf"def {test}\(", (ROOT / file).read_text()))
    ]
    assert not absent


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_verbs_and_options_in_documents_exist(path):
    text = path.read_text().replace("\\\n", " ")
    for verb, rest in re.findall(r"python -m mouselift_jax (\w+)([^\n`]*)", text):
        assert verb in verbs(), f"{path.name}: {verb}"
        known = build_parser(verb).format_help()
        for option in re.findall(r"(--[a-z][\w-]*)", rest.split("#")[0]):
            assert option in known, f"{path.name}: {verb} {option}"
