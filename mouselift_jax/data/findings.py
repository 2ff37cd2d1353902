"""What a look at a folder can turn up: one `Finding` per problem, with its cause and its cure.

Readers and checks collect findings instead of raising, so that everything wrong is told at once;
`raise_errors` turns the errors among them into the one exception the user sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from mouselift_jax.errors import CalibrationError, LayoutError, MouseLiftError, raise_all

SEVERITIES = ("error", "warning", "info")
CALIBRATION_CODES = frozenset(
    {
        "handedness",
        "rotation_invalid",
        "rotation_transposed",
        "translation_units",
        "intrinsics",
        "calibration_off",
    }
)


@dataclasses.dataclass
class Finding:
    """One problem (or remark) about a recording or a sample set.

    Attributes:
        code: stable machine-readable name, e.g. `cameras_swapped`.
        severity: `error` (unusable as it is), `warning` or `info`.
        message: one sentence for people.
        cameras: camera numbers concerned, in the recording's own numbering.
        fix: what to do about it.
        evidence: numbers behind it, JSON-able.
        consequences: findings that would vanish with this one.
    """

    code: str
    severity: str
    message: str
    cameras: tuple[int, ...] = ()
    fix: str = ""
    evidence: dict[str, Any] = dataclasses.field(default_factory=dict)
    consequences: list[Finding] = dataclasses.field(default_factory=list)
    where: str = ""

    @classmethod
    def of(cls, code: str, error: MouseLiftError, cameras: tuple[int, ...] = ()) -> Finding:
        """The finding that an error of a reader is."""
        evidence = {"expected": error.expected, "found": error.found}
        evidence = {k: str(v) for k, v in evidence.items() if v is not None}
        where = "" if error.where is None else str(error.where)
        return cls(code, "error", error.what, cameras, error.fix or "", evidence, where=where)

    def to_json(self) -> dict[str, Any]:
        """The finding as plain JSON types."""
        row = dataclasses.asdict(self)
        row["cameras"] = [int(c) for c in self.cameras]
        row["consequences"] = [f.to_json() for f in self.consequences]
        return row

    def text(self) -> str:
        """The finding on one line, with its fix."""
        place = f"  ({self.where})" if self.where else ""
        return f"{self.message}{place}" + (f"; {self.fix}" if self.fix else "")

    def error(self) -> MouseLiftError:
        """The finding as an exception of the project's family."""
        kind = CalibrationError if self.code in CALIBRATION_CODES else LayoutError
        return kind(
            self.message,
            where=self.where or None,
            expected=self.evidence.get("expected"),
            found=self.evidence.get("found"),
            fix=self.fix or None,
        )


def raise_errors(what: str, findings: Iterable[Finding]) -> None:
    """Raise all findings of severity `error` as one exception; nothing if there are none."""
    raise_all(what, [f.error() for f in findings if f.severity == "error"])
