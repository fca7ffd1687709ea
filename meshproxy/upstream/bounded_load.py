"""Consistent hashing with bounded loads: a host that has too much to do passes requests on to others.

After "Consistent Hashing with Bounded Loads" (arXiv:1608.01350), with the random jumps of arXiv:1908.08762. The order
in which the others are tried is Envoy's, so that both proxies pass a request on to the same host.
"""

from __future__ import annotations

from math import ceil
from random import Random
from typing import Final

from meshproxy.upstream.config import LbConfig
from meshproxy.upstream.hashing import HashPicker
from meshproxy.upstream.host import Host
from meshproxy.upstream.load_balancer import RandomBits
from meshproxy.upstream.stats import ClusterStats

_STATE_WORDS: Final = 624
_MASK_32: Final = (1 << 32) - 1
_TWO_TO_32: Final = 1 << 32


class BoundedLoadPicker(HashPicker):
    """`table` picks; no host gets more than `hash_balance_factor` percent of its share of the active requests.

    Only a request whose host is overloaded costs O(hosts), as in Envoy.
    """

    def __init__(self, table: HashPicker, config: LbConfig, random_bits: RandomBits, stats: ClusterStats) -> None:
        super().__init__(table.hosts, table.shares, config, random_bits)
        self.keys = table.keys
        self._table = table
        self._factor: int = config.hash_balance_factor
        self._stats = stats
        self._share: dict[Host, float] = dict(zip(table.hosts, table.shares, strict=True))

    def publish(self) -> None:
        self._table.publish()

    def pick_by_hash(self, key: int, attempt: int) -> Host:
        host = self._table.pick_by_hash(key, attempt)
        load = self._load(host, self._share[host])
        return host if load <= 1.0 else self._pass_on(key, host, load)

    def _load(self, host: Host, share: float) -> float:
        """Above 1.0 it is overloaded."""
        slots = ((self._stats.upstream_rq_active + 1) * self._factor + 99) // 100
        return host.stats.rq_active / max(ceil(slots * share), 1)

    def _pass_on(self, key: int, overloaded: Host, load: float) -> Host:
        """The first host of a shuffled order that is not overloaded; the one with the least load when all are."""
        least = overloaded
        random = mersenne_twister(key)
        order = list(range(len(self.hosts)))
        for position in range(len(order)):
            drawn = position + _below(random, len(order) - position)
            order[position], order[drawn] = order[drawn], order[position]
            index = order[position]
            host = self.hosts[index]
            if host is overloaded:
                continue
            other = self._load(host, self.shares[index])
            if other <= 1.0:
                return host
            if other < load:
                least, load = host, other
        return least


def mersenne_twister(seed: int) -> Random:
    """MT19937 as C++ seeds it with one number, of which 32 bits count; `getrandbits(32)` draws."""
    word = seed & _MASK_32
    words = [word]
    for index in range(1, _STATE_WORDS):
        word = (1812433253 * (word ^ (word >> 30)) + index) & _MASK_32
        words.append(word)
    random = Random()
    random.setstate((3, (*words, _STATE_WORDS), None))
    return random


def _below(random: Random, limit: int) -> int:
    """A number below the limit, evenly distributed."""
    width = _TWO_TO_32 // limit
    number = random.getrandbits(32) // width
    while number >= limit:
        number = random.getrandbits(32) // width
    return number
