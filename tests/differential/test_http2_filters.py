"""What connection managers and their filters do to HTTP/2 streams: local replies, buffers, logs of what was on the wire."""

from tests.differential.cases import get
from tests.differential.http2 import (
    Head,
    Http2Pair,
    Http2Topic,
    Over,
    Parts,
    Reached,
    Request1,
    Row,
    Sync,
    one,
)
from tests.differential.topic import TYPE
from tests.support.http2_upstream import OK, Http2Answer, answer
from tests.support.http2_wire import data, headers
from tests.support.upstream import Answer

TO_A = "match: { prefix: / }\nroute: { cluster: a }"
TO_H = "match: { prefix: / }\nroute: { cluster: h }"
POST = Head(method="POST", end=False)
STATUS = [(":status", "200")]
ROUTER = f"{{ name: router, typed_config: {{ '@type': {TYPE}filters.http.router.v3.Router }} }}"


def filtered(kind: str, fields: str) -> str:
    """A connection manager with one filter before the router."""
    return f"http_filters: [{{ name: it, typed_config: {{ '@type': {TYPE}filters.http.{kind}, {fields} }} }}, {ROUTER}]"


LISTENERS = {
    "main": "",
    "proxy_100": "proxy_100_continue: true",
    "buffer": filtered("buffer.v3.Buffer", "max_request_bytes: 10"),
    "faults": filtered("fault.v3.HTTPFault", "abort: { http_status: 418, percentage: { numerator: 100 } }"),
    "delays": filtered("fault.v3.HTTPFault", "delay: { fixed_delay: 0.05s, percentage: { numerator: 100 } }"),
    "grpc_faults": filtered("fault.v3.HTTPFault", "abort: { grpc_status: 7, percentage: { numerator: 100 } }"),
    "ratelimit": filtered(
        "local_ratelimit.v3.LocalRateLimit",
        "stat_prefix: it, token_bucket: { max_tokens: 1, tokens_per_fill: 1, fill_interval: 3600s }, "
        "filter_enabled: { default_value: { numerator: 100 } }, filter_enforced: { default_value: { numerator: 100 } }",
    ),
    "cors": filtered("cors.v3.Cors", ""),
    "mutation": filtered(
        "header_mutation.v3.HeaderMutation",
        "mutations: { request_mutations: [{ append: { header: { key: x-added, value: '%PROTOCOL%' } } }, { remove: x-gone }], "
        "response_mutations: [{ append: { header: { key: x-protocol, value: '%UPSTREAM_PROTOCOL%' } } }] }",
    ),
    "replies": "local_reply_config: { mappers: [{ filter: { status_code_filter: { comparison: { op: EQ, value: "
    "{ default_value: 404, runtime_key: x } } } }, status_code: 410, body_format_override: { json_format: "
    "{ protocol: '%PROTOCOL%', code: '%RESPONSE_CODE%' } } }] }",
    "normalised": "normalize_path: true\nmerge_slashes: true\npath_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT",
    "underscores": "common_http_protocol_options: { headers_with_underscores_action: REJECT_REQUEST }",
    "underscores_dropped": "common_http_protocol_options: { headers_with_underscores_action: DROP_HEADER }",
    "few_headers": "common_http_protocol_options: { max_headers_count: 10 }\nmax_request_headers_kb: 1",
    "stripped": "strip_matching_host_port: true",
    "small": "listener: { per_connection_buffer_limit_bytes: 1000 }",
    "via": "via: one\nserver_name: other\nadd_user_agent: true\ngenerate_request_id: false",
}
ROWS = [
    one(
        "expect_proxied",
        Head([("expect", "100-continue")], method="POST", end=False),
        Parts(),
        data(1, b"abc", end=True),
        route=TO_H,
        listener="proxy_100",
        answers=(Http2Answer(OK.frames, first=lambda stream: headers(stream, [(":status", "100")])),),
    ),
    one(
        "expect_not_answered",
        Head([("expect", "100-continue")], method="POST", end=False),
        Reached(),
        data(1, b"abc", end=True),
        route=TO_H,
        listener="proxy_100",
    ),
    one(
        "expect_proxied_to_plain",
        Head([("expect", "100-continue")], method="POST", end=False),
        Parts(),
        data(1, b"abc", end=True),
        route=TO_A,
        listener="proxy_100",
        plain=(Answer((b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",), interim=b"HTTP/1.1 100 Continue\r\n\r\n"),),
    ),
    one("buffered", POST, data(1, b"12345"), data(1, b"67890", end=True), route=TO_H, listener="buffer"),
    one("buffered_too_much", POST, data(1, b"12345678901"), route=TO_H, listener="buffer"),
    one(
        "buffered_trailers", POST, data(1, b"12345"), headers(1, [("t", "v")], end=True), route=TO_H, listener="buffer"
    ),
    one("fault", Head(), route=TO_H, listener="faults"),
    one("fault_incomplete", POST, route=TO_H, listener="faults"),
    one(
        "fault_of_grpc", Head([("content-type", "application/grpc")], method="POST"), route=TO_H, listener="grpc_faults"
    ),
    one("delay", POST, data(1, b"abc"), headers(1, [("t", "v")], end=True), route=TO_H, listener="delays"),
    Row(
        "ratelimited",
        (
            Head(),
            Over(),
            Head(stream=3),
            Over((3,)),
            Head([("content-type", "application/grpc")], stream=5),
            Over((5,)),
        ),
        route=TO_H,
        listener="ratelimit",
    ),
    one("mutated", Head([("x-gone", "1")]), route=TO_H, listener="mutation"),
    Row("mutated_of_http1", (Request1(get("/", ("x-gone", "1"))),), route=TO_H, listener="mutation", opening=None),
    one("mapped_reply", Head(), route="match: { path: /no }\nroute: { cluster: h }", listener="replies"),
    one("path_normalised", Head(path="/a/../b//c"), route=TO_H, listener="normalised"),
    one("path_redirected", Head(path="/a%2Fb"), route=TO_H, listener="normalised"),
    one("underscore_rejected", Head([("a_b", "c")]), route=TO_H, listener="underscores"),
    one("underscore_dropped", Head([("a_b", "c")]), route=TO_H, listener="underscores_dropped"),
    one("count_at_limit", Head([(f"h{number}", "v") for number in range(6)]), route=TO_H, listener="few_headers"),
    one("count_over_limit", Head([(f"h{number}", "v") for number in range(7)]), route=TO_H, listener="few_headers"),
    one("size_over_limit", Head([("a", "v" * 1024)]), route=TO_H, listener="few_headers"),
    one("port_stripped", Head(over=((":authority", "port-stripped.test:80"),)), route=TO_H, listener="stripped"),
    one("via", Head(), route=TO_H, listener="via"),
    one(
        "small_buffers",
        Sync(),
        POST,
        b"".join(data(1, b"x" * 1000) for _ in range(50)) + data(1, end=True),
        route=TO_H,
        listener="small",
        answers=(answer([], b"y" * 100_000),),
    ),
    one("redirected", Head(path="/x"), route="match: { prefix: / }\nredirect: { https_redirect: true }"),
    one(
        "rewritten",
        Head(path="/x/y"),
        route="match: { prefix: /x }\nroute: { cluster: h, prefix_rewrite: /z, host_rewrite_literal: other }",
    ),
    one(
        "headers_added",
        Head(),
        route="match: { prefix: / }\nroute: { cluster: h }\nrequest_headers_to_add: [{ header: { key: X-Up, value: v } }]\n"
        "response_headers_to_add: [{ header: { key: X-Down, value: '%UPSTREAM_PROTOCOL%' } }]",
    ),
    one(
        "mirrored",
        Head(),
        Reached(),
        route="match: { prefix: / }\nroute: { cluster: a, request_mirror_policies: [{ cluster: h }] }",
    ),
    one(
        "retried_5xx",
        POST,
        data(1, b"abc", end=True),
        route="match: { prefix: / }\nroute: { cluster: h, retry_policy: { retry_on: 5xx, num_retries: 2, "
        "retry_back_off: { base_interval: 0.002s } } }",
        answers=(answer([], b"no", 503), answer([], b"", 500), OK),
    ),
    one(
        "internal_redirect",
        Head(),
        route="match: { prefix: / }\nroute: { cluster: h, internal_redirect_policy: {} }",
        answers=(answer([("location", "http://internal-redirect.test/second")], b"", 302), OK),
    ),
    one("timeout_header", Head([("x-envoy-upstream-rq-timeout-ms", "100"), ("grpc-timeout", "50m")]), route=TO_H),
    one(
        "grpc_timeout_of_route",
        Head([("content-type", "application/grpc"), ("grpc-timeout", "100m")], method="POST"),
        route="match: { prefix: / }\nroute: { cluster: h, max_stream_duration: { grpc_timeout_header_max: 1s } }",
        answers=(Http2Answer(OK.frames, wait_for="never"),),
    ),
    Row(
        "wire_bytes",
        (Head([("x-a", "b" * 50)]), Over(), Head([("x-a", "b" * 50)], stream=3), Over((3,))),
        route="match: { prefix: / }\ndirect_response: { status: 200, body: { inline_string: hi } }",
        listener="logged",
    ),
    Row(
        "facts",
        (Head(), Over(), Head(method="POST", stream=3, end=False), data(3, b"abc", end=True), Over((3,))),
        # The time an upstream took is one digit more when it takes 10 ms.
        route="match: { prefix: / }\nroute: { cluster: h }\nresponse_headers_to_remove: [x-envoy-upstream-service-time]",
        listener="logged",
    ),
]
FACTS = (
    "%PROTOCOL% %UPSTREAM_PROTOCOL% rx=%BYTES_RECEIVED% tx=%BYTES_SENT% requests=%UPSTREAM_REQUEST_ATTEMPT_COUNT% "
    "wire=%DOWNSTREAM_WIRE_BYTES_RECEIVED% up=%UPSTREAM_WIRE_BYTES_RECEIVED% header=%DOWNSTREAM_HEADER_BYTES_RECEIVED% "
    "uphead=%UPSTREAM_HEADER_BYTES_RECEIVED% reqhead=%REQUEST_HEADERS_BYTES% resphead=%RESPONSE_HEADERS_BYTES% "
    "resptrail=%RESPONSE_TRAILERS_BYTES%\n"
)
LISTENERS["logged"] = (
    f"access_log: [{{ name: f, typed_config: {{ '@type': {TYPE}access_loggers.file.v3.FileAccessLog, path: '@LOG@', log_format: "
    f'{{ text_format_source: {{ inline_string: "{FACTS.strip()} path=%REQ(:PATH)% \\n" }} }} }} }}]'
)
HTTP2 = Http2Topic(ROWS, listeners=LISTENERS)


def test_row(http2_pair: Http2Pair, row: Row) -> None:
    http2_pair.check(row)
