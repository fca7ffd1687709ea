"""`local_reply_config`: what becomes of the answers that the proxy gives itself."""

from collections.abc import Callable
from dataclasses import replace

from tests.differential.cases import Case, Differs, Expect, get, post, request
from tests.differential.pair import Pair
from tests.differential.test_access_log import text
from tests.differential.topic import Topic
from tests.support.upstream import CLOSE, STALL, reply

GRPC = ("content-type", "application/grpc")
UPGRADE = [("connection", "upgrade"), ("upgrade", "websocket")]


def to(cluster: str, more: str = "") -> str:
    """A route to a cluster."""
    return f"match: {{ prefix: / }}\nroute: {{ cluster: {cluster}{', ' + more if more else ''} }}\n"


def status(code: int, operation: str = "EQ") -> str:
    """A filter by status."""
    return f"{{ status_code_filter: {{ comparison: {{ op: {operation}, value: {{ default_value: {code}, runtime_key: none }} }} }} }}"


def mapper(condition: str, more: str) -> str:
    """A configuration of one mapper."""
    return f"local_reply_config: {{ mappers: [{{ filter: {condition}, {more} }}] }}"


def body_format(value: str) -> str:
    """A format of all bodies."""
    return f"local_reply_config: {{ body_format: {{ {value} }} }}"


def direct(more: str) -> str:
    """A route that answers by itself."""
    return f"match: {{ prefix: / }}\ndirect_response: {{ {more} }}\n"


ANY = status(300, "GE")  # not what the harness asks for to see whether a connection still works
EMPTY = to("empty")
NO_ROUTE = "match: { prefix: /a }\nroute: { cluster: a }"
DENIED = direct("status: 403, body: { inline_string: denied }")
REDIRECT = "match: { prefix: / }\nredirect: { path_redirect: /x }"

LISTENERS = {
    "mapped": f"""
local_reply_config:
  mappers:
  - filter: {status(404)}
    status_code: 410
    body: {{ inline_string: "was not found" }}
    headers_to_add: [{{ header: {{ key: x-mapped, value: "%RESPONSE_CODE% %RESP(:status)% %REQ(:path)%" }} }}]
  - filter: {{ response_flag_filter: {{ flags: [UH] }} }}
    body_format_override: {{ text_format_source: {{ inline_string: "%LOCAL_REPLY_BODY% (%RESPONSE_CODE%, %RESPONSE_FLAGS%)" }} }}
  - filter: {status(504)}
    status_code: 500
    body_format_override: {{ text_format_source: {{ inline_string: "%RESPONSE_CODE% %RESP(:status)% %RESPONSE_CODE_DETAILS%" }} }}
""",
    "json": body_format(
        'json_format: { status: "%RESPONSE_CODE%", message: "%LOCAL_REPLY_BODY%", path: "%REQ(:path)%", none: "%REQ(none)%" }'
    ),
    "json_omit": body_format('omit_empty_values: true, json_format: { status: "%RESPONSE_CODE%", none: "%REQ(none)%" }'),
    "json_type": body_format('content_type: application/problem+json, json_format: { status: "%RESPONSE_CODE%" }'),
    "text": body_format('text_format_source: { inline_string: "<%LOCAL_REPLY_BODY%|%REQ(x)%|%PROTOCOL%>" }'),
    "text_type": body_format('content_type: text/html, text_format: "<b>%LOCAL_REPLY_BODY%</b>"'),
    "text_same": body_format('content_type: text/html, text_format: "%LOCAL_REPLY_BODY%"'),
    "text_empty": body_format('omit_empty_values: true, text_format: "%REQ(x)%"'),
    "body_empty": mapper(ANY, 'body: { inline_string: "" }'),
    "body": mapper(ANY, "body: { inline_string: mapped }"),
    "body_and_format": f"""
local_reply_config:
  mappers: [{{ filter: {status(404)}, body: {{ inline_string: mapped }} }}]
  body_format: {{ text_format: "[%LOCAL_REPLY_BODY%]" }}
""",
    "type_given": mapper(ANY, "body: { inline_string: mapped }, headers_to_add: [{ header: { key: content-type, value: a/b } }]"),
    "type_overwritten": mapper(
        ANY,
        "headers_to_add: [{ header: { key: content-type, value: a/b }, append_action: OVERWRITE_IF_EXISTS_OR_ADD }]",
    ),
    "headers": mapper(
        ANY,
        "headers_to_add: [{ header: { key: x-a, value: '1' } }, { header: { key: location, value: /elsewhere }, append_action: OVERWRITE_IF_EXISTS },"
        " { header: { key: x-code, value: '%RESPONSE_CODE_DETAILS%' } }, { header: { key: server, value: mine } }, { header: { key: content-length, value: '3' } }]",
    ),
    "status_only": mapper(ANY, "status_code: 299"),
    "status_same": mapper(status(404), "status_code: 404, body_format_override: { text_format: '%RESPONSE_CODE%' }"),
    "grpc_status": mapper(ANY, "headers_to_add: [{ header: { key: grpc-status, value: '7' } }, { header: { key: grpc-message, value: m } }]"),
    "by_grpc_status": mapper("{ grpc_status_filter: { statuses: [UNIMPLEMENTED] } }", "status_code: 418"),
    "by_header": mapper("{ header_filter: { header: { name: x-map, present_match: true } } }", "status_code: 418"),
    "by_duration": mapper(
        "{ duration_filter: { comparison: { op: LE, value: { default_value: 60000, runtime_key: none } } } }", "status_code: 418"
    ),
    "by_both": mapper(
        f"{{ and_filter: {{ filters: [{status(404)}, {{ header_filter: {{ header: {{ name: ':path', string_match: {{ prefix: /b }} }} }} }}] }} }}",
        "status_code: 418",
    ),
    "by_health_check": mapper("{ not_health_check_filter: {} }", "status_code: 418"),
    "by_log_type": mapper("{ log_type_filter: { types: [NotSet] } }", "status_code: 418"),
    "by_upstream": mapper(
        "{ response_flag_filter: { flags: [NR, UH] } }",
        "body_format_override: { text_format: '%UPSTREAM_CLUSTER% %ROUTE_NAME% %UPSTREAM_HOST% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %RESPONSE_CODE_DETAILS%' }",
    ),
    "logged": body_format("text_format: '[%LOCAL_REPLY_BODY%]'") + text("%LOCAL_REPLY_BODY%;%RESP(content-type)%\\n").join("\n\n"),
    "filtered": """
http_filters:
- name: mutation
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation
    mutations: { response_mutations: [{ append: { header: { key: x-filter, value: "%RESP(x-mapped)% %RESPONSE_CODE%" } } }] }
- { name: router, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }
""" + mapper(ANY, "status_code: 451, headers_to_add: [{ header: { key: x-mapped, value: set } }]"),
    "status_204": mapper(ANY, "status_code: 204"),
    "by_any_flag": mapper("{ response_flag_filter: {} }", "status_code: 418"),
    "timeouts": "request_headers_timeout: 0.1s\n" + mapper(ANY, "status_code: 418"),
}  # fmt: skip


# What is answered where: kind -> the exchange, for a listener's name.
KINDS: dict[str, Callable[[str, str], Case]] = {
    "no_virtual_host": lambda name, at: Case(name, get("/x?y", host="none.test"), listener=at),
    "no_route": lambda name, at: Case(name, get("/b"), route=NO_ROUTE, listener=at),
    "no_route_head": lambda name, at: Case(name, request("HEAD", "/b"), route=NO_ROUTE, listener=at),
    "no_route_grpc": lambda name, at: Case(name, post("/b", b"", GRPC), route=NO_ROUTE, listener=at),
    "no_host": lambda name, at: Case(name, get("/x?y"), route=EMPTY, listener=at),
    "no_host_grpc": lambda name, at: Case(name, post("/", b"", GRPC), route=EMPTY, listener=at),
    "bad_request": lambda name, at: Case(name, b"GET / HTTP/1.1\r\nhost: a\r\nx y: z\r\n\r\n", listener=at),
    "direct": lambda name, at: Case(name, get("/"), route=DENIED, listener=at),
    "redirect": lambda name, at: Case(name, get("/"), route=REDIRECT, listener=at),
    "upstream_404": lambda name, at: Case(name, get("/"), (reply(404, b"theirs"),), route=to("a"), listener=at),
}
EVERY = " ".join(KINDS)
REPLIES = {
    "mapped": EVERY,
    "json": EVERY,
    "json_omit": "no_host bad_request",
    "json_type": "no_route no_host_grpc direct",
    "text": EVERY,
    "text_type": "no_route no_host no_host_grpc direct redirect",
    "text_same": "no_route no_host direct redirect",
    "text_empty": "no_route_head no_host no_host_grpc",
    "body": "no_route no_route_grpc direct upstream_404",
    "body_empty": "no_route no_host no_host_grpc direct",
    "body_and_format": "no_route no_host upstream_404",
    "type_given": "no_route no_route_grpc direct",
    "type_overwritten": "no_route no_host no_host_grpc direct",
    "headers": EVERY,
    "status_only": "no_route no_host_grpc direct redirect upstream_404",
    "status_same": "no_route",
    "grpc_status": "no_host no_host_grpc",
    "by_grpc_status": "no_route no_route_grpc no_host no_host_grpc",
    "by_header": "no_route",
    "by_duration": "no_route",
    "by_both": "no_route no_host",
    "by_health_check": "no_route",
    "by_log_type": "no_route",
    "by_upstream": "no_virtual_host no_route no_host bad_request",
    "logged": "no_host no_host_grpc bad_request direct",
    "filtered": "no_virtual_host no_host upstream_404",
}

CASES = [
    *(KINDS[kind](f"{listener}_{kind}", listener) for listener, kinds in REPLIES.items() for kind in kinds.split()),
    Case("timeout", get("/"), (STALL,), route=to("a", "timeout: 0.1s"), listener="mapped"),
    Case("upstream_closes", get("/"), (CLOSE,), route=to("a"), listener="json"),
    Case("refused_upgrade", request("GET", "/", UPGRADE), route=to("a"), listener="json"),
    Case("by_header_yes", get("/b", ("x-map", "1")), route=NO_ROUTE, listener="by_header"),
    Case("require_tls", get("/a?b"), vhost="require_tls: ALL", route=to("a"), listener="headers"),
    Case("slow_head", b"GET / HTTP/1.1\r\nhost: a\r\n", listener="timeouts"),
    Case(
        "no_content",
        request("HEAD", "/"),
        route=EMPTY,
        listener="status_204",
        differs=Differs(
            "no-content-length", Expect((204,), contains=("tx=0",)), Expect((204,), contains=("tx=0", "content-length: 19"))
        ),
    ),
    Case(
        "flag_of_a_bad_request",
        b"GET / HTTP/1.1\r\nhost: a\r\nx y: z\r\n\r\n",
        listener="by_any_flag",
        differs=Differs(
            "mapped-codec-error",
            Expect((418,), "closed", contains=("flags=DPE",)),
            Expect((400,), "closed", contains=("flags=DPE",)),
        ),
    ),
    Case(
        "direct_json",
        get("/"),
        route=direct("status: 403, body_format: { json_format: { a: b } }"),
        listener="text",
    ),
    Case(
        "direct_json_kept",
        get("/"),
        route=direct("status: 403, body_format: { json_format: { a: b } }"),
        listener="by_header",
    ),
    Case(
        "direct_with_type",
        get("/"),
        route=direct("status: 403, body: { inline_string: <a> }")
        + "response_headers_to_add: [{ header: { key: content-type, value: text/xml } }]",
        listener="text_same",
    ),
    Case(
        "direct_with_type_and_no_body",
        get("/"),
        route=direct("status: 403") + "response_headers_to_add: [{ header: { key: content-type, value: text/xml } }]",
        listener="by_header",
    ),
]  # fmt: skip

# A format changes the harness' own answer too.
TOPIC = Topic(
    [replace(case, probe="body_format: { " not in LISTENERS[case.listener]) for case in CASES], listeners=LISTENERS
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_header_order(pair: Pair) -> None:
    pair.check_order()
