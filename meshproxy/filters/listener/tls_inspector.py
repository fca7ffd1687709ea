"""`envoy.filters.listener.tls_inspector`: whether a connection begins with TLS; the SNI and ALPN of its ClientHello.

It goes on as soon as the bytes cannot be TLS, so that plain connections wait for nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from envoy.extensions.filters.listener.tls_inspector.v3.tls_inspector_pb2 import TlsInspector

from meshproxy.config.context import BuildContext
from meshproxy.config.values import bool_or, int_or
from meshproxy.filters.listener_filter import (
    CLOSE,
    CONTINUE,
    LISTENER_FILTERS,
    NEEDS_DATA,
    AcceptedSocket,
    ListenerFilter,
    ListenerFilterFactory,
)
from meshproxy.observe.stats import Histogram, StatsScope
from meshproxy.tls.fingerprint import ja3, ja4
from meshproxy.tls.inspector import (
    CONNECTION_REJECTED,
    ERROR_PARSING_EXTENSION,
    ClientHello,
    ClientHelloReader,
    application_protocols,
    server_name,
)

MAX_CLIENT_HELLO: Final = 16 * 1024
NAMESPACE: Final = "envoy.filters.listener.tls_inspector"
_TLS_1_0: Final = 0x0301
_TLS_1_3: Final = 0x0304


class TlsInspectorStats(StatsScope):
    """Under `tls_inspector.`."""

    COUNTERS: ClassVar[tuple[str, ...]] = (
        "client_hello_too_large",
        "tls_found",
        "tls_not_found",
        "alpn_found",
        "alpn_not_found",
        "sni_found",
        "sni_not_found",
    )
    HISTOGRAMS: ClassVar[tuple[str, ...]] = ("bytes_processed",)

    def __init__(self) -> None:
        super().__init__()
        self.client_hello_too_large: int = 0
        self.tls_found: int = 0
        self.tls_not_found: int = 0
        self.alpn_found: int = 0
        self.alpn_not_found: int = 0
        self.sni_found: int = 0
        self.sni_not_found: int = 0
        self.bytes_processed = Histogram()


class TlsInspectorFactory(ListenerFilterFactory):
    """The configuration."""

    def __init__(self, message: Any, stats: TlsInspectorStats) -> None:
        self.stats = stats
        self.limit_bytes = int_or(message, "max_client_hello_size", MAX_CLIENT_HELLO)
        self.ja3 = bool_or(message, "enable_ja3_fingerprinting", False)
        self.ja4 = bool_or(message, "enable_ja4_fingerprinting", False)
        self.close_on_errors: bool = message.close_connection_on_client_hello_parsing_errors

    def new(self) -> ListenerFilter:
        return TlsInspectorFilter(self)


class TlsInspectorFilter(ListenerFilter):
    """Consumes nothing: the ClientHello is for the transport socket."""

    def __init__(self, config: TlsInspectorFactory) -> None:
        self.max_read_bytes = config.limit_bytes
        self._config = config
        self._reader = ClientHelloReader()

    def on_accept(self, accepted: AcceptedSocket) -> int:
        return NEEDS_DATA

    def on_data(self, accepted: AcceptedSocket, data: bytes) -> int:
        reader = self._reader
        reader.receive(data)
        stats = self._config.stats
        if reader.hello is not None:
            stats.bytes_processed.record(reader.processed)
            return self._take(accepted, reader.hello)
        if reader.failure:
            stats.bytes_processed.record(reader.processed)
            return self._not_tls(accepted, reader.failure)
        if len(data) < self.max_read_bytes:
            return NEEDS_DATA
        stats.bytes_processed.record(len(data))
        stats.client_hello_too_large += 1
        accepted.set_metadata(NAMESPACE, "failure_reason", "ClientHelloTooLarge")
        return CLOSE

    def _take(self, accepted: AcceptedSocket, hello: ClientHello) -> int:
        config = self._config
        stats = config.stats
        name = server_name(hello)
        if name is None:
            return self._not_tls(accepted, ERROR_PARSING_EXTENSION)
        accepted.server_name = name
        stats.sni_found += 1 if name else 0
        stats.sni_not_found += 0 if name else 1
        accepted.ja3 = ja3(hello) if config.ja3 else ""
        accepted.ja4 = ja4(hello) if config.ja4 else ""
        if not _TLS_1_0 <= hello.version <= _TLS_1_3:
            self._fail(accepted, "ClientHelloInvalidTlsVersion", CONNECTION_REJECTED)
            return CLOSE
        protocols = application_protocols(hello)
        if protocols:
            accepted.application_protocols = protocols
        stats.alpn_found += 1 if protocols else 0
        stats.alpn_not_found += 0 if protocols else 1
        stats.tls_found += 1
        accepted.transport_protocol = "tls"
        return CONTINUE

    def _not_tls(self, accepted: AcceptedSocket, failure: str) -> int:
        self._fail(accepted, "ClientHelloNotDetected", failure)
        return CLOSE if self._config.close_on_errors else CONTINUE

    def _fail(self, accepted: AcceptedSocket, reason: str, failure: str) -> None:
        self._config.stats.tls_not_found += 1
        accepted.set_metadata(NAMESPACE, "failure_reason", reason)
        accepted.transport_failure_reason = f"TLS_error|error:{failure}:TLS_error_end"


def build_tls_inspector(message: Any, path: str, context: BuildContext) -> ListenerFilterFactory:
    return TlsInspectorFactory(message, context.scope("tls_inspector.", TlsInspectorStats))


LISTENER_FILTERS.register(TlsInspector, build_tls_inspector)
