"""Locality weights: a locality's share of a priority's traffic goes by its own weight, not by how many hosts it has.

The rules are those of Envoy's arch_overview/upstream/load_balancing/locality_weight: a locality whose hosts are not all
available gets its weight times its availability, which the overprovisioning factor raises.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Final

from meshproxy.upstream.config import LbConfig
from meshproxy.upstream.edf import WeightedOrder
from meshproxy.upstream.host import EXCLUDED, Host
from meshproxy.upstream.load_balancer import RandomBits
from meshproxy.upstream.picker import Picker, new_picker

LocalityKey = tuple[str, str, str]  # region, zone, sub-zone

_STRIDE: Final = 1024  # hosts in a step


class LocalityGroup:
    """The hosts of one priority in one locality."""

    def __init__(self, key: LocalityKey, weight: int) -> None:
        self.key = key
        self.weight = weight
        self.hosts: list[Host] = []

    def healthy(self) -> list[Host]:
        return [host for host in self.hosts if host.healthy]

    def degraded(self) -> list[Host]:
        return [host for host in self.hosts if host.degraded]

    def effective_weight(self, eligible: int, factor: int) -> float:
        """The weight, as far as so many hosts can stand in for all; `factor` is in percent."""
        counted = len([host for host in self.hosts if not host.health_flags & EXCLUDED])
        return self.weight * min(1.0, factor / 100.0 * (eligible / counted)) if counted > 0 else 0.0


def group_by_locality(hosts: list[Host]) -> Generator[None, None, list[LocalityGroup]]:
    """The localities of these hosts of one priority, in the order of their names; in steps."""
    groups: dict[LocalityKey, LocalityGroup] = {}
    for index, host in enumerate(hosts):
        if index % _STRIDE == _STRIDE - 1:
            yield
        key = host.locality.key
        group = groups.get(key)
        if group is None:
            group = groups[key] = LocalityGroup(key, 0)
        group.hosts.append(host)
        if host.locality.weight > 0:
            group.weight = host.locality.weight
    return [groups[key] for key in sorted(groups)]


def subset_of_groups(hosts: list[Host], whole: list[LocalityGroup], scaled: bool) -> list[LocalityGroup]:
    """The same localities with a part of their hosts; `scaled`: and with that part of their weights."""
    groups = {group.key: LocalityGroup(group.key, group.weight) for group in whole}
    for host in hosts:
        groups[host.locality.key].hosts.append(host)
    if scaled:
        for group in whole:
            part = groups[group.key]
            part.weight = int(group.weight * len(part.hosts) / len(group.hosts) + 0.5)
    return list(groups.values())


class LocalityPicker(Picker):
    """Locality by locality in proportion to their weights, and in each by the policy of the cluster."""

    def __init__(
        self, hosts: list[Host], by_locality: dict[LocalityKey, Picker], weights: list[float], offset: int
    ) -> None:
        super().__init__(hosts)
        self.by_locality = by_locality  # in the order of `weights`
        self._pickers = list(by_locality.values())
        self._order = WeightedOrder(weights)
        self._offset = offset % len(weights)

    def prepare(self) -> Iterator[None]:
        for picker in self._pickers:
            yield from picker.prepare()
        yield from self._order.prepare(self._offset)

    def pick(self) -> Host:
        return self._pickers[self._order.next()].pick()


def new_locality_picker(
    groups: list[LocalityGroup], degraded: bool, config: LbConfig, random_bits: RandomBits, previous: Picker | None
) -> Generator[None, None, Picker | None]:
    """Among the healthy hosts, or the degraded ones; None when no locality with a weight has any. In steps."""
    before: dict[LocalityKey, Picker] = {}
    if isinstance(previous, LocalityPicker):
        before = previous.by_locality
    pickers: dict[LocalityKey, Picker] = {}
    weights: list[float] = []
    eligible: list[Host] = []
    for group in groups:
        hosts = group.degraded() if degraded else group.healthy()
        weight = group.effective_weight(len(hosts), config.overprovisioning_factor)
        picker = new_picker(hosts, config, random_bits, before.get(group.key))
        if weight > 0.0 and picker is not None:
            pickers[group.key] = picker
            weights.append(weight)
            eligible.extend(hosts)
        yield
    return LocalityPicker(eligible, pickers, weights, random_bits(30)) if weights else None
