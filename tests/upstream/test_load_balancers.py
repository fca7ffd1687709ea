"""Who takes the next request. Sequences and shares are those that Envoy 1.40 showed for the same weights and health."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from meshproxy.config.runtime import Layer, Runtime, RuntimeDouble, RuntimeInt
from meshproxy.net.address import Address
from meshproxy.upstream.config import LEAST_REQUEST, PICK_FIRST, RANDOM, ROUND_ROBIN, LbConfig
from meshproxy.upstream.host import (
    DEGRADED_EDS_HEALTH,
    EDS_STATUS_DRAINING,
    FAILED_EDS_HEALTH,
    NO_LOCALITY,
    Host,
    Locality,
)
from meshproxy.upstream.picker import new_picker
from meshproxy.upstream.priority_set import PrioritySet, by_priority
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
    counts = Counter(picks(make_set(hosts, LEAST_REQUEST, active_request_bias=RuntimeDouble("", 0.0)), hosts, 700))
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


def test_draining_hosts_take_their_share_in_panic() -> None:
    """Where nobody else is left, in whichever priority they are (Envoy 1.40)."""
    draining, sick = make_hosts(1, priority=1), make_hosts(1, priority=2)
    draining[0].health_flags = EDS_STATUS_DRAINING
    sick[0].health_flags = FAILED_EDS_HEALTH
    assert set(picks(make_set(draining), draining, 20)) == {"0"}
    hosts = draining + sick
    counts = Counter(picks(make_set(hosts), hosts, 1000))
    assert 430 < counts["0"] < 570
    assert counts["0"] + counts["1"] == 1000


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


def in_localities(*groups: tuple[str, int, int]) -> list[Host]:
    """(zone, weight, number of hosts) of each."""
    hosts = []
    for index, (zone, weight, count) in enumerate(groups):
        for host in make_hosts(*(1,) * count, priority=index):
            host.priority = 0
            host.locality = Locality("", zone, "", weight)
            hosts.append(host)
    return hosts


def by_locality(hosts: list[Host], **fields: object) -> PrioritySet:
    config = LbConfig(RuntimeInt("", 50))
    for name, value in fields.items():
        setattr(config, name, value)
    priorities = PrioritySet(config, ClusterStats(), random.Random(7).getrandbits, None, True)
    priorities.update(hosts)
    return priorities


def test_localities_get_their_weights_however_many_hosts_they_have() -> None:
    hosts = in_localities(("a", 1, 3), ("b", 3, 1))
    counts = Counter(picks(by_locality(hosts), hosts, 1200))
    assert counts == {"0": 100, "1": 100, "2": 100, "3": 900}


def test_a_locality_gets_less_when_its_hosts_cannot_take_it() -> None:
    """One of four is 1.4 times 25 percent."""
    hosts = in_localities(("a", 1, 4), ("b", 1, 1))
    for host in hosts[:3]:
        host.health_flags = FAILED_EDS_HEALTH
    counts = Counter(picks(by_locality(hosts, panic_threshold=RuntimeInt("", 0)), hosts, 1350))
    assert abs(counts["3"] - 350) <= 1
    assert abs(counts["4"] - 1000) <= 1


def test_hosts_of_a_locality_go_on_in_turn_when_another_changes() -> None:
    hosts = in_localities(("a", 1, 3), ("b", 1, 1))
    priorities = by_locality(hosts)
    before = [host for host in (priorities.pick() for _ in range(4)) if host in hosts[:3]]
    priorities.update(hosts[:3])
    assert {*before, priorities.pick()} == set(hosts[:3])


def test_a_priority_can_be_judged_by_the_weights_of_its_hosts() -> None:
    hosts = make_hosts(1, 9) + make_hosts(1, priority=1)
    hosts[0].health_flags = FAILED_EDS_HEALTH
    assert set(picks(make_set(hosts, weighted_priority_health=True), hosts, 200)) == {"1"}
    assert set(picks(make_set(hosts), hosts, 200)) == {"1", "2"}


def test_pick_first_stays_with_the_first_host() -> None:
    hosts = make_hosts(1, 1, 1)
    priorities = make_set(hosts, PICK_FIRST)
    assert picks(priorities, hosts, 5) == "00000"
    hosts[0].health_flags = FAILED_EDS_HEALTH
    priorities.update(hosts)
    assert picks(priorities, hosts, 3) == "111"
    hosts[0].health_flags = 0
    priorities.update(hosts)
    assert picks(priorities, hosts, 3) == "111"  # it serves well


def test_pick_first_goes_on_when_it_cannot_connect() -> None:
    hosts = make_hosts(1, 1, 1)
    priorities = make_set(hosts, PICK_FIRST)
    assert picks(priorities, hosts, 2) == "00"
    hosts[0].stats.cx_connect_fail += 1
    hosts[0].stats.cx_active = 1
    assert picks(priorities, hosts, 2) == "00"  # another connection to it is open
    hosts[0].stats.cx_active = 0
    assert picks(priorities, hosts, 2) == "11"


def test_pick_first_can_begin_anywhere() -> None:
    hosts = make_hosts(1, 1, 1)
    assert {picks(make_set(hosts, PICK_FIRST, seed, shuffle=True), hosts, 1) for seed in range(20)} == {"0", "1", "2"}


class CountedHosts(list[Host]):
    """Counts how often a host is looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Host]:
        self.looks += len(self)
        return super().__iter__()


@pytest.mark.parametrize("policy", [ROUND_ROBIN, LEAST_REQUEST, RANDOM, PICK_FIRST])
def test_a_pick_among_ten_thousand_hosts_looks_at_a_few(policy: int) -> None:
    config = LbConfig(RuntimeInt("", 50))
    config.policy = policy
    hosts = CountedHosts(make_hosts(*(1,) * 10_000))
    picker = new_picker(hosts, config, random.Random(3).getrandbits, None)
    assert picker is not None
    hosts.looks = 0
    for _ in range(100):
        picker.pick()
    assert hosts.looks <= 200


def test_an_update_hands_every_host_to_one_priority() -> None:
    hosts = make_hosts(*(1,) * 50) + make_hosts(*(1,) * 30, priority=2)
    assert [len(level) for level in by_priority(hosts)] == [50, 0, 30]
    assert by_priority([]) == [[]]
