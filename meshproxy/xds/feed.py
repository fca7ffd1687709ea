"""The responses of one type, applied one after another, and the time that resources have to live."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse

from meshproxy.clock import monotonic
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.slices import in_slices
from meshproxy.net.timers import CallTimer
from meshproxy.xds.lifetimes import Lifetimes
from meshproxy.xds.resources import WHOLE_TYPES, Rejection, ResourceSink, ResourceUpdate
from meshproxy.xds.state import Change, TypeState

_log: Final = logging.getLogger("meshproxy.xds")


class _Queued:
    __slots__ = ("response", "size", "stream")

    def __init__(self, response: Any, size: int, stream: int) -> None:
        self.response = response
        self.size = size
        self.stream = stream


class SinkOf:
    """The sink, for one type of one source: one call at a time."""

    def __init__(self, sink: ResourceSink, source: bytes, type_url: str) -> None:
        self._sink = sink
        self._source = source
        self._type_url = type_url
        self._lock = asyncio.Lock()

    async def apply(
        self, updates: list[ResourceUpdate], removed: list[str], version: str, rejections: Sequence[Rejection] = ()
    ) -> list[Rejection]:
        """As that of the sink; a bug there refuses all that was to change."""
        async with self._lock:
            try:
                return await self._sink.apply(self._source, self._type_url, updates, removed, version, rejections)
            except Exception as error:  # noqa: BLE001  a bug in what applies them must not end the subscription
                _log.exception("a response of %s could not be applied", self._type_url)
                names = [*(each.name for each in updates), *removed]
                return [Rejection(name, f"internal error: {error!r}") for name in names]

    def on_failure(self, reason: str) -> None:
        self._sink.on_failure(self._source, self._type_url, reason)

    def on_attempt(self) -> None:
        self._sink.on_attempt(self._source, self._type_url)


class Feed:
    """One type on one stream after another. What has come is applied, also when the stream is gone since.

    `on_answer` is called when there is something to say; `on_room` when the queue has become shorter.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        state: TypeState,
        sink: SinkOf,
        on_answer: Callable[[], None],
        on_room: Callable[[], None],
    ) -> None:
        self.state = state
        self.sink = sink
        self.queued_bytes: int = 0
        self.stream: int = 0  # the number of the present one
        self._dispatcher = dispatcher
        self._on_answer = on_answer
        self._on_room = on_room
        self._queue: deque[_Queued] = deque()
        self._task: asyncio.Task[Any] | None = None
        self._lifetimes = Lifetimes()
        self._timer = CallTimer(self._on_lifetime)
        self._closed: bool = False

    def begin_stream(self) -> None:
        """A new one: nothing of the old ones is to be answered."""
        self.stream += 1
        self.state.begin_stream()

    @property
    def queued(self) -> int:
        """Responses that wait."""
        return len(self._queue)

    @property
    def applying(self) -> bool:
        return self._task is not None

    def take(self, response: Any, size: int) -> None:
        """A response has come. One that has all there is takes the place of one that still waits."""
        if self._queue and self._queue[-1].stream == self.stream and self._is_whole(response):
            self.queued_bytes -= self._queue.pop().size
        self._queue.append(_Queued(response, size, self.stream))
        self.queued_bytes += size
        self._work_on()

    def _is_whole(self, response: Any) -> bool:
        """Whether it has all there is: no heartbeats of what came before."""
        if self.state.type_url not in WHOLE_TYPES or isinstance(response, DeltaDiscoveryResponse):
            return False
        return all(each.type_url == self.state.type_url for each in response.resources)

    def _work_on(self) -> None:
        if self._task is None and not self._closed:
            self._task = self._dispatcher.spawn(self._work(), f"xDS {self.state.type_url}")

    async def _work(self) -> None:
        try:
            while self._queue:
                queued = self._queue.popleft()
                self.queued_bytes -= queued.size
                self._on_room()
                if queued.stream == self.stream:
                    self.state.begin_response()
                await self._apply(queued)
                self._on_answer()
        finally:
            self._task = None
            self._arm()

    async def _apply(self, queued: _Queued) -> None:
        state = self.state
        decoder = state.decoder(queued.response)
        await in_slices(decoder.steps())
        change = state.change(decoder, queued.response)
        rejections: list[Rejection] = []
        if not change.only_heartbeats:
            rejections = await self.sink.apply(change.updates, change.removed, change.version, change.rejections)
        state.conclude(change, rejections, same_stream=queued.stream == self.stream)
        self._renew(change, rejections)

    # -- lifetimes

    def _renew(self, change: Change, rejections: list[Rejection]) -> None:
        now = monotonic()
        refused = {each.name for each in rejections}
        for name in change.removed:
            if name not in refused:
                self._lifetimes.forget(name)
        for name, ttl_ms in change.refreshed:
            if name not in refused:
                self._lifetimes.set(name, ttl_ms, now)

    def _arm(self) -> None:
        until = self._lifetimes.next()
        if until is None or self._closed:
            self._timer.disarm()
        else:
            self._dispatcher.timers.arm(self._timer, max((until - monotonic()) * 1000.0, 0.0))

    def _on_lifetime(self) -> None:
        if self.applying:
            return  # that may renew it; the timer is armed anew after it
        expired = self._lifetimes.take_expired(monotonic())
        gone = [name for name in expired if name in self.state.held]
        self._arm()
        if gone:
            self.state.expire(gone)
            self._dispatcher.spawn(self._expire(gone), f"xDS {self.state.type_url} expiry")

    async def _expire(self, names: Iterable[str]) -> None:
        """As if the control plane had removed them."""
        await self.sink.apply([], list(names), "")

    def close(self) -> None:
        """Apply nothing more. What is being applied goes on to its end."""
        self._closed = True
        self._queue.clear()
        self.queued_bytes = 0
        self._timer.disarm()
