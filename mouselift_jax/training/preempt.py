"""Stopping on request: SIGTERM and Ctrl-C become a flag that the loop reads after each step."""

from __future__ import annotations

import signal
from types import FrameType

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


class Preemption:
    """Context that turns the two signals into `code`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.code = 0
        self._old: dict[int, object] = {}

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

    def agreed(self) -> int:
        """The exit code any process was asked for, 0 = go on; all must call it together."""
        return distributed.agree(self.code)
