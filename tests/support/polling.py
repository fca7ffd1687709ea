"""Waiting for something to become true, by looking again until a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(probe: Callable[[], T], what: str, deadline_s: float = 10.0, interval_s: float = 0.005) -> T:
    """Return the first true value of `probe`; raise TimeoutError naming `what` when the deadline passes."""
    end = time.monotonic() + deadline_s
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"waited {deadline_s} s for {what}")
        time.sleep(interval_s)
