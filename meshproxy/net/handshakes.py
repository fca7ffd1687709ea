"""Handshakes queue up, so that a flood of them leaves the established connections served.

A TLS handshake costs a server some hundred microseconds of CPU: a burst of ClientHellos that arrives in one turn of
the event loop would hold all other connections for as long as all of them take. So they are done in their order, a few
milliseconds' worth a turn of the loop, and between two turns everybody else is served. One that finds nobody waiting
and time left is done at once.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshproxy.net.connection import Connection
    from meshproxy.net.dispatcher import Dispatcher

_SLICE_S: Final = 0.002


class HandshakeQueue:
    """One per event loop."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._waiting: list[tuple[Connection, bytes]] = []
        self._scheduled: bool = False
        self._end: float = 0.0  # of this turn's time; 0.0 where none was taken of it yet

    def has_time(self) -> bool:
        """Whether a part of a handshake may be done at once; else it is to be added."""
        if self._waiting:
            return False
        now = time.monotonic()
        if self._end == 0.0:
            self._end = now + _SLICE_S
            self._dispatcher.post(self._begin_turn)
            return True
        return now < self._end

    def _begin_turn(self) -> None:
        self._end = 0.0

    def add(self, connection: Connection, data: bytes) -> None:
        """`connection.take_in(data)` when it is its turn."""
        self._waiting.append((connection, data))
        if not self._scheduled:
            self._scheduled = True
            self._dispatcher.post(self._run)

    def _run(self) -> None:
        waiting, self._waiting = self._waiting, []
        end = time.monotonic() + _SLICE_S
        done = 0
        self._dispatcher.begin_turn()
        try:
            while done < len(waiting):
                connection, data = waiting[done]
                done += 1
                connection.take_in(data)
                if time.monotonic() >= end:
                    break
        finally:
            self._waiting = [*waiting[done:], *self._waiting]
            self._scheduled = bool(self._waiting)
            if self._scheduled:
                self._dispatcher.post(self._run)
            self._dispatcher.end_turn()
