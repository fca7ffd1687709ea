"""The connection that a request comes on, as the listener filters would leave it, and its TLS session."""

from __future__ import annotations

from meshproxy.filters.listener.http_inspector import HttpInspectorFactory
from meshproxy.filters.listener.original_dst import OriginalDstFactory
from meshproxy.filters.listener.tls_inspector import TlsInspectorFactory
from meshproxy.filters.listener_filter import AcceptedSocket, ListenerFilterFactory
from meshproxy.net.address import Address
from meshproxy.net.transport_socket import TransportSocket
from meshproxy.observe.stream_info import ConnectionInfo
from meshproxy.server.explain.question import Question
from meshproxy.server.listener_config import ListenerConfig
from meshproxy.tls.x509 import URI

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def listening_address(config: ListenerConfig, port: int) -> Address:
    """Where the client connected: the listener's own address, or that of its addresses which has the port."""
    addresses = [address for address in config.addresses if port and address.port == port] or list(config.addresses)
    address = addresses[0]
    return Address(_EVERYWHERE.get(address.ip, address.ip), address.port, address.path)


def new_accepted(question: Question, local: Address) -> AcceptedSocket:
    """Before any listener filter has looked."""
    remote = Address("", 0, "@") if local.path else question.source
    if ":" in local.ip and remote.ip == "127.0.0.1":
        remote = Address("::1", remote.port)
    return AcceptedSocket(None, remote, local)


def run_listener_filters(config: ListenerConfig, question: Question, tls: bool, accepted: AcceptedSocket) -> list[bool]:
    """Let each find out what it would; says of each whether it ran, or was disabled for this connection."""
    ran = []
    for entry in config.listener_filters:
        runs = entry.disabled is None or not entry.disabled.matches(accepted)
        ran.append(runs)
        if runs:
            _run(entry.factory, question, tls, accepted)
    return ran


def _run(factory: ListenerFilterFactory, question: Question, tls: bool, accepted: AcceptedSocket) -> None:
    if isinstance(factory, TlsInspectorFactory):
        if tls:
            accepted.transport_protocol = "tls"
            accepted.server_name = question.server_name
            accepted.application_protocols = list(question.protocols)
    elif isinstance(factory, HttpInspectorFactory):
        if not tls:
            accepted.application_protocols = ["http/1.1"]
    elif isinstance(factory, OriginalDstFactory) and question.destination is not None:
        if question.destination != accepted.local:
            accepted.local = question.destination
            accepted.local_restored = True


def connection_info(accepted: AcceptedSocket, question: Question, tls: bool) -> ConnectionInfo:
    """What the streams of the connection know of it."""
    info = ConnectionInfo(0, accepted.remote, accepted.local)
    info.direct_remote = accepted.direct_remote
    info.direct_local = accepted.direct_local
    info.local_restored = accepted.local_restored
    info.requested_server_name = question.server_name if tls else ""
    if tls:
        session = TransportSocket()
        session.facts = AssumedSession(question)
        info.transport_socket = session
    return info


class AssumedCertificate:
    """A client's, with this name and no other."""

    subject = ""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def alt_names(self) -> list[tuple[int, str]]:
        return [(URI, self._uri)]

    def alt_names_of(self, kind: int) -> list[str]:
        return [self._uri] if kind == URI else []

    def fingerprint_sha256(self) -> str:
        return ""


class AssumedSession:
    """The facts of a TLS session (tls/facts.py), as far as a question tells of them."""

    def __init__(self, question: Question) -> None:
        self.peer_certificate_presented = question.client_cert
        self.peer_certificate_validated = question.client_cert
        self.server_name = question.server_name
        # Nobody knows what stands in a certificate of which the question does not tell.
        self.peer = AssumedCertificate(question.client_uri) if question.client_uri else None

    def peer_names(self, kind: int) -> list[str]:
        return [] if self.peer is None else self.peer.alt_names_of(kind)

    def local_names(self, kind: int) -> list[str]:
        return []

    def url_encoded_peer_certificate(self) -> str:
        return ""

    def url_encoded_peer_chain(self) -> str:
        return ""

    def operator(self, name: str) -> str | None:
        """No operator knows anything."""
        return None
