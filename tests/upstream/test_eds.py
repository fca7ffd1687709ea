"""Clusters whose endpoints come from a control plane. Counters and outcomes are those that Envoy 1.40 shows."""

from __future__ import annotations

import asyncio
from typing import Any

from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.json_message import MessageParser
from meshproxy.config.subscription import ENDPOINT_TYPE, InitTarget
from meshproxy.upstream.cluster import Cluster
from tests.upstream.harness import Call, World, any_of, cluster_dict, endpoint, errors_of, until, upstream, world

ADS_SOURCE = {"ads": {}, "resource_api_version": "V3"}


def eds(name: str = "c", service: str = "", **fields: Any) -> dict[str, Any]:
    config = {"eds_config": ADS_SOURCE, "service_name": service}
    return {"name": name, "type": "EDS", "eds_cluster_config": config, **fields}


def assignment(*groups: dict[str, Any], name: str = "c", **fields: Any) -> Any:
    message = ClusterLoadAssignment()
    errors = ConfigErrors()
    MessageParser(errors).fill(message, {"cluster_name": name, "endpoints": list(groups), **fields}, "")
    assert not errors, str(errors)
    return message


def group(*addresses: str, **fields: Any) -> dict[str, Any]:
    return {"lb_endpoints": [endpoint(address) for address in addresses], **fields}


def deliver(w: World, message: Any, name: str = "c") -> dict[str, str]:
    """Path → reason of every error."""
    errors = w.subscriptions.deliver(ENDPOINT_TYPE, name, message)
    return {error.path: error.reason for error in errors.items}


def started(w: World, *groups: dict[str, Any], **fields: Any) -> Cluster:
    """A warm cluster with these endpoints."""
    w.start(eds(**fields))
    assert deliver(w, assignment(*groups)) == {}
    cluster = w.manager.get("c")
    assert cluster is not None
    return cluster


def addresses(cluster: Cluster) -> list[str]:
    return [host.address.ip for host in cluster.hosts]


class Target(InitTarget):
    """Ready when the test says so."""

    def __init__(self) -> None:
        super().__init__("a secret")
        self.events: list[str] = []

    def begin(self) -> None:
        self.events.append("begin")

    def stop(self) -> None:
        self.events.append("stop")


# -- warming


async def test_it_takes_traffic_with_its_first_assignment() -> None:
    async with world() as w:
        w.start(eds(service="other"))
        assert w.manager.get("c") is None
        assert w.counters("cluster_manager.")["warming_clusters"] == 1
        assert w.manager.unready(w.manager.warming()[0]) == ["endpoints of c"]
        deliver(w, assignment(group("10.0.0.1"), name="other"), "other")
        cluster = w.manager.get("c")
        assert cluster is not None
        assert addresses(cluster) == ["10.0.0.1"]
        assert cluster.choose_host(None) is cluster.hosts[0]


async def test_it_waits_no_longer_when_there_is_none() -> None:
    async with world() as w:
        w.start(eds())
        w.subscriptions.miss(ENDPOINT_TYPE, "c")
        cluster = w.manager.get("c")
        assert cluster is not None
        assert cluster.hosts == []
        deliver(w, assignment(group("10.0.0.1")))
        assert addresses(cluster) == ["10.0.0.1"]


async def test_it_waits_no_longer_when_the_first_is_refused() -> None:
    async with world() as w:
        w.start(eds())
        assert deliver(w, assignment(name="other")) == {"cluster_name": "is 'other', where 'c' was asked for"}
        assert w.manager.get("c") is not None
        w.start(eds("d"))
        w.subscriptions.refuse(ENDPOINT_TYPE, "d")
        assert w.manager.get("d") is not None


async def test_it_waits_for_the_targets_of_its_build_too() -> None:
    async with world() as w:
        target = Target()
        w.start(eds(), target)
        assert target.events == ["begin"]
        deliver(w, assignment(group("10.0.0.1")))
        assert w.manager.get("c") is None
        assert w.manager.unready(w.manager.warming()[0]) == ["a secret"]
        target.set_ready()
        assert w.manager.get("c") is not None
        w.manager.remove("c")
        assert target.events == ["begin", "stop"]


async def test_static_clusters_wait_for_their_targets() -> None:
    async with world() as w:
        first, second, third = Target(), Target(), Target()
        w.start(cluster_dict(endpoint("10.0.0.1")), first)
        assert w.manager.get("c") is None
        first.set_ready()
        cluster = w.manager.get("c")
        assert cluster is not None
        w.start(cluster_dict(endpoint("10.0.0.2")), second)
        w.start(cluster_dict(endpoint("10.0.0.3")), third)  # before the second was ready
        assert (addresses(cluster), second.events) == (["10.0.0.1"], ["begin", "stop"])
        third.set_ready()
        assert (addresses(cluster), first.events) == (["10.0.0.3"], ["begin", "stop"])
        w.manager.remove("c")
        assert third.events == ["begin", "stop"]


async def test_the_old_version_serves_until_the_new_one_is_warm() -> None:
    async with world() as w:
        old = started(w, group("10.0.0.1"))
        w.start(eds(connect_timeout="7s"))
        assert w.manager.get("c") is old
        assert len(w.subscriptions.watches) == 2
        deliver(w, assignment(group("10.0.0.1")))
        new = w.manager.get("c")
        assert new is not None
        assert new is not old
        assert new.hosts[0].stats is old.hosts[0].stats
        assert len(w.subscriptions.watches) == 1


async def test_nobody_watches_for_a_cluster_that_is_gone() -> None:
    async with world() as w:
        started(w, group("10.0.0.1"))
        w.start(eds("warming"))
        w.manager.remove("c")
        w.manager.remove("warming")
        assert w.subscriptions.watches == []
        assert not [name for name, _ in w.registry.scopes() if name.startswith("cluster.")]


async def test_without_a_control_plane_it_has_no_hosts() -> None:
    async with world() as w:
        w.services.subscriptions = None
        w.start(eds())
        cluster = w.manager.get("c")
        assert cluster is not None
        assert cluster.hosts == []


# -- what an assignment says


async def test_the_whole_assignment_takes_the_place_of_the_one_before() -> None:
    async with world() as w:
        cluster = started(w, group("10.0.0.1", "10.0.0.2"))
        first, second = cluster.hosts
        deliver(w, assignment(group("10.0.0.3", "10.0.0.2")))
        assert addresses(cluster) == ["10.0.0.3", "10.0.0.2"]
        assert cluster.hosts[1] is second
        assert {cluster.choose_host(None) for _ in range(10)} == set(cluster.hosts)
        assert first not in cluster.hosts
        counters = w.counters()
        assert (counters["membership_total"], counters["membership_change"]) == (2, 2)


async def test_the_same_assignment_changes_nothing() -> None:
    async with world() as w:
        cluster = started(w, group("10.0.0.1"))
        hosts = cluster.hosts
        deliver(w, assignment(group("10.0.0.1")))
        assert cluster.hosts is hosts
        assert w.counters()["update_no_rebuild"] == 1
        assert w.counters()["update_success"] == 2


async def test_an_empty_assignment_takes_all_hosts_away() -> None:
    async with world() as w:
        cluster = started(w, group("10.0.0.1"))
        deliver(w, assignment())
        assert cluster.choose_host(None) is None
        assert "membership_total" not in w.counters()


async def test_a_missing_assignment_leaves_the_hosts() -> None:
    async with world() as w:
        cluster = started(w, group("10.0.0.1"))
        w.subscriptions.miss(ENDPOINT_TYPE, "c")
        assert addresses(cluster) == ["10.0.0.1"]
        assert w.counters()["update_empty"] == 1


async def test_of_endpoints_with_one_address_the_first_counts() -> None:
    async with world() as w:
        first = {"lb_endpoints": [endpoint("10.0.0.1", load_balancing_weight=2), endpoint("10.0.0.1")]}
        cluster = started(w, first, group("10.0.0.1", locality={"region": "r"}), group("10.0.0.1", priority=1))
        assert [(host.priority, host.weight, host.locality.region) for host in cluster.hosts] == [(0, 2, "")]
        deliver(w, assignment(first))
        assert w.counters()["update_no_rebuild"] == 1


async def test_priorities_may_leave_gaps() -> None:
    async with world() as w:
        cluster = started(w, group("10.0.0.1", priority=2), group("10.0.0.2"))
        assert [host.priority for host in cluster.hosts] == [2, 0]
        assert {cluster.choose_host(None) for _ in range(10)} == {cluster.hosts[1]}


async def test_a_host_that_changes_its_priority_stays_and_one_that_moves_does_not() -> None:
    async with world() as w:
        cluster = started(w, group("10.0.0.1", "10.0.0.2"))
        first, second = cluster.hosts
        deliver(w, assignment(group("10.0.0.1", priority=1), group("10.0.0.2", locality={"region": "r"})))
        assert cluster.hosts[0] is first
        assert first.priority == 1
        assert cluster.hosts[1] is not second
        assert cluster.hosts[1].locality.region == "r"


async def test_weights_and_localities_change_in_place() -> None:
    lb: dict[str, Any] = {"locality_weighted_lb_config": {}}
    async with world() as w:
        near = group("10.0.0.1", locality={"region": "near"}, load_balancing_weight=1)
        far = group("10.0.0.2", locality={"region": "far"}, load_balancing_weight=1)
        cluster = started(w, near, far, common_lb_config=lb)
        hosts = list(cluster.hosts)
        deliver(w, assignment(near, {**far, "load_balancing_weight": 9}))
        assert cluster.hosts == hosts
        chosen = [cluster.choose_host(None) for _ in range(100)]
        assert chosen.count(hosts[1]) == 90
        deliver(w, assignment(near, {**far, "load_balancing_weight": None}))
        assert {cluster.choose_host(None) for _ in range(10)} == {hosts[0]}


async def test_health() -> None:
    async with world() as w:
        states = ("HEALTHY", "DRAINING", "UNHEALTHY", "TIMEOUT", "DEGRADED")
        cluster = started(w, {"lb_endpoints": [endpoint(f"10.0.0.{i}", health_status=s) for i, s in enumerate(states)]})
        assert [host.health_flag_names() for host in cluster.hosts] == [
            "healthy",
            "/eds_status_draining",
            "/failed_eds_health",
            "/failed_eds_health",
            "/degraded_eds_health",
        ]
        counters = w.counters()
        assert [counters[f"membership_{name}"] for name in ("healthy", "degraded", "excluded")] == [1, 1, 1]
        host = cluster.hosts[1]
        deliver(w, assignment(group("10.0.0.1")))
        assert cluster.hosts == [host]
        assert host.healthy


async def test_a_draining_host_gets_no_new_requests_and_finishes_what_it_has() -> None:
    async with world() as w, upstream() as server:
        here, there = endpoint("127.0.0.1", server.port), endpoint("10.0.0.1")
        cluster = started(w, {"lb_endpoints": [here]})
        call = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        deliver(w, assignment({"lb_endpoints": [{**here, "health_status": "DRAINING"}, there]}))
        assert {cluster.choose_host(None) for _ in range(10)} == {cluster.hosts[1]}
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate")
        await call.until("end")
        assert call.received == b"late"


async def test_a_host_that_leaves_finishes_what_it_has() -> None:
    async with world() as w, upstream() as server:
        cluster = started(w, {"lb_endpoints": [endpoint("127.0.0.1", server.port)]})
        call = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        deliver(w, assignment(group("10.0.0.1")))
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate")
        await call.until("end")
        assert await peer.eof() == b""  # its connection goes then


async def test_the_policy_of_an_assignment() -> None:
    async with world() as w:
        well = {"lb_endpoints": [endpoint("10.0.0.1"), endpoint("10.0.0.2", health_status="UNHEALTHY")]}
        cluster = started(w, well, group("10.0.1.1", priority=1))
        hosts = cluster.hosts

        def share_of_the_first() -> float:
            return sum(cluster.choose_host(None) is hosts[0] for _ in range(1000)) / 10

        assert 60 < share_of_the_first() < 80  # 50 % healthy hosts, times 1.4
        policy: dict[str, Any] = {"overprovisioning_factor": 200}
        deliver(w, assignment(well, group("10.0.1.1", priority=1), policy=policy))
        assert share_of_the_first() == 100
        policy["drop_overloads"] = [{"category": "all", "drop_percentage": {"numerator": 100}}]
        deliver(w, assignment(well, group("10.0.1.1", priority=1), policy=policy))
        assert cluster.drop_overload is not None
        assert cluster.drops(cluster.drop_overload)
        assert cluster.config.drop_category == "all"
        deliver(w, assignment(well, group("10.0.1.1", priority=1)))
        assert cluster.drop_overload is None


async def test_hosts_whose_assignment_is_stale_go() -> None:
    async with world() as w:
        cluster = started(w, group("10.0.0.1"))
        deliver(w, assignment(group("10.0.0.1"), policy={"endpoint_stale_after": "0.02s"}))
        await until(lambda: not cluster.hosts)
        counters = w.counters()
        assert (counters["assignment_stale"], counters["assignment_timeout_received"]) == (1, 1)
        deliver(w, assignment(group("10.0.0.1")))
        assert addresses(cluster) == ["10.0.0.1"]


async def test_an_assignment_that_comes_while_stale_hosts_go() -> None:
    many = {"lb_endpoints": [many_endpoint(number) for number in range(3000)]}
    async with world() as w:
        cluster = started(w, many)
        deliver(w, assignment(many, policy={"endpoint_stale_after": "0.02s"}))
        await until(lambda: cluster.stats.assignment_stale)
        deliver(w, assignment(group("10.0.0.1", "10.0.0.2")))
        assert addresses(cluster) == ["10.0.0.1", "10.0.0.2"]
        assert {cluster.choose_host(None) for _ in range(10)} == set(cluster.hosts)
        assert w.counters()["membership_total"] == 2


async def test_another_assignment_is_in_time() -> None:
    async with world() as w:
        cluster = started(w, group("10.0.0.1"))
        deliver(w, assignment(group("10.0.0.1"), policy={"endpoint_stale_after": "0.02s"}))
        deliver(w, assignment(group("10.0.0.2")))
        done = asyncio.Event()
        w.dispatcher.loop.call_later(0.06, done.set)
        await done.wait()
        assert addresses(cluster) == ["10.0.0.2"]


async def test_metadata_chooses_the_transport_socket() -> None:
    raw = {"name": "raw", "typed_config": any_of("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer")}
    matches = [
        {"name": "mtls", "match": {"tlsMode": "istio"}, "transport_socket": raw},
    ]
    labels = {"filter_metadata": {"envoy.transport_socket_match": {"tlsMode": "istio"}}}
    async with world() as w, upstream() as server:
        here = endpoint("127.0.0.1", server.port)
        cluster = started(w, {"lb_endpoints": [here]}, transport_socket_matches=matches)
        host = cluster.hosts[0]
        assert host.transport_match == -1
        call = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        deliver(w, assignment({"lb_endpoints": [{**here, "metadata": labels}]}))
        assert cluster.hosts == [host]
        assert host.transport_match == 0
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await call.until("end")
        assert await peer.eof() == b""  # new requests go by the other socket
        deliver(w, assignment({"lb_endpoints": [here], "metadata": labels}))
        assert cluster.hosts[0].transport_match == 0  # by its locality's metadata
        assert w.counters()["mtls.total_match_count"] >= 2


# -- what is refused


async def test_a_refused_assignment_changes_nothing() -> None:
    async with world() as w:
        cluster = started(w, group("10.0.0.1"))
        drops = [{"category": name, "drop_percentage": {"numerator": 1}} for name in "ab"]
        wrong = assignment(
            {"lb_endpoints": [endpoint("10.0.0.2"), endpoint("name.test"), endpoint("10.0.0.3", 70_000)]},
            {"lb_endpoints": [], "priority": 200},
            {"lb_endpoints": [{"endpoint_name": "n"}], "load_balancing_weight": 3, "locality": {"region": "r"}},
            policy={"drop_overloads": drops},
        )
        assert set(deliver(w, wrong)) == {
            "endpoints[0].lb_endpoints[1].endpoint.address",
            "endpoints[0].lb_endpoints[2].endpoint.address.socket_address.port_value",
            "endpoints[1].priority",
            "endpoints[2].lb_endpoints[0].endpoint",
            "policy.drop_overloads",
        }
        assert addresses(cluster) == ["10.0.0.1"]
        assert w.counters()["update_rejected"] == 1
        assert deliver(w, assignment(group("10.0.0.1"))) == {}
        assert w.counters()["update_no_rebuild"] == 1


def test_what_belongs_together() -> None:
    fields = eds()
    source = fields["eds_cluster_config"]
    assert errors_of(cluster_dict(eds_cluster_config=source)) == {
        "c.eds_cluster_config": "is for clusters of the type EDS"
    }
    assert errors_of({"name": "c", "type": "EDS"}) == {"c.eds_cluster_config": "is required by the type EDS"}
    assert set(errors_of({**fields, "eds_cluster_config": {"eds_config": {}}})) == {"c.eds_cluster_config.eds_config"}


# -- very many


def many_endpoint(number: int, **fields: Any) -> dict[str, Any]:
    return endpoint(f"10.1.{number // 256}.{number % 256}", **fields)


async def test_an_endpoint_that_did_not_change_is_not_looked_at_again() -> None:
    many = [many_endpoint(number) for number in range(3000)]
    async with world() as w:
        cluster = started(w, {"lb_endpoints": many})
        first_steps = w.subscriptions.steps
        before = cluster.hosts
        many[7] = endpoint("10.2.0.1")
        deliver(w, assignment({"lb_endpoints": many}))
        assert [index for index, host in enumerate(cluster.hosts) if host is not before[index]] == [7]
        assert w.subscriptions.steps * 3 < first_steps


async def test_requests_find_the_hosts_of_before_until_all_is_ready() -> None:
    many = [many_endpoint(number, load_balancing_weight=number % 3 + 1) for number in range(3000)]
    async with world() as w:
        cluster = started(w, group("10.0.0.1"))
        before = cluster.hosts[0]
        watcher = w.subscriptions.watches[0].watcher
        steps = watcher.update(assignment({"lb_endpoints": many}), "2", ConfigErrors())
        chosen = [cluster.choose_host(None) for _ in steps]
        assert len(chosen) > 20
        changes = [index for index, host in enumerate(chosen[1:]) if (host is before) != (chosen[index] is before)]
        assert len(changes) <= 1
        assert cluster.choose_host(None) is not before


async def test_a_host_that_is_ejected_meanwhile_is_out() -> None:
    detection = {"consecutive_5xx": 1, "max_ejection_percent": 100}
    many = [many_endpoint(number) for number in range(2000)]
    async with world() as w:
        cluster = started(w, group("10.0.0.1", "10.0.0.2"), outlier_detection=detection)
        sick = cluster.hosts[0]
        message = assignment(group("10.0.0.1"), {"lb_endpoints": many, "priority": 1})
        steps = w.subscriptions.watches[0].watcher.update(message, "2", ConfigErrors())
        while len(cluster.hosts) == 2:
            next(steps)
        sick.outlier.put_response(500)
        for _ in steps:
            pass
        assert sick not in {cluster.choose_host(None) for _ in range(50)}


async def test_an_ejection_among_very_many_hosts_is_balanced_beside_the_traffic() -> None:
    many = [many_endpoint(number) for number in range(2000)]
    detection = {"consecutive_5xx": 1, "max_ejection_percent": 100}
    async with world() as w:
        first = group("10.0.0.1")
        cluster = started(w, first, {"lb_endpoints": many, "priority": 1}, outlier_detection=detection)
        sick = cluster.hosts[0]
        sick.outlier.put_response(500)
        assert w.counters()["membership_healthy"] == 2000
        assert cluster.choose_host(None) is sick  # nothing was held up for it
        await until(lambda: cluster.choose_host(None) is not sick)
        assert sick not in {cluster.choose_host(None) for _ in range(50)}
