"""Clients on a cluster whose hosts speak HTTP/2."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from envoy.config.core.v3.grpc_service_pb2 import GrpcService

from meshproxy.config.context import BuildContext, Services
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.json_message import MessageParser
from meshproxy.config.runtime import Runtime
from meshproxy.http.grpc.client import RpcClient, open_client
from meshproxy.http.grpc.service import GrpcServiceConfig, build_grpc_service
from meshproxy.observe.stats import StatsRegistry
from meshproxy.rpc.clients import open_rpc_client
from tests.upstream.harness import DEADLINE_S, World, any_of, cluster_dict, endpoint, world

_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def parse_service(fields: dict[str, Any], *, per_stream: bool = False) -> tuple[GrpcServiceConfig | None, ConfigErrors]:
    """A GrpcService, with what is wrong about it."""
    message, errors = GrpcService(), ConfigErrors()
    MessageParser(errors).fill(message, fields, "")
    assert not errors, str(errors)
    context = BuildContext(errors, Runtime(), StatsRegistry())
    return build_grpc_service(message, "s", context, per_stream=per_stream), errors


def service(**fields: Any) -> GrpcServiceConfig:
    """A GrpcService without errors; on cluster `c` if it does not say otherwise."""
    default = {} if "google_grpc" in fields else {"envoy_grpc": {"cluster_name": "c"}}
    config, errors = parse_service(default | fields)
    assert config is not None, str(errors)
    return config


def services(w: World) -> Services:
    return Services(w.dispatcher, w.manager, open_rpc_client)


def http2_cluster(port: int, http2: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A cluster of one host."""
    options = any_of(_OPTIONS, explicit_http_config={"http2_protocol_options": http2 or {}})
    host = endpoint("127.0.0.1", port)
    return cluster_dict(host, typed_extension_protocol_options={_OPTIONS: options}, **fields)


@asynccontextmanager
async def client_of(
    port: int, config: GrpcServiceConfig | None = None, http2: dict[str, Any] | None = None, **fields: Any
) -> AsyncIterator[tuple[RpcClient, World]]:
    """A client of the server at `port`; `fields` are the cluster's."""
    async with world() as w, asyncio.timeout(2 * DEADLINE_S):
        w.add(http2_cluster(port, http2, **fields))
        client = open_client(services(w), config or service())
        yield client, w
        client.close()
        assert "upstream_rq_active" not in w.counters()


async def ask(client: RpcClient, method: str, message: bytes = b"") -> Any:
    """The answer, in JSON, of one of the server's methods."""
    return json.loads((await client.unary(f"/test.Test/{method}".encode(), message)).message)
