"""Internal redirects: which are followed, what the second request looks like, and what is passed through."""

from tests.differential.cases import AwaitUpstream, Case, Close, Receive, chunked, get, post, request
from tests.differential.counted import check_counted_alike
from tests.differential.pair import Pair
from tests.differential.topic import Topic
from tests.support.upstream import CLOSE, OK, STALL, Answer, reply

PREDICATE = "type.googleapis.com/envoy.extensions.internal_redirect."
PREVIOUS = f"{{ name: p, typed_config: {{ '@type': {PREDICATE}previous_routes.v3.PreviousRoutesConfig }} }}"
SAFE = f"{{ name: s, typed_config: {{ '@type': {PREDICATE}safe_cross_scheme.v3.SafeCrossSchemeConfig }} }}"
RETRY = (
    "retry_policy: { retry_on: 5xx, num_retries: 1, retry_back_off: { base_interval: 0.002s, max_interval: 0.004s } }"
)


def allowed(*names: str) -> str:
    """The predicate that allows these routes."""
    config = (
        f"'@type': {PREDICATE}allow_listed_routes.v3.AllowListedRoutesConfig, allowed_route_names: [{', '.join(names)}]"
    )
    return f"{{ name: a, typed_config: {{ {config} }} }}"


def route(policy: str = "", fields: str = "", more: str = "", target: str = "cluster: b", target_more: str = "") -> str:
    """Everything goes to a, with a policy; /to goes on to b, without one."""
    fields = f", {fields}" if fields else ""
    return f"""
- name: target
  match: {{ prefix: /to }}
  route: {{ {target} }}
  {target_more}
- name: source
  match: {{ prefix: / }}
  route: {{ cluster: a, internal_redirect_policy: {{ {policy} }}{fields} }}
  {more}
"""


def moved(
    location: str = "http://$HOST/to", status: int = 302, *headers: tuple[str, str], body: bytes = b"moved"
) -> Answer:
    """A redirect."""
    return reply(status, body, [("location", location), *headers] if location else headers)


def followed(
    name: str,
    req: bytes | tuple[object, ...] = get("/from"),
    answer: Answer | None = None,
    policy: str = "",
    location: str = "",
    status: int = 302,
    second: tuple[Answer, ...] = (OK,),
    vhost: str = "",
    routes: str = "",
    listener: str = "main",
    answers: tuple[Answer, ...] = (),
    **route_parts: str,
) -> Case:
    """A request that a answers with a redirect (to b's route), and b with `second`."""
    host = name.replace("_", "-") + ".test"
    target = (location or "http://$HOST/to").replace("$HOST", host)
    return Case(
        name,
        req,  # type: ignore[arg-type]
        by_server={"a": answers or (answer or moved(target, status),), "b": second},
        route=routes or route(policy, **route_parts),
        vhost=vhost,
        listener=listener,
        log_bytes=True,
    )


CHUNKED = request("POST", "/from", [("transfer-encoding", "chunked")])
CASES = [
    followed("plain"),
    followed("query", location="http://$HOST/to?a=b"),
    followed("fragment", location="http://$HOST/to?a=b#c"),
    followed("other_host", location="http://other.test/to"),
    followed("other_host_with_port", location="http://other.test:8080/to"),
    followed("no_path", location="http://other.test"),
    followed("no_path_query", location="http://other.test?x=y"),
    followed("upper_case", location="HTTP://OTHER.test/to"),
    followed("userinfo", location="http://user:pass@other.test/to"),
    followed("bad_port", location="http://other.test:99999/to"),
    followed("empty_port", location="http://other.test:/to"),
    followed("ipv6", location="http://[::1]:80/to"),
    followed("space", location="http://other.test/t o"),
    followed("not_ascii", location="http://other.test/\xe9"),
    followed("relative", location="/to"),
    followed("relative_no_slash", location="to"),
    followed("scheme_relative", location="//other.test/to"),
    followed("empty_location", answer=Answer((b"HTTP/1.1 302 F\r\nlocation: \r\ncontent-length: 0\r\n\r\n",))),
    followed("no_location", answer=reply(302, b"x")),
    followed(
        "two_locations", answer=reply(302, b"x", [("location", "http://other.test/to"), ("location", "http://x.test/")])
    ),
    followed("ftp", location="ftp://other.test/to"),
    followed("garbage", location="::::"),
    followed("unknown_host", location="http://nowhere.example/to", listener="strict"),
    *(followed(f"status_{status}", status=status) for status in (301, 303, 304, 307, 308)),
    *(
        followed(f"codes_{status}", status=status, policy="redirect_response_codes: [301, 303, 304, 307, 308]")
        for status in (301, 302, 303, 304, 307, 308)
    ),
    followed("codes_200", status=200, policy="redirect_response_codes: [200]"),
    followed("codes_300", status=300, policy="redirect_response_codes: [300, 302]"),
    followed("post", post("/from", b"hello")),
    followed("post_empty", post("/from", b"")),
    followed("post_chunked", CHUNKED + chunked(b"hello", b"world")),
    followed("post_trailers", CHUNKED + chunked(b"hello", trailers=[("x-t", "1")])),
    followed("post_303", post("/from", b"hello"), status=303, policy="redirect_response_codes: [303]"),
    followed("post_chunked_303", CHUNKED + chunked(b"hello"), status=303, policy="redirect_response_codes: [303]"),
    followed("head_303", request("HEAD", "/from"), status=303, policy="redirect_response_codes: [303]"),
    followed("put_307", request("PUT", "/from", [], b"hello"), status=307, policy="redirect_response_codes: [307]"),
    followed("post_over_limit", post("/from", b"x" * 2000), vhost="per_request_buffer_limit_bytes: 1000"),
    followed("post_within_limit", post("/from", b"x" * 900), vhost="request_body_buffer_limit: 1000"),
    followed(
        "incomplete_request",
        (CHUNKED + b"5\r\nhello\r\n", Receive()),
        answer=Answer(
            (b"HTTP/1.1 302 F\r\nlocation: http://incomplete-request.test/to\r\ncontent-length: 0\r\n\r\n",), early=True
        ),
    ),
    followed("back_to_itself", answers=(moved("http://back-to-itself.test/again"), OK)),
    followed("loop", location="http://$HOST/again"),
    followed("loop_two", location="http://$HOST/again", policy="max_internal_redirects: 2"),
    followed("max_0", policy="max_internal_redirects: 0"),
    followed("allowed", policy=f"predicates: [{allowed('target')}]"),
    followed("not_allowed", policy=f"predicates: [{allowed('source', 'other')}]"),
    followed("allowed_nothing", policy=f"predicates: [{allowed()}]"),
    followed(
        "previous_routes_loop",
        location="http://$HOST/again",
        policy=f"max_internal_redirects: 5, predicates: [{PREVIOUS}]",
    ),
    followed("previous_routes", policy=f"predicates: [{PREVIOUS}]"),
    followed("https", location="https://$HOST/to"),
    followed("https_allowed", location="https://$HOST/to", policy="allow_cross_scheme_redirect: true"),
    followed(
        "https_safe", location="https://$HOST/to", policy=f"allow_cross_scheme_redirect: true, predicates: [{SAFE}]"
    ),
    followed(
        "http_from_forwarded_https",
        get("/from", ("x-forwarded-proto", "https")),
        policy=f"allow_cross_scheme_redirect: true, predicates: [{SAFE}]",
    ),
    followed("https_from_forwarded_https", get("/from", ("x-forwarded-proto", "https")), location="https://$HOST/to"),
    followed(
        "copied_headers",
        get("/from", ("x-one", "mine"), ("x-three", "mine")),
        answer=moved("http://copied-headers.test/to", 302, ("x-one", "1"), ("x-two", "2"), ("x-two", "3")),
        policy="response_headers_to_copy: [x-one, x-two, x-three]",
    ),
    followed(
        "copied_headers_restored",
        get("/from", ("x-one", "mine")),
        answers=(moved("http://copied-headers-restored.test/again", 302, ("x-one", "1")),),
        policy=f"response_headers_to_copy: [x-one], predicates: [{allowed('other')}]",
        fields="hash_policy: []",
    ),
    followed("request_headers", get("/from", ("cookie", "a=b"), ("x-envoy-original-url", "mine"))),
    followed(
        "route_changes",
        more="request_headers_to_add: [{ header: { key: x-source, value: '1' } }]",
        target_more="request_headers_to_add: [{ header: { key: x-target, value: '1' } }]",
    ),
    followed(
        "rewrites",
        fields="prefix_rewrite: /rewritten, host_rewrite_literal: r.test",
        target="cluster: b, prefix_rewrite: /final",
    ),
    followed(
        "response_headers",
        more="response_headers_to_add: [{ header: { key: x-source, value: '1' } }]",
        target_more="response_headers_to_add: [{ header: { key: x-target, value: '1' } }]",
    ),
    followed(
        "to_direct_response",
        routes="""
- { name: target, match: { prefix: /to }, direct_response: { status: 200, body: { inline_string: direct } } }
- { match: { prefix: / }, route: { cluster: a, internal_redirect_policy: {} } }
""",
    ),
    followed(
        "to_redirect",
        routes="""
- { name: target, match: { prefix: /to }, redirect: { path_redirect: /x } }
- { match: { prefix: / }, route: { cluster: a, internal_redirect_policy: {} } }
""",
    ),
    followed("no_route", routes="- { match: { prefix: /from }, route: { cluster: a, internal_redirect_policy: {} } }"),
    followed("target_fails", second=(reply(503),)),
    followed("target_closes", post("/from"), second=(CLOSE,)),
    followed(
        "target_retried",
        second=(reply(503), OK),
        target=f"cluster: b, {RETRY}",
        vhost="include_request_attempt_count: true\ninclude_attempt_count_in_response: true",
    ),
    followed(
        "retried_then_moved",
        answers=(reply(503), moved("http://retried-then-moved.test/to")),
        fields=RETRY,
        vhost="include_request_attempt_count: true\ninclude_attempt_count_in_response: true",
    ),
    followed(
        "retried_then_moved_post",
        post("/from", b"hello"),
        answers=(reply(503), moved("http://retried-then-moved-post.test/to")),
        fields=RETRY,
    ),
    followed("moved_closes", answer=reply(302, b"moved", [("location", "http://moved-closes.test/to")], then="close")),
    followed("moved_large", answer=reply(302, b"m" * 200_000, [("location", "http://moved-large.test/to")])),
    followed("target_moves", second=(moved("http://elsewhere.test/x"),)),
    followed("keep_alive", (get("/from"), Receive(), get("/from"), Receive())),
    followed("pipelined", (get("/from") * 2, Receive(2))),
    followed("connection_close", get("/from", ("connection", "close"))),
    followed("downstream_leaves", (get("/from"), AwaitUpstream(2), Close()), second=(STALL,)),
    followed("timeout_of_target", second=(STALL,), target="cluster: b, timeout: 0.1s"),
    followed("timeout_of_source", fields="timeout: 0.1s", second=(STALL,), target="cluster: b, timeout: 0.2s"),
    followed("mirrored", post("/from", b"hello"), fields="request_mirror_policies: [{ cluster: dead }]"),
    followed("edge", get("/from", ("x-forwarded-for", "1.2.3.4")), listener="edge"),
    followed("internal", get("/from"), listener="internal"),
    followed("http_1_0_absolute_form", get("http://$HOST/from")),
    followed("headers_of_timeouts", get("/from", ("x-envoy-upstream-rq-timeout-ms", "4000"))),
    Case(
        "deprecated_fields",
        get("/from"),
        by_server={"a": (moved("http://deprecated-fields.test/to"),), "b": (OK,)},
        route="""
- { match: { prefix: /to }, route: { cluster: b } }
- { match: { prefix: / }, route: { cluster: a, internal_redirect_action: HANDLE_INTERNAL_REDIRECT, max_internal_redirects: 1 } }
""",
    ),
    Case(
        "deprecated_max",
        get("/from"),
        by_server={"a": (moved("http://deprecated-max.test/again"),), "b": (OK,)},
        route="match: { prefix: / }\nroute: { cluster: a, internal_redirect_action: HANDLE_INTERNAL_REDIRECT, max_internal_redirects: 2 }",
    ),
    Case(
        "deprecated_action_only",
        get("/from"),
        by_server={"a": (moved("http://deprecated-action-only.test/again"),), "b": (OK,)},
        route="match: { prefix: / }\nroute: { cluster: a, internal_redirect_action: HANDLE_INTERNAL_REDIRECT }",
    ),
    Case(
        "deprecated_pass_through",
        get("/from"),
        by_server={"a": (moved("http://deprecated-pass-through.test/to"),), "b": (OK,)},
        route="match: { prefix: / }\nroute: { cluster: a, internal_redirect_action: PASS_THROUGH_INTERNAL_REDIRECT }",
    ),
    Case(
        "deprecated_max_only",
        get("/from"),
        by_server={"a": (moved("http://deprecated-max-only.test/to"),), "b": (OK,)},
        route="match: { prefix: / }\nroute: { cluster: a, max_internal_redirects: 2 }",
    ),
    Case(
        "policy_over_deprecated",
        get("/from"),
        by_server={"a": (moved("http://policy-over-deprecated.test/again"),), "b": (OK,)},
        route="match: { prefix: / }\nroute: { cluster: a, internal_redirect_policy: {}, max_internal_redirects: 3 }",
    ),
]

ELSEWHERE = """
- name: elsewhere
  domains: [other.test, 'other.test:8080', r.test, '[::1]:80']
  routes: [{ name: other, match: { prefix: / }, route: { cluster: b } }]
"""

TOPIC = Topic(
    CASES,
    {
        "main": "",
        "strict": "",
        "internal": "use_remote_address: true\ninternal_address_config: { cidr_ranges: [{ address_prefix: 127.0.0.0, prefix_len: 8 }] }",
        "edge": "use_remote_address: true",
    },
    vhosts=ELSEWHERE,
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_counted_alike(pair: Pair) -> None:
    check_counted_alike(pair, "http.main.", "cluster.a.", "cluster.b.")
