"""Redirects, require_tls and direct responses."""

from tests.differential.cases import Case, get, post, request
from tests.differential.pair import Pair
from tests.differential.topic import Topic


def redirect(fields: str, match: str = "prefix: /") -> str:
    """A route that redirects."""
    return f"match: {{ {match} }}\nredirect: {{ {fields} }}"


def direct(fields: str) -> str:
    """A route that answers by itself."""
    return f"match: {{ prefix: / }}\ndirect_response: {{ {fields} }}"


CASES = [
    Case("host_redirect", get("/a?b=c"), route=redirect("host_redirect: new.test")),
    Case("host_redirect_with_port", get("/a"), route=redirect("host_redirect: 'new.test:8080'")),
    Case("path_redirect", get("/a?b=c"), route=redirect("path_redirect: /new")),
    Case("path_redirect_with_query", get("/a?b=c"), route=redirect("path_redirect: '/new?d=e'")),
    Case("path_redirect_strip_query", get("/a?b=c"), route=redirect("path_redirect: /new, strip_query: true")),
    Case("strip_query", get("/a?b=c"), route=redirect("host_redirect: new.test, strip_query: true")),
    Case("prefix_rewrite", get("/old/x?b=c"), route=redirect("prefix_rewrite: /new", "prefix: /old")),
    Case("prefix_rewrite_slash", get("/old/x"), route=redirect("prefix_rewrite: /", "prefix: /old/")),
    Case("prefix_rewrite_exact_path", get("/old?q"), route=redirect("prefix_rewrite: /new", "path: /old")),
    Case(
        "prefix_rewrite_case",
        get("/OLD/x"),
        route=redirect("prefix_rewrite: /n", "prefix: /old, case_sensitive: false"),
    ),
    Case(
        "regex_rewrite",
        get("/user/7/edit?b=c"),
        route=redirect("regex_rewrite: { pattern: { regex: '^/user/(\\d+)' }, substitution: '/u-\\1' }"),
    ),
    Case("https_redirect", get("/a"), route=redirect("https_redirect: true")),
    Case(
        "https_redirect_host_port",
        get("/a", host="https-redirect-host-port.test:8080"),
        route=redirect("https_redirect: true"),
        vhost="domains: ['https-redirect-host-port.test:8080']",
    ),
    Case(
        "https_redirect_port_80",
        get("/a", host="https-redirect-port-80.test:80"),
        route=redirect("https_redirect: true"),
        vhost="domains: ['https-redirect-port-80.test:80']",
    ),
    Case(
        "https_redirect_port_443",
        get("/a", host="https-redirect-port-443.test:443"),
        route=redirect("https_redirect: true"),
        vhost="domains: ['https-redirect-port-443.test:443']",
    ),
    Case("scheme_redirect_ftp", get("/a"), route=redirect("scheme_redirect: ftp")),
    Case("scheme_redirect_https_port", get("/a"), route=redirect("scheme_redirect: https, port_redirect: 8443")),
    Case(
        "scheme_redirect_http",
        get("/a", host="scheme-redirect-http.test:443"),
        route=redirect("scheme_redirect: http"),
        vhost="domains: ['scheme-redirect-http.test:443']",
    ),
    Case("port_redirect", get("/a"), route=redirect("port_redirect: 8080")),
    Case(
        "port_redirect_host_with_port",
        get("/a", host="port-redirect-host-with-port.test:99"),
        route=redirect("port_redirect: 81"),
        vhost="domains: ['port-redirect-host-with-port.test:99']",
    ),
    Case(
        "port_redirect_ipv6",
        get("/a", host="[::1]:99"),
        route=redirect("port_redirect: 81"),
        vhost="domains: ['[::1]:99']",
    ),
    *(
        Case(f"code_{code.lower()}", get("/a"), route=redirect(f"path_redirect: /b, response_code: {code}"))
        for code in ("MOVED_PERMANENTLY", "FOUND", "SEE_OTHER", "TEMPORARY_REDIRECT", "PERMANENT_REDIRECT")
    ),
    Case(
        "all_at_once",
        get("/old/x?b=c"),
        route=redirect(
            "scheme_redirect: https, host_redirect: n.test, port_redirect: 444, prefix_rewrite: /n, response_code: FOUND",
            "prefix: /old",
        ),
    ),
    Case("redirect_post_with_body", post("/a", b"x" * 100), route=redirect("path_redirect: /b")),
    Case("redirect_head", request("HEAD", "/a"), route=redirect("path_redirect: /b")),
    Case("redirect_absolute_form", get("http://$HOST/a?b=c"), route=redirect("path_redirect: /b")),
    Case(
        "redirect_x_forwarded_proto", get("/a", ("x-forwarded-proto", "https")), route=redirect("host_redirect: n.test")
    ),
    Case(
        "redirect_with_headers",
        get("/a"),
        route=redirect("path_redirect: /b")
        + "\nresponse_headers_to_add: [{ header: { key: x-a, value: '1' } }]\nrequest_headers_to_add: [{ header: { key: x-b, value: '1' } }]",
    ),
    Case("redirect_fragment_in_path_redirect", get("/a?q=1"), route=redirect("path_redirect: '/b#c'")),
    Case("require_tls_all", get("/a?b=c"), vhost="require_tls: ALL"),
    Case("require_tls_external", get("/a"), vhost="require_tls: EXTERNAL_ONLY"),
    Case(
        "require_tls_external_internal_request",
        get("/a", ("x-forwarded-for", "10.0.0.1")),
        vhost="require_tls: EXTERNAL_ONLY",
    ),
    Case("require_tls_forwarded_https", get("/a", ("x-forwarded-proto", "https")), vhost="require_tls: ALL"),
    Case(
        "require_tls_port",
        get("/a", host="require-tls-port.test:8080"),
        vhost="require_tls: ALL\ndomains: ['require-tls-port.test:8080']",
    ),
    Case("require_tls_post", post("/a"), vhost="require_tls: ALL"),
    Case("direct_200", get("/"), route=direct("status: 200, body: { inline_string: hello }")),
    Case("direct_no_body", get("/"), route=direct("status: 418")),
    Case("direct_204", get("/"), route=direct("status: 204")),
    Case("direct_head", request("HEAD", "/"), route=direct("status: 200, body: { inline_string: hello }")),
    Case("direct_404_body", get("/"), route=direct("status: 404, body: { inline_string: gone }")),
    Case("direct_503", get("/"), route=direct("status: 503, body: { inline_string: 'down\n' }")),
    Case(
        "direct_301_location",
        get("/"),
        route=direct("status: 301") + "\nresponse_headers_to_add: [{ header: { key: location, value: /x } }]",
    ),
    Case("direct_inline_bytes", get("/"), route=direct("status: 200, body: { inline_bytes: aGk= }")),
    Case(
        "direct_content_type",
        get("/"),
        route=direct("status: 200, body: { inline_string: '{}' }")
        + "\nresponse_headers_to_add: [{ header: { key: content-type, value: application/json }, append_action: OVERWRITE_IF_EXISTS_OR_ADD }]",
    ),
    Case("direct_post", post("/", b"y" * 5000), route=direct("status: 200, body: { inline_string: ok }")),
    Case(
        "direct_post_chunked_incomplete",
        request("POST", "/", [("transfer-encoding", "chunked")]) + b"5\r\nhello\r\n",
        route=direct("status: 200, body: { inline_string: ok }"),
        probe=False,
        log=False,
    ),
    Case("direct_body_too_long", get("/"), route=direct("status: 200, body: { inline_string: '" + "x" * 4000 + "' }")),
    Case(
        "direct_grpc",
        post("/s/m", b"", ("content-type", "application/grpc")),
        route=direct("status: 503, body: { inline_string: 'no way' }"),
    ),
    Case(
        "direct_format_in_header",
        get("/x?y"),
        route=direct("status: 200") + "\nresponse_headers_to_add: [{ header: { key: x-p, value: '%REQ(:path)%' } }]",
    ),
]

TOPIC = Topic(CASES)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_header_order(pair: Pair) -> None:
    pair.check_order()
