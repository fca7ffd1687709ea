"""x-forwarded-client-cert: what the next hop is told of the client's certificate.

Written as Envoy's documentation of the header has it: `By`, `Hash`, then what is asked for, with `;` between.
"""

from __future__ import annotations

import re
from typing import Any, Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.observe.stream_info import ConnectionInfo
from meshproxy.tls.x509 import DNS, URI

# ForwardClientCertDetails
SANITIZE: Final = 0
FORWARD_ONLY: Final = 1
APPEND_FORWARD: Final = 2
SANITIZE_SET: Final = 3
ALWAYS_FORWARD_ONLY: Final = 4

_NAME: Final = b"x-forwarded-client-cert"
_MARKS: Final = re.compile(r'[\x00-\x20",;\x7f]')


class ClientCertForwarding:
    """What a connection manager does to the header, unless it just removes it (SANITIZE)."""

    def __init__(self, mode: int, details: Any) -> None:
        """`details` is a SetCurrentClientCertDetails."""
        self.mode: int = mode
        self._cert: bool = details.cert
        self._chain: bool = details.chain
        self._subject: bool = details.subject.value
        self._uri: bool = details.uri
        self._dns: bool = details.dns

    def apply(self, headers: HeaderMap, connection: ConnectionInfo) -> None:
        """Only who has a client certificate may say anything, but with ALWAYS_FORWARD_ONLY."""
        mode = self.mode
        if mode == ALWAYS_FORWARD_ONLY:
            return
        facts = connection.tls
        if facts is None or not facts.peer_certificate_presented:
            headers.remove(_NAME)
            return
        if mode == FORWARD_ONLY:
            return
        if connection.client_cert is None:
            connection.client_cert = self._element(facts)
        old = headers.joined(_NAME) if mode == APPEND_FORWARD else None
        headers.set(_NAME, old + b"," + connection.client_cert if old else connection.client_cert)

    def _element(self, facts: Any) -> bytes:
        peer = facts.peer
        parts = [f"By={uri}" for uri in facts.local_names(URI)]
        if peer is not None:
            parts.append(f"Hash={peer.fingerprint_sha256()}")
        if self._cert:
            parts.append(f'Cert="{facts.url_encoded_peer_certificate()}"')
        if self._chain:
            parts.append(f'Chain="{facts.url_encoded_peer_chain()}"')
        if self._subject:
            parts.append(f'Subject="{"" if peer is None else peer.subject}"')
        if self._uri:
            parts += [f"URI={_escaped(uri)}" for uri in facts.peer_names(URI) or [""]]
        if self._dns:
            parts += [f"DNS={_escaped(name)}" for name in facts.peer_names(DNS)]
        return ";".join(parts).encode("latin-1", "replace")


def _escaped(name: str) -> str:
    """Percent-encoded where it would end, or begin, a part or an element: an authority may sign any name."""
    return _MARKS.sub(lambda found: f"%{ord(found[0]):02X}", name)
