"""What a format is: what it recognises, where its files come from, and its reader.

A file that two formats recognise is an error with both names. `check --list-formats` and the tables
of docs/data_format.md are made from lists of these (calibrations.py, keypoints.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from mouselift_jax.data.readers.text import load_json, load_storage_xml, load_toml, load_yaml
from mouselift_jax.errors import LayoutError

YAML = (".yml", ".yaml", ".xml")
Result = TypeVar("Result")


class Source:
    """A file or folder whose content is opened once, when a format first asks.

    Args:
        path: the file or folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.suffix = "" if path.is_dir() else path.suffix.lower()
        self.problems: list[LayoutError] = []

    @cached_property
    def json(self) -> Any:
        """Content of a JSON file; None of any other."""
        return load_json(self.path) if self.suffix == ".json" else None

    @cached_property
    def toml(self) -> dict[str, Any]:
        """Content of a TOML file; empty of any other."""
        return load_toml(self.path) if self.suffix == ".toml" else {}

    @cached_property
    def mat(self) -> dict[Path, dict[str, Any]]:
        """Variables of a MATLAB file, or of each in a folder."""
        from mouselift_jax.data.readers.matlab import load_mat

        return self._each((".mat",), load_mat)

    @cached_property
    def yaml(self) -> dict[Path, dict[str, Any]]:
        """Top level of a YAML (or OpenCV XML) file, or of each in a folder."""
        return self._each(YAML, _load_yaml)

    def _each(self, suffixes: Sequence[str], load: Callable[[Path], Any]) -> dict[Path, Any]:
        if self.suffix:
            return {self.path: load(self.path)} if self.suffix in suffixes else {}
        out = {}
        for file in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            if file.is_file() and file.suffix.lower() in suffixes:
                try:
                    out[file] = load(file)
                except LayoutError as error:  # told if no other file is a calibration
                    self.problems.append(error)
        return out


def _load_yaml(path: Path) -> dict[str, Any]:
    return load_storage_xml(path) if path.suffix.lower() == ".xml" else load_yaml(path)


@dataclasses.dataclass(frozen=True)
class Format(Generic[Result]):
    """One format.

    Attributes:
        name: short, unique.
        tool: whose format it is.
        files: names its files usually have.
        note: one line: what is particular.
        claims: whether a source is in this format, from its name and content.
        read: reads it.
    """

    name: str
    tool: str
    files: str
    note: str
    claims: Callable[[Source], bool]
    read: Callable[[Source], Result]


def choose(formats: Iterable[Format[Result]], source: Source) -> Format[Result] | None:
    """The one format that recognises a source; None if none does.

    Raises:
        LayoutError: two do; or the file cannot be opened.
    """
    found = [f for f in formats if f.claims(source)]
    if len(found) > 1:
        raise LayoutError(
            "the file can be read in two ways",
            where=source.path,
            found=" and ".join(f"{f.name} ({f.tool})" for f in found),
            fix="leave only the files of one of them in the folder",
        )
    return found[0] if found else None


def table(formats: Iterable[Format[Any]]) -> str:
    """The formats as a table of Markdown."""
    rows = [f"| {f.name} | {f.files} | {f.tool} | {f.note} |" for f in formats]
    return "\n".join(["| format | file | from | notes |", "|---|---|---|---|", *rows])


def lines(formats: Iterable[Format[Any]]) -> str:
    """The formats as lines of text."""
    formats = list(formats)
    width = max(len(f.name) for f in formats)
    texts = (f"  {f.name:<{width}}  {f.files}\n{'':{width + 4}}{f.tool}: {f.note}" for f in formats)
    return "\n".join(text.replace("`", "") for text in texts)
