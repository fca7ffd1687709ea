"""Decisions, and what a stream that is not traced pays for them.

Envoy's answers are in tests/differential/test_tracing.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.trace.v3 import zipkin_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.tracers.opentelemetry.samplers.v3 import parent_based_sampler_pb2
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.http.tracing.build import build_tracing
from meshproxy.http.tracing.tracing import Tracing, leading_number, packed_reason
from meshproxy.observe.stream_info import TRACE_CLIENT, TRACE_FORCED, TRACE_NONE, TRACE_SAMPLED
from tests.http.harness import ANY_ROUTE, Harness, ScriptedUpstream, get, parse
from tests.support.garbage import only_collected

ID = "dfd375aa-f7e8-4f5e-90f4-537e786fd510"
OTEL = "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig"
SERVICE = {"http_uri": {"uri": "http://collector/v1/traces", "cluster": "c", "timeout": "1s"}}


def manager(provider: dict[str, Any] | None = None, **tracing: Any) -> HttpConnectionManager:
    """A connection manager that traces."""
    provider = {"@type": OTEL, "http_service": SERVICE} if provider is None else provider
    fields = {"provider": {"name": "p", "typed_config": provider}, **tracing}
    made: HttpConnectionManager = parse({"tracing": fields}, HttpConnectionManager())
    return made


def built(harness: Harness, message: HttpConnectionManager) -> Tracing:
    tracing = build_tracing(message, "hcm", harness.context)
    assert tracing is not None
    assert not harness.errors, str(harness.errors)
    return tracing


def send(harness: Harness, tracing: Tracing, request: bytes) -> Any:
    """The stream of a request."""
    config = harness.config()
    config.tracing = tracing
    harness.connect(config).send(request)
    return harness.upstream.streams[-1]


def errors_of(message: HttpConnectionManager) -> dict[str, str]:
    harness = Harness()
    build_tracing(message, "hcm", harness.context)
    return {error.path: error.reason for error in harness.errors.items}


@given(st.integers(min_value=0, max_value=2**32 - 1), st.booleans())
def test_the_number_in_an_id(number: int, upper: bool) -> None:
    text = b"%08x-rest" % number
    assert leading_number(text.upper() if upper else text) == number


@pytest.mark.parametrize("text", [b"", b"0123456", b"0123456g", b"-1234567", b"\xff" * 8])
def test_an_id_without_a_number(text: bytes) -> None:
    assert leading_number(text) == -1


@pytest.mark.parametrize(
    ("digit", "reason"), [("4", TRACE_NONE), ("9", TRACE_SAMPLED), ("a", TRACE_FORCED), ("b", TRACE_CLIENT), ("c", 0)]
)
def test_the_reason_in_an_id(digit: str, reason: int) -> None:
    request_id = (ID[:14] + digit + ID[15:]).encode()
    assert packed_reason(request_id) == reason
    assert packed_reason(request_id + b"0") == TRACE_NONE


def test_a_stream_that_is_not_traced_has_no_object_for_it() -> None:
    harness = Harness()
    tracing = built(harness, manager(random_sampling={"value": 0}))
    stream = send(harness, tracing, get("/", ("x-request-id", ID)))
    assert stream.trace is None
    assert stream.info.trace_reason == TRACE_NONE
    assert dict(harness.upstream.seen[-1])[b"traceparent"] == stream.info.traceparent
    assert stream.info.traceparent.endswith(b"-00")
    assert tracing.stats.not_traceable == 1


def test_runtime_decides_anew_for_each_request() -> None:
    harness = Harness(runtime={"tracing.random_sampling": 100})
    tracing = built(harness, manager(random_sampling={"value": 0}))
    assert send(harness, tracing, get("/", ("x-request-id", ID))).info.trace_reason == TRACE_SAMPLED


def test_without_a_provider_there_are_decisions_alone() -> None:
    harness = Harness()
    tracing = built(harness, parse({"tracing": {}}, HttpConnectionManager()))
    stream = send(harness, tracing, get("/", ("x-request-id", ID), ("traceparent", "kept")))
    assert stream.info.trace_reason == TRACE_SAMPLED
    assert stream.info.request_id == (ID[:14] + "9" + ID[15:]).encode()
    assert dict(harness.upstream.seen[-1])[b"traceparent"] == b"kept"
    assert stream.info.traceparent == b""


def test_the_bootstraps_provider_is_for_those_who_name_none() -> None:
    harness = Harness()
    harness.context.tracing_provider = manager().tracing.provider
    assert built(harness, parse({"tracing": {}}, HttpConnectionManager())).exporter is not None


def test_no_tracing_is_none() -> None:
    assert build_tracing(HttpConnectionManager(), "hcm", Harness().context) is None


def test_a_traced_stream_is_freed_at_once() -> None:
    harness = Harness(ANY_ROUTE, upstream=ScriptedUpstream())
    tracing = built(harness, manager())
    config = harness.config()
    config.tracing = tracing
    downstream = harness.connect(config)
    downstream.send(get("/", ("x-request-id", ID)))
    harness.upstream.streams.clear()
    with only_collected("meshproxy.http") as found:
        downstream.send(get("/", ("x-request-id", ID)))
        assert harness.upstream.streams[-1].trace is not None
        harness.upstream.streams.clear()
    assert found == []


@pytest.mark.parametrize(
    ("provider", "tracing", "path", "reason"),
    [
        ({"@type": OTEL}, {}, "provider.typed_config.http_service", "is required"),
        (
            {"@type": OTEL, "http_service": SERVICE, "grpc_service": {"envoy_grpc": {"cluster_name": "c"}}},
            {},
            "provider.typed_config.http_service",
            "one of grpc_service, http_service",
        ),
        (
            {
                "@type": OTEL,
                "grpc_service": {
                    "envoy_grpc": {"cluster_name": "c"},
                    "initial_metadata": [{"key": "x", "value": "%REQ(x)%"}],
                },
            },
            {},
            "provider.typed_config.grpc_service.initial_metadata[0].value",
            "cannot depend on a request",
        ),
        (
            {"@type": f"type.googleapis.com/{zipkin_pb2.ZipkinConfig.DESCRIPTOR.full_name}"},
            {},
            "provider.typed_config",
            "ZipkinConfig is not supported as a tracing provider",
        ),
        (
            {
                "@type": OTEL,
                "http_service": SERVICE,
                "sampler": {
                    "name": "s",
                    "typed_config": {
                        "@type": "type.googleapis.com/"
                        + parent_based_sampler_pb2.ParentBasedSamplerConfig.DESCRIPTOR.full_name
                    },
                },
            },
            {},
            "provider.typed_config.sampler.typed_config",
            "ParentBasedSamplerConfig is not supported as a sampler",
        ),
        (
            {
                "@type": OTEL,
                "http_service": SERVICE
                | {"request_headers_to_add": [{"header": {"key": "x", "value": "%REQ(x)%"}}]},
            },
            {},
            "provider.typed_config.http_service.request_headers_to_add[0].header.value",
            "cannot depend on a request",
        ),
        (None, {"custom_tags": [{"tag": "t", "value": "%NONE%"}]}, "custom_tags[0].value", "NONE"),
        (None, {"operation": "%NONE%"}, "operation", "NONE"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_path(
    provider: dict[str, Any] | None, tracing: dict[str, Any], path: str, reason: str
) -> None:
    errors = errors_of(manager(provider, **tracing))
    assert list(errors) == [f"hcm.tracing.{path}"]
    assert reason in errors[f"hcm.tracing.{path}"]
