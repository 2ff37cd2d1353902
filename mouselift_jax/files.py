"""Files that are either whole or absent.

Every artefact of a run is written beside its place and renamed into it, so a run that is killed
leaves no half-written file that a later command could take for a whole one.

A file in a place that the user named replaces another only if that was of our making: it bears
our name (`check_replaceable`).

Folders that a command may have to replace are marked when they are made (`mark_made`), with a list
of what was put into them; `remove_made` removes a marked folder that holds nothing else, and
refuses any other. Nothing in this project removes a folder in another way.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mouselift_jax.errors import LayoutError

MARK = ".made_by_mouselift.json"
NAME = b"mouselift_jax"  # somewhere in the head of every file of ours that a user may keep
HEAD_BYTES = 1 << 16


class FileLock:
    """A file that one process at a time holds; it goes free when that process ends, however.

    Args:
        path: the file; its folder must exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None

    def acquire(self) -> str | None:
        """Take it; returns None, or who has it.

        Raises:
            OSError: the file cannot be made, or this disk has no locks.
        """
        file = open(self.path, "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its holder may have removed it between the two lines above.
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                raise FileNotFoundError
        except FileNotFoundError:
            file.close()
            return "another process"
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            return owner
        except OSError:
            file.close()
            raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        self._file = file
        return None

    def holder(self) -> str | None:
        """Who has it now, None when it is free; nothing is made or changed."""
        try:
            with open(self.path) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return file.read().strip() or "another process"
        except OSError:  # no such file, no right to read it, a disk without locks
            pass
        return None

    def release(self, *, remove: bool = False) -> None:
        """Let it go; with `remove`, take the file away too."""
        if self._file is not None:
            if remove:
                self.path.unlink(missing_ok=True)
            self._file.truncate(0)
            self._file.close()
            self._file = None


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path with the same suffix, renamed to `path` when the block ends well.

    When the block raises, or is interrupted, the temporary file is removed and `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part{os.getpid()}{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_path(path) as part, open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, whole or not at all."""
    write_text_atomic(path, json.dumps(value, indent=1) + "\n")


def check_replaceable(path: str | Path, *, overwrite: bool = False) -> None:
    """Stop where writing `path` would replace a file that this project did not write.

    Args:
        path: where a file is to be written.
        overwrite: the user said that whatever is there may go.

    Raises:
        LayoutError: a file is there that does not bear our name; it is left alone.
    """
    path = Path(path)
    if overwrite or not os.path.lexists(path):
        return
    if path.is_file():
        with open(path, "rb") as file:
            if NAME in file.read(HEAD_BYTES):
                return
    raise LayoutError(
        "there is a file already that this project did not write: it is left alone",
        where=path,
        expected="no such file, or an earlier one of ours",
        found=f"a file of {path.stat().st_size} bytes" if path.is_file() else "no plain file",
        fix="give another name, or move it away yourself (export has --overwrite)",
    )


def remove_known(folder: Path, names: Container[str]) -> None:
    """Remove a local folder that holds nothing but files that we write there.

    Args:
        folder: which; absent is fine.
        names: of those files, relative to it.

    Raises:
        LayoutError: it holds another file; nothing is removed.
    """
    if not folder.exists():
        return
    strange = [name for name in _contents(folder) if name not in names]
    if strange:
        raise LayoutError(
            "this folder has to be made anew, and holds what this project did not put there",
            where=folder,
            found=_some(strange),
            fix="move these files away yourself, then run the same command again",
        )
    shutil.rmtree(folder)


def mark_made(folder: Any) -> None:
    """Say in `folder` that this project made it and all that lies in it now.

    Args:
        folder: a pathlib or etils path. Marked while it is still empty, everything that comes into
            it later counts as ours: for folders that only one command writes.
    """
    made = {name: size for name, size in _contents(folder).items() if name != MARK}
    (folder / MARK).write_text(json.dumps({"made_by": "mouselift_jax", "files": made}) + "\n")


def remove_made(folder: Any) -> None:
    """Remove a folder of our own making; one that is empty or absent is fine too.

    Args:
        folder: a pathlib or etils path.

    Raises:
        LayoutError: it was not made by this project, or something was put into it or changed since;
            nothing is removed then.
    """
    if not folder.exists():
        return
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        return
    try:
        made = json.loads((folder / MARK).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else ["a file"]
        raise LayoutError(
            "This folder is in the way, and it was not made by this project: it is left alone",
            where=folder,
            expected=f"no such folder, an empty one, or one that holds {MARK}",
            found=_some(there),
            fix="give another place, or move it away yourself",
        ) from None
    strange = [n for n, size in _contents(folder).items() if n != MARK and made.get(n) != size]
    if made and strange:
        raise LayoutError(
            "This folder is in the way, and it holds what this project did not put there: it is "
            "left alone",
            where=folder,
            expected="the files that were written when it was made, unchanged",
            found=f"new or changed: {_some(strange)}",
            fix="give another place, or move it away yourself",
        )
    if isinstance(folder, Path):
        shutil.rmtree(folder)
    else:  # an object store's path removes itself
        folder.rmtree()


def _contents(folder: Any) -> dict[str, int]:
    """Size in bytes of every file below a folder, by its name relative to it."""
    found, open_folders = {}, [(folder, "")]
    while open_folders:
        place, prefix = open_folders.pop()
        for entry in place.iterdir():
            name = prefix + entry.name
            if entry.is_dir() and not (isinstance(entry, Path) and entry.is_symlink()):
                open_folders.append((entry, name + "/"))
            else:
                size = entry.lstat().st_size if isinstance(entry, Path) else entry.stat().length
                found[name] = size
    return dict(sorted(found.items()))


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
