"""Which endpoints a proxy prefers: those near it, with shares or with fail-over, as `localityLbSetting` says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshproxy.pilot.documents.destination_rule import LocalityLbSetting, TrafficPolicy
    from meshproxy.pilot.mesh.services import Endpoint

_NETWORK: Final = "topology.istio.io/network"
_PARTS: Final = 3  # region, zone, sub-zone


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a proxy is, and its labels: fail-over may go by them."""

    locality: str = ""  # region/zone/sub-zone
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Endpoints of one locality, of one priority."""

    locality: str
    endpoints: tuple[Endpoint, ...]
    priority: int = 0
    weight: int = 0  # among the localities of its priority

    @property
    def own_weight(self) -> int:
        return sum(endpoint.weight or 1 for endpoint in self.endpoints)


def grouped(endpoints: Sequence[Endpoint]) -> list[Group]:
    """By locality, sorted; all of one priority."""
    by_locality: dict[str, list[Endpoint]] = {}
    for endpoint in endpoints:
        by_locality.setdefault(endpoint.locality, []).append(endpoint)
    groups = [Group(locality, tuple(members)) for locality, members in sorted(by_locality.items())]
    return [replace(group, weight=group.own_weight) for group in groups]


def locality_setting(policy: TrafficPolicy) -> LocalityLbSetting | None:
    return policy.load_balancer.locality_lb_setting if policy.load_balancer is not None else None


def prefers(policy: TrafficPolicy) -> bool:
    """Whether it matters where the proxy is: shares always do; fail-over needs to know which hosts fail."""
    setting = locality_setting(policy)
    if setting is not None and setting.enabled is False:
        return False
    if setting is not None and setting.distribute:
        return True
    return policy.outlier_detection is not None


def placed(endpoints: Sequence[Endpoint], setting: LocalityLbSetting | None, origin: Origin | None) -> list[Group]:
    """By locality, as a proxy at `origin` is to see them; None: it does not matter where it is."""
    groups = grouped(endpoints)
    return groups if origin is None else arranged(groups, setting, origin)


def arranged(groups: list[Group], setting: LocalityLbSetting | None, origin: Origin) -> list[Group]:
    """The groups as this proxy is to see them.

    `setting` None: fail-over by region, zone and sub-zone. As with Istio, who has no locality prefers nobody.
    """
    if setting is not None and setting.distribute:
        return _distributed(groups, setting, origin.locality)
    if setting is not None and setting.failover_priority:
        groups = _by_labels(groups, setting.failover_priority, origin)
        if not setting.failover:
            return _compact(groups)
    elif not origin.locality:
        return groups
    regions = {one.from_: one.to for one in setting.failover} if setting is not None else {}
    return _compact(_by_distance(groups, origin.locality, regions))


def _distributed(groups: list[Group], setting: LocalityLbSetting, own: str) -> list[Group]:
    """The first entry whose `from` covers the proxy's locality says the share of each locality; what it leaves out gets
    nothing."""
    rule = next((one for one in setting.distribute if covers(one.from_, own)), None)
    if rule is None:
        return groups
    found: list[Group] = []
    left = list(groups)
    for pattern, share in sorted(rule.to, key=lambda item: _exactness(item[0])):
        matching = [group for group in left if covers(pattern, group.locality)]
        total = sum(group.weight for group in matching)
        found += [replace(group, weight=math.ceil(group.weight * share / total)) for group in matching if share]
        left = [group for group in left if group not in matching]
    return sorted(found, key=lambda group: group.locality)


def covers(pattern: str, locality: str) -> bool:
    """`region/*` and `region` cover all within the region."""
    wanted, parts = pattern.split("/"), _parts(locality)
    for index, part in enumerate(wanted):
        if part == "*":
            return True
        if index >= _PARTS or part != parts[index]:
            return False
    return True


def _exactness(pattern: str) -> tuple[int, str]:
    """More exact patterns first: an endpoint belongs to one of them only."""
    return -sum(part != "*" for part in pattern.split("/")), pattern


def _by_distance(groups: list[Group], own: str, regions: dict[str, str]) -> list[Group]:
    """0: the same sub-zone, 1: zone, 2: region, 3: elsewhere; 4: elsewhere, but not where the rule says to go."""
    return [replace(group, priority=group.priority * 5 + _distance(group.locality, own, regions)) for group in groups]


def _distance(locality: str, own: str, regions: dict[str, str]) -> int:
    ours, theirs = _parts(own), _parts(locality)
    same = next((index for index in range(_PARTS) if ours[index] != theirs[index]), _PARTS)
    if same:
        return _PARTS - same
    wanted = regions.get(ours[0])
    return 4 if wanted is not None and wanted != theirs[0] else 3


def _by_labels(groups: list[Group], keys: Sequence[str], origin: Origin) -> list[Group]:
    """Endpoints that share more of these labels with the proxy, in this order, come first: a locality's endpoints may
    fall into several priorities."""
    found: list[Group] = []
    for group in groups:
        members: dict[int, list[Endpoint]] = {}
        for endpoint in group.endpoints:
            members.setdefault(_unlikeness(endpoint, keys, origin), []).append(endpoint)
        for priority, endpoints in sorted(members.items()):
            part = replace(group, endpoints=tuple(endpoints), priority=priority)
            found.append(replace(part, weight=part.own_weight))
    return found


def _unlikeness(endpoint: Endpoint, keys: Sequence[str], origin: Origin) -> int:
    ours = dict(origin.labels) | _locality_labels(origin.locality)
    theirs = {_NETWORK: endpoint.network} | dict(endpoint.labels) | _locality_labels(endpoint.locality)
    for index, entry in enumerate(keys):
        key, given, value = entry.partition("=")
        wanted = value if given else ours.get(key, "")
        if wanted != theirs.get(key, ""):
            return len(keys) - index
    return 0


def _locality_labels(locality: str) -> dict[str, str]:
    region, zone, sub_zone = _parts(locality)
    return {
        "topology.kubernetes.io/region": region,
        "topology.kubernetes.io/zone": zone,
        "topology.istio.io/subzone": sub_zone,
    }


def _compact(groups: list[Group]) -> list[Group]:
    """Priorities without gaps: Envoy wants them so."""
    ranks = {priority: rank for rank, priority in enumerate(sorted({group.priority for group in groups}))}
    return sorted(
        (replace(group, priority=ranks[group.priority]) for group in groups),
        key=lambda group: (group.priority, group.locality),
    )


def _parts(locality: str) -> list[str]:
    parts = locality.split("/")[:_PARTS]
    return parts + [""] * (_PARTS - len(parts))
