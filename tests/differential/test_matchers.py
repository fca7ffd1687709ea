"""Which virtual host, route and cluster a request gets."""

from tests.differential.cases import Case, get, not_yet, post, request
from tests.differential.pair import Pair
from tests.differential.topic import Topic

YES = "direct_response: { status: 200, body: { inline_string: 'yes' } }"


def match(name: str, fields: str, *requests: bytes) -> list[Case]:
    """One route that answers "yes" when it matches; 404 otherwise. A case for each request."""
    route = f"match: {{ {fields} }}\n{YES}"
    return [Case(f"{name}_{number}", req, route=route) for number, req in enumerate(requests, 1)]


def paths(name: str, fields: str, *targets: str) -> list[Case]:
    """The same for GETs of several targets."""
    return match(name, fields, *(get(target) for target in targets))


def headers(name: str, fields: str, *headers: tuple[str, str] | None) -> list[Case]:
    """A header matcher on x-a, tried with header lists: None sends no header."""
    requests = (get("/", *([header] if header else [])) for header in headers)
    return match(f"header_{name}", f"prefix: /, headers: [{{ name: x-a, {fields} }}]", *requests)


def queries(name: str, fields: str, *targets: str) -> list[Case]:
    """A query parameter matcher on q."""
    return match(f"query_{name}", f"prefix: /, query_parameters: [{{ name: q, {fields} }}]", *(get(t) for t in targets))


A, B, ABC, EMPTY, NONE = ("x-a", "a"), ("x-a", "b"), ("x-a", "abc"), ("x-a", ""), None
TEMPLATE = (
    "path_match_policy: { name: t, typed_config: { '@type': "
    "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: '%s' } }"
)

PATHS = [
    *paths("prefix", "prefix: /a", "/a", "/a/", "/ab", "/A", "/b", "/a?x", "/%61"),
    *paths("prefix_slash", "prefix: /a/", "/a", "/a/", "/a/b", "/a?x=/"),
    *paths("prefix_case", "prefix: /aB, case_sensitive: false", "/ab/c", "/AB", "/a", "/Abc"),
    *paths("path", "path: /a", "/a", "/a/", "/A", "/a?x=1", "/a?", "/ab", "/a;b"),
    *paths("path_case", "path: /aB, case_sensitive: false", "/ab", "/AB?x", "/abc"),
    *paths(
        "separated",
        "path_separated_prefix: /a/b",
        "/a/b",
        "/a/b/",
        "/a/b/c",
        "/a/bc",
        "/a/b?x",
        "/a/b?/c",
        "/A/b",
        "/a",
    ),
    *paths("separated_case", "path_separated_prefix: /a/b, case_sensitive: false", "/A/B/c", "/A/Bc"),
    *paths("regex", "safe_regex: { regex: '/a[0-9]+' }", "/a1", "/a12", "/a", "/a1/b", "/xa1", "/a1?q=1", "/a1b"),
    *paths("regex_alternation", "safe_regex: { regex: '/a|/bc' }", "/a", "/bc", "/b", "/ac", "/a/bc"),
    *paths("regex_case", "safe_regex: { regex: '(?i)/abc' }", "/ABC", "/abcd"),
    *paths("regex_dot", "safe_regex: { regex: '/.*\\.html' }", "/x/y.html", "/x.htm", "/x.html?y"),
    *paths("template_one", TEMPLATE % "/a/{x}/c", "/a/b/c", "/a/c", "/a/b/d/c", "/a//c", "/a/b/c?q"),
    *paths("template_star", TEMPLATE % "/a/*/c", "/a/b/c", "/a//c", "/a/b/b/c"),
    *paths("template_double_star", TEMPLATE % "/a/**", "/a/b/c", "/a", "/a/", "/b"),
    *paths("template_suffix", TEMPLATE % "/a/{x=*}.m3u8", "/a/b.m3u8", "/a/b.ts"),
    *paths("template_deep", TEMPLATE % "/{x=a/*/c}/{y=**}", "/a/b/c/d/e", "/a/b/d/e"),
    *paths("empty_prefix", "prefix: ''", "/", "/x"),
    *match("method", "prefix: /, headers: [{ name: ':method', string_match: { exact: POST } }]", post("/"), get("/")),
    *match("authority", "prefix: /, headers: [{ name: ':authority', string_match: { suffix: .test } }]", get("/")),
    *match(
        "path_header",
        "prefix: /, headers: [{ name: ':path', string_match: { contains: '?x=1' } }]",
        get("/?x=1"),
        get("/"),
    ),
    *match(
        "scheme",
        "prefix: /, headers: [{ name: ':scheme', string_match: { exact: http } }]",
        get("/"),
        get("/", ("x-forwarded-proto", "https")),
    ),
    *match("host_header_name", "prefix: /, headers: [{ name: host, present_match: true }]", get("/")),
    *match("connect", "connect_matcher: {}", request("CONNECT", "match.test:80"), get("/")),
    *match(
        "grpc",
        "prefix: /, grpc: {}",
        post("/", b"", ("content-type", "application/grpc")),
        post("/", b"", ("content-type", "application/grpc+proto")),
        post("/", b"", ("content-type", "application/grpcx")),
        get("/"),
    ),
    *match("tls_context", "prefix: /, tls_context: { presented: true }", get("/")),
    *match("tls_context_not", "prefix: /, tls_context: { presented: false }", get("/")),
    *(
        Case(
            f"first_route_wins_{i}",
            get(path),
            route="""
- { match: { prefix: /a/b }, direct_response: { status: 200, body: { inline_string: one } } }
- { match: { prefix: /a }, direct_response: { status: 200, body: { inline_string: two } } }
- { match: { path: /a/b/c }, direct_response: { status: 200, body: { inline_string: three } } }
- { match: { prefix: / }, direct_response: { status: 200, body: { inline_string: four } } }
""",
        )
        for i, path in enumerate(("/a/b/c", "/a/c", "/c", "/a/b"))
    ),
]

HEADERS = [
    *headers("exact", "string_match: { exact: abc }", ABC, A, NONE, ("X-A", "abc"), ("x-a", "ABC")),
    *headers("exact_ignore_case", "string_match: { exact: aBc, ignore_case: true }", ABC, ("x-a", "ABC"), A),
    *headers("exact_old", "exact_match: abc", ABC, A, NONE),
    *headers("prefix", "string_match: { prefix: ab }", ABC, A, ("x-a", "AB"), NONE),
    *headers("prefix_ignore_case", "string_match: { prefix: ab, ignore_case: true }", ("x-a", "ABC"), A),
    *headers("suffix", "string_match: { suffix: bc }", ABC, A),
    *headers("suffix_ignore_case", "string_match: { suffix: bc, ignore_case: true }", ("x-a", "ABC"), A),
    *headers("contains", "string_match: { contains: b }", ABC, A, B),
    *headers("contains_ignore_case", "string_match: { contains: b, ignore_case: true }", ("x-a", "ABC"), A),
    *headers("regex", "string_match: { safe_regex: { regex: 'a.c' } }", ABC, ("x-a", "abcd"), A, ("x-a", "a\xe4c")),
    *headers("regex_old", "safe_regex_match: { regex: '[a-c]+' }", ABC, ("x-a", "x")),
    *headers("regex_empty", "string_match: { safe_regex: { regex: '.*' } }", EMPTY, NONE, A),
    *headers("prefix_old", "prefix_match: ab", ABC, B),
    *headers("suffix_old", "suffix_match: bc", ABC, B),
    *headers("contains_old", "contains_match: b", ABC, A),
    *headers("present", "present_match: true", A, NONE, EMPTY),
    *headers("absent", "present_match: false", A, NONE, EMPTY),
    *headers("nothing_given", "invert_match: false", A, NONE),
    *headers(
        "range",
        "range_match: { start: 3, end: 10 }",
        ("x-a", "3"),
        ("x-a", "9"),
        ("x-a", "10"),
        ("x-a", "2"),
        ("x-a", "x"),
        ("x-a", "5.5"),
        ("x-a", "+5"),
        ("x-a", "05"),
        EMPTY,
        NONE,
    ),
    *headers(
        "range_negative",
        "range_match: { start: -10, end: 0 }",
        ("x-a", "-1"),
        ("x-a", "-10"),
        ("x-a", "0"),
        ("x-a", "-11"),
    ),
    *headers("invert_exact", "invert_match: true, string_match: { exact: abc }", ABC, A, NONE, EMPTY),
    *headers("invert_present", "invert_match: true, present_match: true", A, NONE),
    *headers("invert_absent", "invert_match: true, present_match: false", A, NONE),
    *headers(
        "invert_range",
        "invert_match: true, range_match: { start: 3, end: 10 }",
        ("x-a", "5"),
        ("x-a", "50"),
        ("x-a", "x"),
        NONE,
    ),
    *headers("invert_regex", "invert_match: true, string_match: { safe_regex: { regex: 'a.*' } }", ABC, B, NONE),
    *headers("missing_empty_exact", "treat_missing_header_as_empty: true, string_match: { exact: '' }", A, NONE, EMPTY),
    *headers(
        "missing_empty_regex",
        "treat_missing_header_as_empty: true, string_match: { safe_regex: { regex: 'a?' } }",
        A,
        NONE,
        B,
    ),
    *headers(
        "missing_empty_invert",
        "treat_missing_header_as_empty: true, invert_match: true, string_match: { exact: abc }",
        ABC,
        NONE,
        A,
    ),
    *headers(
        "missing_empty_range",
        "treat_missing_header_as_empty: true, range_match: { start: 0, end: 1 }",
        NONE,
        ("x-a", "0"),
    ),
    *headers("missing_empty_present", "treat_missing_header_as_empty: true, present_match: true", NONE, A),
    *match(
        "header_repeated_exact",
        "prefix: /, headers: [{ name: x-a, string_match: { exact: 'a,b' } }]",
        get("/", A, B),
        get("/", B, A),
        get("/", A),
    ),
    *match(
        "header_repeated_regex",
        "prefix: /, headers: [{ name: x-a, string_match: { safe_regex: { regex: 'a, ?b' } } }]",
        get("/", A, B),
    ),
    *match(
        "header_repeated_each",
        "prefix: /, headers: [{ name: x-a, string_match: { exact: a } }]",
        get("/", A, B),
        get("/", B, A),
    ),
    *match(
        "header_repeated_contains",
        "prefix: /, headers: [{ name: x-a, string_match: { contains: 'a,b' } }]",
        get("/", A, B),
    ),
    *match(
        "header_repeated_invert",
        "prefix: /, headers: [{ name: x-a, invert_match: true, string_match: { exact: a } }]",
        get("/", A, B),
        get("/", B, B),
    ),
    *match(
        "header_two",
        "prefix: /, headers: [{ name: x-a, string_match: { exact: a } }, { name: x-b, present_match: true }]",
        get("/", A, ("x-b", "")),
        get("/", A),
        get("/", ("x-b", "1")),
    ),
    *match("header_name_case", "prefix: /, headers: [{ name: X-A, string_match: { exact: a } }]", get("/", A)),
    *not_yet(
        "match.cookies: unknown field of envoy.config.route.v3.RouteMatch",
        *match(
            "cookie",
            "prefix: /, cookies: [{ name: k, string_match: { exact: v } }]",
            get("/", ("cookie", "a=b; k=v")),
            get("/", ("cookie", "k=w")),
            get("/"),
        ),
    ),
    *match(
        "user_agent",
        "prefix: /, headers: [{ name: user-agent, string_match: { safe_regex: { regex: '.*(iPhone|iPad).*' } } }]",
        get("/", ("user-agent", "Mozilla/5.0 (iPhone; CPU)")),
        get("/", ("user-agent", "Mozilla/5.0 (X11)")),
    ),
]

QUERIES = [
    *queries(
        "exact",
        "string_match: { exact: a }",
        "/?q=a",
        "/?q=b",
        "/?q=A",
        "/?x=1&q=a",
        "/?q",
        "/",
        "/?q=a&q=b",
        "/?q=b&q=a",
        "/?Q=a",
    ),
    *queries("exact_encoded", "string_match: { exact: 'a b' }", "/?q=a%20b", "/?q=a+b"),
    *queries("exact_ignore_case", "string_match: { exact: a, ignore_case: true }", "/?q=A", "/?q=b"),
    *queries("prefix", "string_match: { prefix: a }", "/?q=ab", "/?q=ba"),
    *queries("regex", "string_match: { safe_regex: { regex: '[0-9]+' } }", "/?q=12", "/?q=1a", "/?q="),
    *queries("present", "present_match: true", "/?q=1", "/?q", "/?q=", "/?x=q", "/", "/?a&q&b", "/?;q=1"),
    *queries("absent", "present_match: false", "/?q=1", "/", "/?x"),
    *queries("empty", "string_match: { exact: '' }", "/?q=", "/?q", "/"),
    *match(
        "query_two",
        "prefix: /, query_parameters: [{ name: a, string_match: { exact: '1' } }, { name: b, present_match: true }]",
        get("/?a=1&b"),
        get("/?b&a=1"),
        get("/?a=1"),
        get("/?a=1;b"),
    ),
    *match(
        "query_fragmentish",
        "prefix: /, query_parameters: [{ name: a, string_match: { exact: '1?b=2' } }]",
        get("/?a=1?b=2"),
    ),
]

RUNTIME = [
    *match("runtime_default_0", "prefix: /, runtime_fraction: { default_value: { numerator: 0 } }", get("/")),
    *match("runtime_default_100", "prefix: /, runtime_fraction: { default_value: { numerator: 100 } }", get("/")),
    *match(
        "runtime_key_0",
        "prefix: /, runtime_fraction: { runtime_key: test.off, default_value: { numerator: 100 } }",
        get("/"),
    ),
    *match(
        "runtime_key_100",
        "prefix: /, runtime_fraction: { runtime_key: test.on, default_value: { numerator: 0 } }",
        get("/"),
    ),
    *match(
        "runtime_key_unknown",
        "prefix: /, runtime_fraction: { runtime_key: test.none, default_value: { numerator: 100 } }",
        get("/"),
    ),
    *match(
        "runtime_million",
        "prefix: /, runtime_fraction: { default_value: { numerator: 1000000, denominator: MILLION } }",
        get("/"),
    ),
]


def domain(host: str, listener: str = "domains") -> Case:
    """Which virtual host serves a Host header."""
    name = (
        "domain_" + "".join(c if c.isalnum() else "_" for c in host) + ("" if listener == "domains" else f"_{listener}")
    )
    return Case(name, get("/", host=host), listener=listener)


DOMAINS = [
    domain(host)
    for host in (
        "exact.test",
        "EXACT.test",
        "exact.test:80",
        "port.test:8080",
        "port.test",
        "a.suffix.test",
        "a.b.suffix.test",
        "suffix.test",
        ".suffix.test",
        "long.suffix.test",
        "x.long.suffix.test",
        "x-dash.test",
        "-dash.test",
        "dash.test",
        "prefix.x",
        "prefix.x.y",
        "prefix.",
        "prefixy",
        "pre-x",
        "pre-",
        "pre-long.x",
        "both.suffix.test",
        "other",
        "other:99",
        "127.0.0.1",
        "[::1]",
        "[::1]:80",
        "exact.test.",
        "wild.a.suffix.test",
    )
] + [
    domain("exact.test", "no_default"),
    domain("x", "no_default"),
    domain("EXACT.test:80", "ignore_port"),
    domain("other:81", "ignore_port"),
]

DOMAIN_HOSTS = "\n".join(
    f"- {{ name: '{name}', domains: [{domains}], "
    f"routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: 200, body: {{ inline_string: '{name}' }} }} }}] }}"
    for name, domains in (
        ("exact", "exact.test"),
        ("port", "'port.test:8080'"),
        ("suffix", "'*.suffix.test'"),
        ("long", "'*.long.suffix.test'"),
        ("dash", "'*-dash.test'"),
        ("prefix", "'prefix.*'"),
        ("pre", "'pre-*'"),
        ("prelong", "'pre-long.*'"),
        ("both", "both.suffix.test"),
        ("ipv6", "'[::1]'"),
        ("wild", "'wild.*'"),
    )
)

CLUSTERS = [
    Case("cluster_name", get("/"), route="match: { prefix: / }\nroute: { cluster: b }"),
    Case("cluster_missing", get("/"), route="match: { prefix: / }\nroute: { cluster_header: x-c }"),
    Case("cluster_header", get("/", ("x-c", "b")), route="match: { prefix: / }\nroute: { cluster_header: x-c }"),
    Case(
        "cluster_header_unknown",
        get("/", ("x-c", "none")),
        route="match: { prefix: / }\nroute: { cluster_header: x-c }",
    ),
    Case(
        "cluster_header_unknown_404",
        get("/", ("x-c", "none")),
        route="match: { prefix: / }\nroute: { cluster_header: x-c, cluster_not_found_response_code: NOT_FOUND }",
    ),
    Case("cluster_header_empty", get("/", ("x-c", "")), route="match: { prefix: / }\nroute: { cluster_header: x-c }"),
    Case(
        "cluster_header_twice",
        get("/", ("x-c", "b"), ("x-c", "c")),
        route="match: { prefix: / }\nroute: { cluster_header: x-c }",
    ),
    Case("cluster_header_authority", get("/", host="b"), listener="by_authority"),
    Case(
        "weighted_all",
        get("/"),
        route="""
match: { prefix: / }
route: { weighted_clusters: { clusters: [{ name: a, weight: 0 }, { name: b, weight: 100 }, { name: c, weight: 0 }] } }""",
    ),
    Case(
        "weighted_one",
        get("/"),
        route="match: { prefix: / }\nroute: { weighted_clusters: { clusters: [{ name: c, weight: 1 }] } }",
    ),
    Case(
        "weighted_headers",
        get("/"),
        route="""
match: { prefix: / }
route:
  weighted_clusters:
    clusters:
    - { name: a, weight: 0 }
    - name: b
      weight: 7
      request_headers_to_add: [{ header: { key: x-version, value: two } }]
      request_headers_to_remove: [x-drop]
      response_headers_to_add: [{ header: { key: x-served-by, value: b } }]
      response_headers_to_remove: [x-secret]
""",
    ),
    Case(
        "weighted_host_rewrite",
        get("/"),
        route="""
match: { prefix: / }
route: { weighted_clusters: { clusters: [{ name: b, weight: 1, host_rewrite_literal: rewritten.test }] } }""",
    ),
    Case(
        "weighted_cluster_header",
        get("/", ("x-c", "c")),
        route="""
match: { prefix: / }
route: { weighted_clusters: { clusters: [{ cluster_header: x-c, weight: 1 }] } }""",
    ),
    Case(
        "weighted_random_header",
        get("/", ("x-r", "70")),
        route="""
match: { prefix: / }
route: { weighted_clusters: { header_name: x-r, clusters: [{ name: a, weight: 50 }, { name: b, weight: 50 }] } }""",
    ),
    Case(
        "weighted_random_header_low",
        get("/", ("x-r", "49")),
        route="""
match: { prefix: / }
route: { weighted_clusters: { header_name: x-r, clusters: [{ name: a, weight: 50 }, { name: b, weight: 50 }] } }""",
    ),
    Case(
        "weighted_random_header_wraps",
        get("/", ("x-r", "1170")),
        route="""
match: { prefix: / }
route: { weighted_clusters: { header_name: x-r, clusters: [{ name: a, weight: 50 }, { name: b, weight: 50 }] } }""",
    ),
    Case(
        "weighted_runtime",
        get("/"),
        route="""
match: { prefix: / }
route: { weighted_clusters: { runtime_key_prefix: test.weights, clusters: [{ name: a, weight: 100 }, { name: b, weight: 0 }] } }""",
    ),
    Case("route_name_in_log", get("/"), route="name: the-route\nmatch: { prefix: / }\nroute: { cluster: a }"),
    Case(
        "metadata_and_decorator",
        get("/"),
        route="""
match: { prefix: / }
route: { cluster: a }
decorator: { operation: op }
metadata: { filter_metadata: { x: { y: z } } }""",
    ),
    *not_yet(
        "non_forwarding_action: is for gRPC servers without a proxy",
        Case("non_forwarding_action", get("/"), route="match: { prefix: / }\nnon_forwarding_action: {}"),
    ),
]

TOPIC = Topic(
    [*PATHS, *HEADERS, *QUERIES, *RUNTIME, *DOMAINS, *CLUSTERS],
    listeners={
        "main": "",
        "domains": "route_config:\n  virtual_hosts:\n"
        + "\n".join("  " + line for line in DOMAIN_HOSTS.splitlines())
        + "\n  - { name: default, domains: ['*'], routes: [{ match: { prefix: / }, direct_response: { status: 200, body: { inline_string: default } } }] }",
        "no_default": "route_config:\n  virtual_hosts:\n"
        + "\n".join("  " + line for line in DOMAIN_HOSTS.splitlines()),
        "ignore_port": "route_config:\n  ignore_port_in_host_matching: true\n  virtual_hosts:\n"
        + "\n".join("  " + line for line in DOMAIN_HOSTS.splitlines() if "port.test" not in line),
        "by_authority": "route_config:\n  virtual_hosts:\n"
        "  - { name: default, domains: ['b'], routes: [{ match: { prefix: / }, route: { cluster_header: ':authority' } }] }",
    },
    bootstrap="""
layered_runtime:
  layers:
  - name: static
    static_layer: { test: { 'on': 100, 'off': 0, weights: { a: 0, b: 100 } } }
""",
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_header_order(pair: Pair) -> None:
    pair.check_order()
