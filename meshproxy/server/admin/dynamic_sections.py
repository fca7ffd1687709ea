"""What `/config_dump` says of the resources of control planes: versions in force, those that warm, those refused."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from typing import Any, Final

from envoy.admin.v3 import config_dump_pb2, config_dump_shared_pb2
from google.protobuf.message import Message

from meshproxy.api.config_dump_pb2 import NotDoneConfigDump
from meshproxy.config.subscription import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    EXTENSION_TYPE,
    LISTENER_TYPE,
    ROUTE_TYPE,
    SECRET_TYPE,
)
from meshproxy.server.admin.backend import ConfigResource
from meshproxy.server.dynamic import DynamicResources, ResourceRecord, TakenVersion

_SHARED: Final = config_dump_shared_pb2
_ACKED: Final = _SHARED.ACKED
_NACKED: Final = _SHARED.NACKED


class DynamicSections:
    """The elements that control planes add to the sections of a dump."""

    def __init__(self) -> None:
        self.clusters: list[ConfigResource] = []
        self.clusters_version: str = ""
        self.listeners: list[ConfigResource] = []
        self.listeners_version: str = ""
        self.routes: list[ConfigResource] = []
        self.endpoints: list[ConfigResource] = []
        self.secrets: list[ConfigResource] = []
        self.extensions: list[ConfigResource] = []
        self.not_done: list[ConfigResource] = []


def dynamic_sections(
    resources: DynamicResources,
    warming_clusters: Collection[str],
    warming_listeners: Collection[str],
    endpoints: Iterable[tuple[str, bytes]] = (),
) -> DynamicSections:
    """Of all records; clusters and listeners that warm are told from those that take traffic. `endpoints` are the
    assignments of clusters as they are in force, by the clusters' names: of those that a control plane added, whatever
    their hosts come from, as in Envoy."""
    sections = DynamicSections()
    sections.clusters_version = resources.versions.get(CLUSTER_TYPE, "")
    sections.listeners_version = resources.versions.get(LISTENER_TYPE, "")
    # As one list has the elements of a field together: those in force, then those that warm.
    for warms in (False, True):
        field = "dynamic_warming_clusters" if warms else "dynamic_active_clusters"
        records = [one for one in resources.of_type(CLUSTER_TYPE) if (one.name in warming_clusters) is warms]
        kind = _SHARED.ClustersConfigDump.DynamicCluster
        sections.clusters += _elements(records, field, partial(_element, kind, "cluster", CLUSTER_TYPE))
    for record in resources.of_type(LISTENER_TYPE):
        build = partial(_listener, record, record.name in warming_listeners)
        sections.listeners.append(ConfigResource("dynamic_listeners", record.name, build))
    said = {record.name: record for record in resources.of_type(ENDPOINT_TYPE)}
    for name, data in endpoints:
        build = partial(_endpoints, said.get(name), data)
        sections.endpoints.append(ConfigResource("dynamic_endpoint_configs", name, build))
    kinds = (
        (ROUTE_TYPE, "dynamic_route_configs", "route_config", _SHARED.RoutesConfigDump.DynamicRouteConfig),
        (SECRET_TYPE, "dynamic_active_secrets", "secret", config_dump_pb2.SecretsConfigDump.DynamicSecret),
        (EXTENSION_TYPE, "ecds_filters", "ecds_filter", _SHARED.EcdsConfigDump.EcdsFilterConfig),
    )
    lists = (sections.routes, sections.secrets, sections.extensions)
    for (type_url, field, inner, kind), into in zip(kinds, lists, strict=True):
        into += _elements(resources.of_type(type_url), field, partial(_element, kind, inner, type_url))
    for type_url, record in resources.all():
        if record.taken is not None and record.taken.not_yet:
            sections.not_done.append(ConfigResource("resources", record.name, partial(_not_done, type_url, record)))
    return sections


def _elements(records: Iterable[ResourceRecord], field: str, build: Any) -> list[ConfigResource]:
    return [ConfigResource(field, record.name, partial(build, record)) for record in records]


def _element(kind: Any, inner: str, type_url: str, record: ResourceRecord) -> Message:
    element = kind()
    if "name" in kind.DESCRIPTOR.fields_by_name:
        element.name = record.name
    if record.taken is not None:
        _fill(element, inner, type_url, record.taken)
    _set_error(element, type_url, record)
    return element  # type: ignore[no-any-return]


def _endpoints(record: ResourceRecord | None, data: bytes) -> Message:
    """`data` is what is in force; the record, what was said of it last."""
    element = _SHARED.EndpointsConfigDump.DynamicEndpointConfig()
    element.endpoint_config.type_url, element.endpoint_config.value = ENDPOINT_TYPE, data
    if record is not None:
        if record.taken is not None:
            element.version_info = record.taken.version
            element.last_updated.FromMilliseconds(int(record.taken.at * 1000))
        _set_error(element, ENDPOINT_TYPE, record)
    return element  # type: ignore[no-any-return]


def _listener(record: ResourceRecord, warms: bool) -> Message:
    element = _SHARED.ListenersConfigDump.DynamicListener(name=record.name)
    active, warming = (record.before, record.taken) if warms else (record.taken, None)
    if active is not None:
        _fill(element.active_state, "listener", LISTENER_TYPE, active)
    if warming is not None:
        _fill(element.warming_state, "listener", LISTENER_TYPE, warming)
    _set_error(element, LISTENER_TYPE, record)
    return element  # type: ignore[no-any-return]


def _fill(element: Any, inner: str, type_url: str, taken: TakenVersion) -> None:
    element.version_info = taken.version
    if isinstance(getattr(element, inner), _any_type()):
        packed = getattr(element, inner)
        packed.type_url, packed.value = type_url, taken.data
    else:
        getattr(element, inner).ParseFromString(taken.data)
    element.last_updated.FromMilliseconds(int(taken.at * 1000))


def _any_type() -> type[Message]:
    return type(_SHARED.UpdateFailureState().failed_configuration)


def _set_error(element: Any, type_url: str, record: ResourceRecord) -> None:
    refusal = record.refusal
    element.client_status = _ACKED if refusal is None else _NACKED
    if refusal is not None:
        state = element.error_state
        state.failed_configuration.type_url, state.failed_configuration.value = type_url, refusal.data
        state.last_update_attempt.FromMilliseconds(int(refusal.at * 1000))
        state.details, state.version_info = refusal.because, refusal.version


def _not_done(type_url: str, record: ResourceRecord) -> Message:
    taken = record.taken
    assert taken is not None
    element = NotDoneConfigDump.Resource(type_url=type_url, name=record.name, version_info=taken.version)
    for path, note in taken.not_yet:
        element.fields.add(path=path, note=note)
    return element
