"""The HTTP filters that a sidecar meets: buffer, health_check, header_to_metadata and set_metadata."""

import base64
import re
from collections.abc import Sequence
from dataclasses import replace

from google.protobuf.struct_pb2 import Value

from tests.differential.cases import Case, Close, Differs, Expect, Receive, chunked, get, post, request
from tests.differential.pair import Pair, Side
from tests.differential.test_filters import PREFIX, ROUTE, filters, per_route
from tests.differential.topic import Topic
from tests.support.upstream import OK, reply

FILE = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
LARGE = 200_000
DIRECT = "match: { prefix: / }\ndirect_response: { status: 200 }\n"


def http_filter(name: str, kind: str, fields: str) -> str:
    """A filter with its configuration."""
    return f"{{ name: {name}, typed_config: {{ '@type': {PREFIX}{kind}, {fields} }} }}"


def log(*operators: str) -> str:
    """An access log of these operators, behind the path."""
    line = "|".join(("%REQ(:PATH)%", *operators)) + "\\n"
    return (
        f"\naccess_log: [{{ name: file, typed_config: {{ '@type': {FILE}, path: '@LOG@', "
        f'log_format: {{ text_format_source: {{ inline_string: "{line}" }} }} }} }}]'
    )


def chunks(body: bytes, *headers: tuple[str, str], path: str = "/") -> bytes:
    """A chunked request."""
    return request("POST", path, [("transfer-encoding", "chunked"), *headers]) + body


# -- buffer


def buffer(limit: int, more: str = "") -> str:
    """A listener whose requests are held up to `limit` bytes."""
    return filters(http_filter("buffer", "buffer.v3.Buffer", f"max_request_bytes: {limit}")) + more


def per_route_buffer(fields: str) -> str:
    """An override on the route."""
    return ROUTE + per_route("buffer", "buffer.v3.BufferPerRoute", fields)


RETRY = "match: { prefix: / }\nroute: { cluster: a, retry_policy: { retry_on: 5xx } }\n"
TOO_LARGE = Differs(
    "too-large-but-read",
    ours=Expect((413,), contains=("log: code=413 flags=- details=request_payload_too_large",)),
    envoy=Expect((413,), "closed", contains=("log: code=413 flags=- details=request_payload_too_large",)),
)
TOO_LARGE_GRPC = Differs(
    "too-large-but-read",
    ours=Expect((200,), contains=("grpc-status: 2", "grpc-message: Payload Too Large")),
    envoy=Expect((200,), "closed", contains=("grpc-status: 2", "grpc-message: Payload Too Large")),
)
SLOWLY = (chunks(b"3\r\nabc\r\n"), b"4\r\ndefg\r\n", b"0\r\n\r\n", Receive())
SMALL_CONNECTION = "\nlistener: { per_connection_buffer_limit_bytes: 1024 }"
BUFFER = [
    Case("buffer_no_body", get("/"), route=ROUTE, listener="buffer"),
    Case("buffer_body", post("/", b"x" * 50), route=ROUTE, listener="buffer"),
    Case("buffer_body_at_the_limit", post("/", b"x" * 100), route=ROUTE, listener="buffer"),
    Case("buffer_body_beyond", post("/", b"x" * 101), route=ROUTE, listener="buffer", differs=TOO_LARGE),
    Case("buffer_empty_body", post("/", b""), route=ROUTE, listener="buffer"),
    Case("buffer_chunked", chunks(chunked(b"hello", b"world!")), route=ROUTE, listener="buffer"),
    Case("buffer_chunked_slowly", SLOWLY, route=ROUTE, listener="buffer"),
    Case("buffer_chunked_empty", chunks(b"0\r\n\r\n"), route=ROUTE, listener="buffer"),
    Case("buffer_chunked_at_the_limit", chunks(chunked(b"x" * 60, b"y" * 40)), route=ROUTE, listener="buffer"),
    Case(
        "buffer_chunked_beyond",
        chunks(chunked(b"x" * 60, b"y" * 41)),
        route=ROUTE,
        listener="buffer",
        differs=TOO_LARGE,
    ),
    Case(
        "buffer_beyond_before_the_end",
        (chunks(b"65\r\n" + b"x" * 101), Receive()),
        route=ROUTE,
        listener="buffer",
        log_bytes=False,
    ),
    Case(
        "buffer_trailers",
        chunks(chunked(b"hello", trailers=[("x-t", "1")])),
        route=ROUTE,
        listener="buffer_trailers",
    ),
    Case(
        "buffer_trailers_only",
        chunks(chunked(trailers=[("x-t", "1")])),
        route=ROUTE,
        listener="buffer_trailers",
    ),
    Case(
        "buffer_expect",
        request("POST", "/", [("expect", "100-continue")], b"hello"),
        route=ROUTE,
        listener="buffer",
    ),
    Case(
        "buffer_grpc_beyond",
        post("/", b"x" * 101, ("content-type", "application/grpc")),
        route=ROUTE,
        listener="buffer",
        differs=TOO_LARGE_GRPC,
    ),
    Case("buffer_disabled", chunks(chunked(b"hello")), route=per_route_buffer("disabled: true"), listener="buffer"),
    Case(
        "buffer_disabled_beyond",
        chunks(chunked(b"x" * 300)),
        route=per_route_buffer("disabled: true"),
        listener="buffer",
    ),
    *(
        Case(
            f"buffer_on_route_{size}",
            post("/", b"x" * size),
            route=per_route_buffer("buffer: { max_request_bytes: 200 }"),
            listener="buffer",
            differs=TOO_LARGE if size == 201 else None,
        )
        for size in (101, 200, 201)
    ),
    Case(
        "buffer_on_vhost",
        post("/", b"x" * 50),
        vhost=per_route("buffer", "buffer.v3.BufferPerRoute", "buffer: { max_request_bytes: 20 }"),
        listener="buffer",
        differs=TOO_LARGE,
    ),
    Case("buffer_direct_response", post("/", b"x" * 50), route=DIRECT, listener="buffer"),
    Case("buffer_direct_response_beyond", post("/", b"x" * 101), route=DIRECT, listener="buffer", differs=TOO_LARGE),
    Case("buffer_no_route", post("/", b"x" * 50, host="none.test"), listener="buffer"),
    Case("buffer_large", post("/", b"x" * LARGE), route=ROUTE, listener="buffer_large"),
    Case("buffer_larger_than_the_connection", post("/", b"x" * 5000), route=ROUTE, listener="buffer_small_connection"),
    Case(
        "buffer_chunked_larger_than_the_connection",
        chunks(chunked(*[b"x" * 700] * 8)),
        route=ROUTE,
        listener="buffer_small_connection",
    ),
    Case(
        "buffer_retry_larger_than_the_connection",
        post("/", b"x" * 5000),
        (reply(503), OK),
        route=RETRY,
        listener="buffer_small_connection",
    ),
    Case("buffer_retry", chunks(chunked(b"hello")), (reply(503), OK), route=RETRY, listener="buffer"),
    Case(
        "buffer_retry_limit_of_the_route",
        post("/", b"x" * 50),
        (reply(503), OK),
        route="request_body_buffer_limit: 20\n" + RETRY,
        listener="buffer",
    ),
    Case("buffer_two_first", post("/", b"x" * 60), route=ROUTE, listener="buffer_two", log_bytes=False),
    Case("buffer_two_both", post("/", b"x" * 40), route=ROUTE, listener="buffer_two"),
]

# -- health_check


def health_check(fields: str) -> str:
    """A listener with a health_check filter, which looks at paths."""
    matcher = "headers: [{ name: ':path', string_match: { exact: /healthz } }]"
    return filters(http_filter("health", "health_check.v3.HealthCheck", f"{fields}, {matcher}")) + HEALTH_LOG


HEALTH_LOG = (
    "\naccess_log: [{ name: file, filter: { not_health_check_filter: {} }, typed_config: { '@type': "
    + FILE
    + ", path: '@LOG@', log_format: { text_format_source: { inline_string: \"no health check: %REQ(:PATH)%\\n\" } } } }]"
)
DEGRADED = reply(200, b"ok", [("x-envoy-degraded", "true")])


def percentages(*clusters: tuple[str, float]) -> str:
    """cluster_min_healthy_percentages."""
    entries = ", ".join(f"{name}: {{ value: {value} }}" for name, value in clusters)
    return f"pass_through_mode: false, cluster_min_healthy_percentages: {{ {entries} }}"


def asked(name: str, listener: str, *answers: object) -> list[Case]:
    """A health check and another request."""
    del answers
    return [Case(f"{name}_{path}", get(f"/{path}"), route=ROUTE, listener=listener) for path in ("healthz", "other")]


HEALTH = [
    *asked("health", "health"),
    *asked("health_pass", "health_pass"),
    Case("health_head", request("HEAD", "/healthz"), route=ROUTE, listener="health"),
    Case("health_body", post("/healthz", b"x" * 50), route=ROUTE, listener="health"),
    Case("health_body_slowly", (chunks(b"3\r\nabc\r\n", path="/healthz"), b"0\r\n\r\n", Receive()), listener="health"),
    Case(
        "health_trailers",
        chunks(chunked(b"hello", trailers=[("x-t", "1")]), path="/healthz"),
        listener="health_trailers",
    ),
    Case(
        "health_body_beyond_the_buffer",
        post("/healthz", b"x" * 5000),
        listener="small_health",
        differs=Differs(
            "health-check-body",
            ours=Expect((413,)),
            envoy=Expect((200,), contains=("details=health_check_ok",)),
        ),
    ),
    Case("health_grpc", post("/healthz", b"", ("content-type", "application/grpc")), listener="health"),
    Case("health_no_route", get("/healthz", host="none.test"), listener="health"),
    Case(
        "health_pass_upstream_says",
        get("/healthz"),
        (reply(503, b"no", [("x-envoy-upstream-healthchecked-cluster", "theirs")]),),
        route=ROUTE,
        listener="health_pass",
    ),
    Case(
        "health_pass_no_host",
        get("/healthz"),
        route="match: { prefix: / }\nroute: { cluster: empty }",
        listener="health_pass",
    ),
    Case(
        "health_cached",
        (
            get("/healthz"),
            Receive(),
            get("/healthz"),
            Receive(),
            post("/healthz", b"x"),
            Receive(),
            get("/other"),
            Receive(),
        ),
        (reply(204, b"", [("x-a", "b")]), OK, OK, OK),
        route=ROUTE,
        listener="health_cache",
        methods=(b"GET",),
    ),
    Case(
        "health_cached_failure",
        (get("/healthz"), Receive(), get("/healthz"), Receive()),
        (reply(500), OK),
        route=ROUTE,
        listener="health_cache_failure",
    ),
    Case(
        "health_cached_degraded",
        (get("/healthz"), Receive(), get("/healthz"), Receive()),
        (DEGRADED, OK),
        route=ROUTE,
        listener="health_cache_degraded",
    ),
    *(
        Case(name, get("/healthz"), route=ROUTE, listener=name)
        for name in (
            "health_cluster_50",
            "health_cluster_51",
            "health_cluster_dead",
            "health_cluster_unknown",
            "health_cluster_empty",
            "health_cluster_empty_0",
            "health_cluster_several",
            "health_cluster_degraded",
            "health_percentages_pass",
        )
    ),
]
CLUSTERS = {
    "half": """
load_assignment:
  cluster_name: half
  endpoints:
  - lb_endpoints:
    - { endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @a@ } } } }
    - { health_status: UNHEALTHY, endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @b@ } } } }
""",
    "degraded": """
load_assignment:
  cluster_name: degraded
  endpoints:
  - lb_endpoints:
    - { health_status: DEGRADED, endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @a@ } } } }
""",
}

# -- header_to_metadata

H2M = "envoy.filters.http.header_to_metadata"


def to_metadata(*rules: str, responses: Sequence[str] = (), more: str = "") -> str:
    """The filter's fields."""
    return f"request_rules: [{', '.join(rules)}], response_rules: [{', '.join(responses)}]{more}"


def rule(source: str, present: str = "", missing: str = "", more: str = "") -> str:
    """A rule: where the value comes from, and what becomes of it."""
    parts = [source]
    parts += [f"on_header_present: {{ {present} }}"] if present else []
    parts += [f"on_header_missing: {{ {missing} }}"] if missing else []
    return "{ " + ", ".join(parts) + more + " }"


RULES = to_metadata(
    rule("header: x-string", "metadata_namespace: ns, key: string"),
    rule(
        "header: x-fixed",
        "metadata_namespace: ns, key: fixed, value: present",
        "metadata_namespace: ns, key: fixed, value: missing",
    ),
    rule("header: X-Number", "metadata_namespace: ns, key: number, type: NUMBER"),
    rule("header: x-base64", "metadata_namespace: ns, key: base64, encode: BASE64"),
    rule("header: x-base64-number", "metadata_namespace: ns, key: base64_number, encode: BASE64, type: NUMBER"),
    rule("header: x-value", "metadata_namespace: ns, key: value, encode: BASE64, type: PROTOBUF_VALUE"),
    rule("header: x-drop", "metadata_namespace: ns, key: drop", more=", remove: true"),
    rule(
        "header: x-drop-missing",
        missing="metadata_namespace: ns, key: drop_missing, value: '5', type: NUMBER",
        more=", remove: true",
    ),
    rule(
        "header: x-regex",
        "metadata_namespace: ns, key: regex, regex_value_rewrite: { pattern: { regex: '^/(cluster[0-9]+)/?.*$' }, substitution: '\\1' }",
    ),
    rule(
        "header: x-regex-empty",
        "metadata_namespace: ns, key: regex_empty, regex_value_rewrite: { pattern: { regex: '.*' }, substitution: '' }",
    ),
    rule("header: ':path'", "key: path"),
    rule("cookie: session", "metadata_namespace: ns, key: cookie", "metadata_namespace: ns, key: cookie, value: none"),
    rule("header: x-twice", "metadata_namespace: ns, key: twice"),
    rule("header: x-again", "metadata_namespace: ns, key: string"),
    responses=(
        rule(
            "header: x-answer",
            "metadata_namespace: ns, key: answer",
            "metadata_namespace: ns, key: answer, value: unknown",
            ", remove: true",
        ),
        rule("header: ':status'", "metadata_namespace: ns, key: status, type: NUMBER"),
    ),
)
KEYS = ["string", "fixed", "number", "base64", "base64_number", "value", "drop", "drop_missing", "regex", "regex_empty"]
KEYS += ["cookie", "twice", "answer", "status"]
H2M_LOG = log(*(f"{key}=%DYNAMIC_METADATA(ns:{key})%" for key in KEYS), f"path=%DYNAMIC_METADATA({H2M}:path)%")

H2M_JSON = (
    f"\naccess_log: [{{ name: file, typed_config: {{ '@type': {FILE}, path: '@LOG@', log_format: {{ json_format: {{ "
    "path: '%REQ(:PATH)%', all: '%DYNAMIC_METADATA(ns)%', in_text: 'is %DYNAMIC_METADATA(ns:number)%', "
    + ", ".join(f"{key}: '%DYNAMIC_METADATA(ns:{key})%'" for key in ("string", "number", "value"))
    + " } } } }]"
)


def value(**fields: object) -> str:
    """A serialised google.protobuf.Value, as base64."""
    message = Value()
    for name, given in fields.items():
        if name == "list":
            message.list_value.extend(given)  # type: ignore[arg-type]
        elif name == "struct":
            message.struct_value.update(given)  # type: ignore[arg-type]
        else:
            setattr(message, f"{name}_value", given)
    return base64.b64encode(message.SerializeToString(deterministic=True)).decode()


def metadata(name: str, *headers: tuple[str, str], path: str = "/", route: str = ROUTE, listener: str = "h2m") -> Case:
    """A request with headers that become metadata."""
    return Case(f"h2m_{name}", get(path, *headers), route=route, listener=listener)


ONE = rule("header: x-string", "metadata_namespace: ns, key: string, value: of the route")
SOME_HEADERS = {
    "string": (("x-string", "hello"),),
    "odd_string": (("x-string", 'q"uote \\ \xe4 \xc3\xa4'),),
    "empty_string": (("x-string", ""),),
    "fixed": (("x-fixed", "anything"),),
    "fixed_empty": (("x-fixed", ""),),
    **{
        f"number_{index}": (("x-number", number),)
        for index, number in enumerate(
            (
                "5",
                "5.5",
                "-1e3",
                "five",
                "5 ",
                "",
                "0x10",
                "inf",
                "1_000",
                "nan",
                "1e400",
                ".5",
                "5.",
                "+3",
                "--3",
                "1e21",
                "100000000000000000000",
                "0.1",
                "1e-7",
                "+-3",
                "infinity",
                "0x1.8p3",
                "-0x10",
                "0x",
                "INF",
                "nan(1)",
                "1e",
                "1,5",
                "1 2",
                "0x1p5000",
                "00012",
                "1e-400",
                "+inf",
                "-nan",
                "0X1F",
                "1234567",
                "123456789",
                "12345678901234567890",
                "1e5",
                "1e6",
                "1e15",
                "1e16",
                "1e17",
                "123456789012345678",
                "-123456789.125",
                "0.0001",
                "0.00001",
                "-0",
                "9007199254740993",
                "0.30000000000000004",
            )
        )
    },
    **{
        f"base64_{index}": (("x-base64", text),)
        for index, text in enumerate(
            (
                "aGVsbG8=",
                "aGVsbG8",
                "not base64!",
                "aGVsbG8==",
                "a",
                "_-8=",
                "8J+YgA==",
                "",
                "aGVs bG8=",
                "//8=",
                "aGVsbG9",
                "aGVsbA=",
                "aGV=sbG8=",
                "=",
                "aG=",
                "aH",
                "aGVsbG8=====",
                "AA==",
                "aGVsbG8A",
            )
        )
    },
    "base64_number": (("x-base64-number", base64.b64encode(b"42").decode()),),
    "value_string": (("x-value", value(string="hi")),),
    "value_number": (("x-value", value(number=7.25)),),
    "value_bool": (("x-value", value(bool=True)),),
    "value_null": (("x-value", value(null=0)),),
    "value_list": (("x-value", value(list=[1, "two", None, [True]])),),
    "value_struct": (("x-value", value(struct={"one": 1})),),
    "value_bad": (("x-value", base64.b64encode(b"\xff\xff").decode()),),
    "value_empty": (("x-value", "AA=="),),
    "drop": (("x-drop", "gone"),),
    "drop_twice": (("x-drop", "gone"), ("x-drop", "too")),
    "drop_missing": (("x-drop-missing", "there"),),
    "regex": (("x-regex", "/cluster12/rest"),),
    "regex_no_match": (("x-regex", "/other"),),
    "regex_empty": (("x-regex-empty", "anything"),),
    "cookie": (("cookie", "a=b; session=abc"),),
    "cookie_quoted": (("cookie", 'session="a b"'),),
    "cookie_empty": (("cookie", "session="),),
    "cookie_twice": (("cookie", "session=one"), ("cookie", "session=two")),
    "twice": (("x-twice", "one"), ("x-twice", "two")),
    "again": (("x-string", "first"), ("x-again", "second")),
    "long": (("x-string", "x" * 8191),),
    "too_long": (("x-string", "x" * 8192),),
}
METADATA = [
    metadata("nothing"),
    metadata("path", path="/some/path?q"),
    *(metadata(name, *headers) for name, headers in SOME_HEADERS.items()),
    Case("h2m_answer", get("/"), (reply(201, b"", [("x-answer", "42")]),), route=ROUTE, listener="h2m"),
    Case("h2m_answer_local", get("/"), route=DIRECT, listener="h2m"),
    metadata("no_upstream", ("x-string", "hello"), route="match: { prefix: / }\nroute: { cluster: empty }\n"),
    metadata(
        "route", ("x-string", "hello"), route=ROUTE + per_route("h2m", "header_to_metadata.v3.Config", to_metadata(ONE))
    ),
    metadata(
        "route_of_nothing",
        ("x-string", "hello"),
        route=ROUTE + per_route("h2m", "header_to_metadata.v3.Config", to_metadata(responses=(ONE,))),
    ),
    Case(
        "h2m_vhost",
        get("/", ("x-string", "hello")),
        vhost=per_route("h2m", "header_to_metadata.v3.Config", to_metadata(ONE)),
        listener="h2m",
    ),
    metadata("no_rules", ("x-string", "hello"), listener="h2m_none"),
    metadata(
        "no_rules_route",
        ("x-string", "hello"),
        route=ROUTE + per_route("h2m", "header_to_metadata.v3.Config", to_metadata(ONE)),
        listener="h2m_none",
    ),
    metadata("two", ("x-string", "hello"), listener="h2m_two"),
    metadata("host", listener="h2m_host"),
    *(
        metadata(f"json_{name}", *SOME_HEADERS[name], listener="h2m_json")
        for name in ("string", "odd_string", "number_1", "number_7", "number_9", "number_15", "number_38", "value_list")
    ),
    metadata(
        "does_not_change_the_route",
        ("x-string", "hello"),
        route="""
- match: { prefix: /, dynamic_metadata: [{ filter: ns, path: [{ key: string }], value: { string_match: { exact: hello } } }] }
  direct_response: { status: 418 }
- { match: { prefix: / }, route: { cluster: a } }
""",
    ),
    *(
        metadata(f"counted_{name}", *headers, listener="h2m_counted")
        for name, headers in (
            ("nothing", ()),
            ("base64", (("x-base64", "!!"),)),
            ("number", (("x-number", "five"),)),
            ("long", (("x-string", "x" * 8192),)),
            ("some", (("x-string", "a"), ("x-number", "5"), ("x-regex", "/cluster1/"), ("x-regex-empty", "a"))),
            ("empty", (("x-string", ""),)),
            ("regex_no_match", (("x-regex", "/other"),)),
            ("regex_of_nothing", (("x-regex", ""), ("x-regex-empty", ""))),
            ("cookie_empty", (("cookie", "session="),)),
        )
    ),
]

# -- set_metadata


def set_metadata(*entries: str, more: str = "") -> str:
    """A set_metadata filter."""
    return http_filter("set", "set_metadata.v3.Config", f"metadata: [{', '.join(entries)}]{more}")


def entry(namespace: str, fields: str, more: str = "") -> str:
    """A value for a namespace."""
    return f"{{ metadata_namespace: {namespace}, value: {{ {fields} }}{more} }}"


OVER = ", allow_overwrite: true"
SET_LOG = log(
    *(f"{key}=%DYNAMIC_METADATA(ns:{key})%" for key in ("a", "b", "c", "d")), "other=%DYNAMIC_METADATA(other)%"
)
SET = {
    "set": set_metadata(entry("ns", "a: text, b: 5, c: true, d: null"), entry("other", "k: { l: [1, two, 2.5] }")),
    "set_order": set_metadata(
        entry("other", "zebra: 1, a: 2, m: { z: 1, b: 2, A: 3 }, b: 4, B: 5, '10': 6, '9': 7, _: 8, ä: 9, aa: 10")
    ),
    "set_twice": set_metadata(entry("ns", "a: first"), entry("ns", "a: second, b: new")),
    "set_over": set_metadata(
        entry("ns", "a: first, c: [1], d: { x: 1, y: [1] }"),
        entry("ns", "a: second, b: new, c: [2, 3], d: { x: 2, y: [2], z: 3 }", OVER),
    ),
    "set_over_types": set_metadata(
        entry("ns", "a: text, b: [1], c: { x: 1 }, d: 1"), entry("ns", "a: [1], b: { x: 1 }, c: false, d: null", OVER)
    ),
    "set_over_empty": set_metadata(entry("ns", "a: text"), entry("ns", "", OVER)),
    "set_over_nothing": set_metadata(entry("ns", "a: text", OVER)),
    "set_empty": set_metadata(entry("other", "")),
    "set_legacy": set_metadata(more=", metadata_namespace: ns, value: { a: legacy, b: 1 }"),
    "set_legacy_and": set_metadata(
        entry("ns", "a: new"), entry("ns", "b: new", OVER), more=", metadata_namespace: ns, value: { a: legacy, c: 1 }"
    ),
    "set_no_value": set_metadata("{ metadata_namespace: ns }", entry("ns", "a: text")),
    "set_nothing": set_metadata(),
}
SETS = [
    *(Case(name, get("/"), route=ROUTE, listener=name) for name in SET),
    Case(
        "set_route",
        get("/"),
        route=ROUTE + per_route("set", "set_metadata.v3.Config", f"metadata: [{entry('ns', 'b: of the route')}]"),
        listener="set",
    ),
    Case(
        "set_route_nothing",
        get("/"),
        route=ROUTE + per_route("set", "set_metadata.v3.Config", "metadata: []"),
        listener="set",
    ),
    Case(
        "set_route_over",
        get("/"),
        route=ROUTE
        + per_route(
            "set",
            "set_metadata.v3.Config",
            f"metadata: [{entry('ns', 'a: of the route', OVER)}, {entry('other', 'x: 1', OVER)}]",
        ),
        listener="set",
    ),
    Case(
        "set_route_alone",
        get("/"),
        route=ROUTE + per_route("set", "set_metadata.v3.Config", f"metadata: [{entry('ns', 'a: of the route', OVER)}]"),
        listener="set_nothing",
    ),
    Case(
        "set_route_and_vhost",
        get("/"),
        vhost=per_route(
            "set",
            "set_metadata.v3.Config",
            f"metadata: [{entry('ns', 'a: of the host, b: of the host', OVER)}, {entry('other', 'x: host', OVER)}]",
        ),
        route=ROUTE + per_route("set", "set_metadata.v3.Config", f"metadata: [{entry('ns', 'a: of the route', OVER)}]"),
        listener="set_nothing",
    ),
    Case("set_behind_h2m", get("/", ("x-string", "header")), route=ROUTE, listener="set_behind_h2m"),
    Case("set_before_h2m", get("/", ("x-string", "header")), route=ROUTE, listener="set_before_h2m"),
]
MAPPED = http_filter(
    "h2m", "header_to_metadata.v3.Config", to_metadata(rule("header: x-string", "metadata_namespace: ns, key: a"))
)
TWO = http_filter(
    "h2m_2", "header_to_metadata.v3.Config", to_metadata(rule("header: x-string", "metadata_namespace: ns, key: twice"))
)

TOPIC = Topic(
    [*BUFFER, *HEALTH, *METADATA, *SETS],
    listeners={
        "buffer": buffer(100),
        "buffer_trailers": buffer(100, "\nhttp_protocol_options: { enable_trailers: true }"),
        "buffer_large": buffer(LARGE),
        "buffer_small_connection": buffer(6000, SMALL_CONNECTION),
        "buffer_two": filters(
            http_filter("buffer", "buffer.v3.Buffer", "max_request_bytes: 100"),
            http_filter("buffer_2", "buffer.v3.Buffer", "max_request_bytes: 50"),
        ),
        "health": health_check("pass_through_mode: false"),
        "health_trailers": health_check("pass_through_mode: false")
        + "\nhttp_protocol_options: { enable_trailers: true }",
        "small_health": health_check("pass_through_mode: false") + SMALL_CONNECTION,
        "health_pass": health_check("pass_through_mode: true"),
        "health_cache": health_check("pass_through_mode: true, cache_time: 1000s"),
        "health_cache_failure": health_check("pass_through_mode: true, cache_time: 1000s"),
        "health_cache_degraded": health_check("pass_through_mode: true, cache_time: 1000s"),
        "health_cluster_50": health_check(percentages(("half", 50))),
        "health_cluster_51": health_check(percentages(("half", 51))),
        "health_cluster_dead": health_check(percentages(("dead", 100))),
        "health_cluster_unknown": health_check(percentages(("unknown", 0))),
        "health_cluster_empty": health_check(percentages(("empty", 1))),
        "health_cluster_empty_0": health_check(percentages(("empty", 0))),
        "health_cluster_several": health_check(percentages(("a", 100), ("half", 51), ("b", 1))),
        "health_cluster_degraded": health_check(percentages(("degraded", 100))),
        "health_percentages_pass": health_check(percentages(("empty", 100)).replace("false", "true")),
        "h2m": filters(http_filter("h2m", "header_to_metadata.v3.Config", RULES)) + H2M_LOG,
        "h2m_host": filters(
            http_filter(
                "h2m",
                "header_to_metadata.v3.Config",
                to_metadata(
                    rule("header: host", "metadata_namespace: ns, key: string"),
                    rule("header: ':authority'", "metadata_namespace: ns, key: fixed"),
                ),
            )
        )
        + H2M_LOG,
        "h2m_json": filters(http_filter("h2m", "header_to_metadata.v3.Config", RULES)) + H2M_JSON,
        "h2m_none": filters(http_filter("h2m", "header_to_metadata.v3.Config", "request_rules: []")) + H2M_LOG,
        "h2m_two": filters(http_filter("h2m", "header_to_metadata.v3.Config", RULES), TWO) + H2M_LOG,
        "h2m_counted": filters(http_filter("h2m", "header_to_metadata.v3.Config", RULES + ", stat_prefix: mapped"))
        + H2M_LOG,
        **{name: filters(text) + SET_LOG for name, text in SET.items()},
        "set_behind_h2m": filters(MAPPED, set_metadata(entry("ns", "a: set, b: set"))) + SET_LOG,
        "set_before_h2m": filters(set_metadata(entry("ns", "a: set, b: set")), MAPPED) + SET_LOG,
    },
    clusters=CLUSTERS,
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_header_order(pair: Pair) -> None:
    pair.check_order()


COUNTED = re.compile(
    r"^http\.(health|set)\w*\.(health_check\.|set_metadata\.|downstream_rq_(total|completed|[1-5]xx)$)|"
    r"^http\.buffer\w*\.downstream_rq_(too_large|4xx)$|"
    r"^set_metadata\.|^http_filter_name\.|^cluster\.(a|empty)\.(\w+\.)?upstream_rq_(completed|total|[1-5]\w\w)$"
)


def counted(side: Side) -> dict[str, int]:
    """What the filters count, and who counts health checks."""
    return {name: value for name, value in side.proxy.stats().items() if COUNTED.match(name) and value}


def test_counted(pair: Pair) -> None:
    expected, actual = counted(pair.reference), counted(pair.subject)
    assert expected
    assert actual == expected


def test_while_health_checks_fail(pair: Pair) -> None:
    """The cases are of one request each, on a connection that the answer ends (`drain-close`)."""
    named = {case.name: case for case in TOPIC.cases}
    names = ["healthz", "other", "pass_healthz", "pass_other", "head", "body", "grpc", "no_route", "cluster_50"]
    cases = [replace(named[f"health_{name}"], request=(*named[f"health_{name}"].steps, Close())) for name in names]
    cached = replace(cases[0], listener="health_cache_failure")
    tell(pair, "/healthcheck/fail")
    try:
        for case in (*cases, cached):
            check_while_failing(pair, case)
    finally:
        tell(pair, "/healthcheck/ok")
    for case in (*cases, cached):  # the last is remembered
        pair.check(case)


def tell(pair: Pair, path: str) -> None:
    """POST to both admins."""
    for side in (pair.reference, pair.subject):
        assert side.proxy.admin(path, "POST") == (200, "OK\n")


def check_while_failing(pair: Pair, case: Case) -> None:
    """They agree, and say what a health checker goes by."""
    expected, actual = pair.run(case)
    assert actual.lines(ordered=True) == expected.lines(ordered=True)
    assert "x-envoy-immediate-health-check-fail: true" in "\n".join(actual.lines())
