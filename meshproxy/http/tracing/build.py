"""From `HttpConnectionManager.tracing` (or the bootstrap's) to the Tracing that a connection manager asks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from envoy.config.trace.v3 import opentelemetry_pb2
from envoy.extensions.request_id.uuid.v3 import uuid_pb2
from envoy.extensions.tracers.opentelemetry.resource_detectors.v3 import (
    environment_resource_detector_pb2,
    static_config_resource_detector_pb2,
)
from envoy.extensions.tracers.opentelemetry.samplers.v3 import always_on_sampler_pb2

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.registry import Registry
from meshproxy.config.values import bool_or, int_or, milliseconds
from meshproxy.http.grpc.service import build_grpc_service
from meshproxy.http.tracing.exporter import ExportSettings, SpanExporter, TracerStats
from meshproxy.http.tracing.otlp import encode_resource, encode_scope
from meshproxy.http.tracing.sender import GrpcSender, HttpSender, SpanSender
from meshproxy.http.tracing.tracing import Tracing, TracingStats
from meshproxy.observe.formatter import FormatError, parse_format
from meshproxy.route.tracing import RouteTracing, build_manager_sampling, build_names_and_tags
from meshproxy.version import __version__

_NAME: Final = "meshproxy"
_USER_AGENT: Final = f"OTel-OTLP-Exporter-{_NAME}/{__version__}".encode()
_DEFAULT_MAX_SPANS: Final = 1024
_DEFAULT_FLUSH_MS: Final = 5000
_DEFAULT_MIN_SPANS: Final = 5
_DEFAULT_MAX_PATH: Final = 256

# (message, its path, context, the Tracing to complete)
ProviderBuilder = Callable[[Any, str, BuildContext, Tracing], None]
# (message) -> attributes
ResourceDetector = Callable[[Any], dict[str, str]]

TRACERS: Final[Registry[ProviderBuilder]] = Registry("tracing provider")
RESOURCE_DETECTORS: Final[Registry[ResourceDetector]] = Registry("resource detector")
SAMPLERS: Final[Registry[bool]] = Registry("sampler")
REQUEST_IDS: Final[Registry[bool]] = Registry("request ID extension")


def build_tracing(message: Any, path: str, context: BuildContext) -> Tracing | None:
    """Of an HttpConnectionManager; None where it does not trace. All errors go to the context."""
    stats = context.scope(f"{context.stat_prefix}tracing.", TracingStats)
    if not message.HasField("tracing"):
        return None
    where, config = child(path, "tracing"), message.tracing
    defaults = RouteTracing(build_manager_sampling(config, context.runtime))
    build_names_and_tags(defaults, config, where, context)
    tracing = Tracing(defaults, stats, None)
    tracing.egress = context.outbound
    tracing.spawns_attempts = config.spawn_upstream_span.value
    tracing.verbose = config.verbose
    tracing.max_path_bytes = int_or(config, "max_path_tag_length", _DEFAULT_MAX_PATH)
    tracing.node = context.service_node.encode()
    tracing.zone = context.service_zone.encode()
    tracing.packs_reason, tracing.by_request_id = build_request_id(message, path, context)
    if config.HasField("provider"):
        _build_provider(config.provider, child(where, "provider"), context, tracing)
    elif context.tracing_provider is not None:
        _build_provider(context.tracing_provider, "tracing.http", context, tracing)
    return tracing


def build_request_id(message: Any, path: str, context: BuildContext) -> tuple[bool, bool]:
    """pack_trace_reason and use_request_id_for_trace_sampling of the connection manager's `request_id_extension`."""
    extension = message.request_id_extension
    if not extension.HasField("typed_config"):
        return True, True
    found = REQUEST_IDS.find(extension.typed_config, f"{path}.request_id_extension.typed_config", context)
    if found is None:
        return True, True
    packs = bool_or(found[0], "pack_trace_reason", True)
    return packs, bool_or(found[0], "use_request_id_for_trace_sampling", True)


def _build_provider(message: Any, path: str, context: BuildContext, tracing: Tracing) -> None:
    where = child(path, "typed_config")
    found = TRACERS.find(message.typed_config, where, context)
    if found is not None:
        found[1](found[0], where, context, tracing)


def _build_opentelemetry(message: Any, path: str, context: BuildContext, tracing: Tracing) -> None:
    if message.HasField("sampler"):
        where = child(child(path, "sampler"), "typed_config")
        tracing.always_on = SAMPLERS.find(message.sampler.typed_config, where, context) is not None
    attributes = _resource(message, path, context)
    sender = _sender(message, path, context)
    if sender is None:
        return
    settings = ExportSettings(encode_resource(attributes), encode_scope(_NAME, __version__))
    settings.max_spans = int_or(message, "max_cache_size", _DEFAULT_MAX_SPANS)
    runtime = context.runtime
    settings.flush_interval_ms = runtime.integer("tracing.opentelemetry.flush_interval_ms", _DEFAULT_FLUSH_MS)
    settings.min_flush_spans = runtime.integer("tracing.opentelemetry.min_flush_spans", _DEFAULT_MIN_SPANS)
    stats = context.scope("tracing.opentelemetry.", TracerStats)
    tracing.exporter = SpanExporter(settings, sender, stats, context.services)
    context.keep(tracing.exporter)


def _sender(message: Any, path: str, context: BuildContext) -> SpanSender | None:
    """How spans travel; None with an error."""
    if message.HasField("grpc_service") == message.HasField("http_service"):
        context.errors.add(child(path, "http_service"), "one of grpc_service, http_service is required")
        return None
    if message.HasField("grpc_service"):
        where = child(path, "grpc_service")
        config = build_grpc_service(message.grpc_service, where, context, per_stream=False)
        return None if config is None else GrpcSender(config, _USER_AGENT)
    service = message.http_service
    head = _head(service, child(path, "http_service"), context)
    return HttpSender(service.http_uri.cluster, head, float(milliseconds(service.http_uri.timeout)))


def _head(service: Any, path: str, context: BuildContext) -> HeaderMap:
    """Of the requests to the collector. What is added to it cannot depend on a request."""
    uri = service.http_uri.uri
    parts = urlsplit(uri if "//" in uri or uri.startswith("/") else f"//{uri}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    authority = parts.netloc or service.http_uri.cluster
    head = HeaderMap([(b":method", b"POST"), (b":path", target.encode()), (b":authority", authority.encode())])
    head.add(b"content-type", b"application/x-protobuf")
    head.add(b"user-agent", _USER_AGENT)
    for index, option in enumerate(service.request_headers_to_add):
        where = f"{item(path, 'request_headers_to_add', index)}.header.value"
        try:
            value = parse_format(option.header.value).constant
        except FormatError as error:
            context.errors.add(where, str(error))
            continue
        if value is None:
            context.errors.add(where, "cannot depend on a request: batches of spans are of many")
        else:
            head.set(option.header.key.lower().encode(), value)
    return head


def _resource(message: Any, path: str, context: BuildContext) -> dict[str, str]:
    """What the spans' process is; a detector's word counts more than what stands before it."""
    attributes = {
        "service.name": message.service_name or f"unknown_service:{_NAME}",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": _NAME,
        "telemetry.sdk.version": __version__,
    }
    for index, entry in enumerate(message.resource_detectors):
        where = child(item(path, "resource_detectors", index), "typed_config")
        found = RESOURCE_DETECTORS.find(entry.typed_config, where, context)
        if found is not None:
            attributes.update(found[1](found[0]))
    return attributes


def _from_configuration(message: Any) -> dict[str, str]:
    return dict(message.attributes)


def _from_environment(message: Any) -> dict[str, str]:
    """OTEL_RESOURCE_ATTRIBUTES: `key=value` pairs, apart by commas."""
    pairs = [pair.partition("=") for pair in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")]
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


TRACERS.register(opentelemetry_pb2.OpenTelemetryConfig, _build_opentelemetry)
RESOURCE_DETECTORS.register(static_config_resource_detector_pb2.StaticConfigResourceDetectorConfig, _from_configuration)
RESOURCE_DETECTORS.register(environment_resource_detector_pb2.EnvironmentResourceDetectorConfig, _from_environment)
SAMPLERS.register(always_on_sampler_pb2.AlwaysOnSamplerConfig, True)
REQUEST_IDS.register(uuid_pb2.UuidRequestIdConfig, True)
