"""HTTP/2 connections from the downstream: what opens them, and what ends them in order (GOAWAY)."""

import json
import re

from tests.differential.cases import get
from tests.differential.http2 import (
    Ended,
    Fire,
    Goaway,
    Head,
    Http2Pair,
    Http2Side,
    Http2Topic,
    Over,
    Parts,
    Reached,
    Request1,
    Row,
    Sync,
    http2_cluster,
    one,
)
from tests.differential.tls import server_tls
from tests.support.http2_downstream import Http2Downstream
from tests.support.http2_upstream import OK, Http2Answer
from tests.support.http2_wire import PREFACE, headers

TO_H = "match: { prefix: / }\nroute: { cluster: h }"
DIRECT = "match: { prefix: / }\ndirect_response: { status: 200, body: { inline_string: hi } }"
HELD = Http2Answer(OK.frames, wait_for="go")
OPTIONS = {
    "defaults": "",
    "table": "hpack_table_size: 8192",
    "no_table": "hpack_table_size: 0",
    "streams": "max_concurrent_streams: 7",
    "stream_window": "initial_stream_window_size: 65535",
    "connection_window": "initial_connection_window_size: 65535",
    "windows": "initial_stream_window_size: 100000, initial_connection_window_size: 200000",
    "connect": "allow_connect: true",
    "custom": "custom_settings_parameters: [{ identifier: 99, value: 5 }, { identifier: 6, value: 1000 }]",
}
OPENINGS = [
    one(f"opening_{name}", Head(), Sync(), route=DIRECT, listener=f"opens_{name}", settings=True) for name in OPTIONS
]
UPSTREAM_OPENINGS = [
    one(
        f"upstream_opening_{name}",
        Head(),
        route=f"match: {{ prefix: / }}\nroute: {{ cluster: opens_{name} }}",
        upstream_settings=True,
    )
    for name in OPTIONS
]
CODECS = [
    Row("auto_http1", (Request1(get("/")),), route=DIRECT, opening=None),
    Row("auto_both", (Head(), Request1(get("/")), Over()), route=DIRECT),
    Row("http1_with_preface", (Request1(PREFACE),), route=DIRECT, listener="first", opening=None),
    one("http2_alone", Head(), route=DIRECT, listener="second"),
]
TLS = [
    one("alpn_h2", Head(over=((":scheme", "https"),)), route=DIRECT, listener="secure", alpn=("h2", "http/1.1")),
    one("alpn_h2_alone", Head(), route=DIRECT, listener="secure", alpn=("h2",)),
    one("alpn_h2_second", Head(), route=DIRECT, listener="secure", alpn=("http/1.1", "h2")),
    one("alpn_none", Head(), route=DIRECT, listener="secure", alpn=()),
    one("alpn_h2_to_http2", Head(), route=DIRECT, listener="secure_http2", alpn=("h2",)),
    one("scheme_of_tls", Head(over=((":scheme", "http"),)), route=TO_H, listener="secure", alpn=("h2",)),
    Row(
        "alpn_http1",
        (Head(), Ended()),
        route=DIRECT,
        listener="secure",
        alpn=("http/1.1",),
        ignore=("stream", "goaway"),
    ),
    Row(
        "alpn_h2_but_http1",
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", Ended()),
        route=DIRECT,
        listener="secure",
        alpn=("h2",),
        opening=b"",
        silent="PROTOCOL_ERROR",
    ),
]
DRAINS = [
    Row(
        "max_requests",
        (Head(), Over(), Head(stream=3), Over((3,)), Head(stream=5), Over((5,)), Ended()),
        route=DIRECT,
        listener="two_requests",
    ),
    Row(
        "max_requests_while_running",
        (Head(), Reached(), Head(stream=3), Goaway(2), Head(stream=5), Fire("go"), Over((1, 3)), Ended()),
        route=TO_H,
        listener="two_requests",
        answers=(HELD,),
    ),
    Row("max_duration", (Sync(), Goaway(2), Ended()), listener="short"),
    Row(
        "max_duration_while_running",
        (Head(), Reached(), Goaway(2), Fire("go"), Over(), Ended()),
        route=TO_H,
        listener="short",
        answers=(HELD,),
    ),
    Row(
        "max_duration_and_streams_within",
        (Head(), Reached(), Goaway(1), Head(stream=3), Reached(2), Fire("go"), Over((1, 3)), Ended()),
        route=TO_H,
        listener="short",
        answers=(HELD,),
    ),
    Row("idle", (Sync(), Goaway(2), Ended()), listener="idle"),
    Row("idle_after_request", (Head(), Over(), Goaway(2), Ended()), route=DIRECT, listener="idle"),
]
TIMEOUTS = [
    one("stream_idle", Head(), route=TO_H, listener="stream_idle", answers=(HELD,)),
    one("stream_idle_incomplete", Head(method="POST", end=False), route=TO_H, listener="stream_idle", answers=(HELD,)),
    one("max_stream_duration", Head(), route=TO_H, listener="stream_duration", answers=(HELD,)),
    one(
        "request_timeout",
        Head(method="POST", end=False),
        Parts(),
        route=TO_H,
        listener="request_timeout",
        answers=(HELD,),
    ),
    Row("keepalive_unanswered", (Ended(),), listener="keepalive", acknowledges=False),
]
SECURE = "chain: " + json.dumps({"transport_socket": server_tls(common="alpn_protocols: [h2, http/1.1]")})
DRAIN = "drain_timeout: 0.1s\ncommon_http_protocol_options: { %s }"
HTTP2 = Http2Topic(
    [*OPENINGS, *UPSTREAM_OPENINGS, *CODECS, *TLS, *DRAINS, *TIMEOUTS],
    listeners={
        **{f"opens_{name}": f"http2_protocol_options: {{ {options} }}" for name, options in OPTIONS.items()},
        "main": "",
        "first": "codec_type: HTTP1",
        "second": "codec_type: HTTP2",
        "two_requests": DRAIN % "max_requests_per_connection: 2",
        "short": DRAIN % "max_connection_duration: 0.1s",
        "idle": DRAIN % "idle_timeout: 0.1s",
        "stream_idle": "stream_idle_timeout: 0.1s",
        "stream_duration": "common_http_protocol_options: { max_stream_duration: 0.1s }",
        "request_timeout": "request_timeout: 0.1s",
        "keepalive": "http2_protocol_options: { connection_keepalive: { interval: 0.05s, timeout: 0.05s } }",
        "drained": "drain_timeout: 0.1s",
        "secure": SECURE,
        "secure_http2": "codec_type: HTTP2\n" + SECURE,
    },
    clusters={f"opens_{name}": http2_cluster("h", options) for name, options in OPTIONS.items()},
)


def test_row(http2_pair: Http2Pair, row: Row) -> None:
    http2_pair.check(row)


def goaways_after_drain(side: Http2Side) -> list[str]:
    """What a connection sees of a health check that fails: with the next answer, a notice, then the end."""
    with Http2Downstream(side.ports["drained"]) as downstream:
        downstream.barrier()
        side.proxy.admin("/healthcheck/fail", "POST")
        downstream.send(
            headers(1, [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "none.test")], end=True)
        )
        downstream.wait_over(1)
        end = downstream.wait_end()
        side.proxy.admin("/healthcheck/ok", "POST")
        return [*(f"{code} {last}" for code, last, _ in downstream.goaways), end]


def test_drain(http2_pair: Http2Pair) -> None:
    expected, actual = (goaways_after_drain(side) for side in (http2_pair.reference, http2_pair.subject))
    assert expected == ["0 2147483647", "0 1", "closed"]
    assert actual == expected


# Of Envoy's two libraries, of METADATA frames (an extension of Envoy's), and of what only its implementation has.
NOT_OURS = re.compile(r"(ng|og)http2_|metadata_|deferred_stream_close|cookies_total_bytes_too_large")


def http2_stats(side: Http2Side) -> set[str]:
    """Names of what HTTP/2 connections count, downstream and of one cluster."""
    with Http2Downstream(side.ports["main"]) as downstream:
        downstream.barrier()
    return {name for name in side.proxy.stats("http2\\.") if name.startswith(("http2.", "cluster.opens_defaults.http2."))}


def test_names_of_stats(http2_pair: Http2Pair) -> None:
    expected, actual = (http2_stats(side) for side in (http2_pair.reference, http2_pair.subject))
    assert {name for name in expected if not NOT_OURS.search(name)} == {
        name for name in actual if not NOT_OURS.search(name)
    }
