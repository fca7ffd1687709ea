"""The hosts of a cluster by priority and health, and how much of the traffic each group gets.

The rules are those of Envoy's arch_overview/upstream/load_balancing (priority levels, degraded endpoints, panic
threshold): a priority's availability is its share of healthy hosts times the overprovisioning factor; traffic goes to
the first priority as far as it is available, and on to the next; when too few hosts are left, all are used.
"""

from __future__ import annotations

from meshproxy.upstream.config import LbConfig
from meshproxy.upstream.hash_tables import HashTables
from meshproxy.upstream.hashing import HashPicker
from meshproxy.upstream.host import EXCLUDED, Host
from meshproxy.upstream.load_balancer import Picker, RandomBits, new_picker
from meshproxy.upstream.stats import ClusterStats


class HostSet:
    """The hosts of one priority."""

    def __init__(self, hosts: list[Host]) -> None:
        self.hosts = hosts
        self.healthy: list[Host] = [host for host in hosts if host.healthy]
        self.degraded: list[Host] = [host for host in hosts if host.degraded]
        self.excluded: int = len([host for host in hosts if host.health_flags & EXCLUDED])
        self.counted: int = len(hosts) - self.excluded
        self.panic: bool = False
        self.healthy_picker: Picker | None = None
        self.degraded_picker: Picker | None = None
        self.all_picker: Picker | None = None
        self.hash_picker: HashPicker | None = None  # of the policies that go by a hash, the only one

    def availability(self, usable: int, factor: int) -> int:
        """Percent, at most 100."""
        return min(100, factor * usable // self.counted) if self.counted > 0 else 0

    def usable_percent(self) -> float:
        return 100.0 * (len(self.healthy) + len(self.degraded)) / self.counted if self.counted > 0 else 0.0

    def make_pickers(self, config: LbConfig, random_bits: RandomBits, previous: HostSet | None) -> None:
        healthy = degraded = everything = None
        if previous is not None:
            healthy, degraded, everything = previous.healthy_picker, previous.degraded_picker, previous.all_picker
        self.healthy_picker = new_picker(self.healthy, config, random_bits, healthy)
        self.degraded_picker = new_picker(self.degraded, config, random_bits, degraded)
        self.all_picker = new_picker(self.hosts, config, random_bits, everything)

    def use_hash_picker(self, picker: HashPicker | None) -> None:
        """As in Envoy one table serves healthy, degraded and all hosts: which are in it, panic decides."""
        self.hash_picker = self.healthy_picker = self.degraded_picker = self.all_picker = picker


class PrioritySet:
    """All hosts of a cluster: rebuilt when a host comes, goes, or changes its health; picked from for every request."""

    def __init__(
        self, config: LbConfig, stats: ClusterStats, random_bits: RandomBits, tables: HashTables | None = None
    ) -> None:
        self._config = config
        self._tables = tables  # None: the policy does not go by a hash
        self._stats = stats
        self._random_bits = random_bits
        self.sets: list[HostSet] = [HostSet([])]
        self._healthy_load: list[int] = [100]  # percent by priority
        self._degraded_load: list[int] = [0]
        self._only: Picker | None = None  # of all traffic, in the usual case of one priority that is well
        self._panic_threshold: int = config.panic_threshold.value

    def all_hosts(self) -> list[Host]:
        hosts: list[Host] = []
        for host_set in self.sets:
            hosts.extend(host_set.hosts)
        return hosts

    def update(self, hosts: list[Host]) -> None:
        """Take these hosts, with the health that they have now."""
        previous = self.sets
        levels = 1 + max([host.priority for host in hosts], default=0)
        self.sets = [HostSet([host for host in hosts if host.priority == level]) for level in range(levels)]
        for level, host_set in enumerate(self.sets):
            before = previous[level] if level < len(previous) else None
            if self._tables is None:
                host_set.make_pickers(self._config, self._random_bits, before)
            elif before is not None:
                host_set.hash_picker = before.hash_picker
        self._recalculate()
        self._count()

    def pick(self) -> Host | None:
        """The host for one request; None when none is eligible."""
        if self._panic_threshold != self._config.panic_threshold.value:
            self._recalculate()
        only = self._only
        if only is not None:
            return only.pick()
        picker = self._picker_by_load(self._random_bits(30))
        return None if picker is None else picker.pick()

    def picker_for(self, key: int) -> Picker | None:
        """Who picks for a hash: it decides on the priority, too. None when no host is eligible."""
        if self._panic_threshold != self._config.panic_threshold.value:
            self._recalculate()
        only = self._only
        return self._picker_by_load(key) if only is None else only

    def _picker_by_load(self, number: int) -> Picker | None:
        draw = number % 100 + 1
        for degraded, loads in ((False, self._healthy_load), (True, self._degraded_load)):
            for level, load in enumerate(loads):
                draw -= load
                if draw <= 0 and load > 0:
                    return self._picker_from(self.sets[level], degraded)
        return None

    def _picker_from(self, host_set: HostSet, degraded: bool) -> Picker | None:
        if not host_set.panic:
            return host_set.degraded_picker if degraded else host_set.healthy_picker
        self._stats.lb_healthy_panic += 1
        return None if self._config.fail_traffic_on_panic else host_set.all_picker

    # -- how the traffic is split

    def _recalculate(self) -> None:
        self._panic_threshold = self._config.panic_threshold.value
        factor = self._config.overprovisioning_factor
        healthy = [host_set.availability(len(host_set.healthy), factor) for host_set in self.sets]
        degraded = [host_set.availability(len(host_set.degraded), factor) for host_set in self.sets]
        total = min(100, sum(healthy) + sum(degraded))
        self._decide_panic(total)
        if all(host_set.panic for host_set in self.sets):
            self._split_in_panic()
        else:
            self._split(healthy, degraded, total)
        if self._tables is not None:
            self._make_tables(self._tables)
        first = self.sets[0]
        self._only = first.healthy_picker if self._healthy_load[0] == 100 and not first.panic else None

    def _make_tables(self, tables: HashTables) -> None:
        """The last priority's figures are shown, as in Envoy."""
        for host_set in self.sets:
            hosts = host_set.hosts if host_set.panic else host_set.healthy
            host_set.use_hash_picker(tables.make(hosts, host_set.hash_picker))

    def _decide_panic(self, total: int) -> None:
        for host_set in self.sets:
            host_set.panic = total < 100 and host_set.usable_percent() < min(100, self._panic_threshold)

    def _split(self, healthy: list[int], degraded: list[int], total: int) -> None:
        """Healthy hosts of all priorities first, then the degraded ones."""
        if total == 0:
            self._healthy_load = [100] + [0] * (len(self.sets) - 1)
            self._degraded_load = [0] * len(self.sets)
            return
        left = 100
        self._healthy_load, left = _share(healthy, left, total)
        self._degraded_load, left = _share(degraded, left, total)
        loads = self._healthy_load if any(healthy) else self._degraded_load
        for level, load in enumerate(loads):
            if load > 0:
                loads[level] += left  # what rounding left over
                break

    def _split_in_panic(self) -> None:
        """Every priority is in panic: each gets traffic by the number of its hosts."""
        counts = [host_set.counted for host_set in self.sets]
        total = sum(counts)
        self._degraded_load = [0] * len(self.sets)
        if total == 0:
            self._healthy_load = [100] + [0] * (len(self.sets) - 1)
            return
        self._healthy_load = [100 * count // total for count in counts]
        for level, count in enumerate(counts):
            if count > 0:
                self._healthy_load[level] += 100 - sum(self._healthy_load)
                break

    def _count(self) -> None:
        stats = self._stats
        stats.membership_total = sum([len(host_set.hosts) for host_set in self.sets])
        stats.membership_healthy = sum([len(host_set.healthy) for host_set in self.sets])
        stats.membership_degraded = sum([len(host_set.degraded) for host_set in self.sets])
        stats.membership_excluded = sum([host_set.excluded for host_set in self.sets])


def _share(availability: list[int], left: int, total: int) -> tuple[list[int], int]:
    """The load of each priority, in percent, out of what is `left`; and what is left then."""
    loads: list[int] = []
    for percent in availability:
        load = min(left, percent * 100 // total)
        loads.append(load)
        left -= load
    return loads, left
