"""Load balancers: which of the hosts that are eligible takes the next request.

A `Picker` chooses among a fixed list of hosts and is made anew when the list changes; what a policy carries over (where
round robin stands) is handed to the next one. Which list it is (priority, health, panic) is `priority_set.py`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mypy_extensions import mypyc_attr

from meshproxy.upstream.config import LEAST_REQUEST, RANDOM, LbConfig
from meshproxy.upstream.edf import EdfScheduler
from meshproxy.upstream.host import Host

RandomBits = Callable[[int], int]  # so many random bits, as `random.getrandbits`

_BITS: Final = 30


@mypyc_attr(allow_interpreted_subclasses=True)
class Picker:
    """Chooses among `hosts`, which are not empty."""

    def __init__(self, hosts: list[Host]) -> None:
        self.hosts = hosts
        self.position: int = 0  # where round robin stands

    def pick(self) -> Host:
        raise NotImplementedError

    def pick_by_hash(self, key: int, attempt: int) -> Host:
        """The host of a hash of 64 bits; most policies go by none. `attempt` counts from 0."""
        return self.pick()


class RandomPicker(Picker):
    """Any host, whatever its weight (as Envoy's RANDOM)."""

    def __init__(self, hosts: list[Host], random_bits: RandomBits) -> None:
        super().__init__(hosts)
        self._random_bits = random_bits

    def pick(self) -> Host:
        hosts = self.hosts
        return hosts[self._random_bits(_BITS) % len(hosts)]


class RoundRobinPicker(Picker):
    """One after the other, beginning anywhere, so that many proxies do not all begin with the same host."""

    def __init__(self, hosts: list[Host], position: int) -> None:
        super().__init__(hosts)
        self.position = position

    def pick(self) -> Host:
        hosts = self.hosts
        position = self.position % len(hosts)
        self.position = position + 1
        return hosts[position]


class WeightedRoundRobinPicker(Picker):
    """One after the other, the heavier ones more often."""

    def __init__(self, hosts: list[Host], position: int) -> None:
        super().__init__(hosts)
        self.position = position
        self._weights: list[float] = [float(host.weight) for host in hosts]
        self._turns: list[int] = [1] * len(hosts)
        self._edf = EdfScheduler(self._weights)
        for _ in range(position % len(hosts)):
            self.pick()

    def pick(self) -> Host:
        edf = self._edf
        index = edf.index
        turns = self._turns[index] + 1
        self._turns[index] = turns
        edf.put_again(turns / self._weights[index])  # not a sum: equal deadlines must stay equal
        return self.hosts[index]


class LeastRequestPicker(Picker):
    """The host with the fewest active requests out of `choices` drawn at random (of equals the one drawn first)."""

    def __init__(self, hosts: list[Host], choices: int, random_bits: RandomBits) -> None:
        super().__init__(hosts)
        self._choices = choices
        self._random_bits = random_bits

    def pick(self) -> Host:
        hosts = self.hosts
        random_bits = self._random_bits
        count = len(hosts)
        best = hosts[random_bits(_BITS) % count]
        for _ in range(self._choices - 1):
            other = hosts[random_bits(_BITS) % count]
            if other.stats.rq_active < best.stats.rq_active:
                best = other
        return best


class FullScanPicker(Picker):
    """The host with the fewest active requests of all; any one of those that share the lowest number."""

    def __init__(self, hosts: list[Host], random_bits: RandomBits) -> None:
        super().__init__(hosts)
        self._random_bits = random_bits

    def pick(self) -> Host:
        lowest: list[Host] = []
        fewest = -1
        for host in self.hosts:
            active = host.stats.rq_active
            if fewest < 0 or active < fewest:
                fewest = active
                lowest = [host]
            elif active == fewest:
                lowest.append(host)
        return lowest[self._random_bits(_BITS) % len(lowest)]


class WeightedLeastRequestPicker(Picker):
    """Round robin by weights that shrink with what a host has to do: weight / (active requests + 1) ^ bias."""

    def __init__(self, hosts: list[Host], bias: float, position: int) -> None:
        super().__init__(hosts)
        self.position = position
        self._bias = bias
        self._edf = EdfScheduler([self._weight(host) for host in hosts])
        for _ in range(position % len(hosts)):
            self.pick()

    def _weight(self, host: Host) -> float:
        weight = float(host.weight)
        bias = self._bias
        if bias == 0.0:
            return weight
        busy = float(host.stats.rq_active + 1)
        return weight / busy if bias == 1.0 else weight / busy**bias

    def pick(self) -> Host:
        edf = self._edf
        host = self.hosts[edf.index]
        edf.put_again(edf.deadline + 1.0 / self._weight(host))
        return host


def new_picker(hosts: list[Host], config: LbConfig, random_bits: RandomBits, previous: Picker | None) -> Picker | None:
    """The picker of a policy for these hosts; None when there are none. `previous` chose among the hosts before."""
    if not hosts:
        return None
    policy = config.policy
    if policy == RANDOM:
        return RandomPicker(hosts, random_bits)
    position = random_bits(_BITS) if previous is None else previous.position
    equal = _equally_weighted(hosts)
    if policy == LEAST_REQUEST:
        if config.full_scan:
            return FullScanPicker(hosts, random_bits)
        if equal:
            return LeastRequestPicker(hosts, config.choice_count, random_bits)
        return WeightedLeastRequestPicker(hosts, config.active_request_bias, position)
    return RoundRobinPicker(hosts, position) if equal else WeightedRoundRobinPicker(hosts, position)


def _equally_weighted(hosts: list[Host]) -> bool:
    first = hosts[0].weight
    return all(host.weight == first for host in hosts)
