"""The load balancer of a cluster: which of its hosts takes a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from meshproxy.upstream.host import Host, LbContext
from meshproxy.upstream.stats import ClusterStats

if TYPE_CHECKING:
    from meshproxy.upstream.config import LbConfig

RandomBits = Callable[[int], int]  # so many random bits, as `random.getrandbits`


@mypyc_attr(allow_interpreted_subclasses=True)
class LoadBalancer:
    """One per cluster. `context` is what the request asks for: None where it, and the balancer, ask for nothing."""

    def update(self, hosts: list[Host]) -> None:
        """Take these hosts, with the health that they have now."""
        raise NotImplementedError

    def rebuild(self, hosts: list[Host]) -> Iterator[None]:
        """As `update`, in steps: requests find what there was before until the last of them."""
        self.update(hosts)
        yield

    def on_health_changed(self, hosts: list[Host], host: Host) -> None:
        """One of the hosts, which are the same as before, is well again or no more."""
        self.update(hosts)

    def choose_host(self, context: LbContext | None) -> Host | None:
        """The host that takes a request; None when there is none that may."""
        raise NotImplementedError

    def choose_by_hash(self, context: LbContext | None, key: int) -> Host | None:
        """As `choose_host`, for a request with this hash of 64 bits; NO_HASH stands for any."""
        return self.choose_host(context)

    def close(self) -> None:
        """The cluster takes no traffic any more."""


@mypyc_attr(allow_interpreted_subclasses=True)
class BalancerExtension:
    """A policy of another package, as configured. Two whose `identity` is one object are the same."""

    def __init__(self, identity: object) -> None:
        self.identity = identity

    def new(self, config: LbConfig, stats: ClusterStats, random_bits: RandomBits) -> LoadBalancer:
        """The balancer of a cluster."""
        raise NotImplementedError
