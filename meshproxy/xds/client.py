"""The client of control planes: it asks each source for what it is told to ask for, and hands the sink what comes.

There is one in a process tree. The aggregated stream of `ads_config` is opened by `start`; a source of any other
ConfigSource when the first resource is asked for, and closed with the last.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final
from weakref import WeakValueDictionary

from envoy.config.core.v3.config_source_pb2 import ConfigSource as ConfigSourceMessage

from meshproxy.config.config_source import ADS
from meshproxy.config.context import BuildContext, Services
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Runtime
from meshproxy.config.subscription import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    EXTENSION_TYPE,
    LISTENER_TYPE,
    ROUTE_TYPE,
    RUNTIME_TYPE,
    SECRET_TYPE,
    VIRTUAL_HOST_TYPE,
)
from meshproxy.observe.stats import StatsRegistry
from meshproxy.xds.api_source import ApiSource, build_api_source, stream_path
from meshproxy.xds.feed import SinkOf
from meshproxy.xds.files import FileSource
from meshproxy.xds.node import own_node
from meshproxy.xds.resources import Rejection, ResourceSink, ResourceUpdate
from meshproxy.xds.source import Source, SourceStatus
from meshproxy.xds.stream import DiscoveryStream

__all__ = ["Rejection", "ResourceSink", "ResourceUpdate", "XdsClient"]

_log: Final = logging.getLogger("meshproxy.xds")

# Where the statistics of streams that are not aggregated stand. In Envoy each assignment, route configuration … has a
# stream of its own; those of one type and source share one here.
_STATS_PREFIXES: Final = {
    CLUSTER_TYPE: "cluster_manager.cds.",
    LISTENER_TYPE: "listener_manager.lds.",
    ENDPOINT_TYPE: "eds.",
    ROUTE_TYPE: "rds.",
    VIRTUAL_HOST_TYPE: "vhds.",
    EXTENSION_TYPE: "ecds.",
    RUNTIME_TYPE: "rtds.",
}

# The key of a ConfigSource, a type, and a name where each has a source of its own.
_Key = tuple[bytes, str, str]


class XdsClient:
    """`ads_config` is the ApiConfigSource of the bootstrap's dynamic_resources; None: there is no aggregated stream."""

    def __init__(
        self, services: Services, node: Any, ads_config: Any | None, registry: StatsRegistry, sink: ResourceSink
    ) -> None:
        self._services = services
        self._node = own_node(node)
        self._registry = registry
        self._sink = sink
        # As long as a source uses them, or what it brought last is being applied.
        self._sinks: WeakValueDictionary[tuple[bytes, str], SinkOf] = WeakValueDictionary()
        self._sources: dict[_Key, Source] = {}
        self._closed = False
        self._ads = None if ads_config is None else self._open_ads(ads_config)

    def _open_ads(self, config: Any) -> Source | None:
        errors = ConfigErrors()
        api = build_api_source(config, "dynamic_resources.ads_config", self._context(errors))
        if api is None:
            _log.error("no aggregated stream: %s", errors)
            return None
        return self._stream(ADS, api, "", "")

    def start(self) -> None:
        """Open the aggregated stream. What is subscribed before goes out in its first requests."""
        if self._ads is not None:
            self._ads.start()

    def subscribe(self, source_key: bytes, type_url: str, name: str) -> None:
        """Ask for a resource, or for all (`*`), until `unsubscribe`. To ask for a name twice is to ask for it once."""
        source = self._source(source_key, type_url, name)
        if source is not None:
            source.subscribe(type_url, name)

    def unsubscribe(self, source_key: bytes, type_url: str, name: str) -> None:
        """Ask for it no longer."""
        if source_key == ADS:
            if self._ads is not None:
                self._ads.unsubscribe(type_url, name)
            return
        key = _key(source_key, type_url, name)
        source = self._sources.get(key)
        if source is None:
            return
        source.unsubscribe(type_url, name)
        if source.idle:
            del self._sources[key]
            self._services.dispatcher.spawn(source.close(), "xDS source's end")

    def restore(self, source_key: bytes, type_url: str, versions: Mapping[str, str]) -> None:
        """Versions by name that are in force already, from a cache: the control plane need not send them again, and
        where it has them no more they are removed. To be called before the names are subscribed."""
        if source_key == ADS and self._ads is not None:
            self._ads.restore(type_url, versions)

    def status(self) -> list[SourceStatus]:
        """How it stands with each source; the aggregated stream is the first."""
        sources = [] if self._ads is None else [self._ads]
        return [source.status for source in [*sources, *self._sources.values()]]

    async def close(self) -> None:
        """End all streams; none is opened any more."""
        self._closed = True
        sources = [] if self._ads is None else [self._ads]
        sources += self._sources.values()
        self._ads, self._sources = None, {}
        for source in sources:
            await source.close()

    # -- sources

    def _source(self, source_key: bytes, type_url: str, name: str) -> Source | None:
        if self._closed:
            return None
        if source_key == ADS:
            if self._ads is None:
                self._sink.on_failure(source_key, type_url, "there is no ads_config")
            return self._ads
        key = _key(source_key, type_url, name)
        source = self._sources.get(key)
        if source is None:
            source = self._open(source_key, type_url, name)
            if source is not None:
                self._sources[key] = source
                source.start()
        return source

    def _open(self, source_key: bytes, type_url: str, name: str) -> Source | None:
        message = ConfigSourceMessage.FromString(source_key)
        if message.WhichOneof("config_source_specifier") in ("path", "path_config_source"):
            return FileSource(self._services.dispatcher, message, self._sink_of(source_key, type_url), type_url)
        errors = ConfigErrors()
        api = build_api_source(message.api_config_source, "api_config_source", self._context(errors))
        if api is not None and stream_path(type_url, delta=api.delta) is None:
            errors.add("api_config_source", f"there is no service for {type_url}")
        if api is None or errors:
            self._sink.on_failure(source_key, type_url, str(errors))
            return None
        return self._stream(source_key, api, type_url, name)

    def _stream(self, source_key: bytes, api: ApiSource, type_url: str, name: str) -> DiscoveryStream:
        prefix = f"sds.{name}." if type_url == SECRET_TYPE else _STATS_PREFIXES.get(type_url, "")
        return DiscoveryStream(
            self._services,
            api,
            self._node,
            self._registry,
            prefix,
            lambda each: self._sink_of(source_key, each),
            type_url,
        )

    def _sink_of(self, source_key: bytes, type_url: str) -> SinkOf:
        """One for all the sources of a type: their responses are applied one after another."""
        sink = self._sinks.get((source_key, type_url))
        if sink is None:
            sink = self._sinks[source_key, type_url] = SinkOf(self._sink, source_key, type_url)
        return sink

    def _context(self, errors: ConfigErrors) -> BuildContext:
        return BuildContext(errors, Runtime(), self._registry)


def _key(source_key: bytes, type_url: str, name: str) -> _Key:
    """Each secret has a stream of its own, as in Envoy: a server that fails one would fail all the others with it."""
    return source_key, type_url, name if type_url == SECRET_TYPE else ""
