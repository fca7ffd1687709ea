"""Traces: what is traced, what spans tell, and where they go."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

_HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager."
_TAG = "envoy.type.tracing.v3.CustomTag"
_KIND = "envoy.type.metadata.v3.MetadataKind"
_OTEL = "envoy.extensions.tracers.opentelemetry."

TABLES: Final[Tables] = {
    _HCM + "Tracing": MessageTable(
        "client_sampling random_sampling overall_sampling verbose max_path_tag_length custom_tags provider "
        "spawn_upstream_span operation upstream_operation"
    ),
    "envoy.config.trace.v3.Tracing": MessageTable("http"),
    "envoy.config.trace.v3.Tracing.Http": MessageTable("name typed_config"),
    "envoy.config.trace.v3.OpenTelemetryConfig": MessageTable(
        "grpc_service http_service service_name resource_detectors sampler max_cache_size"
    ),
    "envoy.config.core.v3.HttpService": MessageTable("http_uri request_headers_to_add"),
    "envoy.config.core.v3.HttpUri": MessageTable("uri cluster timeout"),
    _OTEL + "resource_detectors.v3.StaticConfigResourceDetectorConfig": MessageTable("attributes"),
    _OTEL + "resource_detectors.v3.EnvironmentResourceDetectorConfig": MessageTable(),
    _OTEL + "samplers.v3.AlwaysOnSamplerConfig": MessageTable(),
    "envoy.config.route.v3.Tracing": MessageTable(
        "client_sampling random_sampling overall_sampling custom_tags operation upstream_operation"
    ),
    "envoy.config.route.v3.Decorator": MessageTable("operation propagate"),
    _TAG: MessageTable("tag literal environment request_header metadata value"),
    _TAG + ".Literal": MessageTable("value"),
    _TAG + ".Environment": MessageTable("name default_value"),
    _TAG + ".Header": MessageTable("name default_value"),
    _TAG + ".Metadata": MessageTable("kind metadata_key default_value"),
    _KIND: MessageTable("request route cluster host"),
    _KIND + ".Request": MessageTable(),
    _KIND + ".Route": MessageTable(),
    _KIND + ".Cluster": MessageTable(),
    _KIND + ".Host": MessageTable(),
}
