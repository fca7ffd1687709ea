"""Which host an attempt goes to: what the cluster's load balancer is told of the request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshproxy.route.hash_policy import NO_HASH
from meshproxy.route.route import Route
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.host import Host, LbContext

if TYPE_CHECKING:
    from meshproxy.http.router import Router


def choose_host(router: Router, cluster: Cluster, route: Route) -> Host | None:
    """None: there is none that may serve."""
    context = _context(router, cluster, route)
    return _choose_by_hash(router, cluster, route, context) if cluster.hashes else cluster.choose_host(context)


def _context(router: Router, cluster: Cluster, route: Route) -> LbContext | None:
    """Only another attempt avoids hosts; only some clusters look at the request."""
    context = None if router.retry is None or router.attempts == 1 else router.retry.lb_context
    if not cluster.needs_context:
        return context
    if context is None:
        context = LbContext()
    context.criteria, context.info, context.headers = route.metadata_match, router.stream.info, router.headers
    return context


def _choose_by_hash(router: Router, cluster: Cluster, route: Route, context: LbContext | None) -> Host | None:
    policy = cluster.config.lb.hash_policy or route.hash_policy
    if policy is None:
        return cluster.choose_by_hash(context, NO_HASH)
    if router.set_cookies is None:
        router.set_cookies = []
    return cluster.choose_by_hash(context, policy.hash(router.headers, router.stream.info, router.set_cookies))
