"""The row `xfcc-names` of docs/envoy-differences.md: what a certificate is called says nothing beyond its place."""

from __future__ import annotations

from types import SimpleNamespace

from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.client_cert import APPEND_FORWARD, ClientCertForwarding
from meshproxy.net.address import Address
from meshproxy.net.transport_socket import TransportSocket
from meshproxy.observe.stream_info import ConnectionInfo
from meshproxy.tls.x509 import DNS, URI

NAME = b"x-forwarded-client-cert"


def forwarded(*names: tuple[int, str], had: bytes = b"") -> bytes | None:
    """The header for a client with these names."""
    details = HttpConnectionManager.SetCurrentClientCertDetails(uri=True, dns=True)
    facts = SimpleNamespace(
        peer_certificate_presented=True,
        peer=None,
        local_names=lambda _kind: [],
        peer_names=lambda kind: [text for each, text in names if each == kind],
    )
    connection = ConnectionInfo(1, Address("1.1.1.1", 1), Address("2.2.2.2", 2))
    connection.transport_socket = TransportSocket()
    connection.transport_socket.facts = facts
    headers = HeaderMap([(NAME, had)] if had else [])
    ClientCertForwarding(APPEND_FORWARD, details).apply(headers, connection)
    return headers.get(NAME)


def test_names_as_they_are() -> None:
    assert forwarded((URI, "spiffe://a.test/ns/x/sa/y"), (DNS, "*.a.test")) == (
        b"URI=spiffe://a.test/ns/x/sa/y;DNS=*.a.test"
    )
    assert forwarded((URI, "spiffe://a/b?c=d"), had=b"By=x") == b"By=x,URI=spiffe://a/b?c=d"


def test_a_name_that_reads_like_another_element() -> None:
    told = forwarded(
        (URI, "spiffe://b/c,URI=spiffe://a/admin"), (DNS, 'x;URI="spiffe://a"'), (DNS, "x\r\ny: z\0\t\x7f")
    )
    assert told == b"URI=spiffe://b/c%2CURI=spiffe://a/admin;DNS=x%3BURI=%22spiffe://a%22;DNS=x%0D%0Ay:%20z%00%09%7F"
