"""How many cores there are, and OpenCV kept off them while our own threads work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import cv2


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def single_threaded_opencv() -> Iterator[None]:
    """OpenCV's own threads off while ours keep the cores busy."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
