"""What is measured, in the order of the report. A comparison is one entry: contenders, a load, and the goals."""

from __future__ import annotations

from typing import Final

from bench.comparison import Comparison, Contender
from bench.configuration import LAST_HEADER_ROUTE, host_name
from bench.features import Features
from bench.goals import AddsLatency, AtLeast, AtMost, CostsMore
from bench.idle import Idle
from bench.load import Closed, FixedRate, Handshakes, Messages, Streams
from bench.peers import DIRECT, GRPC_SERVER, NGHTTPD, NGHTTPD_GRPC
from bench.run import Scenario
from bench.start_up import StartUp


def _on(config: str, *peers: str) -> tuple[Contender, ...]:
    """These peers, all on the same configuration."""
    return tuple(Contender(peer, config) for peer in peers)


def _cpu(limit: float, unit: str = "request") -> AtMost:
    """A goal for CPU, next to Envoy's."""
    return AtMost("meshproxy", limit, unit=unit)


_HTTP_PEERS: Final = ("envoy", "nginx", "haproxy", "mosn", "meshproxy")
_SIDECARS: Final = (Contender(DIRECT, ""), *_on("sidecar-out>sidecar-in", "envoy", "meshproxy"))
_SIDECARS_NOTE: Final = """
The client speaks to a sidecar, which speaks mutual TLS to another, which speaks to the application; both write an
access log to a file, trace 1 % of the requests, and have retries and outlier detection configured. CPU and RSS are
those of both together."""
_BODY_SIZES: Final = ((64, "64KiB", 32, ()), (1024, "1MiB", 8, (_cpu(1.2),)))

_MAIN: Final[tuple[Scenario, ...]] = (
    Comparison(
        name="http1",
        title="HTTP/1.1, one worker each",
        contenders=_on("http1", *_HTTP_PEERS, "meshproxy-source"),
        load=Closed(connections=32),
        goals=(
            _cpu(0.5),
            AtMost("meshproxy", 1.5, baseline="nginx", unit="request"),
            _cpu(0.7),  # part 1's
        ),
    ),
    Comparison(
        name="headline",
        title="The headline: two sidecars with mutual TLS between them, one worker each",
        contenders=_SIDECARS[1:],
        load=Closed(connections=32),
        goals=(_cpu(0.5),),
        note=_SIDECARS_NOTE,
    ),
    Comparison(
        name="headline-rate",
        title="The headline's latency, at a fixed rate",
        contenders=_SIDECARS,
        load=FixedRate(per_second=1000),
    ),
    Comparison(
        name="filters",
        title="HTTP/1.1 with a sidecar's filters and 20 routes that match headers, one worker each",
        contenders=_on("filters", "envoy", "meshproxy"),
        load=Closed(connections=32, headers=(LAST_HEADER_ROUTE, "origin: http://shop.bench.test")),
        goals=(_cpu(0.5),),
    ),
    Comparison(
        name="http1-rate",
        title="HTTP/1.1 at a fixed rate, one worker each",
        contenders=(Contender(DIRECT, ""), *_on("http1", *_HTTP_PEERS)),
        load=FixedRate(per_second=2000),
    ),
    Comparison(
        name="http1-one",
        title="The latency of one connection, one worker each",
        contenders=(Contender(DIRECT, ""), *_on("http1", *_HTTP_PEERS)),
        load=Closed(connections=1),
        goals=(AddsLatency("meshproxy", 0.5),),
    ),
    Comparison(
        name="one-more-filter",
        title="One more filter, which adds a header to the request",
        contenders=(
            *_on("http1", "envoy"),
            Contender("envoy", "http1+lua", "envoy-lua", "Envoy, Lua", than="envoy"),
            Contender("envoy", "http1+ext-proc", "envoy-ext-proc", "Envoy, ext_proc, grpc.aio server", than="envoy"),
            *_on("http1", "meshproxy"),
            Contender("meshproxy", "http1+python", "python", "meshproxy, Python filter", than="meshproxy"),
            Contender("meshproxy", "http1+python-async", "python-async", "meshproxy, `async` hook", than="meshproxy"),
        ),
        load=Closed(connections=32),
        goals=(CostsMore("python", 1.0, "meshproxy"),),
        note="The CPU and RSS of the ext_proc server are counted to its Envoy's.",
    ),
    Comparison(
        name="http1-workers",
        title="HTTP/1.1, two workers against one",
        contenders=_on("http1", "meshproxy", "meshproxy-2"),
        load=Closed(connections=32),
        baseline="meshproxy",
        goals=(AtMost("meshproxy-2", 1.1, baseline="meshproxy", unit="request"),),
    ),
    Features("features", "µs per feature, on and off"),
    StartUp("start-up", "Start-up, one worker each", "http1", (*_HTTP_PEERS, "meshproxy-source")),
)

_HTTP2_PEERS: Final = ("envoy", "nghttpx", "meshproxy")
_CONCURRENCY: Final = {"1": (1, 1), "8x8": (8, 8), "8x32": (8, 32)}  # connections, and streams of each

_HTTP2: Final[tuple[Scenario, ...]] = (
    *(
        Comparison(
            name=f"http2-{name}",
            title=f"HTTP/2 to HTTP/2, {connections} × {streams} concurrent, one worker each",
            contenders=_on("http2", *_HTTP2_PEERS, "meshproxy-source"),
            load=Streams(connections, streams),
            server=NGHTTPD,
            goals=(_cpu(0.5),),
        )
        for name, (connections, streams) in _CONCURRENCY.items()
    ),
    *(
        Comparison(
            name=f"http2-to-http1-{name}",
            title=f"HTTP/2 to HTTP/1.1, {connections} × {streams} concurrent, one worker each",
            contenders=_on("http1", *_HTTP2_PEERS),
            load=Streams(connections, streams),
        )
        for name, (connections, streams) in _CONCURRENCY.items()
    ),
    Comparison(
        name="http2-rate",
        title="HTTP/2 at a fixed rate, one worker each",
        contenders=(Contender(DIRECT, ""), *_on("http2", *_HTTP2_PEERS)),
        load=FixedRate(per_second=2000, connections=8, protocol="http2"),
        server=NGHTTPD,
        goals=(AtMost("meshproxy", 1.0, value="p99"),),
    ),
    Comparison(
        name="grpc-unary",
        title="gRPC, unary calls, one worker each",
        contenders=_on("http2", *_HTTP2_PEERS),
        load=Streams(connections=8, streams=8, path="/message.grpc", grpc=True),
        server=NGHTTPD_GRPC,
        goals=(_cpu(0.5, "call"),),
        unit="call",
    ),
    Comparison(
        name="grpc-stream",
        title="gRPC, streams of 1,000 messages from the server, one worker each",
        contenders=_on("http2", *_HTTP2_PEERS),
        load=Messages(connections=8),
        server=GRPC_SERVER,
        unit="message",
    ),
    Comparison(
        name="grpc-echo",
        title="gRPC, streams of 1,000 messages there and back, one worker each",
        contenders=_on("http2", *_HTTP2_PEERS),
        load=Messages(connections=8, echoes=True),
        server=GRPC_SERVER,
        unit="message",
    ),
    Comparison(
        name="http2-mtls",
        title="HTTP/2 over mutual TLS on connections that stay, one worker each",
        contenders=_on("http2-mtls", *_HTTP2_PEERS),
        load=Streams(connections=8, streams=8, mutual=True),
        server=NGHTTPD,
    ),
    *(
        Comparison(
            name=f"http2-{way}-1mib",
            title=f"HTTP/2, 1 MiB {way}, one worker each",
            contenders=_on("http2", *_HTTP2_PEERS),
            load=Streams(2, 4, "/1MiB") if way == "down" else Streams(2, 4, upload_bytes=1024 * 1024),
            server=NGHTTPD,
            goals=(AtLeast("meshproxy", 1.0),),
        )
        for way in ("down", "up")
    ),
    Idle(
        name="idle-http2",
        title="Memory of idle connections: HTTP/2",
        config="http2",
        server=NGHTTPD,
        http2=True,
        who=_HTTP2_PEERS,
        goal=AtMost("meshproxy", 1.0, value="each"),
    ),
)

_EARLIER: Final[tuple[Scenario, ...]] = (
    Comparison(
        name="tcp",
        title="TCP, small requests and answers on connections that stay, one worker each",
        contenders=_on("tcp", "envoy", "meshproxy"),
        load=Closed(connections=32),
        goals=(_cpu(1.0),),
    ),
    Comparison(
        name="tcp-bulk",
        title="TCP, 1 MiB downloads, one worker each",
        contenders=_on("tcp", "envoy", "meshproxy"),
        load=Closed(connections=8, path="/1MiB"),
        goals=(_cpu(1.0),),
    ),
    Comparison(
        name="tls",
        title="HTTP/1.1 over TLS on connections that stay, one worker each",
        contenders=_on("tls", "envoy", "meshproxy"),
        listener="ecdsa",
        load=Closed(connections=32, tls=True),
        goals=(_cpu(0.8),),
    ),
    Comparison(
        name="mtls",
        title="HTTP/1.1 over mutual TLS on connections that stay, one worker each",
        contenders=_on("tls", "envoy", "meshproxy"),
        listener="mutual",
        load=Closed(connections=32, mutual=True),
        goals=(_cpu(0.8),),
    ),
    *(
        Comparison(
            name=f"handshake-{name}",
            title=f"TLS connections of one request, {title}, one worker each",
            contenders=_on("tls", "envoy", "meshproxy"),
            listener=listener,
            load=Handshakes(resumes=name == "resumed", mutual=name == "mutual"),
            goals=(_cpu(0.91, "handshake"),),  # 1.1 times the handshakes in a second of CPU
            unit="handshake",
        )
        for name, listener, title in (
            ("rsa", "rsa", "full handshakes, RSA-2048"),
            ("ecdsa", "ecdsa", "full handshakes, ECDSA P-256"),
            ("resumed", "ecdsa", "resumed"),
            ("mutual", "mutual", "full handshakes, ECDSA P-256, certificates on both sides"),
        )
    ),
    *(
        Comparison(
            name=f"{way}-{name.lower()}",
            title=f"HTTP/1.1, {kib} KiB {way}, one worker each",
            contenders=_on("http1", "envoy", "meshproxy"),
            load=Closed(connections, f"/{name}") if way == "down" else Closed(connections, upload_bytes=kib * 1024),
            goals=goals,
        )
        for kib, name, connections, goals in _BODY_SIZES
        for way in ("down", "up")
    ),
    Comparison(
        name="vhosts",
        title="HTTP/1.1, one of 10,000 virtual hosts, one worker each",
        contenders=_on("vhosts", "envoy", "meshproxy"),
        load=Closed(connections=32, headers=(f"Host: {host_name(5000)}",)),
    ),
    Idle("idle-http", "Memory of idle connections: HTTP/1.1", "http1"),
    Idle("idle-tcp", "Memory of idle connections: TCP, each with its upstream connection", "tcp"),
    Idle("idle-tls", "Memory of idle connections: HTTP/1.1 over TLS", "tls", "ecdsa", tls=True),
)

SCENARIOS: Final = (*_MAIN, *_HTTP2, *_EARLIER)
