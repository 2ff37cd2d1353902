"""What a run wrote down of itself, read back: summary, versions, the command that made it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mouselift_jax import __version__
from mouselift_jax.errors import LayoutError

VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON would give it back: dicts, lists, numbers, strings."""
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    return json.loads(json.dumps(config, default=str))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as {"a.b": value}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file that a run wrote, None when there is no such file.

    Raises:
        LayoutError: the file holds no JSON, or something else than an object.
    """
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:  # not JSON, or not even text
        raise LayoutError(
            "not a JSON file", where=path, found=str(error), fix="remove it and run again"
        ) from error
    if not isinstance(value, dict):
        raise LayoutError(
            "the JSON in this file is no object", where=path, expected="{...}",
            found=str(value)[:80], fix="remove it and run again",
        )  # fmt: skip
    return value


def read_summary(path: str | os.PathLike) -> dict[str, Any]:
    """summary.json of a run's folder, {} when it has none."""
    return read_json(Path(path) / "summary.json") or {}


def is_whole(path: str | os.PathLike) -> bool:
    """Whether a run has finished and everything that it made is still there."""
    summary = read_summary(path)
    made = summary.get("artefacts", {}).values()
    return bool(summary.get("finished")) and all((Path(path) / name).exists() for name in made)


def versions() -> dict[str, str]:
    """Versions of what decides the numbers of a run."""
    found = {"python": platform.python_version(), "mouselift_jax": __version__}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command_line() -> str:
    """The command of this process, to paste again."""
    return shlex.join(["python", *sys.argv])


def each_key_once(command: str) -> str:
    """The command with every flag once: what was added to it takes the place of what it had."""
    words = shlex.split(command)
    last = {word.split("=")[0]: word for word in words if word.startswith("--")}
    kept = []
    for word in words:
        if word.startswith("--"):
            word = last.pop(word.split("=")[0], None)
        kept += [word] if word is not None else []
    return shlex.join(kept)


def in_own_keys(text: str, folder: Path) -> str:
    """A suggested command whose keys and folder are a stage's, in those of this process's command.

    The demo runs stages in folders of their names, and its keys begin with these names.
    """
    if "configs/demo.py" not in command_line():
        return text
    text = text.replace("--config.train.", f"--config.{folder.name}.train.")
    text = text.replace("--config.model.", f"--config.{folder.name}.model.")
    return text.replace(f"--workdir={folder}_", f"--workdir={folder.parent}_")
