"""What a drain of the listeners says on HTTP/2 connections where no answer begins, in Envoy and here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.config import bootstrap, cluster, direct, forward, listener
from tests.integration.raw_upstream import RawUpstream
from tests.support.http2_downstream import Http2Downstream
from tests.support.http2_wire import headers
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy

_GET = [(":method", "GET"), (":scheme", "http"), (":authority", "a")]


def drained(start: Callable[..., ProxyProcess], strategy: str) -> list[str]:
    """What three connections hear: one that was never used, one that has had an answer, one that waits for one."""
    with RawUpstream() as upstream:
        routes = [direct("/direct", "x"), forward("/", "a", timeout="0s")]
        config = bootstrap([listener("main", routes, manager={"drain_timeout": "0.3s"})], [cluster("a", upstream.port)])
        with start(config, "--drain-time-s", "2", "--drain-strategy", strategy) as proxy:
            port = proxy.listener_ports()["main"]
            with Http2Downstream(port) as unused, Http2Downstream(port) as idle, Http2Downstream(port) as busy:
                unused.barrier()
                idle.send(headers(1, [*_GET, (":path", "/direct")], end=True))
                idle.wait_over(1)
                busy.send(headers(1, [*_GET, (":path", "/wait")], end=True))
                reader, _ = upstream.accept_request()
                assert proxy.admin("/drain_listeners?graceful&skip_exit", "POST")[0] == 200
                ends = [unused.wait_end(), idle.wait_end()]
                busy.read_until(lambda: len(busy.goaways) == 2)
                reader.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                busy.wait_over(1)
                ends.append(busy.wait_end())
                heard = [str([(code, last) for code, last, _ in each.goaways]) for each in (unused, idle, busy)]
                counters = proxy.stats(r"http\.main\.downstream_cx_drain_close|^http2\.goaway_sent")
                return [*ends, *heard, *(f"{name}: {value}" for name, value in sorted(counters.items()))]


@pytest.mark.parametrize("strategy", ["immediate", "gradual"])
def test_connections_are_told_without_an_answer(strategy: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        expected, actual = pool.map(drained, (start_envoy, start_meshproxy), (strategy, strategy))
    assert expected[:3] == ["closed"] * 3
    assert expected[3:6] == [str([(0, (1 << 31) - 1), (0, last)]) for last in (0, 1, 1)]
    assert actual == expected
