"""`envoy.config.core.v3.ConfigSource`: where a resource is found that a configuration only names."""

from __future__ import annotations

from typing import Any, Final

from envoy.config.core.v3.config_source_pb2 import ApiConfigSource
from envoy.config.core.v3.config_source_pb2 import ConfigSource as ConfigSourceMessage

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.config.values import milliseconds_or

# The one aggregated stream that the bootstrap's `dynamic_resources.ads_config` describes.
ADS: Final = b"ads"

_FETCH_TIMEOUT_MS: Final = 15_000
_STREAMS: Final = (ApiConfigSource.GRPC, ApiConfigSource.DELTA_GRPC)
_AGGREGATED: Final = (ApiConfigSource.AGGREGATED_GRPC, ApiConfigSource.AGGREGATED_DELTA_GRPC)


class ConfigSource:
    """A source, as plain values: `key` is `ADS`, or the serialised message, which is all that opens it.

    `initial_fetch_timeout_ms` is how long whoever names a resource waits for it before going on without; 0.0: for ever.
    """

    def __init__(self, key: bytes, initial_fetch_timeout_ms: float = _FETCH_TIMEOUT_MS) -> None:
        self.key = key
        self.initial_fetch_timeout_ms = initial_fetch_timeout_ms


def build_config_source(message: Any, path: str, context: BuildContext) -> ConfigSource | None:
    """From the message at `path`; None with errors. `self` is the source of the resource that is built."""
    timeout_ms = float(milliseconds_or(message, "initial_fetch_timeout", _FETCH_TIMEOUT_MS))
    kind = message.WhichOneof("config_source_specifier")
    if kind == "ads":
        return ConfigSource(ADS, timeout_ms)
    if kind == "self":
        if not context.source:
            context.errors.add(child(path, "self"), "stands in a resource that comes from no control plane")
            return None
        return ConfigSource(context.source, timeout_ms)
    if kind == "api_config_source" and not _check_api(message.api_config_source, path, context):
        return None
    if kind not in ("api_config_source", "path_config_source", "path"):
        context.errors.add(path, "one of ads, self, api_config_source, path_config_source is required")
        return None
    return ConfigSource(source_key(message), timeout_ms)


def source_key(message: Any) -> bytes:
    """What tells sources apart: all of the message but the time that one waits for it."""
    if message.WhichOneof("config_source_specifier") == "ads":
        return ADS
    rest = ConfigSourceMessage()
    rest.CopyFrom(message)
    rest.ClearField("initial_fetch_timeout")
    return bytes(rest.SerializeToString(deterministic=True))


def _check_api(message: Any, path: str, context: BuildContext) -> bool:
    where = child(path, "api_config_source")
    if message.api_type in _AGGREGATED:
        # Envoy demands that aggregated streams be those of ads_config.
        context.errors.add(child(where, "api_type"), "an aggregated stream is named as `ads`, and stands in ads_config")
    elif message.api_type not in _STREAMS:
        context.errors.add(child(where, "api_type"), "only GRPC and DELTA_GRPC are supported")
    elif len(message.grpc_services) == 0:
        context.errors.add(child(where, "grpc_services"), "at least one is required")
    else:
        return True
    return False
