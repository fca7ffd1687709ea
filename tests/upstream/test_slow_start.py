"""Slow start: the formula of Envoy's arch_overview/upstream/load_balancing/slow_start, under the test's own clock."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from meshproxy import clock
from meshproxy.config.runtime import Layer, Runtime, RuntimeDouble, RuntimeInt
from meshproxy.net.address import Address
from meshproxy.upstream.config import LEAST_REQUEST, ROUND_ROBIN, LbConfig, SlowStartConfig
from meshproxy.upstream.host import FAILED_EDS_HEALTH, NO_LOCALITY, Host
from meshproxy.upstream.load_balancer import RandomBits
from meshproxy.upstream.picker import ChangingWeightPicker, LeastRequestPicker, Picker, RoundRobinPicker, new_picker
from tests.upstream.harness import LB, any_of, build, cluster_dict, with_policy

WINDOW_S = 1000.0
BITS = random.Random(7).getrandbits


@pytest.fixture(autouse=True)
def standing_clock() -> Iterator[None]:
    """Time stands still but for `pass_time`."""
    clock.begin_turn()
    yield
    clock.end_turn()


def pass_time(seconds: float) -> None:
    clock.end_turn()
    clock.move_ahead(seconds)
    clock.begin_turn()


def make_config(policy: int = ROUND_ROBIN, aggression: float = 1.0, least_percent: float = 10.0) -> LbConfig:
    config = LbConfig(RuntimeInt("", 50))
    config.policy = policy
    config.slow_start = SlowStartConfig(WINDOW_S * 1000.0, RuntimeDouble("", aggression), least_percent / 100.0)
    return config


def make_host(number: int, weight: int = 1) -> Host:
    host = Host(Address(f"10.0.0.{number}", 80), "", 0, NO_LOCALITY)
    host.weight = weight
    return host


def aged(config: LbConfig, host: Host, age_s: float) -> Host:
    """The host, that age after it was seen for the first time."""
    new_picker([host], config, BITS, None)
    pass_time(age_s)
    return host


def ready_picker(hosts: list[Host], config: LbConfig, random_bits: RandomBits, previous: Picker | None) -> Picker:
    picker = new_picker(hosts, config, random_bits, previous)
    assert picker is not None
    for _ in picker.prepare():
        pass
    return picker


def old_and_new(config: LbConfig, age_s: float) -> float:
    """How many requests a host of that age gets for one of a grown host."""
    old = aged(config, make_host(1), 2 * WINDOW_S)
    new = aged(config, make_host(2), age_s)
    picker = ready_picker([old, new], config, BITS, None)
    counts = Counter(picker.pick() for _ in range(6000))
    return counts[new] / counts[old]


@pytest.mark.parametrize("policy", [ROUND_ROBIN, LEAST_REQUEST])
@pytest.mark.parametrize(
    ("age_s", "aggression", "share"),
    [
        (500.0, 1.0, 0.5),
        (900.0, 1.0, 0.9),
        (20.0, 1.0, 0.1),  # min_weight_percent
        (250.0, 2.0, 0.5),  # 0.25 ^ (1/2)
        (500.0, 0.5, 0.25),  # 0.5 ^ 2
        (500.0, -1.0, 0.5),  # which is no aggression: as 1.0
    ],
)
def test_the_share_of_a_new_host(policy: int, age_s: float, aggression: float, share: float) -> None:
    assert old_and_new(make_config(policy, aggression), age_s) == pytest.approx(share, rel=0.02)


def test_the_least_share_can_be_set() -> None:
    assert old_and_new(make_config(least_percent=40.0), 1.0) == pytest.approx(0.4, rel=0.02)


def test_weights_count() -> None:
    config = make_config()
    old = aged(config, make_host(1, weight=3), 2 * WINDOW_S)
    new = aged(config, make_host(2, weight=6), 500.0)
    picker = ready_picker([old, new], config, BITS, None)
    counts = Counter(picker.pick() for _ in range(6000))
    assert counts[new] == pytest.approx(counts[old], rel=0.02)


def test_a_host_grows_between_requests() -> None:
    config = make_config()
    old = aged(config, make_host(1), 2 * WINDOW_S)
    picker = ready_picker([old, new := make_host(2)], config, BITS, None)
    shares = []
    for _ in range(3):
        counts = Counter(picker.pick() for _ in range(2000))
        shares.append(counts[new] / counts[old])
        pass_time(WINDOW_S / 2)
    assert shares == pytest.approx([0.1, 0.5, 1.0], rel=0.05)


def test_it_begins_when_the_host_is_healthy_for_the_first_time() -> None:
    config = make_config()
    old = aged(config, make_host(1), 2 * WINDOW_S)
    sick = make_host(2)
    sick.health_flags = FAILED_EDS_HEALTH
    aged(config, sick, 2 * WINDOW_S)
    sick.health_flags = 0
    picker = ready_picker([old, sick], config, BITS, None)
    counts = Counter(picker.pick() for _ in range(1100))
    assert abs(counts[sick] - 100) <= 1
    sick.health_flags = FAILED_EDS_HEALTH  # in panic it is worth its weight
    counts = Counter(picker.pick() for _ in range(1000))
    assert counts[sick] > 480


@pytest.mark.parametrize(("policy", "usual"), [(ROUND_ROBIN, RoundRobinPicker), (LEAST_REQUEST, LeastRequestPicker)])
def test_without_new_hosts_it_costs_nothing(policy: int, usual: type) -> None:
    config = make_config(policy)
    hosts = [make_host(1), make_host(2)]
    assert isinstance(ready_picker(hosts, config, BITS, None), ChangingWeightPicker)
    pass_time(WINDOW_S + 1.0)
    assert type(ready_picker(hosts, config, BITS, None)) is usual


def test_aggression_is_a_runtime_key() -> None:
    runtime = Runtime([Layer("static", {})])
    config = make_config()
    config.slow_start = SlowStartConfig(WINDOW_S * 1000.0, runtime.double("aggression", 1.0), 0.1)
    runtime.replace_layers([Layer("static", {"aggression": 2.0})])
    assert old_and_new(config, 250.0) == pytest.approx(0.5, rel=0.02)


def test_configuration() -> None:
    options = {"slow_start_window": "60s", "min_weight_percent": {"value": 25}, "aggression": {"default_value": 2}}
    prefix = f"{LB}.round_robin.v3.RoundRobin"
    for fields in (
        cluster_dict(round_robin_lb_config={"slow_start_config": options}),
        cluster_dict(lb_policy="LEAST_REQUEST", least_request_lb_config={"slow_start_config": options}),
        with_policy(any_of(prefix, slow_start_config=options)),
    ):
        slow_start = build(fields).lb.slow_start
        assert slow_start is not None
        assert (slow_start.window_ms, slow_start.min_weight, slow_start.aggression.value) == (60_000.0, 0.25, 2.0)
    assert build(cluster_dict(round_robin_lb_config={"slow_start_config": {}})).lb.slow_start is None
    other = cluster_dict(lb_policy="RANDOM", round_robin_lb_config={"slow_start_config": options})
    assert build(other).lb.slow_start is None
