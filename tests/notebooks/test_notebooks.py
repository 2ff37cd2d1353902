"""The notebooks run from the first cell to the last."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_notebooks_are_kept_without_outputs():
    import nbformat

    assert len(BOOKS) == 2
    for path in BOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs"), f"{path.name}: clear the outputs before you commit"


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_what_notebooks_import_is_there(path):
    """Quick, beside the slow run: a module that moves takes its notebooks along."""
    import nbformat

    code = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells)
    lines = re.findall(r"^from ((?:mouselift_jax|configs)[\w.]*) import (\w+)", code, re.M)
    assert lines
    for module, name in lines:
        found = importlib.import_module(module)
        assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), (module, name)


@pytest.mark.slow
@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("MOUSELIFT_NOTEBOOK_TEST", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=500, resources={"metadata": {"path": str(ROOT)}}).execute()
