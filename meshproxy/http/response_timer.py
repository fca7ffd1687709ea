"""The overall timeout of a request: its timer, which the requests of a connection hand on, armed as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshproxy.clock import monotonic
from meshproxy.http import failed_attempt
from meshproxy.http.timeouts import SPARE_TIMERS
from meshproxy.net.timers import Timer

if TYPE_CHECKING:
    from meshproxy.http.router import Router


class ResponseTimer(Timer):
    """Fires for the router that has it, or for none."""

    def __init__(self) -> None:
        super().__init__()
        self.router: Router | None = None
        self.due_ms: float = 0.0

    def on_timer(self) -> None:
        router = self.router
        if router is None:
            return
        left_ms = self.due_ms - monotonic() * 1000.0
        if left_ms > 0.0:
            router.stream.manager.timers.arm(self, left_ms)
        else:
            failed_attempt.on_response_timeout(router)


def arm_response_timer(router: Router, timeout_ms: float) -> ResponseTimer:
    """A spare timer of the connection, or a new one, now the router's."""
    manager = router.stream.manager
    spare = manager.spare_response_timers
    timer = spare.pop() if spare else ResponseTimer()
    timer.router = router
    timer.due_ms = monotonic() * 1000.0 + timeout_ms
    manager.timers.arm_by(timer, timeout_ms)
    return timer


def leave_response_timer(router: Router, timer: ResponseTimer) -> None:
    """The router, which forgets it too, needs it no more. The two know each other: that cycle would keep the stream
    until the collector comes."""
    timer.router = None
    spare = router.stream.manager.spare_response_timers
    if len(spare) < SPARE_TIMERS:
        spare.append(timer)
    else:
        timer.disarm()
