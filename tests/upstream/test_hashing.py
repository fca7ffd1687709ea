"""RING_HASH and MAGLEV. The hosts of keys and the figures are those that Envoy 1.40 showed for the same hosts."""

from __future__ import annotations

import random

import pytest
import xxhash

from meshproxy.config.runtime import RuntimeInt
from meshproxy.net.address import Address
from meshproxy.observe.stats import StatsRegistry
from meshproxy.upstream.bounded_load import mersenne_twister
from meshproxy.upstream.config import MAGLEV, RING_HASH, LbConfig
from meshproxy.upstream.hash_tables import HashTables
from meshproxy.upstream.hashing import HashPicker, host_key, murmur_hash_2, shares_of
from meshproxy.upstream.host import FAILED_EDS_HEALTH, NO_LOCALITY, Host
from meshproxy.upstream.maglev import MaglevPicker, MaglevStats, MaglevTable, is_prime
from meshproxy.upstream.priority_set import PrioritySet
from meshproxy.upstream.ring_hash import RingHashPicker, RingHashStats
from meshproxy.upstream.stats import ClusterStats
from tests.upstream.harness import run_steps

UNEVEN = (1, 5, 2, 9, 3, 1, 7)
BITS = random.Random(7).getrandbits


def make_hosts(*weights: int) -> list[Host]:
    hosts = []
    for index, weight in enumerate(weights):
        host = Host(Address(f"127.9.0.{index + 1}", 80), f"name-{index}", 0, NO_LOCALITY)
        host.weight = weight
        hosts.append(host)
    return hosts


def make_config(policy: int, **fields: object) -> LbConfig:
    config = LbConfig(RuntimeInt("", 50))
    config.policy = policy
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def make_set(policy: int, hosts: list[Host], registry: StatsRegistry | None = None, **fields: object) -> PrioritySet:
    config = make_config(policy, **fields)
    tables = HashTables(config, BITS, registry or StatsRegistry(), "c.", ClusterStats())
    priorities = PrioritySet(config, ClusterStats(), BITS, tables)
    priorities.update(hosts)
    return priorities


def filled(picker: HashPicker) -> HashPicker:
    for steps in (picker.read_keys(), picker.fill()):
        for _ in steps:
            pass
    picker.publish()
    return picker


def key(text: str) -> int:
    return xxhash.xxh64_intdigest(text.encode())


def chosen(priorities: PrioritySet, hosts: list[Host], count: int = 30) -> list[int]:
    """The hosts of the keys k0, k1 …, numbered from 1."""
    found = []
    for index in range(count):
        picker = priorities.picker_for(key(f"k{index}"))
        assert picker is not None
        found.append(hosts.index(picker.pick_by_hash(key(f"k{index}"), 0)) + 1)
    return found


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", 6142509188972423790),
        (b"foo", 9631199822919835226),
        (b"foo\nbar", 16306510975912980159),
        (b"lyft", 12847078931730529320),
    ],
)
def test_murmur_hash(text: bytes, expected: int) -> None:
    """Values of libstdc++'s std::hash, which it is to equal."""
    assert murmur_hash_2(text) == expected


@pytest.mark.parametrize(
    ("policy", "weights", "murmur", "expected"),
    [
        (RING_HASH, UNEVEN, False, "1 7 5 2 2 3 7 7 4 3 7 4 2 5 4 4 4 2 3 2 2 7 4 7 4 7 4 4 7 2"),
        (RING_HASH, UNEVEN, True, "7 7 4 4 4 7 7 2 4 4 2 4 3 2 5 2 7 4 4 2 7 4 7 2 4 7 5 4 7 7"),
        (MAGLEV, UNEVEN, False, "7 7 7 4 4 6 4 7 2 3 2 4 7 3 4 5 7 3 4 4 7 4 7 1 4 4 1 6 7 2"),
        (MAGLEV, (1,) * 12, False, "7 12 10 8 10 6 1 8 1 12 8 9 10 3 6 8 6 3 8 4 12 6 1 1 6 10 1 6 6 2"),
    ],
)
def test_keys_stand_where_envoy_puts_them(policy: int, weights: tuple[int, ...], murmur: bool, expected: str) -> None:
    hosts = make_hosts(*weights)
    assert chosen(make_set(policy, hosts, murmur=murmur), hosts) == numbers(expected)


def test_unhealthy_hosts_are_not_on_the_ring() -> None:
    hosts = make_hosts(*(1,) * 12)
    for index in (0, 2):
        hosts[index].health_flags = FAILED_EDS_HEALTH
    expected = "9 5 5 2 7 10 7 7 4 8 12 4 8 5 4 4 4 6 4 8 12 8 6 6 12 4 11 12 5 2"
    assert chosen(make_set(RING_HASH, hosts), hosts) == numbers(expected)


@pytest.mark.parametrize("policy", [RING_HASH, MAGLEV])
def test_a_host_that_goes_takes_few_keys_along(policy: int) -> None:
    hosts = make_hosts(*(1,) * 12)
    priorities = make_set(policy, hosts)
    before = chosen(priorities, hosts, 1000)
    priorities.update(hosts[:-1])
    after = chosen(priorities, hosts, 1000)
    moved = [index for index in range(1000) if before[index] != 12 and before[index] != after[index]]
    assert 12 not in after
    assert len(moved) < 150  # modulo the number of hosts it would be about 900


def test_stats() -> None:
    registry = StatsRegistry()
    make_set(RING_HASH, make_hosts(*UNEVEN), registry)
    make_set(MAGLEV, make_hosts(*UNEVEN), registry)
    assert registry.snapshot().levels == {
        "c.ring_hash_lb.size": 1036,
        "c.ring_hash_lb.min_hashes_per_host": 37,
        "c.ring_hash_lb.max_hashes_per_host": 333,
        "c.maglev_lb.min_entries_per_host": 2341,
        "c.maglev_lb.max_entries_per_host": 21064,
    }


def test_the_stats_go_with_the_tables() -> None:
    registry = StatsRegistry()
    for policy in (RING_HASH, MAGLEV):
        HashTables(make_config(policy), BITS, registry, "c.", ClusterStats()).close()
    assert registry.scopes() == []


def test_without_hosts_nobody_is_picked() -> None:
    priorities = make_set(RING_HASH, [])
    assert priorities.picker_for(1) is None
    assert priorities.pick() is None


def test_the_last_of_the_ring_is_followed_by_the_first() -> None:
    hosts = make_hosts(1, 1, 1)
    picker = filled(RingHashPicker(hosts, shares_of(hosts), make_config(RING_HASH), BITS, RingHashStats()))
    assert picker.pick_by_hash((1 << 64) - 1, 0) is picker.pick_by_hash(0, 0)


def test_another_attempt_is_meant_for_another_host() -> None:
    hosts = make_hosts(1, 1, 1)
    for picker in (
        filled(RingHashPicker(hosts, shares_of(hosts), make_config(RING_HASH), BITS, RingHashStats())),
        filled(MaglevPicker(hosts, shares_of(hosts), make_config(MAGLEV), BITS, MaglevStats())),
    ):
        assert {picker.pick_by_hash(key("k"), attempt) for attempt in range(30)} == set(hosts)


def test_the_table_is_kept_until_something_in_it_changes() -> None:
    hosts = make_hosts(1, 2)
    config = make_config(RING_HASH)
    tables = HashTables(config, BITS, StatsRegistry(), "c.", ClusterStats())
    first = run_steps(tables.make(hosts, shares_of(hosts), None))
    assert run_steps(tables.make(list(hosts), shares_of(hosts), first)) is first
    hosts[1].weight = 3
    second = run_steps(tables.make(hosts, shares_of(hosts), first))
    assert second is not first
    hosts[1].metadata = {"envoy.lb": {"hash_key": "other"}}
    third = run_steps(tables.make(hosts, shares_of(hosts), second))
    assert third is not second
    assert run_steps(tables.make(hosts[:1], [1.0], third)) is not third


def test_what_stands_for_a_host() -> None:
    host = make_hosts(1)[0]
    assert host_key(host, False) == b"127.9.0.1:80"
    assert host_key(host, True) == b"name-0"
    host.metadata = {"envoy.lb": {"hash_key": "mine"}}
    assert host_key(host, True) == b"mine"
    host.metadata = {"envoy.lb": {"hash_key": 3}}
    assert host_key(host, False) == b"127.9.0.1:80"


def test_a_maglev_table_is_filled_by_weight() -> None:
    table = MaglevTable([b"a", b"b", b"c"], [0.25, 0.25, 0.5], 1009)
    for _ in table.fill():
        pass
    assert sorted(set(table.entries)) == [0, 1, 2]
    assert [table.entries.count(index) for index in range(3)] == table.counts
    assert sum(table.counts) == 1009
    assert abs(table.counts[2] - 505) <= 2


def test_a_large_ring_is_sorted_in_parts() -> None:
    hosts = make_hosts(*(1,) * 100)
    config = make_config(RING_HASH, minimum_ring_size=20_000)
    stats = RingHashStats()
    picker = filled(RingHashPicker(hosts, shares_of(hosts), config, BITS, stats))
    assert stats.size == 20_000
    places = sorted((key(f"127.9.0.{host + 1}:80_{place}"), host) for host in range(100) for place in range(200))
    for place, host in places[:: len(places) // 50]:
        assert picker.pick_by_hash(place, 0) is hosts[host]


def test_primes() -> None:
    assert [number for number in range(30) if is_prime(number)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]
    assert is_prime(65537)
    assert not is_prime(65536)


def test_bounded_loads() -> None:
    """Six active requests and this one are two a host, and half as many again are allowed."""
    hosts = make_hosts(1, 1, 1)
    stats = ClusterStats()
    config = make_config(RING_HASH, hash_balance_factor=150)
    picker = run_steps(HashTables(config, BITS, StatsRegistry(), "c.", stats).make(hosts, shares_of(hosts), None))
    assert picker is not None
    chosen_host = picker.pick_by_hash(key("k"), 0)
    stats.upstream_rq_active = 6
    chosen_host.stats.rq_active = 4
    assert picker.pick_by_hash(key("k"), 0) is chosen_host
    chosen_host.stats.rq_active = 5
    others = {picker.pick_by_hash(key("k"), 0) for _ in range(5)}
    assert len(others) == 1  # always the same for a key
    assert chosen_host not in others
    for host in hosts:
        host.stats.rq_active = 9
    hosts[1].stats.rq_active = 8
    assert picker.pick_by_hash(key("k"), 0) is hosts[1]  # the least overloaded


def test_the_mersenne_twister_is_that_of_c_plus_plus() -> None:
    """The C++ standard names the 10,000th number of the default seed."""
    twister = mersenne_twister(5489)
    for _ in range(9_999):
        twister.getrandbits(32)
    assert twister.getrandbits(32) == 4123659995
    assert mersenne_twister(5489 + (1 << 32)).getrandbits(32) == 3499211612
