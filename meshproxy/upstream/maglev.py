"""MAGLEV: a table of fixed size that hosts fill in turn, each in an order of its own; a hash belongs to one entry.

The algorithm is that of Google's Maglev paper (section 3.4), with Envoy's weights and hashes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final

from xxhash import xxh64_intdigest

from meshproxy.observe.stats import StatsScope
from meshproxy.upstream.config import LbConfig
from meshproxy.upstream.hashing import STRIDE, HashPicker
from meshproxy.upstream.host import Host
from meshproxy.upstream.load_balancer import RandomBits
from meshproxy.upstream.sorting import sort_in_steps

_FREE: Final = -1
_TWO_TO_64: Final = 1 << 64
_LOOKS: Final = 256  # entries that are looked at in one go,
_LOOKED_AT: Final = 2048  # and in a step
_COPIED: Final = 8192  # … that are copied


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
        self._least: int = 0
        self._most: int = 0
        self._table: list[Host] = []

    def fill(self) -> Iterator[None]:
        # The table does not depend on the order of the hosts.
        ordered = yield from sort_in_steps([(key, index) for index, key in enumerate(self.keys)])
        order: list[int] = [index for _, index in ordered]
        table = MaglevTable([self.keys[index] for index in order], [self.shares[index] for index in order], self._size)
        yield from table.fill()
        self._least, self._most = min(table.counts), max(table.counts)
        in_order = [self.hosts[index] for index in order]
        for start in range(0, self._size, _COPIED):
            self._table += [in_order[entry] for entry in table.entries[start : start + _COPIED]]
            yield

    def publish(self) -> None:
        self._stats.min_entries_per_host, self._stats.max_entries_per_host = self._least, self._most

    def pick_by_hash(self, key: int, attempt: int) -> Host:
        """A further attempt turns over most bits of the hash."""
        if attempt > 0:
            key ^= _TWO_TO_64 - attempt
        return self._table[key % self._size]


class MaglevTable:
    """`entries` of a table: each the index of a key; and how many entries each key got. `size` is a prime."""

    def __init__(self, keys: list[bytes], shares: list[float], size: int) -> None:
        self._keys = keys
        self._shares = shares
        self._size = size
        self.entries: list[int] = [_FREE] * size
        self.counts: list[int] = [0] * len(keys)
        self._positions: list[int] = []  # where each key looks next,
        self._skips: list[int] = []  # and in which steps

    def fill(self) -> Iterator[None]:
        """In steps."""
        size, shares = self._size, self._shares
        yield from self._read_keys()
        targets = [0.0] * len(shares)
        most = max(shares)
        filled = looked_at = turn = 0
        while filled < size:
            turn += 1
            for index, share in enumerate(shares):
                if filled == size or turn * share < targets[index]:
                    continue  # a lighter one sits out some turns
                targets[index] += most
                looks = 0
                while looks == 0:
                    looks = self._take(index)
                    looked_at += looks or _LOOKS
                    if looked_at >= _LOOKED_AT:
                        looked_at = 0
                        yield
                filled += 1

    def _read_keys(self) -> Iterator[None]:
        size = self._size
        for key in self._keys:
            self._positions.append(xxh64_intdigest(key) % size)
            self._skips.append(xxh64_intdigest(key, 1) % (size - 1) + 1)
            if len(self._skips) % STRIDE == 0:
                yield

    def _take(self, index: int) -> int:
        """The next free entry in the key's order is its own: how many were looked at for it, 0 if none is found yet."""
        entries, size = self.entries, self._size
        position, skip = self._positions[index], self._skips[index]
        for looks in range(1, _LOOKS + 1):
            if entries[position] == _FREE:
                entries[position] = index
                self.counts[index] += 1
                self._positions[index] = position
                return looks
            position += skip
            if position >= size:
                position -= size
        self._positions[index] = position
        return 0


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
