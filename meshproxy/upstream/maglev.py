"""MAGLEV: a table of fixed size that hosts fill in turn, each in an order of its own; a hash belongs to one entry.

The algorithm is that of Google's Maglev paper (section 3.4), with Envoy's weights and hashes.
"""

from __future__ import annotations

from typing import ClassVar, Final

from xxhash import xxh64_intdigest

from meshproxy.observe.stats import StatsScope
from meshproxy.upstream.config import LbConfig
from meshproxy.upstream.hashing import HashPicker
from meshproxy.upstream.host import Host
from meshproxy.upstream.load_balancer import RandomBits

_FREE: Final = -1
_TWO_TO_64: Final = 1 << 64


class MaglevStats(StatsScope):
    """Envoy's `cluster.<name>.maglev_lb.*`."""

    LEVELS: ClassVar[tuple[str, ...]] = ("min_entries_per_host", "max_entries_per_host")

    def __init__(self) -> None:
        super().__init__()
        self.min_entries_per_host: int = 0
        self.max_entries_per_host: int = 0


class MaglevPicker(HashPicker):
    """Picks in O(1)."""

    def __init__(
        self, hosts: list[Host], shares: list[float], config: LbConfig, random_bits: RandomBits, stats: MaglevStats
    ) -> None:
        super().__init__(hosts, shares, config, random_bits)
        self._stats = stats
        self._size: int = config.table_size
        order = sorted(range(len(hosts)), key=self.keys.__getitem__)  # not to depend on the order of the hosts
        table, counts = fill_table(
            [self.keys[index] for index in order], [shares[index] for index in order], self._size
        )
        self._least: int = min(counts)
        self._most: int = max(counts)
        in_order = [hosts[index] for index in order]
        self._table: list[Host] = [in_order[entry] for entry in table]
        self.publish()

    def publish(self) -> None:
        self._stats.min_entries_per_host, self._stats.max_entries_per_host = self._least, self._most

    def pick_by_hash(self, key: int, attempt: int) -> Host:
        """A further attempt turns over most bits of the hash."""
        if attempt > 0:
            key ^= _TWO_TO_64 - attempt
        return self._table[key % self._size]


def fill_table(keys: list[bytes], shares: list[float], size: int) -> tuple[list[int], list[int]]:
    """(the index of a key for every entry, how many entries each got). `size` is a prime."""
    table = [_FREE] * size
    counts = [0] * len(keys)
    positions = [xxh64_intdigest(key) % size for key in keys]
    skips = [xxh64_intdigest(key, 1) % (size - 1) + 1 for key in keys]
    targets = [0.0] * len(keys)
    most = max(shares)
    filled = 0
    turn = 0
    while True:
        turn += 1
        for index in range(len(keys)):
            if turn * shares[index] < targets[index]:
                continue  # a lighter one sits out some turns
            targets[index] += most
            position = positions[index]
            skip = skips[index]
            while table[position] != _FREE:
                position += skip
                if position >= size:
                    position -= size
            table[position] = index
            positions[index] = position  # taken: the next search steps on from here
            counts[index] += 1
            filled += 1
            if filled == size:
                return table, counts


def is_prime(number: int) -> bool:
    """As a Maglev table's size must be."""
    if number < 4:
        return number > 1
    if number % 2 == 0:
        return False
    divisor = 3
    while divisor * divisor <= number:
        if number % divisor == 0:
            return False
        divisor += 2
    return True
