"""A client of the scripted control plane, and a sink that remembers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import Node
from envoy.config.core.v3.config_source_pb2 import ApiConfigSource, ConfigSource
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener

from meshproxy.config.config_source import source_key
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.json_message import MessageParser
from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE
from meshproxy.xds.client import Rejection, ResourceSink, ResourceUpdate, XdsClient
from tests.rpc.harness import http2_cluster, services
from tests.support.control_plane import ControlPlane
from tests.upstream.harness import World, until, world

NODE = Node(id="sidecar~127.0.0.1~a.b~b.svc.cluster.local", cluster="a")
# Opened again at once.
AT_ONCE = {"base_interval": "0.001s", "max_interval": "0.001s"}

KINDS: dict[str, Callable[[str], Any]] = {
    CLUSTER_TYPE: lambda name: Cluster(name=name),
    LISTENER_TYPE: lambda name: Listener(name=name),
    ENDPOINT_TYPE: lambda name: ClusterLoadAssignment(cluster_name=name),
}


def cluster(name: str, alt: str = "") -> Cluster:
    return Cluster(name=name, alt_stat_name=alt)


def listener(name: str, alt: str = "") -> Listener:
    return Listener(name=name, stat_prefix=alt)


def assignment(name: str) -> ClusterLoadAssignment:
    return ClusterLoadAssignment(cluster_name=name)


class RecordingSink(ResourceSink):
    """Takes all but what `refuse` names. `held` is what is in force; `log` are the calls, in their order."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self.log: list[tuple[str, list[str], list[str], str]] = []
        self.refuse: dict[str, str] = {}  # name -> reason
        self.own: list[Rejection] = []  # what the client has refused by itself
        self.failures: list[tuple[str, str]] = []
        self.attempts: list[str] = []
        self.gate: Any = None  # an asyncio.Event that calls for `gated` wait for
        self.gated: str = ""
        self.running: dict[str, int] = {}

    async def apply(
        self,
        source: bytes,
        type_url: str,
        updates: list[ResourceUpdate],
        removed: list[str],
        version: str,
        rejections: Sequence[Rejection] = (),
    ) -> list[Rejection]:
        self.own += rejections
        self.log.append((type_url, [each.name for each in updates], list(removed), version))
        self.running[type_url] = self.running.get(type_url, 0) + 1
        assert self.running[type_url] == 1, "two calls for one type at once"
        if self.gate is not None and self.gated == type_url:
            await self.gate.wait()
        held, versions = self.held.setdefault(type_url, {}), self.versions.setdefault(type_url, {})
        refused = []
        for each in updates:
            assert each.data == each.message.SerializeToString()
            if each.name in self.refuse:
                refused.append(Rejection(each.name, self.refuse[each.name]))
            else:
                held[each.name], versions[each.name] = each.message, each.version
        for name in removed:
            held.pop(name, None)
            versions.pop(name, None)
        self.running[type_url] -= 1
        return refused

    def on_failure(self, source: bytes, type_url: str, reason: str) -> None:
        self.failures.append((type_url, reason))

    def on_attempt(self, source: bytes, type_url: str) -> None:
        self.attempts.append(type_url)

    def names(self, type_url: str) -> set[str]:
        return set(self.held.get(type_url, {}))

    async def holds(self, type_url: str, *names: str) -> None:
        """Wait until these, and no others, are in force."""
        await until(lambda: self.names(type_url) == set(names))


def parse(kind: Any, fields: dict[str, Any]) -> Any:
    message, errors = kind(), ConfigErrors()
    MessageParser(errors).fill(message, fields, "")
    assert not errors, str(errors)
    return message


def envoy_grpc(cluster_name: str = "c", **back_off: Any) -> dict[str, Any]:
    policy = {"retry_back_off": {**AT_ONCE, **back_off}}
    return {"envoy_grpc": {"cluster_name": cluster_name, "retry_policy": policy}}


def api(*, delta: bool = False, **fields: Any) -> Any:
    """An ApiConfigSource on cluster `c`."""
    default = {
        "api_type": "DELTA_GRPC" if delta else "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [envoy_grpc()],
    }
    return parse(ApiConfigSource, default | fields)


def key_of(message: Any) -> bytes:
    """The key of a ConfigSource with this ApiConfigSource."""
    return source_key(ConfigSource(api_config_source=message))


class Client:
    """The client and what stands around it."""

    def __init__(self, w: World, plane: ControlPlane, xds: XdsClient, sink: RecordingSink) -> None:
        self.world = w
        self.plane = plane
        self.xds = xds
        self.sink = sink


@asynccontextmanager
async def client(ads: Any = None, *, plane: ControlPlane | None = None, script: bool = False) -> AsyncIterator[Client]:
    """A client of a control plane over TCP, through cluster `c`; `ads` is its ads_config."""
    if plane is None:
        async with ControlPlane.start() as made, client(ads, plane=made, script=script) as started:
            yield started
        return
    plane.is_scripted = script
    async with world() as w:
        w.add(http2_cluster(plane.port))
        sink = RecordingSink()
        xds = XdsClient(services(w), NODE, ads, w.registry, sink)
        try:
            yield Client(w, plane, xds, sink)
        finally:
            await xds.close()
