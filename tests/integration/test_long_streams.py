"""Long downloads, uploads and tunnels to a reader that stops reading: the sender is held back, the proxy's memory stays
near its buffers' limits, and once the reader goes on the rest arrives as it was sent.

Both ends are the test's own sockets, whose buffers are small: what the sender gets rid of is in the proxy or in the
kernel's buffers of the proxy's sockets.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.bulk import DEADLINE_S, KIB, MIB, PATTERN, Memory, Reader, Sender, kernel_bytes
from tests.integration.config import Json, bootstrap, cluster, direct, forward, listener, tcp_listener
from tests.support.proxy import ProxyProcess, start_meshproxy
from tests.support.wire import WireReader
from tests.tls.certificates import dns, issue, world

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
_BULK = 64 * MIB
_MANY = 16
_REQUEST = 4 * KIB
_READ_FIRST = 300 * KIB
_END_BUFFER = 64 * KIB  # of the test's own sockets
_LIMIT = 64 * KIB  # of the proxy's buffers
_MEMORY_MIB = 8
_SERVER = issue("server", world().ca, names=dns("a.test"))
Sockets = tuple[socket.socket, socket.socket]


class Chunks:
    """A body in chunks as its bytes (RFC 9112 section 7.1)."""

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rb")
        self._left = 0

    def recv(self, most: int) -> bytes:
        if not self._left:
            self._left = int(self._file.readline(), 16)
        piece = self._file.read(min(most, self._left))
        self._left -= len(piece)
        if not self._left:
            self._file.readline()
        return piece


class Bench:
    """A proxy with a listener for every kind of stream, and the sockets at both its ends."""

    def __init__(self, cleanup: ExitStack, directory: Path) -> None:
        self.cleanup = cleanup
        self._files = {"server.pem": _SERVER.pem, "server.key": _SERVER.key_pem, "ca.pem": world().ca.pem}
        for name, content in self._files.items():
            (directory / name).write_bytes(content)
        self._directory = directory
        self._listening = cleanup.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._listening.settimeout(DEADLINE_S)
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _END_BUFFER)
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _END_BUFFER)
        self.proxy: ProxyProcess = cleanup.enter_context(
            start_meshproxy(self._bootstrap(), "--enable-core-dump")  # its memory is measured
        )
        self.ports = self.proxy.listener_ports()

    def _bootstrap(self) -> str:
        buffers: Json = {"per_connection_buffer_limit_bytes": _LIMIT}
        patient: Json = {"timeout": "0s"}
        pass_on = {"match": {"connect_matcher": {}}, "route": {"cluster": "plain", "upgrade_configs": [_CONNECT]}}
        end = {**_CONNECT, "connect_config": {}}
        end_here = {"match": {"connect_matcher": {}}, "route": {"cluster": "plain", "upgrade_configs": [end]}}
        plain, secure = forward("/", "plain", **patient), forward("/", "secure", **patient)
        websocket: Json = {"upgrade_configs": [{"upgrade_type": "websocket"}]}
        listeners = [
            listener("http", [plain], **buffers),
            listener("websocket", [plain], manager=websocket, **buffers),
            listener("connect", [pass_on], **buffers),
            listener("connect_end", [end_here], **buffers),
            listener("tls_downstream", [plain], **buffers),
            listener("tls_upstream", [secure], **buffers),
            listener("direct", [direct("/", "x" * 4000)], **buffers),
            tcp_listener("tcp", "plain", **buffers),
            tcp_listener("tcp_tls", "secure", **buffers),
            tcp_listener("tunneling", "plain", proxy={"tunneling_config": {"hostname": "a:443"}}, **buffers),
        ]
        for each in listeners:
            if each["name"] in _TLS_DOWNSTREAM:
                each["filter_chains"][0]["transport_socket"] = self._downstream_tls()
        port = self._listening.getsockname()[1]
        to_tls: Json = {"transport_socket": self._upstream_tls()}
        secure_cluster = cluster("secure", port, **buffers, **to_tls) | {"connect_timeout": f"{DEADLINE_S}s"}
        clusters = [cluster("plain", port, **buffers), secure_cluster]
        return bootstrap(listeners, clusters)

    def _downstream_tls(self) -> Json:
        pair = {"certificate_chain": self._file("server.pem"), "private_key": self._file("server.key")}
        config = {"@type": _TLS + "DownstreamTlsContext", "common_tls_context": {"tls_certificates": [pair]}}
        return {"name": "tls", "typed_config": config}

    def _upstream_tls(self) -> Json:
        trust = {"validation_context": {"trusted_ca": self._file("ca.pem")}}
        config = {"@type": _TLS + "UpstreamTlsContext", "sni": "a.test", "common_tls_context": trust}
        return {"name": "tls", "typed_config": config}

    def _file(self, name: str) -> Json:
        return {"filename": str(self._directory / name)}

    def connect(self, name: str) -> WireReader:
        """A downstream connection to a listener."""
        sock = self.cleanup.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _END_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _END_BUFFER)
        sock.settimeout(DEADLINE_S)
        sock.connect(("127.0.0.1", self.ports[name]))
        if name in _TLS_DOWNSTREAM:
            context = ssl.create_default_context(cadata=world().ca.pem.decode())
            sock = self.cleanup.enter_context(context.wrap_socket(sock, server_hostname="a.test"))
        return WireReader(sock)

    def accept(self, name: str) -> WireReader:
        """The upstream connection of a listener."""
        sock = self.cleanup.enter_context(self._listening.accept()[0])
        sock.settimeout(DEADLINE_S)
        if name in _TLS_UPSTREAM:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._directory / "server.pem", self._directory / "server.key")
            sock = self.cleanup.enter_context(context.wrap_socket(sock, server_side=True))
        return WireReader(sock)


_CONNECT: Json = {"upgrade_type": "CONNECT"}
_TLS_DOWNSTREAM = ("tls_downstream", "tcp_tls")
_TLS_UPSTREAM = ("tls_upstream", "tcp_tls")
_ASKS_UPGRADE = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
_CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
_UPGRADES = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"


def exchange_heads(bench: Bench, name: str, request: bytes, response: bytes, total: int) -> Sockets:
    """Request and response heads, with the length of their bodies in place of %d; returns both ends' sockets."""
    downstream = bench.connect(name)
    downstream.sock.sendall(request.replace(b"%d", b"%d" % total))
    upstream = bench.accept(name)
    upstream.read_head()
    if response:
        upstream.sock.sendall(response.replace(b"%d", b"%d" % total))
        downstream.read_head()
    assert (upstream.buffer, downstream.buffer) == (b"", b"")
    return downstream.sock, upstream.sock


def download(bench: Bench, name: str, total: int) -> Sockets:
    request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
    return exchange_heads(bench, name, request, b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n", total)


def upload(bench: Bench, name: str, total: int) -> Sockets:
    return exchange_heads(bench, name, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n", b"", total)


def websocket(bench: Bench, name: str, total: int) -> Sockets:
    return exchange_heads(bench, name, _ASKS_UPGRADE, _UPGRADES, total)


def connect(bench: Bench, name: str, total: int) -> Sockets:
    request = b"CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n"
    return exchange_heads(bench, name, request, b"HTTP/1.1 200 OK\r\n\r\n", total)


def connect_end(bench: Bench, name: str, total: int) -> Sockets:
    downstream = bench.connect(name)
    downstream.sock.sendall(b"CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n")
    upstream = bench.accept(name)
    assert downstream.read_head().status == 200
    return downstream.sock, upstream.sock


def tcp(bench: Bench, name: str, total: int) -> Sockets:
    return bench.connect(name).sock, bench.accept(name).sock


def tunneling(bench: Bench, name: str, total: int) -> Sockets:
    downstream, upstream = bench.connect(name), bench.accept(name)
    assert upstream.read_head().method == b"CONNECT"
    upstream.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    return downstream.sock, upstream.sock


_DOWN, _UP = "down", "up"
STREAMS: list[tuple[str, str, Callable[[Bench, str, int], Sockets]]] = [
    ("http", _DOWN, download),
    ("http", _UP, upload),
    ("websocket", _DOWN, websocket),
    ("websocket", _UP, websocket),
    ("connect", _DOWN, connect),
    ("connect", _UP, connect),
    ("connect_end", _DOWN, connect_end),
    ("connect_end", _UP, connect_end),
    ("tcp", _DOWN, tcp),
    ("tcp", _UP, tcp),
    ("tunneling", _DOWN, tunneling),
    ("tunneling", _UP, tunneling),
    ("tls_downstream", _DOWN, download),
    ("tls_downstream", _UP, upload),
    ("tls_upstream", _DOWN, download),
    ("tls_upstream", _UP, upload),
    ("tcp_tls", _DOWN, tcp),
    ("tcp_tls", _UP, tcp),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One proxy for all tests."""
    with ExitStack() as cleanup:
        yield Bench(cleanup, tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def bench(shared: Bench) -> Iterator[Bench]:
    """The proxy; connections of the test end with it."""
    with ExitStack() as connections:
        of_all, shared.cleanup = shared.cleanup, connections
        yield shared
        shared.cleanup = of_all


@pytest.mark.parametrize("total", [_BULK, pytest.param(1024 * MIB, marks=pytest.mark.long)], ids=["64MiB", "1GiB"])
@pytest.mark.parametrize(("name", "direction", "begin"), STREAMS, ids=[f"{name}-{way}" for name, way, _ in STREAMS])
def test_a_reader_that_stops(
    bench: Bench, name: str, direction: str, begin: Callable[[Bench, str, int], Sockets], total: int
) -> None:
    downstream, upstream = begin(bench, name, total)
    source, sink = (upstream, downstream) if direction == _DOWN else (downstream, upstream)
    memory, sender, reader = Memory(bench.proxy.pid), Sender(source, total), Reader(sink)
    beginning = threading.Thread(target=reader.read, args=(_READ_FIRST,))
    beginning.start()
    held = sender.fill()
    beginning.join()
    assert held < _READ_FIRST + kernel_bytes() + _MEMORY_MIB * MIB
    assert memory.grown_mib() < _MEMORY_MIB
    rest = sender.finish()
    reader.read(total)
    rest.join()
    assert reader.is_right()
    assert memory.grown_mib() < _MEMORY_MIB


@pytest.mark.parametrize("direction", [_DOWN, _UP])
def test_small_chunks_to_a_reader_that_stops(bench: Bench, direction: str) -> None:
    request, response = b"GET / HTTP/1.1\r\nhost: a\r\n", b"HTTP/1.1 200 OK\r\n"
    if direction == _DOWN:
        sink, source = exchange_heads(bench, "http", request + b"\r\n", response + _CHUNKED, _BULK)
    else:
        source, sink = exchange_heads(bench, "http", request + _CHUNKED, b"", _BULK)
    pieces = (PATTERN[at : at + KIB] for at in range(0, MIB, KIB))
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    sender = Sender(source, _BULK // MIB * len(chunks), chunks)
    memory, reader = Memory(bench.proxy.pid), Reader(Chunks(sink))
    sender.fill()
    assert memory.grown_mib() < _MEMORY_MIB
    rest = sender.finish()
    reader.read(_BULK)
    rest.join()
    assert reader.is_right()
    assert memory.grown_mib() < _MEMORY_MIB


@pytest.mark.parametrize(("name", "begin"), [("websocket", websocket), ("connect_end", connect_end), ("tcp", tcp)])
def test_readers_that_stop_at_both_ends(bench: Bench, name: str, begin: Callable[[Bench, str, int], Sockets]) -> None:
    ends = begin(bench, name, _BULK)
    memory = Memory(bench.proxy.pid)
    senders, readers = [Sender(end, _BULK) for end in ends], [Reader(end) for end in ends]
    for sender in senders:
        sender.fill()
    assert memory.grown_mib() < _MEMORY_MIB
    rest = [sender.finish() for sender in senders]
    rest += [thread_of(reader) for reader in readers]
    for thread in rest:
        thread.join()
    assert [reader.received for reader in readers if reader.is_right()] == [_BULK, _BULK]
    assert memory.grown_mib() < _MEMORY_MIB


def test_many_readers_that_stop(bench: Bench) -> None:
    sockets = [download(bench, "http", _BULK) for _ in range(_MANY)]
    memory = Memory(bench.proxy.pid)
    senders = [Sender(upstream, _BULK) for _, upstream in sockets]
    filling = [threading.Thread(target=sender.fill) for sender in senders]
    for thread in filling:
        thread.start()
    for thread in filling:
        thread.join()
    assert all(0 < sender.sent < _BULK for sender in senders)
    assert memory.grown_mib() < _MEMORY_MIB + _MANY  # each has buffers of its own


@pytest.mark.parametrize("name", ["tls_upstream", "tcp_tls", "tunneling"])
def test_an_upload_before_the_upstream_is_connected(bench: Bench, name: str) -> None:
    downstream = bench.connect(name)
    if name == "tls_upstream":
        downstream.sock.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % _BULK)
    memory, sender = Memory(bench.proxy.pid), Sender(downstream.sock, _BULK)
    held = sender.fill()  # TCP connects by itself; the handshake waits for `accept`, and CONNECT for an answer
    assert held < kernel_bytes() + _MEMORY_MIB * MIB
    assert memory.grown_mib() < _MEMORY_MIB
    rest = sender.finish()
    upstream = bench.accept(name)
    if name != "tcp_tls":
        upstream.read_head()
    if name == "tunneling":
        upstream.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    reader = Reader(upstream.sock, upstream.buffer)
    reader.read(_BULK)
    rest.join()
    assert reader.is_right()
    assert memory.grown_mib() < _MEMORY_MIB


def test_requests_whose_answers_nobody_reads(bench: Bench) -> None:
    begin = b"GET / HTTP/1.1\r\nhost: a\r\nx-pad: "
    request = begin.ljust(_REQUEST - 4, b"x") + b"\r\n\r\n"
    downstream = bench.connect("direct")
    downstream.sock.sendall(request)
    answer = downstream.read_head()
    head_bytes = len(answer.start_line) + 4 + sum(len(name) + len(value) + 4 for name, value in answer.headers)
    answer_bytes = head_bytes + len(downstream.read_exactly(4000))
    memory, sender = Memory(bench.proxy.pid), Sender(downstream.sock, _BULK, request)
    held = sender.fill()
    assert held < kernel_bytes() + _MEMORY_MIB * MIB
    assert memory.grown_mib() < _MEMORY_MIB
    rest = sender.finish()
    downstream.buffer = b""
    reader = Reader(downstream.sock)
    reader.read(_BULK // _REQUEST * answer_bytes)
    rest.join()
    assert memory.grown_mib() < _MEMORY_MIB


def thread_of(reader: Reader) -> threading.Thread:
    """Reads all of it."""
    thread = threading.Thread(target=reader.read, args=(_BULK,))
    thread.start()
    return thread
