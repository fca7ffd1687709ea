"""Who takes the next request. Sequences and shares are those that Envoy 1.40 showed for the same weights and health."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from meshproxy.config.runtime import Layer, Runtime, RuntimeInt
from meshproxy.net.address import Address
from meshproxy.upstream.config import LEAST_REQUEST, RANDOM, ROUND_ROBIN, LbConfig
from meshproxy.upstream.host import (
    DEGRADED_EDS_HEALTH,
    EDS_STATUS_DRAINING,
    FAILED_EDS_HEALTH,
    NO_LOCALITY,
    Host,
)
from meshproxy.upstream.priority_set import PrioritySet
from meshproxy.upstream.stats import ClusterStats


def make_hosts(*weights: int, priority: int = 0) -> list[Host]:
    hosts = []
    for index, weight in enumerate(weights):
        host = Host(Address(f"10.0.{priority}.{index}", 80), "", priority, NO_LOCALITY)
        host.weight = weight
        hosts.append(host)
    return hosts


def make_set(hosts: list[Host], policy: int = ROUND_ROBIN, seed: int = 7, **fields: object) -> PrioritySet:
    config = LbConfig(RuntimeInt("", 50))
    config.policy = policy
    for name, value in fields.items():
        setattr(config, name, value)
    priorities = PrioritySet(config, ClusterStats(), random.Random(seed).getrandbits)
    priorities.update(hosts)
    return priorities


def picks(priorities: PrioritySet, hosts: list[Host], count: int) -> str:
    """The indices of the hosts picked, in order."""
    return "".join(str(hosts.index(host)) if (host := priorities.pick()) else "-" for _ in range(count))


def is_rotation(sequence: str, period: str) -> bool:
    return len(sequence) % len(period) == 0 and sequence in period * (len(sequence) // len(period) + 1)


def test_round_robin_takes_one_after_the_other() -> None:
    hosts = make_hosts(2, 2, 2)
    assert is_rotation(picks(make_set(hosts), hosts, 30), "012")


def test_round_robin_begins_anywhere() -> None:
    hosts = make_hosts(1, 1, 1)
    assert {picks(make_set(hosts, seed=seed), hosts, 1) for seed in range(20)} == {"0", "1", "2"}


def test_weights_space_hosts_evenly() -> None:
    hosts = make_hosts(1, 3, 2)
    assert is_rotation(picks(make_set(hosts), hosts, 6000), "121021")


def test_without_load_least_request_goes_by_weights() -> None:
    hosts = make_hosts(1, 3, 2)
    counts = Counter(picks(make_set(hosts, LEAST_REQUEST), hosts, 60))
    assert abs(counts["0"] - 10) <= 1
    assert abs(counts["1"] - 30) <= 1
    assert abs(counts["2"] - 20) <= 1


def test_random_picks_every_host_alike_whatever_its_weight() -> None:
    hosts = make_hosts(1, 9, 1)
    counts = Counter(picks(make_set(hosts, RANDOM), hosts, 3000))
    assert all(900 < counts[index] < 1100 for index in "012")


def test_least_request_prefers_the_idle_of_two() -> None:
    """Two draws of two: the busy host is picked only when it is drawn twice, a quarter of the time."""
    hosts = make_hosts(1, 1)
    hosts[0].stats.rq_active = 5
    counts = Counter(picks(make_set(hosts, LEAST_REQUEST), hosts, 4000))
    assert 900 < counts["0"] < 1100


def test_least_request_with_more_choices() -> None:
    hosts = make_hosts(1, 1)
    hosts[0].stats.rq_active = 5
    counts = Counter(picks(make_set(hosts, LEAST_REQUEST, choice_count=10), hosts, 4000))
    assert counts["0"] < 40


def test_least_request_full_scan_takes_any_of_the_idlest() -> None:
    hosts = make_hosts(1, 1, 1)
    hosts[1].stats.rq_active = 1
    counts = Counter(picks(make_set(hosts, LEAST_REQUEST, full_scan=True), hosts, 1000))
    assert counts["1"] == 0
    assert 400 < counts["0"] < 600


def test_least_request_shrinks_the_weight_of_the_busy() -> None:
    """weight / (active + 1): 6 / 3 against 1."""
    hosts = make_hosts(6, 1)
    hosts[0].stats.rq_active = 2
    counts = Counter(picks(make_set(hosts, LEAST_REQUEST), hosts, 300))
    assert 190 <= counts["0"] <= 210


def test_active_request_bias_zero_leaves_weights_alone() -> None:
    hosts = make_hosts(6, 1)
    hosts[0].stats.rq_active = 100
    counts = Counter(picks(make_set(hosts, LEAST_REQUEST, active_request_bias=0.0), hosts, 700))
    assert 595 <= counts["0"] <= 605


def test_no_hosts_no_host() -> None:
    assert make_set([]).pick() is None


@pytest.mark.parametrize("flag", [FAILED_EDS_HEALTH, EDS_STATUS_DRAINING])
def test_hosts_that_are_not_healthy_get_nothing(flag: int) -> None:
    hosts = make_hosts(1, 1, 1)
    hosts[2].health_flags = flag
    assert is_rotation(picks(make_set(hosts), hosts, 20), "01")


def test_degraded_hosts_get_what_the_healthy_cannot_take() -> None:
    """Two of three healthy, times 1.4: 93 %; the degraded one gets the other 7 %."""
    hosts = make_hosts(1, 1, 1)
    hosts[2].health_flags = DEGRADED_EDS_HEALTH
    counts = Counter(picks(make_set(hosts), hosts, 10_000))
    assert 600 < counts["2"] < 800


def test_panic_uses_all_hosts() -> None:
    """One of three healthy is less than 50 %."""
    hosts = make_hosts(1, 1, 1)
    hosts[0].health_flags = hosts[1].health_flags = FAILED_EDS_HEALTH
    config = LbConfig(RuntimeInt("", 50))
    stats = ClusterStats()
    priorities = PrioritySet(config, stats, random.Random(1).getrandbits)
    priorities.update(hosts)
    assert is_rotation(picks(priorities, hosts, 30), "012")
    assert stats.lb_healthy_panic == 30


def test_without_panic_the_last_healthy_host_takes_all() -> None:
    hosts = make_hosts(1, 1, 1)
    hosts[0].health_flags = hosts[1].health_flags = FAILED_EDS_HEALTH
    config = LbConfig(RuntimeInt("", 0))
    priorities = PrioritySet(config, ClusterStats(), random.Random(1).getrandbits)
    priorities.update(hosts)
    assert picks(priorities, hosts, 20) == "2" * 20
    hosts[2].health_flags = FAILED_EDS_HEALTH
    priorities.update(hosts)
    assert priorities.pick() is None


def test_draining_hosts_do_not_count_for_panic() -> None:
    hosts = make_hosts(1, 1, 1)
    hosts[0].health_flags = hosts[1].health_flags = EDS_STATUS_DRAINING
    assert picks(make_set(hosts), hosts, 20) == "2" * 20


def test_panic_can_mean_no_traffic() -> None:
    hosts = make_hosts(1, 1, 1)
    hosts[0].health_flags = hosts[1].health_flags = FAILED_EDS_HEALTH
    assert make_set(hosts, fail_traffic_on_panic=True).pick() is None


def test_the_panic_threshold_is_a_runtime_key() -> None:
    runtime = Runtime([Layer("static", {})])
    config = LbConfig(runtime.integer("upstream.healthy_panic_threshold", 50))
    hosts = make_hosts(1, 1, 1)
    hosts[0].health_flags = hosts[1].health_flags = FAILED_EDS_HEALTH
    priorities = PrioritySet(config, ClusterStats(), random.Random(1).getrandbits)
    priorities.update(hosts)
    assert "0" in picks(priorities, hosts, 3)
    runtime.replace_layers([Layer("static", {"upstream.healthy_panic_threshold": 10})])
    assert picks(priorities, hosts, 20) == "2" * 20


def test_the_next_priority_takes_over() -> None:
    hosts = make_hosts(1, 1) + make_hosts(1, 1, priority=1)
    priorities = make_set(hosts)
    assert set(picks(priorities, hosts, 20)) == {"0", "1"}
    hosts[0].health_flags = hosts[1].health_flags = FAILED_EDS_HEALTH
    priorities.update(hosts)
    assert set(picks(priorities, hosts, 20)) == {"2", "3"}


def test_a_priority_that_is_half_well_shares() -> None:
    """One of two healthy, times 1.4: 70 % stay, 30 % go to the next priority (Envoy's own example)."""
    hosts = make_hosts(1, 1) + make_hosts(1, priority=1)
    hosts[1].health_flags = FAILED_EDS_HEALTH
    counts = Counter(picks(make_set(hosts), hosts, 10_000))
    assert counts["1"] == 0
    assert 6800 < counts["0"] < 7200


def test_all_priorities_in_panic_share_by_their_hosts() -> None:
    hosts = make_hosts(1) + make_hosts(1, 1, 1, priority=1)
    for host in hosts:
        host.health_flags = FAILED_EDS_HEALTH
    counts = Counter(picks(make_set(hosts), hosts, 10_000))
    assert 2300 < counts["0"] < 2700


def test_round_robin_goes_on_where_it_was_when_hosts_change() -> None:
    hosts = make_hosts(1, 1, 1)
    priorities = make_set(hosts)
    before = picks(priorities, hosts, 2)
    priorities.update(hosts)
    assert is_rotation(before + picks(priorities, hosts, 1), "012")


def test_membership_is_counted() -> None:
    hosts = make_hosts(1, 1, 1, 1)
    hosts[1].health_flags = FAILED_EDS_HEALTH
    hosts[2].health_flags = DEGRADED_EDS_HEALTH
    hosts[3].health_flags = EDS_STATUS_DRAINING
    stats = ClusterStats()
    PrioritySet(LbConfig(RuntimeInt("", 50)), stats, random.Random(1).getrandbits).update(hosts)
    assert (stats.membership_total, stats.membership_healthy) == (4, 1)
    assert (stats.membership_degraded, stats.membership_excluded) == (1, 1)
