"""CSDS: what each client was sent, and what became of it, for `istioctl`, `grpcdebug` and other tools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import grpc
from envoy.admin.v3 import config_dump_shared_pb2 as shared
from envoy.service.status.v3.csds_pb2 import ClientConfig, ClientStatusRequest, ClientStatusResponse, ConfigStatus
from google.protobuf.message import DecodeError

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.string_matcher import build_string_matcher
from meshproxy.pilot.server.protocol import Subscription
from meshproxy.pilot.server.streams import ClientStream
from meshproxy.pilot.snapshot import Resource

SERVICE: Final = "envoy.service.status.v3.ClientStatusDiscoveryService"
# An answer has a row for each resource of each client: who wants more asks for fewer clients at a time.
MAX_CLIENTS: Final = 64


class StatusError(Exception):
    """A request that is not answered."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


def client_status(data: bytes, clients: Iterable[ClientStream]) -> bytes:
    """The answer to a ClientStatusRequest. Raises StatusError."""
    try:
        request = ClientStatusRequest.FromString(data)
    except DecodeError as error:
        raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
    chosen = list(_chosen(request, clients))
    if len(chosen) > MAX_CLIENTS:
        raise StatusError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"{len(chosen)} clients match, more than {MAX_CLIENTS}: ask for fewer by node_matchers[].node_id",
        )
    response = ClientStatusResponse()
    for client in chosen:
        _describe(client, response.config.add(), contents=not request.exclude_resource_contents)
    return bytes(response.SerializeToString())


def _chosen(request: Any, clients: Iterable[ClientStream]) -> Iterator[ClientStream]:
    errors = ConfigErrors()
    matchers = []
    for index, matcher in enumerate(request.node_matchers):
        path = item("", "node_matchers", index)
        if matcher.node_metadatas:
            errors.add(child(path, "node_metadatas"), "clients are matched by node_id only")
        if matcher.HasField("node_id"):
            matchers.append(build_string_matcher(matcher.node_id, child(path, "node_id"), errors))
    if errors:
        raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, "; ".join(str(error) for error in errors.sorted()))
    for client in clients:
        name = client.proxy.id.encode()
        if client.node is not None and (not matchers or any(found and found.match(name) for found in matchers)):
            yield client


def _describe(client: ClientStream, config: ClientConfig, *, contents: bool) -> None:
    if client.node is not None:
        config.node.CopyFrom(client.node)
    for subscription in client.stream.ordered:
        for name, resource in sorted(subscription.held.items()):
            _describe_resource(subscription, name, resource, config.generic_xds_configs.add(), contents=contents)
        for name in sorted(subscription.wanted.names - subscription.held.keys()):
            config.generic_xds_configs.add(
                type_url=subscription.type_url,
                name=name,
                config_status=ConfigStatus.NOT_SENT,
                client_status=shared.REQUESTED,
            )


def _describe_resource(subscription: Subscription, name: str, resource: Resource, row: Any, *, contents: bool) -> None:
    row.type_url = subscription.type_url
    row.name = name
    row.version_info = resource.version
    row.config_status, row.client_status = _state(subscription, name, resource)
    if contents and resource.data:
        row.xds_config.type_url = subscription.type_url
        row.xds_config.value = resource.data
    if row.config_status == ConfigStatus.ERROR and subscription.rejection is not None:
        row.error_state.details = subscription.rejection.reason
        row.error_state.version_info = subscription.rejection.version
        row.error_state.last_update_attempt.FromMilliseconds(int(subscription.rejection.at * 1000))


def _state(subscription: Subscription, name: str, resource: Resource) -> tuple[int, int]:
    if not resource.version:
        return ConfigStatus.NOT_SENT, shared.DOES_NOT_EXIST
    if name in subscription.sent:
        if subscription.in_flight:
            return ConfigStatus.STALE, shared.REQUESTED
        if subscription.rejection is not None:
            return ConfigStatus.ERROR, shared.NACKED
    return ConfigStatus.SYNCED, shared.ACKED
