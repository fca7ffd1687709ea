"""The tables of one cluster whose load balancer goes by a hash, and the stats about them."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from meshproxy.observe.stats import StatsRegistry
from meshproxy.upstream.bounded_load import BoundedLoadPicker
from meshproxy.upstream.config import RING_HASH, LbConfig
from meshproxy.upstream.hashing import HashPicker
from meshproxy.upstream.host import Host
from meshproxy.upstream.load_balancer import RandomBits
from meshproxy.upstream.maglev import MaglevPicker, MaglevStats
from meshproxy.upstream.ring_hash import RingHashPicker, RingHashStats
from meshproxy.upstream.stats import ClusterStats

_RING: Final = "ring_hash_lb."
_MAGLEV: Final = "maglev_lb."


class HashTables:
    """Makes the pickers of RING_HASH or MAGLEV; `prefix` is that of the cluster's stats."""

    def __init__(
        self, config: LbConfig, random_bits: RandomBits, registry: StatsRegistry, prefix: str, stats: ClusterStats
    ) -> None:
        self._config = config
        self._random_bits = random_bits
        self._registry = registry
        self._prefix = prefix
        self._stats = stats
        self._ring: RingHashStats | None = None
        self._maglev: MaglevStats | None = None
        if config.policy == RING_HASH:
            self._ring = registry.acquire(prefix + _RING, RingHashStats)
        else:
            self._maglev = registry.acquire(prefix + _MAGLEV, MaglevStats)

    def make(
        self, hosts: list[Host], shares: list[float], previous: HashPicker | None
    ) -> Generator[None, None, HashPicker | None]:
        """The picker for these hosts, in steps; it may be the one before. None when there are none."""
        if not hosts:
            return None
        table = self._table(hosts, shares)
        yield from table.read_keys()
        if previous is not None and previous.serves(table):
            previous.publish()
            return previous
        yield from table.fill()
        table.publish()
        if self._config.hash_balance_factor:
            return BoundedLoadPicker(table, self._config, self._random_bits, self._stats)
        return table

    def _table(self, hosts: list[Host], shares: list[float]) -> HashPicker:
        if self._ring is not None:
            return RingHashPicker(hosts, shares, self._config, self._random_bits, self._ring)
        assert self._maglev is not None
        return MaglevPicker(hosts, shares, self._config, self._random_bits, self._maglev)

    def close(self) -> None:
        """The stats disappear."""
        if self._ring is not None:
            self._registry.release(self._prefix + _RING, RingHashStats)
        else:
            self._registry.release(self._prefix + _MAGLEV, MaglevStats)
