"""Checks on the settings that torch checkpoints carry beside their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mouselift_jax.errors import ConfigError, nearest, raise_all

OTHER_MODEL = "this is a checkpoint of another model"
OWN_CONFIG = "take config.json from the folder that the weights came in"


def require(
    source: Mapping[str, Any],
    fixed: Mapping[str, Any],
    where: str,
    needed: Sequence[str] = (),
    known: Sequence[str] | None = None,
    said: Sequence[str] = (),
) -> None:
    """Check that a config asks only for what is implemented.

    Args:
        source: the config file's content.
        fixed: keys that must have this value where they are present (absent = that default).
        where: the file's name, for the message.
        needed: keys that must be there.
        known: the other keys that are read or change nothing. When given, any further key with a
            value other than null, false or empty is refused: it may ask for another network.
        said: keys of `fixed` that must be there with their value, because what absent or null
            means to the library that wrote the file is another network.

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
        found = source.get(key, None if key in said else value)
        if (found is not None or key in said) and found != value:
            problems.append(
                ConfigError(
                    "A setting is not implemented",
                    where=f"{where}: {key}",
                    expected=value,
                    found=found if key in source else "nothing, which stands for another network",
                    fix=OTHER_MODEL,
                )
            )
    if known is not None:
        problems += _strangers(source, {*fixed, *needed, *known}, where)
    raise_all("The checkpoint's settings do not fit", problems)


def _strangers(source: Mapping[str, Any], known: set[str], where: str) -> list[ConfigError]:
    return [
        ConfigError(
            "A setting is not known",
            where=f"{where}: {key}",
            found=value,
            fix="if it changes nothing in how the network computes, take it out of a copy of the "
            "file; else this is a checkpoint of another model",
        )
        for key, value in source.items()
        if value and key not in known and not key.startswith("_")
    ]


def integer(source: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    """A whole number above zero; null counts as absent.

    Raises:
        ConfigError: something else, or absent without a default.
    """
    value = source.get(key)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise ConfigError(
            "A setting is not a whole number above zero",
            where=f"{where}: {key}",
            found=repr(value),
            fix=OWN_CONFIG,
        )
    return value


def number(source: Mapping[str, Any], key: str, where: str, default: float) -> float:
    """A number above zero; null counts as absent.

    Raises:
        ConfigError: something else.
    """
    value = source.get(key)
    value = default if value is None else value
    if type(value) not in (int, float) or not value > 0:
        raise ConfigError(
            "A setting is not a number above zero",
            where=f"{where}: {key}",
            found=repr(value),
            fix=OWN_CONFIG,
        )
    return float(value)


def integers(source: Mapping[str, Any], key: str, where: str, length: int | None = None) -> list:
    """A list of whole numbers above zero; where `length` is given, one number stands for all.

    Raises:
        ConfigError: something else, or another length.
    """
    value = source.get(key)
    if length is not None and not isinstance(value, list):
        value = [value] * length
    if not isinstance(value, list) or len(value) != (length or len(value)) or not value:
        raise ConfigError(
            "A setting is not a list of whole numbers above zero",
            where=f"{where}: {key}",
            expected=f"{length} of them" if length else "at least one",
            found=repr(value),
            fix=OWN_CONFIG,
        )
    return [integer({key: n}, key, where) for n in value]


def check_divides(divisors: Sequence[int], sizes: Sequence[int], where: str) -> None:
    """Refuse numbers of heads or groups that do not divide the channels they share out.

    Raises:
        ConfigError: one does not.
    """
    if any(size % divisor for divisor, size in zip(divisors, sizes, strict=True)):
        raise ConfigError(
            "A number of heads or groups does not divide the channels",
            where=where,
            expected=f"divisors of {list(sizes)}",
            found=list(divisors),
            fix=OWN_CONFIG,
        )
