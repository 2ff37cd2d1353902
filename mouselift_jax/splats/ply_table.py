"""The PLY container as far as splats need it: one table of numbers, and comments.

Own code, because no library fits: plyfile is under the GPL; trimesh and meshio (MIT) neither write
nor keep comments, where the axes and the unit stand; gsply (MIT) wants a compiler of its own. A
table of scalars is a header and one block of numbers. Lists (faces) may follow it and are ignored.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from mouselift_jax.errors import LayoutError
from mouselift_jax.files import atomic_path

_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2",
    "int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8",
}  # fmt: skip
_LONGEST_LINE = 4096  # bytes, of a header


class _Header(NamedTuple):
    order: str  # "<" or ">", empty for text
    elements: dict[str, tuple[int, list[tuple[str, str]]]]  # name -> rows, [(property, type)]
    comments: list[str]


def write_table(path: str | Path, columns: dict[str, np.ndarray], comments: list[str]) -> None:
    """Write columns [N] as float32 properties of `vertex`, little-endian, whole or not at all."""
    vertex = np.rec.fromarrays(list(columns.values()), [(name, "<f4") for name in columns])
    lines = ["ply", "format binary_little_endian 1.0", *(f"comment {line}" for line in comments)]
    lines += [f"element vertex {len(vertex)}", *(f"property float {name}" for name in columns)]
    with atomic_path(path) as part, part.open("wb") as file:
        file.write("\n".join([*lines, "end_header", ""]).encode("ascii"))
        vertex.tofile(file)


def read_table(path: str | Path) -> tuple[np.ndarray, list[str]]:
    """The table of `vertex` as a record array [N], and the comments of the header.

    Raises:
        LayoutError: no such file, no PLY, truncated, or a list stands where numbers should.
    """
    if not Path(path).is_file():
        raise LayoutError("no such PLY file", where=str(path), fix="check the path")
    try:
        with open(path, "rb") as file:
            header = _read_header(file)
            read = _read_binary if header.order else _read_text
            return read(file, header), header.comments
    except ValueError as error:
        raise LayoutError(
            "the PLY cannot be read",
            where=str(path),
            found=str(error),
            fix="the file is truncated or is no PLY: copy or export it again",
        ) from error


def _read_header(file: BinaryIO) -> _Header:
    if file.readline(_LONGEST_LINE).strip() != b"ply":
        raise ValueError("the first line is not 'ply'")
    order, elements, comments = None, {}, []
    while raw := file.readline(_LONGEST_LINE):
        line = raw.decode("utf-8", "replace").strip()
        match line.split():
            case ["end_header"]:
                if order is None or "vertex" not in elements:
                    raise ValueError("the header names no format or no vertices")
                return _Header(order, elements, comments)
            case ["format", name, "1.0"] if name in _FORMATS:
                order = _FORMATS[name]
            case ["comment", *_]:
                comments.append(line.removeprefix("comment").strip())
            case ["element", name, rows] if rows.isdecimal():
                elements[name] = (int(rows), [])
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[next(reversed(elements))][1].append((name, _TYPES[kind]))
            case ["property", "list", _, _, name] if elements:
                elements[next(reversed(elements))][1].append((name, "list"))
            case ["obj_info", *_] | []:
                pass
            case _:
                raise ValueError(f"this line of the header means nothing: {line[:80]!r}")
    raise ValueError("the header has no end")


def _dtype(header: _Header, name: str) -> np.dtype:
    properties = header.elements[name][1]
    if "list" in (kind for _, kind in properties):
        raise ValueError(f"element {name!r} holds lists, where the splats should be")
    return np.dtype([(field, header.order + kind) for field, kind in properties])


def _read_binary(file: BinaryIO, header: _Header) -> np.ndarray:
    before = itertools.takewhile(lambda name: name != "vertex", header.elements)
    start = file.tell() + sum(header.elements[n][0] * _dtype(header, n).itemsize for n in before)
    dtype, rows = _dtype(header, "vertex"), header.elements["vertex"][0]
    there = os.fstat(file.fileno()).st_size
    if start + rows * dtype.itemsize > there:  # before memory is asked for
        raise ValueError(f"{rows} vertices end after the file's {there} bytes")
    file.seek(start)
    return np.fromfile(file, dtype, rows)


def _read_text(file: BinaryIO, header: _Header) -> np.ndarray:
    before = itertools.takewhile(lambda name: name != "vertex", header.elements)
    skip = sum(header.elements[name][0] for name in before)  # one line a row
    dtype, rows = _dtype(header, "vertex"), header.elements["vertex"][0]
    lines = itertools.islice(file, skip, skip + rows)
    table = np.loadtxt(lines, dtype, comments=None, ndmin=1) if rows else np.empty(0, dtype)
    if len(table) != rows:
        raise ValueError(f"{len(table)} of {rows} vertices are there")
    return table
