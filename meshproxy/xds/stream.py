"""A stream to a control plane, opened anew while anybody asks: state of the world or delta, of all types or of one.

What is to be said is asked of each type when it can be sent, so that all that changed until then goes in one request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse, DiscoveryResponse
from google.protobuf.message import DecodeError

from meshproxy.codec import grpc
from meshproxy.config.context import Services
from meshproxy.http.grpc.client import RpcCall, RpcError, RpcStatus
from meshproxy.observe.stats import StatsRegistry
from meshproxy.xds.api_source import ApiSource, stream_path
from meshproxy.xds.delta import DeltaState
from meshproxy.xds.feed import Feed, SinkOf
from meshproxy.xds.pacing import RequestLimit, pause
from meshproxy.xds.redial import Redial
from meshproxy.xds.resources import type_rank
from meshproxy.xds.sotw import SotwState
from meshproxy.xds.source import Source, SourceStatus
from meshproxy.xds.stats import ControlPlaneStats

_log: Final = logging.getLogger("meshproxy.xds")

# Responses that wait to be applied, or to be answered since the server reads nothing; with more, it has to wait.
_MOST_QUEUED_BYTES: Final = 16 * 1024 * 1024
_MOST_QUEUED: Final = 1000  # of one type
# While something is applied, it asks for more and more names: those of so long go out together.
_GATHER_S: Final = 0.02

_MEANWHILE: Final = ", what it said last stays in force"


class DiscoveryStream(Source):
    """`type_url` is the one type that the stream is for; empty: it is aggregated. `sink_of` gives a type's sink."""

    def __init__(
        self,
        services: Services,
        api: ApiSource,
        node: Any,
        registry: StatsRegistry,
        stats_prefix: str,
        sink_of: Callable[[str], SinkOf],
        type_url: str = "",
    ) -> None:
        path = stream_path(type_url, delta=api.delta)
        assert path is not None
        self._redial = Redial(services, api, path, "control plane", self._talk, self._on_end, _MEANWHILE)
        self._dispatcher = services.dispatcher
        self._api = api
        self._node = node
        self._registry = registry
        self._stats_prefix = f"{stats_prefix}control_plane."
        self._stats = registry.acquire(self._stats_prefix, ControlPlaneStats)
        self._closed = False
        self._sink_of = sink_of
        self._feeds: dict[str, Feed] = {}
        self._limit = RequestLimit(api.max_tokens, api.tokens_per_s)
        self._due = asyncio.Event()
        self._gather: asyncio.TimerHandle | None = None
        self._room = asyncio.Event()
        self._first_request = True
        self._identifier = ""
        self._unknown: set[str] = set()

    # -- who asks

    def start(self) -> None:
        self._redial.start()

    def subscribe(self, type_url: str, name: str) -> None:
        self._feed(type_url).state.subscribe(name)
        self._ask_soon()

    def unsubscribe(self, type_url: str, name: str) -> None:
        self._feed(type_url).state.unsubscribe(name)
        self._ask_soon()

    def restore(self, type_url: str, versions: Mapping[str, str]) -> None:
        self._feed(type_url).state.restore(versions)

    @property
    def idle(self) -> bool:
        return not any(feed.state.names for feed in self._feeds.values())

    def _feed(self, type_url: str) -> Feed:
        feed = self._feeds.get(type_url)
        if feed is None:
            state = DeltaState(type_url) if self._api.delta else SotwState(type_url)
            feed = Feed(self._dispatcher, state, self._sink_of(type_url), self._due.set, self._room.set)
            self._feeds[type_url] = feed
            self._feeds = dict(sorted(self._feeds.items(), key=lambda held: type_rank(held[0])))
        return feed

    def _ask_soon(self) -> None:
        """With whatever else comes up in this turn, or in a while where much is going on."""
        if not any(feed.applying for feed in self._feeds.values()):
            self._due.set()
        elif self._gather is None:
            self._gather = self._dispatcher.loop.call_later(_GATHER_S, self._on_gathered)

    def _on_gathered(self) -> None:
        self._gather = None
        self._due.set()

    # -- one stream after another

    async def _talk(self, call: RpcCall) -> None:
        """Until the stream ends."""
        for feed in self._feeds.values():
            feed.begin_stream()
        self._first_request = True
        self._due.set()
        self._stats.connected_state += 1
        writer = asyncio.create_task(self._write(call), name="xDS requests")
        try:
            writer.add_done_callback(lambda _: self._room.set())
            await self._read(call, writer)
        finally:
            self._stats.connected_state -= 1
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _read(self, call: RpcCall, writer: asyncio.Task[None]) -> None:
        """To the end of the call; what is left of it, when nothing can be answered any more, waits for no room."""
        kind = DeltaDiscoveryResponse if self._api.delta else DiscoveryResponse
        async for data in call:
            try:
                response = kind.FromString(data)
            except DecodeError:
                raise RpcError(RpcStatus(grpc.INTERNAL, f"what the server sent is no {kind.DESCRIPTOR.name}")) from None
            self._on_response(response, len(data))
            while self._is_full() and not writer.done():
                self._room.clear()
                await self._room.wait()

    def _is_full(self) -> bool:
        """Then the server has to wait."""
        feeds = self._feeds.values()
        if sum(feed.queued_bytes for feed in feeds) > _MOST_QUEUED_BYTES:
            return True
        return any(feed.queued + feed.state.unanswered > _MOST_QUEUED for feed in feeds)

    def _on_response(self, response: Any, size: int) -> None:
        self._identifier = response.control_plane.identifier or self._identifier
        self._redial.hear(self._identifier)
        feed = self._feeds.get(response.type_url)
        if feed is not None:
            feed.take(response, size)
            return
        self._stats.unknown_type += 1
        if response.type_url not in self._unknown and len(self._unknown) < 100:
            self._unknown.add(response.type_url)
            target = self._redial.target
            _log.warning("%s sent resources of type %r, which it was not asked for", target, response.type_url)

    async def _write(self, call: RpcCall) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            while self._next_due() is not None:
                await self._wait_for_token()
                feed = self._next_due()
                if feed is None:
                    break
                feed.sink.on_attempt()
                if not await call.send(self._message(feed.state.request())):
                    return
                self._room.set()

    def _next_due(self) -> Feed | None:
        return next((feed for feed in self._feeds.values() if feed.state.due), None)

    def _message(self, request: Any) -> bytes:
        if self._first_request or not self._api.node_on_first_message_only:
            request.node.CopyFrom(self._node)
        self._first_request = False
        return bytes(request.SerializeToString())

    async def _wait_for_token(self) -> None:
        stats = self._stats
        while delay_ms := self._limit.take():
            stats.rate_limit_enforced += 1
            waiting = sum(feed.state.due for feed in self._feeds.values())
            stats.pending_requests += waiting
            try:
                await pause(self._dispatcher, delay_ms)
            finally:
                stats.pending_requests -= waiting

    # -- how it stands

    def _on_end(self, reason: str) -> None:
        for feed in self._feeds.values():
            if feed.state.names:
                feed.sink.on_failure(reason)

    @property
    def status(self) -> SourceStatus:
        redial = self._redial
        return SourceStatus(redial.target, redial.heard, self._identifier, redial.failure)

    async def close(self) -> None:
        if self._gather is not None:
            self._gather.cancel()
            self._gather = None
        await self._redial.close()
        for feed in self._feeds.values():
            feed.close()
        if not self._closed:
            self._closed = True
            self._registry.release(self._stats_prefix, ControlPlaneStats)
