"""Which endpoints a proxy prefers, by `localityLbSetting`: Istio's rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from meshproxy.config.subscription import CLUSTER_TYPE
from meshproxy.pilot.documents.destination_rule import Distribute, Failover, LocalityLbSetting
from meshproxy.pilot.mesh.services import Endpoint
from meshproxy.pilot.resources.locality import Origin, arranged, covers, grouped
from tests.pilot.resources.support import SHOP_PAGE, mesh_of, resource, snapshot_of

PLACES = ["eu/eu-1/a", "eu/eu-1/b", "eu/eu-2/a", "us/us-1/a", "asia/as-1/a"]
ENDPOINTS = [Endpoint(f"10.0.0.{index}", 80, locality=place) for index, place in enumerate(PLACES)]


def seen(setting: LocalityLbSetting | None, own: str, labels: Any = (), endpoints: Any = ENDPOINTS) -> Any:
    """Locality, priority and weight of every group."""
    groups = arranged(grouped(endpoints), setting, Origin(own, labels))
    return [(group.locality, group.priority, group.weight) for group in groups]


def test_the_nearest_come_first() -> None:
    assert seen(None, "eu/eu-1/a") == [
        ("eu/eu-1/a", 0, 1),
        ("eu/eu-1/b", 1, 1),
        ("eu/eu-2/a", 2, 1),
        ("asia/as-1/a", 3, 1),
        ("us/us-1/a", 3, 1),
    ]


def test_priorities_have_no_gaps() -> None:
    assert [priority for _, priority, _ in seen(None, "us/us-2")] == [0, 1, 1, 1, 1]


def test_a_rule_says_where_a_region_fails_over_to() -> None:
    setting = LocalityLbSetting(failover=(Failover(from_="eu", to="us"),))
    assert seen(setting, "eu/eu-1/a")[-2:] == [("us/us-1/a", 3, 1), ("asia/as-1/a", 4, 1)]
    assert [priority for _, priority, _ in seen(setting, "us/us-1/a")] == [0, 1, 1, 1, 1]


def test_places_count_too_for_hosts_that_are_resolved() -> None:
    text = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: far, namespace: shop}
spec:
  hosts: [far.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: DNS
  endpoints: [{address: a.example, locality: us/us-1}, {address: b.example, locality: eu/eu-1}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: far, namespace: shop}
spec:
  host: far.example
  trafficPolicy:
    loadBalancer: {localityLbSetting: {distribute: [{from: eu/*, to: {eu/*: 80, us/*: 20}}]}}
"""
    mesh = mesh_of(text)
    shares = {}
    for region in ("eu", "us"):
        proxy = replace(SHOP_PAGE, region=region, zone="", metadata=())
        localities = resource(snapshot_of(mesh, proxy), CLUSTER_TYPE, "outbound|80||far.example").load_assignment
        shares[region] = {one.locality.region: one.load_balancing_weight.value for one in localities.endpoints}
    assert shares == {"eu": {"eu": 80, "us": 20}, "us": {"eu": 1, "us": 1}}


def test_who_is_nowhere_prefers_nobody() -> None:
    assert {priority for _, priority, _ in seen(None, "")} == {0}


def test_shares_by_locality() -> None:
    setting = LocalityLbSetting(
        distribute=(
            Distribute(from_="us/*", to=(("us/*", 100),)),
            Distribute(from_="eu/eu-1/*", to=(("eu/eu-1/*", 70), ("eu/*", 10), ("us/us-1/a", 20))),
        )
    )
    # The two of eu-1 divide their share; what no entry names gets nothing.
    assert seen(setting, "eu/eu-1/a") == [
        ("eu/eu-1/a", 0, 35),
        ("eu/eu-1/b", 0, 35),
        ("eu/eu-2/a", 0, 10),
        ("us/us-1/a", 0, 20),
    ]
    assert seen(setting, "us/us-9") == [("us/us-1/a", 0, 100)]


def test_shares_are_divided_by_the_weights_of_endpoints() -> None:
    endpoints = [Endpoint("10.0.0.1", 80, locality="eu/a", weight=3), Endpoint("10.0.0.2", 80, locality="eu/b")]
    setting = LocalityLbSetting(distribute=(Distribute(from_="eu/a", to=(("eu/*", 100),)),))
    assert seen(setting, "eu/a", endpoints=endpoints) == [("eu/a", 0, 75), ("eu/b", 0, 25)]


def test_a_locality_that_no_entry_is_for_keeps_everything() -> None:
    setting = LocalityLbSetting(distribute=(Distribute(from_="eu/*", to=(("eu/*", 100),)),))
    assert seen(setting, "asia/as-1") == [(place, 0, 1) for place in sorted(PLACES)]


def test_fail_over_by_labels() -> None:
    endpoints = [
        Endpoint("10.0.0.1", 80, labels=(("rack", "1"), ("row", "a"))),
        Endpoint("10.0.0.2", 80, labels=(("rack", "1"), ("row", "b"))),
        Endpoint("10.0.0.3", 80, labels=(("rack", "2"), ("row", "a"))),
    ]
    setting = LocalityLbSetting(failover_priority=("rack", "row"))
    groups = arranged(grouped(endpoints), setting, Origin("", (("rack", "1"), ("row", "a"))))
    assert [(group.priority, [one.address for one in group.endpoints]) for group in groups] == [
        (0, ["10.0.0.1"]),
        (1, ["10.0.0.2"]),
        (2, ["10.0.0.3"]),
    ]


@pytest.mark.parametrize(
    ("entry", "preferred"),
    [
        ("rack=2", ["10.0.0.3"]),
        ("topology.istio.io/network", ["10.0.0.1"]),
        ("topology.kubernetes.io/region", ["10.0.0.1", "10.0.0.2"]),
        ("topology.kubernetes.io/zone", ["10.0.0.2"]),
    ],
)
def test_labels_with_values_networks_and_places(entry: str, preferred: list[str]) -> None:
    endpoints = [
        Endpoint("10.0.0.1", 80, network="n", locality="eu/b"),
        Endpoint("10.0.0.2", 80, locality="eu/a"),
        Endpoint("10.0.0.3", 80, labels=(("rack", "2"),), locality="us/b"),
    ]
    origin = Origin("eu/a", (("topology.istio.io/network", "n"),))
    groups = arranged(grouped(endpoints), LocalityLbSetting(failover_priority=(entry,)), origin)
    assert sorted(one.address for group in groups if group.priority == 0 for one in group.endpoints) == preferred


def test_labels_first_then_places() -> None:
    endpoints = [
        Endpoint("10.0.0.1", 80, labels=(("rack", "2"),), locality="eu/a"),
        Endpoint("10.0.0.2", 80, labels=(("rack", "1"),), locality="us/a"),
    ]
    setting = LocalityLbSetting(failover_priority=("rack",), failover=(Failover(from_="eu", to="us"),))
    assert seen(setting, "eu/a", (("rack", "1"),), endpoints) == [("us/a", 0, 1), ("eu/a", 1, 1)]


@pytest.mark.parametrize(
    ("pattern", "locality", "expected"),
    [
        ("*", "eu/a/b", True),
        ("eu", "eu/a/b", True),
        ("eu/*", "eu/a", True),
        ("eu/a/*", "eu/a", True),
        ("eu/a/b", "eu/a/b", True),
        ("eu/a/b", "eu/a", False),
        ("eu", "eur", False),
        ("eu/a", "eu/b", False),
    ],
)
def test_a_pattern_covers_what_is_in_it(pattern: str, locality: str, expected: bool) -> None:
    assert covers(pattern, locality) is expected
