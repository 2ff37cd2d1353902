"""Text files as programs leave them: any byte-order mark; JSON, TOML, YAML, XML of OpenCV."""

from __future__ import annotations

import codecs
import json
import re
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml

from mouselift_jax.errors import LayoutError

MAX_BYTES = 64 << 20  # a calibration or a list of cameras is far smaller
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """A text file, UTF-8 or what its byte-order mark says.

    Raises:
        LayoutError: larger than `limit`, or not text.
    """
    size = path.stat().st_size
    if size > limit:
        raise LayoutError(
            "the file is too large for what it should be",
            where=path,
            expected=f"at most {limit >> 20} MiB",
            found=f"{size >> 20} MiB",
            fix="is it the right file?",
        )
    data = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise _unreadable("text", path, error, "export it again as UTF-8") from error


def _unreadable(kind: str, path: Path, error: BaseException, fix: str) -> LayoutError:
    found = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return LayoutError(f"not a readable {kind} file", where=path, found=found, fix=fix)


def load_json(path: Path) -> Any:
    """A JSON file, or a LayoutError that says where it is broken."""
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        raise _unreadable("JSON", path, error, "export it again") from error


def load_toml(path: Path) -> dict[str, Any]:
    """A TOML file, or a LayoutError that says where it is broken."""
    try:
        return tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        # ValueError: a date or number that cannot be
        fix = (
            "give the calibration.toml that anipose, or the camera_array.toml that Caliscope wrote"
        )
        raise _unreadable("TOML", path, error, fix) from error


class _Yaml(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Plain YAML, and the matrices of OpenCV's FileStorage."""


def _matrix(loader: yaml.Loader, node: yaml.Node) -> np.ndarray:
    row = loader.construct_mapping(node, deep=True)
    return storage_matrix(row, str(node.start_mark).strip())


_Yaml.add_constructor("tag:yaml.org,2002:opencv-matrix", _matrix)
_Yaml.add_constructor("tag:yaml.org,2002:opencv-nd-matrix", _matrix)


def storage_matrix(row: dict[str, Any], where: str) -> np.ndarray:
    """{rows, cols, data} (and dt of OpenCV) as an array [rows,cols] or [rows,cols,channels].

    OpenCV 5 writes an array of one dimension as {sizes, data}.

    Raises:
        ValueError: the data do not fill the matrix, or are no numbers.
    """
    data = np.asarray(row.get("data", []), np.float64).reshape(-1)
    if "sizes" in row:
        sizes = row["sizes"].split() if isinstance(row["sizes"], str) else row["sizes"]
        return data.reshape([int(n) for n in np.asarray(sizes, np.int64).reshape(-1)])
    rows, cols = int(row.get("rows", 0)), int(row.get("cols", 0))
    if rows < 1 or cols < 1 or data.size % (rows * cols) or not data.size:
        raise ValueError(f"a matrix of {rows}x{cols} with {data.size} numbers ({where})")
    return data.reshape(rows, cols) if data.size == rows * cols else data.reshape(rows, cols, -1)


_YAML_ERRORS = (yaml.YAMLError, RecursionError, ValueError, TypeError, KeyError, AttributeError,
                OverflowError, IndexError)  # fmt: skip


def load_yaml(path: Path) -> dict[str, Any]:
    """The top level of a YAML file, plain or of cv::FileStorage; empty when it is no mapping.

    Raises:
        LayoutError: not YAML, or a matrix that its numbers do not fill.
    """
    text = read_text(path)
    # OpenCV's first line is no directive of YAML's: it wants a blank after the colon.
    text = re.sub(r"\A\s*%YAML:\d\.\d", "", text)
    try:
        content = yaml.load(text, _Yaml)  # noqa: S506  (a SafeLoader)
    except _YAML_ERRORS as error:
        fix = "export it again: cv2.FileStorage writes such files, or plain YAML"
        raise _unreadable("YAML", path, error, fix) from error
    return {str(k): v for k, v in content.items()} if isinstance(content, dict) else {}


def load_storage_xml(path: Path) -> dict[str, Any]:
    """The top level of an XML file of cv::FileStorage.

    Raises:
        LayoutError: not XML, or a matrix that its numbers do not fill.
    """
    out: dict[str, Any] = {}
    try:
        for node in ElementTree.fromstring(read_text(path).encode()):
            if node.get("type_id") in ("opencv-matrix", "opencv-nd-matrix"):
                row = {child.tag: (child.text or "").strip() for child in node}
                row["data"] = row.get("data", "").split()
                out[node.tag] = storage_matrix(row, node.tag)
            elif len(node) == 0:
                words = (node.text or "").split()
                try:
                    values = [float(w) for w in words]
                except ValueError:
                    out[node.tag] = node.text
                else:
                    out[node.tag] = values[0] if len(values) == 1 else values
    except (ElementTree.ParseError, ValueError, RecursionError, LookupError) as error:
        raise _unreadable("OpenCV", path, error, "write it with cv2.FileStorage") from error
    return out


def natural_key(name: object) -> tuple:
    """Sort key that puts 2 before 10."""
    parts = re.split(r"(\d+)", str(name))
    return tuple((1, int(p)) if p.isdecimal() else (0, p.lower()) for p in parts if p)


def last_number(name: str, fallback: int) -> int:
    """The last number in a name."""
    found = re.findall(r"\d{1,9}", name)
    return int(found[-1]) if found else fallback
