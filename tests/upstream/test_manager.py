"""Clusters that come, change and go, under requests; and names that are resolved."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.net.resolver import FAMILY_V4_ONLY
from meshproxy.upstream.build import build_cluster
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.host import Host, LbContext
from tests.upstream.harness import (
    OK,
    Call,
    FakeQuery,
    Peer,
    World,
    any_of,
    build,
    cluster_dict,
    endpoint,
    parse,
    until,
    upstream,
    world,
)


def addresses(cluster: Cluster) -> list[str]:
    return [host.address.text for host in cluster.hosts]


async def exchange(cluster: Cluster, peer: Peer | None = None, server: Any = None) -> tuple[Call, Peer]:
    """One request on a new connection, or on the one there is."""
    call = Call().start(cluster)
    peer = peer or await server.accept()
    await peer.request()
    peer.send(OK)
    await call.until("end")
    return call, peer


async def test_adding_and_removing() -> None:
    async with world() as w:
        w.add(cluster_dict(endpoint("10.0.0.1")))
        assert w.counters("cluster_manager.") == {"active_clusters": 1, "cluster_added": 1}
        assert w.counters() == {"membership_change": 1, "membership_total": 1, "membership_healthy": 1}
        w.manager.remove("c")
        assert w.manager.get("c") is None
        assert w.counters("cluster_manager.") == {"cluster_added": 1, "cluster_removed": 1}
        assert not [name for name, _ in w.registry.scopes() if name.startswith("cluster.")]
        w.manager.remove("c")
        assert w.counters("cluster_manager.")["cluster_removed"] == 1


async def test_what_builds_acquired_is_given_back() -> None:
    """By changes of endpoints alone, by other changes, and at the end."""
    async with world() as w:
        raw = {"name": "raw", "typed_config": any_of("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer")}
        matches = [{"name": "m", "match": {}, "transport_socket": raw}]
        for address, timeout in (("10.0.0.1", "1s"), ("10.0.0.2", "1s"), ("10.0.0.2", "2s"), ("10.0.0.3", "2s")):
            fields = cluster_dict(endpoint(address), transport_socket_matches=matches, connect_timeout=timeout)
            config = build_cluster(parse(fields), "c", BuildContext(ConfigErrors(), w.runtime, w.registry))
            assert config is not None
            w.manager.add_or_update(config)
            assert {"cluster.c.m.", "cluster.c.default."} <= {name for name, _ in w.registry.scopes()}
        w.manager.remove("c")
        assert not [name for name, _ in w.registry.scopes() if name.startswith("cluster.")]


async def test_alt_stat_name() -> None:
    async with world() as w:
        cluster = w.add(cluster_dict(endpoint("10.0.0.1"), alt_stat_name="other"))
        assert cluster.observability_name == "other"
        assert w.counters("cluster.other.")["membership_total"] == 1


async def test_new_endpoints_leave_connections_alone() -> None:
    async with world() as w, upstream() as server:
        old = cluster_dict(endpoint("127.0.0.1", server.port))
        cluster = w.add(old)
        _, peer = await exchange(cluster, server=server)
        host = cluster.hosts[0]
        more = cluster_dict(endpoint("127.0.0.1", server.port, load_balancing_weight=3), endpoint("127.0.0.2", 1))
        assert w.add(more) is cluster
        assert cluster.hosts[0] is host
        assert host.weight == 3
        assert addresses(cluster) == [f"127.0.0.1:{server.port}", "127.0.0.2:1"]
        call = Call().start(cluster, host)
        assert call.events == ["ready again"]
        await peer.request()
        assert w.counters()["membership_change"] == 2
        assert w.counters("cluster_manager.")["cluster_modified"] == 1


async def test_endpoints_that_share_an_address_are_hosts_of_their_own() -> None:
    def weighted(*weights: int) -> dict[str, Any]:
        return cluster_dict(*(endpoint("10.0.0.1", load_balancing_weight=weight) for weight in weights))

    async with world() as w:
        cluster = w.add(weighted(1, 2))
        first, second = cluster.hosts
        assert w.add(weighted(3, 4, 5)) is cluster
        assert cluster.hosts[:2] == [first, second]
        assert [host.weight for host in cluster.hosts] == [3, 4, 5]
        assert w.counters()["membership_total"] == 3
        w.add(weighted(3))
        assert cluster.hosts == [first]
        assert w.counters()["membership_change"] == 3


async def test_a_changed_cluster_inherits_the_numbers_of_each_host_of_an_address() -> None:
    async with world() as w:
        fields = cluster_dict(endpoint("10.0.0.1"), endpoint("10.0.0.1"))
        old = w.add(fields)
        new = w.add({**fields, "connect_timeout": "7s"})
        assert new is not old
        assert [host.stats for host in new.hosts] == [host.stats for host in old.hosts]
        assert new.hosts[0].stats is not new.hosts[1].stats


async def test_one_of_two_hosts_of_an_address_can_be_ejected() -> None:
    fields: dict[str, Any] = {"consecutive_5xx": 1, "max_ejection_percent": 50}
    async with world() as w:
        cluster = w.add(cluster_dict(endpoint("10.0.0.1"), endpoint("10.0.0.1"), outlier_detection=fields))
        for host in cluster.hosts:
            host.outlier.put_response(500)
        assert {cluster.choose_host(None) for _ in range(4)} == {cluster.hosts[1]}
        w.add(cluster_dict(endpoint("10.0.0.1"), outlier_detection=fields))
        assert w.counters()["outlier_detection.ejections_active"] == 1
        w.add(cluster_dict(endpoint("10.0.0.2"), outlier_detection=fields))
        assert "outlier_detection.ejections_active" not in w.counters()


async def test_membership_changes_count_by_priority() -> None:
    async with world() as w:
        fields = cluster_dict(endpoint("10.0.0.1"))
        second = {"lb_endpoints": [endpoint("10.0.0.1")], "priority": 1}
        fields["load_assignment"]["endpoints"].append(second)
        w.add(fields)
        assert w.counters()["membership_change"] == 2


async def test_names_that_share_an_address_may_resolve_in_any_order() -> None:
    async with world() as w:
        fields = cluster_dict(endpoint("one.test"), type="STRICT_DNS")
        second = {"lb_endpoints": [endpoint("two.test")], "priority": 1}
        fields["load_assignment"]["endpoints"].append(second)
        w.manager.add_or_update(build(fields))
        one, two = w.resolver.queries
        two.answer("10.0.0.1")
        cluster = w.manager.get("c")
        assert cluster is not None
        (host,) = cluster.hosts
        one.answer("10.0.0.1")
        assert [host.priority for host in cluster.hosts] == [0, 1]
        assert cluster.hosts[1] is host
        assert w.counters()["membership_change"] == 2


async def test_a_host_that_goes_keeps_its_streams() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        call = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        w.add(cluster_dict(endpoint("127.0.0.2", 1)))
        assert addresses(cluster) == ["127.0.0.2:1"]
        peer.send(OK)
        await call.until("end")
        assert await peer.eof() == b""
        assert "upstream_cx_active" not in w.counters()


async def test_another_configuration_drains_the_connections() -> None:
    async with world() as w, upstream() as server:
        fields = cluster_dict(endpoint("127.0.0.1", server.port))
        cluster = w.add(fields)
        _, idle = await exchange(cluster, server=server)
        busy = Call().start(cluster)
        await idle.request()
        changed = w.add({**fields, "connect_timeout": "7s"})
        assert changed is not cluster
        assert changed.hosts[0].stats is cluster.hosts[0].stats
        assert w.counters()["upstream_rq_active"] == 1
        assert changed.breakers(0).requests.in_use == 1
        idle.send(OK)
        await busy.until("end")
        assert await idle.eof() == b""
        assert changed.breakers(0).requests.in_use == 0
        await exchange(changed, server=server)
        assert w.counters()["upstream_cx_total"] == 2
        assert changed.hosts[0].stats.rq_total == 3


async def test_new_limits_count_what_is_in_use() -> None:
    async with world() as w, upstream() as server:
        fields = cluster_dict(endpoint("127.0.0.1", server.port))
        cluster = w.add(fields)
        call = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        changed = w.add({**fields, "circuit_breakers": {"thresholds": [{"max_requests": 1}]}})
        assert not changed.breakers(0).requests.can_acquire()
        peer.send(OK)
        await call.until("end")
        assert changed.breakers(0).requests.can_acquire()


async def test_the_retry_budget() -> None:
    budget = {"budget_percent": {"value": 50}, "min_retry_concurrency": 1}
    async with world() as w:
        cluster = w.add(cluster_dict(endpoint("10.0.0.1"), circuit_breakers={"thresholds": [{"retry_budget": budget}]}))
        breakers = cluster.breakers(0)
        assert breakers.retries.try_acquire()
        assert not breakers.retries.try_acquire()
        for _ in range(3):
            assert breakers.requests.try_acquire()
        assert breakers.pending.try_acquire()
        assert breakers.retries.try_acquire()  # half of four
        assert not breakers.retries.try_acquire()
        breakers.retries.release()
        assert breakers.retries.try_acquire()


async def test_track_remaining() -> None:
    limits = {"thresholds": [{"max_requests": 5, "track_remaining": True}]}
    async with world() as w:
        cluster = w.add(cluster_dict(endpoint("10.0.0.1"), circuit_breakers=limits))
        assert cluster.breakers(0).requests.try_acquire()
        counters = w.counters("cluster.c.circuit_breakers.default.")
        assert counters["remaining_rq"] == 4
        assert counters["remaining_cx"] == 1024
        assert counters["remaining_retries"] == 3
        assert not w.counters("cluster.c.circuit_breakers.high.")


async def test_limits_are_runtime_keys() -> None:
    async with world() as w:
        cluster = w.add(cluster_dict(endpoint("10.0.0.1")))
        assert cluster.breakers(1).connections.limit.key == "circuit_breakers.c.high.max_connections"
        assert cluster.breakers(0).retries.limit.key == "circuit_breakers.c.default.max_retries"


async def test_ejected_hosts_get_no_requests() -> None:
    fields: dict[str, Any] = {"consecutive_5xx": 1, "max_ejection_percent": 50}
    async with world() as w:
        cluster = w.add(cluster_dict(endpoint("10.0.0.1"), endpoint("10.0.0.2"), outlier_detection=fields))
        first = cluster.hosts[0]
        first.outlier.put_response(500)
        assert first.health_flag_names() == "/failed_outlier_check"
        assert {cluster.choose_host(None) for _ in range(4)} == {cluster.hosts[1]}
        assert w.counters()["outlier_detection.ejections_active"] == 1
        assert w.counters()["membership_healthy"] == 1
        # An update of the endpoints does not bring it back …
        w.add(
            cluster_dict(endpoint("10.0.0.1", load_balancing_weight=2), endpoint("10.0.0.2"), outlier_detection=fields)
        )
        assert {cluster.choose_host(None) for _ in range(4)} == {cluster.hosts[1]}
        # … and the end of its time does.
        assert cluster.detector is not None
        cluster.detector.on_interval(first.outlier.ejected_at + 30.0)
        assert {cluster.choose_host(None) for _ in range(8)} == set(cluster.hosts)
        assert w.counters()["membership_healthy"] == 2


async def test_membership_is_counted() -> None:
    states = ("HEALTHY", "UNHEALTHY", "DEGRADED", "DRAINING")
    async with world() as w:
        w.add(cluster_dict(*[endpoint(f"10.0.0.{i}", health_status=state) for i, state in enumerate(states)]))
        counted = {name: n for name, n in w.counters().items() if name.startswith("membership_")}
    assert counted == {
        "membership_change": 1,
        "membership_total": 4,
        "membership_healthy": 1,
        "membership_degraded": 1,
        "membership_excluded": 1,
    }


async def test_a_locality_can_change_its_weight_alone() -> None:
    def weighted(first: int, second: int) -> dict[str, Any]:
        fields = cluster_dict(common_lb_config={"locality_weighted_lb_config": {}})
        fields["load_assignment"]["endpoints"] = [
            {"locality": {"zone": "a"}, "load_balancing_weight": first, "lb_endpoints": [endpoint("10.0.0.1")]},
            {"locality": {"zone": "b"}, "load_balancing_weight": second, "lb_endpoints": [endpoint("10.0.0.2")]},
        ]
        return fields

    async with world() as w:
        cluster = w.add(weighted(1, 3))
        one, two = cluster.hosts
        assert Counter(cluster.choose_host(None) for _ in range(40)) == {one: 10, two: 30}
        assert w.add(weighted(4, 1)) is cluster
        assert Counter(cluster.choose_host(None) for _ in range(40)) == {one: 32, two: 8}
        assert cluster.hosts == [one, two]


async def test_hosts_to_avoid() -> None:
    async with world() as w:
        cluster = w.add(cluster_dict(endpoint("10.0.0.1"), endpoint("10.0.0.2")))
        context = LbContext()
        context.max_attempts = 3
        context.avoid.append(cluster.hosts[0])
        assert {cluster.choose_host(context) for _ in range(6)} == {cluster.hosts[1]}
        context.avoid.append(cluster.hosts[1])
        assert cluster.choose_host(context) in cluster.hosts  # better one of them than none


async def test_canaries_can_be_omitted() -> None:
    canary: dict[str, Any] = {"metadata": {"filter_metadata": {"envoy.lb": {"canary": True}}}}
    async with world() as w:
        cluster = w.add(cluster_dict(endpoint("10.0.0.1", **canary), endpoint("10.0.0.2")))
        context = LbContext()
        context.omit_canary = True
        assert {cluster.choose_host(context) for _ in range(6)} == {cluster.hosts[1]}


async def test_hosts_with_labels_can_be_omitted() -> None:
    def labelled(address: str, **labels: Any) -> dict[str, Any]:
        return endpoint(address, metadata={"filter_metadata": {"envoy.lb": labels}})

    async with world() as w:
        cluster = w.add(
            cluster_dict(
                labelled("10.0.0.1", stage="new", zone="one"),
                labelled("10.0.0.2", stage=["old", "new"], zone="one"),
                labelled("10.0.0.3", stage="new"),
                endpoint("10.0.0.4"),
            )
        )
        context = LbContext()
        context.max_attempts = 10
        context.omit_labels = [{"stage": "new", "zone": "one"}]
        assert {cluster.choose_host(context) for _ in range(12)} == set(cluster.hosts[2:])
        context.omit_labels = [{}]  # no label omits nobody
        assert {cluster.choose_host(context) for _ in range(12)} == set(cluster.hosts)


async def test_responses_are_counted_by_code() -> None:
    async with world() as w:
        cluster = w.add(cluster_dict(endpoint("10.0.0.1")))
        host = cluster.hosts[0]
        cluster.on_response(200, host, 12, False)
        cluster.on_response(503, host, 5, True)
        cluster.count_local_response(504, None, False)
        host.canary = True
        cluster.on_response(200, host, 1, False)
        counters = w.counters()
        expected = {
            "upstream_rq_completed": 4,
            "upstream_rq_200": 2,
            "upstream_rq_2xx": 2,
            "upstream_rq_503": 1,
            "upstream_rq_504": 1,
            "upstream_rq_5xx": 2,
            "internal.upstream_rq_completed": 1,
            "internal.upstream_rq_503": 1,
            "internal.upstream_rq_5xx": 1,
            "external.upstream_rq_completed": 3,
            "external.upstream_rq_200": 2,
            "external.upstream_rq_2xx": 2,
            "external.upstream_rq_504": 1,
            "external.upstream_rq_5xx": 1,
            "canary.upstream_rq_completed": 1,
            "canary.upstream_rq_200": 1,
            "canary.upstream_rq_2xx": 1,
        }
        assert {name: n for name, n in counters.items() if "upstream_rq" in name} == expected
        assert cluster.stats.upstream_rq_time.total == 3
        assert cluster.stats.canary_upstream_rq_time.total == 1
        assert (host.stats.rq_success, host.stats.rq_error) == (2, 1)
        w.registry.reset_counters()
        assert not [name for name in w.counters() if "upstream_rq" in name]


# -- names


def dns(*endpoints: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return cluster_dict(*endpoints, type="STRICT_DNS", **fields)


def add_dns(w: World, fields: dict[str, Any]) -> FakeQuery:
    w.manager.add_or_update(build(fields))
    return w.resolver.queries[-1]


async def test_a_name_warms_its_cluster() -> None:
    async with world() as w:
        query = add_dns(w, dns(endpoint("some.name", 81), dns_lookup_family="V4_ONLY"))
        assert (query.name, query.family) == ("some.name", FAMILY_V4_ONLY)
        assert w.manager.get("c") is None
        assert w.counters("cluster_manager.") == {"cluster_added": 1, "warming_clusters": 1}
        warmed = asyncio.ensure_future(w.manager.warmed())
        query.answer("10.0.0.1", "10.0.0.2")
        await warmed
        cluster = w.manager.get("c")
        assert cluster is not None
        assert addresses(cluster) == ["10.0.0.1:81", "10.0.0.2:81"]
        assert cluster.hosts[0].hostname == "some.name"
        assert w.counters("cluster_manager.") == {"cluster_added": 1, "active_clusters": 1}
        counters = w.counters()
        assert (counters["update_attempt"], counters["update_success"], counters["membership_total"]) == (1, 1, 2)


async def test_a_failure_warms_too() -> None:
    async with world() as w:
        add_dns(w, dns(endpoint("some.name"))).answer(error="no")
        cluster = w.manager.get("c")
        assert cluster is not None
        assert cluster.choose_host(None) is None
        assert w.counters()["update_failure"] == 1


async def test_hosts_stay_the_same_through_resolutions() -> None:
    async with world() as w:
        add_dns(w, dns(endpoint("some.name"), dns_refresh_rate="0.002s")).answer("10.0.0.1", "10.0.0.2")
        cluster = w.manager.get("c")
        assert cluster is not None
        kept = cluster.hosts[1]
        await until(lambda: len(w.resolver.queries) == 2)
        w.resolver.queries[1].answer("10.0.0.2", "10.0.0.3")
        assert cluster.hosts[0] is kept
        assert addresses(cluster) == ["10.0.0.2:80", "10.0.0.3:80"]
        await until(lambda: len(w.resolver.queries) == 3)
        w.resolver.queries[2].answer("10.0.0.3", "10.0.0.2")
        assert w.counters()["update_no_rebuild"] == 1
        await until(lambda: len(w.resolver.queries) == 4)
        w.resolver.queries[3].answer(error="temporary failure")
        assert len(cluster.hosts) == 2
        await until(lambda: len(w.resolver.queries) == 5)
        w.resolver.queries[4].answer()
        assert cluster.hosts == []


async def test_several_names_are_resolved_each() -> None:
    async with world() as w:
        w.manager.add_or_update(build(dns(endpoint("a", 1), endpoint("b", 2))))
        first, second = w.resolver.queries
        first.answer("10.0.0.1")
        cluster = w.manager.get("c")
        assert cluster is not None
        assert addresses(cluster) == ["10.0.0.1:1"]
        second.answer("10.0.0.2")
        assert addresses(cluster) == ["10.0.0.1:1", "10.0.0.2:2"]


async def test_a_changed_cluster_serves_when_it_is_warm() -> None:
    async with world() as w:
        add_dns(w, dns(endpoint("a"))).answer("10.0.0.1")
        old = w.manager.get("c")
        query = add_dns(w, dns(endpoint("a"), connect_timeout="3s"))
        assert w.manager.get("c") is old
        newest = add_dns(w, dns(endpoint("a"), connect_timeout="4s"))
        assert query.cancelled
        newest.answer("10.0.0.9")
        new = w.manager.get("c")
        assert new is not None
        assert new is not old
        assert new.config.connect_timeout_ms == 4000.0


async def test_new_names_of_a_cluster_keep_what_is_known() -> None:
    async with world() as w:
        add_dns(w, dns(endpoint("a"))).answer("10.0.0.1")
        cluster = w.manager.get("c")
        assert cluster is not None
        host = cluster.hosts[0]
        w.manager.add_or_update(build(dns(endpoint("a"), endpoint("b"))))
        assert w.manager.get("c") is cluster
        assert cluster.hosts == [host]
        w.resolver.queries[-1].answer("10.0.0.2")
        assert addresses(cluster) == ["10.0.0.1:80", "10.0.0.2:80"]


async def test_removing_a_cluster_ends_its_queries() -> None:
    async with world() as w:
        query = add_dns(w, dns(endpoint("a")))
        w.manager.remove("c")
        assert query.cancelled
        await w.manager.warmed()


async def test_a_name_cluster_without_endpoints_is_warm() -> None:
    async with world() as w:
        w.manager.add_or_update(build(dns()))
        assert w.manager.get("c") is not None


async def test_status() -> None:
    locality = {"region": "r", "zone": "z", "sub_zone": "s"}
    fields = cluster_dict(endpoint("10.0.0.1", endpoint={"hostname": "h"}), outlier_detection={})
    fields["load_assignment"]["endpoints"][0]["locality"] = locality
    async with world() as w:
        cluster = w.add(fields)
        cluster.hosts[0].stats.rq_total = 3
        (status,) = w.manager.status()
        assert status["name"] == status["observability_name"] == "c"
        assert status["circuit_breakers"]["thresholds"][1] == {
            "priority": "HIGH",
            "max_connections": 1024,
            "max_pending_requests": 1024,
            "max_requests": 1024,
            "max_retries": 3,
        }
        (host,) = status["host_statuses"]
        assert host["address"] == {"socket_address": {"address": "10.0.0.1", "port_value": 80}}
        assert host["locality"] == locality
        assert host["hostname"] == "h"
        assert host["health_status"] == {"eds_health_status": "HEALTHY"}
        assert {"name": "rq_total", "type": "COUNTER", "value": "3"} in host["stats"]
        assert {stat["name"] for stat in host["stats"]} == {
            *("cx_connect_fail", "cx_total", "rq_error", "rq_success", "rq_timeout", "rq_total"),
            *("cx_active", "rq_active", "rq_pending_active"),
        }
        assert status["text"]["outlier"]["success_rate_average"] == -1.0
        assert isinstance(cluster.hosts[0], Host)
