"""Which filters there are, and the router's options."""

from __future__ import annotations

import pytest
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from google.protobuf.any_pb2 import Any as AnyMessage

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields.check import check_fields
from meshproxy.filters.builtin import HTTP_FILTER_MODULES
from meshproxy.filters.http.router import build_router
from meshproxy.http.filter import HTTP_FILTER_OVERRIDES, HTTP_FILTERS
from tests.http.harness import Harness, parse

EXTENSIONS = "type.googleapis.com/envoy.extensions.filters.http"


@pytest.mark.parametrize(
    "message",
    [
        "buffer.v3.Buffer",
        "cors.v3.Cors",
        "credential_injector.v3.CredentialInjector",
        "fault.v3.HTTPFault",
        "grpc_http1_bridge.v3.Config",
        "grpc_http1_reverse_bridge.v3.FilterConfig",
        "grpc_stats.v3.FilterConfig",
        "grpc_web.v3.GrpcWeb",
        "grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "header_mutation.v3.HeaderMutation",
        "header_to_metadata.v3.Config",
        "health_check.v3.HealthCheck",
        "local_ratelimit.v3.LocalRateLimit",
        "router.v3.Router",
        "set_metadata.v3.Config",
    ],
)
def test_a_filter_is_found_by_its_message(message: str) -> None:
    assert HTTP_FILTER_MODULES
    assert f"{EXTENSIONS}.{message}" in HTTP_FILTERS.type_urls()


@pytest.mark.parametrize(
    "message",
    [
        "buffer.v3.BufferPerRoute",
        "cors.v3.CorsPolicy",
        "fault.v3.HTTPFault",
        "grpc_http1_reverse_bridge.v3.FilterConfigPerRoute",
        "grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "header_mutation.v3.HeaderMutationPerRoute",
        "header_to_metadata.v3.Config",
        "local_ratelimit.v3.LocalRateLimit",
        "set_metadata.v3.Config",
    ],
)
def test_overrides_are_found_by_their_message(message: str) -> None:
    assert f"{EXTENSIONS}.{message}" in HTTP_FILTER_OVERRIDES.type_urls()


def test_the_options_of_the_router() -> None:
    made = Harness()
    plain = build_router(Router(), "r", made.context)
    assert plain is not None
    assert (plain.suppress_envoy_headers, plain.respect_expected_rq_timeout, plain.dynamic_stats) == (
        False,
        False,
        True,
    )
    message = {"suppress_envoy_headers": True, "respect_expected_rq_timeout": True, "dynamic_stats": False}
    options = build_router(parse(message, Router()), "r", made.context)
    assert options is not None
    assert (options.suppress_envoy_headers, options.respect_expected_rq_timeout, options.dynamic_stats) == (
        True,
        True,
        False,
    )


def test_what_the_router_cannot_do_is_refused_by_its_path() -> None:
    made = Harness()
    message = {"strict_check_headers": ["x-envoy-max-retries"], "upstream_http_filters": [{"name": "f"}]}
    assert build_router(parse(message, Router()), "r", made.context) is None
    assert [error.path for error in made.errors.items] == ["r.strict_check_headers", "r.upstream_http_filters"]


@pytest.mark.parametrize("name", ["lua.v3.Lua", "lua.v3.LuaPerRoute", "wasm.v3.Wasm"])
def test_code_for_another_engine_is_refused_with_a_hint(name: str) -> None:
    errors = ConfigErrors()
    check_fields(AnyMessage(type_url=f"{EXTENSIONS}.{name}"), "http_filters[0].typed_config", errors)
    assert [error.path for error in errors.items] == ["http_filters[0].typed_config"]
    assert "write it as a filter in Python (docs/writing-filters.md)" in errors.items[0].reason
