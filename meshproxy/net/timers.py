"""Timers by the million: a wheel of intrusive lists, one event-loop timer for all of them.

Every request arms and disarms several timeouts that almost never fire, so arming and disarming must cost nothing but
a few attribute writes: no heap, no closure, no `call_later`. Timers are coarse: one fires up to `TICK_MS` late, never
early.
"""

from __future__ import annotations

import asyncio
from typing import Final

from mypy_extensions import mypyc_attr

from meshproxy.clock import begin_turn, end_turn, monotonic

TICK_MS: Final = 4
_SLOTS: Final = 4096  # one turn of the wheel is 16 s; a longer timer goes round more than once


@mypyc_attr(allow_interpreted_subclasses=True)
class Timer:
    """One timeout: subclass it (or use `CallTimer`) and override `on_timer`.

    An armed timer may be armed anew or disarmed.
    """

    def __init__(self) -> None:
        self.deadline: int = 0  # in ticks; 0: not armed
        self._previous: Timer | None = None
        self._next: Timer | None = None

    def on_timer(self) -> None:
        raise NotImplementedError

    @property
    def armed(self) -> bool:
        return self.deadline != 0

    def disarm(self) -> None:
        """No-op when the timer is not armed."""
        if self.deadline != 0:
            self.deadline = 0
            self._unlink()

    def _unlink(self) -> None:
        previous, following = self._previous, self._next
        if previous is not None:
            previous._next = following
        if following is not None:
            following._previous = previous
        self._previous = self._next = None


class CallTimer(Timer):
    """A timer that calls a bound method: for the places where there are few."""

    def __init__(self, callback: object) -> None:
        super().__init__()
        self._callback = callback

    def on_timer(self) -> None:
        self._callback()  # type: ignore[operator]


class _Head(Timer):
    """The fixed first element of a slot's list."""


class TimerWheel:
    """All timers of one event loop.

    `now_ms` is in milliseconds of the monotonic clock. A test drives a wheel without a loop: `loop=None`, and
    `advance(now_ms)`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop
        self._slots: list[Timer] = [_Head() for _ in range(_SLOTS)]
        self._tick: int = self._current_tick()  # every slot up to this tick has fired
        self._wake_tick: int = 0  # when the loop is asked to wake us; 0: it is not
        self._advancing: bool = False
        self._handle: asyncio.TimerHandle | None = None

    def _current_tick(self) -> int:
        return int(monotonic() * 1000.0) // TICK_MS

    def arm(self, timer: Timer, timeout_ms: float) -> None:
        """Let `timer` fire once, `timeout_ms` from now, instead of whatever it was armed for."""
        self.arm_at(timer, int(monotonic() * 1000.0 + timeout_ms) // TICK_MS + 1)

    def arm_by(self, timer: Timer, timeout_ms: float) -> None:
        """As `arm`, but one that is to fire sooner stays as it is: for a timer that looks, when it fires, whether it is
        time, and serves one request after the other."""
        tick = int(monotonic() * 1000.0 + timeout_ms) // TICK_MS + 1
        if timer.deadline == 0 or timer.deadline > tick:
            self.arm_at(timer, tick)

    def arm_at(self, timer: Timer, tick: int) -> None:
        if timer.deadline != 0:
            timer._unlink()
        if tick <= self._tick:
            tick = self._tick + 1
        timer.deadline = tick
        head = self._slots[tick % _SLOTS]
        following = head._next
        timer._previous = head
        timer._next = following
        head._next = timer
        if following is not None:
            following._previous = timer
        if not self._advancing and (self._wake_tick == 0 or tick < self._wake_tick):
            self._wake_at(tick)

    def _wake_at(self, tick: int) -> None:
        loop = self._loop
        self._wake_tick = tick
        if loop is None:
            return
        if self._handle is not None:
            self._handle.cancel()
        delay = tick * TICK_MS / 1000.0 - monotonic()
        self._handle = loop.call_later(delay if delay > 0.0 else 0.0, self._on_wake)

    def _on_wake(self) -> None:
        self._handle = None
        begin_turn()
        self.advance(int(monotonic() * 1000.0))
        end_turn()

    def advance(self, now_ms: int) -> None:
        """Fire all that is due at `now_ms`.

        A timer that raises does not stop the others: the loop's exception handler hears of it.
        """
        tick = now_ms // TICK_MS
        self._advancing = True  # what is armed meanwhile is found when all have fired
        if tick - self._tick > _SLOTS:
            self._tick = tick - _SLOTS
        while self._tick < tick:
            self._tick += 1
            self._fire_slot(self._slots[self._tick % _SLOTS])
        self._advancing = False
        self._sleep_until_next()

    def _fire_slot(self, head: Timer) -> None:
        due: list[Timer] = []
        timer = head._next
        while timer is not None:
            following = timer._next
            if timer.deadline <= self._tick:
                timer._unlink()
                due.append(timer)
            timer = following
        for timer in due:
            if timer.deadline != 0 and timer.deadline <= self._tick and timer._previous is None:
                timer.deadline = 0
                self._call(timer)

    def _call(self, timer: Timer) -> None:
        try:
            timer.on_timer()
        except Exception as error:
            loop = self._loop
            if loop is None:
                raise
            loop.call_exception_handler({"message": "a timer raised", "exception": error})

    def _sleep_until_next(self) -> None:
        """Wake at the next slot that holds anything (it may be a timer of a later turn: then we look again)."""
        self._wake_tick = 0
        first = self._tick + 1
        for tick in range(first, first + _SLOTS):
            if self._slots[tick % _SLOTS]._next is not None:
                self._wake_at(tick)
                return

    def close(self) -> None:
        """Fire nothing more."""
        self._loop = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
