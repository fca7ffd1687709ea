"""Path normalisation, rewrites of path and host, and what is stripped from the host."""

from tests.differential.cases import Case, get, request
from tests.differential.pair import Pair
from tests.differential.topic import Topic

ROUTE = "match: { prefix: / }\nroute: { cluster: a }\n"
TEMPLATE_MATCH = (
    "path_match_policy: { name: t, typed_config: { '@type': "
    "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: '%s' } }"
)
TEMPLATE_REWRITE = (
    "path_rewrite_policy: { name: t, typed_config: { '@type': "
    "type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig, path_template_rewrite: '%s' } }"
)

TARGETS = (
    "/a/b",
    "/a/./b",
    "/a/../b",
    "/../a",
    "/a/..",
    "/a/.",
    "/a/b/../../c",
    "/a//b",
    "//a",
    "/a///b/",
    "/a/%2e%2e/b",
    "/a/%2E/b",
    "/%61",
    "/a%2Fb",
    "/a%2fb",
    "/a%5Cb",
    "/a%5cb",
    "/a\\b",
    "/a/%2e%2E%2fb",
    "/a?b=../c",
    "/a?b=%2F",
    "/a%zz",
    "/a%",
    "/a%00b",
    "/a%20b",
    "/a%7Eb",
    "/a;b/../c",
    "/a/..%2fb",
    "/a/b/..",
    "/a/...",
    "/a/..b",
    "/%E4",
    "/a/%2f/../b",
    "/a\\..\\b",
    "/a|b",
    "/a//../b",
    "/.",
    "/..",
    "/a/%252e%252e/b",
    "/.;/a",
    "/x/..;/a",
    "/x/..;a=b;c/.;/a/..;?b/..;/c",
    "/x/%2e%2e;/a",
    "/x/..;\\b",
    "/x/..;%2fb",
    "/a;b/...;c/.d;e",
)
LISTENERS = {
    "plain": "",
    "normalize": "normalize_path: true",
    "merge": "merge_slashes: true",
    "normalize_merge": "normalize_path: true\nmerge_slashes: true",
    "escaped_keep": "path_with_escaped_slashes_action: KEEP_UNCHANGED",
    "escaped_reject": "path_with_escaped_slashes_action: REJECT_REQUEST",
    "escaped_redirect": "path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT",
    "escaped_forward": "path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD",
    "everything": "normalize_path: true\nmerge_slashes: true\npath_with_escaped_slashes_action: UNESCAPE_AND_FORWARD",
}
NORMALISED = [
    Case(f"{listener}_{number:02}", get(target, host="all.test"), listener=listener)
    for listener in LISTENERS
    for number, target in enumerate(TARGETS)
]


def rewrite(name: str, match: str, action: str, *targets: str) -> list[Case]:
    """A rewriting route and the targets that it gets."""
    return [
        Case(f"{name}_{number}", get(target), route=f"match: {{ {match} }}\nroute: {{ cluster: a, {action} }}")
        for number, target in enumerate(targets)
    ]


REWRITES = [
    *rewrite("prefix", "prefix: /old", "prefix_rewrite: /new", "/old", "/old/x", "/oldx", "/old?q=1", "/old/x?q=/old"),
    *rewrite("prefix_slash", "prefix: /old/", "prefix_rewrite: /", "/old/", "/old/x", "/old//x"),
    *rewrite("prefix_to_slash", "prefix: /old", "prefix_rewrite: /", "/old/x", "/old", "/old?q"),
    *rewrite("prefix_case", "prefix: /old, case_sensitive: false", "prefix_rewrite: /new", "/OLD/x"),
    *rewrite("prefix_longer", "prefix: /", "prefix_rewrite: /deep/er/", "/", "/x"),
    *rewrite("path", "path: /old", "prefix_rewrite: /new", "/old", "/old?q=1"),
    *rewrite("path_case", "path: /old, case_sensitive: false", "prefix_rewrite: /new", "/OLD?q"),
    *rewrite("separated", "path_separated_prefix: /old", "prefix_rewrite: /new", "/old", "/old/x", "/old?q"),
    *rewrite("regex_match_prefix", "safe_regex: { regex: '/o.*' }", "prefix_rewrite: /new", "/old/x", "/old?q"),
    *rewrite(
        "regex",
        "prefix: /",
        "regex_rewrite: { pattern: { regex: '/user/(\\d+)/(\\w+)' }, substitution: '/\\2/\\1' }",
        "/user/7/edit?q",
        "/other",
        "/user/7/a/user/8/b",
        "/x/user/1/y?z=/user/2/w",
    ),
    *rewrite(
        "regex_whole",
        "prefix: /",
        "regex_rewrite: { pattern: { regex: '^/(.*)$' }, substitution: '/v1/\\1' }",
        "/",
        "/a/b?c",
    ),
    *rewrite(
        "regex_zero", "prefix: /", "regex_rewrite: { pattern: { regex: 'b+' }, substitution: '<\\0>' }", "/abba/b"
    ),
    *rewrite("regex_empty", "prefix: /", "regex_rewrite: { pattern: { regex: '/drop' } }", "/drop/x", "/drop"),
    *rewrite(
        "regex_case", "prefix: /", "regex_rewrite: { pattern: { regex: '(?i)/XX/' }, substitution: '/yy/' }", "/xx/1"
    ),
    *rewrite(
        "template",
        TEMPLATE_MATCH % "/{lang}/{rest=**}",
        TEMPLATE_REWRITE % "/{rest}/{lang}",
        "/en/a/b",
        "/en/a?q=1",
        "/en/",
    ),
    *rewrite("template_static", TEMPLATE_MATCH % "/a/{x}", TEMPLATE_REWRITE % "/static", "/a/b", "/a/b?q"),
    *rewrite("template_suffix", TEMPLATE_MATCH % "/v/{name=*}.mp4", TEMPLATE_REWRITE % "/mp4/{name}", "/v/x.mp4"),
    *rewrite("host_literal", "prefix: /", "host_rewrite_literal: new.test", "/"),
    *rewrite("host_literal_xfh", "prefix: /", "host_rewrite_literal: new.test, append_x_forwarded_host: true", "/"),
    *rewrite("host_literal_port", "prefix: /", "host_rewrite_literal: 'new.test:8080'", "/"),
    *rewrite(
        "host_path_regex",
        "prefix: /",
        "host_rewrite_path_regex: { pattern: { regex: '^/(.+)/.+$' }, substitution: '\\1' }",
        "/tenant/x",
        "/tenant/x?q=/y",
        "/",
    ),
    *rewrite("host_auto", "prefix: /", "auto_host_rewrite: true", "/"),
    *rewrite("both", "prefix: /old", "prefix_rewrite: /new, host_rewrite_literal: new.test", "/old/x"),
    Case(
        "host_header",
        get("/", ("x-host", "from-header.test")),
        route="match: { prefix: / }\nroute: { cluster: a, host_rewrite_header: x-host }",
    ),
    Case(
        "host_header_missing",
        get("/"),
        route="match: { prefix: / }\nroute: { cluster: a, host_rewrite_header: x-host }",
    ),
    Case(
        "host_header_empty",
        get("/", ("x-host", "")),
        route="match: { prefix: / }\nroute: { cluster: a, host_rewrite_header: x-host }",
    ),
    Case(
        "host_literal_existing_xfh",
        get("/", ("x-forwarded-host", "first.test")),
        route="match: { prefix: / }\nroute: { cluster: a, host_rewrite_literal: new.test, append_x_forwarded_host: true }",
    ),
    Case(
        "original_path_kept",
        get("/old/x", ("x-envoy-original-path", "/given")),
        route="match: { prefix: /old }\nroute: { cluster: a, prefix_rewrite: /new }",
    ),
    Case(
        "logical_host_auto", get("/"), route="match: { prefix: / }\nroute: { cluster: named, auto_host_rewrite: true }"
    ),
    Case(
        "logical_host_auto_xfh",
        get("/"),
        route="match: { prefix: / }\nroute: { cluster: named, auto_host_rewrite: true, append_x_forwarded_host: true }",
    ),
]

HOST_LISTENERS = {
    "strip_matching": "strip_matching_host_port: true",
    "strip_any": "strip_any_host_port: true",
    "strip_dot": "strip_trailing_host_dot: true",
    "strip_dot_any": "strip_trailing_host_dot: true\nstrip_any_host_port: true",
}
HOSTS = [
    Case(f"{listener}_{number}", get("/", host=host), listener=listener)
    for listener in HOST_LISTENERS
    for number, host in enumerate(
        (
            "all.test",
            "all.test:80",
            "all.test:8080",
            "all.test.",
            "all.test.:80",
            "[::1]:80",
            "[::1]",
            "ALL.test:99",
            "all.test:",
        )
    )
]
CONNECTS = [
    Case(
        f"{listener}_connect",
        request("CONNECT", "$HOST:443"),
        route="match: { connect_matcher: {} }\ndirect_response: { status: 204 }",
        listener=listener,
        probe=False,
    )
    for listener in HOST_LISTENERS
]

ANY_HOST = (
    (
        "[{ name: all, domains: [all.test, 'all.test:*', 'all.test.', 'all.test.:*', '[::1]', '[::1]:*'], routes: [{ match: { prefix: / }, route: { cluster: a } }] }]"
    )
    .replace("'all.test:*'", "'all.test:80', 'all.test:8080', 'all.test:99', 'all.test:'")
    .replace("'all.test.:*'", "'all.test.:80'")
    .replace("'[::1]:*'", "'[::1]:80'")
)

TOPIC = Topic(
    [*NORMALISED, *REWRITES, *HOSTS, *CONNECTS],
    listeners={"main": ""} | LISTENERS | HOST_LISTENERS,
    clusters={
        "named": "type: STRICT_DNS\ndns_lookup_family: V4_ONLY\nload_assignment: { cluster_name: named, endpoints: [{ lb_endpoints: "
        "[{ endpoint: { address: { socket_address: { address: localhost, port_value: @a@ } } } }] }] }"
    },
    vhosts=ANY_HOST,
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_header_order(pair: Pair) -> None:
    pair.check_order()
