"""CSDS: what each client was sent, and what became of it, for `istioctl`, `grpcdebug` and other tools."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Final

import grpc
from envoy.admin.v3 import config_dump_shared_pb2 as shared
from envoy.service.status.v3.csds_pb2 import ClientConfig, ClientStatusRequest, ConfigStatus
from google.protobuf.message import DecodeError

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.string_matcher import build_string_matcher
from meshproxy.pilot.server.protocol import Subscription
from meshproxy.pilot.server.streams import ClientStream
from meshproxy.pilot.snapshot import Resource

SERVICE: Final = "envoy.service.status.v3.ClientStatusDiscoveryService"
# An answer has a row for each resource of each client: who wants more asks for fewer clients at a time.
MAX_CLIENTS: Final = 64
# Rows that are made before others get their turn.
_AT_ONCE: Final = 64


_CONFIG_TAG: Final = b"\x0a"  # field 1 of a ClientStatusResponse, with a length


class StatusError(Exception):
    """A request that is not answered."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


async def client_status(data: bytes, clients: Iterable[ClientStream]) -> bytes:
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
    answer = bytearray()
    for client in chosen:
        config = bytearray()
        for part in _describe(client, contents=not request.exclude_resource_contents):
            config += part.SerializeToString()
            await asyncio.sleep(0)
        answer += _CONFIG_TAG + _varint(len(config)) + config
    return bytes(answer)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


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


def _describe(client: ClientStream, *, contents: bool) -> Iterator[Any]:
    """Messages whose bytes, one after the other, are those of the client's ClientConfig."""
    yield ClientConfig(node=client.node)
    for subscription in list(client.stream.ordered):
        held, names = subscription.held, subscription.wanted.names
        rows = itertools.chain(held.items(), ((name, None) for name in names if name not in held))
        while some := list(itertools.islice(rows, _AT_ONCE)):
            config = ClientConfig()
            for name, resource in some:
                row = config.generic_xds_configs.add(type_url=subscription.type_url, name=name)
                if resource is None:
                    row.config_status, row.client_status = ConfigStatus.NOT_SENT, shared.REQUESTED
                else:
                    _describe_resource(subscription, name, resource, row, contents=contents)
            yield config


def _describe_resource(subscription: Subscription, name: str, resource: Resource, row: Any, *, contents: bool) -> None:
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
