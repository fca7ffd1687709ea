"""How requests are spread over hosts: policies, weights, health, priorities, and the panic threshold."""

import json
import os
from collections import Counter
from contextlib import ExitStack

import pytest

from tests.differential.cases import Case, get
from tests.differential.pair import SUBJECT_IS_ENVOY, Pair, Side
from tests.differential.topic import SERVERS, Topic
from tests.support.downstream import RawDownstream
from tests.support.proxy import start_envoy, start_meshproxy
from tests.support.upstream import STALL

DIFFERENCES = ("grpc-policies",)  # keys in docs/envoy-differences.md
REQUESTS = 60


def endpoint(server: str, fields: str = "") -> str:
    """One endpoint on a scripted server."""
    address = f"socket_address: {{ address: 127.0.0.1, port_value: @{server}@ }}"
    return f"{{ endpoint: {{ address: {{ {address} }} }}{', ' + fields if fields else ''} }}"


def assignment(*localities: str) -> str:
    """A load assignment of localities."""
    return f"load_assignment: {{ cluster_name: x, endpoints: [{', '.join(localities)}] }}\n"


def locality(*endpoints: str, fields: str = "") -> str:
    """One group of endpoints."""
    return f"{{ lb_endpoints: [{', '.join(endpoints)}]{', ' + fields if fields else ''} }}"


def factor_150(text: str) -> str:
    """Two thirds of the hosts are enough for all requests."""
    return text.replace("{ cluster_name", "{ policy: { overprovisioning_factor: 150 }, cluster_name", 1)


ABC = locality(endpoint("a"), endpoint("b"), endpoint("c"))
WEIGHTED = locality(
    *(endpoint(server, f"load_balancing_weight: {weight}") for server, weight in (("a", 1), ("b", 2), ("c", 3)))
)
SICK_B = locality(endpoint("a"), endpoint("b", "health_status: UNHEALTHY"), endpoint("c"))
DRAINING_B = locality(endpoint("a"), endpoint("b", "health_status: DRAINING"), endpoint("c"))
TIMEOUT_B = locality(endpoint("a"), endpoint("b", "health_status: TIMEOUT"), endpoint("c"))
DEGRADED_B = locality(endpoint("a"), endpoint("b", "health_status: DEGRADED"), endpoint("c"))
ONLY_DEGRADED = locality(endpoint("a", "health_status: UNHEALTHY"), endpoint("b", "health_status: DEGRADED"))
SICK = "health_status: UNHEALTHY"
CANARY = "metadata: { filter_metadata: { envoy.lb: { canary: true } } }"
NO_PANIC = "common_lb_config: { healthy_panic_threshold: { value: 0 } }\n"

EXACT = {
    "round_robin": assignment(ABC),
    "round_robin_weighted": assignment(WEIGHTED),
    "unhealthy": assignment(SICK_B),
    "draining": assignment(DRAINING_B),
    "timed_out": assignment(TIMEOUT_B),
    "degraded": factor_150(assignment(DEGRADED_B)),
    "only_degraded": assignment(ONLY_DEGRADED),
    "all_unhealthy_panic": assignment(locality(endpoint("a", SICK), endpoint("b", SICK))),
    "all_unhealthy_no_panic": NO_PANIC + assignment(locality(endpoint("a", SICK), endpoint("b", SICK))),
    "one_in_three_healthy_panic": assignment(locality(endpoint("a"), endpoint("b", SICK), endpoint("c", SICK))),
    "one_in_three_healthy_no_panic": NO_PANIC
    + assignment(locality(endpoint("a"), endpoint("b", SICK), endpoint("c", SICK))),
    "priority_0_first": assignment(locality(endpoint("a")), locality(endpoint("b"), fields="priority: 1")),
    "priority_0_sick": assignment(locality(endpoint("a", SICK)), locality(endpoint("b"), fields="priority: 1")),
    "priority_all_sick": NO_PANIC
    + assignment(locality(endpoint("a", SICK)), locality(endpoint("b", SICK), fields="priority: 1")),
    "priority_two_of_three_enough": factor_150(
        assignment(
            locality(endpoint("a"), endpoint("b"), endpoint("c", SICK)), locality(endpoint("c"), fields="priority: 1")
        )
    ),
    "least_request_one_host": "lb_policy: LEAST_REQUEST\n" + assignment(locality(endpoint("b"))),
    "random_one_host": "lb_policy: RANDOM\n" + assignment(locality(endpoint("c"))),
    "least_request_weighted": "lb_policy: LEAST_REQUEST\n" + assignment(WEIGHTED),
}
# An address that stands several times is a host each time.
TWICE = {
    "same_address_twice": assignment(locality(endpoint("a"), endpoint("a"), endpoint("b"))),
    "same_address_in_two_priorities": assignment(
        locality(endpoint("a"), endpoint("b")), locality(endpoint("a"), fields="priority: 1")
    ),
    "same_address_in_two_localities": assignment(
        locality(endpoint("a"), endpoint("b"), fields="locality: { zone: one }"),
        locality(endpoint("a"), fields="locality: { zone: two }"),
    ),
    "same_address_two_weights": assignment(
        locality(endpoint("a", "load_balancing_weight: 1"), endpoint("a", "load_balancing_weight: 3"), endpoint("b"))
    ),
    "same_address_second_sick": assignment(locality(endpoint("a"), endpoint("a", SICK), endpoint("b"))),
    "same_address_first_sick": assignment(locality(endpoint("a", SICK), endpoint("a"), endpoint("b"))),
    "same_address_one_canary": assignment(locality(endpoint("a"), endpoint("a", CANARY), endpoint("b"))),
}
EXACT |= TWICE | {f"{name}_dns": "type: STRICT_DNS\n" + text for name, text in TWICE.items()}
TYPED = "type.googleapis.com/envoy.extensions.load_balancing_policies."


def typed(config: str) -> str:
    """A typed policy."""
    return (
        "load_balancing_policy: { policies: [{ typed_extension_config: "
        f"{{ name: policy, typed_config: {{ '@type': {TYPED}{config} }} }} }}] }}\n"
    )


def place(zone: str, weight: int = 0, more: str = "") -> str:
    """The fields of a locality; weight 0 is none."""
    return f"locality: {{ zone: {zone} }}{f', load_balancing_weight: {weight}' if weight else ''}{more}"


def factor_100(text: str) -> str:
    """A locality is worth what is healthy of it."""
    return text.replace("{ cluster_name", "{ policy: { overprovisioning_factor: 100 }, cluster_name", 1)


ZONES = assignment(
    locality(endpoint("a"), fields=place("one", 1)),
    locality(endpoint("b"), fields=place("two", 2)),
    locality(endpoint("c"), fields=place("three", 3)),
)
WEIGH_ZONES = "common_lb_config: { locality_weighted_lb_config: {} }\n"
TYPED_ZONES = ", locality_lb_config: { locality_weighted_lb_config: {} }"
EXACT |= {
    "locality": WEIGH_ZONES + ZONES,
    "locality_least_request": "lb_policy: LEAST_REQUEST\n" + WEIGH_ZONES + ZONES,
    "locality_random": "lb_policy: RANDOM\n" + WEIGH_ZONES + ZONES,
    "locality_not_asked_for": ZONES,
    "locality_typed": typed("round_robin.v3.RoundRobin" + TYPED_ZONES) + ZONES,
    "locality_typed_least_request": typed("least_request.v3.LeastRequest" + TYPED_ZONES) + ZONES,
    "locality_typed_random": typed("random.v3.Random" + TYPED_ZONES) + ZONES,
    "locality_typed_not_asked_for": typed("round_robin.v3.RoundRobin") + ZONES,
    "locality_one_without_weight": WEIGH_ZONES
    + assignment(
        locality(endpoint("a"), fields=place("one", 1)),
        locality(endpoint("b"), fields=place("two", 2)),
        locality(endpoint("c"), fields=place("three")),
    ),
    "locality_without_weights": WEIGH_ZONES
    + assignment(*(locality(endpoint(name), fields=place(name)) for name in "abc")),
    "locality_without_name": WEIGH_ZONES
    + assignment(
        locality(endpoint("a"), fields="load_balancing_weight: 5"),
        locality(endpoint("b"), fields=place("two", 2)),
        locality(endpoint("c"), fields=place("three", 1)),
    ),
    "locality_named_twice": WEIGH_ZONES
    + assignment(
        locality(endpoint("a"), fields=place("one", 2)),
        locality(endpoint("b"), fields=place("two", 4)),
        locality(endpoint("c"), fields=place("one", 8)),
    ),
    "locality_with_many_hosts": WEIGH_ZONES
    + assignment(
        locality(endpoint("a"), endpoint("b"), fields=place("one", 1)), locality(endpoint("c"), fields=place("two", 1))
    ),
    "locality_half_sick": WEIGH_ZONES
    + factor_100(
        assignment(
            locality(endpoint("a"), endpoint("b", SICK), fields=place("one", 1)),
            locality(endpoint("c"), endpoint("c"), fields=place("two", 1)),
        )
    )
    + "\n",
    "locality_half_drained": WEIGH_ZONES
    + factor_100(
        assignment(
            locality(endpoint("a"), endpoint("b", "health_status: DRAINING"), fields=place("one", 1)),
            locality(endpoint("c"), fields=place("two", 1)),
        )
    ),
    "locality_gone": WEIGH_ZONES
    + assignment(
        locality(endpoint("a", SICK), fields=place("one", 9)),
        locality(endpoint("b"), fields=place("two", 1)),
        locality(endpoint("c"), fields=place("three", 1)),
    ),
    "locality_panic": WEIGH_ZONES
    + assignment(
        locality(endpoint("a", SICK), fields=place("one", 9)),
        locality(endpoint("b", SICK), fields=place("two", 1)),
        locality(endpoint("c"), fields=place("three", 1)),
    ),
    "locality_degraded": WEIGH_ZONES
    + assignment(
        locality(endpoint("a", "health_status: DEGRADED"), fields=place("one", 2)),
        locality(endpoint("b", "health_status: DEGRADED"), fields=place("two", 1)),
    ),
    "locality_second_priority": WEIGH_ZONES
    + assignment(
        locality(endpoint("a", SICK), fields=place("one", 1)),
        locality(endpoint("b"), fields=place("one", 1, ", priority: 1")),
        locality(endpoint("c"), fields=place("two", 2, ", priority: 1")),
    ),
    "full_scan_weighted": typed("least_request.v3.LeastRequest, selection_method: FULL_SCAN") + assignment(WEIGHTED),
    "health_by_weight": assignment(
        locality(endpoint("a", "load_balancing_weight: 3"), endpoint("b", SICK)),
        locality(endpoint("c"), fields="priority: 1"),
    ).replace("{ cluster_name", "{ policy: { weighted_priority_health: true }, cluster_name", 1),
    "typed_fails_in_panic": typed(
        "round_robin.v3.RoundRobin, locality_lb_config: { zone_aware_lb_config: { fail_traffic_on_panic: true } }"
    )
    + assignment(locality(endpoint("a", SICK), endpoint("b", SICK))),
    "negative_bias": "lb_policy: LEAST_REQUEST\nleast_request_lb_config: { active_request_bias: "
    "{ default_value: -1.0, runtime_key: x } }\n" + assignment(WEIGHTED),
}
SPREAD = {
    "least_request": "lb_policy: LEAST_REQUEST\n" + assignment(ABC),
    "random": "lb_policy: RANDOM\n" + assignment(ABC),
    "slow_start": "round_robin_lb_config: { slow_start_config: { slow_start_window: 60s } }\n" + assignment(WEIGHTED),
    "slow_start_least_request": typed(
        "least_request.v3.LeastRequest, slow_start_config: { slow_start_window: 60s, aggression: "
        "{ default_value: 2.0, runtime_key: x }, min_weight_percent: { value: 20 } }"
    )
    + assignment(ABC),
}
DROPPING = {
    f"drop_{percent}": assignment(locality(endpoint("a"))).replace(
        "{ cluster_name",
        f"{{ policy: {{ drop_overloads: [{{ category: x, drop_percentage: {{ numerator: {percent} }} }}] }}, cluster_name",
        1,
    )
    for percent in (0, 50, 100)
}
SCANNING = {
    "full_scan": typed("least_request.v3.LeastRequest, selection_method: FULL_SCAN") + assignment(ABC),
}

SILENT = (
    "http_filters: [{ name: router, typed_config: { "
    "'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true } }]\n"
)
ROUTES = ", ".join(f"{{ match: {{ path: /{name} }}, route: {{ cluster: {name} }} }}" for name in (*EXACT, *SPREAD, *DROPPING, *SCANNING))
RETRIED = "{ match: { prefix: / }, route: { cluster: drop_100, retry_policy: { retry_on: 5xx, num_retries: 2 } } }"
TOPIC = Topic(
    cases=[
        Case("dropped", get(), route="{ match: { prefix: / }, route: { cluster: drop_100 } }"),
        Case("dropped_and_not_retried", get(), route=RETRIED),
        Case("dropped_in_silence", get(), route=RETRIED, listener="silent"),
        Case("not_dropped", get(), route="{ match: { prefix: / }, route: { cluster: drop_0 } }"),
    ],
    listeners={"main": "", "silent": SILENT},
    clusters=EXACT | SPREAD | DROPPING | SCANNING,
    vhosts=f"[{{ name: lb, domains: [lb.test], routes: [{ROUTES}] }}]",
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def spread(side: Side, cluster: str) -> tuple[Counter[int], Counter[str]]:
    """Statuses of many requests, and which servers saw them."""
    script = side.upstream.play()
    with RawDownstream(side.ports["main"]) as downstream:
        statuses = Counter[int]()
        for _ in range(REQUESTS):
            downstream.send(get(f"/{cluster}", host="lb.test"))
            statuses[downstream.receive().status] += 1
    return statuses, Counter(seen.server for seen in script.seen)


@pytest.mark.parametrize("cluster", EXACT)
def test_same_spread(pair: Pair, cluster: str) -> None:
    expected, actual = (spread(side, cluster) for side in (pair.reference, pair.subject))
    assert actual == expected


@pytest.mark.parametrize("cluster", EXACT)
def test_same_hosts(pair: Pair, cluster: str) -> None:
    """What `/clusters` says of every host, and the statistics of membership."""
    expected, actual = (hosts(side, cluster) for side in (pair.reference, pair.subject))
    assert expected[0]
    assert actual == expected


@pytest.mark.parametrize("cluster", ["same_address_twice", "same_address_twice_dns"])
def test_same_highest_weight(pair: Pair, cluster: str) -> None:
    """Only discovery tells it."""
    expected, actual = (
        side.proxy.stats(f"^cluster.{cluster}.max_host_weight") for side in (pair.reference, pair.subject)
    )
    assert actual == expected


def hosts(side: Side, cluster: str) -> tuple[list[tuple[object, ...]], dict[str, int]]:
    """A line for every host, and the gauges and counters of the cluster's hosts."""
    status, text = side.proxy.admin("/clusters?format=json")
    assert status == 200
    shown = next(item for item in json.loads(text)["cluster_statuses"] if item["name"] == cluster)
    lines: list[tuple[object, ...]] = []
    for host in shown["host_statuses"]:
        port = host["address"]["socket_address"]["port_value"]
        place = (host.get("locality"), host.get("priority"))
        lines.append((side.port_names[port], host["weight"], host["health_status"], *place))
    # STRICT_DNS appends a name's hosts when it is resolved, which may be in any order.
    return sorted(lines, key=repr), side.proxy.stats(f"^cluster.{cluster}.membership")


@pytest.mark.parametrize("cluster", SPREAD)
def test_every_host_serves(pair: Pair, cluster: str) -> None:
    """Chance decides; a host that gets nothing of 60 requests is no chance (odds below 1 in 10^10)."""
    expected, actual = (spread(side, cluster) for side in (pair.reference, pair.subject))
    assert actual[0] == expected[0]
    assert set(actual[1]) == set(expected[1])


def test_half_of_the_requests_is_dropped(pair: Pair) -> None:
    """Both answers are there among 60 (odds below 1 in 10^17)."""
    for side in (pair.reference, pair.subject):
        assert set(spread(side, "drop_50")[0]) == {200, 503}


@pytest.mark.parametrize("cluster", SCANNING)
def test_a_full_scan_finds_the_idle_host(pair: Pair, cluster: str) -> None:
    """Requests that hang make their hosts busy, so that three requests are on three hosts."""
    for side in (pair.reference, pair.subject):
        for _ in range(6):
            assert hanging(side, cluster, 3) == {"a", "b", "c"}


def hanging(side: Side, cluster: str, count: int) -> set[str]:
    """The servers that so many requests at the same time are on."""
    script = side.upstream.play([STALL])
    with ExitStack() as stack:
        for number in range(count):
            downstream = stack.enter_context(RawDownstream(side.ports["main"]))
            downstream.send(get(f"/{cluster}", host="lb.test"))
            side.upstream.wait_seen(number + 1)
    side.upstream.settle()
    return {seen.server for seen in script.seen}


def within(name: str, field: str, inner: str) -> str:
    """A policy that another one is in."""
    extension = f"{{ name: inner, typed_config: {{ '@type': {TYPED}{inner} }} }}"
    return typed(f"{name}, {field}: {{ policies: [{{ typed_extension_config: {extension} }}] }}")


@pytest.mark.skipif(SUBJECT_IS_ENVOY, reason="it is about where the two differ")
@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        (typed("pick_first.v3.PickFirst") + assignment(ABC), {"a": 60}),
        (
            within("wrr_locality.v3.WrrLocality", "endpoint_picking_policy", "round_robin.v3.RoundRobin") + ZONES,
            {"a": 10, "b": 20, "c": 30},
        ),
        (
            within("wrr_locality.v3.WrrLocality", "endpoint_picking_policy", "least_request.v3.LeastRequest") + ZONES,
            {"a": 10, "b": 20, "c": 30},
        ),
    ],
)
def test_policies_that_envoy_lacks(cluster: str, expected: dict[str, int]) -> None:
    topic = Topic(
        clusters={"lb": cluster},
        vhosts="[{ name: lb, domains: ['*'], routes: [{ match: { prefix: / }, route: { cluster: lb } }] }]",
    )
    with pytest.raises(RuntimeError, match=r"PickFirst|only supports ClientSideWeightedRoundRobin"):
        start_envoy(topic.bootstrap_yaml(dict.fromkeys((*SERVERS, "dead"), 9), os.devnull))
    side = Side("meshproxy", topic, start_meshproxy)
    try:
        assert spread(side, "lb") == ({200: REQUESTS}, expected)
    finally:
        side.close()
