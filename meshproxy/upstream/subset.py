"""Subsets: a request goes to the hosts that have the metadata which its route asks for.

The rules are those of Envoy's arch_overview/upstream/load_balancing/subsets. Subsets are divided up when hosts change,
each with a balancer of its own, so that a request costs a look-up.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, ClassVar, Final

from meshproxy.observe.stats import StatsRegistry, StatsScope
from meshproxy.route.metadata_criteria import LB, MetadataCriteria, frozen
from meshproxy.upstream.config import (
    ANY_ENDPOINT,
    DEFAULT_SUBSET,
    KEYS_SUBSET,
    UNDEFINED_FALLBACK,
    LbConfig,
    SubsetConfig,
    SubsetSelector,
)
from meshproxy.upstream.hash_tables import HashTables
from meshproxy.upstream.hashing import STRIDE
from meshproxy.upstream.host import Host, LbContext
from meshproxy.upstream.load_balancer import LoadBalancer, RandomBits
from meshproxy.upstream.locality import LocalityGroup, group_by_locality
from meshproxy.upstream.priority_set import PrioritySet, by_priority
from meshproxy.upstream.stats import ClusterStats

SubsetKey = tuple[tuple[str, object], ...]  # names and values, in the order of the names

_FALLBACK_LIST: Final = "fallback_list"


class SubsetStats(StatsScope):
    """Under `cluster.<name>.`, of clusters that have subsets."""

    LEVELS: ClassVar[tuple[str, ...]] = ("lb_subsets_single_host_per_subset_duplicate",)

    def __init__(self) -> None:
        super().__init__()
        self.lb_subsets_single_host_per_subset_duplicate: int = 0


class SingleHost(LoadBalancer):
    """The first host of the highest priority, whatever its health (`single_host_per_subset`)."""

    def __init__(self) -> None:
        self._host: Host | None = None

    def update(self, hosts: list[Host]) -> None:
        self._host = None
        for host in hosts:
            if self._host is None or host.priority < self._host.priority:
                self._host = host

    def choose_host(self, context: LbContext | None) -> Host | None:
        return self._host


class SubsetLoadBalancer(LoadBalancer):
    """The balancer of a cluster with subsets."""

    def __init__(
        self,
        config: LbConfig,
        subsets: SubsetConfig,
        stats: ClusterStats,
        random_bits: RandomBits,
        tables: HashTables | None,
        registry: StatsRegistry,
        prefix: str,
    ) -> None:
        self._lb = config
        self._config = subsets
        self._stats = stats
        self._random_bits = random_bits
        self._tables = tables  # None: the policy does not go by a hash
        self._registry = registry
        self._prefix = prefix
        self._own_stats = registry.acquire(prefix, SubsetStats)
        self._default_subset: SubsetKey = MetadataCriteria(subsets.default_subset).key
        self._selectors: dict[tuple[str, ...], SubsetSelector] = {
            selector.names: selector for selector in subsets.selectors
        }
        self._by_locality: bool = config.locality_weighted and subsets.locality_weight_aware
        self._whole: list[list[LocalityGroup]] = []  # the cluster's localities by priority
        self._subsets: dict[SubsetKey, LoadBalancer] = {}
        self._members: dict[SubsetKey, list[Host]] = {}
        self._everybody: PrioritySet | None = None
        self._default: PrioritySet | None = None
        fallbacks = [subsets.fallback, *[selector.fallback for selector in subsets.selectors]]
        if ANY_ENDPOINT in fallbacks or subsets.panic_mode_any:
            self._everybody = self._new_set()
        if DEFAULT_SUBSET in fallbacks:
            self._default = self._new_set()

    def _new_set(self) -> PrioritySet:
        made = PrioritySet(self._lb, self._stats, self._random_bits, self._tables, self._by_locality)
        made.scaled = self._config.scale_locality_weight
        return made

    def close(self) -> None:
        self._stats.lb_subsets_active -= len(self._subsets)
        self._stats.lb_subsets_removed += len(self._subsets)
        self._subsets = {}
        self._registry.release(self._prefix, SubsetStats)
        if self._tables is not None:
            self._tables.close()

    # -- hosts

    def update(self, hosts: list[Host]) -> None:
        for _ in self.rebuild(hosts):
            pass

    def rebuild(self, hosts: list[Host]) -> Iterator[None]:
        """One subset after the other: a host that goes may be chosen until its turn comes."""
        if self._by_locality:
            self._whole = []
            for level in by_priority(hosts):
                groups = yield from group_by_locality(level)
                self._whole.append(groups)
        if self._everybody is not None:
            yield from self._everybody.rebuild(hosts)
        if self._default is not None:
            self._default.whole = self._whole
            yield from self._default.rebuild([host for host in hosts if self._is_default(host)])
        duplicates = 0
        found: dict[SubsetKey, list[Host]] = {}
        for selector in self._config.selectors:
            of_selector = yield from self._divide(hosts, selector)
            if selector.single_host:
                duplicates += _duplicates(of_selector)
            for key, members in of_selector.items():
                yield from self._rebuild_subset(key, members, selector)
            found.update(of_selector)
        self._members = found
        self._own_stats.lb_subsets_single_host_per_subset_duplicate = duplicates
        for key in [key for key in self._subsets if key not in found]:
            del self._subsets[key]
            self._stats.lb_subsets_active -= 1
            self._stats.lb_subsets_removed += 1
            yield

    def on_health_changed(self, hosts: list[Host], host: Host) -> None:
        if self._everybody is not None:
            self._everybody.update(hosts)
        if self._default is not None and self._is_default(host):
            self._default.update([each for each in hosts if self._is_default(each)])
        for selector in self._config.selectors:
            for key in subset_keys(host, selector.names, self._config.list_as_any):
                if key in self._members:
                    self._subsets[key].update(self._members[key])

    def _divide(
        self, hosts: list[Host], selector: SubsetSelector
    ) -> Generator[None, None, dict[SubsetKey, list[Host]]]:
        """The hosts that have all of the selector's fields, by their values."""
        divided: dict[SubsetKey, list[Host]] = {}
        for index, host in enumerate(hosts):
            for key in set(subset_keys(host, selector.names, self._config.list_as_any)):
                divided.setdefault(key, []).append(host)
            if index % STRIDE == STRIDE - 1:
                yield
        return divided

    def _rebuild_subset(self, key: SubsetKey, hosts: list[Host], selector: SubsetSelector) -> Iterator[None]:
        subset = self._subsets.get(key)
        if subset is None:
            subset = SingleHost() if selector.single_host else self._new_set()
            if isinstance(subset, PrioritySet):
                subset.whole = self._whole
            yield from subset.rebuild(hosts)
            self._subsets[key] = subset
            self._stats.lb_subsets_active += 1
            self._stats.lb_subsets_created += 1
            return
        if isinstance(subset, PrioritySet):
            subset.whole = self._whole
        yield from subset.rebuild(hosts)

    def _is_default(self, host: Host) -> bool:
        fields = _fields(host)
        for name, wanted in self._default_subset:
            if name not in fields:
                return False
            value = fields[name]
            values = value if self._config.list_as_any and isinstance(value, list) else [value]
            if wanted not in [frozen(each) for each in values]:
                return False
        return True

    # -- for requests

    def choose_host(self, context: LbContext | None) -> Host | None:
        return self._choose(context, 0)

    def choose_by_hash(self, context: LbContext | None, key: int) -> Host | None:
        return self._choose(context, key)

    def _choose(self, context: LbContext | None, key: int) -> Host | None:
        criteria = None if context is None else _criteria_of(context)
        if criteria is None or not self._config.fallback_list or _FALLBACK_LIST not in criteria.fields:
            return self._look_up(context, criteria, key)
        fields = dict(criteria.fields)
        others = fields.pop(_FALLBACK_LIST)
        criteria = MetadataCriteria(fields)
        if not isinstance(others, list) or not others:
            return self._look_up(context, criteria, key)
        for other in others:
            host = self._look_up(context, criteria.merged(other if isinstance(other, dict) else {}), key)
            if host is not None:
                return host
        return None

    def _look_up(self, context: LbContext | None, criteria: MetadataCriteria | None, key: int) -> Host | None:
        if criteria is not None:
            if self._config.allow_redundant_keys:
                criteria = self._without_redundant_keys(criteria)
            subset = self._subsets.get(criteria.key)
            if subset is not None:
                self._stats.lb_subsets_selected += 1
                return self._pick(subset, context, key)
            selector = self._selectors.get(criteria.names)
            if selector is not None and selector.fallback != UNDEFINED_FALLBACK:
                return self._fall_back_as(selector, context, criteria, key)
        return self._fall_back(context, key)

    def _pick(self, subset: LoadBalancer | None, context: LbContext | None, key: int) -> Host | None:
        if subset is None:
            return None
        return subset.choose_host(context) if self._tables is None else subset.choose_by_hash(context, key)

    def _without_redundant_keys(self, criteria: MetadataCriteria) -> MetadataCriteria:
        """Those of the longest selector that is among them; of equals, the first."""
        for selector in self._config.selectors:
            if selector.keys <= criteria.fields.keys():
                return criteria.only(selector.keys)
        return criteria

    def _fall_back_as(
        self, selector: SubsetSelector, context: LbContext | None, criteria: MetadataCriteria, key: int
    ) -> Host | None:
        if selector.fallback == KEYS_SUBSET:
            return self._look_up(context, criteria.only(selector.fallback_keys), key)
        if selector.fallback == ANY_ENDPOINT:
            return self._pick(self._everybody, context, key)
        return self._pick(self._default, context, key) if selector.fallback == DEFAULT_SUBSET else None

    def _fall_back(self, context: LbContext | None, key: int) -> Host | None:
        fallback = self._config.fallback
        if fallback not in (ANY_ENDPOINT, DEFAULT_SUBSET):
            return None
        host = self._pick(self._everybody if fallback == ANY_ENDPOINT else self._default, context, key)
        if host is not None:
            self._stats.lb_subsets_fallback += 1
            return host
        if self._config.panic_mode_any:
            host = self._pick(self._everybody, context, key)
            if host is not None:
                self._stats.lb_subsets_fallback_panic += 1
        return host


def subset_keys(host: Host, names: tuple[str, ...], list_as_any: bool) -> list[SubsetKey]:
    """The subsets that a host belongs to: none when it lacks a field, several for lists that stand for any element."""
    fields = _fields(host)
    keys: list[SubsetKey] = [()]
    for name in names:
        if name not in fields:
            return []
        value = fields[name]
        values = value if list_as_any and isinstance(value, list) else [value]
        keys = [(*key, (name, frozen(each))) for key in keys for each in values]
    return keys


def _criteria_of(context: LbContext) -> MetadataCriteria | None:
    """What the route says, then the metadata of the connection and of the request, which win."""
    criteria = context.criteria
    info = context.info
    if info is not None:
        for metadata in (info.connection.dynamic_metadata, info.dynamic_metadata):
            if metadata is not None and LB in metadata:
                fields = metadata[LB]
                criteria = MetadataCriteria(fields) if criteria is None else criteria.merged(fields)
    return criteria


def _fields(host: Host) -> dict[str, Any]:
    fields: dict[str, Any] = {} if host.metadata is None else host.metadata.get(LB, {})
    return fields


def _duplicates(divided: dict[SubsetKey, list[Host]]) -> int:
    return sum([len(hosts) - 1 for hosts in divided.values()])
