"""Timeouts: what is answered when each of them passes. Times are small, and outcomes are compared, not times."""

from tests.differential.cases import AwaitUpstream, Case, Differs, Expect, Receive, get, post, request
from tests.differential.pair import Pair
from tests.differential.topic import Topic
from tests.support.upstream import OK, STALL, Answer, reply

GRPC = ("content-type", "application/grpc")
SLOW_BODY = Answer((b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",), then="stall")
HALF_HEAD = Answer((b"HTTP/1.1 200 OK\r\nx-a: b\r\n",), then="stall")


def to(more: str = "", cluster: str = "a") -> str:
    """A route with timeouts."""
    return f"match: {{ prefix: / }}\nroute: {{ cluster: {cluster}{', ' + more if more else ''} }}\n"


def stalls(
    name: str, more: str, *headers: tuple[str, str], answer: Answer = STALL, listener: str = "main", **options: bool
) -> Case:
    """A GET whose upstream never answers."""
    return Case(
        name, get("/", *headers), (answer,), route=to(more), listener=listener, log_bytes=options.get("log_bytes", True)
    )


MS_60 = ("x-envoy-upstream-rq-timeout-ms", "60")
ROUTE = [
    stalls("route_timeout", "timeout: 0.06s"),
    stalls("route_timeout_half_head", "timeout: 0.06s", answer=HALF_HEAD),
    stalls("route_timeout_slow_body", "timeout: 0.06s", answer=SLOW_BODY, log_bytes=False),
    stalls("route_timeout_0_is_off", "timeout: 0s, idle_timeout: 0.06s"),
    Case("route_timeout_post", post("/", b"x" * 1000), (STALL,), route=to("timeout: 0.06s")),
    Case(
        "route_timeout_starts_after_the_request",
        (request("POST", "/", [("content-length", "10")]) + b"hello", AwaitUpstream(), b"world", Receive()),
        (STALL,),
        route=to("timeout: 0.06s"),
        log_bytes=False,
    ),
    Case("expected_timeout_header", get("/"), route=to("timeout: 3.5s")),
    Case("expected_timeout_header_off", get("/"), route=to("timeout: 0s")),
    Case("expected_timeout_header_default", get("/"), route=to()),
    Case("expected_timeout_header_max_duration", get("/"), route=to("max_stream_duration: {}")),
    Case(
        "expected_timeout_header_max_duration_beside",
        get("/"),
        route=to("timeout: 3s, max_stream_duration: { max_stream_duration: 9s }"),
    ),
    Case(
        "expected_timeout_header_max_duration_per_try",
        get("/"),
        route=to("max_stream_duration: { max_stream_duration: 9s }, retry_policy: { per_try_timeout: 3s }"),
    ),
    Case(
        "expected_timeout_header_per_try",
        get("/"),
        route=to("timeout: 3s, retry_policy: { retry_on: 5xx, per_try_timeout: 1s }"),
    ),
    Case(
        "expected_timeout_header_per_try_longer",
        get("/"),
        route=to("timeout: 3s, retry_policy: { retry_on: 5xx, per_try_timeout: 9s }"),
    ),
    stalls("idle_timeout_route", "timeout: 0s, idle_timeout: 0.06s"),
    stalls("idle_timeout_route_slow_body", "timeout: 0s, idle_timeout: 0.06s", answer=SLOW_BODY, log_bytes=False),
    stalls("idle_timeout_listener", "timeout: 0s", listener="stream_idle"),
    stalls("idle_timeout_listener_slow_body", "timeout: 0s", answer=SLOW_BODY, listener="stream_idle", log_bytes=False),
    Case(
        "idle_timeout_request_body",
        (request("POST", "/", [("content-length", "10")]) + b"hello", Receive()),
        (STALL,),
        route=to("timeout: 0s"),
        listener="stream_idle",
        log_bytes=False,
        compare_upstream="heads",
    ),
    stalls("max_stream_duration_route", "timeout: 0s, max_stream_duration: { max_stream_duration: 0.06s }"),
    stalls(
        "max_stream_duration_route_slow_body",
        "timeout: 0s, max_stream_duration: { max_stream_duration: 0.06s }",
        answer=SLOW_BODY,
        log_bytes=False,
    ),
    stalls("max_stream_duration_listener", "timeout: 0s", listener="max_stream"),
    stalls(
        "max_stream_duration_listener_slow_body",
        "timeout: 0s",
        answer=SLOW_BODY,
        listener="max_stream",
        log_bytes=False,
    ),
    stalls("per_try_without_retries", "retry_policy: { per_try_timeout: 0.06s }"),
    stalls(
        "per_try_slow_body",
        "timeout: 0.15s, retry_policy: { per_try_timeout: 0.06s }",
        answer=SLOW_BODY,
        log_bytes=False,
    ),
    stalls("per_try_idle", "timeout: 0s, retry_policy: { retry_on: 5xx, num_retries: 0, per_try_idle_timeout: 0.06s }"),
    stalls(
        "per_try_idle_slow_body",
        "timeout: 0s, retry_policy: { retry_on: 5xx, per_try_idle_timeout: 0.06s }",
        answer=SLOW_BODY,
        log_bytes=False,
    ),
]

ASKED = [
    stalls("asked_timeout", "", MS_60, listener="internal"),
    stalls(
        "asked_timeout_shorter_route",
        "timeout: 0.06s",
        ("x-envoy-upstream-rq-timeout-ms", "5000"),
        ("x-envoy-upstream-rq-per-try-timeout-ms", "60"),
        listener="internal",
    ),
    stalls(
        "asked_timeout_alternative", "", MS_60, ("x-envoy-upstream-rq-timeout-alt-response", "1"), listener="internal"
    ),
    stalls("asked_timeout_per_try", "", ("x-envoy-upstream-rq-per-try-timeout-ms", "60"), listener="internal"),
    Case("asked_timeout_from_outside", get("/", MS_60), route=to(), listener="edge"),
    Case(
        "asked_timeout_header_seen",
        get("/", ("x-envoy-upstream-rq-timeout-ms", "4321")),
        route=to(),
        listener="internal",
    ),
    Case("asked_timeout_header_0", get("/", ("x-envoy-upstream-rq-timeout-ms", "0")), route=to(), listener="internal"),
    Case(
        "asked_timeout_header_bad",
        get("/", ("x-envoy-upstream-rq-timeout-ms", "soon")),
        route=to(),
        listener="internal",
    ),
    Case(
        "asked_per_try_longer",
        get("/", ("x-envoy-upstream-rq-timeout-ms", "100"), ("x-envoy-upstream-rq-per-try-timeout-ms", "200")),
        route=to(),
        listener="internal",
    ),
    Case(
        "asked_expected_timeout_respected",
        get("/", ("x-envoy-expected-rq-timeout-ms", "2500")),
        route=to(),
        listener="respect",
    ),
    stalls("asked_expected_timeout_respected_stalls", "", ("x-envoy-expected-rq-timeout-ms", "60"), listener="respect"),
    Case("hedge_route", get("/"), route=to("hedge_policy: { hedge_on_per_try_timeout: true }")),
    Case("hedge_host", get("/"), vhost="hedge_policy: { hedge_on_per_try_timeout: true }"),
    Case("upgrade_route", get("/"), route=to("upgrade_configs: [{ upgrade_type: websocket }]")),
    Case("upgrade_listener", get("/"), route=to(), listener="upgrades"),
    Case("hedge_off", get("/"), route=to("hedge_policy: { initial_requests: 2 }")),
    Case("flush_timeout", get("/"), route=to("flush_timeout: 0.001s")),
    Case(
        "grpc_timeout_header",
        post("/", b"", GRPC, ("grpc-timeout", "2S")),
        route=to("max_stream_duration: { grpc_timeout_header_max: 10s }"),
    ),
    Case(
        "grpc_timeout_passes",
        post("/", b"", GRPC, ("grpc-timeout", "60m")),
        (STALL,),
        route=to("max_stream_duration: { grpc_timeout_header_max: 10s }"),
    ),
    Case(
        "grpc_timeout_max",
        post("/", b"", GRPC, ("grpc-timeout", "10S")),
        (STALL,),
        route=to("max_stream_duration: { grpc_timeout_header_max: 0.06s }"),
    ),
    Case(
        "grpc_timeout_offset",
        post("/", b"", GRPC, ("grpc-timeout", "5060m")),
        (STALL,),
        route=to("max_stream_duration: { grpc_timeout_header_max: 10s, grpc_timeout_header_offset: 5s }"),
    ),
    Case(
        "grpc_timeout_old",
        post("/", b"", GRPC, ("grpc-timeout", "60m")),
        (STALL,),
        route=to("max_grpc_timeout: 10s"),
    ),
    Case(
        "grpc_timeout_without_header",
        post("/", b"", GRPC),
        (STALL,),
        route=to("max_stream_duration: { max_stream_duration: 0.06s, grpc_timeout_header_max: 10s }"),
    ),
    Case(
        "grpc_timeout_over_max_duration",
        post("/", b"", GRPC, ("grpc-timeout", "60m")),
        (STALL,),
        route=to("max_stream_duration: { max_stream_duration: 9s, grpc_timeout_header_max: 0s }"),
    ),
    Case(
        "grpc_timeout_0",
        post("/", b"", GRPC, ("grpc-timeout", "0m")),
        (STALL,),
        route=to("max_stream_duration: { grpc_timeout_header_max: 10s }"),
        compare_upstream="nothing",
    ),
    Case(
        "grpc_timeout_offset_beyond",
        post("/", b"", GRPC, ("grpc-timeout", "1S")),
        (STALL,),
        route=to("max_stream_duration: { grpc_timeout_header_max: 10s, grpc_timeout_header_offset: 5s }"),
        compare_upstream="nothing",
    ),
    Case(
        "grpc_timeout_not_grpc",
        post("/", b"", ("grpc-timeout", "60m")),
        (STALL,),
        route=to("max_stream_duration: { grpc_timeout_header_max: 10s }"),
    ),
    *(
        Case(name, post("/", b"", *headers), route=to(f"max_stream_duration: {{ {fields} }}"), listener=listener)
        for name, listener, fields, headers in (
            ("grpc_timeout_told_route", "main", "max_stream_duration: 9s", (GRPC,)),
            ("grpc_timeout_told_route_instead", "main", "max_stream_duration: 9s", (GRPC, ("grpc-timeout", "2S"))),
            ("grpc_timeout_told_listener", "max_stream", "", (GRPC, ("grpc-timeout", "2S"))),
            ("grpc_timeout_removed", "max_stream", "max_stream_duration: 0s", (GRPC, ("grpc-timeout", "2S"))),
            ("grpc_timeout_kept", "main", "max_stream_duration: 0s", (GRPC, ("grpc-timeout", "2S"))),
            ("grpc_timeout_kept_empty", "main", "", (GRPC, ("grpc-timeout", "2S"))),
            ("grpc_timeout_kept_not_grpc", "main", "grpc_timeout_header_max: 9s", (("grpc-timeout", "2S"),)),
            ("grpc_timeout_told_long", "main", "grpc_timeout_header_max: 0s", (GRPC, ("grpc-timeout", "99999999S"))),
        )
    ),
    Case(
        "grpc_timeout_nonsense",
        post("/", b"", GRPC, ("grpc-timeout", "soon")),
        (STALL,),
        route=to("max_stream_duration: { max_stream_duration: 0.06s, grpc_timeout_header_max: 10s }"),
    ),
    Case(
        "grpc_timeout_ignored",
        post("/", b"", GRPC, ("grpc-timeout", "20m")),
        (STALL,),
        route=to("timeout: 0.06s"),
    ),
    Case("grpc_max_duration_listener", post("/", b"", GRPC), (STALL,), route=to("timeout: 0s"), listener="max_stream"),
    *(
        Case(f"grpc_timeout_old_{name}", post("/", b"", *headers), (STALL,) if stalls else (OK,), route=to(fields))
        for name, fields, stalls, headers in (
            ("max", "max_grpc_timeout: 0.06s", True, (GRPC, ("grpc-timeout", "10S"))),
            ("no_header", "max_grpc_timeout: 0.06s, timeout: 9s", True, (GRPC,)),
            ("no_header_told", "max_grpc_timeout: 7s, timeout: 9s", False, (GRPC,)),
            ("told", "max_grpc_timeout: 7s", False, (GRPC, ("grpc-timeout", "5000000u"))),
            ("told_per_try", "max_grpc_timeout: 7s, retry_policy: { per_try_timeout: 2s }", False, (GRPC,)),
            ("told_long", "max_grpc_timeout: 0s", False, (GRPC, ("grpc-timeout", "99999999S"))),
            ("endless", "max_grpc_timeout: 0s, timeout: 5s", False, (GRPC,)),
            ("offset", "max_grpc_timeout: 10s, grpc_timeout_offset: 5s", True, (GRPC, ("grpc-timeout", "5060m"))),
            ("offset_beyond", "max_grpc_timeout: 10s, grpc_timeout_offset: 5s", False, (GRPC, ("grpc-timeout", "2S"))),
            ("offset_capped", "max_grpc_timeout: 10s, grpc_timeout_offset: 5s", False, (GRPC, ("grpc-timeout", "60S"))),
            ("not_grpc", "max_grpc_timeout: 9s, timeout: 4s", False, (("grpc-timeout", "2S"),)),
            ("new_wins", "max_grpc_timeout: 9s, max_stream_duration: {}", False, (GRPC, ("grpc-timeout", "2S"))),
            ("nonsense", "max_grpc_timeout: 9s", False, (GRPC, ("grpc-timeout", "2"))),
            ("many_digits", "max_grpc_timeout: 9s", False, (GRPC, ("grpc-timeout", "000000000002S"))),
            ("too_many", "max_grpc_timeout: 0s, timeout: 3s", False, (GRPC, ("grpc-timeout", "100000000S"))),
        )
    ),
    Case("grpc_idle", post("/", b"", GRPC), (STALL,), route=to("timeout: 0s"), listener="stream_idle"),
    Case(
        "grpc_request_timeout",
        (post("/", b"hello", GRPC)[:-1], Receive()),
        (STALL,),
        route=to(),
        listener="request",
        compare_upstream="nothing",
    ),
    Case(
        "grpc_idle_of_request",
        (post("/", b"hello", GRPC)[:-1], Receive()),
        (STALL,),
        route=to("timeout: 0s"),
        listener="stream_idle",
        compare_upstream="nothing",
    ),
    Case("grpc_max_upstream_duration", post("/", b"", GRPC), (STALL,), route=to("timeout: 0s", "brief")),
    Case("grpc_per_try_timeout", post("/", b"", GRPC), (STALL,), route=to("retry_policy: { per_try_timeout: 0.06s }")),
    Case(
        "grpc_timeout_alternative",
        post("/", b"", GRPC, MS_60, ("x-envoy-upstream-rq-timeout-alt-response", "1")),
        (STALL,),
        route=to(),
        listener="internal",
    ),
    Case(
        "grpc_timeout_old_asked",
        post("/", b"", GRPC, ("x-envoy-upstream-rq-timeout-ms", "4321")),
        route=to("max_grpc_timeout: 9s"),
        listener="internal",
    ),
]

DOWNSTREAM = [
    Case("request_headers_timeout", (b"GET / HTTP/1.1\r\nhost: x\r\n", Receive()), listener="request_headers"),
    Case("request_headers_timeout_start_line", (b"GET / HT", Receive()), listener="request_headers"),
    Case("request_headers_in_time", get("/"), route=to(), listener="request_headers"),
    Case(
        "request_headers_timeout_not_when_idle",
        (get("/"), Receive(), get("/"), Receive()),
        route=to(),
        listener="request_headers",
    ),
    Case(
        "request_timeout",
        (request("POST", "/", [("content-length", "10")]) + b"hello", Receive()),
        (STALL,),
        route=to(),
        listener="request",
        log_bytes=False,
        compare_upstream="heads",
    ),
    Case("request_timeout_mid_head", (b"GET / HTTP/1.1\r\n", Receive()), listener="request"),
    Case("request_timeout_not_after_request", get("/"), (STALL,), route=to("timeout: 0.15s"), listener="request"),
    Case("connection_idle", (get("/"), Receive(), Receive()), route=to(), listener="idle", probe=False),
    Case("connection_idle_never_used", (Receive(),), listener="idle", probe=False),
    Case("connection_duration", (Receive(),), listener="duration", probe=False),
    Case(
        "connection_duration_after_request",
        (get("/"), Receive(), Receive()),
        route=to(),
        listener="duration",
        probe=False,
    ),
    *(
        Case(f"connection_drains_{name}_{listener}", script, route=to(), listener=listener, probe=False)
        for listener in ("long_drain", "safe", "idle_long_drain")
        for name, script in (("unused", (Receive(),)), ("used", (get("/"), Receive())))
    ),
    Case(
        "connection_duration_during_request_long_drain",
        (get("/"), Receive()),
        (STALL,),
        route=to("timeout: 0.15s"),
        listener="long_drain",
        differs=Differs(
            "drain-close",
            Expect((504,), "closed", ("GET / HTTP/1.1",), ("connection: close",)),
            Expect((504,), "stalled", ("GET / HTTP/1.1",), ("connection: close",)),
        ),
    ),
    Case(
        "connection_duration_during_request",
        (get("/"), Receive()),
        (STALL,),
        route=to("timeout: 0.15s"),
        listener="duration",
    ),
    Case(
        "early_answer_to_half_body",
        (request("POST", "/", [("content-length", "10")]) + b"hello", Receive()),
        (reply(200, b"early", early=True, then="stall"),),
        route=to(),
        log_bytes=False,
        compare_upstream="heads",
    ),
]

INTERNAL = (
    "use_remote_address: true\ninternal_address_config: { cidr_ranges: [{ address_prefix: 127.0.0.0, prefix_len: 8 }] }"
)

BRIEF = (
    "typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: "
    "{ '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, "
    "common_http_protocol_options: { max_stream_duration: 0.06s }, explicit_http_config: { http_protocol_options: {} } } }"
)
TOPIC = Topic(
    [*ROUTE, *ASKED, *DOWNSTREAM],
    listeners={
        "main": "",
        "internal": INTERNAL,
        "upgrades": "upgrade_configs: [{ upgrade_type: websocket }]",
        "edge": "use_remote_address: true",
        "respect": INTERNAL + "\nhttp_filters: [{ name: router, typed_config: { '@type': "
        "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, respect_expected_rq_timeout: true } }]",
        "stream_idle": "stream_idle_timeout: 0.06s",
        "max_stream": "common_http_protocol_options: { max_stream_duration: 0.06s }",
        "request_headers": "request_headers_timeout: 0.06s",
        "request": "request_timeout: 0.06s",
        "idle": "common_http_protocol_options: { idle_timeout: 0.06s }\ndrain_timeout: 0.05s",
        "long_drain": "common_http_protocol_options: { max_connection_duration: 0.06s }\ndrain_timeout: 60s",
        "safe": "common_http_protocol_options: { max_connection_duration: 0.06s }\ndrain_timeout: 0.01s\n"
        "http1_safe_max_connection_duration: true",
        "idle_long_drain": "common_http_protocol_options: { idle_timeout: 0.06s }\ndrain_timeout: 60s",
        "duration": "common_http_protocol_options: { max_connection_duration: 0.06s }\ndrain_timeout: 0.05s",
    },
    clusters={"brief": f"hosts: [a]\n{BRIEF}"},
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_header_order(pair: Pair) -> None:
    pair.check_order()
