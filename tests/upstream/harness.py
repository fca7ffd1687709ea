"""A cluster manager on the loop of the test, upstreams that the test speaks for, and decoders that remember."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from envoy.config.cluster.v3.cluster_pb2 import Cluster as ClusterMessage

from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.stream import StreamEncoder
from meshproxy.config.config_source import ADS
from meshproxy.config.context import BuildContext, Services
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.json_message import MessageParser
from meshproxy.config.runtime import Runtime
from meshproxy.config.subscription import InitTarget
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.resolver import (
    DnsAddress,
    DnsQuery,
    Resolution,
    ResolveCallback,
    Resolver,
    Resolvers,
    ResolverSettings,
)
from meshproxy.observe.stats import StatsRegistry
from meshproxy.upstream.build import build_cluster
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.config import ClusterConfig
from meshproxy.upstream.connection import UpstreamConnection
from meshproxy.upstream.host import Host
from meshproxy.upstream.manager import ClusterManager
from meshproxy.upstream.pool import PendingStream, PooledStream
from tests.support.subscriptions import FakeSubscriptions

DEADLINE_S = 10.0
T = TypeVar("T")
LB = "envoy.extensions.load_balancing_policies"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def endpoint(host: str, port: int = 80, **lb_endpoint: Any) -> dict[str, Any]:
    """One `lb_endpoints` entry."""
    address = {"socket_address": {"address": host, "port_value": port}}
    inner = {"address": address, **lb_endpoint.pop("endpoint", {})}
    return {"endpoint": inner, **lb_endpoint}


def cluster_dict(*endpoints: dict[str, Any], name: str = "c", priority: int = 0, **fields: Any) -> dict[str, Any]:
    """A cluster with one locality."""
    group = {"lb_endpoints": list(endpoints), "priority": priority}
    return {"name": name, "load_assignment": {"cluster_name": name, "endpoints": [group]}, **fields}


def any_of(name: str, **fields: Any) -> dict[str, Any]:
    """An Any with a message of that full name."""
    return {"@type": f"type.googleapis.com/{name}", **fields}


def with_policy(*policies: dict[str, Any]) -> dict[str, Any]:
    """A cluster with typed load balancing policies."""
    entries = [{"typed_extension_config": {"name": "p", "typed_config": policy}} for policy in policies]
    return cluster_dict(endpoint("10.0.0.1"), load_balancing_policy={"policies": entries})


def parse(fields: dict[str, Any]) -> ClusterMessage:
    message = ClusterMessage()
    errors = ConfigErrors()
    MessageParser(errors).fill(message, fields, "")
    assert not errors, str(errors)
    return message


def build(fields: dict[str, Any], runtime: Runtime | None = None) -> ClusterConfig:
    """The configuration of a cluster that has no errors."""
    context = BuildContext(ConfigErrors(), runtime or Runtime(), StatsRegistry())
    config = build_cluster(parse(fields), "clusters[0]", context)
    assert config is not None, str(context.errors)
    return config


def errors_of(fields: dict[str, Any]) -> dict[str, str]:
    """Path → reason of every error of a cluster that has some."""
    context = BuildContext(ConfigErrors(), Runtime(), StatsRegistry())
    assert build_cluster(parse(fields), "c", context) is None
    return {error.path: error.reason for error in context.errors.items}


class FakeQuery(DnsQuery):
    def __init__(self, name: str, family: int, callback: ResolveCallback) -> None:
        self.name = name
        self.family = family
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def answer(self, *addresses: str, error: str = "", ttl_s: int = 0) -> None:
        self.callback(Resolution([DnsAddress(address, ttl_s) for address in addresses], error))


class FakeResolver(Resolver):
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.queries: list[FakeQuery] = []

    def resolve(self, name: str, family: int, callback: ResolveCallback) -> DnsQuery:
        query = FakeQuery(name, family, callback)
        self.queries.append(query)
        return query


class FakeResolvers(Resolvers):
    """One for all settings."""

    def __init__(self, dispatcher: Dispatcher, resolver: Resolver) -> None:
        super().__init__(dispatcher)
        self.resolver = resolver

    def new(self, settings: ResolverSettings) -> Resolver:
        return self.resolver


class World:
    """Everything that a cluster stands on."""

    def __init__(self, seed: int = 1) -> None:
        self.dispatcher = Dispatcher(asyncio.get_running_loop())
        self.registry = StatsRegistry()
        self.runtime = Runtime()
        self.resolver = FakeResolver()
        bits = random.Random(seed).getrandbits
        resolvers = FakeResolvers(self.dispatcher, self.resolver)
        self.manager = ClusterManager(self.dispatcher, self.registry, self.runtime, resolvers, bits)
        self.subscriptions = FakeSubscriptions()
        self.services = Services(self.dispatcher, self.manager, None, self.subscriptions)

    def start(self, fields: dict[str, Any], *targets: InitTarget) -> None:
        """The manager is told of a cluster, as one of a control plane, that waits for these."""
        context = BuildContext(ConfigErrors(), self.runtime, self.registry)
        context.services = self.services
        context.source = ADS
        context.init_targets.extend(targets)
        config = build_cluster(parse(fields), "c", context)
        assert config is not None, str(context.errors)
        self.manager.add_or_update(config)

    def add(self, fields: dict[str, Any]) -> Cluster:
        self.manager.add_or_update(build(fields, self.runtime))
        cluster = self.manager.get(fields["name"])
        assert cluster is not None
        return cluster

    def counters(self, prefix: str = "cluster.c.") -> dict[str, int]:
        """What is not 0 under the prefix: counters and gauges."""
        snapshot = self.registry.snapshot()
        found = {**snapshot.counters, **snapshot.gauges, **snapshot.levels}
        return {name[len(prefix) :]: n for name, n in found.items() if name.startswith(prefix) and n}

    async def close(self) -> None:
        await self.manager.close()
        await self.dispatcher.close()
        await turns()


@asynccontextmanager
async def world(seed: int = 1) -> AsyncIterator[World]:
    made = World(seed)
    try:
        yield made
    finally:
        await made.close()


def run_steps(steps: Generator[None, None, T]) -> T:
    """All at once: what they return."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result


async def turns(count: int = 4) -> None:
    """Let what is ready happen."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Turn the loop until the condition holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


class Peer:
    """One connection, from the upstream's side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def request(self) -> bytes:
        """The next request's head."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._reader.readuntil(b"\r\n\r\n")

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await self._reader.readexactly(size)

    async def read_some(self) -> bytes:
        """What comes next; nothing at the end of the connection."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._reader.read(65536)

    @property
    def application_protocol(self) -> str | None:
        """What TLS has agreed on."""
        tls: ssl.SSLObject = self._writer.get_extra_info("ssl_object")
        return tls.selected_alpn_protocol()

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        self._writer.transport.abort()

    async def eof(self) -> bytes:
        """Everything up to the end of the connection, orderly or not."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self._reader.read()
            except ConnectionResetError:
                return b""


class Upstream:
    """A listening socket whose connections the test takes one by one."""

    def __init__(self) -> None:
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self._stopped = False
        self.port = 0

    async def start(self, context: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopped:
            writer.transport.abort()
            return
        self._writers.append(writer)
        self._peers.put_nowait(Peer(reader, writer))

    async def accept(self) -> Peer:
        async with asyncio.timeout(DEADLINE_S):
            return await self._peers.get()

    @property
    def waiting(self) -> int:
        """Connections that were made and not taken yet."""
        return self._peers.qsize()

    async def stop(self) -> None:
        assert self._server is not None
        self._stopped = True
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await turns(20)  # a connection that was just accepted reaches `_on_connection` some turns later


@asynccontextmanager
async def upstream(context: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    """With a `context` it speaks TLS."""
    server = Upstream()
    await server.start(context)
    try:
        yield server
    finally:
        await server.stop()


class Call(PooledStream):
    """One request through a pool: what the pool and the response said, as words in `events`."""

    def __init__(self, method: bytes = b"GET", body: bytes | None = None) -> None:
        self.method = method
        self.body = body
        self.events: list[str] = []
        self.received = b""
        self.encoder: StreamEncoder | None = None
        self.connection: UpstreamConnection | None = None
        self.pending: PendingStream | None = None

    def start(self, cluster: Cluster, host: Host | None = None, priority: int = 0) -> Call:
        chosen = host or cluster.choose_host(None)
        assert chosen is not None
        self.pending = chosen.pool(cluster, priority).new_stream(self)
        return self

    def on_pool_failure(self, reason: int, details: str, host: Host) -> None:
        self.events.append(f"failure {reason} {details}".rstrip())

    def on_pool_ready(self, encoder: StreamEncoder, connection: UpstreamConnection, host: Host) -> None:
        self.encoder = encoder
        self.connection = connection
        self.events.append("ready again" if connection.reused else "ready")
        headers = HeaderMap([(b":authority", b"a"), (b":path", b"/"), (b":method", self.method), (b":scheme", b"http")])
        if self.body is not None:
            headers.add(b"content-length", b"%d" % len(self.body))
        encoder.send_headers(headers, not self.body)
        if self.body:
            encoder.send_data(self.body, True)

    def on_headers(self, headers: HeaderMap, end: bool) -> None:
        status = headers.get(b":status")
        assert status is not None
        self.events.append(status.decode())
        if end:
            self.events.append("end")

    def on_data(self, data: bytes, end: bool) -> None:
        self.received += data
        if end:
            self.events.append("end")

    def on_reset(self, reason: int, details: str) -> None:
        stale = self.connection is not None and self.connection.stale
        self.events.append(f"reset {reason}{' stale' if stale else ''}")

    async def until(self, event: str) -> None:
        await until(lambda: event in self.events)
