"""The epilogue: one request through two proxies, and its trace as a tree, from what both sent to a collector.

The collector is a few lines here; the proxies run examples/tracing/envoy.yaml, one side of it each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final, cast

import httptools
import yaml
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from meshproxy.demo.checks import Finding
from meshproxy.demo.processes import DIRECT, DemoError, Processes, Proxy
from meshproxy.demo.screen import BOLD, DIM, Screen

_ATTEMPT_S: Final = 10.0
_BAR: Final = 30
_SPANS: Final = 4  # the request's and its attempt's, at each of the two proxies
_OK: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_SCOPE_SPANS: Final = 2  # ResourceSpans.scope_spans and ScopeSpans.spans, whatever a generated module calls them
_SPANS_OF_SCOPE: Final = 2


@dataclass(frozen=True)
class Span:
    """What the tree shows of a span. Times are in ns."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int


def spans_of(body: bytes) -> list[Span]:
    """Those of an OTLP request."""
    message: Any = trace_service_pb2.ExportTraceServiceRequest()
    message.ParseFromString(body)
    found: list[Span] = []
    for resource in message.resource_spans:
        names = [each.value.string_value for each in resource.resource.attributes if each.key == "service.name"]
        for scope in _by_number(resource, _SCOPE_SPANS):
            found += [
                Span(
                    names[0] if names else "",
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                )
                for span in _by_number(scope, _SPANS_OF_SCOPE)
            ]
    return found


def _by_number(message: Any, number: int) -> Iterable[Any]:
    values: Iterable[Any] = getattr(message, message.DESCRIPTOR.fields_by_number[number].name)
    return values


class Collector:
    """Keeps what OTLP exporters send to it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Export(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        self._server.close()


class _Export(asyncio.Protocol):
    """A connection of an exporter's."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        self._collector.spans += spans_of(self._body)
        self._transport.write(_OK)


def tree(spans: list[Span]) -> list[str]:
    """One trace, a line for each span: who, what, how long, and when in the whole."""
    children: dict[str, list[Span]] = {}
    known = {span.span_id for span in spans}
    for span in sorted(spans, key=lambda span: span.start_ns):
        children.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)
    start = min(span.start_ns for span in spans)
    whole = max(max(span.end_ns for span in spans) - start, 1)
    lines: list[str] = []

    def add(span: Span, depth: int) -> None:
        title = f"{'  ' * depth}{span.service}: {span.name}"
        left = (span.start_ns - start) * _BAR // whole
        width = max((span.end_ns - span.start_ns) * _BAR // whole, 1)
        lines.append(f"  {title:<40}{(span.end_ns - span.start_ns) / 1e6:8.2f} ms  {' ' * left}{'━' * width}")
        for child in children.get(span.span_id, []):
            add(child, depth + 1)

    for root in children.get("", []):
        add(root, 0)
    return lines


def one_side(text: str, listener: str, ports: Mapping[str, int]) -> str:
    """The example with this listener alone, on a free port; `ports` are those of clusters."""
    config = yaml.safe_load(text)
    static = config["static_resources"]
    static["listeners"] = [each for each in static["listeners"] if each["name"] == listener]
    for named in (config["admin"], *static["listeners"]):
        named["address"]["socket_address"]["port_value"] = 0
    for cluster in static["clusters"]:
        for locality in cluster["load_assignment"]["endpoints"]:
            for each in locality["lb_endpoints"]:
                each["endpoint"]["address"]["socket_address"]["port_value"] = ports.get(cluster["name"], 1)
    return yaml.safe_dump(config, sort_keys=False)


async def show_a_trace(screen: Screen, processes: Processes, directory: Path, service_port: int) -> Finding:
    """Send one request through two proxies to the service, draw its trace, and say whether it is whole.

    Raises DemoError when there is none.
    """
    text = resources.files("meshproxy.demo").joinpath("tracing.yaml").read_text(encoding="utf-8")
    collector = Collector()
    await collector.start()
    try:
        ports = {"service": service_port, "collector": collector.port}
        sidecar = await _start(processes, directory, "sidecar", one_side(text, "sidecar", ports))
        front = await _start(processes, directory, "front", one_side(text, "front", {**ports, "sidecar": sidecar.port}))
        screen.say("Epilogue: one request, two proxies, one trace", BOLD)
        for name, proxy in (("front", front), ("sidecar", sidecar)):
            screen.say(f"  {name:<8}http://127.0.0.1:{proxy.port}   process {proxy.child.pid}")
        screen.say("  Both run examples/tracing/envoy.yaml, a side each, and send their spans by OTLP over HTTP.", DIM)
        await asyncio.to_thread(_get, f"http://127.0.0.1:{front.port}/basket")
        spans = await _wait_for_spans(collector, (front, sidecar))
    finally:
        collector.close()
    screen.say()
    screen.say(f"  trace {spans[0].trace_id}", DIM)
    for line in tree(spans):
        screen.say(line)
    screen.say()
    whole = len({span.trace_id for span in spans}) == 1 and len([span for span in spans if not span.parent_id]) == 1
    services = sorted({span.service for span in spans})
    return Finding(
        whole and services == ["front", "sidecar"],
        f"one trace of {len(spans)} spans crosses two proxies: {' and '.join(services)}",
    )


async def _start(processes: Processes, directory: Path, name: str, text: str) -> Proxy:
    place = directory / f"of-{name}"
    place.mkdir()
    config = place / "envoy.yaml"
    config.write_text(text, encoding="utf-8")
    proxy = Proxy(processes, config, name)
    await proxy.wait_until_it_serves(name)
    return proxy


async def _wait_for_spans(collector: Collector, proxies: Iterable[Proxy]) -> list[Span]:
    end = asyncio.get_running_loop().time() + _ATTEMPT_S
    while len(collector.spans) < _SPANS:
        if asyncio.get_running_loop().time() > end:
            logs = "\n".join(proxy.child.log_end() for proxy in proxies)
            raise DemoError(f"of {_SPANS} spans {len(collector.spans)} came in {_ATTEMPT_S:.0f} s:\n{logs}")
        await asyncio.sleep(0.02)
    return collector.spans


def _get(url: str) -> None:
    with DIRECT.open(url, timeout=_ATTEMPT_S) as answer:
        answer.read()
