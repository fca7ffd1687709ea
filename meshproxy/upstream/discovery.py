"""Where a cluster's hosts come from: what the cluster manager starts, tells of new endpoints, and stops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from meshproxy.upstream.config import EndpointConfig

if TYPE_CHECKING:
    from meshproxy.upstream.cluster import Cluster


@mypyc_attr(allow_interpreted_subclasses=True)
class DiscoveryListener:
    """Told when a cluster has hosts, or knows that it has none: it is warm."""

    def on_ready(self, cluster: Cluster) -> None:
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class Discovery:
    """Keeps the hosts of one version of a cluster; this one takes them from configuration (STATIC)."""

    def __init__(self, cluster: Cluster, listener: DiscoveryListener) -> None:
        self.cluster = cluster
        self._listener: DiscoveryListener | None = listener

    def start(self) -> None:
        """Find the hosts of `cluster.config.endpoints`."""
        self.set_endpoints(self.cluster.config.endpoints)
        self.ready()

    def set_endpoints(self, endpoints: list[EndpointConfig]) -> None:
        """Configuration has other endpoints now."""
        self.cluster.set_endpoints(endpoints)

    @property
    def is_ready(self) -> bool:
        """Whether the listener has heard."""
        return self._listener is None

    def ready(self) -> None:
        """The listener hears of it once."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.on_ready(self.cluster)

    def stop(self) -> None:
        """No more changes."""
