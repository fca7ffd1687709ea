"""What the authority's own ports and its SDS count, for Prometheus: read off when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from meshproxy.pilot.authority.serving import MeshTlsEvents
from meshproxy.rpc.server.core import ServerStats
from meshproxy.xds.secret_server import SecretStats

_PREFIX: Final = "meshproxy_authority_"


class AuthorityCollector(Collector):
    """`server` has the authority's own ports, where there are some."""

    def __init__(self, secrets: SecretStats) -> None:
        self.server: ServerStats | None = None
        self.tls: MeshTlsEvents | None = None
        self._secrets = secrets

    def collect(self) -> Iterator[Metric]:
        secrets = self._secrets
        yield GaugeMetricFamily(_PREFIX + "secret_streams", "Streams of SDS.", secrets.streams)
        yield _counter("secret_pushes", "Responses of SDS.", secrets.pushes)
        yield _counter("secret_rejections", "Responses of SDS that were refused.", secrets.refusals)
        yield _counter("secret_streams_refused", "Streams of SDS beyond those of a caller.", secrets.streams_refused)
        if self.server is not None:
            yield from _of_server(self.server)
        if self.tls is not None:
            yield _counter("tls_handshakes", "On its own ports.", self.tls.handshakes)
            yield _counter("tls_failures", "Handshakes that failed on its own ports.", self.tls.failures)


def _of_server(stats: ServerStats) -> Iterator[Metric]:
    yield GaugeMetricFamily(_PREFIX + "connections_active", "To its own ports.", stats.connections_active)
    yield GaugeMetricFamily(_PREFIX + "calls_active", "On its own ports.", stats.calls_active)
    yield _counter("connections", "Taken on its own ports.", stats.connections)
    yield _counter("connections_evicted", "Without a call when there were too many.", stats.connections_evicted)
    yield _counter("connections_refused", "Beyond the limit.", stats.connections_refused)
    yield _counter("peers_refused", "Connections without TLS to be had.", stats.peers_refused)
    yield _counter("connection_errors", "Peers that broke the protocol, or flooded.", stats.connection_errors)
    yield _counter("calls_held_refused", "Calls that came when too much was held.", stats.held_refused)
    calls = CounterMetricFamily(_PREFIX + "calls", "Ended on its own ports, by gRPC status.", labels=["status"])
    for status, number in sorted(stats.statuses.items()):
        calls.add_metric([str(status)], number)
    yield calls


def _counter(name: str, about: str, value: int) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, about, value)
