"""Asking a peer for a sign of life, from time to time, and giving it up when there is none (`connection_keepalive`)."""

from __future__ import annotations

import random

from mypy_extensions import mypyc_attr

from meshproxy.net.timers import Timer, TimerWheel


@mypyc_attr(allow_interpreted_subclasses=True)
class PingSender:
    """Who has the connection."""

    def send_ping(self) -> None:
        """Ask; `Keepalive.on_ack` tells the answer."""
        raise NotImplementedError

    def on_ping_timeout(self) -> None:
        """The peer has not answered in time."""
        raise NotImplementedError


class Keepalive(Timer):
    """One connection's, and its timer: for the next ping, or the answer to this one. At most one ping is under way.

    `interval_ms` is between an answer and the next ping (0.0: none is sent by the clock), `jitter_percent` of it is
    added at random, `timeout_ms` is how long an answer may take. A connection from which nothing has come for
    `idle_interval_ms` is asked before its next stream (0.0: never).
    """

    def __init__(
        self,
        sender: PingSender,
        timers: TimerWheel,
        interval_ms: float,
        timeout_ms: float,
        jitter_percent: float,
        idle_interval_ms: float,
    ) -> None:
        super().__init__()
        self._sender = sender
        self._timers = timers
        self._interval_ms = interval_ms
        self._timeout_ms = timeout_ms
        self._jitter_percent = jitter_percent
        self._idle_interval_ms = idle_interval_ms
        self._waits: bool = False  # for the answer to a ping
        self._stopped: bool = False
        self._last_data_s: float = 0.0

    def start(self, now_s: float) -> None:
        self._last_data_s = now_s
        self._arm_interval()

    def stop(self) -> None:
        """The connection is over."""
        self._stopped = True
        self.disarm()

    def on_data(self, now_s: float) -> None:
        """Something came."""
        self._last_data_s = now_s

    def on_new_stream(self, now_s: float) -> None:
        """A stream is about to begin."""
        if self._idle_interval_ms > 0.0 and (now_s - self._last_data_s) * 1000.0 > self._idle_interval_ms:
            self._ping()

    def on_ack(self) -> None:
        if self._waits:
            self._waits = False
            self.disarm()
            self._arm_interval()

    def on_timer(self) -> None:
        if self._stopped:
            return
        if self._waits:
            self.stop()
            self._sender.on_ping_timeout()
        else:
            self._ping()

    def _ping(self) -> None:
        if self._waits or self._stopped:
            return
        self._waits = True
        self._timers.arm(self, self._timeout_ms)
        self._sender.send_ping()

    def _arm_interval(self) -> None:
        if self._interval_ms > 0.0 and not self._stopped:
            jitter_ms = self._interval_ms * self._jitter_percent / 100.0 * random.random()
            self._timers.arm(self, self._interval_ms + jitter_ms)
