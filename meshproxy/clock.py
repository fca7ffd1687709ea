"""The two clocks: durations are measured on the monotonic one, and shown as wall time.

Within a turn of the event loop (a socket became readable, a timer fired) time stands still: the request path reads the
clock once, when the turn begins, however many timers, timestamps and statistics ask for it.
"""

from __future__ import annotations

import time
from typing import Final

_read: Final = time.monotonic  # found once: looking up a module's attribute costs as much as the reading


class _Clock:
    def __init__(self) -> None:
        self.turn: float = 0.0  # when the present turn began; 0.0: no turn is on
        self.ahead: float = 0.0  # of the machine's clock, in tests that let time pass


_CLOCK: Final = _Clock()


def monotonic() -> float:
    """Seconds on the monotonic clock: of the beginning of the turn while one is on."""
    turn = _CLOCK.turn
    return turn if turn > 0.0 else _read() + _CLOCK.ahead


def begin_turn() -> None:
    """Read the clock for all of the turn that begins."""
    _CLOCK.turn = _read() + _CLOCK.ahead


def end_turn() -> None:
    """From here on the clock is read whenever someone asks."""
    _CLOCK.turn = 0.0


def move_ahead(seconds: float) -> None:
    """For tests: time passes at once."""
    _CLOCK.ahead += seconds


def wall_time(at: float) -> float:
    """The Unix time, in seconds, of a reading of the monotonic clock (taken in this process)."""
    return time.time() - (time.monotonic() + _CLOCK.ahead - at)


def wall_time_ns(at: float) -> int:
    """As `wall_time`, in ns, without what a float of seconds since 1970 loses."""
    return time.time_ns() - int((time.monotonic() + _CLOCK.ahead - at) * 1e9)
