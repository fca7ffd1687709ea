"""Header operations, forwarding headers, and what is trusted from whom."""

from dataclasses import replace

from tests.differential.cases import Case, Differs, Expect, get, post, request
from tests.differential.pair import Pair
from tests.differential.topic import Topic
from tests.support.upstream import Answer, reply

ROUTE = "match: { prefix: / }\nroute: { cluster: a }\n"
HOST = [("x-one", "1"), ("x-two", "2")]


def op(key: str, value: str, action: str = "", keep_empty: bool = False) -> str:
    """One header operation as YAML."""
    extra = f", append_action: {action}" if action else ""
    return f"{{ header: {{ key: {key}, value: '{value}' }}{extra}{', keep_empty_value: true' if keep_empty else ''} }}"


def request_op(name: str, *ops: str, req: bytes | None = None) -> Case:
    """Request header operations on the route."""
    return Case(
        name,
        req or get("/p?q=1", ("x-old", "old")),
        route=ROUTE + f"request_headers_to_add: [{', '.join(ops)}]\n",
    )


def response_op(name: str, *ops: str, answer: Answer | None = None) -> Case:
    """Response header operations on the route."""
    answer = answer or reply(200, b"ok", [("x-old", "old")])
    return Case(
        name, get("/p?q=1", ("x-req", "r")), (answer,), route=ROUTE + f"response_headers_to_add: [{', '.join(ops)}]\n"
    )


def formatted(name: str, text: str, *headers: tuple[str, str]) -> list[Case]:
    """A formatter in a request header and in a response header."""
    route = ROUTE + f"request_headers_to_add: [{op('x-out', text)}]\nresponse_headers_to_add: [{op('x-out', text)}]\n"
    return [Case(f"format_{name}", get("/p?q=1", *headers), (reply(201, b"ok", [("x-up", "up")]),), route=route)]


def joined(envoy: str, ours: str) -> Differs:
    """Envoy joins the lines of a header that it knows; ours stay lines of their own."""
    target = "GET /a?b HTTP/1.1" if "forwarded" in envoy else "GET / HTTP/1.1"
    return Differs(
        "repeated-lines",
        Expect((200,), "kept", (target,), (ours,)),
        Expect((200,), "kept", (target,), (envoy,)),
    )


ACTIONS = ("APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS")

OPERATIONS = [
    *(request_op(f"request_{action.lower()}_existing", op("x-old", "new", action)) for action in ACTIONS),
    *(request_op(f"request_{action.lower()}_absent", op("x-new", "new", action)) for action in ACTIONS),
    *(response_op(f"response_{action.lower()}_existing", op("x-old", "new", action)) for action in ACTIONS),
    *(response_op(f"response_{action.lower()}_absent", op("x-new", "new", action)) for action in ACTIONS),
    request_op("request_append_old_field", "{ header: { key: x-old, value: new }, append: false }"),
    request_op("request_append_old_field_true", "{ header: { key: x-old, value: new }, append: true }"),
    request_op("request_twice_same", op("x-new", "1"), op("x-new", "2")),
    request_op(
        "request_overwrite_repeated",
        op("x-old", "new", ACTIONS[2]),
        req=get("/", ("x-old", "1"), ("x-b", "b"), ("x-old", "2")),
    ),
    request_op(
        "request_append_repeated", op("x-old", "new"), req=get("/", ("x-old", "1"), ("x-b", "b"), ("x-old", "2"))
    ),
    request_op("request_empty_value", op("x-new", "")),
    request_op("request_empty_value_kept", op("x-new", "", keep_empty=True)),
    request_op("request_empty_by_format", op("x-new", "%REQ(x-none)%")),
    request_op("request_empty_by_format_kept", op("x-new", "%REQ(x-none)%", keep_empty=True)),
    request_op("request_upper_case_name", op("X-New", "v")),
    request_op("request_user_agent", op("user-agent", "ua")),
    request_op("request_via_add", op("via", "1.1 x")),
    request_op("request_raw_value", "{ header: { key: x-raw, raw_value: YWJj } }"),
    request_op("request_content_type", op("content-type", "a/b"), req=post("/")),
    Case(
        "request_remove",
        get("/", ("x-a", "1"), ("x-b", "2"), ("X-A", "3")),
        route=ROUTE + "request_headers_to_remove: [x-a, x-none]\n",
    ),
    Case("request_remove_upper_case", get("/", ("x-a", "1")), route=ROUTE + "request_headers_to_remove: [X-A]\n"),
    Case(
        "request_remove_and_add",
        get("/", ("x-a", "1")),
        route=ROUTE + f"request_headers_to_remove: [x-a]\nrequest_headers_to_add: [{op('x-a', 'new')}]\n",
    ),
    Case(
        "request_remove_user_agent",
        get("/", ("user-agent", "x")),
        route=ROUTE + "request_headers_to_remove: [user-agent]\n",
    ),
    Case(
        "request_remove_x_forwarded_proto", get("/"), route=ROUTE + "request_headers_to_remove: [x-forwarded-proto]\n"
    ),
    Case("request_remove_request_id", get("/"), route=ROUTE + "request_headers_to_remove: [x-request-id]\n"),
    Case("request_remove_content_length", post("/"), route=ROUTE + "request_headers_to_remove: [content-length]\n"),
    Case(
        "response_remove",
        get("/"),
        (reply(200, b"ok", [("x-a", "1"), ("x-b", "2"), ("x-a", "3")]),),
        route=ROUTE + "response_headers_to_remove: [x-a]\n",
    ),
    Case(
        "response_remove_server",
        get("/"),
        route=ROUTE + "response_headers_to_remove: [server, date, x-envoy-upstream-service-time]\n",
    ),
    Case(
        "response_remove_and_add",
        get("/"),
        (reply(200, b"ok", [("x-a", "1")]),),
        route=ROUTE + f"response_headers_to_remove: [x-a]\nresponse_headers_to_add: [{op('x-a', 'new')}]\n",
    ),
    response_op("response_repeated", op("set-cookie", "b=2"), answer=reply(200, b"", [("set-cookie", "a=1")])),
    response_op("response_server_added", op("server", "mine", ACTIONS[2])),
    response_op("response_status_header", op("x-code", "%RESPONSE_CODE%"), answer=reply(404, b"")),
    Case(
        "response_op_on_local_reply",
        get("/"),
        route="match: { prefix: / }\nroute: { cluster: empty }\n" + f"response_headers_to_add: [{op('x-a', '1')}]",
    ),
    Case(
        "response_op_on_direct_response",
        get("/"),
        route="match: { prefix: / }\ndirect_response: { status: 200 }\n"
        f"response_headers_to_add: [{op('x-a', '%RESPONSE_CODE%')}]\nresponse_headers_to_remove: [server]",
    ),
    Case(
        "levels_all",
        get("/"),
        (reply(200, b"", [("x-up", "1")]),),
        vhost=f"""
request_headers_to_add: [{op("x-level", "vhost")}]
response_headers_to_add: [{op("x-level", "vhost")}]
""",
        route="match: { prefix: / }\nroute: { weighted_clusters: { clusters: [{ name: a, weight: 1, "
        f"request_headers_to_add: [{op('x-level', 'cluster')}], response_headers_to_add: [{op('x-level', 'cluster')}] }}] }} }}\n"
        f"request_headers_to_add: [{op('x-level', 'route')}]\nresponse_headers_to_add: [{op('x-level', 'route')}]",
        listener="levels",
    ),
    Case(
        "levels_most_specific_wins",
        get("/"),
        (reply(200, b"", [("x-up", "1")]),),
        vhost=f"""
request_headers_to_add: [{op("x-level", "vhost", ACTIONS[2])}]
response_headers_to_add: [{op("x-level", "vhost", ACTIONS[2])}]
""",
        route=ROUTE
        + f"request_headers_to_add: [{op('x-level', 'route', ACTIONS[2])}]\nresponse_headers_to_add: [{op('x-level', 'route', ACTIONS[2])}]",
        listener="specific",
    ),
    Case(
        "levels_least_specific_wins",
        get("/"),
        (reply(200, b"", [("x-up", "1")]),),
        vhost=f"""
request_headers_to_add: [{op("x-level", "vhost", ACTIONS[2])}]
response_headers_to_add: [{op("x-level", "vhost", ACTIONS[2])}]
""",
        route=ROUTE
        + f"request_headers_to_add: [{op('x-level', 'route', ACTIONS[2])}]\nresponse_headers_to_add: [{op('x-level', 'route', ACTIONS[2])}]",
        listener="levels",
    ),
    Case(
        "levels_vhost_removes",
        get("/", ("x-a", "1"), ("x-b", "2")),
        vhost="request_headers_to_remove: [x-a]",
        route=ROUTE + f"request_headers_to_add: [{op('x-a', 'r')}]",
    ),
]

FORMATS = [
    *formatted("req", "[%REQ(x-in)%]", ("x-in", "in")),
    *formatted("req_missing", "[%REQ(x-none)%]"),
    *formatted("req_alternative", "%REQ(x-none?x-in)%", ("x-in", "in")),
    *formatted("req_truncated", "%REQ(x-in):3%", ("x-in", "abcdef")),
    *formatted("req_pseudo", "%REQ(:method)% %REQ(:path)% %REQ(:authority)% %REQ(:scheme)%"),
    *formatted("req_repeated", "%REQ(x-in)%", ("x-in", "a"), ("x-in", "b")),
    *formatted("resp", "[%RESP(x-up)%]"),
    *formatted("resp_missing", "[%RESP(x-none)%]"),
    *formatted("protocol", "%PROTOCOL%"),
    *formatted("response_code", "%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS%"),
    *formatted("upstream", "%UPSTREAM_HOST% %UPSTREAM_CLUSTER% %UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
    *formatted(
        "downstream",
        "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
    ),
    *formatted(
        "downstream_with_port",
        "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_PORT% %DOWNSTREAM_REMOTE_PORT%",
    ),
    *formatted("downstream_xff", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", ("x-forwarded-for", "1.2.3.4, 5.6.7.8")),
    *formatted("route_name", "%ROUTE_NAME% %VIRTUAL_CLUSTER_NAME%"),
    *formatted("bytes", "%BYTES_RECEIVED% %BYTES_SENT%"),
    *formatted("percent", "100%%"),
    *formatted("text", "plain text"),
    *formatted("hostname", "%HOSTNAME%"),
    *formatted("environment", "%ENVIRONMENT(HOME)%"),
    *formatted("two", "a%REQ(x-in)%b%PROTOCOL%c", ("x-in", "in")),
    *formatted("start_time_fixed", "%START_TIME(%Y)%"),
    *formatted("metadata_missing", "[%DYNAMIC_METADATA(a:b)%]"),
    *formatted("upstream_metadata_missing", "[%UPSTREAM_METADATA(a:b)%]"),
    *formatted("cluster_metadata_missing", "[%CLUSTER_METADATA(a:b)%]"),
    *formatted("attempt_count", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
    *formatted("connection_id_is_there", "[%REQ(x-none):5%]"),
    *formatted("requested_server_name", "[%REQUESTED_SERVER_NAME%]"),
    *formatted("stream_info_missing", "[%FILTER_STATE(x)%]"),
    *formatted("path_query", "%PATH% %QUERY_PARAM(q)% %PATH(NQ)% %PATH(WQ)% %PATH(NQ:ORIG)%"),
    *formatted("coalesce", "%REQ(x-none?x-none2)%"),
]

XFF = [("x-forwarded-for", "1.2.3.4, 5.6.7.8")]
FORWARDED = [
    *(
        Case(f"{listener}_{name}", get("/a?b", *headers), listener=listener, route=ROUTE)
        for listener in ("main", "edge", "hops_1", "hops_2", "skip_append", "hops_1_local", "forwarded_port")
        for name, headers in (
            ("plain", []),
            ("xff", XFF),
            ("xff_internal", [("x-forwarded-for", "10.0.0.1")]),
            ("xff_internal_then_external", [("x-forwarded-for", "10.0.0.1, 1.2.3.4")]),
            ("xff_bad", [("x-forwarded-for", "nonsense")]),
            ("xff_repeated", [("x-forwarded-for", "1.2.3.4"), ("x-forwarded-for", "5.6.7.8")]),
            ("xff_ipv6", [("x-forwarded-for", "2001:db8::1")]),
            ("proto_https", [("x-forwarded-proto", "https")]),
            ("proto_and_xff", [("x-forwarded-proto", "https"), *XFF]),
            ("proto_bad", [("x-forwarded-proto", "gopher")]),
            ("port", [("x-forwarded-port", "4443")]),
            ("host", [("x-forwarded-host", "front.test")]),
            ("scheme", [("x-scheme", "https")]),
            ("forwarded", [("forwarded", "for=1.2.3.4;proto=https")]),
            ("real_ip", [("x-real-ip", "1.2.3.4")]),
        )
    ),
]

ENVOY_HEADERS = [
    ("x-envoy-internal", "true"),
    ("x-envoy-external-address", "9.9.9.9"),
    ("x-envoy-downstream-service-cluster", "evil"),
    ("x-envoy-downstream-service-node", "evil"),
    ("x-envoy-retry-on", "5xx"),
    ("x-envoy-max-retries", "3"),
    ("x-envoy-upstream-alt-stat-name", "evil"),
    ("x-envoy-upstream-rq-timeout-ms", "9000"),
    ("x-envoy-upstream-rq-per-try-timeout-ms", "900"),
    ("x-envoy-upstream-rq-timeout-alt-response", "1"),
    ("x-envoy-expected-rq-timeout-ms", "1"),
    ("x-envoy-force-trace", "true"),
    ("x-envoy-ip-tags", "evil"),
    ("x-envoy-attempt-count", "7"),
    ("x-envoy-original-path", "/evil"),
    ("x-envoy-original-host", "evil"),
    ("x-envoy-decorator-operation", "evil"),
    ("x-envoy-retriable-status-codes", "404"),
    ("x-envoy-retriable-header-names", "x"),
    ("x-envoy-hedge-on-per-try-timeout", "true"),
    ("x-envoy-is-timeout-retry", "true"),
    ("x-envoy-upstream-stream-duration-ms", "100"),
    ("x-envoy-peer-metadata", "kept"),
    ("x-envoy-unknown", "kept"),
]
SCHEME_ROUTE = ROUTE + (
    f"request_headers_to_add: [{op('x-scheme', '%REQ(:SCHEME)%')}]\n"
    f"response_headers_to_add: [{op('x-scheme', '%REQ(:SCHEME)%')}]\n"
)
SCHEMES = [
    case
    for listener in ("main", "scheme_http", "scheme_https", "scheme_upstream", "scheme_both")
    for case in (
        Case(f"{listener}_scheme_plain", get("/"), route=SCHEME_ROUTE, listener=listener),
        Case(
            f"{listener}_scheme_forwarded",
            get("/", ("x-forwarded-proto", "https")),
            route=SCHEME_ROUTE,
            listener=listener,
        ),
        Case(
            f"{listener}_scheme_absolute",
            request("GET", f"https://{listener.replace('_', '-')}-scheme-absolute.test/"),
            route=SCHEME_ROUTE,
            listener=listener,
        ),
        Case(
            f"{listener}_scheme_redirect",
            get("/", ("x-forwarded-proto", "https")),
            route="match: { prefix: / }\nredirect: { path_redirect: /x }",
            listener=listener,
        ),
        Case(
            f"{listener}_scheme_require_tls",
            get("/"),
            route=ROUTE,
            vhost="require_tls: ALL",
            listener=listener,
        ),
    )
]
TRUST = [
    *(
        Case(f"trust_{listener}_{name}", get("/", *headers), listener=listener, route=ROUTE)
        for listener in ("main", "edge", "edge_internal", "edge_cidr")
        for name, headers in (
            ("all", ENVOY_HEADERS),
            ("all_from_internal", [("x-forwarded-for", "10.0.0.1"), *ENVOY_HEADERS]),
            ("all_from_external", [("x-forwarded-for", "1.2.3.4"), *ENVOY_HEADERS]),
        )
    ),
    *(
        Case(f"trust_{name[0].removeprefix('x-envoy-').replace('-', '_')}", get("/", name), route=ROUTE)
        for name in ENVOY_HEADERS
    ),
]

REQUEST_ID = "9f1c1d3e-1f0e-4f1b-8a2b-3c4d5e6f7a8b"
IDS = [
    Case("id_generated", get("/"), route=ROUTE),
    Case("id_kept_from_internal", get("/", ("x-request-id", "given")), route=ROUTE),
    Case("id_uuid_kept", get("/", ("x-request-id", REQUEST_ID)), route=ROUTE, ignore=()),
    Case("id_replaced_at_edge", get("/", ("x-request-id", "given")), route=ROUTE, listener="edge"),
    Case("id_replaced_at_edge_external", get("/", ("x-request-id", "given"), *XFF), route=ROUTE, listener="hops_1"),
    Case("id_preserved_at_edge", get("/", ("x-request-id", "given"), *XFF), route=ROUTE, listener="preserve_id"),
    Case("id_preserved_but_absent", get("/"), route=ROUTE, listener="preserve_id"),
    Case("id_not_generated", get("/"), route=ROUTE, listener="no_id"),
    Case("id_not_generated_given", get("/", ("x-request-id", "given")), route=ROUTE, listener="no_id"),
    Case("id_in_response", get("/", ("x-request-id", "given")), route=ROUTE, listener="id_in_response"),
    Case(
        "id_in_local_reply",
        get("/", ("x-request-id", "given")),
        route="match: { prefix: / }\nroute: { cluster: empty }",
        listener="id_in_response",
    ),
    Case("id_empty", get("/", ("x-request-id", "")), route=ROUTE),
    Case(
        "id_twice",
        get("/", ("x-request-id", "a"), ("x-request-id", "b")),
        route=ROUTE,
        differs=joined("x-request-id: a,b", "x-request-id: a"),
    ),
]

NAMES = [
    Case(
        "via_added",
        get("/", ("via", "1.0 before")),
        (reply(200, b"", [("via", "1.0 up")]),),
        route=ROUTE,
        listener="via",
    ),
    Case("via_alone", get("/"), route=ROUTE, listener="via"),
    *(
        Case(f"server_{mode}_{name}", get("/"), (reply(200, b"", headers),), route=ROUTE, listener=f"server_{mode}")
        for mode in ("overwrite", "absent", "pass")
        for name, headers in (("from_upstream", [("server", "up/1.0")]), ("none", []))
    ),
    Case(
        "server_pass_local_reply",
        get("/"),
        route="match: { prefix: / }\nroute: { cluster: empty }",
        listener="server_pass",
    ),
    Case("server_name", get("/"), route=ROUTE, listener="server_name"),
    Case("date_from_upstream", get("/"), (reply(200, b"", [("date", "Thu, 01 Jan 1970 00:00:00 GMT")]),), route=ROUTE),
    Case("date_odd_from_upstream", get("/"), (reply(200, b"", [("date", "yesterday")]),), route=ROUTE),
    Case("add_user_agent", get("/"), route=ROUTE, listener="add_user_agent"),
    Case("add_user_agent_given", get("/", ("user-agent", "curl/8")), route=ROUTE, listener="add_user_agent"),
    Case(
        "add_user_agent_external",
        get("/", ("user-agent", "curl/8"), *XFF, ("x-envoy-downstream-service-cluster", "evil")),
        route=ROUTE,
        listener="add_user_agent",
    ),
    Case(
        "service_time_from_upstream",
        get("/"),
        (reply(200, b"", [("x-envoy-upstream-service-time", "77777777")]),),
        route=ROUTE,
    ),
    Case("suppress_envoy_headers", get("/", *ENVOY_HEADERS), route=ROUTE, listener="suppress"),
    Case(
        "suppress_envoy_headers_local_reply",
        get("/"),
        route="match: { prefix: / }\nroute: { cluster: empty }",
        listener="suppress",
    ),
    Case(
        "suppress_envoy_headers_rewrite",
        get("/x"),
        route="match: { prefix: /x }\nroute: { cluster: a, prefix_rewrite: /y }",
        listener="suppress",
    ),
    Case("attempt_count_request", get("/"), route=ROUTE, vhost="include_request_attempt_count: true"),
    Case(
        "attempt_count_given",
        get("/", ("x-envoy-attempt-count", "9")),
        route=ROUTE,
        vhost="include_request_attempt_count: true",
    ),
    Case("attempt_count_response", get("/"), route=ROUTE, vhost="include_attempt_count_in_response: true"),
    Case(
        "attempt_count_local_reply",
        get("/"),
        route="match: { prefix: / }\nroute: { cluster: empty }",
        vhost="include_attempt_count_in_response: true",
    ),
    Case("original_path", get("/x/y?z"), route="match: { prefix: /x }\nroute: { cluster: a, prefix_rewrite: /n }"),
    Case(
        "original_path_given",
        get("/x/y?z", ("x-envoy-original-path", "/evil")),
        route="match: { prefix: /x }\nroute: { cluster: a, prefix_rewrite: /n }",
    ),
    Case(
        "upstream_envoy_headers",
        get("/"),
        (
            reply(
                200,
                b"",
                [
                    ("x-envoy-upstream-canary", "true"),
                    ("x-envoy-overloaded", "true"),
                    ("x-envoy-degraded", "true"),
                    ("x-envoy-immediate-health-check-fail", "true"),
                    ("x-envoy-ratelimited", "true"),
                    ("x-envoy-attempt-count", "3"),
                    ("x-envoy-decorator-operation", "evil"),
                    ("x-envoy-unknown", "u"),
                ],
            ),
        ),
        route=ROUTE,
    ),
    Case("decorator_propagated", get("/"), route=ROUTE + "decorator: { operation: op }"),
    Case("decorator_not_propagated", get("/"), route=ROUTE + "decorator: { operation: op, propagate: false }"),
    Case(
        "decorator_given",
        get("/", ("x-envoy-decorator-operation", "given")),
        route=ROUTE + "decorator: { operation: op }",
    ),
]

HOP_BY_HOP = [
    *(
        Case(f"hop_{name}", get("/", *headers), route=ROUTE)
        for name, headers in {
            "connection": [("connection", "keep-alive")],
            "connection_named": [("connection", "x-a"), ("x-a", "1"), ("x-b", "2")],
            "connection_named_several": [("connection", "x-a, X-B ,x-none"), ("x-a", "1"), ("x-b", "2"), ("x-c", "3")],
            "connection_twice": [("connection", "x-a"), ("connection", "x-b"), ("x-a", "1"), ("x-b", "2")],
            "connection_names_host": [("connection", "host")],
            "connection_names_cookie": [("connection", "cookie"), ("cookie", "a=b")],
            "connection_names_forwarded": [
                ("connection", "x-forwarded-for, x-forwarded-proto, x-forwarded-host"),
                *XFF,
            ],
            "connection_empty": [("connection", "")],
            "connection_te": [("connection", "te"), ("te", "trailers")],
            "te_trailers": [("te", "trailers")],
            "te_gzip": [("te", "gzip")],
            "te_trailers_in_capitals": [("te", "Trailers")],
            "te_trailers_within": [("te", "gzip;a=trailers")],
            "te_trailers_weighted": [("te", "gzip, trailers;q=1")],
            "te_trailers_and_gzip": [("connection", "te"), ("te", "gzip, trailers")],
            "keep_alive": [("keep-alive", "timeout=5")],
            "proxy_connection": [("proxy-connection", "keep-alive")],
            "proxy_authorization": [("proxy-authorization", "basic x")],
            "proxy_authenticate": [("proxy-authenticate", "basic")],
            "trailer": [("trailer", "x-t")],
            "upgrade": [("upgrade", "frob")],
            "max_forwards": [("max-forwards", "0")],
            "cookies": [("cookie", "a=1"), ("cookie", "b=2")],
            "http2_settings": [("http2-settings", "x")],
            "range": [("range", "bytes=0-1")],
            "content_type": [("content-type", "a/b")],
            "expect_nothing": [("expect", "")],
        }.items()
    ),
    Case("options_max_forwards", request("OPTIONS", "/", [("max-forwards", "0")]), route=ROUTE),
    *(
        Case(f"response_hop_{name}", get("/"), (reply(200, b"ok", headers),), route=ROUTE)
        for name, headers in {
            "connection_named": [("connection", "x-a"), ("x-a", "1")],
            "keep_alive": [("keep-alive", "timeout=5")],
            "proxy_connection": [("proxy-connection", "close")],
            "proxy_authenticate": [("proxy-authenticate", "basic")],
            "trailer": [("trailer", "x-t")],
            "upgrade": [("upgrade", "frob")],
            "te": [("te", "trailers")],
            "alt_svc": [("alt-svc", "h3=x")],
            "empty_value": [("x-empty", "")],
            "upper_case": [("X-UPPER", "V")],
            "x_request_id": [("x-request-id", "up")],
        }.items()
    ),
]

DIFFERENCES = {
    f"{listener}_xff_repeated": joined("x-forwarded-for: 1.2.3.4,5.6.7.8", "x-forwarded-for: 5.6.7.8")
    for listener in ("main", "skip_append", "hops_1_local")
} | {
    "response_hop_connection_named": Differs(
        "response-connection-header",
        Expect((200,), "kept", ("GET / HTTP/1.1",)),
        Expect((200,), "kept", ("GET / HTTP/1.1",), ("x-a: 1",)),
    )
}
CASES = [*OPERATIONS, *FORMATS, *FORWARDED, *SCHEMES, *TRUST, *IDS, *NAMES, *HOP_BY_HOP]

TOPIC = Topic(
    [replace(case, differs=case.differs or DIFFERENCES.get(case.name)) for case in CASES],
    listeners={
        "main": "",
        "levels": f"route_config: {{ request_headers_to_add: [{op('x-level', 'table', ACTIONS[2])}], response_headers_to_add: [{op('x-level', 'table')}] }}",
        "specific": "route_config: { most_specific_header_mutations_wins: true, "
        f"request_headers_to_add: [{op('x-level', 'table', ACTIONS[2])}], response_headers_to_add: [{op('x-level', 'table', ACTIONS[2])}] }}",
        "edge": "use_remote_address: true",
        "edge_internal": "use_remote_address: true\ninternal_address_config: { unix_sockets: true }",
        "edge_cidr": "use_remote_address: true\ninternal_address_config: { cidr_ranges: [{ address_prefix: 127.0.0.0, prefix_len: 8 }] }",
        "hops_1": "use_remote_address: true\nxff_num_trusted_hops: 1",
        "hops_2": "use_remote_address: true\nxff_num_trusted_hops: 2",
        "hops_1_local": "xff_num_trusted_hops: 1",
        "skip_append": "use_remote_address: true\nskip_xff_append: true",
        "forwarded_port": "append_x_forwarded_port: true\nuse_remote_address: true",
        "preserve_id": "use_remote_address: true\npreserve_external_request_id: true",
        "no_id": "generate_request_id: false",
        "id_in_response": "always_set_request_id_in_response: true",
        "via": "via: 1.1 here",
        "server_overwrite": "server_header_transformation: OVERWRITE",
        "server_absent": "server_header_transformation: APPEND_IF_ABSENT",
        "server_pass": "server_header_transformation: PASS_THROUGH",
        "server_name": "server_name: my-proxy",
        "add_user_agent": "add_user_agent: true\nuse_remote_address: true",
        "scheme_http": "scheme_header_transformation: { scheme_to_overwrite: http }",
        "scheme_https": "scheme_header_transformation: { scheme_to_overwrite: https }",
        "scheme_upstream": "scheme_header_transformation: { match_upstream: true }",
        "scheme_both": "scheme_header_transformation: { scheme_to_overwrite: https, match_upstream: true }",
        "suppress": "http_filters: [{ name: router, typed_config: { '@type': "
        "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true } }]",
    },
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_header_order(pair: Pair) -> None:
    pair.check_order()
