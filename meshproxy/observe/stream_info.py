"""What is known of one stream: written by the request path, read by formatters, matchers and access logs."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.net.address import Address
from meshproxy.net.proxy_protocol import ProxyHeader
from meshproxy.net.transport_socket import TransportSocket
from meshproxy.observe.wire import WireBytes
from meshproxy.tls.x509 import URI

PROTOCOL_HTTP10: Final = 10
PROTOCOL_HTTP11: Final = 11
PROTOCOL_HTTP2: Final = 20
# Why a stream is traced.
TRACE_NONE: Final = 0  # it is not
TRACE_SAMPLED: Final = 1  # it is among those drawn
TRACE_CLIENT: Final = 2  # x-client-trace-id
TRACE_FORCED: Final = 3  # x-envoy-force-trace
PROTOCOL_NAMES: Final = {10: "HTTP/1.0", 11: "HTTP/1.1", 20: "HTTP/2", 30: "HTTP/3"}


Metadata = dict[str, Any]  # a core.v3.Metadata: namespace -> its Struct


class ConnectionInfo:
    """What is known of a downstream connection; shared by its streams."""

    def __init__(self, connection_id: int, remote: Address, local: Address) -> None:
        self.connection_id = connection_id
        self.remote = remote  # after a proxy_protocol or original_src filter
        self.direct_remote = remote  # the peer of the socket
        self.local = local
        self.direct_local = local  # where the socket accepted it
        self.local_restored: bool = False  # `local` is where the connection was bound for, not where it came
        self.requested_server_name: str = ""
        self.filter_chain_name: str = ""
        self.listener_name: str = ""
        self.transport_failure_reason: str = ""
        self.transport_socket: TransportSocket | None = None  # None: plain bytes
        self.client_cert: bytes | None = None  # its element of x-forwarded-client-cert, once a request asked for it
        self.principal_names: list[bytes] | None = None  # of its certificate, once a rule asked for them
        self.ja3: str = ""
        self.ja4: str = ""
        self.dynamic_metadata: dict[str, dict[str, Any]] | None = None  # of listener filters
        self.filter_state: dict[str, Any] | None = None
        self.proxy_header: ProxyHeader | None = None  # that a proxy before us sent
        self.rate_limiter: object | None = None  # of its requests, where each connection has its own
        self.termination_details: str = ""  # why it was closed, where no stream says so
        self.protocol: int = 0  # what was spoken on it, known at its end; 0: nothing
        self.response_flags: int = 0  # of the connection itself, not of a stream

    @property
    def tls(self) -> Any:
        """Facts of the TLS session; None on plaintext."""
        return None if self.transport_socket is None else self.transport_socket.facts

    @property
    def peer_uris(self) -> list[str]:
        """The URI names (a SPIFFE ID) of the peer's certificate; none where nobody has validated it."""
        facts = self.tls
        return facts.peer_names(URI) if facts is not None and facts.peer_certificate_validated else []


class RouteInfo:
    """What is told of a route; made with it."""

    def __init__(self, name: str, metadata: Metadata | None, virtual_host_metadata: Metadata | None) -> None:
        self.name = name
        self.metadata = metadata
        self.virtual_host_metadata = virtual_host_metadata


class ClusterInfo:
    """What is told of a cluster; made with it."""

    def __init__(self, name: str, observability_name: str, metadata: Metadata | None) -> None:
        self.name = name
        self.observability_name = observability_name  # alt_stat_name where there is one
        self.metadata = metadata


class UpstreamInfo:
    """What is known of the upstream side of a stream; its newest attempt."""

    def __init__(self) -> None:
        self.cluster: ClusterInfo | None = None
        self.host: Address | None = None
        self.host_name: str = ""
        self.local: Address | None = None
        self.remote: Address | None = None  # the host's address that is connected to
        self.protocol: int = 0
        self.connection_id: int = 0
        self.transport_failure_reason: str = ""
        self.host_metadata: Metadata | None = None
        self.tls: Any = None  # facts of the TLS session; None on plaintext
        self.attempts: int = 0
        # monotonic seconds; 0.0: not yet
        self.first_byte_sent: float = 0.0
        self.last_byte_sent: float = 0.0
        self.first_byte_received: float = 0.0
        self.last_byte_received: float = 0.0
        self.pool_ready: float = 0.0
        self.wire: WireBytes | None = None  # of all attempts; only where an access log asks for it


class StreamInfo:
    """One stream (a request and its response). Times are monotonic seconds; 0.0 says "not yet"."""

    def __init__(self, connection: ConnectionInfo, start: float) -> None:
        self.connection = connection
        self.start = start
        self.request_end: float = 0.0  # the last byte of the request came
        self.response_start: float = 0.0  # the first byte of the response went downstream
        self.end: float = 0.0
        self.protocol: int = PROTOCOL_HTTP11
        self.request_headers: HeaderMap | None = None
        self.response_headers: HeaderMap | None = None
        self.response_trailers: HeaderMap | None = None
        self.response_code: int = 0
        self.response_code_details: str = ""
        self.connection_termination_details: str = ""
        self.response_flags: int = 0
        self.bytes_received: int = 0  # of the request's body
        self.bytes_sent: int = 0  # of the response's body
        self.wire: WireBytes | None = None  # where an access log asks for it, from its first record on
        self.log_type: str = "NotSet"  # the access log record that is being written: data.accesslog.v3.AccessLogType
        self.remote: Address = connection.remote  # the trusted downstream address (x-forwarded-for)
        self.internal: bool = False  # an internal request by Envoy's trust rules
        self.health_check: bool = False  # asked by a health checker, as the health_check filter found
        self.scheme: bytes = b"http"
        self.route: RouteInfo | None = None
        self.virtual_cluster_name: str = ""
        self.request_id: bytes = b""
        self.trace_reason: int = TRACE_NONE
        self.traceparent: bytes = b""  # its own place in a trace, where a provider for that is configured
        self.local_reply_body: bytes = b""
        self.upstream: UpstreamInfo | None = None
        self.dynamic_metadata: dict[str, dict[str, Any]] | None = None
        self.filter_state: dict[str, Any] | None = None


class StateObject:
    """What a filter leaves in the filter state, where that has words of its own in logs."""

    def text(self) -> str:
        """As PLAIN."""
        raise NotImplementedError

    def structure(self) -> dict[str, Any]:
        """As TYPED: what its protobuf message is in JSON."""
        raise NotImplementedError


def shared_metadata(info: ConnectionInfo | StreamInfo) -> dict[str, dict[str, Any]]:
    """The dynamic metadata, to read and to change."""
    if info.dynamic_metadata is None:
        info.dynamic_metadata = {}
    return info.dynamic_metadata


def shared_state(info: ConnectionInfo | StreamInfo) -> dict[str, Any]:
    """The filter state, to read and to change."""
    if info.filter_state is None:
        info.filter_state = {}
    return info.filter_state
