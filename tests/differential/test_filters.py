"""The HTTP filters: header_mutation, cors, fault and router, and their overrides on routes, virtual hosts and clusters."""

from tests.differential.cases import Case, get, not_yet, post, request
from tests.differential.pair import Pair
from tests.differential.topic import Topic
from tests.support.upstream import OK, STALL, reply

ROUTE = "match: { prefix: / }\nroute: { cluster: a }\n"
PREFIX = "type.googleapis.com/envoy.extensions.filters.http."
ROUTER = f"{{ name: router, typed_config: {{ '@type': {PREFIX}router.v3.Router }} }}"


def filters(*items: str) -> str:
    """http_filters of a listener, the router last."""
    return f"http_filters: [{', '.join((*items, ROUTER))}]"


def mutation(fields: str, name: str = "header_mutation") -> str:
    """A header_mutation filter."""
    return f"{{ name: {name}, typed_config: {{ '@type': {PREFIX}header_mutation.v3.HeaderMutation, mutations: {{ {fields} }} }} }}"


def per_route(name: str, kind: str, fields: str) -> str:
    """typed_per_filter_config with one override."""
    return f"typed_per_filter_config: {{ {name}: {{ '@type': {PREFIX}{kind}, {fields} }} }}\n"


def override(fields: str) -> str:
    """A header_mutation override."""
    return per_route("header_mutation", "header_mutation.v3.HeaderMutationPerRoute", f"mutations: {{ {fields} }}")


def append(key: str, value: str, action: str = "APPEND_IF_EXISTS_OR_ADD") -> str:
    """An append mutation."""
    return f"{{ append: {{ header: {{ key: {key}, value: '{value}' }}, append_action: {action} }} }}"


BASE = mutation(
    f"request_mutations: [{append('x-req', 'filter')}, {{ remove: x-drop }}, {append('x-path', '%REQ(:path)%')}], "
    f"response_mutations: [{append('x-resp', 'filter')}, {{ remove: x-secret }}, {append('x-code', '%RESPONSE_CODE%')}]"
)
DISABLED = f"{{ disabled: true, {BASE[2:]}"

MUTATION = [
    Case(
        "mutation",
        get("/p", ("x-drop", "1")),
        (reply(200, b"", [("x-secret", "s")]),),
        route=ROUTE,
        listener="mutation",
    ),
    Case(
        "mutation_on_local_reply",
        get("/p"),
        route="match: { prefix: / }\nroute: { cluster: empty }",
        listener="mutation",
    ),
    Case(
        "mutation_on_direct_response",
        get("/p"),
        route="match: { prefix: / }\ndirect_response: { status: 200 }",
        listener="mutation",
    ),
    Case("mutation_on_404", get("/p", host="none.test"), listener="mutation"),
    Case(
        "mutation_does_not_change_the_route",
        get("/"),
        listener="mutation",
        route="""
- { match: { prefix: /, headers: [{ name: x-req, present_match: true }] }, direct_response: { status: 418 } }
- { match: { prefix: / }, route: { cluster: a } }
""",
    ),
    Case(
        "mutation_route",
        get("/"),
        route=ROUTE
        + override(
            f"request_mutations: [{append('x-req', 'route')}], response_mutations: [{append('x-resp', 'route')}]"
        ),
        listener="mutation",
    ),
    Case(
        "mutation_vhost",
        get("/"),
        vhost=override(f"request_mutations: [{append('x-req', 'vhost')}]"),
        listener="mutation",
    ),
    Case(
        "mutation_vhost_and_route",
        get("/"),
        vhost=override(f"request_mutations: [{append('x-req', 'vhost')}]"),
        route=ROUTE + override(f"request_mutations: [{append('x-req', 'route')}]"),
        listener="mutation",
    ),
    Case(
        "mutation_most_specific",
        get("/"),
        vhost=override(f"request_mutations: [{append('x-req', 'vhost', 'OVERWRITE_IF_EXISTS_OR_ADD')}]"),
        route=ROUTE + override(f"request_mutations: [{append('x-req', 'route', 'OVERWRITE_IF_EXISTS_OR_ADD')}]"),
        listener="mutation_specific",
    ),
    Case(
        "mutation_weighted",
        get("/"),
        route="match: { prefix: / }\nroute: { weighted_clusters: { clusters: [{ name: a, weight: 1, "
        + override(f"request_mutations: [{append('x-req', 'cluster')}]").strip()
        + " }] } }",
        listener="mutation",
    ),
    Case(
        "mutation_overwrite",
        get("/", ("x-req", "given")),
        route=ROUTE + override(f"request_mutations: [{append('x-req', 'route', 'OVERWRITE_IF_EXISTS')}]"),
        listener="mutation",
    ),
    Case(
        "mutation_absent",
        get("/", ("x-new", "given")),
        route=ROUTE + override(f"request_mutations: [{append('x-new', 'route', 'ADD_IF_ABSENT')}]"),
        listener="mutation",
    ),
    Case(
        "mutation_disabled_on_route",
        get("/"),
        listener="mutation",
        route=ROUTE
        + "typed_per_filter_config: { header_mutation: { '@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true } }",
    ),
    Case("mutation_disabled_by_default", get("/"), route=ROUTE, listener="disabled"),
    Case(
        "mutation_enabled_on_route",
        get("/"),
        listener="disabled",
        route=ROUTE
        + "typed_per_filter_config: { header_mutation: { '@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, config: {} } }",
    ),
    Case(
        "mutation_enabled_by_override",
        get("/"),
        route=ROUTE + override(f"request_mutations: [{append('x-req', 'route')}]"),
        listener="disabled",
    ),
    Case("mutation_two_filters_order", get("/"), route=ROUTE, listener="two"),
    Case(
        "mutation_unknown_filter_optional",
        get("/"),
        listener="mutation",
        route=ROUTE
        + "typed_per_filter_config: { nobody: { '@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, is_optional: true, config: {} } }",
    ),
]

ORIGIN = ("origin", "http://front.test")
PREFLIGHT = ("access-control-request-method", "PUT")
POLICY = (
    "allow_origin_string_match: [{ exact: 'http://front.test' }, { suffix: '.ok.test' }], allow_methods: 'GET, PUT', "
    "allow_headers: 'x-a, x-b', expose_headers: x-c, max_age: '600', allow_credentials: true"
)


def cors(fields: str = POLICY) -> str:
    """A cors policy as an override."""
    return per_route("cors", "cors.v3.CorsPolicy", fields)


def preflight(*headers: tuple[str, str], method: str = "OPTIONS") -> bytes:
    """An OPTIONS request."""
    return request(method, "/", headers)


CORS = [
    *(
        Case(f"cors_deprecated_{name}_{kind}", sent, route=route, vhost=vhost, listener="cors")
        for name, route, vhost in (
            ("route", ROUTE.replace("cluster: a", f"cluster: a, cors: {{ {POLICY} }}"), ""),
            ("host", ROUTE, f"cors: {{ {POLICY} }}"),
            ("both", ROUTE.replace("cluster: a", "cluster: a, cors: { max_age: '7' }"), f"cors: {{ {POLICY} }}"),
        )
        for kind, sent in (("simple", get("/", ORIGIN)), ("preflight", preflight(ORIGIN, PREFLIGHT)))
    ),
    Case("cors_no_policy", get("/", ORIGIN), route=ROUTE, listener="cors"),
    Case("cors_simple", get("/", ORIGIN), route=ROUTE + cors(), listener="cors"),
    Case("cors_simple_no_origin", get("/"), route=ROUTE + cors(), listener="cors"),
    Case("cors_simple_other_origin", get("/", ("origin", "http://evil.test")), route=ROUTE + cors(), listener="cors"),
    Case("cors_simple_suffix", get("/", ("origin", "http://x.ok.test")), route=ROUTE + cors(), listener="cors"),
    Case("cors_simple_empty_origin", get("/", ("origin", "")), route=ROUTE + cors(), listener="cors"),
    Case(
        "cors_simple_upstream_headers",
        get("/", ORIGIN),
        (reply(200, b"", [("access-control-allow-origin", "*"), ("access-control-allow-credentials", "false")]),),
        route=ROUTE + cors(),
        listener="cors",
    ),
    Case("cors_preflight", preflight(ORIGIN, PREFLIGHT), route=ROUTE + cors(), listener="cors"),
    Case(
        "cors_preflight_headers",
        preflight(ORIGIN, PREFLIGHT, ("access-control-request-headers", "x-a")),
        route=ROUTE + cors(),
        listener="cors",
    ),
    Case(
        "cors_preflight_other_origin",
        preflight(("origin", "http://evil.test"), PREFLIGHT),
        route=ROUTE + cors(),
        listener="cors",
    ),
    Case("cors_preflight_no_request_method", preflight(ORIGIN), route=ROUTE + cors(), listener="cors"),
    Case(
        "cors_preflight_empty_request_method",
        preflight(ORIGIN, ("access-control-request-method", "")),
        route=ROUTE + cors(),
        listener="cors",
    ),
    Case("cors_preflight_no_origin", preflight(PREFLIGHT), route=ROUTE + cors(), listener="cors"),
    Case("cors_preflight_get", preflight(ORIGIN, PREFLIGHT, method="GET"), route=ROUTE + cors(), listener="cors"),
    Case("cors_preflight_vhost", preflight(ORIGIN, PREFLIGHT), vhost=cors(), listener="cors"),
    Case(
        "cors_route_over_vhost",
        preflight(ORIGIN, PREFLIGHT),
        vhost=cors(),
        route=ROUTE + cors("allow_origin_string_match: [{ exact: 'http://other.test' }]"),
        listener="cors",
    ),
    Case(
        "cors_minimal",
        preflight(ORIGIN, PREFLIGHT),
        route=ROUTE
        + cors("allow_origin_string_match: [{ prefix: '' }]".replace("prefix: ''", "safe_regex: { regex: '.*' }")),
        listener="cors",
    ),
    Case(
        "cors_minimal_simple",
        get("/", ORIGIN),
        route=ROUTE + cors("allow_origin_string_match: [{ safe_regex: { regex: 'http://.*' } }]"),
        listener="cors",
    ),
    Case(
        "cors_star",
        get("/", ORIGIN),
        route=ROUTE
        + cors(
            "allow_origin_string_match: [{ exact: '*' }], allow_methods: '*', allow_headers: '*', expose_headers: '*'"
        ),
        listener="cors",
    ),
    Case(
        "cors_star_preflight",
        preflight(ORIGIN, PREFLIGHT, ("access-control-request-headers", "x-z")),
        route=ROUTE + cors("allow_origin_string_match: [{ exact: '*' }], allow_methods: '*', allow_headers: '*'"),
        listener="cors",
    ),
    Case(
        "cors_disabled",
        preflight(ORIGIN, PREFLIGHT),
        route=ROUTE + cors(POLICY + ", filter_enabled: { default_value: { numerator: 0 } }"),
        listener="cors",
    ),
    Case(
        "cors_shadow",
        get("/", ORIGIN),
        route=ROUTE
        + cors(
            POLICY
            + ", filter_enabled: { default_value: { numerator: 0 } }, shadow_enabled: { default_value: { numerator: 100 } }"
        ),
        listener="cors",
    ),
    Case(
        "cors_private_network",
        preflight(ORIGIN, PREFLIGHT, ("access-control-request-private-network", "true")),
        route=ROUTE + cors(POLICY + ", allow_private_network_access: true"),
        listener="cors",
    ),
    Case(
        "cors_forward_not_matching",
        preflight(("origin", "http://evil.test"), PREFLIGHT),
        route=ROUTE + cors(POLICY + ", forward_not_matching_preflights: false"),
        listener="cors",
    ),
    Case(
        "cors_on_direct_response",
        get("/", ORIGIN),
        route="match: { prefix: / }\ndirect_response: { status: 200 }\n" + cors(),
        listener="cors",
    ),
    Case(
        "cors_on_local_reply",
        get("/", ORIGIN),
        route="match: { prefix: / }\nroute: { cluster: empty }\n" + cors(),
        listener="cors",
    ),
    Case(
        "cors_on_redirect_preflight",
        preflight(ORIGIN, PREFLIGHT),
        route="match: { prefix: / }\nredirect: { path_redirect: /x }\n" + cors(),
        listener="cors",
    ),
]


def fault(fields: str) -> str:
    """A fault override on the route."""
    return ROUTE + per_route("fault", "fault.v3.HTTPFault", fields)


ABORT = "abort: { http_status: 418, percentage: { numerator: 100 } }"
DELAY = "delay: { fixed_delay: 0.03s, percentage: { numerator: 100 } }"
BY_HEADER = "abort: { header_abort: {}, percentage: { numerator: 100 } }"
DELAY_BY_HEADER = "delay: { header_delay: {}, percentage: { numerator: 100 } }"
FAULT = [
    Case("fault_none", get("/"), route=ROUTE, listener="fault"),
    Case("fault_abort", get("/"), route=fault(ABORT), listener="fault"),
    Case("fault_abort_head", request("HEAD", "/"), route=fault(ABORT), listener="fault"),
    Case("fault_abort_post", post("/", b"x" * 2000), route=fault(ABORT), listener="fault"),
    Case(
        "fault_abort_grpc",
        post("/", b"", ("content-type", "application/grpc")),
        route=fault("abort: { grpc_status: 8, percentage: { numerator: 100 } }"),
        listener="fault",
    ),
    Case(
        "fault_abort_http_to_grpc",
        post("/", b"", ("content-type", "application/grpc")),
        route=fault(ABORT),
        listener="fault",
    ),
    Case(
        "fault_abort_0",
        get("/"),
        route=fault("abort: { http_status: 418, percentage: { numerator: 0 } }"),
        listener="fault",
    ),
    Case("fault_delay", get("/"), route=fault(DELAY), listener="fault"),
    Case("fault_delay_post", post("/", b"x" * 2000), route=fault(DELAY), listener="fault"),
    Case("fault_delay_and_abort", get("/"), route=fault(f"{DELAY}, {ABORT}"), listener="fault"),
    Case(
        "fault_delay_0",
        get("/"),
        route=fault("delay: { fixed_delay: 0.03s, percentage: { numerator: 0 } }"),
        listener="fault",
    ),
    Case(
        "fault_header_abort", get("/", ("x-envoy-fault-abort-request", "429")), route=fault(BY_HEADER), listener="fault"
    ),
    Case("fault_header_abort_missing", get("/"), route=fault(BY_HEADER), listener="fault"),
    Case(
        "fault_header_abort_bad",
        get("/", ("x-envoy-fault-abort-request", "many")),
        route=fault(BY_HEADER),
        listener="fault",
    ),
    Case(
        "fault_header_abort_out_of_range",
        get("/", ("x-envoy-fault-abort-request", "99")),
        route=fault(BY_HEADER),
        listener="fault",
    ),
    Case(
        "fault_header_abort_percentage_0",
        get("/", ("x-envoy-fault-abort-request", "429"), ("x-envoy-fault-abort-request-percentage", "0")),
        route=fault(BY_HEADER),
        listener="fault",
    ),
    Case(
        "fault_header_abort_percentage_100",
        get("/", ("x-envoy-fault-abort-request", "429"), ("x-envoy-fault-abort-request-percentage", "100")),
        route=fault(BY_HEADER),
        listener="fault",
    ),
    Case(
        "fault_header_abort_percentage_limited",
        get("/", ("x-envoy-fault-abort-request", "429"), ("x-envoy-fault-abort-request-percentage", "100")),
        route=fault("abort: { header_abort: {}, percentage: { numerator: 0 } }"),
        listener="fault",
    ),
    Case(
        "fault_header_abort_grpc",
        get("/", ("x-envoy-fault-abort-grpc-request", "5")),
        route=fault(BY_HEADER),
        listener="fault",
    ),
    Case(
        "fault_header_abort_not_configured",
        get("/", ("x-envoy-fault-abort-request", "429")),
        route=fault(DELAY),
        listener="fault",
    ),
    Case(
        "fault_header_delay",
        get("/", ("x-envoy-fault-delay-request", "20")),
        route=fault(DELAY_BY_HEADER),
        listener="fault",
    ),
    Case(
        "fault_header_delay_bad",
        get("/", ("x-envoy-fault-delay-request", "soon")),
        route=fault(DELAY_BY_HEADER),
        listener="fault",
    ),
    Case(
        "fault_header_delay_percentage_0",
        get("/", ("x-envoy-fault-delay-request", "20"), ("x-envoy-fault-delay-request-percentage", "0")),
        route=fault(DELAY_BY_HEADER),
        listener="fault",
    ),
    Case("fault_for_cluster", get("/"), route=fault(f"{ABORT}, upstream_cluster: a"), listener="fault"),
    Case("fault_for_other_cluster", get("/"), route=fault(f"{ABORT}, upstream_cluster: b"), listener="fault"),
    Case(
        "fault_headers_match",
        get("/", ("x-fault", "1")),
        route=fault(f"{ABORT}, headers: [{{ name: x-fault, present_match: true }}]"),
        listener="fault",
    ),
    Case(
        "fault_headers_no_match",
        get("/"),
        route=fault(f"{ABORT}, headers: [{{ name: x-fault, present_match: true }}]"),
        listener="fault",
    ),
    Case(
        "fault_downstream_nodes",
        get("/", ("x-envoy-downstream-service-node", "n1")),
        route=fault(f"{ABORT}, downstream_nodes: [n1]"),
        listener="fault",
    ),
    Case(
        "fault_downstream_nodes_other",
        get("/", ("x-envoy-downstream-service-node", "n2")),
        route=fault(f"{ABORT}, downstream_nodes: [n1]"),
        listener="fault",
    ),
    Case("fault_max_active_0", get("/"), route=fault(f"{ABORT}, max_active_faults: 0"), listener="fault"),
    Case("fault_global", get("/"), route=ROUTE, listener="fault_global"),
    Case(
        "fault_global_off_on_route",
        get("/"),
        route=fault("abort: { http_status: 418, percentage: { numerator: 0 } }"),
        listener="fault_global",
    ),
    Case("fault_on_vhost", get("/"), vhost=per_route("fault", "fault.v3.HTTPFault", ABORT), listener="fault"),
    Case(
        "fault_on_weighted",
        get("/"),
        route="match: { prefix: / }\nroute: { weighted_clusters: { clusters: [{ name: a, weight: 1, "
        + per_route("fault", "fault.v3.HTTPFault", ABORT).strip()
        + " }] } }",
        listener="fault",
    ),
    Case(
        "fault_runtime_abort_status",
        get("/"),
        route=fault(f"{ABORT}, abort_http_status_runtime: test.abort_status"),
        listener="fault",
    ),
    Case("fault_no_route", get("/", host="none.test"), listener="fault_global"),
    Case(
        "fault_rate_limit",
        get("/"),
        (reply(200, b"x" * 500),),
        route=fault("response_rate_limit: { fixed_limit: { limit_kbps: 100 }, percentage: { numerator: 100 } }"),
        listener="fault",
    ),
]

STRICT = "strict_check_headers: [x-envoy-upstream-rq-timeout-ms, x-envoy-max-retries, x-envoy-retry-on]"
ROUTERS = [
    Case("router_suppress", get("/"), route=ROUTE, listener="router_suppress"),
    *not_yet(
        "strict_check_headers: is not supported yet",
        Case(
            "router_strict_good",
            get("/", ("x-envoy-upstream-rq-timeout-ms", "1000")),
            route=ROUTE,
            listener="router_strict",
        ),
        Case(
            "router_strict_bad_timeout",
            get("/", ("x-envoy-upstream-rq-timeout-ms", "soon")),
            route=ROUTE,
            listener="router_strict",
        ),
        Case(
            "router_strict_bad_retries",
            get("/", ("x-envoy-max-retries", "many")),
            route=ROUTE,
            listener="router_strict",
        ),
        Case(
            "router_strict_bad_retry_on",
            get("/", ("x-envoy-retry-on", "5xx,nonsense")),
            route=ROUTE,
            listener="router_strict",
        ),
    ),
    Case("router_upstream_log", get("/"), (OK,), route=ROUTE, listener="router_log"),
    Case(
        "router_upstream_log_failed",
        post("/"),
        (STALL,),
        route="match: { prefix: / }\nroute: { cluster: a, timeout: 0.05s }",
        listener="router_log",
    ),
    Case("router_start_child_span", get("/"), route=ROUTE, listener="router_child_span"),
    Case("router_dynamic_stats_off", get("/"), route=ROUTE, listener="router_dynamic_stats"),
]


def router(fields: str) -> str:
    """A listener whose router has options."""
    return f"http_filters: [{{ name: router, typed_config: {{ '@type': {PREFIX}router.v3.Router, {fields} }} }}]"


INTERNAL = "use_remote_address: true\ninternal_address_config: { cidr_ranges: [{ address_prefix: 127.0.0.0, prefix_len: 8 }] }\n"
UPSTREAM_LOG = (
    "upstream_log: [{ name: file, typed_config: { '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: '@LOG@', "
    'log_format: { text_format_source: { inline_string: "upstream %UPSTREAM_HOST% %RESPONSE_CODE% %RESPONSE_FLAGS% %REQ(:path)%\\n" } } } }]'
)
TOPIC = Topic(
    [*MUTATION, *CORS, *FAULT, *ROUTERS],
    listeners={
        "mutation": filters(BASE),
        "mutation_specific": filters(
            BASE.replace("mutations: {", "most_specific_header_mutations_wins: true, mutations: {", 1)
        ),
        "disabled": filters(DISABLED),
        "two": filters(
            mutation(
                f"request_mutations: [{append('x-req', 'one')}], response_mutations: [{append('x-resp', 'one')}]", "one"
            ),
            mutation(
                f"request_mutations: [{append('x-req', 'two')}], response_mutations: [{append('x-resp', 'two')}]", "two"
            ),
        ),
        "cors": filters(f"{{ name: cors, typed_config: {{ '@type': {PREFIX}cors.v3.Cors }} }}"),
        "fault": filters(f"{{ name: fault, typed_config: {{ '@type': {PREFIX}fault.v3.HTTPFault }} }}"),
        "fault_global": filters(
            f"{{ name: fault, typed_config: {{ '@type': {PREFIX}fault.v3.HTTPFault, {ABORT}, headers: "
            "[{ name: ':authority', invert_match: true, string_match: { exact: probe.test } }] } }"
        ),
        "router_suppress": router("suppress_envoy_headers: true"),
        "router_strict": INTERNAL + router(STRICT),
        "router_log": router(UPSTREAM_LOG),
        "router_child_span": router("start_child_span: true"),
        "router_dynamic_stats": router("dynamic_stats: false"),
    },
    bootstrap="layered_runtime: { layers: [{ name: static, static_layer: { test: { abort_status: 420 } } }] }",
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_header_order(pair: Pair) -> None:
    pair.check_order()
