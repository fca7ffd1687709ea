"""Http2ProtocolOptions: each field reaches the codec, and what Envoy refuses when it loads is refused by its path."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.core.v3.protocol_pb2 import Http2ProtocolOptions
from google.protobuf import json_format

from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields import check_fields
from meshproxy.config.http2_options import KeepaliveSettings, build_http2_settings, build_keepalive

OVERRIDE = "override_stream_error_on_invalid_http_message"
DEPRECATED = "stream_error_on_invalid_http_messaging"


def parse(fields: dict[str, Any]) -> Http2ProtocolOptions:
    return json_format.ParseDict(fields, Http2ProtocolOptions())


def build(fields: dict[str, Any], stream_error: bool | None = None) -> tuple[Http2Settings, list[tuple[str, str]]]:
    errors = ConfigErrors()
    settings = build_http2_settings(
        parse(fields),
        "p",
        errors,
        max_headers_count=7,
        max_headers_bytes=8,
        buffer_limit_bytes=9,
        stream_error=stream_error,
    )
    return settings, [(each.path, each.reason) for each in errors.items]


def custom(*pairs: tuple[int, int]) -> dict[str, Any]:
    return {"custom_settings_parameters": [{"identifier": identifier, "value": value} for identifier, value in pairs]}


def test_an_empty_message_means_envoy_s_defaults() -> None:
    settings, errors = build({})
    assert not errors
    assert settings.hpack_table_bytes == 4096
    assert settings.max_concurrent_streams == 1024
    assert settings.stream_window_bytes == 16 * 1024 * 1024
    assert settings.connection_window_bytes == 24 * 1024 * 1024
    assert settings.max_frame_bytes == 16384
    assert not settings.allow_connect
    assert not settings.stream_error_on_invalid_message
    assert settings.max_outbound_frames == 10_000
    assert settings.max_outbound_control_frames == 1_000
    assert settings.max_empty_frames == 1
    assert settings.max_priority_frames_per_stream == 100
    assert settings.max_window_updates_per_data_frame == 10
    assert settings.extra_settings == ()


def test_what_stands_around_the_message_is_taken_over() -> None:
    settings, _ = build({})
    assert (settings.max_headers_count, settings.max_headers_bytes, settings.buffer_limit_bytes) == (7, 8, 9)


@pytest.mark.parametrize(
    ("field", "value", "attribute"),
    [
        ("hpack_table_size", 0, "hpack_table_bytes"),
        ("hpack_table_size", 70_000, "hpack_table_bytes"),
        ("max_concurrent_streams", 1, "max_concurrent_streams"),
        ("initial_stream_window_size", 65_535, "stream_window_bytes"),
        ("initial_connection_window_size", 2**31 - 1, "connection_window_bytes"),
        ("allow_connect", True, "allow_connect"),
        ("max_outbound_frames", 11, "max_outbound_frames"),
        ("max_outbound_control_frames", 12, "max_outbound_control_frames"),
        ("max_consecutive_inbound_frames_with_empty_payload", 0, "max_empty_frames"),
        ("max_inbound_priority_frames_per_stream", 0, "max_priority_frames_per_stream"),
        ("max_inbound_window_update_frames_per_data_frame_sent", 13, "max_window_updates_per_data_frame"),
    ],
)
def test_each_field_reaches_the_codec(field: str, value: Any, attribute: str) -> None:
    settings, errors = build({field: value})
    assert not errors
    assert getattr(settings, attribute) == value


@pytest.mark.parametrize(
    ("fields", "of_manager", "expected"),
    [
        ({}, None, False),
        ({}, True, True),
        ({OVERRIDE: True}, None, True),
        ({OVERRIDE: False}, True, False),
        ({OVERRIDE: True}, False, True),
        ({DEPRECATED: True}, None, True),
        ({DEPRECATED: True}, False, False),
        ({DEPRECATED: True, OVERRIDE: False}, None, False),
    ],
)
def test_which_of_the_three_fields_decides_on_malformed_messages(
    fields: dict[str, Any], of_manager: bool | None, expected: bool
) -> None:
    assert build(fields, of_manager)[0].stream_error_on_invalid_message is expected


def test_custom_parameters_are_told_once_each() -> None:
    settings, errors = build(custom((0, 1), (6, 100), (77, 7), (77, 7), (2, 0), (5, 20_000)))
    assert not errors
    assert settings.extra_settings == ((0, 1), (6, 100), (77, 7))
    assert settings.max_frame_bytes == 20_000


@pytest.mark.parametrize(
    ("pairs", "path", "reason"),
    [
        # as Envoy
        (((2, 1),), "[0].value", "server push"),
        (((8, 1),), "[0].identifier", "only be configured through the named field"),
        (((8, 0),), "[0].identifier", "only be configured through the named field"),
        (((16, 1), (16, 2)), "[1]", "inconsistent"),
        # Envoy refuses these when the field is set as well, and else does not mean what they say
        (((1, 4096),), "[0].identifier", "hpack_table_size"),
        (((77, 7), (3, 5)), "[1].identifier", "max_concurrent_streams"),
        (((4, 70_000),), "[0].identifier", "initial_stream_window_size"),
        # RFC 9113 section 6.5.2: a connection error of the peer
        (((5, 16_383),), "[0].value", "frames have 16384 to 16777215 bytes"),
        (((5, 2**24),), "[0].value", "frames have 16384 to 16777215 bytes"),
    ],
)
def test_custom_parameters_that_are_refused(pairs: tuple[tuple[int, int], ...], path: str, reason: str) -> None:
    (error,) = build(custom(*pairs))[1]
    assert error[0] == f"p.custom_settings_parameters{path}"
    assert reason in error[1]


def test_metadata_frames_are_refused_and_the_choice_of_a_codec_is_not() -> None:
    errors = ConfigErrors()
    assert not check_fields(
        parse({"allow_metadata": True, "use_oghttp2_codec": True, "max_metadata_size": 1}), "p", errors
    )
    assert [each.path for each in errors.items] == ["p.allow_metadata"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"interval": "30s", "timeout": "2.5s"}, KeepaliveSettings(30_000.0, 2_500.0, 15.0, 0.0)),
        (
            {"interval": "1s", "timeout": "1s", "interval_jitter": {"value": 0}},
            KeepaliveSettings(1_000.0, 1_000.0, 0.0, 0.0),
        ),
        (
            {"timeout": "0.001s", "interval_jitter": {"value": 50.5}, "connection_idle_interval": "5s"},
            KeepaliveSettings(0.0, 1.0, 50.5, 5_000.0),
        ),
        ({"timeout": "1s"}, None),
    ],
)
def test_keepalive(fields: dict[str, Any], expected: KeepaliveSettings | None) -> None:
    assert build_keepalive(parse({"connection_keepalive": fields})) == expected


def test_without_keepalive() -> None:
    assert build_keepalive(Http2ProtocolOptions()) is None
