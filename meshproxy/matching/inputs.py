"""What xDS matchers look at, by the type of the input: as text, and None where there is nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from meshproxy.matching.facts import Facts
from meshproxy.net.address import Address
from meshproxy.tls.x509 import DNS, URI

NETWORK: Final = "envoy.extensions.matching.common_inputs.network.v3."
SSL: Final = "envoy.extensions.matching.common_inputs.ssl.v3."


def _ip(address: Address) -> bytes | None:
    return address.ip.encode() or None


def _port(address: Address) -> bytes | None:
    return str(address.port).encode() if address.ip else None


def source_ip(facts: Facts) -> bytes | None:
    return _ip(facts.info.remote)


def source_port(facts: Facts) -> bytes | None:
    return _port(facts.info.remote)


def direct_source_ip(facts: Facts) -> bytes | None:
    return _ip(facts.info.connection.direct_remote)


def destination_ip(facts: Facts) -> bytes | None:
    return _ip(facts.info.connection.local)


def destination_port(facts: Facts) -> bytes | None:
    return _port(facts.info.connection.local)


def server_name(facts: Facts) -> bytes | None:
    return facts.info.connection.requested_server_name.encode("latin-1", "replace") or None


def _names(facts: Facts, kind: int) -> bytes | None:
    tls: Any = facts.tls()
    return None if tls is None else ",".join(tls.peer_names(kind)).encode("latin-1", "replace") or None


def uri_san(facts: Facts) -> bytes | None:
    return _names(facts, URI)


def dns_san(facts: Facts) -> bytes | None:
    return _names(facts, DNS)


def subject(facts: Facts) -> bytes | None:
    tls: Any = facts.tls()
    peer = None if tls is None else tls.peer
    return None if peer is None else peer.subject.encode() or None


INPUTS: Final[dict[str, Callable[[Facts], bytes | None]]] = {
    NETWORK + "SourceIPInput": source_ip,
    NETWORK + "SourcePortInput": source_port,
    NETWORK + "DirectSourceIPInput": direct_source_ip,
    NETWORK + "DestinationIPInput": destination_ip,
    NETWORK + "DestinationPortInput": destination_port,
    NETWORK + "ServerNameInput": server_name,
    SSL + "UriSanInput": uri_san,
    SSL + "DnsSanInput": dns_san,
    SSL + "SubjectInput": subject,
}
HEADER_INPUT: Final = "envoy.type.matcher.v3.HttpRequestHeaderMatchInput"
CEL_INPUT: Final = "xds.type.matcher.v3.HttpAttributesCelMatchInput"
CEL_MATCHER: Final = "xds.type.matcher.v3.CelMatcher"
IP_MATCHER: Final = "xds.type.matcher.v3.IPMatcher"
ADDRESSES: Final = (NETWORK + "SourceIPInput", NETWORK + "DirectSourceIPInput", NETWORK + "DestinationIPInput")
