"""Many proxies that hang on a pilot, each by a connection of its own, as cheaply as may be. A program of bench.pilot.

    python -m bench.pilot_clients HOST:PORT sotw|delta SECONDS

It obeys lines on stdin, and answers each with a line of JSON on stdout. `connect N`: so many more connect, ask for
everything as a proxy does (clusters and their endpoints, listeners and their routes), and take it; `expect TYPE`: each
waits for one response of that type. The answer says when each client had it, in seconds of the monotonic clock, and how
many bytes came, also in the SECONDS after it. What the clients ask for is what the first one is told of: it has to
connect alone. All others take bytes, and look at their ends only.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from collections.abc import Callable
from typing import Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.service.discovery.v3 import discovery_pb2 as discovery
from hpack import Encoder

from bench.http2 import DATA, END_HEADERS, HEADERS, PREFACE, frame

PREFIX: Final = "type.googleapis.com/envoy.config."
CDS: Final = PREFIX + "cluster.v3.Cluster"
EDS: Final = PREFIX + "endpoint.v3.ClusterLoadAssignment"
LDS: Final = PREFIX + "listener.v3.Listener"
RDS: Final = PREFIX + "route.v3.RouteConfiguration"
TYPES: Final = {"clusters": CDS, "endpoints": EDS, "listeners": LDS, "routes": RDS}

_LARGEST_WINDOW: Final = 2**31 - 1
_FIRST_WINDOW: Final = 65_535
_LARGEST_FRAME: Final = 16_384
_RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 3, 4, 6, 7, 8
_GREETING: Final = (
    PREFACE
    + frame(_SETTINGS, 0, 0, (4).to_bytes(2, "big") + _LARGEST_WINDOW.to_bytes(4, "big"))
    + frame(_WINDOW_UPDATE, 0, 0, (_LARGEST_WINDOW - _FIRST_WINDOW).to_bytes(4, "big"))
)
_SERVICE: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"
_READ_BYTES: Final = 256 * 1024
# Where the type stands in a response: behind its resources, before who sends it and the nonce.
_TAIL_BYTES: Final = 600
# So many connections are begun before what came is read.
_CONNECTS_AT_ONCE: Final = 20
PATIENCE_S: Final = 300.0


class Wishes:
    """What every client asks for: its names are known when the first client has read its clusters and listeners."""

    def __init__(self, *, delta: bool) -> None:
        self.delta = delta
        self.names: dict[str, list[str]] = {CDS: [], LDS: []}
        self._bodies: dict[str, bytes] = {}

    def ask(self, type_url: str, node: str = "", nonce: bytes = b"") -> bytes:
        """A request: the first for a type without a nonce; an answer with one, which need not repeat names in delta."""
        if type_url not in self._bodies or node:
            body = self._new(type_url, node)
            if node:
                return body
            self._bodies[type_url] = body
        body = self._bodies[type_url]
        if not nonce:
            return body
        if self.delta:
            return _field(2, type_url.encode()) + _field(6, nonce)
        return body + _field(5, nonce)

    def _new(self, type_url: str, node: str) -> bytes:
        names = self.names[type_url]
        if self.delta:
            request = discovery.DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=names)
        else:
            request = discovery.DiscoveryRequest(type_url=type_url, resource_names=names)
        if node:
            request.node.id, request.node.cluster = node, "bench"
            request.node.metadata.update({"INTERCEPTION_MODE": "REDIRECT"})
        return bytes(request.SerializeToString())

    def learn(self, type_url: str, message: bytes) -> None:
        """What the resources of this response refer to."""
        if self.delta:
            found = [each.resource for each in discovery.DeltaDiscoveryResponse.FromString(message).resources]
        else:
            found = list(discovery.DiscoveryResponse.FromString(message).resources)
        if type_url == CDS:
            clusters = [Cluster.FromString(each.value) for each in found]
            self.names[EDS] = [cluster.name for cluster in clusters if cluster.type == Cluster.EDS]
        elif type_url == LDS:
            self.names[RDS] = sorted(_routes_of([Listener.FromString(each.value) for each in found]))


def _routes_of(listeners: list[Listener]) -> set[str]:
    found = set()
    for listener in listeners:
        chains = [*listener.filter_chains, listener.default_filter_chain]
        for each in (used for chain in chains for used in chain.filters):
            manager = HttpConnectionManager()
            if each.typed_config.Unpack(manager) and manager.HasField("rds"):
                found.add(manager.rds.route_config_name)
    return found


def _field(number: int, value: bytes) -> bytes:
    return bytes((number << 3 | 2, len(value))) + value


class Client:
    """One proxy."""

    def __init__(
        self, target: tuple[str, int], number: int, wishes: Wishes, on_response: Callable[[str], None]
    ) -> None:
        self.socket = socket.create_connection(target, timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.bytes = 0
        self.responses: dict[str, int] = {}
        self._wishes = wishes
        self._is_first = number == 0
        self._on_response = on_response
        self._received = bytearray()
        self._message = bytearray()
        self._unsent = bytearray()
        self._waiting = bytearray()  # for the window
        self._window = self._stream_window = self._first_stream_window = _FIRST_WINDOW
        fields = (
            (":method", "POST"),
            (":path", _SERVICE + ("Delta" if wishes.delta else "Stream") + "AggregatedResources"),
            (":scheme", "http"),
            (":authority", "pilot"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        )
        self._unsent += _GREETING + frame(HEADERS, END_HEADERS, 1, Encoder().encode(fields))
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        self._node = f"sidecar~{address}~bench-{number}.default~default.svc.cluster.local"
        self._ask(CDS, node=self._node)
        self._ask(LDS)

    def _ask(self, type_url: str, node: str = "", nonce: bytes = b"") -> None:
        message = self._wishes.ask(type_url, node, nonce)
        self._waiting += b"\x00" + len(message).to_bytes(4, "big") + message
        self._flush()

    def _flush(self) -> None:
        while self._waiting:
            size = min(len(self._waiting), self._window, self._stream_window, _LARGEST_FRAME)
            if size <= 0:
                break
            self._unsent += frame(DATA, 0, 1, bytes(self._waiting[:size]))
            del self._waiting[:size]
            self._window -= size
            self._stream_window -= size
        if self._unsent:
            try:
                del self._unsent[: self.socket.send(self._unsent)]
            except BlockingIOError:
                return

    @property
    def has_output(self) -> bool:
        """The socket takes no more for now."""
        return bool(self._unsent)

    def write(self) -> None:
        """The socket takes more."""
        self._flush()

    def read(self) -> None:
        """Take what is there. Raises ConnectionError at the end, RuntimeError for a reset."""
        data = self.socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionError("the pilot closed a connection")
        self.bytes += len(data)
        received = self._received
        received += data
        at = 0
        while len(received) - at >= 9:
            size = int.from_bytes(received[at : at + 3], "big")
            if len(received) - at - 9 < size:
                break
            kind, flags = received[at + 3], received[at + 4]
            stream = int.from_bytes(received[at + 5 : at + 9], "big")
            self._take(kind, flags, stream, received[at + 9 : at + 9 + size])
            at += 9 + size
        del received[:at]

    def _take(self, kind: int, flags: int, stream: int, payload: bytearray) -> None:
        if kind == DATA:
            self._message += payload
            self._take_messages()
        elif kind == _WINDOW_UPDATE:
            if stream:
                self._stream_window += int.from_bytes(payload, "big")
            else:
                self._window += int.from_bytes(payload, "big")
            self._flush()
        elif kind == _SETTINGS and not flags & 1:
            self._take_settings(payload)
            self._unsent += frame(_SETTINGS, 1, 0)
            self._flush()
        elif kind == _PING and not flags & 1:
            self._unsent += frame(_PING, 1, 0, bytes(payload))
            self._flush()
        elif kind in (_RST_STREAM, _GOAWAY) or (kind == HEADERS and flags & 1):
            raise RuntimeError(f"the pilot ended a stream: {bytes(payload)!r}")

    def _take_settings(self, payload: bytearray) -> None:
        for at in range(0, len(payload), 6):
            if int.from_bytes(payload[at : at + 2], "big") == 4:
                window = int.from_bytes(payload[at + 2 : at + 6], "big")
                self._stream_window += window - self._first_stream_window
                self._first_stream_window = window

    def _take_messages(self) -> None:
        message = self._message
        while len(message) >= 5:
            end = 5 + int.from_bytes(message[1:5], "big")
            if len(message) < end:
                return
            self._respond(message, end)
            del message[:end]

    def _respond(self, message: bytearray, end: int) -> None:
        begin = max(5, end - _TAIL_BYTES)
        at = message.rindex(b"\x22", begin, message.rindex(PREFIX.encode(), begin, end))
        type_url = message[at + 2 : at + 2 + message[at + 1]].decode()
        nonce_at = message.rindex(b"\x2a", begin, end)
        nonce = bytes(message[nonce_at + 2 : end])
        count = self.responses[type_url] = self.responses.get(type_url, 0) + 1
        if count == 1 and self._is_first:
            self._wishes.learn(type_url, bytes(message[5:end]))
        if count == 1 and type_url in (CDS, LDS):
            self._ask(EDS if type_url == CDS else RDS)
        self._ask(type_url, nonce=nonce)
        self._on_response(type_url)


class Crowd:
    """All clients."""

    def __init__(self, target: str, *, delta: bool) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._wishes = Wishes(delta=delta)
        self._selector = selectors.EpollSelector()
        self.clients: list[Client] = []
        self._when: list[float] = []
        self._expected: frozenset[str] = frozenset()
        self._missing: dict[int, set[str]] = {}

    def connect(self, count: int) -> list[float]:
        """When each of so many more clients has everything."""
        self._begin(frozenset(TYPES.values()))
        wanted = len(self.clients) + count
        while len(self.clients) < wanted:
            for _ in range(min(_CONNECTS_AT_ONCE, wanted - len(self.clients))):
                self._add()
            self._turn(0.0)
        return self._run(count)

    def expect(self, type_url: str) -> list[float]:
        """When each client has its next response of a type."""
        self._begin(frozenset((type_url,)))
        for number in range(len(self.clients)):
            self._missing[number] = set(self._expected)
        print(json.dumps({"ready": True}), flush=True)
        return self._run(len(self.clients))

    def _begin(self, expected: frozenset[str]) -> None:
        self._expected = expected
        self._when = []
        self._missing = {}

    def _add(self) -> None:
        number = len(self.clients)
        self._missing[number] = set(self._expected)
        client = Client(self._target, number, self._wishes, lambda type_url: self._on_response(number, type_url))
        self.clients.append(client)
        self._selector.register(client.socket, selectors.EVENT_READ, client)

    def _on_response(self, number: int, type_url: str) -> None:
        missing = self._missing.get(number)
        if missing is None:
            return
        missing.discard(type_url)
        if not missing:
            del self._missing[number]
            self._when.append(time.monotonic())

    def _run(self, count: int) -> list[float]:
        until = time.monotonic() + PATIENCE_S
        while len(self._when) < count:
            self._turn(1.0)
            if time.monotonic() > until:
                raise RuntimeError(f"{count - len(self._when)} clients have not got what they wait for")
        return self._when

    def _turn(self, timeout_s: float) -> None:
        for key, events in self._selector.select(timeout_s):
            client: Client = key.data
            if events & selectors.EVENT_READ:
                client.read()
            if events & selectors.EVENT_WRITE:
                client.write()
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.has_output else 0)
            if wanted != key.events:
                self._selector.modify(client.socket, wanted, client)

    def settle(self, seconds: float) -> None:
        """Answer what else comes for a moment, so that it does not count for what follows."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._turn(0.1)


def main(target: str, protocol: str, settle_s: float) -> None:
    crowd = Crowd(target, delta=protocol == "delta")
    for line in sys.stdin:
        verb, _, what = line.strip().partition(" ")
        before = sum(client.bytes for client in crowd.clients)
        when = crowd.connect(int(what)) if verb == "connect" else crowd.expect(TYPES[what])
        crowd.settle(settle_s)
        received = sum(client.bytes for client in crowd.clients) - before
        print(json.dumps({"when": when, "bytes": received}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
