"""Long downloads and uploads with HTTP/2 on either side, to a reader that stops reading: the sender is held back, the
proxy's memory stays near its windows and limits, and the connection's other streams go on.

Both ends are the test's own sockets, with small buffers, as in test_long_streams.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import pytest

from tests.integration.bulk import DEADLINE_S, KIB, MIB, PATTERN, Memory, Reader, Sender, Sink, Source, kernel_bytes
from tests.integration.config import Json, bootstrap, cluster, forward, http2_cluster, listener
from tests.integration.http2_body import BulkWire, Http2Body
from tests.support.http2_wire import MAX_WINDOW, PREFACE, data, headers
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_meshproxy
from tests.support.wire import WireReader

_BULK = 64 * MIB
_READ_FIRST = 300 * KIB
_END_BUFFER = 64 * KIB  # of the test's own sockets
_LIMIT = 64 * KIB  # of the proxy's buffers
_STREAM_WINDOW = 64 * KIB  # of the proxy
_CONNECTION_WINDOW = 256 * KIB
_WINDOW = 64 * KIB - 1  # of the test's ends
_TURN_BYTES = 512 * KIB  # that the proxy may take in, and give out, before it looks at its limits
_MEMORY_MIB = 12  # of these the allocator takes 4 from the kernel before they are needed (server/heap.py)
_OTHER = b"another" * 4000
_SMALL: Json = {
    "initial_stream_window_size": _STREAM_WINDOW,
    "initial_connection_window_size": _CONNECTION_WINDOW,
}
_DEFAULT_WINDOW = 16 * MIB  # of a stream, in Envoy
_DEFAULT_LIMIT = MIB  # of a buffer, in Envoy

DOWN: Final = "down"
UP: Final = "up"
PAIRS = ["h2-h2", "h2-h1", "h1-h2"]
# How the reader stops: it lets its stream's window run out, or reads nothing from its socket, whatever its windows.
WINDOW: Final = "window"
SOCKET: Final = "socket"
WAYS = [
    (pair, way, stops)
    for pair in PAIRS
    for way in (DOWN, UP)
    for stops in (WINDOW, SOCKET)
    if stops == SOCKET or pair.split("-")[way == UP] == "h2"
]
each_way = pytest.mark.parametrize(("pair", "way", "stops"), WAYS, ids=["-".join(way) for way in WAYS])


class Bench:
    """A proxy with a listener for every pair of protocols, and the upstream's sockets."""

    def __init__(self, cleanup: ExitStack) -> None:
        self._listening = {kind: cleanup.enter_context(_listening_socket()) for kind in ("h1", "h2")}
        self.proxy: ProxyProcess = cleanup.enter_context(
            start_meshproxy(self._bootstrap(), "--enable-core-dump")  # its memory is measured
        )
        self.ports = self.proxy.listener_ports()
        self.cleanup = cleanup

    def _bootstrap(self) -> str:
        listeners: list[Json] = []
        clusters: list[Json] = []
        tight: Json = {"per_connection_buffer_limit_bytes": _LIMIT}
        kinds: list[tuple[str, Json, Json]] = [("small", _SMALL, tight), ("default", {}, {}), ("idle", _SMALL, tight)]
        for name, windows, buffers in kinds:
            manager: Json = {"http2_protocol_options": windows}
            if name == "idle":
                manager["stream_idle_timeout"] = "0.5s"
            for kind in ("h1", "h2"):
                port = self._listening[kind].getsockname()[1]
                http2 = http2_cluster(**windows) if kind == "h2" else {}
                clusters.append(cluster(f"{name}-{kind}", port, **http2, **buffers))
                to = [forward("/", f"{name}-{kind}", timeout="0s")]
                listeners.append(listener(f"{name}-{kind}", to, manager=manager, **buffers))
        return bootstrap(listeners, clusters)

    def connect(self, name: str) -> socket.socket:
        """A downstream socket."""
        sock = self.cleanup.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _END_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _END_BUFFER)
        sock.settimeout(DEADLINE_S)
        sock.connect(("127.0.0.1", self.ports[name]))
        return sock

    def accept(self, kind: str) -> socket.socket:
        """An upstream socket."""
        sock = self.cleanup.enter_context(self._listening[kind].accept()[0])
        sock.settimeout(DEADLINE_S)
        return sock

    def idle_timeouts(self) -> int:
        """How many streams there were that were idle for too long."""
        return sum(self.proxy.stats("downstream_rq_idle_timeout").values())

    def unsent_bytes(self) -> int:
        """What waits for a window, on both sides."""
        return sum(self.proxy.stats("http2.pending_send_bytes").values())

    def gauges(self) -> dict[str, int]:
        """Those that must be 0 when nobody is there, where they are not."""
        found = self.proxy.stats(r"cx_active|rq_active|streams_active|pending_send|rq_pending_active|frames_active")
        return {name: value for name, value in found.items() if value and not name.startswith(("http.admin", "server"))}


def _listening_socket() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.settimeout(DEADLINE_S)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _END_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _END_BUFFER)
    return sock


@pytest.fixture(scope="module")
def shared() -> Iterator[Bench]:
    """One proxy for all tests."""
    with ExitStack() as cleanup:
        yield Bench(cleanup)


@pytest.fixture
def bench(shared: Bench) -> Iterator[Bench]:
    """The proxy; connections of the test end with it, and leave nothing behind."""
    of_all = shared.cleanup
    with ExitStack() as connections:
        shared.cleanup = connections
        yield shared
    shared.cleanup = of_all
    wait_for(lambda: not shared.gauges(), "all to be freed", 20.0)
    assert "Traceback" not in shared.proxy.output()


class Exchange:
    """A request and a response with a long body on one of them; and others beside it."""

    def __init__(self, bench: Bench, listener_name: str, pair: str, way: str, stops: str, total: int) -> None:
        self.front, self.back = pair.split("-")
        self._bench = bench
        self._stuck_at = way if stops == SOCKET else ""  # that end reads nothing from its socket
        self._name = f"{listener_name}-{self.back}"
        self._window = _WINDOW if stops == WINDOW else MAX_WINDOW
        self.downstream: BulkWire | None = None
        self.upstream: BulkWire | None = None
        self._last_stream = 1
        self._request_ends = way == DOWN
        asked = self._ask(total)
        taken = self._take(asked)
        self.source: Source = taken if way == DOWN else asked
        self.sink: Sink = asked if way == DOWN else taken
        if way == DOWN:
            self._answer(asked, taken, total)

    def _ask(self, total: int) -> socket.socket | Http2Body:
        sock = self._bench.connect(self._name)
        if self.front == "h1":
            length = b"" if self._request_ends else b"content-length: %d\r\n" % total
            sock.sendall(b"%s / HTTP/1.1\r\nhost: a\r\n%s\r\n" % (b"GET" if self._request_ends else b"POST", length))
            return sock
        self.downstream = BulkWire(sock, PREFACE, self._window)
        length_field = [] if self._request_ends else [("content-length", str(total))]
        self.downstream.send(headers(1, [*_request(self._request_ends), *length_field], end=self._request_ends))
        return Http2Body(self.downstream, 1)

    def _take(self, asked: socket.socket | Http2Body) -> socket.socket | Http2Body:
        sock = self._bench.accept(self.back)
        if self.back == "h1":
            WireReader(sock).read_head()
            return sock
        self.upstream = BulkWire(sock, b"", self._window)
        assert self.upstream.read_bytes(len(PREFACE)) == PREFACE
        return Http2Body(self.upstream, self.upstream.wait_new())

    def _answer(self, asked: socket.socket | Http2Body, taken: socket.socket | Http2Body, total: int) -> None:
        if self.upstream is not None:
            self.upstream.send(headers(1, [(":status", "200"), ("content-length", str(total))]))
        elif isinstance(taken, socket.socket):
            taken.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        if self.downstream is not None:
            self.downstream.wait_head(1)
        elif isinstance(asked, socket.socket):
            assert WireReader(asked).read_head().status == 200

    def another(self, reuse: bool = False) -> None:
        """A request beside the long one, on the same connections where they have room for it, and its answer; with
        `reuse` HTTP/1 has it too, as the long one is over."""
        downstream = self.downstream
        if downstream is None or self._stuck_at == DOWN:
            downstream = BulkWire(self._bench.connect(self._name), PREFACE)
        downstream.sock.settimeout(DEADLINE_S)
        self._last_stream += 2
        stream = self._last_stream
        downstream.ask(stream, _request(False), _OTHER)
        if self.upstream is None:
            answer_http1(self.source if reuse and isinstance(self.source, socket.socket) else self._bench.accept("h1"))
        else:
            self.upstream.sock.settimeout(DEADLINE_S)
            seen = self.upstream.wait_new()
            assert self.upstream.take_all(seen) == _OTHER
            self.upstream.send(headers(seen, [(":status", "200")]))
            self.upstream.send_all(seen, _OTHER)
        assert downstream.take_all(stream) == _OTHER
        assert downstream.streams[stream].ended

    def wait_sink_gone(self) -> None:
        """Until the receiver of the long body is told that there will be no more."""
        wire, sink = self.upstream, self.sink
        if wire is not None:
            stream = max(wire.streams)
            wire.sock.settimeout(DEADLINE_S)
            wire.read_until(lambda: wire.was_reset(stream))
            return
        with contextlib.suppress(ConnectionResetError):
            while sink.recv(MIB):
                pass

    def end_source(self) -> None:
        """The long body is whole: say so, where its length does not."""
        if self.upstream is not None:
            stream = max(self.upstream.streams)
            self.upstream.send(data(stream, end=True))

    @property
    def others_go_on(self) -> bool:
        """Not if the upstream reads nothing at all from a connection that another request will take as well."""
        return self.upstream is None or self._stuck_at != UP


def expected_beginning(size: int) -> bytes:
    """Of the pattern."""
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


def answer_http1(sock: socket.socket) -> None:
    """What `another` asks, by HTTP/1."""
    reader = WireReader(sock)
    reader.read_body(head := reader.read_head(), to_end=False)
    assert head.body == _OTHER
    sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(_OTHER), _OTHER))


def _request(ends: bool) -> list[tuple[str, str]]:
    return [(":method", "GET" if ends else "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")]


@pytest.mark.parametrize("total", [_BULK, pytest.param(1024 * MIB, marks=pytest.mark.long)], ids=["64MiB", "1GiB"])
@each_way
def test_a_reader_that_stops(bench: Bench, pair: str, way: str, stops: str, total: int) -> None:
    outside = _WINDOW if stops == WINDOW else kernel_bytes()
    inside = _LIMIT + _STREAM_WINDOW + _TURN_BYTES
    exchange = Exchange(bench, "small", pair, way, stops, total)
    stop_and_go_on(bench, exchange, total, outside + inside, _MEMORY_MIB, _LIMIT)


@pytest.mark.parametrize("way", [DOWN, UP])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_reader_that_stops_with_windows_as_they_are(bench: Bench, pair: str, way: str) -> None:
    """Those of Envoy, which are large."""
    stops = WINDOW if pair.split("-")[way == UP] == "h2" else SOCKET
    inside = _DEFAULT_LIMIT + _DEFAULT_WINDOW + _TURN_BYTES
    exchange = Exchange(bench, "default", pair, way, stops, _BULK)
    stop_and_go_on(bench, exchange, _BULK, kernel_bytes() + inside, _MEMORY_MIB + inside / MIB, _DEFAULT_LIMIT)


def stop_and_go_on(
    bench: Bench, exchange: Exchange, total: int, held_bytes: int, memory_mib: float, limit: int
) -> None:
    """Read a little, stop, and read the rest, within limits of what the sender gets rid of, of the memory, and of what
    waits for a window."""
    memory, sender, reader = Memory(bench.proxy.pid), Sender(exchange.source, total), Reader(exchange.sink)
    beginning = threading.Thread(target=reader.read, args=(_READ_FIRST,))
    beginning.start()
    held = sender.fill()
    beginning.join()
    if exchange.others_go_on:
        exchange.another()
    assert bench.unsent_bytes() <= limit + _TURN_BYTES
    kernel = kernel_bytes() if "h1" in (exchange.front, exchange.back) else 0
    assert held < _READ_FIRST + held_bytes + kernel
    rest = sender.finish()
    reader.read(total)
    rest.join()
    assert reader.is_right()
    assert memory.grown_mib() < memory_mib


# -- for good


@pytest.mark.parametrize(
    ("pair", "stops"), [("h2-h2", WINDOW), ("h2-h2", SOCKET), ("h2-h1", WINDOW), ("h1-h2", SOCKET)]
)
def test_a_downstream_that_stops_for_good(bench: Bench, pair: str, stops: str) -> None:
    """Nothing moves on its stream, which is reset after the idle time."""
    exchange = Exchange(bench, "idle", pair, DOWN, stops, _BULK)
    before = bench.idle_timeouts()
    Sender(exchange.source, _BULK).send_until_refused()
    assert bench.idle_timeouts() == before + 1
    downstream = exchange.downstream
    if downstream is not None and stops == WINDOW:
        downstream.read_until(lambda: downstream.is_over(1))
        assert downstream.was_reset(1)
        exchange.another()


@pytest.mark.parametrize("pair", PAIRS)
def test_an_upstream_that_stops_for_good(bench: Bench, pair: str) -> None:
    """The downstream is told (408, as Envoy has it where the request is not whole), and may use its connection
    again where that is HTTP/2."""
    before = bench.idle_timeouts()
    if pair == "h1-h2":
        exchange = Exchange(bench, "idle", pair, UP, WINDOW, MIB)
        assert isinstance(exchange.source, socket.socket)
        Sender(exchange.source, MIB).finish().join()  # the kernel takes it all
        answer = WireReader(exchange.source).read_head()
        assert (answer.status, answer.get(b"connection")) == (408, b"close")
    else:
        exchange = Exchange(bench, "idle", pair, UP, WINDOW if pair == "h2-h2" else SOCKET, _BULK)
        downstream = exchange.downstream
        assert downstream is not None
        Sender(exchange.source, _BULK).send_until_refused()
        assert downstream.streams[1].parts[0].get(":status") == "408"
        assert downstream.streams[1].ended
        assert downstream.streams[1].reset == 0  # NO_ERROR: the answer is whole, and the rest of the request unread
    assert bench.idle_timeouts() == before + 1
    exchange.wait_sink_gone()
    if exchange.downstream is not None:
        exchange.another()


@pytest.mark.parametrize("pair", ["h2-h2", "h2-h1"])
def test_an_answer_that_nobody_takes(bench: Bench, pair: str) -> None:
    """All of it has come from the upstream, and waits for the downstream's window."""
    total = _WINDOW + _LIMIT // 2
    counted = "http2.tx_flush_timeout"
    before = bench.proxy.stats(counted)[counted]
    exchange = Exchange(bench, "idle", pair, DOWN, WINDOW, total)
    Sender(exchange.source, total).finish().join()
    exchange.end_source()
    downstream = exchange.downstream
    assert downstream is not None
    downstream.read_until(lambda: downstream.is_over(1))
    assert downstream.was_reset(1)
    assert bytes(downstream.arrived[1]) == expected_beginning(_WINDOW)
    assert bench.proxy.stats(counted)[counted] == before + 1
    exchange.another(reuse=True)
