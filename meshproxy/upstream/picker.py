"""The policies: which of the hosts that are eligible takes the next request.

A `Picker` chooses among a fixed list of hosts and is made anew when the list changes; what a policy carries over (where
round robin stands) is handed to the next one. Which list it is (priority, health, panic) is `priority_set.py`'s matter.
Clusters may have very many hosts: what takes long is done in `prepare`, in steps of a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mypy_extensions import mypyc_attr

from meshproxy.clock import monotonic
from meshproxy.upstream.config import LEAST_REQUEST, PICK_FIRST, RANDOM, LbConfig, SlowStartConfig
from meshproxy.upstream.edf import EdfScheduler, WeightedOrder
from meshproxy.upstream.host import Host
from meshproxy.upstream.load_balancer import RandomBits

_BITS: Final = 30
_STRIDE: Final = 512  # hosts in a step


@mypyc_attr(allow_interpreted_subclasses=True)
class Picker:
    """Chooses among `hosts`, which are not empty."""

    def __init__(self, hosts: list[Host]) -> None:
        self.hosts = hosts
        self.position: int = 0  # where round robin stands

    def prepare(self) -> Iterator[None]:
        """Get ready to pick."""
        yield from ()

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
        self._order = WeightedOrder([float(host.weight) for host in hosts])

    def prepare(self) -> Iterator[None]:
        yield from self._order.prepare(self.position % len(self.hosts))

    def pick(self) -> Host:
        return self.hosts[self._order.next()]


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


class ChangingWeightPicker(Picker):
    """Round robin by weights that shrink with what a host has to do, and grow while it is new.

    The weight is weight / (active requests + 1) ^ bias, times the share that slow start leaves to a new host.
    """

    def __init__(self, hosts: list[Host], bias: float, slow_start: SlowStartConfig | None, position: int) -> None:
        super().__init__(hosts)
        self.position = position
        self._bias = bias
        self._slow_start = slow_start
        self._all_grown_at: float = 0.0
        if slow_start is not None:
            self._all_grown_at = max([host.healthy_since for host in hosts]) + slow_start.window_ms / 1000.0
        self._edf = EdfScheduler()

    def prepare(self) -> Iterator[None]:
        weights: list[float] = []
        for host in self.hosts:
            weights.append(self._weight(host))
            if len(weights) % _STRIDE == 0:
                yield
        yield from self._edf.fill(weights)
        for turn in range(self.position % len(self.hosts)):
            self.pick()
            if turn % _STRIDE == _STRIDE - 1:
                yield

    def _weight(self, host: Host) -> float:
        weight = float(host.weight)
        if self._slow_start is not None:
            weight *= self._growth(self._slow_start, host)
        bias = self._bias
        if bias == 0.0:
            return weight
        busy = float(host.stats.rq_active + 1)
        return weight / busy if bias == 1.0 else weight / busy**bias

    def _growth(self, slow_start: SlowStartConfig, host: Host) -> float:
        now = monotonic()
        if now >= self._all_grown_at or not host.healthy:
            return 1.0
        return slow_start.factor((now - host.healthy_since) * 1000.0)

    def pick(self) -> Host:
        edf = self._edf
        host = self.hosts[edf.index]
        edf.put_again(edf.deadline + 1.0 / self._weight(host))
        return host


class PickFirstPicker(Picker):
    """The first host, for as long as it is there and can be connected to; then the one behind it (as gRPC's)."""

    def __init__(self, hosts: list[Host], start: int, previous: Picker | None) -> None:
        super().__init__(hosts)
        self.position = start
        if isinstance(previous, PickFirstPicker):
            self._stay_with(previous.hosts[previous.position])
        self._failures: int = hosts[self.position].stats.cx_connect_fail

    def _stay_with(self, chosen: Host) -> None:
        for index, host in enumerate(self.hosts):
            if host is chosen:
                self.position = index

    def pick(self) -> Host:
        host = self.hosts[self.position]
        if host.stats.cx_connect_fail != self._failures and host.stats.cx_active == 0:
            self.position = (self.position + 1) % len(self.hosts)
            host = self.hosts[self.position]
            self._failures = host.stats.cx_connect_fail
        return host


def new_picker(hosts: list[Host], config: LbConfig, random_bits: RandomBits, previous: Picker | None) -> Picker | None:
    """The picker of a policy for these hosts, yet to `prepare`; None when there are none. `previous` chose among the
    hosts before."""
    if not hosts:
        return None
    policy = config.policy
    if policy == RANDOM:
        return RandomPicker(hosts, random_bits)
    if policy == PICK_FIRST:
        return PickFirstPicker(hosts, random_bits(_BITS) % len(hosts) if config.shuffle else 0, previous)
    position = random_bits(_BITS) if previous is None else previous.position
    bias = config.active_request_bias.value if policy == LEAST_REQUEST else 0.0
    if bias < 0.0:
        bias = 1.0
    slow_start = config.slow_start
    if slow_start is not None and _any_new(hosts, slow_start):
        return ChangingWeightPicker(hosts, bias, slow_start, position)
    if not _equally_weighted(hosts):
        if policy == LEAST_REQUEST:
            return ChangingWeightPicker(hosts, bias, None, position)
        return WeightedRoundRobinPicker(hosts, position)
    if policy != LEAST_REQUEST:
        return RoundRobinPicker(hosts, position)
    if config.full_scan:
        return FullScanPicker(hosts, random_bits)
    return LeastRequestPicker(hosts, config.choice_count, random_bits)


def _equally_weighted(hosts: list[Host]) -> bool:
    first = hosts[0].weight
    return all(host.weight == first for host in hosts)


def _any_new(hosts: list[Host], slow_start: SlowStartConfig) -> bool:
    """Whether a host is in its slow start, which begins when it is seen healthy for the first time."""
    now = monotonic()
    newest = 0.0
    for host in hosts:
        if host.healthy:
            if host.healthy_since == 0.0:
                host.healthy_since = now
            newest = max(newest, host.healthy_since)
    return newest > now - slow_start.window_ms / 1000.0
