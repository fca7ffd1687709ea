"""What a connection manager does to a request's headers on entry: trust, identity, hop-by-hop fields.

The rules are Envoy's ("HTTP header manipulation" and "HTTP header sanitizing" in its documentation); what RFC 9110
section 7.6 asks of an intermediary besides is done too.
"""

from __future__ import annotations

import ipaddress
import os
from binascii import hexlify
from typing import Any, Final

from meshproxy.codec import headers as h
from meshproxy.codec.headers import HeaderMap
from meshproxy.http.entry import RejectedRequest
from meshproxy.http.manager_config import ConnectionManagerConfig
from meshproxy.net.address import Address
from meshproxy.observe.stream_info import PROTOCOL_HTTP2, ConnectionInfo, StreamInfo

# Never passed on (RFC 9110 section 7.6.1; `transfer-encoding` is the codec's own).
_HOP_BY_HOP: Final = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"transfer-encoding"))
_HOP_BY_HOP_OF_TUNNELS: Final = _HOP_BY_HOP - {b"connection", b"upgrade"}
# x-envoy-… that only an internal caller may set.
_INTERNAL_ONLY: Final = frozenset(
    (
        b"x-envoy-retriable-status-codes",
        b"x-envoy-retriable-header-names",
        b"x-envoy-retry-on",
        b"x-envoy-retry-grpc-on",
        b"x-envoy-max-retries",
        b"x-envoy-upstream-alt-stat-name",
        b"x-envoy-upstream-rq-timeout-ms",
        b"x-envoy-upstream-rq-per-try-timeout-ms",
        b"x-envoy-upstream-rq-timeout-alt-response",
        b"x-envoy-expected-rq-timeout-ms",
        b"x-envoy-force-trace",
        b"x-envoy-ip-tags",
        b"x-envoy-original-url",
        b"x-envoy-hedge-on-per-try-timeout",
        b"x-envoy-internal",
    )
)
# … and those that additionally nobody outside may set at an edge.
_EDGE_ONLY: Final = _INTERNAL_ONLY | frozenset(
    (
        b"x-envoy-decorator-operation",
        b"x-envoy-downstream-service-cluster",
        b"x-envoy-downstream-service-node",
        b"x-envoy-original-path",
        b"x-envoy-original-host",
    )
)
_PROTO_HTTP: Final[Any] = (b"x-forwarded-proto", b"http")
_PROTO_HTTPS: Final[Any] = (b"x-forwarded-proto", b"https")
_NOT_NOMINATED: Final = frozenset((b"close", b"keep-alive", b"te", b"upgrade", b"connection", b"transfer-encoding"))
_NEVER_NOMINATED: Final = frozenset((b"content-length", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"))


def remove_hop_by_hop(headers: HeaderMap, tunnel: bytes = b"") -> RejectedRequest | None:
    """Drop what belongs to this connection only, and what `Connection` names; the reason when it names what it may
    not.

    A request for a `tunnel` keeps Connection and Upgrade as they are: the upstream is to read them.
    """
    known = headers.known
    if known & h.CONNECTION:
        value = headers.joined(b"connection")
        if value is not None:
            rejected = _remove_nominated(headers, value)
            if rejected is not None:
                return rejected
    if known & (h.CONNECTION | h.UPGRADE | h.TRANSFER_ENCODING):
        headers.remove_names(_HOP_BY_HOP_OF_TUNNELS if tunnel else _HOP_BY_HOP)
    if known & h.TE:
        te = headers.joined(b"te")
        if te is not None:
            if te == b"trailers" or b"trailers" in [coding.strip() for coding in te.split(b",")]:
                headers.set(b"te", b"trailers")
            else:
                headers.remove(b"te")
    return None


_NO_HOST: Final = RejectedRequest(400, "missing_host_header")
_BAD_NOMINATION: Final = RejectedRequest(400, "http1.connection_header_rejected", malformed=True)


def _remove_nominated(headers: HeaderMap, connection: bytes) -> RejectedRequest | None:
    for token in connection.lower().split(b","):
        name = token.strip()
        if not name or name in _NOT_NOMINATED:
            continue
        if name == b"host":
            headers.remove(b":authority")
            return _NO_HOST
        if name in _NEVER_NOMINATED or name.startswith(b":"):
            return _BAD_NOMINATION
        headers.remove(name)
    return None


def mutate_request_headers(
    config: ConnectionManagerConfig, connection: ConnectionInfo, headers: HeaderMap, info: StreamInfo
) -> None:
    """All of Envoy's header manipulation on entry, in its order."""
    secure = connection.tls is not None
    forwarded = headers.known & h.FORWARDED_PROTO
    single = _remote_address(config, connection, headers, info, secure)
    if config.scheme_to_overwrite:
        headers.set(b":scheme", config.scheme_to_overwrite)
        headers.set(b"x-forwarded-proto", config.scheme_to_overwrite)
    elif (secure or forwarded) and info.protocol < PROTOCOL_HTTP2:
        _scheme(headers)
    internal = single and config.internal_addresses.contains(info.remote)
    info.internal = internal
    if headers.known & h.ENVOY:
        if not internal:
            headers.remove_names(_EDGE_ONLY if config.use_remote_address else _INTERNAL_ONLY)
        else:
            headers.remove(b"x-envoy-internal")
    if internal:
        headers.add(b"x-envoy-internal", b"true")
    else:
        table = config.routes.table
        if table is not None and table.internal_only_headers:
            headers.remove_names(table.internal_only_headers)
    if config.user_agent:
        headers.set(b"x-envoy-downstream-service-cluster", config.user_agent)
        headers.set_default(b"user-agent", config.user_agent)
        if config.service_node:
            headers.set(b"x-envoy-downstream-service-node", config.service_node)
    if not internal and config.use_remote_address and info.remote.ip:
        headers.set(b"x-envoy-external-address", info.remote.ip.encode())
    if config.via:
        _append(headers, b"via", config.via, b", ")
    if config.client_cert is not None:
        config.client_cert.apply(headers, connection)
    elif headers.known & h.CLIENT_CERT:  # SANITIZE
        headers.remove(b"x-forwarded-client-cert")
    _request_id(config, headers, info, not internal and config.use_remote_address)


def _scheme(headers: HeaderMap) -> None:
    """The scheme that the client used, as far as the proxies in front of us tell: routes and redirects go by it. An
    HTTP/2 client has said it itself."""
    if headers.get(b"x-forwarded-proto") == b"https" and headers.get(b":scheme") != b"https":
        headers.set(b":scheme", b"https")


def _remote_address(
    config: ConnectionManagerConfig, connection: ConnectionInfo, headers: HeaderMap, info: StreamInfo, secure: bool
) -> bool:
    """Sets `info.remote` and x-forwarded-*; True when the request came through no other proxy (one address at most)."""
    known = headers.known
    scheme = b"https" if secure else b"http"
    if config.use_remote_address:
        single = not known & h.FORWARDED_FOR or headers.get(b"x-forwarded-for") is None
        if config.xff_num_trusted_hops > 0 and not single:
            trusted, _ = last_address(headers, config.xff_num_trusted_hops - 1)
            if trusted is not None:
                info.remote = trusted
        if not config.skip_xff_append and connection.remote.ip:
            own = config.local_address if is_loopback(connection.remote.ip) else connection.remote.ip.encode()
            _append(headers, b"x-forwarded-for", own, b",")
        if config.xff_num_trusted_hops == 0 or headers.get(b"x-forwarded-proto") is None:
            headers.set(b"x-forwarded-proto", scheme)
        if config.append_x_forwarded_port and (
            config.xff_num_trusted_hops == 0 or headers.get(b"x-forwarded-port") is None
        ):
            headers.set(b"x-forwarded-port", b"%d" % connection.local.port)
        return single
    single = False
    if known & h.FORWARDED_FOR:
        trusted, single = last_address(headers, config.xff_num_trusted_hops)
        if trusted is not None:
            info.remote = trusted
        else:
            single = False
    if not known & h.FORWARDED_PROTO or headers.get(b"x-forwarded-proto") is None:
        headers.append(_PROTO_HTTPS if secure else _PROTO_HTTP, h.FORWARDED_PROTO)
    if config.append_x_forwarded_port and headers.get(b"x-forwarded-port") is None:
        headers.add(b"x-forwarded-port", b"%d" % connection.local.port)
    return single


def last_address(headers: HeaderMap, hops: int) -> tuple[Address | None, bool]:
    """The address that stands `hops` from the right in x-forwarded-for, and whether it is the only one there."""
    value = headers.joined(b"x-forwarded-for")
    if value is None:
        return None, False
    parts = value.split(b",")
    if hops >= len(parts):
        return None, False
    text = parts[-1 - hops].strip().decode("latin-1")
    try:
        return Address(str(ipaddress.ip_address(text)), 0), len(parts) == 1
    except ValueError:
        return None, False


def is_loopback(ip: str) -> bool:
    return ip.startswith("127.") or ip == "::1"


def _append(headers: HeaderMap, name: bytes, value: bytes, separator: bytes) -> None:
    """Append to the field of `name`; several become one, so that what is appended really comes last."""
    old = headers.joined(name)
    headers.set(name, old + separator + value if old else value)


# -- request ids


_UUID: Final = b"xxxxxxxx-xxxx-4xxx-yxxx-xxxxxxxxxxxx"  # RFC 9562 section 5.4: version 4, variant 10
_IDS_AT_ONCE: Final = 256
_VERSION_AT: Final = 14
_VERSION_4: Final = 0x34


def without_trace_reason(headers: HeaderMap, request_id: bytes) -> bytes:
    """An id that came from outside is kept, but not what its version says: whether to trace is decided here."""
    if len(request_id) != len(_UUID) or request_id[_VERSION_AT] == _VERSION_4:
        return request_id
    kept = b"".join((request_id[:_VERSION_AT], b"4", request_id[_VERSION_AT + 1 :]))
    headers.set(b"x-request-id", kept)
    return kept


class _Ids:
    """Random UUIDs, of the kernel's random bits.

    Many are made at once, digit after digit for all of them, which costs each a tenth of what it would alone.
    """

    def __init__(self) -> None:
        self._text: bytes = b""
        self._at: int = 0  # in `_text`, where the next one begins

    def new(self) -> bytes:
        at = self._at
        if at == len(self._text):
            self._text = self._make()
            at = 0
        self._at = at + len(_UUID)
        return self._text[at : at + len(_UUID)]

    def _make(self) -> bytes:
        digits = hexlify(os.urandom(16 * _IDS_AT_ONCE))
        text = bytearray(_UUID * _IDS_AT_ONCE)
        at = 0  # of the digit among the 32 of each
        for i in range(len(_UUID)):
            kind = _UUID[i : i + 1]
            if kind == b"-":
                continue
            if kind == b"x":
                text[i :: len(_UUID)] = digits[at::32]
            elif kind == b"y":
                text[i :: len(_UUID)] = digits[at::32].translate(_VARIANT)
            at += 1
        return bytes(text)


_VARIANT: Final = bytes.maketrans(b"0123456789abcdef", b"89ab" * 4)
_IDS: Final = _Ids()


def _request_id(config: ConnectionManagerConfig, headers: HeaderMap, info: StreamInfo, edge: bool) -> None:
    """Make x-request-id for every edge request and wherever there is none."""
    present = headers.get(b"x-request-id") if headers.known & h.REQUEST_ID else None
    if config.generate_request_id and (not present or (edge and not config.preserve_external_request_id)):
        new = _IDS.new()
        if present is None:
            headers.append((b"x-request-id", new), h.REQUEST_ID)
        else:
            headers.set(b"x-request-id", new)
        present = new
    elif edge and present and config.packs_trace_reason:
        present = without_trace_reason(headers, present)
    if present is not None:
        info.request_id = present
