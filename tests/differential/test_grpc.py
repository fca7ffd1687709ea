"""Calls of gRPC over HTTP/1 with trailers: what is retried, logged, and counted of hosts."""

import json
from functools import partial

import pytest

from tests.differential.cases import Case, post
from tests.differential.counted import check_counted_alike
from tests.differential.pair import Pair, Side
from tests.differential.test_grpc_filters import GRPC, HTTP, TRAILERS_ON, answer, message, to, trailers_only
from tests.differential.topic import Topic
from tests.support.polling import wait_for
from tests.support.upstream import CLOSE, STALL, Answer, reply

BACK_OFF = "retry_back_off: { base_interval: 0.002s, max_interval: 0.004s }"
STATUSES = {"cancelled": 1, "deadline-exceeded": 4, "internal": 13, "resource-exhausted": 8, "unavailable": 14}
HALF = Answer(
    (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n6\r\n"
        + message(b"a")
        + b"\r\n",
    ),
    then="close",
)
STALLS = Answer(HALF.pieces, then="stall")


def retrying(condition: str, cluster: str = "t", more: str = "num_retries: 1") -> str:
    """A route that retries."""
    return (
        f"match: {{ prefix: / }}\nroute: {{ cluster: {cluster}, "
        f"retry_policy: {{ retry_on: '{condition}', {more}, {BACK_OFF} }} }}\n"
    )


def call(
    name: str, *answers: Answer, route: str = "", headers: tuple[tuple[str, str], ...] = (), at: str = "main"
) -> Case:
    """A call."""
    sent = post("/s.S/M", message(b"hello"), GRPC, *headers)
    return Case(name, sent, answers, route=route or to(), listener=at, log_bytes=False)


RETRIED = [
    *(
        call(f"{condition}_{status}".replace("-", "_"), trailers_only(str(status)), answer(), route=retrying(condition))
        for condition in STATUSES
        for status in STATUSES.values()
    ),
    *(
        call(
            f"asked_{condition}".replace("-", "_"),
            trailers_only(str(status)),
            answer(),
            headers=(("x-envoy-retry-grpc-on", condition),),
            at="internal",
        )
        for condition, status in STATUSES.items()
    ),
    call("asked_several", trailers_only("1"), trailers_only("8"), answer(), headers=(("x-envoy-retry-grpc-on", "cancelled,resource-exhausted"), ("x-envoy-max-retries", "2")), at="internal"),
    call("asked_as_http", trailers_only("14"), answer(), headers=(("x-envoy-retry-on", "unavailable"),), at="internal"),
    call("asked_from_outside", trailers_only("14"), answer(), headers=(("x-envoy-retry-grpc-on", "unavailable"),), at="edge"),
    call("status_in_trailers", answer(status="14"), answer(), route=retrying("unavailable")),
    call("status_in_head_of_many", answer(status=None, head=(("grpc-status", "14"),)), answer(), route=retrying("unavailable")),
    call("status_with_zeros", trailers_only("014"), answer(), route=retrying("unavailable")),
    call("status_odd", trailers_only("x"), answer(), route=retrying("unavailable,internal")),
    call("http_503", reply(503, b"no"), answer(), route=retrying("unavailable")),
    call("http_503_5xx", reply(503, b"no"), answer(), route=retrying("5xx,unavailable")),
    call("status_5xx", trailers_only("14"), answer(), route=retrying("5xx,gateway-error")),
    call("closed", CLOSE, answer(), route=retrying("unavailable")),
    call("closed_reset", CLOSE, answer(), route=retrying("unavailable,reset")),
    call("retried_in_vain", trailers_only("14"), trailers_only("14"), route=retrying("unavailable")),
    call("per_try_timeout", STALL, answer(), route=retrying("unavailable,5xx", more="per_try_timeout: 0.06s")),
    call("per_try_timeout_in_vain", STALL, route=retrying("unavailable", more="per_try_timeout: 0.06s")),
    Case(
        "not_grpc",
        post("/s.S/M", message(b"hello")),
        (trailers_only("14"), answer()),
        route=retrying("unavailable"),
        log_bytes=False,
    ),
]  # fmt: skip

ENDED = [
    *(call(f"trailers_{status}", answer(message(b"a"), status=str(status))) for status in range(18)),
    *(call(f"head_{status}", trailers_only(str(status))) for status in range(18)),
    call("trailers_odd", answer(status="x")),
    call("no_trailers", answer(message(b"a"), status=None)),
    call("no_status_at_all", reply(200, b"", [GRPC])),
    call("error_of_http", reply(500, b"x")),
    call("error_of_http_in_grpc", answer(status="0", code=503)),
    call("not_found", reply(404, b"x")),
    call("cut", HALF),
    call("refused", route=to("dead")),
    call("timeout", STALL, route="match: { prefix: / }\nroute: { cluster: t, timeout: 0.06s }"),
    call("timeout_amid", STALLS, route="match: { prefix: / }\nroute: { cluster: t, timeout: 0.06s }"),
    Case("plain_200", post("/s.S/M", b"x"), (trailers_only("14"),), route=to(), log_bytes=False),
]
STATUS_LOG = """
access_log:
- name: status
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: '@LOG@'
    log_format:
      text_format_source:
        inline_string: "%GRPC_STATUS% %GRPC_STATUS(CAMEL_STRING)% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS(NUMBER)% %GRPC_STATUS_NUMBER% %TRAILER(grpc-status)% %RESP(grpc-status)% path=%REQ(:PATH)% rx=\\n"
- name: filtered
  filter: { grpc_status_filter: { statuses: [NOT_FOUND, UNAVAILABLE] } }
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: '@LOG@'
    log_format: { text_format_source: { inline_string: "filtered path=%REQ(:PATH)% rx=\\n" } }
"""
LOGGED = [
    Case(f"logged_{case.name}", case.request, case.upstream, route=case.route, listener="logs", log_bytes=False)
    for case in ENDED
]
OUTLIERS = {
    "by_head": ("o1", trailers_only("14"), 1),
    "not_by_trailers": ("o2", answer(status="14"), 0),
    "not_by_client_errors": ("o3", trailers_only("5"), 0),
    "by_http": ("o4", reply(503, b"x"), 1),
    "not_by_status_ok": ("o5", trailers_only("0", code=503), 0),
}
EJECTED = [
    call(f"outlier_{number}_{name}", one, route=to(cluster))
    for name, (cluster, one, _) in OUTLIERS.items()
    for number in (1, 2)
]
QUIET = [
    Case(
        f"quiet_{name}",
        post("/s.S/M", message(b"x"), *headers),
        (one, answer()),
        route=route,
        listener="quiet",
        log_bytes=False,
    )
    for name, one, headers, route in (
        ("ok", answer(), (GRPC,), to("q")),
        ("error", reply(503, b"x"), (GRPC,), to("q")),
        ("retried", reply(503, b"x"), (GRPC,), retrying("5xx", "q")),
        ("closed", CLOSE, (GRPC,), to("q", "stat_prefix: closed")),
        ("timeout", STALL, (GRPC,), "match: { prefix: / }\nroute: { cluster: q, timeout: 0.06s }"),
        ("not_grpc", reply(503, b"x"), (), to("q")),
    )
]
OUTLIER = (
    "hosts: [a]\n" + TRAILERS_ON + "\n"
    "outlier_detection: { consecutive_5xx: 2, base_ejection_time: 100s, max_ejection_percent: 100, interval: 100s }\n"
    "common_lb_config: { healthy_panic_threshold: { value: 0 } }"
)

TOPIC = Topic(
    [*RETRIED, *ENDED, *LOGGED, *EJECTED, *QUIET],
    listeners={
        "main": "http_protocol_options: { enable_trailers: true }",
        "internal": "use_remote_address: true\nhttp_protocol_options: { enable_trailers: true }\n"
        "internal_address_config: { cidr_ranges: [{ address_prefix: 127.0.0.0, prefix_len: 8 }] }",
        "edge": "use_remote_address: true\nhttp_protocol_options: { enable_trailers: true }",
        "quiet": "http_protocol_options: { enable_trailers: true }\n"
        f"http_filters: [{{ name: router, typed_config: {{ '@type': {HTTP}router.v3.Router, "
        "suppress_grpc_request_failure_code_stats: true } }]",
        "logs": "http_protocol_options: { enable_trailers: true }\n" + STATUS_LOG,
    },
    clusters={
        "t": f"hosts: [a]\n{TRAILERS_ON}",
        **{f"o{number}": OUTLIER for number in range(1, 6)},
        "q": f"hosts: [a]\n{TRAILERS_ON}",
    },
)


def host_stats(side: Side) -> dict[str, dict[str, str]]:
    """What is counted of the hosts."""
    statuses = json.loads(side.proxy.admin("/clusters?format=json")[1])["cluster_statuses"]
    return {
        cluster["name"]: {
            stat["name"]: stat.get("value", "0") for stat in host["stats"] if stat["name"].startswith("rq_")
        }
        for cluster in statuses
        for host in cluster.get("host_statuses", ())
    }


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_what_hosts_count(pair: Pair) -> None:
    check_counted_alike(pair, "cluster.t.", "cluster.q.", "http.main.", "http.logs.")
    expected = host_stats(pair.reference)
    assert expected["t"]["rq_error"] != "0"
    assert host_stats(pair.subject) == expected


@pytest.mark.parametrize("name", OUTLIERS)
def test_which_hosts_are_ejected(pair: Pair, name: str) -> None:
    cluster, _, expected = OUTLIERS[name]
    stat = f"cluster.{cluster}.outlier_detection.ejections_enforced_total"
    for side in (pair.reference, pair.subject):
        wait_for(partial(has_ejected, side, stat, expected), f"{side.name} to eject {expected}")


def has_ejected(side: Side, stat: str, expected: int) -> bool:
    return side.proxy.stats(stat)[stat] == expected
