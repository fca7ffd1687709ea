"""Sections of a config dump, made of serialised resources.

Elements are made one by one, while the dump writes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from envoy.admin.v3 import config_dump_pb2, config_dump_shared_pb2
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from google.protobuf.message import Message

from meshproxy.api.config_dump_pb2 import NotDoneConfigDump
from meshproxy.server.admin.backend import ConfigResource, ConfigSection
from meshproxy.server.admin.dynamic_sections import DynamicSections

_URL: Final = "type.googleapis.com/"
_CLUSTER: Final = "envoy.config.cluster.v3.Cluster"
_LISTENER: Final = "envoy.config.listener.v3.Listener"
_ROUTES: Final = "envoy.config.route.v3.RouteConfiguration"
_ENDPOINTS: Final = "envoy.config.endpoint.v3.ClusterLoadAssignment"
_SECRET: Final = "envoy.extensions.transport_sockets.tls.v3.Secret"
_BOOTSTRAP: Final = "envoy.config.bootstrap.v3.Bootstrap"


class ConfigEntry:
    """A resource of the static configuration: its message, serialised or not (then it must not change any more), and
    the Unix time when it came into force (0: not known, as for endpoints)."""

    def __init__(self, name: str, message: bytes | Message, updated_s: float) -> None:
        self.name = name
        self.message = message
        self.updated_s = updated_s


def config_sections(
    bootstrap: ConfigEntry,
    clusters: Iterable[ConfigEntry],
    listeners: Iterable[ConfigEntry],
    routes: Iterable[ConfigEntry],
    endpoints: Iterable[ConfigEntry] | None = None,
    refused: ConfigEntry | None = None,
    refused_because: str = "",
    *,
    secrets: Iterable[ConfigEntry] = (),
    dynamic: DynamicSections | None = None,
) -> list[ConfigSection]:
    """What a bootstrap file gives and control planes add, in Envoy's order. `endpoints` (of `include_eds`) are
    ClusterLoadAssignments.

    `refused` is a newer bootstrap that could not be applied: an UpdateFailureState at the end, which is ours.
    """
    shared = config_dump_shared_pb2
    more = dynamic or DynamicSections()
    sections = [
        _bootstrap(bootstrap),
        ConfigSection(
            shared.ClustersConfigDump(version_info=more.clusters_version),
            [*_static("static_clusters", "cluster", _CLUSTER, clusters), *more.clusters],
        ),
    ]
    if endpoints is not None:
        resources = _static("static_endpoint_configs", "endpoint_config", _ENDPOINTS, endpoints)
        sections.append(ConfigSection(shared.EndpointsConfigDump(), [*resources, *more.endpoints]))
    if more.extensions:
        sections.append(ConfigSection(shared.EcdsConfigDump(), more.extensions))
    sections += [
        ConfigSection(
            shared.ListenersConfigDump(version_info=more.listeners_version),
            [*_static("static_listeners", "listener", _LISTENER, listeners), *more.listeners],
        ),
        ConfigSection(shared.ScopedRoutesConfigDump()),
        ConfigSection(
            shared.RoutesConfigDump(),
            [*_static("static_route_configs", "route_config", _ROUTES, routes), *more.routes],
        ),
        ConfigSection(
            config_dump_pb2.SecretsConfigDump(),
            [*_static("static_secrets", "secret", _SECRET, secrets), *more.secrets],
        ),
    ]
    if more.not_done:
        sections.append(ConfigSection(NotDoneConfigDump(), more.not_done))
    if refused is not None:
        sections.append(ConfigSection(_failure(refused, refused_because)))
    return sections


def _bootstrap(entry: ConfigEntry) -> ConfigSection:
    message = entry.message
    if isinstance(message, bytes):
        message = Bootstrap.FromString(message)
    dump = config_dump_pb2.BootstrapConfigDump()
    _set_time(dump.last_updated, entry.updated_s)
    return ConfigSection(dump, large={"bootstrap": message})


def _failure(entry: ConfigEntry, details: str) -> Message:
    state = config_dump_shared_pb2.UpdateFailureState(details=details)
    if entry.message != b"":
        _pack(state.failed_configuration, _BOOTSTRAP, entry.message)
    _set_time(state.last_update_attempt, entry.updated_s)
    return state  # type: ignore[no-any-return]


_ELEMENTS: Final[dict[str, Any]] = {
    "static_clusters": config_dump_shared_pb2.ClustersConfigDump.StaticCluster,
    "static_endpoint_configs": config_dump_shared_pb2.EndpointsConfigDump.StaticEndpointConfig,
    "static_listeners": config_dump_shared_pb2.ListenersConfigDump.StaticListener,
    "static_route_configs": config_dump_shared_pb2.RoutesConfigDump.StaticRouteConfig,
    "static_secrets": config_dump_pb2.SecretsConfigDump.StaticSecret,
}


def _static(field: str, inner: str, kind: str, entries: Iterable[ConfigEntry]) -> list[ConfigResource]:
    return [ConfigResource(field, entry.name, partial(_element, field, inner, kind, entry)) for entry in entries]


def _element(field: str, inner: str, kind: str, entry: ConfigEntry) -> Message:
    element = _ELEMENTS[field]()
    if field == "static_secrets":
        element.name = entry.name
    _pack(getattr(element, inner), kind, entry.message)
    if entry.updated_s:
        _set_time(element.last_updated, entry.updated_s)
    return element  # type: ignore[no-any-return]


def _pack(packed: Any, kind: str, message: bytes | Message) -> None:
    packed.type_url = _URL + kind
    packed.value = message if isinstance(message, bytes) else message.SerializeToString()


def _set_time(timestamp: Any, unix_s: float) -> None:
    """To the millisecond, as Envoy's."""
    timestamp.FromMilliseconds(int(unix_s * 1000))
