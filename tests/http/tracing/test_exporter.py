"""The way of spans to a collector: in batches, in the background, and never more of them than there is room for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from meshproxy.clock import monotonic, move_ahead
from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import Services
from meshproxy.config.runtime import RuntimeInt
from meshproxy.http.grpc.client import RpcClient, RpcError, RpcResponse, RpcStatus, UnaryDone
from meshproxy.http.grpc.service import GrpcServiceConfig
from meshproxy.http.tracing.exporter import ExportSettings, SpanExporter, TracerStats
from meshproxy.http.tracing.otlp import SpanData, encode_resource, encode_scope
from meshproxy.http.tracing.sender import GrpcSender, HttpSender
from tests.upstream.harness import OK, Peer, Upstream, World, cluster_dict, endpoint, turns, until, upstream, world


def span(name: bytes) -> bytes:
    data = SpanData(b"0" * 31 + b"1", b"0" * 15 + b"1", b"", b"")
    data.name = name
    return data.encode()


class Fixture:
    """An exporter whose collector is `server`."""

    def __init__(self, w: World, server: Upstream, *, batch: int = 2, room: int = 4) -> None:
        w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        head = HeaderMap([(b":method", b"POST"), (b":path", b"/v1/traces"), (b":authority", b"collector")])
        settings = ExportSettings(encode_resource({}), encode_scope("s", "1"))
        settings.max_spans = room
        settings.min_flush_spans = RuntimeInt("", batch)
        settings.flush_interval_ms = RuntimeInt("", 1000)
        self.stats = TracerStats()
        sender = HttpSender("c", head, 1000.0)
        self.exporter = SpanExporter(settings, sender, self.stats, Services(w.dispatcher, w.manager))

    def add(self, *names: bytes) -> None:
        for name in names:
            self.exporter.add(span(name))


@asynccontextmanager
async def fixture(**options: int) -> AsyncIterator[tuple[Fixture, World, Upstream]]:
    async with world() as w, upstream() as server:
        yield Fixture(w, server, **options), w, server


async def batch(peer: Peer, answer: bytes = OK) -> list[str]:
    """The names of the spans in the next request, which is answered."""
    head = await peer.request()
    assert head.startswith(b"POST /v1/traces HTTP/1.1\r\nhost: collector\r\n")
    length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
    message: Any = trace_service_pb2.ExportTraceServiceRequest()
    message.ParseFromString(await peer.read(length))
    if answer:
        peer.send(answer)
    return [each.name for each in message.resource_spans[0].instrumentation_library_spans[0].spans]


async def test_a_full_batch_goes_at_once_but_not_in_the_same_breath() -> None:
    async with fixture() as (f, w, server):
        f.add(b"a", b"b")
        assert "upstream_rq_total" not in w.counters()
        peer = await server.accept()
        assert await batch(peer) == ["a", "b"]
        await until(lambda: f.stats.spans_sent == 2)
        assert f.stats.timer_flushed == 0


async def test_few_spans_wait_for_the_interval() -> None:
    async with fixture() as (f, w, server):
        f.add(b"a")
        await turns()
        assert "upstream_cx_total" not in w.counters()
        move_ahead(1.1)
        w.dispatcher.timers.advance(int(monotonic() * 1000.0))
        peer = await server.accept()
        assert await batch(peer) == ["a"]
        assert f.stats.timer_flushed == 1


async def test_one_request_at_a_time_and_no_more_than_there_is_room_for() -> None:
    async with fixture() as (f, _, server):
        f.add(b"a", b"b")
        peer = await server.accept()
        f.add(b"c", b"d", b"e", b"f", b"g", b"h")
        assert f.stats.spans_dropped == 2
        assert await batch(peer) == ["a", "b"]
        assert await batch(peer) == ["c", "d", "e", "f"]
        await until(lambda: f.stats.spans_sent == 6)


async def test_what_the_collector_does_not_take_is_counted() -> None:
    async with fixture() as (f, _, server):
        f.add(b"a", b"b")
        peer = await server.accept()
        await batch(peer, b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")
        await until(lambda: f.stats.spans_dropped == 2)
        f.add(b"c", b"d")
        await batch(peer, b"")
        peer.close()
        await until(lambda: f.stats.spans_dropped == 4)
        assert f.stats.spans_sent == 0


async def test_without_its_cluster_spans_are_dropped() -> None:
    async with fixture() as (f, w, _):
        w.manager.remove("c")
        f.add(b"a", b"b")
        await until(lambda: f.stats.spans_dropped == 2)


async def test_closing_sends_what_is_left() -> None:
    async with fixture() as (f, _, server):
        f.add(b"a")
        f.exporter.close()
        peer = await server.accept()
        assert await batch(peer) == ["a"]


async def test_a_configuration_that_is_only_checked_sends_nothing() -> None:
    stats = TracerStats()
    exporter = SpanExporter(ExportSettings(b"", b""), HttpSender("c", HeaderMap(), 1000.0), stats, None)
    exporter.add(b"x")
    exporter.flush()
    assert stats.spans_dropped == 1


class FakeClient(RpcClient):
    """Has calls that the test ends."""

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, bytes, UnaryDone, dict[str, Any]]] = []
        self.closings = 0

    def start_unary(self, path: bytes, message: bytes, on_done: UnaryDone, **options: Any) -> Callable[[], None]:
        self.calls.append((path, message, on_done, options))
        return self.close

    def close(self) -> None:
        self.closings += 1


async def test_a_collector_that_speaks_grpc() -> None:
    async with world() as w:
        clients: list[FakeClient] = []

        def open_client(services: Services, config: GrpcServiceConfig) -> RpcClient:
            assert config.cluster == "c"
            clients.append(FakeClient())
            return clients[-1]

        services = Services(w.dispatcher, w.manager, open_client)
        settings = ExportSettings(encode_resource({}), encode_scope("s", "1"))
        settings.min_flush_spans = RuntimeInt("", 1)
        stats = TracerStats()
        exporter = SpanExporter(settings, GrpcSender(GrpcServiceConfig("c"), b"agent"), stats, services)

        exporter.add(span(b"a"))
        await until(lambda: clients and clients[0].calls)
        path, message, on_done, options = clients[0].calls[0]
        assert path == b"/opentelemetry.proto.collector.trace.v1.TraceService/Export"
        assert b"a" in message
        assert options == {"timeout_ms": 10_000.0, "metadata": [(b"user-agent", b"agent")]}
        on_done(RpcResponse(b"", HeaderMap(), HeaderMap()))
        assert stats.spans_sent == 1

        exporter.add(span(b"b"))
        exporter.add(span(b"c"))
        await until(lambda: len(clients[0].calls) == 2)
        exporter.close()
        assert clients[0].closings == 0  # not before the last batch is there
        clients[0].calls[1][2](RpcError(RpcStatus(14, "down")))
        assert stats.spans_dropped == 2
        assert clients[0].closings == 1

        exporter.add(span(b"d"))  # of a stream that outlives the configuration
        await until(lambda: len(clients) == 2 and clients[1].calls)
        clients[1].calls[0][2](RpcResponse(b"", HeaderMap(), HeaderMap()))
        assert clients[1].closings == 1
        assert stats.spans_sent == 2
