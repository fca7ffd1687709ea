"""Cases for test_envoy: what the issue and Envoy's documentation name, and the corners where memory misleads."""

from __future__ import annotations

import json
import random
from typing import Any

from tests.route import generate
from tests.route.envoy_oracle import Case, Request

HIT = "direct_response: {status: 200, body: {inline_string: hit}}"
ELSE = "\n- match: {safe_regex: {regex: '.*'}}\n  direct_response: {status: 404, body: {inline_string: else}}"
TEMPLATE = "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
REWRITE = "type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig"


GRPC_TYPES = ["application/grpc", "application/grpc+proto", "application/grpc-web", "Application/gRPC", "x"]


def matching(name: str, match: dict[str, Any], requests: list[Request], **fields: Any) -> Case:
    """One route that may match, and one that takes the rest."""
    return Case(name, f"- match: {json.dumps(match)}\n  {HIT}{ELSE}", requests, **fields)


def paths(name: str, match: dict[str, Any], *wanted: str, **fields: Any) -> Case:
    """Requests that differ in their path."""
    return matching(name, match, [Request(path) for path in wanted], **fields)


def header(name: str, matcher: dict[str, Any], *values: list[str]) -> Case:
    """A condition on x-h, asked with each list of values of it, and without it."""
    match = {"prefix": "/", "headers": [{"name": "x-h"} | matcher]}
    requests = [Request(fields=tuple(("x-h", value) for value in each)) for each in ([], *values)]
    return matching(name, match, requests)


def query(name: str, matcher: dict[str, Any], *queries: str) -> Case:
    """A condition on the parameter q."""
    match = {"prefix": "/", "query_parameters": [{"name": "q"} | matcher]}
    return paths(name, match, *(f"/p{text}" for text in queries))


def template(name: str, text: str, *wanted: str) -> Case:
    """A path template."""
    policy = {"name": "t", "typed_config": {"@type": TEMPLATE, "path_template": text}}
    return paths(name, {"path_match_policy": policy}, *wanted)


def forwarding(name: str, action: str, *requests: Request, match: str = "{prefix: /}", **fields: Any) -> Case:
    """One route to the upstream."""
    return Case(name, f"- match: {match}\n  route: {action}", list(requests), **fields)


def redirecting(name: str, action: str, *requests: Request, match: str = "{prefix: /}") -> Case:
    """One redirect."""
    return Case(name, f"- match: {match}\n  redirect: {action}", list(requests))


PATHS = [
    paths("prefix", {"prefix": "/foo"}, "/foo", "/foobar", "/foo/bar?x", "/fo", "/FOO", "/?/foo"),
    paths("prefix-root", {"prefix": "/"}, "/", "/a"),
    paths("prefix-empty", {"prefix": ""}, "/", "/a"),
    paths("prefix-i", {"prefix": "/Foo", "case_sensitive": False}, "/foo", "/FOObar", "/fo"),
    paths("path", {"path": "/foo"}, "/foo", "/foo?x=1", "/foo/", "/Foo", "/foo?", "/foo;a=b"),
    paths("path-i", {"path": "/Foo", "case_sensitive": False}, "/foo", "/FOO?x", "/foo/"),
    paths("sep", {"path_separated_prefix": "/foo"}, "/foo", "/foo/", "/foo/b?c", "/foobar", "/foo?x/", "/FOO/a"),
    paths("sep-i", {"path_separated_prefix": "/Foo", "case_sensitive": False}, "/foo", "/FOO/b", "/foob"),
    paths("regex", {"safe_regex": {"regex": "/b[io]t"}}, "/bit", "/bot?x", "/bite", "/a/bit", "/BIT"),
    paths("regex-i", {"safe_regex": {"regex": "/b[io]t"}, "case_sensitive": False}, "/bit", "/BIT"),
    paths("regex-alternatives", {"safe_regex": {"regex": "/a|/b"}}, "/a", "/b", "/ab"),
    paths("parameters", {"path": "/foo"}, "/foo;a=b", "/foo;a?x", "/foo?a;b", "/fo;o", table="parameters"),
    paths("parameters-regex", {"safe_regex": {"regex": "/f.."}}, "/foo;a=b", "/foo;a?x", table="parameters"),
    paths("parameters-sep", {"path_separated_prefix": "/foo"}, "/foo;a=b", "/foo/b;a?x", "/foo;/", table="parameters"),
]

TEMPLATES = [
    template("t-literal", "/api/v1", "/api/v1", "/api/v1/", "/api/v1?x", "/api"),
    template("t-one", "/api/*/info", "/api/a/info", "/api//info", "/api/a/b/info", "/api/a%20b/info?x", "/api/*/info"),
    template("t-rest", "/api/**", "/api", "/api/", "/api/a", "/api/a/b/", "/apix", "/api/a*b"),
    template("t-suffix", "/v/*.m4s", "/v/a.m4s", "/v/.m4s", "/v/a/b.m4s", "/v/am4s"),
    template("t-rest-suffix", "/**.mpd", "/a/b/c.mpd", "/.mpd", "/a.mpx", "/a.mpd/b"),
    template(
        "t-name",
        "/v/{file}",
        "/v/a",
        "/v/",
        "/v/a/b",
        "/v/a:b@c",
        "/v/%C3%A9",
        *(f"/v/a{sign}b" for sign in "!\"$&'()*+,-.:;<=>@[]^_`{|}~%\\"),
        "/v/a[b]",
    ),
    template("t-name-path", "/{a=videos/*}/{b}", "/videos/x/y", "/videos/x", "/film/x/y"),
    template("t-name-rest", "/a/{rest=**}", "/a/", "/a", "/a/b/c", "/a/b/c/"),
    template("t-name-suffix", "/a/{b}.txt", "/a/x.txt", "/a/.txt", "/a/x.tx"),
    template("t-root", "/", "/", "/a", "/?x"),
    template("t-trailing", "/a/", "/a/", "/a", "/a/b"),
    template("t-brace", "/a{b}", "/a{b}", "/ax", "/a"),
    template("t-two", "/a-{b}.x", "/a-b.x", "/a-{b}.x"),
    template("t-rest-more", "/**/x", "/a/b/x", "/x", "//x"),
    template("t-star", "/a*b", "/a*b", "/axb", "/ab"),
    template("t-inner-star", "/{a=b*}/c", "/b*/c", "/bx/c"),
    template("t-rest-inner", "/a/{b=x/**}", "/a/x/y/z", "/a/x", "/a/x/"),
    template("t-name-suffix-more", "/{a}.x/b", "/a.x/b", "/a.x/", "/.x/b"),
    template("t-dot", "/a.b", "/a.b", "/axb"),
]

HEADERS = [
    header("h-none", {}, ["x"], [""], ["a", "b"]),
    header("h-none-invert", {"invert_match": True}, ["x"], [""]),
    header("h-present", {"present_match": True}, ["x"], [""]),
    header("h-absent", {"present_match": False}, ["x"]),
    header("h-present-invert", {"present_match": True, "invert_match": True}, ["x"]),
    header("h-absent-invert", {"present_match": False, "invert_match": True}, ["x"]),
    header("h-present-empty", {"present_match": True, "treat_missing_header_as_empty": True}, ["x"]),
    header("h-absent-empty", {"present_match": False, "treat_missing_header_as_empty": True}, ["x"]),
    header(
        "h-present-empty-invert",
        {"present_match": True, "treat_missing_header_as_empty": True, "invert_match": True},
        ["x"],
    ),
    header("h-exact", {"string_match": {"exact": "Ab"}}, ["Ab"], ["ab"], ["Ab", "Ab"], [""], ["Ab,x"]),
    header("h-exact-i", {"string_match": {"exact": "Ab", "ignore_case": True}}, ["Ab"], ["aB"], ["abc"]),
    header("h-exact-empty", {"string_match": {"exact": ""}}, ["x"], [""]),
    header("h-exact-joined", {"string_match": {"exact": "a,b"}}, ["a", "b"], ["a,b"], ["b", "a"]),
    header("h-exact-invert", {"string_match": {"exact": "a"}, "invert_match": True}, ["a"], ["b"], [""]),
    header(
        "h-exact-invert-empty",
        {"string_match": {"exact": "a"}, "invert_match": True, "treat_missing_header_as_empty": True},
        ["a"],
        ["b"],
    ),
    header(
        "h-exact-empty-missing", {"string_match": {"exact": ""}, "treat_missing_header_as_empty": True}, ["a"], [""]
    ),
    header("h-prefix", {"string_match": {"prefix": "ab"}}, ["ab"], ["abc"], ["Abc"], ["xab"]),
    header("h-prefix-i", {"string_match": {"prefix": "aB", "ignore_case": True}}, ["ABc"], ["xab"]),
    header("h-suffix", {"string_match": {"suffix": "bc"}}, ["abc"], ["bc"], ["bcd"]),
    header("h-suffix-i", {"string_match": {"suffix": "bC", "ignore_case": True}}, ["aBC"], ["bcd"]),
    header("h-contains", {"string_match": {"contains": "b"}}, ["abc"], ["ABC"], ["ac"], ["a", "b"]),
    header("h-contains-i", {"string_match": {"contains": "B", "ignore_case": True}}, ["abc"], ["ABC"], ["ac"]),
    header(
        "h-regex", {"string_match": {"safe_regex": {"regex": "a.c"}}}, ["abc"], ["xabc"], ["a,c"], ["a", "c"], ["aéc"]
    ),
    header(
        "h-range", {"range_match": {"start": -10, "end": 3}}, ["2"], ["3"], ["-10"], ["-11"], ["+1"], ["1.5"], ["1 "]
    ),
    header("h-range-odd", {"range_match": {"start": 0, "end": 99}}, [""], ["0x1"], ["1,2"], ["007"], ["-0"], ["1 1"]),
    header("h-range-invert", {"range_match": {"start": 0, "end": 3}, "invert_match": True}, ["1"], ["5"], ["x"]),
    header(
        "h-range-big",
        {"range_match": {"start": 0, "end": 9223372036854775807}},
        ["9223372036854775806"],
        ["9223372036854775807"],
        ["99999999999999999999"],
        ["00000000000000000000000000000000001"],
    ),
    header("h-any", {"string_match": {"exact": "a"}}, ["a", "b"], ["b", "a"], ["b", "c"], ["", "a"]),
    header("h-any-invert", {"string_match": {"exact": "a"}, "invert_match": True}, ["a", "b"], ["b", "a"], ["b", "c"]),
    header("h-any-range", {"range_match": {"start": 0, "end": 5}}, ["9", "1"], ["1", "9"], ["x", "1"]),
    header("h-any-regex", {"string_match": {"safe_regex": {"regex": "a+"}}}, ["b", "aa"], ["aa", "b"], ["aa,b"]),
    header("h-any-old", {"exact_match": "a"}, ["a", "b"], ["b", "a"]),
    header("h-present-several", {"present_match": True}, ["a", "b"]),
    header("h-old-exact", {"exact_match": "a"}, ["a"], ["b"]),
    header("h-old-exact-empty", {"exact_match": ""}, ["a"], [""]),
    header("h-old-prefix", {"prefix_match": "a"}, ["ab"], ["b"]),
    header("h-old-suffix", {"suffix_match": "a"}, ["ba"], ["b"]),
    header("h-old-contains", {"contains_match": "a"}, ["bab"], ["b"]),
    header("h-old-regex", {"safe_regex_match": {"regex": "a+"}}, ["aa"], ["ab"]),
    matching(
        "h-pseudo",
        {
            "prefix": "/",
            "headers": [
                {"name": ":method", "string_match": {"exact": "POST"}},
                {"name": ":path", "string_match": {"suffix": "?x"}},
                {"name": ":scheme", "string_match": {"exact": "http"}},
                {"name": "Host", "string_match": {"prefix": "h-pseudo"}},
                {"name": ":authority", "string_match": {"suffix": ".test"}},
            ],
        },
        [Request("/?x", method="POST"), Request("/?x"), Request("/?y", method="POST")],
    ),
    Case(
        "h-grpc",
        f"- match: {{prefix: /, grpc: {{}}}}\n  route: {{cluster: echo, prefix_rewrite: /grpc}}{ELSE}",
        [Request(fields=(("content-type", value),)) for value in GRPC_TYPES],
    ),
    matching(
        "tls-absent",
        {"prefix": "/", "tls_context": {"presented": False}},
        [Request()],
    ),
    matching("tls-present", {"prefix": "/", "tls_context": {"presented": True}}, [Request()]),
    matching("tls-validated", {"prefix": "/", "tls_context": {"validated": False}}, [Request()]),
    matching(
        "fraction",
        {"prefix": "/", "runtime_fraction": {"default_value": {"numerator": 0}, "runtime_key": "x"}},
        [Request()],
    ),
    matching(
        "metadata",
        {
            "prefix": "/",
            "dynamic_metadata": [{"filter": "f", "path": [{"key": "k"}], "value": {"present_match": True}}],
        },
        [Request()],
    ),
    matching(
        "metadata-invert",
        {
            "prefix": "/",
            "dynamic_metadata": [
                {"filter": "f", "path": [{"key": "k"}], "value": {"present_match": True}, "invert": True}
            ],
        },
        [Request()],
    ),
    matching(
        "metadata-absent",
        {
            "prefix": "/",
            "dynamic_metadata": [{"filter": "f", "path": [{"key": "k"}], "value": {"present_match": False}}],
        },
        [Request()],
    ),
    matching(
        "metadata-null",
        {"prefix": "/", "dynamic_metadata": [{"filter": "f", "path": [{"key": "k"}], "value": {"null_match": {}}}]},
        [Request()],
    ),
    matching("state", {"prefix": "/", "filter_state": [{"key": "k", "string_match": {"exact": ""}}]}, [Request()]),
]

QUERIES = [
    query("q-none", {}, "", "?q", "?q=", "?q=1", "?x&q=1", "?Q=1", "?xq=1", "?", "?&&q"),
    query("q-present", {"present_match": True}, "", "?q", "?q=1"),
    query("q-absent", {"present_match": False}, "", "?q", "?x"),
    query("q-exact", {"string_match": {"exact": "a b"}}, "?q=a%20b", "?q=a+b", "?q=x", "?q=x&q=a%20b"),
    query("q-encoded", {"string_match": {"exact": "a%20b"}}, "?q=a%20b", "?q=a+b", "?%71=a%20b"),
    query("q-first", {"string_match": {"exact": "1"}}, "?q=1&q=2", "?q=2&q=1", "?q=1;q=2", "?q=1?q=2"),
    query("q-empty", {"string_match": {"exact": ""}}, "?q", "?q=", "?x", "?q=&q=1"),
    query("q-equals", {"string_match": {"exact": "a=b"}}, "?q=a=b"),
    query("q-regex", {"string_match": {"safe_regex": {"regex": "[0-9]+"}}}, "?q=12", "?q=1a"),
    query("q-prefix-i", {"string_match": {"prefix": "A", "ignore_case": True}}, "?q=abc", "?q=bc"),
]

ECHO = "cluster: echo"
REWRITES = [
    forwarding("r-none", f"{{{ECHO}}}", Request("/a?b"), Request("//a")),
    forwarding(
        "r-prefix", f"{{{ECHO}, prefix_rewrite: /new}}", Request("/old/x?y=1"), Request("/old"), match="{prefix: /old}"
    ),
    forwarding(
        "r-prefix-slash", f"{{{ECHO}, prefix_rewrite: /}}", Request("/old/x"), Request("/old"), match="{prefix: /old}"
    ),
    forwarding(
        "r-prefix-slashes",
        f"{{{ECHO}, prefix_rewrite: /new/}}",
        Request("/old/x"),
        Request("/old"),
        Request("/oldx"),
        Request("/old//x"),
        match="{prefix: /old}",
    ),
    forwarding(
        "r-slashes-2",
        f"{{{ECHO}, prefix_rewrite: /}}",
        Request("/old///x"),
        Request("/old//"),
        Request("/old?/"),
        Request("/old/?x"),
        match="{prefix: /old}",
    ),
    forwarding("r-slashes-3", f"{{{ECHO}, prefix_rewrite: //a}}", Request("/old/x"), match="{prefix: /old}"),
    forwarding("r-slashes-4", f"{{{ECHO}, prefix_rewrite: /}}", Request("/x/y"), Request("//y"), match="{prefix: ''}"),
    forwarding("r-slashes-5", f"{{{ECHO}, prefix_rewrite: x}}", Request("/old/y"), match="{prefix: /old}"),
    forwarding(
        "r-slashes-6", f"{{{ECHO}, prefix_rewrite: ///}}", Request("/old/y"), Request("/old//y"), match="{prefix: /old}"
    ),
    forwarding(
        "r-slashes-7",
        f"{{{ECHO}, prefix_rewrite: /old/}}",
        Request("/old/y"),
        Request("/old//y"),
        match="{prefix: /old}",
    ),
    forwarding(
        "r-slashes-8", f"{{{ECHO}, regex_rewrite: {{pattern: {{regex: '^/old'}}, substitution: /}}}}", Request("/old/y")
    ),
    forwarding(
        "r-slashes-9",
        f"{{{ECHO}, prefix_rewrite: /}}",
        Request("//x"),
        Request("/x"),
        match="{path_separated_prefix: /x}",
    ),
    forwarding("r-path-slash", f"{{{ECHO}, prefix_rewrite: /new/}}", Request("/old"), match="{path: /old}"),
    forwarding(
        "r-sep-slash",
        f"{{{ECHO}, prefix_rewrite: /new/}}",
        Request("/old/x"),
        Request("/old?x"),
        match="{path_separated_prefix: /old}",
    ),
    forwarding(
        "r-sep-root",
        f"{{{ECHO}, prefix_rewrite: /}}",
        Request("/old/x"),
        Request("/old?x"),
        match="{path_separated_prefix: /old}",
    ),
    forwarding(
        "r-prefix-i-slash",
        f"{{{ECHO}, prefix_rewrite: /}}",
        Request("/OLD/x"),
        match="{prefix: /old, case_sensitive: false}",
    ),
    forwarding("r-prefix-slash-both", f"{{{ECHO}, prefix_rewrite: /}}", Request("/old//x"), match="{prefix: /old/}"),
    forwarding("r-path-format-part", f"{{{ECHO}, path_rewrite: '/n/%REQ(x-a)%'}}", Request("/old?x")),
    forwarding("r-path-format-bare", f"{{{ECHO}, path_rewrite: 'n'}}", Request("/old?x")),
    forwarding("r-path-format-query", f"{{{ECHO}, path_rewrite: '/n?y'}}", Request("/old?x")),
    forwarding("r-host-format-part", f"{{{ECHO}, host_rewrite: 'a%REQ(x-a)%b'}}", Request()),
    forwarding(
        "r-prefix-i",
        f"{{{ECHO}, prefix_rewrite: /n}}",
        Request("/OLD/x"),
        match="{prefix: /old, case_sensitive: false}",
    ),
    forwarding("r-path", f"{{{ECHO}, prefix_rewrite: /n}}", Request("/old?x"), match="{path: /old}"),
    forwarding("r-sep", f"{{{ECHO}, prefix_rewrite: /n}}", Request("/old/a?x"), match="{path_separated_prefix: /old}"),
    forwarding(
        "r-whole", f"{{{ECHO}, prefix_rewrite: /n}}", Request("/old/a?x"), match="{safe_regex: {regex: '/o.*'}}"
    ),
    forwarding(
        "r-regex",
        f"{{{ECHO}, regex_rewrite: {{pattern: {{regex: '^/service/([^/]+)(/.*)$'}},"
        " substitution: '\\2/instance/\\1'}}",
        Request("/service/foo/v1/api?x=/service/a/b"),
        Request("/other"),
    ),
    forwarding(
        "r-regex-all",
        f"{{{ECHO}, regex_rewrite: {{pattern: {{regex: 'one'}}, substitution: 'two'}}}}",
        Request("/xxx/one/yyy/one/zzz?one"),
    ),
    forwarding(
        "r-template",
        f"{{{ECHO}, path_rewrite_policy: {{name: r, typed_config: {{'@type': {REWRITE},"
        " path_template_rewrite: '/{b}/x/{a}'}}}",
        Request("/1/2/3?q"),
        match=f"{{path_match_policy: {{name: t, typed_config: {{'@type': {TEMPLATE},"
        " path_template: '/{a}/{b=**}'}}}",
    ),
    forwarding(
        "r-path-format", f"{{{ECHO}, path_rewrite: '/n/%REQ(x-a)%/%REQ(:path)%'}}", Request("/old?x", (("x-a", "1"),))
    ),
    forwarding("r-path-format-missing", f"{{{ECHO}, path_rewrite: '%REQ(x-a)%'}}", Request("/old?x")),
    forwarding("r-host", f"{{{ECHO}, host_rewrite_literal: new.example}}", Request()),
    forwarding(
        "r-host-xfh", f"{{{ECHO}, host_rewrite_literal: new.example, append_x_forwarded_host: true}}", Request()
    ),
    forwarding(
        "r-host-xfh-there",
        f"{{{ECHO}, host_rewrite_literal: new.example, append_x_forwarded_host: true}}",
        Request(fields=(("x-forwarded-host", "a.example"), ("x-z", "1"))),
        Request(fields=(("x-forwarded-host", "r-host-xfh-there.test"),)),
        Request(fields=(("x-forwarded-host", "r-host-xfh-there.test, b"),)),
    ),
    forwarding(
        "r-host-header", f"{{{ECHO}, host_rewrite_header: x-a}}", Request(fields=(("x-a", "b.c"), ("x-a", "c")))
    ),
    forwarding(
        "r-host-header-none", f"{{{ECHO}, host_rewrite_header: x-a}}", Request(), Request(fields=(("x-a", ""),))
    ),
    forwarding(
        "r-host-regex",
        f"{{{ECHO}, host_rewrite_path_regex: {{pattern: {{regex: '^/(.+)/.+$'}}, substitution: '\\1'}},"
        " prefix_rewrite: /n}",
        Request("/envoyproxy.io/some?x=/a/b"),
    ),
    forwarding("r-host-format", f"{{{ECHO}, host_rewrite: '%REQ(x-a)%.example'}}", Request(fields=(("x-a", "b"),))),
    forwarding("r-host-format-missing", f"{{{ECHO}, host_rewrite: '%REQ(x-a)%'}}", Request()),
    forwarding(
        "r-all",
        f"{{{ECHO}, host_rewrite_literal: new.example, prefix_rewrite: /n, append_x_forwarded_host: true}}\n"
        "  request_headers_to_add:\n"
        "  - {header: {key: x-p, value: '%REQ(:path)% %REQ(:authority)% %REQ(x-envoy-original-path)%'}}",
        Request("/a?b"),
        match="{prefix: /a}",
    ),
    forwarding(
        "r-weighted",
        "{weighted_clusters: {clusters: [{name: echo, weight: 1, host_rewrite_literal: w.example,"
        " request_headers_to_add: [{header: {key: x-w, value: '%REQ(:authority)%'}}]}]}}\n"
        "  request_headers_to_add: [{header: {key: x-r, value: '%REQ(:authority)%'}}]",
        Request("/a?b"),
    ),
    forwarding(
        "r-weighted-both",
        "{weighted_clusters: {clusters: [{name: echo, weight: 1, host_rewrite_literal: w.example}]},"
        " host_rewrite_literal: r.example, append_x_forwarded_host: true}",
        Request("/a?b"),
    ),
    forwarding(
        "r-original",
        f"{{{ECHO}, prefix_rewrite: /n}}",
        Request("/o", (("x-envoy-original-path", "/x"), ("x-z", "1"))),
        match="{prefix: /o}",
    ),
]


def operations(name: str, added: str, *requests: Request, removed: str = "[]", **fields: Any) -> Case:
    """Header operations on a route's request; `added` is a YAML list."""
    text = f"- match: {{prefix: /}}\n  route: {{cluster: echo}}\n  request_headers_to_add: {added}\n"
    return Case(name, text + f"  request_headers_to_remove: {removed}", list(requests), **fields)


def add(key: str, value: str, action: str = "", rest: str = "") -> str:
    """A HeaderValueOption."""
    action = f", append_action: {action}" if action else ""
    return f"{{header: {{key: {key}, value: '{value}'}}{action}{rest}}}"


KEEP = ", keep_empty_value: true"
GIVEN = Request(fields=(("x-a", "1"), ("x-b", "2"), ("x-a", "3"), ("x-c", "4")))
OPERATIONS = [
    operations("o-append", f"[{add('x-a', 'n')}, {add('X-New', 'm')}]", GIVEN, Request()),
    operations("o-absent", f"[{add('x-a', 'n', 'ADD_IF_ABSENT')}]", GIVEN, Request()),
    operations("o-absent-twice", f"[{add('x-n', '1', 'ADD_IF_ABSENT')}, {add('x-n', '2', 'ADD_IF_ABSENT')}]", GIVEN),
    operations("o-overwrite", f"[{add('x-a', 'n', 'OVERWRITE_IF_EXISTS_OR_ADD')}]", GIVEN, Request()),
    operations("o-exists", f"[{add('x-a', 'n', 'OVERWRITE_IF_EXISTS')}]", GIVEN, Request()),
    operations(
        "o-mixed",
        f"[{add('x-n', '1')}, {add('x-a', 'n', 'OVERWRITE_IF_EXISTS_OR_ADD')}, {add('x-a', 'm')},"
        f" {add('x-n', '%REQ(x-a)%')}, {add('x-b', '%REQ(x-b)%!', 'OVERWRITE_IF_EXISTS')}]",
        GIVEN,
    ),
    operations("o-empty", f"[{add('x-n', '')}, {add('x-m', '%REQ(x-none)%')}, {add('x-l', 'a%REQ(x-none)%')}]", GIVEN),
    operations(
        "o-keep-empty",
        f"[{add('x-n', '', '', KEEP)}, {add('x-m', '%REQ(x-none)%', '', KEEP)}]",
        GIVEN,
    ),
    operations("o-overwrite-empty", f"[{add('x-a', '', 'OVERWRITE_IF_EXISTS_OR_ADD')}]", GIVEN),
    operations(
        "o-overwrite-keep-empty", f"[{add('x-a', '', 'OVERWRITE_IF_EXISTS_OR_ADD', ', keep_empty_value: true')}]", GIVEN
    ),
    operations("o-remove", "[]", GIVEN, Request(), removed="[x-a, X-C]"),
    operations("o-remove-add", f"[{add('x-a', 'n')}, {add('x-b', '%REQ(x-a)%')}]", GIVEN, removed="[x-a]"),
    operations(
        "o-old-append",
        "[{header: {key: x-a, value: n}, append: true}, {header: {key: x-b, value: n}, append: false}]",
        GIVEN,
    ),
    operations("o-percent", f"[{add('x-n', '100%%')}, {add('x-m', '%PROTOCOL% %REQ(:method)%')}]", GIVEN),
    operations(
        "o-user-agent", f"[{add('user-agent', 'n')}]", Request(fields=(("user-agent", "m"), ("x-z", "1"))), Request()
    ),
    operations(
        "o-content-type", f"[{add('content-type', 'n')}]", Request(fields=(("content-type", "m"), ("x-z", "1")))
    ),
    operations("o-accept", f"[{add('accept', 'n')}]", Request(fields=(("accept", "m"), ("x-z", "1")))),
    operations(
        "o-authorization", f"[{add('authorization', 'n')}]", Request(fields=(("authorization", "m"), ("x-z", "1")))
    ),
    operations("o-cookie", f"[{add('cookie', 'n=1')}]", Request(fields=(("cookie", "m=2"), ("x-z", "1")))),
    operations(
        "o-cache-control", f"[{add('cache-control', 'n')}]", Request(fields=(("cache-control", "m"), ("x-z", "1")))
    ),
    operations(
        "o-accept-encoding",
        f"[{add('accept-encoding', 'n')}]",
        Request(fields=(("accept-encoding", "m"), ("x-z", "1"))),
    ),
    operations(
        "o-xff", f"[{add('x-forwarded-for', 'n')}]", Request(fields=(("x-forwarded-for", "1.2.3.4"), ("x-z", "1")))
    ),
    operations("o-via", f"[{add('via', 'n')}]", Request(fields=(("via", "m"), ("x-z", "1")))),
    operations("o-origin", f"[{add('origin', 'n')}]", Request(fields=(("origin", "m"), ("x-z", "1")))),
    operations("o-referer", f"[{add('referer', 'n')}]", Request(fields=(("referer", "m"), ("x-z", "1")))),
    operations(
        "o-user-agent-set",
        f"[{add('user-agent', 'n', 'OVERWRITE_IF_EXISTS_OR_ADD')}]",
        Request(fields=(("user-agent", "m"), ("x-z", "1"))),
    ),
    operations(
        "o-order",
        f"[{add('x-order', 'route')}, {add('x-r', '%REQ(x-order)%')}]",
        Request(),
        table="operations",
        host={"request_headers_to_add": [{"header": {"key": "x-order", "value": "host"}}]},
    ),
    operations(
        "o-order-specific",
        f"[{add('x-order', 'route')}, {add('x-r', '%REQ(x-order)%')}]",
        Request(),
        table="specific",
        host={"request_headers_to_add": [{"header": {"key": "x-order", "value": "host"}}]},
    ),
]

WEIGHTED_ORDER = (
    "- match: {prefix: /}\n  request_headers_to_add: [{header: {key: x-order, value: route}}]\n"
    "  route: {host_rewrite_literal: r.example,"
    " weighted_clusters: {clusters: [{name: echo, weight: 1, host_rewrite_literal: w.example, request_headers_to_add:"
    " [{header: {key: x-order, value: weight}}, {header: {key: x-host, value: '%REQ(:authority)%'}}]}]}}"
)
WEIGHTED_RESPONSE = (
    "- match: {prefix: /}\n  response_headers_to_add: [{header: {key: x-order, value: route}}]\n"
    "  route: {weighted_clusters: {clusters: [{name: echo, weight: 1,"
    " response_headers_to_add: [{header: {key: x-order, value: weight}}]}]}}"
)
RESPONSES = [
    Case("w-response", WEIGHTED_RESPONSE, [Request()], table="operations"),
    Case("w-response-specific", WEIGHTED_RESPONSE, [Request()], table="specific"),
    Case(
        "d-format-content-type-default",
        "- match: {prefix: /}\n  direct_response: {status: 200, body_format: {text_format: a}}\n"
        "  response_headers_to_add: [{header: {key: content-type, value: text/html}}, {header: {key: x-a, value: b}}]",
        [GIVEN],
    ),
    Case(
        "d-format-content-type-json",
        "- match: {prefix: /}\n  direct_response: {status: 200, body_format: {json_format: {a: b}}}\n"
        "  response_headers_to_add: [{header: {key: content-type, value: text/html}}, {header: {key: x-a, value: b}}]",
        [GIVEN],
    ),
    Case(
        "d-format-content-type",
        "- match: {prefix: /}\n"
        "  direct_response: {status: 200, body_format: {text_format: a, content_type: text/css}}\n"
        "  response_headers_to_add: [{header: {key: content-type, value: text/html}}, {header: {key: x-a, value: b}}]",
        [GIVEN],
    ),
    Case("w-order", WEIGHTED_ORDER, [Request()], table="operations"),
    Case("w-order-specific", WEIGHTED_ORDER, [Request()], table="specific"),
    Case(
        "d-response",
        "- match: {prefix: /}\n  direct_response: {status: 201, body: {inline_string: b}}\n"
        "  response_headers_to_add: [{header: {key: x-order, value: route}},"
        " {header: {key: x-q, value: '%REQ(x-a)% %RESP(x-order)%'}}]",
        [GIVEN],
        table="operations",
        host={"response_headers_to_add": [{"header": {"key": "x-order", "value": "host"}}]},
    ),
    Case(
        "d-response-specific",
        "- match: {prefix: /}\n  direct_response: {status: 503}\n"
        "  response_headers_to_add: [{header: {key: x-order, value: route}}]",
        [GIVEN],
        table="specific",
        host={"response_headers_to_add": [{"header": {"key": "x-order", "value": "host"}}]},
    ),
    Case(
        "d-redirect",
        "- match: {prefix: /}\n  redirect: {path_redirect: /x}\n"
        "  response_headers_to_add: [{header: {key: x-n, value: '%REQ(x-a)%'}}]\n"
        "  response_headers_to_remove: [location]",
        [GIVEN],
    ),
    Case(
        "d-format",
        "- match: {prefix: /}\n  direct_response: {status: 200,"
        " body_format: {text_format: 'a %REQ(x-a)% %REQ(x-none)%'}}",
        [GIVEN],
    ),
    Case(
        "d-format-type",
        "- match: {prefix: /}\n  direct_response: {status: 200,"
        " body_format: {text_format_source: {inline_string: 'a %REQ(x-none)%'},"
        " omit_empty_values: true, content_type: text/html}}",
        [GIVEN],
    ),
    Case(
        "d-format-json",
        "- match: {prefix: /}\n  direct_response: {status: 200,"
        " body_format: {json_format: {a: '%REQ(x-a)%', b: '%REQ(x-none)%'}}}",
        [GIVEN],
    ),
    Case(
        "d-content-type",
        "- match: {prefix: /}\n  direct_response: {status: 200, body: {inline_string: b}}\n"
        "  response_headers_to_add: [{header: {key: content-type, value: text/html}}, {header: {key: x-a, value: b}}]",
        [GIVEN],
    ),
    *[
        Case(
            f"d-status-{status}", f"- match: {{prefix: /}}\n  direct_response: {{status: {status}}}", [Request("/a?b")]
        )
        for status in (200, 201, 204, 300, 302, 304, 399, 404, 599)
    ],
    Case(
        "d-format-body",
        "- match: {prefix: /}\n  direct_response: {status: 200, body: {inline_string: bo},"
        " body_format: {text_format: 'a %LOCAL_REPLY_BODY%'}}",
        [GIVEN],
    ),
]

REDIRECTS = [
    redirecting("rd-https", "{https_redirect: true}", Request("/a?b=1")),
    redirecting("rd-scheme", "{scheme_redirect: FTP}", Request("/a")),
    redirecting("rd-host", "{host_redirect: new.example}", Request("/a?b")),
    redirecting("rd-port", "{port_redirect: 8443}", Request("/a")),
    redirecting("rd-path", "{path_redirect: /new}", Request("/a?b"), Request("/a")),
    redirecting("rd-path-query", "{path_redirect: '/new?c', strip_query: true}", Request("/a?b"), Request("/a")),
    redirecting("rd-path-strip", "{path_redirect: '/new', strip_query: true}", Request("/a?b"), Request("/a")),
    redirecting("rd-prefix", "{prefix_rewrite: /new}", Request("/a/x?b"), match="{prefix: /a}"),
    redirecting("rd-prefix-empty", "{prefix_rewrite: ''}", Request("/a/x?b"), match="{prefix: /a}"),
    redirecting("rd-prefix-slash", "{prefix_rewrite: /}", Request("/a/x?b"), Request("/a"), match="{prefix: /a}"),
    redirecting(
        "rd-prefix-strip", "{prefix_rewrite: /new, strip_query: true}", Request("/a/x?b"), match="{prefix: /a}"
    ),
    redirecting("rd-regex", "{regex_rewrite: {pattern: {regex: 'a+'}, substitution: z}}", Request("/aa/ba?a")),
    redirecting("rd-strip", "{strip_query: true}", Request("/a?b")),
    *[
        redirecting(f"rd-code-{code.lower().replace('_', '-')}", f"{{response_code: {code}}}", Request())
        for code in ("MOVED_PERMANENTLY", "FOUND", "SEE_OTHER", "TEMPORARY_REDIRECT", "PERMANENT_REDIRECT")
    ],
]

PORTS = ["h.test", "h.test:80", "h.test:443", "h.test:8080", "[::1]:80", "[::1]", "[::1]:8080"]


def any_host(name: str, action: str) -> list[Case]:
    """A redirect under several authorities, each a domain of its own on the case's virtual host."""
    domains = [f"{name}.test"] + [
        port.replace("h.test", f"{name}.h.test") for port in PORTS if not port.startswith("[")
    ]
    requests = [Request("/a", authority=domain) for domain in domains]
    requests += [Request("/a", (("x-forwarded-proto", "https"),), authority=domain) for domain in domains]
    return [Case(name, f"- match: {{prefix: /}}\n  redirect: {action}", requests, host={"domains": domains})]


REDIRECT_PORTS = [
    *any_host("rp-https", "{https_redirect: true}"),
    *any_host("rp-http", "{scheme_redirect: http}"),
    *any_host("rp-none", "{path_redirect: /x}"),
    *any_host("rp-port", "{port_redirect: 444}"),
]
HOSTS = [
    Case(
        "tls-all",
        f"- match: {{prefix: /}}\n  {HIT}",
        [Request("/a?b"), Request("/a", (("x-forwarded-proto", "https"),)), Request(authority="tls-all.test:80")],
        host={
            "require_tls": "ALL",
            "domains": ["tls-all.test", "tls-all.test:80"],
            "response_headers_to_add": [{"header": {"key": "x-n", "value": "1"}}],
        },
    ),
    Case(
        "tls-external",
        f"- match: {{prefix: /}}\n  {HIT}",
        [Request("/a?b"), Request("/a", (("x-forwarded-proto", "https"),))],
        host={"require_tls": "EXTERNAL_ONLY"},
    ),
    Case(
        "tls-no-route",
        f"- match: {{path: /x}}\n  {HIT}",
        [Request("/a")],
        host={"require_tls": "ALL"},
    ),
]

DOMAIN_TABLE = {
    "exact": ["www.foo.com", "Upper.Foo.com", "[::2]:80", "a.b.c"],
    "suffix": ["*.foo.com", "*-bar.foo.com"],
    "suffix-dash": ["*-x.net"],
    "suffix-short": ["*.com"],
    "prefix": ["foo.*", "foo-*"],
    "prefix-long": ["foo.bar.*"],
}
AUTHORITIES = [
    "www.foo.com",
    "WWW.foo.COM",
    "upper.foo.com",
    "x.foo.com",
    ".foo.com",
    "foo.com",
    "a-bar.foo.com",
    "-bar.foo.com",
    "b.com",
    ".com",
    "com",
    "a-x.net",
    "-x.net",
    "foo.org",
    "foo.",
    "foo-",
    "foo-z",
    "foo.bar.org",
    "foo.bar.",
    "foo.com.x",
    "www.foo.com:80",
    "x.foo.com:80",
    "foo.org:80",
    "foo.bar:1",
    "[::2]:80",
    "[::2]",
    "a.b.c",
    "a.b.c:",
    "zzz",
    "a.b.c:1:2",
]
DOMAINS = [
    Case(
        f"domain-{name}-{table.replace('_', '-')}",
        f"- match: {{prefix: /}}\n  direct_response: {{status: 200, body: {{inline_string: {name}}}}}",
        [Request(authority=authority) for authority in AUTHORITIES] if name == "exact" else [],
        host={"domains": domains},
        table=table,
    )
    for table in ("default", "no_port")
    for name, domains in DOMAIN_TABLE.items()
]


def random_case(seed: int) -> Case:
    """A random virtual host and random requests."""
    rng = random.Random(seed)
    routes = generate.random_routes(rng, 24)
    requests = [Request(*generate.random_request(rng)) for _ in range(10)]
    return Case(f"random-{seed}", json.dumps(routes), requests)


RANDOM = [random_case(seed) for seed in range(60)]
CASES = [
    *PATHS,
    *TEMPLATES,
    *HEADERS,
    *QUERIES,
    *REWRITES,
    *OPERATIONS,
    *RESPONSES,
    *REDIRECTS,
    *REDIRECT_PORTS,
    *HOSTS,
    *DOMAINS,
    *RANDOM,
]
