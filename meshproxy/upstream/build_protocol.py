"""Which version of HTTP a cluster's connections speak, and how: `HttpProtocolOptions` and what it replaced."""

from __future__ import annotations

from typing import Any, Final

from envoy.config.core.v3.protocol_pb2 import Http1ProtocolOptions, Http2ProtocolOptions

from meshproxy.codec.http1.settings import Http1Settings
from meshproxy.config.errors import ConfigErrors, child
from meshproxy.config.http2_options import build_http2_settings, build_keepalive
from meshproxy.config.values import int_or
from meshproxy.upstream.config import AUTO, HTTP1, HTTP2, ClusterConfig

_NO_HTTP1: Final = Http1ProtocolOptions()
_NO_HTTP2: Final = Http2ProtocolOptions()


class Versions:
    """What stands in the configuration, wherever it may: the messages of both versions, and their paths."""

    def __init__(self, protocol: int, path: str) -> None:
        self.protocol = protocol
        self.by_protocol: bool = False
        self.http1: Any = _NO_HTTP1
        self.http2: Any = _NO_HTTP2
        self.path = path

    def take(self, holder: Any) -> Versions:
        """The options of a message that has a field for each version."""
        if holder.HasField("http_protocol_options"):
            self.http1 = holder.http_protocol_options
        if holder.HasField("http2_protocol_options"):
            self.http2 = holder.http2_protocol_options
        return self


def of_cluster(message: Any, path: str, errors: ConfigErrors) -> Versions:
    """The cluster's own fields, which are older."""
    has_http2 = message.HasField("http2_protocol_options")
    versions = Versions(HTTP2 if has_http2 else HTTP1, path).take(message)
    versions.by_protocol = message.protocol_selection == message.USE_DOWNSTREAM_PROTOCOL
    if has_http2 and message.HasField("http_protocol_options") and not versions.by_protocol:
        errors.add(child(path, "http2_protocol_options"), "beside http_protocol_options it needs protocol_selection")
    return versions


def of_options(options: Any, path: str, errors: ConfigErrors) -> Versions:
    """An `HttpProtocolOptions`."""
    kind = options.WhichOneof("upstream_protocol_options") or "explicit_http_config"
    where = child(path, kind)
    chosen = getattr(options, kind)
    has_http2 = chosen.HasField("http2_protocol_options")
    versions = Versions(AUTO if kind == "auto_config" else HTTP2 if has_http2 else HTTP1, where).take(chosen)
    versions.by_protocol = kind == "use_downstream_protocol_config"
    if chosen.HasField("http3_protocol_options"):
        errors.add(child(where, "http3_protocol_options"), "HTTP/3 is not supported")
    if kind == "auto_config" and chosen.HasField("alternate_protocols_cache_options"):
        errors.add(child(where, "alternate_protocols_cache_options"), "is for HTTP/3, which is not supported")
    return versions


def build_versions(config: ClusterConfig, common: Any, versions: Versions, errors: ConfigErrors) -> None:
    """`common` is a `core.v3.HttpProtocolOptions`."""
    config.protocol = versions.protocol
    config.demands.by_protocol = versions.by_protocol
    config.http1 = _build_http1(common, versions.http1, child(versions.path, "http_protocol_options"), errors)
    config.http2 = build_http2_settings(
        versions.http2,
        child(versions.path, "http2_protocol_options"),
        errors,
        max_headers_count=_max_headers_count(common),
        max_headers_bytes=_max_headers_bytes(common, 60),
        buffer_limit_bytes=config.per_connection_buffer_limit_bytes,
    )
    config.http2_keepalive = build_keepalive(versions.http2)
    if config.protocol == AUTO and not config.transports.agree_on_protocols:
        errors.add(versions.path, "needs transport sockets that can agree on a protocol (ALPN): TLS")


def _build_http1(common: Any, http1: Any, path: str, errors: ConfigErrors) -> Http1Settings:
    header_format = http1.header_key_format.WhichOneof("header_format")
    if header_format == "stateful_formatter":
        errors.add(child(child(path, "header_key_format"), header_format), "header formatters are not supported")
    return Http1Settings(
        enable_trailers=http1.enable_trailers,
        allow_chunked_length=http1.allow_chunked_length,
        proper_case=header_format == "proper_case_words",
        send_fully_qualified_url=http1.send_fully_qualified_url,
        max_headers_count=_max_headers_count(common),
        max_headers_bytes=_max_headers_bytes(common, 80),
    )


def _max_headers_count(common: Any) -> int:
    return int_or(common, "max_headers_count", 100)


def _max_headers_bytes(common: Any, default_kb: int) -> int:
    return int_or(common, "max_response_headers_kb", default_kb) * 1024
