"""What the HttpConnectionManager message says of HTTP versions, as connections find it."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage

import meshproxy.filters.builtin  # noqa: F401  the router is registered
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.http2_options import KeepaliveSettings
from meshproxy.config.runtime import Runtime
from meshproxy.http.build import build_connection_manager
from meshproxy.http.manager_config import AUTO, HTTP1, HTTP2, ConnectionManagerConfig
from meshproxy.observe.stats import StatsRegistry


def build(buffer_limit_bytes: int = 1024, **fields: Any) -> tuple[ConnectionManagerConfig | None, list[str]]:
    message = json_format.ParseDict(
        {
            "stat_prefix": "x",
            "route_config": {},
            **fields,
        },
        http_connection_manager_pb2.HttpConnectionManager(),
    )
    router = AnyMessage()
    router.Pack(Router())
    message.http_filters.add(name="router").typed_config.CopyFrom(router)
    errors = ConfigErrors()
    context = BuildContext(errors, Runtime(), StatsRegistry())
    context.buffer_limit_bytes = buffer_limit_bytes
    return build_connection_manager(message, "m", context), [each.path for each in errors.items]


@pytest.mark.parametrize(
    ("fields", "expected"), [({}, AUTO), ({"codec_type": "HTTP1"}, HTTP1), ({"codec_type": "HTTP2"}, HTTP2)]
)
def test_codec_type(fields: dict[str, Any], expected: int) -> None:
    config, _ = build(**fields)
    assert config is not None
    assert config.codec_type == expected


def test_without_http2_protocol_options_the_defaults_hold() -> None:
    config, _ = build()
    assert config is not None
    assert config.http2.max_concurrent_streams == 1024
    assert (config.http2.max_headers_count, config.http2.max_headers_bytes) == (100, 60 * 1024)
    assert config.http2.buffer_limit_bytes == 1024
    assert config.http2_keepalive is None


def test_limits_of_the_manager_hold_for_both_versions() -> None:
    config, _ = build(common_http_protocol_options={"max_headers_count": 5}, max_request_headers_kb=2)
    assert config is not None
    assert (config.codec.max_headers_count, config.codec.max_headers_bytes) == (5, 2048)
    assert (config.http2.max_headers_count, config.http2.max_headers_bytes) == (5, 2048)


def test_http2_protocol_options() -> None:
    config, _ = build(
        stream_error_on_invalid_http_message=True,
        http2_protocol_options={
            "max_concurrent_streams": 7,
            "allow_connect": True,
            "connection_keepalive": {"interval": "2s", "timeout": "1s"},
        },
    )
    assert config is not None
    assert config.http2.max_concurrent_streams == 7
    assert config.http2.allow_connect
    assert config.http2.stream_error_on_invalid_message
    assert config.http2_keepalive == KeepaliveSettings(2_000.0, 1_000.0, 15.0, 0.0)


def test_an_error_in_http2_protocol_options_has_its_path() -> None:
    parameters = [{"identifier": 2, "value": 1}]
    config, errors = build(http2_protocol_options={"custom_settings_parameters": parameters})
    assert config is None
    assert errors == ["m.http2_protocol_options.custom_settings_parameters[0].value"]


GRPC_STATS = {"@type": "type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig"}
FAULT = {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"}


def test_filters_of_one_kind_may_share_a_name() -> None:
    config, errors = build(http_filters=[{"name": "a", "typed_config": FAULT}, {"name": "a", "typed_config": FAULT}])
    assert (config is not None, errors) == (True, [])


@pytest.mark.parametrize(
    "second", [{"typed_config": GRPC_STATS}, {"typed_config": FAULT, "disabled": True}], ids=["another", "disabled"]
)
def test_filters_of_which_routes_would_say_different_things_may_not(second: dict[str, Any]) -> None:
    _, errors = build(http_filters=[{"name": "a", "typed_config": FAULT}, {"name": "a", **second}])
    assert errors == ["m.http_filters[1].name"]
