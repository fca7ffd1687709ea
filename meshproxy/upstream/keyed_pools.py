"""The pools of one host in a cluster where not everybody may share a connection, or where pools are limited.

There is one for each key of what downstreams ask for, as long as it has connections. `max_connection_pools` bounds
their number over all hosts of the cluster: where it is reached, an idle pool of the host goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshproxy.upstream.demand import ConnectionDemand

if TYPE_CHECKING:
    from meshproxy.upstream.cluster import Cluster
    from meshproxy.upstream.host import Host
    from meshproxy.upstream.pool import ConnectionPool


class KeyedPools:
    """By priority and key."""

    def __init__(self) -> None:
        self._pools: list[dict[str, ConnectionPool]] = [{}, {}]

    def find(self, cluster: Cluster, host: Host, priority: int, demand: ConnectionDemand) -> ConnectionPool | None:
        """The pool for this demand, which is kept once it is used; None where there are too many pools."""
        pools = self._pools[priority]
        found = pools.get(demand.key)
        if found is not None:
            return found
        if not cluster.breakers(priority).pools.can_acquire() and not self._free_one(pools):
            cluster.stats.upstream_cx_pool_overflow += 1
            return None
        made = cluster.new_pool(host, priority)
        made.demand = demand
        if demand.protocol:
            made.protocol = demand.protocol
        made.keyed = self
        made.priority = priority
        return made

    def _free_one(self, pools: dict[str, ConnectionPool]) -> bool:
        for pool in pools.values():
            if pool.idle:
                pool.drain()  # which forgets it
                return True
        return False

    def keep(self, pool: ConnectionPool) -> None:
        """It gets its first connection."""
        if pool.demand is not None:
            self._pools[pool.priority][pool.demand.key] = pool

    def forget(self, pool: ConnectionPool) -> None:
        """It has no connection any more."""
        pools = self._pools[pool.priority]
        if pool.demand is not None and pools.get(pool.demand.key) is pool:
            del pools[pool.demand.key]

    def all(self) -> list[ConnectionPool]:
        return [pool for pools in self._pools for pool in pools.values()]
