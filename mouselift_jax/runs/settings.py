"""A section of a configuration as a dataclass: what stands below a stage never sees a ConfigDict.

A stage turns its sections into dataclasses in its first lines. The dataclass says which keys there
are and what type each has; a key that it does not know, or lacks, is an error with its name.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Self

from mouselift_jax.errors import ConfigError, nearest


class Settings:
    """What settings' dataclasses inherit: `MySettings.of(config.section)`."""

    @classmethod
    def of(cls, section: Any, where: str = "config") -> Self:
        """See `typed`."""
        return typed(cls, section, where)


def typed(cls: Any, section: Any, where: str = "config") -> Any:
    """A dataclass of a section; sections in it become the dataclasses that its fields name.

    Args:
        cls: the dataclass.
        section: a ConfigDict or mapping; an object of `cls` is given back as it is.
        where: the section's name, for errors.

    Raises:
        ConfigError: a key that the dataclass does not have, or one without default is missing.
    """
    if isinstance(section, cls):
        return section
    fields = {f.name: f for f in dataclasses.fields(cls)}
    types = typing.get_type_hints(cls)
    values = section.to_dict() if hasattr(section, "to_dict") else dict(section)
    for key in values:
        if key not in fields:
            fix = nearest(key, fields)
            raise ConfigError(f"no such key of {cls.__name__}", where=f"{where}.{key}", fix=fix)
    for name, field in fields.items():
        default = field.default, field.default_factory
        if name not in values and default == (dataclasses.MISSING, dataclasses.MISSING):
            fix = "a config file gives every key of the section"
            raise ConfigError(f"{cls.__name__} lacks a key", where=f"{where}.{name}", fix=fix)
    return cls(
        **{
            key: typed(types[key], value, f"{where}.{key}")
            if isinstance(value, Mapping) and dataclasses.is_dataclass(types[key])
            else value
            for key, value in values.items()
        }
    )
