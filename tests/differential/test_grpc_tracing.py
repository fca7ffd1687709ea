"""Spans by OTLP over gRPC: what each proxy's collector is sent, and what comes of what it answers."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from tests.differential.cases import get
from tests.differential.test_tracing import text_attributes
from tests.differential.topic import ROUTER, TYPE, address, mapping
from tests.support.downstream import exchange
from tests.support.http2_upstream import OPENING, Http2Answer, Http2Seen, Http2Upstream, frames_of
from tests.support.http2_wire import data, headers, reset
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy

HEAD = [(":status", "200"), ("content-type", "application/grpc")]
TRACER = "tracing.opentelemetry."
CLUSTER = "cluster.collector."
COUNTERS = (
    *("upstream_cx_http2_total", "upstream_rq_total", "upstream_rq_timeout", "upstream_rq_tx_reset"),
    *("upstream_rq_rx_reset", "upstream_rq_completed", "upstream_rq_200", "upstream_rq_404", "upstream_rq_503"),
    *("internal.upstream_rq_200", "retry.upstream_rq_completed", "retry.upstream_rq_200", "retry.upstream_rq_503"),
    *("upstream_rq_retry", "upstream_rq_retry_success", "upstream_rq_retry_limit_exceeded"),
    *("upstream_rq_retry_overflow", "upstream_rq_retry_backoff_exponential", "upstream_rq_retry_backoff_ratelimited"),
)
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def taken(stream: int) -> bytes:
    """An empty ExportTraceServiceResponse."""
    return headers(stream, HEAD) + data(stream, bytes(5)) + headers(stream, [("grpc-status", "0")], end=True)


def refused(stream: int) -> bytes:
    return headers(stream, [*HEAD, ("grpc-status", "14"), ("grpc-message", "no")], end=True)


OK = Http2Answer(taken)
REFUSED = Http2Answer(refused)


@dataclass(frozen=True)
class Row:
    """A collector's `grpc_service` in YAML. `differs` is a key of the documented differences, `envoy` and `ours` the
    fields that only the one sends; `timeout` is what we tell the collector, and Envoy never does."""

    name: str
    service: str = "envoy_grpc: { cluster_name: collector }"
    answer: Http2Answer = OK
    differs: str = ""
    envoy: tuple[tuple[str, str], ...] = ()
    ours: tuple[tuple[str, str], ...] = ()
    timeout: str = "10000m"
    calls: int = 1

    def listener(self, port: int) -> dict[str, Any]:
        """`port` is the collector's."""
        config = {
            "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
            "grpc_service": mapping(self.service.replace("@port@", str(port))),
            "service_name": self.name,
        }
        route = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
        host = {"name": "host", "domains": ["*"], "routes": [route]}
        manager = {
            "@type": TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": self.name,
            "http_filters": [ROUTER],
            "tracing": {"provider": {"name": "otel", "typed_config": config}},
            "route_config": {"virtual_hosts": [host]},
        }
        chain = {"filters": [{"name": "hcm", "typed_config": manager}]}
        return {"name": self.name, "address": address(0), "filter_chains": [chain]}


ROWS = [
    Row("plain"),
    Row("authority", "envoy_grpc: { cluster_name: collector, authority: some.host }"),
    Row("skip_envoy_headers", "envoy_grpc: { cluster_name: collector, skip_envoy_headers: true }"),
    Row(
        "initial_metadata",
        "{ envoy_grpc: { cluster_name: collector }, initial_metadata: [{ key: X-A, value: a }, { key: x-a, value: b }, "
        "{ key: x-b-bin, value: abcdef }] }",
    ),
    Row(
        "bytes",
        "{ envoy_grpc: { cluster_name: collector }, initial_metadata: [{ key: x-b-bin, value: bytes }] }",
        differs="metadata-padding",
        envoy=(("x-b-bin", "Ynl0ZXM="),),
        ours=(("x-b-bin", "Ynl0ZXM"),),
    ),
    Row(
        "formats",
        "{ envoy_grpc: { cluster_name: collector }, initial_metadata: [{ key: x-a, value: '100%%' }] }",
        differs="metadata-without-a-stream",
        envoy=(("x-a", "100%%"),),
        ours=(("x-a", "100%"),),
    ),
    Row(
        "timeout",
        "{ envoy_grpc: { cluster_name: collector }, timeout: 7s }",
        differs="export-timeout",
        timeout="7000m",
    ),
]
LOST = [
    Row("refused", answer=REFUSED, differs="lost-spans"),
    Row("no_trailers", answer=Http2Answer(lambda stream: headers(stream, HEAD) + data(stream, bytes(5), end=True)),
        differs="lost-spans"),
    Row("not_grpc", answer=Http2Answer(lambda stream: headers(stream, [(":status", "404")], end=True)),
        differs="lost-spans"),
    Row("reset", answer=frames_of(reset), differs="lost-spans"),
]  # fmt: skip
RETRIES = [
    Row(
        "unavailable",
        "{ envoy_grpc: { cluster_name: collector }, retry_policy: { retry_on: unavailable } }",
        REFUSED,
        calls=2,
    ),
    Row("other_code", "{ envoy_grpc: { cluster_name: collector }, retry_policy: { retry_on: internal } }", REFUSED),
    Row(
        "twice",
        "{ envoy_grpc: { cluster_name: collector }, "
        "retry_policy: { retry_on: '5xx,unavailable', num_retries: 2, retry_back_off: { base_interval: 0.001s } } }",
        REFUSED,
        calls=3,
    ),
    Row(
        "http_status",
        "{ envoy_grpc: { cluster_name: collector }, retry_policy: { retry_on: 5xx } }",
        Http2Answer(lambda stream: headers(stream, [(":status", "503")], end=True)),
        calls=2,
    ),
    Row(
        "reset_is_retried",
        "{ envoy_grpc: { cluster_name: collector }, retry_policy: { retry_on: reset } }",
        frames_of(reset),
        calls=2,
    ),
    Row(
        "in_trailers",
        "{ envoy_grpc: { cluster_name: collector }, retry_policy: { retry_on: unavailable } }",
        Http2Answer(lambda stream: headers(stream, HEAD) + headers(stream, [("grpc-status", "14")], end=True)),
    ),
]
GOOGLE = Row(
    "google",
    "{ google_grpc: { target_uri: '127.0.0.1:@port@', stat_prefix: g }, "
    "initial_metadata: [{ key: x-a, value: a }, { key: x-b-bin, value: abcdef }] }",
)
DIFFERENCES = {row.differs for row in [*ROWS, *LOST] if row.differs}


class Traced:
    """One proxy and its collector."""

    def __init__(self, start: Any) -> None:
        self.collector = Http2Upstream({"collector": OPENING})
        runtime = {"tracing": {"opentelemetry": {"min_flush_spans": 1, "flush_interval_ms": 600_000}}}
        options = {
            "@type": TYPE + "upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        port = self.collector.ports["collector"]
        host = {"endpoint": {"address": address(port)}}
        cluster = {
            "name": "collector",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
            "load_assignment": {"cluster_name": "collector", "endpoints": [{"lb_endpoints": [host]}]},
        }
        tree = {
            "node": {"id": "node", "cluster": "cluster"},
            "admin": {"address": address(0)},
            "layered_runtime": {"layers": [{"name": "s", "static_layer": runtime}]},
            "static_resources": {
                "listeners": [row.listener(port) for row in [*ROWS, *LOST, *RETRIES, GOOGLE]],
                "clusters": [cluster],
            },
        }
        self.proxy: ProxyProcess = start(yaml.dump(tree, sort_keys=False))
        self.ports = self.proxy.listener_ports()

    def close(self) -> None:
        self.proxy.stop()
        self.collector.close()

    def run(self, row: Row) -> Http2Seen:
        """The last of the calls that the row's request makes, when it is over."""
        self.collector.play([row.answer])
        assert exchange(self.ports[row.name], get("/")).status == 200
        self.collector.wait_over(row.calls)
        assert len(self.collector.script.seen) == row.calls
        return self.collector.script.seen[-1]

    def stats(self, pattern: str) -> Counter[str]:
        """Counters and gauges, 0 where there is none."""
        return Counter(self.proxy.stats(pattern))

    def wait_counted(self, before: Counter[str]) -> Counter[str]:
        """What the tracer has counted since, once it has counted something."""
        wait_for(lambda: self.stats(TRACER) != before, "a span to be counted")
        return self.stats(TRACER) - before

    def counted(self, *rows: Row) -> dict[str, int]:
        """What the calls of these rows count in their cluster."""
        before = self.stats(CLUSTER)
        for row in rows:
            self.run(row)
        calls = sum(row.calls for row in rows)
        total, active = f"{CLUSTER}upstream_rq_total", f"{CLUSTER}upstream_rq_active"
        wait_for(lambda: self.stats(CLUSTER)[total] - before[total] == calls, "all calls")
        wait_for(lambda: not self.stats(CLUSTER)[active], "the calls to end")
        counts = self.stats(CLUSTER) - before
        return {name: counts[CLUSTER + name] for name in COUNTERS}


def described(seen: Http2Seen) -> tuple[list[tuple[str, str]], list[Any]]:
    """The fields of a call, and of whom its spans are with their names."""
    (head,) = seen.stream.parts
    message: Any = trace_service_pb2.ExportTraceServiceRequest()
    assert head.body[:5] == b"\0" + (len(head.body) - 5).to_bytes(4, "big")
    message.ParseFromString(head.body[5:])
    found = [
        (text_attributes(each.resource)["service.name"], [span.name for span in scope.spans])
        for each in message.resource_spans
        for scope in each.instrumentation_library_spans
    ]
    return [field for field in head.fields if field[0] != "user-agent"], found


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Traced, Traced]]:
    with ExitStack() as stack:
        envoy = Traced(start_envoy)
        stack.callback(envoy.close)
        ours = Traced(start_meshproxy)
        stack.callback(ours.close)
        yield envoy, ours


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_same_call_as_envoys(both: tuple[Traced, Traced], row: Row) -> None:
    of_envoy, of_us = (described(side.run(row)) for side in both)
    of_us[0].remove(("grpc-timeout", row.timeout))
    assert all(
        side.collector.script.seen[0].stream.parts[0].get("user-agent").startswith("OTel-OTLP-Exporter-")
        for side in both
    )
    assert of_us[1] == of_envoy[1] == [(row.name, ["ingress"])]
    assert (":path", EXPORT) in of_envoy[0]
    assert sorted(set(of_envoy[0]) - set(of_us[0])) == list(row.envoy)
    assert sorted(set(of_us[0]) - set(of_envoy[0])) == list(row.ours)
    if not row.ours:
        assert of_us[0] == of_envoy[0]


def test_a_collector_that_grpcio_asks(both: tuple[Traced, Traced]) -> None:
    compared = [":method", ":path", ":authority", "te", "content-type", "x-a", "x-b-bin"]
    of_both = []
    for side in both:
        seen = side.run(GOOGLE)
        spans = described(seen)[1]
        of_both.append(([seen.stream.parts[0].get(name) for name in compared], spans))
    (of_envoy, envoys_spans), (of_us, our_spans) = of_both
    assert our_spans == envoys_spans == [("google", ["ingress"])]
    assert of_us[:2] == of_envoy[:2] == ["POST", EXPORT]
    assert of_us[3:] == of_envoy[3:]


@pytest.mark.parametrize("row", LOST, ids=lambda row: row.name)
def test_spans_that_the_collector_does_not_take_are_lost(both: tuple[Traced, Traced], row: Row) -> None:
    counted = []
    for side in both:
        before = side.stats(TRACER)
        side.run(row)
        counted.append({**side.wait_counted(before)})
    assert counted == [{f"{TRACER}spans_sent": 1}, {f"{TRACER}spans_dropped": 1}]


@pytest.mark.parametrize("row", RETRIES, ids=lambda row: row.name)
def test_retries_as_envoy_makes_them(both: tuple[Traced, Traced], row: Row) -> None:
    envoy, ours = both
    assert ours.counted(row) == envoy.counted(row)


def test_stats_of_the_cluster(both: tuple[Traced, Traced]) -> None:
    envoy, ours = both
    assert ours.counted(ROWS[0], *LOST) == envoy.counted(ROWS[0], *LOST)
