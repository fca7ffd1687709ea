"""RING_HASH: hosts stand on a ring of 64-bit numbers, often by their weights; a hash belongs to the next one.

The ring is ketama's, laid out as Envoy lays it out (arch_overview/upstream/load_balancing, "Ring hash").
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from math import ceil
from typing import ClassVar, Final

from xxhash import xxh64_intdigest

from meshproxy.observe.stats import StatsScope
from meshproxy.upstream.config import LbConfig
from meshproxy.upstream.hashing import STRIDE, HashPicker, murmur_hash_2
from meshproxy.upstream.host import Host
from meshproxy.upstream.load_balancer import RandomBits
from meshproxy.upstream.sorting import sort_in_steps

_INDEX_BITS: Final = 32
_INDEX_MASK: Final = (1 << _INDEX_BITS) - 1


class RingHashStats(StatsScope):
    """Envoy's `cluster.<name>.ring_hash_lb.*`."""

    LEVELS: ClassVar[tuple[str, ...]] = ("size", "min_hashes_per_host", "max_hashes_per_host")

    def __init__(self) -> None:
        super().__init__()
        self.size: int = 0
        self.min_hashes_per_host: int = 0
        self.max_hashes_per_host: int = 0


class RingHashPicker(HashPicker):
    """Picks in O(log of the ring's size)."""

    def __init__(
        self, hosts: list[Host], shares: list[float], config: LbConfig, random_bits: RandomBits, stats: RingHashStats
    ) -> None:
        super().__init__(hosts, shares, config, random_bits)
        self._stats = stats
        least = min(shares)
        # The lightest host gets a whole number of places.
        scale = min(ceil(least * config.minimum_ring_size) / least, float(config.maximum_ring_size))
        self._size: int = ceil(scale)
        self._least: int = self._size
        self._most: int = 0
        self._scale: float = scale
        # A place is its number and, in the low bits, the index of its host: one sorted list to search.
        self._places: list[int] = []

    def fill(self) -> Iterator[None]:
        yield from self._lay_out()
        self._places = yield from sort_in_steps(self._places)

    def _lay_out(self) -> Iterator[None]:
        """Shares are seldom whole numbers of places: running sums decide who gets what rounding leaves."""
        places, murmur = self._places, self._config.murmur
        target = 0.0
        for index, key in enumerate(self.keys):
            target += self._scale * self.shares[index]
            stem = key + b"_"
            count = 0
            while len(places) < target:
                text = stem + str(count).encode()
                place = murmur_hash_2(text) if murmur else xxh64_intdigest(text)
                places.append(place << _INDEX_BITS | index)
                count += 1
                if len(places) % STRIDE == 0:
                    yield
            self._least = min(self._least, count)
            self._most = max(self._most, count)

    def publish(self) -> None:
        stats = self._stats
        stats.size, stats.min_hashes_per_host, stats.max_hashes_per_host = self._size, self._least, self._most

    def pick_by_hash(self, key: int, attempt: int) -> Host:
        """A further attempt takes the place behind (which may be the same host's, as in Envoy)."""
        places = self._places
        count = len(places)
        position = bisect_left(places, key << _INDEX_BITS)
        if position == count:
            position = 0
        return self.hosts[places[(position + attempt) % count] & _INDEX_MASK]
