"""What expressions may ask of a request and its connection: Envoy's attributes, by their roots and names.

Those that are only known later (`response`, `upstream`, how long it took) are not there: nobody has them while it is
decided who may go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from meshproxy.clock import wall_time_ns
from meshproxy.matching.cel.values import CelError, Headers, StructMap, Timestamp, UInt, text_of
from meshproxy.matching.facts import Facts
from meshproxy.observe.stream_info import PROTOCOL_NAMES
from meshproxy.tls.x509 import DNS, URI

_MOST_DIGITS: Final = 18


# Raises CelError where it is not there.
Attribute: TypeAlias = Callable[[Facts], object]


def _there(value: str) -> str:
    """A text that is not there where it is empty."""
    if not value:
        raise CelError("no such attribute")
    return value


def _header(facts: Facts, name: bytes) -> str:
    found = facts.headers.joined(name)
    if found is None:
        raise CelError("no such attribute")
    return text_of(found)


# -- request


def path(facts: Facts) -> object:
    return _header(facts, b":path")


def url_path(facts: Facts) -> object:
    return _header(facts, b":path").partition("?")[0].partition("#")[0]


def query(facts: Facts) -> object:
    return _header(facts, b":path").partition("#")[0].partition("?")[2]


def host(facts: Facts) -> object:
    return _header(facts, b":authority")


def scheme(facts: Facts) -> object:
    return _header(facts, b":scheme")


def method(facts: Facts) -> object:
    return _header(facts, b":method")


def referer(facts: Facts) -> object:
    return _header(facts, b"referer")


def useragent(facts: Facts) -> object:
    return _header(facts, b"user-agent")


def request_id(facts: Facts) -> object:
    return _header(facts, b"x-request-id")


def headers(facts: Facts) -> object:
    return Headers(facts.headers)


def time(facts: Facts) -> object:
    return Timestamp(wall_time_ns(facts.info.start))


def size(facts: Facts) -> object:
    """Of the body, as far as that is known."""
    length = facts.headers.get(b"content-length")
    if length is None:
        return facts.info.bytes_received
    if not length.isdigit() or len(length) > _MOST_DIGITS:
        raise CelError("no such attribute")
    return int(length)


def protocol(facts: Facts) -> object:
    """A connection on which nobody reads requests has none."""
    _header(facts, b":method")
    return _there(PROTOCOL_NAMES.get(facts.info.protocol, ""))


# -- addresses


def source_address(facts: Facts) -> object:
    return facts.info.remote.text


def source_port(facts: Facts) -> object:
    if facts.info.remote.path:
        raise CelError("no such attribute")
    return facts.info.remote.port


def destination_address(facts: Facts) -> object:
    return facts.info.connection.local.text


def destination_port(facts: Facts) -> object:
    if facts.info.connection.local.path:
        raise CelError("no such attribute")
    return facts.info.connection.local.port


# -- connection


def connection_id(facts: Facts) -> object:
    return UInt(facts.info.connection.connection_id)


def mtls(facts: Facts) -> object:
    tls: Any = facts.info.connection.tls
    return tls is not None and bool(tls.peer_certificate_presented)


def requested_server_name(facts: Facts) -> object:
    return facts.info.connection.requested_server_name


def _tls(facts: Facts) -> Any:
    tls: Any = facts.tls()
    if tls is None:
        raise CelError("no such attribute")
    return tls


def tls_version(facts: Facts) -> object:
    return _tls(facts).version


def _operator(facts: Facts, name: str) -> str:
    return _there(_tls(facts).operator(name) or "")


def peer_subject(facts: Facts) -> object:
    return _operator(facts, "PEER_SUBJECT")


def local_subject(facts: Facts) -> object:
    return _operator(facts, "LOCAL_SUBJECT")


def peer_digest(facts: Facts) -> object:
    return _operator(facts, "PEER_FINGERPRINT_256")


def _first(names: list[str]) -> str:
    return _there(names[0] if names else "")


def peer_uri(facts: Facts) -> object:
    return _first(_tls(facts).peer_names(URI))


def peer_dns(facts: Facts) -> object:
    return _first(_tls(facts).peer_names(DNS))


def local_uri(facts: Facts) -> object:
    return _first(_tls(facts).local_names(URI))


def local_dns(facts: Facts) -> object:
    return _first(_tls(facts).local_names(DNS))


# -- metadata


def filter_metadata(facts: Facts) -> object:
    return StructMap(dict(facts.info.dynamic_metadata or {}))


ATTRIBUTES: Final[dict[str, dict[str, Attribute]]] = {
    "request": {
        "path": path,
        "url_path": url_path,
        "query": query,
        "host": host,
        "scheme": scheme,
        "method": method,
        "referer": referer,
        "useragent": useragent,
        "id": request_id,
        "headers": headers,
        "time": time,
        "protocol": protocol,
        "size": size,
    },
    "source": {"address": source_address, "port": source_port},
    "destination": {"address": destination_address, "port": destination_port},
    "connection": {
        "id": connection_id,
        "mtls": mtls,
        "requested_server_name": requested_server_name,
        "tls_version": tls_version,
        "subject_peer_certificate": peer_subject,
        "subject_local_certificate": local_subject,
        "uri_san_peer_certificate": peer_uri,
        "uri_san_local_certificate": local_uri,
        "dns_san_peer_certificate": peer_dns,
        "dns_san_local_certificate": local_dns,
        "sha256_peer_certificate_digest": peer_digest,
    },
    "metadata": {"filter_metadata": filter_metadata},
}
# Roots of Envoy's that have no values here, and why.
NOT_HERE: Final = {
    "response": "there is no response yet where this is asked",
    "upstream": "nobody was asked yet where this is asked",
    "filter_state": "filter state is not supported in expressions",
    "xds": "is not supported in expressions",
}
