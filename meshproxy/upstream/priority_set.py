"""The hosts of a cluster by priority and health, and how much of the traffic each group gets.

The rules are those of Envoy's arch_overview/upstream/load_balancing (priority levels, degraded endpoints, panic
threshold): a priority's availability is its share of healthy hosts times the overprovisioning factor; traffic goes to
the first priority as far as it is available, and on to the next; when too few hosts are left, all are used.
"""

from __future__ import annotations

from collections.abc import Iterator

from meshproxy.route.hash_policy import NO_HASH
from meshproxy.upstream.config import LbConfig
from meshproxy.upstream.hash_tables import HashTables
from meshproxy.upstream.hashing import STRIDE, HashPicker, shares_of
from meshproxy.upstream.host import DEGRADED, EXCLUDED, UNHEALTHY, Host, LbContext
from meshproxy.upstream.load_balancer import LoadBalancer, RandomBits
from meshproxy.upstream.locality import LocalityGroup, group_by_locality, new_locality_picker, subset_of_groups
from meshproxy.upstream.picker import Picker, new_picker
from meshproxy.upstream.stats import ClusterStats


class HostSet:
    """The hosts of one priority."""

    def __init__(self, hosts: list[Host]) -> None:
        self.hosts = hosts
        self.healthy: list[Host] = []
        self.degraded: list[Host] = []
        self.counted: int = 0
        self.localities: list[LocalityGroup] = []  # where they have weights
        self.panic: bool = False
        # What health is measured in: hosts, or their weights (`weighted_priority_health`).
        self._healthy_units: int = 0
        self._degraded_units: int = 0
        self._units: int = 0
        self.healthy_picker: Picker | None = None
        self.degraded_picker: Picker | None = None
        self.all_picker: Picker | None = None
        self.hash_picker: HashPicker | None = None  # of the policies that go by a hash, the only one

    def divide(self, by_weight: bool) -> Iterator[None]:
        """See who is healthy."""
        for index, host in enumerate(self.hosts):
            units = host.weight if by_weight else 1
            flags = host.health_flags
            if flags & EXCLUDED == 0:
                self.counted += 1
                self._units += units
            if flags & (UNHEALTHY | DEGRADED) == 0:
                self.healthy.append(host)
                self._healthy_units += units
            elif flags & UNHEALTHY == 0:
                self.degraded.append(host)
                self._degraded_units += units
            if index % STRIDE == STRIDE - 1:
                yield

    def availability(self, factor: int) -> tuple[int, int]:
        """Of healthy and of degraded hosts, each in percent and at most 100."""
        units = self._units
        if units == 0:
            return 0, 0
        return min(100, factor * self._healthy_units // units), min(100, factor * self._degraded_units // units)

    def usable_percent(self) -> float:
        return 100.0 * (len(self.healthy) + len(self.degraded)) / self.counted if self.counted > 0 else 0.0

    def make_pickers(self, config: LbConfig, random_bits: RandomBits, previous: HostSet | None) -> Iterator[None]:
        healthy = degraded = everything = None
        if previous is not None:
            healthy, degraded, everything = previous.healthy_picker, previous.degraded_picker, previous.all_picker
        self.all_picker = new_picker(self.hosts, config, random_bits, everything)
        yield
        if self.localities:
            localities = self.localities
            self.healthy_picker = yield from new_locality_picker(localities, False, config, random_bits, healthy)
            self.degraded_picker = yield from new_locality_picker(localities, True, config, random_bits, degraded)
        if self.healthy_picker is None:
            self.healthy_picker = new_picker(self.healthy, config, random_bits, healthy)
        if self.degraded_picker is None:
            self.degraded_picker = new_picker(self.degraded, config, random_bits, degraded)
        for picker in (self.all_picker, self.healthy_picker, self.degraded_picker):
            if picker is not None:
                yield
                yield from picker.prepare()

    def let_go(self) -> Iterator[None]:
        """Of the pickers, one after the other: they may be large. Nobody uses them any more."""
        self.hash_picker = self.all_picker = None
        yield
        self.healthy_picker = None
        yield
        self.degraded_picker = None

    def use_hash_picker(self, picker: HashPicker | None) -> None:
        """As in Envoy one table serves healthy, degraded and all hosts: which are in it, panic decides."""
        self.hash_picker = self.healthy_picker = self.degraded_picker = self.all_picker = picker

    def hash_shares(self) -> tuple[list[Host], list[float]]:
        """The hosts of the table, and which share of it each gets."""
        if not self.localities:
            hosts = self.hosts if self.panic else self.healthy
            return hosts, shares_of(hosts)
        total = sum([group.weight for group in self.localities])
        found: list[Host] = []
        shares: list[float] = []
        for group in self.localities:
            if group.weight > 0:  # a locality without a weight gets nothing
                eligible = group.hosts if self.panic else group.healthy()
                found.extend(eligible)
                shares.extend(shares_of(eligible, group.weight / total))
        return found, shares


def by_priority(hosts: list[Host]) -> list[list[Host]]:
    """The hosts of every priority, in order; the first is there in any case."""
    levels: list[list[Host]] = [[] for _ in range(1 + max([host.priority for host in hosts], default=0))]
    for host in hosts:
        levels[host.priority].append(host)
    return levels


class PrioritySet(LoadBalancer):
    """Balances by priority, health, locality and the policy: rebuilt when a host comes, goes, or changes its health.

    `by_locality`: localities have weights. `whole` are the localities of the whole cluster, by priority, where these
    are the hosts of a subset.
    """

    def __init__(
        self,
        config: LbConfig,
        stats: ClusterStats,
        random_bits: RandomBits,
        tables: HashTables | None = None,
        by_locality: bool = False,
    ) -> None:
        self._config = config
        self._tables = tables  # None: the policy does not go by a hash
        self._stats = stats
        self._random_bits = random_bits
        self._by_locality = by_locality
        self.whole: list[list[LocalityGroup]] = []
        self.scaled: bool = False  # a locality's weight goes by how many of its hosts are in the subset
        self.sets: list[HostSet] = [HostSet([])]
        self._healthy_load: list[int] = [100]  # percent by priority
        self._degraded_load: list[int] = [0]
        self._only: Picker | None = None  # of all traffic, in the usual case of one priority that is well
        self._panic_threshold: int = config.panic_threshold.value

    def update(self, hosts: list[Host]) -> None:
        """Take these hosts, with the health that they have now."""
        for _ in self.rebuild(hosts):
            pass

    def rebuild(self, hosts: list[Host]) -> Iterator[None]:
        config, tables, previous = self._config, self._tables, self.sets
        sets: list[HostSet] = []
        for level, members in enumerate(by_priority(hosts)):
            yield
            host_set = HostSet(members)
            yield from host_set.divide(config.weighted_priority_health)
            if self._by_locality:
                yield from self._find_localities(host_set)
            before = previous[level] if level < len(previous) else None
            if tables is None:
                yield from host_set.make_pickers(config, self._random_bits, before)
            elif before is not None:
                host_set.hash_picker = before.hash_picker
            sets.append(host_set)
        self._decide_panic(sets)
        if tables is not None:
            yield from _make_tables(sets, tables)
        self.sets = sets
        self._share_out()
        yield
        for host_set in previous:
            yield from host_set.let_go()

    def _find_localities(self, host_set: HostSet) -> Iterator[None]:
        hosts = host_set.hosts
        if self.whole and hosts:
            host_set.localities = subset_of_groups(hosts, self.whole[hosts[0].priority], self.scaled)
        else:
            host_set.localities = yield from group_by_locality(hosts)

    def choose_host(self, context: LbContext | None) -> Host | None:
        host = self.pick()
        if context is None:
            return host
        for _ in range(context.max_attempts):
            if host is None or not context.rejects(host):
                break
            host = self.pick()
        return host

    def choose_by_hash(self, context: LbContext | None, key: int) -> Host | None:
        if key == NO_HASH:
            key = self._random_bits(64)
        picker = self.picker_for(key)
        if picker is None:
            return None
        host = picker.pick_by_hash(key, 0)
        if context is not None:
            for attempt in range(1, context.max_attempts + 1):
                if not context.rejects(host):
                    break
                host = picker.pick_by_hash(key, attempt)
        return host

    def close(self) -> None:
        if self._tables is not None:
            self._tables.close()

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
        """The panic threshold has changed."""
        self._decide_panic(self.sets)
        if self._tables is not None:
            for _ in _make_tables(self.sets, self._tables):
                pass
        self._share_out()

    def _decide_panic(self, sets: list[HostSet]) -> None:
        threshold, factor = self._config.panic_threshold.value, self._config.overprovisioning_factor
        self._panic_threshold = threshold
        total = sum([sum(host_set.availability(factor)) for host_set in sets])
        for host_set in sets:
            host_set.panic = total < 100 and host_set.usable_percent() < min(100, threshold)

    def _share_out(self) -> None:
        factor = self._config.overprovisioning_factor
        healthy = [host_set.availability(factor)[0] for host_set in self.sets]
        degraded = [host_set.availability(factor)[1] for host_set in self.sets]
        if all(host_set.panic for host_set in self.sets):
            self._split_in_panic()
        else:
            self._split(healthy, degraded, min(100, sum(healthy) + sum(degraded)))
        first = self.sets[0]
        self._only = first.healthy_picker if self._healthy_load[0] == 100 and not first.panic else None

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
        """Every priority is in panic: each gets traffic by the number of its hosts, draining ones among them."""
        counts = [len(host_set.hosts) for host_set in self.sets]
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


def _make_tables(sets: list[HostSet], tables: HashTables) -> Iterator[None]:
    """The last priority's figures are shown, as in Envoy."""
    for host_set in sets:
        hosts, shares = host_set.hash_shares()
        picker = yield from tables.make(hosts, shares, host_set.hash_picker)
        host_set.use_hash_picker(picker)


def _share(availability: list[int], left: int, total: int) -> tuple[list[int], int]:
    """The load of each priority, in percent, out of what is `left`; and what is left then."""
    loads: list[int] = []
    for percent in availability:
        load = min(left, percent * 100 // total)
        loads.append(load)
        left -= load
    return loads, left
