"""Stopping on request: SIGTERM and Ctrl-C become a flag that the loop reads after each step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import jax

from mouselift_jax.training import distributed

AGAIN, INTERRUPTED = 75, 130


class StopRequested(BaseException):
    """The run saved and stops because it was asked to.

    Attributes:
        code: exit code, 75 (SIGTERM: run the same command again) or 130 (Ctrl-C).
        said: what to tell the user.
    """

    def __init__(self, code: int, said: str) -> None:
        super().__init__(said)
        self.code, self.said = code, said


class _Left(BaseException):
    """What can be left undone is left, because a request came."""


class Preemption:
    """Context that turns the two signals into `code`; a second Ctrl-C interrupts at once.

    Attributes:
        code: exit code that was asked of this process, 0 = none.
        left: the same, once `attempt` left something undone for it.
    """

    def __init__(self) -> None:
        self.code = self.left = 0
        self._may_leave = False
        self._old: dict[int, object] = {}
        self._agreement = distributed.Agreement()

    def __enter__(self) -> Preemption:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.code:
            raise KeyboardInterrupt
        self.code = INTERRUPTED if number == signal.SIGINT else AGAIN
        if self._may_leave:
            raise _Left

    def attempt(self, work: Callable[..., Mapping[str, Any]], *args: Any) -> Mapping[str, Any]:
        """Do what takes long and can be left out; {} when a request comes before it is done.

        Several processes finish it: they would not all leave it at the same place.
        """
        alone = jax.process_count() == 1
        if not (alone and self.code):
            self._may_leave = alone
            try:
                return work(*args)
            except _Left:
                pass
            finally:
                self._may_leave = False
        self.left = self.code
        return {}

    def agreed(self) -> int:
        """The exit code any process was asked for, 0 = go on; all must call it every step."""
        return self._agreement.exchange(self.code)
