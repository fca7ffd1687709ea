"""Clusters that requests ask for: both proxies under a control plane of their own, with the same answers from it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from google.protobuf import json_format

from meshproxy.config.subscription import CLUSTER_TYPE
from tests.support.control_plane import ControlPlane, ControlPlaneStream, resource
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy

FILTERS = "type.googleapis.com/envoy.extensions.filters."
HTTP_FORMAT = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %UPSTREAM_CLUSTER% %BYTES_RECEIVED%"
TCP_FORMAT = "TCP %RESPONSE_FLAGS% %UPSTREAM_CLUSTER%"
CONFIG = """
node: {{id: test, cluster: test}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
dynamic_resources:
  ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}
static_resources:
  clusters:
  - name: xds
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: xds
      endpoints:
      - lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]
  listeners:
  - name: http
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": {FILTERS}network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: main
          access_log: [{http_log}]
          route_config:
            name: routes
            validate_clusters: false
            virtual_hosts:
            - name: any
              domains: ["*"]
              routes:
              - match: {{prefix: /off}}
                route: {{cluster_header: x-cluster}}
                typed_per_filter_config: {{on_demand: {{"@type": {FILTERS}http.on_demand.v3.PerRouteConfig}}}}
              - {{match: {{prefix: /}}, route: {{cluster_header: x-cluster}}}}
          http_filters:
          - name: on_demand
            typed_config:
              "@type": {FILTERS}http.on_demand.v3.OnDemand
              odcds: {{source: {{ads: {{}}, resource_api_version: V3}}, timeout: {timeout}}}
          - {{name: router, typed_config: {{"@type": {FILTERS}http.router.v3.Router}}}}
  - name: tcp
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": {FILTERS}network.tcp_proxy.v3.TcpProxy
          stat_prefix: main
          cluster: raw
          on_demand: {{odcds_config: {{ads: {{}}, resource_api_version: V3}}, timeout: {timeout}}}
          access_log: [{tcp_log}]
"""


def file_log(path: Path, text: str) -> str:
    kind = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
    source = f'{{text_format_source: {{inline_string: "{text}\\n"}}}}'
    return f'{{name: file, typed_config: {{"@type": {kind}, path: {path}, log_format: {source}}}}}'


def cluster(name: str, port: int, **fields: Any) -> Any:
    """With one endpoint, the test's upstream."""
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}
    return json_format.ParseDict(
        {"name": name, "connect_timeout": "1s", "load_assignment": assignment, **fields}, Cluster()
    )


class Side:
    """One proxy, its control plane and an upstream that echoes bodies."""

    def __init__(self, plane: ControlPlane, upstream_port: int, proxy: ProxyProcess, log: Path) -> None:
        self.plane = plane
        self.upstream_port = upstream_port
        self.proxy = proxy
        self.ports = proxy.listener_ports()
        self._log = log

    async def request(self, cluster_name: str, body: bytes = b"", path: str = "/") -> tuple[bytes, bytes]:
        """Status line and body of the answer."""
        named = f"x-cluster: {cluster_name}\r\n" if cluster_name else ""
        head = f"POST {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{named}content-length: {len(body)}\r\n\r\n"
        answer = await self._exchange("http", head.encode() + body)
        first, _, rest = answer.partition(b"\r\n")
        return first, rest.partition(b"\r\n\r\n")[2]

    async def connect(self) -> bytes:
        """What comes back of bytes on a TCP connection: their first word."""
        return (await self._exchange("tcp", b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n"))[:12]

    async def _exchange(self, listener: str, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[listener])
        writer.write(data)
        try:
            async with asyncio.timeout(15.0):
                return await reader.read()
        except ConnectionResetError:
            return b""  # it had not read what the client sent
        finally:
            writer.close()

    async def stream(self, name: str) -> ControlPlaneStream:
        """The stream on which a cluster of this name was asked for."""
        await self.plane.until(lambda: name in self.asked())
        return self.plane.streams[-1]

    def asked(self) -> list[str]:
        return [name for each in self.plane.of_type(CLUSTER_TYPE) for name in each.resource_names_subscribe]

    def log(self, lines: int) -> list[str]:
        """The access log, once it has so many lines."""
        wait_for(lambda: self._log.exists() and len(self._log.read_text().splitlines()) >= lines, "the log", 10.0)
        return self._log.read_text().splitlines()

    def stats(self) -> dict[str, int]:
        found = self.proxy.stats("^(tcp\\.main\\.on_demand|http\\.main\\.(no_cluster|rq_total|downstream_rq_[25]xx))")
        return found | self.proxy.stats("^cluster_manager\\.(active|warming)_clusters$")


@asynccontextmanager
async def side(start: Callable[[str], ProxyProcess], timeout: str) -> AsyncIterator[Side]:
    upstream = await asyncio.start_server(echo, "127.0.0.1", 0)
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "access.log"
        async with upstream, ControlPlane.start() as plane:
            logs = {"http_log": file_log(log, HTTP_FORMAT), "tcp_log": file_log(log, TCP_FORMAT)}
            config = CONFIG.format(FILTERS=FILTERS, port=plane.port, timeout=timeout, **logs)
            proxy = await asyncio.to_thread(start, config)
            try:
                yield Side(plane, upstream.sockets[0].getsockname()[1], proxy, log)
            finally:
                await asyncio.to_thread(proxy.stop)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        body = await reader.readexactly(int(lengths[0].partition(b":")[2])) if lengths else b""
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        return  # a connection that nobody used
    finally:
        writer.close()


async def both(scenario: Callable[[Side], Any], timeout: str = "10s") -> list[Any]:
    """What the scenario gives for ours, and for Envoy."""
    found = []
    for start in (start_meshproxy, start_envoy):
        async with side(start, timeout) as one:
            found.append(await scenario(one))
    return found


async def clusters_that_come(one: Side) -> Any:
    seen: list[Any] = []
    one.plane.set(CLUSTER_TYPE, {"good": cluster("good", one.upstream_port), "raw": cluster("raw", one.upstream_port)})
    seen.append(await one.request("good"))
    seen.append(await one.request("good", b"again"))
    seen.append(await one.request("", b"without a name"))
    seen.append(await one.request("other", b"", "/off"))
    seen.append(await one.connect())
    seen.append(await one.connect())
    seen.append(one.asked())
    seen.append(await asyncio.to_thread(one.log, 6))
    seen.append(await asyncio.to_thread(one.stats))
    return seen


async def clusters_that_are_missing(one: Side) -> Any:
    one.plane.script()
    seen: list[Any] = []
    waiting = [asyncio.create_task(one.request("late")), asyncio.create_task(one.request("late"))]
    stream = await one.stream("late")
    stream.send_delta(CLUSTER_TYPE, [], ["late"], "1")
    seen += [await each for each in waiting]
    again = asyncio.create_task(one.request("late", b"x" * 1000))
    refused = asyncio.create_task(one.request("refused"))
    await one.stream("refused")
    wrong = cluster("refused", one.upstream_port, lb_policy="CLUSTER_PROVIDED")
    late = cluster("late", one.upstream_port)
    stream.send_delta(CLUSTER_TYPE, [resource("late", late), resource("refused", wrong)], [], "2")
    seen.append(await again)
    stream.send_delta(CLUSTER_TYPE, [resource("refused", cluster("refused", one.upstream_port))], [], "3")
    seen.append(await refused)
    raw = asyncio.create_task(one.connect())
    await one.stream("raw")
    stream.send_delta(CLUSTER_TYPE, [], ["raw"], "4")
    seen.append(await raw)
    seen.append(one.asked())
    seen.append(await asyncio.to_thread(one.log, 5))
    seen.append(await asyncio.to_thread(one.stats))
    return seen


async def clusters_that_nobody_knows(one: Side) -> Any:
    one.plane.script()
    seen: list[Any] = [await one.request("nobody"), await one.connect()]
    seen.append(await asyncio.to_thread(one.log, 2))
    seen.append(await asyncio.to_thread(one.stats))
    return seen


@pytest.mark.parametrize(
    ("scenario", "timeout"),
    [
        (clusters_that_come, "10s"),
        # Long: it does not wait until the second request for "late" has come, and a busy machine is late with it.
        pytest.param(clusters_that_are_missing, "10s", marks=pytest.mark.long),
        (clusters_that_nobody_knows, "0.3s"),
    ],
    ids=["come", "missing", "unknown"],
)
async def test_requests_wait_for_their_cluster(scenario: Callable[[Side], Any], timeout: str) -> None:
    ours, envoys = await both(scenario, timeout)
    assert ours == envoys
