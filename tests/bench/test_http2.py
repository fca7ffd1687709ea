"""The benchmark's own HTTP/2 and gRPC, held against h2 and grpcio; and its loads against servers that go wrong."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, RemoteSettingsChanged, RequestReceived

from bench.grpc_server import message
from bench.handshakes import client_context
from bench.http2 import DATA, END_STREAM, HEADERS, Connection, Frame, RepeatedHead, frame, is_200
from bench.load import LoadError, Messages, Streams
from bench.peers import GRPC_SERVER, NGHTTPD, NGHTTPD_GRPC, application, start_peer
from tests.bench.programs import needs

HEAD = ((":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "bench.test"), ("x-some", "field"))
OUTER = b"\0\0\0\0\x40"  # before each message of 64 bytes


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    """A client of ours that has greeted, and the other end."""
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname(), timeout=10)
    other, _ = listener.accept()
    other.settimeout(10)
    with listener, ours, other:
        yield Connection(ours, is_client=True), other


def serve(other: socket.socket) -> H2Connection:
    server = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
    server.initiate_connection()
    other.sendall(server.data_to_send())
    return server


def take(connection: Connection, count: int) -> list[Frame]:
    """So many frames; everything that is on the way meanwhile is answered."""
    found: list[Frame] = []
    while len(found) < count:
        found += connection.receive()
    return found


def events_until(server: H2Connection, other: socket.socket, kind: type, count: int = 1) -> list[Any]:
    """What h2 made of the client's bytes: the events of that kind."""
    found: list[Any] = []
    while len(found) < count:
        found += [event for event in server.receive_data(other.recv(65536)) if isinstance(event, kind)]
        other.sendall(server.data_to_send())
    return found


def test_h2_understands_a_head_that_is_sent_again(pair: tuple[Connection, socket.socket]) -> None:
    client, other = pair
    server, head = serve(other), RepeatedHead(HEAD)
    client.socket.sendall(head.frame(1, END_STREAM) + head.frame(3, END_STREAM) + head.frame(5, END_STREAM))
    requests = events_until(server, other, RequestReceived, 3)
    assert [(event.stream_id, tuple(map(tuple, event.headers))) for event in requests] == [
        (stream, HEAD) for stream in (1, 3, 5)
    ]
    assert len(head.frame(3, 0)) < len(head.frame(1, 0))


def test_what_h2_answers_arrives_however_it_is_cut(pair: tuple[Connection, socket.socket]) -> None:
    client, other = pair
    server = serve(other)
    client.socket.sendall(RepeatedHead(HEAD).frame(1, END_STREAM))
    events_until(server, other, RequestReceived)
    server.send_headers(1, [(":status", "200"), ("server", "h2")])
    server.send_data(1, b"some")
    server.send_headers(1, [("grpc-status", "0")], end_stream=True)
    for byte in server.data_to_send():
        other.sendall(bytes((byte,)))
    head, data, trailers = take(client, 3)
    assert is_200(head.payload)
    assert (data.kind, data.stream, data.payload, data.ends) == (DATA, 1, b"some", False)
    assert (trailers.kind, trailers.ends) == (HEADERS, True)


def test_settings_are_acknowledged_and_windows_kept(pair: tuple[Connection, socket.socket]) -> None:
    client, other = pair
    server = serve(other)
    server.update_settings({4: 100_000})  # SETTINGS_INITIAL_WINDOW_SIZE
    server.increment_flow_control_window(5000)
    server.ping(b"12345678")
    other.sendall(server.data_to_send())
    while client.stream_window != 100_000 or client.window != 65_535 + 5000:
        assert list(client.receive()) == []
    client.socket.sendall(frame(7, 0, 0, bytes(8)))  # GOAWAY, so that h2 has something last
    seen: list[object] = []
    while not any(isinstance(event, ConnectionTerminated) for event in seen):
        seen += server.receive_data(other.recv(65536))
    acknowledged = [type(event).__name__ for event in seen]
    assert acknowledged.count("SettingsAcknowledged") == 2
    assert "PingAckReceived" in acknowledged
    assert any(isinstance(event, RemoteSettingsChanged) for event in seen)
    assert server.outbound_flow_control_window == 2**31 - 1


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (frame(3, 0, 1, b"\0\0\0\2"), "RST_STREAM"),
        (frame(7, 0, 0, bytes(8)), "GOAWAY"),
        (frame(DATA, 0x8, 1, b"\1ab"), "padding"),
        (frame(HEADERS, 0, 1, b"\x88"), "a head in several"),
    ],
)
def test_what_is_not_understood_is_an_error(pair: tuple[Connection, socket.socket], sent: bytes, words: str) -> None:
    client, other = pair
    other.sendall(sent)
    with pytest.raises(RuntimeError, match=words):
        list(client.receive())


def test_the_end_of_a_connection_is_an_error(pair: tuple[Connection, socket.socket]) -> None:
    client, other = pair
    other.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError):
        list(client.receive())


def test_a_status_behind_a_change_of_the_table_s_size() -> None:
    assert is_200(b"\x88\x5f")
    assert is_200(b"\x3f\xe1\x1f\x88")
    assert not is_200(b"\x8d")  # 404
    assert not is_200(b"\x3f\xe1\x1f\x8d")


# The server and the calls of gRPC.


def test_grpcio_gets_as_many_messages_as_it_asks_for() -> None:
    with application(GRPC_SERVER) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream("/some.Service/Method")
        asked = [message(number)[len(OUTER) :] for number in (1, 500, 1)]
        answers = list(call(iter(asked), timeout=20))
        assert answers == [message(number)[len(OUTER) :] for number in range(502)]


@pytest.mark.parametrize("echoes", [False, True])
def test_messages_are_counted(echoes: bool) -> None:
    with application(GRPC_SERVER) as port:
        traffic = Messages(connections=2, echoes=echoes).run(port, 1)
    assert traffic.requests % 1000 == 0
    assert traffic.requests >= 2000
    assert 0 < traffic.p50_us <= traffic.p99_us


@contextmanager
def grpcio_server(count: int, status: grpc.StatusCode) -> Iterator[int]:
    """It answers every message of a call with `count` messages, and then with the status."""

    def handle(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in requests:
            yield from (message(number)[len(OUTER) :] for number in range(count))
        context.set_code(status)

    class Handler(grpc.GenericRpcHandler):
        def service(self, _: object) -> Any:
            return grpc.stream_stream_rpc_method_handler(handle)

    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def test_a_server_of_grpcio_answers_alike() -> None:
    with grpcio_server(1000, grpc.StatusCode.OK) as port:
        assert Messages(connections=1).run(port, 1).requests >= 1000


@pytest.mark.parametrize(
    ("count", "status", "words"),
    [
        (1000, grpc.StatusCode.INTERNAL, "a call ended with"),
        (999, grpc.StatusCode.OK, "not with what it asked for"),
        (1001, grpc.StatusCode.OK, "not with what it asked for"),
    ],
)
def test_an_answer_that_is_not_as_asked_counts_for_nothing(count: int, status: grpc.StatusCode, words: str) -> None:
    with grpcio_server(count, status) as port, pytest.raises(LoadError, match=words):
        Messages(connections=1).run(port, 1)


# h2load, and who stands behind the proxies.


@needs("h2load", "nghttpd")
@pytest.mark.parametrize(
    "load", [Streams(1, 1), Streams(2, 4, "/1MiB"), Streams(2, 4, upload_bytes=100_000)], ids=lambda load: load.words
)
def test_requests_of_h2load_are_counted(load: Streams) -> None:
    with application(NGHTTPD) as port:
        traffic = load.run(port, 1)
    assert traffic.requests > 0
    assert 0 < traffic.p50_us <= traffic.p90_us <= traffic.p99_us <= traffic.p999_us


@needs("h2load", "nghttpd")
def test_answers_of_another_status_count_for_nothing() -> None:
    with application(NGHTTPD) as port, pytest.raises(LoadError, match="requests failed"):
        Streams(1, 1, "/nothing-is-here").run(port, 1)


@needs("nghttpd")
def test_the_unary_call_is_one_for_grpcio() -> None:
    with application(NGHTTPD_GRPC) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        response, call = channel.unary_unary("/message.grpc").with_call(b"", timeout=20)
        assert response == b"0123456789abcdef" * 4
        assert call.code() is grpc.StatusCode.OK


@needs("h2load", "nghttpd", "nghttpx", "nginx")
@pytest.mark.parametrize(("config", "server"), [("http2", NGHTTPD), ("http1", "nginx")])
def test_nghttpx_answers(config: str, server: str) -> None:
    with application(server) as port:
        running = start_peer("nghttpx", config, port)
        try:
            assert Streams(1, 1).run(running.port, 1).requests > 0
            assert len(running.pids) == 1
        finally:
            running.stop()


@needs("h2load", "nghttpd", "nghttpx", "haproxy")
@pytest.mark.parametrize("peer", ["envoy", "nghttpx"])
def test_mutual_tls_needs_the_haproxy_s_certificate(peer: str) -> None:
    with application(NGHTTPD) as port:
        running = start_peer(peer, "http2-mtls", port)
        try:
            assert Streams(2, 2, mutual=True).run(running.port, 1).requests > 0
            assert certificate_is_required(running.port, alpn=["h2"])
        finally:
            running.stop()


def certificate_is_required(port: int, alpn: Sequence[str]) -> bool:
    """Whether a client without one is turned away: in TLS 1.3 it learns that with the first bytes that it reads."""
    context = client_context()
    context.set_alpn_protocols(alpn)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain, context.wrap_socket(plain) as secure:
            return secure.recv(1) == b""
    except OSError:
        return True
