"""Connections that are passed on as they are: bulk data, readers that stop, drains and reloads under them."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.integration.config import Json, bootstrap, cluster, tcp_listener
from tests.integration.proxy import rss_kib
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_meshproxy

_MIB = 1024 * 1024
_BULK = 64 * _MIB
_DEADLINE_S = 30.0
_SMALL: Json = {"per_connection_buffer_limit_bytes": 65536}


@dataclass
class Tunnel:
    """Both ends of a connection through the proxy."""

    downstream: socket.socket
    upstream: socket.socket

    def talks(self) -> bool:
        """Whether bytes go both ways."""
        self.downstream.sendall(b"ping")
        there = read(self.upstream, 4)
        self.upstream.sendall(b"pong")
        return there == b"ping" and read(self.downstream, 4) == b"pong"

    def close(self) -> None:
        self.downstream.close()
        self.upstream.close()


@dataclass
class Tcp:
    """A proxy before a socket that the test accepts from."""

    proxy: ProxyProcess
    upstream: socket.socket
    tunnels: list[Tunnel] = field(default_factory=list)

    def open(self) -> Tunnel:
        downstream = socket.create_connection(("127.0.0.1", self.proxy.listener_ports()["main"]), _DEADLINE_S)
        upstream, _ = self.upstream.accept()
        upstream.settimeout(_DEADLINE_S)
        self.tunnels.append(Tunnel(downstream, upstream))
        return self.tunnels[-1]

    def reload(self, config: str) -> None:
        """Run by another configuration."""
        before = self.proxy.stats("server\\.config_reload_success")["server.config_reload_success"]
        self.proxy.config_path.write_text(config)
        self.proxy.process.send_signal(signal.SIGHUP)
        wait_for(
            lambda: self.proxy.stats("server\\.config_reload_success")["server.config_reload_success"] > before,
            "the reload",
        )


@contextmanager
def proxied(*arguments: str, **fields: Any) -> Iterator[Tcp]:
    """meshproxy with one listener, `main`; buffers are small on both sides."""
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        upstream.settimeout(_DEADLINE_S)
        with start_meshproxy(configuration(upstream, **fields), *arguments) as proxy:
            tcp = Tcp(proxy, upstream)
            try:
                yield tcp
            finally:
                for tunnel in tcp.tunnels:
                    tunnel.close()


def configuration(upstream: socket.socket, **fields: Any) -> str:
    """The bootstrap of `proxied`."""
    main = tcp_listener("main", "a", **_SMALL, **fields)
    return bootstrap([main], [cluster("a", upstream.getsockname()[1], **_SMALL)])


def read(sock: socket.socket, count: int) -> bytes:
    """So many bytes, fewer at the end."""
    data = bytearray()
    while len(data) < count and (piece := sock.recv(min(count - len(data), _MIB))):
        data += piece
    return bytes(data)


def digest(sock: socket.socket) -> str:
    """Of all until the end."""
    found = hashlib.sha256()
    while piece := sock.recv(_MIB):
        found.update(piece)
    return found.hexdigest()


class Sending(threading.Thread):
    """Sends bulk data, then shuts that side; `sent` grows, and `digest` is of all of it."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock
        self._part = os.urandom(_MIB)
        self.digest = hashlib.sha256(self._part * (_BULK // _MIB)).hexdigest()
        self.sent = 0
        self.start()

    def run(self) -> None:
        while self.sent < _BULK:
            self.sent += self._sock.send(self._part[self.sent % _MIB :])
        self._sock.shutdown(socket.SHUT_WR)


def test_bulk_both_ways_at_once() -> None:
    with proxied() as tcp:
        tunnel = tcp.open()
        up, down = Sending(tunnel.downstream), Sending(tunnel.upstream)
        found: list[str] = []
        reader = threading.Thread(target=lambda: found.append(digest(tunnel.upstream)))
        reader.start()
        assert digest(tunnel.downstream) == down.digest
        for thread in (reader, up, down):
            thread.join()
        assert found == [up.digest]
        stats = tcp.proxy.stats("tcp\\.main")
        assert stats["tcp.main.downstream_cx_rx_bytes_total"] == stats["tcp.main.downstream_cx_tx_bytes_total"] == _BULK


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_reader_that_stops_holds_the_sender_back(direction: str) -> None:
    with proxied() as tcp:
        tunnel = tcp.open()
        assert tunnel.talks()
        before_kib = rss_kib(tcp.proxy.pid)
        ends = (tunnel.upstream, tunnel.downstream)
        source, sink = ends if direction == "download" else ends[::-1]
        source.settimeout(None)
        sending = Sending(source)
        side = "cluster.a.upstream" if direction == "download" else "tcp.main.downstream"
        paused, resumed = (f"{side}_flow_control_{what}_reading_total" for what in ("paused", "resumed"))
        wait_for(lambda: tcp.proxy.stats(paused).get(paused, 0) > tcp.proxy.stats(resumed).get(resumed, 0), paused)
        assert sending.sent < _BULK
        assert rss_kib(tcp.proxy.pid) - before_kib < 8 * 1024
        assert digest(sink) == sending.digest
        sending.join()
        assert rss_kib(tcp.proxy.pid) - before_kib < 8 * 1024


def test_a_drain_leaves_open_connections_alone() -> None:
    with proxied() as tcp:
        tunnel = tcp.open()
        assert tcp.proxy.admin("/drain_listeners?graceful", "POST")[0] == 200
        assert tunnel.talks()


def test_connections_of_a_replaced_chain_go_on_until_the_drain_time_is_over() -> None:
    with proxied("--drain-time-s", "1") as tcp:
        tunnel = tcp.open()
        tcp.reload(configuration(tcp.upstream, proxy={"idle_timeout": "77s"}))
        assert tunnel.talks()
        newer = tcp.open()
        assert newer.talks()
        assert tunnel.downstream.recv(1) == b""
        assert newer.talks()


def test_a_reload_that_leaves_the_chain_alone_keeps_connections() -> None:
    with proxied("--drain-time-s", "1") as tcp:
        tunnel = tcp.open()
        main, before = tcp_listener("main", "a", **_SMALL), tcp.upstream.getsockname()[1]
        tcp.reload(bootstrap([main], [cluster("a", before, **_SMALL), cluster("another", before)]))
        assert tunnel.talks()
        assert tcp.proxy.stats("listener_manager\\.total_filter_chains_draining") == {
            "listener_manager.total_filter_chains_draining": 0
        }


def test_two_workers() -> None:
    with proxied("--concurrency", "2") as tcp:
        tunnels = [tcp.open() for _ in range(16)]
        assert all(tunnel.talks() for tunnel in tunnels)
        assert tcp.proxy.stats("tcp\\.main\\.downstream_cx_total") == {"tcp.main.downstream_cx_total": 16}
