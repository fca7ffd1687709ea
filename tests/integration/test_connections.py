"""Connections: limits, backpressure, ends of all kinds, and large bodies, with every byte checked."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.config import Json, address, bootstrap, cluster, direct, forward, listener, runtime
from tests.integration.proxy import children, rss_kib
from tests.integration.raw_upstream import RawUpstream
from tests.support.downstream import ConnectionEnded, RawDownstream, exchange
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_meshproxy
from tests.support.upstream import ScriptedUpstream, reply
from tests.support.wire import WireReader

_GET = b"GET /x HTTP/1.1\r\nhost: test\r\n\r\n"
_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
_MIB = 1024 * 1024
_SMALL: Json = {"per_connection_buffer_limit_bytes": 32768}


@contextmanager
def _proxied(manager: Json | None = None, **fields: Any) -> Iterator[tuple[ProxyProcess, int, RawUpstream]]:
    """A proxy before a raw upstream: (process, port, upstream). Buffers are small on both sides."""
    with RawUpstream() as upstream:
        main = listener("main", [forward("/", "a")], manager=manager, **_SMALL, **fields)
        with start_meshproxy(bootstrap([main], [cluster("a", upstream.port, **_SMALL)])) as proxy:
            yield proxy, proxy.listener_ports()["main"], upstream


@contextmanager
def _answering(manager: Json | None = None, **fields: Any) -> Iterator[tuple[ProxyProcess, int]]:
    """A proxy that answers by itself: (process, port)."""
    runtime_layers = fields.pop("layered_runtime", None)
    main = listener("main", [direct("/", "hello")], manager=manager, **fields)
    extra: Json = {"layered_runtime": runtime_layers} if runtime_layers else {}
    with start_meshproxy(bootstrap([main], **extra)) as proxy:
        yield proxy, proxy.listener_ports()["main"]


def _until_stat(proxy: ProxyProcess, name: str, value: int) -> None:
    wait_for(lambda: proxy.stats(name.replace(".", "\\.")).get(name) == value, f"{name} to be {value}")


# -- limits


def test_the_listener_s_connection_limit() -> None:
    limit = runtime(envoy__resource_limits__listener__main__connection_limit=2)
    with _answering(layered_runtime=limit) as (proxy, port):
        with RawDownstream(port) as first, RawDownstream(port) as second:
            for downstream in (first, second):
                downstream.send(_GET)
                assert downstream.receive().body == b"hello"
            with RawDownstream(port) as third:
                assert third.wait_end() in ("closed", "reset")
            assert proxy.stats("cx_overflow")["listener.127.0.0.1_0.downstream_cx_overflow"] == 1
            first.send(_GET)
            assert first.receive().body == b"hello"
        _until_stat(proxy, "listener.127.0.0.1_0.downstream_cx_active", 0)
        assert exchange(port, _GET).body == b"hello"
        changed = "/runtime_modify?envoy.resource_limits.listener.main.connection_limit=0"
        assert proxy.admin(changed, "POST")[0] == 200
        with RawDownstream(port) as refused:
            assert refused.wait_end() in ("closed", "reset")


def test_the_global_connection_limit_and_a_listener_that_ignores_it() -> None:
    listeners = [
        listener("main", [direct("/", "x")]),
        listener("free", [direct("/", "x")], ignore_global_conn_limit=True),
    ]
    config = bootstrap(listeners, layered_runtime=runtime(overload__global_downstream_max_connections=1))
    with start_meshproxy(config) as proxy:
        ports = proxy.listener_ports()
        with RawDownstream(ports["main"]) as first:
            first.send(_GET)
            assert first.receive().body == b"x"
            with RawDownstream(ports["main"]) as second:
                assert second.wait_end() in ("closed", "reset")
            assert exchange(ports["free"], _GET).body == b"x"
            assert proxy.stats("global_cx")["listener.127.0.0.1_0.downstream_global_cx_overflow"] == 1


def test_limits_hold_for_all_workers_together() -> None:
    """Connections that come at the same moment may pass a limit by one; here they come one by one."""
    limits = runtime(
        envoy__resource_limits__listener__main__connection_limit=3, overload__global_downstream_max_connections=4
    )
    listeners = [listener(name, [direct("/", name)]) for name in ("main", "other")]
    with (
        start_meshproxy(bootstrap(listeners, layered_runtime=limits), "--concurrency", "2") as proxy,
        ExitStack() as held,
    ):
        ports = proxy.listener_ports()

        def connect(name: str) -> bool:
            downstream = held.enter_context(RawDownstream(ports[name]))
            downstream.send(_GET)
            try:
                return downstream.receive().body == name.encode()
            except ConnectionEnded:
                return False

        assert [connect("main") for _ in range(12)] == [True] * 3 + [False] * 9
        assert [connect("other") for _ in range(6)] == [True] + [False] * 5
        assert sum(value for name, value in proxy.stats("cx_overflow").items() if "global" not in name) == 9
        assert sum(proxy.stats("global_cx_overflow").values()) == 5
        held.close()
        wait_for(lambda: sum(proxy.stats("listener.*downstream_cx_active").values()) == 0, "the connections to end")
        # A worker that dies takes its counts with it.
        assert [connect("main") for _ in range(4)] == [True] * 3 + [False]
        for pid in children(proxy.pid):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: proxy.stats("server.worker_restarts")["server.worker_restarts"] == 2, "the workers to be gone")
        held.close()
        assert [connect("main") for _ in range(4)] == [True] * 3 + [False]


# -- what is told of them


def test_the_length_of_connections_is_recorded() -> None:
    with _answering() as (proxy, port):
        exchange(port, _GET)
        wait_for(lambda: "P0(" in proxy.admin("/stats?filter=^listener.*cx_length_ms")[1], "the connection's length")


def test_a_disk_that_is_full_costs_lines_and_nothing_else() -> None:
    full = {
        "name": "file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": "/dev/full",
        },
    }
    main = listener("main", [direct("/", "x")], manager={"access_log": [full]}, access_log=[full])
    with start_meshproxy(bootstrap([main])) as proxy:
        port = proxy.listener_ports()["main"]
        assert [exchange(port, _GET).status for _ in range(20)] == [200] * 20
        wait_for(lambda: proxy.stats("filesystem")["filesystem.write_failed"] > 0, "the failed write")
        wait_for(
            lambda: proxy.stats("filesystem")["filesystem.write_buffered"] == 40,
            "a line for each request and connection",
        )
        assert "Traceback" not in proxy.output()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_without_file_descriptors_connections_are_refused_and_later_served(workers: str) -> None:
    command = f'ulimit -n 64; exec {sys.executable} -m meshproxy run --concurrency {workers} --shutdown-delay-s 0 "$@"'
    config = bootstrap([listener("main", [direct("/", "x")])])
    with ProxyProcess(["sh", "-c", command, "sh"], config) as proxy, ExitStack() as held:
        port = proxy.listener_ports()["main"]
        for _ in range(200):
            held.enter_context(RawDownstream(port)).send(_GET)
        held.close()

        def served() -> bool:
            try:
                return exchange(port, _GET).body == b"x"
            except (ConnectionEnded, OSError):
                return False

        wait_for(served, "a connection to be served")
        assert proxy.admin("/ready") == (200, "LIVE\n")
        assert "Traceback" not in proxy.output()


# -- addresses and options


@pytest.mark.parametrize("abstract", [False, True])
def test_unix_sockets_on_both_sides(tmp_path: Path, abstract: bool) -> None:
    name = f"@{tmp_path}/in" if abstract else str(tmp_path / "in.sock")
    with RawUpstream(str(tmp_path / "up.sock")) as upstream:
        main = listener("main", [forward("/", "a")], at={"pipe": {"path": name, "mode": 0o600}})
        config = bootstrap([main], [cluster("a", str(tmp_path / "up.sock"))])
        with start_meshproxy(config), socket.socket(socket.AF_UNIX) as downstream:
            downstream.settimeout(10)
            downstream.connect("\0" + name[1:] if abstract else name)
            if not abstract:
                assert Path(name).stat().st_mode & 0o777 == 0o600
            downstream.sendall(_GET)
            reader, head = upstream.accept_request()
            assert head.target == b"/x"
            reader.sock.sendall(_OK)
            message = WireReader(downstream).read_head()
            assert message.status == 200


def test_a_listener_on_several_addresses() -> None:
    extra = [{"address": address()}, {"address": address(host="127.0.0.2")}]
    main = listener("main", [direct("/", "x")], additional_addresses=extra)
    with start_meshproxy(bootstrap([main]), "--concurrency", "2") as proxy:
        lines = [line.split("::")[1] for line in proxy.admin("/listeners")[1].splitlines() if line.startswith("main::")]
        places = [place for line in lines for place in line.split(",")]
        assert len(places) == 3
        for place in places:
            host, port = place.rsplit(":", 1)
            with RawDownstream(int(port), host) as downstream:
                downstream.send(_GET)
                assert downstream.receive().body == b"x"


def test_socket_options_reach_the_listening_socket() -> None:
    segment = {"level": socket.IPPROTO_TCP, "name": socket.TCP_MAXSEG, "int_value": 700, "state": "STATE_PREBIND"}
    with _answering(socket_options=[segment]) as (_, port), RawDownstream(port) as downstream:
        assert downstream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 700
        downstream.send(_GET)
        assert downstream.receive().body == b"hello"


# -- backpressure


def test_a_reader_that_stops_stops_the_upstream_and_gets_everything_later() -> None:
    size = 64 * _MIB
    with _proxied() as (proxy, port, upstream), RawDownstream(port, timeout_s=30.0) as downstream:
        downstream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        downstream.send(_GET)
        reader, _ = upstream.accept_request()
        before = rss_kib(proxy.pid)
        sender = _Sender(reader.sock, b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size, size)
        stopped = sender.wait_stopped()
        assert stopped < size
        assert rss_kib(proxy.pid) - before < 16 * 1024
        assert proxy.stats("paused_reading")["http.main.downstream_flow_control_paused_reading_total"] > 0
        message = downstream.reader.read_head()
        assert message.status == 200
        assert _hash(downstream.reader, size) == sender.digest()
        assert rss_kib(proxy.pid) - before < 16 * 1024


def test_an_upstream_that_reads_slowly_stops_the_downstream_and_gets_everything_later() -> None:
    size = 64 * _MIB
    with _proxied() as (proxy, port, upstream), RawDownstream(port, timeout_s=30.0) as downstream:
        before = rss_kib(proxy.pid)
        head = b"POST /x HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % size
        sender = _Sender(downstream.sock, head, size)
        reader, request = upstream.accept_request()
        assert request.get(b"content-length") == b"%d" % size
        stopped = sender.wait_stopped()
        assert stopped < size
        assert rss_kib(proxy.pid) - before < 16 * 1024
        assert _hash(reader, size) == sender.digest()
        reader.sock.sendall(_OK)
        assert downstream.receive().status == 200
        assert rss_kib(proxy.pid) - before < 16 * 1024


def test_a_slow_reader_gets_all_of_a_last_answer() -> None:
    """The connection closes after it: the delayed close must wait while the answer still moves."""
    size = 16 * _MIB
    with _proxied({"delayed_close_timeout": "0.3s"}) as (_, port, upstream), RawDownstream(port) as downstream:
        downstream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        downstream.send(b"GET /x HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        reader, _ = upstream.accept_request()
        sender = _Sender(reader.sock, b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size, size)
        assert downstream.reader.read_head().get(b"connection") == b"close"
        assert _hash(downstream.reader, size, pause_s=0.002) == sender.digest()
        assert downstream.wait_end() == "closed"


def test_large_bodies_both_ways() -> None:
    size = 24 * _MIB
    with _proxied() as (_, port, upstream), RawDownstream(port, timeout_s=30.0) as downstream:
        head = b"POST /x HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % size
        up = _Sender(downstream.sock, head, size)
        reader, _ = upstream.accept_request()
        assert _hash(reader, size) == up.digest()
        down = _Sender(reader.sock, b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size, size)
        assert downstream.reader.read_head().status == 200
        assert _hash(downstream.reader, size) == down.digest()


def test_large_chunked_bodies_both_ways() -> None:
    chunks = [bytes([index % 251]) * (index * 37 % 9000 + 1) for index in range(1000)]
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    whole = b"".join(chunks)
    with _proxied() as (_, port, upstream), RawDownstream(port) as downstream:
        head = b"POST /x HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n"
        sending = threading.Thread(target=downstream.send, args=(head + body,))
        sending.start()
        reader, request = upstream.accept_request()
        reader.read_body(request, to_end=False)
        sending.join()
        assert request.body == whole
        answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body
        sending = threading.Thread(target=reader.sock.sendall, args=(answer,))
        sending.start()
        assert downstream.receive().body == whole
        sending.join()


# -- ends


def test_a_downstream_that_leaves_amid_the_answer_resets_the_upstream() -> None:
    with _proxied() as (proxy, port, upstream):
        for leave in (RawDownstream.close, RawDownstream.reset):
            downstream = RawDownstream(port)
            downstream.send(_GET)
            reader, _ = upstream.accept_request()
            reader.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
            assert downstream.reader.read_head().status == 200
            leave(downstream)
            with pytest.raises(ConnectionEnded):
                reader.fill()
        assert proxy.stats("destroy_remote_active")["http.main.downstream_cx_destroy_remote_active_rq"] == 2


def test_a_downstream_that_leaves_while_it_waits_resets_the_upstream() -> None:
    with _proxied() as (_, port, upstream):
        for leave in (RawDownstream.close, RawDownstream.reset, RawDownstream.half_close):  # as Envoy: no half close
            downstream = RawDownstream(port)
            downstream.send(_GET)
            reader, _ = upstream.accept_request()
            leave(downstream)
            with pytest.raises(ConnectionEnded):
                reader.fill()
            downstream.close()


def test_an_upstream_that_dies_amid_the_answer_ends_the_connection() -> None:
    with _proxied() as (_, port, upstream):
        for partial in (
            b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ):
            with RawDownstream(port) as downstream:
                downstream.send(_GET)
                reader, _ = upstream.accept_request()
                reader.sock.sendall(partial)
                head = downstream.reader.read_head()
                assert head.status == 200
                reader.sock.close()
                downstream.reader.read_body(head, to_end=True)
                assert head.end in ("closed", "reset")
                assert head.body == b"half"


def test_an_upstream_that_dies_before_the_answer_is_a_503() -> None:
    with _proxied() as (_, port, upstream), RawDownstream(port) as downstream:
        downstream.send(_GET)
        reader, _ = upstream.accept_request()
        reader.sock.close()
        assert downstream.receive().status == 503
        downstream.send(_GET)  # the connection goes on
        reader, _ = upstream.accept_request()
        reader.sock.sendall(_OK)
        assert downstream.receive().body == b"ok"


# -- HTTP/1 on a connection


def test_ten_thousand_pipelined_requests_are_answered_in_order() -> None:
    count = 10_000
    routes = [direct(f"/{digit}", f"{digit}") for digit in range(10)]
    requests = b"".join(b"GET /%d HTTP/1.1\r\nhost: test\r\n\r\n" % (index % 10) for index in range(count))
    config = bootstrap([listener("main", routes)])
    with start_meshproxy(config) as proxy, RawDownstream(proxy.listener_ports()["main"], timeout_s=30.0) as downstream:
        sending = threading.Thread(target=downstream.send, args=(requests,))
        sending.start()
        answers = _Splitter(downstream.sock)
        for index in range(count):
            assert answers.next_body() == b"%d" % (index % 10), index
        sending.join()


def test_pipelined_requests_to_an_upstream_are_answered_in_order() -> None:
    """One after the other, in their order, and on one connection: each waits until the one before has freed it."""
    upstream = ScriptedUpstream()
    config = bootstrap([listener("main", [forward("/", "a")])], [cluster("a", upstream.ports["a"])])
    try:
        with start_meshproxy(config) as proxy:
            script = upstream.play([reply(200, b"%d" % index) for index in range(50)])
            with RawDownstream(proxy.listener_ports()["main"]) as downstream:
                downstream.send(b"".join(b"GET /%d HTTP/1.1\r\nhost: test\r\n\r\n" % index for index in range(50)))
                for index in range(50):
                    assert downstream.receive().body == b"%d" % index
            assert [seen.message.target for seen in script.seen] == [b"/%d" % index for index in range(50)]
            assert proxy.stats("cluster.a.upstream_cx_total")["cluster.a.upstream_cx_total"] == 1
    finally:
        upstream.close()


def test_a_head_that_drips_is_cut_off() -> None:
    with _answering({"request_headers_timeout": "0.3s"}) as (proxy, port):
        with RawDownstream(port) as downstream:
            downstream.send(b"GET /x HTTP/1.1\r\nhost: te")
            assert downstream.receive().status == 408
            assert downstream.wait_end() == "closed"
        assert proxy.stats("header_timeout")["http.main.downstream_rq_header_timeout"] == 1
        with RawDownstream(port) as downstream:  # a whole head in two parts is no matter
            downstream.send(_GET[:20])
            downstream.send(_GET[20:])
            assert downstream.receive().status == 200
            downstream.send(_GET[:20])
            assert downstream.receive().status == 408


def test_an_idle_connection_is_closed() -> None:
    with _answering({"common_http_protocol_options": {"idle_timeout": "0.3s"}, "drain_timeout": "0.1s"}) as (
        proxy,
        port,
    ):
        with RawDownstream(port) as silent, RawDownstream(port) as used:
            used.send(_GET)
            assert used.receive().status == 200
            assert silent.wait_end() == "closed"
            assert used.wait_end() == "closed"
        assert proxy.stats("idle_timeout")["http.main.downstream_cx_idle_timeout"] == 2


def test_an_idle_stream_is_ended() -> None:
    with _proxied({"stream_idle_timeout": "0.3s"}) as (proxy, port, upstream):
        with RawDownstream(port) as downstream:
            downstream.send(b"POST /x HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nab")
            assert downstream.receive().status == 408
        with RawDownstream(port) as downstream:
            downstream.send(_GET)
            upstream.accept_request()
            assert downstream.receive().status in (408, 504)
        assert proxy.stats("rq_idle_timeout")["http.main.downstream_rq_idle_timeout"] == 2


def test_http_1_0() -> None:
    old = b"GET /x HTTP/1.0\r\nhost: test\r\n\r\n"
    with _answering() as (_, port):
        assert exchange(port, old).status == 426
    with _answering({"http_protocol_options": {"accept_http_10": True}}) as (_, port):
        with RawDownstream(port) as downstream:
            downstream.send(old)
            assert downstream.receive().body == b"hello"
            assert downstream.wait_end() == "closed"
        with RawDownstream(port) as downstream:
            for _ in range(2):
                downstream.send(b"GET /x HTTP/1.0\r\nhost: test\r\nconnection: keep-alive\r\n\r\n")
                assert downstream.receive().body == b"hello"


def test_100_continue_is_answered_before_the_body_comes() -> None:
    with _proxied() as (_, port, upstream), RawDownstream(port) as downstream:
        downstream.send(b"POST /x HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
        assert downstream.receive().status == 100
        downstream.send(b"body")
        reader, head = upstream.accept_request()
        reader.read_body(head, to_end=False)
        assert head.body == b"body"
        reader.sock.sendall(_OK)
        assert downstream.receive().status == 200


# -- helpers


class _Sender:
    """Sends a head and `size` bytes of a pattern on a thread of its own, as fast as the peer takes them."""

    _BLOCK = bytes(range(251)) * 261  # 65,511 bytes: not a multiple of any buffer's size

    def __init__(self, sock: socket.socket, head: bytes, size: int) -> None:
        self.sent = 0
        self._sock = sock
        self._size = size
        self._hash = hashlib.sha256()
        sock.settimeout(60.0)
        sock.sendall(head)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while self.sent < self._size:
            data = self._BLOCK[: self._size - self.sent]
            taken = self._sock.send(data)
            self._hash.update(data[:taken])
            self.sent += taken

    def wait_stopped(self) -> int:
        """Wait until nothing more goes through for half a second; returns how much has been sent."""
        seen, since = -1, time.monotonic()
        while time.monotonic() - since < 0.5:
            if self.sent != seen:
                seen, since = self.sent, time.monotonic()
            time.sleep(0.01)
        return seen

    def digest(self) -> str:
        """Of what was sent, when all was."""
        self._thread.join(60.0)
        assert self.sent == self._size
        return self._hash.hexdigest()


def _hash(reader: WireReader, size: int, pause_s: float = 0.0) -> str:
    """Of the next `size` bytes."""
    digest = hashlib.sha256(reader.buffer[:size])
    left = size - len(reader.buffer)
    reader.buffer = b""
    while left > 0:
        data = reader.sock.recv(min(left, 262144))
        assert data, f"{left} bytes are missing"
        digest.update(data)
        left -= len(data)
        if pause_s:
            time.sleep(pause_s)
    return digest.hexdigest()


class _Splitter:
    """Small answers off a stream of thousands, in linear time."""

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rb")

    def next_body(self) -> bytes:
        """The body of the next answer."""
        length = 0
        while (line := self._file.readline()) != b"\r\n":
            assert line, "the connection ended"
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return self._file.read(length)
