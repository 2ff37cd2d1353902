"""The folder of a run: one owner at a time, its configuration, its log, its summary.

Layout (see the data format page): config.json, log.txt, metrics.jsonl, TensorBoard events,
checkpoints/, summary.json and the artefacts of the stage. Only the first process of several writes
here.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
import logging.handlers
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mouselift_jax.errors import ConfigError
from mouselift_jax.files import FileLock, write_json_atomic
from mouselift_jax.runs.record import flatten, plain, read_json, read_summary, versions
from mouselift_jax.runs.rows import MetricWriter

log = logging.getLogger("mouselift_jax")

# What may differ between the run that made a folder and one that continues in it.
MAY_CHANGE = (
    "train.steps",
    "train.*_every",
    "train.*_minutes",
    "train.keep",
    "train.keep_best",
    "train.mesh.*",  # a checkpoint restores on any mesh
    "data.workers",
    "prepare.threads",
    "prepare.cache",
    "film.truth",  # judges what is done; changes nothing of it
    "variant",
)
IDLE = ("config.json", "log.txt", ".lock")  # what a run leaves that made nothing
LOGS = ("*.out", "*.err", "*.log")  # what a scheduler or a shell writes beside it
LOG_BYTES = 20 << 20  # log.txt grows to this, then becomes log.txt.1 and log.txt.2


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: nothing here changes a result.

    Attributes:
        progress: auto | rich | plain | json | none.
        profile: "A:B" traces those steps, None = no trace.
        debug: show tracebacks of user errors too.
        primary: whether this process writes files.
    """

    progress: str = "auto"
    profile: str | None = None
    debug: bool = False
    primary: bool = True


class Workdir:
    """Context that owns a run's folder and behaves like its path (`workdir / "a.txt"`).

    Args:
        path: the folder, made when it is absent.
        config: the resolved configuration (ConfigDict or mapping). On a second visit it must be
            the same, but for the keys of `MAY_CHANGE`; else the differences are listed and the run
            stops.
        options: see `Options`.
    """

    def __init__(
        self, path: str | os.PathLike, config: Any, options: Options | None = None
    ) -> None:
        self.path = Path(path)
        self.config = plain(config)
        self.options = options or Options()
        self.warnings: list[str] = []
        self._lock = FileLock(self.path / ".lock")
        self._handler: logging.Handler | None = None
        self._started = time.monotonic()
        self._before = 0.0
        self._is_new = False

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __str__(self) -> str:
        return str(self.path)

    def __enter__(self) -> Workdir:
        self._started = time.monotonic()
        self._before = float(read_summary(self.path).get("wall_s", 0.0))
        if not self.options.primary:
            check_same_config(self.path, self.config)
            return self
        check_folder(self.path, self.config.get("stage", "NAME"))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            owner = self._lock.acquire()
        except OSError as error:
            raise ConfigError(
                "the folder cannot be made, or not be written",
                where=f"--workdir={self.path}",
                found=error.strerror,
                fix="give a folder that you may write to",
            ) from error
        if owner is not None:
            raise _in_use(self.path, owner)
        try:
            check_same_config(self.path, self.config)
            self._is_new = not (self.path / "config.json").exists()
            write_json_atomic(self.path / "config.json", self.config)
            self._handler = logging.handlers.RotatingFileHandler(
                self.path / "log.txt", maxBytes=LOG_BYTES, backupCount=2
            )
            self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            log.addHandler(self._handler)
            if log.level == logging.NOTSET:
                log.setLevel(logging.INFO)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: type | None, *exc_info: object) -> None:
        if kind is not None and self._is_new:
            self._forget()
        if self._handler is not None:
            log.removeHandler(self._handler)
            self._handler.close()
        self._lock.release()

    def _forget(self) -> None:
        """Take the config back if nothing was made: the command, once corrected, starts here."""
        if next(_contents(self.path), None) is None:
            (self.path / "config.json").unlink(missing_ok=True)

    @property
    def wall_s(self) -> float:
        """Seconds spent in this folder, earlier visits included."""
        return self._before + time.monotonic() - self._started

    def warn(self, message: str) -> None:
        """Log a warning once and keep it for the summary and the report."""
        if message not in self.warnings:
            self.warnings.append(message)
            log.warning(message)

    def summary(
        self,
        *,
        finished: bool,
        steps: int = 0,
        metrics: Mapping[str, float] | None = None,
        artefacts: Mapping[str, str | os.PathLike] | None = None,
        warnings: Sequence[str] = (),
        inputs: Mapping[str, Any] | None = None,
        verdict: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Write summary.json; warnings of earlier visits stay, metrics and artefacts too.

        A metric, an artefact or a verdict that is given anew replaces the old one.
        """
        old = read_summary(self.path)
        all_artefacts = dict(old.get("artefacts", {}))
        for key, value in (artefacts or {}).items():
            value = Path(value)
            inside = value.is_absolute() and value.is_relative_to(self.path.absolute())
            all_artefacts[key] = str(value.relative_to(self.path.absolute()) if inside else value)
        record = {
            "stage": self.config.get("stage", ""),
            "finished": finished,
            "steps": steps,
            "wall_s": round(self.wall_s, 3),
            "metrics": {
                **old.get("metrics", {}),
                **{k: float(v) for k, v in (metrics or {}).items()},
            },
            "artefacts": all_artefacts,
            "warnings": list(dict.fromkeys([*old.get("warnings", []), *self.warnings, *warnings])),
            "inputs": dict(inputs or old.get("inputs", {})),
            "versions": versions(),
        }
        said = verdict or old.get("verdict")
        if said:
            record["verdict"] = dict(said)
        if self.options.primary:
            if finished and not (self.path / "metrics.jsonl").exists():
                # Training writes its rows as it goes; every other stage has one, at its end.
                with MetricWriter(self.path) as writer:
                    writer.scalars(steps, record["metrics"])
            write_json_atomic(self.path / "summary.json", record)
        return record


def _contents(path: Path) -> Iterator[Path]:
    """Files of a folder that are more than the traces of a run that made nothing."""
    for p in path.rglob("*"):
        if p.name not in IDLE and not p.name.startswith("events.") and p.is_file():
            if p.stat().st_size:
                yield p


def check_place(path: Path, config: Mapping[str, Any]) -> None:
    """Stop where a run of this configuration would, without touching anything: for plans.

    Raises:
        ConfigError: why a run cannot work there.
    """
    check_folder(path, config.get("stage", "NAME"))
    owner = FileLock(path / ".lock").holder()
    if owner is not None:
        raise _in_use(path, owner)
    check_same_config(path, config)


def _in_use(path: Path, owner: str) -> ConfigError:
    return ConfigError(
        "this folder is in use by another run",
        where=f"--workdir={path}",
        found=owner,
        fix="wait for it, stop it, or give another --workdir",
    )


def check_folder(path: Path, name: str) -> None:
    """A folder for a run can be made and written, and holds nothing that no run made.

    Args:
        path: the folder, there or not.
        name: for a better one below it.

    Raises:
        ConfigError: why not.
    """
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir():
        raise ConfigError(
            "--workdir is a file" if there == path else "the folder cannot be made",
            where=f"--workdir={path}",
            expected="a folder of its own",
            found=f"{there} is a file",
            fix="--workdir=runs/NAME",
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            "the folder cannot be made, or not be written",
            where=f"--workdir={path}",
            found=f"{there} is read-only for you",
            fix="give a folder that you may write to",
        )
    record = read_json(path / "config.json")
    if path.is_dir() and "stage" not in (record or {}):
        strange = sorted({p.relative_to(path).parts[0] for p in islice(_contents(path), 200)})
        strange += ["config.json"] if record is not None else []
        strange = [n for n in strange if not any(fnmatch.fnmatchcase(n, p) for p in LOGS)]
        if strange:
            raise ConfigError(
                "this folder holds what no run made: nothing is written into it",
                where=f"--workdir={path}",
                expected="no such folder, an empty one, or that of a run",
                found=", ".join(strange[:6]) + (", ..." if len(strange) > 6 else ""),
                fix=f"--workdir={path / name}, or another new folder",
            )


def check_same_config(path: Path, config: Mapping[str, Any]) -> None:
    """Stop, with the differences, when the folder was made with another configuration."""
    stored = read_json(path / "config.json")
    if stored is None:
        return
    old, new = flatten(stored), flatten(config)
    if old.get("stage") != new.get("stage"):
        raise ConfigError(
            "this folder holds a run of another stage",
            where=f"--workdir={path}",
            expected=f"a run of {new.get('stage')}, or none",
            found=f"a run of {old.get('stage')}",
            fix="give every stage a --workdir of its own",
        )
    different = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) and (key in old) == (key in new):
            continue
        change = f"{key}: {old.get(key, '(absent)')!r} -> {new.get(key, '(absent)')!r}"
        if key not in old:  # made before this version had the key: nothing contradicts it
            log.warning("new since this folder was made, so the run goes on with: %s", change)
        elif any(fnmatch.fnmatchcase(key, allowed) for allowed in MAY_CHANGE):
            log.info("changed since this folder was made: %s", change)
        else:
            different.append(change)
    if different:
        raise ConfigError(
            "the configuration differs from the one this folder was made with",
            where=path / "config.json",
            found="\n            ".join(different),
            fix="give another --workdir, or the former values (first the old, then the new above)",
        )


# --- inputs -----------------------------------------------------------------------------------
