"""Calls of gRPC over HTTP/2: the filters, timeouts, retries, and the status that a reset amounts to."""

from tests.differential.cases import post
from tests.differential.http2 import Head, Http2Pair, Http2Topic, Request1, Row, Step, Sync, one
from tests.differential.test_grpc_filters import BRIDGE, GRPC, REVERSE, STATS, TEXT_BODY, WEB, listener, message
from tests.support.http2_upstream import HANG_UP, SILENT, Http2Answer, answer, frames_of
from tests.support.http2_wire import data, headers
from tests.support.http2_wire import reset as rst_stream
from tests.support.upstream import reply

WEB_BINARY = ("content-type", "application/grpc-web")
WEB_TEXT = ("content-type", "application/grpc-web-text")
ACCEPT_TEXT = ("accept", "application/grpc-web-text")
PROTO = ("content-type", "application/x-protobuf")
BACK_OFF = "retry_back_off: { base_interval: 0.002s, max_interval: 0.004s }"


BRIDGE_HTTP2 = "grpc-bridge-http2"


def call(*fields: tuple[str, str], body: bytes = message(b"hello"), path: str = "/s.S/M") -> tuple[Step, ...]:
    """A request of gRPC, or of its like."""
    return (Head([GRPC, ("te", "trailers"), *fields], method="POST", path=path, end=False), data(1, body, end=True))


def of_type(content_type: tuple[str, str], *fields: tuple[str, str], body: bytes) -> tuple[Step, ...]:
    return (Head([content_type, *fields], method="POST", path="/s.S/M", end=False), data(1, body, end=True))


def ended(*trailers: tuple[str, str], body: bytes = message(b"world")) -> Http2Answer:
    """A response with trailers."""
    return frames_of(
        lambda stream: headers(stream, [(":status", "200"), GRPC]),
        lambda stream: data(stream, body),
        lambda stream: headers(stream, [*trailers], end=True),
    )


def trailers_only(status: str, *fields: tuple[str, str]) -> Http2Answer:
    return answer([GRPC, ("grpc-status", status), *fields], b"")


def reset(code: int, *, started: bool = False) -> Http2Answer:
    """RST_STREAM, before or amid the response."""
    head = [lambda stream: headers(stream, [(":status", "200"), GRPC]) + data(stream, message(b"a"))] if started else []
    return frames_of(*head, lambda stream: rst_stream(stream, code))


OK = ended(("grpc-status", "0"))
FAILED = ended(("grpc-status", "5"), ("grpc-message", "none"))


def to(more: str = "", cluster: str = "h") -> str:
    return f"match: {{ prefix: / }}\nroute: {{ cluster: {cluster}{', ' + more if more else ''} }}"


def retrying(condition: str) -> str:
    return to(f"retry_policy: {{ retry_on: '{condition}', num_retries: 1, {BACK_OFF} }}")


CALLS = [
    one("ok", *call(), route=to(), answers=(OK,)),
    one("failed", *call(), route=to(), answers=(FAILED,)),
    one("trailers_only", *call(), route=to(), answers=(trailers_only("14"),)),
    one("http_error", *call(), route=to(), answers=(answer([], b"x", 503),)),
    one("no_route", *call(), route="match: { prefix: /none }\nroute: { cluster: h }", ignore=("RST_STREAM", "stat")),
    one("dead", *call(), route=to(cluster="dead"), ignore=("RST_STREAM", "stat")),  # perhaps before the whole request
    one("hang_up", *call(), route=to(), answers=(HANG_UP,)),
    one("timeout", *call(), route=to("timeout: 0.06s"), answers=(SILENT,)),
    *(
        one(f"reset_{code}_{'amid' if started else 'before'}", *call(), route=to(), answers=(reset(code, started=started),))
        for code in (0, 1, 2, 7, 8, 11)
        for started in (False, True)
    ),
    one("max_duration", *call(("grpc-timeout", "60m")), route=to("max_stream_duration: { grpc_timeout_header_max: 10s }"), answers=(SILENT,)),
    one("timeout_told", *call(("grpc-timeout", "5S")), route=to("max_stream_duration: { grpc_timeout_header_max: 2s }"), answers=(OK,)),
    one("old_timeout", *call(("grpc-timeout", "60m")), route=to("max_grpc_timeout: 10s"), answers=(SILENT,)),
    one("retried", *call(), route=retrying("unavailable"), answers=(trailers_only("14"), OK)),
    one("not_retried_by_trailers", *call(), route=retrying("unavailable"), answers=(ended(("grpc-status", "14")), OK)),
    one("refused_retried", *call(), route=retrying("refused-stream"), answers=(reset(7), OK)),
    one("refused_not_retried", *call(), route=retrying("unavailable"), answers=(reset(7), OK)),
    one("reset_retried", *call(), route=retrying("reset"), answers=(reset(8), OK)),
]  # fmt: skip

FILTERED = [
    one("stats_ok", *call(), listener="stats", route=to(), answers=(OK,)),
    one("web_binary", *of_type(WEB_BINARY, body=message(b"hello")), listener="web", route=to(), answers=(OK,)),
    one("web_text", *of_type(WEB_TEXT, ACCEPT_TEXT, body=TEXT_BODY), listener="web", route=to(), answers=(FAILED,)),
    one("web_length", *of_type(WEB_BINARY, ("content-length", "10"), body=message(b"hello")), listener="web", route=to(), answers=(OK,)),
    one("web_trailers_only", *of_type(WEB_BINARY, body=message(b"")), listener="web", route=to(), answers=(trailers_only("7"),)),
    one("web_reset", *of_type(WEB_BINARY, body=message(b"")), listener="web", route=to(), answers=(reset(8, started=True),)),
    one("web_reset_before", *of_type(WEB_BINARY, body=message(b"")), listener="web", route=to(), answers=(reset(8),)),
    one("web_error", *of_type(WEB_BINARY, body=message(b"")), listener="web", route=to(), answers=(answer([], b"down", 503),)),
    one("web_bad", Sync(), *of_type(WEB_TEXT, body=b"$$$$"), listener="web", route=to(), answers=(OK,), ignore=("h:", "  ")),
    Row("web_from_http1", (Request1(post("/s.S/M", message(b"hello"), WEB_BINARY)),), listener="web", route=to(), answers=(OK,), opening=None),
    Row("web_text_from_http1", (Request1(post("/s.S/M", TEXT_BODY, WEB_TEXT, ACCEPT_TEXT)),), listener="web", route=to(), answers=(FAILED,), opening=None),
    Row("web_reset_from_http1", (Request1(post("/s.S/M", message(b"hello"), WEB_BINARY)),), listener="web", route=to(), answers=(reset(8),), opening=None),
    one("bridge_of_http2", *call(path="/s.S/M?a=b"), listener="bridge", route=to(), answers=(FAILED,)),
    one("bridge_of_http2_proto", *of_type(PROTO, body=b"hello"), listener="bridge", route=to(), answers=(FAILED,),
        differs=BRIDGE_HTTP2, envoy=("content-type: application/grpc",), ours=("content-type: application/x-protobuf",)),
    Row("bridge_from_http1", (Request1(post("/s.S/M?a=b", message(b"hello"), GRPC)),), listener="bridge", route=to(), answers=(FAILED,), opening=None),
    Row("bridge_proto_from_http1", (Request1(post("/s.S/M?a=b", b"hello", PROTO)),), listener="bridge", route=to(), answers=(OK,), opening=None),
    Row("bridge_reset_from_http1", (Request1(post("/s.S/M", message(b"hello"), GRPC)),), listener="bridge", route=to(), answers=(reset(8),), opening=None),
    Row("plain_from_http1", (Request1(post("/s.S/M", message(b"hello"), GRPC)),), route=to(), answers=(FAILED,), opening=None),
    *(
        row
        for at in ("reverse", "withhold", "sized")
        for row in (
            one(f"{at}_ok", *call(), listener=at, route=to(cluster="a"), plain=(reply(200, b"world", [PROTO, ("x-size", "5")]),)),
            one(f"{at}_error", *call(), listener=at, route=to(cluster="a"), plain=(reply(503, b"down", [PROTO, ("x-size", "4")]),)),
            one(f"{at}_empty", *call(), listener=at, route=to(cluster="a"), plain=(reply(200, b"", [PROTO, ("x-size", "0")]),)),
            one(f"{at}_type", *call(), listener=at, route=to(cluster="a"), plain=(reply(200, b"x"),)),
        )
    ),
]  # fmt: skip

HTTP2 = Http2Topic(
    [*CALLS, *FILTERED],
    listeners={
        "main": "http_protocol_options: { enable_trailers: true }",
        "stats": listener((STATS, "stats_for_all_methods: true")),
        "web": listener((WEB, "")),
        "bridge": listener((BRIDGE, "upgrade_protobuf_to_grpc: true, ignore_query_parameters: true")),
        "reverse": listener((REVERSE, "content_type: application/x-protobuf")),
        "withhold": listener((REVERSE, "content_type: application/x-protobuf, withhold_grpc_frames: true")),
        "sized": listener(
            (REVERSE, "content_type: application/x-protobuf, withhold_grpc_frames: true, response_size_header: x-size")
        ),
    },
)


def test_row(http2_pair: Http2Pair, row: Row) -> None:
    http2_pair.check(row)
