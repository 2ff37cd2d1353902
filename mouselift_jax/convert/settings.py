"""Checks on the settings that torch checkpoints carry beside their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mouselift_jax.errors import ConfigError, nearest, raise_all


def require(
    source: Mapping[str, Any],
    fixed: Mapping[str, Any],
    where: str,
    needed: Sequence[str] = (),
) -> None:
    """Check that a config asks only for what is implemented.

    Args:
        source: the config file's content.
        fixed: keys that must have this value where they are present (absent = that default).
        where: the file's name, for the message.
        needed: keys that must be there.

    Raises:
        ConfigError: all deviations together.
    """
    problems = []
    for key in needed:
        if key not in source:
            problems.append(
                ConfigError(
                    "A setting is missing", where=f"{where}: {key}", fix=nearest(key, source)
                )
            )
    for key, value in fixed.items():
        found = source.get(key, value)
        if found is not None and found != value:
            problems.append(
                ConfigError(
                    "A setting is not implemented",
                    where=f"{where}: {key}",
                    expected=value,
                    found=found,
                    fix="this is a checkpoint of another model",
                )
            )
    raise_all("The checkpoint's settings do not fit", problems)
