"""Mirroring: what the shadow is sent, when, and how little the request knows of it."""

from tests.differential.cases import (
    AwaitUpstream,
    AwaitWhole,
    Case,
    Close,
    Fire,
    Receive,
    Step,
    chunked,
    get,
    post,
    request,
)
from tests.differential.counted import check_counted_alike
from tests.differential.pair import Pair
from tests.differential.topic import TYPE, Topic
from tests.support.upstream import CLOSE, OK, RESET, STALL, Answer, reply

BOTH = "/both"


def mirror(policies: str, fields: str = "", match: str = "prefix: /", more: str = "") -> str:
    """A route to a that is mirrored."""
    fields = f", {fields}" if fields else ""
    return f"match: {{ {match} }}\nroute: {{ cluster: a{fields}, request_mirror_policies: [{policies}] }}\n{more}"


TO_B = "{ cluster: b }"
RETRY = (
    "retry_policy: { retry_on: 5xx, num_retries: 1, retry_back_off: { base_interval: 0.002s, max_interval: 0.004s } }"
)


def mirrored(
    name: str,
    req: bytes = get("/"),
    policies: str = TO_B,
    count: int = 2,
    fields: str = "",
    vhost: str = "",
    route: str = "",
    more: str = "",
    shadow: tuple[Answer, ...] = (OK,),
    answers: tuple[Answer, ...] = (OK,),
    steps: tuple[Step, ...] = (),
    listener: str = "main",
    compare: str = "all",
) -> Case:
    """A request of which `count` come to the upstreams, shadows among them."""
    script = steps or (req, Receive(), AwaitWhole(count))
    return Case(
        name,
        script,
        answers,
        by_server={"b": shadow},
        route=route or mirror(policies, fields, more=more),
        vhost=vhost,
        listener=listener,
        by_name=True,
        compare_upstream=compare,
        log_bytes=False,
    )


def fraction(numerator: int, denominator: str = "HUNDRED", key: str = "") -> str:
    """A policy with a runtime fraction."""
    runtime = f", runtime_key: {key}" if key else ""
    value = f"default_value: {{ numerator: {numerator}, denominator: {denominator} }}"
    return f"{{ cluster: b, runtime_fraction: {{ {value}{runtime} }} }}"


CHUNKED = request("POST", "/", [("transfer-encoding", "chunked")])
PLAIN = "match: { prefix: / }\nroute: { cluster: a }"
VHOST = "request_mirror_policies: [{ cluster: c }]"
CASES = [
    mirrored("get"),
    mirrored("head", request("HEAD", "/")),
    mirrored("post", post("/", b"hello")),
    mirrored("post_large", post("/", b"x" * 200_000)),
    mirrored("chunked", CHUNKED + chunked(b"hello", b"world")),
    mirrored("trailers", CHUNKED + chunked(b"hello", trailers=[("x-t", "1")])),
    mirrored("empty_body", post("/", b"")),
    mirrored("host_with_port", get("/", host="host-with-port.test:81"), vhost="domains: ['host-with-port.test:81']"),
    mirrored("host_ipv6", get("/", host="[::1]:99"), vhost="domains: ['[::1]:99']"),
    mirrored("host_ipv6_no_port", get("/", host="[::1]"), vhost="domains: ['[::1]']"),
    mirrored("no_suffix", policies="{ cluster: b, disable_shadow_host_suffix_append: true }"),
    mirrored("host_rewrite", policies="{ cluster: b, host_rewrite_literal: new.test }"),
    mirrored("host_rewrite_port", policies="{ cluster: b, host_rewrite_literal: 'new.test:1' }"),
    mirrored(
        "host_rewrite_no_suffix",
        policies="{ cluster: b, host_rewrite_literal: new.test, disable_shadow_host_suffix_append: true }",
    ),
    mirrored(
        "mutations",
        get("/", ("x-old", "1"), ("x-keep", "2")),
        policies="{ cluster: b, request_headers_mutations: [{ remove: x-old }, { append: { header: { key: x-new, value: '%REQ(x-keep)%' } } },"
        " { append: { header: { key: x-keep, value: '3' }, append_action: OVERWRITE_IF_EXISTS_OR_ADD } }] }",
    ),
    mirrored(
        "mutation_remove_on_match",
        get("/", ("x-old", "1"), ("x-keep", "2")),
        policies="{ cluster: b, request_headers_mutations: [{ remove_on_match: { key_matcher: { prefix: x-o } } }] }",
    ),
    mirrored(
        "route_rewrites",
        get("/a", ("x-gone", "1")),
        route="match: { prefix: /a }\nroute: { cluster: a, prefix_rewrite: /b, host_rewrite_literal: r.test, request_mirror_policies: [{ cluster: b }] }\n"
        "request_headers_to_add: [{ header: { key: x-a, value: '1' } }]\nrequest_headers_to_remove: [x-gone]",
    ),
    mirrored("two", policies="{ cluster: b }, { cluster: c }", count=3),
    mirrored("same_cluster", policies="{ cluster: a }"),
    mirrored("unknown_cluster", policies="{ cluster_header: x-c }", count=1, req=get("/", ("x-c", "nope"))),
    mirrored("cluster_header", get("/", ("x-c", "b")), "{ cluster_header: x-c }"),
    mirrored("cluster_header_missing", get("/"), "{ cluster_header: x-c }", count=1),
    mirrored("cluster_header_empty", get("/", ("x-c", "")), "{ cluster_header: x-c }", count=1),
    mirrored("fraction_0", policies=fraction(0), count=1),
    mirrored("fraction_100", policies=fraction(100)),
    mirrored("fraction_million", policies=fraction(1_000_000, "MILLION")),
    mirrored("fraction_key_off", policies=fraction(100, key="mirror.off"), count=1),
    mirrored("fraction_key_on", policies=fraction(0, key="mirror.on")),
    mirrored("fraction_key_unset", policies=fraction(100, key="mirror.unset")),
    mirrored("trace_sampled", policies="{ cluster: b, trace_sampled: false }"),
    mirrored("vhost", vhost=VHOST, route=PLAIN),
    mirrored("vhost_under_route", vhost=VHOST),
    mirrored("table", route=PLAIN, listener="mirroring"),
    mirrored("table_under_vhost", route=PLAIN, vhost="request_mirror_policies: [{ cluster: b }]", listener="mirroring"),
    mirrored("table_under_route", listener="mirroring"),
    mirrored(
        "table_redirect", route="match: { prefix: / }\nredirect: { path_redirect: /b }", count=0, listener="mirroring"
    ),
    mirrored(
        "weighted",
        route="match: { prefix: / }\nroute: { weighted_clusters: { clusters: [{ name: a, weight: 1 }] }, request_mirror_policies: [{ cluster: b }] }",
    ),
    mirrored("shadow_fails", shadow=(reply(503),)),
    mirrored("shadow_closes", shadow=(CLOSE,)),
    mirrored("shadow_resets", shadow=(RESET,)),
    mirrored("shadow_nonsense", shadow=(Answer((b"nonsense\r\n\r\n",), then="stall"),)),
    mirrored(
        "shadow_answers_early",
        steps=(CHUNKED + b"5\r\nhello\r\n", AwaitUpstream(2), b"0\r\n\r\n", Receive()),
        shadow=(reply(early=True),),
        compare="heads",
    ),
    mirrored("shadow_stalls", fields="timeout: 0.1s", shadow=(STALL,)),
    mirrored("shadow_dead", policies="{ cluster: dead }", count=1),
    mirrored("shadow_empty", policies="{ cluster: empty }", count=1),
    mirrored("shadow_body_dropped", shadow=(reply(200, b"x" * 300_000),)),
    mirrored("retried_not_mirrored_again", answers=(reply(503), OK), fields=RETRY, count=3),
    mirrored("retried_body", post("/", b"hello"), answers=(reply(503), OK), fields=RETRY, count=3),
    mirrored("shadow_not_retried", shadow=(reply(503), OK), fields=RETRY),
    mirrored(
        "primary_dead",
        route="match: { prefix: / }\nroute: { cluster: dead, request_mirror_policies: [{ cluster: b }] }",
        count=1,
    ),
    mirrored(
        "primary_empty",
        route="match: { prefix: / }\nroute: { cluster: empty, request_mirror_policies: [{ cluster: b }] }",
        count=0,
    ),
    mirrored(
        "primary_overflow",
        route="match: { prefix: / }\nroute: { cluster: breaker, request_mirror_policies: [{ cluster: b }] }",
        count=0,
    ),
    mirrored("shadow_overflow", policies="{ cluster: breaker }", count=1),
    mirrored("no_timeout", fields="timeout: 0s"),
    mirrored("per_try_timeout", fields=RETRY.replace("num_retries: 1", "num_retries: 1, per_try_timeout: 5s")),
    mirrored("suppressed", listener="suppressed"),
    mirrored("not_dynamic", listener="not_dynamic", shadow=(reply(503),)),
    mirrored("connect", request("CONNECT", "x.test:443"), count=0, listener="tunnels"),
    mirrored("asked_headers", get("/", ("x-envoy-upstream-rq-timeout-ms", "5000"), ("x-envoy-max-retries", "1"))),
    mirrored("internal", get("/"), listener="internal"),
    mirrored("edge", get("/", ("x-forwarded-for", "1.2.3.4")), listener="edge"),
    mirrored("attempt_count", vhost="include_request_attempt_count: true"),
    mirrored(
        "attempt_count_retried",
        post("/", b"x"),
        vhost="include_request_attempt_count: true",
        answers=(reply(503), OK),
        fields=RETRY,
        count=3,
    ),
    mirrored("auto_host_rewrite", fields="auto_host_rewrite: true"),
    mirrored(
        "body_over_limit",
        post("/", b"x" * 50_000),
        vhost="per_request_buffer_limit_bytes: 1000",
    ),
    mirrored(
        "body_over_limit_with_retries",
        post("/", b"x" * 50_000),
        vhost="per_request_buffer_limit_bytes: 1000",
        fields=RETRY,
    ),
    mirrored(
        "streamed",
        steps=(CHUNKED + b"5\r\nhello\r\n", AwaitUpstream(2), b"5\r\nworld\r\n0\r\n\r\n", Receive(), AwaitWhole(2)),
    ),
    mirrored("downstream_leaves_early", steps=(CHUNKED + b"5\r\nhello\r\n", AwaitUpstream(2), Close())),
    mirrored(
        "downstream_leaves",
        steps=(get("/"), AwaitWhole(2), Close(), Fire("go")),
        shadow=(Answer(wait_for="go"),),
        answers=(Answer(wait_for="go"),),
    ),
    mirrored(
        "primary_answers_early",
        steps=(CHUNKED + b"5\r\nhello\r\n", AwaitUpstream(2), Receive()),
        answers=(reply(413, early=True, then="close"),),
        compare="heads",
    ),
    mirrored(
        "primary_timeout",
        fields="timeout: 0.1s",
        answers=(STALL,),
        shadow=(STALL,),
    ),
]


def router(options: str) -> str:
    """A router with options of its own."""
    return f"http_filters: [{{ name: router, typed_config: {{ '@type': {TYPE}filters.http.router.v3.Router, {options} }} }}]"


TOPIC = Topic(
    CASES,
    {
        "main": "",
        "internal": "use_remote_address: true\ninternal_address_config: { cidr_ranges: [{ address_prefix: 127.0.0.0, prefix_len: 8 }] }",
        "edge": "use_remote_address: true",
        "suppressed": router("suppress_envoy_headers: true"),
        "not_dynamic": router("dynamic_stats: false"),
        "tunnels": "upgrade_configs: [{ upgrade_type: CONNECT }]",
        "mirroring": "route_config: { request_mirror_policies: [{ cluster: c }] }",
    },
    clusters={"breaker": "circuit_breakers: { thresholds: [{ max_requests: 0 }] }"},
    bootstrap="layered_runtime: { layers: [{ name: s, static_layer: { mirror: { 'off': 0, 'on': 100 } } }] }",
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_counted_alike(pair: Pair) -> None:
    check_counted_alike(
        pair, "http.main.", "cluster.a.", "cluster.b.", "cluster.dead.", "cluster.empty.", "cluster.breaker."
    )
