"""The keys of a config with their values and what its file says of them, for `--help`.

A key is explained once, by the comment beside its value in configs/. Read from the source as it
stands: nothing is imported that the config itself does not import.
"""

from __future__ import annotations

import ast
import inspect
import io
import runpy
import textwrap
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mouselift_jax.runs.record import flatten

COLUMN = 44  # where the explanations begin


def describe(path: str | Path, variant: str | None = None) -> str:
    """What a config file does and every key of one of its variants.

    Args:
        path: the file; its `get_config(variant)` makes the config.
        variant: None = base.
    """
    file = runpy.run_path(str(path))
    make = file["get_config"]
    config = make(variant) if variant else make()
    said = explained(make)
    title = f"Keys, with the values of the variant {config.variant}:"
    lines = [(file["__doc__"] or "").strip(), "", title]
    for key, value in flatten(config.to_dict()).items():
        if key.rpartition(".")[2] in ("stage", "variant"):
            continue
        name, text, blank = f"  --config.{key}={_shown(value)}", said.get(key, ""), " " * COLUMN
        if len(name) >= COLUMN or not text:
            lines.append(name)
            name = ""
        lines += textwrap.wrap(
            text, 100, initial_indent=f"{name:<{COLUMN}}", subsequent_indent=blank
        )
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return f'"{tuple(value)}"'
    return str(value)


def explained(make: Callable) -> dict[str, str]:
    """Comments beside the assignments of a function that makes a config, by key.

    Sections that other functions make are followed; a comment stands behind the value or, where it
    is longer than a line, above it.
    """
    source = textwrap.dedent(inspect.getsource(make))
    beside, above = _comments(source)
    sections: dict[str, str] = {}  # variable -> the section it is, "" or "train."
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):  # statements of one block come in their order
        if not isinstance(node, ast.Assign):
            continue
        targets = [t for group in node.targets for t in getattr(group, "elts", [group])]
        places = [place for t in targets if (place := _place(t, sections))]
        section = f"{places[0]}." if places else ""
        sections |= {t.id: section for t in targets if isinstance(t, ast.Name)}
        if (called := _called(node.value, make)) is not None:
            found |= {section + key: text for key, text in explained(called).items()}
        lines = [beside[n] for n in range(node.lineno, node.end_lineno + 1) if n in beside]
        before = node.lineno - 1
        while not beside.keys() & {node.end_lineno} and before in above:
            lines.insert(0, above[before])
            before -= 1
        if lines:
            found |= dict.fromkeys(places, " ".join(lines))
    return found


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments behind code and comments that are a line of their own, by line."""
    beside, above = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ")
            alone = not token.line[: token.start[1]].strip()
            heading = alone and text.startswith("---")
            if not heading and not text.startswith(("fmt:", "noqa")):
                (above if alone else beside)[token.start[0]] = text
    return beside, above


def _place(target: ast.expr, sections: dict[str, str]) -> str:
    """The key that `c.a.b` is, "" where it is no key."""
    names: list[str] = []
    while isinstance(target, ast.Attribute):
        names.insert(0, target.attr)
        target = target.value
    if not names or not isinstance(target, ast.Name):
        return ""
    return sections.get(target.id, "") + ".".join(names)


def _called(value: ast.expr, make: Callable) -> Callable | None:
    """The function of the configs whose result is assigned, None where it is another."""
    if not isinstance(value, ast.Call):
        return None
    known, function = make.__globals__, value.func
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        called = getattr(known.get(function.value.id), function.attr, None)
    else:
        called = known.get(getattr(function, "id", ""))
    return called if inspect.isfunction(called) and _folder(called) == _folder(make) else None


def _folder(function: Callable) -> Path:
    return Path(function.__code__.co_filename).resolve().parent
