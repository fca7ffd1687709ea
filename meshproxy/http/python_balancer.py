"""`meshproxy.load_balancing_policies.python`: a load balancer that is a class in Python (docs/writing-filters.md).

Priorities, health and panic are those of every policy (upstream/priority_set.py): a request has its hosts by these
rules, and the user's class picks one of them. It stands here, and not in upstream/, for its context can send requests.
"""

from __future__ import annotations

from typing import Any, Final

from meshproxy.api.load_balancer_pb2 import Python
from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.http.python_version import PythonVersion, SingleStats, build_version, refuse_coroutines
from meshproxy.http.user_classes import LoadBalancer
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.hash_policy import NO_HASH
from meshproxy.upstream import load_balancer
from meshproxy.upstream.build_lb_policy import BALANCERS
from meshproxy.upstream.config import LbConfig
from meshproxy.upstream.host import Host, LbContext
from meshproxy.upstream.load_balancer import BalancerExtension, RandomBits
from meshproxy.upstream.picker import Picker
from meshproxy.upstream.priority_set import PrioritySet
from meshproxy.upstream.stats import ClusterStats

_DRAW_BITS: Final = 30


class LbRequest:
    """What a balancer may know of the request, or connection, that it chooses a host for; read only."""

    def __init__(self, hosts: list[Host], context: LbContext | None, key: int) -> None:
        self.hosts = hosts  # of which one is to be chosen: by priority and health, never empty
        self.hash: int | None = None if key == NO_HASH else key  # of 64 bits, where the route has a hash policy
        self._context = context

    @property
    def headers(self) -> HeaderMap | None:
        """The request's, as the upstream is to get them; None for a TCP connection."""
        return None if self._context is None else self._context.headers

    @property
    def info(self) -> StreamInfo | None:
        """What access logs know so far; None for requests of the proxy's own."""
        return None if self._context is None else self._context.info

    @property
    def metadata_match(self) -> dict[str, Any]:
        """The fields of `envoy.lb` that the route asks for."""
        criteria = None if self._context is None else self._context.criteria
        return {} if criteria is None else criteria.fields

    @property
    def attempt(self) -> int:
        """1, and more for the retries of an HTTP request."""
        info = self.info
        return 1 if info is None or info.upstream is None else max(1, info.upstream.attempts)

    @property
    def avoid(self) -> list[Host]:
        """Hosts of earlier attempts, where the retry policy asks for another one."""
        return [] if self._context is None else self._context.avoid


class PythonBalancer(PrioritySet):
    """A cluster's, with the rail around the user's."""

    def __init__(self, version: PythonVersion, config: LbConfig, stats: ClusterStats, random_bits: RandomBits) -> None:
        super().__init__(config, stats, random_bits)
        self._version = version
        self._draw = random_bits
        self._usable: set[Host] = set()
        self._user: LoadBalancer | None = None  # None: it could not be made
        version.start()  # hosts come before the cluster is in force
        try:
            self._user = version.new()
        except Exception as error:  # noqa: BLE001  a user's code
            version.on_error("every host is chosen at random", error)

    def _share_out(self) -> None:
        super()._share_out()
        usable: list[Host] = []
        for level, host_set in enumerate(self.sets):
            healthy, degraded = self._healthy_load[level] > 0, self._degraded_load[level] > 0
            if host_set.panic:
                usable += host_set.hosts if healthy or degraded else []
            else:
                usable += host_set.healthy if healthy else []
                usable += host_set.degraded if degraded else []
        self._usable = set(usable)
        self._tell(usable)

    def _tell(self, hosts: list[Host]) -> None:
        if self._user is None:
            return
        began = self._version.enter()
        try:
            self._user.on_hosts(hosts)
        except Exception as error:  # noqa: BLE001  a user's code
            self._version.on_error("it was in on_hosts", error)
        self._version.leave(began)

    def choose_host(self, context: LbContext | None) -> Host | None:
        return self.choose_by_hash(context, NO_HASH)

    def choose_by_hash(self, context: LbContext | None, key: int) -> Host | None:
        picker = self.picker_for(self._draw(_DRAW_BITS))
        if picker is None:
            return None
        request = LbRequest(picker.hosts, context, key)
        host = self._ask(request, picker)
        if context is not None:
            for _ in range(context.max_attempts):
                if host is None or not context.rejects(host):
                    break
                host = self._ask(request, picker)
        return host

    def _ask(self, request: LbRequest, picker: Picker) -> Host | None:
        user, version = self._user, self._version
        if user is None:
            return picker.pick()
        host: Host | None = None
        began = version.enter()
        try:
            host = user.choose(request)
            if host is not None and host not in self._usable:
                raise ValueError(f"it chose {host!r}, which is not among the hosts that may be used")
        except Exception as error:  # noqa: BLE001  a user's code
            version.on_error("a host is chosen at random", error)
            host = picker.pick()
        version.leave(began)
        return host

    def close(self) -> None:
        self._user = None
        self._version.on_done()


class PythonPolicy(BalancerExtension):
    """A configured class."""

    def __init__(self, version: PythonVersion) -> None:
        super().__init__(version)
        self._version = version

    def new(self, config: LbConfig, stats: ClusterStats, random_bits: RandomBits) -> load_balancer.LoadBalancer:
        return PythonBalancer(self._version, config, stats, random_bits)


def build_python(message: Any, path: str, context: BuildContext) -> BalancerExtension | None:
    version = build_version(message, path, context, LoadBalancer, f"{context.stat_prefix}python.", SingleStats)
    if version is None or refuse_coroutines(version.kind, ("on_hosts", "choose"), path, context):
        return None
    if version.kind.choose is LoadBalancer.choose:
        context.errors.add(path, f"{version.kind.__name__} must have a method choose(self, request)")
        return None
    return PythonPolicy(version)


BALANCERS.register(Python, build_python)
