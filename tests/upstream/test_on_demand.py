"""Clusters that are asked for when they are needed."""

from __future__ import annotations

from typing import Any

import pytest

from meshproxy.config.config_source import ADS, ConfigSource
from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE
from meshproxy.upstream import on_demand
from meshproxy.upstream.manager import FOUND, MISSING, TIMED_OUT, ClusterRequest
from meshproxy.upstream.on_demand import OnDemandConfig
from tests.upstream.harness import World, cluster_dict, endpoint, parse, until, world


class Waiter:
    """What it was told, in `told`."""

    def __init__(self, w: World, name: str = "c", timeout_ms: float = 0.0) -> None:
        self.told: list[int] = []
        config = OnDemandConfig(ConfigSource(ADS), timeout_ms, w.services.subscriptions)
        self.request: ClusterRequest | None = w.manager.request_cluster(name, config, self.told.append)


def deliver(w: World, fields: dict[str, Any]) -> None:
    """As the server does: the cluster manager has it before those who watch it hear of it."""
    w.start(fields)
    w.subscriptions.deliver(CLUSTER_TYPE, fields["name"], parse(fields))


async def test_all_who_wait_are_told_when_it_is_there() -> None:
    async with world() as w:
        waiters = [Waiter(w), Waiter(w)]
        assert w.subscriptions.names(CLUSTER_TYPE) == ["c"]
        assert [waiter.told for waiter in waiters] == [[], []]
        deliver(w, cluster_dict(endpoint("10.0.0.1")))
        assert [waiter.told for waiter in waiters] == [[FOUND], [FOUND]]
        assert w.counters("cluster_manager.odcds.")["update_success"] == 1


async def test_they_are_told_when_it_is_warm() -> None:
    async with world() as w:
        waiter = Waiter(w)
        source: dict[str, Any] = {"eds_config": {"ads": {}}}
        deliver(w, {"name": "c", "type": "EDS", "eds_cluster_config": source})
        assert waiter.told == []
        w.subscriptions.miss(ENDPOINT_TYPE, "c")
        assert waiter.told == [FOUND]


async def test_a_cluster_from_elsewhere_is_one_too() -> None:
    async with world() as w:
        waiter = Waiter(w)
        w.add(cluster_dict(endpoint("10.0.0.1")))
        assert waiter.told == [FOUND]


async def test_they_are_told_when_it_does_not_exist_and_it_may_come_later() -> None:
    async with world() as w:
        waiter = Waiter(w)
        w.subscriptions.miss(CLUSTER_TYPE, "c")
        assert waiter.told == [MISSING]
        later = Waiter(w)
        assert len(w.subscriptions.watches) == 1  # it stays subscribed
        deliver(w, cluster_dict(endpoint("10.0.0.1")))
        assert (waiter.told, later.told) == ([MISSING], [FOUND])


async def test_they_wait_only_so_long() -> None:
    async with world() as w:
        waiter, patient = Waiter(w, timeout_ms=10.0), Waiter(w)
        await until(lambda: waiter.told)
        assert (waiter.told, patient.told) == ([TIMED_OUT], [])


async def test_one_that_gives_up_is_not_told() -> None:
    async with world() as w:
        waiter = Waiter(w)
        assert waiter.request is not None
        waiter.request.cancel()
        waiter.request.cancel()
        deliver(w, cluster_dict(endpoint("10.0.0.1")))
        assert waiter.told == []


async def test_nobody_is_asked_without_a_name_or_a_control_plane() -> None:
    async with world() as w:
        assert Waiter(w, "").request is None
        w.services.subscriptions = None
        assert Waiter(w).request is None


async def test_no_more_wait_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_demand, "_MOST_WAITING", 2)
    async with world() as w:
        first, second = Waiter(w), Waiter(w, "d")
        assert Waiter(w, "e").request is None
        assert first.request is not None
        first.request.cancel()
        assert Waiter(w, "e").request is not None
        assert second.told == []


async def test_only_so_many_names_without_a_cluster_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_demand, "_MOST_MISSING", 2)
    async with world() as w:
        deliver_to = Waiter(w, "there")
        deliver(w, cluster_dict(endpoint("10.0.0.1"), name="there"))
        assert deliver_to.told == [FOUND]
        waiting = Waiter(w, "waiting")
        for name in ("late", "one", "two", "three"):
            Waiter(w, name)
            w.subscriptions.miss(CLUSTER_TYPE, name)
            if name == "late":
                deliver(w, cluster_dict(endpoint("10.0.0.1"), name="late"))
        assert w.subscriptions.names(CLUSTER_TYPE) == ["late", "there", "three", "two", "waiting"]
        assert waiting.told == []


async def test_nobody_is_told_when_the_process_ends() -> None:
    async with world() as w:
        waiter = Waiter(w)
    assert (waiter.told, w.subscriptions.watches) == ([], [])
