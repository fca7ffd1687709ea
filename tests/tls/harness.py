"""Our transport socket against a peer in memory: itself, or Python's own SSLObject."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from meshproxy.tls.context import TlsContext
from meshproxy.tls.engine import TlsEvents, TlsTransportSocket
from meshproxy.tls.facts import TlsFacts
from meshproxy.tls.material import memory_file
from meshproxy.tls.options import CertificateOptions, TlsOptions, ValidationOptions
from tests.tls.certificates import Issued, world

V12 = ssl.TLSVersion.TLSv1_2
V13 = ssl.TLSVersion.TLSv1_3
BOTH = (V12, V13)


class Recorded(TlsEvents):
    """What a socket told."""

    def __init__(self) -> None:
        self.handshakes: list[TlsFacts] = []
        self.failures: list[int] = []

    def on_handshake(self, facts: TlsFacts) -> None:
        self.handshakes.append(facts)

    def on_failure(self, failure: int) -> None:
        self.failures.append(failure)


def identity(issued: Issued, **more: Any) -> CertificateOptions:
    given = {"chain": issued.pem, "key": issued.key_pem} | more
    return CertificateOptions(field="common_tls_context.tls_certificates[0]", **given)


def validation(**more: Any) -> ValidationOptions:
    given = {"trusted_ca": world().ca.pem} | more
    return ValidationOptions(field="common_tls_context.validation_context", **given)


def server(*certificates: Issued, **more: Any) -> TlsContext:
    chosen = tuple(identity(each) for each in certificates or (world().server,))
    return TlsContext(TlsOptions(is_server=True, certificates=chosen, **more))


def client(certificate: Issued | None = None, **more: Any) -> TlsContext:
    certificates = () if certificate is None else (identity(certificate),)
    return TlsContext(TlsOptions(is_server=False, certificates=certificates, **more))


class Socket:
    """One of ours, started, and a record of what it told."""

    def __init__(self, context: TlsContext, server_name: str = "", demanded_name: str = "") -> None:
        self.told = Recorded()
        self.tls = TlsTransportSocket(context, self.told, server_name, demanded_name)
        self.tls.start()
        self.received: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tls, name)

    def take(self, data: bytes) -> None:
        self.received += self.tls.receive(data)

    @property
    def text(self) -> bytes:
        return b"".join(self.received)


class PythonPeer:
    """Python's own TLS with the same two verbs."""

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        name: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side, name, session)
        self.established = False
        self.error: ssl.SSLError | None = None
        self.text = b""
        self.at_end = False
        self.take(b"")

    def take(self, data: bytes) -> None:
        self.incoming.write(data)
        self.attempt(self._go_on)

    def _go_on(self) -> None:
        if not self.established:
            self.tls.do_handshake()
            self.established = True
        while True:
            piece = self.tls.read(65536)
            if not piece:
                self.at_end = True
                return
            self.text += piece

    def attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLZeroReturnError:
            self.at_end = True
        except ssl.SSLError as error:
            self.error = self.error or error

    def take_output(self) -> bytes:
        return self.outgoing.read()


def python_client(certificate: Issued | None = None, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    limit(context, version)
    load(context, certificate)
    return context


def python_server(certificate: Issued | None = None, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    limit(context, version)
    load(context, certificate or world().server)
    return context


def limit(context: ssl.SSLContext, version: ssl.TLSVersion | None) -> None:
    if version is not None:
        context.minimum_version = context.maximum_version = version


def load(context: ssl.SSLContext, certificate: Issued | None) -> None:
    if certificate is not None:
        with memory_file(certificate.pem) as chain, memory_file(certificate.key_pem) as key:
            context.load_cert_chain(chain, key)


def converse(one: Any, other: Any) -> None:
    """Let both take what the other puts out, until neither says any more."""
    for _ in range(20):
        there, back = other.take_output(), one.take_output()
        if there:
            one.take(there)
        if back:
            other.take(back)
        if not there and not back:
            return
    raise AssertionError("they talk without an end")


def pair(
    server_context: TlsContext, client_context: TlsContext, name: str = "", expected: str = ""
) -> tuple[Socket, Socket]:
    """Server and client after the handshake, however it ended."""
    one, other = Socket(server_context), Socket(client_context, name, expected)
    converse(one, other)
    return one, other
