"""Envoy's command operators: what stands between the percent signs of a format.

Every operator becomes one `Reader`, which reads its value off a `StreamInfo`: text as bytes or str, a number as int, a
structure as dict or list, None when there is nothing. Formats in text and in JSON both stand on these.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import uuid
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from meshproxy.clock import monotonic, wall_time
from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap
from meshproxy.errors import MeshProxyError
from meshproxy.net.address import Address
from meshproxy.observe import response_flags
from meshproxy.observe.start_time import DEFAULT_LOCAL, DEFAULT_UTC, TimeFormat
from meshproxy.observe.stream_info import PROTOCOL_NAMES, StateObject, StreamInfo, UpstreamInfo, shared_state
from meshproxy.observe.value_text import Value, to_bytes
from meshproxy.observe.wire import WireBytes

_HEADER_NAME: Final = re.compile(r"[:]?[-!#$%&'*+.^_`|~0-9a-z]*")


class FormatError(MeshProxyError):
    """A format that Envoy would refuse too, or an operator that is not supported; the text says which and why."""


class Reader:
    """An operator of a format. The commonest are classes of their own: to call a function costs more than they do."""

    def read(self, info: StreamInfo) -> Value:
        raise NotImplementedError


Function = Callable[[StreamInfo], Value]
Parser = Callable[[str, int | None], Reader]


class FunctionReader(Reader):
    """An operator that a function reads."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def read(self, info: StreamInfo) -> Value:
        return self._function(info)


class Constant(Reader):
    """An operator whose value is known when the configuration is read (HOSTNAME, ENVIRONMENT)."""

    def __init__(self, value: str) -> None:
        self.value = value

    def read(self, info: StreamInfo) -> Value:
        return self.value


# ---- headers


class HeaderReader(Reader):
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

    def of(self, headers: HeaderMap) -> bytes | None:
        """Its value in a block of headers."""
        value = headers.get(self._name)
        if value is None and self._other:
            value = headers.get(self._other)
        return value if value is None or self._length is None else value[: self._length]


class RequestHeader(HeaderReader):
    def read(self, info: StreamInfo) -> Value:
        headers = info.request_headers
        return None if headers is None else self.of(headers)


class ResponseHeader(HeaderReader):
    def read(self, info: StreamInfo) -> Value:
        headers = info.response_headers
        return None if headers is None else self.of(headers)


class ResponseTrailer(HeaderReader):
    def read(self, info: StreamInfo) -> Value:
        headers = info.response_trailers
        return None if headers is None else self.of(headers)


class HeaderWithoutQuery(Reader):
    """Envoy's ReqWithoutQuery formatter cuts the query first, the length after."""

    def __init__(self, argument: str, length: int | None) -> None:
        self._header = HeaderReader(argument, None)
        self._length = length

    def read(self, info: StreamInfo) -> Value:
        value = None if info.request_headers is None else self._header.of(info.request_headers)
        return None if value is None else value.partition(b"?")[0][: self._length]


class PathReader(Reader):
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


class QueryParameter(Reader):
    """`QUERY_PARAM(NAME):LENGTH`: the first value of a query parameter. Names and values are percent-decoded."""

    def __init__(self, name: str, length: int | None) -> None:
        self._name = name.encode()
        self._length = length

    def read(self, info: StreamInfo) -> Value:
        for pair in (_query(info) or b"").split(b"&"):
            name, _, value = pair.partition(b"=")
            if unquote_to_bytes(name) == self._name:
                return unquote_to_bytes(value)[: self._length]
        return None


class QueryReader(Reader):
    """`QUERY_PARAMS(ORIG):LENGTH`: the query as it stands."""

    def __init__(self, form: str, length: int | None) -> None:
        if form == "DECODED":
            raise FormatError("DECODED is not supported for QUERY_PARAMS, only ORIG is")
        if form not in {"", "ORIG"}:
            raise FormatError(f"Invalid QUERY_PARAMS option: '{form}', only 'ORIG'/'DECODED' are allowed")
        self._length = length

    def read(self, info: StreamInfo) -> Value:
        query = _query(info)
        return query if query is None or self._length is None else query[: self._length]


def _query(info: StreamInfo) -> bytes | None:
    path = info.request_headers.get(b":path") if info.request_headers is not None else None
    if path is None:
        return None
    _, mark, query = path.partition(b"?")
    return query if mark else None


# ---- addresses


AddressFunction = Callable[[StreamInfo], Address | None]


class MaskedAddress(Reader):
    """`…_ADDRESS_WITHOUT_PORT(BITS)`: the network that an address lies in."""

    def __init__(self, bits: int, address: AddressFunction) -> None:
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


def _upstream_remote(info: StreamInfo) -> Address | None:
    return info.upstream.remote if info.upstream is not None else None


def _upstream_local(info: StreamInfo) -> Address | None:
    return info.upstream.local if info.upstream is not None else None


_ADDRESSES: Final[dict[str, AddressFunction]] = {
    "DOWNSTREAM_REMOTE": lambda info: info.remote,
    "DOWNSTREAM_DIRECT_REMOTE": lambda info: info.connection.direct_remote,
    "DOWNSTREAM_LOCAL": lambda info: info.connection.local,
    "DOWNSTREAM_DIRECT_LOCAL": lambda info: info.connection.direct_local,
    "UPSTREAM_REMOTE": _upstream_remote,
    "UPSTREAM_LOCAL": _upstream_local,
}


class AddressReader(Reader):
    """An address with its port."""

    def __init__(self, address: AddressFunction) -> None:
        self._address = address

    def read(self, info: StreamInfo) -> Value:
        address = self._address(info)
        return None if address is None else address.text


class AddressWithoutPort(Reader):
    def __init__(self, address: AddressFunction) -> None:
        self._address = address

    def read(self, info: StreamInfo) -> Value:
        address = self._address(info)
        return None if address is None else address.ip or address.text


class AddressPort(Reader):
    def __init__(self, address: AddressFunction) -> None:
        self._address = address

    def read(self, info: StreamInfo) -> Value:
        address = self._address(info)
        return None if address is None or not address.ip else address.port


class EndpointId(Reader):
    """Of an address inside the proxy; there are none such, and others have an empty one (Envoy)."""

    def __init__(self, address: AddressFunction) -> None:
        self._address = address

    def read(self, info: StreamInfo) -> Value:
        return None if self._address(info) is None else b""


class UpstreamHost(Reader):
    def read(self, info: StreamInfo) -> Value:
        upstream = info.upstream
        return None if upstream is None or upstream.host is None else upstream.host.text


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


class DurationReader(Reader):
    """Until the end of the stream, or until now, in ms."""

    def read(self, info: StreamInfo) -> Value:
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


class CommonDuration(Reader):
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


class StartTime(Reader):
    """`START_TIME(FORMAT)` and its local version."""

    def __init__(self, text: str, *, local: bool) -> None:
        self._format = _time_format(text, local=local)

    def read(self, info: StreamInfo) -> Value:
        return self._format.format(wall_time(info.start))


class EmitTime(Reader):
    """`EMIT_TIME(FORMAT)` and its local version: when the record is written."""

    def __init__(self, text: str, *, local: bool) -> None:
        self._format = _time_format(text, local=local)

    def read(self, info: StreamInfo) -> Value:
        return self._format.format(wall_time(monotonic()))


def _time_format(text: str, *, local: bool) -> TimeFormat:
    try:
        return TimeFormat(text or (DEFAULT_LOCAL if local else DEFAULT_UTC), local=local)
    except ValueError as error:
        raise FormatError("Invalid header configuration. Format string contains newline.") from error


# ---- metadata and state


MetadataFunction = Callable[[StreamInfo], dict[str, Any] | None]


class MetadataReader(Reader):
    """A value in a metadata tree: `NAMESPACE:KEY:KEY…`; the legacy `["NAMESPACE","KEY"]` is understood as well."""

    def __init__(self, path: list[str], source: MetadataFunction, length: int | None) -> None:
        self._path = path
        self._source = source
        self._length = length

    def read(self, info: StreamInfo) -> Value:
        value: Value = self._source(info)
        for key in self._path:
            if not isinstance(value, dict):
                return None
            value = value.get(key)
        if isinstance(value, (dict, list)):
            value = _in_order(value)
        if self._length is not None and value is not None:
            return to_bytes(value)[: self._length]
        return value


def _in_order(value: Value) -> Value:
    """With the keys of all structures sorted, as Envoy writes them."""
    if isinstance(value, dict):
        return {key: _in_order(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_in_order(item) for item in value]
    return value


def _cluster_metadata(info: StreamInfo) -> dict[str, Any] | None:
    upstream = info.upstream
    return None if upstream is None or upstream.cluster is None else upstream.cluster.metadata


_METADATA: Final[dict[str, MetadataFunction]] = {
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
    return lambda argument, length: MetadataReader(_metadata_path(argument), source, length)


def _parse_any_metadata(argument: str, length: int | None) -> Reader:
    kind, _, path = argument.partition(":")
    if kind not in _METADATA:
        raise FormatError(f"{kind} is not supported type of metadata")
    return MetadataReader(_metadata_path(path), _METADATA[kind], length)


class FilterStateReader(Reader):
    """`FILTER_STATE(KEY:PLAIN|TYPED):LENGTH`."""

    def __init__(self, argument: str, length: int | None) -> None:
        self._key, _, form = argument.partition(":")
        if form.startswith("FIELD"):
            raise FormatError("FIELD of filter state is not supported, only PLAIN and TYPED are")
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
        if isinstance(value, StateObject):
            value = value.text() if self._plain else value.structure()
        if self._plain:
            return to_bytes(value)[: self._length]
        return value if self._length is None else to_bytes(value)[: self._length]


_UNIQUE_ID: Final = "envoy.stream.unique_id"


def _unique_id(info: StreamInfo) -> Value:
    """A random UUID, the same wherever one stream is asked for it."""
    return shared_state(info).setdefault(_UNIQUE_ID, str(uuid.uuid4()))


# ---- gRPC


def grpc_status(info: StreamInfo) -> int | None:
    """The gRPC status of a gRPC stream; None for others."""
    if info.request_headers is None or not grpc.is_grpc(info.request_headers):
        return None
    return response_grpc_status(info)


def response_grpc_status(info: StreamInfo) -> int | None:
    """The status in the trailers, else in the headers, else what the HTTP status amounts to; None without one."""
    return grpc.status_of_response(info.response_headers, info.response_trailers, info.response_code)


def _name(status: int | None, names: tuple[str, ...]) -> Value:
    return names[status] if status is not None and 0 <= status < len(names) else status


def _grpc_camel(info: StreamInfo) -> Value:
    return _name(grpc_status(info), grpc.CAMEL_NAMES)


def _grpc_snake(info: StreamInfo) -> Value:
    return _name(grpc_status(info), grpc.SNAKE_NAMES)


def _parse_grpc_status(argument: str, length: int | None) -> Reader:
    forms: dict[str, Function] = {
        "": _grpc_camel,
        "CAMEL_STRING": _grpc_camel,
        "SNAKE_STRING": _grpc_snake,
        "NUMBER": grpc_status,
    }
    if argument not in forms:
        raise FormatError(f"GrpcStatusFormatter only supports CAMEL_STRING, SNAKE_STRING or NUMBER. Got: {argument}")
    return FunctionReader(forms[argument])


# ---- the rest

_WHITESPACE: Final = re.compile(r"\s")


class Details(Reader):
    """Whitespace becomes `_`, so that a line splits at its blanks (Envoy)."""

    def read(self, info: StreamInfo) -> Value:
        details = info.response_code_details
        return (_WHITESPACE.sub("_", details) if " " in details else details) or None


def _parse_details(argument: str, length: int | None) -> Reader:
    if argument == "ALLOW_WHITESPACES":
        return FunctionReader(lambda info: info.response_code_details or None)
    return Details()


def _parse_environment(argument: str, length: int | None) -> Reader:
    return Constant(os.environ.get(argument, "-")[:length])


class Protocol(Reader):
    def read(self, info: StreamInfo) -> Value:
        return PROTOCOL_NAMES.get(info.protocol)


class ResponseCode(Reader):
    def read(self, info: StreamInfo) -> Value:
        return info.response_code


class ResponseFlags(Reader):
    def read(self, info: StreamInfo) -> Value:
        return response_flags.short_names(info.response_flags) if info.response_flags else "-"


class BytesReceived(Reader):
    def read(self, info: StreamInfo) -> Value:
        return info.bytes_received


class BytesSent(Reader):
    def read(self, info: StreamInfo) -> Value:
        return info.bytes_sent


class RouteName(Reader):
    def read(self, info: StreamInfo) -> Value:
        return None if info.route is None else info.route.name or None


class UpstreamCluster(Reader):
    def read(self, info: StreamInfo) -> Value:
        upstream = info.upstream
        return None if upstream is None or upstream.cluster is None else upstream.cluster.observability_name


class TlsReader(Reader):
    """An operator about a TLS session: nothing on plaintext, else what the session's `operator(name)` says."""

    def __init__(self, name: str) -> None:
        self._downstream = name.startswith("DOWNSTREAM_")
        self._name = name.partition("_")[2]  # without DOWNSTREAM_ or UPSTREAM_

    def read(self, info: StreamInfo) -> Value:
        if self._downstream:
            tls = info.connection.tls
        else:
            tls = info.upstream.tls if info.upstream is not None else None
        return None if tls is None else tls.operator(self._name)


def _size(headers: HeaderMap | None) -> int:
    return 0 if headers is None else headers.size()


def _upstream(read: Callable[[UpstreamInfo], Value], otherwise: Value = None) -> Function:
    return lambda info: otherwise if info.upstream is None else read(info.upstream)


_NO_BYTES: Final = WireBytes()


def _downstream_wire(info: StreamInfo) -> WireBytes:
    return info.wire or _NO_BYTES


def _upstream_wire(info: StreamInfo) -> WireBytes:
    return _NO_BYTES if info.upstream is None else info.upstream.wire or _NO_BYTES


def _nothing(info: StreamInfo) -> Value:
    return None


def _zero(info: StreamInfo) -> Value:
    return 0


_COMMON: Final[dict[str, Reader]] = {
    "PROTOCOL": Protocol(),
    "RESPONSE_CODE": ResponseCode(),
    "RESPONSE_FLAGS": ResponseFlags(),
    "BYTES_RECEIVED": BytesReceived(),
    "BYTES_SENT": BytesSent(),
    "DURATION": DurationReader(),
    "UPSTREAM_HOST": UpstreamHost(),
    "UPSTREAM_CLUSTER": UpstreamCluster(),
    "ROUTE_NAME": RouteName(),
}

_PLAIN: Final[dict[str, Function]] = {
    "CONNECTION_TERMINATION_DETAILS": lambda info: info.connection_termination_details or None,
    "RESPONSE_FLAGS_LONG": lambda info: response_flags.long_names(info.response_flags),
    "REQUEST_HEADERS_BYTES": lambda info: _size(info.request_headers),
    "RESPONSE_HEADERS_BYTES": lambda info: _size(info.response_headers),
    "RESPONSE_TRAILERS_BYTES": lambda info: _size(info.response_trailers),
    "DOWNSTREAM_WIRE_BYTES_RECEIVED": lambda info: _downstream_wire(info).received,
    "DOWNSTREAM_WIRE_BYTES_SENT": lambda info: _downstream_wire(info).sent,
    "DOWNSTREAM_HEADER_BYTES_RECEIVED": lambda info: _downstream_wire(info).fields_received,
    "DOWNSTREAM_HEADER_BYTES_SENT": lambda info: _downstream_wire(info).fields_sent,
    "REQUEST_DURATION": lambda info: _milliseconds(info.start, info.request_end),
    "RESPONSE_DURATION": _response_duration,
    "RESPONSE_TX_DURATION": _response_tx_duration,
    "REQUEST_TX_DURATION": _request_tx_duration,
    "UPSTREAM_CONNECTION_POOL_READY_DURATION": _pool_ready_duration,
    "ROUNDTRIP_DURATION": _nothing,  # HTTP/3 only, as are these
    "BYTES_RETRANSMITTED": _zero,
    "PACKETS_RETRANSMITTED": _zero,
    "DOWNSTREAM_CX_RTT": _zero,
    "CUSTOM_FLAGS": lambda info: b"",  # there is no filter that sets one
    "UPSTREAM_HOST_NAME": _upstream_host_name,
    "UPSTREAM_HOST_NAME_WITHOUT_PORT": _upstream_host_name_without_port,
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
    "VIRTUAL_CLUSTER_NAME": lambda info: info.virtual_cluster_name or None,
    "FILTER_CHAIN_NAME": lambda info: info.connection.filter_chain_name or None,
    "LISTENER_NAME": lambda info: info.connection.listener_name or None,
    "STREAM_ID": lambda info: info.request_id or None,
    "UNIQUE_ID": _unique_id,
    "GRPC_STATUS_NUMBER": grpc_status,
    "LOCAL_REPLY_BODY": lambda info: info.local_reply_body,
    "ACCESS_LOG_TYPE": lambda info: info.log_type,
    "TRACE_ID": lambda info: info.traceparent[3:35] or None,
    "SPAN_ID": lambda info: info.traceparent[36:52] or None,
    "TLS_JA3_FINGERPRINT": lambda info: info.connection.ja3 or None,
    "TLS_JA4_FINGERPRINT": lambda info: info.connection.ja4 or None,
}

# Bytes on the wire: they are known when a record is written, and counted only for access logs that ask for them.
WIRE_OPERATORS: Final = frozenset(name for name in _PLAIN if "_WIRE_BYTES_" in name or "_HEADER_BYTES_" in name)

# Operators with arguments; the flags say whether an argument is required, or none allowed, and whether a length is.
REQUIRED: Final = 1
LENGTH: Final = 2
NO_ARGUMENT: Final = 4
_PARSERS: Final[dict[str, tuple[int, Parser]]] = {
    "REQ": (REQUIRED | LENGTH, RequestHeader),
    "REQUEST_HEADER": (REQUIRED | LENGTH, RequestHeader),
    "STREAM_INFO_REQ": (REQUIRED | LENGTH, RequestHeader),
    "RESP": (REQUIRED | LENGTH, ResponseHeader),
    "RESPONSE_HEADER": (REQUIRED | LENGTH, ResponseHeader),
    "TRAILER": (REQUIRED | LENGTH, ResponseTrailer),
    "RESPONSE_TRAILER": (REQUIRED | LENGTH, ResponseTrailer),
    "REQ_WITHOUT_QUERY": (REQUIRED | LENGTH, HeaderWithoutQuery),
    "PATH": (LENGTH, PathReader),
    "QUERY_PARAM": (REQUIRED | LENGTH, QueryParameter),
    "QUERY_PARAMS": (LENGTH, QueryReader),
    "COMMON_DURATION": (REQUIRED, CommonDuration),
    "START_TIME": (0, lambda argument, length: StartTime(argument, local=False)),
    "START_TIME_LOCAL": (0, lambda argument, length: StartTime(argument, local=True)),
    "EMIT_TIME": (0, lambda argument, length: EmitTime(argument, local=False)),
    "EMIT_TIME_LOCAL": (0, lambda argument, length: EmitTime(argument, local=True)),
    "RESPONSE_CODE_DETAILS": (0, _parse_details),
    "HOSTNAME": (NO_ARGUMENT, lambda argument, length: Constant(socket.gethostname())),
    "ENVIRONMENT": (REQUIRED | LENGTH, _parse_environment),
    "DYNAMIC_METADATA": (REQUIRED | LENGTH, _metadata_parser("DYNAMIC")),
    "CLUSTER_METADATA": (REQUIRED, _metadata_parser("CLUSTER")),
    "UPSTREAM_METADATA": (REQUIRED, _metadata_parser("UPSTREAM_HOST")),
    "METADATA": (REQUIRED | LENGTH, _parse_any_metadata),
    "FILTER_STATE": (REQUIRED | LENGTH, FilterStateReader),
    "GRPC_STATUS": (0, _parse_grpc_status),
}

_TLS: Final = re.compile(
    r"(?:DOWN|UP)STREAM_(?:(?:PEER|LOCAL)_(?:URI|DNS|IP)_SAN|PEER_(?:SUBJECT|ISSUER|CERT|CERT_V_START|CERT_V_END)"
    r"|TLS_(?:SESSION_ID|CIPHER|VERSION|GROUP))"
    r"|DOWNSTREAM_(?:(?:PEER|LOCAL)_(?:EMAIL|OTHERNAME)_SAN|LOCAL_SUBJECT|PEER_SERIAL|PEER_FINGERPRINT_(?:1|256)"
    r"|PEER_CHAIN_(?:FINGERPRINTS_(?:1|256)|SERIALS))"
    r"|UPSTREAM_SERVER_NAME"
)

# What Envoy knows and we do not, and why.
_NOT_MEASURED: Final = "is not measured"
_REFUSED: Final[dict[str, str]] = {
    "CEL": "there is no CEL",
    "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED": _NOT_MEASURED,
    "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT": _NOT_MEASURED,
    "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED": _NOT_MEASURED,
    "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT": _NOT_MEASURED,
    "DOWNSTREAM_DETECTED_CLOSE_TYPE": "how a connection ends is not kept",
    "UPSTREAM_DETECTED_CLOSE_TYPE": "how a connection ends is not kept",
    "DOWNSTREAM_LOCAL_CLOSE_REASON": "how a connection ends is not kept",
    "UPSTREAM_LOCAL_CLOSE_REASON": "how a connection ends is not kept",
    "DOWNSTREAM_HANDSHAKE_DURATION": _NOT_MEASURED,
    "DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256": "only the peer's own certificate is looked at",
    "DOWNSTREAM_PEER_ISSUER_SERIAL": "only the peer's own certificate is looked at",
    "ROUTE_RESOLUTION_COUNT": _NOT_MEASURED,
    "ROUTE_RESOLUTION_TIME_US": _NOT_MEASURED,
    "UPSTREAM_CONNECTION_IDS_ATTEMPTED": "only the newest attempt is kept",
    "UPSTREAM_HOSTS_ATTEMPTED": "only the newest attempt is kept",
    "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT": "only the newest attempt is kept",
    "UPSTREAM_HOST_NAMES_ATTEMPTED": "only the newest attempt is kept",
    "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT": "only the newest attempt is kept",
    "UPSTREAM_FILTER_STATE": "upstream connections have no filter state",
}


def build_reader(name: str, argument: str | None, length: int | None) -> Reader:
    """The reader of `%NAME(argument):length%`. Raises FormatError."""
    if name in _PARSERS:
        flags, parse = _PARSERS[name]
        if flags & REQUIRED and not argument:
            raise FormatError(f"{name} requires parameters")
        if flags & NO_ARGUMENT and (argument or length is not None):
            raise FormatError(f"{name} does not take any parameters or length")
        if length is not None and not flags & LENGTH:
            raise FormatError(f"{name} does not allow length to be specified.")
        return parse(argument or "", length)
    if name in _REFUSED:
        raise FormatError(f"{name} is not supported: {_REFUSED[name]}")
    reader = _address_reader(name, argument or "") or _common_reader(name)
    if reader is None:
        raise FormatError(f"Not supported field in StreamInfo: {name}")
    if length is not None or (argument and "WITHOUT_PORT" not in name):
        raise FormatError(f"{name} does not take any parameters or length")
    return reader


def _common_reader(name: str) -> Reader | None:
    if name in _PLAIN:
        return FunctionReader(_PLAIN[name])
    return TlsReader(name) if _TLS.fullmatch(name) else _COMMON.get(name)


def _address_reader(name: str, argument: str) -> Reader | None:
    for suffix in ("_ADDRESS_WITHOUT_PORT", "_ADDRESS_ENDPOINT_ID", "_ADDRESS", "_PORT"):
        address = _ADDRESSES.get(name[: -len(suffix)]) if name.endswith(suffix) else None
        if address is None:
            continue
        if suffix == "_ADDRESS_WITHOUT_PORT":
            return _without_port(argument, address)
        if suffix == "_ADDRESS_ENDPOINT_ID":
            return EndpointId(address) if name in _WITH_ENDPOINT_ID else None
        return AddressReader(address) if suffix == "_ADDRESS" else AddressPort(address)
    return None


_WITH_ENDPOINT_ID: Final = frozenset(
    {
        "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID",
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID",
        "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID",
    }
)


def _without_port(argument: str, address: AddressFunction) -> Reader:
    if not argument:
        return AddressWithoutPort(address)
    if not argument.isdecimal():
        raise FormatError(f"Invalid prefix length: {argument}")
    return MaskedAddress(int(argument), address)
