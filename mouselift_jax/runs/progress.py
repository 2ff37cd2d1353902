"""One progress object: a bar on a terminal, lines in a log, JSON for programs.

The time left is reckoned from the steps alone: the first step (compilation) and whatever happens
inside `pause()` (evaluation, pictures) do not count towards the rate.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

STYLES = ("auto", "rich", "plain", "json", "none")


class Progress:
    """Context that shows how far a loop is.

    Args:
        total: units in all.
        unit: what one unit is called.
        done: units done before (a resumed run).
        style: auto | rich | plain | json | none; auto = rich on a terminal, else plain.
        every_s: seconds between lines (plain, json).
        title: what is being done.
        stream: where to; stdout for json, else stderr.
    """

    def __init__(
        self,
        total: int,
        *,
        unit: str = "step",
        done: int = 0,
        style: str = "auto",
        every_s: float = 10.0,
        title: str = "",
        stream: TextIO | None = None,
    ) -> None:
        self.total, self.unit, self.done, self.title = int(total), unit, int(done), title
        self._stream = stream or (sys.stdout if style == "json" else sys.stderr)
        if style == "auto":
            style = "rich" if self._stream.isatty() else "plain"
        if style not in STYLES:
            raise ValueError(f"no such progress style: {style!r}, known: {', '.join(STYLES)}")
        self.style, self._every = style, every_s
        self._counted, self._seconds = 0, 0.0  # steps and time that make the rate
        self._mark: float | None = None  # since when time counts; None before the first step
        self._said = -float("inf")
        self._newest: dict[str, float] = {}
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self.style == "rich":
            from rich import progress as rich_progress
            from rich.console import Console

            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}"),
                rich_progress.BarColumn(),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TextColumn("{task.fields[info]}"),
                console=Console(file=self._stream),
                transient=False,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self.title or self.unit, total=self.total, completed=self.done, info=""
            )
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def rate(self) -> float:
        """Units a second, 0 while unknown."""
        return self._counted / self._seconds if self._seconds > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds left, None while unknown."""
        return (self.total - self.done) / self.rate if self.rate else None

    def update(self, n: int = 1, **info: float) -> None:
        """`n` more units are done; `info` is shown beside (to people until there is a newer)."""
        if self.style != "json":
            info = self._newest = self._newest | info
        now = time.monotonic()
        self.done += n
        if self._mark is not None:
            self._counted += n
            self._seconds += now - self._mark
        self._mark = now
        finished = self.done >= self.total
        if self.style == "rich":
            self._bar.update(self._task, completed=self.done, info=self._info(info))
        elif self.style != "none" and (finished or now - self._said >= self._every):
            self._said = now
            self._stream.write(self._line(info) + "\n")
            self._stream.flush()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside does not count towards the rate."""
        now = time.monotonic()
        if self._mark is not None:
            self._seconds += now - self._mark
        yield
        if self._mark is not None:
            self._mark = time.monotonic()

    def _info(self, info: dict[str, float]) -> str:
        parts = [f"{k} {v:.4g}" for k, v in info.items()]
        if self.rate:
            parts.append(f"{self.rate:.3g} {self.unit}/s")
        if self.eta_s is not None:
            parts.append(f"{duration(self.eta_s)} left")
        return "  ".join(parts)

    def _line(self, info: dict[str, float]) -> str:
        if self.style == "json":
            eta = None if self.eta_s is None else round(self.eta_s, 1)
            fields = {
                "title": self.title,
                "unit": self.unit,
                "done": self.done,
                "total": self.total,
            }
            return json.dumps(fields | {"rate": round(self.rate, 4), "eta_s": eta} | info)
        return f"{self.title} {self.unit} {self.done}/{self.total}  {self._info(info)}".strip()


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 2 * 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    days = seconds // 86400
    return f"{days} days" if days < 730 else f"{days // 365} years"
