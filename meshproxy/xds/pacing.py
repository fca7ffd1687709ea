"""Time in the client: how long it waits before it asks again, and how often it may ask."""

from __future__ import annotations

import asyncio
import random

from meshproxy.clock import monotonic
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.timers import CallTimer


async def pause(dispatcher: Dispatcher, duration_ms: float) -> None:
    """Wait, on the timers of the dispatcher."""
    over = asyncio.Event()
    timer = CallTimer(over.set)
    dispatcher.timers.arm(timer, duration_ms)
    try:
        await over.wait()
    finally:
        timer.disarm()


class BackOff:
    """As Envoy's: exponential, each time anything between nothing and the limit, so that clients do not come all at
    once when a control plane is back."""

    def __init__(self, base_ms: float, max_ms: float) -> None:
        self._base_ms = base_ms
        self._max_ms = max_ms
        self._limit_ms = base_ms

    def next_ms(self) -> float:
        limit_ms = self._limit_ms
        self._limit_ms = min(2.0 * limit_ms, self._max_ms)
        return random.uniform(0.0, limit_ms)

    def reset(self) -> None:
        """It went well."""
        self._limit_ms = self._base_ms


class RequestLimit:
    """A token bucket, `RateLimitSettings`; without a size there is no limit."""

    def __init__(self, max_tokens: int, tokens_per_s: float) -> None:
        self._max_tokens = float(max_tokens)
        self._tokens = self._max_tokens
        self._per_s = tokens_per_s
        self._filled = monotonic()

    def take(self) -> float:
        """Take a token. 0.0, or how many milliseconds from now there will be one to take."""
        if not self._max_tokens:
            return 0.0
        now = monotonic()
        self._tokens = min(self._tokens + (now - self._filled) * self._per_s, self._max_tokens)
        self._filled = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._per_s * 1000.0
