"""Endpoints that are discovered: both proxies watch a file of their own, and take the same versions of it."""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy

CONFIG = """
node: {{id: test, cluster: test}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
static_resources:
  clusters:
  - name: c
    type: EDS
    connect_timeout: 1s
    eds_cluster_config:
      service_name: service
      eds_config: {{path_config_source: {{path: {path}}}, initial_fetch_timeout: 0.1s}}
"""
SEED = 7
TYPE = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
COMPARED = (
    "assignment_stale",
    "assignment_timeout_received",
    "max_host_weight",
    "membership_change",
    "membership_degraded",
    "membership_excluded",
    "membership_healthy",
    "membership_total",
    "update_empty",
    "update_rejected",
    "update_success",
)


class Side:
    """One proxy and the file that it watches."""

    def __init__(self, start: Callable[[str], ProxyProcess], directory: Path, first: dict[str, Any] | None) -> None:
        self._path = directory / "endpoints.json"
        self._versions = 0
        self._write([] if first is None else [first])
        self.proxy = start(CONFIG.format(path=self._path))
        self._until_taken()

    def _write(self, assignments: list[dict[str, Any]]) -> None:
        self._versions += len(assignments)
        resources = [{"@type": TYPE, "cluster_name": "service", **each} for each in assignments]
        content = {"version_info": str(self._versions), "resources": resources}
        written = self._path.with_suffix(".new")
        written.write_text(json.dumps(content))
        os.rename(written, self._path)

    def stats(self) -> dict[str, int]:
        found = self.proxy.stats("^cluster\\.c\\.")
        return {name: found[f"cluster.c.{name}"] for name in COMPARED}

    def _until_taken(self) -> None:
        def taken() -> bool:
            stats = self.stats()
            return stats["update_success"] + stats["update_rejected"] >= self._versions

        wait_for(taken, f"version {self._versions}", 10.0)

    def push(self, assignment: dict[str, Any]) -> None:
        self._write([assignment])
        self._until_taken()

    def dump(self) -> dict[str, Any]:
        """The assignment in force as `/config_dump` shows it: the cluster itself is the bootstrap's."""
        configs = json.loads(self.proxy.admin("/config_dump?include_eds")[1])["configs"]
        section = next(config for config in configs if config["@type"].endswith("EndpointsConfigDump"))
        ((shown,),) = [one.values() for one in section["static_endpoint_configs"]]
        found: dict[str, Any] = shown
        return found

    def is_empty(self) -> bool:
        return not self.hosts()

    def hosts(self) -> list[tuple[Any, ...]]:
        (cluster,) = json.loads(self.proxy.admin("/clusters?format=json")[1])["cluster_statuses"]
        found = []
        for host in cluster.get("host_statuses", ()):
            address = host["address"].get("socket_address", host["address"])
            locality = {name: value for name, value in host.get("locality", {}).items() if value}
            health = host["health_status"].get("eds_health_status")
            found.append((address, health, host["weight"], host.get("priority", 0), locality, host.get("hostname", "")))
        return found


class Pair:
    def __init__(self, directory: Path, first: dict[str, Any] | None) -> None:
        self.sides = []
        for name, start in (("ours", start_meshproxy), ("envoy", start_envoy)):
            (directory / name).mkdir()
            self.sides.append(Side(start, directory / name, first))

    def push(self, assignment: dict[str, Any]) -> None:
        """Both take it, and are alike then."""
        for side in self.sides:
            side.push(assignment)
        self.compare()

    def compare(self) -> None:
        ours, envoy = self.sides
        assert ours.hosts() == envoy.hosts()
        assert ours.stats() == envoy.stats()

    def stop(self) -> None:
        for side in self.sides:
            side.proxy.stop()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path, group("10.0.0.1", "10.0.0.2"))
    yield made
    made.stop()


def endpoint(address: str, port: int = 80, **fields: Any) -> dict[str, Any]:
    named = {"address": {"socket_address": {"address": address, "port_value": port}}, **fields.pop("endpoint", {})}
    return {"endpoint": named, **fields}


def place(*endpoints: dict[str, Any] | str, **fields: Any) -> dict[str, Any]:
    return {"lb_endpoints": [endpoint(one) if isinstance(one, str) else one for one in endpoints], **fields}


def group(*endpoints: dict[str, Any] | str) -> dict[str, Any]:
    return {"endpoints": [place(*endpoints)]}


def test_what_assignments_make_of_the_hosts(pair: Pair) -> None:
    pair.compare()
    pair.push(group("10.0.0.2", "10.0.0.3"))
    pair.push(group("10.0.0.2", endpoint("10.0.0.3", load_balancing_weight=7)))
    states = ("HEALTHY", "DRAINING", "UNHEALTHY", "TIMEOUT", "DEGRADED", "UNKNOWN")
    pair.push(group(*(endpoint("10.0.1.1", 80 + port, health_status=state) for port, state in enumerate(states))))
    pair.push(group(endpoint("10.0.0.1", load_balancing_weight=3), endpoint("10.0.0.1"), "::1"))
    named = endpoint("10.0.0.4", endpoint={"hostname": "four"})
    far = {"region": "r", "zone": "z", "sub_zone": "s"}
    pair.push({"endpoints": [place("10.0.0.1", priority=2), place(named, locality=far), place("10.0.0.5")]})
    pair.push({"endpoints": [place("10.0.0.1", locality=far), place(named, priority=1)]})
    twice = [place(f"10.0.0.{last}", locality=far, load_balancing_weight=last) for last in (4, 5)]
    pair.push({"endpoints": twice})
    pair.push({})
    pair.push(group("10.0.0.9"))


def random_assignment(rng: random.Random) -> dict[str, Any]:
    """Few addresses, so that hosts stay, change, move and come twice."""
    states = ("UNKNOWN", "HEALTHY", "UNHEALTHY", "DRAINING", "TIMEOUT", "DEGRADED")
    groups = []
    for _ in range(rng.randrange(4)):
        hosts = [
            endpoint(
                f"10.0.0.{rng.randrange(1, 9)}",
                load_balancing_weight=rng.randrange(1, 4),
                health_status=rng.choice(states),
                endpoint={"hostname": rng.choice(("", "named"))},
                metadata={"filter_metadata": {"envoy.lb": {"version": rng.choice("ab")}}},
            )
            for _ in range(rng.randrange(6))
        ]
        locality = {"region": rng.choice(("near", "far"))}
        groups.append(place(*hosts, priority=rng.randrange(3), locality=locality))
    return {"endpoints": groups}


def test_random_assignments(pair: Pair) -> None:
    rng = random.Random(SEED)
    before: dict[str, Any] = {}
    for _ in range(12):
        assignment = random_assignment(rng)
        if assignment != before:  # what a file said already, we do not count as an update
            pair.push(assignment)
        before = assignment


def test_what_is_refused(pair: Pair) -> None:
    drops = [{"category": name, "drop_percentage": {"numerator": 1}} for name in "ab"]
    for wrong in (
        group("name.test"),
        group(endpoint("10.0.0.9", 70_000)),
        group(endpoint("10.0.0.9", load_balancing_weight=0)),
        {"cluster_name": "service", "endpoints": [place("10.0.0.9", priority=200)]},
        {**group("10.0.0.9"), "policy": {"drop_overloads": drops}},
        {**group("10.0.0.9"), "policy": {"overprovisioning_factor": 0}},
        {"named_endpoints": {"n": endpoint("10.0.0.9")["endpoint"]}, "endpoints": [place({"endpoint_name": "n"})]},
    ):
        pair.push(wrong)
    pair.push(group("10.0.0.3"))


def test_the_dump_shows_what_is_in_force(pair: Pair) -> None:
    far = {"region": "r", "zone": "z"}
    drops = [{"category": "some", "drop_percentage": {"numerator": 25}}]
    policy = {"overprovisioning_factor": 150, "drop_overloads": drops}
    weighted = place(endpoint("10.0.0.3", load_balancing_weight=2), locality=far, load_balancing_weight=3)
    pair.push({"endpoints": [weighted, place("10.0.0.4", priority=1)], "policy": policy})
    ours, envoy = [side.dump() for side in pair.sides]
    assert ours == envoy


def test_an_assignment_becomes_stale(pair: Pair) -> None:
    for side in pair.sides:
        side.push({**group("10.0.0.3"), "policy": {"endpoint_stale_after": "0.2s"}})
        wait_for(side.is_empty, "no hosts", 10.0)
    pair.compare()
    pair.push(group("10.0.0.3"))


def test_without_an_assignment_there_are_no_hosts(tmp_path: Path) -> None:
    """Both start all the same; it may still come."""
    pair = Pair(tmp_path, None)
    try:
        assert [side.hosts() for side in pair.sides] == [[], []]
        for side in pair.sides:
            side.push(group("10.0.0.1"))
        ours, envoy = pair.sides
        assert ours.hosts() == envoy.hosts() != []
    finally:
        pair.stop()
