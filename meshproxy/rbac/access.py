"""What asks to be let in, as the conditions of rules see it: a request, or a connection on which nothing was said."""

from __future__ import annotations

import socket
from typing import Any, Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.matching.facts import Facts
from meshproxy.net.address import Address
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo
from meshproxy.tls.x509 import DNS, URI, DerError

# The addresses that conditions look at.
SOURCE: Final = 0  # of the connection, as a PROXY protocol header says where there was one
DIRECT_REMOTE: Final = 1  # the socket's peer
REMOTE: Final = 2  # the client, by x-forwarded-for where that is trusted
DESTINATION: Final = 3  # where the connection was bound for


class IpNumber:
    """An IP address as a number; `version` is 4 or 6, and 0 for a Unix socket."""

    def __init__(self, version: int, number: int) -> None:
        self.version = version
        self.number = number


_NO_IP: Final = IpNumber(0, 0)


class Access(Facts):
    """One request, each thing looked up at most once however many rules ask. For a connection `headers` are empty."""

    def __init__(self, headers: HeaderMap, info: StreamInfo) -> None:
        super().__init__(headers, info)
        self.connection: ConnectionInfo = info.connection
        self._path: bytes | None = None
        self._path_read: bool = False
        self._ips: list[IpNumber | None] | None = None

    def path(self) -> bytes | None:
        """The path without its query and fragment; None where there is none (CONNECT)."""
        if not self._path_read:
            self._path_read = True
            target = self.headers.get(b":path")
            self._path = None if target is None else without_query(target)
        return self._path

    def ip(self, which: int) -> IpNumber:
        """One of the addresses above."""
        ips = self._ips
        if ips is None:
            ips = self._ips = [None, None, None, None]
        found = ips[which]
        if found is None:
            found = ips[which] = ip_number(self._address(which))
        return found

    def _address(self, which: int) -> Address:
        if which == REMOTE:
            return self.info.remote
        if which == SOURCE:
            return self.connection.remote
        return self.connection.direct_remote if which == DIRECT_REMOTE else self.connection.local


def without_query(target: bytes) -> bytes:
    """A `:path` up to its `?` or `#`."""
    end = target.find(b"?")
    if end >= 0:
        target = target[:end]
    end = target.find(b"#")
    return target if end < 0 else target[:end]


def ip_number(address: Address) -> IpNumber:
    """Raises OSError for what is no IP address, so that nobody gets in by it."""
    ip = address.ip
    if not ip:
        return _NO_IP
    if ":" in ip:
        return IpNumber(6, int.from_bytes(socket.inet_pton(socket.AF_INET6, ip.partition("%")[0]), "big"))
    return IpNumber(4, int.from_bytes(socket.inet_pton(socket.AF_INET, ip), "big"))


def principal_names(connection: ConnectionInfo) -> list[bytes]:
    """The names by which rules know the peer of a TLS connection: its URI names, its DNS names, its subject.

    A peer without a certificate has an empty subject, as in Envoy. Raises DerError for a certificate that we cannot
    read: nobody may get past a rule by one.
    """
    names = connection.principal_names
    if names is None:
        facts: Any = connection.tls
        peer = facts.peer
        if peer is None and facts.peer_certificate_presented:
            raise DerError("the peer's certificate cannot be read")
        texts: list[str] = [] if peer is None else [*peer.alt_names_of(URI), *peer.alt_names_of(DNS)]
        names = [text.encode("latin-1") for text in texts]
        names.append(b"" if peer is None else peer.subject.encode())
        connection.principal_names = names
    return names
