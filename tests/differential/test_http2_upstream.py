"""HTTP/2 upstreams that break the rules, and the pool of connections to them."""

from dataclasses import replace

from tests.differential.cases import get
from tests.differential.http2 import (
    Fire,
    Gone,
    Head,
    Http2Pair,
    Http2Topic,
    Over,
    Reached,
    Request1,
    Row,
    Sync,
    http2_cluster,
    one,
)
from tests.support.http2_upstream import OK, SILENT, Http2Answer, frames_of
from tests.support.http2_wire import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PUSH_PROMISE,
    Fields,
    data,
    field_block,
    frame,
    headers,
    priority,
    settings,
)

ROUTE = "match: { prefix: / }\nroute: { cluster: %s }"
STATUS = [(":status", "200")]
REQUEST = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x.test")]


def head(*fields: tuple[str, str], status: str | None = "200") -> Http2Answer:
    """An answer of one HEADERS frame."""
    given: Fields = [*([(":status", status)] if status is not None else []), *fields]
    return frames_of(lambda stream: headers(stream, given, end=True))


# The stream's fault or, without `override_stream_error_on_invalid_http_message`, the connection's.
MALFORMED: dict[str, Http2Answer] = {
    "no_status": head(("a", "b"), status=None),
    "status_text": head(status="abc"),
    "status_99": head(status="99"),
    "status_1000": head(status="1000"),
    "status_101": head(status="101"),
    "status_twice": head((":status", "200")),
    "unknown_pseudo": head((":other", "x")),
    "request_pseudo": head((":path", "/")),
    "upper_case": head(("X-A", "b")),
    "connection": head(("connection", "close")),
    "transfer_encoding": head(("transfer-encoding", "chunked")),
    "keep_alive": head(("keep-alive", "x")),
    "upgrade": head(("upgrade", "x")),
    "nul": head(("a", "b\0c")),
    "bad_length": head(("content-length", "x")),
    "length_without_content": head(("content-length", "5")),
    "interim_ends": head(status="100"),
    "interim_with_length": frames_of(
        lambda stream: (
            headers(stream, [(":status", "103"), ("content-length", "0")]) + headers(stream, STATUS, end=True)
        )
    ),
    "no_content_with_length": head(("content-length", "5"), status="204"),
    "trailers_go_on": frames_of(
        lambda stream: headers(stream, STATUS) + data(stream, b"x") + headers(stream, [("t", "v")])
    ),
    "trailers_pseudo": frames_of(
        lambda stream: headers(stream, STATUS) + data(stream, b"x") + headers(stream, [(":status", "200")], end=True)
    ),
    "two_heads": frames_of(lambda stream: headers(stream, STATUS) + headers(stream, STATUS, end=True)),
}
STREAM_ERRORS: dict[str, Http2Answer] = {
    "body_short": frames_of(
        lambda stream: headers(stream, [*STATUS, ("content-length", "5")]) + data(stream, b"x", end=True)
    ),
    "body_long": frames_of(
        lambda stream: headers(stream, [*STATUS, ("content-length", "1")]) + data(stream, b"xyz", end=True)
    ),
    "fields_101": head(*((f"h{number}", "v") for number in range(100))),
    "fields_100": head(*((f"h{number}", "v") for number in range(99))),
    "list_too_large": head(("a", "v" * 61440)),
}
CONNECTION_ERRORS: dict[str, tuple[str, Http2Answer]] = {
    "push": (
        "PROTOCOL_ERROR",
        frames_of(lambda stream: frame(PUSH_PROMISE, END_HEADERS, stream, b"\0\0\0\2" + field_block(REQUEST))),
    ),
    "unknown_stream": ("PROTOCOL_ERROR", frames_of(lambda stream: headers(stream + 100, STATUS, end=True))),
    "even_stream": ("PROTOCOL_ERROR", frames_of(lambda stream: headers(2, STATUS, end=True))),
    "bad_settings": ("FLOW_CONTROL_ERROR", frames_of(lambda stream: settings((4, 1 << 31)))),
    "push_setting": ("PROTOCOL_ERROR", frames_of(lambda stream: settings((2, 1)))),
    "empty_frames": ("ENHANCE_YOUR_CALM", frames_of(lambda stream: headers(stream, STATUS) + data(stream) * 3)),
}
LOUD_CONNECTION_ERRORS: dict[str, Http2Answer] = {
    "data_first": frames_of(lambda stream: data(stream, b"x", end=True)),
    "hpack": frames_of(lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\xff\xff\x03")),
    "ping_size": frames_of(lambda stream: frame(PING, 0, 0, b"abc")),
}
FINE: dict[str, Http2Answer] = {
    "settings_before": frames_of(lambda stream: settings((77, 1)), OK.frames),
    "one_empty_frame": frames_of(lambda stream: headers(stream, STATUS) + data(stream) + data(stream, b"x", end=True)),
    "unknown_frame": frames_of(lambda stream: frame(99, 0, stream, b"x"), OK.frames),
}
HELD = replace(OK, wait_for="go")
POOL = [
    Row(
        "two_on_one_connection",
        (Head(), Reached(), Head(stream=3), Reached(2), Fire("go"), Over((1, 3))),
        route=ROUTE % "many",
        answers=(HELD,),
    ),
    one(
        "priority_of_itself",
        Head(),
        route=ROUTE % "h",
        answers=(frames_of(lambda stream: priority(stream, stream), OK.frames),),
        differs="priority-frames",
        envoy=(":status: 200",),
        ours=(":status: 502", "RST_STREAM PROTOCOL_ERROR"),
    ),
    Row(
        "one_each",
        (Head(), Reached(), Head(stream=3), Reached(2), Fire("go"), Over((1, 3))),
        route=ROUTE % "one_each",
        answers=(HELD,),
    ),
    Row("one_each_again", (Head(), Over(), Head(stream=3), Over((3,))), route=ROUTE % "one_each_again"),
    Row("none_allowed", (Head(), Over(), Head(stream=3), Over((3,))), route=ROUTE % "none"),
    Row(
        "configured_one_each",
        (Head(), Reached(), Head(stream=3), Reached(2), Fire("go"), Over((1, 3))),
        route=ROUTE % "configured",
        answers=(HELD,),
    ),
    Row(
        "max_requests",
        (Head(), Over(), Head(stream=3), Over((3,)), Head(stream=5), Over((5,))),
        route=ROUTE % "two_requests",
        ignore=("stat cluster.two_requests.upstream_cx_protocol_error",),
    ),  # Envoy counts its own closing
    Row(
        "requests_breaker",
        (Head(), Reached(), Head(stream=3), Over((3,)), Fire("go"), Over()),
        route=ROUTE % "one_active",
        answers=(HELD,),
    ),
    Row("http1_and_http2_downstream", (Request1(get("/")), Head(), Over(), Request1(get("/"))), route=ROUTE % "shared"),
    Row("no_settings", (Head(), Over()), route=ROUTE % "mute"),
    Row("not_http2", (Head(), Over()), route=ROUTE % "plain"),
]
COMMON = "common_http_protocol_options: { %s }"
ENDS = [
    Row("idle", (Head(), Over(), Gone(), Head(stream=3), Over((3,))), route=ROUTE % "idle"),
    Row("duration", (Head(), Over(), Gone(), Head(stream=3), Over((3,))), route=ROUTE % "short"),
    Row("stream_duration", (Head(), Over()), route=ROUTE % "brief", answers=(SILENT,)),
    Row("keepalive_answered", (Head(), Over(), Sync(), Head(stream=3), Over((3,))), route=ROUTE % "kept"),
    Row("keepalive_unanswered", (Head(), Over(), Gone()), route=ROUTE % "unkept", answers=(SILENT,)),
    Row("keepalive_unanswered_when_idle", (Head(), Over(), Gone()), route=ROUTE % "unkept_idle"),
]
ROWS = [
    *(
        one(
            f"status_{status}",
            Head(),
            route=ROUTE % "stream",
            answers=(head(status=status),),
            differs="status-range",
            envoy=(f":status: {status}",),
            ours=(":status: 502", "RST_STREAM PROTOCOL_ERROR"),
        )
        for status in ("099", "600", "999")
    ),
    *(
        one(name, Head(), route=ROUTE % "h", answers=(what,), ignore=("upstream goaway",))
        for name, what in MALFORMED.items()
    ),
    *(one(f"stream_{name}", Head(), route=ROUTE % "stream", answers=(what,)) for name, what in MALFORMED.items()),
    *(one(f"error_{name}", Head(), route=ROUTE % "h", answers=(what,)) for name, what in STREAM_ERRORS.items()),
    *(
        one(f"loud_{name}", Head(), route=ROUTE % "h", answers=(what,), ignore=("stat cluster.h.http2.rx_messaging",))
        for name, what in LOUD_CONNECTION_ERRORS.items()
    ),
    *(
        one(f"closed_{name}", Head(), route=ROUTE % "h", answers=(what,), ignore=("upstream goaway",))
        for name, (_, what) in CONNECTION_ERRORS.items()
    ),
    *(one(f"fine_{name}", Head(), route=ROUTE % "h", answers=(what,)) for name, what in FINE.items()),
    *POOL,
    *ENDS,
]
HTTP2 = Http2Topic(
    ROWS,
    clusters={
        "stream": http2_cluster("h", "override_stream_error_on_invalid_http_message: true"),
        "many": http2_cluster("h"),
        "shared": http2_cluster("h"),
        "one_each": http2_cluster("h_one"),
        "one_each_again": http2_cluster("h_one"),
        "none": http2_cluster("h_none"),
        "mute": http2_cluster("h_mute"),
        "plain": http2_cluster("a"),
        "configured": http2_cluster("h", "max_concurrent_streams: 1"),
        "two_requests": http2_cluster("h", more="common_http_protocol_options: { max_requests_per_connection: 2 }"),
        "idle": http2_cluster("h", more=COMMON % "idle_timeout: 0.1s"),
        "short": http2_cluster("h", more=COMMON % "max_connection_duration: 0.1s"),
        "brief": http2_cluster("h", more=COMMON % "max_stream_duration: 0.1s"),
        "kept": http2_cluster("h", "connection_keepalive: { interval: 0.02s, timeout: 1s }"),
        "unkept": http2_cluster("h_deaf", "connection_keepalive: { interval: 0.1s, timeout: 0.1s }"),
        "unkept_idle": http2_cluster("h_deaf", "connection_keepalive: { interval: 0.1s, timeout: 0.1s }"),
        "one_active": http2_cluster("h") + "\ncircuit_breakers: { thresholds: [{ max_requests: 1 }] }",
    },
)


def test_row(http2_pair: Http2Pair, row: Row) -> None:
    http2_pair.check(row)
