"""What RING_HASH and MAGLEV have in common: the key of a host, its share of the weight, and a picker by hash.

Keys, hashes and rounding are Envoy's, so that both proxies put a request on the same host.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mypy_extensions import mypyc_attr

from meshproxy.upstream.config import LbConfig
from meshproxy.upstream.host import Host
from meshproxy.upstream.load_balancer import RandomBits
from meshproxy.upstream.picker import Picker

STRIDE: Final = 512  # hosts, or places of a table, in a step

_MASK: Final = (1 << 64) - 1
_MULTIPLIER: Final = 0xC6A4A7935BD1E995
_SEED: Final = 0xC70F6907


@mypyc_attr(allow_interpreted_subclasses=True)
class HashPicker(Picker):
    """A host by the request's hash; by a random one where the request has none. `key` has 64 bits."""

    def __init__(self, hosts: list[Host], shares: list[float], config: LbConfig, random_bits: RandomBits) -> None:
        super().__init__(hosts)
        self.shares = shares  # of each host, 1.0 in all
        self.keys: list[bytes] = []
        self._config = config
        self._random_bits = random_bits

    def read_keys(self) -> Iterator[None]:
        """Those of the hosts."""
        use_hostname = self._config.use_hostname_for_hashing
        for host in self.hosts:
            self.keys.append(host_key(host, use_hostname))
            if len(self.keys) % STRIDE == 0:
                yield

    def pick(self) -> Host:
        return self.pick_by_hash(self._random_bits(64), 0)

    def fill(self) -> Iterator[None]:
        """Lay out the table, when the `keys` are there."""
        yield from ()

    def publish(self) -> None:
        """Show its figures in the stats."""
        raise NotImplementedError

    def serves(self, other: HashPicker) -> bool:
        """Whether it is what `other`, which has its keys, will be once it is filled."""
        return self.hosts == other.hosts and self.shares == other.shares and self.keys == other.keys


def host_key(host: Host, use_hostname: bool) -> bytes:
    """What stands for the host in a table: `hash_key` of its metadata `envoy.lb`, or its name, or its address."""
    if host.metadata is not None:
        own = host.metadata.get("envoy.lb", {}).get("hash_key")
        if isinstance(own, str) and own:
            return own.encode()
    return (host.hostname if use_hostname else host.address.text).encode()


def shares_of(hosts: list[Host], whole: float = 1.0) -> list[float]:
    """Each one's share of `whole`, by its weight."""
    total = sum([host.weight for host in hosts])
    return [host.weight * whole / total for host in hosts]


def murmur_hash_2(data: bytes) -> int:
    """The 64-bit MurmurHash2 of the C++ library's `std::hash`, with its seed."""
    length = len(data)
    result = _SEED ^ (length * _MULTIPLIER & _MASK)
    aligned = length & ~7
    for start in range(0, aligned, 8):
        word = int.from_bytes(data[start : start + 8], "little") * _MULTIPLIER & _MASK
        word = (word ^ (word >> 47)) * _MULTIPLIER & _MASK
        result = (result ^ word) * _MULTIPLIER & _MASK
    if aligned != length:
        result = (result ^ int.from_bytes(data[aligned:], "little")) * _MULTIPLIER & _MASK
    result = (result ^ (result >> 47)) * _MULTIPLIER & _MASK
    return result ^ (result >> 47)
