"""`envoy.filters.http.set_metadata`: gives every request dynamic metadata, for the filters behind it and for logs."""

from __future__ import annotations

from typing import Any

from envoy.extensions.filters.http.set_metadata.v3.set_metadata_pb2 import Config

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.values import struct_fields
from meshproxy.http.filter import CONTINUE, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.stream import Stream
from meshproxy.observe.stats import StatsScope
from meshproxy.observe.stream_info import shared_metadata


class SetMetadataStats(StatsScope):
    """Under `http.<stat_prefix>.set_metadata.`; those of routes under `set_metadata.`, as in Envoy."""

    COUNTERS = ("overwrite_denied",)

    def __init__(self) -> None:
        super().__init__()
        self.overwrite_denied: int = 0


class Entry:
    """What one namespace is given."""

    def __init__(self, namespace: str, fields: dict[str, Any], allow_overwrite: bool) -> None:
        self.namespace = namespace
        self.fields = fields
        self.allow_overwrite = allow_overwrite


class MetadataSettings:
    """A Config, of the filter or of a route."""

    def __init__(self, entries: list[Entry], stats: SetMetadataStats) -> None:
        self.entries = entries
        self.stats = stats

    def apply(self, metadata: dict[str, dict[str, Any]]) -> None:
        """Each namespace is set where nobody has yet, else merged into, where that is allowed."""
        for entry in self.entries:
            present = metadata.get(entry.namespace)
            if present is None:
                present = metadata[entry.namespace] = {}
            elif not entry.allow_overwrite:
                self.stats.overwrite_denied += 1
                continue
            merge(present, entry.fields)


def merge(into: dict[str, Any], fields: dict[str, Any]) -> None:
    """Structures are merged, lists joined; any other value replaces the old one, and so does one of another type."""
    for key, value in fields.items():
        if isinstance(value, dict):
            old = into.get(key)
            if not isinstance(old, dict):
                old = into[key] = {}
            merge(old, value)
        elif isinstance(value, list):
            old = into.get(key)
            into[key] = [*old, *value] if isinstance(old, list) else value
        else:
            into[key] = value


class SetMetadataFilter(HttpFilter):
    """What the route says comes behind, and on top of, what the filter says."""

    def __init__(self, settings: MetadataSettings) -> None:
        self.settings = settings

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        metadata = shared_metadata(stream.info)
        self.settings.apply(metadata)
        override = stream.route_config(self)
        if isinstance(override, MetadataSettings):
            override.apply(metadata)
        return CONTINUE


def build_set_metadata(message: Any, path: str, context: BuildContext) -> SetMetadataFilter:
    return SetMetadataFilter(_build_settings(message, context, context.stat_prefix))


def build_per_route(message: Any, path: str, context: BuildContext) -> MetadataSettings:
    return _build_settings(message, context, "")


def _build_settings(message: Any, context: BuildContext, prefix: str) -> MetadataSettings:
    entries = [
        Entry(entry.metadata_namespace, struct_fields(entry.value), entry.allow_overwrite)
        for entry in message.metadata
        if entry.HasField("value")
    ]
    if message.metadata_namespace and message.HasField("value"):  # how it was said before there were entries
        entries.insert(0, Entry(message.metadata_namespace, struct_fields(message.value), True))
    return MetadataSettings(entries, context.scope(f"{prefix}set_metadata.", SetMetadataStats))


register_http_filter(Config, HttpFilterType(build_set_metadata, Config, build_per_route))
