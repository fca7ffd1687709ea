"""The same traffic, and then the same statistics under the same names."""

import re

import pytest

from tests.differential.cases import AwaitUpstream, Case, Close, Receive, ReceiveInterim, get, post, request
from tests.differential.pair import SUBJECT_IS_ENVOY, Pair, Side
from tests.differential.topic import Topic
from tests.support.polling import wait_for
from tests.support.upstream import CLOSE, OK, STALL, Answer, reply

BACK_OFF = "retry_back_off: { base_interval: 0.002s, max_interval: 0.004s }"
HOST = "stats.test"
ROUTES = f"""
- name: stats
  domains: [{HOST}]
  virtual_clusters: [{{ name: special, headers: [{{ name: ':path', string_match: {{ prefix: /special }} }}] }}]
  routes:
  - {{ match: {{ prefix: /ok }}, route: {{ cluster: a }} }}
  - match: {{ prefix: /little }}
    request_body_buffer_limit: 10
    route: {{ cluster: a, retry_policy: {{ retry_on: 5xx, {BACK_OFF} }} }}
  - {{ match: {{ prefix: /special }}, route: {{ cluster: a }} }}
  - {{ match: {{ prefix: /rewrite }}, route: {{ cluster: a, prefix_rewrite: /new }} }}
  - {{ match: {{ prefix: /retry }}, route: {{ cluster: b, retry_policy: {{ retry_on: 5xx, num_retries: 2, {BACK_OFF} }} }}, stat_prefix: re.try }}
  - {{ match: {{ prefix: /timeout }}, route: {{ cluster: c, timeout: 0.05s }}, stat_prefix: 'time:out' }}
  - {{ match: {{ prefix: /pertry }}, route: {{ cluster: c, retry_policy: {{ retry_on: 5xx, num_retries: 1, per_try_timeout: 0.05s, {BACK_OFF} }} }} }}
  - {{ match: {{ prefix: /backoff }}, route: {{ cluster: c, timeout: 0.05s, retry_policy: {{ retry_on: 5xx, retry_back_off: {{ base_interval: 1000s, max_interval: 1000s }} }} }}, stat_prefix: backoff }}
  - {{ match: {{ prefix: /dead }}, route: {{ cluster: dead }}, stat_prefix: dead }}
  - {{ match: {{ prefix: /empty }}, route: {{ cluster: empty }}, stat_prefix: empty }}
  - {{ match: {{ prefix: /weighted }}, route: {{ weighted_clusters: {{ clusters: [{{ name: a, weight: 1 }}] }} }}, stat_prefix: weighted }}
  - {{ match: {{ prefix: /breaker }}, route: {{ cluster: breaker }} }}
  - {{ match: {{ prefix: /redirect }}, redirect: {{ path_redirect: /x }}, stat_prefix: redirect }}
  - {{ match: {{ prefix: /direct }}, direct_response: {{ status: 200 }} }}
  - {{ match: {{ prefix: /unknown }}, route: {{ cluster_header: x-c }} }}
- name: odd
  domains: [odd.test]
  routes: [{{ match: {{ prefix: / }}, route: {{ cluster: a }} }}]
- name: quiet
  domains: [quiet.test]
  virtual_clusters: [{{ name: special, headers: [{{ name: ':path', string_match: {{ prefix: /special }} }}] }}]
  routes:
  - match: {{ prefix: / }}
    route: {{ cluster: quiet, retry_policy: {{ retry_on: 5xx, num_retries: 1, {BACK_OFF} }} }}
    stat_prefix: quiet
"""
QUIET = """
http_filters:
- name: router
  typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, dynamic_stats: false }
"""


def ask(name: str, path: str, *answers: Answer, body: bytes | None = None) -> Case:
    """A request and the upstream's answers."""
    sent = get(path, host=HOST) if body is None else post(path, body, host=HOST)
    return Case(name, sent, answers or (OK,), log_bytes=False)


CASES = [
    *(
        ask(f"status_{code}", "/ok", reply(code, b"" if code in (204, 304) else b"x"))
        for code in (200, 201, 204, 301, 304, 400, 404, 429, 500, 503, 504)
    ),
    ask("canary", "/ok", reply(200, b"x", [("x-envoy-upstream-canary", "true")])),
    ask("canary_500", "/special", reply(500, b"x", [("x-envoy-upstream-canary", "true")])),
    ask("canary_false", "/ok", reply(201, b"x", [("x-envoy-upstream-canary", "false")])),
    Case(
        "canary_alternative",
        get("/ok", ("x-envoy-upstream-alt-stat-name", "alt"), host=HOST),
        (reply(200, b"x", [("x-envoy-upstream-canary", "true")]),),
        listener="internal",
        log_bytes=False,
    ),
    ask("body", "/ok", reply(200, b"y" * 1000), body=b"x" * 1000),
    ask("virtual_cluster", "/special"),
    ask("rewrite", "/rewrite"),
    ask("weighted", "/weighted"),
    *(
        Case(
            f"alternative_{listener}_{path[1:]}",
            get(path, ("x-envoy-upstream-alt-stat-name", "alt"), host=HOST),
            listener=listener,
            log_bytes=False,
        )
        for listener in ("internal", "edge")
        for path in ("/ok", "/dead")
    ),
    *(
        Case(f"quiet_{number}", get(path, host="quiet.test"), answers, listener="quiet", log_bytes=False)
        for number, (path, answers) in enumerate(
            (("/", (OK,)), ("/special", (reply(503), OK)), ("/", (reply(500), reply(503))), ("/", (reply(404),)))
        )
    ),
    ask("retry_succeeds", "/retry", reply(503), OK),
    ask("retry_fails", "/retry", reply(503), reply(500), reply(502)),
    ask("retry_closed", "/retry", CLOSE, OK, body=b"x"),
    ask("timeout", "/timeout", STALL),
    ask("timeout_in_back_off", "/backoff", reply(503)),
    ask("per_try_timeout", "/pertry", STALL, OK),
    ask("dead", "/dead"),
    ask("empty", "/empty"),
    ask("breaker", "/breaker"),
    ask("redirect", "/redirect"),
    ask("direct", "/direct"),
    ask("no_route", "/none"),
    ask("unknown_cluster", "/unknown"),
    ask("closed", "/ok", CLOSE, body=b"x"),
    ask("protocol_error", "/ok", Answer((b"nonsense\r\n\r\n",), then="stall")),
    ask("cut", "/ok", Answer((b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",), then="close")),
    ask(
        "cut_trailer",
        "/ok",
        Answer((b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n",), then="close"),
    ),
    ask("until_close", "/ok", Answer((b"HTTP/1.1 200 OK\r\n\r\nhello",), then="close")),
    ask("upstream_says_close", "/ok", reply(200, b"x", [("connection", "close")])),
    ask("upstream_1_0", "/ok", Answer((b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx",), then="close")),
    ask("surplus", "/ok", Answer((b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxyz",), then="stall")),
    ask("interim", "/ok", Answer((b"HTTP/1.1 103 Hint\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx",))),
    ask("interim_then_closed", "/retry", Answer((b"HTTP/1.1 100 Continue\r\n\r\n",), then="close")),
    # Of a virtual host without virtual clusters: there Envoy makes a counter `vhost.stats.vcluster.other` of it, behind
    # which its /stats hides those whose names begin so.
    Case("status_600", get("/", host="odd.test"), (reply(600, b"x"),), log_bytes=False),
    ask("retry_body_too_long", "/little", reply(503), body=b"x" * 100),
    Case("early", (post("/ok", b"x" * 10, host=HOST)[:-5], Receive()), (reply(413, early=True, then="stall"),)),
    Case("expect", request("POST", "/ok", [("expect", "100-continue")], b"x", host=HOST), log_bytes=False),
    Case(
        "expect_then_gone",
        (
            request("POST", "/ok", [("expect", "100-continue"), ("content-length", "4")], host=HOST),
            ReceiveInterim(),
            Close(),
        ),
        log_bytes=False,
    ),
    Case("upgrade", get("/ok", ("connection", "upgrade"), ("upgrade", "frob"), host=HOST)),
    Case("bad_nomination", get("/ok", ("connection", "x-forwarded-for"), ("x-forwarded-for", "1.2.3.4"), host=HOST)),
    Case("headers_too_large", get("/ok", ("x-a", "a" * 70_000), host=HOST)),
    Case("never_used", (Close(),)),
    Case("bad_request", b"GET / HTTP/1.1\r\nhost: stats.test\r\na b: c\r\n\r\n"),
    Case("too_many_headers", b"GET / HTTP/1.1\r\nhost: stats.test\r\n" + b"a: b\r\n" * 120 + b"\r\n"),
    Case("low_version", b"GET / HTTP/1.0\r\nhost: stats.test\r\n\r\n"),
    Case("downstream_leaves", (get("/ok", host=HOST), AwaitUpstream(), Close()), (STALL,), log_bytes=False),
    Case("connection_close", get("/ok", ("connection", "close"), host=HOST)),
    Case(
        "keep_alive_three",
        (get("/ok", host=HOST), Receive(), get("/ok", host=HOST), Receive(), request("HEAD", "/ok", host=HOST)),
        probe=False,
        log=False,
    ),
]

TOPIC = Topic(
    CASES,
    listeners={
        "main": "",
        "quiet": QUIET,
        "edge": "use_remote_address: true",
        "internal": "use_remote_address: true\n"
        "internal_address_config: { cidr_ranges: [{ address_prefix: 127.0.0.0, prefix_len: 8 }] }",
    },
    clusters={
        "quiet": "hosts: [c]",
        "breaker": "circuit_breakers: { thresholds: [{ max_requests: 0, track_remaining: true }] }",
    },
    vhosts=ROUTES,
)

SCOPES = (
    "http.main.",
    "cluster.a.",
    "cluster.b.",
    "cluster.c.",
    "cluster.dead.",
    "cluster.empty.",
    "cluster.breaker.",
    "listener.main.",
    "vhost.stats.",
    "vhost.quiet.",
    "cluster.quiet.",
    "http.quiet.",
)
MEASURED = re.compile(r"bytes|_ms$|_time$|\.memory|cx_length|delayed_close_timeout")
"""Whose values are measured, depend on the length of measured numbers, or on which side closes first."""

NOT_COMPARED = re.compile(
    r"\.lb_(?!healthy_panic)|\.assignment_|\.update_|\.version$|\.warming_state|\.default\.total_match_count|"
    r"\.worker_\d+\.|\.main_thread|\.bind_errors|remaining_cx_pools"
)
"""Of Envoy's own inside: subsets, zones and discovery that are not configured here."""

NOT_YET = {
    "HTTP/2 and HTTP/3": r"http[23]|metadata_not_supported|response_flood|http1_soft_drain|premature_resets|0_rtt|0rtt",
    "overload manager": r"overload(?!ed)|_load_shed|ip_detection",
    "listener filters and filter chains": r"listener_filter|_pre_cx_|extension_config_missing",
    "underscores in upstream headers": r"cluster\.\w+\.http1\..*underscores",
    "bytes held in buffers": r"_bytes_buffered|rs_too_large",
}
"""Statistics of parts that are not there yet, by part."""


def shown(side: Side, scope: str) -> dict[str, int]:
    """Statistics of a scope, the listener's port taken out of its name."""
    found = {}
    for full, value in side.proxy.stats().items():
        name = plain(full)
        if name.startswith(scope) and not NOT_COMPARED.search(name):
            found[name] = value
    return found


def plain(name: str) -> str:
    """A name without the listener's port."""
    return re.sub(r"^listener\.127\.0\.0\.1_\d+\.", "listener.main.", name)


def used_gauges(side: Side, scope: str) -> set[str]:
    """Gauges of a scope that `usedonly` shows."""
    text = side.proxy.admin("/stats?usedonly&type=Gauges")[1]
    names = [plain(line.split(":")[0]) for line in text.splitlines()]
    return {name for name in names if name.startswith(scope)}


def values(side: Side, scope: str) -> dict[str, int]:
    """The same without what is measured."""
    return {name: value for name, value in shown(side, scope).items() if not MEASURED.search(name)}


def wait_until_idle(side: Side) -> None:
    """Until the last downstream connection has ended."""
    name = "http.main.downstream_cx_active"
    wait_for(lambda: side.proxy.stats(name).get(name) == 0, f"{side.name}'s connections to end")


@pytest.fixture(scope="module")
def after_traffic(pair: Pair) -> Pair:
    """Both proxies after the whole of the traffic."""
    for case in CASES:
        pair.run(case)
    for side in (pair.reference, pair.subject):
        wait_until_idle(side)
    return pair


def missing(pair: Pair, scope: str) -> set[str]:
    """Names that Envoy has and the subject lacks."""
    expected, actual = (set(shown(side, scope)) for side in (pair.reference, pair.subject))
    assert expected, f"nothing to compare in {scope}"
    return expected - actual


@pytest.mark.parametrize("scope", SCOPES)
def test_names(after_traffic: Pair, scope: str) -> None:
    allowed = re.compile("|".join(NOT_YET.values()))
    assert not sorted(name for name in missing(after_traffic, scope) if not allowed.search(name))


@pytest.mark.skipif(SUBJECT_IS_ENVOY, reason="Envoy lacks nothing that Envoy has")
def test_not_yet_is_not_stale(after_traffic: Pair) -> None:
    names = [name for scope in SCOPES for name in missing(after_traffic, scope)]
    stale = [part for part, pattern in NOT_YET.items() if not any(re.search(pattern, name) for name in names)]
    assert not stale, "these are there now: take them out of NOT_YET"


@pytest.mark.parametrize("scope", [*SCOPES, "server.", "listener_manager.", "cluster_manager.", "runtime."])
def test_gauges_that_were_set(after_traffic: Pair, scope: str) -> None:
    """`usedonly` shows a gauge that was set to 0: those of Envoy that we have at all."""
    expected, actual = (used_gauges(side, scope) for side in (after_traffic.reference, after_traffic.subject))
    ours = set(shown(after_traffic.subject, scope))
    assert not sorted(name for name in (expected & ours) - actual if ".circuit_breakers." not in name)


@pytest.mark.parametrize("scope", SCOPES)
def test_values(after_traffic: Pair, scope: str) -> None:
    expected, actual = (values(side, scope) for side in (after_traffic.reference, after_traffic.subject))
    differing = {
        name: (value, actual[name])
        for name, value in sorted(expected.items())
        if name in actual and actual[name] != value
    }
    assert not differing, f"(Envoy, subject): {differing}"


@pytest.mark.parametrize("scope", SCOPES)
def test_nothing_else_is_counted(after_traffic: Pair, scope: str) -> None:
    """What only the subject counts is a difference as well."""
    expected, actual = (values(side, scope) for side in (after_traffic.reference, after_traffic.subject))
    assert not {name: value for name, value in actual.items() if value and name not in expected}
