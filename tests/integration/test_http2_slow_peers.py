"""Peers that take for ever, or send half of something: each ends within the time that is configured for it, and is
counted; and the proxy serves everybody else meanwhile."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tests.integration.config import Json, bootstrap, cluster, direct, forward, http2_cluster, listener
from tests.integration.http2_body import BulkWire
from tests.integration.raw_upstream import RawUpstream
from tests.support.http2_downstream import Http2Downstream
from tests.support.http2_wire import PREFACE, Fields, data, frame, headers, settings
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_meshproxy
from tests.tls.certificates import dns, issue, world

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
_GET: Final[Fields] = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/x")]
_POST: Final[Fields] = [(":method", "POST"), *_GET[1:]]
_SHORT = "0.3s"
_TIMEOUT_S = 20.0  # of these tests: far more than what they wait for
_NO_WINDOW = PREFACE + settings((4, 0))
_OPENING = PREFACE + settings()


class World:
    """The proxy with a listener for every kind of patience, and an upstream that is told what to do."""

    def __init__(self, folder: Path) -> None:
        self.upstream = RawUpstream(timeout_s=_TIMEOUT_S)
        issued = issue("server", world().ca, names=dns("localhost"))
        (folder / "chain.pem").write_bytes(issued.pem)
        (folder / "key.pem").write_bytes(issued.key_pem)
        self._folder = folder
        self.proxy: ProxyProcess = start_meshproxy(self._config())
        self.ports = self.proxy.listener_ports()

    def close(self) -> None:
        self.proxy.stop()
        self.upstream.__exit__(None, None, None)

    def _config(self) -> str:
        answer = [direct("/", "x" * 1000)]
        keepalive = {"interval": "0.1s", "timeout": _SHORT}
        managers: dict[str, Json] = {
            "flush": {"stream_flush_timeout": _SHORT},
            "stream": {"stream_idle_timeout": _SHORT},
            "head": {"request_headers_timeout": _SHORT},
            "request": {"request_timeout": _SHORT},
            "idle": {"common_http_protocol_options": {"idle_timeout": _SHORT}, "drain_timeout": "0.1s"},
            "ping": {"http2_protocol_options": {"connection_keepalive": keepalive}},
        }
        listeners = [listener(name, answer, manager=manager) for name, manager in managers.items()]
        tls = listener("tls", answer)
        tls["filter_chains"][0]["transport_socket"] = self._tls()
        tls["filter_chains"][0]["transport_socket_connect_timeout"] = _SHORT
        clusters = {
            "mute": http2_cluster(),
            "ping": http2_cluster(connection_keepalive=keepalive),
        }
        for name in clusters:
            timeout = _SHORT if name == "mute" else "0s"
            listeners.append(listener(f"to-{name}", [forward("/", name, timeout=timeout)]))
        behind = [cluster(name, self.upstream.port, **fields) for name, fields in clusters.items()]
        return bootstrap([*listeners, tls], behind)

    def _tls(self) -> Json:
        files = {"certificate_chain": "chain.pem", "private_key": "key.pem"}
        pair = {name: {"filename": str(self._folder / file)} for name, file in files.items()}
        common = {"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [pair]}
        return {
            "name": "tls",
            "typed_config": {"@type": _TLS + "DownstreamTlsContext", "common_tls_context": common},
        }

    def downstream(self, name: str, opening: bytes = _OPENING, tls: ssl.SSLContext | None = None) -> Http2Downstream:
        return Http2Downstream(self.ports[name], opening=opening, timeout_s=_TIMEOUT_S, tls=tls)

    def stat(self, name: str) -> int:
        """The sum of the stats whose names end so."""
        return sum(self.proxy.stats(name.replace(".", "\\.") + "$").values())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with closing(World(tmp_path_factory.mktemp("slow"))) as started:
        yield started


@pytest.fixture
def servers(shared: World) -> Iterator[World]:
    """Afterwards nothing is left of what came."""
    yield shared
    shared.upstream.hang_up()
    active = r"^(http\.(?!admin).*downstream_(cx|rq)_active|cluster.*_(cx|rq)_active|.*streams_active)"
    wait_for(lambda: not any(shared.proxy.stats(active).values()), "all to be freed", _TIMEOUT_S)
    assert "Traceback" not in shared.proxy.output()


# -- downstream


def test_a_window_of_nothing(servers: World) -> None:
    before = servers.stat("http2.tx_flush_timeout")
    with servers.downstream("flush", _NO_WINDOW) as stalled:
        stalled.send(headers(1, _GET, end=True))
        stalled.wait_over(1)
        assert stalled.streams[1].reset is not None
        assert stalled.streams[1].parts[0].body == b""
        assert servers.stat("http2.tx_flush_timeout") == before + 1
        assert stalled.barrier()  # its connection is as good as ever


def test_many_streams_without_a_window_next_to_one_that_has(servers: World) -> None:
    before = servers.stat("http2.tx_flush_timeout")
    with servers.downstream("flush", _NO_WINDOW) as stalled, servers.downstream("flush") as other:
        stalled.send(b"".join(headers(stream, _GET, end=True) for stream in range(1, 200, 2)))
        other.send(headers(1, _GET, end=True))
        other.wait_over(1)
        assert other.streams[1].parts[0].body == b"x" * 1000
        stalled.wait_over(*range(1, 200, 2))
        assert servers.stat("http2.tx_flush_timeout") == before + 100


@pytest.mark.parametrize(
    ("name", "counter"),
    [
        ("stream", "http.stream.downstream_rq_idle_timeout"),
        ("head", "http.head.downstream_rq_header_timeout"),
        ("request", "http.request.downstream_rq_timeout"),
        ("idle", "http.idle.downstream_cx_idle_timeout"),
    ],
)
@pytest.mark.parametrize(
    "half",
    [
        headers(1, _GET, end=True)[:30],
        headers(1, _GET, end=True, end_headers=False),
        headers(1, _GET, end=True, end_headers=False) + frame(9, 0, 1, b"\0\1x")[:11],
    ],
    ids=["half a frame", "no CONTINUATION", "half of CONTINUATION"],
)
def test_half_of_a_head(servers: World, name: str, counter: str, half: bytes) -> None:
    before = servers.stat(counter)
    with servers.downstream(name) as slow:
        assert slow.barrier()
        slow.answering = False
        slow.send(half)
        assert slow.wait_end() == "closed"
        assert [code for code, _, _ in slow.goaways][-1:] == [0]
    assert servers.stat(counter) == before + 1


def test_heads_in_pieces_that_arrive_in_time(servers: World) -> None:
    """The time is that of a head, not of the connection."""
    before = servers.stat("http.head.downstream_rq_header_timeout")
    with servers.downstream("head") as slow:
        for stream in range(1, 41, 2):
            whole = headers(stream, _GET, end=True)
            slow.send(whole[:20])
            assert stream not in slow.streams
            slow.send(whole[20:])
            slow.wait_over(stream)
            assert slow.streams[stream].parts[0].get(":status") == "200"
        assert servers.stat("http.head.downstream_rq_header_timeout") == before
        assert slow.goaways == []


@pytest.mark.parametrize("opening", [PREFACE[:8], PREFACE[:18], PREFACE, _OPENING[:-4]])
def test_half_of_a_preface(servers: World, opening: bytes) -> None:
    before = servers.stat("http.idle.downstream_cx_idle_timeout")
    with servers.downstream("idle", opening) as slow:
        slow.answering = False
        assert slow.wait_end() in ("closed", "reset")
    assert servers.stat("http.idle.downstream_cx_idle_timeout") == before + 1


def test_half_of_a_body(servers: World) -> None:
    before = servers.stat("http.to-mute.downstream_rq_5xx")
    with servers.downstream("to-mute") as slow:
        slow.send(headers(1, [*_POST, ("content-length", "100")]) + data(1, b"x" * 100, end=True)[:60])
        reader = servers.upstream.accept()
        reader.read_exactly(len(PREFACE))
        assert servers.stat("cluster.mute.upstream_rq_active") == 1
        slow.reset_connection()
    wait_for(lambda: servers.stat("cluster.mute.upstream_rq_active") == 0, "the request to end")
    assert servers.stat("http.to-mute.downstream_rq_5xx") == before


def test_pings_without_answers(servers: World) -> None:
    before = servers.stat("http2.keepalive_timeout")
    with servers.downstream("ping") as mute:
        mute.answering = False
        mute.send(headers(1, _GET, end=True))
        assert mute.wait_end() == "closed"
    with servers.downstream("ping") as other:
        assert other.barrier()
    assert servers.stat("http2.keepalive_timeout") == before + 1


def test_http1_where_alpn_says_http2(servers: World) -> None:
    context = ssl.create_default_context(cadata=world().ca.pem.decode())
    context.set_alpn_protocols(["h2"])
    before = servers.stat("http.tls.downstream_cx_protocol_error")
    with servers.downstream("tls", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", context) as wrong:
        assert wrong.wait_end() == "closed"
        assert [code for code, _, _ in wrong.goaways] == [1]
    assert servers.stat("http.tls.downstream_cx_protocol_error") == before + 1


def test_half_of_a_handshake(servers: World) -> None:
    before = servers.stat("downstream_cx_transport_socket_connect_timeout")
    with servers.downstream("tls", b"\x16\x03\x01\x02\x00\x01\x00") as slow:
        assert slow.wait_end() in ("closed", "reset")
    assert servers.stat("downstream_cx_transport_socket_connect_timeout") == before + 1


# -- upstream


def test_an_upstream_that_says_nothing(servers: World) -> None:
    """Not even SETTINGS: the request is sent all the same, and ends with its time."""
    before = servers.stat("cluster.mute.upstream_rq_timeout")
    with servers.downstream("to-mute") as downstream:
        downstream.send(headers(1, _GET, end=True))
        servers.upstream.accept()
        downstream.wait_over(1)
        assert downstream.streams[1].parts[0].get(":status") == "504"
    assert servers.stat("cluster.mute.upstream_rq_timeout") == before + 1


def test_an_upstream_that_sends_half_of_a_head(servers: World) -> None:
    before = servers.stat("cluster.mute.upstream_rq_timeout")
    with servers.downstream("to-mute") as downstream:
        downstream.send(headers(1, _GET, end=True))
        wire = BulkWire(servers.upstream.accept().sock)
        assert wire.read_bytes(len(PREFACE)) == PREFACE
        stream = wire.wait_new()
        wire.send(headers(stream, [(":status", "200")])[:11])
        downstream.wait_over(1)
        assert downstream.streams[1].parts[0].get(":status") == "504"
        wire.read_until(lambda: wire.was_reset(stream))
    assert servers.stat("cluster.mute.upstream_rq_timeout") == before + 1


def test_an_upstream_that_sends_http1(servers: World) -> None:
    before = servers.stat("cluster.mute.upstream_cx_protocol_error")
    with servers.downstream("to-mute") as downstream:
        downstream.send(headers(1, _GET, end=True))
        servers.upstream.accept().sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        downstream.wait_over(1)
        assert downstream.streams[1].parts[0].get(":status") == "502"
    assert servers.stat("cluster.mute.upstream_cx_protocol_error") == before + 1


def test_an_upstream_that_answers_no_ping(servers: World) -> None:
    """Its streams end with it; the next request finds another connection."""
    before = servers.stat("cluster.ping.http2.keepalive_timeout")
    with servers.downstream("to-ping") as downstream:
        downstream.send(headers(1, _GET, end=True))
        servers.upstream.accept().sock.sendall(settings())
        downstream.wait_over(1)
        assert downstream.streams[1].parts[0].get(":status") == "503"
        assert servers.stat("cluster.ping.http2.keepalive_timeout") == before + 1
        downstream.send(headers(3, _GET, end=True))
        wire = BulkWire(servers.upstream.accept().sock)
        assert wire.read_bytes(len(PREFACE)) == PREFACE
        wire.send(headers(wire.wait_new(), [(":status", "200")], end=True))
        downstream.wait_over(3)
        assert downstream.streams[3].parts[0].get(":status") == "200"
