"""One camera's settings, read with an account of the keys: used, harmless, or unknown.

A key that a reader passes over may be the one that says that the lens is a fisheye. So every reader
takes its values out of a `Row`, and `close` refuses keys that change geometry and were not asked
for, unless their value says "nothing".
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.errors import LayoutError, nearest

# Words of keys that bear on where a ray goes.
_GEOMETRY = re.compile(
    r"^(k|p|s|d|c|b)\d+$|^(s[xy]\d|t[xy]|xi|alpha|beta|gamma|r\d|tau[xy])$|"
    r"fish|lens|model|proj|distort|skew|shear|omni|equirect|latlong|ftheta|ortho|rolling|shutter|"
    r"crop|binning|roi|rectif|undist|flip|mirror|rotat|resize|principal|focal|fov|aspect|"
    r"pixel_?size|mirror|extrins|intrins|panor|spheric|stereo|refract|tilt|convention|handed",
    re.IGNORECASE,
)


class Row:
    """The settings of one camera.

    Args:
        content: its keys and values.
        where: the file, for messages.
        camera: its name, for messages.
    """

    def __init__(self, content: Mapping[Any, Any], where: Path, camera: str) -> None:
        self.content = {str(k): v for k, v in content.items()}
        self.where, self.camera = where, camera
        self.used: list[str] = []

    def find(self, names: Iterable[str]) -> str | None:
        """The first of these keys that is there; longer names in any case of letters."""
        for name in names:
            for key in self.content:
                if key == name or (len(name) > 1 and key.lower() == name.lower()):
                    return key
        return None

    def get(self, *names: str, default: Any = None) -> Any:
        """The value of the first of these keys that is there."""
        key = self.find(names)
        if key is None:
            return default
        self.used.append(key)
        return self.content[key]

    def need(self, *names: str) -> Any:
        """As `get`; a LayoutError where none is there."""
        if self.find(names) is None:
            raise LayoutError(
                f"camera {self.camera} has no {names[0]}",
                where=self.where,
                expected=f"a key {names[0]}"
                + (f" (or {', '.join(names[1:])})" if len(names) > 1 else ""),
                found=f"keys {sorted(self.content)}; {nearest(names[0], self.content)}"[:300],
                fix="export intrinsics and extrinsics (world to camera) of every camera",
            )
        return self.get(*names)

    def close(self, harmless: Iterable[str] = ()) -> list[str]:
        """The keys that were not read; refuses those that change geometry.

        Args:
            harmless: keys that look as if they did, and do not.

        Raises:
            LayoutError: one that does, with a value that is not zero, false, empty or None.
        """
        left = [k for k in self.content if k not in self.used]
        harmless = {h.lower() for h in harmless}
        for key in left:
            value = self.content[key]
            if key.lower() in harmless or not _GEOMETRY.search(key) or _says_nothing(value):
                continue
            raise LayoutError(
                f"camera {self.camera} has a setting that changes the geometry and is not known: "
                f"{key}",
                where=self.where,
                expected=f"keys such as {', '.join(self.used)}",
                found=f"{key} = {reprlib.repr(value)}",
                fix="take it out if it changes nothing; else undistort the pictures first and give "
                "the plain calibration that belongs to them",
            )
        return left


def _says_nothing(value: Any) -> bool:
    if value is None or (isinstance(value, str) and value.lower() in ("", "none", "false", "no")):
        return True
    if isinstance(value, Mapping):
        return all(_says_nothing(v) for v in value.values())
    try:
        return not np.any(np.asarray(value, np.float64))
    except (TypeError, ValueError, OverflowError):
        return False


def keys_of(rows: Iterable[Row], left: Iterable[Iterable[str]]) -> tuple[tuple[str, ...], ...]:
    """(keys that were read, keys passed over) of all cameras, each once, in order."""
    used = dict.fromkeys(k for row in rows for k in row.used)
    return tuple(used), tuple(k for k in dict.fromkeys(k for r in left for k in r) if k not in used)
