"""Traces: what each proxy sends to a collector, and what its upstream and its downstream are told."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import yaml
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from tests.differential.cases import get, request
from tests.differential.topic import ROUTER, TYPE, address, cluster, mapping
from tests.support.downstream import exchange
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy
from tests.support.upstream import CLOSE, OK, STALL, Answer, ScriptedUpstream, reply

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
UNSAMPLED = f"00-{TRACE}-{PARENT}-00"
UUID = "dfd375aa-f7e8-4f5e-90f4-537e786fd510"  # 0xdfd375aa % 10000 == 7386
HIDDEN = (b"host", b"x-forwarded-proto", b"x-envoy-expected-rq-timeout-ms", b"x-forwarded-for")

SPAWN = "spawn_upstream_span: true"
NEVER = "random_sampling: { value: 0 }"
DECORATOR = "decorator: { operation: op }"
TOLD = ("x-envoy-decorator-operation", "told")
TELLS = reply(headers=[("x-envoy-decorator-operation", "told")])
TAGS = """
custom_tags:
- { tag: literal, literal: { value: here } }
- { tag: unset, environment: { name: NO_SUCH_VARIABLE } }
- { tag: default, environment: { name: NO_SUCH_VARIABLE, default_value: d } }
- { tag: header, request_header: { name: X-A, default_value: none } }
- { tag: no_header, request_header: { name: x-none } }
- { tag: metadata, metadata: { kind: { route: {} }, metadata_key: { key: ns, path: [{ key: a }, { key: b }] } } }
- { tag: struct, metadata: { kind: { route: {} }, metadata_key: { key: ns, path: [{ key: a }] } } }
- { tag: number, metadata: { kind: { route: {} }, metadata_key: { key: ns, path: [{ key: number }] } } }
- { tag: truth, metadata: { kind: { route: {} }, metadata_key: { key: ns, path: [{ key: truth }] } } }
- { tag: no_metadata, metadata: { kind: { cluster: {} }, metadata_key: { key: ns, path: [{ key: a }] },
    default_value: else } }
- { tag: format, value: "%REQ(x-a)%/%REQ(x-none)%/%RESPONSE_CODE%" }
- { tag: no_value, value: "%REQ(x-none)%" }
- { tag: both, literal: { value: manager } }
- { tag: http.method, literal: { value: STRANGE } }
"""
METADATA = """
metadata: { filter_metadata: { ns: { a: { b: text }, number: 1.5, truth: true } } }
tracing: { custom_tags: [{ tag: both, literal: { value: route } }, { tag: of_route, literal: { value: r } }] }
"""
REQUEST_ID = "type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig"
ALWAYS_ON = (
    "sampler: { name: s, typed_config: { '@type': "
    "type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.AlwaysOnSamplerConfig } }"
)
INTERNAL = "use_remote_address: true\ninternal_address_config: { cidr_ranges: [{ address_prefix: 127.0.0.1 }] }"
RETRY = "retry_policy: { retry_on: 5xx, num_retries: 1, retry_back_off: { base_interval: 0.002s } }"


OF_BOOTSTRAP = "of_bootstrap"


def provider(service: str, more: str = "") -> dict[str, Any]:
    """The tracer, under this service name."""
    uri = {"uri": "http://collector.test/v1/traces", "cluster": "collector", "timeout": "5s"}
    config = {
        "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
        "http_service": {"http_uri": uri},
        "service_name": service,
    }
    return {"name": "otel", "typed_config": config | mapping(more)}


@dataclass(frozen=True)
class Row:
    """A request to a listener of its own, and how many spans come of it.

    `tracing` is YAML of the connection manager's `tracing`, `provider` of its OpenTelemetryConfig, `route` of the route,
    `action` of its RouteAction (to cluster a), `manager` of the connection manager.
    """

    name: str
    headers: Sequence[tuple[str, str]] = ()
    tracing: str = ""
    spans: int = 1
    route: str = ""
    action: str = "cluster: a"
    answers: Sequence[Answer] = (OK,)
    manager: str = ""
    provider: str = ""
    request: bytes = b""
    outbound: bool = False
    differs: str = ""

    @property
    def bytes(self) -> bytes:
        return self.request or get("/x?q=1", *self.headers)

    def listener(self) -> dict[str, Any]:
        named = {"provider": provider(self.name, self.provider)} if self.name != OF_BOOTSTRAP else {}
        tracing = named | mapping(self.tracing)
        route = {"match": {"prefix": "/"}, "route": mapping(self.action)} | mapping(self.route)
        if "direct_response" in route:
            del route["route"]
        host = {"name": "host", "domains": ["*"], "routes": [route]}
        manager = {
            "@type": TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": self.name,
            "http_filters": [ROUTER],
            "tracing": tracing,
            "route_config": {"virtual_hosts": [host]},
        } | mapping(self.manager)
        chain = {"filters": [{"name": "hcm", "typed_config": manager}]}
        direction = {"traffic_direction": "OUTBOUND"} if self.outbound else {}
        return {"name": self.name, "address": address(0), "filter_chains": [chain], **direction}


def trace(name: str, *headers: tuple[str, str], spans: int = 1, tracing: str = "", **more: Any) -> Row:
    """A request that brings these headers."""
    return Row(name, headers, tracing, spans, **more)


def w3c(name: str, value: str, *, spans: int = 1, **more: Any) -> Row:
    """A request with this traceparent."""
    return trace(name, ("traceparent", value), spans=spans, **more)


GRPC = [("content-type", "application/grpc"), ("content-length", "0"), ("grpc-timeout", "1S")]
ROWS = [
    trace("plain"),
    trace(OF_BOOTSTRAP),
    trace("agent", ("user-agent", "ua"), ("x-envoy-downstream-service-cluster", "from")),
    trace("verbose", tracing=f"{SPAWN}\nverbose: true", spans=2),
    trace("not_found", tracing=SPAWN, spans=2, answers=(reply(404),)),
    trace("unavailable", tracing=SPAWN, spans=2, answers=(reply(503),)),
    trace("retried", tracing=SPAWN, spans=3, action=f"cluster: a\n{RETRY}", answers=(CLOSE, OK)),
    trace("refused", tracing=SPAWN, spans=2, action="cluster: dead"),
    trace("no_host", tracing=SPAWN, action="cluster: empty"),
    trace("timed_out", tracing=SPAWN, spans=2, action="cluster: a\ntimeout: 0.05s", answers=(STALL,)),
    trace("direct", route="direct_response: { status: 418, body: { inline_string: tea } }"),
    trace("rewritten", action="cluster: a\nprefix_rewrite: /new\nhost_rewrite_literal: new.test"),
    trace("long_path", tracing="max_path_tag_length: 3"),
    trace("strange_method", request=request("PURGE", "/")),
    trace("posted", request=request("POST", "/", [("content-length", "3")]) + b"abc"),
    trace("grpc_ok", tracing=SPAWN, spans=2, request=request("POST", "/a.B/C", GRPC),
          answers=(reply(headers=[("grpc-status", "0")]),)),
    trace("grpc_internal", tracing=SPAWN, spans=2, request=request("POST", "/a.B/C", GRPC),
          answers=(reply(headers=[("grpc-status", "13"), ("grpc-message", "m")]),)),
    trace("grpc_missing", tracing=SPAWN, spans=2, request=request("POST", "/a.B/C", GRPC),
          answers=(reply(headers=[("grpc-status", "5")]),)),
    # W3C
    w3c("sampled_parent", SAMPLED, tracing=SPAWN, spans=2),
    w3c("unsampled_parent", UNSAMPLED, tracing=SPAWN, spans=0),
    trace("tracestate", ("traceparent", SAMPLED), ("tracestate", "a=1"), ("tracestate", "b=2"), ("baggage", "k=v")),
    trace("tracestate_alone", ("tracestate", "a=1")),
    w3c("later_version", SAMPLED.replace("00-", "01-", 1)),
    w3c("upper_case", SAMPLED.upper()),
    w3c("more_flags", SAMPLED[:-2] + "03"),
    w3c("garbage", "garbage", spans=0),
    w3c("too_long", SAMPLED + "-x", spans=0),
    w3c("zero_trace", SAMPLED.replace(TRACE, "0" * 32), spans=0),
    w3c("zero_span", SAMPLED.replace(PARENT, "0" * 16), spans=0),
    w3c("always_on", UNSAMPLED, provider=ALWAYS_ON),
    w3c("always_on_but_not_here", SAMPLED, provider=ALWAYS_ON, tracing=NEVER, spans=0),
    # sampling
    trace("never", tracing=NEVER, spans=0),
    w3c("never_with_parent", SAMPLED, tracing=NEVER, spans=0),
    trace("client", ("x-client-trace-id", "c"), tracing=NEVER),
    trace("client_not_allowed", ("x-client-trace-id", "c"), tracing=f"{NEVER}\nclient_sampling: {{ value: 0 }}",
          spans=0),
    trace("forced", ("x-envoy-force-trace", "1"), tracing=NEVER, manager=INTERNAL),
    trace("forced_from_outside", ("x-envoy-force-trace", "1"), tracing=NEVER, spans=0),
    trace("none_at_all", ("x-client-trace-id", "c"), tracing="overall_sampling: { value: 0 }", spans=0),
    trace("by_id", ("x-request-id", UUID), tracing="random_sampling: { value: 73.87 }"),
    trace("not_by_id", ("x-request-id", UUID), tracing="random_sampling: { value: 73.86 }", spans=0),
    trace("decided_before", ("x-request-id", UUID.replace("-4", "-9")), tracing=NEVER),
    trace("forced_before", ("x-request-id", UUID.replace("-4", "-a")), tracing=NEVER),
    trace("decided_against", ("x-request-id", UUID.replace("-4", "-9")), tracing="overall_sampling: { value: 0 }",
          spans=0),
    trace("no_uuid", ("x-request-id", "nothing"), spans=0),
    trace("route_never", route="tracing: { random_sampling: { numerator: 0 } }", spans=0),
    trace("route_always", route="tracing: {}", tracing=NEVER),
    trace("edge_keeps_id", ("x-request-id", UUID.replace("-4", "-9")), tracing=NEVER, spans=0,
          manager="use_remote_address: true\npreserve_external_request_id: true"),
    trace("not_packed", manager=f"request_id_extension: {{ typed_config: {{ '@type': {REQUEST_ID}, "
          "pack_trace_reason: false } }"),
    trace("not_by_any_id", ("x-request-id", UUID), tracing=NEVER,
          manager=f"request_id_extension: {{ typed_config: {{ '@type': {REQUEST_ID}, "
          "use_request_id_for_trace_sampling: false } }"),
    # tags and names
    trace("tags", ("x-a", "1"), ("x-a", "2"), tracing=f"{SPAWN}{TAGS}", spans=2, route=METADATA),
    trace("decorated", route=DECORATOR, tracing=SPAWN, spans=2),
    trace("decorated_by_request", TOLD, route=DECORATOR),
    trace("decorated_by_response", route=DECORATOR, answers=(TELLS,)),
    trace("decorated_quietly", route="decorator: { operation: op, propagate: false }", answers=(TELLS,)),
    trace("decorated_untraced", route=DECORATOR, tracing=NEVER, spans=0),
    w3c("decorated_garbage", "garbage", route=DECORATOR, spans=0),
    trace("told", TOLD),
    trace("outbound", TOLD, outbound=True, answers=(TELLS,)),
    trace("outbound_decorated", TOLD, outbound=True, route=DECORATOR, tracing=SPAWN, spans=2),
    trace("outbound_missing", outbound=True, answers=(reply(404),)),
    trace("operation", TOLD, tracing=f"{SPAWN}\noperation: '%REQ(:path)% %RESPONSE_CODE%'\n"
          "upstream_operation: 'up %REQ(:method)%'", spans=2, route=DECORATOR),
    trace("operation_of_route", TOLD, outbound=True, answers=(TELLS,), spans=2, tracing=f"{SPAWN}\noperation: hcm",
          route="tracing: { operation: 'r %REQ(x-none)%', upstream_operation: u }"),
    # on purpose not the same
    trace("b3", ("b3", f"{TRACE}-{PARENT}-1"), differs="b3"),
    trace("b3_multi", ("x-b3-traceid", TRACE), ("x-b3-spanid", PARENT), ("x-b3-sampled", "1"), differs="b3"),
    trace("redirected", spans=1, action="cluster: a\ninternal_redirect_policy: {}", differs="redirected-trace",
          answers=(reply(302, headers=[("location", "http://test/x")]), OK)),
]  # fmt: skip
DIFFERENCES = {row.differs for row in ROWS if row.differs} | {"empty-tracestate", "telemetry-sdk"}


class Traced:
    """One proxy, its upstream and its collector."""

    def __init__(self, start: Any) -> None:
        self.upstream = ScriptedUpstream(("a",))
        self.collector = ScriptedUpstream(("collector",))
        ports = {**self.upstream.ports, **self.collector.ports, "dead": 1}
        names = {"a": "hosts: [a]", "collector": "hosts: [collector]", "dead": "hosts: [dead]", "empty": "hosts: []"}
        runtime = {"tracing": {"opentelemetry": {"min_flush_spans": 1, "flush_interval_ms": 100}}}
        tree = {
            "node": {"id": "node", "cluster": "cluster", "locality": {"zone": "zone"}},
            "admin": {"address": address(0)},
            "tracing": {"http": provider(OF_BOOTSTRAP)},
            "layered_runtime": {"layers": [{"name": "s", "static_layer": runtime}]},
            "static_resources": {
                "listeners": [row.listener() for row in ROWS],
                "clusters": [cluster(name, text, ports) for name, text in names.items()],
            },
        }
        self.proxy: ProxyProcess = start(yaml.dump(tree, sort_keys=False))
        self.ports = self.proxy.listener_ports()
        self.port_names = {str(port): name for name, port in ports.items()}

    def close(self) -> None:
        self.proxy.stop()
        self.upstream.close()
        self.collector.close()

    def exports(self) -> list[Any]:
        """What the collector got so far, decoded: the ResourceSpans."""
        found: list[Any] = []
        for seen in list(self.collector.script.seen):
            if seen.whole:
                message: Any = trace_service_pb2.ExportTraceServiceRequest()
                message.ParseFromString(seen.message.body)
                found += message.resource_spans
        return found

    def spans(self, row: Row) -> list[Any]:
        """Those of the row: the stream's before its attempts', and of those the oldest first."""
        found: list[Any] = []
        for each in self.exports():
            if text_attributes(each.resource)["service.name"] == row.name:
                for scope in each.instrumentation_library_spans:  # `scope_spans`, as the field was called before
                    found += scope.spans
        ids = {span.span_id for span in found}
        return sorted(found, key=lambda span: (span.parent_span_id in ids, span.start_time_unix_nano))

    def run(self, row: Row) -> dict[str, Any]:
        """What all parties see of the row's request, comparable between proxies."""
        script = self.upstream.play(row.answers)
        response = exchange(self.ports[row.name], row.bytes)
        wait_for(lambda: len(self.spans(row)) >= row.spans, f"{row.spans} spans of {row.name}")
        spans = self.spans(row)
        ids = {span.span_id.hex(): f"<{span.name}#{number}>" for number, span in enumerate(spans)}
        hide = partial(
            self._hide, ids | {TRACE: "<trace>", PARENT: "<parent>"}, {span.trace_id.hex() for span in spans}
        )
        upstream = [
            sorted(hide(f"{name.decode()}: {value.decode()}") for name, value in seen.message.headers
                   if name.lower() not in HIDDEN)
            for seen in script.seen
        ]  # fmt: skip
        told = response.get(b"x-envoy-decorator-operation")
        return {
            "status": response.status,
            "response": told,
            "upstream": [[line for line in lines if line != "tracestate: "] for lines in upstream],
            "spans": [described(span, ids, hide) for span in spans],
        }

    def _hide(self, ids: dict[str, str], traces: set[str], text: str) -> str:
        """Without what is random or another process' port."""
        for found, name in ids.items():
            text = text.replace(found, name)
        for found in traces:
            text = text.replace(found, "<trace>")
        text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-(.)[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", r"<uuid \1>", text)
        text = re.sub(r"00-[0-9a-f]{32}-", "00-<new>-", text)
        text = re.sub(r"-[0-9a-f]{16}-", "-<new>-", text)
        return re.sub(r"127\.0\.0\.1:(\d+)", lambda match: f"<{self.port_names.get(match[1], '?')}>", text)


def text_attributes(message: Any) -> dict[str, str]:
    """Attributes, all of which are text."""
    assert all(each.value.WhichOneof("value") == "string_value" for each in message.attributes)
    return {each.key: each.value.string_value for each in message.attributes}


def described(span: Any, ids: dict[str, str], hide: Any) -> dict[str, Any]:
    """A span without its times."""
    parent = span.parent_span_id.hex()
    assert span.start_time_unix_nano <= span.end_time_unix_nano
    return {
        "name": span.name,
        "kind": span.kind,
        "parent": "<parent>" if parent == PARENT else ids.get(parent, parent),
        "trace_state": span.trace_state,
        "status": span.status.code,
        "attributes": {key: hide(value) for key, value in text_attributes(span).items()},
        "events": sorted(event.name for event in span.events),
        "flags": [(field.field_number, field.data) for field in unknown(span)],
    }


def unknown(message: Any) -> Any:
    """Fields that the generated module is too old for."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    return UnknownFieldSet(message)


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Traced, Traced]]:
    with ExitStack() as stack:
        envoy = Traced(start_envoy)
        stack.callback(envoy.close)
        ours = Traced(start_meshproxy)
        stack.callback(ours.close)
        yield envoy, ours


@pytest.mark.parametrize("row", [row for row in ROWS if not row.differs], ids=lambda row: row.name)
def test_same_as_envoy(both: tuple[Traced, Traced], row: Row) -> None:
    envoy, ours = both
    assert ours.run(row) == envoy.run(row)


@pytest.mark.parametrize("row", [row for row in ROWS if row.differs == "b3"], ids=lambda row: row.name)
def test_b3_is_continued(both: tuple[Traced, Traced], row: Row) -> None:
    envoy, ours = both
    ignored = envoy.run(row)
    assert ignored["spans"][0]["parent"] == ""
    continued = ours.run(row)
    (span,) = continued["spans"]
    assert span["parent"] == "<parent>"
    assert f"traceparent: 00-<trace>-<{span['name']}#0>-01" in continued["upstream"][0]
    if row.name == "b3":
        assert f"b3: <trace>-<{span['name']}#0>-1-<parent>" in continued["upstream"][0]
    else:
        told = {line for line in continued["upstream"][0] if line.startswith("x-b3-")}
        assert told == {
            "x-b3-traceid: <trace>",
            f"x-b3-spanid: <{span['name']}#0>",
            "x-b3-parentspanid: <parent>",
            "x-b3-sampled: 1",
        }


def test_a_redirect_goes_on_in_the_same_trace(both: tuple[Traced, Traced]) -> None:
    (row,) = (row for row in ROWS if row.name == "redirected")
    envoy, ours = both
    assert [span["parent"] for span in envoy.run(row)["spans"]] == [""]
    assert ours.run(row)["status"] == 200
    wait_for(lambda: len(ours.spans(row)) == 2, "two spans")
    first, second = ours.spans(row)
    assert second.parent_span_id == first.span_id
    assert second.trace_id == first.trace_id


def test_an_empty_tracestate_is_not_sent(both: tuple[Traced, Traced]) -> None:
    told = []
    for side in both:
        script = side.upstream.play()
        exchange(side.ports["never"], get("/"))
        told.append(script.seen[0].message.get(b"tracestate"))
    assert told == [b"", None]


def test_who_sends_the_spans(both: tuple[Traced, Traced]) -> None:
    exchange(both[0].ports["plain"], get("/"))
    exchange(both[1].ports["plain"], get("/"))
    of_both = [text_attributes(wait_for(side.exports, "spans")[0].resource) for side in both]
    assert [resource["telemetry.sdk.name"] for resource in of_both] == ["envoy", "meshproxy"]
    assert of_both[0].keys() == of_both[1].keys()
    for side in both:
        (first, *_) = side.collector.script.seen
        assert first.message.start_line == b"POST /v1/traces HTTP/1.1"
        assert first.message.get(b"host") == b"collector.test"
        assert first.message.get(b"content-type") == b"application/x-protobuf"


def test_what_was_not_to_be_traced_was_not(both: tuple[Traced, Traced]) -> None:
    for row in ROWS:
        if not row.spans:
            assert both[1].spans(row) == [], row.name
    names = ["random_sampling", "service_forced", "client_enabled", "not_traceable", "health_check"]
    for row in ROWS:
        if not row.differs:
            of_both = [side.proxy.stats(f"^http.{row.name}.tracing") for side in both]
            counts = [{name: stats.get(f"http.{row.name}.tracing.{name}") for name in names} for stats in of_both]
            assert counts[0] == counts[1], row.name
