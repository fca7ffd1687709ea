"""A control plane of the test's own, by grpcio, in the test's loop.

Two ways to use it. `set` gives it resources: every stream that asks for them, state of the world or delta, is answered
and told of changes, as a good control plane does it. After `script()` it answers nothing by itself: the test takes each
stream (`stream()`), reads what comes (`expect`) and says what goes (`send`, `send_delta`, `send_raw`, `cut`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import grpc
from envoy.service.discovery.v3 import discovery_pb2 as discovery
from google.protobuf.any_pb2 import Any as AnyMessage

from meshproxy.config.subscription import CLUSTER_TYPE, LISTENER_TYPE, VIRTUAL_HOST_TYPE

DEADLINE_S = 10.0

_SERVICES = {
    "AggregatedDiscoveryService": "AggregatedResources",
    "ClusterDiscoveryService": "Clusters",
    "EndpointDiscoveryService": "Endpoints",
    "ListenerDiscoveryService": "Listeners",
    "RouteDiscoveryService": "Routes",
    "VirtualHostDiscoveryService": "VirtualHosts",
    "SecretDiscoveryService": "Secrets",
    "ExtensionConfigDiscoveryService": "ExtensionConfigs",
    "RuntimeDiscoveryService": "Runtime",
}
_WHOLE = (LISTENER_TYPE, CLUSTER_TYPE)  # a response of theirs has all there is: who is absent is gone


def any_of_message(message: Any) -> AnyMessage:
    """The Any with a message; an Any is taken as it is."""
    if isinstance(message, AnyMessage):
        return message
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def response(
    type_url: str, messages: Iterable[Any], version: str = "1", nonce: str = "n1", control_plane: str = "test"
) -> Any:
    """A DiscoveryResponse."""
    made = discovery.DiscoveryResponse(type_url=type_url, version_info=version, nonce=nonce)
    made.control_plane.identifier = control_plane
    made.resources.extend(map(any_of_message, messages))
    return made


def resource(
    name: str, message: Any = None, version: str = "1", ttl_s: float = 0.0, aliases: Iterable[str] = ()
) -> Any:
    """A Resource, as delta responses have them; without a message it is a heartbeat."""
    made = discovery.Resource(name=name, version=version, aliases=list(aliases))
    if message is not None:
        made.resource.CopyFrom(any_of_message(message))
    if ttl_s:
        made.ttl.FromMilliseconds(int(ttl_s * 1000))
    return made


def delta_response(
    type_url: str, resources: Iterable[Any], removed: Iterable[str] = (), nonce: str = "n1", version: str = ""
) -> Any:
    """A DeltaDiscoveryResponse."""
    made = discovery.DeltaDiscoveryResponse(type_url=type_url, system_version_info=version, nonce=nonce)
    made.control_plane.identifier = "test"
    made.resources.extend(resources)
    made.removed_resources.extend(removed)
    return made


class ControlPlaneStream:
    """One stream of a client. `requests` are all that came, in their order."""

    def __init__(self, plane: ControlPlane, context: Any, method: str) -> None:
        self.plane = plane
        self.method = method  # `/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources`
        self.is_delta = "/Delta" in method
        self.metadata = dict(context.invocation_metadata() or ())
        self.requests: list[Any] = []
        self.over = False
        self._context = context
        self._read = 0  # of `requests`, by `expect`
        self._arrived = asyncio.Event()
        self._outgoing: asyncio.Queue[bytes | grpc.StatusCode | None] = asyncio.Queue()
        self._known: dict[str, _Watched] = {}

    # -- by script

    async def expect(self, type_url: str | None = None) -> Any:
        """The next request that has not been expected yet; with a type, it must be of that."""
        async with asyncio.timeout(DEADLINE_S):
            while self._read >= len(self.requests):
                assert not self.over, "the stream is over"
                self._arrived.clear()
                await self._arrived.wait()
        request = self.requests[self._read]
        self._read += 1
        assert type_url in (None, request.type_url), f"expected one of {type_url}:\n{request}"
        return request

    @property
    def unexpected(self) -> list[Any]:
        """The requests that came, and which nobody has expected."""
        return self.requests[self._read :]

    def send(self, type_url: str, messages: Iterable[Any], version: str = "1", nonce: str = "n1") -> None:
        """State of the world: a response with these."""
        self.send_raw(response(type_url, messages, version, nonce).SerializeToString())

    def send_delta(
        self, type_url: str, resources: Iterable[Any], removed: Iterable[str] = (), nonce: str = "n1"
    ) -> None:
        """Delta: a response with these (see `resource`)."""
        self.send_raw(delta_response(type_url, resources, removed, nonce).SerializeToString())

    def send_raw(self, data: bytes) -> None:
        """A message of any bytes."""
        self._outgoing.put_nowait(data)
        self.plane.said()

    def cut(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        """End the stream, when what was to be sent before is sent; OK ends it without an error."""
        self._outgoing.put_nowait(code)

    # -- the call

    async def serve(self) -> None:
        reader = asyncio.create_task(self._read_requests(), name="control plane's reader")
        try:
            while (item := await self._outgoing.get()) is not None:
                if isinstance(item, grpc.StatusCode):
                    if item is not grpc.StatusCode.OK:
                        await self._context.abort(item, "cut")
                    return
                await self._context.write(item)
        finally:
            self.over = True
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            self._arrived.set()
            self.plane.on_change()

    async def _read_requests(self) -> None:
        kind = discovery.DeltaDiscoveryRequest if self.is_delta else discovery.DiscoveryRequest
        while (data := await self._context.read()) is not grpc.aio.EOF:
            request = kind.FromString(data)
            self.requests.append(request)
            self.plane.requests.append((self, request))
            self.plane.said()
            if not self.plane.is_scripted:
                self.answer(request)
            self._arrived.set()
            self.plane.on_change()
        self._outgoing.put_nowait(None)

    # -- as a good control plane

    def answer(self, request: Any) -> None:
        """Note what a request asks for, and send what it lacks."""
        watched = self._known.setdefault(request.type_url, _Watched())
        (watched.on_delta if self.is_delta else watched.on_request)(request)
        self.push(request.type_url)

    def push(self, type_url: str) -> None:
        """Send what the client lacks of a type."""
        watched = self._known.get(type_url)
        if watched is None or self.over:
            return
        resources = self.plane.resources.get(type_url, {})
        if self.is_delta:
            first = watched.unanswered and watched.wildcard  # an answer, be it that there is nothing
            updates, removed = watched.changes(resources)
            if updates or removed or first:
                watched.unanswered = False
                made = [resource(name, message, version) for name, (message, version) in updates.items()]
                self.send_delta(type_url, made, removed, self.plane.nonce(type_url))
        else:
            due = watched.state(resources, self.plane.versions.get(type_url, ""), type_url in _WHOLE)
            if due is not None:
                self.send(type_url, due, self.plane.versions.get(type_url, ""), self.plane.nonce(type_url))


Versioned = Mapping[str, tuple[Any, str]]  # by name: a message and its version


class _Watched:
    """What a stream asks for of one type, and what it was given."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.wildcard = False
        self.unanswered = True
        self._first = True
        self._sent: dict[str, str] = {}  # name -> version
        self._sent_version: str | None = None

    def on_request(self, request: Any) -> None:
        names = set(request.resource_names)
        if not names:
            self.wildcard = self.wildcard if not self._first else True
            self.wildcard = self.wildcard and not self.names
        else:
            self.wildcard = "*" in names
        self.names, self._first = names - {"*"}, False
        self._sent = {name: version for name, version in self._sent.items() if self.wants(name)}

    def on_delta(self, request: Any) -> None:
        if self._first:
            self._sent.update(request.initial_resource_versions)
            self.wildcard = not request.resource_names_subscribe and request.type_url != VIRTUAL_HOST_TYPE
        self._first = False
        for name in request.resource_names_unsubscribe:
            self.names.discard(name)
            self._sent.pop(name, None)
            self.wildcard = self.wildcard and name != "*"
        for name in request.resource_names_subscribe:
            self.wildcard = self.wildcard or name == "*"
            if name != "*":
                self.names.add(name)
                self._sent.pop(name, None) if name not in request.initial_resource_versions else None

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names

    def changes(self, resources: Versioned) -> tuple[Versioned, list[str]]:
        """What to send over delta: the updates, and who was removed."""
        wanted = {name: held for name, held in resources.items() if self.wants(name)}
        updates = {name: held for name, held in wanted.items() if self._sent.get(name) != held[1]}
        removed = [name for name in self._sent if name not in wanted]
        self._sent = {name: held[1] for name, held in wanted.items()}
        return updates, removed

    def state(self, resources: Versioned, version: str, whole: bool) -> list[Any] | None:
        """The messages of a state of the world response; None where there is nothing new."""
        wanted = {name: held for name, held in resources.items() if self.wants(name)}
        now = {name: held[1] for name, held in wanted.items()}
        if now == self._sent and (not whole or self._sent_version == version):
            return None
        due = [message for name, (message, at) in wanted.items() if whole or self._sent.get(name) != at]
        self._sent, self._sent_version = now, version
        return due if due or whole else None


class ControlPlane:
    """The server. `requests` has every request that ever came, with its stream."""

    def __init__(self) -> None:
        self.port = 0
        self.target = ""  # as gRPC writes it: `127.0.0.1:1234`, `unix:/path`
        self.is_scripted = False
        self.resources: dict[str, dict[str, tuple[Any, str]]] = {}
        self.versions: dict[str, str] = {}
        self.streams: list[ControlPlaneStream] = []
        self.requests: list[tuple[ControlPlaneStream, Any]] = []
        self.sent: dict[str, str] = {}  # type -> the nonce of the last response that was sent by itself
        self.on_say: Callable[[], None] | None = None  # called for every message, of either side
        self._nonces = 0
        self._taken = 0
        self._changed = asyncio.Event()
        self._server: Any = None

    @classmethod
    @asynccontextmanager
    async def start(cls, *, uds: str = "", credentials: Any = None, port: int = 0) -> AsyncIterator[Self]:
        """Serve on a free TCP port, or on a Unix socket; with `grpc.ssl_server_credentials`, over TLS."""
        plane = cls()
        await plane.listen(uds=uds, credentials=credentials, port=port)
        try:
            yield plane
        finally:
            await plane.stop()

    async def listen(self, *, uds: str = "", credentials: Any = None, port: int = 0) -> None:
        """Begin, or begin again after `stop`."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
        server.add_generic_rpc_handlers((_Handler(self),))
        address = f"unix:{uds}" if uds else f"127.0.0.1:{port}"
        if credentials is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, credentials)
        self.port = 0 if uds else bound
        self.target = address if uds else f"127.0.0.1:{bound}"
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Go away: what is open is cut. A second call does nothing."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)
            await server.wait_for_termination()

    # -- as a good control plane

    def set(self, type_url: str, resources: Mapping[str, Any], version: str = "1") -> None:
        """These are all resources of a type from now on; those whose message changed have this version."""
        before = self.resources.get(type_url, {})
        self.resources[type_url] = {
            name: before[name] if name in before and before[name][0] == message else (message, version)
            for name, message in resources.items()
        }
        self.versions[type_url] = version
        for stream in self.streams:
            stream.push(type_url)

    def nonce(self, type_url: str) -> str:
        """Of the next response of a type."""
        self._nonces += 1
        self.sent[type_url] = f"nonce-{self._nonces}"
        return self.sent[type_url]

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until the condition holds; it is looked at whenever a request came or a stream ended."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def of_type(self, type_url: str) -> list[Any]:
        """All requests for a type."""
        return [request for _, request in self.requests if request.type_url == type_url]

    def nacks(self, type_url: str) -> list[str]:
        """What clients had to say against responses of a type."""
        return [each.error_detail.message for each in self.of_type(type_url) if each.HasField("error_detail")]

    async def acked(self, type_url: str, version: str) -> None:
        """Wait until a client has acknowledged this version of a type (state of the world)."""
        await self.until(lambda: any(_is_ack(each, version) for each in self.of_type(type_url)))

    # -- by script

    def script(self) -> None:
        """Answer nothing by itself from now on."""
        self.is_scripted = True

    async def stream(self) -> ControlPlaneStream:
        """The next stream that a client has opened, in their order."""
        await self.until(lambda: len(self.streams) > self._taken)
        self._taken += 1
        return self.streams[self._taken - 1]

    def said(self) -> None:
        if self.on_say is not None:
            self.on_say()

    def on_change(self) -> None:
        self._changed.set()

    async def serve(self, context: Any, method: str) -> None:
        """One call."""
        stream = ControlPlaneStream(self, context, method)
        self.streams.append(stream)
        self.on_change()
        await stream.serve()


def _is_ack(request: Any, version: str) -> bool:
    return bool(request.response_nonce and request.version_info == version and not request.HasField("error_detail"))


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    def service(self, details: Any) -> Any:
        method = details.method
        name = method.rpartition("/")[0].rpartition(".")[2]
        noun = _SERVICES.get(name)
        if noun is None or method.rpartition("/")[2] not in (f"Stream{noun}", f"Delta{noun}"):
            return None

        async def serve(_requests: Any, context: Any) -> None:
            await self._plane.serve(context, method)

        return grpc.stream_stream_rpc_method_handler(serve)
