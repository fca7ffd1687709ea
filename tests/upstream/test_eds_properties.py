"""Whatever assignments follow one another, the hosts are those of the last one, and stay the same where they can."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.subscription import ENDPOINT_TYPE
from meshproxy.upstream.host import EDS_HEALTH_FLAGS, Host
from tests.upstream.harness import World, endpoint, world
from tests.upstream.test_eds import assignment, eds

STATES = ("UNKNOWN", "HEALTHY", "UNHEALTHY", "DRAINING", "TIMEOUT", "DEGRADED")
ENDPOINTS = st.builds(
    lambda last, weight, state, label: endpoint(
        f"10.0.0.{last}",
        load_balancing_weight=weight,
        health_status=STATES[state],
        metadata={"filter_metadata": {"envoy.lb": {"version": label}}},
    ),
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(0, 5),
    st.sampled_from(["a", "b"]),
)
GROUPS = st.builds(
    lambda region, priority, weight, endpoints: {
        "locality": {"region": region},
        "priority": priority,
        "load_balancing_weight": weight,
        "lb_endpoints": endpoints,
    },
    st.sampled_from(["near", "far"]),
    st.integers(0, 2),
    st.integers(1, 3),
    st.lists(ENDPOINTS, max_size=6),
)
CLUSTERS: tuple[dict[str, Any], ...] = (
    {},
    {"lb_policy": "LEAST_REQUEST", "common_lb_config": {"locality_weighted_lb_config": {}}},
    {"lb_policy": "RING_HASH"},
    {"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 101}},
    {"lb_subset_config": {"fallback_policy": "ANY_ENDPOINT", "subset_selectors": [{"keys": ["version"]}]}},
)
Expected = tuple[str, str, int, int, int, int, str]


def expected(groups: list[dict[str, Any]]) -> list[Expected]:
    """Address, region, its weight, priority, weight, flags and label of every host: the first of an address counts."""
    found: dict[str, Expected] = {}
    weights = {(group["locality"]["region"], group["priority"]): group["load_balancing_weight"] for group in groups}
    for group in groups:
        region, priority = group["locality"]["region"], group["priority"]
        for one in group["lb_endpoints"]:
            address = one["endpoint"]["address"]["socket_address"]["address"]
            flags = EDS_HEALTH_FLAGS[STATES.index(one["health_status"])]
            label = one["metadata"]["filter_metadata"]["envoy.lb"]["version"]
            shown = (region, weights[region, priority], priority, one["load_balancing_weight"], flags, label)
            found.setdefault(address, (address, *shown))
    return list(found.values())


def described(host: Host) -> Expected:
    assert host.metadata is not None
    place, label = host.locality, host.metadata["envoy.lb"]["version"]
    flags = host.health_flags
    return host.address.ip, place.region, place.weight, host.priority, host.weight, flags, label


def push(w: World, groups: list[dict[str, Any]]) -> None:
    errors: ConfigErrors = w.subscriptions.deliver(ENDPOINT_TYPE, "c", assignment(*groups))
    assert not errors, str(errors)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CLUSTERS), st.lists(st.lists(GROUPS, max_size=4), min_size=1, max_size=6))
def test_any_assignments(fields: dict[str, Any], versions: list[list[dict[str, Any]]]) -> None:
    async def follow() -> None:
        async with world() as w:
            w.start(eds(**fields))
            before: dict[tuple[str, str], Host] = {}
            for groups in versions:
                push(w, groups)
                cluster = w.manager.get("c")
                assert cluster is not None
                wanted = expected(groups)
                assert [described(host) for host in cluster.hosts] == wanted
                now = {(host.address.ip, host.locality.region): host for host in cluster.hosts}
                assert all(now[key] is before[key] for key in now.keys() & before.keys())
                before = now
                counters = w.counters()
                assert counters.get("membership_total", 0) == len(wanted)
                assert counters.get("membership_healthy", 0) == sum(host.healthy for host in cluster.hosts)
                chosen = {cluster.choose_host(None) for _ in range(20)} - {None}
                assert chosen <= set(cluster.hosts)
                assert bool(chosen) == bool(wanted)

    asyncio.run(follow())
