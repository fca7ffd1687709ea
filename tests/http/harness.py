"""A downstream connection without a socket: bytes go in, bytes come out; a scripted filter stands for the upstream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any

from envoy.config.route.v3.route_pb2 import RouteConfiguration
from google.protobuf import json_format
from google.protobuf.message import Message

from meshproxy.clock import monotonic, move_ahead
from meshproxy.codec.headers import Field, HeaderMap
from meshproxy.codec.http1.settings import Http1Settings
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Layer, Runtime
from meshproxy.http.chain import FilterChain
from meshproxy.http.connection_manager import ConnectionManager
from meshproxy.http.filter import CONTINUE, HTTP_FILTER_OVERRIDES, STOP, HttpFilter
from meshproxy.http.manager_config import ConnectionManagerConfig, RoutesRef
from meshproxy.http.network_filter import ActiveConnection, ConnectionOwner
from meshproxy.http.stats import ConnectionManagerStats
from meshproxy.http.stream import Stream
from meshproxy.net.connection import Connection, ConnectionHandler
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.observe.stats import StatsRegistry
from meshproxy.observe.stream_info import ConnectionInfo
from meshproxy.route.build import build_route_configuration
from meshproxy.upstream.manager import ClusterManager

TO_A = {"match": {"prefix": "/"}, "route": {"cluster": "a"}}
ANY_ROUTE = {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [TO_A]}]}


class FakeLoop(asyncio.BaseEventLoop):
    """Runs nothing by itself: the harness does."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], object]] = []

    def __del__(self) -> None:
        """There is nothing to close."""

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        self.soon.append(lambda: callback(*args))

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        return asyncio.TimerHandle(0.0, callback, args, self)

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Timers are advanced by hand."""

    def call_exception_handler(self, context: Any) -> None:
        raise context["exception"]


class FakeTransport:
    """What uvloop's transport is to a Connection."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.written = b""
        self.paused = False
        self.closed = False

    def get_extra_info(self, name: str) -> Any:
        return {"peername": (self.peer, 4711), "sockname": ("10.0.0.1", 8080)}.get(name)

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, pieces: Sequence[bytes]) -> None:
        self.written += b"".join(pieces)

    def write_eof(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True

    abort = close


class Owner(ConnectionOwner):
    def on_connection_done(self, connection: ActiveConnection) -> None:
        pass


class ScriptedUpstream(HttpFilter):
    """Stands last in the chain: keeps the request's head as the router would get it, and answers when it is told."""

    name = "upstream"

    def __init__(self, answer: Sequence[Field] | None = ((b":status", b"200"),)) -> None:
        self.answer_fields = answer
        self.seen: list[list[Field]] = []
        self.streams: list[Stream] = []
        self.done = 0

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        self.seen.append(list(headers.fields))
        self.streams.append(stream)
        if self.answer_fields is not None:
            stream.send_response_headers(HeaderMap(list(self.answer_fields)), True)
        return STOP

    def on_stream_done(self, stream: Stream) -> None:
        self.done += 1


class PassingFilter(HttpFilter):
    """Does nothing."""

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        return CONTINUE


class Harness:
    """A connection manager's configuration in parts; `routes` is a RouteConfiguration as JSON."""

    def __init__(
        self,
        routes: dict[str, Any] | None = None,
        *,
        runtime: dict[str, Any] | None = None,
        upstream: ScriptedUpstream | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        codec: Http1Settings | None = None,
        peer: str = "10.0.0.9",
    ) -> None:
        self.peer = peer
        self.registry = StatsRegistry()
        self.errors = ConfigErrors()
        self.runtime = Runtime([Layer("static", runtime or {})])
        self.context = BuildContext(self.errors, self.runtime, self.registry)
        self.context.stat_prefix = "http.test."
        self.loop = FakeLoop() if loop is None else loop
        self.dispatcher = Dispatcher(self.loop)
        self.upstream = upstream or ScriptedUpstream()
        self.filters: list[HttpFilter] = []
        self.clusters: ClusterManager | None = None  # of all connections; None: each has its own, which are empty
        self._routes = ANY_ROUTE if routes is None else routes
        self._codec = codec or Http1Settings(enable_trailers=True)
        self.stats = ConnectionManagerStats()

    def add(self, http_filter: HttpFilter | None, name: str) -> None:
        """Append a filter to the chain."""
        assert http_filter is not None, str(self.errors)
        http_filter.name = name
        self.filters.append(http_filter)

    def config(self) -> ConnectionManagerConfig:
        """The configuration as it stands now; change it before `connect`."""
        table = None
        if self._routes:
            message = json_format.ParseDict(self._routes, RouteConfiguration())
            table = build_route_configuration(message, "routes", self.context, HTTP_FILTER_OVERRIDES)
            assert table is not None, str(self.errors)
        filters = [*self.filters, self.upstream]
        for slot, http_filter in enumerate(filters):
            http_filter.slot = slot
        config = ConnectionManagerConfig(self.stats, FilterChain(tuple(filters)), RoutesRef(table), self._codec)
        config.retry_stale_connections = self.runtime.switch("", True)
        config.generate_request_id = False
        return config

    def connect(self, config: ConnectionManagerConfig | None = None) -> Downstream:
        """A new connection to the connection manager."""
        return Downstream(self, self.config() if config is None else config)

    def exchange(self, request: bytes) -> bytes:
        """Send a request on a connection of its own; everything that comes back, without the date."""
        return self.connect().send(request)

    def advance(self, milliseconds: int) -> None:
        """Let the time pass."""
        move_ahead(milliseconds / 1000.0)
        self.dispatcher.timers.advance(int(monotonic() * 1000.0))
        self.run_soon()

    def run_soon(self) -> None:
        """Run what was put off to the end of a turn."""
        if isinstance(self.loop, FakeLoop):
            while self.loop.soon:
                self.loop.soon.pop(0)()


class Downstream:
    """A connection, from its peer's side."""

    def __init__(self, harness: Harness, config: ConnectionManagerConfig) -> None:
        self._harness = harness
        self.transport = FakeTransport(harness.peer)
        self._connection = Connection(harness.dispatcher, ConnectionHandler(), 1 << 20)
        clusters = harness.clusters or ClusterManager(harness.dispatcher, harness.registry, harness.runtime)
        self._connection.connection_made(self.transport)
        info = ConnectionInfo(1, self._connection.remote, self._connection.local)
        self.manager = ConnectionManager(config, harness.dispatcher, clusters, Owner(), self._connection, info)
        self._connection.set_handler(self.manager.handler)

    def send(self, data: bytes) -> bytes:
        """Give it bytes; what it has answered since the last call."""
        self.feed(data)
        return self.received()

    def feed(self, data: bytes) -> None:
        """Give it bytes; what it answers stays in `transport.written`."""
        self._connection.data_received(data)
        self._harness.run_soon()

    def received(self) -> bytes:
        self._harness.run_soon()
        written, self.transport.written = self.transport.written, b""
        return without_date(written)

    def feed_in_one_turn(self, data: bytes) -> bytes:
        """Give it bytes; what is answered before anybody else has a turn."""
        self._connection.data_received(data)
        written, self.transport.written = self.transport.written, b""
        return without_date(written)

    def take_nothing(self) -> None:
        """From now on the peer takes no bytes: more than the limit waits to be sent."""
        self._connection.pause_writing()

    def take_all(self) -> None:
        """The peer takes all there is."""
        self._connection.resume_writing()

    def leave(self) -> None:
        """The peer closes."""
        self._connection.connection_lost(None)
        self._harness.run_soon()


def without_date(data: bytes) -> bytes:
    """The bytes without Date and Server lines, which no test is about."""
    lines = data.split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.lower().startswith((b"date:", b"server:")))


def parse(values: dict[str, Any], message: Message) -> Any:
    """A message from its JSON."""
    return json_format.ParseDict(values, message)


def get(path: str = "/", *fields: tuple[str, str], method: str = "GET") -> bytes:
    """A request without a body."""
    lines = [f"{method} {path} HTTP/1.1", "host: h", *(f"{name}: {value}" for name, value in fields)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def head(status: str, *fields: tuple[str, str], body: str = "") -> bytes:
    """A response as the wire carries it."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields)]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode("latin-1")
