"""Which kind of device programs are made for: what is here, or one that is only planned for.

Backends of attention and rasterizer are chosen while a program is traced. `--plan --gpu=CARD`
compiles for a GPU that is not there, so the choice asks here instead of asking JAX.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_absent: contextvars.ContextVar[str | None] = contextvars.ContextVar("absent", default=None)


def platform() -> str:
    """The kind of device that programs are made for: "cpu", "gpu" or "tpu"."""
    return _absent.get() or jax.default_backend()


def is_absent() -> bool:
    """Whether that device is only planned for, and nothing can be tried on it."""
    return _absent.get() is not None


@contextlib.contextmanager
def absent(platform: str) -> Iterator[None]:
    """Programs traced inside are for a device that is not here.

    What was traced before stays as it was: for processes that do nothing else.
    """
    token = _absent.set(platform)
    try:
        yield
    finally:
        _absent.reset(token)
