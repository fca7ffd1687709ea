"""Envoy's command operators: what stands between the percent signs of a format.

Every operator becomes one callable that reads its value off a `StreamInfo`: text as bytes or str, a number as int, a
structure as dict or list, None when there is nothing. Formats in text and in JSON both stand on these.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import uuid
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any, Final

from meshproxy.clock import monotonic, wall_time
from meshproxy.codec.headers import HeaderMap
from meshproxy.errors import MeshProxyError
from meshproxy.net.address import Address
from meshproxy.observe import response_flags
from meshproxy.observe.start_time import DEFAULT_LOCAL, DEFAULT_UTC, TimeFormat
from meshproxy.observe.stream_info import PROTOCOL_NAMES, StreamInfo, UpstreamInfo
from meshproxy.observe.wire import WireBytes

Value = Any  # bytes | str | int | float | bool | dict | list | None
Reader = Callable[[StreamInfo], Value]
Parser = Callable[[str, int | None], Reader]

_HEADER_NAME: Final = re.compile(r"[:]?[-!#$%&'*+.^_`|~0-9a-z]*")


class FormatError(MeshProxyError):
    """A format that Envoy would refuse too, or an operator that is not supported; the text says which and why."""


# ---- headers


class HeaderReader:
    """`REQ(NAME?OTHER):LENGTH` and its like: the first value of a header, or of another where the first is absent."""

    def __init__(self, argument: str, length: int | None) -> None:
        names = argument.lower().split("?")
        if len(names) > 2:
            raise FormatError(f"More than 1 alternative header specified in token: {argument}")
        for name in names:
            if _HEADER_NAME.fullmatch(name) is None:
                raise FormatError("Invalid header configuration. Format string contains invalid characters.")
        self._name = names[0].encode()
        self._other = names[1].encode() if len(names) == 2 else b""
        self._length = length

    def _read(self, headers: HeaderMap | None) -> bytes | None:
        if headers is None:
            return None
        value = headers.get(self._name)
        if value is None and self._other:
            value = headers.get(self._other)
        return value if value is None or self._length is None else value[: self._length]

    def request(self, info: StreamInfo) -> Value:
        return self._read(info.request_headers)

    def response(self, info: StreamInfo) -> Value:
        return self._read(info.response_headers)

    def trailer(self, info: StreamInfo) -> Value:
        return self._read(info.response_trailers)

    def request_without_query(self, info: StreamInfo) -> Value:
        """Envoy's ReqWithoutQuery formatter cuts the query first, the length after."""
        headers = info.request_headers
        if headers is None:
            return None
        value = headers.get(self._name)
        if value is None and self._other:
            value = headers.get(self._other)
        return None if value is None else value.partition(b"?")[0][: self._length]


class PathReader:
    """`PATH(WQ|NQ:ORIG|PATH|ORIG_OR_PATH):LENGTH`: with or without the query, before or after rewriting."""

    def __init__(self, argument: str, length: int | None) -> None:
        query, _, which = argument.partition(":")
        if query not in {"", "WQ", "NQ"}:
            raise FormatError(f"Invalid PATH option: '{query}', only 'WQ'/'NQ' are allowed")
        if which not in {"", "ORIG", "PATH", "ORIG_OR_PATH"}:
            raise FormatError(f"Invalid PATH option: '{which}', only 'ORIG'/'PATH'/'ORIG_OR_PATH' are allowed")
        self._drop_query = query == "NQ"
        self._which = which or "ORIG_OR_PATH"
        self._length = length

    def read(self, info: StreamInfo) -> Value:
        headers = info.request_headers
        if headers is None:
            return None
        path = headers.get(b":path") if self._which == "PATH" else headers.get(b"x-envoy-original-path")
        if path is None and self._which == "ORIG_OR_PATH":
            path = headers.get(b":path")
        if path is None:
            return None
        return (path.partition(b"?")[0] if self._drop_query else path)[: self._length]


class QueryReader:
    """`QUERY_PARAM(NAME):LENGTH`: the first value of a query parameter; `QUERY_PARAMS`: the query as it stands."""

    def __init__(self, name: str, length: int | None) -> None:
        self._name = name.encode()
        self._length = length

    def parameter(self, info: StreamInfo) -> Value:
        for pair in _query(info).split(b"&"):
            name, _, value = pair.partition(b"=")
            if name == self._name:
                return value[: self._length]
        return None

    def whole(self, info: StreamInfo) -> Value:
        return _query(info)[: self._length] or None


def _parse_query(argument: str, length: int | None) -> Reader:
    if argument not in {"", "ORIG"}:
        raise FormatError(f"QUERY_PARAMS option '{argument}' is not supported, only 'ORIG' is")
    return QueryReader("", length).whole


def _query(info: StreamInfo) -> bytes:
    path = info.request_headers.get(b":path") if info.request_headers is not None else None
    return b"" if path is None else path.partition(b"?")[2].partition(b"#")[0]


# ---- addresses


class MaskedAddress:
    """`…_ADDRESS_WITHOUT_PORT(BITS)`: the network that an address lies in."""

    def __init__(self, bits: int, address: Callable[[StreamInfo], Address | None]) -> None:
        self._bits = bits
        self._address = address

    def read(self, info: StreamInfo) -> Value:
        address = self._address(info)
        if address is None:
            return None
        if not address.ip:
            return address.text
        parsed = ipaddress.ip_address(address.ip)
        return str(ipaddress.ip_network(f"{address.ip}/{min(self._bits, parsed.max_prefixlen)}", strict=False))


def _upstream_host(info: StreamInfo) -> Address | None:
    return info.upstream.host if info.upstream is not None else None


def _upstream_remote(info: StreamInfo) -> Address | None:
    return info.upstream.remote if info.upstream is not None else None


def _upstream_local(info: StreamInfo) -> Address | None:
    return info.upstream.local if info.upstream is not None else None


_ADDRESSES: Final[dict[str, Callable[[StreamInfo], Address | None]]] = {
    "DOWNSTREAM_REMOTE": lambda info: info.remote,
    "DOWNSTREAM_DIRECT_REMOTE": lambda info: info.connection.direct_remote,
    "DOWNSTREAM_LOCAL": lambda info: info.connection.local,
    "DOWNSTREAM_DIRECT_LOCAL": lambda info: info.connection.direct_local,
    "UPSTREAM_REMOTE": _upstream_remote,
    "UPSTREAM_LOCAL": _upstream_local,
}


class AddressReader:
    """The three ways to put an address into words: with its port, without, and the port alone."""

    def __init__(self, address: Callable[[StreamInfo], Address | None]) -> None:
        self._address = address

    def text(self, info: StreamInfo) -> Value:
        address = self._address(info)
        return None if address is None else address.text

    def without_port(self, info: StreamInfo) -> Value:
        address = self._address(info)
        return None if address is None else address.ip or address.text

    def port(self, info: StreamInfo) -> Value:
        address = self._address(info)
        return None if address is None or not address.ip else address.port

    def parse_without_port(self, argument: str, length: int | None) -> Reader:
        if not argument:
            return self.without_port
        if not argument.isdecimal():
            raise FormatError(f"Invalid prefix length: {argument}")
        return MaskedAddress(int(argument), self._address).read


def _upstream_host_name(info: StreamInfo) -> Value:
    upstream = info.upstream
    if upstream is None or upstream.host is None:
        return None
    return upstream.host_name or upstream.host.text


def _upstream_host_name_without_port(info: StreamInfo) -> Value:
    upstream = info.upstream
    if upstream is None or upstream.host is None:
        return None
    name = upstream.host_name.rpartition(":")
    if upstream.host_name:
        return name[0] if name[2].isdecimal() and name[0] and ":" not in name[0] else upstream.host_name
    return upstream.host.ip or upstream.host.text


# ---- times


def _milliseconds(begin: float, end: float) -> int | None:
    return None if begin == 0.0 or end == 0.0 else max(0, int((end - begin) * 1000))


def _duration(info: StreamInfo) -> Value:
    return max(0, int(((info.end or monotonic()) - info.start) * 1000))


def _response_duration(info: StreamInfo) -> Value:
    return None if info.upstream is None else _milliseconds(info.start, info.upstream.first_byte_received)


def _response_tx_duration(info: StreamInfo) -> Value:
    return None if info.upstream is None else _milliseconds(info.upstream.first_byte_received, info.end)


def _request_tx_duration(info: StreamInfo) -> Value:
    return None if info.upstream is None else _milliseconds(info.start, info.upstream.last_byte_sent)


def _pool_ready_duration(info: StreamInfo) -> Value:
    return None if info.upstream is None else _milliseconds(info.start, info.upstream.pool_ready)


_POINTS: Final[dict[str, Callable[[StreamInfo], float]]] = {
    "DS_RX_BEG": lambda info: info.start,
    "DS_RX_END": lambda info: info.request_end,
    "DS_TX_BEG": lambda info: info.response_start,
    "DS_TX_END": lambda info: info.end,
    "US_TX_BEG": lambda info: info.upstream.first_byte_sent if info.upstream else 0.0,
    "US_TX_END": lambda info: info.upstream.last_byte_sent if info.upstream else 0.0,
    "US_RX_BEG": lambda info: info.upstream.first_byte_received if info.upstream else 0.0,
    "US_RX_END": lambda info: info.upstream.last_byte_received if info.upstream else 0.0,
}
_PRECISIONS: Final = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def _never(info: StreamInfo) -> float:
    return 0.0


class CommonDuration:
    """`COMMON_DURATION(BEGIN:END:PRECISION)`. Unmeasured points, and those of filters, yield nothing."""

    def __init__(self, argument: str, length: int | None) -> None:
        parts = argument.split(":")
        if len(parts) not in {2, 3}:
            raise FormatError(f"Invalid common duration configuration: {argument}.")
        precision = parts[2] if len(parts) == 3 else "ms"
        if precision not in _PRECISIONS:
            raise FormatError(f"Invalid common duration precision: {precision}.")
        self._scale = _PRECISIONS[precision]
        self._begin = _POINTS.get(parts[0], _never)
        self._end = _POINTS.get(parts[1], _never)

    def read(self, info: StreamInfo) -> Value:
        begin, end = self._begin(info), self._end(info)
        if begin == 0.0 or end == 0.0 or end < begin:
            return None
        return int((end - begin) * self._scale)


class TimeReader:
    """`START_TIME(FORMAT)`, `EMIT_TIME(FORMAT)` and their local versions."""

    def __init__(self, text: str, *, local: bool) -> None:
        try:
            self._format = TimeFormat(text or (DEFAULT_LOCAL if local else DEFAULT_UTC), local=local)
        except ValueError as error:
            raise FormatError("Invalid header configuration. Format string contains newline.") from error

    def start(self, info: StreamInfo) -> Value:
        return self._format.format(wall_time(info.start))

    def emit(self, info: StreamInfo) -> Value:
        return self._format.format(wall_time(monotonic()))


# ---- metadata and state


class MetadataReader:
    """A value in a metadata tree: `NAMESPACE:KEY:KEY…`; the legacy `["NAMESPACE","KEY"]` is understood as well."""

    def __init__(
        self, path: list[str], source: Callable[[StreamInfo], dict[str, Any] | None], length: int | None
    ) -> None:
        self._path = path
        self._source = source
        self._length = length

    def read(self, info: StreamInfo) -> Value:
        value: Value = self._source(info)
        for key in self._path:
            if not isinstance(value, dict):
                return None
            value = value.get(key)
        if self._length is not None and value is not None:
            return to_bytes(value)[: self._length]
        return value


def _cluster_metadata(info: StreamInfo) -> dict[str, Any] | None:
    upstream = info.upstream
    return None if upstream is None or upstream.cluster is None else upstream.cluster.metadata


_METADATA: Final[dict[str, Callable[[StreamInfo], dict[str, Any] | None]]] = {
    "DYNAMIC": lambda info: info.dynamic_metadata,
    "CLUSTER": _cluster_metadata,
    "ROUTE": lambda info: None if info.route is None else info.route.metadata,
    "VIRTUAL_HOST": lambda info: None if info.route is None else info.route.virtual_host_metadata,
    "UPSTREAM_HOST": lambda info: info.upstream.host_metadata if info.upstream is not None else None,
}
_LEGACY_PATH: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')


def _metadata_path(argument: str) -> list[str]:
    if argument.startswith("["):
        return _LEGACY_PATH.findall(argument)
    return argument.split(":")


def _metadata_parser(kind: str) -> Parser:
    source = _METADATA[kind]
    return lambda argument, length: MetadataReader(_metadata_path(argument), source, length).read


def _parse_any_metadata(argument: str, length: int | None) -> Reader:
    kind, _, path = argument.partition(":")
    if kind not in _METADATA:
        raise FormatError(f"{kind} is not supported type of metadata")
    return MetadataReader(_metadata_path(path), _METADATA[kind], length).read


class FilterStateReader:
    """`FILTER_STATE(KEY:PLAIN|TYPED):LENGTH`."""

    def __init__(self, argument: str, length: int | None) -> None:
        self._key, _, form = argument.partition(":")
        if form not in {"", "PLAIN", "TYPED"}:
            raise FormatError("Invalid filter state serialize type, only support PLAIN/TYPED.")
        if not self._key:
            raise FormatError("Invalid filter state configuration, key cannot be empty.")
        self._plain = form == "PLAIN"
        self._length = length

    def read(self, info: StreamInfo) -> Value:
        if info.filter_state is None:
            return None
        value = info.filter_state.get(self._key)
        if value is None:
            return None
        if self._plain:
            return to_bytes(value)[: self._length]
        return value if self._length is None else to_bytes(value)[: self._length]


_UNIQUE_ID: Final = "envoy.stream.unique_id"


def _unique_id(info: StreamInfo) -> Value:
    """A random UUID, the same wherever one stream is asked for it."""
    if info.filter_state is None:
        info.filter_state = {}
    return info.filter_state.setdefault(_UNIQUE_ID, str(uuid.uuid4()))


# ---- gRPC

_GRPC_NAMES: Final = (
    "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
    "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable",
    "DataLoss", "Unauthenticated",
)  # fmt: skip
_GRPC_SNAKE_NAMES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
# https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
_GRPC_OF_HTTP: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}


def grpc_status(info: StreamInfo) -> int | None:
    """The gRPC status of a gRPC stream; None for others."""
    content_type = info.request_headers.get(b"content-type") if info.request_headers is not None else None
    if content_type is None or not (content_type == b"application/grpc" or content_type[:17] == b"application/grpc+"):
        return None
    return response_grpc_status(info)


def response_grpc_status(info: StreamInfo) -> int | None:
    """The status in the trailers, else in the headers, else what the HTTP status amounts to; None without one."""
    for headers in (info.response_trailers, info.response_headers):
        value = headers.get(b"grpc-status") if headers is not None else None
        if value is not None:
            return int(value) if value.isdigit() else None
    return _GRPC_OF_HTTP.get(info.response_code, 2) if info.response_code else None


def _grpc_camel(info: StreamInfo) -> Value:
    status = grpc_status(info)
    return status if status is None or status >= len(_GRPC_NAMES) else _GRPC_NAMES[status]


def _grpc_snake(info: StreamInfo) -> Value:
    status = grpc_status(info)
    return status if status is None or status >= len(_GRPC_SNAKE_NAMES) else _GRPC_SNAKE_NAMES[status]


def _parse_grpc_status(argument: str, length: int | None) -> Reader:
    forms: dict[str, Reader] = {
        "": _grpc_camel,
        "CAMEL_STRING": _grpc_camel,
        "SNAKE_STRING": _grpc_snake,
        "NUMBER": grpc_status,
    }
    if argument not in forms:
        raise FormatError(f"GrpcStatusFormatter only supports CAMEL_STRING, SNAKE_STRING or NUMBER. Got: {argument}")
    return forms[argument]


# ---- the rest

_WHITESPACE: Final = re.compile(r"\s")


def _details(info: StreamInfo) -> Value:
    """Whitespace becomes `_`, so that a line splits at its blanks (Envoy)."""
    details = info.response_code_details
    if " " not in details:
        return details or None
    return _WHITESPACE.sub("_", details)


def _parse_details(argument: str, length: int | None) -> Reader:
    if argument == "ALLOW_WHITESPACES":
        return lambda info: info.response_code_details or None
    return _details


class Constant:
    """An operator whose value is known when the configuration is read (HOSTNAME, ENVIRONMENT)."""

    def __init__(self, value: str) -> None:
        self.value = value

    def read(self, info: StreamInfo) -> Value:
        return self.value


def _parse_environment(argument: str, length: int | None) -> Reader:
    return Constant(os.environ.get(argument, "-")[:length]).read


class TlsReader:
    """An operator about a TLS session: nothing on plaintext, else what the session's `operator(name)` says."""

    def __init__(self, name: str) -> None:
        self._name = name.partition("_")[2]  # without DOWNSTREAM_ or UPSTREAM_

    def downstream(self, info: StreamInfo) -> Value:
        tls = info.connection.tls
        return None if tls is None else tls.operator(self._name)

    def upstream(self, info: StreamInfo) -> Value:
        tls = info.upstream.tls if info.upstream is not None else None
        return None if tls is None else tls.operator(self._name)


def _size(headers: HeaderMap | None) -> int:
    return 0 if headers is None else headers.size()


def _upstream(read: Callable[[UpstreamInfo], Value], otherwise: Value = None) -> Reader:
    return lambda info: otherwise if info.upstream is None else read(info.upstream)


_NO_BYTES: Final = WireBytes()


def _downstream_wire(info: StreamInfo) -> WireBytes:
    return info.wire or _NO_BYTES


def _upstream_wire(info: StreamInfo) -> WireBytes:
    return _NO_BYTES if info.upstream is None else info.upstream.wire or _NO_BYTES


def _nothing(info: StreamInfo) -> Value:
    return None


_PLAIN: Final[dict[str, Reader]] = {
    "PROTOCOL": lambda info: PROTOCOL_NAMES.get(info.protocol),
    "RESPONSE_CODE": lambda info: info.response_code,
    "CONNECTION_TERMINATION_DETAILS": lambda info: info.connection_termination_details or None,
    "RESPONSE_FLAGS": lambda info: response_flags.short_names(info.response_flags),
    "RESPONSE_FLAGS_LONG": lambda info: response_flags.long_names(info.response_flags),
    "BYTES_RECEIVED": lambda info: info.bytes_received,
    "BYTES_SENT": lambda info: info.bytes_sent,
    "REQUEST_HEADERS_BYTES": lambda info: _size(info.request_headers),
    "RESPONSE_HEADERS_BYTES": lambda info: _size(info.response_headers),
    "RESPONSE_TRAILERS_BYTES": lambda info: _size(info.response_trailers),
    "DOWNSTREAM_WIRE_BYTES_RECEIVED": lambda info: _downstream_wire(info).received,
    "DOWNSTREAM_WIRE_BYTES_SENT": lambda info: _downstream_wire(info).sent,
    "DOWNSTREAM_HEADER_BYTES_RECEIVED": lambda info: _downstream_wire(info).fields_received,
    "DOWNSTREAM_HEADER_BYTES_SENT": lambda info: _downstream_wire(info).fields_sent,
    "DURATION": _duration,
    "REQUEST_DURATION": lambda info: _milliseconds(info.start, info.request_end),
    "RESPONSE_DURATION": _response_duration,
    "RESPONSE_TX_DURATION": _response_tx_duration,
    "REQUEST_TX_DURATION": _request_tx_duration,
    "UPSTREAM_CONNECTION_POOL_READY_DURATION": _pool_ready_duration,
    "ROUNDTRIP_DURATION": _nothing,  # HTTP/3 only
    "UPSTREAM_HOST": AddressReader(_upstream_host).text,
    "UPSTREAM_HOST_NAME": _upstream_host_name,
    "UPSTREAM_HOST_NAME_WITHOUT_PORT": _upstream_host_name_without_port,
    "UPSTREAM_CLUSTER": _upstream(lambda up: None if up.cluster is None else up.cluster.observability_name),
    "UPSTREAM_CLUSTER_RAW": _upstream(lambda up: None if up.cluster is None else up.cluster.name),
    "UPSTREAM_REQUEST_ATTEMPT_COUNT": _upstream(lambda up: up.attempts, 0),
    "UPSTREAM_TRANSPORT_FAILURE_REASON": _upstream(lambda up: up.transport_failure_reason.replace(" ", "_") or None),
    "UPSTREAM_PROTOCOL": _upstream(lambda up: PROTOCOL_NAMES.get(up.protocol)),
    "UPSTREAM_CONNECTION_ID": _upstream(lambda up: up.connection_id, 0),
    "UPSTREAM_WIRE_BYTES_SENT": lambda info: _upstream_wire(info).sent,
    "UPSTREAM_WIRE_BYTES_RECEIVED": lambda info: _upstream_wire(info).received,
    "UPSTREAM_HEADER_BYTES_SENT": lambda info: _upstream_wire(info).fields_sent,
    "UPSTREAM_HEADER_BYTES_RECEIVED": lambda info: _upstream_wire(info).fields_received,
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON": lambda info: (
        info.connection.transport_failure_reason.replace(" ", "_") or None
    ),
    "CONNECTION_ID": lambda info: info.connection.connection_id,
    "REQUESTED_SERVER_NAME": lambda info: info.connection.requested_server_name or None,
    "ROUTE_NAME": lambda info: None if info.route is None else info.route.name or None,
    "VIRTUAL_CLUSTER_NAME": lambda info: info.virtual_cluster_name or None,
    "FILTER_CHAIN_NAME": lambda info: info.connection.filter_chain_name or None,
    "LISTENER_NAME": lambda info: info.connection.listener_name or None,
    "STREAM_ID": lambda info: info.request_id or None,
    "UNIQUE_ID": _unique_id,
    "GRPC_STATUS_NUMBER": grpc_status,
    "LOCAL_REPLY_BODY": lambda info: info.local_reply_body,
    "ACCESS_LOG_TYPE": lambda info: info.log_type,
    # No tracer yet: what Envoy prints without one.
    "TRACE_ID": _nothing,
    "SPAN_ID": _nothing,
    "TLS_JA3_FINGERPRINT": lambda info: info.connection.ja3 or None,
    "TLS_JA4_FINGERPRINT": lambda info: info.connection.ja4 or None,
}

# Bytes on the wire: they are known when a record is written, and counted only for access logs that ask for them.
WIRE_OPERATORS: Final = frozenset(name for name in _PLAIN if "_WIRE_BYTES_" in name or "_HEADER_BYTES_" in name)

# Operators with arguments; the flags say whether an argument is required and a length allowed.
REQUIRED: Final = 1
LENGTH: Final = 2
_PARSERS: Final[dict[str, tuple[int, Parser]]] = {
    "REQ": (REQUIRED | LENGTH, lambda argument, length: HeaderReader(argument, length).request),
    "STREAM_INFO_REQ": (REQUIRED | LENGTH, lambda argument, length: HeaderReader(argument, length).request),
    "RESP": (REQUIRED | LENGTH, lambda argument, length: HeaderReader(argument, length).response),
    "TRAILER": (REQUIRED | LENGTH, lambda argument, length: HeaderReader(argument, length).trailer),
    "REQ_WITHOUT_QUERY": (REQUIRED | LENGTH, lambda text, length: HeaderReader(text, length).request_without_query),
    "PATH": (LENGTH, lambda argument, length: PathReader(argument, length).read),
    "QUERY_PARAM": (REQUIRED | LENGTH, lambda argument, length: QueryReader(argument, length).parameter),
    "QUERY_PARAMS": (LENGTH, _parse_query),
    "COMMON_DURATION": (REQUIRED, lambda argument, length: CommonDuration(argument, length).read),
    "START_TIME": (0, lambda argument, length: TimeReader(argument, local=False).start),
    "START_TIME_LOCAL": (0, lambda argument, length: TimeReader(argument, local=True).start),
    "EMIT_TIME": (0, lambda argument, length: TimeReader(argument, local=False).emit),
    "EMIT_TIME_LOCAL": (0, lambda argument, length: TimeReader(argument, local=True).emit),
    "RESPONSE_CODE_DETAILS": (0, _parse_details),
    "HOSTNAME": (0, lambda argument, length: Constant(socket.gethostname()).read),
    "ENVIRONMENT": (REQUIRED | LENGTH, _parse_environment),
    "DYNAMIC_METADATA": (REQUIRED | LENGTH, _metadata_parser("DYNAMIC")),
    "CLUSTER_METADATA": (REQUIRED | LENGTH, _metadata_parser("CLUSTER")),
    "UPSTREAM_METADATA": (REQUIRED | LENGTH, _metadata_parser("UPSTREAM_HOST")),
    "METADATA": (REQUIRED | LENGTH, _parse_any_metadata),
    "FILTER_STATE": (REQUIRED | LENGTH, lambda argument, length: FilterStateReader(argument, length).read),
    "PER_REQUEST_STATE": (REQUIRED, lambda argument, length: FilterStateReader(f"{argument}:PLAIN", length).read),
    "GRPC_STATUS": (0, _parse_grpc_status),
}

_TLS: Final = re.compile(
    r"(?:DOWN|UP)STREAM_(?:(?:PEER|LOCAL)_(?:URI|DNS|IP|EMAIL|OTHERNAME)_SAN|(?:PEER|LOCAL)_SUBJECT|PEER_ISSUER"
    r"|PEER_CERT|PEER_CERT_V_(?:START|END)|TLS_(?:SESSION_ID|CIPHER|VERSION|GROUP)|SERVER_NAME"
    r"|PEER_FINGERPRINT_(?:1|256)|PEER_SERIAL|PEER_CHAIN_(?:FINGERPRINTS_(?:1|256)|SERIALS))"
)


def build_reader(name: str, argument: str | None, length: int | None) -> Reader:
    """The reader of `%NAME(argument):length%`. Raises FormatError."""
    if name in _PARSERS:
        flags, parse = _PARSERS[name]
        if flags & REQUIRED and not argument:
            raise FormatError(f"{name} requires parameters")
        if length is not None and not flags & LENGTH:
            raise FormatError(f"{name} does not allow length to be specified.")
        return parse(argument or "", length)
    reader = _address_reader(name, argument or "")
    if reader is None and _TLS.fullmatch(name):
        tls = TlsReader(name)
        return tls.downstream if name.startswith("DOWN") else tls.upstream
    reader = reader or _PLAIN.get(name)
    if reader is None:
        raise FormatError(f"Not supported field in StreamInfo: {name}")
    if length is not None or (argument and "WITHOUT_PORT" not in name):
        raise FormatError(f"{name} does not take any parameters or length")
    return reader


def _address_reader(name: str, argument: str) -> Reader | None:
    for suffix in ("_ADDRESS_WITHOUT_PORT", "_ADDRESS", "_PORT"):
        if name.endswith(suffix) and name[: -len(suffix)] in _ADDRESSES:
            reader = AddressReader(_ADDRESSES[name[: -len(suffix)]])
            if suffix == "_ADDRESS_WITHOUT_PORT":
                return reader.parse_without_port(argument, None)
            return reader.text if suffix == "_ADDRESS" else reader.port
    return None


# ---- values in words


def to_bytes(value: Value) -> bytes:
    """A value as it stands in text: numbers in decimals, structures in JSON."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int) and not isinstance(value, bool):
        return b"%d" % value
    return to_json(value).encode()


def to_json(value: Value) -> str:
    """Compact JSON; bytes are text, and whole floats (all that a protobuf Struct has) are written as integers."""
    if isinstance(value, bytes):
        return _json_text(value)
    if isinstance(value, str):
        return encode_basestring(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, dict):
        return "{" + ",".join([f"{encode_basestring(str(key))}:{to_json(item)}" for key, item in value.items()]) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([to_json(item) for item in value]) + "]"
    return json.dumps(value, default=str)


def _json_text(value: bytes) -> str:
    """Bytes that are no UTF-8 stand for the characters of their numbers, all escaped (Envoy)."""
    try:
        return encode_basestring(value.decode("utf-8"))
    except UnicodeDecodeError:
        return '"' + "".join([_ESCAPED[byte] for byte in value]) + '"'


_ESCAPED: Final = [
    chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\u{byte:04x}" for byte in range(256)
]  # fmt: skip
