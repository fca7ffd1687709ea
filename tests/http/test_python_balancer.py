"""Load balancers that are classes in Python: the contract, as their authors see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from meshproxy import FilterContext, Host, LbRequest, LoadBalancer
from meshproxy.config.python_class import loaded_modules
from meshproxy.errors import ConfigError
from meshproxy.testing import LoadBalancerTest


@dataclass(frozen=True)
class Config:
    header: str = "x-shard"


class Shards(LoadBalancer):
    """The header says which host it is, in the order of their addresses."""

    config: Config

    def on_hosts(self, hosts: list[Host]) -> None:
        self.hosts = sorted(hosts, key=lambda host: host.address.port)

    def choose(self, request: LbRequest) -> Host | None:
        assert request.headers is not None
        shard = int(request.headers.get(self.config.header.encode()) or 0)
        return self.hosts[shard] if shard < len(self.hosts) else None


async def test_it_chooses_by_a_header() -> None:
    async with LoadBalancerTest(Shards, {"header": "x-part"}) as t:
        for shard in (2, 0, 1, 1):
            assert (await t.request("GET", f"/{shard}", {"x-part": str(shard)})).status == 200
        assert [[request.path for request in host.requests] for host in t.hosts] == [["/0"], ["/1", "/1"], ["/2"]]
        refused = await t.request("GET", "/", {"x-part": "3"})
        assert (refused.status, refused.details) == (503, "no_healthy_upstream")
        assert t.stats()["errors"] == 0


class Sees(LoadBalancer):
    seen: list[tuple[Any, ...]] = []
    told: list[list[str]] = []

    def on_hosts(self, hosts: list[Host]) -> None:
        Sees.told.append([host.address.text for host in hosts])

    def choose(self, request: LbRequest) -> Host | None:
        info, headers = request.info, request.headers
        assert info is not None
        assert headers is not None
        Sees.seen.append(
            (headers[b":path"], info.connection.remote.ip, request.hash, request.attempt, len(request.hosts))
        )
        left = [host for host in request.hosts if host not in request.avoid]
        return left[0]


RETRIES: dict[str, Any] = {
    "retry_on": "5xx",
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
            },
        }
    ],
}


class WithRetries(LoadBalancerTest):
    """With retries, and a hash policy."""

    def _manager(self, filters: list[dict[str, Any]]) -> dict[str, Any]:
        manager = super()._manager(filters)
        route = manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
        route |= {"retry_policy": RETRIES, "hash_policy": [{"header": {"header_name": "x-user"}}]}
        return manager


async def test_what_it_is_told_of_a_request() -> None:
    Sees.seen, Sees.told = [], []
    async with WithRetries(Sees) as t:
        t.hosts[0].respond(503)
        assert (await t.request("GET", "/a")).status == 200
        assert (await t.request("GET", "/b", {"x-user": "ann"})).status == 200
        assert [len(host.requests) for host in t.hosts] == [2, 2, 0]
    assert Sees.told == [["127.0.0.1:10000", "127.0.0.1:10001", "127.0.0.1:10002"]]
    hashes = [one[2] for one in Sees.seen]
    assert hashes[:2] == [None, None]
    assert hashes[2] == hashes[3] != None  # noqa: E711
    assert [one[:2] + one[3:] for one in Sees.seen] == [
        (b"/a", "127.0.0.1", 1, 3),
        (b"/a", "127.0.0.1", 2, 3),
        (b"/b", "127.0.0.1", 1, 3),
        (b"/b", "127.0.0.1", 2, 3),
    ]


OUTLIERS: dict[str, Any] = {
    "outlier_detection": {"consecutive_5xx": 1, "max_ejection_percent": 100},
    "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
}


async def test_hosts_that_are_not_healthy_are_not_offered() -> None:
    Sees.seen, Sees.told = [], []
    async with LoadBalancerTest(Sees, cluster_fields=OUTLIERS) as t:
        t.hosts[0].respond(500)
        assert [(await t.request("GET", "/")).status for _ in range(2)] == [500, 200]
    assert Sees.told[-1] == ["127.0.0.1:10001", "127.0.0.1:10002"]
    assert [one[4] for one in Sees.seen] == [3, 2]


class Fails(LoadBalancer):
    config: Config

    def __init__(self) -> None:
        self._maybe("init")

    def _maybe(self, hook: str) -> None:
        if self.config.header == hook:
            raise ValueError(hook)

    def on_hosts(self, hosts: list[Host]) -> None:
        self._maybe("hosts")

    def choose(self, request: LbRequest) -> Any:
        self._maybe("choose")
        return {"text": "no host", "stranger": Host(request.hosts[0].address, "", 0, request.hosts[0].locality)}.get(
            self.config.header, request.hosts[0]
        )


@pytest.mark.parametrize("hook", ["init", "choose", "text", "stranger"])
async def test_without_an_answer_a_host_is_chosen_at_random(hook: str) -> None:
    async with LoadBalancerTest(Fails, {"header": hook}) as t:
        assert [(await t.request("GET", "/")).status for _ in range(30)] == [200] * 30
        assert all(host.requests for host in t.hosts)
        assert t.stats()["errors"] == (1 if hook == "init" else 30)


async def test_on_hosts_may_fail() -> None:
    async with LoadBalancerTest(Fails, {"header": "hosts"}) as t:
        assert (await t.request("GET", "/")).status == 200
        assert t.stats()["errors"] == 1


class NoChoice(LoadBalancer):
    pass


class Waits(LoadBalancer):
    async def choose(self, request: LbRequest) -> Host | None: ...  # type: ignore[override]


@pytest.mark.parametrize(
    ("kind", "config", "error"),
    [
        (NoChoice, {}, "NoChoice must have a method choose(self, request)"),
        (Waits, {}, "Waits.choose cannot be async: nothing waits for it"),
        (Config, {}, "entry_point: Config is not derived from LoadBalancer"),
        (Shards, {"heder": "x"}, "config.heder: there is no such field (did you mean 'header'?)"),
    ],
)
async def test_a_class_and_its_configuration_are_checked(kind: Any, config: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await LoadBalancerTest(kind, config).start()
    assert str(caught.value).endswith(error)


class Shares(LoadBalancer):
    """Its context asks the hosts' agent."""

    events: list[str] = []

    @classmethod
    def on_start(cls, context: FilterContext) -> None:
        cls.events.append("started")
        context.state = {}

    @classmethod
    def on_stop(cls, context: FilterContext) -> None:
        cls.events.append("stopped")

    def on_hosts(self, hosts: list[Host]) -> None:
        self.context.state["hosts"] = hosts

    def choose(self, request: LbRequest) -> Host | None:
        self.context.count("chosen")
        hosts: list[Host] = self.context.state["hosts"]
        return hosts[-1]


class Shrinks(LoadBalancerTest):
    """Its cluster may lose its first host."""

    without_first = False

    def _bootstrap(self, ports: dict[str, int]) -> dict[str, Any]:
        return super()._bootstrap(dict(list(ports.items())[self.without_first :]))


async def test_it_lasts_while_nothing_of_it_changes() -> None:
    Shares.events = []
    async with Shrinks(Shares) as t:
        await t.request("GET", "/")
        await t.reload()
        await t.request("GET", "/")
        assert t.stats()["chosen"] == 2
        assert Shares.events == ["started"]
        t.without_first = True
        await t.reload()
        await t.request("GET", "/")
        assert [len(host.requests) for host in t.hosts] == [0, 0, 3]
        assert Shares.events == ["started"]
    assert Shares.events == ["started", "stopped"]


VERSION = """
from meshproxy import LoadBalancer

class Version(LoadBalancer):
    def choose(self, request):
        return request.hosts[%(index)d]
"""


async def test_a_changed_file_takes_over_and_connections_stay(tmp_path: Path) -> None:
    path = tmp_path / "version.py"
    path.write_text(VERSION % {"index": 0})
    async with LoadBalancerTest(path) as t:
        assert (await t.request("GET", "/")).status == 200
        path.write_text(VERSION % {"index": 2})
        await t.reload()
        assert (await t.request("GET", "/")).status == 200
        path.write_text(VERSION % {"index": 0})
        await t.reload()
        assert (await t.request("GET", "/")).status == 200
        assert [len(host.requests) for host in t.hosts] == [2, 0, 1]
        assert [host.connections for host in t.hosts] == [1, 0, 1]  # the pools go on
        assert loaded_modules() == 1
        path.write_text("1 / 0")
        with pytest.raises(ConfigError, match=r"version.py:1: ZeroDivisionError"):
            await t.reload()
        assert (await t.request("GET", "/")).status == 200
    assert loaded_modules() == 0
