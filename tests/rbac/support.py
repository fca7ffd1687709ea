"""Rules and those who ask, in tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.json_message import MessageParser
from meshproxy.net.address import Address
from meshproxy.net.transport_socket import TransportSocket
from meshproxy.observe.stream_info import ConnectionInfo, RouteInfo, StreamInfo
from meshproxy.rbac.access import Access
from meshproxy.rbac.build import build_engine
from meshproxy.rbac.engine import Engine
from meshproxy.tls.x509 import DNS, URI
from tests.route.support import new_context

Yaml = dict[str, Any]
TYPE = "type.googleapis.com/envoy.extensions."
ANY: Yaml = {"any": True}
NEVER: Yaml = {"not_rule": ANY}


@dataclass(frozen=True)
class Peer:
    """The certificate of a client, as facts of a session tell of it."""

    names: tuple[tuple[int, str], ...] = ()
    subject: str = ""
    validated: bool = True

    @property
    def peer(self) -> Peer:
        return self

    @property
    def peer_certificate_presented(self) -> bool:
        return True

    @property
    def peer_certificate_validated(self) -> bool:
        return self.validated

    def alt_names(self) -> list[tuple[int, str]]:
        return list(self.names)

    def alt_names_of(self, kind: int) -> list[str]:
        return [text for each, text in self.names if each == kind]

    def peer_names(self, kind: int) -> list[str]:
        return self.alt_names_of(kind)


class Unreadable:
    """A certificate that OpenSSL has taken, and that we cannot read."""

    peer = None
    peer_certificate_presented = True
    peer_certificate_validated = True


CLIENT = Peer(((URI, "spiffe://mesh/ns/a/sa/b"), (DNS, "b.a.test")), "CN=b")


@dataclass
class Asker:
    """A request and its connection. Without a `path` it is a CONNECT."""

    path: str | None = "/"
    fields: list[tuple[str, str]] = field(default_factory=list)
    source: str = "127.0.0.1"
    direct: str = "127.0.0.1"
    remote: str = "127.0.0.1"
    destination: str = "10.0.0.1"
    port: int = 80
    server_name: str = ""
    tls: Any = None
    metadata: dict[str, dict[str, Any]] | None = None
    route_metadata: dict[str, Any] | None = None
    has_route: bool = True
    state: dict[str, Any] | None = None
    connection_state: dict[str, Any] | None = None

    def access(self) -> Access:
        """As rules see it."""
        connection = ConnectionInfo(1, address(self.source, 4711), address(self.destination, self.port))
        connection.direct_remote = address(self.direct, 4711)
        connection.requested_server_name = self.server_name
        connection.filter_state = self.connection_state
        if self.tls is not None:
            connection.transport_socket = TransportSocket()
            connection.transport_socket.facts = self.tls
        info = StreamInfo(connection, 1.0)
        info.remote = address(self.remote, 4711)
        info.dynamic_metadata = self.metadata
        info.filter_state = self.state
        if self.has_route:
            info.route = RouteInfo("r", self.route_metadata, None)
        target = [] if self.path is None else [(b":path", self.path.encode())]
        given = [(name.encode(), value.encode("latin-1")) for name, value in self.fields]
        return Access(HeaderMap([(b":method", b"GET"), *target, *given]), info)


def address(ip: str, port: int) -> Address:
    """A path is a Unix socket's."""
    return Address("", 0, ip) if ip.startswith("/") else Address(ip, port)


def policy(permission: Yaml = ANY, principal: Yaml = ANY) -> Yaml:
    """One of each."""
    return {"permissions": [permission], "principals": [principal]}


def try_build(
    rules: Yaml, *, http: bool = True, context: BuildContext | None = None
) -> tuple[Engine | None, list[tuple[str, str]]]:
    """The engine of an RBAC, and (path, reason) of its errors."""
    context = context or new_context()
    message = RBAC()
    MessageParser(context.errors).fill(message, {"rules": rules}, "f")
    engine = build_engine(message, "rules", "f", context, http=http)
    return engine, [(error.path, error.reason) for error in context.errors.items]


def build(rules: Yaml, *, http: bool = True) -> Engine:
    """The engine of one that has no errors."""
    engine, errors = try_build(rules, http=http)
    assert not errors
    assert engine is not None
    return engine


def holds(asker: Asker, permission: Yaml = ANY, principal: Yaml = ANY) -> bool:
    """Whether a policy of these two holds."""
    return build({"policies": {"p": policy(permission, principal)}}).evaluate(asker.access()).allowed
