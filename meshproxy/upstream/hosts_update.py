"""How a cluster's hosts become those of other endpoints: in steps, since there may be very many of them.

An endpoint that is the very object that it was before is not looked at: so an update costs what has changed in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from meshproxy.upstream.config import EndpointConfig
from meshproxy.upstream.host import EDS_FLAGS, Host

if TYPE_CHECKING:
    from meshproxy.upstream.cluster import Cluster

_STRIDE: Final = 256  # endpoints in a step that are new
_LONG_STRIDE: Final = 2048  # … that are known


class HostsUpdate:
    """Of one cluster to these endpoints, those that share an address being a host each.

    A host whose address stays in its place keeps its identity: its connections, numbers and ejections. Endpoints that
    stay are told by `known`: the hosts of those that the cluster has.
    """

    def __init__(self, cluster: Cluster, endpoints: list[EndpointConfig], known: dict[EndpointConfig, Host]) -> None:
        self._cluster = cluster
        self._endpoints = endpoints
        self._known = known
        self.by_endpoint: dict[EndpointConfig, Host] = {}
        self.hosts: list[Host] = []
        self.removed: list[Host] = []
        self.moved: set[int] = set()  # priorities that a host joined or left
        self.changed = False  # whether load balancing must hear of it, should no host have come or gone

    def find(self) -> Iterator[None]:
        """Find the host of every endpoint, or make it. Nobody chooses among the new ones yet."""
        fresh: list[EndpointConfig] = []
        for index, endpoint in enumerate(self._endpoints):
            host = self._known.get(endpoint)
            if host is None:
                fresh.append(endpoint)
            else:
                self.by_endpoint[endpoint] = host
            if index % _LONG_STRIDE == _LONG_STRIDE - 1:
                yield
        left: dict[str, list[Host]] = {}
        staying = set(self.by_endpoint.values())
        leaving = [host for host in self._cluster.hosts if host not in staying]
        yield
        for start in range(0, len(leaving), _LONG_STRIDE):
            _sort_in(leaving[-1 - start : -1 - start - _LONG_STRIDE : -1], left)
            yield
        yield from self._place(fresh, left)
        self.hosts = [self.by_endpoint[endpoint] for endpoint in self._endpoints]
        yield
        for same in left.values():
            self.removed += same
        self.moved.update([host.priority for host in self.removed])

    def _place(self, fresh: list[EndpointConfig], left: dict[str, list[Host]]) -> Iterator[None]:
        """Each gets a host that is left at its address, of its own priority if possible; else a new one."""
        same_priority: list[Host | None] = []
        for endpoint in fresh:
            same_priority.append(_take(left, endpoint, True))
            if len(same_priority) % _LONG_STRIDE == 0:
                yield
        for index, endpoint in enumerate(fresh):
            host = same_priority[index] or _take(left, endpoint, False)
            if host is None:
                host = self._cluster.new_host(endpoint)
                self.moved.add(endpoint.priority)
            else:
                self._cluster.rematch(endpoint, host)
                if host.priority != endpoint.priority:
                    self.moved.update((host.priority, endpoint.priority))
            self.changed = _apply(endpoint, host) or self.changed
            self.by_endpoint[endpoint] = host
            if index % _STRIDE == _STRIDE - 1:
                yield


def by_address(hosts: list[Host]) -> dict[str, list[Host]]:
    """Hosts by their address, which several may have; the first of them stands at the end."""
    found: dict[str, list[Host]] = {}
    _sort_in(hosts[::-1], found)
    return found


def _sort_in(hosts: list[Host], found: dict[str, list[Host]]) -> None:
    for host in hosts:
        same = found.get(host.key)
        if same is None:
            found[host.key] = [host]
        else:
            same.append(host)


def let_go(known: dict[EndpointConfig, Host], removed: list[Host]) -> Iterator[None]:
    """Of what is used no more, in steps: to free ten thousand hosts takes longer than a request may wait."""
    while known:
        known.popitem()
        if len(known) % _STRIDE == 0:
            yield
    while removed:
        removed.pop()
        if len(removed) % _STRIDE == 0:
            yield


def _take(left: dict[str, list[Host]], endpoint: EndpointConfig, same_priority: bool) -> Host | None:
    """Take out the first host that has the endpoint's address and place (and its priority), if there is one left."""
    hosts = left.get(endpoint.key)
    if hosts:
        for index in range(len(hosts) - 1, -1, -1):
            host = hosts[index]
            if host.locality.key != endpoint.locality.key:
                continue  # in Envoy a host that moves is another one
            if not same_priority or host.priority == endpoint.priority:
                return hosts.pop(index)
    return None


def _apply(endpoint: EndpointConfig, host: Host) -> bool:
    """Give the host what its endpoint says; True when load balancing must hear of it."""
    flags = (host.health_flags & ~EDS_FLAGS) | endpoint.health_flags
    changed = flags != host.health_flags or endpoint.weight != host.weight or endpoint.priority != host.priority
    changed = changed or endpoint.locality.weight != host.locality.weight
    changed = changed or endpoint.hostname != host.hostname or endpoint.metadata != host.metadata  # keys of hashing
    host.health_flags = flags
    host.weight = endpoint.weight
    host.priority = endpoint.priority
    host.hostname = endpoint.hostname
    host.locality = endpoint.locality
    host.canary = endpoint.canary
    host.metadata = endpoint.metadata
    return changed
