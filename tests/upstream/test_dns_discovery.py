"""STRICT_DNS and LOGICAL_DNS: what becomes of an answer, and when a name is asked for again."""

from __future__ import annotations

from typing import Any

import pytest

from meshproxy.net.timers import Timer, TimerWheel
from meshproxy.upstream.cluster import Cluster
from tests.upstream.harness import World, build, cluster_dict, endpoint, world

HOUR = "3600s"


def discovered(w: World, kind: str, *names: str, **fields: Any) -> Cluster:
    """A cluster whose names nobody has answered for yet."""
    endpoints = [endpoint(name) for name in names]
    w.manager.add_or_update(
        build(cluster_dict(*endpoints, type=kind, **{"dns_refresh_rate": HOUR} | fields), w.runtime)
    )
    cluster = w.manager.get("c") or w.manager.warming()[-1]
    assert cluster.name == "c"
    return cluster


def addresses(cluster: Cluster) -> list[str]:
    return [host.address.text for host in cluster.hosts]


class Waits(list[float]):
    """The timeouts that were armed, in ms."""


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    from meshproxy.net import timers

    if timers.__file__.endswith(".so"):
        pytest.skip("a compiled class cannot be watched")
    found = Waits()
    arm = TimerWheel.arm

    def watched(wheel: TimerWheel, timer: Timer, timeout_ms: float) -> None:
        found.append(timeout_ms)
        arm(wheel, timer, timeout_ms)

    monkeypatch.setattr(TimerWheel, "arm", watched)
    return found


# -- when it is asked again


@pytest.mark.parametrize(
    ("kind", "fields", "ttls_s", "expected"),
    [
        ("STRICT_DNS", {}, [7, 5], 3600_000.0),
        ("STRICT_DNS", {"respect_dns_ttl": True}, [7, 5, 6], 5_000.0),
        ("LOGICAL_DNS", {"respect_dns_ttl": True}, [7, 5, 6], 7_000.0),
        ("STRICT_DNS", {"respect_dns_ttl": True}, [7, 0], 3600_000.0),
        ("STRICT_DNS", {"respect_dns_ttl": True}, [], 3600_000.0),
        ("STRICT_DNS", {"dns_failure_refresh_rate": {"base_interval": "1s"}}, [7], 3600_000.0),
    ],
)
async def test_after_an_answer(
    waits: Waits, kind: str, fields: dict[str, Any], ttls_s: list[int], expected: float
) -> None:
    from meshproxy.net.resolver import DnsAddress, Resolution

    async with world() as w:
        discovered(w, kind, "name", **fields)
        found = [DnsAddress(f"10.0.0.{number}", ttl_s) for number, ttl_s in enumerate(ttls_s)]
        w.resolver.queries[0].callback(Resolution(found))
        assert waits == [expected]


async def test_jitter_comes_on_top(waits: Waits) -> None:
    async with world() as w:
        discovered(w, "STRICT_DNS", "name", dns_jitter="1s", dns_refresh_rate="2s")
        for _ in range(50):
            w.resolver.queries[0].answer("10.0.0.1")
    assert all(2_000.0 <= wait < 3_000.0 for wait in waits)
    assert len(set(waits)) > 10


async def test_after_a_failure_as_after_an_answer(waits: Waits) -> None:
    """But without the jitter."""
    async with world() as w:
        discovered(w, "STRICT_DNS", "name", dns_jitter="1s", dns_refresh_rate="2s")
        w.resolver.queries[0].answer(error="no")
    assert waits == [2_000.0]


async def test_failures_back_off(waits: Waits) -> None:
    """Full jitter below 1 s, 2 s, 4 s, 5 s, 5 s …, for all names together; an answer begins anew."""
    rate = {"base_interval": "1s", "max_interval": "5s"}
    highest = [0.0] * 6
    async with world() as w:
        discovered(w, "STRICT_DNS", "a", "b", dns_failure_refresh_rate=rate)
        for _ in range(60):
            waits.clear()
            for number in range(6):
                w.resolver.queries[number % 2].answer(error="no")
            highest = [max(high, wait) for high, wait in zip(highest, waits, strict=True)]
            w.resolver.queries[0].answer("10.0.0.1")
    limits = [1_000.0, 2_000.0, 4_000.0, 5_000.0, 5_000.0, 5_000.0]
    assert all(limit * 0.7 < high < limit for high, limit in zip(highest, limits, strict=True))


# -- what becomes of the hosts


async def test_a_logical_host_has_all_addresses() -> None:
    async with world() as w:
        cluster = discovered(w, "LOGICAL_DNS", "name", dns_lookup_family="ALL")
        w.resolver.queries[0].answer("10.0.0.1", "10.0.0.2", "::9")
        (host,) = cluster.hosts
        assert (host.address.text, host.hostname) == ("10.0.0.1:80", "name")
        assert [address.text for address in host.addresses] == ["10.0.0.1:80", "[::9]:80", "10.0.0.2:80"]
        assert [address.text for address in host.more] == ["10.0.0.2:80", "[::9]:80"]


async def test_other_addresses_make_another_logical_host() -> None:
    async with world() as w:
        cluster = discovered(w, "LOGICAL_DNS", "name")
        query = w.resolver.queries[0]
        query.answer("10.0.0.1", "10.0.0.2")
        (first,) = cluster.hosts
        query.answer("10.0.0.1", "10.0.0.2")
        assert cluster.hosts == [first]
        assert w.counters()["update_no_rebuild"] == 1
        query.answer("10.0.0.1", "10.0.0.3")
        assert cluster.hosts[0] is not first
        assert w.counters()["membership_change"] == 2


@pytest.mark.parametrize(("kind", "left", "failures"), [("STRICT_DNS", [], 0), ("LOGICAL_DNS", ["10.0.0.1:80"], 1)])
async def test_a_name_that_has_no_addresses_any_more(kind: str, left: list[str], failures: int) -> None:
    async with world() as w:
        cluster = discovered(w, kind, "name")
        w.resolver.queries[0].answer("10.0.0.1")
        w.resolver.queries[0].answer()
        assert addresses(cluster) == left
        assert w.counters().get("update_failure", 0) == failures


@pytest.mark.parametrize("kind", ["STRICT_DNS", "LOGICAL_DNS"])
async def test_a_failure_keeps_the_hosts(kind: str) -> None:
    async with world() as w:
        cluster = discovered(w, kind, "name")
        w.resolver.queries[0].answer("10.0.0.1")
        w.resolver.queries[0].answer(error="no")
        assert addresses(cluster) == ["10.0.0.1:80"]


async def test_twins_are_one_host() -> None:
    async with world() as w:
        cluster = discovered(w, "STRICT_DNS", "name")
        w.resolver.queries[0].answer("10.0.0.1", "10.0.0.1")
        assert addresses(cluster) == ["10.0.0.1:80"]


async def test_a_cluster_that_does_not_wait_serves_at_once() -> None:
    async with world() as w:
        cluster = discovered(w, "STRICT_DNS", "name", wait_for_warm_on_init=False)
        assert w.manager.get("c") is cluster
        assert w.manager.warming() == []
        w.resolver.queries[0].answer("10.0.0.1")
        assert addresses(cluster) == ["10.0.0.1:80"]


async def test_other_names_wait_for_their_answer_before_the_hosts_go() -> None:
    async with world() as w:
        cluster = discovered(w, "STRICT_DNS", "a")
        w.resolver.queries[0].answer("10.0.0.1")
        discovered(w, "STRICT_DNS", "b")
        assert addresses(cluster) == ["10.0.0.1:80"]
        w.resolver.queries[1].answer("10.0.0.2")
        assert addresses(cluster) == ["10.0.0.2:80"]
        discovered(w, "STRICT_DNS")
        assert cluster.hosts == []
