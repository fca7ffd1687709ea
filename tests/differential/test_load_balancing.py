"""How requests are spread over hosts: policies, weights, health, priorities, and the panic threshold."""

import json
from collections import Counter

import pytest

from tests.differential.cases import get
from tests.differential.pair import Pair, Side
from tests.differential.topic import Topic
from tests.support.downstream import RawDownstream

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
SPREAD = {
    "least_request": "lb_policy: LEAST_REQUEST\n" + assignment(ABC),
    "random": "lb_policy: RANDOM\n" + assignment(ABC),
}

ROUTES = ", ".join(f"{{ match: {{ path: /{name} }}, route: {{ cluster: {name} }} }}" for name in (*EXACT, *SPREAD))
TOPIC = Topic(clusters=EXACT | SPREAD, vhosts=f"[{{ name: lb, domains: [lb.test], routes: [{ROUTES}] }}]")


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
