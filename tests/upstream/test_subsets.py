"""Subsets as hosts come, go, and change. What requests make of them, tests/differential/test_subsets.py compares."""

from __future__ import annotations

import random
from typing import Any

from meshproxy.config.runtime import RuntimeInt
from meshproxy.net.address import Address
from meshproxy.observe.stats import StatsRegistry
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo
from meshproxy.route.metadata_criteria import MetadataCriteria
from meshproxy.upstream.config import (
    ANY_ENDPOINT,
    NO_FALLBACK,
    UNDEFINED_FALLBACK,
    LbConfig,
    SubsetConfig,
    SubsetSelector,
)
from meshproxy.upstream.host import FAILED_EDS_HEALTH, NO_LOCALITY, Host, LbContext
from meshproxy.upstream.stats import ClusterStats
from meshproxy.upstream.subset import SubsetLoadBalancer, subset_keys
from tests.upstream.harness import cluster_dict, endpoint, errors_of, world


def labelled(number: int, **labels: Any) -> Host:
    host = Host(Address(f"10.0.0.{number}", 80), "", 0, NO_LOCALITY)
    host.metadata = {"envoy.lb": labels}
    return host


def wanting(**fields: Any) -> LbContext:
    context = LbContext()
    context.criteria = MetadataCriteria(fields)
    return context


class Balancer:
    """One with these selectors, and its stats."""

    def __init__(self, *keys: str, fallback: int = NO_FALLBACK) -> None:
        selectors = [SubsetSelector(frozenset(each.split()), UNDEFINED_FALLBACK, frozenset(), False) for each in keys]
        self.stats = ClusterStats()
        self.registry = StatsRegistry()
        config = LbConfig(RuntimeInt("", 50))
        config.subsets = SubsetConfig(selectors, fallback, {})
        bits = random.Random(3).getrandbits
        self.subject = SubsetLoadBalancer(config, config.subsets, self.stats, bits, None, self.registry, "cluster.c.")

    def hosts_for(self, context: LbContext | None, count: int = 20) -> set[Host | None]:
        return {self.subject.choose_host(context) for _ in range(count)}

    def counted(self) -> tuple[int, int, int]:
        stats = self.stats
        return stats.lb_subsets_active, stats.lb_subsets_created, stats.lb_subsets_removed


def test_subsets_come_and_go_with_their_hosts() -> None:
    one, two, three = labelled(1, v=1), labelled(2, v=2), labelled(3, v=2)
    balancer = Balancer("v")
    balancer.subject.update([one, two, three])
    assert balancer.counted() == (2, 2, 0)
    assert balancer.hosts_for(wanting(v=2)) == {two, three}
    balancer.subject.update([one])
    assert balancer.counted() == (1, 2, 1)
    assert balancer.hosts_for(wanting(v=2)) == {None}
    one.metadata = {"envoy.lb": {"v": 2}}
    balancer.subject.update([one])
    assert balancer.counted() == (1, 3, 2)
    assert balancer.hosts_for(wanting(v=2)) == {one}


def test_round_robin_goes_on_in_a_subset_when_hosts_change() -> None:
    hosts = [labelled(number, v=1) for number in range(3)]
    balancer = Balancer("v")
    balancer.subject.update(hosts)
    before = [balancer.subject.choose_host(wanting(v=1)) for _ in range(2)]
    balancer.subject.update([*hosts, labelled(9, v=2)])
    assert {*before, balancer.subject.choose_host(wanting(v=1))} == set(hosts)


def test_a_subset_looks_at_the_health_of_its_own_hosts() -> None:
    hosts = [labelled(number, v=1) for number in range(4)] + [labelled(9, v=2)]
    hosts[0].health_flags = FAILED_EDS_HEALTH
    balancer = Balancer("v")
    balancer.subject.update(hosts)
    assert balancer.hosts_for(wanting(v=1)) == set(hosts[1:4])
    hosts[4].health_flags = FAILED_EDS_HEALTH
    balancer.subject.update(hosts)
    assert balancer.hosts_for(wanting(v=2)) == {hosts[4]}  # panic
    assert balancer.stats.lb_healthy_panic == 20


def test_a_change_of_health_reaches_the_subsets_of_the_host_alone() -> None:
    hosts = [labelled(number, v=number % 3, all=[1, 2]) for number in range(6)]
    balancer = Balancer("v", "v all", fallback=ANY_ENDPOINT)
    balancer.subject.update(hosts)
    hosts[1].health_flags = hosts[2].health_flags = FAILED_EDS_HEALTH
    balancer.subject.on_health_changed(hosts, hosts[1])
    assert balancer.hosts_for(wanting(v=1)) == {hosts[4]}
    assert balancer.hosts_for(wanting(v=1, all=[1, 2])) == {hosts[4]}
    assert balancer.hosts_for(wanting(v=2)) == {hosts[2], hosts[5]}  # of which it has not heard
    assert balancer.hosts_for(None) == {hosts[0], hosts[3], hosts[4], hosts[5]}


def test_the_order_of_names_does_not_matter() -> None:
    host = labelled(1, a=1, b=2)
    balancer = Balancer("b a")
    balancer.subject.update([host])
    assert balancer.hosts_for(wanting(b=2, a=1)) == {host}
    assert balancer.hosts_for(wanting(a=1)) == {None}


def test_hosts_to_avoid_are_avoided_within_the_subset() -> None:
    hosts = [labelled(number, v=1) for number in range(2)]
    balancer = Balancer("v")
    balancer.subject.update(hosts)
    context = wanting(v=1)
    context.avoid.append(hosts[0])
    context.max_attempts = 5
    assert balancer.hosts_for(context) == {hosts[1]}


def test_metadata_of_the_request_wins_over_its_connection_and_its_route() -> None:
    hosts = [labelled(number, v=number) for number in range(4)]
    balancer = Balancer("v")
    balancer.subject.update(hosts)
    context = wanting(v=1)
    connection = ConnectionInfo(1, Address("10.9.9.9", 1), Address("10.9.9.8", 2))
    info = context.info = StreamInfo(connection, 0.0)
    assert balancer.hosts_for(context) == {hosts[1]}
    connection.dynamic_metadata = {"envoy.lb": {"v": 2}}
    assert balancer.hosts_for(context) == {hosts[2]}
    info.dynamic_metadata = {"envoy.lb": {"v": 3}, "other": {"v": 1}}
    assert balancer.hosts_for(context) == {hosts[3]}
    context.criteria = None
    assert balancer.hosts_for(context) == {hosts[3]}


def test_without_criteria_the_fallback_serves() -> None:
    hosts = [labelled(number, v=number) for number in range(3)]
    balancer = Balancer("v", fallback=ANY_ENDPOINT)
    balancer.subject.update(hosts)
    assert balancer.hosts_for(None) == set(hosts)
    assert balancer.stats.lb_subsets_fallback == 20


def test_the_stats_go_with_the_balancer() -> None:
    balancer = Balancer("v")
    balancer.subject.update([labelled(1, v=1)])
    balancer.subject.close()
    assert balancer.counted() == (0, 1, 1)
    assert balancer.registry.scopes() == []


def test_a_list_can_stand_for_each_of_its_elements() -> None:
    labels = {"a": ["x", "y"], "b": [1, 2]}
    host = labelled(1, **labels)
    assert len(subset_keys(host, ("a", "b"), True)) == 4
    assert subset_keys(host, ("a", "b"), False) == [MetadataCriteria(labels).key]
    assert subset_keys(host, ("a", "c"), True) == []


async def test_a_new_version_of_a_cluster_counts_its_subsets_anew() -> None:
    config: dict[str, Any] = {"lb_subset_config": {"subset_selectors": [{"keys": ["v"]}]}}
    one = endpoint("10.0.0.1", metadata={"filter_metadata": {"envoy.lb": {"v": "1"}}})
    async with world() as w:
        w.add(cluster_dict(one, **config))
        w.add(cluster_dict(one, connect_timeout="9s", **config))
        counters = w.counters()
    assert (counters["lb_subsets_active"], counters["lb_subsets_created"], counters["lb_subsets_removed"]) == (1, 2, 1)


def test_what_selectors_refuse() -> None:
    def refused(**selector: Any) -> dict[str, str]:
        return errors_of(cluster_dict(lb_subset_config={"subset_selectors": [{"keys": ["a", "b"], **selector}]}))

    where = "c.lb_subset_config.subset_selectors[0].fallback_keys_subset"
    for keys in ([], ["c"], ["a", "b"]):
        assert set(refused(fallback_policy="KEYS_SUBSET", fallback_keys_subset=keys)) == {where}
    assert set(refused(fallback_policy="ANY_ENDPOINT", fallback_keys_subset=["a"])) == {where}
    aware = {"locality_weight_aware": True, "subset_selectors": [{"keys": ["a"]}]}
    assert set(errors_of(cluster_dict(lb_subset_config=aware))) == {"c.lb_subset_config.locality_weight_aware"}


async def test_an_ejected_host_leaves_its_subset() -> None:
    fields: dict[str, Any] = {
        "lb_subset_config": {"subset_selectors": [{"keys": ["v"]}]},
        "outlier_detection": {"consecutive_5xx": 1, "max_ejection_percent": 50},
        "common_lb_config": {"healthy_panic_threshold": {}},
    }
    labels = {"filter_metadata": {"envoy.lb": {"v": "1"}}}
    async with world() as w:
        cluster = w.add(cluster_dict(*[endpoint(f"10.0.0.{i}", metadata=labels) for i in range(2)], **fields))
        assert cluster.needs_context
        assert {cluster.choose_host(wanting(v="1")) for _ in range(6)} == set(cluster.hosts)
        cluster.hosts[0].outlier.put_response(500)
        assert {cluster.choose_host(wanting(v="1")) for _ in range(6)} == {cluster.hosts[1]}
        assert cluster.choose_host(wanting(v="2")) is None
