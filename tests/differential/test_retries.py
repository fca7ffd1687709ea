"""Retries: every condition that HTTP/1.1 can have, the limits, the headers that ask for them, and request bodies."""

from tests.differential.cases import Case, Close, Differs, Expect, Receive, ReceiveInterim, get, post, request
from tests.differential.pair import Pair
from tests.differential.topic import Topic
from tests.support.upstream import CLOSE, OK, RESET, STALL, Answer, reply

BACK_OFF = "retry_back_off: { base_interval: 0.002s, max_interval: 0.004s }"


def policy(fields: str, cluster: str = "a", more: str = "", name: str = "") -> str:
    """A route with a retry policy of quick back-off."""
    return f"match: {{ prefix: / }}\nroute: {{ cluster: {cluster}, {more + ', ' if more else ''}retry_policy: {{ {fields}, {BACK_OFF} }} }}\n"


def on(
    name: str,
    condition: str,
    *answers: Answer,
    fields: str = "num_retries: 1",
    req: bytes | None = None,
    cluster: str = "a",
) -> Case:
    """One retry_on condition and the answers of the upstream."""
    return Case(
        f"{name}",
        req or get("/"),
        answers,
        route=policy(f"retry_on: '{condition}', {fields}", cluster),
        vhost="include_request_attempt_count: true",
        log_bytes=False,
    )


def status(code: int, *headers: tuple[str, str]) -> Answer:
    """An answer with that status."""
    return reply(code, str(code).encode(), headers)


HALF_HEAD = Answer((b"HTTP/1.1 200 OK\r\nx-a: ",), then="close")
HALF_BODY = Answer((b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",), then="close")
NONSENSE = Answer((b"nonsense\r\n\r\n",), then="stall")

FIRST_ANSWERS = {
    "200": status(200),
    "400": status(400),
    "404": status(404),
    "408": status(408),
    "409": status(409),
    "429": status(429),
    "500": status(500),
    "501": status(501),
    "502": status(502),
    "503": status(503),
    "504": status(504),
    "close": CLOSE,
    "reset": RESET,
    "half_head": HALF_HEAD,
    "nonsense": NONSENSE,
    "half_body": HALF_BODY,
    "ratelimited": status(503, ("x-envoy-ratelimited", "true")),
    "overloaded": status(503, ("x-envoy-overloaded", "true")),
}
CONDITIONS = (
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "5xx,retriable-4xx",
    "cancelled,deadline-exceeded",
    "nonsense",
)
MATRIX = (
    [
        on(f"{condition.replace('-', '_').replace(',', '_')}_{name}", condition, answer, OK, req=post("/"))
        for condition in CONDITIONS
        for name, answer in FIRST_ANSWERS.items()
    ]
    + [
        on(f"{condition.replace('-', '_').replace(',', '_')}_connect", condition, OK, cluster="dead")
        for condition in CONDITIONS
    ]
    + [
        on(f"{condition.replace('-', '_').replace(',', '_')}_no_host", condition, OK, cluster="empty")
        for condition in CONDITIONS
    ]
)

LIMITS = [
    on("num_default", "5xx", status(500), status(501), status(502), OK, fields="host_selection_retry_max_attempts: 1"),
    on("num_0", "5xx", status(500), OK, fields="num_retries: 0"),
    on("num_3_last_succeeds", "5xx", status(500), status(501), status(502), OK, fields="num_retries: 3"),
    on("num_3_exhausted", "5xx", status(500), status(501), status(502), status(503), OK, fields="num_retries: 3"),
    on("num_2_closes", "5xx", CLOSE, CLOSE, CLOSE, fields="num_retries: 2", req=post("/")),
    on("num_2_connect", "connect-failure", fields="num_retries: 2", cluster="dead"),
    on("two_conditions", "gateway-error,retriable-4xx", status(409), status(503), OK, fields="num_retries: 2"),
    on("spaces_in_conditions", "gateway-error, retriable-4xx", status(409), OK),
    on("first_retried_then_not", "gateway-error", status(503), status(500), OK, fields="num_retries: 3"),
    on("codes", "retriable-status-codes", status(404), OK, fields="num_retries: 1, retriable_status_codes: [404, 418]"),
    on(
        "codes_other",
        "retriable-status-codes",
        status(405),
        OK,
        fields="num_retries: 1, retriable_status_codes: [404, 418]",
    ),
    on("codes_without_condition", "5xx", status(404), OK, fields="num_retries: 1, retriable_status_codes: [404]"),
    on(
        "headers_match",
        "retriable-headers",
        status(200, ("x-again", "1")),
        OK,
        fields="num_retries: 1, retriable_headers: [{ name: x-again, present_match: true }]",
    ),
    on(
        "headers_no_match",
        "retriable-headers",
        status(200, ("x-other", "1")),
        OK,
        fields="num_retries: 1, retriable_headers: [{ name: x-again, present_match: true }]",
    ),
    on(
        "headers_second",
        "retriable-headers",
        status(200, ("x-b", "yes")),
        OK,
        fields="num_retries: 1, retriable_headers: [{ name: x-a, present_match: true }, { name: x-b, string_match: { exact: 'yes' } }]",
    ),
    on(
        "request_headers_match",
        "5xx",
        status(500),
        OK,
        fields="num_retries: 1, retriable_request_headers: [{ name: ':method', string_match: { exact: GET } }]",
    ),
    on(
        "request_headers_no_match",
        "5xx",
        status(500),
        OK,
        fields="num_retries: 1, retriable_request_headers: [{ name: ':method', string_match: { exact: GET } }]",
        req=post("/"),
    ),
    on("head", "5xx", status(500), OK, req=request("HEAD", "/")),
    on("post", "5xx", status(500), OK, req=post("/", b"hello")),
    on(
        "post_chunked",
        "5xx",
        status(500),
        OK,
        req=request("POST", "/", [("transfer-encoding", "chunked")]) + b"5\r\nhello\r\n0\r\n\r\n",
    ),
    on("post_64k", "5xx", status(500), OK, req=post("/", b"x" * 65536)),
    on("post_closed", "5xx", CLOSE, OK, req=post("/", b"hello")),
    on("post_early_500", "5xx", reply(500, b"no", early=True, then="close"), OK, req=post("/", b"hello")),
    on("response_bodies_dropped", "5xx", reply(500, b"x" * 20000), reply(200, b"fine")),
    on(
        "response_chunked_dropped",
        "5xx",
        Answer((b"HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",)),
        reply(200, b"fine"),
    ),
    Case(
        "body_over_limit",
        post("/", b"x" * 2000),
        (status(500), OK),
        vhost="per_request_buffer_limit_bytes: 1000",
        route=policy("retry_on: 5xx, num_retries: 1"),
        log_bytes=False,
    ),
    Case(
        "body_within_limit",
        post("/", b"x" * 900),
        (status(500), OK),
        vhost="per_request_buffer_limit_bytes: 1000",
        route=policy("retry_on: 5xx, num_retries: 1"),
    ),
    Case(
        "body_over_route_limit",
        post("/", b"x" * 2000),
        (status(500), OK),
        route=policy("retry_on: 5xx, num_retries: 1") + "per_request_buffer_limit_bytes: 1000",
        log_bytes=False,
    ),
    Case(
        "vhost_policy",
        get("/"),
        (status(500), OK),
        vhost=f"retry_policy: {{ retry_on: 5xx, num_retries: 1, {BACK_OFF} }}",
    ),
    Case(
        "route_policy_over_vhost",
        get("/"),
        (status(500), OK),
        vhost=f"retry_policy: {{ retry_on: 5xx, num_retries: 1, {BACK_OFF} }}",
        route=policy("retry_on: gateway-error"),
    ),
    Case("no_policy", get("/"), (status(503), OK), route="match: { prefix: / }\nroute: { cluster: a }"),
    Case("no_policy_closed", post("/"), (CLOSE, OK), route="match: { prefix: / }\nroute: { cluster: a }"),
    Case(
        "no_policy_closed_after_reuse",
        (get("/"), Receive(), get("/"), Receive()),
        (OK, CLOSE, OK),
        route="match: { prefix: / }\nroute: { cluster: alone }",
        differs=Differs(
            "stale-connection",
            Expect((200, 200), "kept", ("GET / HTTP/1.1",) * 3),
            Expect((200, 503), "kept", ("GET / HTTP/1.1",) * 2),
        ),
    ),
    Case(
        "no_policy_closed_after_reuse_post",
        (get("/"), Receive(), post("/"), Receive()),
        (OK, CLOSE, OK),
        route="match: { prefix: / }\nroute: { cluster: alone }",
    ),
    Case(
        "no_policy_reset_after_reuse_post",
        (get("/"), Receive(), post("/"), Receive()),
        (OK, RESET, OK),
        route="match: { prefix: / }\nroute: { cluster: alone }",
    ),
    Case(
        "no_policy_half_head_after_reuse",
        (get("/"), Receive(), get("/"), Receive()),
        (OK, HALF_HEAD, OK),
        route="match: { prefix: / }\nroute: { cluster: alone }",
    ),
    Case("policy_without_conditions", get("/"), (status(503), OK), route=policy("num_retries: 1")),
]


def asked(
    name: str,
    *headers: tuple[str, str],
    answers: tuple[Answer, ...] = (status(500), OK),
    route: str = "",
    listener: str = "internal",
) -> Case:
    """A retry that the request's headers ask for."""
    prefix = "" if listener == "internal" else f"{listener}_"
    return Case(
        f"asked_{prefix}{name}",
        get("/", *headers),
        answers,
        route=route or "match: { prefix: / }\nroute: { cluster: a }",
        listener=listener,
        log_bytes=False,
    )


ASKED = [
    asked("5xx", ("x-envoy-retry-on", "5xx")),
    asked("gateway_error_500", ("x-envoy-retry-on", "gateway-error")),
    asked("gateway_error_503", ("x-envoy-retry-on", "gateway-error"), answers=(status(503), OK)),
    asked("two", ("x-envoy-retry-on", "retriable-4xx,5xx"), answers=(status(409), OK)),
    asked("nonsense", ("x-envoy-retry-on", "nonsense")),
    asked("max_retries_only", ("x-envoy-max-retries", "2")),
    asked(
        "max_retries", ("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "2"), answers=(status(500), status(500), OK)
    ),
    asked("max_retries_0", ("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "0")),
    asked("max_retries_bad", ("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "many")),
    asked(
        "retriable_status_codes",
        ("x-envoy-retry-on", "retriable-status-codes"),
        ("x-envoy-retriable-status-codes", "404,418"),
        answers=(status(418), OK),
    ),
    asked("retriable_status_codes_without_on", ("x-envoy-retriable-status-codes", "404"), answers=(status(404), OK)),
    asked(
        "retriable_headers",
        ("x-envoy-retry-on", "retriable-headers"),
        ("x-envoy-retriable-header-names", "x-again, x-b"),
        answers=(status(200, ("x-again", "1")), OK),
    ),
    asked(
        "grpc",
        ("x-envoy-retry-grpc-on", "unavailable"),
        answers=(reply(200, b"", [("content-type", "application/grpc"), ("grpc-status", "14")]), OK),
    ),
    asked(
        "grpc_other",
        ("x-envoy-retry-grpc-on", "unavailable"),
        answers=(reply(200, b"", [("content-type", "application/grpc"), ("grpc-status", "5")]), OK),
    ),
    asked(
        "adds_to_route",
        ("x-envoy-retry-on", "retriable-4xx"),
        answers=(status(409), OK),
        route=policy("retry_on: gateway-error, num_retries: 1"),
    ),
    asked(
        "max_over_route",
        ("x-envoy-max-retries", "3"),
        answers=(status(500), status(500), status(500), OK),
        route=policy("retry_on: 5xx, num_retries: 1"),
    ),
    asked("from_downstream_on_trusted_hop", ("x-envoy-retry-on", "5xx"), listener="main"),
    asked("internal_by_xff", ("x-envoy-retry-on", "5xx"), ("x-forwarded-for", "10.0.0.1"), listener="main"),
    asked("from_outside", ("x-envoy-retry-on", "5xx"), ("x-forwarded-for", "1.2.3.4"), listener="edge"),
    asked("from_outside_internal", ("x-envoy-retry-on", "5xx"), listener="edge"),
    asked(
        "per_try_timeout",
        ("x-envoy-retry-on", "5xx"),
        ("x-envoy-upstream-rq-per-try-timeout-ms", "60"),
        answers=(STALL, OK),
    ),
]

CANARY_ROUTE = policy(
    "retry_on: 5xx, num_retries: 3, host_selection_retry_max_attempts: 10, retry_host_predicate: [{ name: p, typed_config: "
    "{ '@type': type.googleapis.com/envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate } }]",
    "canary",
)
CANARIES_TAKE_FIRST_ATTEMPTS = Case(
    "canaries_take_first_attempts", get("/") * 4, route=CANARY_ROUTE, responses=4, compare_upstream="nothing"
)
PLACES = [
    Case(
        "previous_hosts",
        get("/"),
        by_server={"a": (status(503),), "b": (reply(200, b"b"),)},
        compare_upstream="nothing",
        log=False,
        route=policy(
            "retry_on: 5xx, num_retries: 3, host_selection_retry_max_attempts: 10, retry_host_predicate: [{ name: p, typed_config: "
            "{ '@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate } }]",
            "ab",
        ),
    ),
    *(
        Case(
            f"omit_host_metadata_{name}",
            get("/"),
            by_server={"a": (status(503),), "b": (reply(200, b"b"),), "c": (status(503),)},
            compare_upstream="nothing",
            log=False,
            route=policy(
                "retry_on: 5xx, num_retries: 4, host_selection_retry_max_attempts: 10, retry_host_predicate: [{ name: p, "
                "typed_config: { '@type': type.googleapis.com/envoy.extensions.retry.host.omit_host_metadata.v3."
                f"OmitHostMetadataConfig, metadata_match: {{ filter_metadata: {{ {match} }} }} }} }}]",
                "labelled",
            ),
        )
        for name, match in (
            ("label", "envoy.lb: { stage: new }"),
            ("two_labels", "envoy.lb: { stage: new, zone: one }"),
        )
    ),
    Case(
        "omit_canary_hosts",
        get("/"),
        by_server={"a": (status(503),), "b": (reply(200, b"b"),)},
        compare_upstream="nothing",
        log=False,
        route=CANARY_ROUTE,
    ),
    Case(
        "round_robin_next_host",
        get("/"),
        by_server={"a": (status(503),), "b": (status(502),), "c": (status(504),)},
        compare_upstream="nothing",
        log=False,
        ignore=("body", "response"),
        route=policy("retry_on: 5xx, num_retries: 5", "abc"),
    ),
    Case("retries_overflow", get("/"), (status(503), OK), route=policy("retry_on: 5xx, num_retries: 1", "no_retries")),
    Case(
        "retries_overflow_keeps_answer",
        get("/"),
        (reply(503, b"mine"), OK),
        route=policy("retry_on: 5xx, num_retries: 1", "no_retries"),
    ),
    Case("retry_budget_zero", get("/"), (status(503), OK), route=policy("retry_on: 5xx, num_retries: 1", "no_budget")),
    Case("retry_budget", get("/"), (status(503), OK), route=policy("retry_on: 5xx, num_retries: 1", "budget")),
    Case(
        "rate_limited_back_off",
        get("/"),
        (status(429, ("retry-after", "0")), OK),
        route=policy(
            "retry_on: retriable-status-codes, retriable_status_codes: [429], num_retries: 1, "
            "rate_limited_retry_back_off: { reset_headers: [{ name: retry-after, format: SECONDS }], max_interval: 0.1s }"
        ),
    ),
    Case(
        "rate_limited_back_off_too_long",
        get("/"),
        (status(429, ("retry-after", "1000")), OK),
        route=policy(
            "retry_on: retriable-status-codes, retriable_status_codes: [429], num_retries: 1, "
            "rate_limited_retry_back_off: { reset_headers: [{ name: retry-after, format: SECONDS }], max_interval: 0.1s }"
        ),
    ),
    Case(
        "per_try_timeout", get("/"), (STALL, OK), route=policy("retry_on: 5xx, num_retries: 1, per_try_timeout: 0.06s")
    ),
    Case(
        "per_try_timeout_gateway_error",
        get("/"),
        (STALL, OK),
        route=policy("retry_on: gateway-error, num_retries: 1, per_try_timeout: 0.06s"),
    ),
    Case(
        "per_try_timeout_reset",
        get("/"),
        (STALL, OK),
        route=policy("retry_on: reset, num_retries: 1, per_try_timeout: 0.06s"),
    ),
    Case(
        "per_try_timeout_connect_failure",
        get("/"),
        (STALL, OK),
        route=policy("retry_on: connect-failure, num_retries: 1, per_try_timeout: 0.06s"),
    ),
    Case(
        "per_try_timeout_exhausted",
        get("/"),
        (STALL, STALL),
        route=policy("retry_on: 5xx, num_retries: 1, per_try_timeout: 0.06s"),
    ),
    Case(
        "per_try_idle_timeout",
        get("/"),
        (STALL, OK),
        route=policy("retry_on: 5xx, num_retries: 1, per_try_idle_timeout: 0.06s"),
    ),
    Case(
        "overall_timeout_during_retries",
        get("/"),
        (STALL, STALL, STALL, STALL, OK),
        route=policy("retry_on: 5xx, num_retries: 10, per_try_timeout: 0.08s", more="timeout: 0.2s"),
        compare_upstream="nothing",
        log=False,
    ),
    Case(
        "per_try_longer_than_timeout",
        get("/"),
        (STALL, OK),
        route=policy("retry_on: 5xx, num_retries: 1, per_try_timeout: 5s", more="timeout: 0.1s"),
    ),
    Case(
        "attempt_counts",
        get("/"),
        (status(503), status(503), OK),
        vhost="include_request_attempt_count: true\ninclude_attempt_count_in_response: true",
        route=policy("retry_on: 5xx, num_retries: 3"),
    ),
    Case(
        "is_timeout_retry",
        get("/"),
        (STALL, OK),
        vhost="include_is_timeout_retry_header: true",
        route=policy("retry_on: 5xx, num_retries: 1, per_try_timeout: 0.06s"),
    ),
    Case(
        "header_operations_once",
        get("/p"),
        (status(503), OK),
        route="match: { prefix: / }\nroute: { cluster: a, prefix_rewrite: /n/, "
        f"retry_policy: {{ retry_on: 5xx, num_retries: 1, {BACK_OFF} }} }}\nrequest_headers_to_add: [{{ header: {{ key: x-a, value: v }} }}]",
    ),
    Case("after_response_started", get("/"), (HALF_BODY, OK), route=policy("retry_on: '5xx,reset', num_retries: 3")),
]

AFTER_INTERIM: dict[str, tuple[bytes, str]] = {
    "then_503": (b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno", "keep"),
    "then_ok": (OK.pieces[0], "keep"),
    "then_close": (b"", "close"),
    "then_half_head": (b"HTTP/1.1 200 OK\r\nx-a: ", "close"),
    "then_nothing": (b"", "stall"),
}
# After an interim response of the upstream there is no further attempt, whether or not it went downstream.
INTERIM = [
    Case(
        f"interim_{code}_{name}_{listener}",
        get("/"),
        (Answer((b"HTTP/1.1 %d Interim\r\n\r\n" % code, *([after] if after else [])), then=then), OK),
        route=policy("retry_on: '5xx,reset', num_retries: 2, per_try_idle_timeout: 0.06s"),
        listener=listener,
    )
    for code in (100, 102, 103, 104, 110)
    for name, (after, then) in AFTER_INTERIM.items()
    for listener in ("main", "proxy_100")
] + [
    Case(
        "interim_voids_the_per_try_timeout",
        get("/"),
        (Answer((b"HTTP/1.1 100 Continue\r\n\r\n",), then="stall"), OK),
        route=policy("retry_on: '5xx,reset', num_retries: 2, per_try_timeout: 0.03s", more="timeout: 0.1s"),
    ),
    Case(
        "interim_then_gone",
        (request("POST", "/", [("content-length", "4"), ("expect", "100-continue")]), ReceiveInterim(), Close()),
        route=policy("retry_on: 5xx"),
        log_bytes=False,
        compare_upstream="nothing",
    ),
]

TOPIC = Topic(
    [*MATRIX, *LIMITS, *ASKED, CANARIES_TAKE_FIRST_ATTEMPTS, *PLACES, *INTERIM],
    listeners={
        "main": "",
        "proxy_100": "proxy_100_continue: true",
        "internal": "use_remote_address: true\ninternal_address_config: { cidr_ranges: [{ address_prefix: 127.0.0.0, prefix_len: 8 }] }",
        "edge": "use_remote_address: true\ninternal_address_config: { cidr_ranges: [{ address_prefix: 10.0.0.0, prefix_len: 8 }] }",
    },
    clusters={
        "alone": "hosts: [a]",
        "ab": "hosts: [a, b]",
        "canary": "load_assignment: { cluster_name: canary, endpoints: [{ lb_endpoints: ["
        "{ metadata: { filter_metadata: { envoy.lb: { canary: true } } }, "
        "endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @a@ } } } }, "
        "{ endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @b@ } } } }] }] }",
        "abc": "hosts: [a, b, c]",
        "labelled": "load_assignment: { cluster_name: labelled, endpoints: [{ lb_endpoints: ["
        + ", ".join(
            f"{{ metadata: {{ filter_metadata: {{ envoy.lb: {{ {labels} }} }} }}, "
            f"endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: @{server}@ }} }} }} }}"
            for server, labels in (
                ("a", "stage: new, zone: one"),
                ("b", "stage: old"),
                ("c", "stage: [new, x], zone: one"),
            )
        )
        + "] }] }",
        "no_retries": "hosts: [a]\ncircuit_breakers: { thresholds: [{ max_retries: 0 }] }",
        "no_budget": "hosts: [a]\ncircuit_breakers: { thresholds: [{ retry_budget: { budget_percent: { value: 0 }, min_retry_concurrency: 0 } }] }",
        "budget": "hosts: [a]\ncircuit_breakers: { thresholds: [{ retry_budget: { budget_percent: { value: 20 }, min_retry_concurrency: 3 } }] }",
    },
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_canaries_take_first_attempts(pair: Pair) -> None:
    """Which of two hosts in turn comes first is chance."""
    for outcome in pair.run(CANARIES_TAKE_FIRST_ATTEMPTS):
        assert sorted(seen.server for seen in outcome.seen) == ["a", "a", "b", "b"]


def test_header_order(pair: Pair) -> None:
    pair.check_order()
