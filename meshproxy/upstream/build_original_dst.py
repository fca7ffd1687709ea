"""The fields of a Cluster of the type ORIGINAL_DST."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.values import int_or, milliseconds_or
from meshproxy.upstream.config import OriginalDstConfig

_HEADER: Final = "x-envoy-original-dst-host"


def build_original_dst(message: Any, path: str, errors: ConfigErrors) -> OriginalDstConfig:
    """Errors are added at their paths below `path`."""
    config = OriginalDstConfig()
    config.cleanup_interval_ms = float(milliseconds_or(message, "cleanup_interval", 5000))
    if message.HasField("load_assignment"):
        errors.add(child(path, "load_assignment"), "an ORIGINAL_DST cluster has no endpoints of its own")
    options = message.original_dst_lb_config
    where = child(path, "original_dst_lb_config")
    if options.use_http_header:
        config.header_name = (options.http_header_name or _HEADER).lower().encode()
    elif options.http_header_name:
        errors.add(child(where, "http_header_name"), "has no effect without use_http_header")
    config.port_override = int_or(options, "upstream_port_override", 0)
    if config.port_override > 65535:
        errors.add(child(where, "upstream_port_override"), "must not exceed 65535")
    if options.HasField("metadata_key"):
        config.metadata_namespace = options.metadata_key.key
        for index, segment in enumerate(options.metadata_key.path):
            if not segment.key:
                errors.add(item(child(where, "metadata_key"), "path", index), "needs a key")
            config.metadata_path.append(segment.key)
    return config
