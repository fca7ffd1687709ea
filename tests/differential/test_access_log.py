"""Access log formats and filters: their lines stand in the file that the harness reads."""

from tests.differential.cases import AwaitUpstream, Case, Receive, Step, chunked, get, post, request
from tests.differential.pair import Pair
from tests.differential.topic import Topic
from tests.support.upstream import CLOSE, OK, STALL, Answer, reply

FILE = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"


def access_log(fields: str, condition: str = "") -> str:
    """A listener's access log with fields of FileAccessLog and a filter."""
    condition = f"filter: {{ {condition} }}, " if condition else ""
    return f"access_log: [{{ name: file, {condition}typed_config: {{ '@type': {FILE}, path: '@LOG@'{fields} }} }}]"


def text(value: str, more: str = "") -> str:
    """A text format."""
    return access_log(f', log_format: {{ {more}text_format_source: {{ inline_string: "{value}" }} }}')


def json(value: str, more: str = "") -> str:
    """A JSON format."""
    return access_log(f", log_format: {{ {more}json_format: {{ {value} }} }}")


SUPPRESS = (
    "http_filters: [{ name: router, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3."
    "Router, suppress_envoy_headers: true } }]\n"
)
"""The lengths of measured times are not to be compared."""

WIRE = (
    "wire %DOWNSTREAM_WIRE_BYTES_RECEIVED%/%DOWNSTREAM_WIRE_BYTES_SENT% "
    "fields %DOWNSTREAM_HEADER_BYTES_RECEIVED%/%DOWNSTREAM_HEADER_BYTES_SENT% "
    "upstream %UPSTREAM_WIRE_BYTES_SENT%/%UPSTREAM_WIRE_BYTES_RECEIVED% "
    "fields %UPSTREAM_HEADER_BYTES_SENT%/%UPSTREAM_HEADER_BYTES_RECEIVED% body %BYTES_RECEIVED%/%BYTES_SENT%\\n"
)
RECORD = (
    "%ACCESS_LOG_TYPE% %RESPONSE_CODE% %REQ(:PATH)% %UPSTREAM_HOST% %UPSTREAM_CLUSTER% %ROUTE_NAME% "
    "%RESPONSE_CODE_DETAILS% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %BYTES_RECEIVED% "
    "%REQUEST_HEADERS_BYTES%\\n"
)
ROUTER_LOG = (
    "http_filters: [{ name: router, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3."
    f"Router, upstream_log: [{{ name: file, typed_config: {{ '@type': {FILE}, path: '@LOG@', log_format: "
    '{ text_format_source: { inline_string: "%ACCESS_LOG_TYPE% %REQ(:PATH)% %UPSTREAM_HOST%\\n" } } } }] } }]'
)

FORMATS = {
    "default": access_log(""),
    "old_format": access_log(', format: "%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE%\\n"'),
    "old_json": access_log(", json_format: { code: '%RESPONSE_CODE%', path: '%REQ(:PATH)%' }"),
    "text": text(
        "%RESPONSE_CODE%|%REQ(X-A?X-B):3%|%RESP(x-up)%|%PROTOCOL%|%ROUTE_NAME%|%UPSTREAM_CLUSTER%|%UPSTREAM_HOST%|"
        "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%|%BYTES_SENT%|%BYTES_RECEIVED%|%REQ(none)%|%RESPONSE_FLAGS_LONG%|%RESPONSE_CODE_DETAILS%\\n"
    ),
    "addresses": text(
        "%DOWNSTREAM_LOCAL_ADDRESS%|%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%|%DOWNSTREAM_LOCAL_PORT%|%UPSTREAM_REMOTE_ADDRESS%|%UPSTREAM_HOST%\\n"
    ),
    "headers_bytes": SUPPRESS + text("%REQUEST_HEADERS_BYTES%|%RESPONSE_HEADERS_BYTES%|%RESPONSE_TRAILERS_BYTES%\\n"),
    "wire": SUPPRESS + text(WIRE),
    "wire_trailers": SUPPRESS + "http_protocol_options: { enable_trailers: true, accept_http_10: true }\n" + text(WIRE),
    "new_request": text(RECORD) + "\nflush_access_log_on_new_request: true",
    "new_request_option": text(RECORD) + "\naccess_log_options: { flush_access_log_on_new_request: true }",
    "upstream_log": ROUTER_LOG,
    "failure": text(
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%|%CONNECTION_TERMINATION_DETAILS%|%DOWNSTREAM_TRANSPORT_FAILURE_REASON%|%UPSTREAM_REQUEST_ATTEMPT_COUNT%\\n"
    ),
    "tls": text(
        "%DOWNSTREAM_TLS_VERSION%|%DOWNSTREAM_PEER_SUBJECT%|%REQUESTED_SERVER_NAME%|%FILTER_CHAIN_NAME%|%ACCESS_LOG_TYPE%|%VIRTUAL_CLUSTER_NAME%\\n"
    ),
    "metadata": text(
        "%DYNAMIC_METADATA(a:b)%|%CLUSTER_METADATA(a)%|%UPSTREAM_METADATA(a)%|%FILTER_STATE(a)%|%METADATA(ROUTE:a:b)%"
        "|%METADATA(VIRTUAL_HOST:a:b)%|%METADATA(CLUSTER:a:b)%|%METADATA(UPSTREAM_HOST:a:b)%|%VIRTUAL_CLUSTER_NAME%\\n"
    ),
    "rare": json(
        "a: '%BYTES_RETRANSMITTED%', b: '%PACKETS_RETRANSMITTED%', c: '%DOWNSTREAM_CX_RTT%', d: '%CUSTOM_FLAGS%', "
        "e: '%DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID%', f: '%DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID%', "
        "g: '%UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID%', h: '%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(8)%', "
        "i: '%LOCAL_REPLY_BODY%', j: '%UPSTREAM_PEER_SUBJECT%', k: '%TLS_JA3_FINGERPRINT%', l: '%UPSTREAM_CLUSTER_RAW%', "
        "m: '%STREAM_ID%', n: '%QUERY_PARAMS%', o: '%GRPC_STATUS%', p: '%ROUNDTRIP_DURATION%', q: '%TRACE_ID%'"
    ),
    "rare_text": text(
        "%BYTES_RETRANSMITTED%|%CUSTOM_FLAGS%|%UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID%|%LOCAL_REPLY_BODY%|%TLS_JA4_FINGERPRINT%"
        "|%DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID%|%ENVIRONMENT(NO_SUCH_VARIABLE)%\\n"
    ),
    "query": text(
        "%QUERY_PARAMS%|%QUERY_PARAMS(ORIG):4%|%QUERY_PARAM(a)%|%QUERY_PARAM(a):2%"
        "|%QUERY_PARAM(c%20d)%|%QUERY_PARAM(none)%|%PATH%|%PATH(NQ)%|%PATH(WQ:ORIG)%|%PATH(WQ:PATH)%|%PATH(NQ:PATH):3%\\n"
    ),
    "details": text(
        "%RESPONSE_CODE_DETAILS%|%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%|%GRPC_STATUS(NUMBER)%|%GRPC_STATUS_NUMBER%|%GRPC_STATUS(SNAKE_STRING)%\\n"
    ),
    "long_names": text(
        "%REQUEST_HEADER(X-A?X-B):3%|%RESPONSE_HEADER(x-up)%|%RESPONSE_TRAILER(x-t)%|%REQUEST_HEADER(none)%\\n"
    ),
    "no_newline": text("[%RESPONSE_CODE%]"),
    "percent": text("100%% %RESPONSE_CODE%\\n"),
    "omit_empty": text("a%REQ(x-none)%b%RESPONSE_CODE%\\n", "omit_empty_values: true, "),
    "json": json(
        "code: '%RESPONSE_CODE%', flags: '%RESPONSE_FLAGS%', none: '%REQ(x-none)%', two: '%PROTOCOL% %RESPONSE_CODE%', "
        "nested: { path: '%REQ(:path)%' }, list: ['%BYTES_SENT%', plain], number: 5, text: plain, up: '%RESP(x-up)%'"
    ),
    "json_odd_characters": json("agent: '%REQ(user-agent)%', path: '%REQ(:path)%'"),
    "json_omit_empty": json("code: '%RESPONSE_CODE%', none: '%REQ(x-none)%'", "omit_empty_values: true, "),
}
CONDITIONS = {
    "status": "status_code_filter: { comparison: { op: GE, value: { default_value: 400, runtime_key: none } } }",
    "status_eq": "status_code_filter: { comparison: { op: EQ, value: { default_value: 200, runtime_key: none } } }",
    "duration": "duration_filter: { comparison: { op: GE, value: { default_value: 60000, runtime_key: none } } }",
    "not_health_check": "not_health_check_filter: {}",
    "header": "header_filter: { header: { name: x-log, present_match: true } }",
    "flag": "response_flag_filter: { flags: [UH] }",
    "any_flag": "response_flag_filter: {}",
    "and": "and_filter: { filters: [{ header_filter: { header: { name: x-log, present_match: true } } }, { response_flag_filter: {} }] }",
    "or": "or_filter: { filters: [{ header_filter: { header: { name: x-log, present_match: true } } }, { response_flag_filter: {} }] }",
    "runtime_0": "runtime_filter: { runtime_key: none, percent_sampled: { numerator: 0 } }",
    "runtime_100": "runtime_filter: { runtime_key: none, percent_sampled: { numerator: 100 } }",
}
SET_METADATA = """
http_filters:
- name: set
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config
    metadata: [{ metadata_namespace: ns, value: { kk: v, number: 5, deep: { er: true } } }]
- { name: router, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }
"""
METADATA = {
    "equal": "matcher: { filter: ns, path: [{ key: kk }], value: { string_match: { exact: v } } }",
    "other": "matcher: { filter: ns, path: [{ key: kk }], value: { string_match: { exact: w } } }",
    "inverted": "matcher: { filter: ns, path: [{ key: kk }], value: { string_match: { exact: w } }, invert: true }",
    "equal_inverted": "matcher: { filter: ns, path: [{ key: kk }], value: { string_match: { exact: v } }, invert: true }",
    "deep": "matcher: { filter: ns, path: [{ key: deep }, { key: er }], value: { bool_match: true } }",
    "number": "matcher: { filter: ns, path: [{ key: number }], value: { double_match: { exact: 6 } } }",
    "unknown_key": "matcher: { filter: ns, path: [{ key: x }], value: { string_match: { exact: v } } }",
    "unknown_key_no": "matcher: { filter: ns, path: [{ key: x }], value: { string_match: { exact: v } } }, match_if_key_not_found: false",
    "unknown_filter": "matcher: { filter: m, path: [{ key: kk }], value: { string_match: { exact: v } } }",
    "unknown_filter_no": "matcher: { filter: m, path: [{ key: kk }], value: { present_match: true } }, match_if_key_not_found: false",
    "unknown_inverted_no": "matcher: { filter: m, path: [{ key: kk }], value: { present_match: true }, invert: true }, match_if_key_not_found: false",
    "not_deep": "matcher: { filter: ns, path: [{ key: kk }, { key: x }], value: { present_match: true } }, match_if_key_not_found: false",
    "structure": "matcher: { filter: ns, path: [{ key: deep }], value: { present_match: true } }, match_if_key_not_found: false",
    "no_matcher": "match_if_key_not_found: false",
    "nothing": "",
}
CHUNKED = Answer((b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"hello", b"world!"),))
TRAILERS = Answer(
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-a: b\r\n\r\n" + chunked(b"hello", trailers=[("x-t", "123")]),)
)


def wire(
    name: str, sent: bytes | tuple[Step, ...], *answers: Answer, listener: str = "wire", seen: str = "all"
) -> Case:
    """What was on the wire, both ways on both sides."""
    return Case(f"wire_{name}", sent, answers or (OK,), listener=listener, compare_upstream=seen)


def chunks(body: bytes, version: str = "HTTP/1.1") -> bytes:
    """A chunked request."""
    return request("POST", "/a", [("transfer-encoding", "chunked")], host="log.test", version=version) + body


WIRE_CASES = [
    wire(
        "second_on_its_connection",
        (get("/a", host="log.test"), Receive(), post("/a", b"xyz", host="log.test"), Receive()),
    ),
    wire("blank_lines_before", b"\r\n\r\n" + get("/a", host="log.test")),
    wire("chunked_request", chunks(chunked(b"hello", b"world!"))),
    wire("chunked_request_extension", chunks(b"5;a=b\r\nhello\r\n0\r\n\r\n")),
    wire("chunked_request_empty", chunks(b"0\r\n\r\n")),
    wire("chunked_response", get("/a", host="log.test"), CHUNKED),
    wire("trailers_dropped", chunks(chunked(b"hello", trailers=[("x-t", "1")])), TRAILERS),
    wire("trailers", chunks(chunked(b"hello", trailers=[("x-t", "1")])), TRAILERS, listener="wire_trailers"),
    wire("http_10", get("/a", host="log.test").replace(b"1.1", b"1.0"), CHUNKED, listener="wire_trailers"),
    wire("no_content", get("/a", host="log.test"), reply(204)),
    wire("head", request("HEAD", "/a", host="log.test"), reply(200, b"")),
    wire("until_close", get("/a", host="log.test"), Answer((b"HTTP/1.1 200 OK\r\n\r\nhello",), then="close")),
    wire("expect_continue", request("POST", "/a", [("expect", "100-continue")], b"hello", host="log.test")),
    wire("interim_response", post("/a", b"x", host="log.test"), Answer(interim=b"HTTP/1.1 100 Continue\r\n\r\n")),
    wire("retry", get("/retry", host="log.test"), reply(503, b""), OK),
    wire("connection_close", get("/a", ("connection", "close"), host="log.test")),
    wire("bad_chunk", chunks(b"zz\r\n"), seen="nothing"),
]
HEADERS = (("x-a", "abcdef"), ("user-agent", 'agent "quoted" \\ \xe4'))

TOPIC = Topic(
    [
        *(
            case
            for name in FORMATS
            for case in (
                Case(
                    f"{name}_ok",
                    get("/a?b", *HEADERS, host="log.test"),
                    (reply(200, b"hello", [("x-up", "up")]),),
                    listener=name,
                ),
                Case(f"{name}_post", post("/rw/x", b"12345", host="log.test"), (reply(201, b""),), listener=name),
                Case(f"{name}_no_host", get("/empty", host="log.test"), listener=name),
                Case(f"{name}_closed", post("/a", b"x", host="log.test"), (CLOSE,), listener=name),
                Case(f"{name}_bad", b"GET / HTTP/1.1\r\nhost: x\r\na b: c\r\n\r\n", listener=name),
            )
        ),
        *WIRE_CASES,
        Case(
            "new_request_before_its_body",
            (request("POST", "/", [("content-length", "4")], host="log.test"), AwaitUpstream(), b"body", Receive()),
            listener="new_request",
        ),
        *(
            Case(f"log_type_{name}", get("/a", host="log.test"), listener=f"log_type_{name}")
            for name in ("start", "end", "not_end")
        ),
        *(
            Case(f"query_{number}", get(target, host="log.test"), listener="query")
            for number, target in enumerate(
                (
                    "/x?a=b%20c&c%20d=e&%61=f",
                    "/x?a=%zz+1",
                    "/x?",
                    "/x?a",
                    "/x?a=&a=2",
                    "/x?=1&a=1",
                    "/rw/y?a=1%2",
                )
            )
        ),
        *(
            Case(
                f"details_grpc_{number}",
                post(path, b"", ("content-type", "application/grpc"), host="log.test"),
                (answer,),
                listener="details",
            )
            for number, (path, answer) in enumerate(
                (
                    ("/a", reply(200, b"", [("grpc-status", "7")])),
                    ("/a", reply(200, b"")),
                    ("/a", reply(404, b"")),
                    ("/a", reply(200, b"", [("grpc-status", "x")])),
                    ("/a", reply(200, b"", [("grpc-status", "99")])),
                    ("/empty", OK),
                )
            )
        ),
        Case("upstream_log_retry", get("/retry", host="log.test"), (reply(503), OK), listener="upstream_log"),
        Case(
            "access_log_type_in_a_header",
            get("/"),
            route="match: { prefix: / }\nroute: { cluster: a }\n"
            "request_headers_to_add: [{ header: { key: x-type, value: '%ACCESS_LOG_TYPE%' } }]",
            listener="new_request",
        ),
        *(Case(f"metadata_{name}", get("/a", host="log.test"), listener=f"metadata_{name}") for name in METADATA),
        *(
            Case(
                f"{listener}_{name}",
                sent,
                (answer,),
                route="match: { prefix: / }\nroute: { cluster: a, timeout: 0.5s }",
                listener=listener,
            )
            for listener in ("flush_interval", "flush_interval_old")
            for name, sent, answer in (
                ("answered", get("/"), OK),
                ("stalled", get("/"), STALL),
                (
                    "begun",
                    post("/", b"abc"),
                    Answer((b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",), then="stall"),
                ),
            )
        ),
        *(
            Case(f"filter_{name}_{number}", get(path, *headers, host="log.test"), listener=f"filter_{name}")
            for name in CONDITIONS
            for number, (path, headers) in enumerate(
                (("/a", []), ("/a", [("x-log", "1")]), ("/empty", []), ("/empty", [("x-log", "1")]))
            )
        ),
    ],
    listeners=FORMATS
    | {
        "flush_interval": "access_log_options: { access_log_flush_interval: 0.3s }\n" + text(RECORD),
        "flush_interval_old": "access_log_flush_interval: 0.3s\n"
        + text(WIRE.replace("wire", "%ACCESS_LOG_TYPE% %RESPONSE_CODE% wire", 1)),
    }
    | {
        f"log_type_{name}": text(RECORD).replace(
            "typed_config", f"filter: {{ log_type_filter: {{ {types} }} }}, typed_config", 1
        )
        + "\nflush_access_log_on_new_request: true"
        for name, types in (
            ("start", "types: [DownstreamStart]"),
            ("end", "types: [DownstreamEnd]"),
            ("not_end", "types: [DownstreamEnd, UpstreamEnd], exclude: true"),
        )
    }
    | {
        f"metadata_{name}": SET_METADATA + access_log(', format: "passed\\n"', f"metadata_filter: {{ {matcher} }}")
        for name, matcher in METADATA.items()
    }
    | {
        f"filter_{name}": access_log(
            ', log_format: { text_format_source: { inline_string: "%REQ(:path)% %RESPONSE_CODE%\\n" } }', condition
        )
        for name, condition in CONDITIONS.items()
    },
    vhosts="""
- name: log
  domains: [log.test]
  routes:
  - { match: { prefix: /empty }, route: { cluster: empty } }
  - { match: { prefix: /rw }, route: { cluster: a, prefix_rewrite: /new } }
  - { match: { prefix: /retry }, route: { cluster: a, retry_policy: { retry_on: 5xx, retry_back_off: { base_interval: 0.002s } } } }
  - { name: the_route, match: { prefix: / }, route: { cluster: a }, metadata: { filter_metadata: { a: { b: [1, x] } } } }
  metadata: { filter_metadata: { a: { b: host } } }
  virtual_clusters: [{ name: rewritten, headers: [{ name: ':path', string_match: { prefix: /rw } }] }]
""",
    clusters={
        "a": "metadata: { filter_metadata: { a: { b: { c: 1 } } } }\n"
        "load_assignment: { cluster_name: a, endpoints: [{ lb_endpoints: [{ metadata: { filter_metadata: { a: { b: up } } }, "
        "endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @a@ } } } }] }] }\n"
        "typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { '@type': "
        "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, "
        "explicit_http_config: { http_protocol_options: { enable_trailers: true } } } }",
    },
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)
