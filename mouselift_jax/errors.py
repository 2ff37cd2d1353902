"""The errors a user can cause and how one is told.

Every message says what failed, where, what was expected, what was found, and how to fix it.
`launch.py` and the command line print a `MouseLiftError` without a traceback and exit with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class MouseLiftError(Exception):
    """Something the user can fix.

    Args:
        what: what failed, one line.
        where: file, key or argument it concerns.
        expected: what would have been right.
        found: what was there instead.
        fix: what to do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.fix = what, where, fix
        self.expected, self.found = expected, found
        lines = [what if where is None else f"{what}  ({where})"]
        if expected is not None:
            lines.append(f"  expected: {expected}")
        if found is not None:
            lines.append(f"  found:    {found}")
        if fix is not None:
            lines.append(f"  Fix: {fix}")
        super().__init__("\n".join(lines))


class ConfigError(MouseLiftError):
    """A configuration key, value or combination is wrong."""


class LayoutError(MouseLiftError):
    """A folder or file does not have the form it must have."""


class CalibrationError(MouseLiftError):
    """A camera is impossible or contradicts its pictures."""


class CheckpointError(MouseLiftError):
    """Weights or training state are missing, damaged or of another kind."""


class ShapeError(MouseLiftError):
    """An array has the wrong shape or dtype."""


class BackendError(MouseLiftError):
    """A requested implementation cannot run on this machine."""


class MissingExtraError(MouseLiftError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the optional package {package!r}",
            fix=f"pip install -e '.[{extra}]' in the project's folder  (or: pip install {package})",
        )


class TrainingError(MouseLiftError):
    """A run cannot go on (loss not finite, bad data above the limit...)."""


class ProblemList(MouseLiftError):
    """Several problems of one folder or config, reported together."""

    def __init__(
        self, what: str, problems: Sequence[MouseLiftError], *, fix: str | None = None
    ) -> None:
        self.problems = list(problems)
        body = "\n".join("- " + str(p).replace("\n", "\n  ") for p in self.problems)
        super().__init__(f"{what}: {len(self.problems)} problem(s)\n{body}", fix=fix)


def raise_all(what: str, problems: Sequence[MouseLiftError]) -> None:
    """Raise nothing, the one problem, or all of them as one error."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ProblemList(what, problems)


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """A sentence fragment that suggests the known names nearest to `name`."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"known: {shown}"


def one_of(
    value: Any,
    known: Iterable[Any],
    what: str,
    *,
    where: object = None,
    error: type[MouseLiftError] = ConfigError,
) -> None:
    """Raise where a value is none of the known ones; the nearest is suggested.

    Args:
        value: as the user gave it.
        known: what it may be.
        what: the error's first line, "no such unit".
        where: file, key or argument it concerns.
        error: the kind of error.
    """
    known = tuple(known)
    if value not in known:
        expected = " | ".join(str(k) for k in known if k != "") if len(known) <= 12 else None
        raise error(
            what, where=where, expected=expected, found=value, fix=nearest(str(value), known)
        )
